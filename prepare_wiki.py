"""
Text -> token files. The only file that knows corpora and tokenizers.

    python prepare_wiki.py                                      # Simple English Wikipedia, gpt2: the paper's data
    python prepare_wiki.py --tokenizer=byte --source=sbert      # another tokenizer, another copy of it
    python prepare_wiki.py --input=book.txt --dataset=book      # your own .txt, .jsonl[.gz], .parquet, or a folder
    python train.py --dataset=book --out_dir=out/book           # then train on it

Writes data/<dataset>-<tokenizer>/ with train.bin, val.bin and test.bin (flat arrays of token ids, each document
preceded by <|endoftext|>; split by a hash of the document's text, so a document stays in its split when others
come or go), meta.json (what is in them), and a trained tokenizer's ranks. It appears whole or not at all.
Empty documents and exact duplicates are left out; what is kept is kept as it is, its Unicode too.
"""
dataset = 'simplewiki'   # its name: data/<dataset>-<tokenizer>/; with no --input: simplewiki or pydocs
tokenizer = ''           # gpt2; gpt2-16: without tokens over 16 bytes; byte; bpe<N>: trained on this text;
                         # if not given, gpt2 for simplewiki, else bpe4096
input = ''               # file or folder of one's own text, or several separated by commas
source = 'cohere'        # of simplewiki: cohere (December 2022), sbert (November 2020), or the paper's own,
                         # wikimedia (November 2023), which needs pyarrow
val_fraction = 0.0       # of the documents, for each of val and test; 0: 0.01 for simplewiki, else 0.05
data_dir = 'data'        # where the data sets are, and downloads/

from configurator import Progress, configure
if __name__ == '__main__':
    configure(globals(), one_of=dict(source='cohere sbert wikimedia'))

import base64
import collections
import concurrent.futures
import datetime
import functools
import gzip
import hashlib
import heapq
import importlib.util
import io
import json
import os
import pathlib
import re
import shutil
import sys
import zlib

from download import download, fingerprint

FORMAT = 2                 # version of the token files and meta.json
KNOWN = dict(simplewiki='gpt2', pydocs='bpe4096')   # data sets that need no --input: usual tokenizer
SPLITS = ('train', 'val', 'test')
END = '<|endoftext|>'
MAX_BYTES = 16             # of a trained token: what a byte-pooling model reads and writes
# GPT-2's pattern of words: contractions, letters, numbers, other signs, white space; no token crosses two
WORDS = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"

# Simple English Wikipedia: {source: (address, {file: its size and sha256, where they are known})}
HUB = 'https://huggingface.co/datasets/'
SOURCES = dict(
    cohere=(HUB + 'Cohere/wikipedia-22-12/resolve/main/simple/', {f'00{i}.jsonl.gz': () for i in range(5)}),
    sbert=('http://sbert.net/datasets/', {'simplewiki-2020-11-01.jsonl.gz': ()}),
    wikimedia=(HUB + 'wikimedia/wikipedia/resolve/b04c8d1ceb2f5cd4588862100d08de323dccfbaa/20231101.simple/', {
        'train-00000-of-00001.parquet': (
            156885218, '31bded16768a47c286becd292079122f5d7d4397a17b87d4250a00ccd581e6f0')}))
# "Mercury may refer to:" on the line after the title
DISAMBIGUATION = re.compile(r'[^\n]*(?:\(disambiguation\)\n|\n+[^\n]*\b(?:may|might|can|could)(?: also)? '
                            r'(?:refer to|mean|stand for)\b(?:[^\n]*:)? *(?:\n|$))')


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


def input_files(paths):
    """The text files that --input names, folders searched."""
    files = []
    for path in map(pathlib.Path, paths.split(',')):
        if not path.exists():
            sys.exit(f'--input={path}: no such file or folder')
        found = sorted(path.rglob('*')) if path.is_dir() else [path]
        wanted = [f for f in found if f.name.endswith(('.txt', '.jsonl', '.jsonl.gz', '.parquet'))]
        if not wanted:
            sys.exit(f'--input={path}: nothing here ends in .txt, .jsonl, .jsonl.gz or .parquet')
        files += wanted
    check_pyarrow(files)
    return files


def read_files(files, progress):
    """Documents of .txt files (cut_text), and of the records of .jsonl, .jsonl.gz and .parquet files: a `title`
    if there is one, and a `text` or a list of `paragraphs`. Records with a `wiki_id` and a `paragraph_id` are
    passages of articles: they are held until all are read, since nothing promises their order."""
    total, before, articles = sum(file.stat().st_size for file in files), 0, {}
    for file in files:
        with open(file, 'rb') as raw:
            try:
                for document in cut_text(raw) if file.suffix == '.txt' else read_records(file, raw, articles):
                    done = (before + raw.tell()) / max(total, 1)
                    progress(done / 8 if articles else done)   # reading takes an eighth of the time
                    if document is not None:
                        yield document
            except UnicodeDecodeError as error:
                sys.exit(f'{file}: not UTF-8 ({error.reason}: byte 0x{error.object[error.start]:02x} in '
                         f'{error.object[max(error.start - 20, 0):error.start + 20]!r}); convert it first')
            except (EOFError, OSError, ValueError, zlib.error) as error:
                sys.exit(f'{file}: broken ({error}); delete it and fetch it again')
        before += file.stat().st_size
    for i, passages in enumerate(articles.values(), 1):
        progress(1 / 8 + 7 / 8 * i / len(articles))
        _, titles, texts = zip(*sorted(passages))
        yield join(titles[0], '\n\n'.join(texts))


def cut_text(raw):
    """A document ends where <|endoftext|> stands, else at the first blank line after 4,096 characters, or at
    the end of a line after 65,536. Only a document's worth of text is in memory."""
    lines, held = io.TextIOWrapper(raw, encoding='utf-8-sig', newline='\n'), ''
    for line in iter(lambda: lines.readline(2**16), ''):
        held += line
        if held.find(END, -len(line) - len(END)) >= 0:   # a long line comes in pieces, whose cut may fall into it
            *ended, held = held.split(END)
            yield from ended
        if len(held) > 2**16 or len(held) > 2**12 and not line.strip():
            yield held
            held = ''
    yield held


def read_records(file, raw, articles):
    """The document of each record, or None for a passage, which goes to articles."""
    if file.suffix == '.parquet':
        import pyarrow.parquet
        records = (row for batch in pyarrow.parquet.ParquetFile(raw).iter_batches(1000) for row in batch.to_pylist())
    else:
        records = io.TextIOWrapper(gzip.open(raw) if file.suffix == '.gz' else raw, encoding='utf-8-sig', newline='\n')
    for number, record in enumerate(records, 1):
        try:
            if isinstance(record, str):
                record = json.loads(record) if record.strip() else dict(text='')
            title = record.get('title') or ''
            text = record['text'] if 'text' in record else '\n\n'.join(record['paragraphs'])
            (title + text).encode()   # half a surrogate pair isn't text
            passage = 'wiki_id' in record and 'paragraph_id' in record
            if passage:
                articles.setdefault(record['wiki_id'], []).append((int(record['paragraph_id']), title, text))
        except (ValueError, KeyError, TypeError, AttributeError):
            sys.exit(f'{file}, line {number}: not a JSON object with a "text" of its own: {str(record)[:60]!r}')
        yield None if passage else join(title, text)


def join(title, text):
    return f'{title}\n\n{text}' if title and text.strip() else text


def download_wikipedia(source, data_dir):
    """Records of the files of Simple English Wikipedia, downloaded if they aren't there."""
    address, names = SOURCES[source]
    folder = pathlib.Path(data_dir) / 'downloads' / source
    check_pyarrow(names)
    print(f'Simple English Wikipedia: {address} -> {folder}')
    try:
        return [dict(file=str(folder / name)) | download(address + name, folder / name, *known)
                for name, known in names.items()]
    except SystemExit as error:
        others = ' or '.join(f'--source={other}' for other in SOURCES if other != source)
        sys.exit(f'{error}\n{folder} needs {", ".join(names)}. Another copy: python prepare_wiki.py {others}. '
                 'Offline quick start: python train.py')


def check_pyarrow(files):
    if any(str(file).endswith('.parquet') for file in files) and not importlib.util.find_spec('pyarrow'):
        sys.exit(f'{[*files][0]}: to read .parquet, pip install pyarrow')


def clean(documents, wikipedia, left_out):
    """The documents but for empty ones, exact duplicates and Wikipedia's disambiguation stubs; left_out counts."""
    seen = set()
    for text in documents:
        digest = hashlib.sha256(text.encode()).digest()[:16]
        if not text.strip():
            left_out['empty'] += 1
        elif digest in seen:
            left_out['duplicate'] += 1
        elif wikipedia and DISAMBIGUATION.match(text):
            left_out['disambiguation'] += 1
        else:
            seen.add(digest)
            yield text


# ---------------------------------------------------------------------------------------------------------
# tokenizers: n_vocab, eot_token, encode_ordinary(text), decode_bytes(ids), as tiktoken.Encoding has them

class ByteTokenizer:
    """UTF-8 bytes; 0xFF, which UTF-8 never uses, is the end of a text."""
    name, n_vocab, eot_token = 'byte', 256, 255

    def encode_ordinary(self, text):
        return list(text.encode())

    def encode_to_numpy(self, text, disallowed_special=()):
        import numpy as np
        return np.frombuffer(text.encode(), 'u1')

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
    except (requests.RequestException, ValueError) as error:   # ValueError: something else came
        address = 'https://openaipublic.blob.core.windows.net/gpt-2/encodings/main/'
        saved = ' and '.join(f'{address}{name} as FOLDER/{hashlib.sha1((address + name).encode()).hexdigest()}'
                             for name in ('vocab.bpe', 'encoder.json'))
        sys.exit(f"GPT-2's vocabulary can't be fetched ({type(error).__name__}). With a browser save {saved}\n"
                 'and export TIKTOKEN_CACHE_DIR=FOLDER; or take --tokenizer=bpe4096 or byte, which need no download')
    longest = int(name[5:] or 2**9)
    ranks = {token: rank for token, rank in gpt2._mergeable_ranks.items() if len(token) <= longest}
    return tiktoken.Encoding(name, pat_str=WORDS, mergeable_ranks=ranks, special_tokens={END: 50256})


def spelling(encoding):
    """Each token's bytes, by id; <|endoftext|>, and an id without a token, is b''."""
    ranks = getattr(encoding, '_mergeable_ranks', {bytes([i]): i for i in range(255)})
    tokens = {rank: token for token, rank in ranks.items()}
    return [tokens.get(i, b'') for i in range(encoding.n_vocab)]


# ---------------------------------------------------------------------------------------------------------
# data sets

def load(dataset, tokenizer, data_dir='data'):
    """The folder and meta.json of a data set, prepared first if it is a known one that isn't there."""
    folder = pathlib.Path(data_dir, f'{dataset}-{tokenizer}')
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


def prepare(dataset, tokenizer, input='', val_fraction=0.0, data_dir='data', source='cohere'):
    """Write the data set. A folder with another name is filled, then renamed: whole or not at all."""
    if not re.fullmatch(r'byte|gpt2(-[1-9]\d*)?|bpe\d+', tokenizer):
        sys.exit(f'tokenizer={tokenizer}: not one of byte, gpt2, gpt2-16, bpe<N> (bpe4096, bpe8192)')
    if tokenizer.startswith('bpe') and not 257 < int(tokenizer[3:]) <= 2**16:
        sys.exit(f'tokenizer={tokenizer}: N must be more than 257 and at most 65536')
    if re.search('[,:/]', dataset):   # train.py reads these as a mix
        sys.exit(f'dataset={dataset}: give it a name without , : and /')
    if not 0 <= val_fraction < 0.5:
        sys.exit(f'val_fraction={val_fraction} must be between 0 and 0.5')
    if not input and dataset not in KNOWN:
        sys.exit(f'dataset={dataset} is not a known one ({", ".join(KNOWN)}); for your own text add --input=FILE')
    if input and dataset in KNOWN:
        sys.exit(f'--input with --dataset={dataset}: that name is taken, give yours another: --dataset=NAME')
    if tokenizer.startswith('gpt2'):
        make_tokenizer(tokenizer)   # if it can't be had, say so before the rest is downloaded
    if dataset == 'pydocs':
        documents, files = pydocs, [dict(file=f'pydocs of Python {sys.version.split()[0]}')]
    else:
        files = download_wikipedia(source, data_dir) if dataset == 'simplewiki' else [
            dict(file=str(file)) | fingerprint(file) for file in input_files(input)]
        documents = functools.partial(read_files, [pathlib.Path(file['file']) for file in files])
    folder = pathlib.Path(data_dir, f'{dataset}-{tokenizer}')
    part = folder.with_name(folder.name + '.part')
    try:
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        write(part, documents, tokenizer, val_fraction or (0.01 if dataset == 'simplewiki' else 0.05), files,
              dataset == 'simplewiki')
        (folder / 'meta.json').unlink(missing_ok=True)   # from here on the old one isn't taken for a data set
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(part, folder)
    except OSError as error:
        sys.exit(f'{error.filename or part}: {error.strerror}; nothing was kept')
    except ValueError as error:   # of tiktoken, at a million blanks in a row
        sys.exit(f"tokenizer={tokenizer}: a document that it can't encode ({error}); nothing was kept")
    finally:
        shutil.rmtree(part, ignore_errors=True)


def write(part, documents, name, val_fraction, files, wikipedia):
    if name.startswith('bpe'):
        progress = Progress('counting words')
        counts = count_words(clean(documents(progress), wikipedia, collections.Counter()))
        progress.end(f'{len(counts):,} distinct')
        progress = Progress(f'training {name}')
        ranks = train_bpe(counts, int(name[3:]) - 1, progress=progress)
        progress.end(f'{len(ranks):,} tokens and {END}')
        (part / f'{name}.tiktoken').write_bytes(rank_lines(ranks))
    encoding = make_tokenizer(name, part)
    dtype = '<u2' if encoding.n_vocab > 256 else 'u1'
    splits = {split: collections.Counter(documents=0, tokens=0, bytes=0, chars=0, words=0) for split in SPLITS}
    left_out = collections.Counter(empty=0, duplicate=0, disambiguation=0)
    progress = Progress('encoding')
    work = functools.partial(encode, encoding, dtype, val_fraction)
    for encoded in on_all_cores(work, clean(documents(progress), wikipedia, left_out)):
        for split, (ids, counts) in encoded.items():
            splits[split].update(counts)
            with open(part / f'{split}.bin', 'ab') as out:
                out.write(ids)
    total = sum(splits.values(), collections.Counter())
    if not total:
        sys.exit(f'{files[0]["file"]}: empty, there is no text in it')
    progress.end('{documents:,} documents, {bytes:,} bytes, {tokens:,} tokens'.format(**total))
    print('  left out: ' + ', '.join(f'{n:,} {kind}' for kind, n in left_out.items()))
    for split, has in splits.items():
        if not has['documents']:
            sys.exit(f'no document fell in {split} ({total["documents"]} in all): give more text, or a larger share '
                     f'with --val_fraction (now {val_fraction})')
        print(f'  {split:5}  {has["documents"]:8,} documents  {has["tokens"]:11,} tokens  {has["bytes"]:11,} bytes')
    ranks = getattr(encoding, '_mergeable_ranks', {b'0': 0})
    meta = dict(format=FORMAT, tokenizer=dict(
        name=name, vocab_size=encoding.n_vocab, end_of_text=encoding.eot_token,
        max_token_bytes=max(map(len, ranks)), sha256=hashlib.sha256(rank_lines(ranks)).hexdigest()),
        dtype=dtype, splits=splits, left_out=left_out, files=files, date=datetime.date.today().isoformat())
    (part / 'meta.json').write_text(json.dumps(meta, indent=1), encoding='utf-8')


def encode(encoding, dtype, val_fraction, batch):
    """{split: (token ids as bytes, counts)} of a batch of documents."""
    import numpy as np
    end, encoded, splits = np.array([encoding.eot_token], dtype).tobytes(), {}, collections.defaultdict(list)
    for text in batch:
        splits[split_of(text, val_fraction)].append(text)
    for split, texts in splits.items():
        # as encode_ordinary, without a list of integers
        ids = b''.join(end + encoding.encode_to_numpy(text, disallowed_special=()).astype(dtype).tobytes()
                       for text in texts)
        encoded[split] = ids, dict(
            documents=len(texts), tokens=len(ids) // len(end), bytes=len(''.join(texts).encode()),
            chars=sum(map(len, texts)), words=sum(len(text.split()) for text in texts))
    return encoded


def on_all_cores(work, documents, size=2**18):
    """work(batch) of each batch of documents, about `size` characters, in order. What runs without Python's
    lock, as tiktoken does, runs while the next documents are read."""
    cores = os.cpu_count()
    with concurrent.futures.ThreadPoolExecutor(cores) as pool:
        ahead, batch, held = collections.deque(), [], 0
        for text in documents:
            batch.append(text)
            held += len(text)
            if held > size:
                ahead.append(pool.submit(work, batch))
                batch, held = [], 0
            if len(ahead) > 2 * cores:
                yield ahead.popleft().result()
        for result in (*ahead, pool.submit(work, batch)):
            yield result.result()


if __name__ == '__main__':
    tokenizer = tokenizer or KNOWN.get(dataset, 'bpe4096')
    prepare(dataset, tokenizer, input, val_fraction, data_dir, source)
    print(f'next: python train.py --dataset={dataset} --tokenizer={tokenizer} --out_dir=out/{dataset}'
          + f' --data_dir={data_dir}' * (data_dir != 'data'))
