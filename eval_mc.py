"""
Multiple choice by summed log-probabilities: BLiMP, ARC, Winogrande, HellaSwag, MMLU, or one's own questions.

    python eval_mc.py --out_dir=out/quick            # every item of every task, fetched on first use
    python eval_mc.py --tasks=blimp --limit=100      # sooner, and less sure
    python eval_mc.py --file=my.jsonl                # one's own; own_item() below says what a line is

The choice that the model finds likeliest is its answer. Prompts, token boundaries, truncation and metrics are
those of EleutherAI's lm-evaluation-harness 0.4.13 (tests/compare_harness.py compares the two item by item), so
scores compare with published ones. Writes out_dir/mc_<task>.json: metrics, and every choice's log-probability.

Ties are the one difference. The harness takes the first of equal scores, which is always the right one in BLiMP,
where the good sentence stands first. Here, in every task, an answer is right only if it scores higher than every
other. Ties are counted: the harness's accuracy lies between ours and ours with all ties added.
"""
out_dir = 'out/quick'     # the run's folder: best.pt, else ckpt.pt, and the tokenizer
tasks = 'blimp,arc_easy,arc_challenge,winogrande,hellaswag,mmlu,mmlu_cloze'   # mmlu by letter, mmlu_cloze in words
file = ''                 # one's own questions instead, a .jsonl file
num_fewshot = 0           # answered examples before each question of ARC and MMLU
limit = 0                 # the first this many items of each file (MMLU: subject, BLiMP: paradigm); 0 for all
data_dir = 'data/eval'    # arc/*.jsonl, hellaswag/*.jsonl, winogrande/dev.jsonl, mmlu/{dev,test}/*.csv, blimp/*.jsonl
batch_tokens = 4096       # read at once; fewer need less memory
device = 'auto'           # cuda, mps or cpu; auto takes the first of them that is there
dtype = 'auto'            # bfloat16 where the hardware computes in it; float32 for the harness's very numbers

from configurator import Progress, configure
if __name__ == '__main__':
    configure(globals(), one_of=dict(dtype='auto bfloat16 float32'),
              at_least={0: 'num_fewshot limit', 1: 'batch_tokens'})

import csv
import hashlib
import io
import json
import os
import pathlib
import random
import re
import statistics
import sys
import tarfile
import tempfile
import zipfile
from collections import defaultdict, namedtuple
from functools import partial

import torch
from torch.nn.utils.rnn import pad_sequence

from download import RemoteFile, download, write_whole
from model import LayerCache
from run import load_run, pick_device

# ---------------------------------------------------------------------------------------------------------
# files: where they come from, and what they must be (sha256)

ARC = 'https://ai2-public-datasets.s3.amazonaws.com/arc/ARC-V1-Feb2018.zip'
WINOGRANDE = 'https://storage.googleapis.com/ai2-mosaic/public/winogrande/winogrande_1.1.zip'
GITHUB = 'https://raw.githubusercontent.com'
SOURCES = {   # name: address, folder in that archive, sha256; ARC's Trains are checked by the zip's CRC alone
    'ARC-Easy-Test.jsonl': (ARC, 'ARC-V1-Feb2018-2/ARC-Easy',
                            'ce32a0774b4beb1977d2c6b16dda5dd2b24fdc9c7f506882c452678676bd09be'),
    'ARC-Challenge-Test.jsonl': (ARC, 'ARC-V1-Feb2018-2/ARC-Challenge',
                                 '9fa8ffb3e3a1f88cb302d53dd95aae81e39209ad9bcf974376b319d8fd35717c'),
    'ARC-Easy-Train.jsonl': (ARC, 'ARC-V1-Feb2018-2/ARC-Easy', None),
    'ARC-Challenge-Train.jsonl': (ARC, 'ARC-V1-Feb2018-2/ARC-Challenge', None),
    'dev.jsonl': (WINOGRANDE, 'winogrande_1.1', '1aeac79cf46a3dcbe59a71ca7e5372a1490cde2b4ae2387dc56f00378104d2e8'),
    'hellaswag_val.jsonl': (f'{GITHUB}/rowanz/hellaswag/master/data/hellaswag_val.jsonl', None,
                            '0aa3b88843990f3f10a97b9575c94d7b71fb2205240ba04ae4884d9e9c992588'),
    'mmlu': ('https://people.eecs.berkeley.edu/~hendrycks/data.tar', 'data',
             'bec563ba4bac1d6aaf04141cd7d1605d7a5ca833e38f994051e818489592989b'),
    'blimp': (f'{GITHUB}/alexwarstadt/blimp/3e56b06/BLiMP.zip', 'data',
              '172a1a714d72e72a89e8384dd531483f3d0f8a9aee3d33dccaf7992d8cecbb73')}


def fetched(path):
    """path, fetched first if it isn't there, whole or not at all."""
    if path.exists():
        return path
    print(f'{path} is not there yet: fetching it')
    url, folder, sha256 = SOURCES[path.name]
    if not folder:
        download(url, path, sha256=sha256)
    elif path.suffix:
        write_whole(path, member_of(url, f'{folder}/{path.name}', sha256, path))
    else:
        archive = path.with_suffix(pathlib.Path(url).suffix)
        download(url, archive, sha256=sha256)
        unpack(archive, path)
        for rest in archive.parent.glob(f'{archive.name}*'):
            rest.unlink()
    return path


def member_of(url, member, sha256, path):
    """One file of a large zip, read without the rest."""
    try:
        with zipfile.ZipFile(io.BufferedReader(RemoteFile(url), 2**20)) as archive:
            data = archive.read(member)
    except (OSError, zipfile.BadZipFile, KeyError) as error:
        sys.exit(f"{url} can't be read ({type(error).__name__}).\nPut its {member} at {path}, "
                 'or name a folder that has it: --data_dir=FOLDER')
    if sha256 and hashlib.sha256(data).hexdigest() != sha256:
        sys.exit(f'{url}: {member} is not what it was (sha256); nothing was kept')
    return data


def unpack(archive, path):
    """What the tasks need of an archive's folder data/, as path. Most of MMLU's is a training set."""
    needed = re.compile(r'data/((dev|test)/\w+\.csv|\w+\.jsonl)')
    with tempfile.TemporaryDirectory(dir=path.parent) as part:
        if archive.suffix == '.zip':
            with zipfile.ZipFile(archive) as opened:
                opened.extractall(part, filter(needed.fullmatch, opened.namelist()))
        else:
            with tarfile.open(archive) as opened:
                members = [member for member in opened if needed.fullmatch(member.name)]
                opened.extractall(part, members, filter='data')
        os.replace(f'{part}/data', path)


# ---------------------------------------------------------------------------------------------------------
# items

# contexts: one for each choice, in most tasks the same; right: the right choice's number, from 0;
# group: MMLU's subject, BLiMP's phenomenon
Item = namedtuple('Item', 'contexts choices right group')


def make_item(contexts, choices, right, group=''):
    """Every item is made and checked here: a wrong one would be scored without a word. One context may serve all."""
    if type(choices) is not list or len(choices) < 2:
        raise ValueError('the choices must be a list of two or more')
    if type(contexts) is str:
        contexts = [contexts] * len(choices)
    for text in [*contexts, *choices, group]:
        if type(text) is not str:
            raise ValueError(f'{text!r:.40} is not a text')
        text.encode()   # half of a surrogate pair is an error now, not after all scoring
    if not all(choice.strip() for choice in choices):
        raise ValueError(f'a choice is empty: {choices!r:.80}')
    if type(right) is not int or not 0 <= right < len(choices):
        raise ValueError(f'the right choice must be 0 to {len(choices) - 1}, not {right!r:.40}')
    return Item(contexts, choices, right, group)


def read(path, parse):
    """The items that parse() makes of the records of a .jsonl file or the rows of a .csv file."""
    data = path.read_bytes()
    try:
        text = data.decode().removeprefix('\ufeff')   # Windows' editors sign UTF-8
    except UnicodeDecodeError as error:
        sys.exit(f'{path}, line {data.count(10, 0, error.start) + 1}: not UTF-8')
    is_csv = path.suffix == '.csv'
    rows = csv.reader(io.StringIO(text, newline='')) if is_csv else text.split('\n')
    items = []
    lines = 0   # before this row; a row of a .csv file may have several
    try:
        for row in rows:
            if ''.join(row).strip():
                items.append(parse(row if is_csv else json.loads(row)))
            lines = rows.line_num if is_csv else lines + 1
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError, csv.Error) as error:
        form = ' '.join(parse.__doc__.split())
        sys.exit(f'{path}, line {lines + 1}: {type(error).__name__}: {error}; a line is {form}')
    return items


def examples(path, parse, shots):
    """The items of a file that has at least so many to show, if any are to be shown."""
    items = read(fetched(path), parse) if shots else []
    if len(items) < shots:
        sys.exit(f'num_fewshot={shots}: {path} has {len(items)} examples; give at most that many')
    return items


def answered(items):
    return ''.join(f'{item.contexts[0]} {item.choices[item.right]}\n\n' for item in items)


# ---------------------------------------------------------------------------------------------------------
# tasks: (folder, num_fewshot) -> for each of the task's files a list of items

def blimp_item(record):
    """{"sentence_good": ..., "sentence_bad": ..., "linguistics_term": ...}"""
    phenomenon = record.get('linguistics_term', '').replace('_', ' ')
    if phenomenon == 's-selection':
        phenomenon = 'argument structure'   # as in the published tables
    return make_item('', [record['sentence_good'], record['sentence_bad']], 0, phenomenon)


def blimp(folder, shots):
    return [read(path, blimp_item) for path in sorted(fetched(folder / 'blimp').glob('*.jsonl'))]


def arc_item(record):
    """{"question": {"stem": ..., "choices": [{"text": ..., "label": ...}, ...]}, "answerKey": a label}"""
    asked = record['question']
    labels = [choice['label'] for choice in asked['choices']]
    texts = [choice['text'] for choice in asked['choices']]
    return make_item('Question: ' + asked['stem'] + '\nAnswer:', texts, labels.index(record['answerKey']))


def arc(part, folder, shots):
    train = examples(folder / f'arc/ARC-{part}-Train.jsonl', arc_item, shots)
    draw = random.Random(1234)   # the harness's seed: each item has examples of its own
    return [[make_item(answered(draw.sample(train, shots)) + item.contexts[0], item.choices, item.right)
             for item in read(fetched(folder / f'arc/ARC-{part}-Test.jsonl'), arc_item)]]


def winogrande_item(record):
    """{"sentence": text with a _, "option1": ..., "option2": ..., "answer": "1" or "2"}"""
    before, after = record['sentence'].split('_', 1)   # what follows is scored, the same words after either option
    contexts = [before + record['option1'], before + record['option2']]
    return make_item(contexts, [after.strip()] * 2, ['1', '2'].index(record['answer']))


def hellaswag_item(record):
    """{"activity_label": ..., "ctx_a": ..., "ctx_b": ..., "endings": [...], "label": 0 to 3}"""
    def clean(text):   # of WikiHow's marks
        return re.sub(r'\[.*?\]', '', text.strip().replace(' [title]', '. ')).replace('  ', ' ')
    if type(record['endings']) is not list:
        raise ValueError('the endings must be a list')
    context = record['activity_label'] + ': ' + record['ctx_a'] + ' ' + record['ctx_b'].capitalize()
    return make_item(clean(context), [clean(ending) for ending in record['endings']], record['label'])


def one_file(name, parse, folder, shots):
    return [read(fetched(folder / name), parse)]


LETTERS = ['A', 'B', 'C', 'D']


def cloze_item(row):
    """question,A,B,C,D,letter"""
    asked, a, b, c, d, letter = row
    return make_item(f'Question: {asked.strip()}\nAnswer:', [a, b, c, d], LETTERS.index(letter))


def letter_item(row):
    """question,A,B,C,D,letter"""
    right = cloze_item(row).right   # which checks the row
    asked, a, b, c, d, letter = row
    return make_item(f'{asked.strip()}\nA. {a}\nB. {b}\nC. {c}\nD. {d}\nAnswer:', LETTERS, right)


def mmlu(parse, kind, folder, shots):
    files = []
    for test in sorted(fetched(folder / 'mmlu').glob('test/*_test.csv')):
        name = test.name.removesuffix('_test.csv')
        subject = name.replace('_', ' ')
        shown = examples(folder / f'mmlu/dev/{name}_dev.csv', parse, shots)[:shots]
        head = f'The following are {kind} (with answers) about {subject}.\n\n{answered(shown)}'
        files.append([make_item(head + item.contexts[0], item.choices, item.right, subject)
                      for item in read(test, parse)])
    return files


def own_item(record):
    """{"question": ..., "choices": [...], "answer": the right choice, or its letter, or its number from 0}, or
    {"sentence_good": ..., "sentence_bad": ...}, as BLiMP has them"""
    if 'sentence_good' in record:
        return blimp_item(record)
    asked, choices, right = record['question'], record['choices'], record['answer']
    if type(right) is str and right in choices:
        right = choices.index(right)
    elif type(right) is str:
        right = 'ABCDEFGHIJKLMNOPQRSTUVWXYZ'.index(right) if len(right) == 1 else None
    return make_item('Question: ' + asked + '\nAnswer:' if asked != '' else '', choices, right)


TASKS = dict(blimp=blimp, arc_easy=partial(arc, 'Easy'), arc_challenge=partial(arc, 'Challenge'),
             winogrande=partial(one_file, 'winogrande/dev.jsonl', winogrande_item),
             hellaswag=partial(one_file, 'hellaswag/hellaswag_val.jsonl', hellaswag_item),
             mmlu=partial(mmlu, letter_item, 'multiple choice questions'),
             mmlu_cloze=partial(mmlu, cloze_item, 'questions'))


def load(task, data_dir='data/eval', num_fewshot=0, limit=0):
    """The items of a task, or of one's own .jsonl file; with a limit the first ones of each of its files."""
    if task in TASKS:
        files = TASKS[task](pathlib.Path(data_dir), num_fewshot)
    elif pathlib.Path(task).is_file():
        files = [read(pathlib.Path(task), own_item)]
    else:
        sys.exit(f'{task}: no such file, and the tasks are {",".join(TASKS)}')
    items = [item for of_file in files for item in of_file[:limit or None]]
    if not items:
        sys.exit(f'{task}: there is no question in {data_dir if task in TASKS else "it"}')
    return items


# ---------------------------------------------------------------------------------------------------------
# scores

LEAST = 64   # tokens: with fewer, each takes longer (32: a quarter), on a processor with AVX2


def encode(tokenizer, context, continuation):
    """Both as token ids. They are encoded together, since a token may cross from one to the other; what the
    context without its last spaces doesn't cover is the continuation's. <|endoftext|> stands for no context."""
    start = tokenizer.encode_ordinary(context.rstrip())
    whole = tokenizer.encode_ordinary(context + continuation)
    return start or [tokenizer.eot_token], whole[len(start):]


class Choice:
    """The token ids of a choice after its context. All but the last are read; the state at place `first` predicts
    the first token that is scored."""

    def __init__(self, context, continuation, block_size):
        self.ids = (*context, *continuation)[-block_size - 1:]
        self.first = len(self.ids) - len(continuation) - 1
        self.log_prob = 0.0


def in_common(choices):
    """How many tokens at the start all of them have in common and none ends with; 0 if all read the same."""
    rows = {choice.ids[:-1] for choice in choices}
    n = 0
    while len(rows) > 1 and n < min(map(len, rows)) - 1 and len({row[n] for row in rows}) == 1:
        n += 1
    return n


def batches(things, size, most):
    """Lists of things of nearly one size, the largest first. A list has at most `most` tokens, and one of less
    than LEAST goes on with smaller things."""
    batch = []
    for thing in sorted(things, key=size, reverse=True):
        if batch:
            largest = size(batch[0])
            full = (len(batch) + 1) * largest > most
            if full or size(thing) < largest and len(batch) * largest >= LEAST:
                yield batch
                batch = []
        batch.append(thing)
    if batch:
        yield batch


def score(model, rows, caches, choices_of_rows, past=0):
    """Read rows of tokens after `past` earlier ones, and add to each row's choices what its states predict."""
    idx = pad_sequence([torch.tensor(row) for row in rows], batch_first=True)   # at the end, where none sees it
    h = model.hidden(idx.to(model.norm.weight.device), caches)                               # (B, T, C)
    wanted = defaultdict(list)   # a prediction that several choices share is computed once
    for row, choices in enumerate(choices_of_rows):
        for choice in choices:
            for place in range(max(choice.first, past), min(len(choice.ids) - 1, past + len(rows[row]))):
                wanted[row, place - past, choice.ids[place + 1]].append(choice)
    if wanted:
        numbers, places, targets = torch.tensor(list(wanted), device=h.device).T             # 3 x (N)
        nll = model.tokens.nll(h[numbers, places][None], targets[None])[0]                   # (N)
        for nats, choices in zip(nll.tolist(), wanted.values()):
            for choice in choices:
                choice.log_prob -= nats


def branch(cache, rows, room):
    """These rows of a cache, each as often as it is named, with room for more tokens."""
    new = LayerCache(room)
    new.append(cache.k[rows], cache.v[rows])
    return new


@torch.no_grad()
def log_probs(model, questions, batch_tokens=4096, progress=lambda done: None):
    """log p(continuation | context), in nats, of each choice of each question, a list of (context, continuation).
    What the choices of a question have in common at their start is read once, together with the starts of other
    questions, all cut to the shortest. Its keys and values then serve each choice's rest, padded to the longest."""
    questions = [[Choice(*pair, model.config.block_size) for pair in question] for question in questions]
    total = sum(len(choice.ids) for question in questions for choice in question)
    done = 0
    for batch in batches(questions, in_common, batch_tokens):
        cut = in_common(batch[-1])
        caches = [LayerCache(cut) for _ in model.blocks] if cut else []
        if cut:
            score(model, [question[0].ids[:cut] for question in batch], caches, batch)
        rests = defaultdict(list)   # choices that read the same, as all those of one token, are one row
        for number, question in enumerate(batch):
            for choice in question:
                rests[number, choice.ids[cut:-1]].append(choice)
        for part in batches(rests, lambda rest: len(rest[1]), batch_tokens):
            numbers, rows = zip(*part)
            longer = [branch(cache, list(numbers), cut + len(rows[0])) for cache in caches]
            choices = [rests[rest] for rest in part]
            score(model, rows, longer, choices, cut)
            done += sum(len(choice.ids) for of_row in choices for choice in of_row)
            progress(done / total)
    return [[choice.log_prob for choice in question] for question in questions]


def evaluate(model, tokenizer, items, batch_tokens=4096, progress=lambda done: None):
    """The metrics of items (load() has them), and each item's log-probabilities. The model must be in eval()."""
    most = model.config.block_size
    questions = []
    for item in items:
        questions.append([encode(tokenizer, context, ' ' + choice)
                          for context, choice in zip(item.contexts, item.choices)])
        for _, ids in questions[-1]:
            if not 0 < len(ids) <= most:
                text = tokenizer.decode_bytes(ids[:20]).decode(errors='replace')
                sys.exit(f'{text!r}...: a choice of {len(ids)} tokens; this model reads 1 to {most}')
    scores = log_probs(model, questions, batch_tokens, progress)
    return metrics(items, scores), scores


def metrics(items, scores):
    """acc, how often the right choice is the likeliest; acc_norm, the likeliest per character; acc_bytes, per byte.
    Each with its standard error (_se), its distance from chance in standard errors of chance (_z), and how often
    the right choice ties with the best other one (_ties)."""
    chances = [1 / len(item.choices) for item in items]
    result = dict(n=len(items), chance=statistics.fmean(chances),
                  log_prob=statistics.fmean(score[item.right] for item, score in zip(items, scores)))
    for name in ('acc', 'acc_norm', 'acc_bytes'):
        hits, ties = [], 0
        for item, score in zip(items, scores):
            sizes = dict(acc=[1] * len(score), acc_norm=map(len, item.choices),
                         acc_bytes=[len(choice.encode()) for choice in item.choices])[name]
            others = [value / size for value, size in zip(score, sizes)]
            right = others.pop(item.right)
            hits.append(float(right > max(others)))
            ties += right == max(others)
        error = statistics.stdev(hits) / len(hits)**0.5 if len(hits) > 1 else float('nan')
        z = (sum(hits) - sum(chances)) / sum(p * (1 - p) for p in chances)**0.5
        result |= {name: statistics.fmean(hits), f'{name}_se': error, f'{name}_z': z, f'{name}_ties': ties}
    return result


# ---------------------------------------------------------------------------------------------------------
# tables

PUBLISHED = {   # zero-shot; of the tasks acc/acc_norm, of BLiMP and its phenomena 5-gram, LSTM and GPT-2 (large)
    'arc_easy': 'GPT-2 124M 43.81/39.48 ¹, Pythia-70M 37.37/35.02 ²',
    'arc_challenge': 'GPT-2 124M 19.03/22.70 ¹, Pythia-70M 18.09/22.10 ²',
    'winogrande': 'GPT-2 124M 51.62 ¹, Pythia-70M 52.80 ²',
    'hellaswag': 'GPT-2 124M 28.92/31.14 ¹, Pythia-160M 28.38/30.14 ¹',
    'mmlu': 'Pythia-70M 25.29, Pythia-160M 24.40 ², with an older prompt',
    'mmlu_cloze': "GPT-2 124M 25.57/27.21 ³, SmolLM2-135M 31.5 ⁴, with other prompts",
    'blimp': '5-gram 61.2, LSTM 69.8, GPT-2 large 83.0, people 87.4 ⁵',
    'anaphor agreement': '47.9, 91.7, 99.3', 'argument structure': '71.9, 73.2, 81.8',
    'binding': '64.4, 73.5, 80.9', 'control raising': '68.5, 67.0, 81.9',
    'determiner noun agreement': '70.1, 85.4, 95.8', 'ellipsis': '36.9, 67.6, 89.3',
    'filler gap dependency': '60.2, 73.9, 81.3', 'irregular forms': '79.5, 89.0, 91.9',
    'island effects': '57.2, 46.6, 72.7', 'npi licensing': '45.5, 51.7, 76.8',
    'quantifiers': '53.5, 64.5, 79.0', 'subject verb agreement': '60.3, 80.1, 86.4'}
NOTES = """
In brackets: standard errors from chance; as chance: luck would do (5 %, two-sided). A tie counts as wrong. Published:
¹ Vermeille/lm-evaluation-harness-cfg, plots/gpt2.py and pythia.py; ² EleutherAI/pythia, evals/pythia-v1; ³ llm.c,
dev/data/mmlu.py; ⁴ its model card; ⁵ arXiv 1912.00582, of each phenomenon 5-gram, LSTM, GPT-2 large."""


def table(title, results):
    """Markdown, a line for each of {name: metrics}; a bracket holds the distance from chance."""
    yield (f'| {title} | shots | n | ties | chance, % | acc, % ± standard error | acc_norm | acc_bytes | '
           'log p(right), nats | published, % |')
    yield '|---' + '|---:' * 8 + '|---|'
    for name, r in results.items():
        cells = [name, str(r['shots']), str(r['n']), str(r['acc_ties']), f"{100 * r['chance']:.2f}"]
        for key in ('acc', 'acc_norm', 'acc_bytes'):
            z = r[f'{key}_z']
            luck = ', as chance' if abs(z) < 1.96 else ''
            cells.append(f"{100 * r[key]:.2f} ± {100 * r[f'{key}_se']:.2f} ({z:+.1f}{luck})")
        cells += [f"{r['log_prob']:.3f}", PUBLISHED.get(name, '')]
        yield f'| {" | ".join(cells)} |'
    yield ''


def by_group(items, scores):
    """{group: its metrics}"""
    members = defaultdict(list)
    for item, score in zip(items, scores):
        if item.group:
            members[item.group].append((item, score))
    return {group: metrics(*zip(*pairs)) for group, pairs in members.items()}


# ---------------------------------------------------------------------------------------------------------

if __name__ == '__main__':
    names = [file] if file else tasks.replace(' ', '').split(',')
    loaded = {name: load(name, data_dir, num_fewshot, limit) for name in names}   # all of them before the work
    device, autocast, machine = pick_device(device, dtype)
    model, tokenizer, checkpoint = load_run(out_dir, device)
    print(machine)
    results = {}
    for name, items in loaded.items():
        task = pathlib.Path(name).stem + '_own' if file else name   # a file may be called arc_easy.jsonl
        progress = Progress(task)
        with autocast:
            if torch.is_autocast_enabled(device.type):
                model.matrices_to_bfloat16()
            result, scores = evaluate(model, tokenizer, items, batch_tokens, progress)
        progress.end(f'{len(items):,} items, {result["acc_ties"]} ties')
        shots = dict(shots=num_fewshot if task.startswith(('arc', 'mmlu')) and not file else 0)
        groups = {group: of | shots for group, of in by_group(items, scores).items()}
        results[task] = result | shots | dict(groups=groups)
        kept = [dict(right=item.right, log_probs=score) for item, score in zip(items, scores)]
        record = dict(task=name, run=out_dir, step=checkpoint['iter'], limit=limit, **results[task], items=kept)
        write_whole(pathlib.Path(out_dir, f'mc_{task}.json'), json.dumps(record).encode())
    title = out_dir
    if limit:
        title += f', first {limit} of each file'
    if num_fewshot:
        title += f', {num_fewshot}-shot ARC and MMLU'
    print()
    for task, result in results.items():
        if result['groups']:
            print(*table(f'{title}: {task}', result['groups']), sep='\n')
    print(*table(title, results), NOTES.strip(), sep='\n')
