"""
What each token of a sentence looks at, as a picture that any browser opens: all heads, or one with the tokens' names.

    python -m tools.attention --out_dir=out/quick --prompt="The list is empty, so it returns None."
    python -m tools.attention --layer=2 --head=3

A row is a token that looks, a column one that is looked at. The larger the square, the more it takes from there; a row's
squares add up to one.
"""
out_dir = 'out/quick'       # the run's folder
prompt = 'The list is empty, so it returns None.'
layer = 0                   # from 1 on; 0 for all
head = 0                    # from 1 on; 0 for all
file = 'attention.svg'      # the picture

import math
import pathlib
import textwrap

from configurator import Failure, configure
if __name__ == '__main__':
    configure(globals())

import torch

from model import rotate
from stlm import run
from stlm import tokenizer as tokenizers
from tools.svg import GREY, ORANGE, Picture


@torch.no_grad()
def weights(model, idx, layer):
    """(1, T) token ids -> (H, T, T): how much each token takes from each, in this layer, counted from 0."""
    attn, seen = model.blocks[layer].attn, []
    hook = attn.register_forward_pre_hook(lambda module, inputs: seen.append(inputs))
    model.hidden(idx)
    hook.remove()
    if not seen or seen[0][0].size(1) != idx.size(1):
        raise Failure(f'layer {layer + 1}: not just the tokens pass through it, each at its place, so no picture can name them')
    x, angles = seen[0][:2]                                             # (1, T, C), 2 x (T, K/2)
    q, k = (rotate(attn.heads(part(x)), angles)[0] for part in (attn.query, attn.key))   # (H, T, K), (n_kv_head, T, K)
    k = k.repeat_interleave(q.size(0) // k.size(0), dim=0)              # (H, T, K)
    scores = q @ k.transpose(1, 2) / math.sqrt(q.size(2))               # (H, T, T)
    future = torch.ones_like(scores[0], dtype=torch.bool).triu(1)   # the mask once more: attend() keeps no weights
    return scores.masked_fill(future, -math.inf).softmax(-1)


def squares(picture, shares, left, top, cell):
    """Those of (T, T) shares, in cells of a size in pixels."""
    for i, row in enumerate(shares.tolist()):
        y = top + (i + 0.5) * cell
        picture.line([(left, y + cell / 2), (left + cell * (i + 1), y + cell / 2)], width=0.5)
        for j, share in enumerate(row[:i + 1]):
            side = 0.94 * cell * math.sqrt(share)   # its area is the share
            picture.add('rect', x=left + (j + 0.5) * cell - side / 2, y=y - side / 2, width=side, height=side, fill=ORANGE)


def draw(shares, names, title):
    """(T, T) shares and a name for each token -> a picture."""
    cell = min(44.0, 780 / len(names))
    size = min(17.0, 0.7 * cell)
    picture = Picture(int(150 + cell * len(names)), title)
    picture.text(180, 14, title, 16, anchor='start')
    for i, name in enumerate(names):
        picture.text(170, 140 + (i + 0.5) * cell, name, size, anchor='end')
        x, y = 180 + (i + 0.5) * cell, 132
        picture.add('text', name, x=x, y=y, font_size=size, fill=GREY, text_anchor='start', transform=f'rotate(-45 {x:.1f} {y})')
    squares(picture, shares, 180, 140, cell)
    return picture


def draw_all(shares, names, title):
    """{(layer, head): (T, T) shares} and a name for each token -> a picture with a row of small ones for each layer. The
    names stand once in each row, at its left."""
    rows, columns = ([*dict.fromkeys(numbers)] for numbers in zip(*shares))
    cell = min(220.0, 850 / len(columns) - 12) / len(names)
    width, size = cell * len(names), min(15.0, 0.9 * cell)
    text = textwrap.wrap(' '.join(names), 95) if size < 11 else []   # too small to read beside each picture
    picture = Picture(int(50 + 24 * len(text) + (width + 24) * len(rows)), title)
    for i, line in enumerate([title, *text]):
        picture.text(10, 14 + 24 * i, line, 16, anchor='start')
    for i, layer in enumerate(rows):
        top = 44 + 24 * len(text) + (width + 24) * i
        for j, name in enumerate(names):
            picture.text(140, top + (j + 0.5) * cell, name, size, anchor='end')
        for k, head in enumerate(columns):
            left = 150 + (width + 12) * k
            picture.text(left + width, top + 8, f'{layer}.{head}', 16, anchor='end')   # above the diagonal nothing is drawn
            squares(picture, shares[layer, head], left, top, cell)
    return picture


def named(token):
    """A token's text without its blanks, or as Python writes it where nothing else is left."""
    text = token.decode(errors='backslashreplace')   # a part of a character is bytes
    return text.strip() or repr(text) if token else '(start)'


def main(out_dir, prompt, layer, head, file):
    model, tokenizer, _ = run.load_run(out_dir)
    n_layer, n_head = model.config.n_layer, model.config.n_head
    if layer > n_layer or head > n_head:
        raise Failure(f'layer={layer}, head={head}: {out_dir} has {n_layer} layers of {n_head} heads')
    ids = tokenizers.ids_of(tokenizer, prompt)
    most = min(60, model.config.block_size)
    if not 1 < len(ids) <= most:
        raise Failure(f'the prompt has {len(ids) - 1} tokens; 1 to {most - 1} can be drawn')
    spelling = tokenizers.spelling_of(tokenizer)
    names = [named(spelling[i]) for i in ids]
    shares = {}
    for i in [layer] if layer else range(1, n_layer + 1):
        for j, one in enumerate(weights(model, torch.tensor([ids]), i - 1), 1):
            if head in (0, j):
                shares[i, j] = one
    if len(shares) == 1:
        (i, j), one = *shares, *shares.values()
        picture = draw(one, names, f'layer {i}, head {j}: what each row looks at')
    else:
        picture = draw_all(shares, names, 'layer.head: what each row looks at; the columns are the same tokens')
    pathlib.Path(file).write_text(picture.svg(), encoding='utf-8')
    print(f'{file}: open it in a browser')


if __name__ == '__main__':
    main(out_dir, prompt, layer, head, file)
