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
import pathlib
import re

import tiktoken

from configurator import Failure
from stlm.files import write_whole

END_OF_TEXT = '<|endoftext|>'
MAX_BYTES = 16   # the longest trained token: what a byte-pooling model reads and writes
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
    """Byte-pair encoding (arXiv 1508.07909) of {word: how often it occurs}; returns {token: rank}. Slowly, it is this:

        tokens = the 256 bytes; every word is cut into its bytes
        until there are `size` tokens:
            count each pair of neighbours a, b in all words, if a + b has at most max_bytes bytes
            take the commonest pair; of equally common ones that with the lowest ranks
            add a + b to the tokens, and merge a, b in all words, from left to right

    Counting anew for each merge would take hours. Here each pair knows the places where it begins, so that a merge looks at
    those only. All words stand in one row, -1 between them. A token of several bytes has its rank at its first place and at
    its last, where its neighbours look for it."""
    tokens = [bytes([byte]) for byte in range(256)]
    row, weights = [-1], [0]   # ranks, and how often the word occurs to which a place belongs
    for word, count in counts.items():
        row += [*word, -1]
        weights += [count] * len(word) + [0]
    places, heap = collections.defaultdict(list), []   # of a pair; (-how often, pair), the commonest first

    def offer(pair):
        count = sum(weights[place] for place in places[pair])
        if count and len(tokens[pair[0]] + tokens[pair[1]]) <= max_bytes:
            heapq.heappush(heap, (-count, pair))

    for place, pair in enumerate(zip(row, row[1:])):
        if -1 not in pair:
            places[pair].append(place)
    for pair in places:
        offer(pair)
    while len(tokens) < size and heap:
        _, (a, b) = heapq.heappop(heap)
        known, length = places.pop((a, b)), len(tokens[a])
        starts = [place for place in known if row[place] == a and row[place + length] == b]
        if len(starts) < len(known):   # other merges took some since it was counted: it may not be the commonest
            places[a, b] = starts
            offer((a, b))
            continue
        merged, new_pairs = len(tokens), set()
        tokens.append(tokens[a] + tokens[b])
        for start in starts:
            middle, end = start + length, start + len(tokens[merged])
            if row[start] != a or row[middle] != b:   # of "aaa" the first two have just been merged
                continue
            row[middle - 1] = row[middle] = -1
            row[start] = row[end - 1] = merged
            left, right = row[start - 1], row[end]
            if left >= 0:
                places[left, merged].append(start - len(tokens[left]))
                new_pairs.add((left, merged))
            if right >= 0:
                places[merged, right].append(start)
                new_pairs.add((merged, right))
        for pair in new_pairs:
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
    """The tokenizer with these {token: id}, gaps allowed; a lower id is merged first. The end of a text has the
    id after them, if none is given."""
    if not re.fullmatch(r'\w[\w.-]*', name):   # it becomes part of a folder's name
        raise Failure(f'tokenizer={name}: a name has only letters, digits, . _ and -')
    end_of_text = max(ranks.values()) + 1 if end_of_text is None else end_of_text
    ids = {*ranks.values(), end_of_text}
    if len(ids) <= len(ranks):
        raise Failure(f'tokenizer={name}: two tokens have the same id, or one has that of {END_OF_TEXT} ({end_of_text})')
    n_vocab = max(vocab_size, max(ids) + 1)
    # tiktoken panics at a byte without a token: give it an id above the vocabulary, which encode_to_numpy() refuses
    all_bytes = {bytes([byte]): n_vocab + byte for byte in range(256)}
    tokenizer = Tokenizer(name, pat_str=pattern, mergeable_ranks=all_bytes | ranks, special_tokens={END_OF_TEXT: end_of_text})
    tokenizer.ranks, tokenizer.pattern, tokenizer.n_vocab = ranks, pattern, n_vocab
    return tokenizer


def named_ranks(name):
    """{token: id} of byte, of gpt2, or of gpt2-16: without the tokens of more than 16 bytes."""
    if name == 'byte':
        return {bytes([byte]): byte for byte in range(255)}   # the last, which UTF-8 never uses, is the end of a text
    try:
        ranks = tiktoken.get_encoding('gpt2')._mergeable_ranks
    except (OSError, ValueError) as error:   # ValueError: something else came
        raise Failure(f"GPT-2's vocabulary can't be fetched ({type(error).__name__}). Take --tokenizer=bpe4096 or byte, which "
                      'need no download; or set TIKTOKEN_CACHE_DIR=FOLDER, which tiktoken has filled where there is a network')
    longest = int(name.partition('-')[2] or 999)
    return {token: rank for token, rank in ranks.items() if len(token) <= longest}


def spelling_of(tokenizer):
    """Each token's bytes, by id; the end of a text is b''; None is an id without a token."""
    spelled = [None] * tokenizer.n_vocab
    for token, i in tokenizer.ranks.items():
        spelled[i] = token
    spelled[tokenizer.eot_token] = b''
    return spelled


def ids_of(tokenizer, text):
    """The ids that a model reads before it goes on: as every training document, they begin with the end of a text."""
    return [tokenizer.eot_token, *tokenizer.encode_ordinary(text)]


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
    write_whole(pathlib.Path(folder, 'tokenizer.tiktoken'), rank_lines(tokenizer))
    write_whole(pathlib.Path(folder, 'tokenizer.meta.json'), json.dumps(spec).encode())
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
