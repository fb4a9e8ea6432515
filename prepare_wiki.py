"""
Documents (stlm/documents.py) -> token files.

    python prepare_wiki.py                                 # Simple English Wikipedia, gpt2
    python prepare_wiki.py --tokenizer=byte --source=sbert # another tokenizer, another copy of it
    python prepare_wiki.py --input=book.txt --dataset=book # .txt, .jsonl[.gz], .parquet, folder
    python prepare_wiki.py --dataset=book --check=True     # are its files as they were written?
    python train.py --dataset=book --out_dir=out/book      # then train on it

Writes data/<dataset>-<tokenizer>/: train.bin, val.bin and test.bin (flat arrays of token ids, each
document preceded by <|endoftext|>), meta.json (what is in them) and the tokenizer. It appears whole or
not at all. Documents are split by a hash of their text: one stays where it is when others come or go.
Empty documents and exact duplicates are left out; what is kept is kept as it is, its Unicode too.
Nothing is learned from val and test: a tokenizer is trained on the training split alone.
"""
dataset = 'simplewiki'   # its name; with no --input: simplewiki or pydocs
tokenizer = ''           # gpt2; gpt2-16: without tokens over 16 bytes; byte; bpe<N>: trained on this text;
                         # or a folder, for its own; if not given, gpt2 for simplewiki, else bpe4096
input = ''               # file or folder of one's own text, or several separated by commas
source = 'cohere'        # of simplewiki: cohere (December 2022), sbert (November 2020), or the paper's,
                         # wikimedia (November 2023), which needs pyarrow
val_fraction = 0.0       # of documents, for each of val and test; 0: 0.01 for simplewiki, else 0.05
data_dir = 'data'        # where the data sets are, and downloads/
check = False            # prepare nothing: compare the hashes of a data set that is there

from configurator import Failure, configure

from stlm.console import command, Progress
if __name__ == '__main__':
    configure(globals(), one_of=dict(source='cohere sbert wikimedia'))

import collections
import concurrent.futures
import datetime
import functools
import hashlib
import itertools
import json
import os
import pathlib
import re
import shutil
import sys

from stlm.documents import clean, download_wikipedia, input_files, pydocs, read_files
from stlm.files import fingerprint, lock, write_whole
from stlm.tokenizer import END, count_words, named_ranks, spec_of, train_bpe
from stlm.tokenizer import load_tokenizer, make_tokenizer, save_tokenizer

FORMAT = 3                 # version of the token files and meta.json
KNOWN = dict(simplewiki='gpt2', pydocs='bpe4096')   # without --input, and their usual tokenizer
SPLITS = ('train', 'val', 'test')
BY_HASH = 'by a hash of each document'
HELD = 2**24               # characters: a text of at most that is read once and held in memory


# -------------------------------------------------------------------------------------------------
# splits

def split_of(text, val_fraction):
    """'train', 'val' or 'test', by the text alone."""
    x = int(hashlib.sha256(text.encode()).hexdigest()[:16], 16) / 2**64   # from 0 to 1
    return 'val' if x < val_fraction else 'test' if x < 2 * val_fraction else 'train'


def split_all(texts, val_fraction):
    return ((split_of(text, val_fraction), text) for text in texts)


def split_small(texts, val_fraction):
    """[(split, text)] of texts in memory, and how they were split, so that each split has some."""
    by_hash = list(split_all(texts, val_fraction))
    if len({split for split, _ in by_hash}) == 3:
        return by_hash, BY_HASH
    size = sum(map(len, texts))
    if size < 100:
        raise Failure(f'{size} characters are too few for a training, a validation and a test split: give more text')
    n = int(len(texts) * val_fraction)
    if n:
        how = 'the last documents are val and test'
        parts = texts[:-2 * n], texts[-2 * n:-n], texts[-n:]
    else:
        how = 'the last parts of the text are val and test'
        share = max(int(size * val_fraction), 1)
        rest, test = cut(texts, size - share, share // 2)
        train, val = cut(rest, size - 2 * share, share // 2)
        parts = train, val, test
    return [(split, text) for split, part in zip(SPLITS, parts) for text in part], how


def cut(texts, place, slack):
    """texts before and after a place (in characters): where a line or a word ends, if slack allows."""
    for i, text in enumerate(texts):
        if place < len(text):
            break
        place -= len(text)
    start = max(place - slack, 0)
    at = text.rfind('\n', start, place) + 1 or text.rfind(' ', start, place) + 1 or place
    before = [text[:at]] if at else []
    return texts[:i] + before, [text[at:]] + texts[i + 1:]


# -------------------------------------------------------------------------------------------------
# data sets

def find(dataset, tokenizer, data_dir):
    """A data set's folder, and its tokenizer if that is given as a folder's, else None."""
    if not re.fullmatch(r'\w[\w .+-]*', dataset) or '..' in dataset:   # of , and : train.py makes a mix
        raise Failure(f'dataset={dataset}: a name has letters, digits, blanks, and single . _ + - alone')
    if re.fullmatch(r'byte|gpt2(-[1-9]\d*)?|bpe\d+', tokenizer):
        return pathlib.Path(data_dir, f'{dataset}-{tokenizer}'), None
    if not os.path.isdir(tokenizer):
        raise Failure(f'tokenizer={tokenizer}: not one of byte, gpt2, gpt2-16, bpe<N> (bpe4096, bpe8192), nor a folder')
    made = load_tokenizer(None, tokenizer)
    return pathlib.Path(data_dir, f'{dataset}-{made.name}'), made


def ready_tokenizer(name):
    """The tokenizer of that name; None for a bpe<N>, which has to be trained."""
    if not name.startswith('bpe'):
        return make_tokenizer(name, named_ranks(name), end_of_text=255 if name == 'byte' else 50256)
    if not 257 < int(name[3:]) <= 2**16:
        raise Failure(f'tokenizer={name}: N must be more than 257 and at most 65536')


def load_data(dataset, tokenizer, data_dir='data'):
    """The folder and meta.json of a data set; a known one that isn't there is prepared first."""
    folder, made = find(dataset, tokenizer, data_dir)
    if not (folder / 'meta.json').exists():
        if dataset not in KNOWN:
            own = command('prepare_wiki.py', input='FILE', dataset=dataset, tokenizer=tokenizer)
            raise Failure(f'{folder}: no such data set. Known ones: {", ".join(KNOWN)}. Your own text: {own}')
        print(f'{folder} is not there yet: preparing it')
        prepare(dataset, tokenizer, data_dir=data_dir)
    again = f'delete {folder} and prepare it again'
    try:
        meta = json.loads((folder / 'meta.json').read_bytes())
        if meta['format'] != FORMAT:
            raise Failure(f"{folder}: in format {meta['format']}, this code reads {FORMAT}; {again}")
        if meta.pop('check') != hash_of(meta):
            raise ValueError('meta.json has changed since it was written')
        for split, has in meta['splits'].items():
            size, right = (folder / f'{split}.bin').stat().st_size, has['tokens'] * int(meta['dtype'][-1])
            if size != right:
                raise ValueError(f'{split}.bin has {size:,} bytes, not {right:,}')
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise Failure(f'{folder}: damaged ({error}); {again}')
    if made and spec_of(made) != meta['tokenizer']:
        raise Failure(f'{folder}: made with another tokenizer than {tokenizer}; {again}')
    return folder, meta


def hash_of(meta):
    """One wrong digit in meta.json would be believed: it has a hash of the rest beside it."""
    return hashlib.sha256(json.dumps(meta).encode()).hexdigest()


def check_files(folder, meta):
    """Exit unless the token files and the tokenizer are, bit for bit, those that were written."""
    load_tokenizer(meta['tokenizer'], folder)
    for split, has in meta['splits'].items():
        if fingerprint(folder / f'{split}.bin')['sha256'] != has['sha256']:
            raise Failure(f'{folder / split}.bin: not the file that was written; delete {folder} and prepare it again')


def prepare(dataset, tokenizer, input='', val_fraction=0.0, data_dir='data', source='cohere'):
    """Write the data set in a folder beside it, which then takes its place: whole or not at all."""
    if not 0 <= val_fraction < 0.5:
        raise Failure(f'val_fraction={val_fraction} must be between 0 and 0.5')
    if not input and dataset not in KNOWN:
        raise Failure(f'dataset={dataset} is not a known one ({", ".join(KNOWN)}); for your own text add --input=FILE')
    if input and dataset in KNOWN:
        raise Failure(f'--input with --dataset={dataset}: that name is taken, give yours another: --dataset=NAME')
    folder, made = find(dataset, tokenizer, data_dir)
    made = made or ready_tokenizer(tokenizer)   # if it can't be had, say so before anything is downloaded
    folder = folder.resolve()   # a link stays, and what it leads to is replaced
    if folder.exists() and not (folder / 'meta.json').exists() and any(folder.iterdir()):
        raise Failure(f'{folder}: has files, but no meta.json of a data set; move it away first')
    work = folder.with_name(f'{folder.name}.part')
    new, old, wikipedia = work / 'new', work / 'old', dataset == 'simplewiki'
    try:
        with lock(work):
            try:
                put_back(old, folder)
                if dataset == 'pydocs':
                    documents, files = pydocs, [dict(file=f'pydocs of Python {sys.version.split()[0]}')]
                else:
                    files = download_wikipedia(source, data_dir) if wikipedia else [
                        dict(file=str(file)) | fingerprint(file) for file in input_files(input)]
                    documents = functools.partial(read_files, [pathlib.Path(file['file']) for file in files])
                shutil.rmtree(new, ignore_errors=True)
                new.mkdir()
                write(new, documents, made, tokenizer, val_fraction or (0.01 if wikipedia else 0.05), files, wikipedia)
                if folder.exists():
                    os.replace(folder, old)
                os.replace(new, folder)
            finally:
                put_back(old, folder)
                shutil.rmtree(work, ignore_errors=True)
    except OSError as error:
        raise Failure(f'{error.filename or work}: {error.strerror}; nothing was kept')
    except ValueError as error:   # of tiktoken, at a million blanks in a row
        raise Failure(f"tokenizer={tokenizer}: a document that it can't encode ({error}); nothing was kept")


def put_back(old, folder):
    """The old data set, if a process ended when it had been moved away for a new one."""
    if old.exists() and not folder.exists():
        os.replace(old, folder)


def write(folder, documents, tokenizer, name, val_fraction, files, wikipedia):
    """The files of a data set, in an empty folder. Without a tokenizer one is trained on train."""
    progress = Progress('encoding' if tokenizer else 'reading')
    left_out = collections.Counter()
    texts = clean(documents(progress), wikipedia, left_out)
    held, small = hold(texts)
    if not held:
        raise Failure(f'{files[0]["file"]}: empty, there is no text in it')
    if small:
        parts, how = split_small(held, val_fraction)
    else:
        parts, how = split_all(itertools.chain(held, texts), val_fraction), BY_HASH
    if not tokenizer:
        counts = count_words(text for split, text in parts if split == 'train')
        progress.end(f'{len(counts):,} distinct words in train')
        progress = Progress(f'training {name}')
        ranks = train_bpe(counts, int(name[3:]) - 1)
        progress.end(f'{len(ranks):,} tokens and {END}')
        tokenizer = make_tokenizer(name, ranks)
        progress = Progress('encoding')
        if not small:   # the files are read again
            left_out.clear()
            parts = split_all(clean(documents(progress), wikipedia, left_out), val_fraction)
    dtype = 'u1' if tokenizer.n_vocab <= 256 else '<u2' if tokenizer.n_vocab <= 65536 else '<u4'
    splits = encode_all(folder, tokenizer, dtype, parts)
    total = sum(splits.values(), collections.Counter())
    progress.end('{documents:,} documents, {bytes:,} bytes, {tokens:,} tokens'.format(**total))
    left_out = {kind: left_out[kind] for kind in ('empty', 'duplicate', 'disambiguation')}
    print('  left out: {empty:,} empty, {duplicate:,} duplicate, {disambiguation:,} disambiguation'.format(**left_out))
    print(f'  split: {how}')
    for split, has in splits.items():
        if not has['documents']:
            raise Failure(f'no document fell in {split} ({total["documents"]} in all): give more, or shorter, documents')
        print('  {:5}  {documents:8,} documents  {tokens:11,} tokens  {bytes:11,} bytes'.format(split, **has))
        path = folder / f'{split}.bin'
        has['sha256'] = fingerprint(path)['sha256']
        with open(path, 'rb+') as out:
            os.fsync(out.fileno())
    meta = dict(format=FORMAT, tokenizer=save_tokenizer(tokenizer, folder), dtype=dtype, split=how, splits=splits,
                left_out=left_out, files=files, date=datetime.date.today().isoformat())
    meta['check'] = hash_of(meta)
    write_whole(folder / 'meta.json', json.dumps(meta, indent=1).encode())


def encode_all(folder, tokenizer, dtype, parts):
    """Write the token files of parts, (split, text); {split: how much there is}."""
    splits = {split: collections.Counter() for split in SPLITS}
    for encoded in on_all_cores(functools.partial(encode, tokenizer, dtype), parts):
        for split, (ids, counts) in encoded.items():
            splits[split].update(counts)
            with open(folder / f'{split}.bin', 'ab') as out:
                out.write(ids)
    return splits


def hold(texts):
    """The first texts, and whether they are all."""
    held, size = [], 0
    for text in texts:
        held.append(text)
        size += len(text)
        if size > HELD:
            return held, False
    return held, True


def encode(tokenizer, dtype, batch):
    """{split: (token ids as bytes, counts)} of a batch of (split, text)."""
    import numpy as np
    end, encoded = np.array([tokenizer.eot_token], dtype).tobytes(), {}
    for split in SPLITS:
        ids, counts = [], collections.Counter()
        for text in (text for wanted, text in batch if wanted == split):
            ids += end, tokenizer.encode_to_numpy(text).astype(dtype).tobytes()
            counts['documents'] += 1
            counts['bytes'] += len(text.encode())
            counts['chars'] += len(text)
            counts['words'] += len(text.split())
        ids = b''.join(ids)
        counts['tokens'] = len(ids) // len(end)
        encoded[split] = ids, counts
    return encoded


def on_all_cores(work, parts, size=2**18):
    """work(batch) of each batch of (split, text), about `size` characters, in order. What runs without Python's
    lock, as tiktoken does, runs while the next documents are read."""
    cores = os.cpu_count()
    with concurrent.futures.ThreadPoolExecutor(cores) as pool:
        ahead, batch, held = collections.deque(), [], 0
        for part in parts:
            batch.append(part)
            held += len(part[1])
            if held > size:
                ahead.append(pool.submit(work, batch))
                batch, held = [], 0
            if len(ahead) > 2 * cores:
                yield ahead.popleft().result()
        for result in (*ahead, pool.submit(work, batch)):
            yield result.result()


if __name__ == '__main__':
    tokenizer = tokenizer or KNOWN.get(dataset, 'bpe4096')
    if check:
        folder, meta = load_data(dataset, tokenizer, data_dir)
        check_files(folder, meta)
        print(f'{folder}: whole')
        sys.exit()
    prepare(dataset, tokenizer, input, val_fraction, data_dir, source)
    elsewhere = {} if data_dir == 'data' else dict(data_dir=data_dir)
    print('next:', command('train.py', dataset=dataset, tokenizer=tokenizer, out_dir=f'out/{dataset}', **elsewhere))
