"""sample.py as a user runs it, on a tiny model."""
import html
import re

import pytest
import torch

from stlm import run as runs
from helpers import SMALL, fails_in_one_line, run, story

BYTES = ['--embedding=byte_pool', '--n_byte_embd=16', '--n_byte_head=2', '--n_encoder_layer=1']


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    """A folder with a run of a table model in out/a, and of byte pooling in out/bytes."""
    folder = tmp_path_factory.mktemp('sample')
    (folder / 'story.txt').write_text(story(), encoding='utf-8')
    data = ['--dataset=mine', '--tokenizer=bpe300']
    assert run(folder, 'prepare_wiki.py', '--input=story.txt', *data)[0] == 0
    for out, extra in ('a', ['--max_iters=20']), ('bytes', [*BYTES, '--max_iters=5']):
        status, _, err = run(folder, 'train.py', *data, *SMALL, *extra, f'--out_dir=out/{out}', '--eval_tokens=2000')
        assert status == 0, err
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


def test_greedy_text_is_what_the_likeliest_tokens_spell_and_never_half_a_character(trained):
    folder = trained
    status, out, _ = sample(folder, '--temperature=0', '--dtype=float32', '--prompt=老')
    model, encoding, _ = runs.load_run(folder / 'out/a')
    ids = [encoding.eot_token, *encoding.encode_ordinary('老')]
    start, prompt = 0, len(ids)
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
    status, shown, err = run(trained, 'sample.py', f'--out_dir=out/{out}', '--prompt=The cat', '--top=10', '--device=cpu')
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
    best = encoding.decode_bytes([p.argmax().item()]).decode(errors='replace')
    assert lines[0].endswith(repr(best) if best else '(end of text)')


def test_the_page_has_the_whole_text_once_and_a_legend(trained):
    text = 'Zoë <b>sees</b> & forgets 🐈'
    assert run(trained, 'sample.py', '--out_dir=out/bytes', f'--prompt={text}', '--show_tokens=True', '--html=page.html')[0] == 0
    page = (trained / 'page.html').read_text(encoding='utf-8')
    shown = re.sub('<[^>]*>', '', re.search('<p>(.*?)</p>', page, re.S)[1])
    assert html.unescape(shown) == text
    bits = sum(float(cost) for cost in re.findall('title="([\\d.]+) bits"', page.split('<hr>')[0]))   # each rounded
    assert float(re.search(r'([\d.]+) bits per byte', page)[1]) == pytest.approx(bits / len(text.encode()), abs=0.06)
    assert 'bits that a token costs' in page and 'src=' not in page and 'href=' not in page and 'light dark' in page


def test_a_prompt_in_another_encoding_is_one_line_and_not_another_prompt(trained):
    fails_in_one_line(sample(trained, '--prompt=caf\udce9'), 'not UTF-8')


def test_a_terminal_that_lacks_letters_shows_them_otherwise(trained):
    import os
    import subprocess
    import sys
    from helpers import ROOT
    done = subprocess.run([sys.executable, str(ROOT / 'sample.py'), '--out_dir=out/a', '--device=cpu', '--prompt=Zoë 🐈',
                           '--max_new_tokens=3'], cwd=trained, capture_output=True,
                          env=os.environ | {'OMP_NUM_THREADS': '1', 'PYTHONIOENCODING': 'latin-1'})
    assert done.returncode == 0 and done.stdout.decode().startswith('Zoë 🐈')   # not a terminal: UTF-8


@pytest.mark.parametrize('args, words', [
    (['--temperature=1e-40'], ['temperature=1e-40']), (['--seed=1e30'], ['seed=']), (['--top=-1'], ['top=-1'])])
def test_settings_at_their_edges_are_one_line(trained, args, words):
    fails_in_one_line(sample(trained, *args), *words)
