"""
Multiple choice by summed log-probabilities: how a model answers the questions of stlm/questions.py.

    python eval_mc.py --out_dir=out/quick          # every item of every task, fetched on first use
    python eval_mc.py --tasks=blimp --limit=100    # faster, and less certain
    python eval_mc.py --file=my.jsonl              # your own questions

The choice that the model finds likeliest is its answer. Prompts, token boundaries, truncation and
metrics are those of EleutherAI's lm-evaluation-harness 0.4.13; tests/compare_harness.py compares item
by item. Ties are the one difference: the harness takes the first of equal scores, which in BLiMP is
always the right one. Here an answer is right only if it scores higher than every other.
out_dir/mc_<task>.json (of your own file mc_<name>_own.json) keeps the metrics, and every choice's log-probability.
Reading this file for the first time: answer_questions() and metrics() are the heart; the tables can wait.
"""
out_dir = 'out/quick'     # a run's folder: its best.pt, else its ckpt.pt; or a checkpoint's file
tasks = ''                # names in TASKS of stlm/questions.py, with commas between them; none: all
file = ''                 # a .jsonl file with your own questions, instead of the tasks
limit = 0                 # take the first so many items of each file; 0: all
data_dir = 'data/eval'    # where the tasks' files are, or are fetched to
batch_tokens = 4096       # tokens read at once; fewer need less memory
device = 'auto'           # cuda, mps or cpu; auto takes the first of them that is there
dtype = 'auto'            # what the hardware is fast with; float32 for the harness's numbers

from configurator import configure
if __name__ == '__main__':   # now, since the imports below take seconds
    configure(globals(), dict(dtype='auto bfloat16 float16 float32'))

import json
import math
import pathlib
from collections import defaultdict
from statistics import fmean, stdev

from stlm.console import Failure, Progress
from stlm.files import write_whole
from stlm.machine import pick_device
from stlm.questions import TASKS, load_questions
from stlm.run import load_run, newest_checkpoint
from stlm.scoring import log_probs

# --------------------------------------------------------------------------------------------------
# Answers

def encode_choice(tokenizer, context, continuation):
    """Both as token ids, encoded together, since a token may cross from one to the other. If the
    context without its last spaces has n tokens, the choice's are all but the first n of the whole
    text's. An empty context is <|endoftext|>."""
    start = tokenizer.encode_ordinary(context.rstrip())
    whole = tokenizer.encode_ordinary(context + continuation)
    return start or [tokenizer.eot_token], whole[len(start):]


def encode_items(tokenizer, items, block_size):
    """For each item its choices as (context, continuation), in token ids."""
    questions = []
    for item in items:
        pairs = []
        for context, choice in zip(item.contexts, item.choices):
            start, ids = encode_choice(tokenizer, context, ' ' + choice)
            if not 0 < len(ids) <= block_size:
                raise Failure(f'{choice[:40]!r}: a choice of {len(ids)} tokens; '
                              f'this model reads 1 to {block_size}')
            pairs.append((start, ids))
        questions.append(pairs)
    return questions


def answer_questions(model, tokenizer, items, batch_tokens=4096, progress=lambda done: None):
    """(metrics of the items, each item's log-probabilities). Call model.eval() first."""
    questions = encode_items(tokenizer, items, model.config.block_size)
    scores = log_probs(model, questions, batch_tokens, progress)
    total = sum(map(sum, scores))
    if not math.isfinite(total):
        raise Failure(f'the log-probabilities of all choices sum to {total}: the weights of this '
                      'model are damaged, or too large for --dtype')
    return metrics(items, scores), scores


# --------------------------------------------------------------------------------------------------
# Metrics

SIZES = dict(acc=lambda text: 1, acc_norm=len, acc_bytes=lambda text: len(text.encode()))


def metrics(items, scores):
    """n, how many items; chance, the share that a guesser has right on average, and chance_se, its
    standard error; log_prob, the mean of the right choices.
    acc, how often the right choice is the likeliest; acc_norm, per character; acc_bytes, per byte.
    Each with its standard error (_se, None for one item), its distance from chance in chance_se
    (_z), and how often the right choice ties with the best other one (_ties)."""
    n = len(items)
    chances = [1 / len(item.choices) for item in items]
    chance, chance_se = fmean(chances), sum(p * (1 - p) for p in chances)**0.5 / n
    log_prob = fmean(score[item.right] for item, score in zip(items, scores))
    result = dict(n=n, chance=chance, chance_se=chance_se, log_prob=log_prob)
    for name, size in SIZES.items():
        hits, ties = [], 0
        for item, score in zip(items, scores):
            others = [value / size(choice) for value, choice in zip(score, item.choices)]
            right = others.pop(item.right)
            best = max(others)
            hits.append(float(right > best))
            ties += right == best
        result[name] = fmean(hits)
        result[f'{name}_se'] = stdev(hits) / n**0.5 if n > 1 else None
        result[f'{name}_z'] = (fmean(hits) - chance) / chance_se
        result[f'{name}_ties'] = ties
    return result


def metrics_of_groups(items, scores):
    """{group: its metrics} of the items that have a group."""
    members = defaultdict(list)
    for item, score in zip(items, scores):
        if item.group:
            members[item.group].append((item, score))
    return {group: metrics(*zip(*pairs)) for group, pairs in members.items()}


# --------------------------------------------------------------------------------------------------
# What is printed

def print_table(title, results):
    """Markdown, a line for each of {name: metrics}."""
    metric_heads = 'acc ± standard error | acc_norm | acc_bytes'
    print(f'| {title} | n | ties | chance | {metric_heads} | log p(right), nats |')
    print('|---' + 7 * '|---:' + '|')
    for name, result in results.items():
        cells = [name, str(result['n']), str(result['acc_ties']), f'{result["chance"]:.2%}']
        for metric in SIZES:
            value, error, z = (result[metric + suffix] for suffix in ('', '_se', '_z'))
            spread = 'unknown' if error is None else f'{error:.2%}'
            cells.append(f'{value:.2%} ± {spread} ({z:+.1f})')
        cells.append(f'{result["log_prob"]:.3f}')
        print(f'| {" | ".join(cells)} |')
    print()


def print_answers(items, scores, questions, block_size):
    """A line for each of your own questions, of which encode_items() made `questions`."""
    for item, score, pairs in zip(items, scores, questions):
        texts = [' '.join(f'{context} {choice}'.split())
                 for context, choice in zip(item.contexts, item.choices)]
        likeliest = [text for text, value in zip(texts, score) if value == max(score)]
        if len(likeliest) > 1:
            line = f'tie:   {" / ".join(likeliest)}'
        elif likeliest[0] == texts[item.right]:
            line = f'right: {likeliest[0]}'
        else:
            line = f'wrong: {likeliest[0]} (right: {item.choices[item.right]})'
        unread = max(len(context) + len(ids) for context, ids in pairs) - (block_size + 1)
        if unread > 0:
            line += f' [too long: the first {unread} tokens were not read]'
        ordered = sorted(ids for context, ids in pairs)   # a beginning comes right before what it begins
        if any(ids == longer[:len(ids)] for ids, longer in zip(ordered, ordered[1:])):
            line += ' [one choice is the beginning of another: it is always the likelier of the two]'
        print(line)


if __name__ == '__main__':
    asked = [file] if file else tasks.replace(' ', '').split(',') if tasks else [*TASKS]
    loaded = {name: load_questions(name, data_dir, limit) for name in asked}
    device, autocast, machine = pick_device(device, dtype)
    model, tokenizer, checkpoint = load_run(out_dir, device)
    print(machine)
    block_size = model.config.block_size
    folder = newest_checkpoint(out_dir).parent
    about_run = dict(run=out_dir, step=checkpoint['iter'], limit=limit)
    title = f'{out_dir}, limit={limit}'
    results = {}
    for name, items in loaded.items():
        own = name not in TASKS
        task = f'{pathlib.Path(name).stem}_own' if own else name   # my arc_easy.jsonl is another task
        progress = Progress(task)
        with autocast:
            result, scores = answer_questions(model, tokenizer, items, batch_tokens, progress)
        progress.end(f'{len(items):,} items, {result["acc_ties"]} ties')
        groups = metrics_of_groups(items, scores)
        answers = [dict(right=item.right, log_probs=score) for item, score in zip(items, scores)]
        record = dict(task=name, **about_run, **result, groups=groups, items=answers)
        write_whole(folder / f'mc_{task}.json', json.dumps(record).encode())
        results[task] = result
        if own:
            print_answers(items, scores, encode_items(tokenizer, items, block_size), block_size)
            n, chance, chance_se = len(items), result['chance'], result['chance_se']
            print(f'{n * result["acc"]:.0f} of {n} right; guessing gets {n * chance:.1f} on average, '
                  f'and rarely more than {n * (chance + 2 * chance_se):.1f}')
        elif groups:
            print_table(f'{title}: {task}', groups)
    if not file:
        print_table(title, results)
        print('In brackets: how many standard errors above (+) or below (-) guessing; from -2 to 2 it may '
              'be luck. A tie counts as wrong. Published scores stand in docs/results.md.')
