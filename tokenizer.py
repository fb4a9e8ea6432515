"""
Text <-> tokens. A token is a sequence of bytes that occurs often; text is cut into words by a pattern, and each word
into tokens. Here: how the tokens are found (byte-pair encoding), and a tokenizer made, saved and loaded. tiktoken encodes.

A folder with a tokenizer (a data set's or a run's) has tokenizer.tiktoken, a line with base64 token and id for each,
and tokenizer.meta.json, its spec: a dict of name, vocab_size, end_of_text (an id), max_token_bytes, sha256 (of
tokenizer.tiktoken) and pattern (of words). The tokenizer `byte` has the second file alone.
"""
import base64
import collections
import hashlib
import heapq
import json
import os
import pathlib
import re

END = '<|endoftext|>'
MAX_BYTES = 16   # of a trained token: what a byte-pooling model reads and writes
# GPT-2's pattern of words: contractions, letters, numbers, other signs, white space; no token crosses two
WORDS = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"


def count_words(texts, limit=2**28):
    """{word's bytes: how often it occurs} in the first `limit` characters."""
    import regex
    pattern, counts, seen = regex.compile(WORDS), collections.Counter(), 0
    for text in texts:
        counts.update(pattern.findall(text))
        seen += len(text)
        if seen > limit:
            break
    return {word.encode(): count for word, count in counts.items()}


def train_bpe(counts, size, max_bytes=MAX_BYTES, progress=lambda done: None):
    """Byte-pair encoding (arXiv 1508.07909) of {word: count}: merge the commonest pair of neighbours, again and again,
    until there are `size` tokens of at most max_bytes bytes. Returns {token: rank}.

    All words stand in one row, -1 between them. A token's first and last place hold its id, so that its neighbours
    see it. Counts are changed only where a merge happens: the work grows with the text, not with its square."""
    tokens = [bytes([byte]) for byte in range(256)]
    row, weights = [-1], [0]
    for word, count in counts.items():
        row += [*word, -1]
        weights += [count] * len(word) + [0]
    pairs, places = collections.Counter(), collections.defaultdict(list)   # how often, and where they begin
    for place, pair in enumerate(zip(row, row[1:])):
        if -1 not in pair:
            pairs[pair] += weights[place]
            places[pair].append(place)
    heap = [(-count, pair) for pair, count in pairs.items()]
    heapq.heapify(heap)
    while len(tokens) < size and heap:
        count, (a, b) = heapq.heappop(heap)
        if -count != pairs[a, b]:   # it was counted before other merges took some of it
            heapq.heappush(heap, (-pairs[a, b], (a, b)))
            continue
        if count == 0 or len(tokens[a]) + len(tokens[b]) > max_bytes:
            continue
        new, found = len(tokens), collections.defaultdict(list)
        tokens.append(tokens[a] + tokens[b])
        for first in places.pop((a, b)):
            second = first + len(tokens[a])
            if row[first] != a or row[second] != b:   # one of them has been merged with another neighbour
                continue
            after, weight = second + len(tokens[b]), weights[first]
            row[second - 1] = row[second] = -1
            row[first] = row[after - 1] = new
            left, right = row[first - 1], row[after]
            if left >= 0:
                pairs[left, a] -= weight
                pairs[left, new] += weight
                found[left, new].append(first - len(tokens[left]))
            if right >= 0:
                pairs[b, right] -= weight
                pairs[new, right] += weight
                found[new, right].append(first)
        del pairs[a, b]
        places.update(found)
        for pair in found:
            heapq.heappush(heap, (-pairs[pair], pair))
        if new % 64 == 0:
            progress((new / size)**(1 / 3))   # early merges touch the most places
    return {token: rank for rank, token in enumerate(tokens)}


class ByteTokenizer:
    """UTF-8 bytes; 0xFF, which UTF-8 never uses, is the end of a text."""
    name, ranks, pattern, eot_token, n_vocab = 'byte', {bytes([i]): i for i in range(255)}, '', 255, 256

    def encode_ordinary(self, text):
        return list(text.encode())

    def encode_to_numpy(self, text):
        import numpy as np
        return np.frombuffer(text.encode(), 'u1')

    def decode_bytes(self, ids):
        return bytes(i for i in ids if i != self.eot_token)


class BytePairTokenizer:
    """tiktoken's encoding; ids need neither begin at 0 nor be without gaps, and a lower one is merged first."""

    def __init__(self, name, ranks, pattern, end_of_text, vocab_size):
        import tiktoken
        self.name, self.ranks, self.pattern, self.eot_token, self.n_vocab = name, ranks, pattern, end_of_text, vocab_size
        # tiktoken panics at a byte without a token; here it gets an id behind the vocabulary, which is refused
        self.lacking = [bytes([i]) for i in range(256) if bytes([i]) not in ranks]
        ids = ranks | {byte: vocab_size + i for i, byte in enumerate(self.lacking)}
        self.encoding = tiktoken.Encoding(name, pat_str=pattern, mergeable_ranks=ids, special_tokens={END: end_of_text})

    def encode_ordinary(self, text):
        return self.encode_to_numpy(text).tolist()

    def encode_to_numpy(self, text):
        ids = self.encoding.encode_to_numpy(text, disallowed_special=())
        if self.lacking and ids.max(initial=0) >= self.n_vocab:
            before = self.encoding.decode_bytes(ids[:(ids >= self.n_vocab).argmax()].tolist())
            character = text[len(before.decode(errors='ignore'))]
            raise SystemExit(f'tokenizer={self.name} has no token for {character!r} (U+{ord(character):04X})')
        return ids

    def decode_bytes(self, ids):
        return self.encoding.decode_bytes(ids)


def named_ranks(name):
    """{token: id} of gpt2, or of gpt2-16: without the tokens of more than 16 bytes."""
    import requests
    import tiktoken
    try:
        ranks = tiktoken.get_encoding('gpt2')._mergeable_ranks
    except (requests.RequestException, OSError, ValueError) as error:   # ValueError: something else came
        address = 'https://openaipublic.blob.core.windows.net/gpt-2/encodings/main/'
        saved = ' and '.join(f'{address}{file} as FOLDER/{hashlib.sha1((address + file).encode()).hexdigest()}'
                             for file in ('vocab.bpe', 'encoder.json'))
        raise SystemExit(
            f"GPT-2's vocabulary can't be fetched ({type(error).__name__}). With a browser save {saved}\n"
            'and export TIKTOKEN_CACHE_DIR=FOLDER; or take --tokenizer=bpe4096 or byte, which need no download')
    longest = int(name.removeprefix('gpt2').lstrip('-') or 2**9)
    return {token: rank for token, rank in ranks.items() if len(token) <= longest}


def make(name, ranks, pattern=WORDS, end_of_text=None, vocab_size=0):
    """The tokenizer with these {token: id}; the end of a text is the id after them, if not given."""
    if name == 'byte':
        return ByteTokenizer()
    if not re.fullmatch(r'\w[\w.-]*', name):   # it becomes part of a folder's name
        raise SystemExit(f'tokenizer={name}: a name has letters, digits, . _ and - alone')
    last = max(ranks.values())
    end_of_text = last + 1 if end_of_text is None else end_of_text
    if len({*ranks.values(), end_of_text}) <= len(ranks):
        raise SystemExit(f'tokenizer={name}: two tokens have the same id, or one has that of {END} ({end_of_text})')
    return BytePairTokenizer(name, ranks, pattern, end_of_text, max(vocab_size, last + 1, end_of_text + 1))


def spelling(tokenizer):
    """Each token's bytes, by id; the end of a text is b''; None is an id without a token."""
    spelled = [None] * tokenizer.n_vocab
    for token, i in tokenizer.ranks.items():
        spelled[i] = token
    spelled[tokenizer.eot_token] = b''
    return spelled


def spec_of(tokenizer):
    """What tells a tokenizer from all others."""
    data = rank_lines(tokenizer)
    return dict(name=tokenizer.name, vocab_size=tokenizer.n_vocab, end_of_text=tokenizer.eot_token,
                max_token_bytes=max(map(len, tokenizer.ranks)), sha256=hashlib.sha256(data).hexdigest() if data else '',
                pattern=tokenizer.pattern)


def rank_lines(tokenizer):
    lines = sorted((i, base64.b64encode(token)) for token, i in tokenizer.ranks.items())
    return b'' if tokenizer.name == 'byte' else b''.join(token + b' %d\n' % i for i, token in lines)


def check_of(facts):
    """A hash that a JSON file keeps beside its facts: one that has changed isn't taken for a right one."""
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def save(tokenizer, folder):
    """Write the two files, each whole or not at all; return the spec."""
    spec = spec_of(tokenizer)
    facts = json.dumps(spec | dict(check=check_of(spec))).encode()
    for name, data in ('tiktoken', rank_lines(tokenizer)), ('meta.json', facts):
        path, part = pathlib.Path(folder, f'tokenizer.{name}'), pathlib.Path(folder, f'tokenizer.{os.getpid()}.part')
        with open(part, 'wb') as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
        if not data:   # of byte, in a folder where another tokenizer may have been
            path.unlink()
    return spec


def load(spec, folder):
    """The tokenizer saved in folder, which must be the one that spec says; None: the one that the folder itself says."""
    try:
        if spec is None:
            spec = json.loads(pathlib.Path(folder, 'tokenizer.meta.json').read_bytes())
            if spec.pop('check') != check_of(spec):
                raise ValueError('tokenizer.meta.json has changed since it was written')
        data = b'' if spec['name'] == 'byte' else pathlib.Path(folder, 'tokenizer.tiktoken').read_bytes()
        if data and hashlib.sha256(data).hexdigest() != spec['sha256']:
            raise ValueError('tokenizer.tiktoken is damaged or of another tokenizer')
        lines = [line.split() for line in data.splitlines()]
        ranks = {base64.b64decode(token): int(i) for token, i in lines}
        tokenizer = make(spec['name'], ranks, spec['pattern'], spec['end_of_text'], spec['vocab_size'])
        if spec_of(tokenizer) != spec:
            raise ValueError('its name, size or end of text is of another tokenizer')
    except OSError as error:
        raise SystemExit(f'{error.filename}: {error.strerror}; the tokenizer is missing')
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise SystemExit(f'{folder}: not a whole tokenizer ({error})')
    return tokenizer
