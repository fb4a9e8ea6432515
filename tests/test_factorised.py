"""The factorised table of ideas/factorised.py, against naive formulas in float64 and a count by hand."""
from contextlib import nullcontext

import pytest
import torch

from ideas import factorised
from stlm import fast
from stlm.run import build_model
from test_ideas import tiny
from test_model import COUNTS, TINY, tokens

ON = dict(n_factor=6, output_bias=True)
C, E, V = TINY['n_embd'], 6, TINY['vocab_size']


def test_tokens_come_in_and_go_out_through_the_product_of_two_matrices():
    model, idx, targets = tiny('factorised', **ON), tokens(2, 9), tokens(2, 9, seed=2)
    table, up, down = (part.weight.detach().double() for part in (model.tokens.embedding, model.tokens.up, model.tokens.down))
    torch.testing.assert_close(model.tokens.embed(idx).double(), (table @ up.T)[idx], atol=1e-5, rtol=0)
    h = model.hidden(idx).detach()
    logits = h.double() @ (table @ down).T + COUNTS.double().log1p()             # (2, 9, V)
    expected = torch.logsumexp(logits, -1) - logits.gather(-1, targets[..., None])[..., 0]
    torch.testing.assert_close(model(idx, targets).double(), expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(model.log_probs(idx).double(), logits[:, -1].log_softmax(-1), atol=1e-5, rtol=0)


def test_parameters_are_those_of_a_count_by_hand():
    model = tiny('factorised', **ON)
    assert model.count_parameters()['token tables'] == V * E + C * E + E * C + V
    untied = tiny('factorised', **ON, tie_embeddings=False)
    assert untied.count_parameters()['token tables'] == 2 * V * E + C * E + E * C + V


def test_a_width_of_zero_is_the_plain_table():
    ours, plain = tiny('factorised', False, n_factor=0), tiny('', False)
    assert {*ours.state_dict()} == {*plain.state_dict()}
    assert torch.equal(ours(tokens(2, 9), tokens(2, 9, seed=2)), plain(tokens(2, 9), tokens(2, 9, seed=2)))


def test_a_step_into_the_layers_is_as_large_as_the_rows_of_the_table():
    torch.manual_seed(0)
    model = build_model(factorised.Config(**TINY | dict(vocab_size=2000, n_embd=256, n_factor=64)), [b''] * 2000, None, 'factorised')
    assert abs(model.tokens.embed(torch.arange(2000)[None]).std().item() / 0.02 - 1) < 0.05
    h = torch.randn(2000, 256)
    assert abs(model.tokens.down(h).std().item() - 1) < 0.05


def test_the_cache_and_the_layout_for_generation_change_no_token():
    written = []
    for laid_out in (False, True):
        model, text = tiny('factorised', **ON), tokens(1, 7)
        with fast.prepare_to_generate(model, 'float32', torch.device('cpu')) if laid_out else nullcontext():
            written.append(torch.stack(list(model.generate(text, 12, temperature=0))))
    assert torch.equal(*written)
    model = tiny('factorised', **ON)
    for token in written[0][:, 0]:
        assert token == model.log_probs(text)[0].argmax()
        text = torch.cat((text, token.view(1, 1)), dim=1)


def test_every_parameter_learns():
    model = tiny('factorised', **ON).train()
    model(tokens(8, 64), tokens(8, 64, seed=2)).mean().backward()
    for name, p in model.named_parameters():
        assert p.grad is not None and p.grad.abs().sum() > 0, name


def test_byte_pooling_has_no_table_to_factorise():
    with pytest.raises(ValueError, match='embedding=byte_pool has no table'):
        factorised.Config(**TINY, embedding='byte_pool')
