"""
Multiple choice by summed log-probabilities: ARC, Winogrande, HellaSwag, MMLU, or one's own questions.

    python eval_mc.py --out_dir=out/quick                       # every item of every task, fetched on first use
    python eval_mc.py --tasks=arc_easy,hellaswag --limit=500    # quicker, and less sure
    python eval_mc.py --file=my.jsonl                           # a line: {"question": "2 + 2 is", "choices": ["4", "5"], "answer": "4"}
    python eval_mc.py --file=pairs.jsonl                        # or: {"sentence_good": "She sleeps.", "sentence_bad": "She sleep."}

A model answers with the choice to which it gives the highest probability. Prompts, boundaries of tokens, truncation
and metrics are those of EleutherAI's lm-evaluation-harness 0.4.13 (tests/compare_harness.py compares the two item
by item), so scores compare with published ones. Writes out_dir/mc_<task>.json: every item's log-probabilities.
"""
out_dir = 'out/quick'     # the run's folder: best.pt, else ckpt.pt, and the tokenizer
tasks = 'arc_easy,arc_challenge,winogrande,hellaswag,mmlu,mmlu_cloze'   # mmlu answers by letter, mmlu_cloze in full
file = ''                 # one's own questions instead, a .jsonl file
num_fewshot = 0           # answered examples before each question, for ARC and MMLU
limit = 0                 # only the first this many items of a task, of MMLU of a subject; 0 for all
data_dir = 'data/eval'    # the tasks' files: arc/*.jsonl, winogrande/dev.jsonl, hellaswag/*.jsonl, mmlu/{dev,test}/*.csv
batch_tokens = 4096       # read at once; fewer need less memory
device = 'auto'           # cuda, mps or cpu; auto takes the first of them that is there
dtype = 'float32'         # float32, or bfloat16, which is faster, and changes the answer where two choices are close

if __name__ == '__main__':
    from configurator import configure
    configure(globals(), one_of=dict(dtype='bfloat16 float32'), at_least={0: 'num_fewshot limit', 1: 'batch_tokens'})

import csv
import functools
import hashlib
import io
import itertools
import json
import math
import os
import pathlib
import random
import re
import shutil
import sys
import tarfile
import zipfile
from collections import defaultdict, namedtuple

import numpy as np
import torch

import prepare_wiki
from model import GPT, Config, LayerCache

# ---------------------------------------------------------------------------------------------------------
# files: where they come from, and what they must be (sha256)

ARC = 'https://ai2-public-datasets.s3.amazonaws.com/arc/ARC-V1-Feb2018.zip'
ZIPPED = {   # file here: address of a zip file, member, sha256; the harness takes ARC's examples from Train
    'arc/ARC-Easy-Test.jsonl': (ARC, 'ARC-V1-Feb2018-2/ARC-Easy/ARC-Easy-Test.jsonl',
                                'ce32a0774b4beb1977d2c6b16dda5dd2b24fdc9c7f506882c452678676bd09be'),
    'arc/ARC-Challenge-Test.jsonl': (ARC, 'ARC-V1-Feb2018-2/ARC-Challenge/ARC-Challenge-Test.jsonl',
                                     '9fa8ffb3e3a1f88cb302d53dd95aae81e39209ad9bcf974376b319d8fd35717c'),
    'arc/ARC-Easy-Train.jsonl': (ARC, 'ARC-V1-Feb2018-2/ARC-Easy/ARC-Easy-Train.jsonl', None),   # zip's CRC will do
    'arc/ARC-Challenge-Train.jsonl': (ARC, 'ARC-V1-Feb2018-2/ARC-Challenge/ARC-Challenge-Train.jsonl', None),
    'winogrande/dev.jsonl': ('https://storage.googleapis.com/ai2-mosaic/public/winogrande/winogrande_1.1.zip',
                             'winogrande_1.1/dev.jsonl',
                             '1aeac79cf46a3dcbe59a71ca7e5372a1490cde2b4ae2387dc56f00378104d2e8'),
}
HELLASWAG = ('https://raw.githubusercontent.com/rowanz/hellaswag/master/data/hellaswag_val.jsonl', 12246618,
             '0aa3b88843990f3f10a97b9575c94d7b71fb2205240ba04ae4884d9e9c992588')
MMLU = ('https://people.eecs.berkeley.edu/~hendrycks/data.tar', None,
        'bec563ba4bac1d6aaf04141cd7d1605d7a5ca833e38f994051e818489592989b')


class RemoteFile(io.RawIOBase):
    """A file at a web address, read where it is wanted (HTTP Range): of ARC's 680 MB zip, less than 2."""

    def __init__(self, url):
        self.url, self.at, self.size = url, 0, 1
        self.size = int(self.fetch(0, 1).headers['Content-Range'].rpartition('/')[2])

    def fetch(self, start, end):
        import requests
        answer = requests.get(self.url, headers={'Range': f'bytes={start}-{end - 1}'}, timeout=60)
        answer.raise_for_status()
        if answer.status_code != 206:   # 206 is Partial Content
            raise requests.RequestException(f'HTTP {answer.status_code} in place of a part')
        return answer

    def seek(self, offset, whence=io.SEEK_SET):
        self.at = offset + (0, self.at, self.size)[whence]
        return self.at

    def readinto(self, buffer):
        end = min(self.at + len(buffer), self.size)
        if end <= self.at:
            return 0
        data = self.fetch(self.at, end).content
        buffer[:len(data)], self.at = data, self.at + len(data)
        return len(data)

    def tell(self):
        return self.at

    def seekable(self):
        return True

    readable = seekable


def unzip(url, member, sha256, path):
    """One member of a zip file on the web -> path, whole or not at all."""
    import requests
    try:
        with zipfile.ZipFile(io.BufferedReader(RemoteFile(url), 2**20)) as archive:
            data = archive.read(member)
    except (requests.RequestException, zipfile.BadZipFile, KeyError) as error:
        sys.exit(f"{path} isn't there, and {url} can't be read ({type(error).__name__}).\n"
                 f'Put {member} of that zip file there, or name a folder that has it: --data_dir=FOLDER')
    if sha256 and hashlib.sha256(data).hexdigest() != sha256:
        sys.exit(f"{member} of {url} isn't the file it was (sha256): nothing was kept")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, data)


def write_whole(path, data):
    part = path.with_name(path.name + '.part')
    part.write_bytes(data)
    os.replace(part, path)


def fetched(folder, name):
    """folder/name, fetched first if it isn't there."""
    path = pathlib.Path(folder) / name
    if path.exists():
        return path
    print(f'{path} is not there yet: fetching it')
    if name in ZIPPED:
        unzip(*ZIPPED[name], path)
    elif name == 'mmlu':
        tar, part = path.with_name('mmlu.tar'), path.with_name('mmlu.part')
        prepare_wiki.download(MMLU[0], tar, *MMLU[1:])
        shutil.rmtree(part, ignore_errors=True)
        with tarfile.open(tar) as archive:   # most of it is a training set
            for member in archive:
                if re.fullmatch(r'data/(dev|test)/\w+\.csv', member.name):
                    target = part / member.name[5:]
                    target.parent.mkdir(parents=True, exist_ok=True)
                    target.write_bytes(archive.extractfile(member).read())
        os.replace(part, path)
        tar.unlink()
    else:
        prepare_wiki.download(HELLASWAG[0], path, *HELLASWAG[1:])
    return path


# ---------------------------------------------------------------------------------------------------------
# tasks: a file's records -> items

# a context for each choice, the same one in most tasks; the right choice's index; MMLU's subject
Item = namedtuple('Item', 'contexts choices gold subject', defaults=[''])


def ask(question, choices, gold):
    return Item([question] * len(choices), choices, gold)


def examples(items):
    """Answered questions, to stand before the one that is asked."""
    return ''.join(f'{item.contexts[0]} {item.choices[item.gold]}\n\n' for item in items)


def behind(text, item, subject=''):
    return item._replace(contexts=[text + context for context in item.contexts], subject=subject)


def read(path, parse):
    """parse(record) of each line of a .jsonl file, or row of a .csv file; parse's docstring says what it takes."""
    try:
        text = pathlib.Path(path).read_bytes().decode('utf-8-sig')
    except UnicodeDecodeError as error:
        sys.exit(f'{path}, line {error.object[:error.start].count(10) + 1}: not UTF-8')
    is_csv = str(path).endswith('.csv')
    rows, items = csv.reader(io.StringIO(text, newline='')) if is_csv else text.split('\n'), []
    for number, row in enumerate(rows, 1):
        if row and (is_csv or row.strip()):
            try:
                item = parse(row if is_csv else json.loads(row))
                if not (item.choices and all(isinstance(s, str) for s in (*item.contexts, *item.choices))):
                    raise ValueError('no choices, or something that is not text')
                items.append(item)
            except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
                sys.exit(f'{path}, line {number}: {type(error).__name__}: {error}; a line is {parse.__doc__}')
    return items


def arc_item(record):
    """{"question": {"stem": ..., "choices": [{"text": ..., "label": ...}, ...]}, "answerKey": ...}"""
    stem, choices = record['question']['stem'], record['question']['choices']
    gold = [choice['label'] for choice in choices].index(record['answerKey'])
    return ask(f'Question: {stem}\nAnswer:', [choice['text'] for choice in choices], gold)


def arc(part, folder, shots):
    items = read(fetched(folder, f'arc/ARC-{part}-Test.jsonl'), arc_item)
    train = read(fetched(folder, f'arc/ARC-{part}-Train.jsonl'), arc_item) if shots else []
    draw = random.Random(1234)   # the harness's seed
    return [behind(examples(draw.sample(train, shots)), item) for item in items]


def winogrande_item(record):
    """{"sentence": with a _, "option1": ..., "option2": ..., "answer": "1" or "2"}"""
    before, after = record['sentence'].split('_', 1)   # what follows is scored: the same words after either option
    contexts = [before + record['option1'], before + record['option2']]
    return Item(contexts, [after.strip()] * 2, ['1', '2'].index(record['answer']))


def winogrande(folder, shots):
    return read(fetched(folder, 'winogrande/dev.jsonl'), winogrande_item)


def hellaswag_item(record):
    """{"activity_label": ..., "ctx_a": ..., "ctx_b": ..., "endings": [...], "label": 0 to 3}"""
    def clean(text):   # of WikiHow's marks
        return re.sub(r'\[.*?\]', '', text.strip().replace(' [title]', '. ')).replace('  ', ' ')
    context = f"{record['activity_label']}: {record['ctx_a']} {record['ctx_b'].capitalize()}"
    choices = [clean(ending) for ending in record['endings']]
    return ask(clean(context), choices, range(len(choices)).index(int(record['label'])))


def hellaswag(folder, shots):
    return read(fetched(folder, 'hellaswag/hellaswag_val.jsonl'), hellaswag_item)


def letter_item(row):
    """question,A,B,C,D,letter of the right one"""
    question, *choices, letter = row
    options = ''.join(f'{"ABCD"[i]}. {choice}\n' for i, choice in enumerate(choices))
    return ask(f'{question.strip()}\n{options}Answer:', list('ABCD'), 'ABCD'.index(letter))


def cloze_item(row):
    """question,A,B,C,D,letter of the right one"""
    return ask(f'Question: {row[0].strip()}\nAnswer:', row[1:5], 'ABCD'.index(row[5]))


def mmlu(kind, parse, folder, shots):
    items = []
    for test in sorted(fetched(folder, 'mmlu').glob('test/*_test.csv')):
        subject = test.name.removesuffix('_test.csv')
        shown = read(test.parent.parent / f'dev/{subject}_dev.csv', parse)[:shots] if shots else []
        if len(shown) < shots:
            sys.exit(f'num_fewshot={shots}: MMLU has {len(shown)} examples in {subject}; give at most that many')
        head = f"The following are {kind} (with answers) about {subject.replace('_', ' ')}.\n\n" + examples(shown)
        items += [behind(head, item, subject) for item in read(test, parse)]
    return items


def own_item(record):
    """{"question": ..., "choices": [...], "answer": the right choice, its letter, or its number from 0}, or
    {"sentence_good": ..., "sentence_bad": ...}"""
    if 'sentence_good' in record:
        return ask('', [record['sentence_good'], record['sentence_bad']], 0)
    choices, answer = record['choices'], record['answer']
    names = [choices, [chr(65 + i) for i in range(len(choices))], list(range(len(choices)))]
    gold = next((kind.index(answer) for kind in names if answer in kind), None)
    if gold is None or not all(choices):
        raise ValueError(f'answer {answer!r} is none of the choices, or one of them is empty')
    question = record['question']
    return ask(f'Question: {question}\nAnswer:' if question else '', choices, gold)


TASKS = {
    'arc_easy': functools.partial(arc, 'Easy'), 'arc_challenge': functools.partial(arc, 'Challenge'),
    'winogrande': winogrande, 'hellaswag': hellaswag,
    'mmlu': functools.partial(mmlu, 'multiple choice questions', letter_item),
    'mmlu_cloze': functools.partial(mmlu, 'questions', cloze_item),
}


def load(task, data_dir='data/eval', num_fewshot=0, limit=0):
    """The items of a task, or of one's own .jsonl file; with a limit, the first ones, of MMLU of each subject."""
    items, seen = TASKS[task](data_dir, num_fewshot) if task in TASKS else read(task, own_item), defaultdict(int)
    for item in items:
        seen[item.subject] += 1
        if not limit or seen[item.subject] <= limit:
            yield item


# ---------------------------------------------------------------------------------------------------------
# scores

def encode(encoding, context, continuation):
    """Both as token ids. The two are encoded together, since a token may cross from one to the other, and what
    the context's own tokens don't cover belongs to the continuation."""
    text = context.rstrip()
    start = encoding.encode_ordinary(text)
    whole = encoding.encode_ordinary(context + continuation)
    return (start, whole[len(start):]) if context else ([encoding.eot_token], whole)


def batches(sequences, tokens, length=len):
    """Lists of sequences of the same length and of at most this many tokens together; the longest come first."""
    for n, group in itertools.groupby(sorted(sequences, key=length, reverse=True), length):
        group, size = list(group), max(1, tokens // n)
        yield from (group[i:i + size] for i in range(0, len(group), size))


def branch(cache, rows, room):
    """These rows of a cache, as often as they are named, with room for more tokens."""
    new = LayerCache(room)
    new.append(cache.k[rows], cache.v[rows])
    return new


@torch.no_grad()
def log_probs(model, pairs, batch_tokens=4096, progress=lambda done: None):
    """log p(continuation | context) in nats of each pair of token lists.
    A context is read once whatever follows it, together with others of its length; its last state predicts the
    first token of each continuation, and its keys and values are there for the rest: nothing is padding."""
    longest, device = model.config.block_size, model.norm.weight.device
    followers = defaultdict(list)   # of each distinct context: the pair's number, the continuation
    for i, (context, continuation) in enumerate(pairs):
        ids = (*context, *continuation)[-longest - 1:]   # the last one is only predicted
        followers[ids[:-len(continuation)]].append((i, ids[-len(continuation):]))
    total = sum(len(context) + sum(len(ids) for _, ids in after) for context, after in followers.items())
    scores, done = np.zeros(len(pairs)), 0
    model.tokens.freeze()
    for contexts in batches(followers, batch_tokens):
        caches = [LayerCache(len(contexts[0])) for _ in model.blocks]
        last = model.hidden(torch.tensor(contexts, device=device), caches)[:, -1:]   # (B, 1, C)
        ends = [(row, i, ids) for row, context in enumerate(contexts) for i, ids in followers[context]]
        for part in batches(ends, batch_tokens, lambda end: len(contexts[0]) + len(end[2])):
            rows, which, ids = zip(*part)
            targets = torch.tensor(ids, device=device)                           # (B, T)
            h = last[list(rows)]
            if targets.size(1) > 1:
                longer = [branch(cache, list(rows), len(contexts[0]) + targets.size(1)) for cache in caches]
                h = torch.cat((h, model.hidden(targets[:, :-1], longer)), dim=1)     # (B, T, C)
            nll = model.tokens.nll(h, targets).sum(-1)                           # (B, T)
            scores[list(which)] = -nll.cpu().double().sum(1).numpy()
            done += targets.numel()
        done += sum(map(len, contexts))
        progress(done / total)
    return scores


def evaluate(model, encoding, items, batch_tokens=4096, progress=lambda done: None):
    """The metrics of these items, and of each its choices' log-probabilities."""
    pairs = [encode(encoding, context, ' ' + choice) for item in items
             for context, choice in zip(item.contexts, item.choices)]
    longest = max((continuation for _, continuation in pairs), key=len)
    if len(longest) > model.config.block_size:
        sys.exit(f'a choice of {len(longest)} tokens: this model reads {model.config.block_size}: '
                 f'{encoding.decode_bytes(longest)[:60]!r}...')
    scores = iter(log_probs(model, pairs, batch_tokens, progress).tolist())
    scores = [[next(scores) for _ in item.choices] for item in items]
    return metrics(items, scores), scores


def metrics(items, scores):
    """acc: how often the likeliest choice is the right one; acc_norm: the likeliest per character; acc_bytes: per
    byte. Each with its standard error (_se) and its distance from chance in standard errors (_z)."""
    lengths = dict(acc=lambda choice: 1, acc_norm=len, acc_bytes=lambda choice: len(choice.encode()))
    chance = np.mean([1 / len(item.choices) for item in items])
    result = dict(n=len(items), chance=chance, log_prob=np.mean([s[item.gold] for item, s in zip(items, scores)]))
    for name, length in lengths.items():
        right = np.array([np.argmax(np.divide(s, [length(choice) for choice in item.choices])) == item.gold
                          for item, s in zip(items, scores)], dtype=float)
        error = right.std(ddof=1) / math.sqrt(len(right)) if len(right) > 1 else math.nan
        result |= {name: right.mean(), f'{name}_se': error, f'{name}_z': (right.mean() - chance) / (error or math.nan)}
    return {name: float(value) if name != 'n' else value for name, value in result.items()}


# ---------------------------------------------------------------------------------------------------------
# tables

PUBLISHED = {   # zero-shot, acc/acc_norm in %
    'GPT-2 124M ¹': dict(arc_easy='43.81/39.48', arc_challenge='19.03/22.70', hellaswag='28.92/31.14',
                         winogrande='51.62', mmlu_cloze='25.57/27.21 ²'),
    'Pythia-70M ³': dict(arc_easy='37.37/35.02', arc_challenge='18.09/22.10', winogrande='52.80', mmlu='25.29 ⁴'),
    'Pythia-160M ³': dict(arc_easy='43.52/39.65', arc_challenge='18.77/23.29', hellaswag='28.38/30.14 ¹',
                          winogrande='53.12', mmlu='24.40 ⁴'),
    'OPT-125M ³': dict(arc_easy='43.52/39.98', arc_challenge='18.94/22.78', winogrande='50.28', mmlu='25.29 ⁴'),
    'SmolLM2-135M ⁵': dict(arc_easy='43.9 (mean of both)', arc_challenge='43.9 (mean of both)', hellaswag='42.1',
                           winogrande='51.3', mmlu_cloze='31.5'),
}
SOURCES = """Published: zero-shot, acc/acc_norm in %. ¹ Vermeille/lm-evaluation-harness-cfg, plots/gpt2.py and pythia.py.
² llm.c, dev/data/mmlu.py: another prompt, and acc_norm per token. ³ EleutherAI/pythia, evals/pythia-v1 and evals/opt.
⁴ the harness's older prompt, mean of the subjects. ⁵ its model card: lighteval, other prompts."""


def row(*cells):
    return f'| {" | ".join(map(str, cells))} |'


def head(*cells):
    return f'{row(*cells)}\n|---{"|---:" * (len(cells) - 1)}|'


def percent(result, name):
    return f'{100 * result[name]:.2f} ± {100 * result[name + "_se"]:.2f}'


def differs(z):
    """At 5 %, two-sided, of a normal distribution."""
    return f'{"yes" if abs(z) > 1.96 else "no"} ({z:+.1f})'


def tables(run, results, first=''):
    """Markdown: MMLU's subjects, our scores, and beside them the published ones. results {task: metrics}"""
    for task, result in results.items():
        if result['subjects']:
            yield head(f'{task}{first}', 'n', 'acc, % ± standard error', 'acc_norm')
            yield from (row(subject.replace('_', ' '), of['n'], percent(of, 'acc'), percent(of, 'acc_norm'))
                        for subject, of in result['subjects'].items())
            yield row('all (micro average)', result['n'], percent(result, 'acc'), percent(result, 'acc_norm')) + '\n'
    yield head(f'{run}{first}', 'shots', 'n', 'acc, % ± standard error', 'acc_norm', 'acc_bytes', 'chance',
               'acc differs from chance (standard errors)', 'acc_norm differs', 'log p(right answer), nats')
    for task, r in results.items():
        yield row(task, r['shots'], r['n'], *(percent(r, name) for name in ('acc', 'acc_norm', 'acc_bytes')),
                  f'{100 * r["chance"]:.2f}', differs(r['acc_z']), differs(r['acc_norm_z']), f'{r["log_prob"]:.3f}')
    if columns := [task for task in results if task in TASKS]:
        yield '\n' + head('acc/acc_norm, %', *columns)
        yield row(f'{run}{first}', *(f'{100 * results[task]["acc"]:.2f}' + (
            '' if task in ('winogrande', 'mmlu') else f'/{100 * results[task]["acc_norm"]:.2f}') for task in columns))
        yield from (row(model, *(scores.get(task, '–') for task in columns)) for model, scores in PUBLISHED.items())
        yield '\n' + SOURCES


# ---------------------------------------------------------------------------------------------------------

if __name__ == '__main__':
    from configurator import load_checkpoint, pick_device
    names = [file] if file else tasks.split(',')
    for name in names:
        if not file and name not in TASKS:
            sys.exit(f'tasks={name}: not one of {", ".join(TASKS)}')
    device, autocast, machine = pick_device(device, dtype)
    folder = pathlib.Path(out_dir)
    checkpoint = load_checkpoint(next((f for f in (folder / 'best.pt', folder / 'ckpt.pt') if f.exists()),
                                      folder / 'best.pt'))
    encoding = prepare_wiki.make_tokenizer(checkpoint['settings']['tokenizer'], folder)
    model = GPT(Config(**checkpoint['config'])).eval()
    model.load_state_dict(checkpoint['model'])
    model.to(device)
    print(machine)
    everything = {name: list(load(name, data_dir, num_fewshot, limit)) for name in names}   # before hours of work
    results = {}
    for name, items in everything.items():
        task = pathlib.Path(name).stem
        if not items:
            sys.exit(f'{name}: there is no question in it')
        progress = prepare_wiki.Progress(task)
        with autocast:
            result, scores = evaluate(model, encoding, items, batch_tokens, progress)
        progress.end(f'{len(items)} items, acc {percent(result, "acc")} %, chance {100 * result["chance"]:.2f} %')
        subjects = dict.fromkeys(item.subject for item in items if item.subject)
        result['subjects'] = {subject: metrics(*zip(*(
            pair for pair in zip(items, scores) if pair[0].subject == subject))) for subject in subjects}
        result['shots'] = num_fewshot if name.startswith(('arc', 'mmlu')) and not file else 0
        results[task] = result
        write_whole(folder / f'mc_{task}.json', json.dumps(dict(
            task=name, run=out_dir, step=checkpoint['iter'], limit=limit, **result,
            items=[dict(gold=item.gold, log_probs=score) for item, score in zip(items, scores)])).encode())
    first = f', first {limit} of each {"subject and task" if any(map("mmlu".__eq__, names)) else "task"}' if limit else ''
    print('', *tables(out_dir, results, first), sep='\n')
    print(f'\nevery log-probability: {folder}/mc_<task>.json', file=sys.stderr)
