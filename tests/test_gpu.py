"""A GPU computes what a CPU computes in float32. Skipped as a whole where there is no GPU.

Kernels of a GPU add in other orders than a CPU's, and some in another order each time (atomically: attention's gradient
is one), so nothing here is equal bit for bit. `off` measures how far results are apart, relative to their size.
"""
import contextlib
import math
import subprocess
import sys

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from stlm import machine as machines
from helpers import ROOT, SMALL, story
import model as chapters
from model import LayerCache, attend
from stlm.muon import Muon
from test_model import BYTES, tiny, tokens

DEVICE = 'cuda'
pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')


def off(found, expected):
    """|found - expected| / |expected|"""
    expected = expected.double().cpu()
    return ((found.double().cpu() - expected).norm() / expected.norm()).item()


def far_from_its_start(**changes):
    """A tiny model whose every part matters: at the usual start attention hardly changes the loss."""
    model = tiny(**changes)
    for p in model.parameters():
        torch.nn.init.normal_(p, mean=float(p.dim() == 1), std=0.2)
    return model


# ---- a step of training

def nll_and_gradients(model, device='cpu', context=contextlib.nullcontext(), compiled=False):
    model = model.to(device).train()
    V = min(model.config.vocab_size, 50000) - 1   # the last id of the byte model has no token
    idx, targets = (tokens(8, 64, vocab_size=V, seed=seed).to(device) for seed in (1, 2))
    if compiled:
        model.compile()
    with context:
        nll = model(idx, targets)
    nll.mean().backward()
    gradients = {name: p.grad.cpu() for name, p in model.named_parameters()}
    model.zero_grad()
    return nll.detach().cpu(), gradients


# How far float32 on a CPU is from float64 here: nll 1e-7, gradients 2e-6. Another order of addition may be some times
# as far; TF32, which rounds what it multiplies to 10 bits and which PyTorch leaves off, is at 2e-4 and 3e-3.
# bfloat16 has 8 bits, so that each rounding is off by up to 2^-9. Some dozens of them, one after the other, are off by
# 0.004 and 0.04 on a CPU; a GPU rounds at other places.
@pytest.mark.parametrize('dtype, most, most_of_gradients', [('float32', 1e-5, 1e-4), ('bfloat16', 0.01, 0.1)])
@pytest.mark.parametrize('compiled', [False, True])
@pytest.mark.parametrize('changes', [{}, dict(vocab_size=50000), BYTES])
def test_the_loss_and_its_gradients_are_the_cpus(changes, compiled, dtype, most, most_of_gradients, monkeypatch):
    monkeypatch.setattr(chapters, 'most_logits', lambda device: (2**24, 2**20))   # of 50000 tokens they are made again for the gradient
    torch.compiler.reset()   # what is compiled too often isn't compiled any more
    device, autocast, _ = machines.pick_device(DEVICE, dtype)
    model = far_from_its_start(**changes)
    expected, expected_gradients = nll_and_gradients(model)
    nll, gradients = nll_and_gradients(model, device, autocast, compiled)
    assert nll.dtype == torch.float32 and off(nll, expected) < most
    for name, gradient in gradients.items():
        assert off(gradient, expected_gradients[name]) < most_of_gradients, name


def test_muon_takes_the_cpus_steps():
    shapes, steps = [(32, 32), (96, 32), (32, 96), (32, 32), (16, 32)], []
    for device in ('cpu', DEVICE):
        matrices = [torch.nn.Parameter(torch.full(shape, 0.1, device=device)) for shape in shapes]
        optimizer, generator = Muon(matrices, lr=0.05, weight_decay=0.2), torch.Generator().manual_seed(0)
        for _ in range(4):
            for p in matrices:
                p.grad = torch.randn(p.shape, generator=generator).to(device)
            optimizer.step()
        steps.append([p.detach().cpu() - 0.1 for p in matrices])
    for expected, found in zip(*steps):
        assert off(found, expected) < 1e-4   # float32 is 1e-6 from float64, bfloat16 is 1e-2


# ---- attention

def attention_by_formula(q, k, v):
    """attend(), causal, in float64 on the CPU."""
    q, k, v = (x.double().cpu() for x in (q, k, v))
    k, v = (x.repeat_interleave(q.size(1) // k.size(1), dim=1) for x in (k, v))
    T, P = q.size(2), k.size(2)
    seen = torch.ones(T, P, dtype=torch.bool).tril(P - T)
    return (q @ k.mT / math.sqrt(q.size(3))).masked_fill(~seen, -math.inf).softmax(-1) @ v


@pytest.mark.parametrize('dtype, most', [(torch.float32, 1e-5), (torch.bfloat16, 0.01)])   # two roundings of 2^-9
@pytest.mark.parametrize('T', [150, 1, 7])   # all at once, or the last ones after those in a cache
@pytest.mark.parametrize('n_kv_head', [4, 2, 1])
def test_attention_is_the_formula(n_kv_head, T, dtype, most):
    torch.manual_seed(0)
    q = torch.randn(2, 4, T, 32).to(DEVICE, dtype)
    k, v = (torch.randn(2, n_kv_head, 150, 32).to(DEVICE, dtype) for _ in range(2))
    expected = attention_by_formula(q, k, v)
    if T < 150:
        cache = LayerCache(200)
        cache.append(k[:, :, :-T], v[:, :, :-T])
        k, v = cache.append(k[:, :, -T:], v[:, :, -T:])
    found = attend(q, k, v)
    assert found.dtype == dtype and off(found, expected) < most
    if dtype == torch.bfloat16 and T != 7 and (DEVICE == 'cpu' or torch.cuda.get_device_capability() >= (8, 0)):
        with sdpa_kernel(SDPBackend.FLASH_ATTENTION):   # is an error where the fast kernel can't do it; it has no masks
            assert off(attend(q, k, v), expected) < most


# ---- generation

@pytest.mark.parametrize('changes', [{}, BYTES])
def test_generation_with_a_cache_takes_the_tokens_that_the_cpu_takes_without(changes):
    model, text = far_from_its_start(**changes), tokens(2, 40)
    expected, window = [], text
    with torch.no_grad():
        for _ in range(60):   # past the block_size of 64, where the older half is forgotten
            window = window[:, -32:] if window.size(1) > 64 else window
            log_p = model.log_probs(window)
            first, second = log_p.topk(2).values.unbind(-1)
            assert (first - second).min() > 1e-3   # else the last bits of a sum might decide
            expected.append(log_p.argmax(-1))
            window = torch.cat((window, expected[-1][:, None]), dim=1)
    found = model.to(DEVICE).generate(text.to(DEVICE), 60, temperature=0)
    assert torch.equal(torch.stack(list(found)).cpu(), torch.stack(expected))


# ---- a run that goes on

@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """With data/mine-bpe300."""
    folder = tmp_path_factory.mktemp('gpu')
    (folder / 'story.txt').write_text(story(), encoding='utf-8')
    call(folder, 'prepare_wiki.py', '--input=story.txt', '--dataset=mine', '--tokenizer=bpe300', '--val_fraction=0.2')
    return folder


def call(folder, script, *args):
    done = subprocess.run([sys.executable, ROOT / script, *args], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize('kind, extra', [
    ('table', ['--compile=True', '--ema=0.9']),
    ('bytes', ['--embedding=byte_pool', '--n_byte_embd=16', '--n_byte_head=2', '--optimizer=adamw'])])
def test_a_resumed_run_is_the_same_run(folder, kind, extra):
    """Almost: weights that a kernel made 1e-6 different are, ten steps on, 3e-5 of their way apart. With another state
    of dropout's generator they are 0.6 of it apart."""
    args = [*SMALL, '--dataset=mine', '--tokenizer=bpe300', f'--device={DEVICE}', '--dtype=float32', '--dropout=0.3',
            '--schedule=wsd', '--decay_share=1e-9', *extra]   # a level rate, which doesn't depend on where the run ends
    call(folder, 'train.py', *args, f'--out_dir=out/{kind}_whole')
    call(folder, 'train.py', *args, f'--out_dir=out/{kind}', '--max_iters=10')
    states = [torch.load(folder / f'out/{kind}/ckpt.pt', weights_only=True)]
    call(folder, 'train.py', f'--out_dir=out/{kind}', '--init_from=resume', '--max_iters=20')
    states += [torch.load(folder / f'out/{name}/ckpt.pt', weights_only=True) for name in (kind, f'{kind}_whole')]
    start, parts, whole = (torch.cat([p.flatten() for p in state['model'].values()]) for state in states)
    assert [state['iter'] for state in states] == [10, 20, 20] and states[1]['parts']['text'] == states[2]['parts']['text']
    assert torch.equal(*(state['parts']['machine']['cuda_rng'] for state in states[1:]))
    assert off(parts - start, whole - start) < 1e-3
