"""
What if a file is damaged, or a setting odd? Each trial corrupts one thing of a small data set, of two small runs or
of question files, then does what a user would do next. A command, and in short a test.

    python tests/fuzz.py --trials=10000 --seed=1
    python tests/fuzz.py --only=1000017          # the trial that a finding names, with its traceback

A trial ends well if the result is that of the whole files ("right"), or in one clear line. Anything else is a
finding: a traceback, a message of several lines, a result that differs without a word, or no end.
"""
trials = 500   # how many
seed = 1       # 1 is the trials from 1,000,000 on, 2 those from 2,000,000 on
only = 0       # one trial alone, by its number
minutes = 0.0  # end after so many; 0 is never
kinds = ''     # only these of KINDS, as in 'weights,questions'

import collections
import contextlib
import csv
import functools
import hashlib
import io
import itertools
import json
import math
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
configure(globals(), may_be_0='seed')

import requests
import torch

from stlm import text as texts
import configurator
from stlm import console
from stlm import download
from stlm import files
import eval_mc
import model
import prepare_wiki
from stlm import run
from stlm import tokenizer as tokenizers
from stlm.questions import load_questions
from helpers import ROOT, SMALL, story

TEXTS = ['', ' ', 'x', '.', '..', '../../x', '/dev/null', ',', ':', 'a:1e400', 'book:1,book:2', '-', 'FILE:', 'resume',
         'out/table', 'data', 'é' * 300, '\udce9', '-1', '0', '1', '2', '3.7', '1e-40', '1e4', '1e12', '1e30', '1e400',
         'nan', '-inf', '9' * 5000, 'None', 'True', 'false', '[]', '[[0, 0.1]]', '[(0, 0.1), (0, 2)]', '()', '[' * 5000,
         '[(0, [1])]', "{'a': 1}", '0x10', '1_000', '2**8', '<|endoftext|>', "it's", '1j', 'byte', 'cuda:1']
ODD = [None, True, -1, 0, 1, 2.5, 1e30, 10**12, float('nan'), *TEXTS[:8], '\ud800', '\0', [], [1], [[]], {}, {'a': 1}]
ANY = 'any'   # the result where nobody can know what is right: a question's other words, say
TRAIN = ['--dataset=book', '--tokenizer=bpe300', *SMALL, '--n_byte_embd=8', '--n_byte_head=2', '--eval_tokens=500',
         '--max_iters=2', '--log_interval=1', '--eval_interval=1', '--ema=0.5']
COMMANDS = {
    'train.py': [*TRAIN, '--out_dir=out/new'], 'sample.py': ['--out_dir=out/table', '--max_new_tokens=3', '--seed=1'],
    'eval_mc.py': ['--out_dir=out/table', '--file=own'], 'tools/convert.py': ['--out_dir=out/table', '--to=int8', '--file=new'],
    'prepare_wiki.py': ['--input=short.txt', '--dataset=short', '--tokenizer=bpe260']}
LETTERS = [dict(text=f'answer {letter}', label=letter) for letter in 'ABC']
QUESTIONS = {   # file: (task, one of its five records)
    'own': ('own', dict(question='How?', choices=['one', 'two', 'six'], answer='B')),
    'arc/ARC-Easy-Test.jsonl': ('arc_easy', dict(question=dict(stem='Which?', choices=LETTERS), answerKey='B')),
    'winogrande/dev.jsonl': ('winogrande', dict(sentence='He sees _ there.', option1='Zoë', option2='me', answer='2')),
    'hellaswag/hellaswag_val.jsonl': ('hellaswag', dict(
        activity_label='Tea', ctx_a='A [title] b', ctx_b='she', endings=['eats.', '[x] is', 'ü', 'd'], label=3)),
    'blimp/a.jsonl': ('blimp', dict(sentence_good='It goes.', sentence_bad='It go.', linguistics_term='forms')),
    'mmlu/test/art_test.csv': ('mmlu', ['What?', 'a "b"', 'c\nd', 'e', 'f', 'C'])}
CONFIGS = [   # ways in which people write one, and what it sets
    ('from base import *', dict(n_layer=3, dropout=0.5)), ("exec(open('base.py').read())", dict(n_layer=3, dropout=0.5)),
    ('globals().update(n_embd=48)', dict(n_embd=48)), ('import math\nd_ff = math.ceil(63.5)', dict(d_ff=64)),
    ('def f():\n    seed = 7\n    return 9\nmax_iters = f()', dict(max_iters=9)), ('# nothing', {}),
    ('for seed in range(4): pass', dict(seed=3)), ('if True:\n    ema: float = 0.5', dict(ema=0.5)),
    ('_n = 2\nn_head, n_kv_head = 4 * _n, _n', dict(n_head=8, n_kv_head=2)), ('learning_rate *= 2', dict(learning_rate=0.012))]
SET, FILES = pathlib.Path('data/book-bpe300'), ['train.bin', 'val.bin', 'test.bin']


class Reached(Exception):
    """A training run has come to its first step."""


class Endless(BaseException):
    """A minute has passed."""


# -------------------------------------------------------------------------------------------------
# what there is, and what a user does with it

@functools.cache
def code(name):
    return compile((ROOT / name).read_text(encoding='utf-8'), str(ROOT / name), 'exec')


def script(name, *args):
    """Run a script in this process; its global names."""
    names = dict(__name__='__main__', __file__=str(ROOT / name))
    with mock.patch.object(sys, 'argv', [name, *args]), contextlib.suppress(Reached):
        exec(code(name), names)
    return names


def write_questions(name, records):
    path = pathlib.Path(name if name == 'own' else f'data/eval/{name}')
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, 'w', encoding='utf-8', errors='surrogatepass', newline='') as file:
        if path.suffix == '.csv':
            csv.writer(file).writerows(record for record in records if isinstance(record, list))
        else:
            file.writelines(json.dumps(record) + '\n' for record in records)
    return path


def make_all():
    pathlib.Path('book.txt').write_text(story(1000), encoding='utf-8')
    pathlib.Path('short.txt').write_text(story(30), encoding='utf-8')
    prepare_wiki.prepare('book', 'bpe300', 'book.txt')
    for kind in ('table', 'byte_pool'):
        script('train.py', *TRAIN, f'--embedding={kind}', f'--out_dir=out/{kind}')
    script('tools/convert.py', '--out_dir=out/table', '--to=int8', '--file=out/int8')
    for name, (_, record) in QUESTIONS.items():
        write_questions(name, [record] * 5)


def digest(thing):
    """Equal for equal things, tensors within them too."""
    def plain(leaf):
        return hashlib.sha256(leaf.numpy()).hexdigest() if isinstance(leaf, torch.Tensor) else leaf

    return hashlib.sha256(repr(torch.utils._pytree.tree_map(plain, thing)).encode()).hexdigest()


def use_data():
    """What train.py looks at, and then what was written, to the bit."""
    folder, meta = prepare_wiki.load_data('book', 'bpe300')
    encoding = tokenizers.load_tokenizer(meta['tokenizer'], folder)
    for split in prepare_wiki.SPLITS:
        texts.count_tokens(texts.open_split(folder, meta, split, 32), encoding.n_vocab)
        if files.fingerprint(folder / f'{split}.bin')['sha256'] != meta['splits'][split]['sha256']:
            raise console.Failure(f'{split}.bin: not the file that was written')
    return digest([meta, encoding.encode_ordinary(story(50)), [(folder / file).read_bytes() for file in FILES]])


def use_run(folder):
    net, encoding, checkpoint = run.load_run(folder)
    list(net.generate(torch.tensor([[encoding.eot_token]]), 2, generator=torch.Generator().manual_seed(1)))
    return digest([net.state_dict(), encoding.encode_ordinary(story(50)), checkpoint])


def convert_run(folder):
    try:
        script('tools/convert.py', f'--out_dir={folder}', '--to=int8', '--file=new')
    except console.Failure:
        assert not [*pathlib.Path().glob('new*')], 'something was written'
        raise
    return 'converted'


def ask_run(folder):
    net, encoding, _ = run.load_run(folder)
    return eval_mc.answer_questions(net, encoding, load_questions('own'))[0]['acc']


def use_tokenizer(folder):
    return digest(tokenizers.load_tokenizer(None, folder).encode_ordinary(story(50)))


def go_on(folder):
    names = script('train.py', f'--out_dir={folder}', '--init_from=resume', '--max_iters=3')
    with open(f'{folder}/log.csv', newline='') as file:
        log = [{name: float(value or 0) for name, value in row.items()} for row in csv.DictReader(file)]
    state = {name: part.state_dict() for name, part in names['parts'].items()}
    state['meter'].pop('seconds')
    return digest([state, names['judged'].state_dict(), names['best'], names['it'], [row['iter'] for row in log]])


@functools.cache
def judge():
    return run.load_run('out/table')[:2]


def use_questions(task):
    items = load_questions(task)
    for item, score in zip(items, eval_mc.answer_questions(*judge(), items)[1], strict=True):   # what holds for any file
        assert len(item.contexts) == len(item.choices) == len(score) > 1 and type(item.right) is int
        assert all(choice.strip() for choice in item.choices) and 0 <= item.right < len(score) and max(score) < 0
    return digest([[*item] for item in items])


# -------------------------------------------------------------------------------------------------
# corruptions: each changes one thing; it returns what, what to do then, and if it isn't that of the whole files, the result

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


def change(thing, rng, values=ODD):
    """Put an odd value into dicts and lists, or take something away: (where, what was there, what is there)."""
    def places(thing):
        for key, inner in thing.items() if isinstance(thing, dict) else enumerate(thing):
            yield thing, key
            if isinstance(inner, (dict, list)):
                yield from places(inner)

    container, key = rng.choice([*places(thing)])
    old, new = container[key], rng.choice([*values, ANY]) if rng.random() < 0.75 else 'gone'
    container[key] = new
    if new == 'gone':
        del container[key]
        if isinstance(container, dict) and rng.random() < 0.5:
            container[f'_orig_mod.{key}'] = old
    return key, old, new


def in_data(rng, *names):
    path, other = SET / rng.choice(names), SET / rng.choice([*FILES, 'meta.json'])
    if path.suffix == '.json' and rng.random() < 0.5:
        meta = json.loads(path.read_bytes())
        said = change(meta, rng)
        path.write_text(json.dumps(meta))
        return said, use_data
    path.write_bytes(damage(path.read_bytes(), rng, other.read_bytes()))
    return path, use_data


def in_tokenizer(rng):
    if rng.random() < 0.4:
        return in_data(rng, 'tokenizer.tiktoken')
    path = pathlib.Path(rng.choice(['out/table', 'out/byte_pool']), rng.choice(['tokenizer.tiktoken', 'tokenizer.meta.json']))
    path.write_bytes(damage(path.read_bytes(), rng, b'YQ== 0\n'))
    return path, functools.partial(rng.choice([use_run, use_tokenizer]), path.parent)


def in_checkpoint(rng):
    folder, (name, use) = rng.choice(['out/table', 'out/byte_pool']), rng.choice([('best.pt', use_run), ('ckpt.pt', go_on)])
    path = pathlib.Path(folder, name)
    if rng.random() < 0.5:
        path.write_bytes(damage(path.read_bytes(), rng, pickle.dumps({'format': run.FORMAT})))
        return path, functools.partial(use, folder)
    whole = torch.load(path)
    weights = whole['model']   # which the change may delete
    parts = [part for part in whole.values() if isinstance(part, (dict, list)) and part]
    said = change(rng.choice([whole, *parts]), rng, [*ODD, torch.zeros(2), torch.tensor(1), torch.full((300,), torch.nan)])
    torch.save(rng.choice([whole] * 20 + [torch.zeros(3), {'format': run.FORMAT - 1}, [whole], weights]), path)
    return (path, said), lambda: use(folder), ANY


def in_weights(rng):
    """NaN or infinity in one matrix or vector: whoever reads the run must say so, and write nothing."""
    folder, use = rng.choice(['out/table', 'out/byte_pool', 'out/int8']), rng.choice([use_run, convert_run, ask_run, go_on])
    path = pathlib.Path(folder, 'ckpt.pt' if use is go_on and folder != 'out/int8' else 'best.pt')
    whole = torch.load(path)
    weights = [*whole['model'].values(), *whole.get('scales', {}).values()]
    weights = rng.choice([p for p in weights if p.is_floating_point()]).flatten()   # a view: it changes the checkpoint
    weights[rng.randrange(len(weights))] = rng.choice([math.nan, math.inf, -math.inf])
    torch.save(whole, path)
    return (path, use.__name__), functools.partial(use, folder), 'nothing but an error'


def in_log(rng):
    path = pathlib.Path('out/table/log.csv')
    raw = path.read_bytes()
    rows = [line.split(b',') for line in raw.splitlines()]
    row = rng.choice(rows)
    row[rng.randrange(len(row))] = rng.choice(TEXTS).encode(errors='surrogateescape')
    spreadsheet = [b'\xef\xbb\xbf' + raw, raw.replace(b',', b';'), raw.replace(b'\n', b'\r\n'), raw.decode().encode('utf-16'),
                   raw.replace(b'.', b',')]
    path.write_bytes(rng.choice([damage(raw, rng, b'iter,loss\n0,1\n'), rng.choice(spreadsheet), b'\n'.join(map(b','.join, rows))]))
    return path, lambda: go_on('out/table'), ANY


def in_questions(rng):
    name, (task, record) = rng.choice([*QUESTIONS.items()])
    records = json.loads(json.dumps([record] * 5))
    if name == 'own' and rng.random() < 0.3:   # what a person may write without noticing
        choices, wanted = rng.choice([(['one', 'one'], 'refused'), (['one', 'two ', 'two'], 'refused'), (['one', ' '], 'refused'),
                                      (['one', 'one more'], ANY), (['x' * 2000, 'one'], 'refused')])
        question = rng.choice(['How?', 'How? ' * 500])
        write_questions(name, [record, dict(question=question, choices=choices, answer='A')])
        return (name, choices, len(question)), lambda: use_questions(task), wanted
    key, old, new = said = change(records, rng)
    path, use = write_questions(name, records), lambda: use_questions(task)
    if rng.random() < 0.4:
        write_questions(name, [record] * 5)
        deep = path.read_bytes() + b'[' * 100_000
        path.write_bytes(deep if rng.random() < 0.2 else damage(path.read_bytes(), rng))
        return name, use, ANY
    # another text or number, or a choice less, is another question; anything else must not pass for one
    free = type(new) is type(old) and new != 'gone' or new == 'gone' and type(key) is int
    return (name, said), use, *[ANY] * (free or name.endswith('csv') or key in ('answer', 'linguistics_term'))


def in_config(rng):
    pathlib.Path('base.py').write_text('n_layer = 3\ndropout = 0.5\n')
    ways, sets = zip(*rng.sample(CONFIGS, 3))
    source = rng.choice(['', '\ufeff']) + '\n'.join(ways).replace('\n', rng.choice(['\n', '\r\n']))
    damaged = rng.random() < 0.5
    pathlib.Path('own.py').write_bytes(damage(source.encode(), rng) if damaged else source.encode())

    def use():
        plain, settings = (configure(dict(__file__=str(ROOT / 'train.py'), __doc__=''), argv=argv) for argv in ([], ['own.py']))
        return digest(sorted((name, value) for name, value in settings.items() if value != plain[name]))
    return source, use, ANY if damaged else digest(sorted({name: v for some in sets for name, v in some.items()}.items()))


def in_flags(rng):
    """One odd setting of a command that is sound without it, as a flag or in a config file."""
    name = rng.choice(['train.py', *COMMANDS])
    flags = configurator.read_settings(ROOT / name) | (configurator.settings_of_model() if name == 'train.py' else {})
    flag, meant = rng.choice([*flags]), rng.choice(TEXTS)
    args = [*COMMANDS[name], f'--{flag}={meant}']
    if rng.random() < 0.3:
        source = rng.choice([*2 * [*map(repr, TEXTS)], 'None', "float('nan')", '10**400', '1j', 'len', "b'x'", '{1}', "'\\0'"])
        pathlib.Path('own.py').write_text(f'{flag} = {source}')
        args, meant = [*COMMANDS[name], 'own.py'], eval(source)

    def use():
        taken = script(name, *args).get('settings', {flag: meant})[flag]   # of train.py alone they are known
        return ANY if taken in (meant, configurator.literal(meant)) else 'another value was taken'
    return (name, flag, meant), use, ANY


KINDS = dict(meta=lambda rng: in_data(rng, 'meta.json'), tokens=lambda rng: in_data(rng, *FILES), tokenizer=in_tokenizer,
             checkpoint=in_checkpoint, weights=in_weights, log=in_log, questions=in_questions, config=in_config, flags=in_flags)


# -------------------------------------------------------------------------------------------------
# trials

def one_line(error):
    """Does a script that ends so say one line?"""
    said = io.StringIO()
    with mock.patch('os._exit'), mock.patch('sys.__excepthook__'), contextlib.redirect_stderr(said):
        console.one_line(type(error), error, error.__traceback__)
    return len(said.getvalue().strip().splitlines()) == 1


def attempt(use):
    """(its result or None, its error or None), in silence and in bounded time."""
    def too_long(signum, frame):
        raise Endless

    for which in (signal.SIGPROF, signal.SIGALRM):
        signal.signal(which, too_long)
    signal.setitimer(signal.ITIMER_PROF, 60)   # of the processor's seconds, which other work beside this doesn't take
    signal.alarm(1200)
    nowhere = io.StringIO()
    try:
        with contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere), mock.patch('sys.stdin', io.TextIOWrapper(io.BytesIO())):
            return use(), None
    except BaseException as error:
        return None, None if isinstance(error, SystemExit) and not error.code else error
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.alarm(0)


def restore(pristine):
    shutil.rmtree('.', ignore_errors=True)
    shutil.copytree(pristine, '.', dirs_exist_ok=True)


def trial(number, pristine):
    """Corrupt one thing, and do what a user would: (kind, how it ended, what was changed, the error).
    None for a kind that is not asked for."""
    rng = random.Random(number)
    kind = rng.choice([*KINDS])
    if kinds and kind not in kinds.split(','):
        return None
    restore(pristine)
    said, use, *wanted = KINDS[kind](rng)
    result, error = attempt(use)
    if error:
        return kind, 'one line' if one_line(error) else type(error).__name__, said, error
    if not wanted:
        restore(pristine)
        wanted = [attempt(use)[0]]
    right = result in (None, *wanted) or wanted == [ANY] and kind != 'flags'
    return kind, 'right' if right else 'different', said, None


def main():
    torch.set_num_threads(1)
    room = int(pathlib.Path('/proc/self/statm').read_text().split()[0]) * resource.getpagesize() + 3 * 2**30
    resource.setrlimit(resource.RLIMIT_AS, (room, room))   # what asks for all memory ends soon
    requests.get, download.TRIES = mock.Mock(side_effect=requests.ConnectionError), 1
    generate = model.GPT.generate
    model.GPT.generate = lambda *args, **settings: itertools.islice(generate(*args, **settings), 3)
    numbers = [only] if only else range(seed * 10**6, seed * 10**6 + trials)
    ends, begun, progress = collections.Counter(), time.monotonic(), console.Progress('trials')
    with tempfile.TemporaryDirectory() as folder:
        pristine, here = pathlib.Path(folder, 'pristine'), pathlib.Path(folder, 'a/b/c')   # .. stays inside
        for place in (here, pristine):   # ends in the latter
            place.mkdir(parents=True)
            os.chdir(place)
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            make_all()
        os.chdir(here)
        texts.Text.next = mock.Mock(side_effect=Reached)   # from now on training ends before its first step
        for done, number in enumerate(numbers, 1):
            ending = trial(number, pristine)
            if not ending:
                continue
            kind, how, said, error = ending
            ends[kind, how] += 1
            if how not in ('right', 'one line'):
                print(f'\n--only={number}: {kind}: {how}: {said!a:.120}: {str(error)!a:.200}', flush=True)
            if only:
                traceback.print_exception(error) if error else print(how, said)
            progress(done / len(numbers))
            if minutes and time.monotonic() > begun + 60 * minutes:
                break
        os.chdir(ROOT)
    for kind in KINDS:
        print(f'{kind:11}', ', '.join(f'{how} {n}' for (of, how), n in sorted(ends.items()) if of == kind))
    right, line = (sum(n for (_, how), n in ends.items() if how == good) for good in ('right', 'one line'))
    print(f'{ends.total()} tried, {right} right, {line} one line, {ends.total() - right - line} findings')
    sys.exit(ends.total() > right + line)


if __name__ == '__main__':
    main()
