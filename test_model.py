"""
What model.py promises, each promise a test against something independent of it: a naive formula in
float64, Hugging Face's Llama, a loop. Reading them is a second way to read model.py.

    python -m pytest test_model.py
"""
import inspect
import io
import math
import re
import sys
from collections import Counter
from itertools import product

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import model as chapters
from model import (END, GPT, BytePool, Config, Dropout, LayerCache, LoRA, Rotary, attend, choose, grow_tree,
                   rotate)

TINY = dict(vocab_size=97, block_size=64, n_layer=2, n_head=4, n_kv_head=2, n_embd=32, d_ff=48)
BYTES = dict(embedding='byte_pool', n_byte_embd=16, n_byte_head=2, n_decoder_layer=2, max_bytes=4)

# the 97 ids of the tiny byte model: the empty token (end of text), all words of a and b, halves of
# an emoji, invalid UTF-8, a beginning that only goes on (0xE7), and an id that has no token
LETTERS = [''.join(letters).encode() for n in range(5) for letters in product('ab', repeat=n)]
SPELLING = [*LETTERS, b'\xf0\x9f', b'\x90\x88', '猫'.encode(), '🐈'.encode(), b'\xff\xfe', b'\x00']
SPELLING += [bytes([i]) for i in range(1, 60)] + [None]
COUNTS = torch.arange(97) % 7   # of each in an imagined training text


def tiny(**changes):
    """A tiny model; one with byte pooling is far from the mild weights of the start."""
    torch.manual_seed(0)
    config = Config(**TINY | changes)
    counts = COUNTS if config.vocab_size == 97 else None
    model = GPT(config, SPELLING, counts).eval()
    if config.embedding == 'byte_pool':
        for p in model.tokens.parameters():
            mean = 1.0 if p.dim() == 1 else 0.0
            torch.nn.init.normal_(p, mean, std=0.3)
    return model


def tokens(*shape, vocab_size=96, seed=1):   # 96: the last of SPELLING's ids has no token
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(vocab_size, shape, generator=generator)


IDX, TARGETS = tokens(2, 64), tokens(2, 64, seed=2)


def close(found, expected, atol=1e-5, rtol=0.0):
    torch.testing.assert_close(found, expected, atol=atol, rtol=rtol)


# ---- the parts, against naive formulas

def test_rope_turns_each_pair_of_numbers_by_position_times_frequency():
    x = np.random.default_rng(0).normal(size=(5, 8))                             # (T, K)
    pairs = x[:, :4] + 1j * x[:, 4:]   # a rotation is a product with a complex number of size 1
    positions, frequencies = np.arange(5), 10000.0**(-np.arange(4) / 4)
    turned = pairs * np.exp(1j * np.outer(positions, frequencies))
    expected = np.concatenate([turned.real, turned.imag], axis=1)
    angles = Rotary(5, Config(n_embd=16, n_head=2, n_kv_head=2))(0, 5)
    ours = rotate(torch.tensor(x)[None, None], angles)[0, 0]
    np.testing.assert_allclose(ours.numpy(), expected, atol=1e-6)


@pytest.mark.parametrize('T, P', [(300, 300), (1, 40), (7, 40), (200, 230), (1, 1)])
@pytest.mark.parametrize('window', [None, 5])   # or a mask, of the last 5 positions and all later ones
def test_attention_equals_a_float64_loop_over_queries(T, P, window):
    rng = np.random.default_rng(0)
    q = rng.normal(size=(2, 4, T, 8))
    k, v = rng.normal(size=(2, 2, 2, P, 8))
    expected = np.empty_like(q)
    for b, h, t in np.ndindex(2, 4, T):
        seen = P - T + t + 1
        first = max(0, seen - (window or P))
        keys, values = k[b, h // 2, first:seen], v[b, h // 2, first:seen]   # heads 0 and 1 share theirs
        weights = np.exp(keys @ q[b, h, t] / math.sqrt(8))
        expected[b, h, t] = weights @ values / weights.sum()
    mask = window and torch.ones(T, P, dtype=torch.bool).triu(P - T - window + 1)
    ours = attend(*(torch.tensor(x, dtype=torch.float32) for x in (q, k, v)), mask=mask)
    np.testing.assert_allclose(ours.numpy(), expected, atol=1e-5)


def plain_nll(h, weight, bias, targets):
    logits = h.double() @ weight.double().T + bias.double()
    chosen = logits.gather(-1, targets[..., None])[..., 0]
    return torch.logsumexp(logits, -1) - chosen


@pytest.mark.parametrize('kept', [0, 2**27])   # 0: the logits are made again for the gradient
def test_the_loss_in_pieces_and_its_gradient_equal_the_plain_ones(kept, monkeypatch):
    monkeypatch.setattr(chapters, 'most_logits', lambda device: (2**24, kept))
    model = tiny(vocab_size=50000, output_bias=True)
    weight, bias = model.tokens.head.weight, model.tokens.head.bias
    torch.nn.init.normal_(bias)
    h = torch.randn(2, 400, 32, requires_grad=True)                              # 800 rows: three pieces
    targets, scale = tokens(2, 400, vocab_size=50000), torch.rand(2, 400)
    ours = model.tokens.nll(h, targets)
    plain = plain_nll(h, weight, bias, targets)
    close(ours.double(), plain)
    parameters = h, weight, bias
    gradient = torch.autograd.grad((ours * scale).sum(), parameters)
    plain_gradient = torch.autograd.grad((plain * scale).sum(), parameters)
    close(gradient, plain_gradient, rtol=1e-4)


def test_no_tensor_of_the_loss_is_as_large_as_all_logits():
    model, sizes = tiny(vocab_size=50000), []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **kwargs or {})
            sizes.append(out.numel() if torch.is_tensor(out) else 0)
            return out

    idx = tokens(8, 64)
    with Watch():
        model(idx, idx).mean().backward()
    all_logits = 8 * 64 * 50000
    assert 50000 * 32 <= max(sizes) < 0.75 * all_logits


# ---- the whole network, against Hugging Face's Llama

NAMES = {'tokens.embedding': 'model.embed_tokens', 'tokens.head': 'lm_head', 'blocks': 'model.layers',
         'attn.query': 'self_attn.q_proj', 'attn.key': 'self_attn.k_proj',
         'attn.value': 'self_attn.v_proj', 'attn.out': 'self_attn.o_proj',
         'attn_norm': 'input_layernorm', 'ffn_norm': 'post_attention_layernorm',
         'ffn.gate': 'mlp.gate_proj', 'ffn.up': 'mlp.up_proj', 'ffn.down': 'mlp.down_proj'}


def llama_of(model):
    """Hugging Face's Llama with the model's weights."""
    import transformers
    c = model.config
    config = transformers.LlamaConfig(
        vocab_size=c.vocab_size, hidden_size=c.n_embd, intermediate_size=c.d_ff,
        num_hidden_layers=c.n_layer, num_attention_heads=c.n_head, num_key_value_heads=c.n_kv_head,
        rms_norm_eps=c.norm_eps, rope_theta=c.rope_base, max_position_embeddings=c.block_size,
        tie_word_embeddings=c.tie_embeddings)
    weights = {}
    for name, value in model.state_dict().items():
        for ours, theirs in NAMES.items():
            name = name.replace(ours, theirs)
        if name == 'norm.weight':
            name = 'model.norm.weight'
        weights[name] = value
    llama = transformers.LlamaForCausalLM(config).eval()
    llama.load_state_dict(weights)
    return llama


@pytest.mark.parametrize('tied', [True, False])
def test_the_network_equals_hugging_faces_llama_with_the_same_weights(tied):
    pytest.importorskip('transformers')
    model = tiny(tie_embeddings=tied, rope_base=500.0, norm_eps=1e-3)
    for p in model.parameters():   # not the initial ones: the largest differences
        mean = 1.0 if p.dim() == 1 else 0.0
        torch.nn.init.normal_(p, mean, std=0.2)
    llama = llama_of(model)
    logits = llama(IDX).logits.transpose(1, 2)                                   # (2, V, 64)
    expected = F.cross_entropy(logits, TARGETS, reduction='none')
    close(model(IDX, TARGETS), expected, atol=2e-4, rtol=1e-5)


# ---- what a language model has to be

GELU = dict(ffn='gelu', tie_embeddings=False, n_kv_head=4)


@pytest.mark.parametrize('change', [{}, GELU, BYTES])
def test_a_changed_future_never_changes_the_past(change):
    model = tiny(**change)
    h = model.hidden(IDX)
    for t in (1, 32, 63):
        other = IDX.clone()
        other[:, t:] = TARGETS[:, t:]
        changed = model.hidden(other)
        close(changed[:, :t], h[:, :t], atol=1e-6)


@pytest.mark.parametrize('vocab_size', [257, 8192, 50257])
def test_an_untrained_model_knows_nothing(vocab_size):
    idx = tokens(4, 65, vocab_size=vocab_size)
    model = tiny(vocab_size=vocab_size)
    loss = model(idx[:, :-1], idx[:, 1:]).mean().item()
    assert abs(loss - math.log(vocab_size)) < 0.02


@pytest.mark.parametrize('change', [{}, BYTES, dict(output_bias=True)])
def test_probabilities_of_all_next_tokens_sum_to_one_and_log_probs_has_each(change):
    model, text = tiny(**change).double(), tokens(1, 5).expand(97, 5)
    every = torch.arange(97)[:, None].expand(97, 5)   # each token, after the same text
    log_p = -model(text, every)[:, -1]
    assert abs(log_p.exp().sum().item() - 1) < 1e-12
    close(model.log_probs(text[:1])[0].double(), log_p, rtol=1e-6)


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


@pytest.mark.parametrize('change', [{}, BYTES])
def test_a_model_in_float64_computes_what_one_in_float32_does(change):
    expected = tiny(**change)(IDX, TARGETS)
    moved = tiny(**change).double()
    torch.set_default_dtype(torch.float64)
    try:
        made = tiny(**change)
    finally:
        torch.set_default_dtype(torch.float32)
    made.load_state_dict(moved.state_dict())
    for model in moved, made:
        nll = model(IDX, TARGETS)
        assert nll.dtype == torch.float64
        close(nll.float(), expected, atol=1e-4)


# ---- byte pooling: the tree

EXAMPLE = [b'', b'c', b'ca', b'cat', b'dog']


def locals_in_grow_tree(place):
    """{name: value} of the local variables of grow_tree() on the example, at the end of its loop."""
    lines, first = inspect.getsourcelines(grow_tree)
    last = first + [line.strip() for line in lines].index('prefix = next_prefix')
    found = {}

    def look(frame, event, argument):
        if frame.f_lineno == last and frame.f_locals['place'] == place:
            found.update(frame.f_locals)
        return look

    sys.settrace(look)
    try:
        grow_tree(EXAMPLE, torch.zeros(5), 5)
    finally:
        sys.settrace(None)
    return found


def test_the_comments_in_grow_tree_say_what_its_variables_are():
    variables = locals_in_grow_tree(place=1)
    letters = dict(c=99, a=97, t=116, d=100, o=111, g=103, END=END)
    checked = 0
    for line in inspect.getsource(grow_tree).splitlines():
        comment = re.search(r'^ +(?:.*, )?(\w+) = .* # .*?(\[.*\])', line)
        if comment:
            name, values = comment.groups()
            assert variables[name].tolist() == eval(values, letters), line
            checked += 1
    assert checked == 7


def test_the_tree_of_the_example_has_the_forks_that_are_drawn():
    tree, log_counts = grow_tree(EXAMPLE, torch.tensor([0, 1, 2, 3, 4]), 4)
    c, a, t, d = b'catd'
    assert tree.n_forks.tolist() == [1, 2, 3, 3, 1]
    assert tree.forks.tolist() == [[0, 0, 0, 0], [0, 1, 0, 0], [0, 1, 2, 0], [0, 1, 2, 0], [0, 0, 0, 0]]
    assert tree.taken.tolist() == [
        [END, -1, -1, -1], [c, END, -1, -1], [c, a, END, -1], [c, a, t, -1], [d, -1, -1, -1]]
    assert tree.place.tolist() == [0, 1, 2]
    counts = torch.zeros(3, 257)   # of all tokens that go on so, each one more than it occurs
    counts[0, [END, c, d]] = torch.tensor([1.0, 9.0, 5.0])
    counts[1, [END, a]] = torch.tensor([2.0, 7.0])
    counts[2, [END, t]] = torch.tensor([3.0, 4.0])
    close(log_counts, counts.log())
    child = torch.zeros(3, 257, dtype=torch.long)   # a token is -1 - id
    child[0, [END, c, d]] = torch.tensor([-1, 1, -5])
    child[1, [END, a]] = torch.tensor([-2, 2])
    child[2, [END, t]] = torch.tensor([-3, -4])
    assert torch.equal(tree.child, child)


# ---- byte pooling: the network

def naive_choices(token):
    """[(what is spelled so far, {symbol that may follow: how often it does})] where several may."""
    spelled, found = (*token, END), []
    vocabulary = [((*other, END), count) for other, count in zip(SPELLING[:96], COUNTS.tolist())]
    for place in range(len(spelled)):
        follows = Counter()
        for symbols, count in vocabulary:
            if symbols[:place] == spelled[:place]:
                follows[symbols[place]] += count + 1
        if len(follows) > 1:
            found.append((spelled[:place], follows))
    return found


def naive_spelling(model, h, token):
    """[{symbol: -log p}] at each of a token's choices, given the state h (C), and what it takes there:
    without a tree, a batch or a cache."""
    pool, spelled, choices = model.tokens, (*token, END), naive_choices(token)
    taken = [spelled[len(prefix)] for prefix, _ in choices]
    slices = pool.slices(h).view(4, 16)
    rows = []
    for slice_of_h, before in zip(slices, [END, *taken[:-1]]):
        rows.append(slice_of_h + pool.byte_out.weight[before])
    x = torch.stack(rows)[None]                                                  # (1, choices, D)
    for block in pool.decoder:
        x = block(x, pool.rotary(0, len(rows)))
    costs = []
    for logits, (_, follows) in zip(pool.head(pool.norm(x[0])), choices):
        odds = {symbol: logits[symbol].exp() * count for symbol, count in follows.items()}
        total = sum(odds.values())
        costs.append({symbol: -torch.log(odd / total).item() for symbol, odd in odds.items()})
    return costs, taken


@pytest.mark.parametrize('round_to', [1, 4])   # on a CPU, on a GPU
def test_spelling_costs_what_the_naive_formula_says_whatever_else_is_in_the_batch(round_to, monkeypatch):
    monkeypatch.setattr(BytePool, 'round_to', round_to)
    model, targets = tiny(**BYTES), torch.arange(96)[None]   # every token
    with torch.no_grad():
        h = torch.randn(1, 96, 32)
        nats = model.tokens.nll_of_choices(h, targets)                           # (1, 96, S - 1)
        nll = model.tokens.nll(h, targets)                                       # (1, 96)
        close(nll, nats.sum(-1))
        for t in range(96):
            costs, taken = naive_spelling(model, h[0, t], SPELLING[t])
            expected = torch.zeros(4)
            for i, symbol in enumerate(taken):
                expected[i] = costs[i][symbol]
            close(nats[0, t], expected, atol=2e-5, rtol=1e-5)
            alone = model.tokens.nll(h[:, t:t + 1], targets[:, t:t + 1])
            close(nll[0, t], alone[0, 0], atol=2e-5, rtol=1e-5)


def test_lengths_that_are_rounded_up_change_no_loss_and_no_gradient(monkeypatch):
    found = []
    for round_to in (1, 2, 4, 16):
        monkeypatch.setattr(BytePool, 'round_to', round_to)
        model = tiny(**BYTES).double()
        nll = model(IDX, TARGETS)
        nll.sum().backward()
        found.append([nll.detach(), *(p.grad for p in model.parameters())])
    for rounded in found[1:]:
        close(rounded, found[0], atol=1e-11, rtol=1e-8)


def test_what_only_one_symbol_can_follow_costs_nothing_and_an_id_without_a_token_is_impossible():
    pool, h = tiny(**BYTES).tokens, torch.randn(1, 2, 32)
    cat, emoji, none = SPELLING.index('猫'.encode()), SPELLING.index('🐈'.encode()), 96
    nats = pool.nll_of_choices(h, torch.tensor([[cat, emoji]]))[0]
    assert (nats > 0).tolist() == [[True, False, False, False], [True, True, False, False]]
    places = pool.tree.place[pool.tree.forks]
    assert places[cat, 0] == 0                               # only 猫 begins with 0xE7
    assert places[emoji, :2].tolist() == [0, 2]              # its first half is a token
    assert pool.nll(h, torch.tensor([[cat, none]]))[0, 1] == math.inf


def test_a_later_byte_never_changes_what_an_earlier_one_costs():
    model, h = tiny(**BYTES), torch.randn(1, 9, 32)
    costs = []
    for token in b'abaa', b'abb':
        targets = torch.full((1, 9), SPELLING.index(token))
        costs.append(model.tokens.nll_of_choices(h, targets))
    a, b = costs
    close(a[..., :2], b[..., :2], atol=1e-6)
    assert not torch.allclose(a[..., 2], b[..., 2])


def test_a_tokens_vector_depends_on_its_spelling_alone():
    model, every = tiny(**BYTES), torch.arange(96)[None]
    together = model.tokens.embed(every)
    alone = [model.tokens.embed(token) for token in every.split(1, dim=1)]
    close(together, torch.cat(alone, dim=1))
    other_ids = [*reversed(SPELLING[:96]), None]
    renamed = GPT(model.config, other_ids)
    renamed.load_state_dict(model.state_dict())
    close(renamed.tokens.embed(95 - every), together)


def test_what_is_not_a_number_in_any_part_of_the_model_makes_every_loss_not_a_number():
    names = [name for name, _ in tiny(**BYTES).named_parameters()]
    for name in ['tokens.log_counts', *names]:
        model = tiny(**BYTES)
        values = dict(model.named_buffers()) | dict(model.named_parameters())
        values[name].data.fill_(math.nan)
        nll = model(IDX, TARGETS)
        if name.startswith('tokens') and name.endswith(('query.weight', 'key.weight')):
            # PyTorch's attention on a CPU loses nan where there are fewer than 8 keys; gradients have it
            nll.sum().backward()
            nll = values[name].grad
        assert nll.isnan().all(), name


def test_a_byte_pooling_model_without_spelling_is_refused_in_one_line():
    config = Config(**TINY | BYTES)
    for spelling in None, SPELLING[:96]:
        with pytest.raises(ValueError, match='needs the spelling of 97 tokens'):
            GPT(config, spelling)


def test_the_byte_modules_are_a_tenth_of_the_table_that_they_replace():
    shape = dict(vocab_size=50257, n_layer=10, n_head=16, n_kv_head=16, n_embd=512)   # the paper's 50M
    parts = {}
    with torch.device('meta'):   # shapes without numbers
        for kind in 'table', 'byte_pool':
            model = GPT(Config(**shape, embedding=kind), [b''] * 50257)
            parts |= model.count_parameters()
    assert parts['token tables'] == 50257 * 512
    assert parts['byte pooling'] <= 0.1 * parts['token tables']


# ---- byte pooling: which token comes next

def test_symbol_by_symbol_the_likeliest_symbol_is_taken_at_each_choice():
    model, text = tiny(**BYTES), tokens(9, 7)
    h = model.hidden(text)[:, -1]
    for state, token in zip(h, model.tokens.spell(h, temperature=0)):
        costs, taken = naive_spelling(model, state, SPELLING[token])
        assert taken == [min(cost, key=cost.get) for cost in costs]


@pytest.mark.parametrize('sampling, kept, n', [
    (dict(), 97, 20000), (dict(top_k=3), 3, 1000), (dict(top_p=0.6), 0.6, 1000), (dict(temperature=0), 1, 9)])
def test_tokens_are_drawn_as_often_as_they_are_probable_and_none_is_invented(sampling, kept, n):
    model, text = tiny(**BYTES), tokens(1, 7)
    p, order = model.log_probs(text)[0].exp().sort(descending=True)              # 2 x (V)
    if kept < 1:   # a probability, else a number
        kept = int((p.cumsum(0) < kept).sum()) + 1
    p[kept:] = 0
    expected = torch.zeros(97)
    expected[order] = p / p.sum()
    h = model.hidden(text)[:, -1].expand(n, -1)
    torch.manual_seed(0)
    with torch.no_grad():
        drawn = model.tokens.sample(h, **sampling)
    shares = torch.bincount(drawn, minlength=97) / n
    close(shares, expected, atol=2 / math.sqrt(n))
    assert (expected[drawn] > 0).all()


# ---- weight sharing

SHARED = [dict(lora_rank=3), dict(share='ffn'), dict(share='ffn', share_every=2, lora_rank=3),
          dict(share='block'), dict(share='block', share_every=2), dict(share='block', lora_rank=3)]


@pytest.mark.parametrize('change', SHARED)
def test_a_sharing_model_equals_an_unshared_one_with_the_same_matrices_in_each_layer(change):
    model, plain = tiny(n_layer=4, **change), tiny(n_layer=4)
    weights = dict(model.state_dict())
    adapted = [name.removesuffix('.A.weight') for name in weights if name.endswith('.A.weight')]
    for path in adapted:   # W + B A, layer by layer
        W, A, B = (weights.pop(f'{path}.{name}') for name in ('linear.weight', 'A.weight', 'B'))
        torch.nn.init.normal_(B, std=0.2)
        weights[f'{path}.weight'] = W + B @ A
    plain.load_state_dict(weights)
    close(model(IDX, TARGETS), plain(IDX, TARGETS), rtol=1e-5)


@pytest.mark.parametrize('change', SHARED)
def test_what_is_shared_is_counted_once_and_saved_once(change):
    model, C, d_ff, kv = tiny(n_layer=4, **change), 32, 48, 16
    c, parts = model.config, model.count_parameters()
    copies = 4
    if c.share != 'none':
        copies = 2 if c.share_every == 2 else 1
    assert parts['feed-forward'] == copies * 3 * C * d_ff
    if c.share != 'block':
        copies = 4
    assert parts['attention'] == copies * 2 * C * (C + kv)
    sides = 3 * (C + d_ff)   # of all matrices that have adapters, in a layer
    if c.share != 'ffn':
        sides += 2 * (C + C) + 2 * (C + kv)
    assert parts.get('LoRA', 0) == 4 * c.lora_rank * sides
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    assert file.tell() < 4 * sum(parts.values()) + 40000   # the rest: names


def test_a_fresh_lora_changes_nothing():
    model = tiny(n_layer=4, share='block', lora_rank=3)
    adapted = model.hidden(IDX)
    for module in model.modules():
        if isinstance(module, LoRA):
            torch.nn.init.zeros_(module.A.weight)
    assert torch.equal(model.hidden(IDX), adapted)


# ---- initialisation and parameters

def test_initial_weights_have_the_promised_spread():
    model = tiny(n_layer=8, n_embd=128, d_ff=256)
    for name, p in model.named_parameters():
        if p.dim() == 1:
            assert (p == 1).all(), name
            continue
        adds_to_x = name.endswith(('attn.out.weight', 'ffn.down.weight'))
        expected = 0.02 / math.sqrt(16) if adds_to_x else 0.02
        assert abs(p.std().item() / expected - 1) < 0.05, name


@pytest.mark.parametrize('tied', [True, False])
def test_parameters_are_counted_once(tied):
    parts = tiny(tie_embeddings=tied).count_parameters()
    table, norms = 97 * 32, 5 * 32
    attention = 2 * 32 * (32 + 16)   # of a layer: query and out, then key and value, which are half as wide
    assert parts == {'token tables': table if tied else 2 * table, 'norms': norms,
                     'attention': 2 * attention, 'feed-forward': 2 * 3 * 32 * 48}


def test_adamw_trains_what_is_looked_up_or_scores_and_adapters():
    model = tiny(**BYTES, share='block', lora_rank=3)
    names = {p: name for name, p in model.named_parameters()}
    found = {names[p] for p in model.adamw_matrices()}
    adapters = {name for name in names.values() if name.endswith(('.A.weight', '.B'))}
    assert len(adapters) == 2 * 2 * 7
    assert found == adapters | {'tokens.byte_in.weight', 'tokens.byte_out.weight', 'tokens.head.weight'}


def test_an_output_bias_starts_at_the_log_counts():
    bias = tiny(output_bias=True).tokens.head.bias
    close(bias.softmax(0), (COUNTS + 1) / (COUNTS + 1).sum())


@pytest.mark.parametrize('wrong, named', [
    (dict(n_head=3), 'n_embd=32'), (dict(n_kv_head=3), 'n_head=4'), (dict(n_head=32), '2 [*] n_head=64'),
    (dict(BYTES, n_byte_head=5), 'n_byte_embd=16'), (dict(BYTES, max_bytes=17), 'max_bytes=17'),
    (dict(ffn='relu'), "ffn='relu'"), (dict(share='all'), "share='all'"),
    (dict(n_layer=10**11), '100000000000')])
def test_an_impossible_shape_is_an_error_that_names_it(wrong, named):
    with pytest.raises(ValueError, match=named):
        Config(**TINY | wrong)


# ---- dropout

@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
@pytest.mark.parametrize('p', [0.5, 0.25, 0.01, 0.001, 0.0])
def test_dropout_drops_its_share_keeps_the_mean_and_only_in_training(p, dtype):
    torch.manual_seed(0)
    dropout, x = Dropout(), torch.ones(2000, 2000, dtype=dtype)
    assert dropout(x) is x   # off until a schedule says so
    dropout.set(0.5)
    dropout.set(p)
    y = dropout(x)
    share = (y == 0).float().mean().item()
    by_chance = 5 * math.sqrt(p / 2000**2)
    assert abs(share - p) <= by_chance
    expected = torch.tensor(1 / (1 - p), dtype=dtype)   # so that the mean stays 1
    close(y.max(), expected, rtol=1e-6)
    assert dropout.eval()(x) is x


# ---- generation

@pytest.mark.parametrize('change', [{}, BYTES, dict(share='block', lora_rank=3)])
def test_states_after_cached_tokens_equal_those_of_reading_all_at_once(change):
    model = tiny(**change)
    caches = [LayerCache(30) for _ in model.blocks]   # which have to grow
    states = []
    for piece in IDX.split([20, 1, 1, 7, 1, 34], dim=1):
        states.append(model.hidden(piece, caches))
    close(torch.cat(states, dim=1), model.hidden(IDX))


def test_greedy_generation_takes_the_likeliest_token_even_after_a_prompt_longer_than_the_context():
    model, text = tiny(block_size=16), tokens(2, 40)
    expected, window = [], text[:, -8:]
    for _ in range(30):
        logits = model.hidden(window)[:, -1] @ model.tokens.embedding.weight.T
        token = logits.argmax(-1)
        expected.append(token.tolist())
        window = torch.cat((window, token[:, None]), dim=1)
        if window.size(1) > 16:
            window = window[:, -8:]
    found = [token.tolist() for token in model.generate(text, 30, temperature=0)]
    assert found == expected


@pytest.mark.parametrize('sampling, expected', [
    (dict(), [0.4, 0.3, 0.2, 0.1]),
    (dict(temperature=0.5), [16 / 30, 9 / 30, 4 / 30, 1 / 30]),
    (dict(temperature=0), [1, 0, 0, 0]),
    (dict(top_k=2), [4 / 7, 3 / 7, 0, 0]),
    (dict(top_k=9), [0.4, 0.3, 0.2, 0.1]),
    (dict(top_p=0.65), [4 / 7, 3 / 7, 0, 0]),
    (dict(top_p=0.01), [1, 0, 0, 0]),
    (dict(top_k=3, top_p=0.5), [4 / 7, 3 / 7, 0, 0]),
    (dict(top_p=0.65, temperature=0.5), [16 / 25, 9 / 25, 0, 0])])   # cut first, then sharpened
def test_choices_are_drawn_with_the_probabilities_that_the_settings_mean(sampling, expected):
    generator = torch.Generator().manual_seed(0)
    order = torch.tensor([2, 0, 3, 1])   # so that the likeliest isn't the first
    p = torch.tensor([0.4, 0.3, 0.2, 0.1])
    log_p = p.log()[order].expand(40000, -1)
    drawn = order[choose(log_p, generator=generator, **sampling)]
    shares = torch.bincount(drawn, minlength=4) / 40000
    close(shares, torch.tensor(expected, dtype=torch.float), atol=0.01)
