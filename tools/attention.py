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

ROOT = pathlib.Path(__file__).resolve().parent.parent

from configurator import Failure, configure
if __name__ == '__main__':
    configure(globals(), at_least={0: 'layer head'})

import torch

from stlm import run
from stlm import tokenizer as tokenizers
from model import rotate
from tools.pictures import GREY, ORANGE, Picture


@torch.no_grad()
def weights(model, idx, layer):
    """(1, T) token ids -> (H, T, T): how much each token takes from each, in this layer, counted from 0."""
    attn, seen = model.blocks[layer].attn, []
    hook = attn.register_forward_pre_hook(lambda module, inputs: seen.append(inputs))
    model.hidden(idx)
    hook.remove()
    x, angles = seen[0][:2]                                             # (1, T, C), 2 x (T, K/2)
    q, k = (rotate(attn.heads(part(x)), angles)[0] for part in (attn.query, attn.key))   # (H, T, K), (n_kv_head, T, K)
    k = k.repeat_interleave(q.size(0) // k.size(0), dim=0)              # (H, T, K)
    scores = q @ k.transpose(1, 2) / math.sqrt(q.size(2))               # (H, T, T)
    future = torch.ones_like(scores[0], dtype=torch.bool).triu(1)
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


def draw_all(shares, title):
    """{(layer, head): (T, T) shares} -> a picture with a row of small ones for each layer."""
    rows, columns = ([*dict.fromkeys(numbers)] for numbers in zip(*shares))
    width = min(240.0, 980 / len(columns))
    picture = Picture(int(50 + (width + 12) * len(rows)), title)
    picture.text(10, 14, title, 16, anchor='start')
    for (layer, head), one in shares.items():
        left, top = 10 + width * columns.index(head), 40 + (width + 12) * rows.index(layer)
        picture.text(left + 0.9 * width, top + 10, f'{layer}.{head}', 16, anchor='end')   # above the diagonal nothing is drawn
        squares(picture, one, left, top, 0.94 * width / len(one))
    return picture


if __name__ == '__main__':
    model, encoding, _ = run.load_run(out_dir)
    n_layer, n_head = model.config.n_layer, model.config.n_head
    if layer > n_layer or head > n_head:
        raise Failure(f'layer={layer}, head={head}: {out_dir} has {n_layer} layers of {n_head} heads')
    ids = [encoding.eot_token, *encoding.encode_ordinary(prompt)]
    if not 1 < len(ids) <= min(60, model.config.block_size):
        raise Failure(f'the prompt has {len(ids) - 1} tokens; 1 to {min(60, model.config.block_size) - 1} can be drawn')
    shares = {(i, j): one for i in ([layer] if layer else range(1, n_layer + 1))
              for j, one in enumerate(weights(model, torch.tensor([ids]), i - 1), 1) if head in (0, j)}
    spelling = tokenizers.spelling_of(encoding)
    names = [spelling[i].decode(errors='replace').strip() or repr(spelling[i].decode(errors='replace')) if spelling[i] else
             '(start)' for i in ids]
    if len(shares) > 1:
        picture = draw_all(shares, 'layer.head: what each row looks at, of ' + ' '.join(names))
    else:
        (i, j), one = *shares, *shares.values()
        picture = draw(one, names, f'layer {i}, head {j}: what each row looks at')
    pathlib.Path(file).write_text(picture.svg(), encoding='utf-8')
    print(f'{file}: open it in a browser')
