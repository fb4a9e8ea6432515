"""
Where texts come from: Simple English Wikipedia, Python's own documentation, and one's own files. The only file that
knows corpora and file formats. A document is a string, and all of them come one by one.
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
import sysconfig
import warnings
import zlib

from configurator import Failure
from stlm.download import download
from stlm.tokenizer import END

SUFFIXES = ('.txt', '.jsonl', '.jsonl.gz', '.parquet')   # of files that are read, in any case

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


# -------------------------------------------------------------------------------------------------
# which files

def download_wikipedia(source, data_dir):
    """The files of Simple English Wikipedia, downloaded if they aren't there."""
    address, names = SOURCES[source]
    folder = pathlib.Path(data_dir) / 'downloads' / source
    files = [folder / name for name in names]
    check_pyarrow(files)
    print(f'Simple English Wikipedia: {address} -> {folder}')
    try:
        return [dict(file=str(file)) | download(address + file.name, file, *names[file.name]) for file in files]
    except Failure as error:
        others = ' or '.join(f'--source={other}' for other in SOURCES if other != source)
        raise Failure(f'{error}\n{folder} needs {", ".join(names)}. Another copy: python prepare_wiki.py {others}. '
                 'Offline quick start: python train.py')


def input_files(paths):
    """The text files that --input names, folders searched, linked ones too."""
    files, others, path = [], [], ''
    for name in paths.split(','):
        path = f'{path},{name}' if path else name
        if not os.path.exists(path):   # a name may have commas itself
            continue
        found = files_below(path) if os.path.isdir(path) else [pathlib.Path(path)]
        wanted = [file for file in found if file.name.lower().endswith(SUFFIXES)]
        if not wanted:
            raise Failure(f'--input={path}: nothing here ends in {", ".join(SUFFIXES)}')
        files += wanted
        others += [file.name for file in found if file not in wanted]
        path = ''
    if path:
        raise Failure(f'--input={path}: no such file or folder')
    check_pyarrow(files)
    print(f'{paths}: {len(files)} files to read')
    if others:
        named = ', '.join(others[:3] + ['...'] * (len(others) > 3))
        print(f'  not read, for their names: {len(others)} ({named})')
    return files


def files_below(top):
    """All files in a folder and its subfolders, sorted; each subfolder once, though links may lead to it again."""
    def unreadable(error):
        raise error

    files, seen = [], set()
    for folder, folders, names in os.walk(top, onerror=unreadable, followlinks=True):
        place = os.path.realpath(folder)
        if place in seen:
            folders.clear()
            continue
        seen.add(place)
        files += [pathlib.Path(folder, name) for name in names]
    return sorted(files)


def check_pyarrow(files):
    for file in files:
        if file.name.lower().endswith('.parquet') and not importlib.util.find_spec('pyarrow'):
            raise Failure(f'{file}: to read .parquet, pip install pyarrow')


# -------------------------------------------------------------------------------------------------
# their documents

def read_files(files, progress):
    """Documents of .txt files (cut_text), and of the records of .jsonl, .jsonl.gz and .parquet files: a `title`
    if there is one, and a `text` or a list of `paragraphs`. Records with a `wiki_id` and a `paragraph_id` are
    passages of articles: they are held until all are read, since nothing promises their order."""
    total, before, articles = sum(file.stat().st_size for file in files), 0, {}
    for file in files:
        with open(file, 'rb') as raw:
            try:
                documents = cut_text(raw) if file.suffix.lower() == '.txt' else read_records(file, raw, articles)
                for document in documents:
                    done = (before + raw.tell()) / max(total, 1)
                    progress(done / 8 if articles else done)   # reading takes an eighth of the time
                    if document is not None:
                        yield document
            except UnicodeDecodeError as error:
                near = error.object[max(error.start - 20, 0):error.start + 20]
                raise Failure(f'{file}: not UTF-8 ({error.reason}: byte 0x{error.object[error.start]:02x} in {near!r}); '
                         'convert it first')
            except (EOFError, OSError, ValueError, zlib.error) as error:
                raise Failure(f'{file}: broken ({error}); delete it and fetch it again')
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
    if file.suffix.lower() == '.parquet':
        import pyarrow.parquet
        batches = pyarrow.parquet.ParquetFile(raw).iter_batches(1000)
        records = (record for batch in batches for record in batch.to_pylist())
    else:
        unpacked = gzip.open(raw) if file.suffix.lower() == '.gz' else raw
        records = io.TextIOWrapper(unpacked, encoding='utf-8-sig', newline='\n')
    for number, record in enumerate(records, 1):
        reason = 'not a JSON object with a "text" or a list of "paragraphs"'
        try:
            if isinstance(record, str):
                record = json.loads(record) if record.strip() else dict(text='')
            title, text = record.get('title') or '', record.get('text')
            if 'text' not in record:
                if not isinstance(record['paragraphs'], list):
                    raise TypeError   # the letters of a text would pass for paragraphs
                text = '\n\n'.join(record['paragraphs'])
            (title + text).encode()
            passage = 'wiki_id' in record and 'paragraph_id' in record
            if passage:
                articles.setdefault(record['wiki_id'], []).append((int(record['paragraph_id']), title, text))
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
            if isinstance(error, UnicodeEncodeError):
                reason = f'half a surrogate pair, {error.object[error.start]!r}, which is no text'
            if isinstance(error, RecursionError):
                reason = 'brackets in brackets, too deep'
            raise Failure(f'{file}, line {number}: {reason}: {str(record)[:60]!r}')
        yield None if passage else join(title, text)


def join(title, text):
    return f'{title}\n\n{text}' if title and text.strip() else text


def pydocs(progress):
    """The topics of Python's help() and the docstrings of its standard library, a document for each file."""
    import pydoc_data.topics
    yield from pydoc_data.topics.topics.values()
    library, files = pathlib.Path(sysconfig.get_path('stdlib')), []
    for folder, folders, names in os.walk(library):   # not what pip installed, nor tests of tests
        folders[:] = set(folders) - {'site-packages', 'dist-packages', 'test', 'tests'}
        files += [pathlib.Path(folder, name) for name in names if name.endswith('.py')]
    for i, file in enumerate(sorted(files)):
        progress(i / len(files))
        try:
            with warnings.catch_warnings():
                warnings.simplefilter('ignore')   # of the standard library's own odd escapes
                statements = [ast.parse(file.read_bytes())]
        except SyntaxError:   # lib2to3 keeps samples of bad Python
            continue
        strings = []
        for node in statements:   # grows: definitions stand in statements, so expressions needn't be searched
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
                strings.append(ast.get_docstring(node))
            for field in 'body', 'handlers', 'orelse', 'finalbody', 'cases':
                statements += getattr(node, field, ())
        strings = [string for string in strings if string]
        if strings:
            yield '\n\n'.join([f'# {file.relative_to(library).as_posix()}', *strings])


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
