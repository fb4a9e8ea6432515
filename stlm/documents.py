"""
Where texts come from: Simple English Wikipedia, Python's own documentation, and one's own files. The only file that
knows corpora and file formats. A document is a string.

A source is a function that returns what is known of its files (a list of dicts, for meta.json) and read(progress), which
yields its documents one by one. To add one: write such a function, and give it a name in SOURCES.
"""
import ast
import gzip
import hashlib
import importlib.util
import io
import json
import os
import pathlib
import re
import sys
import sysconfig
import warnings
import zlib
from functools import partial

from configurator import Failure
from stlm.download import download
from stlm.files import fingerprint
from stlm.tokenizer import END_OF_TEXT

SUFFIXES = ('.txt', '.jsonl', '.jsonl.gz', '.parquet')   # files that are read, in upper or lower case
LONGEST_LINE = 2**26   # characters of a record; a line of gigabytes would take all memory
# {edition of Simple English Wikipedia: (address, file, its size and sha256 where they are known)}
EDITIONS = dict(
    sbert=('http://sbert.net/datasets/', 'simplewiki-2020-11-01.jsonl.gz', None, None),
    wikimedia=('https://huggingface.co/datasets/wikimedia/wikipedia/resolve/b04c8d1ceb2f5cd4588862100d08de323dccfbaa/'
               '20231101.simple/', 'train-00000-of-00001.parquet', 156885218,
               '31bded16768a47c286becd292079122f5d7d4397a17b87d4250a00ccd581e6f0'))
# "Mercury may refer to:" on the line after the title
DISAMBIGUATION = re.compile(r'[^\n]*(?:\(disambiguation\)\n|\n+[^\n]*\b(?:may|might|can|could)(?: also)? '
                            r'(?:refer to|mean|stand for)\b(?:[^\n]*:)? *(?:\n|$))')


# -------------------------------------------------------------------------------------------------
# sources

def simplewiki(data_dir, edition):
    """An edition of Simple English Wikipedia, downloaded if it isn't there, without its disambiguation pages."""
    address, name, size, sha256 = EDITIONS[edition]
    file = pathlib.Path(data_dir, 'downloads', edition, name)
    check_pyarrow([file])
    print(f'Simple English Wikipedia: {address}{name} -> {file}')
    try:
        known = dict(file=file.as_posix()) | download(address + name, file, size, sha256)
    except Failure as error:
        raise Failure(f'{error}. Another edition: --edition={" or ".join({*EDITIONS} - {edition})}. Without network: python train.py')

    def read(progress):
        return (text for text in read_files([file], progress) if not DISAMBIGUATION.match(text))
    return [known], read


def pydocs(data_dir, edition):
    """What Python says of itself: it is on every machine, and differs a little from version to version."""
    return [dict(file=f'pydocs of Python {sys.version.split()[0]}')], read_pydocs


def own_files(path):
    """The text files that --input names."""
    files = input_files(path)
    return [dict(file=file.as_posix()) | fingerprint(file) for file in files], partial(read_files, files)


SOURCES = dict(simplewiki=simplewiki, pydocs=pydocs)


# -------------------------------------------------------------------------------------------------
# which files

def input_files(path):
    """A text file, or all in a folder and its subfolders. One that a link names again adds only duplicates."""
    if not os.path.exists(path):
        raise Failure(f'--input={path}: no such file or folder; to read several files, put them into one folder')
    found = files_below(path) if os.path.isdir(path) else [pathlib.Path(path)]
    files = [file for file in found if file.name.lower().endswith(SUFFIXES)]
    if not files:
        raise Failure(f'--input={path}: nothing here ends in {", ".join(SUFFIXES)}')
    check_pyarrow(files)
    print(f'{path}: {len(files)} of {len(found)} files are read, which end in {", ".join(SUFFIXES)}')
    return files


def files_below(top, skipped=()):
    """All files in a folder and its subfolders, in an order that is the same everywhere: Windows takes A and a for equal."""
    def unreadable(error):
        raise error

    files = []
    for folder, folders, names in os.walk(top, onerror=unreadable):
        folders[:] = [name for name in folders if name not in skipped]
        linked = [name for name in folders if os.path.islink(os.path.join(folder, name))]   # which os.walk doesn't enter
        files += [pathlib.Path(folder, name) for name in names + linked]
    return sorted(files, key=lambda file: file.parts)


def check_pyarrow(files):
    for file in files:
        if file.name.lower().endswith('.parquet') and not importlib.util.find_spec('pyarrow'):
            raise Failure(f'{file}: to read .parquet, pip install pyarrow')


# -------------------------------------------------------------------------------------------------
# their documents

def read_files(files, progress):
    """Documents of .txt files (cut_text), and of the records of .jsonl, .jsonl.gz and .parquet files: a `title`
    if there is one, and a `text` or a list of `paragraphs`."""
    total, before = sum(file.stat().st_size for file in files), 0
    for file in files:
        with open(file, 'rb') as raw:
            try:
                for document in cut_text(raw) if file.suffix.lower() == '.txt' else read_records(file, raw):
                    progress((before + raw.tell()) / max(total, 1))
                    yield document
            except UnicodeDecodeError as error:
                near = error.object[max(error.start - 20, 0):error.start + 20]
                raise Failure(f'{file}: not UTF-8 ({error.reason}: byte 0x{error.object[error.start]:02x} in {near!r}); '
                              'convert it first')
            except (EOFError, OSError, ValueError, zlib.error) as error:
                raise Failure(f'{file}: broken ({error}); delete it and fetch it again')
        before += file.stat().st_size


def cut_text(raw):
    """A document ends where <|endoftext|> stands, else at the first blank line after 4,096 characters, or at
    the end of a line after 65,536. Only a document's worth of text is in memory."""
    file = io.TextIOWrapper(raw, encoding='utf-8-sig', newline='\n')   # which closes raw when it is no longer there
    lines, size = [], 0
    for line in read_lines(file):
        *ended, rest = line.split(END_OF_TEXT)
        for text in ended:
            yield ''.join(lines) + text
            lines, size = [], 0
        lines.append(rest)
        size += len(rest)
        if size > 2**16 or size > 2**12 and line.isspace():
            yield ''.join(lines)
            lines, size = [], 0
    yield ''.join(lines)


def read_lines(file):
    """Lines; one of more than 65,536 characters comes in pieces, none of which ends inside an <|endoftext|>."""
    rest = ''
    while more := file.readline(2**16):
        line, rest = rest + more, ''
        start = line.rfind('<', 1 - len(END_OF_TEXT))   # where one may begin
        if start >= 0 and not line.endswith('\n'):
            line, rest = line[:start], line[start:]
        yield line
    yield rest


def read_records(file, raw):
    """The document of each record: a line of JSON, or a row of a table."""
    if file.suffix.lower() == '.parquet':
        import pyarrow.parquet
        batches = pyarrow.parquet.ParquetFile(raw).iter_batches(1000)
        records = (record for batch in batches for record in batch.to_pylist())
    else:
        unpacked = gzip.open(raw) if file.suffix.lower() == '.gz' else raw
        lines = io.TextIOWrapper(unpacked, encoding='utf-8-sig', newline='\n')
        records = iter(partial(lines.readline, LONGEST_LINE), '')
    for number, record in enumerate(records, 1):
        try:
            document = document_of(record)
        except (ValueError, RecursionError) as error:
            raise Failure(f'{file}, line {number}: {error}: {record!s:.60}')
        yield document


def document_of(record):
    """The text or the paragraphs of a record, after its title if there is one."""
    if isinstance(record, str):
        if len(record) == LONGEST_LINE:
            raise ValueError(f'has {LONGEST_LINE:,} characters or more')
        record = json.loads(record) if record.strip() else dict(text='')
    if not isinstance(record, dict):
        raise ValueError('not an object of JSON')
    paragraphs = [record['text']] if 'text' in record else record.get('paragraphs')
    title = record.get('title') or ''
    if not isinstance(paragraphs, list) or not all(isinstance(text, str) for text in [title, *paragraphs]):
        raise ValueError('has no "text" and no list of "paragraphs"')
    text = '\n\n'.join(paragraphs)
    document = f'{title}\n\n{text}' if title and text.strip() else text
    document.encode()   # half a surrogate pair is no text
    return document


def read_pydocs(progress):
    """The topics of Python's help() and the docstrings of its standard library, a document for each file."""
    import pydoc_data.topics
    yield from pydoc_data.topics.topics.values()
    library = pathlib.Path(sysconfig.get_path('stdlib'))
    skipped = 'site-packages', 'dist-packages', 'test', 'tests'   # what pip installed, and tests of tests
    files = [file for file in files_below(library, skipped) if file.suffix == '.py']
    for i, file in enumerate(files):
        progress(i / len(files))
        try:
            with warnings.catch_warnings():
                warnings.simplefilter('ignore')   # the standard library has odd escapes of its own
                module = ast.parse(file.read_bytes())
        except SyntaxError:   # lib2to3 keeps samples of bad Python
            continue
        definitions = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
        strings = [ast.get_docstring(node) for node in ast.walk(module) if isinstance(node, definitions)]
        strings = [string for string in strings if string]
        if strings:
            yield '\n\n'.join([f'# {file.relative_to(library).as_posix()}', *strings])


def clean(documents, left_out):
    """The documents but for empty ones and exact duplicates, which left_out counts."""
    seen = set()
    for text in documents:
        digest = hashlib.sha256(text.encode()).digest()[:16]
        if not text.strip():
            left_out['empty'] += 1
        elif digest in seen:
            left_out['duplicate'] += 1
        else:
            seen.add(digest)
            yield text
