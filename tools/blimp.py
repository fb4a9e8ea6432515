"""
BLiMP by template, and by how long the right sentence is beside the wrong one: how many pairs each run has right, beside
bigrams of a training text. The runs have been asked before:

    python eval_mc.py --out_dir=RUN --tasks=blimp --limit=300 --dtype=float32
    python -m tools.blimp --runs=pretrained/tiny_10m,pretrained/byte_10m --data=data/enwiki-gpt2-16
"""
runs = 'pretrained/tiny_10m,pretrained/byte_10m'   # folders with a mc_blimp.json, all of one --limit
data = ''                 # folder of the data set from whose training text the bigrams are counted; none: no bigrams
eval_dir = 'data/eval'    # where eval_mc.py keeps the tasks' files
file = 'docs/blimp.csv'   # is written

import collections
import csv
import json
import pathlib
import re

import numpy as np

from configurator import Failure, configure
from stlm.questions import blimp_item
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
    columns = {name: [item['log_probs'][0] > item['log_probs'][1] for item in record['items']] for name, record in found.items()}
    if {len(column) for column in columns.values()} != {len(pairs)}:
        raise Failure(f'runs={runs}: not asked the same pairs, of {eval_dir}/blimp')
    if data:
        columns['bigram'] = right_by_bigrams(pairs)
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
    configure(globals())
    main()
