"""
What model.py promises, each promise a test against something independent of it: a naive formula in float64,
Hugging Face's Llama, a brute-force loop. Reading them is a second way to read model.py.

    python -m pytest test_model.py
"""
import io
import math
from itertools import product

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from model import END, GPT, BytePool, Config, Dropout, LayerCache, LoRA, Rotary, TokenTable, attend, choose, rotate
from stlm.muon import Muon, orthogonalise

TINY = dict(vocab_size=97, block_size=64, n_layer=2, n_head=4, n_kv_head=2, n_embd=32, d_ff=48)


BYTES = dict(embedding='byte_pool', n_byte_embd=16, n_byte_head=2, n_decoder_layer=2, max_bytes=4)
LETTERS = [''.join(s).encode() for n in range(5) for s in product('ab', repeat=n)]   # '', 'a', 'b', 'aa', ...
# the 97 ids of the tiny byte model: the empty token (end of text), emoji halves, invalid UTF-8, a beginning that only
# goes on (0xE7), and an id that has no token
SPELLING = LETTERS + [b'\xf0\x9f', b'\x90\x88', '猫'.encode(), '🐈'.encode(), b'\xff\xfe', b'\x00'] + [
    bytes([i]) for i in range(1, 60)] + [None]
COUNTS = torch.arange(97) % 7   # of each in an imagined training text


def tiny(**changes):
    torch.manual_seed(0)
    config = Config(**{**TINY, **changes})
    model = GPT(config, SPELLING, COUNTS if config.vocab_size == 97 else None).eval()
    if config.embedding == 'byte_pool':
        for p in model.tokens.parameters():   # far from the mild initial ones
            torch.nn.init.normal_(p, mean=float(p.dim() == 1), std=0.3)
    return model


def tokens(*shape, vocab_size=96, seed=1):
    return torch.randint(vocab_size, shape, generator=torch.Generator().manual_seed(seed))


# ---- the parts, against naive formulas

def test_rope_turns_each_pair_of_numbers_by_position_times_frequency():
    x = np.random.default_rng(0).normal(size=(5, 8))                             # (T, K)
    pairs = x[:, :4] + 1j * x[:, 4:]   # a rotation is a product with a complex number of size 1
    turned = pairs * np.exp(1j * np.outer(np.arange(5), 10000.0**(-np.arange(4) / 4)))
    angles = Rotary(5, Config(n_embd=16, n_head=2, n_kv_head=2, rope_base=10000.0))(0, 5)
    ours = rotate(torch.tensor(x)[None, None], angles)[0, 0].numpy()
    np.testing.assert_allclose(ours, np.concatenate([turned.real, turned.imag], axis=1), atol=1e-6)


@pytest.mark.parametrize('T, S', [(300, 300), (1, 40), (7, 40), (200, 230), (1, 1)])
def test_attention_equals_a_float64_loop_over_queries(T, S):
    rng = np.random.default_rng(0)
    q, k, v = rng.normal(size=(2, 4, T, 8)), rng.normal(size=(2, 2, S, 8)), rng.normal(size=(2, 2, S, 8))
    expected = np.empty_like(q)
    for b, h, t in np.ndindex(2, 4, T):
        seen = S - T + t + 1
        weights = np.exp(k[b, h // 2, :seen] @ q[b, h, t] / math.sqrt(8))        # heads 0, 1 share k, v 0
        expected[b, h, t] = weights @ v[b, h // 2, :seen] / weights.sum()
    ours = attend(*(torch.tensor(x, dtype=torch.float32) for x in (q, k, v)))
    np.testing.assert_allclose(ours.numpy(), expected, atol=1e-5)


@pytest.mark.parametrize('most_logits', [0, 2**27])
def test_the_chunked_loss_and_its_gradient_equal_the_plain_ones(most_logits, monkeypatch):
    monkeypatch.setattr(TokenTable, 'MOST_LOGITS', most_logits)   # 0: the logits are made again for the gradient
    model = tiny(vocab_size=50000, output_bias=True)
    torch.nn.init.normal_(model.tokens.head.bias)
    h = torch.randn(2, 400, 32, requires_grad=True)                              # 800 rows: three chunks
    targets, scale = tokens(2, 400, vocab_size=50000), torch.rand(2, 400)
    weight, bias = model.tokens.head.weight, model.tokens.head.bias
    ours = model.tokens.nll(h, targets)
    ours_grad = torch.autograd.grad((ours * scale).sum(), (h, weight, bias))
    logits = h.double() @ weight.double().T + bias.double()
    plain = torch.logsumexp(logits, -1) - logits.gather(-1, targets[..., None])[..., 0]
    plain_grad = torch.autograd.grad((plain * scale).sum(), (h, weight, bias))
    torch.testing.assert_close(ours.double(), plain, atol=1e-5, rtol=0)
    torch.testing.assert_close(ours_grad, plain_grad, atol=1e-5, rtol=1e-4)


def test_no_tensor_of_the_loss_is_as_large_as_all_logits():
    model, largest = tiny(vocab_size=50000), 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            nonlocal largest
            out = func(*args, **kwargs or {})
            largest = max(largest, out.numel() if torch.is_tensor(out) else 0)
            return out

    with Watch():
        model(tokens(8, 64), tokens(8, 64, seed=2)).mean().backward()
    assert 50000 * 32 <= largest < 512 * 50000 * 0.75


# ---- the whole network, against Hugging Face's Llama

def llama_of(model):
    """Hugging Face's Llama with the model's weights."""
    import transformers
    c = model.config
    llama = transformers.LlamaForCausalLM(transformers.LlamaConfig(
        vocab_size=c.vocab_size, hidden_size=c.n_embd, intermediate_size=c.d_ff, num_hidden_layers=c.n_layer,
        num_attention_heads=c.n_head, num_key_value_heads=c.n_kv_head, rms_norm_eps=c.norm_eps, rope_theta=c.rope_base,
        max_position_embeddings=c.block_size, tie_word_embeddings=c.tie_embeddings)).eval()
    names = {'tokens.embedding': 'model.embed_tokens', 'tokens.head': 'lm_head', 'blocks': 'model.layers',
             'attn.query': 'self_attn.q_proj', 'attn.key': 'self_attn.k_proj', 'attn.value': 'self_attn.v_proj',
             'attn.out': 'self_attn.o_proj', 'attn_norm': 'input_layernorm', 'ffn_norm': 'post_attention_layernorm',
             'ffn.gate': 'mlp.gate_proj', 'ffn.up': 'mlp.up_proj', 'ffn.down': 'mlp.down_proj'}
    weights = {}
    for name, value in model.state_dict().items():
        for ours, theirs in names.items():
            name = name.replace(ours, theirs)
        weights['model.norm.weight' if name == 'norm.weight' else name] = value
    llama.load_state_dict(weights)
    return llama


@pytest.mark.parametrize('tied', [True, False])
def test_the_network_equals_hugging_faces_llama_with_the_same_weights(tied):
    pytest.importorskip('transformers')
    model = tiny(tie_embeddings=tied, rope_base=500.0, norm_eps=1e-3)
    for p in model.parameters():   # not the initial ones: biggest possible differences
        torch.nn.init.normal_(p, mean=float(p.dim() == 1), std=0.2)
    llama = llama_of(model)
    idx, targets = tokens(3, 64), tokens(3, 64, seed=2)
    with torch.no_grad():
        expected = F.cross_entropy(llama(idx).logits.transpose(1, 2), targets, reduction='none')
        torch.testing.assert_close(model(idx, targets), expected, atol=2e-4, rtol=1e-5)


# ---- what a language model has to be

@pytest.mark.parametrize('change', [{}, dict(ffn='gelu', tie_embeddings=False, n_kv_head=4), dict(block_size=256), BYTES])
def test_a_changed_future_never_changes_the_past(change):
    model = tiny(**change)
    T = model.config.block_size
    idx, other = tokens(2, T), tokens(2, T)
    for t in (1, T // 2, T - 1):
        other[:, t:] = tokens(2, T, seed=t)[:, t:]
        a, b = (model.hidden(x)[:, :t] for x in (idx, other))
        torch.testing.assert_close(a, b, atol=1e-6, rtol=0)
        other = idx.clone()


@pytest.mark.parametrize('vocab_size', [257, 8192, 50257])
def test_an_untrained_model_knows_nothing(vocab_size):
    model = tiny(vocab_size=vocab_size)
    loss = model(tokens(4, 64, vocab_size=vocab_size), tokens(4, 64, vocab_size=vocab_size, seed=2)).mean()
    assert abs(loss.item() - math.log(vocab_size)) < 0.02


@pytest.mark.parametrize('change', [{}, BYTES, dict(output_bias=True)])
def test_probabilities_of_all_next_tokens_sum_to_one_and_log_probs_has_each(change):
    model, idx = tiny(**change).double(), tokens(1, 5)
    nll = [model(idx, torch.cat((idx[:, 1:], torch.tensor([[token]])), 1))[0, -1] for token in range(97)]
    assert abs(torch.stack(nll).neg().exp().sum().item() - 1) < 1e-12
    torch.testing.assert_close(model.log_probs(idx)[0].double(), -torch.stack(nll), atol=1e-6, rtol=1e-6)


def test_it_can_learn_to_repeat():
    torch.manual_seed(0)
    model = GPT(Config(**TINY))
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for step in range(150):   # 8 random tokens, again and again: only attention can tell what comes next
        idx = tokens(16, 8, vocab_size=30, seed=step).repeat(1, 4)
        loss = model(idx[:, :-1], idx[:, 1:])[:, 8:].mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert loss.item() < 0.5 * math.log(30)


# ---- byte pooling

def naive_choices(token):
    """[(what is spelled so far, {symbol that may follow: how often it does})] where more than one may."""
    spelled, found = (*token, END), []
    for place in range(len(spelled)):
        follows = {}
        for other, count in zip(SPELLING, COUNTS.tolist()):
            if other is not None and (*other, END)[:place] == spelled[:place]:
                symbol = (*other, END)[place]
                follows[symbol] = follows.get(symbol, 0) + count + 1
        if len(follows) > 1:
            found.append((spelled[:place], follows))
    return found


def naive_spelling(model, h, choices):
    """[{symbol: -log p}] at each of a token's choices, given the state h (C), by formulas in float64, one by one."""
    weights = {name: p.double() for name, p in model.tokens.named_parameters()}

    def norm(x, name):
        return x / (x.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt() * weights[name]

    def turned(x, t):   # (8): a rotation of four pairs, as a product with complex numbers
        y = torch.complex(x[:4], x[4:]) * torch.exp(1j * t * 10000.0**(-torch.arange(4).double() / 4))
        return torch.cat((y.real, y.imag))

    rows = []
    for i, (spelled, _) in enumerate(choices):
        row = weights['slices.weight'][16 * i:16 * (i + 1)] @ h.double()
        before = (*choices[i][0], END)[len(choices[i - 1][0])] if i else END   # what was taken at the fork before
        rows.append(row + weights['byte_out.weight'][before])
    x = torch.stack(rows)
    for i in range(2):
        w = {name.removeprefix(f'decoder.{i}.'): p for name, p in weights.items()}
        y = norm(x, f'decoder.{i}.attn_norm.weight')
        q, k, v = ((y @ w[f'attn.{name}.weight'].T).view(-1, 2, 8) for name in ('query', 'key', 'value'))
        mixed = torch.zeros_like(q)
        for t, head in product(range(len(x)), range(2)):
            keys = torch.stack([turned(k[s, head], s) for s in range(t + 1)])
            scores = (keys @ turned(q[t, head], t) / math.sqrt(8)).exp()
            mixed[t, head] = scores @ v[:t + 1, head] / scores.sum()
        x = x + mixed.flatten(1) @ w['attn.out.weight'].T
        gate, up = (norm(x, f'decoder.{i}.ffn_norm.weight') @ w[f'ffn.{name}.weight'].T for name in ('gate', 'up'))
        x = x + (gate * torch.sigmoid(gate) * up) @ w['ffn.down.weight'].T
    costs = []
    for logits, (_, follows) in zip(norm(x, 'norm.weight') @ weights['head.weight'].T, choices):
        odds = {symbol: math.exp(logits[symbol].item()) * count for symbol, count in follows.items()}
        costs.append({symbol: -math.log(odd / sum(odds.values())) for symbol, odd in odds.items()})
    return costs


@pytest.mark.parametrize('round_to', [1, 4])   # on a CPU, on a GPU
def test_spelling_costs_what_the_naive_formula_says_whatever_else_is_in_the_batch(round_to, monkeypatch):
    monkeypatch.setattr(BytePool, 'round_to', round_to)
    model = tiny(**BYTES)
    idx, targets = tokens(2, 64), torch.cat((torch.arange(96), tokens(32))).view(2, 64)   # every token
    with torch.no_grad():
        h = model.hidden(idx)
        nats = model.tokens.nll_of_choices(h, targets)                           # (2, 64, S - 1)
        for b, t in np.ndindex(2, 64):
            token = SPELLING[targets[b, t]]
            choices = naive_choices(token)
            costs = naive_spelling(model, h[b, t], choices)
            expected = torch.zeros(4)
            for i, ((spelled, _), cost) in enumerate(zip(choices, costs)):
                expected[i] = cost[(*token, END)[len(spelled)]]
            torch.testing.assert_close(nats[b, t], expected, atol=2e-5, rtol=1e-5)
        torch.testing.assert_close(model(idx, targets), nats.sum(-1))
        alone = [model(idx[:1, :t + 1], targets[:1, :t + 1])[0, -1] for t in range(64)]
        torch.testing.assert_close(model(idx, targets)[0], torch.stack(alone), atol=2e-5, rtol=1e-5)


def test_lengths_that_are_rounded_up_change_no_loss_and_no_gradient(monkeypatch):
    found = []
    for round_to in (1, 2, 4, 16):
        monkeypatch.setattr(BytePool, 'round_to', round_to)
        model = tiny(**BYTES).double()
        nll = model(tokens(2, 64), tokens(2, 64, seed=2))
        nll.sum().backward()
        found.append([nll.detach(), *(p.grad for p in model.parameters())])
    for rounded in found[1:]:
        torch.testing.assert_close(rounded, found[0], atol=1e-11, rtol=1e-8)


def test_what_only_one_symbol_can_follow_costs_nothing_and_an_id_without_a_token_is_impossible():
    model, h = tiny(**BYTES), torch.randn(1, 2, 32)
    cat, emoji = SPELLING.index('猫'.encode()), SPELLING.index('🐈'.encode())
    nats, tree = model.tokens.nll_of_choices(h, torch.tensor([[cat, emoji]]))[0], model.tokens.tree
    assert (nats > 0).tolist() == [[True, False, False, False], [True, True, False, False]]
    assert tree.place[tree.forks[cat, :1]].tolist() == [0]                           # only 猫 begins with 0xE7
    assert tree.place[tree.forks[emoji, :2]].tolist() == [0, 2]                      # its first half is a token, too
    assert model.tokens.nll(h[:, :1], torch.tensor([[96]])).item() == math.inf


def test_a_later_byte_never_changes_what_an_earlier_one_costs():
    model, h = tiny(**BYTES), torch.randn(1, 9, 32)
    a, b = (model.tokens.nll_of_choices(h, torch.full((1, 9), SPELLING.index(s))) for s in (b'abaa', b'abb'))
    torch.testing.assert_close(a[..., :2], b[..., :2], atol=1e-6, rtol=0)
    assert not torch.allclose(a[..., 2], b[..., 2])


def test_a_tokens_vector_depends_on_its_spelling_alone():
    model, every = tiny(**BYTES), torch.arange(96)[None]
    together = model.tokens.embed(every)[0]
    alone = torch.cat([model.tokens.embed(every[:, i:i + 1])[0] for i in range(96)])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)
    renamed = GPT(model.config, SPELLING[1:96] + SPELLING[:1] + [None], COUNTS)   # other ids, the same spelling
    renamed.load_state_dict(model.state_dict())
    torch.testing.assert_close(renamed.tokens.embed((every - 1) % 96)[0], together, atol=1e-5, rtol=0)


def test_greedy_spelling_takes_the_likeliest_symbol_at_each_choice():
    model, text = tiny(**BYTES), tokens(9, 7)
    h = model.hidden(text)[:, -1]
    for i, token in enumerate(model.tokens.sample(h, temperature=0).tolist()):
        choices = naive_choices(SPELLING[token])
        for (spelled, _), cost in zip(choices, naive_spelling(model, h[i], choices)):
            assert min(cost, key=cost.get) == (*SPELLING[token], END)[len(spelled)]


def test_tokens_are_drawn_as_often_as_they_are_probable_and_none_is_invented():
    model, idx = tiny(**BYTES), tokens(1, 7)
    h = model.hidden(idx)[:, -1].expand(20000, -1)
    torch.manual_seed(0)
    drawn = torch.bincount(model.tokens.sample(h), minlength=97) / 20000
    torch.testing.assert_close(drawn, model.log_probs(idx)[0].exp(), atol=0.012, rtol=0)
    assert drawn[96] == 0
    assert len(list(model.generate(tokens(3, 7), 20, generator=torch.Generator().manual_seed(0)))) == 20


def test_the_byte_modules_are_a_tenth_of_the_table_that_they_replace():
    shape = dict(vocab_size=50257, n_layer=10, n_head=16, n_kv_head=16, n_embd=512)   # the paper's 50M shape
    with torch.device('meta'):   # shapes without numbers
        table, pool = (GPT(Config(**shape, d_ff=1536, embedding=kind), [b''] * 50257).count_parameters() for kind in ('table', 'byte_pool'))
    assert pool['byte pooling'] <= 0.1 * table['token tables'] == 0.1 * 50257 * 512


# ---- weight sharing

SHARED = [dict(lora_rank=3), dict(share='ffn'), dict(share='ffn', share_every=2, lora_rank=3), dict(share='block'),
          dict(share='block', share_every=2), dict(share='block', lora_rank=3)]


@pytest.mark.parametrize('change', SHARED)
def test_a_sharing_model_equals_an_unshared_one_with_the_same_matrices_in_each_layer(change):
    model, plain = tiny(n_layer=4, **change), tiny(n_layer=4)
    weights = dict(model.state_dict())
    for name in [name for name in weights if name.endswith('.A.weight')]:   # W + B A, layer by layer
        path = name.removesuffix('.A.weight')
        torch.nn.init.normal_(weights[f'{path}.B'], std=0.2)
        weights[f'{path}.weight'] = weights.pop(f'{path}.linear.weight') + weights.pop(f'{path}.B') @ weights.pop(name)
    plain.load_state_dict(weights)
    idx, targets = tokens(2, 64), tokens(2, 64, seed=2)
    torch.testing.assert_close(model(idx, targets), plain(idx, targets), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize('change', SHARED)
def test_what_is_shared_is_counted_once_and_saved_once(change):
    model, C, d_ff, kv = tiny(n_layer=4, **change), 32, 48, 16
    share, rank = change.get('share', 'none'), change.get('lora_rank', 0)
    groups = 4 if share == 'none' else 4 // (change.get('share_every') or 4)
    attn, ffn = 2 * C * C + 2 * C * kv, 3 * C * d_ff
    lora = rank * (3 * (C + d_ff) + (2 * 2 * C + 2 * (C + kv)) * (share != 'ffn'))
    parts = model.count_parameters()
    assert parts['feed-forward'] == groups * ffn and parts.get('LoRA', 0) == 4 * lora
    assert parts['attention'] == (groups if share == 'block' else 4) * attn
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    assert file.tell() < 4 * sum(parts.values()) + 40000   # the rest: names


def test_a_fresh_lora_changes_nothing():
    model, idx = tiny(n_layer=4, share='block', lora_rank=3), tokens(2, 64)
    adapted = model.hidden(idx)
    for module in model.modules():
        if isinstance(module, LoRA):
            torch.nn.init.zeros_(module.A.weight)
    assert torch.equal(model.hidden(idx), adapted)


# ---- initialisation and parameters

def test_initial_weights_have_the_promised_spread():
    model = tiny(n_layer=8, n_embd=128, d_ff=256)
    for name, p in model.named_parameters():
        residual = name.endswith(('attn.out.weight', 'ffn.down.weight'))
        expected = 1.0 if p.dim() == 1 else 0.02 / math.sqrt(16) if residual else 0.02
        found = p.mean() if p.dim() == 1 else p.std()
        assert abs(found.item() / expected - 1) < 0.05, name


@pytest.mark.parametrize('tied', [True, False])
def test_parameters_are_counted_once(tied):
    C, d_ff, V, kv = 32, 48, 97, 16
    parts = tiny(tie_embeddings=tied).count_parameters()
    assert parts == {'token tables': V * C * (1 if tied else 2), 'norms': C * (2 * 2 + 1),
                     'attention': 2 * (2 * C * C + 2 * C * kv), 'feed-forward': 2 * 3 * C * d_ff}


@pytest.mark.parametrize('wrong, named', [
    (dict(n_head=3), 'n_embd=32'), (dict(n_kv_head=3), 'n_head=4'), (dict(n_head=32), '2 [*] n_head=64'),
    (dict(BYTES, n_byte_head=5), 'n_byte_embd=16'), (dict(BYTES, max_bytes=17), 'max_bytes=17'),
    (dict(ffn='relu'), "ffn='relu'"), (dict(share='all'), "share='all'"), (dict(n_layer=10**11), '100000000000')])
def test_an_impossible_shape_is_an_error_that_names_it(wrong, named):
    with pytest.raises(ValueError, match=named):
        Config(**{**TINY, **wrong})


# ---- Muon

def test_the_orthogonalised_matrix_has_the_singular_vectors_of_a_float64_svd_and_values_near_one():
    torch.manual_seed(0)
    matrices = torch.randn(3, 20, 50)
    U, S, Vh = torch.linalg.svd(matrices.double(), full_matrices=False)
    inside = U.mT @ orthogonalise(matrices).double() @ Vh.mT                     # (3, 20, 20)
    assert (inside - inside.diagonal(dim1=1, dim2=2).diag_embed()).abs().max() < 1e-4
    assert 0.6 < inside.diagonal(dim1=1, dim2=2).min() and inside.diagonal(dim1=1, dim2=2).max() < 1.25


def test_muon_takes_the_steps_of_torchs_muon_but_for_its_rounding_to_bfloat16():
    torch.manual_seed(0)
    shapes = [(32, 32), (96, 32), (32, 96), (32, 32), (16, 32)]
    ours, theirs = ([torch.nn.Parameter(torch.full(shape, 0.1)) for shape in shapes] for _ in range(2))
    optimizers = Muon(ours, lr=0.05, weight_decay=0.2), torch.optim.Muon(theirs, lr=0.05, weight_decay=0.2)
    for _ in range(4):
        for a, b in zip(ours, theirs):
            a.grad = torch.randn_like(a)
            b.grad = a.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
    for a, b in zip(ours, theirs):
        assert (a - 0.1).norm() > 0.3 and (a - b).norm() < 0.02 * (b - 0.1).norm()


# ---- dropout

def test_dropout_drops_its_share_keeps_the_mean_and_only_in_training():
    torch.manual_seed(0)
    dropout, x = Dropout(), torch.ones(1000, 1000)
    assert dropout(x) is x                                                       # off until a schedule says so
    for p in (0.25, 0.5, 0.0):
        dropout.set(p)
        y = dropout(x)
        assert abs((y == 0).float().mean().item() - p) < 0.005 and abs(y.mean().item() - 1) < 0.01
    dropout.set(0.5)
    assert dropout.eval()(x) is x


def counting():
    """A list that grows with every graph that torch.compile makes, and the backend that fills it."""
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph
    return graphs, backend


def test_a_dropout_schedule_is_one_compiled_graph():
    graphs, backend = counting()
    model = tiny().train()
    model.dropout.set(0.5)   # as train.py does: the schedule's largest p, before compiling
    compiled = torch.compile(model, backend=backend, fullgraph=True)
    for step in range(4):
        model.dropout.set(step / 8)
        compiled(tokens(2, 64), tokens(2, 64))
    assert len(graphs) == 1


def test_a_compiled_byte_model_recompiles_nothing_when_the_words_change():
    graphs, backend = counting()
    model, numbers = tiny(**BYTES).train(), []
    compiled = torch.compile(model, backend=backend)
    for seed in range(3):
        idx, targets = tokens(2, 64, seed=seed), tokens(2, 64, seed=seed + 9)
        torch.testing.assert_close(compiled(idx, targets), model(idx, targets))
        numbers.append(len(graphs))
    assert numbers[0] == numbers[-1]


# ---- generation

@pytest.mark.parametrize('change', [{}, BYTES, dict(share='block', lora_rank=3)])
def test_states_after_cached_tokens_equal_those_of_reading_all_at_once(change):
    model, text = tiny(**change), tokens(2, 50)
    caches = [LayerCache(64) for _ in model.blocks]
    pieces = [model.hidden(piece, caches) for piece in text.split([20, 1, 1, 7, 1, 20], dim=1)]
    torch.testing.assert_close(torch.cat(pieces, dim=1), model.hidden(text), atol=1e-5, rtol=0)


def test_greedy_generation_takes_the_likeliest_token_even_after_a_prompt_longer_than_the_context():
    model, text = tiny(block_size=16), tokens(2, 40)
    expected, window = [], text[:, -8:]
    for _ in range(30):
        expected.append((model.hidden(window)[:, -1] @ model.tokens.embedding.weight.T).argmax(-1))
        window = torch.cat((window, expected[-1][:, None]), 1)
        window = window[:, -8:] if window.size(1) > 16 else window
    assert torch.equal(torch.stack(list(model.generate(text, 30, temperature=0))), torch.stack(expected))


@pytest.mark.parametrize('how, expected', [
    (dict(), [0.4, 0.3, 0.2, 0.1]),
    (dict(temperature=0.5), [16 / 30, 9 / 30, 4 / 30, 1 / 30]),
    (dict(temperature=0), [1, 0, 0, 0]),
    (dict(top_k=2), [4 / 7, 3 / 7, 0, 0]),
    (dict(top_k=9), [0.4, 0.3, 0.2, 0.1]),
    (dict(top_p=0.65), [4 / 7, 3 / 7, 0, 0]),
    (dict(top_p=0.01), [1, 0, 0, 0]),
    (dict(top_k=3, top_p=0.5), [4 / 7, 3 / 7, 0, 0])])
def test_choices_are_drawn_with_the_probabilities_that_the_settings_mean(how, expected):
    generator = torch.Generator().manual_seed(0)
    order = torch.tensor([2, 0, 3, 1])   # so that the likeliest isn't the first
    logits = torch.tensor([0.4, 0.3, 0.2, 0.1]).log()[order].repeat(40000, 1)
    drawn = torch.bincount(order[choose(logits, generator=generator, **how)], minlength=4) / 40000
    torch.testing.assert_close(drawn, torch.tensor(expected, dtype=torch.float), atol=0.01, rtol=0)
