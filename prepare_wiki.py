"""
Text -> token files. The only file that knows corpora and tokenizers.

    python prepare_wiki.py                                      # pydocs: English that every CPython carries
    python prepare_wiki.py --input=book.txt --dataset=book      # your own .txt, .jsonl, .jsonl.gz, or a folder
    python train.py --dataset=book --out_dir=out/book           # then train on it

Writes data/<dataset>-<tokenizer>/ with train.bin, val.bin and test.bin (flat arrays of token ids, each document
preceded by <|endoftext|>; split by a hash of the document's text, so a document stays in its split when others
come or go), meta.json (what is in them), and a trained tokenizer's ranks. It appears whole or not at all.
"""
dataset = 'pydocs'       # its name: data/<dataset>-<tokenizer>/; with no --input, one of the known: pydocs
tokenizer = 'bpe4096'    # bpe<N>: trained on this text; gpt2; gpt2-16: gpt2 without tokens over 16 bytes; byte
input = ''               # file or folder of one's own text, or several separated by commas
val_fraction = 0.0       # of the documents, for each of val and test; 0: 0.05 for pydocs, else 0.01
data_dir = 'data'        # where the data sets are

if __name__ == '__main__':
    from configurator import configure
    configure(globals())

import base64
import collections
import datetime
import gzip
import hashlib
import heapq
import json
import os
import pathlib
import re
import shutil
import sys
import time
import zlib

FORMAT = 1                 # version of the token files and meta.json
END = '<|endoftext|>'
MAX_BYTES = 16             # of a trained token: what a byte-pooling model reads and writes
# GPT-2's pattern of words: contractions, letters, numbers, other signs, white space; no token crosses two
WORDS = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"


# ---------------------------------------------------------------------------------------------------------
# documents

def pydocs(progress):
    """The topics of Python's help() and the docstrings of its standard library, a document for each file."""
    import ast, sysconfig, warnings
    import pydoc_data.topics
    yield from pydoc_data.topics.topics.values()
    folder = pathlib.Path(sysconfig.get_path('stdlib'))
    files = [file for file in sorted(folder.rglob('*.py'))   # not what pip installed, nor tests of tests
             if not {'site-packages', 'dist-packages', 'test', 'tests'} & set(file.relative_to(folder).parts)]
    for i, file in enumerate(files):
        progress(i / len(files))
        try:
            with warnings.catch_warnings():
                warnings.simplefilter('ignore')   # of the standard library's own odd escapes
                tree = ast.parse(file.read_bytes())
        except SyntaxError:   # lib2to3 keeps samples of bad Python
            continue
        documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
        strings = [ast.get_docstring(node) for node in ast.walk(tree) if isinstance(node, documented)]
        if any(strings):
            yield '\n\n'.join([f'# {file.relative_to(folder).as_posix()}', *filter(None, strings)])


KNOWN = {'pydocs': (pydocs, 0.05)}   # name: documents, val_fraction


def input_files(paths):
    """The text files that --input names, folders searched."""
    files = []
    for path in map(pathlib.Path, paths.split(',')):
        if not path.exists():
            sys.exit(f'--input={path}: no such file or folder')
        found = sorted(path.rglob('*')) if path.is_dir() else [path]
        wanted = [f for f in found if f.name.endswith(('.txt', '.jsonl', '.jsonl.gz'))]
        if not wanted:
            sys.exit(f'--input={path}: nothing here ends in .txt, .jsonl or .jsonl.gz')
        files += wanted
    return files


def read_files(files, progress):
    """Documents of .txt files (cut_text) and .jsonl[.gz] files (a `text`, after its `title` if it has one)."""
    total, before = sum(file.stat().st_size for file in files), 0
    for file in files:
        with open(file, 'rb') as raw:
            lines = gzip.open(raw) if file.suffix == '.gz' else raw
            try:
                for document in (cut_text if file.suffix == '.txt' else json_lines)(lines, file):
                    progress((before + raw.tell()) / max(total, 1))
                    if document.strip():
                        yield document
            except UnicodeDecodeError as error:
                sys.exit(f'{file}: not UTF-8 ({error.reason}: byte 0x{error.object[error.start]:02x} in '
                         f'{error.object[max(error.start - 20, 0):error.start + 20]!r}); convert it first')
            except (EOFError, gzip.BadGzipFile, zlib.error) as error:
                sys.exit(f'{file}: broken gzip file ({error}); fetch it again')
        before += file.stat().st_size


def cut_text(lines, file):
    """A document ends where <|endoftext|> stands, else at the first blank line after 4,096 characters, or at
    the end of a line after 65,536. Only a document's worth of text is in memory."""
    held, size = [], 0
    for line in iter(lambda: lines.readline(2**16), b''):
        while True:   # a piece of 2**16 bytes may end inside a character
            try:
                line = line.decode()
                break
            except UnicodeDecodeError as error:
                more = lines.read(1) if error.reason == 'unexpected end of data' else b''
                if not more:
                    raise
                line += more
        *ended, line = line.split(END)
        for text in ended:
            yield ''.join(held) + text
            held, size = [], 0
        held.append(line)
        size += len(line)
        if size > 2**16 or size > 2**12 and not line.strip():
            yield ''.join(held)
            held, size = [], 0
    yield ''.join(held)


def json_lines(lines, file):
    for number, line in enumerate(lines, 1):
        line = line.decode()
        try:
            record = json.loads(line) if line.strip() else dict(text='')
            text = f"{record['title']}\n\n{record['text']}" if record.get('title') else record['text']
            text.encode()   # half a surrogate pair isn't text
        except (ValueError, KeyError, TypeError, AttributeError):
            sys.exit(f'{file}, line {number}: not a JSON object with a "text" of its own: {line[:60]!r}')
        yield text


# ---------------------------------------------------------------------------------------------------------
# tokenizers: n_vocab, eot_token, encode_ordinary(text), decode_bytes(ids), as tiktoken.Encoding has them

class ByteTokenizer:
    """UTF-8 bytes; 0xFF, which UTF-8 never uses, is the end of a text."""
    name, n_vocab, eot_token = 'byte', 256, 255

    def encode_ordinary(self, text):
        return list(text.encode())

    def encode_ordinary_batch(self, texts, num_threads=1):
        return [memoryview(text.encode()) for text in texts]

    def decode_bytes(self, ids):
        return bytes(i for i in ids if i != self.eot_token)


def train_bpe(counts, size, max_bytes=MAX_BYTES, progress=lambda done: None):
    """Byte-pair encoding (arXiv 1508.07909) of {word: count}: merge the commonest adjacent pair, again and
    again, until there are `size` tokens of at most max_bytes bytes. Returns {token: rank}.
    Counts are kept for each distinct word and changed only where a merge happens."""
    tokens = [bytes([byte]) for byte in range(256)]
    words = [list(word) for word in counts]
    freqs = list(counts.values())
    pairs, where = collections.Counter(), collections.defaultdict(set)
    for w, word in enumerate(words):
        for pair in zip(word, word[1:]):
            pairs[pair] += freqs[w]
            where[pair].add(w)
    heap = [(-count, pair) for pair, count in pairs.items()]   # may hold outdated, too large counts
    heapq.heapify(heap)
    while len(tokens) < size and heap:
        count, pair = heapq.heappop(heap)
        a, b = pair
        if -count != pairs[pair]:
            if pairs[pair] > 0:
                heapq.heappush(heap, (-pairs[pair], pair))
            continue
        if len(tokens[a]) + len(tokens[b]) > max_bytes:
            continue
        new, changed = len(tokens), set()
        tokens.append(tokens[a] + tokens[b])
        for w in where.pop(pair):
            old, word, i = words[w], [], 0
            while i < len(old):
                hit = old[i] == a and i + 1 < len(old) and old[i + 1] == b
                word.append(new if hit else old[i])
                i += 1 + hit
            for p in zip(old, old[1:]):
                pairs[p] -= freqs[w]
            for p in zip(word, word[1:]):
                pairs[p] += freqs[w]
                if new in p:
                    where[p].add(w)
                    changed.add(p)
            words[w] = word
        for p in changed:
            heapq.heappush(heap, (-pairs[p], p))
        if new % 64 == 0:
            progress((new / size)**(1 / 3))   # early merges touch the most words
    return {token: rank for rank, token in enumerate(tokens)}


def count_words(documents, limit=2**28):
    """{word's bytes: count} of the first `limit` characters."""
    import regex
    pattern, counts, seen = regex.compile(WORDS), collections.Counter(), 0
    for text in documents:
        counts.update(pattern.findall(text))
        seen += len(text)
        if seen > limit:
            break
    return {word.encode(): count for word, count in counts.items()}


def rank_lines(ranks):
    """Tiktoken's file format: a line with the base64 token and the rank for each."""
    return b''.join(base64.b64encode(token) + b' %d\n' % rank for token, rank in ranks.items())


def make_tokenizer(name, folder=None):
    """The tokenizer called `name`; a trained one's ranks are in folder."""
    if name == 'byte':
        return ByteTokenizer()
    import tiktoken
    if name.startswith('bpe'):
        lines = (folder / f'{name}.tiktoken').read_bytes().splitlines()   # tiktoken's own reader caches by path
        ranks = {base64.b64decode(token): int(rank) for token, rank in map(bytes.split, lines)}
        return tiktoken.Encoding(name, pat_str=WORDS, mergeable_ranks=ranks, special_tokens={END: len(ranks)})
    import requests
    try:
        gpt2 = tiktoken.get_encoding('gpt2')
    except requests.RequestException as error:
        sys.exit(f"GPT-2's vocabulary can't be fetched ({type(error).__name__}). On a machine that has it, copy the "
                 'two files of $TMPDIR/data-gym-cache, and name their folder here: export TIKTOKEN_CACHE_DIR=FOLDER')
    longest = int(name[5:] or 2**9)
    ranks = {token: rank for token, rank in gpt2._mergeable_ranks.items() if len(token) <= longest}
    return tiktoken.Encoding(name, pat_str=WORDS, mergeable_ranks=ranks, special_tokens={END: 50256})


def spelling(encoding):
    """Each token's bytes, by id; <|endoftext|>, and an id without a token, is b''."""
    ranks = getattr(encoding, '_mergeable_ranks', {bytes([i]): i for i in range(255)})
    tokens = {rank: token for token, rank in ranks.items()}
    return [tokens.get(i, b'') for i in range(encoding.n_vocab)]


def check_tokenizer(name):
    if not re.fullmatch(r'byte|gpt2(-[1-9]\d*)?|bpe\d+', name):
        sys.exit(f'tokenizer={name}: not one of byte, gpt2, gpt2-16, bpe<N> (bpe4096, bpe8192)')
    if name.startswith('bpe') and not 257 < int(name[3:]) <= 2**16:
        sys.exit(f'tokenizer={name}: N must be more than 257 and at most 65536')


# ---------------------------------------------------------------------------------------------------------
# data sets

def folder_of(dataset, tokenizer, data_dir='data'):
    return pathlib.Path(data_dir) / f'{dataset}-{tokenizer}'


def load(dataset, tokenizer, data_dir='data'):
    """The folder and meta.json of a data set, prepared first if it is a known one that isn't there."""
    folder = folder_of(dataset, tokenizer, data_dir)
    if not (folder / 'meta.json').exists():
        if dataset not in KNOWN:
            sys.exit(f'{folder}: no such data set. Known ones: {", ".join(KNOWN)}. Your own text: '
                     f'python prepare_wiki.py --input=FILE --dataset={dataset} --tokenizer={tokenizer}')
        print(f'{folder} is not there yet: preparing it')
        prepare(dataset, tokenizer, data_dir=data_dir)
    meta = json.loads((folder / 'meta.json').read_text(encoding='utf-8'))
    if meta['format'] != FORMAT:
        sys.exit(f"{folder}: in format {meta['format']}, this code reads {FORMAT}; delete it and prepare it again")
    return folder, meta


def split_of(text, val_fraction):
    """'train', 'val' or 'test', by the text alone."""
    x = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], 'big') / 2**64
    return 'val' if x < val_fraction else 'test' if x < 2 * val_fraction else 'train'


class Progress:
    """progress(done), done from 0 to 1, shows one line, each second; what is printed next overwrites it."""

    def __init__(self, what):
        self.what, self.start, self.shown = what, time.time(), 0

    def __call__(self, done):
        now = time.time()
        if now - self.shown > 1 and done > 0 and now - self.start > 1:
            self.shown = now
            left = (now - self.start) * (1 - done) / done
            print(f'{self.what}: {done:4.0%}, {left:.0f} s left'.ljust(60), end='\r', file=sys.stderr, flush=True)

    def end(self, result):
        print(f'{self.what}: {result}, {time.time() - self.start:.1f} s'.ljust(60), flush=True)


def prepare(dataset, tokenizer, input='', val_fraction=0.0, data_dir='data'):
    """Write the data set. A folder with another name is filled, then renamed: whole or not at all."""
    check_tokenizer(tokenizer)
    if not 0 <= val_fraction < 0.5:
        sys.exit(f'val_fraction={val_fraction} must be between 0 and 0.5')
    if not input and dataset not in KNOWN:
        sys.exit(f'dataset={dataset} is not a known one ({", ".join(KNOWN)}); for your own text add --input=FILE')
    if input and dataset in KNOWN:
        sys.exit(f'--input with --dataset={dataset}: that name is taken, give yours another: --dataset=NAME')
    files = input_files(input) if input else []
    documents, usual = ((lambda progress: read_files(files, progress)), 0.01) if files else KNOWN[dataset]
    folder = folder_of(dataset, tokenizer, data_dir)
    part = folder.with_name(folder.name + '.part')
    try:
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        write(part, documents, tokenizer, val_fraction or usual, [str(file) for file in files] or
              f'{dataset} of Python {sys.version.split()[0]}')
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(part, folder)
    except OSError as error:
        sys.exit(f'{error.filename or part}: {error.strerror}; nothing was kept')
    finally:
        shutil.rmtree(part, ignore_errors=True)


def write(part, documents, name, val_fraction, source):
    import numpy as np
    if name.startswith('bpe'):
        progress = Progress('counting words')
        counts = count_words(documents(progress))
        progress.end(f'{len(counts):,} distinct')
        progress = Progress(f'training {name}')
        ranks = train_bpe(counts, int(name[3:]) - 1, progress=progress)
        progress.end(f'{len(ranks):,} tokens and {END}')
        (part / f'{name}.tiktoken').write_bytes(rank_lines(ranks))
    encoding = make_tokenizer(name, part)
    dtype = '<u2' if encoding.n_vocab > 256 else 'u1'
    splits = {split: collections.Counter(documents=0, tokens=0, bytes=0) for split in ('train', 'val', 'test')}
    progress = Progress('encoding')
    outs = {split: open(part / f'{split}.bin', 'wb') for split in splits}
    for batch in batches(documents(progress)):
        for text, ids in zip(batch, encoding.encode_ordinary_batch(batch, num_threads=os.cpu_count())):
            split = split_of(text, val_fraction)
            outs[split].write(np.asarray([encoding.eot_token, *ids], dtype=dtype).tobytes())
            splits[split].update(documents=1, tokens=len(ids) + 1, bytes=len(text.encode()))
    for out in outs.values():
        out.close()
    total = sum(splits.values(), collections.Counter())
    if not total:
        sys.exit(f'{source}: empty, there is no text in it')
    progress.end('{documents:,} documents, {bytes:,} bytes, {tokens:,} tokens'.format(**total))
    for split, has in splits.items():
        if not has['documents']:
            sys.exit(f'no document fell in {split} ({total["documents"]} in all): give more text, or a larger share '
                     f'with --val_fraction (now {val_fraction})')
        print(f'  {split:5}  {has["documents"]:8,} documents  {has["tokens"]:11,} tokens  {has["bytes"]:11,} bytes')
    ranks = getattr(encoding, '_mergeable_ranks', {b'0': 0})
    meta = dict(format=FORMAT, tokenizer=dict(
        name=name, vocab_size=encoding.n_vocab, end_of_text=encoding.eot_token,
        max_token_bytes=max(map(len, ranks)), sha256=hashlib.sha256(rank_lines(ranks)).hexdigest()),
        dtype=dtype, splits=splits, source=source, date=datetime.date.today().isoformat())
    (part / 'meta.json').write_text(json.dumps(meta, indent=1), encoding='utf-8')


def batches(documents, size=2**22):
    """Lists of documents of about `size` characters together."""
    batch, held = [], 0
    for text in documents:
        batch.append(text)
        held += len(text)
        if held > size:
            yield batch
            batch, held = [], 0
    yield batch


if __name__ == '__main__':
    prepare(dataset, tokenizer, input, val_fraction, data_dir)
    print(f'next: python train.py --dataset={dataset} --tokenizer={tokenizer} --out_dir=out/{dataset}')
