"""
BLiMP by template, and by how long the right sentence is beside the wrong one: how many pairs each run has right, beside
bigrams of a training text. The runs have been asked before:

    python eval_mc.py --out_dir=RUN --tasks=blimp --limit=300 --dtype=float32
    python -m tools.blimp --runs=pretrained/tiny_10m,pretrained/byte_10m --data=data/enwiki-gpt2-16
"""
runs = 'pretrained/tiny_10m,pretrained/byte_10m'   # folders with a mc_blimp.json, all of one --limit
data = ''                 # folder of the data set from whose training text the bigrams are counted; none: no bigrams
eval_dir = 'data/eval'    # where eval_mc.py keeps the tasks' files
by_parts = False          # also how many are right by the words that differ alone, and by common last words alone
dtype = 'auto'            # of by_parts: what the hardware is fast with
file = 'docs/blimp.csv'   # is written

import collections
import csv
import json
import pathlib
import re

import numpy as np

from configurator import Failure, configure
from stlm.console import Progress
from stlm.machine import pick_device
from stlm.questions import blimp_item
from stlm.run import load_run
from stlm.scoring import log_probs
from stlm.tokenizer import load_tokenizer

DISCOUNT = 0.75   # of Kneser and Ney: what is taken from each count, for pairs that were not seen


def read_pairs(limit):
    """[(phenomenon, template, right sentence, wrong sentence)] in the order of eval_mc.py."""
    pairs = []
    for path in sorted(pathlib.Path(eval_dir, 'blimp').glob('*.jsonl')):
        for line in path.read_text(encoding='utf-8').splitlines()[:limit or None]:
            record = json.loads(line)
            pairs.append((blimp_item(record).group, record['UID'], record['sentence_good'], record['sentence_bad']))
    return pairs


def compare(right, wrong):
    """What the right sentence is beside the wrong one."""
    words = [sorted(re.sub('[.?!]', '', text.lower()).split()) for text in (right, wrong)]
    if len(right) != len(wrong):
        return 'longer' if len(right) > len(wrong) else 'shorter'
    return 'reordered' if words[0] == words[1] else 'as long'


def last_in_common(right, wrong):
    """How many of their last words two sentences (lists of words) have in common, after the first that differ."""
    n = min(len(right), len(wrong))
    n -= next((i for i in range(n) if right[i] != wrong[i]), n)
    return next((i for i in range(n) if right[-1 - i] != wrong[-1 - i]), n)


def right_by_parts(run, pairs):
    """Where a run's difference arises: which pairs are right by the words that differ alone, and which by their common
    last words alone."""
    device, autocast, _ = pick_device('auto', dtype)
    model, tokenizer, _ = load_run(run, device)
    questions = []
    for *_, right, wrong in pairs:
        both = right.split(' '), wrong.split(' ')
        last = last_in_common(*both)
        texts = [''.join(f' {word}' for word in words[:n]) for words in both for n in (len(words) - last, len(words))]
        questions.append([([tokenizer.eot_token], tokenizer.encode_ordinary(text)) for text in texts])
    progress = Progress(f'{run}, a part at a time')
    with autocast:
        scores = log_probs(model, questions, progress=progress)
    progress.end(f'{len(pairs):,} pairs')
    differ = [right > wrong for right, _, wrong, _ in scores]
    return differ, [all_right - right > all_wrong - wrong for right, all_right, wrong, all_wrong in scores]


def bigram_scores(texts, tokens, vocab_size):
    """log p of each text, a list of token ids whose first one is given, by interpolated Kneser-Ney bigrams of tokens (n)."""
    first, second = tokens[:-1].astype(np.int64), tokens[1:].astype(np.int64)
    seen, counts = np.unique(first * vocab_size + second, return_counts=True)
    contexts = np.bincount(seen % vocab_size, minlength=vocab_size) + 0.1   # before how many tokens each comes
    lower = contexts / contexts.sum()
    totals = np.bincount(first, minlength=vocab_size)
    kinds = np.bincount(seen // vocab_size, minlength=vocab_size)           # how many tokens come after each
    scores = []
    for ids in map(np.array, texts):
        a, b = ids[:-1], ids[1:]
        at = np.searchsorted(seen, a * vocab_size + b).clip(max=len(seen) - 1)
        count = np.where(seen[at] == a * vocab_size + b, counts[at], 0)
        p = (np.maximum(count - DISCOUNT, 0) + DISCOUNT * kinds[a] * lower[b]) / np.maximum(totals[a], 1)
        scores.append(np.log(np.where(totals[a] > 0, p, lower[b])).sum())
    return scores


def right_by_bigrams(pairs):
    folder = pathlib.Path(data)
    tokenizer = load_tokenizer(None, folder)
    tokens = np.memmap(folder / 'train.bin', '<u2', 'r')
    texts = [[tokenizer.eot_token, *tokenizer.encode_ordinary(' ' + text)] for pair in pairs for text in pair[2:]]
    scores = bigram_scores(texts, tokens, tokenizer.n_vocab)
    return [right - wrong > 1e-9 for right, wrong in zip(scores[::2], scores[1::2])]   # the same bigrams in another order tie


def main():
    found = {}
    for run in runs.split(','):
        path = pathlib.Path(run, 'mc_blimp.json')
        if not path.exists():
            raise Failure(f'{path}: not there; first: python eval_mc.py --out_dir={run} --tasks=blimp --limit=300')
        found[path.parent.name] = json.loads(path.read_text(encoding='utf-8'))
    limits = {record['limit'] for record in found.values()}
    pairs = read_pairs(*limits) if len(limits) == 1 else []
    if {len(record['items']) for record in found.values()} != {len(pairs)}:
        raise Failure(f'runs={runs}: not asked the same pairs, of {eval_dir}/blimp')
    columns = {name: [item['log_probs'][0] > item['log_probs'][1] for item in record['items']] for name, record in found.items()}
    if data:
        columns['bigram'] = right_by_bigrams(pairs)
    if by_parts:
        columns['with last words'] = [last_in_common(right.split(' '), wrong.split(' ')) > 0 for *_, right, wrong in pairs]
        for name, run in zip(found, runs.split(',')):
            columns[f'{name}, differing'], columns[f'{name}, last'] = right_by_parts(run, pairs)
    table = collections.defaultdict(collections.Counter)
    for i, (phenomenon, template, right, wrong) in enumerate(pairs):
        table[phenomenon, template, compare(right, wrong)].update(pairs=1, **{name: int(column[i]) for name, column in columns.items()})
    with open(file, 'w', newline='', encoding='utf-8') as out:
        writer = csv.writer(out)
        writer.writerow(['phenomenon', 'paradigm', 'right sentence', 'pairs', *columns])
        writer.writerows([*key, table[key]['pairs'], *(table[key][name] for name in columns)] for key in sorted(table))
    for name in columns:
        print(f'{name}: {sum(row[name] for row in table.values()) / len(pairs):.1%} of {len(pairs):,} pairs right')
    print(file)


if __name__ == '__main__':
    configure(globals(), dict(dtype='auto bfloat16 float16 float32'))
    main()
