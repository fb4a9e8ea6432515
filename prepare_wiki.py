"""
Documents (stlm/documents.py) -> token files.

    python prepare_wiki.py                                  # Simple English Wikipedia, gpt2
    python prepare_wiki.py --tokenizer=byte                 # the same, with another tokenizer
    python prepare_wiki.py --tokenizer=gpt2-16              # gpt2 without tokens over 16 bytes
    python prepare_wiki.py --tokenizer=bpe8192              # trained on the text
    python prepare_wiki.py --input=book.txt --dataset=book  # .txt, .jsonl[.gz], .parquet, folder
    python train.py --dataset=book --out_dir=out/book       # then train on it

Writes data/<dataset>-<tokenizer>/: train.bin, val.bin and test.bin (flat arrays of token ids, each document preceded by
<|endoftext|>), the tokenizer, and at the end meta.json (what is in them), without which a folder is no data set. What is
there is never replaced: a training may read it. To prepare it anew, delete its folder first.
Documents are split by a hash of their text, so that one stays in its split when others are added or removed. Empty documents and exact
duplicates are left out; what is kept is kept as it is, its Unicode too.
Nothing is learned from val and test: a tokenizer is trained on the training split only.
Reading this file for the first time: split_of() and write() are the heart; names, locks and damaged folders can wait.
"""
dataset = 'simplewiki'   # its name; with no --input: simplewiki or pydocs
tokenizer = ''           # gpt2[-16], byte, bpe<N> or a folder's; '' is gpt2 for simplewiki, else bpe4096
input = ''               # file or folder with your own text
edition = 'sbert'        # of simplewiki: sbert (2020), or wikimedia (2023, the paper's; needs pyarrow)
val_fraction = 0.0       # share of the documents for each of val and test; 0: 0.01 of simplewiki, else 0.05
data_dir = 'data'        # where the data sets are, and downloads/

from configurator import Failure, configure, settings_of_model
if __name__ == '__main__':   # before the slow imports
    configure(globals(), one_of=dict(edition='sbert wikimedia'))

import collections
import concurrent.futures
import contextlib
import datetime
import hashlib
import itertools
import json
import os
import pathlib
import re

import numpy as np

from stlm.console import Progress, command
from stlm.documents import SOURCES, clean, own_files
from stlm.files import fingerprint, insist, lock, sweep, write_whole
from stlm.tokenizer import END_OF_TEXT, count_words, named_ranks, spec_of, train_bpe
from stlm.tokenizer import load_tokenizer, make_tokenizer, save_tokenizer

FORMAT = 3                 # version of the token files and meta.json
SPLITS = ('train', 'val', 'test')
NAMED = r'byte|gpt2(-[1-9]\d*)?|bpe\d+'   # tokenizers that a name makes
BY_HASH = 'by a hash of each document'
SMALL = 2**24              # bytes: smaller texts are read once and held in memory
LEAST = 32                 # tokens that a split must have
FILES = (*(f'{split}.bin' for split in SPLITS), 'tokenizer.tiktoken', 'tokenizer.meta.json')


# -------------------------------------------------------------------------------------------------
# splits

class Documents:
    """A text's documents. A small text is read once and held in memory, a larger one at each read()."""

    def __init__(self, files, read_files, val_fraction):
        self.files, self.read_files, self.val_fraction = files, read_files, val_fraction
        self.left_out, self.how = collections.Counter(), BY_HASH
        self.held = None
        if sum(file.get('size', 0) for file in files) <= SMALL:
            texts = list(clean(read_files(Progress('reading')), self.left_out))
            self.held, self.how = split_small(texts, val_fraction)

    def read(self, progress):
        """An iterator of (split, text)."""
        if self.held is not None:
            return iter(self.held)
        self.left_out.clear()
        texts = clean(self.read_files(progress), self.left_out)
        return split_all(texts, self.val_fraction)


def split_of(text, val_fraction):
    """'train', 'val' or 'test'; it depends only on the text."""
    x = int(hashlib.sha256(text.encode()).hexdigest()[:16], 16) / 2**64   # from 0 to 1
    return 'val' if x < val_fraction else 'test' if x < 2 * val_fraction else 'train'


def split_all(texts, val_fraction):
    return ((split_of(text, val_fraction), text) for text in texts)


def split_small(texts, val_fraction):
    """([(split, text)], a sentence that says how). By hash; if that leaves a split empty, the last parts of the joined
    texts become val and test."""
    by_hash = list(split_all(texts, val_fraction))
    if len({split for split, _ in by_hash}) == 3:
        return by_hash, BY_HASH
    whole = ''.join(texts)
    share = max(int(len(whole) * val_fraction), 1)   # characters of val and of test
    cuts = [end_of_line(whole, len(whole) - n * share, share // 2) for n in (2, 1)]
    parts, start = [], 0
    for text in texts:   # one that lies across a cut becomes two
        end = start + len(text)
        places = [start, *(cut for cut in cuts if start < cut < end), end]
        for a, b in zip(places, places[1:]):
            n_cuts = sum(cut <= a for cut in cuts)   # at or before a: 0 train, 1 val, 2 test
            parts.append((SPLITS[n_cuts], whole[a:b]))
        start = end
    return parts, 'the last parts of the text are val and test'


def end_of_line(text, place, slack):
    """The place after the last line that ends at most `slack` characters before a place, or else after the last word."""
    start = max(place - slack, 0)
    for space in '\n', ' ':
        found = text.rfind(space, start, place)
        if found >= 0:
            return found + 1
    return place


# -------------------------------------------------------------------------------------------------
# data sets

def set_folder(dataset, tokenizer, data_dir):
    """(a data set's folder, its tokenizer or None). `tokenizer` is a name like bpe4096; or a folder with a tokenizer; or,
    from a resumed run, the name of such a folder's tokenizer, for which the data set exists already."""
    if not re.fullmatch(r'\w[\w .+-]*', dataset) or '..' in dataset:   # train.py makes a mix of what has , and :
        raise Failure(f'dataset={dataset}: a name may have letters, digits, blanks, and single . _ + -')
    folder = pathlib.Path(data_dir, f'{dataset}-{tokenizer}')
    if re.fullmatch(NAMED, tokenizer):
        return folder, None
    if not os.path.exists(f'{tokenizer}/tokenizer.meta.json') and (folder / 'meta.json').exists():
        return folder, None
    if not os.path.isdir(tokenizer):
        raise Failure(f'tokenizer={tokenizer}: not one of byte, gpt2, gpt2-16, bpe<N> (bpe4096, bpe8192), nor a folder')
    own = load_tokenizer(None, tokenizer)
    return pathlib.Path(data_dir, f'{dataset}-{own.name}'), own


def ready_tokenizer(name):
    """The tokenizer of that name; None for a bpe<N>, which has to be trained."""
    if not re.fullmatch(NAMED, name):
        raise Failure(f'tokenizer={name}: give the folder of its model')
    if not name.startswith('bpe'):
        return make_tokenizer(name, named_ranks(name), end_of_text=255 if name == 'byte' else 50256)
    if not 257 < int(name[3:]) <= 2**16:
        raise Failure(f'tokenizer={name}: N must be more than 257 and at most 65536')


def load_data(dataset, tokenizer, data_dir='data'):
    """The folder and meta.json of a data set; a known one that isn't there is prepared first."""
    folder, own = set_folder(dataset, tokenizer, data_dir)
    if not (folder / 'meta.json').exists():
        if dataset not in SOURCES:
            first = command('prepare_wiki.py', input='FILE', dataset=dataset, tokenizer=tokenizer)
            raise Failure(f'{folder}: no such data set. Known ones: {", ".join(SOURCES)}. Your own text: {first}')
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
    if own and spec_of(own) != meta['tokenizer']:
        raise Failure(f"{folder} was made with another tokenizer {own.name} than the one in {tokenizer}: "
                      'prepare the text with this one under another name (--dataset=NAME)')
    return folder, meta


def hash_of(meta):
    """A checksum of meta.json, which is stored in it: a damaged one is noticed."""
    return hashlib.sha256(json.dumps(meta).encode()).hexdigest()


def prepare(dataset, tokenizer, paths='', val_fraction=0.0, data_dir='data', edition='sbert'):
    """Write a data set, of the text files in `paths` or of a known name."""
    if not 0 <= val_fraction < 0.5:
        raise Failure(f'val_fraction={val_fraction} must be between 0 and 0.5')
    if not paths and dataset not in SOURCES:
        raise Failure(f'dataset={dataset} is not a known one ({", ".join(SOURCES)}); for your own text add --input=FILE')
    if paths and dataset in SOURCES:
        raise Failure(f'--input with --dataset={dataset}: that name is taken, give yours another: --dataset=NAME')
    folder, own = set_folder(dataset, tokenizer, data_dir)
    own = own or ready_tokenizer(tokenizer)   # if it can't be had, say so before anything is downloaded
    with lock(data_dir):
        if (folder / 'meta.json').exists():
            _, meta = load_data(dataset, tokenizer, data_dir)
            raise Failure(f"{folder} is there already, made from {meta['files'][0]['file']} on {meta['date']}: to make it from {paths or dataset}, "
                          'delete it first, or give another name (--dataset=NAME)')
        sweep(folder, 'meta.json', *FILES)
        if folder.exists() and not {*os.listdir(folder)} <= {*FILES}:
            raise Failure(f'{folder}: has files but no meta.json, so it is no data set; move it away first')
        try:
            files, read = own_files(paths) if paths else SOURCES[dataset](data_dir, edition)
            documents = Documents(files, read, val_fraction or (0.01 if dataset == 'simplewiki' else 0.05))
            folder.mkdir(exist_ok=True)
            delete_unfinished(folder)
            write(folder, documents, own, tokenizer)
        except OSError as error:
            raise Failure(f'{error.filename or folder}: {error.strerror}; nothing was kept')
        except ValueError as error:   # tiktoken raises it, e.g. for a million blanks in a row
            raise Failure(f"tokenizer={tokenizer}: a document that it can't encode ({error}); nothing was kept")
        finally:
            if not (folder / 'meta.json').exists():
                delete_unfinished(folder)
                with contextlib.suppress(OSError):   # it isn't there, or something else is in it
                    folder.rmdir()


def delete_unfinished(folder):
    """Delete what a preparation wrote that was killed or failed."""
    for name in FILES:
        if os.path.lexists(folder / name):
            insist(os.unlink, folder / name)


def write(folder, documents, tokenizer, name):
    """The files of a data set, meta.json last. Without a tokenizer one is trained on train."""
    if not tokenizer:
        progress = Progress('counting words')
        counts = count_words(text for split, text in documents.read(progress) if split == 'train')
        progress.end(f'{len(counts):,} different ones in train')
        progress = Progress(f'training {name}')
        ranks = train_bpe(counts, int(name[3:]) - 1)
        progress.end(f'{len(ranks):,} tokens and {END_OF_TEXT}')
        tokenizer = make_tokenizer(name, ranks)
    progress = Progress('encoding')
    dtype = 'u1' if tokenizer.n_vocab <= 256 else '<u2' if tokenizer.n_vocab <= 65536 else '<u4'
    splits = encode_all(folder, tokenizer, dtype, documents.read(progress))
    total = sum(splits.values(), collections.Counter())
    progress.end(f"{total['documents']:,} documents, {total['bytes']:,} bytes, {total['tokens']:,} tokens")
    left_out = {kind: documents.left_out[kind] for kind in ('empty', 'duplicate')}
    print(f"  left out: {left_out['empty']:,} empty, {left_out['duplicate']:,} duplicate")
    print(f'  split: {documents.how}')
    for split, has in splits.items():
        if has['tokens'] < LEAST:
            raise Failure(f"{documents.files[0]['file']}: {split} would have {has['tokens']} tokens of {total['tokens']}, "
                          'too few to train and judge a model: give more text, or shorter documents')
        print(f"  {split:5}  {has['documents']:8,} documents  {has['tokens']:11,} tokens  {has['bytes']:11,} bytes")
        has['sha256'] = fingerprint(folder / f'{split}.bin')['sha256']
    meta = dict(format=FORMAT, tokenizer=save_tokenizer(tokenizer, folder), dtype=dtype, split=documents.how,
                splits=splits, left_out=left_out, files=documents.files, date=datetime.date.today().isoformat())
    meta['check'] = hash_of(meta)
    write_whole(folder / 'meta.json', json.dumps(meta, indent=1).encode())


def encode_all(folder, tokenizer, dtype, documents):
    """Write the token files of an iterator of (split, text); {split: how much there is}. A thread runs beside Python while
    tiktoken encodes, so the next documents are read meanwhile, but not so many that they fill the memory."""
    splits = {split: collections.Counter() for split in SPLITS}
    ahead, cores = collections.deque(), os.cpu_count()
    with contextlib.ExitStack() as stack:
        files = {split: stack.enter_context(open(folder / f'{split}.bin', 'xb')) for split in SPLITS}
        pool = stack.enter_context(concurrent.futures.ThreadPoolExecutor(cores))
        while (batch := list(itertools.islice(documents, 32))) or ahead:   # until all are read and encoded
            if batch:
                ahead.append(pool.submit(encode, tokenizer, dtype, batch))
            if not batch or len(ahead) > 2 * cores:
                for split, ids, counts in ahead.popleft().result():
                    files[split].write(ids)
                    splits[split].update(counts)
        for file in files.values():
            file.flush()
            os.fsync(file.fileno())
    return splits


def encode(tokenizer, dtype, batch):
    """[(split, token ids as bytes, counts)] of a list of (split, text)."""
    encoded = []
    for split, text in batch:
        ids = np.append(tokenizer.eot_token, tokenizer.encode_to_numpy(text)).astype(dtype)   # (1 + tokens)
        counts = dict(documents=1, tokens=len(ids), bytes=len(text.encode()), chars=len(text), words=len(text.split()))
        encoded.append((split, ids.tobytes(), counts))
    return encoded


def print_next(dataset, tokenizer, data_dir):
    """The command that trains on a data set, with settings that it is long enough for."""
    _, meta = load_data(dataset, tokenizer, data_dir)
    flags = dict(dataset=dataset, tokenizer=tokenizer, out_dir=f'out/{dataset}')
    if data_dir != 'data':
        flags['data_dir'] = data_dir
    if meta['splits']['train']['bytes'] < 2**20:
        print('A text below a megabyte is soon learned by heart. A trained model learns more from it: prepare the text with '
              '--tokenizer=FOLDER, the folder of its run, and train with --init_from=FOLDER')
    shortest = min(has['tokens'] for has in meta['splits'].values())
    block = settings_of_model()['block_size'].default
    if shortest <= block:
        flags['block_size'] = 2**((shortest - 1).bit_length() - 1)   # the largest power of 2 below it
        print(f'A split has {shortest} tokens, too few for blocks of {block}; smaller ones see less of a text at once')
    print('next:', command('train.py', **flags))


if __name__ == '__main__':
    tokenizer = tokenizer or ('gpt2' if dataset == 'simplewiki' else 'bpe4096')
    prepare(dataset, tokenizer, input, val_fraction, data_dir, edition)
    print_next(dataset, tokenizer, data_dir)
