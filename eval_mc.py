"""
Multiple choice by summed log-probabilities: how a model answers the questions of questions.py.

    python eval_mc.py --out_dir=out/quick          # every item of every task, fetched on first use
    python eval_mc.py --tasks=blimp --limit=100    # sooner, and less sure
    python eval_mc.py --file=my.jsonl              # one's own; questions.py says what a line is

The choice that the model finds likeliest is its answer. Prompts, token boundaries, truncation and
metrics are those of EleutherAI's lm-evaluation-harness 0.4.13; tests/compare_harness.py compares item
by item. Ties are the one difference: the harness takes the first of equal scores, which in BLiMP is
always the right one. Here an answer is right only if it scores higher than every other.
out_dir/mc_<task>.json keeps the metrics, and every choice's log-probability.
"""
out_dir = 'out/quick'     # the run's folder, of which best.pt is taken, else ckpt.pt; or the file itself
tasks = 'blimp,arc_easy,arc_challenge,winogrande,hellaswag,mmlu,mmlu_cloze'   # mmlu by letter, _cloze in words
file = ''                 # one's own questions instead, a .jsonl file
num_fewshot = 0           # answered examples before each question of ARC and MMLU
limit = 0                 # so many items of each file (MMLU: subject, BLiMP: paradigm); 0 for all
data_dir = 'data/eval'    # where the tasks' files are, or are fetched to
batch_tokens = 4096       # read at once; fewer need less memory
device = 'auto'           # cuda, mps or cpu; auto takes the first of them that is there
dtype = 'auto'            # bfloat16 where the hardware computes in it; float32 for the harness's numbers

from configurator import Failure, configure

from stlm.console import Progress
if __name__ == '__main__':
    configure(globals(), one_of=dict(dtype='auto bfloat16 float32'),
              at_least={0: 'num_fewshot limit', 1: 'batch_tokens'})

import json
import pathlib
from collections import defaultdict
from statistics import fmean, stdev

import torch
from torch.nn.utils.rnn import pad_sequence

from stlm.files import write_whole
from model import LayerCache
from stlm.questions import NOTES, PUBLISHED, load_questions
from stlm.machine import pick_device
from stlm.run import load_run, newest_checkpoint

# --------------------------------------------------------------------------------------------------
# Scores

LEAST = 64   # tokens: with fewer, each takes longer (32: a quarter), on a processor with AVX2


def encode(tokenizer, context, continuation):
    """Both as token ids, encoded together, since a token may cross from one to the other: what the
    context without its last spaces doesn't cover is the continuation's. No context is <|endoftext|>."""
    start = tokenizer.encode_ordinary(context.rstrip())
    whole = tokenizer.encode_ordinary(context + continuation)
    return start or [tokenizer.eot_token], whole[len(start):]


class Choice:
    """The token ids of a choice after its context. All but the last are read; the state at place
    `first` predicts the first token that is scored."""
    def __init__(self, context, continuation, block_size):
        self.ids = (*context, *continuation)[-block_size - 1:]
        self.first = len(self.ids) - len(continuation) - 1
        self.log_prob = 0.0


def in_common(choices):
    """How many tokens all choices begin with and none ends with; 0 if all read the same."""
    rows = {choice.ids[:-1] for choice in choices}
    if len(rows) == 1:
        return 0
    same = [len(set(tokens)) == 1 for tokens in zip(*rows)]   # as far as the shortest goes
    same[-1] = False
    return same.index(False)


def batches(things, size, most):
    """Lists of things of nearly one size, the largest first. A list has at most `most` tokens, and
    one of less than LEAST goes on with smaller things."""
    batch, largest = [], 0
    for thing in sorted(things, key=size, reverse=True):
        tokens = len(batch) * largest
        full = tokens + largest > most
        if batch and (full or tokens >= LEAST and size(thing) < largest):
            yield batch
            batch = []
        if not batch:
            largest = size(thing)
        batch.append(thing)
    if batch:
        yield batch


def score(model, rows, caches, choices_of_rows, past=0):
    """Read rows of tokens after `past` earlier ones, and add to each row's choices what its states
    predict. A prediction that several choices share is computed once."""
    padded = pad_sequence([torch.tensor(row) for row in rows], batch_first=True)
    h = model.hidden(padded.to(model.norm.weight.device), caches)                       # (B, T, C)
    wanted = defaultdict(list)
    for number, (row, choices) in enumerate(zip(rows, choices_of_rows)):
        for choice in choices:
            end = min(past + len(row), len(choice.ids) - 1)
            for place in range(max(past, choice.first), end):
                wanted[number, place - past, choice.ids[place + 1]].append(choice)
    if not wanted:
        return
    numbers, places, targets = torch.tensor(list(wanted), device=h.device).T            # 3 x (N)
    nll = model.tokens.nll(h[numbers, places][None], targets[None])[0]                  # (N)
    for nats, choices in zip(nll.tolist(), wanted.values()):
        for choice in choices:
            choice.log_prob -= nats


@torch.no_grad()
def log_probs(model, questions, batch_tokens=4096, progress=lambda done: None):
    """log p(continuation | context), in nats, of each choice of each question, a list of (context,
    continuation). What a question's choices begin with in common is read once, together with that of
    other questions, all cut to the shortest. Its keys and values then serve each choice's rest, padded
    at the end to the longest. Choices that read the same, as all of one token, are one row."""
    block_size = model.config.block_size
    questions = [[Choice(*pair, block_size) for pair in question] for question in questions]
    done, total = 0, sum(map(len, questions))
    for batch in batches(questions, in_common, batch_tokens):
        cut = in_common(batch[-1])
        caches = []
        if cut:
            caches = [LayerCache(cut) for _ in model.blocks]
            score(model, [question[0].ids[:cut] for question in batch], caches, batch)
        rests = defaultdict(list)
        for number, question in enumerate(batch):
            for choice in question:
                rests[number, choice.ids[cut:-1]].append(choice)
        for part in batches(rests, lambda rest: len(rest[1]), batch_tokens):
            numbers = [number for number, row in part]
            rows = [row for number, row in part]
            choices = [rests[rest] for rest in part]
            longer = [LayerCache(cut + len(rows[0])) for _ in caches]
            for new, cache in zip(longer, caches):
                new.append(cache.k[numbers], cache.v[numbers])
            score(model, rows, longer, choices, cut)
            done += sum(map(len, choices))
            progress(done / total)
    return [[choice.log_prob for choice in question] for question in questions]


def evaluate(model, tokenizer, items, batch_tokens=4096, progress=lambda done: None):
    """(metrics of the items, each item's log-probabilities). The model must be in eval()."""
    most = model.config.block_size
    questions = []
    for item in items:
        questions.append([])
        for context, choice in zip(item.contexts, item.choices):
            start, ids = encode(tokenizer, context, ' ' + choice)
            if not 0 < len(ids) <= most:
                raise Failure(f'{choice[:40]!r}: a choice of {len(ids)} tokens; this model reads 1 to {most}')
            questions[-1].append((start, ids))
    scores = log_probs(model, questions, batch_tokens, progress)
    return metrics(items, scores), scores


# --------------------------------------------------------------------------------------------------
# Metrics and tables

SIZES = dict(acc=lambda text: 1, acc_norm=len, acc_bytes=lambda text: len(text.encode()))


def metrics(items, scores):
    """acc, how often the right choice is the likeliest; acc_norm, per character; acc_bytes, per byte.
    Each with its standard error (_se), its distance from chance in standard errors of chance (_z), and
    how often the right choice ties with the best other one (_ties)."""
    n = len(items)
    chances = [1 / len(item.choices) for item in items]
    spread = sum(p * (1 - p) for p in chances)**0.5   # standard deviation of a guesser's hits
    log_prob = fmean(score[item.right] for item, score in zip(items, scores))
    result = dict(n=n, chance=fmean(chances), log_prob=log_prob)
    for name, size in SIZES.items():
        hits, ties = [], 0
        for item, score in zip(items, scores):
            others = [value / size(choice) for value, choice in zip(score, item.choices)]
            right = others.pop(item.right)
            best = max(others)
            hits.append(float(right > best))
            ties += right == best
        result[name] = fmean(hits)
        result[f'{name}_se'] = stdev(hits) / n**0.5 if n > 1 else float('nan')
        result[f'{name}_z'] = (sum(hits) - sum(chances)) / spread
        result[f'{name}_ties'] = ties
    return result


def luck(chances, hits):
    """The probability that a guesser, right on each item with its chance, gets at least so many hits."""
    of = [1.0]   # of[k]: the probability of k hits so far
    for p in chances:
        of = [miss * (1 - p) + hit * p for miss, hit in zip([*of, 0.0], [0.0, *of])]
    return sum(of[hits:])


HEAD = ('| {} | n | ties | chance | acc ± standard error | acc_norm | acc_bytes | log p(right), nats '
        '| published, % |\n|---|---:|---:|---:|---:|---:|---:|---:|---|')
ROW = ('| {name} | {n} | {acc_ties} | {chance:.2%} | {acc:.2%} ± {acc_se:.2%} ({acc_z:+.1f}) | '
       '{acc_norm:.2%} ± {acc_norm_se:.2%} ({acc_norm_z:+.1f}) | '
       '{acc_bytes:.2%} ± {acc_bytes_se:.2%} ({acc_bytes_z:+.1f}) | {log_prob:.3f} | {published} |')


def print_table(title, results):
    """Markdown, a line for each of {name: metrics}."""
    print(HEAD.format(title))
    for name, result in results.items():
        print(ROW.format(name=name, published=PUBLISHED.get(name, ''), **result))
    print()


if __name__ == '__main__':
    names = [file] if file else tasks.replace(' ', '').split(',')
    loaded = {name: load_questions(name, data_dir, num_fewshot, limit) for name in names}   # before the work
    device, autocast, machine = pick_device(device, dtype)
    model, tokenizer, checkpoint = load_run(out_dir, device)
    print(machine)
    title = f'{out_dir}, limit={limit}, num_fewshot={num_fewshot}'
    results = {}
    for name, items in loaded.items():
        task = f'{pathlib.Path(file).stem}_own' if file else name   # not arc_easy of arc_easy.jsonl
        progress = Progress(task)
        with autocast:
            result, scores = evaluate(model, tokenizer, items, batch_tokens, progress)
        progress.end(f'{len(items):,} items, {result["acc_ties"]} ties')
        results[task] = result
        members = defaultdict(list)
        for pair in zip(items, scores):
            members[pair[0].group].append(pair)
        groups = {group: metrics(*zip(*pairs)) for group, pairs in members.items() if group}
        if groups:
            print_table(f'{title}: {task}', groups)
        kept = [dict(right=item.right, log_probs=score) for item, score in zip(items, scores)]
        record = dict(task=name, run=out_dir, step=checkpoint['iter'], limit=limit,
                      num_fewshot=num_fewshot, **result, groups=groups, items=kept)
        write_whole(newest_checkpoint(out_dir).parent / f'mc_{task}.json', json.dumps(record).encode())
    print_table(title, results)
    if not file:
        print(NOTES)
    else:   # one's own questions: which were not right?
        wrong = []
        for item, score in zip(items, scores):
            likeliest = max(range(len(score)), key=score.__getitem__)
            if likeliest != item.right or score.count(max(score)) > 1:
                wrong.append(f'- {item.contexts[likeliest]} {item.choices[likeliest]}'.replace('\n', ' '))
        hits = len(items) - len(wrong)
        by_luck = luck([1 / len(item.choices) for item in items], hits)
        said = (f'{hits} of {len(items)} right. Guessing gets as many or more with a probability of {by_luck:.2g}. '
                'Where it was not right, it prefers:')
        print('\n'.join([said, *wrong]))
