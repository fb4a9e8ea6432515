"""What docs/ and README say of a study, computed again from its .csv file: tables, ranges, and the figures in sentences."""
import csv
import math
import re
from collections import defaultdict
from statistics import fmean

import pytest

from helpers import ROOT

TABLES = dict(embedding='embedding', sharing='sharing', dropout='dropout', schedule='schedule', curriculum='curriculum', ideas='ideas_table',
              ideas_600='ideas_600')


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


def ends(study, held_out='first'):
    """{name: [the last figure of each seed]}"""
    return {name: [curve[-1][1] for curve in seeds] for name, seeds in curves(study, held_out).items()}


def table(study):
    """{name: {column: cell}} of a study's page."""
    rows = [[cell.strip() for cell in line.strip('|').split('|')] for line in read(f'docs/{TABLES[study]}.md').splitlines()
            if line.startswith('|')]
    return {row[0]: dict(zip(rows[0], row)) for row in rows[2:]}


def said(values):
    """A mean and a range as the tables write them."""
    return f'{fmean(values):.3f} ' + (f'({min(values):.3f} to {max(values):.3f}, {len(values)})' if len(values) > 1 else '(1 seed)')


def overlap(some, others):
    """A tie: the ranges overlap."""
    return min(some) <= max(others) and min(others) <= max(some)


def page(path):
    """A page as one line, so that a sentence can be looked for."""
    return ' '.join(read(path).split())


@pytest.mark.parametrize('study', TABLES)
def test_a_table_has_the_rows_of_its_csv_and_their_lowest_figures(study):
    rows, found, whole = table(study), curves(study), ends(study, 'all')
    assert {*rows} == {*found}
    for name, row in rows.items():
        if study != 'embedding':   # where the last figure of each row is its lowest
            lowest = fmean(min(bits for _, bits in curve) for curve in found[name])
            assert float(row['lowest on the way']) == pytest.approx(lowest, abs=0.00051), name
            assert name not in whole or row['bits per byte (range, seeds)'] == said(whole[name]), name
        seeds = re.search(r'(\d+)\)$|\((1) seed\)', row['bits per byte (range, seeds)'])
        assert int(seeds[1] or seeds[2]) == len(found[name]), name


def test_the_table_of_embeddings_is_made_of_its_curves_and_of_the_seconds_of_a_step():
    first, whole = curves('embedding'), curves('embedding', 'all')
    steps = {row['name']: row for row in lines('docs/embedding_steps.csv')}
    assert all(float(row['lowest']) <= float(row['seconds']) <= float(row['highest']) for row in steps.values())
    budget = 450 * float(steps['byte_pool']['seconds'])
    read_bytes = {row['name']: int(row['bytes']) for row in lines('docs/embedding.csv')}   # the last line's
    for name, row in table('embedding').items():
        ends = [curve[-1] for curve in first[name]]
        assert row['bits per byte (range, seeds)'] == said([bits for _, bits in ends]), name
        assert row['of all 2.8 MB (range, seeds)'] == said([curve[-1][1] for curve in whole[name]]), name
        at_equal_time = name.endswith(' steps')
        seconds = float(steps[re.sub(r', (tuned|muon [\d.]+|\d+ steps)', '', name)]['seconds'])
        n_steps, = {step for step, _ in ends}
        assert n_steps == (round(budget / seconds) if at_equal_time else 450), name
        assert row['seconds'] == f'{n_steps * seconds:.0f}' and row['text, MB'] == f'{read_bytes[name] / 1e6:.1f}', name


# ---- BLiMP: docs/blimp.csv has a line for each template and for how long the right sentence is beside the wrong one

BLIMP = lines('docs/blimp.csv')
PAIRS = sum(int(row['pairs']) for row in BLIMP)
LARGE, SMALL = ([f'{name}-{seed}' for seed in (1337, 1338)] for name in ('gpt2_softmax_4_x_256', 'byte_pool_4_x_256_muon_0.02'))
KINDS = {'shorter': 'shorter', 'longer': 'longer', 'as long, other words': 'as long', 'as long, the same words in another order': 'reordered'}
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


def result_rows(first_column, path='docs/results.md'):
    """The rows of that table of a page whose head begins so: [[cell]], without **."""
    page = read(path).replace('**', '').splitlines()
    start = next(i for i, line in enumerate(page) if line.startswith(f'| {first_column}'))
    return [[cell.strip() for cell in line.strip('|').split('|')] for line in page[start:page.index('', start)]]


def test_blimps_phenomena_and_lengths_are_those_of_its_templates():
    assert PAIRS == 20100 and len({row['paradigm'] for row in BLIMP}) == 67
    head, _, *rows = result_rows('% right | tiny_10m', 'docs/blimp.md')
    assert len(rows) == 12 and head[1:4] == ['tiny_10m', 'byte_10m', 'bigrams']
    for name, tiny, byte, bigram, *_ in rows:
        expected = [right(model, phenomenon=NAMES.get(name, name)) for model in ('tiny_10m', 'byte_10m', 'bigram')]
        assert [float(tiny), float(byte), float(bigram)] == pytest.approx(expected, abs=0.051), name
    head, _, *rows = result_rows('% right; the right sentence is', 'docs/blimp.md')
    models = [{'bigrams': ['bigram'], "GPT-2's table, 10 MB": LARGE, 'byte pooling, 10 MB': SMALL}.get(name, [name]) for name in head[2:]]
    for name, pairs, *found in rows:
        which = {'right_sentence': KINDS[name]} if name in KINDS else {}
        expected = [fmean(right(seed, **which) for seed in seeds) for seeds in models]
        assert [float(x) for x in found] == pytest.approx(expected, abs=0.051), name
        assert int(pairs.replace(',', '')) == sum(int(row['pairs']) for row in BLIMP if not which or row['right sentence'] == KINDS[name])


def test_where_in_the_sentence_blimps_pairs_are_won():
    head, _, *rows = result_rows('% right by; the right sentence is', 'docs/blimp.md')
    columns = [('tiny_10m, differing', 'pairs'), ('byte_10m, differing', 'pairs'),
               ('tiny_10m, last', 'with last words'), ('byte_10m, last', 'with last words')]
    for name, *found in rows:
        lines_of = [row for row in BLIMP if name == 'all' or row['right sentence'] == KINDS[name]]
        expected = [100 * sum(int(row[hits]) for row in lines_of) / sum(int(row[of]) for row in lines_of) for hits, of in columns]
        assert [float(x) for x in found] == pytest.approx(expected, abs=0.051), name
    assert 'by the words that differ ({1} beside {2} %) more than by the last words ({3} beside {4})'.format(*rows[-1]) in page('docs/blimp.md')


def test_blimps_errors_count_phenomena_not_pairs():
    rows = {row[0]: row for row in result_rows('| items')}
    for model, column in (('tiny_10m', 3), ('byte_10m', 4)):
        mean, error = mean_and_error([*by_phenomenon(lambda row: int(row[model])).values()])
        assert rows['BLiMP'][column] == f'{100 * mean:.1f} ± {100 * error:.1f}'
        card = read(f'pretrained/{model}/README.md')
        assert f'{100 * mean:.1f} ± {100 * error:.1f} %' in card
    published = {NAMES.get(name, name): float(five) for name, *_, five, _, _ in result_rows('% right | tiny_10m', 'docs/blimp.md')[2:]}
    ours = by_phenomenon(lambda row: int(row['tiny_10m']))
    ahead = {name: hits / pairs - published[name] / 100 for name, (pairs, hits) in ours.items()}
    mean, error = mean_and_error([(pairs, pairs * ahead[name]) for name, (pairs, _) in ours.items()])
    assert f'5-gram by {100 * mean:.1f} ± {100 * error:.1f}' in page('docs/results.md')
    assert f'5-gram by {100 * mean:.1f} ± {100 * error:.1f}, in seven phenomena and a tie' in page('docs/blimp.md')
    assert sum(x > 0.01 for x in ahead.values()) == 7 and sum(abs(x) < 0.01 for x in ahead.values()) == 1
    mean, error = mean_and_error([*by_phenomenon(lambda row: (sum(int(row[seed]) for seed in SMALL) - sum(int(row[seed]) for seed in LARGE)) / 2).values()])
    assert f"byte pooling has {100 * mean:.1f} ± {100 * error:.1f} % more right than GPT-2's table" in page('docs/blimp.md')
    mean, error = mean_and_error([*by_phenomenon(lambda row: int(row['byte_10m']) - int(row['bigram'])).values()])
    assert f'{100 * mean:.1f} ± {100 * error:.1f} above the bigrams' in page('docs/blimp.md')


def test_agreement_at_hand_and_at_a_distance_is_what_the_templates_say():
    text = page('docs/blimp.md')
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
    rows, first = table('ideas'), ends('ideas')
    last = {name: row['bits per byte (range, seeds)'].split()[0] for name, row in rows.items()}
    found = {name: bits for name, bits in re.findall(r'^\| (\w+) \| [^|\d][^|]*\| (\d\.\d+)', read('docs/ideas.md'), flags=re.M)}
    assert {*found} == {name for name in rows if 'plain' not in name} - {'teacher'}
    for name in found:
        assert found[name] == last[name], name
    for name, words in (('mixture_of_depths', 'three layers: {plain, 3 layers}'), ('experts', 'feed-forward: {plain, wide ffn}'),
                        ('pause_tokens', 'a fifth layer: {plain, 5 layers}'), ('distillation', 'three times the steps: {teacher}')):
        assert re.sub(r'\{(.*?)\}', lambda found: last[found[1]], words) in page('docs/ideas.md'), name
    gains = [plain - mixed for plain, mixed in zip(first['plain'], first['value_residual'])]
    assert min(gains) > 0 and f'{min(gains):.3f} to {max(gains):.3f}' in read('ideas/value_residual.py')


def test_what_is_said_of_ideas_in_600_steps_is_in_their_curves():
    whole, text = ends('ideas_600', 'all'), page('docs/ideas.md')
    mean = {name.removesuffix(' steps'): f'{fmean(bits):.3f}' for name, bits in whole.items()}
    plain, rows = whole['plain, 600 steps'], result_rows('| bits per byte, plain: ' + mean['plain, 600'], 'docs/ideas.md')[2:]
    minutes = {name: row['minutes'] for name, row in table('ideas_600').items()}
    assert f'minutes, plain: {minutes["plain, 600 steps"]} |' in text and {len(bits) for bits in whole.values()} == {2}
    assert [row[0] for row in rows] == ['value_residual', 'experts', 'early_exit', 'distillation']
    for name, cell, took, _ in rows:
        bits = whole[f'{name}, 600 steps']
        assert cell.startswith(f'{fmean(bits):.3f} ({min(bits):.3f} to {max(bits):.3f})') and took == minutes[f'{name}, 600 steps'], name
        assert ('a tie' in cell) == overlap(bits, plain), name
    for name, steps in (('early_exit', 792), ('distillation', 864)):
        assert f'{mean[f"plain, {steps}"]} ({steps} steps, {minutes[f"plain, {steps} steps"]} minutes)' in text
        share = [float(table('ideas_600')[row]['PFLOP']) for row in (f'{name}, 600 steps', f'plain, {steps} steps')]
        assert share[0] == pytest.approx(share[1], rel=0.005)
    assert f"its teacher of 1200 steps {mean['teacher, 1200']} |" in text and f"own training {mean['plain, 2064']} (2064 steps)" in text
    assert max(whole['experts, 600 steps']) < min(plain) and float(minutes['plain, 792 steps']) <= float(minutes['experts, 600 steps'])
    assert max(whole['plain, 792 steps']) < min(whole['experts, 600 steps'])
    assert max(whole['distillation, 600 steps']) < min(whole['plain, 864 steps'])
    found = mean['experts, 600'], mean['plain, 600'], mean['distillation, 600'], mean['plain, 864']
    assert '({} beside {}), not for as many minutes, and a teacher does if one has it already ({} beside {})'.format(*found) in page('docs/results.md')
    for idea, figures in (('experts', ['experts, 600', 'plain, 600', 'plain, 792']), ('early_exit', ['early_exit, 600', 'plain, 600']),
                          ('distillation', ['distillation, 600', 'plain, 864', 'plain, 2064']), ('value_residual', ['value_residual, 600', 'plain, 600'])):
        assert {mean[row] for row in figures} <= {*re.findall(r'\d\.\d{3}', read(f'ideas/{idea}.py'))}, idea


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
    lowest = {name: [min(bits for _, bits in curve) for curve in seeds] for name, seeds in curves('dropout').items()}
    best = {name: f'{fmean(bits):.3f}' for name, bits in lowest.items()}
    sharing, dropout, bits = last['sharing'], last['dropout'], ends('sharing', 'all')
    assert {len(seeds) for seeds in bits.values()} == {2}
    assert f'is a tie with base ({sharing["ffn"]} beside {sharing["base"]}), and with adapters hardly more ' in text
    assert overlap(bits['ffn'], bits['base']) and max(bits['ffn + LoRA']) < min(bits['base'])
    assert f'hardly more ({fmean(bits["base"]) - fmean(bits["ffn + LoRA"]):.3f} better)' in text
    costs = [fmean(bits[name]) - fmean(bits['base']) for name in ('block', 'block x 2')]
    assert 'One block for all costs {:.3f}, each block twice {:.3f}.'.format(*costs) in text
    assert max(bits['base']) < min(bits['block'] + bits['block x 2']) and max(bits['block + LoRA']) < min(bits['base'])
    assert f'is **ahead** of base: {sharing["block + LoRA"]}, with 1.9 million' in text
    assert f'ahead of four of its own ({sharing["block + LoRA"]} beside {sharing["base"]})' in text
    assert f'a thin feed-forward in each layer, {sharing["base, thin ffn"]}, is a tie with the shared one' in text
    assert overlap(bits['base, thin ffn'], bits['ffn']) and max(bits['block']) < min(bits['base, narrow'])
    assert f'1.4 million, {sharing["base, narrow"]}, is behind the shared block\'s {sharing["block"]}' in text
    constant, all_of_it = '10 epochs, dropout constant', '10 epochs, dropout, decay, ema'
    bits = ends('dropout', 'all')
    assert {len(seeds) for seeds in bits.values()} == {2} and max(bits['base']) < min(bits['dropout constant'])
    assert f'dropout only costs: {fmean(bits["dropout constant"]) - fmean(bits["base"]):.3f}' in text
    assert overlap(bits['dropout early linear'], bits['base']) and overlap(bits['dropout late'], bits['base'])
    assert f'({dropout["dropout early linear"]} and {dropout["dropout late"]} beside {dropout["base"]})' in text
    assert f'late at {dropout["10 epochs, dropout late"]}, early at {dropout["10 epochs, dropout early linear"]}' in text
    worse_from = {name: [min(curve, key=lambda point: point[1])[0] for curve in seeds] for name, seeds in curves('dropout').items() if '10' in name}
    assert {name for name, steps in worse_from.items() if {*steps} != {50}} == {all_of_it}   # of 200
    assert f'ends at {dropout[constant]} instead of {dropout["10 epochs"]}' in text
    assert f'has {best[constant]} instead of {best["10 epochs"]} (the first 32,768 tokens): a tie' in text
    assert overlap(lowest[constant], lowest['10 epochs']) and max(lowest[all_of_it]) < min(lowest[constant])
    assert f'averaged weights together have {best[all_of_it]}, ahead with both seeds' in text
    bits = ends('schedule', 'all')
    behind = {f'{fmean(bits[name]) - fmean(bits["base"]):.3f}' for name in ('wsd', 'wsd + ema')}
    assert f'Wsd, averaged or not, is {"".join(behind)} behind cosine.' in text and max(bits['base']) < min(bits['wsd'] + bits['wsd + ema'])


def test_what_is_said_of_byte_pooling_and_tables_is_in_their_curves():
    text, first = page('docs/results.md'), ends('embedding')
    last = {name: f'{fmean(bits):.3f}' for name, bits in first.items()}
    whole = {name: f'{fmean(bits):.3f}' for name, bits in ends('embedding', 'all').items()}
    ours, large, factorised = 'byte_pool', 'gpt2 softmax', 'gpt2 softmax, factorised'
    assert f"has {last[ours]} on the first 141 kB of held-out text, GPT-2's table with 11.6 million {last[large]}, a factorised table" in text
    assert f"of byte pooling's size and width {last[factorised]}: three seeds each, whose ranges don't overlap" in text
    assert {len(first[name]) for name in (ours, large, factorised)} == {3}
    assert max(first[ours]) < min(first[large]) and max(first[large]) < min(first[factorised])
    assert (f'A narrow model of that size has {last["gpt2 softmax, small"]}, a table of 8,192 tokens (`bpe8192`) {last["bpe8192 softmax"]}, '
            f'raw bytes {last["bytes"]}: one seed each') in text
    assert {len(first[name]) for name in ('gpt2 softmax, small', 'bpe8192 softmax', 'bytes')} == {1}
    assert f'has {last["byte_pool, muon 0.02"]} with half of Muon\'s rate, {last["byte_pool, muon 0.01"]} with a quarter' in text
    at_their_rates = 'byte_pool, muon 0.02', 'gpt2 softmax, tuned', 'gpt2 softmax, factorised, tuned', 'bpe8192 softmax, tuned'
    tuned = [whole[name] for name in at_their_rates]
    assert [len(first[name]) for name in at_their_rates] == [2, 2, 1, 1] and len(first['bpe8192 softmax, tuned, 961 steps']) == 2
    assert 'of all held-out text (two seeds of the first two, one of the others): byte pooling {}, GPT-2\'s table {}, the factorised one {}, `bpe8192` {}'.format(*tuned) in text
    as_long = 'bpe8192 softmax, tuned, 961 steps'
    assert f'has 961 steps, reads 8.8 MB, and ends at {whole[as_long]} (two seeds)' in text
    ahead = 1 - float(whole[as_long]) / float(whole['byte_pool, muon 0.02'])
    assert f'and is {ahead:.0%} better'.replace('%', ' %') in page('README.md')
    assert f'after 4 MB {tuned[0]}, a factorised table {tuned[2]} |' in text
    assert f'yes ({tuned[0]} beside {tuned[3]}); after the same time on a CPU, when it has read twice as much, no ({whole[as_long]})' in text
    assert (f"{last[factorised]} bits per byte beside byte pooling's {last[ours]} and the plain table's {last[large]}" in page('ideas/factorised.py'))
    assert f'{last[factorised]}, byte pooling of its size {last[ours]}' in page('docs/ideas.md')


def test_what_rates_gain_is_in_their_figures():
    found, text = defaultdict(dict), page('docs/results.md')
    for row in lines('docs/embedding_rates.csv'):
        found[row['name']][float(row['learning_rate']), float(row['muon_lr'])] = float(row['val_bpb'])
    gains = {name: bits[6e-3, 0.04] - min(bits.values()) for name, bits in found.items()}
    assert {name: len(bits) for name, bits in found.items()} == {
        'byte_pool': 6, 'gpt2 softmax': 9, 'gpt2 softmax, factorised': 7, 'bpe8192 softmax': 7}
    assert (f"the best of seven to nine rates gains {gains['gpt2 softmax']:.3f} for GPT-2's table, {gains['gpt2 softmax, factorised']:.3f} "
            f"for the factorised one, {gains['bpe8192 softmax']:.3f} for `bpe8192`; of six for byte pooling none is better") in text
    assert gains['byte_pool'] == 0


def test_the_pair_after_ten_megabytes_is_in_its_files():
    read_in = {kind: ends('pair', kind) for kind in ('all', 'test')}
    choices = defaultdict(list)
    for row in lines('docs/pair_choices.csv'):
        choices[row['name'], row['task']].append(f'{100 * int(row["right"]) / int(row["items"]):.1f}')
    runs = {'6e-3, 0.04': 'byte_pool, 4 x 256', '6e-3, 0.02': 'byte_pool, 4 x 256, muon 0.02', '12e-3, 0.02': 'gpt2 softmax, 4 x 256'}
    rows = result_rows('| parameters, M | AdamW, Muon')[2:]
    assert [row[2] for row in rows] == [*runs]
    for _, _, rates, val, test, *tasks in rows:
        for cell, kind in ((val, 'all'), (test, 'test')):
            bits = read_in[kind].get(runs[rates])
            assert cell == (f'{fmean(bits):.3f} ({min(bits):.3f} to {max(bits):.3f})' if bits else '–') and len(bits or '12') == 2
        assert tasks == [', '.join(choices[runs[rates], task]) or '–' for task in ('blimp', 'arc_easy', 'hellaswag')]
    ours, large = (read_in['all'][runs[rates]] for rates in ('6e-3, 0.02', '12e-3, 0.02'))
    assert overlap(ours, large)
    for text in page('README.md'), page('docs/results.md'):
        assert f'{fmean(ours):.3f}' in text and f'{fmean(large):.3f}' in text
    assert (f'{fmean(ours):.3f} bits per byte with 4.7 million parameters, {fmean(large):.3f} with 16.3' in page('README.md'))
