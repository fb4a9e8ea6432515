"""
What if a file is damaged, or a setting odd? Each trial corrupts one thing of a small data set, of two small runs or
of question files, then does what a user would do next. A command, and in short a test.

    python tests/fuzz.py --trials=10000 --seed=1
    python tests/fuzz.py --only=1000017          # the trial that a finding names, with its traceback

A trial ends well if the result is that of the whole files ("right"), or in one clear line. Anything else is a
finding: a traceback, a message of several lines, a result that differs without a word, or no end.
"""
trials = 500   # how many
seed = 1       # of the first million trials; the next one has others
only = 0       # one trial alone, by its number
minutes = 0    # end after so many; 0 is never

import ast
import collections
import contextlib
import csv
import functools
import hashlib
import io
import itertools
import json
import os
import pathlib
import pickle
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from unittest import mock

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))
from configurator import configure
configure(globals(), at_least={0: 'only seed minutes', 1: 'trials'})

import requests
import torch

import batches
import configurator
import download
import eval_mc
import model
import prepare_wiki
import run
import tokenizer as tokenizers
from helpers import ROOT, SMALL, story

DEEP = '[' * 100_000
TEXTS = ['', ' ', 'x', '.', '..', '../../x', '/dev/null', ',', ':', 'a:1e400', 'book:1,book:2', 'book:nan', '-', 'FILE:',
         'resume', 'out/table', 'data', 'own.jsonl', 'é' * 300, '\udce9', '-1', '0', '1', '2', '3.7', '1e-40', '1e4', '1e12',
         '1e30', '1e400', 'nan', '-inf', '9' * 5000, 'None', 'True', 'false', '[]', '[[0, 0.1]]', '[(0, 0.1), (0, 2)]', '()',
         '[(0, [1])]', "{'a': 1}", '0x10', '1_000', '2**8', DEEP[:5000], '<|endoftext|>', "it's", '1j', 'byte', 'cuda:1']
ANY = 'any'   # result of what is damaged where nobody could know
ODD = [None, True, -1, 0, 1, 2.5, 1e30, 10**12, float('nan'), float('inf'), *TEXTS[:9], '\ud800', '\0', [], [1], [[]], {}, {'a': 1}]


TRAIN = ['--dataset=book', '--tokenizer=bpe300', *SMALL, '--n_byte_embd=8', '--n_byte_head=2', '--eval_tokens=500',
         '--max_iters=2', '--log_interval=1', '--eval_interval=1', '--ema=0.5']


class Reached(Exception):
    """A training run has come to its first step."""


class Endless(BaseException):
    """It takes too long."""


# -------------------------------------------------------------------------------------------------
# what there is before anything is corrupted, and what a user does with it

@functools.cache
def code(name):
    return compile((ROOT / name).read_text(encoding='utf-8'), str(ROOT / name), 'exec')


def script(name, *args):
    """Run a script in this process, training only to its first step; its global names."""
    names = dict(__name__='__main__', __file__=str(ROOT / name))
    with mock.patch.object(sys, 'argv', [name, *args]), contextlib.suppress(Reached):
        exec(code(name), names)
    return names


def question_files():
    """A file of each form, of five questions."""
    numbers = [str(i) for i in range(5)]
    letters = [{'text': f'answer {i}', 'label': i} for i in '1234']
    arc = [dict(question=dict(stem=f'What is {i}?', choices=letters), answerKey='2') for i in numbers]
    yield 'own.jsonl', [dict(question=i, choices=['one', 'two', 'six'], answer='B') for i in numbers]
    yield 'data/eval/arc/ARC-Easy-Test.jsonl', arc
    yield 'data/eval/arc/ARC-Easy-Train.jsonl', arc
    yield 'data/eval/winogrande/dev.jsonl', [
        dict(sentence=f'{i} sees _ there.', option1='Zoë', option2='my cat', answer='2') for i in numbers]
    yield 'data/eval/hellaswag/hellaswag_val.jsonl', [
        dict(activity_label=i, ctx_a='A [title] b', ctx_b='she', endings=['eats.', 'draws', '[x] is', 'ü'], label=3) for i in numbers]
    yield 'data/eval/blimp/forms.jsonl', [
        dict(sentence_good=f'{i} goes.', sentence_bad=f'{i} go.', linguistics_term='irregular_forms') for i in numbers]
    for name in ('test/art_test', 'dev/art_dev'):
        yield f'data/eval/mmlu/{name}.csv', [[f'What, {i}?', 'a "b"', 'c\nd', 'e', 'f', 'C'] for i in numbers]


def write_questions(name, records):
    pathlib.Path(name).parent.mkdir(parents=True, exist_ok=True)
    with open(name, 'w', encoding='utf-8', errors='surrogatepass', newline='') as file:
        if name.endswith('csv'):
            csv.writer(file).writerows(records)
        else:
            file.writelines(json.dumps(record) + '\n' for record in records)


def make_all():
    pathlib.Path('book.txt').write_text(story(1000), encoding='utf-8')
    pathlib.Path('short.txt').write_text(story(30), encoding='utf-8')
    prepare_wiki.prepare('book', 'bpe300', 'book.txt')
    for kind in ('table', 'byte_pool'):
        script('train.py', *TRAIN, f'--embedding={kind}', f'--out_dir=out/{kind}')
    for name, records in question_files():
        write_questions(name, records)


def digest(thing):
    """Equal for equal things, of tensors too."""
    def plain(leaf):
        return hashlib.sha256(leaf.numpy()).hexdigest() if isinstance(leaf, torch.Tensor) else leaf

    return hashlib.sha256(repr(torch.utils._pytree.tree_map(plain, thing)).encode()).hexdigest()


def use_data():
    """What train.py makes of a data set, and then what was written, to the bit."""
    folder, meta = prepare_wiki.load('book', 'bpe300')
    encoding = tokenizers.load(meta['tokenizer'], folder)
    for split in prepare_wiki.SPLITS:
        tokens = batches.open_split(folder, meta, split, 32)
        batches.count_tokens(tokens, encoding.n_vocab)
    prepare_wiki.check_files(folder, meta)
    return digest([meta, encoding.encode_ordinary(story(50)), [(folder / f'{s}.bin').read_bytes() for s in prepare_wiki.SPLITS]])


def use_run(folder):
    net, encoding, checkpoint = run.load_run(folder)
    list(net.generate(torch.tensor([[encoding.eot_token]]), 2, generator=torch.Generator().manual_seed(1)))
    return digest([net.state_dict(), encoding.encode_ordinary(story(50)), checkpoint])


def use_tokenizer(folder):
    return digest(tokenizers.load(None, folder).encode_ordinary(story(50)))


def go_on(folder):
    names = script('train.py', f'--out_dir={folder}', '--init_from=resume', '--max_iters=3')
    state = [names[name].state_dict() for name in ('raw_model', 'averaged')] + [o.state_dict() for o in names['optimizers']]
    with open(f'{folder}/log.csv', newline='') as file:
        log = [{name: value and float(value) for name, value in row.items()} for row in csv.DictReader(file)]
    return digest([state, names['blocks'].owed, names['best'], torch.get_rng_state(), [row['iter'] for row in log]])


@functools.cache
def judge():
    return run.load_run('out/table')[:2]


def use_questions(task):
    items = eval_mc.load(task, num_fewshot=0 if task == 'own.jsonl' else 2)
    _, scores = eval_mc.evaluate(*judge(), items)
    for item, score in zip(items, scores, strict=True):   # what every item must be, whatever its file said
        assert len(item.contexts) == len(item.choices) == len(score) > 1 and type(item.right) is int
        assert all(choice.strip() for choice in item.choices) and 0 <= item.right < len(score) and max(score) < 0
    return digest([[*item] for item in items])


# -------------------------------------------------------------------------------------------------
# corruptions: each changes one thing, and returns how it is used and, if known, what must come out

def damage(data, rng, other=b''):
    """Bytes as a bad disk, a full one or a wrong click leaves them."""
    data, at, n = bytearray(data), rng.randrange(len(data)), rng.randrange(1, 40)
    match rng.randrange(9):
        case 0 | 1 | 2: data[at] ^= 1 << rng.randrange(8)
        case 3: del data[at:]
        case 4: del data[at:at + n]
        case 5: data[at:at] = rng.randbytes(n)
        case 6: data[at:at + n] = bytes(min(n, len(data) - at))
        case 7: data = bytearray() if rng.random() < 0.3 else data + data
        case 8: data = bytearray(other) or data[::-1]
    return bytes(data)


def places(thing):
    """(container, key) of everything inside of dicts and lists."""
    for key, inner in thing.items() if isinstance(thing, dict) else enumerate(thing):
        yield thing, key
        if isinstance(inner, (dict, list)):
            yield from places(inner)


def change(thing, rng, values=ODD):
    """Put an odd value somewhere into dicts and lists, or take something away; where, what it was, and what it is."""
    container, key = rng.choice([*places(thing)])
    old = container[key]
    if rng.random() < 0.25:
        value = container.pop(key)
        if isinstance(container, dict) and rng.random() < 0.5:
            container[f'_orig_mod.{key}'] = value
        return key, old, 'gone'
    container[key] = value = rng.choice(values)
    return key, old, value


def in_data(rng, names):
    file = rng.choice(names)
    others = [pathlib.Path('data/book-bpe300', name).read_bytes() for name in ('val.bin', 'test.bin', 'meta.json')]
    path = pathlib.Path('data/book-bpe300', file)
    if file.endswith('json') and rng.random() < 0.5:
        meta = json.loads(path.read_bytes())
        said = change(meta, rng)
        path.write_text(json.dumps(meta))
    else:
        said = file
        path.write_bytes(damage(path.read_bytes(), rng, rng.choice(others)))
    return said, use_data


def in_tokenizer(rng):
    if rng.random() < 0.4:
        return in_data(rng, ['tokenizer.tiktoken'])
    folder = rng.choice(['out/table', 'out/byte_pool'])
    path = pathlib.Path(folder, rng.choice(['tokenizer.tiktoken', 'tokenizer.meta.json']))
    path.write_bytes(damage(path.read_bytes(), rng, b'YQ== 0\n'))
    return path, functools.partial(rng.choice([use_run, use_tokenizer]), folder)


def in_checkpoint(rng):
    folder = rng.choice(['out/table', 'out/byte_pool'])
    path, use = rng.choice([(f'{folder}/best.pt', use_run), (f'{folder}/ckpt.pt', go_on)])
    if rng.random() < 0.5:
        pathlib.Path(path).write_bytes(damage(pathlib.Path(path).read_bytes(), rng, pickle.dumps({'format': 3})))
        return path, functools.partial(use, folder)
    checkpoint = torch.load(path)
    part = rng.choice([checkpoint, checkpoint, *(value for value in checkpoint.values() if isinstance(value, (dict, list)))])
    said = change(part, rng, [*ODD, torch.zeros(2), torch.tensor(1), torch.full((300,), float('nan'))]) if part else 'nothing'
    torch.save(rng.choice([checkpoint] * 20 + [torch.zeros(3), {'format': 2}, [checkpoint], checkpoint['model']]), path)
    return (path, said), lambda: use(folder) and ANY


def in_log(rng):
    path = pathlib.Path('out/table/log.csv')
    lines = path.read_bytes().split(b'\r\n')
    if rng.random() < 0.3:
        path.write_bytes(damage(path.read_bytes(), rng, b'iter,loss\r\n0,1\r\n'))
    elif rng.random() < 0.3:   # by a spreadsheet
        path.write_bytes(rng.choice([b'\xef\xbb\xbf' + path.read_bytes(), path.read_bytes().replace(b',', b';'), b'\n'.join(lines),
                                     path.read_bytes().decode().encode('utf-16'), path.read_bytes().replace(b'.', b',')]))
    else:
        rows = [line.split(b',') for line in lines if line]
        row = rng.choice(rows)
        row[rng.randrange(len(row))] = rng.choice(TEXTS).encode(errors='surrogateescape')
        path.write_bytes(b'\r\n'.join(b','.join(row) for row in rows))
    return path, lambda: go_on('out/table') and ANY


def in_questions(rng):
    name, records = rng.choice([*question_files()])
    task = ('own.jsonl' if name == 'own.jsonl' else 'mmlu' if 'mmlu' in name else 'arc_easy' if 'ARC' in name else
            'winogrande' if 'wino' in name else 'hellaswag' if 'swag' in name else 'blimp')
    use, path = functools.partial(use_questions, task), pathlib.Path(name)
    if rng.random() < 0.3:
        path.write_bytes(damage(path.read_bytes(), rng))
        return name, lambda: use() and ANY
    if rng.random() < 0.1:
        lines = path.read_bytes().splitlines()
        path.write_bytes(b'\n'.join([*lines, DEEP.encode()]))
        return (name, 'deep'), use
    said = key, old, value = change(records, rng)
    write_questions(name, [record for record in records if not name.endswith('csv') or isinstance(record, list)])
    # another text or number, or a choice less, is another question, as far as anyone can know
    free = type(value) is type(old) and (value != 'gone' or type(key) is int) or name.endswith('csv') or key in (
        'answer', 'linguistics_term') or type(key) is int and value == 'gone'
    return (name, said), lambda: use() and ANY if free else use()


def in_config(rng):
    """A config file in one of the ways in which people write one; what it sets."""
    ways = [('from base import *', dict(n_layer=3, dropout=0.5)), ("exec(open('base.py').read())", dict(n_layer=3, dropout=0.5)),
            ('globals().update(n_embd=48)', dict(n_embd=48)), ('import math\nd_ff = math.ceil(63.5)', dict(d_ff=64)),
            ('def f():\n    seed = 7\n    return 9\nmax_iters = f()', dict(max_iters=9)), ('for seed in range(4): pass', dict(seed=3)),
            ('_n = 2\nn_head, n_kv_head = 2 * _n, _n', dict(n_head=4, n_kv_head=2)), ('learning_rate *= 2', dict(learning_rate=0.012)),
            ('if True:\n    ema: float = 0.5', dict(ema=0.5)), ('batch_size = 1e2', dict(batch_size=100)), ('# nothing', {})]
    pathlib.Path('base.py').write_text('n_layer = 3\ndropout = 0.5\n')
    chosen, damaged = rng.sample(ways, 3), rng.random() < 0.5
    source = '\n'.join(way for way, _ in chosen).encode()
    source = rng.choice([source, b'\xef\xbb\xbf' + source, source.replace(b'\n', b'\r\n')])
    expected = {name: value for _, some in chosen for name, value in some.items()}
    pathlib.Path('own.py').write_bytes(damage(source, rng) if damaged else source)

    def use():
        defaults = {name: default for name, (default, *_) in configurator.read_settings(ROOT / 'train.py').items()}
        names = dict(defaults, __file__=str(ROOT / 'train.py'), __doc__='')
        settings, given = configure(names, argv=['own.py'])
        return ANY if damaged else digest(sorted((name, settings[name]) for name in given))
    return source, use, digest(sorted(expected.items()))


COMMANDS = {
    'train.py': [*TRAIN, '--out_dir=out/new'], 'sample.py': ['--out_dir=out/table', '--max_new_tokens=3', '--seed=1'],
    'eval_mc.py': ['--out_dir=out/table', '--file=own.jsonl'], 'convert.py': ['--out_dir=out/table', '--to=int8', '--file=new'],
    'prepare_wiki.py': ['--input=short.txt', '--dataset=short', '--tokenizer=bpe260']}


def in_flags(rng):
    """One odd setting of a command that is sound without it, as a flag or in a config file."""
    name = rng.choice(['train.py', *COMMANDS])
    known = configurator.read_settings(ROOT / name)
    flag, meant = rng.choice([*known]), rng.choice(TEXTS)
    args = [*COMMANDS[name], f'--{flag.rstrip("_")}={meant}']
    if rng.random() < 0.3:
        source = rng.choice([*map(repr, TEXTS), *map(repr, TEXTS), 'None', "float('nan')", '10**400', '1j', 'len', "b'x'", '{1}', '(1, 2)', "'\\0'"])
        pathlib.Path('own.py').write_text(f'{flag} = {source}')
        args, meant = [*COMMANDS[name], 'own.py'], eval(source)

    def use():
        names = script(name, *args)
        same = name != 'train.py' or names['settings'][flag] == meant
        return ANY if same or names['settings'][flag] == configurator.literal(meant) else 'another value was taken'
    return (name, flag, meant), use, ANY


# -------------------------------------------------------------------------------------------------
# trials

KINDS = dict(meta=lambda rng: in_data(rng, ['meta.json']), tokenizer=in_tokenizer, checkpoint=in_checkpoint, log=in_log,
             tokens=lambda rng: in_data(rng, ['train.bin', 'val.bin', 'test.bin']), questions=in_questions, config=in_config,
             flags=in_flags)


def one_line(error):
    """What a script that ended so says, if it is one clear line."""
    said = io.StringIO()
    if isinstance(error, SystemExit):
        print(error.code if isinstance(error.code, str) else '', file=said)
    else:
        with mock.patch('os._exit'), mock.patch('sys.__excepthook__'), contextlib.redirect_stderr(said):
            configurator.one_line(type(error), error, error.__traceback__)
    lines = said.getvalue().strip().splitlines()
    return lines[0] if len(lines) == 1 else ''


def attempt(use):
    """(its result or None, its error or None), in silence and in bounded time."""
    def too_long(signum, frame):
        raise Endless('no end within 60 seconds')

    signal.signal(signal.SIGALRM, too_long)
    signal.alarm(60)
    nowhere = io.StringIO()
    try:
        with contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere), mock.patch('sys.stdin', io.StringIO()):
            return use(), None
    except BaseException as error:
        return None, None if isinstance(error, SystemExit) and not error.code else error
    finally:
        signal.alarm(0)


def restore(pristine):
    shutil.rmtree('.', ignore_errors=True)
    shutil.copytree(pristine, '.', dirs_exist_ok=True)


def trial(number, pristine):
    """Corrupt one thing, and use it: (kind, how it ended, what was changed, the error)."""
    restore(pristine)
    rng = random.Random(number)
    kind = rng.choice([*KINDS])
    said, use, *expected = KINDS[kind](rng)
    result, error = attempt(use)
    if error:
        return kind, 'one line' if one_line(error) else type(error).__name__, said, error
    restore(pristine)
    right = result in (None, ANY, *expected) or not expected and result == attempt(use)[0]
    return kind, 'right' if right else 'different', said, None


def main():
    torch.set_num_threads(1)
    room = int(pathlib.Path('/proc/self/statm').read_text().split()[0]) * resource.getpagesize() + 3 * 2**30
    resource.setrlimit(resource.RLIMIT_AS, (room, room))   # what asks for all memory ends soon
    requests.get = mock.Mock(side_effect=requests.ConnectionError)
    download.TRIES = 1
    generate = model.GPT.generate
    model.GPT.generate = lambda *args, **settings: itertools.islice(generate(*args, **settings), 3)
    numbers = [only] if only else range(seed * 10**6, seed * 10**6 + trials)
    ends, begun = collections.Counter(), time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        pristine, here = pathlib.Path(folder, 'pristine'), pathlib.Path(folder, 'a/b/c')   # .. stays inside
        for place in (here, pristine):
            place.mkdir(parents=True)
        os.chdir(pristine)
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            make_all()
        batches.Mix.next = mock.Mock(side_effect=Reached)
        os.chdir(here)
        progress = configurator.Progress('trials')
        for i, number in enumerate(numbers):
            if minutes and time.monotonic() > begun + 60 * minutes:
                break
            kind, how, said, error = trial(number, pristine)
            ends[kind, how] += 1
            if how not in ('right', 'one line'):
                print(f'\n--only={number}: {kind}: {how}: {said!a:.120}: {" / ".join(str(error).splitlines())!a:.200}', flush=True)
            if only:
                traceback.print_exception(error) if error else print(how, said)
            progress((i + 1) / len(numbers))
        os.chdir(ROOT)
    for kind in KINDS:
        print(f'{kind:11}', ', '.join(f'{how} {n}' for (of, how), n in sorted(ends.items()) if of == kind))
    right, line = (sum(n for (_, how), n in ends.items() if how == good) for good in ('right', 'one line'))
    print(f'{ends.total()} tried, {right} right, {line} one line, {ends.total() - right - line} findings')
    sys.exit(ends.total() > right + line)


if __name__ == '__main__':
    main()
