"""tools.blimp: Kneser and Ney's bigrams by a slow count, and a table of a few pairs."""
import collections
import csv
import json
import math

import numpy as np
import torch

from stlm.run import load_run
from tools import blimp
from helpers import ROOT, run

TOKENS = np.array([0, 3, 1, 2, 3, 1, 1, 2, 3, 0, 3, 2, 4, 0, 3, 1], '<u2')   # 5 was never seen, 4 before 0 only


def slow_p(a, b, V=6):
    """Probability of b after a, as in the paper's formula (Chen and Goodman 1999, interpolated)."""
    pairs = collections.Counter(zip(TOKENS[:-1].tolist(), TOKENS[1:].tolist()))
    contexts = [len({x for x, y in pairs if y == c}) + 0.1 for c in range(V)]
    lower = contexts[b] / sum(contexts)
    total = sum(n for (x, _), n in pairs.items() if x == a)
    if not total:
        return lower
    kinds = len({y for x, y in pairs if x == a})
    return (max(pairs[a, b] - 0.75, 0) + 0.75 * kinds * lower) / total


def test_bigrams_are_those_of_a_slow_count_and_their_probabilities_sum_to_one():
    every = [[a, b] for a in range(6) for b in range(6)]
    p = np.exp(blimp.bigram_scores(every, TOKENS, 6))
    np.testing.assert_allclose(p, [slow_p(a, b) for a, b in every])
    np.testing.assert_allclose(p.reshape(6, 6).sum(1), 1)
    text = [0, 3, 5, 5, 1]
    expected = sum(math.log(slow_p(a, b)) for a, b in zip(text, text[1:]))
    np.testing.assert_allclose(blimp.bigram_scores([text], TOKENS, 6), [expected])


def test_the_table_counts_what_each_run_has_right_by_template_and_length(tmp_path):
    (tmp_path / 'eval/blimp').mkdir(parents=True)
    pairs = [('The cat sleeps.', 'The cat sleep.'), ('Did he go?', 'He did go.'), ('A bad dog.', 'A dog bad.'), ('It is so.', 'It be so!')]
    records = [dict(sentence_good=good, sentence_bad=bad, linguistics_term='s-selection', UID='u') for good, bad in pairs]
    (tmp_path / 'eval/blimp/u.jsonl').write_text('\n'.join(map(json.dumps, records)))
    log_probs = [[-1, -2], [-3, -2], [-1, -2], [-2, -2]]   # a tie is wrong
    (tmp_path / 'run').mkdir()
    (tmp_path / 'run/mc_blimp.json').write_text(json.dumps(dict(limit=0, items=[dict(log_probs=both) for both in log_probs])))
    status, out, err = run(tmp_path, 'tools/blimp.py', '--runs=run', '--eval_dir=eval', '--file=table.csv')
    assert status == 0 and 'run: 50.0% of 4 pairs right' in out, err
    with open(tmp_path / 'table.csv', newline='') as file:
        rows = [*csv.reader(file)]
    assert rows[1:] == [['argument structure', 'u', 'as long', '1', '0'], ['argument structure', 'u', 'longer', '1', '1'],
                        ['argument structure', 'u', 'reordered', '2', '1']]


def test_a_pair_is_right_by_its_parts_as_the_tokens_one_by_one_say(monkeypatch):
    monkeypatch.setattr(blimp, 'dtype', 'float32')
    pairs = [('p', 't', 'The cats often sleep here.', 'The cats often sleeps here.'), ('p', 't', 'Did she go?', 'She did go.'),
             ('p', 't', 'Some of these dogs bark.', 'Some of this dogs bark.'), ('p', 't', 'A dog has not ever barked.', 'A dog has ever barked.')]
    parts = [(3, 4, 3, 4), (0, 3, 0, 3), (2, 3, 2, 3), (3, 4, 3, 3)]   # words before and after what differs, of both, by hand
    folder = ROOT / 'pretrained/tiny_10m'
    model, tokenizer, _ = load_run(folder)

    def by_words(text, first, end):
        """log p of the words from `first` to before `end`, and of those after them."""
        ids = torch.tensor([[tokenizer.eot_token, *tokenizer.encode_ordinary(f' {text}')]])
        bits = -model(ids[:, :-1], ids[:, 1:])[0]
        word = torch.tensor([tokenizer.decode([i]).startswith(' ') for i in ids[0, 1:].tolist()]).cumsum(0) - 1
        return bits[(word >= first) & (word < end)].sum(), bits[word >= end].sum()
    expected = []
    for (*_, right, wrong), (first, end, first_wrong, end_wrong) in zip(pairs, parts):
        (differ, last), (differ_wrong, last_wrong) = by_words(right, first, end), by_words(wrong, first_wrong, end_wrong)
        expected.append((bool(differ > differ_wrong), bool(last > last_wrong)))
    assert [*zip(*blimp.right_by_parts(folder, pairs))] == expected
    assert [blimp.last_in_common(right.split(), wrong.split()) for *_, right, wrong in pairs] == [1, 0, 2, 2]
    assert len({*expected}) > 1
