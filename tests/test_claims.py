"""What docs/ and README say of a study, computed again from its .csv file: tables, ranges, and the figures in sentences."""
import csv
import math
import re
from collections import defaultdict
from statistics import fmean

import numpy as np
import pytest

from helpers import ROOT

TABLES = dict(embedding='embedding', sharing='sharing', dropout='dropout', schedule='schedule', curriculum='curriculum', ideas='ideas_table')


def read(path):
    return (ROOT / path).read_text(encoding='utf-8')


def lines(path):
    with open(ROOT / path, encoding='utf-8', newline='') as file:
        return list(csv.DictReader(file))


def curves(study, held_out='first'):
    """{name: [[(step, bits per byte)] for each seed]}"""
    found = defaultdict(list)
    for row in lines(f'docs/{study}.csv'):
        if row.get('held_out', 'first') == held_out:
            found[row['name'], row['seed']].append((int(row['iter']), float(row['val_bpb'])))
    names = defaultdict(list)
    for (name, _), curve in found.items():
        names[name].append(curve)
    return dict(names)


def table(study):
    """{name: {column: cell}} of a study's page."""
    rows = [[cell.strip() for cell in line.strip('|').split('|')] for line in read(f'docs/{TABLES[study]}.md').splitlines()
            if line.startswith('|')]
    return {row[0]: dict(zip(rows[0], row)) for row in rows[2:]}


def said(values):
    """A mean and a range as the tables write them."""
    return f'{fmean(values):.3f} ' + (f'({min(values):.3f} to {max(values):.3f}, {len(values)})' if len(values) > 1 else '(1 seed)')


def page(path):
    """A page as one line, so that a sentence can be looked for."""
    return ' '.join(read(path).split())


@pytest.mark.parametrize('study', TABLES)
def test_a_table_has_the_rows_of_its_csv_and_their_lowest_figures(study):
    rows, found = table(study), curves(study)
    assert {*rows} == {*found}
    for name, row in rows.items():
        lowest = fmean(min(bits for _, bits in curve) for curve in found[name])
        assert float(row['lowest on the way']) == pytest.approx(lowest, abs=0.00051), name
        seeds = re.search(r'(\d+)\)$|\((1) seed\)', row['bits per byte (range, seeds)'])
        assert int(seeds[1] or seeds[2]) == len(found[name]), name


@pytest.mark.parametrize('study', TABLES)
def test_its_last_figures_are_the_means_and_ranges_of_the_seeds(study):
    on_the_way, at_the_end = curves(study), curves(study, 'all')
    if 'held_out' not in lines(f'docs/{study}.csv')[0]:   # an older file, which has only what was read on the way
        return
    if part := sum(map(len, on_the_way.values())) != sum(map(len, at_the_end.values())):
        assert 'Both figures are of the first 32,768 held-out tokens' in page(f'docs/{TABLES[study]}.md')
    for name, row in table(study).items():
        ends = on_the_way[name] if part else at_the_end[name]
        assert row['bits per byte (range, seeds)'] == said([curve[-1][1] for curve in ends]), name


def test_bits_per_byte_at_equal_time_are_read_from_the_curves():
    seconds, found = {row['name']: float(row['seconds']) for row in lines('docs/embedding_steps.csv')}, curves('embedding')
    text = read('docs/embedding.md')
    budget = min(seconds[name] * 450 for name in found)
    assert f'At equal time, {budget:,.0f} seconds' in text
    for name, seeds in found.items():
        bits = [np.interp(budget / seconds[name], *zip(*curve)) for curve in seeds]
        assert f'- {name}: {seconds[name]:.2f} s a step, {budget / seconds[name]:.0f} steps, {said(bits)}' in text


# ---- BLiMP: docs/blimp.csv has a line for each template and for how long the right sentence is beside the wrong one

BLIMP = lines('docs/blimp.csv')
PAIRS = sum(int(row['pairs']) for row in BLIMP)
NAMES = {'control/raising': 'control raising', 'determiner-noun agreement': 'determiner noun agreement', 'filler-gap': 'filler gap dependency',
         'islands': 'island effects', 'NPI licensing': 'npi licensing', 'subject-verb agreement': 'subject verb agreement'}


def right(model, **which):
    """% of the pairs that a model has right, of those whose columns are as asked."""
    rows = [row for row in BLIMP if all(row[key.replace('_', ' ')] == value for key, value in which.items())]
    return 100 * sum(int(row[model]) for row in rows) / sum(int(row['pairs']) for row in rows)


def mean_and_error(hits):
    """The mean of (pairs, points) of phenomena, and its standard error if pairs of one phenomenon stand or fall together."""
    n = sum(pairs for pairs, _ in hits)
    mean = sum(points for _, points in hits) / n
    return mean, math.sqrt(len(hits) / (len(hits) - 1) * sum((points - pairs * mean)**2 for pairs, points in hits)) / n


def by_phenomenon(points):
    """[(pairs, points)] of each phenomenon; points(row) says how many a line has."""
    found = defaultdict(lambda: [0, 0])
    for row in BLIMP:
        found[row['phenomenon']][0] += int(row['pairs'])
        found[row['phenomenon']][1] += points(row)
    return {name: tuple(value) for name, value in found.items()}


def result_rows(first_column):
    """The rows of that table of results.md whose head begins so: [[cell]], without **."""
    page = read('docs/results.md').replace('**', '').splitlines()
    start = next(i for i, line in enumerate(page) if line.startswith(f'| {first_column}'))
    return [[cell.strip() for cell in line.strip('|').split('|')] for line in page[start:page.index('', start)]]


def test_blimps_phenomena_and_lengths_are_those_of_its_templates():
    assert PAIRS == 20100 and len({row['paradigm'] for row in BLIMP}) == 67
    head, _, *rows = result_rows('% right | tiny_10m')
    assert len(rows) == 12 and head[1:4] == ['tiny_10m', 'byte_10m', 'bigrams']
    for name, tiny, byte, bigram, *_ in rows:
        expected = [right(model, phenomenon=NAMES.get(name, name)) for model in ('tiny_10m', 'byte_10m', 'bigram')]
        assert [float(tiny), float(byte), float(bigram)] == pytest.approx(expected, abs=0.051), name
    head, _, *rows = result_rows('% right; the right sentence is')
    kinds = {'shorter': 'shorter', 'longer': 'longer', 'as long, other words': 'as long',
             'as long, the same words in another order': 'reordered'}
    models = [{'bigrams': 'bigram'}.get(name.removesuffix(', 4 MB'), name.removesuffix(', 4 MB')) for name in head[2:]]
    for name, pairs, *found in rows:
        which = {'right_sentence': kinds[name]} if name in kinds else {}
        assert [float(x) for x in found] == pytest.approx([right(model, **which) for model in models], abs=0.051), name
        assert int(pairs.replace(',', '')) == sum(int(row['pairs']) for row in BLIMP if not which or row['right sentence'] == kinds[name])


def test_blimps_errors_count_phenomena_not_pairs():
    rows = {row[0]: row for row in result_rows('| items')}
    for model, column in (('tiny_10m', 3), ('byte_10m', 4)):
        mean, error = mean_and_error([*by_phenomenon(lambda row: int(row[model])).values()])
        assert rows['BLiMP'][column] == f'{100 * mean:.1f} ± {100 * error:.1f}'
        card = read(f'pretrained/{model}/README.md')
        assert f'{100 * mean:.1f} ± {100 * error:.1f} %' in card
    published = {NAMES.get(name, name): float(five) for name, *_, five, _, _ in result_rows('% right | tiny_10m')[2:]}
    ours = by_phenomenon(lambda row: int(row['tiny_10m']))
    ahead = {name: hits / pairs - published[name] / 100 for name, (pairs, hits) in ours.items()}
    mean, error = mean_and_error([(pairs, pairs * ahead[name]) for name, (pairs, _) in ours.items()])
    assert f'5-gram by {100 * mean:.1f} ± {100 * error:.1f}, in seven phenomena and a tie' in page('docs/results.md')
    assert sum(x > 0.01 for x in ahead.values()) == 7 and sum(abs(x) < 0.01 for x in ahead.values()) == 1
    mean, error = mean_and_error([*by_phenomenon(lambda row: int(row['gpt2 softmax']) - int(row['byte_pool'])).values()])
    assert f'{100 * mean:.1f} ± {100 * error:.1f} more than byte_pool' in page('docs/results.md')
    mean, error = mean_and_error([*by_phenomenon(lambda row: int(row['byte_10m']) - int(row['bigram'])).values()])
    assert f'{100 * mean:.1f} ± {100 * error:.1f} above them' in page('docs/results.md')


def test_agreement_at_hand_and_at_a_distance_is_what_the_templates_say():
    text = page('docs/results.md')
    near = [f'{kind}_plural_subject_verb_agreement_{i}' for kind in ('regular', 'irregular') for i in (1, 2)]
    far = ['distractor_agreement_relational_noun', 'distractor_agreement_relative_clause']
    for model, words in (('byte_10m', 'in {} to {} %, with another noun between in {} and {} '), ('tiny_10m', '(tiny_10m: {} to {}, {} and {})')):
        beside = [right(model, paradigm=paradigm) for paradigm in near]
        apart = sorted(right(model, paradigm=paradigm) for paradigm in far)
        anaphors = round(right(model, phenomenon='anaphor agreement'))
        assert (f'Anaphors agree in {anaphors} %' if model == 'byte_10m' else f'(tiny_10m: {anaphors})') in text
        assert words.format(*(round(x) for x in (min(beside), max(beside), *apart))) in text, model


# ---- ideas

def test_the_page_of_ideas_says_what_its_table_says():
    rows, ends = table('ideas'), {name: [curve[-1][1] for curve in seeds] for name, seeds in curves('ideas').items()}
    last = {name: row['bits per byte (range, seeds)'].split()[0] for name, row in rows.items()}
    found = {name: bits for name, bits in re.findall(r'^\| (\w+) \| [^|\d][^|]*\| (\d\.\d+)', read('docs/ideas.md'), flags=re.M)}
    assert {*found} == {name for name in rows if 'plain' not in name} - {'teacher'}
    for name in found:
        assert found[name] == last[name], name
    for name, words in (('mixture_of_depths', 'three layers: {plain, 3 layers}'), ('experts', 'feed-forward: {plain, wide ffn}'),
                        ('pause_tokens', 'a fifth layer: {plain, 5 layers}'), ('distillation', 'three times the steps: {teacher}')):
        assert re.sub(r'\{(.*?)\}', lambda found: last[found[1]], words) in page('docs/ideas.md'), name
    gains = [plain - mixed for plain, mixed in zip(ends['plain'], ends['value_residual'])]
    assert min(gains) > 0 and f'{min(gains):.3f} to {max(gains):.3f}' in read('ideas/value_residual.py')


def test_the_operations_of_the_ideas_are_those_of_a_count_by_hand():
    C, V, T, used = 128, 4096, 256, 128   # of 256 tokens mixture of depths takes 128

    def block(n, d_ff=384):   # n tokens of one text: projections and feed-forward; q k' and its product with v
        return 2 * n * (4 * C * C + 3 * C * d_ff) + 4 * n * n * C

    head = 2 * T * C * V
    plain = 4 * block(T) + head
    forward = {   # of a text; a backward pass costs two
        'plain': plain, 'value_residual': plain, 'fill_in_the_middle': plain, 'teacher': 3 * plain,   # three times the steps
        'experts': plain + 4 * 2 * T * C * 8, 'plain, wide ffn': 4 * block(T, 1536) + head, 'early_exit': plain + head,
        'self_speculation': plain + head, 'pause_tokens': 4 * block(T + T // 4) + head, 'plain, 5 layers': 5 * block(T) + head,
        'distillation': plain + plain / 3 + head / 3,   # the teacher's head has a backward pass to its states, too
        'mixture_of_depths': 2 * block(T) + 2 * block(used) + head, 'plain, 3 layers': 3 * block(T) + head,
        'next_thought': plain + 2 * (T - 4) * C * C}
    rows = table('ideas')
    assert {name: row['PFLOP'] for name, row in rows.items()} == {
        name: f'{3 * forward[name] / T * 100 * 2048 / 1e15:.4f}' for name in rows}
    share = {name: forward[name] / plain for name in forward}
    assert f'a tie at {share["mixture_of_depths"]:.2f} of the' in page('docs/ideas.md')
    assert f'three layers: {table("ideas")["plain, 3 layers"]["bits per byte (range, seeds)"].split()[0]} at {share["plain, 3 layers"]:.2f}' in page('docs/ideas.md')


# ---- sentences of results.md

def test_what_is_said_of_sharing_and_dropout_is_in_their_tables():
    text = page('docs/results.md')
    last = {study: {name: row['bits per byte (range, seeds)'].split()[0] for name, row in table(study).items()} for study in TABLES}
    best = {name: f'{fmean(min(bits for _, bits in curve) for curve in seeds):.3f}' for name, seeds in curves('dropout').items()}
    sharing, dropout = last['sharing'], last['dropout']
    assert sharing['ffn'] == sharing['block x 2']
    assert f'is a tie with base ({sharing["ffn"]} beside {sharing["base"]})' in text
    assert f'rank 16 in each layer ({sharing["block + LoRA"]})' in text
    assert f'one block for all cost {float(sharing["block"]) - float(sharing["base"]):.3f}' in text
    assert f'a thin one in each layer had {sharing["base, thin ffn"]}' in text
    constant, all_of_it = '10 epochs, dropout constant', '10 epochs, dropout, decay, ema'
    assert f'dropout only cost: {float(dropout["dropout constant"]) - float(dropout["base"]):.3f}' in text
    assert f'ends at {dropout[constant]} instead of {dropout["10 epochs"]}' in text
    assert f'has {best[constant]} instead of {best["10 epochs"]}: a tie' in text
    assert f'did dropout help, {best[all_of_it]}' in text


def test_what_is_said_of_byte_pooling_and_tables_is_in_their_curves():
    text, found = page('docs/results.md'), curves('embedding')
    seconds = {row['name']: float(row['seconds']) for row in lines('docs/embedding_steps.csv')}
    budget = min(seconds[name] * 450 for name in found)
    ours, large, factorised = ([fmean(curve[-1][1] for curve in found[name]), fmean(
        np.interp(budget / seconds[name], *zip(*curve)) for curve in found[name])] for name in
        ('byte_pool', 'gpt2 softmax', 'gpt2 softmax, factorised'))
    assert (f"is at {ours[0]:.3f} of the first held-out tokens, GPT-2's softmax with 11.6 million at {large[0]:.3f}") in text
    assert f'size and width at {factorised[0]:.3f}' in text
    assert (f"{factorised[0]:.3f} bits per byte beside byte pooling's {ours[0]:.3f} and the plain table's {large[0]:.3f}"
            in page('ideas/factorised.py'))
    assert f'{factorised[0]:.3f}, byte pooling of its size {ours[0]:.3f}' in page('docs/ideas.md')
    assert f'Byte pooling is {100 * (1 - ours[0] / large[0]):.1f} % ahead of the large table' in text
    assert f'and {100 * (1 - ours[0] / factorised[0]):.1f} % of the one of its size' in text
    assert f'{budget:.0f} seconds of one core, it has {ours[1]:.3f}, the large table {large[1]:.3f}' in text
    assert f'which has finished by then, {factorised[1]:.3f}' in text
    whole = {name: seeds[0][-1][1] for name, seeds in curves('embedding', 'all').items()}
    assert (f'(seed 1337) it has {whole["byte_pool"]:.3f} beside {whole["gpt2 softmax"]:.3f} and {whole["gpt2 softmax, factorised"]:.3f}, '
            f'and a table of 8,192 tokens (`bpe8192`) {whole["bpe8192 softmax"]:.3f}.') in text
    assert f'it is worse: {whole["bpe8192 softmax"]:.3f} beside {whole["byte_pool"]:.3f}' in text
    assert ', '.join(f'{name} {bits:.3f}' for name, bits in whole.items()) in page('docs/embedding.md')


def test_rates_that_suit_the_large_table_could_close_its_gap_as_results_say():
    found, text = defaultdict(dict), page('docs/results.md')
    for row in lines('docs/embedding_rates.csv'):
        found[row['name']][float(row['learning_rate']), float(row['muon_lr'])] = float(row['val_bpb'])
    ours, large = found['byte_pool'], found['gpt2 softmax']
    assert min(ours, key=ours.get) == (6e-3, 0.04) and f'the best of five for byte pooling, {min(ours.values()):.3f}' in text
    assert len(ours) == 5 and len(large) == 7 and min(large, key=large.get) == (12e-3, 0.02)
    gain, ends = large[6e-3, 0.04] - large[12e-3, 0.02], {name: fmean(curve[-1][1] for curve in each) for name, each in curves('embedding').items()}
    behind = ends['gpt2 softmax'] - ends['byte_pool']
    assert f'The large table has {large[6e-3, 0.04]:.3f}, and {large[12e-3, 0.02]:.3f}, its best of seven, with AdamW\'s rate doubled and Muon\'s halved: {gain:.3f} less' in text
    assert f'more than the {behind:.3f} that it is behind' in text
    lead = ends['gpt2 softmax, factorised'] - ends['byte_pool']
    assert f'over the factorised one, {lead:.3f}, is more than twice' in text and lead > 2 * gain


def test_byte_poolings_lead_is_the_one_that_readme_and_results_state():
    ends = {name: [curve[-1][1] for curve in found] for name, found in curves('embedding').items()}
    readme, results = page('README.md'), page('docs/results.md')
    for name, in_readme, in_results in (
            ('gpt2 softmax, factorised', '{} ahead of a table with as many parameters', '{} of the one of its size'),
            ('gpt2 softmax', "{} ahead of GPT-2's large one, with each of three seeds", '{} ahead of the large table')):
        lead = f'{1 - fmean(ends["byte_pool"]) / fmean(ends[name]):.1%}'.replace('%', ' %')
        assert in_readme.format(lead) in readme and in_results.format(lead) in results
        assert len(ends[name]) == 3 and max(ends['byte_pool']) < min(ends[name])
