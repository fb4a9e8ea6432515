"""
What a model makes of a text, token by token: the likeliest next ones, the bits that each costs, and which tokens are alike.

    model, tokenizer, checkpoint = load_run('pretrained/tiny_10m')
    print(nearest(model, tokenizer, ' north'))

A token is shown by its bytes, since a character may be cut between two. sample.py is its command, which
prints charts (--top, --show_tokens, --html, --near); in a notebook next_tokens(), bits_of_tokens() and nearest() return
numbers, and page() an HTML page.
"""
import codecs
import math
import re
from html import escape

import torch
import torch.nn.functional as F

from stlm.console import Failure, visible
from stlm.tokenizer import ids_of, spelling_of

NO_NUMBER = 'what the model computes is not a number (float32 has the largest range: --dtype=float32)'
PAGE = """<!doctype html><meta charset="utf-8"><title>Bits of each token</title>
<style>:root { color-scheme: light dark } body { font: 1.2em/1.9 sans-serif; max-width: 45em; margin: 2em auto; padding: 0 1em }
span { white-space: pre-wrap; border-radius: .2em; outline: 1px solid #8884 }</style>
"""


@torch.no_grad()
def next_tokens(model, tokenizer, text, n=10):
    """[(token, probability)] of the n likeliest tokens after a text."""
    log_probs = model.log_probs(torch.tensor([ids_of(tokenizer, text)]))[0]               # (V)
    if log_probs.isnan().any():
        raise Failure(NO_NUMBER)
    best = log_probs.topk(min(n, len(log_probs)))
    spelling = spelling_of(tokenizer)
    return [(spelling[i], p) for i, p in zip(best.indices.tolist(), best.values.exp().tolist())]


@torch.no_grad()
def bits_of_tokens(model, tokenizer, text):
    """[(token, [bits of its symbols])] of a text: what each token cost the model, given those before it. A token of a
    table is one symbol; byte pooling chooses each byte and the end, and None stands where nothing else could follow."""
    ids = ids_of(tokenizer, text)
    if not 1 < len(ids) <= model.config.block_size + 1:
        raise Failure(f'the prompt has {len(ids) - 1} tokens; give it 1 to {model.config.block_size}')
    idx, targets = torch.tensor([ids[:-1]]), torch.tensor([ids[1:]])                      # 2 x (1, T)
    h = model.hidden(idx)                                                                 # (1, T, C)
    spelled = model.config.embedding == 'byte_pool'
    nats = model.tokens.nll_of_choices(h, targets) if spelled else model.tokens.nll(h, targets)[..., None]
    if not nats.isfinite().all():
        raise Failure(NO_NUMBER)
    rows, spelling = [], spelling_of(tokenizer)
    for i, bits in zip(ids[1:], (nats[0].float() / math.log(2)).tolist()):                # (T, forks, or 1)
        rows.append((spelling[i], at_symbols(model.tokens.tree, i, bits) if spelled else bits))
    return rows


def at_symbols(tree, token, bits):
    """A token's bits at its forks -> at each of its symbols, which may be no choice."""
    places = tree.place[tree.forks[token, :tree.n_forks[token]]].tolist()
    bits_at = dict(zip(places, bits))
    return [bits_at.get(place) for place in range(tree.length[token])]


@torch.no_grad()
def token_vectors(model, spelling):
    """(M) ids and (M, C) vectors, each of length 1, of all tokens but the end of a text: the rows of a token table, or what
    byte pooling's encoder makes of a token's bytes."""
    ids = torch.tensor([i for i, token in enumerate(spelling) if token])
    vectors = torch.cat([model.tokens.embed(some[None])[0] for some in ids.split(2**12)])
    return ids, F.normalize(vectors.float(), dim=1)


def terms_of(text):
    """' his - he + she' -> [(1, ' his'), (-1, ' he'), (1, ' she')]. A sign stands between blanks; a word keeps its own."""
    words = re.split(' [+-](?= )', text)
    signs = [1 if sign == '+' else -1 for sign in re.findall(' ([+-])(?= )', text)]
    return [*zip([1, *signs], words)]


def nearest(model, tokenizer, text, n=10):
    """[(token, cosine)] of the n tokens whose vectors point most nearly where the text's does. The text is a token, or a
    sum: ' his - he + she'. Its own tokens are left out."""
    spelling = spelling_of(tokenizer)
    ids, vectors = token_vectors(model, spelling)                                         # (M), (M, C)
    target, asked = torch.zeros_like(vectors[0]), []                                      # (C)
    for sign, word in terms_of(text):
        found = tokenizer.encode_ordinary(word)
        if len(found) != 1:
            pieces = ' '.join(named(spelling[i]) for i in found) or 'nothing'
            raise Failure(f'{word!r} is not one token here, but {pieces}; most words begin with a blank, as " north"')
        row = (ids == found[0]).nonzero().item()
        target += sign * vectors[row]
        asked.append(row)
    cosines = vectors @ F.normalize(target, dim=0)                                        # (M)
    cosines[asked] = -math.inf
    best = cosines.topk(min(n, len(ids) - len(set(asked))))
    return [(spelling[ids[i]], cosine) for i, cosine in zip(best.indices.tolist(), best.values.tolist())]


# --------------------------------------------------------------------------------------------------
# As charts in the terminal, and as a page

def bar(share):
    return '#' * min(max(round(share * 24), 0), 24)


def named(token):
    try:
        return repr(token.decode()) if token else '(end of text)'
    except UnicodeDecodeError:   # a part of a character
        return repr(token)


def chart(rows, form):
    """The lines of [(token, share)]: the share in a form, a bar as long, and the token."""
    return '\n'.join(f'{form.format(share):>6} {bar(share):24} {named(token)}' for token, share in rows)


def chart_of_bits(rows):
    """The lines of bits_of_tokens(): each token's bits, as a bar too, then those of each of its symbols."""
    lines = []
    for token, bits in rows:
        total = sum_of(bits)
        line = f'{total:6.1f} {bar(total / 24):24} {named(token):18}'
        if len(bits) > 1:   # byte pooling
            symbols = [repr(bytes([byte]))[1:] for byte in token] + ['END']
            for symbol, cost in zip(symbols, bits):
                line += f' {symbol}' if cost is None else f' {symbol} {cost:.1f}'
        lines.append(line)
    size = sum(len(token) for token, _ in rows)
    return '\n'.join([*lines, f'{bits_per_byte(rows):6.2f} bits per byte, {len(rows)} tokens, {size} bytes'])


def sum_of(bits):
    return sum(cost for cost in bits if cost is not None)


def bits_per_byte(rows):
    return sum(sum_of(bits) for _, bits in rows) / max(sum(len(token) for token, _ in rows), 1)


def coloured(text, bits):
    shown, red = escape(visible(text, keep='\n\t')), min(bits / 12, 1) * 0.75
    return f'<span title="{bits:.1f} bits" style="background: rgb(255 60 0 / {red:.2f})">{shown}</span>'


def page(rows, about):
    """The text of bits_of_tokens() as HTML, each token on a background that is the redder the more bits it cost. Tokens
    that end inside a character stand with the next one."""
    decoder, waiting, spans = codecs.getincrementaldecoder('utf-8')('replace'), 0.0, ''
    for token, bits in rows:
        waiting += sum_of(bits)
        text = decoder.decode(token)
        if text:
            spans += coloured(text, waiting)
            waiting = 0.0
    legend = ' '.join(coloured(f' {bits} ', bits) for bits in (0, 3, 6, 9, 12))
    return (f'{PAGE}<p dir="auto">{spans}</p>\n<hr><p>bits that a token costs: {legend} and more<br>'
            f'{bits_per_byte(rows):.2f} bits per byte ({escape(visible(about))})</p>\n')
