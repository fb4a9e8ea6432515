"""torch.compile of model.py: how many graphs there are, and that none is made anew when lengths and words change."""
import copy
import shutil

import pytest
import torch
from torch._dynamo.utils import counters

from model import BytePool
from test_model import BYTES, IDX, TARGETS, tiny, tokens


@pytest.fixture
def count(monkeypatch):
    """How many graphs there are; lengths are rounded as on a GPU."""
    monkeypatch.setattr(BytePool, 'round_to', 4)
    torch.compiler.reset()
    counters.clear()
    yield lambda: counters['stats']['unique_graphs']
    torch.compiler.reset()


def test_a_dropout_schedule_is_one_graph(count):
    model = tiny().train()
    model.dropout.set(0.5)   # as train.py does: the schedule's largest p, before compiling
    model.compile(backend='eager', fullgraph=True)
    for step in range(4):
        model.dropout.set(step / 8)
        model(IDX, TARGETS)
    assert count() == 1


@pytest.mark.skipif(not shutil.which('g++') and not shutil.which('clang++'), reason='Inductor needs a C++ compiler')
@pytest.mark.parametrize('kind', [dict(n_layer=1), dict(BYTES, n_layer=1, n_decoder_layer=1)], ids=['table', 'byte_pool'])
def test_training_and_evaluation_make_at_most_12_graphs_none_after_step_20_and_compute_what_they_did(kind, count):
    model, plain, numbers = tiny(**kind), tiny(**kind), []
    model.train().dropout.set(0.1)
    model.compile()
    for step in range(30):
        idx, targets = tokens(2, 64, seed=step), tokens(2, 64, seed=step + 100)
        if step == 10:   # every distinct token is in a group; one of a single token among them
            idx = targets = torch.arange(96).repeat(2)[:128].view(2, 64)
        model.dropout.set(0.1 + step / 100)
        model(idx, targets).mean().backward()
        if step % 5 == 4:
            model.eval()
            with torch.no_grad():
                for rows in idx, idx[:1]:   # the last batch of an evaluation may be smaller
                    torch.testing.assert_close(model(rows, rows), plain(rows, rows), atol=1e-4, rtol=1e-4)
            model.train()
        numbers.append(count())
    assert numbers[20] == numbers[-1] <= 12


def test_a_group_of_one_token_is_given_twice_and_comes_back_once(count):
    model, plain = tiny(**BYTES), tiny(**BYTES)
    model.compile(backend='eager')
    for idx in IDX, IDX[:, :1], IDX[:1, :1]:
        torch.testing.assert_close(model(idx, idx), plain(idx, idx), atol=1e-5, rtol=1e-5)
    gradients = []
    for each in model, plain:
        each(IDX, TARGETS).mean().backward()
        gradients.append([p.grad for p in each.parameters()])
    torch.testing.assert_close(*gradients, atol=1e-5, rtol=1e-4)


def test_a_copy_of_a_compiled_model_has_its_own_weights(count):
    model, plain = tiny(**BYTES), tiny(**BYTES)
    model.compile(backend='eager')
    model(IDX, TARGETS)
    copied = copy.deepcopy(model)
    for p in model.parameters():
        p.data.zero_()
    torch.testing.assert_close(copied(IDX, TARGETS), plain(IDX, TARGETS), atol=1e-5, rtol=1e-5)
