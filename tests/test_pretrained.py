"""The models that come with the repository."""
import re

import pytest
import torch

from stlm import run as runs
from tools.show import nearest
from helpers import ROOT, run, story


@pytest.fixture(params=['tiny_10m', 'byte_10m'])
def folder(request):
    return ROOT / 'pretrained' / request.param


def test_it_is_small_enough_to_clone(folder):
    assert sum(file.stat().st_size for file in folder.iterdir() if not file.name.startswith('mc_')) <= 11e6


def test_it_goes_on_with_common_words(folder):
    status, out, err = run(ROOT, 'sample.py', f'--out_dir={folder}', '--prompt=The capital of France is', '--seed=1',   # drawn: the likeliest tokens end in a loop
                           '--max_new_tokens=40', '--device=cpu', '--dtype=float32')
    assert status == 0, err
    words = out.split()
    common = {'the', 'of', 'and', 'in', 'a', 'to', 'is', 'was', 'by', 'for'}
    assert out.startswith('The capital of France is') and len(common.intersection(words[5:])) >= 2


def test_it_prefers_english_to_its_words_in_another_order(folder):
    model, tokenizer, _ = runs.load_run(folder)

    def nats(text):
        ids = torch.tensor([[tokenizer.eot_token, *tokenizer.encode_ordinary(text)]])
        with torch.no_grad():
            return model(ids[:, :-1], ids[:, 1:]).sum().item()
    for text in 'The river flows through the city.', 'He was born in the United States.', 'It is one of the largest islands.':
        words = text.rstrip('.').split()
        assert nats(text) + 5 < nats(' '.join(words[::-1]) + '.')


def test_in_tiny_10m_numbers_and_the_points_of_the_compass_are_neighbours():
    model, tokenizer, _ = runs.load_run(ROOT / 'pretrained/tiny_10m')
    for text, expected in ((' north', {b' south', b' east', b' west'}), (' three', {b' two', b' four', b' five'}),
                           (' France - Paris + Berlin', {b' Germany'}), (' his - he + she', {b' her'})):
        assert {token for token, _ in nearest(model, tokenizer, text, len(expected))} == expected, text


def test_training_goes_on_from_it(folder, tmp_path):
    (tmp_path / 'mine.txt').write_text(story(), encoding='utf-8')
    assert run(tmp_path, 'prepare_wiki.py', '--input=mine.txt', '--dataset=mine', f'--tokenizer={folder}')[0] == 0
    status, out, err = run(tmp_path, 'train.py', f'--init_from={folder}', '--dataset=mine', '--out_dir=out/mine', '--batch_size=1',
                           '--max_iters=3', '--eval_interval=3', '--eval_tokens=1024', '--warmup_iters=0', '--muon_lr=0.01',
                           '--learning_rate=1e-3', '--device=cpu')
    assert status == 0, err
    first, last = (float(bits) for bits in re.findall(r'held out [\d.]+ nats per token, ([\d.]+)', out)[:2])
    assert last < first


def test_its_card_says_what_its_checkpoint_says(folder):
    card, checkpoint = (folder / 'README.md').read_text(encoding='utf-8'), runs.load_checkpoint(folder / 'best.pt')
    settings = checkpoint['settings']
    tokens = checkpoint['iter'] * settings['batch_size'] * settings['grad_accum'] * checkpoint['config']['block_size']
    assert f'{tokens:,} tokens' in card and 'CC BY-SA' in card
    results = (ROOT / 'docs/results.md').read_text(encoding='utf-8')
    bits, blimp = re.search(r'\*\*([\d.]+) bits per byte', card)[1], re.search(r'BLiMP.*\| ([\d.]+ ± [\d.]+) %', card)[1]
    assert f'**{bits}**' in results and f'| {blimp} |' in results
