"""sample.py as a user runs it, on a tiny model."""
import ast
import html
import math
import os
import re
import subprocess
import sys

import pytest
import torch

import sample as script
from helpers import ROOT, fails_in_one_line, make_run, run
from stlm import run as runs
from stlm import tokenizer as tokenizers
from tools import show

SMALL = dict(n_layer=2, n_head=2, n_kv_head=1, n_embd=32, d_ff=64, block_size=32)
BYTES = dict(embedding='byte_pool', n_byte_embd=16, n_byte_head=2)


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    """A folder with the run of a table model in out/a, and of byte pooling in out/bytes."""
    folder = tmp_path_factory.mktemp('sample')
    make_run(folder / 'out/a', **SMALL)
    make_run(folder / 'out/bytes', **SMALL, **BYTES)
    return folder


def sample(folder, *args, **kwargs):
    return run(folder, 'sample.py', '--out_dir=out/a', '--device=cpu', '--seed=1', '--max_new_tokens=40', *args, **kwargs)


def test_samples_need_only_the_runs_folder(trained, tmp_path):
    (trained / 'out' / 'a').rename(tmp_path / 'moved')
    try:
        status, out, err = run(tmp_path, 'sample.py', '--out_dir=moved', '--seed=1')
    finally:
        (tmp_path / 'moved').rename(trained / 'out' / 'a')
    assert status == 0 and out.strip() and 'tokens/s' in err


def test_the_same_seed_gives_the_same_text_and_another_seed_another(trained):
    texts = [sample(trained, f'--seed={seed}', '--num_samples=2')[1] for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2] and '--- sample 2' in texts[0]


def test_prompts_come_from_a_flag_a_file_or_standard_input(trained):
    (trained / 'prompt.txt').write_text('The cat 🐈', encoding='utf-8')
    texts = [sample(trained, '--prompt=The cat 🐈'), sample(trained, '--prompt=FILE:prompt.txt'),
             sample(trained, '--prompt=-', input='The cat 🐈')]
    assert texts[0][1].startswith('The cat 🐈') and texts[0][:2] == texts[1][:2] == texts[2][:2]


def test_a_byte_order_mark_is_no_part_of_a_prompt(trained):
    (trained / 'plain.txt').write_text('The cat', encoding='utf-8')
    (trained / 'marked.txt').write_text('The cat', encoding='utf-8-sig')
    shown = [sample(trained, *flags, '--show_tokens=True')[1] for flags in (
        ['--prompt=FILE:plain.txt'], ['--prompt=FILE:marked.txt'])]
    shown.append(sample(trained, '--prompt=-', '--show_tokens=True', input='\ufeffThe cat')[1])
    assert shown[0] == shown[1] == shown[2] and 'bits per byte' in shown[0]


def test_importing_the_script_runs_nothing_and_a_notebook_can_stream(trained):
    model, tokenizer, _ = runs.load_run(trained / 'out/a')
    pieces = [*script.stream(model, tokenizer, 'The cat', num_samples=2, max_new_tokens=40, temperature=0)]
    status, out, _ = sample(trained, '--prompt=The cat', '--temperature=0', '--dtype=float32')
    assert status == 0 and all(len(added) == 2 for added in pieces)
    for i in range(2):
        assert 'The cat' + ''.join(added[i] for added in pieces) == out.removesuffix('\n')


def test_greedy_text_is_what_the_likeliest_tokens_spell_and_never_half_a_character(trained):
    folder = trained
    status, out, _ = sample(folder, '--temperature=0', '--dtype=float32', '--prompt=老')
    model, encoding, _ = runs.load_run(folder / 'out/a')
    ids = [encoding.eot_token, *encoding.encode_ordinary('老')]
    start = 0
    for _ in range(40):   # the whole window again for each token, at half of it when it is full
        start = len(ids) - 16 if len(ids) - start > 32 else start
        logits = model.hidden(torch.tensor([ids[start:]]))[0, -1] @ model.tokens.head.weight.T
        best = logits.argmax().item()
        if best == encoding.eot_token:
            break
        ids.append(best)
    raw = encoding.decode_bytes(ids[1:])
    whole = raw.decode(errors='ignore') if raw[-1] < 0x80 else raw.decode(errors='replace').rstrip('�')
    assert status == 0 and out.rstrip('\n').replace('�', '') == whole.rstrip('\n').replace('�', '')


@pytest.mark.parametrize('out', ['a', 'bytes'])
def test_int8_weights_write_text_too(trained, out):
    status, text, err = sample(trained, f'--out_dir=out/{out}', '--dtype=int8', '--prompt=The cat')
    assert status == 0 and text.startswith('The cat') and len(text) > 10 and 'Warning' not in err, err


@pytest.mark.parametrize('kind', ['table', 'bytes'])
def test_tokens_are_shown_with_the_bits_of_each_and_the_bits_add_up(trained, kind):
    out_dir = f'--out_dir=out/{"a" if kind == "table" else "bytes"}'
    status, out, err = run(trained, 'sample.py', out_dir, '--show_tokens=True', '--prompt=The cat 🐈.')
    assert status == 0, err
    *lines, last = out.splitlines()
    assert sum(float(line[:6]) for line in lines) / 13 == pytest.approx(float(last.split()[0]), abs=0.05)
    assert ('END' in out) == (kind == 'bytes')
    if kind == 'bytes':
        for line in lines:
            choices = [float(bits) for bits in re.findall(r" ([\d.]+)(?= |$)", line.split("'", 2)[2])]
            assert sum(choices) == pytest.approx(float(line[:6]), abs=0.5)


@pytest.mark.parametrize('args, words', [
    (['--out_dir=out/none'], ['out/none/best.pt', 'train first']), (['--temperature=-1'], ['temperature=-1']),
    (['--top_p=0'], ['top_p=0']), (['--num_samples=0'], ['num_samples=0']), (['--prompt=FILE:none'], ['none: No such file'])])
def test_a_mistake_in_sampling_ends_in_one_line(trained, args, words):
    fails_in_one_line(sample(trained, *args), *words)



@pytest.mark.parametrize('out', ['a', 'bytes'])
def test_the_likeliest_tokens_are_those_of_the_model_with_their_probabilities(trained, out):
    status, shown, err = run(trained, 'sample.py', f'--out_dir=out/{out}', '--prompt=The cat', '--top=10', '--dtype=float32')
    assert status == 0, err
    model, encoding, _ = runs.load_run(trained / 'out' / out)
    ids = [encoding.eot_token, *encoding.encode_ordinary('The cat')]
    # independently of log_probs(): what each token of the vocabulary would cost
    every = torch.arange(encoding.n_vocab)
    idx = torch.tensor([ids]).expand(len(every), -1)
    with torch.no_grad():
        p = (-model(idx, torch.cat((idx[:, 1:], every[:, None]), dim=1))[:, -1]).exp()
    assert p.sum() == pytest.approx(1, abs=1e-4)
    lines = shown.splitlines()
    assert [float(line.split('%')[0]) / 100 for line in lines] == pytest.approx(p.sort(descending=True)[0][:10].tolist(), abs=6e-4)
    best = [encoding.decode_bytes([i]) for i in p.sort(descending=True)[1][:10].tolist()]
    for line, token in zip(lines, best):   # as Python writes it: a text, or bytes where it is a part of a character
        shown = ast.literal_eval(line[32:]) if "'" in line else ''
        assert (shown if isinstance(shown, bytes) else shown.encode()) == (token if shown else b''), line


def test_the_page_has_the_whole_text_once_and_a_legend(trained):
    text = 'Zoë <b>sees</b> & forgets 🐈'
    assert run(trained, 'sample.py', '--out_dir=out/bytes', f'--prompt={text}', '--show_tokens=True', '--html=page.html')[0] == 0
    page = (trained / 'page.html').read_text(encoding='utf-8')
    shown = re.sub('<[^>]*>', '', re.search('<p.*?>(.*?)</p>', page, re.S)[1])
    assert html.unescape(shown) == text
    bits = sum(float(cost) for cost in re.findall('title="([\\d.]+) bits"', page.split('<hr>')[0]))   # each rounded
    assert float(re.search(r'([\d.]+) bits per byte', page)[1]) == pytest.approx(bits / len(text.encode()), abs=0.06)
    assert 'bits that a token costs' in page and 'src=' not in page and 'href=' not in page and 'light dark' in page


def test_a_prompt_in_another_encoding_is_one_line_and_not_another_prompt(trained):
    fails_in_one_line(sample(trained, '--prompt=caf\udce9'), 'not UTF-8')


def test_a_terminal_that_lacks_letters_shows_them_otherwise(trained):
    done = subprocess.run([sys.executable, str(ROOT / 'sample.py'), '--out_dir=out/a', '--device=cpu', '--prompt=Zoë 🐈',
                           '--max_new_tokens=3'], cwd=trained, capture_output=True,
                          env=os.environ | {'OMP_NUM_THREADS': '1', 'PYTHONIOENCODING': 'latin-1'})
    assert done.returncode == 0 and done.stdout.decode().startswith('Zoë 🐈')   # not a terminal: UTF-8


@pytest.mark.parametrize('args, words', [
    (['--temperature=1e-40'], ['temperature=1e-40']), (['--seed=1e30'], ['seed=']), (['--top=-1'], ['top=-1'])])
def test_settings_at_their_edges_are_one_line(trained, args, words):
    fails_in_one_line(sample(trained, *args), *words)


# ---- which tokens are alike

def cosines_by_hand(model, tokenizer, sums):
    """{token: cosine with the sum of (sign, token)}, each vector made by itself in float64, and the formula in Python."""
    model, vectors = model.double(), {}
    for i, token in enumerate(tokenizers.spelling_of(tokenizer)):
        if token:
            with torch.no_grad():
                vector = model.tokens.embed(torch.tensor([[i]]))[0, 0].tolist()
            length = math.sqrt(sum(x * x for x in vector))
            vectors[token] = [x / length for x in vector]
    target = [sum(sign * vectors[token][c] for sign, token in sums) for c in range(len(vectors[sums[0][1]]))]
    length = math.sqrt(sum(x * x for x in target))
    asked = {token for _, token in sums}
    return {token: sum(x * y for x, y in zip(vector, target)) / length for token, vector in vectors.items() if token not in asked}


@pytest.mark.parametrize('out', ['a', 'bytes'])
@pytest.mark.parametrize('text, sums', [(' the', [(1, b' the')]), (' the - at + number', [(1, b' the'), (-1, b' at'), (1, b' number')])])
def test_the_nearest_tokens_are_those_of_the_largest_cosines(trained, out, text, sums):
    model, tokenizer, _ = runs.load_run(trained / 'out' / out)
    found = show.nearest(model, tokenizer, text, 12)
    expected = cosines_by_hand(model, tokenizer, sums)
    best = sorted(expected, key=expected.get, reverse=True)[:12]
    assert [token for token, _ in found] == best
    assert [cosine for _, cosine in found] == pytest.approx([expected[token] for token in best], abs=1e-5)
    status, shown, err = run(trained, 'sample.py', f'--out_dir=out/{out}', f'--near={text}', '--top=12', '--dtype=float32')
    assert status == 0, err
    assert [line.split()[0] for line in shown.splitlines()] == [f'{cosine:.2f}' for _, cosine in found]
    assert shown.splitlines()[0].endswith(repr(best[0].decode()))


@pytest.mark.parametrize('near, words', [(' the cat', ["' the' ' cat'", 'one token']), (' the - zz', ["' zz' is not one token"])])
def test_what_is_not_one_token_is_named_with_its_parts(trained, near, words):
    fails_in_one_line(sample(trained, f'--near={near}'), *words)


def test_control_characters_and_marks_of_direction_are_written_out_on_the_page(trained):
    text = 'a\x1b[31m\u202eb\x00 c\n\td'
    status, _, err = sample(trained, f'--prompt={text}'.replace('\x00', ''), '--show_tokens=True', '--html=page.html')
    assert status == 0, err
    model, tokenizer, _ = runs.load_run(trained / 'out/a')
    for page in ((trained / 'page.html').read_text(encoding='utf-8'),
                 show.page(show.bits_of_tokens(model, tokenizer, text), 'out/\x1b[31m')):
        assert not re.search('[\x00-\x08\x0e-\x1f\u202e]', page) and '\\x1b' in page and '\\u202e' in page
        shown = html.unescape(re.sub('<[^>]*>', '', re.search('<p.*?>(.*?)</p>', page, re.S)[1]))
        assert shown.endswith(' c\n\td')
