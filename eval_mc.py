"""
Multiple choice by summed log-probabilities: ARC, Winogrande, HellaSwag, MMLU, or one's own questions.

    python eval_mc.py --out_dir=out/quick                       # every item of every task, fetched on first use
    python eval_mc.py --tasks=arc_easy,hellaswag --limit=500    # sooner, and less sure
    python eval_mc.py --file=my.jsonl                           # one's own; own_item() below says what a line is

The choice that the model finds likeliest is its answer. Prompts, token boundaries, truncation and metrics are
those of EleutherAI's lm-evaluation-harness 0.4.13 (tests/compare_harness.py compares the two item by item), so
scores compare with published ones. Writes out_dir/mc_<task>.json: metrics, and every choice's log-probability.
"""
out_dir = 'out/quick'     # the run's folder: best.pt, else ckpt.pt, and the tokenizer
tasks = 'arc_easy,arc_challenge,winogrande,hellaswag,mmlu,mmlu_cloze'   # mmlu by letter, mmlu_cloze in words
file = ''                 # one's own questions instead, a .jsonl file
num_fewshot = 0           # answered examples before each question of ARC and MMLU
limit = 0                 # only the first this many items of each task, of MMLU of each subject; 0 for all
data_dir = 'data/eval'    # arc/*.jsonl, winogrande/dev.jsonl, hellaswag/*.jsonl, mmlu/{dev,test}/*.csv
batch_tokens = 4096       # read at once; fewer need less memory
device = 'auto'           # cuda, mps or cpu; auto takes the first of them that is there
dtype = 'auto'            # bfloat16 where the hardware computes in it; float32 for the harness's very numbers

from configurator import Progress, configure, load_run, pick_device
if __name__ == '__main__':
    configure(globals(), one_of=dict(dtype='auto bfloat16 float32'),
              at_least={0: 'num_fewshot limit', 1: 'batch_tokens'})

import collections
import csv
import hashlib
import io
import itertools
import json
import os
import pathlib
import random
import re
import sys
import tarfile
import zipfile

import numpy as np
import requests
import torch
from torch.nn.utils.rnn import pad_sequence

from download import RemoteFile, download, write_whole
from model import LayerCache

# ---------------------------------------------------------------------------------------------------------
# files: where they come from, and what they must be (sha256)

ARC = 'https://ai2-public-datasets.s3.amazonaws.com/arc/ARC-V1-Feb2018.zip'
WINOGRANDE = 'https://storage.googleapis.com/ai2-mosaic/public/winogrande/winogrande_1.1.zip'
ZIPPED = {   # name: zip file, folder in it, sha256; the Trains, for examples, are checked by the zip's CRC alone
    'ARC-Easy-Test.jsonl': (ARC, 'ARC-V1-Feb2018-2/ARC-Easy',
                            'ce32a0774b4beb1977d2c6b16dda5dd2b24fdc9c7f506882c452678676bd09be'),
    'ARC-Challenge-Test.jsonl': (ARC, 'ARC-V1-Feb2018-2/ARC-Challenge',
                                 '9fa8ffb3e3a1f88cb302d53dd95aae81e39209ad9bcf974376b319d8fd35717c'),
    'ARC-Easy-Train.jsonl': (ARC, 'ARC-V1-Feb2018-2/ARC-Easy', None),
    'ARC-Challenge-Train.jsonl': (ARC, 'ARC-V1-Feb2018-2/ARC-Challenge', None),
    'dev.jsonl': (WINOGRANDE, 'winogrande_1.1',
                  '1aeac79cf46a3dcbe59a71ca7e5372a1490cde2b4ae2387dc56f00378104d2e8')}
WHOLE = {
    'hellaswag_val.jsonl': ('https://raw.githubusercontent.com/rowanz/hellaswag/master/data/hellaswag_val.jsonl',
                            '0aa3b88843990f3f10a97b9575c94d7b71fb2205240ba04ae4884d9e9c992588'),
    'mmlu': ('https://people.eecs.berkeley.edu/~hendrycks/data.tar',
             'bec563ba4bac1d6aaf04141cd7d1605d7a5ca833e38f994051e818489592989b')}


def fetched(path):
    """path, fetched first if it isn't there, whole or not at all."""
    if path.exists():
        return path
    print(f'{path} is not there yet: fetching it')
    if path.name in ZIPPED:
        url, folder, sha256 = ZIPPED[path.name]
        try:
            with zipfile.ZipFile(io.BufferedReader(RemoteFile(url), 2**20)) as archive:
                data = archive.read(f'{folder}/{path.name}')
        except (requests.RequestException, zipfile.BadZipFile, KeyError) as error:
            sys.exit(f"{url} can't be read ({type(error).__name__}).\nPut its {folder}/{path.name} at {path}, "
                     'or name a folder that has it: --data_dir=FOLDER')
        if sha256 and hashlib.sha256(data).hexdigest() != sha256:
            sys.exit(f'{url}: {folder}/{path.name} is not what it was (sha256); nothing was kept')
        write_whole(path, data)
        return path
    url, sha256 = WHOLE[path.name]
    if path.name != 'mmlu':
        download(url, path, sha256=sha256)
    else:
        tar, part = path.with_name('mmlu.tar'), path.with_name('mmlu.part')
        download(url, tar, sha256=sha256)
        with tarfile.open(tar) as archive:   # most of it is a training set
            wanted = [member for member in archive if member.name.startswith(('data/dev/', 'data/test/'))]
            archive.extractall(part, wanted, filter='data')
        os.replace(part / 'data', path)
        part.rmdir()
        for rest in path.parent.glob('mmlu.tar*'):
            rest.unlink()
    return path


# ---------------------------------------------------------------------------------------------------------
# tasks: (folder, num_fewshot) -> items

# contexts: one for each choice, in most tasks the same; gold: the right choice's index; group: MMLU's subject
Item = collections.namedtuple('Item', 'contexts choices gold group')


def question(context, choices, gold, group=''):
    return Item([context] * len(choices), choices, gold, group)


def examples(items):
    return ''.join(f'{item.contexts[0]} {item.choices[item.gold]}\n\n' for item in items)


def read(path, parse):
    """The items that parse() makes of the records of a .jsonl file or the rows of a .csv file."""
    try:
        text = path.read_bytes().decode('utf-8-sig')   # Windows' editors sign UTF-8
    except UnicodeDecodeError as error:
        sys.exit(f'{path}, line {error.object[:error.start].count(10) + 1}: not UTF-8')
    is_csv, items = path.suffix == '.csv', []
    for number, row in enumerate(csv.reader(io.StringIO(text, newline='')) if is_csv else text.split('\n'), 1):
        try:
            if ''.join(row).strip():
                items.append(parse(row if is_csv else json.loads(row)))
                if not all(isinstance(text, str) for text in (*items[-1].contexts, *items[-1].choices)):
                    raise TypeError('question and choices must be texts')
        except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
            sys.exit(f'{path}, line {number}: {type(error).__name__}: {error}; a line is {parse.__doc__}')
    return items


def arc_item(record):
    """{"question": {"stem": ..., "choices": [{"text": ..., "label": ...}, ...]}, "answerKey": a label}"""
    choices = record['question']['choices']
    gold = [choice['label'] for choice in choices].index(record['answerKey'])
    return question(f"Question: {record['question']['stem']}\nAnswer:", [c['text'] for c in choices], gold)


def enough(items, shots, what):
    if len(items) < shots:
        sys.exit(f'num_fewshot={shots}: {what} has {len(items)} examples; give at most that many')


def arc(part, folder, shots):
    train = read(fetched(folder / f'arc/ARC-{part}-Train.jsonl'), arc_item) if shots else []
    enough(train, shots, f'ARC-{part}')
    draw = random.Random(1234)   # the harness's seed: each item has examples of its own
    for item in read(fetched(folder / f'arc/ARC-{part}-Test.jsonl'), arc_item):
        yield question(examples(draw.sample(train, shots)) + item.contexts[0], item.choices, item.gold)


def winogrande_item(record):
    """{"sentence": text with a _, "option1": ..., "option2": ..., "answer": "1" or "2"}"""
    before, after = record['sentence'].split('_', 1)   # what follows is scored, the same words after either option
    return Item([before + record['option1'], before + record['option2']], [after.strip()] * 2,
                ['1', '2'].index(record['answer']), '')


def hellaswag_item(record):
    """{"activity_label": ..., "ctx_a": ..., "ctx_b": ..., "endings": [...], "label": 0 to 3}"""
    def clean(text):   # of WikiHow's marks
        return re.sub(r'\[.*?\]', '', text.strip().replace(' [title]', '. ')).replace('  ', ' ')
    context = clean(f"{record['activity_label']}: {record['ctx_a']} {record['ctx_b'].capitalize()}")
    choices = [clean(ending) for ending in record['endings']]
    return question(context, choices, range(len(choices)).index(int(record['label'])))


def letter_item(row):
    """question,A,B,C,D,letter"""
    text, a, b, c, d, letter = row
    return question(f'{text.strip()}\nA. {a}\nB. {b}\nC. {c}\nD. {d}\nAnswer:', list('ABCD'), 'ABCD'.index(letter))


def cloze_item(row):
    """question,A,B,C,D,letter"""
    text, *choices, letter = row
    return question(f'Question: {text.strip()}\nAnswer:', choices, 'ABCD'.index(letter))


def mmlu(parse, kind, folder, shots):
    for test in sorted(fetched(folder / 'mmlu').glob('test/*_test.csv')):
        subject = test.name.removesuffix('_test.csv').replace('_', ' ')
        shown = read(folder / f"mmlu/dev/{test.name.replace('_test', '_dev')}", parse)[:shots] if shots else []
        enough(shown, shots, f'MMLU on {subject}')
        head = f'The following are {kind} (with answers) about {subject}.\n\n{examples(shown)}'
        for item in read(test, parse):
            yield question(head + item.contexts[0], item.choices, item.gold, subject)


def own_item(record):
    """{"question": ..., "choices": [...], "answer": the right choice, or its letter, or its number from 0}, or
    {"sentence_good": ..., "sentence_bad": ...}, as BLiMP has them"""
    if 'sentence_good' in record:
        return question('', [record['sentence_good'], record['sentence_bad']], 0)
    choices, answer, asked = record['choices'], record['answer'], record['question']
    names = [*choices, *map(chr, range(65, 65 + len(choices))), *range(len(choices))]
    if not isinstance(choices, list) or len(choices) < 2 or '' in choices or isinstance(answer, bool):
        raise ValueError('choices must be a list of two or more, none of them empty')
    return question(asked and 'Question: ' + asked + '\nAnswer:', choices, names.index(answer) % len(choices))


TASKS = {
    'arc_easy': lambda *where: arc('Easy', *where), 'arc_challenge': lambda *where: arc('Challenge', *where),
    'winogrande': lambda folder, shots: read(fetched(folder / 'winogrande/dev.jsonl'), winogrande_item),
    'hellaswag': lambda folder, shots: read(fetched(folder / 'hellaswag/hellaswag_val.jsonl'), hellaswag_item),
    'mmlu': lambda *where: mmlu(letter_item, 'multiple choice questions', *where),
    'mmlu_cloze': lambda *where: mmlu(cloze_item, 'questions', *where)}


def load(task, data_dir='data/eval', num_fewshot=0, limit=0):
    """The items of a task, or of one's own .jsonl file; with a limit the first ones, of MMLU of each subject."""
    path = pathlib.Path(data_dir)
    if task not in TASKS and not pathlib.Path(task).is_file():
        sys.exit(f'{task}: no such file, and the tasks are {",".join(TASKS)}')
    items = list(TASKS[task](path, num_fewshot) if task in TASKS else read(pathlib.Path(task), own_item))
    if not items:
        sys.exit(f'{task}: there is no question in {path if task in TASKS else "it"}')
    groups = itertools.groupby(items, lambda item: item.group)
    return [item for _, group in groups for item in itertools.islice(group, limit or None)]


# ---------------------------------------------------------------------------------------------------------
# scores

LEAST = 128   # tokens: a smaller matrix product hardly takes less time


def encode(encoding, context, continuation):
    """Both as token ids. They are encoded together, since a token may cross from one to the other; what the
    context without its last spaces doesn't cover is the continuation's."""
    start = encoding.encode_ordinary(context.rstrip())
    whole = encoding.encode_ordinary(context + continuation)
    return start or [encoding.eot_token], whole[len(start):]


def batches(sequences, tokens, length=len, least=1):
    """Lists of sequences of the same length, the longest first, of at most so many tokens; a list of fewer than
    `least` tokens goes on with shorter sequences."""
    batch = []
    for sequence in sorted(sequences, key=length, reverse=True):
        n, size = length(batch[0]) if batch else 0, len(batch)
        if batch and ((size + 1) * n > tokens or length(sequence) < n and size * n >= least):
            yield batch
            batch = []
        batch.append(sequence)
    if batch:
        yield batch


def branch(cache, rows, room):
    """These rows of a cache, each as often as it is named, with room for more tokens."""
    new = LayerCache(room)
    new.append(cache.k[rows], cache.v[rows])
    return new


@torch.no_grad()
def log_probs(model, pairs, batch_tokens=4096, progress=lambda done: None):
    """log p(continuation | context), in nats, of each pair of lists of token ids.
    A context is read once, whatever may follow it, together with others of its length. Its last state predicts the
    first token of each continuation; its keys and values are there for the rest. Padding stands only in batches that
    would be tiny without, at an end where nothing sees it: after a continuation, or after a context that is followed
    by single tokens. It is never scored."""
    most, device, followers = model.config.block_size, model.norm.weight.device, collections.defaultdict(list)
    for i, (context, continuation) in enumerate(pairs):
        ids = (*context, *continuation)[-most - 1:]   # the last one is predicted, not read
        followers[ids[:-len(continuation)]].append((i, ids[-len(continuation):]))
    total = sum(len(context) + sum(len(ids) for _, ids in ends) for context, ends in followers.items())
    scores, done = np.zeros(len(pairs)), 0
    model.tokens.freeze()
    single = {context for context, ends in followers.items() if all(len(ids) == 1 for _, ids in ends)}
    alike = batches(followers.keys() - single, batch_tokens)   # the others may be padded, and differ little in length
    for contexts in (*alike, *batches(single, batch_tokens, least=4 * LEAST)):
        lengths = torch.tensor([len(context) for context in contexts])
        P = len(contexts[0])
        caches = [] if contexts[0] in single else [LayerCache(P) for _ in model.blocks]
        idx = pad_sequence([torch.tensor(context) for context in contexts], batch_first=True)
        last = model.hidden(idx.to(device), caches)[range(len(contexts)), lengths - 1, None]   # (B, P) -> (B, 1, C)
        ends = [(row, i, torch.tensor(ids)) for row, of in enumerate(contexts) for i, ids in followers[of]]
        done += lengths.sum().item()
        for part in batches(ends, batch_tokens, lambda end: len(end[2]), LEAST):
            rows, numbers, ids = map(list, zip(*part))
            idx = pad_sequence(ids, batch_first=True, padding_value=-1).to(device)       # (R, T)
            real, h = idx >= 0, last[rows]                                               # (R, T), (R, 1, C)
            if idx.size(1) > 1:
                longer = [branch(cache, rows, P + idx.size(1) - 1) for cache in caches]
                h = torch.cat((h, model.hidden(idx[:, :-1].clamp(min=0), longer)), 1)    # (R, T, C)
            nll = model.tokens.nll(h[real][None], idx[real][None])[0].sum(-1)            # (tokens)
            owners = np.repeat(numbers, [len(of) for of in ids])
            np.subtract.at(scores, owners, nll.cpu().double().numpy())
            done += len(owners)
            progress(done / total)
    return scores


def evaluate(model, encoding, items, batch_tokens=4096, progress=lambda done: None):
    """The metrics of items (load() has them), and each item's log-probabilities. The model must be in eval()."""
    pairs = [encode(encoding, context, ' ' + choice) for item in items
             for context, choice in zip(item.contexts, item.choices)]
    for _, continuation in pairs:
        if not 0 < len(continuation) <= model.config.block_size:
            text = encoding.decode_bytes(continuation[:20]).decode(errors='replace')
            sys.exit(f'{text!r}...: a choice of {len(continuation)} tokens; '
                     f'this model reads 1 to {model.config.block_size}')
    scores = iter(log_probs(model, pairs, batch_tokens, progress).tolist())
    scores = [list(itertools.islice(scores, len(item.choices))) for item in items]
    return metrics(items, scores), scores


def metrics(items, scores):
    """acc, how often the likeliest choice is the right one; acc_norm, the likeliest per character; acc_bytes, per
    byte; each with its standard error (_se), and its distance from chance in standard errors of chance (_z)."""
    n, p = len(items), np.array([1 / len(item.choices) for item in items])
    right = np.mean([score[item.gold] for item, score in zip(items, scores)])
    result = dict(n=n, chance=float(p.mean()), log_prob=float(right))
    for name, size in dict(acc=lambda choice: 1, acc_norm=len, acc_bytes=lambda text: len(text.encode())).items():
        hits = np.array([np.argmax(np.divide(score, [*map(size, item.choices)])) == item.gold
                         for item, score in zip(items, scores)], dtype=float)
        error = hits.std(ddof=1) / n**0.5 if n > 1 else np.nan
        z = (hits - p).sum() / (p * (1 - p)).sum()**0.5
        result |= {name: float(hits.mean()), f'{name}_se': float(error), f'{name}_z': float(z)}
    return result


# ---------------------------------------------------------------------------------------------------------
# tables

PUBLISHED = """
| acc/acc_norm, % | arc_easy | arc_challenge | winogrande | hellaswag | mmlu | mmlu_cloze |
|---|---:|---:|---:|---:|---:|---:|
| {} |
| GPT-2 124M ¹ | 43.81/39.48 | 19.03/22.70 | 51.62 | 28.92/31.14 | – | 25.57/27.21 ² |
| Pythia-70M ³ | 37.37/35.02 | 18.09/22.10 | 52.80 | – | 25.29 ⁴ | – |
| Pythia-160M ³ | 43.52/39.65 | 18.77/23.29 | 53.12 | 28.38/30.14 ¹ | 24.40 ⁴ | – |
| OPT-125M ³ | 43.52/39.98 | 18.94/22.78 | 50.28 | – | 25.29 ⁴ | – |
| SmolLM2-135M ⁵ | 43.9, mean of both | | 51.3 | 42.1 | – | 31.5 |

Published, zero-shot: ¹ Vermeille/lm-evaluation-harness-cfg, plots/gpt2.py and pythia.py; ² llm.c, dev/data/mmlu.py,
another prompt, acc_norm per token; ³ EleutherAI/pythia, evals/pythia-v1 and evals/opt; ⁴ the harness's older prompt,
mean of the subjects; ⁵ its model card, by lighteval, other prompts."""


def table(title, results):
    """Markdown, a line for each of {name: metrics}; a bracket holds the distance from chance."""
    yield (f'| {title} | shots | n | chance, % | acc, % ± standard error | acc_norm | acc_bytes | '
           'log p(right), nats |')
    yield '|---' + '|---:' * 7 + '|'
    for name, r in results.items():
        cells = [f'| {name}', str(r['shots']), str(r['n']), f"{100 * r['chance']:.2f}"]
        for key in ('acc', 'acc_norm', 'acc_bytes'):
            z = f'{r[key + "_z"]:+.1f}' + ', as chance' * (abs(r[key + '_z']) < 1.96)
            cells.append(f"{100 * r[key]:.2f} ± {100 * r[key + '_se']:.2f} ({z})")
        yield ' | '.join([*cells, f"{r['log_prob']:.3f} |"])
    yield '\nIn brackets: standard errors from chance; as chance: luck would do (5 %, two-sided).\n'


def report(title, results):
    for task, result in results.items():
        if result['groups']:
            yield from table(f'{title}: {task}', result['groups'])
    yield from table(title, results)
    if results.keys() & TASKS.keys():
        ours = {task: f"{100 * r['acc']:.2f}" + f"/{100 * r['acc_norm']:.2f}" * (task not in ('winogrande', 'mmlu'))
                for task, r in results.items()}   # those two have choices of one length
        yield PUBLISHED.format(' | '.join([title, *(ours.get(task, '–') for task in TASKS)])).strip()


# ---------------------------------------------------------------------------------------------------------

if __name__ == '__main__':
    names = [file] if file else tasks.split(',')
    loaded = {name: load(name, data_dir, num_fewshot, limit) for name in names}   # all of them before the work
    device, autocast, machine = pick_device(device, dtype)
    folder = pathlib.Path(out_dir)
    model, encoding, checkpoint = load_run(out_dir, device)
    print(machine)
    with autocast:
        if torch.is_autocast_enabled(device.type):
            model.matrices_to_bfloat16()
    results = {}
    for name, items in loaded.items():
        task = pathlib.Path(name).stem + '_own' * bool(file)   # a file may be called arc_easy.jsonl
        progress = Progress(task)
        with autocast:
            result, scores = evaluate(model, encoding, items, batch_tokens, progress)
        progress.end(f'{len(items):,} items')
        shots = num_fewshot if name.startswith(('arc', 'mmlu')) and not file else 0
        by_group = itertools.groupby(zip(items, scores), lambda pair: pair[0].group)
        results[task] = result | dict(shots=shots, groups={
            group: metrics(*zip(*of)) | dict(shots=shots) for group, of in by_group if group})
        write_whole(folder / f'mc_{task}.json', json.dumps(dict(
            task=name, run=out_dir, step=checkpoint['iter'], limit=limit, **results[task],
            items=[dict(gold=item.gold, log_probs=score) for item, score in zip(items, scores)])).encode())
    first = f', first {limit} of each task' + ', of MMLU of each subject' * any('mmlu' in name for name in names)
    title = out_dir + first * (limit > 0) + f', {num_fewshot}-shot ARC and MMLU' * (num_fewshot > 0)
    print('', *report(title, results), sep='\n')
