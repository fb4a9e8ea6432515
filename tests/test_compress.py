"""tools/compress.py: what becomes of the matrices, against float64 and counts by hand."""
import tempfile
from xml.etree import ElementTree

import numpy as np
import pytest
import torch

from helpers import SMALL, fails_in_one_line, run as run_script, story
from test_ideas import tiny
from test_model import tokens
from tools import compress


def compressed(method, amount, steps):
    """A tiny model's matrices before and after, by name, and the compressed model."""
    model = tiny('', share='block', lora_rank=2, n_layer=3)
    linears = {name: module for name, module in model.blocks.named_modules() if isinstance(module, torch.nn.Linear)}
    before = {name: linear.weight.detach().clone() for name, linear in linears.items()}
    compress.compress(model, getattr(compress, method), amount)
    compress.recover(model, np.memmap(FILE.name, 'uint8', 'r'), steps, 1e-2)
    return [(before[name], linear.weight.detach()) for name, linear in linears.items()]


FILE = tempfile.NamedTemporaryFile()
FILE.write(bytes(tokens(2000).tolist()))
FILE.flush()


@pytest.mark.parametrize('steps', [0, 3])
def test_pruned_weights_are_zero_and_stay_it_and_the_largest_are_kept(steps):
    for before, after in compressed('prune', 0.25, steps):
        n = round(0.25 * before.numel())
        order = before.abs().flatten().argsort(descending=True)
        assert (after.flatten()[order[n:]] == 0).all() and (after.flatten()[order[:n]] != 0).all()
        assert torch.equal(after.flatten()[order[:n]], before.flatten()[order[:n]]) == (steps == 0)


@pytest.mark.parametrize('steps', [0, 3])
def test_a_low_rank_is_the_rank_and_at_first_as_near_as_float64_singular_values_allow(steps):
    for before, after in compressed('lowrank', 0.5, steps):
        rank = max(1, round(0.5 * before.numel() / sum(before.shape)))
        values = torch.linalg.svdvals(after.double())
        assert values[rank:].max() < 1e-4 * values[0]
        if steps == 0:
            left = torch.linalg.svdvals(before.double())[rank:].norm()
            assert abs((after - before).norm() - left) < 1e-4


@pytest.mark.parametrize('steps', [0, 3])
@pytest.mark.parametrize('bits, levels', [(8, 127), (4, 7)])
def test_rounded_weights_are_whole_numbers_of_their_row_and_at_first_the_nearest(bits, levels, steps):
    for before, after in compressed('rounded', bits, steps):
        scale = after.abs().amax(1, keepdim=True) / levels
        whole = after / scale
        assert (whole - whole.round()).abs().max() < 1e-4 and whole.abs().max() < levels + 1e-3
        assert ((after - before).abs() <= scale / 2 + 1e-6).all() == (steps == 0)


@pytest.mark.parametrize('method, amount, size', [   # of 7,680 numbers in 224 rows of seven matrices
    ('plain', 1, 4 * 7680), ('prune', 0.25, 4 * 1920 + 7680 / 8), ('rounded', 8, 7680 + 4 * 224),
    ('rounded', 4, 7680 / 2 + 4 * 224),
    ('lowrank', 0.5, 4 * (2 * 8 * (32 + 32) + 2 * 5 * (32 + 16) + 3 * 10 * (32 + 48)))])   # ranks 8, 5 and 10
def test_bytes_are_those_of_a_count_by_hand(method, amount, size):
    others = 97 * 32 + 3 * 32   # the table, and three norms
    assert compress.compress(tiny('', n_layer=1), getattr(compress, method), amount) == 4 * others + size


def test_the_tool_makes_a_table_and_a_picture_of_a_run(tmp_path):
    (tmp_path / 'story.txt').write_text(story(), encoding='utf-8')
    data = ['--dataset=mine', '--tokenizer=bpe300']
    assert run_script(tmp_path, 'prepare_wiki.py', '--input=story.txt', *data)[0] == 0
    assert run_script(tmp_path, 'train.py', *data, *SMALL, '--max_iters=5', '--out_dir=out/a')[0] == 0
    status, out, err = run_script(tmp_path, 'tools/compress.py', '--out_dir=out/a', '--recovery=2', '--keep=[0.5, 0.1]')
    table = (tmp_path / 'out/a/compress.md').read_text(encoding='utf-8')
    assert table == out and len(table.splitlines()) == 2 + 1 + 2 * 2 + 2, err
    names = [element.text for element in ElementTree.parse(tmp_path / 'out/a/compress.svg').getroot().iter()]
    assert status == 0 and {'plain', 'prune', 'lowrank', 'int8', 'int4'} < {*names}, err
    fails_in_one_line(run_script(tmp_path, 'tools/compress.py', '--out_dir=out/a', '--keep=[2]'), 'keep=[2]')
    fails_in_one_line(run_script(tmp_path, 'train.py', '--idea=compress'), 'no ideas/compress.py', 'experts')   # it is a tool
