"""What the documentation promises: pictures, the lesson, the exercises, links and commands."""
import contextlib
import functools
import io
import json
import math
import os
import pathlib
import re
import shutil
import subprocess
import sys
from xml.etree import ElementTree

import numpy as np
import pytest
import torch

import prepare_wiki
from stlm import run as runs
from tools.show import nearest
import train
from configurator import Failure
from helpers import ROOT, SMALL, copy_repository, fails_in_one_line, make_run, run, story
from model import GPT, Config, grow_tree
from prepare_wiki import split_of

from tools import attention, compress, curriculum, pictures, svg

PAGES = [ROOT / 'README.md', *sorted((ROOT / 'docs').glob('*.md'))]
STUDIES = [name for name in pictures.STUDIES if pictures.table_file(name).exists()]
PICTURES = ['transformer', 'parameters', 'schedules', 'trained', 'compress', *STUDIES]   # which depend on the code and on tables, not on a text


# ---- pictures

@pytest.mark.parametrize('name', PICTURES)
def test_the_pictures_in_assets_are_what_the_command_draws(name):
    drawn = dict(transformer=lambda: pictures.transformer(pictures.planned().config),
                 parameters=lambda: pictures.parameters(pictures.sizes()),
                 schedules=lambda: pictures.schedules(train.along, train.learning_rate_factor),
                 trained=pictures.trained, compress=lambda: compress.draw(pictures.compress_rows()),
                 **{name: functools.partial(pictures.ranges, name) for name in STUDIES})[name]()
    assert (ROOT / f'assets/{name}.svg').read_text(encoding='utf-8') == drawn.svg()


def test_the_picture_of_the_tree_tells_of_forks_and_what_is_free():
    spelling = [b'', b'a', b'an', b'and', b'the']   # forks at '', a and an; h, e and END of "the" follow by themselves
    tree, log_counts = grow_tree(spelling, torch.zeros(5), 4)
    assert '3 forks, and 1 symbols' in pictures.tree_of_choices(tree, log_counts, 3).svg()   # and: a, n and d are chosen
    assert '1 forks, and 3 symbols' in pictures.tree_of_choices(tree, log_counts, 4).svg()
    assert pictures.pooling(tree, [4, 1, 0]).svg().count('>END<') == 2 + 2       # of the two read and the two said


def test_the_picture_of_surprise_has_the_bits_and_the_chances_of_the_model_that_comes_along():
    model, tokenizer, _ = runs.load_run(ROOT / 'pretrained/tiny_10m')
    ids = [tokenizer.eot_token, *tokenizer.encode_ordinary(pictures.PROMPT)]
    every = torch.arange(tokenizer.n_vocab)
    with torch.no_grad():   # each token's cost from the tokens before it, without log_probs()
        bits = [model(torch.tensor([ids[:t]]), torch.tensor([ids[1:t + 1]]))[0, -1].item() / math.log(2) for t in range(1, len(ids))]
        h = model.hidden(torch.tensor([ids]))[:, -1:]
        p = torch.cat([(-model.tokens.nll(h.expand(len(some), -1, -1), some[:, None])).exp()[:, 0] for some in every.split(4096)])
    shown = re.findall(r'>([\d.]+)(%?)<', (ROOT / 'assets/surprise.svg').read_text(encoding='utf-8'))
    assert [float(x) for x, percent in shown if not percent and '.' in x] == pytest.approx(bits, abs=0.11)
    best = [x for x in p.sort(descending=True)[0][:6].tolist() if x >= 0.001]
    assert [float(x) / 100 for x, percent in shown if percent] == pytest.approx(best, abs=2e-3) and len(best) > 2


def test_a_study_is_drawn_as_its_table_says():
    rows = pictures.table_of('sharing')
    assert rows[0] == ('base', 2.163, 2.164, 2.166) and len(rows) == 9
    text = pictures.ranges('sharing').svg()
    circles = [float(x) for x in re.findall('<circle cx="([0-9.]+)"', text)]
    assert len(circles) == 9 and circles.index(max(circles)) == 2 and circles.index(min(circles)) == 8   # narrow, block + LoRA
    assert text.count(' ▲') == 3 + 1 and text.count(' ▼') == 1   # and the key; all seeds worse: narrow, block, block x 2; better: block + LoRA


def test_a_row_of_a_study_without_a_number_is_not_drawn(tmp_path, monkeypatch):
    monkeypatch.setattr(pictures, 'table_file', lambda study: tmp_path / 'study.md')
    for found in 'nan', 'nan (2.100 to nan)':
        (tmp_path / 'study.md').write_text(f'| | bits |\n|---|---|\n| base | 2.100 (2.000 to 2.200) |\n| wild | {found} |\n')
        with pytest.raises(Failure, match='wild'):
            pictures.table_of('study')


def test_every_colour_of_the_drawings_stands_out_from_white_and_from_black():
    def luminance(colour):
        parts = [int(colour[i:i + 2], 16) / 255 for i in (1, 3, 5)]
        return sum(w * (p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055)**2.4) for w, p in zip((0.2126, 0.7152, 0.0722), parts))
    text = ''.join((ROOT / f'assets/{name}.svg').read_text(encoding='utf-8') for name in ('surprise', 'pooling', 'tree', *PICTURES))
    for colour in {*re.findall('#[0-9a-f]{6}', text)}:
        for other in '#ffffff', '#0d1117':   # GitHub's two backgrounds; letters within a colour are white
            low, high = sorted((luminance(colour), luminance(other)))
            assert (high + 0.05) / (low + 0.05) > 4, (colour, other)


def test_the_attention_that_is_drawn_is_what_the_model_computes():
    torch.manual_seed(0)
    model = GPT(Config(vocab_size=50, block_size=16, n_layer=2, n_head=4, n_kv_head=2, n_embd=32, d_ff=48)).eval()
    seen, attn, idx = {}, model.blocks[1].attn, torch.arange(9)[None]
    attn.register_forward_hook(lambda module, inputs, out: seen.update(x=inputs[0], out=out))
    shares = attention.weights(model, idx, 1)                                    # (4, 9, 9)
    v = attn.heads(attn.value(seen['x']))[0].repeat_interleave(2, dim=0)         # (4, 9, 8)
    ours = attn.out((shares @ v).transpose(0, 1).flatten(1))                     # (9, 32)
    torch.testing.assert_close(ours, seen['out'][0], atol=1e-5, rtol=1e-4)


def test_attention_that_is_not_of_the_tokens_at_their_places_is_not_drawn():
    torch.manual_seed(0)
    for idea, layer in (('pause_tokens', 0), ('mixture_of_depths', 1)):
        module = runs.idea_module(idea)
        model = module.GPT(module.Config(vocab_size=50, block_size=16, n_layer=2, n_head=4, n_embd=32, d_ff=48)).eval()
        with pytest.raises(Failure, match=f'layer {layer + 1}'):
            attention.weights(model, torch.arange(9)[None], layer)


COLUMNS = 'iter,tokens,bytes,epoch,train_loss,val_loss,val_bpb,lr,dropout,grad_norm,tokens_per_s,seconds,mc_acc\n'


def logged_run(folder, curve, **settings):
    """A run's folder with these settings and (bytes, held-out bits per byte) in its log, between lines without any."""
    make_run(folder)
    path = folder / 'best.pt'
    runs.save_checkpoint(path, runs.load_checkpoint(path) | dict(settings=settings))
    rows = [f'{i},{i},{n},,3.5,,,0.1,0,1,100,{i},\n{i},{i},{n},,,2.0,{bits},,,,,{60 * i},\n' for i, (n, bits) in enumerate(curve)]
    (folder / 'log.csv').write_text(COLUMNS + ''.join(rows))


def test_runs_are_compared_by_what_differs_and_by_their_logs_in_any_order(tmp_path):
    logged_run(tmp_path / 'out/one', [(0, 8.0), (1e6, 3.0), (2e6, 2.5)], n_layer=1, seed=1, out_dir='out/one')
    logged_run(tmp_path / 'out/two', [(0, 8.5), (1e6, 2.25), (3e6, 2.75)], n_layer=2, seed=1, out_dir='out/two', n_experts=4)
    tables = {}
    for order in ('one', 'two'), ('two', 'one'):
        status, out, err = run(tmp_path, 'tools/compare.py', *(f'out/{name}' for name in order))
        assert status == 0, err
        header, *rows = [line.split('  ') for line in out.splitlines()[:-1]]
        rows = {row[0]: [cell.strip() for cell in row[1:] if cell.strip()] for row in rows}
        assert [cell.strip() for cell in header if cell.strip()] == [*order]
        tables[order] = {name: cells if order[0] == 'one' else cells[::-1] for name, cells in rows.items()}
        shown = (tmp_path / 'compare.svg').read_text(encoding='utf-8')
        assert '>one</text>' in shown and '>two</text>' in shown
    assert tables['one', 'two'] == tables['two', 'one'] == {
        'n_layer': ['1', '2'], 'n_experts': ['-', '4'], 'text read, MB': ['2.00', '3.00'], 'minutes': ['2.0', '2.0'],
        'bits per byte, last': ['2.5000', '2.7500'], 'bits per byte, lowest': ['2.5000', '2.2500']}


def test_what_cant_be_compared_is_one_line(tmp_path):
    logged_run(tmp_path / 'out/one', [(0, 8.0), (1e6, 3.0)])
    logged_run(tmp_path / 'out/nan', [(0, 8.0), (1e6, math.nan), (2e6, 2.5)])
    for flags, *words in ([], 'folders'), (['out/one', 'out/three'], 'three', 'train first'), (
            ['out/one', 'out/nan'], 'out/nan', '1.00 MB', 'not a number'):
        fails_in_one_line(run(tmp_path, 'tools/compare.py', *flags), *words)
    (tmp_path / 'out/nan/log.csv').write_text('iter;val_bpb\n0;2.5\n')
    fails_in_one_line(run(tmp_path, 'tools/compare.py', 'out/one', 'out/nan'), 'log.csv')


ODD_NAME = 'a\x1b[31m<&\u202e'


def test_a_name_with_control_characters_reaches_neither_the_terminal_nor_the_picture(tmp_path):
    logged_run(tmp_path / 'out' / ODD_NAME, [(0, 8.0), (1e6, 3.0)])
    logged_run(tmp_path / 'out/b', [(0, 8.0), (1e6, 2.0)])
    status, out, err = run(tmp_path, 'tools/compare.py', f'out/{ODD_NAME}', 'out/b', '--file=c\x1b.svg')
    assert status == 0 and '\x1b' not in out + err and 'a\\x1b[31m<&\\u202e' in out, err
    root = ElementTree.parse(tmp_path / 'c\x1b.svg').getroot()
    assert 'a\\x1b[31m<&\\u202e' in [element.text for element in root.iter()]


def test_the_picture_of_attention_names_the_tokens_of_all_heads_and_of_one(tmp_path):
    make_run(tmp_path / 'run')
    for flags in ['--prompt=The cat'], ['--prompt=The cat', '--layer=2', '--head=3']:
        assert run(tmp_path, 'tools/attention.py', '--out_dir=run', *flags)[0] == 0
        texts = [element.text for element in ElementTree.parse(tmp_path / 'attention.svg').getroot().iter()]
        rows = 3 if len(flags) == 1 else 2   # all heads: at the left of each of three layers; one: rows and columns
        assert texts.count('(start)') == texts.count('cat') == rows, texts
    assert run(tmp_path, 'tools/attention.py', '--out_dir=run', f'--prompt={ODD_NAME}')[0] == 0
    assert '\\x1b' in [element.text for element in ElementTree.parse(tmp_path / 'attention.svg').getroot().iter()]


@pytest.mark.parametrize('low, high', [(0, 428.3), (1.298, 1.874), (-0.01, 0.013), (0, 1e6), (2.36, 2.361), (0, 7), (995, 1005)])
def test_ticks_are_few_and_multiples_of_one_two_or_five(low, high):
    ticks = svg.round_ticks(low, high)
    steps = np.diff([*ticks])
    assert 2 <= len(ticks) <= 7 and low - 1e-9 <= min(ticks) and max(ticks) <= high + 1e-9
    assert steps == pytest.approx(steps[0]) and f'{steps[0]:.0e}'[0] in '125'
    for place, label in ticks.items():
        assert float(label) == pytest.approx(place, abs=1e-9) and place / steps[0] == pytest.approx(round(place / steps[0]))


def test_what_is_above_the_axis_is_cut_off_where_the_curve_crosses_it():
    x, y = [0, 1, 2, 3, 4, 6, 7], [8.0, 2.0, 1.0, 5.0, 4.0, 2.0, 9.0]
    parts = svg.cut_at([*zip(x, y)], 3.0)
    assert [len(part) for part in parts] == [4, 3]
    for part in parts:
        for at, value in part:
            assert value <= 3.0 and value == pytest.approx(np.interp(at, x, y))
    assert [part[0][1] for part in parts] == [part[-1][1] for part in parts] == [3.0, 3.0]
    assert svg.cut_at([(0, 9.0), (1, 8.0)], 3.0) == [] and svg.cut_at([(0, 1.0)], 3.0) == [[(0, 1.0)]]


# ---- the curriculum

WORDS = 'the a cat dog house red big sees likes finds and then under old friend walks home with'.split()


def articles(n=400):
    """Articles of 10 to 300 words, each of which is a common word or, with a chance of the article's own, an odd one."""
    rng = np.random.default_rng(0)
    texts = []
    for size, odd in zip(rng.integers(10, 300, n), rng.random(n)):
        words = [''.join(rng.choice([*'abcdefghijklmnopqrstuvwxyz'], 6)) if rng.random() < odd else rng.choice(WORDS)
                 for _ in range(size)]
        texts.append(' '.join(words))
    return texts


def test_of_easy_articles_none_is_longer_and_harder_than_a_hard_one_and_both_halves_are_as_large():
    texts = articles()
    easy, ratio = curriculum.divide(texts, 0.1)
    sizes, train = np.array([len(text) for text in texts]), np.array([split_of(text, 0.1) == 'train' for text in texts])
    for i in np.flatnonzero(easy):
        assert not ((sizes[i] >= sizes) & (ratio[i] >= ratio) & ~easy).any()
    assert sizes[easy & train].mean() < sizes[~easy & train].mean() and ratio[easy].mean() < ratio[~easy].mean()
    assert abs(sizes[easy & train].sum() - sizes[~easy & train].sum()) <= 2 * sizes.max()


def test_after_the_primer_gzip_finds_a_short_text_as_easy_as_a_long_one_of_its_kind():
    rng = np.random.default_rng(1)
    long, short, primer = (' '.join(rng.choice(WORDS, n)).encode() for n in (3000, 20, 3000))
    alone, primed = (curriculum.ratios([long, short], seen) for seen in (b'', primer))
    assert alone[1] > 1.8 * alone[0] and primed[1] < 1.2 * primed[0]


def test_the_two_sets_have_every_article_once_each_in_the_split_that_it_had_in_the_whole(tmp_path):
    texts = articles()
    lines = [json.dumps(dict(text=text)) for text in [*texts, *texts[:9], ' ']]   # with some twice, and an empty one
    (tmp_path / 'in.jsonl').write_text('\n'.join(lines), encoding='utf-8')
    flags = '--input=in.jsonl', '--val_fraction=0.1'
    status, _, err = run(tmp_path, 'tools/curriculum.py', *flags, '--tokenizer=byte')
    assert status == 0, err
    sets = [prepare_wiki.load_data(name, 'byte', tmp_path / 'data') for name in ('easy', 'hard')]
    assert sets[0][1]['tokenizer'] == sets[1][1]['tokenizer']
    for split in prepare_wiki.SPLITS:
        found = [(folder / f'{split}.bin').read_bytes().split(b'\xff')[1:] for folder, _ in sets]
        assert found[0] and found[1]
        assert sorted(found[0] + found[1]) == sorted(text.encode() for text in texts if split_of(text, 0.1) == split)
    fails_in_one_line(run(tmp_path, 'tools/curriculum.py', *flags, '--tokenizer=bpe300'), 'the same tokens')


# ---- pages

def test_every_link_leads_to_a_file_and_a_heading_that_are_there():
    for page in PAGES:
        text = page.read_text(encoding='utf-8')
        for link in re.findall(r'\]\(([^)]+)\)', text):
            path, _, anchor = link.partition('#')
            if link.startswith('http'):
                continue
            target = page.parent / path if path else page
            assert target.exists(), (page.name, link)
            if anchor:
                headings = re.findall('^#+ (.*)$', target.read_text(encoding='utf-8'), re.M)
                assert anchor in [re.sub('[^a-z0-9 -]', '', h.lower()).replace(' ', '-') for h in headings], (page.name, link)


def test_every_command_names_files_and_settings_that_exist():
    for page in PAGES:
        text = page.read_text(encoding='utf-8')
        for script, tool, arguments in re.findall(r'python (?:(\w+/?\w*\.py)|-m tools\.(\w+))([^\n`#]*)', text):
            script = script or f'tools/{tool}.py'
            source = (ROOT / script).read_text(encoding='utf-8')
            source += (ROOT / 'model.py').read_text(encoding='utf-8') if script == 'train.py' else ''   # its Config's fields are settings
            idea = re.search(r'--idea=(\w+)', arguments)   # its Config has settings, too
            if idea and idea[1] == 'mine':   # the reader's own
                continue
            source += (ROOT / f'ideas/{idea[1]}.py').read_text(encoding='utf-8') if idea and idea[1] != 'NAME' else ''
            for name in re.findall(r'--(\w+)=', arguments):
                assert re.search(rf'^ *{name}(:.*)? = ', source, re.M), (page.name, script, name)
            for file in re.findall(r'config/\w+\.py', arguments):
                assert (ROOT / file).exists(), (page.name, file)


TOOLS = sorted(file.stem for file in (ROOT / 'tools').glob('*.py') if '__main__' in file.read_text(encoding='utf-8'))


@pytest.mark.parametrize('tool', TOOLS)
def test_each_tool_lists_its_settings_from_the_repositorys_folder(tool):
    done = subprocess.run([sys.executable, '-m', f'tools.{tool}', '--help'], cwd=ROOT, capture_output=True, encoding='utf-8')
    names = re.findall(r'^(\w+)(?:: \S+)? = .*', (ROOT / f'tools/{tool}.py').read_text(encoding='utf-8').split('configure(')[0], re.M)
    assert done.returncode == 0 and 'settings, with their defaults' in done.stdout, done.stderr
    for name in names:
        assert name.isupper() or f'  --{name}=' in done.stdout, name


def test_importing_any_file_runs_nothing_and_no_flag_is_read(tmp_path):
    files = [file for folder in ('.', 'stlm', 'tools', 'ideas') for file in sorted((ROOT / folder).glob('*.py'))]
    names = ['.'.join(file.relative_to(ROOT).with_suffix('').parts) for file in files if file.name != 'test_model.py']
    code = f'import sys; sys.argv.append("--nonsense=1"); sys.path.insert(0, {str(ROOT)!r})\n' + '\n'.join(f'import {name}' for name in names)
    done = subprocess.run([sys.executable, '-c', code], cwd=tmp_path, capture_output=True, encoding='utf-8')
    assert len(names) > 30 and (done.returncode, done.stdout, done.stderr) == (0, '', '') and not list(tmp_path.iterdir())


def test_the_glossary_explains_the_words_of_the_field():
    text = (ROOT / 'docs/glossary.md').read_text(encoding='utf-8')
    for word in ('nats', 'epoch', 'logits', 'softmax', 'LoRA', 'EMA', 'wsd', 'SwiGLU', 'RMSNorm', 'rotary', 'grouped-query',
                 'zero-shot', 'bits per byte', 'perplexity', 'Muon'):
        assert re.search(rf'\*\*[^*]*{word}', text), word


# ---- the lesson

def test_the_notebook_runs_cell_by_cell(tmp_path, monkeypatch):
    notebook = json.loads((ROOT / 'docs/lesson.ipynb').read_text(encoding='utf-8'))
    cells = [''.join(cell['source']) for cell in notebook['cells'] if cell['cell_type'] == 'code']
    assert not any(cell.get('outputs') for cell in notebook['cells'])
    clone = copy_repository(tmp_path / 'nanoSTLM')
    (clone / 'mine.txt').write_text(story(), encoding='utf-8')
    assert run(clone, 'prepare_wiki.py', '--input=mine.txt', '--dataset=mine', '--tokenizer=bpe300')[0] == 0
    short = ' '.join([*SMALL, '--dataset=mine', '--tokenizer=bpe300', '--n_layer=4', '--n_head=4', '--block_size=64'])
    monkeypatch.chdir(clone / 'docs')
    monkeypatch.setenv('OMP_NUM_THREADS', '1')
    monkeypatch.setattr(sys, 'path', sys.path[:])
    namespace, printed = {}, io.StringIO()
    with contextlib.redirect_stdout(printed):
        for cell in cells:
            cell = re.sub("^FLAGS = ''", f'FLAGS = {short!r}', cell)
            exec(compile(cell, 'cell', 'exec'), namespace)
    assert os.getcwd() == str(clone) and (clone / 'out/attention.svg').exists()
    assert re.search(r'n_layer +1 +4\n', printed.getvalue())
    assert list((clone / 'out/quick').glob('mc_*.json'))   # its two questions were answered


def test_the_notebooks_first_cell_unpacks_once_and_takes_no_other_repository(tmp_path, monkeypatch):
    notebook = json.loads((ROOT / 'docs/lesson.ipynb').read_text(encoding='utf-8'))
    first = next(''.join(cell['source']) for cell in notebook['cells'] if cell['cell_type'] == 'code')
    copy_repository(tmp_path / 'zipped/nanoSTLM-main')
    (tmp_path / 'desk/another').mkdir(parents=True)
    (tmp_path / 'desk/another/train.py').write_text('')
    monkeypatch.chdir(tmp_path / 'desk')
    monkeypatch.setattr(sys, 'path', sys.path[:])
    with pytest.raises(AssertionError, match='upload nanoSTLM.zip'):
        exec(first, {})
    shutil.make_archive('nanoSTLM', 'zip', tmp_path / 'zipped')
    for edit in '', '# my own line':
        monkeypatch.chdir(tmp_path / 'desk')
        exec(first, {})
        assert os.getcwd() == str(tmp_path / 'desk/nanoSTLM/nanoSTLM-main') and pathlib.Path('model.py').read_text().endswith(edit)
        with open('model.py', 'a') as file:
            file.write('# my own line')


# ---- the exercises

PATCHES = sorted((ROOT / 'docs/solutions').glob('*.patch'))


def test_each_exercise_has_a_solution_and_a_heading():
    headings = re.findall(r'^## (\d+)\. ', (ROOT / 'docs/exercises.md').read_text(encoding='utf-8'), re.M)
    assert [*map(int, headings)] == [int(patch.stem[:2]) for patch in PATCHES] == [*range(1, 13)]


def test_the_neighbours_are_those_that_the_exercise_tells():
    model, tokenizer, _ = runs.load_run(ROOT / 'pretrained/tiny_10m')

    def near(text):
        tokens, cosines = zip(*nearest(model, tokenizer, text, 4))
        return [*tokens], round(cosines[0], 2)
    assert {b' poor', b' big', b' little', b' bad'} == {*near(' good')[0]}
    tokens, cosine = near(' France - Paris + Berlin')
    assert (tokens[0], cosine) == (b' Germany', 0.62) and b' Germany' not in near(' France')[0]
    assert near(' his - he + she')[0][0] == b' her' and near(' his - he + she')[1] == 0.91
    assert near(' Berlin - Germany + Italy')[0][:3] == [b' Vienna', b' Milan', b' Rome']
    assert near(' king - man + woman')[0][0] == b'peror' and len(tokenizer.encode_ordinary(' queen')) > 1


@pytest.mark.parametrize('patch', PATCHES, ids=lambda patch: patch.stem)
def test_a_solution_turns_its_exercise_from_red_to_green(patch, tmp_path):
    clone = copy_repository(tmp_path / 'nanoSTLM')
    number = f'--number={int(patch.stem[:2])}'

    script = clone / 'tools/exercises.py'
    fails_in_one_line(run(clone, script, number), 'is red')
    subprocess.run(['git', 'apply', '-C1', str(patch)], cwd=clone, check=True)
    status, out, err = run(clone, script, number)
    assert status == 0 and 'is green' in out, err
