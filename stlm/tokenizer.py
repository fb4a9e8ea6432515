"""
Text <-> tokens. Text is cut into words by a pattern, and each word into tokens: bytes that occur often together.
Here: how tokens are found (byte-pair encoding), and a tokenizer made, saved and loaded. tiktoken encodes.

A tokenizer's folder (a data set's or a run's) has tokenizer.tiktoken, lines of a token in base64 and its id, and
tokenizer.meta.json, its spec.
"""
import base64
import collections
import hashlib
import heapq
import json
import os
import pathlib
import re

import tiktoken
from configurator import Failure

END = '<|endoftext|>'
MAX_BYTES = 16   # of a trained token: what a byte-pooling model reads and writes
# GPT-2's pattern of words: contractions, letters, numbers, other signs, white space; no token crosses two
WORDS = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"


def count_words(texts, limit=2**28):
    """{word's bytes: how often it occurs} in the first `limit` characters."""
    import regex
    counts, seen = collections.Counter(), 0
    for text in texts:
        counts.update(regex.findall(WORDS, text))
        seen += len(text)
        if seen > limit:
            break
    return {word.encode(): count for word, count in counts.items()}


def train_bpe(counts, size, max_bytes=MAX_BYTES):
    """Byte-pair encoding (arXiv 1508.07909) of {word: count}: merge the commonest pair of neighbours, again and again,
    until there are `size` tokens of at most max_bytes bytes. Returns {token: rank}.

    All words stand in one row, -1 between them. A token's first and last place hold its id, so that its neighbours
    see it. A merge looks at the pair's places only: the work grows with the text, not with its square."""
    tokens = [bytes([byte]) for byte in range(256)]
    row, weights = [-1], [0]
    for word, count in counts.items():
        row += [*word, -1]
        weights += [count] * len(word) + [0]
    places, heap = collections.defaultdict(list), []   # where each pair begins; (-how often, pair)

    def offer(pair):
        count = sum(weights[place] for place in places[pair])
        if count and sum(len(tokens[part]) for part in pair) <= max_bytes:
            heapq.heappush(heap, (-count, pair))

    for place, pair in enumerate(zip(row, row[1:])):
        if -1 not in pair:
            places[pair].append(place)
    for pair in places:
        offer(pair)
    while len(tokens) < size and heap:
        a, b = heapq.heappop(heap)[1]
        length, there = len(tokens[a]), places.pop((a, b))
        places[a, b] = [place for place in there if row[place] == a and row[place + length] == b]
        if len(places[a, b]) < len(there):   # other merges took some since it was counted: it may not be the commonest
            offer((a, b))
            continue
        new, found = len(tokens), set()
        tokens.append(tokens[a] + tokens[b])
        for first in places.pop((a, b)):
            second, after = first + length, first + len(tokens[new])
            if row[first] != a or row[second] != b:   # in "aaa" the first two have just become one
                continue
            row[second - 1] = row[second] = -1
            row[first] = row[after - 1] = new
            left, right = row[first - 1], row[after]
            for pair, place in ((left, new), first - len(tokens[left])), ((new, right), first):
                if -1 not in pair:
                    places[pair].append(place)
                    found.add(pair)
        for pair in found:
            offer(pair)
    return {token: rank for rank, token in enumerate(tokens)}


class Tokenizer(tiktoken.Encoding):
    """tiktoken's, which takes all text as text. make_tokenizer() sets ranks, pattern and n_vocab."""
    n_vocab = 0

    def encode_to_numpy(self, text):
        ids = super().encode_to_numpy(text, disallowed_special=())
        if ids.max(initial=0) >= self.n_vocab:
            before = self.decode_bytes(ids[:(ids >= self.n_vocab).argmax()].tolist())
            character = text[len(before.decode(errors='ignore'))]
            raise Failure(f'tokenizer={self.name} has no token for {character!r} (U+{ord(character):04X})')
        return ids

    def encode_ordinary(self, text):
        return self.encode_to_numpy(text).tolist()


def make_tokenizer(name, ranks, pattern=WORDS, end_of_text=None, vocab_size=0):
    """The tokenizer with these {token: id}, gaps allowed; a lower id is merged first. The end of a text comes after
    them, if not given."""
    if not re.fullmatch(r'\w[\w.-]*', name):   # it becomes part of a folder's name
        raise Failure(f'tokenizer={name}: a name has letters, digits, . _ and - alone')
    end_of_text = max(ranks.values()) + 1 if end_of_text is None else end_of_text
    ids = {*ranks.values(), end_of_text}
    if len(ids) <= len(ranks):
        raise Failure(f'tokenizer={name}: two tokens have the same id, or one has that of {END} ({end_of_text})')
    n_vocab = max(vocab_size, max(ids) + 1)
    # tiktoken panics at a byte without a token; here it gets an id behind the vocabulary, which is refused
    lacking = [byte for byte in (bytes([i]) for i in range(256)) if byte not in ranks]
    more = {byte: n_vocab + i for i, byte in enumerate(lacking)}
    tokenizer = Tokenizer(name, pat_str=pattern, mergeable_ranks=ranks | more, special_tokens={END: end_of_text})
    tokenizer.ranks, tokenizer.pattern, tokenizer.n_vocab = ranks, pattern, n_vocab
    return tokenizer


def named_ranks(name):
    """{token: id} of byte, of gpt2, or of gpt2-16: without the tokens of more than 16 bytes."""
    if name == 'byte':
        return {bytes([byte]): byte for byte in range(255)}   # the last, which UTF-8 never uses, is the end of a text
    try:
        ranks = tiktoken.get_encoding('gpt2')._mergeable_ranks
    except (OSError, ValueError) as error:   # ValueError: something else came
        address = 'https://openaipublic.blob.core.windows.net/gpt-2/encodings/main/'
        saved = ' and '.join(f'{address}{file} as FOLDER/{hashlib.sha1((address + file).encode()).hexdigest()}'
                             for file in ('vocab.bpe', 'encoder.json'))
        raise Failure(
            f"GPT-2's vocabulary can't be fetched ({type(error).__name__}). With a browser save {saved}\n"
            'and export TIKTOKEN_CACHE_DIR=FOLDER; or take --tokenizer=bpe4096 or byte, which need no download')
    longest = int(name.partition('-')[2] or 999)
    return {token: rank for token, rank in ranks.items() if len(token) <= longest}


def spelling_of(tokenizer):
    """Each token's bytes, by id; the end of a text is b''; None is an id without a token."""
    spelled = [None] * tokenizer.n_vocab
    for token, i in tokenizer.ranks.items():
        spelled[i] = token
    spelled[tokenizer.eot_token] = b''
    return spelled


def rank_lines(tokenizer):
    by_id = sorted(tokenizer.ranks.items(), key=lambda item: item[1])
    return b''.join(base64.b64encode(token) + b' %d\n' % i for token, i in by_id)


def spec_of(tokenizer):
    """What tells a tokenizer from all others; its hash is that of the rest and of tokenizer.tiktoken."""
    spec = dict(name=tokenizer.name, vocab_size=tokenizer.n_vocab, end_of_text=tokenizer.eot_token,
                max_token_bytes=max(map(len, tokenizer.ranks)), pattern=tokenizer.pattern)
    return spec | dict(sha256=hashlib.sha256(json.dumps(spec).encode() + rank_lines(tokenizer)).hexdigest())


def save_tokenizer(tokenizer, folder):
    """Write the two files, each whole or not at all; return the spec."""
    spec = spec_of(tokenizer)
    for name, data in ('tiktoken', rank_lines(tokenizer)), ('meta.json', json.dumps(spec).encode()):
        part = pathlib.Path(folder, f'tokenizer.{os.getpid()}.part')
        with open(part, 'wb') as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, pathlib.Path(folder, f'tokenizer.{name}'))
    return spec


def load_tokenizer(spec, folder):
    """The tokenizer saved in folder, which must be the one that spec says; None: the one that the folder itself says."""
    try:
        if spec is None:
            spec = json.loads(pathlib.Path(folder, 'tokenizer.meta.json').read_bytes())
        lines = pathlib.Path(folder, 'tokenizer.tiktoken').read_bytes().splitlines()
        ranks = {base64.b64decode(token): int(i) for token, i in map(bytes.split, lines)}
        tokenizer = make_tokenizer(spec['name'], ranks, spec['pattern'], spec['end_of_text'], spec['vocab_size'])
        if spec_of(tokenizer) != spec:
            raise ValueError('not the one that was written, or of another tokenizer')
    except OSError as error:
        raise Failure(f'{error.filename}: {error.strerror}; the tokenizer is missing')
    except (Failure, ValueError, KeyError, TypeError, OverflowError) as error:
        raise Failure(f'{folder}/tokenizer.tiktoken: damaged ({error})')
    return tokenizer
