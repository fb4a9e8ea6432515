"""Nothing is emulated: in float32 no operation of any step takes or makes a bfloat16 or float16 tensor."""
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import eval_mc
import model as model_module
from stlm import questions
from stlm import fast
from stlm import text
from stlm import muon
from stlm import machine as machines
from stlm import run
from stlm import tokenizer
from model import Config

SMALL = dict(vocab_size=256, block_size=16, n_layer=2, n_head=2, n_kv_head=1, n_embd=16, d_ff=32)
KINDS = [{}, dict(embedding='byte_pool', n_byte_embd=16, n_byte_head=2), dict(share='block', lora_rank=2)]


class Watch(TorchDispatchMode):
    """Counts operations, and remembers those with half precision among what they take or make."""

    def __init__(self):
        super().__init__()
        self.seen, self.half = 0, []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **kwargs or {})
        self.seen += 1
        tensors = [x for x in tree_leaves((args, kwargs, out)) if torch.is_tensor(x)]
        if any(x.dtype in (torch.bfloat16, torch.float16) for x in tensors):
            self.half.append(str(func))
        return out


def model_of(changes):
    bytes_ = tokenizer.make_tokenizer('byte', tokenizer.named_ranks('byte'))
    return run.build_model(Config(**SMALL, **changes), tokenizer.spelling_of(bytes_), torch.ones(256)), bytes_


def test_an_older_torch_that_names_no_capabilities_is_served(monkeypatch):
    """torch 2.9 and 2.10, as a notebook server may have: torch.cpu.get_capabilities came with 2.11."""
    monkeypatch.delattr(torch.cpu, 'get_capabilities')
    device, autocast, line = machines.pick_device('cpu', 'auto')
    assert device.type == 'cpu' and 'float32' in line


@pytest.mark.parametrize('has, expected', [
    (dict(avx512_bf16=True, cpu_name='AMD EPYC'), 'bfloat16'),
    (dict(avx512_bf16=True, amx_bf16=True, cpu_name='Intel Xeon'), 'bfloat16'),
    (dict(avx512_bf16=True, cpu_name='Intel Xeon'), 'float32'),     # measured: 0.6 times as fast
    (dict(bf16=True, sve_bf16=True), 'float32')])                   # a Mac's; not measured to be faster
def test_auto_is_bfloat16_on_a_cpu_that_is_faster_with_it(monkeypatch, has, expected):
    monkeypatch.setattr(torch.cpu, 'get_capabilities', lambda: has, raising=False)
    assert f', {expected}, torch' in machines.pick_device('cpu', 'auto')[2]


@pytest.mark.filterwarnings('error')
def test_a_macs_gpu_computes_in_float32_and_byte_pooling_goes_a_gpus_way(monkeypatch):
    monkeypatch.setattr(torch.backends.mps, 'is_available', lambda: True)
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    device, _, line = machines.pick_device()
    assert (device.type, line.split(', torch')[0]) == ('mps', 'device mps, float32')
    assert not machines.Scaler(device.type, torch.float32).is_enabled()
    model, _ = model_of(KINDS[1])
    assert [model.to(where).tokens.round_to for where in ('cpu', 'meta')] == [1, 4]   # meta: any device that is no CPU


def test_the_watch_sees_what_torchs_own_muon_does():
    p = torch.nn.Parameter(torch.ones(4, 4))
    p.grad = torch.eye(4)
    with Watch() as watch:
        torch.optim.Muon([p]).step()
    assert watch.half


@pytest.mark.parametrize('changes', KINDS)
@pytest.mark.parametrize('optimizer', ['muon', 'adamw'])
def test_a_training_step_in_float32_emulates_nothing(changes, optimizer):
    model, _ = model_of(changes)
    model.dropout.set(0.1)
    _, autocast, _ = machines.pick_device('cpu', 'float32')
    optimizers = muon.make_optimizers(model, optimizer, 1e-3, 1e-2, 0.1, 0.95, torch.float32)
    averaged = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    idx = torch.randint(255, (2, 17))
    with Watch() as watch:
        for _ in range(2):
            with autocast:
                model(idx[:, :-1], idx[:, 1:]).mean().backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            for each, _ in optimizers:
                each.step()
            averaged.update_parameters(model)
    assert watch.seen > 500 and not watch.half


@pytest.mark.parametrize('changes', KINDS)
def test_evaluation_generation_and_multiple_choice_in_float32_emulate_nothing(changes, tmp_path):
    model, bytes_ = model_of(changes)
    model.eval()
    np.arange(200, dtype='u1').tofile(tmp_path / 'val.bin')
    meta = dict(dtype='u1', splits=dict(val=dict(bytes=199, tokens=200)))
    items = [questions.make_item('ab', ['cd', 'efg'], 0), questions.make_item('', ['x', 'yz'], 1)]
    machine, held = machines.Machine('cpu', 'float32'), SimpleNamespace(sets=[(tmp_path, meta)], token_bytes=np.ones(256))
    with Watch() as watch, machine.autocast:
        text.bits_per_byte(machine, model, held)
        eval_mc.answer_questions(model, bytes_, items)
        with fast.prepare_to_generate(model, 'float32', machine.device):
            list(model.generate(torch.tensor([[255, 7]]), 5))
    assert watch.seen > 500 and not watch.half


@pytest.mark.parametrize('most', [(2**24, 2**27), (2**40, 2**40)], ids=['pieces', 'whole'])
def test_logits_in_bfloat16_give_a_loss_in_float32_whole_as_on_a_gpu_or_in_pieces(most, monkeypatch):
    monkeypatch.setattr(model_module, 'most_logits', lambda device: most)
    torch.manual_seed(0)
    table = run.build_model(Config(vocab_size=50257, n_embd=128, n_layer=1), None).tokens
    torch.nn.init.normal_(table.head.weight, std=0.3)   # a loss of about 16 nats, which bfloat16 rounds to 1/16
    h, targets = torch.randn(4, 256, 128), torch.randint(50257, (4, 256))
    with torch.autocast('cpu', torch.bfloat16), torch.no_grad():
        nll = table.nll(h, targets)
    logits = h.double() @ table.head.weight.double().T
    expected = logits.logsumexp(-1) - logits.gather(-1, targets[..., None])[..., 0]
    assert nll.dtype == torch.float32
    assert abs(nll.double().mean() - expected.mean()) < 1e-3 and (nll - expected).abs().mean() < 0.02   # a logit's rounding
