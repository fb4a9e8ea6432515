"""stlm/fast.py: what it writes, against the model's own way, naive products and exact rounding."""
import gc
import weakref
from types import SimpleNamespace

import pytest
import torch

from model import Attention, Norm, attend, rotate
from stlm import fast
from stlm.console import Failure
from test_ideas import tiny
from test_model import BYTES, tokens

CPU = torch.device('cpu')
KINDS = dict(
    table={}, queries_share_nothing=dict(n_kv_head=4), gelu=dict(ffn='gelu'), untied=dict(tie_embeddings=False),
    bias=dict(output_bias=True), ffn=dict(share='ffn'), block=dict(share='block', share_every=2, n_layer=4),
    adapters=dict(share='block', lora_rank=3), byte_pool=BYTES, byte_gelu=dict(**BYTES, ffn='gelu', n_kv_head=1),
    byte_adapters=dict(**BYTES, share='ffn', lora_rank=3))
every_kind = pytest.mark.parametrize('kind', KINDS)


def texts(model, prompt, n, **how):
    generator = torch.Generator().manual_seed(how.pop('seed', 1))
    return torch.stack(list(model.generate(prompt, n, generator=generator, **how)))


@every_kind
@pytest.mark.parametrize('how', [{}, dict(temperature=0), dict(temperature=0.7, top_k=9, top_p=0.8, seed=2)])
def test_in_float32_the_tokens_are_the_models_own_also_where_the_context_runs_over(kind, how):
    expected = texts(tiny('', **KINDS[kind]), tokens(1, 7), 300, **how)   # block_size is 64
    model = tiny('', **KINDS[kind])
    with fast.prepare_to_generate(model, 'float32', CPU) as numbers:
        assert torch.equal(texts(model, tokens(1, 7), 300, **how), expected) and numbers == 'float32'
    assert len(expected.unique()) > 3


@every_kind
@pytest.mark.parametrize('size', [1, 100])
def test_prompts_of_any_length_and_several_texts_at_once_give_the_same_tokens(kind, size):
    for rows in (1, 3):
        model, prompt = tiny('', **KINDS[kind]), tokens(rows, size)
        expected = texts(model, prompt, 20)
        with fast.prepare_to_generate(model, 'float32', CPU, rows):
            assert torch.equal(texts(model, prompt, 20), expected)


def windowed(self, x, angles, cache=None, mask=None):
    """Attention.forward() in which a token sees itself and the two before it."""
    q, k, v = (self.heads(linear(x)) for linear in (self.query, self.key, self.value))
    q, k = rotate(q, angles), rotate(k, angles)
    if cache is not None:
        k, v = cache.append(k, v)
    ago = torch.arange(k.size(2)).flip(0) - torch.arange(q.size(2)).flip(0)[:, None]          # (T, P)
    y = attend(q, k, v, causal=False, mask=(ago >= 0) & (ago < 3))
    return self.out(y.transpose(1, 2).flatten(2))


def doubled(self, x):
    return 2 * x


@pytest.mark.parametrize('part, forward', [(Attention, windowed), (Norm, doubled)])
def test_what_a_reader_changes_in_model_py_changes_the_text(monkeypatch, part, forward):
    unchanged = texts(tiny(''), tokens(1, 7), 40)
    monkeypatch.setattr(part, 'forward', forward)
    expected = texts(tiny(''), tokens(1, 7), 40)
    model = tiny('')
    with fast.prepare_to_generate(model, 'float32', CPU):
        assert torch.equal(texts(model, tokens(1, 7), 40), expected)
    assert not torch.equal(unchanged, expected)


def log_probs_of(model, text):
    """(T, V) log-probabilities after each token of (1, T), read one after the other."""
    seen = []

    def see(h, *args, **kwargs):
        seen.append(model.tokens.log_probs(h))
        return text[0, len(seen):len(seen) + 1]
    model.tokens.sample = see
    list(model.generate(text[:, :1], text.size(1) - 1))
    return torch.cat(seen)


@every_kind
def test_log_probabilities_are_those_of_reading_everything_at_once(kind):
    model, text = tiny('', **KINDS[kind]), tokens(1, 41)
    with torch.no_grad():
        states = model.hidden(text[:, :-1])[0]
        expected = model.tokens.log_probs(states)
    for numbers, most in dict(float32=1e-4, bfloat16=0.1, int8=0.3).items():
        model = tiny('', **KINDS[kind])
        with fast.prepare_to_generate(model, numbers, CPU):
            off = (log_probs_of(model, text) - expected)[expected.isfinite()].abs()
        assert off.max() < most if numbers == 'float32' else 1e-4 < off.mean() < most, (numbers, off.mean())


@pytest.mark.parametrize('n', [500, 700])   # in float32 these matrices take the two ways
@pytest.mark.parametrize('rows', [1, 2, 40])
@pytest.mark.parametrize('numbers, bits', dict(float32=21, float16=10, bfloat16=7, int8=5).items())
def test_a_product_is_exact_to_the_bits_of_its_numbers(numbers, bits, rows, n):
    torch.manual_seed(0)
    linear, x = torch.nn.Linear(200, n, bias=n == 500), torch.randn(1, rows, 200)
    matrix, bias = linear.weight.detach().double(), 0 if linear.bias is None else linear.bias.detach().double()
    fast.lay_out(linear, numbers)
    error = linear(x) - (x.double() @ matrix.T + bias)
    size = x.double().abs() @ matrix.abs().T   # what the roundings are relative to
    assert (error.abs() / size).max() < 2.0 ** -bits and (error != 0).any()


@pytest.mark.parametrize('tie', [True, False])
@pytest.mark.parametrize('numbers', ['bfloat16', 'int8'])
def test_no_matrix_stays_in_float32_beside_its_rounded_one(numbers, tie):
    model = tiny('', tie_embeddings=tie, n_embd=64, d_ff=128)
    old = [weakref.ref(p) for p in model.parameters() if p.dim() == 2]
    with fast.prepare_to_generate(model, numbers, CPU):
        gc.collect()
        assert not any(p() is not None for p in old)
        rows = model.tokens.embed(torch.arange(97)[None])[0]
    expected = tiny('', tie_embeddings=tie, n_embd=64, d_ff=128).tokens.embedding.weight
    step = expected.abs().amax(1, keepdim=True) / 127 if numbers == 'int8' else expected.abs() / 2**10 + 2**-24
    assert ((rows - expected).abs() <= step / 2 * 1.001).all() and not torch.equal(rows, expected)


def test_what_is_set_for_generation_is_as_before_after_it_and_after_an_error():
    model = tiny('')
    with pytest.raises(KeyError), torch.autocast('cpu', torch.bfloat16):
        with fast.prepare_to_generate(model, 'auto', CPU):
            assert not torch.is_autocast_enabled('cpu') and not torch.backends.mkldnn.enabled
            raise KeyError
    assert torch.backends.mkldnn.enabled


@pytest.mark.parametrize('capability, rows, numbers', [
    ('AVX2', 1, 'bfloat16'), ('AVX512', 1, 'bfloat16'), ('DEFAULT', 1, 'float32'), ('AVX512', 2, 'float32')])
def test_auto_is_bfloat16_for_one_row_where_it_was_measured(monkeypatch, capability, rows, numbers):
    monkeypatch.setattr(torch.backends.cpu, 'get_cpu_capability', lambda: capability)
    with fast.prepare_to_generate(tiny(''), 'auto', CPU, rows) as found:
        assert found == numbers


@pytest.mark.parametrize('engines, device, fine', [
    (['qnnpack'], 'cpu', True), ([], 'cpu', False), (['qnnpack'], 'mps', False)])
def test_int8_takes_qnnpack_where_nothing_is_chosen_or_ends_in_one_line(monkeypatch, engines, device, fine):
    chosen = SimpleNamespace(engine='none', supported_engines=engines)
    monkeypatch.setattr(torch.backends, 'quantized', chosen)
    if fine:
        with fast.prepare_to_generate(tiny(''), 'int8', torch.device(device)) as numbers:
            assert numbers == 'int8' and chosen.engine == 'qnnpack'
    else:
        with pytest.raises(Failure, match='dtype=int8') as error:
            fast.prepare_to_generate(tiny(''), 'int8', torch.device(device)).__enter__()
        assert len(str(error.value).splitlines()) == 1
