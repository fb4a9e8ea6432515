"""The search for the likeliest tokens of byte pooling, against the log-probabilities of all."""
import copy

import pytest
import torch

from stlm.search import likeliest, use_search
from test_model import BYTES, close, tiny, tokens


@pytest.mark.parametrize('top_k, top_p', [(1, 1.0), (3, 1.0), (50, 1.0), (97, 0.5), (97, 0.9), (7, 0.6)])
def test_the_likeliest_tokens_are_those_of_all_log_probabilities(top_k, top_p):
    model = tiny(**BYTES)
    states = 0.5 * torch.randn(200, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        every, order = model.tokens.log_probs(states).sort(descending=True)      # 2 x (200, V)
        for state, log_p, ids in zip(states, every, order):
            before = log_p.exp().cumsum(0) < top_p
            n = min(top_k, before.sum().item() + 1)
            found, found_ids = likeliest(model.tokens, state, top_k, top_p)
            close(found, log_p[:n])
            gaps = log_p[:n + 1].diff().abs()
            assert gaps.min() < 1e-5 or torch.equal(found_ids, ids[:n])


@pytest.mark.parametrize('sampling', [dict(temperature=0), dict(top_k=3), dict(top_k=7, temperature=0.5)])
def test_with_search_a_model_and_its_copy_draw_the_tokens_that_it_draws_without(sampling):
    model, drawn = tiny(**BYTES), []
    with torch.no_grad():
        states = model.hidden(tokens(20, 7))[:, -1].split(1)                      # 20 x (1, C)
        searching = copy.deepcopy(model)
        use_search(searching)
        copied = copy.deepcopy(searching)
        for p in searching.parameters():   # the copy has its own
            p.zero_()
        for each in model, copied:
            generator = torch.Generator().manual_seed(0)
            drawn.append(torch.cat([each.tokens.sample(h, **sampling, generator=generator) for h in states]))
    assert torch.equal(*drawn) and len(drawn[0].unique()) > 2
