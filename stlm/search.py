"""
The likeliest tokens of byte pooling, found without the others: a search along the tree of the vocabulary. The same, slowly:

    log_p, ids = tokens.log_probs(state[None])[0].sort(descending=True)
"""
import functools
import math

import torch

from model import END, BytePool, LayerCache, choose

WIDTH = 64   # prefixes that go on together


def rows_of(cache, which):
    """A LayerCache of some of the texts, maybe of one several times, with room for another symbol."""
    rows = LayerCache(cache.length + 1)
    if cache.length > 0:
        rows.append(cache.k[which, :, :cache.length], cache.v[which, :, :cache.length])
    return rows


def likeliest(tokens, state, top_k=0, top_p=1.0):
    """(C) a state -> (n) log-probabilities and (n) ids of the likeliest next tokens: top_k of them (0: any number), or as
    many as reach top_p.

    No token is likelier than its prefix, so prefixes less likely than the last token wanted are left. Those with
    equally many forks behind them wait in one list, the likeliest first; WIDTH at a time go on, from the list with the
    most forks, since these soon lead to tokens."""
    found, ids, least = torch.zeros(0), torch.zeros(0, dtype=torch.long), -math.inf
    root = torch.tensor([[0, END, 0]])   # of each prefix: fork, symbol before it, row in the caches
    waiting = [(torch.zeros(1), root, [LayerCache(tokens.S) for _ in tokens.decoder])]
    while waiting:
        log_p, about, caches = waiting.pop()                            # (m), (m, 3)
        m = int((log_p > least).sum())
        if m > WIDTH:
            waiting.append((log_p[WIDTH:m], about[WIDTH:m], caches))
        if m == 0:
            continue
        n = min(m, WIDTH)
        fork, before, row = about[:n].T                                 # 3 x (n)
        caches = [rows_of(cache, row) for cache in caches]
        after = tokens.next_symbols(state[None], fork, before, caches).cpu()          # (n, 257)
        after = after + log_p[:n, None]
        row, symbol = (after > least).nonzero(as_tuple=True)            # 2 x (m), what may follow
        log_p, child = after[row, symbol], tokens.tree.child[fork[row], symbol]       # 2 x (m)

        is_token = child < 0
        found, order = torch.cat((found, log_p[is_token])).sort(descending=True)
        ids = torch.cat((ids, -1 - child[is_token]))[order]
        wanted = int((found.exp().cumsum(0) < top_p).sum()) + 1
        wanted = min(wanted, top_k or wanted)
        found, ids = found[:wanted], ids[:wanted]
        if len(found) == wanted:
            least = found[-1]

        log_p, order = log_p[~is_token].sort(descending=True)
        about = torch.stack((child, symbol, row), dim=1)                # (m, 3)
        waiting.append((log_p, about[~is_token][order], caches))
    return found, ids


def sample(tokens, h, temperature=1.0, top_k=0, top_p=1.0, generator=None):
    """As BytePool.sample()."""
    if temperature > 0 and not top_k and top_p >= 1:
        return tokens.spell(h, temperature=temperature, generator=generator)
    chosen = []
    for state in h:
        log_p, ids = likeliest(tokens, state, top_k if temperature > 0 else 1, top_p)
        log_p = tokens.move(log_p[None])                                # (1, n)
        chosen.append(ids[choose(log_p, temperature, top_k, top_p, generator).cpu()])
    return torch.cat(chosen)


def use_search(model):
    """Let the model draw by search, where it spells."""
    if isinstance(model.tokens, BytePool):
        model.tokens.sample = functools.partial(sample, model.tokens)
