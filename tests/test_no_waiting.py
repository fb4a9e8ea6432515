"""A GPU never waits for a number. Proved without one: the device `meta` has shapes and no numbers, so that whatever asks it
for one (item, unique, nonzero, a boolean index, a size that depends on values) is an error. Token ids are on the CPU."""
import pytest
import torch

from stlm.muon import Muon
from test_model import BYTES, IDX, TARGETS, tiny


@pytest.fixture(params=[{}, BYTES, dict(share='block', lora_rank=2)], ids=['table', 'byte_pool', 'shared'])
def model(request, monkeypatch):
    monkeypatch.setattr(torch, 'is_autocast_enabled', lambda device: False)   # which doesn't know meta
    return tiny(**request.param).to('meta')


def test_a_step_of_training_asks_the_device_for_no_number(model):
    others = {*model.adamw_matrices()}
    matrices = [p for p in model.parameters() if p.dim() == 2 and p not in others]
    vectors = [p for p in model.parameters() if p.dim() == 1]
    # AdamW's fused form refuses meta
    optimizers = [Muon(matrices, 0.04), torch.optim.AdamW([*others, *vectors], 6e-3, foreach=True)]
    model.train().dropout.set(0.1)
    for step in range(2):
        model.dropout.set(0.1 / (step + 1))
        loss = model(IDX, TARGETS).mean()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
    assert loss.is_meta and norm.is_meta


@torch.no_grad()
def test_evaluation_and_multiple_choice_ask_the_device_for_no_number_before_they_have_all(model):
    assert model(IDX, TARGETS).is_meta
    h = model.hidden(IDX)                                                        # (2, 64, C)
    b, t = torch.tensor([0, 1, 1]), torch.tensor([5, 5, 30])
    assert model.tokens.nll(h[b, t][None], torch.tensor([[7, 8, 9]])).shape == (1, 3)


def test_what_asks_for_a_number_is_an_error_here():
    numbers = torch.zeros(1, device='meta')
    for ask in (torch.Tensor.item, torch.Tensor.unique, torch.Tensor.nonzero, lambda x: x[x > 0], float):
        with pytest.raises((RuntimeError, NotImplementedError)):
            ask(numbers)
