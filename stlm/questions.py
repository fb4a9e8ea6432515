"""
Where multiple-choice questions come from: BLiMP, ARC, Winogrande, HellaSwag, MMLU, or your own file.

    items = load_questions('arc_easy', limit=500)    # fetched on first use
    items = load_questions('my.jsonl')               # own_item() says what a line is

Prompts are those of EleutherAI's lm-evaluation-harness 0.4.13, letter by letter. Another benchmark needs three
things: in SOURCES where its file is (or you put it into data_dir), a function that makes an item of a line, an entry in TASKS.
"""
import csv
import hashlib
import io
import json
import os
import pathlib
import re
import shutil
import string
import tempfile
import zipfile
from collections import namedtuple
from functools import partial

from stlm.console import Failure
from stlm.download import RemoteFile, download
from stlm.files import write_whole

# --------------------------------------------------------------------------------------------------
# Files: where they come from, and what they must be

ARC = 'https://ai2-public-datasets.s3.amazonaws.com/arc/ARC-V1-Feb2018.zip'
WINOGRANDE = 'https://storage.googleapis.com/ai2-mosaic/public/winogrande/winogrande_1.1.zip'
GITHUB = 'https://raw.githubusercontent.com'
SOURCES = {   # a file or folder in data_dir: its address, which member of that large archive, its sha256
    'arc/ARC-Easy-Test.jsonl': (
        ARC, 'ARC-V1-Feb2018-2/ARC-Easy/ARC-Easy-Test.jsonl',
        'ce32a0774b4beb1977d2c6b16dda5dd2b24fdc9c7f506882c452678676bd09be'),
    'arc/ARC-Challenge-Test.jsonl': (
        ARC, 'ARC-V1-Feb2018-2/ARC-Challenge/ARC-Challenge-Test.jsonl',
        '9fa8ffb3e3a1f88cb302d53dd95aae81e39209ad9bcf974376b319d8fd35717c'),
    'winogrande/dev.jsonl': (
        WINOGRANDE, 'winogrande_1.1/dev.jsonl',
        '1aeac79cf46a3dcbe59a71ca7e5372a1490cde2b4ae2387dc56f00378104d2e8'),
    'hellaswag/hellaswag_val.jsonl': (
        f'{GITHUB}/rowanz/hellaswag/master/data/hellaswag_val.jsonl', '',
        '0aa3b88843990f3f10a97b9575c94d7b71fb2205240ba04ae4884d9e9c992588'),
    'mmlu': (
        'https://people.eecs.berkeley.edu/~hendrycks/data.tar', '',
        'bec563ba4bac1d6aaf04141cd7d1605d7a5ca833e38f994051e818489592989b'),
    'blimp': (
        f'{GITHUB}/alexwarstadt/blimp/3e56b06/BLiMP.zip', '',
        '172a1a714d72e72a89e8384dd531483f3d0f8a9aee3d33dccaf7992d8cecbb73')}


def fetch_source(data_dir, name):
    """The path of a file or folder of SOURCES, fetched first if it isn't there, whole or not at all."""
    path = pathlib.Path(data_dir, name)
    if path.exists() or name not in SOURCES:   # a file of your own, say
        return path
    print(f'{path} is not there yet: fetching it')
    url, member, sha256 = SOURCES[name]
    if member:
        write_whole(path, read_member(url, member, sha256, path))
    elif path.suffix:
        download(url, path, sha256=sha256)
    else:
        archive = path.with_suffix(pathlib.Path(url).suffix)
        download(url, archive, sha256=sha256)
        with tempfile.TemporaryDirectory(dir=path.parent) as unpacked:
            shutil.unpack_archive(archive, unpacked)
            shutil.rmtree(f'{unpacked}/data/auxiliary_train', ignore_errors=True)   # most of MMLU
            os.replace(f'{unpacked}/data', path)
        for rest in archive.parent.glob(f'{archive.name}*'):
            rest.unlink()
    return path


def read_member(url, member, sha256, path):
    """One file of a large zip, read without the rest."""
    try:
        with zipfile.ZipFile(io.BufferedReader(RemoteFile(url), 2**20)) as archive:
            data = archive.read(member)
    except (OSError, zipfile.BadZipFile, KeyError) as error:
        raise Failure(f"{url} can't be read ({type(error).__name__}). Put its {member} at {path}, "
                      'or name a folder that has it: --data_dir=FOLDER')
    if hashlib.sha256(data).hexdigest() != sha256:
        raise Failure(f'{url}: {member} is not what it was (sha256); nothing was kept')
    return data


# --------------------------------------------------------------------------------------------------
# Items

# contexts: one for each choice, in most tasks the same text; right: the number of the right choice, from 0;
# group: MMLU's subject, BLiMP's phenomenon
Item = namedtuple('Item', 'contexts choices right group')


def make_item(contexts, choices, right, group=''):
    """Every item is made and checked here: a wrong one would be scored without a word."""
    if type(choices) is not list or len(choices) < 2:
        raise ValueError('the choices must be a list of two or more')
    if type(contexts) is str:   # the same for all
        contexts = [contexts] * len(choices)
    if len(contexts) != len(choices):
        raise ValueError(f'{len(contexts)} contexts for {len(choices)} choices')
    for text in [*contexts, *choices, group]:
        if type(text) is not str:
            raise ValueError(f'{text!r:.40} is not a text')
        text.encode()   # half of a surrogate pair is an error now, not after all scoring
    if not all(choice.strip() for choice in choices):
        raise ValueError(f'a choice is empty: {choices!r:.80}')
    if type(right) is not int or not 0 <= right < len(choices):
        raise ValueError(f'the right choice must be 0 to {len(choices) - 1}, not {right!r:.40}')
    return Item(contexts, choices, right, group)


def read_items(path, parse):
    """The items that parse() makes of the records of a .jsonl file or the rows of a .csv file."""
    data = path.read_bytes()
    try:
        text = data.decode().removeprefix('\ufeff')   # Windows' editors begin a file with this mark
    except UnicodeDecodeError as error:
        raise Failure(f'{path}, line {data.count(10, 0, error.start) + 1}: not UTF-8')
    is_csv = path.suffix == '.csv'
    rows = csv.reader(io.StringIO(text, newline='')) if is_csv else text.split('\n')
    items = []
    line = 1   # where the row begins; a row of a .csv file may have several lines
    try:
        for row in rows:
            if is_csv and row:
                items.append(parse(row))
            elif not is_csv and row.strip():
                items.append(parse(json.loads(row)))
            line = rows.line_num + 1 if is_csv else line + 1
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError, csv.Error) as error:
        raise Failure(f'{path}, line {line}: {type(error).__name__}: {error}; a line is {parse.__doc__}')
    return items


# --------------------------------------------------------------------------------------------------
# Tasks: data_dir -> for each of the task's files a list of items

def blimp_item(record):
    """{"sentence_good": ..., "sentence_bad": ..., "linguistics_term": ...}"""
    phenomenon = record.get('linguistics_term', '').replace('_', ' ')
    if phenomenon == 's-selection':
        phenomenon = 'argument structure'   # as in the published tables
    return make_item('', [record['sentence_good'], record['sentence_bad']], 0, phenomenon)


def blimp(data_dir):
    paths = fetch_source(data_dir, 'blimp').glob('*.jsonl')
    return [read_items(path, blimp_item) for path in sorted(paths)]


def arc_item(record):
    """{"question": {"stem": ..., "choices": [{"text": ..., "label": ...}, ...]}, "answerKey": a label}"""
    asked = record['question']
    labels = [choice['label'] for choice in asked['choices']]
    texts = [choice['text'] for choice in asked['choices']]
    context = 'Question: ' + asked['stem'] + '\nAnswer:'
    return make_item(context, texts, labels.index(record['answerKey']))


def winogrande_item(record):
    """{"sentence": text with a _, "option1": ..., "option2": ..., "answer": "1" or "2"}"""
    before, after = record['sentence'].split('_', 1)   # the same words are scored after either option
    contexts = [before + record['option1'], before + record['option2']]
    return make_item(contexts, [after.strip()] * 2, ['1', '2'].index(record['answer']))


def hellaswag_item(record):
    """{"activity_label": ..., "ctx_a": ..., "ctx_b": ..., "endings": [...], "label": 0 to 3}"""
    def clean(text):   # without WikiHow's marks
        text = text.strip().replace(' [title]', '. ')
        return re.sub(r'\[.*?\]', '', text).replace('  ', ' ')

    if type(record['endings']) is not list:
        raise ValueError('the endings must be a list')
    context = record['activity_label'] + ': ' + record['ctx_a'] + ' ' + record['ctx_b'].capitalize()
    endings = [clean(ending) for ending in record['endings']]
    return make_item(clean(context), endings, record['label'])


def one_file(name, parse, data_dir):
    return [read_items(fetch_source(data_dir, name), parse)]


LETTERS = ['A', 'B', 'C', 'D']


def cloze_item(row):
    """question,A,B,C,D,letter"""
    asked, a, b, c, d, letter = row
    return make_item(f'Question: {asked.strip()}\nAnswer:', [a, b, c, d], LETTERS.index(letter))


def letter_item(row):
    """question,A,B,C,D,letter"""
    right = cloze_item(row).right   # which checks the row
    lines = [f'{letter}. {choice}' for letter, choice in zip(LETTERS, row[1:])]
    return make_item('\n'.join([row[0].strip(), *lines, 'Answer:']), LETTERS, right)


def mmlu(parse, kind, data_dir):
    files = []
    for path in sorted(fetch_source(data_dir, 'mmlu').glob('test/*_test.csv')):
        subject = path.name.removesuffix('_test.csv').replace('_', ' ')
        head = f'The following are {kind} (with answers) about {subject}.\n\n'
        files.append([make_item(head + item.contexts[0], item.choices, item.right, subject)
                      for item in read_items(path, parse)])
    return files


def own_item(record):
    """{"question": ..., "choices": [...], "answer": the right choice, or its letter, or its number from 0},
    or {"sentence_good": ..., "sentence_bad": ...}, as BLiMP has them"""
    if 'sentence_good' in record:
        item = blimp_item(record)
    else:
        asked, choices, right = record['question'], record['choices'], record['answer']
        if type(right) is str and right in choices:
            right = choices.index(right)
        elif type(right) is str and len(right) == 1:
            right = string.ascii_uppercase.index(right)
        item = make_item('Question: ' + asked + '\nAnswer:' if asked != '' else '', choices, right)
    if len({choice.strip() for choice in item.choices}) < len(item.choices):
        raise ValueError(f'two choices are the same text: {item.choices!r:.80}')
    return item


TASKS = {
    'blimp': blimp,
    'arc_easy': partial(one_file, 'arc/ARC-Easy-Test.jsonl', arc_item),
    'arc_challenge': partial(one_file, 'arc/ARC-Challenge-Test.jsonl', arc_item),
    'winogrande': partial(one_file, 'winogrande/dev.jsonl', winogrande_item),
    'hellaswag': partial(one_file, 'hellaswag/hellaswag_val.jsonl', hellaswag_item),
    'mmlu': partial(mmlu, letter_item, 'multiple choice questions'),
    'mmlu_cloze': partial(mmlu, cloze_item, 'questions')}


def load_questions(task, data_dir='data/eval', limit=0):
    """The items of a task, or of your own .jsonl file; with a limit the first of each file."""
    if task in TASKS:
        files = TASKS[task](data_dir)
    elif pathlib.Path(task).is_file():
        files = [read_items(pathlib.Path(task), own_item)]
    else:
        raise Failure(f'{task}: no such file, and the tasks are {",".join(TASKS)}')
    items = [item for items_of_file in files for item in items_of_file[:limit or None]]
    if not items:
        raise Failure(f'{task}: there is no question in {data_dir if task in TASKS else "it"}')
    return items
