"""What each file of ideas/ claims, against something independent of it: the plain model, a loop, a count by hand."""
import copy
from contextlib import nullcontext

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from configurator import Failure
import model as plain
from stlm import fast
from stlm import run
from helpers import ROOT
from test_model import BYTES, COUNTS, SPELLING, TINY, tokens

OFF = dict(value_residual=dict(value_share=0.0), experts=dict(n_experts=1), pause_tokens=dict(n_pauses=0),
           early_exit=dict(exit_loss=0.0, layer_dropout=0.0),
           self_speculation=dict(exit_loss=0.0, layer_dropout=0.0, n_draft=0), distillation=dict(teacher=''),
           mixture_of_depths=dict(depth_share=1.0), next_thought=dict(thought_weight=0.0),
           fill_in_the_middle=dict(fill_share=0.0), factorised=dict(n_factor=0))   # ON: tests/test_factorised.py
ON = dict(value_residual=dict(), experts=dict(n_experts=4), pause_tokens=dict(pause_every=3, n_pauses=2),
          early_exit=dict(exit_layer=1), self_speculation=dict(exit_layer=1), mixture_of_depths=dict(depth_share=0.4), next_thought=dict(),
          fill_in_the_middle=dict())
KINDS = [dict(n_layer=4), dict(BYTES, n_layer=4)]
every_idea = pytest.mark.parametrize('idea', ON)
both_kinds = pytest.mark.parametrize('kind', KINDS, ids=['table', 'byte_pool'])


def tiny(idea, wild=True, **changes):
    """A tiny model of ideas/<idea>.py, or a plain one, that isn't mild as at the start."""
    module = run.idea_module(idea)
    torch.manual_seed(0)
    model = run.build_model(module.Config(**TINY | changes), SPELLING, COUNTS, idea).eval()
    if wild:
        torch.manual_seed(1)
        for name, p in model.named_parameters():
            if p.dim() == 2 or 'predictor' in name:
                torch.nn.init.normal_(p, std=0.3)
    return model


def files():
    return sorted(file.stem for file in (ROOT / 'ideas').glob('*.py'))


def test_every_idea_is_tested_has_at_most_80_lines_and_says_its_source_command_and_result():
    assert {*files()} == {*OFF}
    for idea in files():
        source = (ROOT / f'ideas/{idea}.py').read_text(encoding='utf-8')
        assert len(source.splitlines()) <= 80, idea
        for word in ('arXiv', f'--idea={idea}', 'Took:', 'Result:'):
            assert word in source, (idea, word)


@both_kinds
@pytest.mark.parametrize('idea', OFF)
def test_switched_off_an_idea_trains_and_predicts_as_the_plain_model_does_to_the_bit(idea, kind):
    ours, theirs, idx = tiny(idea, False, **OFF[idea], **kind), tiny('', False, **kind), tokens(2, 40)
    assert {*ours.state_dict()} == {*theirs.state_dict()}
    for model in (ours, theirs):
        assert torch.equal(model(idx, tokens(2, 40, seed=2)), theirs(idx, tokens(2, 40, seed=2)))
        model.train().dropout.set(0.1)
        torch.manual_seed(3)
        model.trained = model(idx, tokens(2, 40, seed=2))
        model.trained.mean().backward()
    assert torch.equal(ours.trained, theirs.trained)
    for (name, a), (_, b) in zip(ours.named_parameters(), theirs.named_parameters()):
        assert torch.equal(a.grad, b.grad), name


@both_kinds
@every_idea
def test_a_changed_future_never_changes_the_past(idea, kind):
    model, idx = tiny(idea, **ON[idea], **kind), tokens(2, 64)
    for t in (1, 6, 31, 32, 63):
        other = torch.cat((idx[:, :t], tokens(2, 64, seed=t)[:, t:]), dim=1)
        torch.testing.assert_close(model.hidden(idx)[:, :t], model.hidden(other)[:, :t], atol=1e-5, rtol=0)


@both_kinds
@every_idea
def test_probabilities_of_all_next_tokens_sum_to_one(idea, kind):
    model, idx = tiny(idea, **ON[idea], **kind).double(), tokens(1, 5)
    nll = model(idx.expand(97, -1), torch.arange(97)[:, None].expand(-1, 5))[:, -1]
    assert abs(nll.neg().exp().sum().item() - 1) < 1e-12
    torch.testing.assert_close(model.log_probs(idx)[0].double(), -nll, atol=1e-6, rtol=1e-6)


@both_kinds
@every_idea
def test_states_after_cached_tokens_equal_those_of_reading_all_at_once(idea, kind):
    model, text = tiny(idea, **ON[idea], **kind), tokens(2, 50)
    for rows in (slice(0, 1), slice(0, 2)):   # one text, and a batch
        caches = [plain.LayerCache(50) for _ in model.blocks]
        pieces = [model.hidden(piece, caches) for piece in text[rows].split([20, 1, 1, 7, 1, 20], dim=1)]
        torch.testing.assert_close(torch.cat(pieces, dim=1), model.hidden(text[rows]), atol=1e-4, rtol=0)


@both_kinds
@every_idea
def test_a_model_that_is_laid_out_for_generation_writes_the_same(idea, kind):
    texts = []
    for dtype in (None, 'float32', 'int8'):
        leaves = dict(exit_above=0.5) if idea == 'early_exit' else {}
        model = tiny(idea, **ON[idea], **leaves, **kind)
        with fast.prepare_to_generate(model, dtype, torch.device('cpu')) if dtype else nullcontext():
            texts.append(torch.stack(list(model.generate(tokens(1, 7), 12, temperature=0))))
    assert torch.equal(texts[0], texts[1]) and texts[2].shape == texts[0].shape


@every_idea
def test_every_parameter_learns_and_a_copy_of_the_model_is_independent_of_it(idea):
    model = tiny(idea, **ON[idea], n_layer=4).train()
    twin, idx, targets = copy.deepcopy(model), tokens(8, 64), tokens(8, 64, seed=2)   # as an average of weights is
    assert model(idx, targets).shape == targets.shape
    for seed in range(4):
        torch.manual_seed(seed)
        model(idx, targets).mean().backward()
    for name, p in model.named_parameters():
        assert p.grad is not None and p.grad.abs().sum() > 0 and p.dim() in (1, 2), name
    for p in model.parameters():
        p.data.zero_()
    expected = tiny(idea, **ON[idea], n_layer=4)
    torch.testing.assert_close(twin.eval()(idx, targets), expected(idx, targets))


# ---- value residual

def test_values_are_mixed_as_the_equation_says():
    model, seen = tiny('value_residual', n_layer=3), {}
    for i, block in enumerate(model.blocks):
        block.attn.register_forward_pre_hook(lambda _, args, i=i: seen.update({i: args[0]}))
        block.attn.value.register_forward_hook(lambda _, args, out, i=i: seen.update({f'v{i}': out}))
    model.hidden(tokens(2, 9))
    W = [block.attn.value.linear.weight for block in model.blocks]
    for i in (1, 2):
        expected = 0.5 * seen[i] @ W[i].T + 0.5 * seen[0] @ W[0].T
        torch.testing.assert_close(seen[f'v{i}'], expected, atol=1e-5, rtol=1e-5)


# ---- experts

def test_a_token_gets_its_two_best_experts_weighed_and_the_balance_is_one_where_all_are_alike():
    model = tiny('experts', n_experts=4)
    ffn, x = model.blocks[0].ffn, torch.randn(2, 5, 32)
    y = ffn(x)
    for b in range(2):
        for t in range(5):
            p = (ffn.router.weight @ x[b, t]).softmax(0)
            first, second = p.argsort(descending=True)[:2].tolist()
            expected = (p[first] * ffn.experts[first](x[b, t]) + p[second] * ffn.experts[second](x[b, t])) / (
                p[first] + p[second])
            torch.testing.assert_close(y[b, t], expected, atol=1e-5, rtol=1e-5)
    torch.nn.init.zeros_(ffn.router.weight)
    ffn(x)
    assert abs(ffn.imbalance.item() - 1) < 1e-6


def flops(model, *args):
    """Of the matrix products in a forward pass, attention's included."""
    with FlopCounterMode(display=False) as counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        model(*args)
    return counter.get_total_flops()


def test_flops_are_those_of_a_count_by_hand():
    C, d_ff, kv, V, T, B, L = 32, 48, 16, 97, 60, 2, 4
    idx = tokens(B, T), tokens(B, T, seed=2)

    def block(n):   # n tokens of one text: projections, q k' and its product with v, feed-forward
        return 2 * n * (2 * C * C + 2 * C * kv) + 4 * n * n * C + 2 * n * 3 * C * d_ff

    head = B * 2 * T * C * V
    assert flops(tiny('', n_layer=L), *idx) == B * L * block(T) + head
    assert flops(tiny('value_residual', n_layer=L), *idx) == B * L * block(T) + head
    routers = B * L * 2 * T * C * 4
    assert flops(tiny('experts', n_layer=L, n_experts=4), *idx) == B * L * block(T) + head + routers
    longer = T + T // 3 * 2
    assert flops(tiny('pause_tokens', n_layer=L, pause_every=3, n_pauses=2), *idx) == B * L * block(longer) + head
    # two of the blocks take 24 of 60 tokens; their routers are vectors, whose products the counter leaves out
    assert flops(tiny('mixture_of_depths', n_layer=L, depth_share=0.4).train(), *idx) == (
        B * 2 * (block(T) + block(24)) + head)


# ---- early exit

@both_kinds
@pytest.mark.parametrize('temperature', [0, 0.8])
def test_drafted_text_is_the_plain_text_and_fewer_passes_are_needed(kind, temperature):
    model = tiny('self_speculation', exit_layer=2, n_draft=4, **kind)
    for block in model.blocks[2:]:   # so that drafts are often right, and often wrong
        torch.nn.init.normal_(block.attn.out.weight, std=0.1)
        torch.nn.init.normal_(block.ffn.down.weight, std=0.1)
    calls = []
    model.blocks[-1].register_forward_hook(lambda *_: calls.append(1))
    texts = []
    for n_draft in (0, 4):
        model.config.n_draft = n_draft
        how = dict(generator=torch.Generator().manual_seed(0), temperature=temperature)
        texts.append(torch.cat(list(model.generate(tokens(1, 7), 80, **how))))   # beyond block_size, 64
        texts.append(len(calls))
    plain_text, passes, drafted_text, both = texts
    assert torch.equal(plain_text, drafted_text)
    assert passes == 80 and (both - passes < 75 or temperature > 0)


@both_kinds
def test_a_token_leaves_where_the_first_layers_are_sure_and_the_cache_is_as_if_none_had_left(kind):
    model, text = tiny('early_exit', exit_layer=2, **kind), tokens(1, 50)
    x = model.tokens.embed(text)
    angles = model.rotary(0, 50)
    states = [x := block(x, angles) for block in model.blocks]
    early, late = model.norm(states[1]), model.norm(states[3])
    greedy = getattr(model.tokens, 'spell', model.tokens.sample)(early[0], temperature=0)
    best = model.tokens.log_probs(early[0]).exp()[range(50), greedy]
    model.config.exit_above = best.sort().values[24:26].mean().item()   # so that half of them leave
    leaves = best > model.config.exit_above
    expected = torch.where(leaves[None, :, None], early, late)
    torch.testing.assert_close(model.hidden(text), expected, atol=1e-4, rtol=0)
    caches, calls = [plain.LayerCache(50) for _ in model.blocks], []
    model.blocks[-1].register_forward_hook(lambda *_: calls.append(1))
    one_by_one = torch.cat([model.hidden(text[:, i:i + 1], caches) for i in range(50)], dim=1)
    torch.testing.assert_close(one_by_one, expected, atol=1e-4, rtol=0)
    assert len(calls) == 1 + (~leaves[1:]).sum() and leaves.sum() == 25


def test_layers_are_left_out_as_often_as_promised_and_the_losses_mix():
    model = tiny('early_exit', n_layer=3, exit_loss=0.0, layer_dropout=0.4).train()
    x, angles = torch.randn(2000, 1, 32), model.rotary(0, 1)
    for i, p in enumerate([0, 0.4 * (2**0.5 - 1), 0.4]):
        stayed = (model.blocks[i](x, angles) == x).all(-1).float().mean().item()
        assert abs(stayed - p) < 0.03
    model = tiny('early_exit', n_layer=2, exit_layer=1, exit_loss=0.3, layer_dropout=0.0).train()   # one earlier layer
    idx, targets = tokens(2, 9), tokens(2, 9, seed=2)
    first = model.tokens.nll(model.norm(model.blocks[0](model.tokens.embed(idx), model.rotary(0, 9))), targets)
    torch.testing.assert_close(model(idx, targets), 0.7 * model.eval()(idx, targets) + 0.3 * first)


# ---- pause tokens

def test_a_pause_is_as_if_its_vectors_were_tokens_of_a_longer_text():
    model, idx = tiny('pause_tokens', pause_every=3, n_pauses=2), tokens(1, 8)
    e, p = model.tokens.embed(idx)[0], model.pauses.weight
    x = torch.stack([e[0], e[1], e[2], p[0], p[1], e[3], e[4], e[5], p[0], p[1], e[6], e[7]])[None]
    for block in model.blocks:
        x = block(x, model.rotary(0, 12))
    torch.testing.assert_close(model.hidden(idx), model.norm(x[:, [0, 1, 4, 5, 6, 9, 10, 11]]), atol=1e-5, rtol=0)


# ---- distillation

@both_kinds
def test_of_a_student_that_is_its_own_teacher_the_loss_is_the_teachers_entropy(kind):
    student, teacher = tiny('distillation', teacher='x', teacher_share=1.0, **kind), tiny('', **kind)
    teacher.load_state_dict(student.state_dict())
    student.use_teacher(teacher)
    student.train()
    for text in tokens(3, 6).split(1):
        log_p = teacher.log_probs(text)[0].double()                              # (V)
        p = log_p.exp()
        losses = student(text.expand(96, -1), torch.arange(96)[:, None].expand(-1, 6))[:, -1].double()
        # of a table, for each token that came; of byte pooling, on average over those that may come
        found = losses if 'embedding' not in kind else (p[:96] * losses).sum()[None]
        entropy = -(p * log_p).nan_to_num().sum()
        torch.testing.assert_close(found, entropy.expand_as(found), atol=1e-4, rtol=1e-4)


@both_kinds
def test_a_students_loss_mixes_what_came_with_what_the_teacher_expects(kind):
    teacher, idx, targets = tiny('', **kind), tokens(2, 9), tokens(2, 9, seed=2)
    losses = []
    for share in (0.0, 0.25, 1.0):
        student = tiny('distillation', False, teacher='x', teacher_share=share, **kind).train()
        student.use_teacher(teacher)
        losses.append(student(idx, targets))
    torch.testing.assert_close(losses[0], tiny('', False, **kind)(idx, targets), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(losses[1], 0.75 * losses[0] + 0.25 * losses[2], atol=1e-5, rtol=1e-5)
    assert losses[2].isfinite().all() and not any('teacher' in name for name in student.state_dict())


@pytest.mark.parametrize('teacher, sha256', [(dict(), 'other'), (BYTES, 'same')])
def test_a_teacher_with_another_tokenizer_or_embedding_is_refused(teacher, sha256, monkeypatch):
    monkeypatch.setattr(run, 'load_run', lambda *_: (tiny('', **teacher), None, dict(tokenizer=dict(sha256=sha256))))
    with pytest.raises(Failure, match='teacher=x must have the tokenizer of this run and embedding=table'):
        run.load_teacher(tiny('distillation', teacher='x'), dict(sha256='same'), 'cpu')


# ---- mixture of depths

def test_the_best_share_of_tokens_goes_through_a_block_and_the_others_pass_by():
    model = tiny('mixture_of_depths', depth_share=0.4, n_layer=2).train()
    block, x = model.blocks[1], torch.randn(1, 10, 32)
    y = block(x, model.rotary(0, 10))
    score = (block.attn_norm(x) @ block.router)[0]
    taken = sorted(score.argsort(descending=True)[:4].tolist())
    angles = [angle[taken] for angle in model.rotary(0, 10)]
    part = x[:, taken]
    expected = x.clone()
    through = plain.Block.forward(block, part, angles)
    expected[:, taken] = part + score[taken].sigmoid()[None, :, None] * (through - part)
    torch.testing.assert_close(y, expected, atol=1e-5, rtol=1e-5)


def test_the_predictor_learns_who_was_taken_and_touches_nothing_else():
    model, idx = tiny('mixture_of_depths', depth_share=0.4), tokens(2, 64)
    model.train()(idx, tokens(2, 64, seed=2))
    grads = torch.autograd.grad(model.blocks[1].missed, [*model.parameters()], allow_unused=True)
    touched = [name for (name, _), grad in zip(model.named_parameters(), grads) if grad is not None]
    assert touched == ['blocks.1.predictor', 'blocks.1.threshold']


def test_a_token_was_computed_if_the_predictor_said_so_whatever_its_key_is():
    model, text = tiny('mixture_of_depths', depth_share=0.4, n_layer=2), tokens(2, 30)
    torch.nn.init.zeros_(model.blocks[1].attn.key.weight)
    caches = [plain.LayerCache(30) for _ in model.blocks]
    pieces = [model.hidden(piece, caches) for piece in text.split([20, 1, 9], dim=1)]
    torch.testing.assert_close(torch.cat(pieces, dim=1), model.hidden(text), atol=1e-4, rtol=0)


# ---- next thought

def test_a_state_is_to_point_to_that_of_a_few_tokens_later():
    model, idx, targets = tiny('next_thought', n_ahead=3, thought_weight=0.5), tokens(2, 9), tokens(2, 9, seed=2)
    h, nll, missed = model.hidden(idx), model(idx, targets), []
    for b in range(2):
        for t in range(6):
            guess, later = model.thought.weight @ h[b, t], h[b, t + 3]
            missed.append(1 - guess @ later / (guess.norm() * later.norm()))
    torch.testing.assert_close(model.train()(idx, targets), nll + 0.5 * torch.stack(missed).mean())


# ---- fill in the middle

def test_texts_are_cut_and_what_comes_after_is_read_first_and_marked(monkeypatch):
    model = tiny('fill_in_the_middle', fill_share=0.5, vocab_size=300).train()
    read, rows = [], torch.arange(9)[None] + 10 * torch.arange(20)[:, None]
    monkeypatch.setattr(model, 'hidden', lambda idx: read.append(idx) or torch.zeros(*idx.shape, 32))
    monkeypatch.setattr(model.tokens, 'nll', lambda h, targets: read.append(targets) or targets)
    model(rows[:, :-1], rows[:, 1:])
    (marked, targets), cuts = read, []
    for row, got, wanted in zip(rows.tolist(), marked.tolist(), targets.tolist()):
        n = sum(token >= 300 for token in got)   # how much was after the cut
        cuts.append(n)
        assert [*got, wanted[-1]] == [token + 300 for token in row[9 - n:]] + row[:9 - n]
        assert wanted == [*row[9 - n:], *row[:9 - n]][1:]
    assert 4 <= cuts.count(0) <= 16 and len({*cuts}) > 3


def test_a_gap_is_filled_from_both_sides_and_unmarked_text_is_read_as_ever():
    model, before, after = tiny('fill_in_the_middle'), tokens(1, 5), tokens(1, 6, seed=2)
    text = torch.cat(list(model.fill_in(before, after, 9, temperature=0)))
    x = torch.cat((model.tokens.embed(after) + model.mark.weight, model.tokens.embed(before)), dim=1)
    for token in text:
        y = x
        for block in model.blocks:
            y = block(y, model.rotary(0, x.size(1)))
        assert token == (model.norm(y[:, -1]) @ model.tokens.head.weight.T).argmax()
        x = torch.cat((x, model.tokens.embed(token.view(1, 1))), dim=1)
    torch.testing.assert_close(model.hidden(before), plain.GPT.hidden(model, before))


def test_a_gap_between_texts_that_are_too_long_to_be_read_at_once_is_refused():
    model, before, after = tiny('fill_in_the_middle'), tokens(1, 30), tokens(1, 25, seed=2)
    assert len([*model.fill_in(before, after, 10, temperature=0)]) == 10   # the last one needs no place
    with pytest.raises(ValueError, match='max_new_tokens=11 need 65 places of block_size=64'):
        model.fill_in(before, after, 11)
