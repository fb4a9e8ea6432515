"""
What each token of a sentence looks at: a picture of one layer's attention, which any browser opens.

    python docs/attention.py --out_dir=out/quick --prompt="The list is empty, so it returns None."
    python docs/attention.py --layer=1 --head=3 --file=attention-1-3.svg

A row is a token that looks, a column one that is looked at. The larger the square, the more it takes from there; a row's
squares add up to one.
"""
out_dir = 'out/quick'       # the run's folder
prompt = 'The list is empty, so it returns None.'
layer = 0                   # from 1 on; 0 is the last one
head = 0                    # from 1 on; 0 is the mean over all heads
file = 'attention.svg'      # the picture

import math
import pathlib
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from configurator import configure, fail
if __name__ == '__main__':
    configure(globals(), at_least={0: 'layer head'})

import torch

import run
import tokenizer as tokenizers
from model import rotate
from pictures import GREY, ORANGE, Picture


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


def draw(shares, names, title):
    """(T, T) shares and a name for each token -> a picture."""
    cell = min(44.0, 780 / len(names))
    size = min(17.0, 0.7 * cell)
    height = int(150 + cell * len(names))
    picture = Picture(height, title)
    picture.text(180, 14, title, 16, anchor='start')
    for i, (name, row) in enumerate(zip(names, shares.tolist())):
        middle = 140 + (i + 0.5) * cell
        picture.text(170, middle, name, size, anchor='end')
        x, y = 180 + (i + 0.5) * cell, 132
        picture.add('text', name, x=x, y=y, font_size=size, fill=GREY, text_anchor='start', transform=f'rotate(-45 {x:.1f} {y})')
        picture.line([(180, middle + cell / 2), (180 + cell * (i + 1), middle + cell / 2)], width=0.5)
        for j, share in enumerate(row[:i + 1]):
            side = 0.94 * cell * math.sqrt(share)   # its area is the share
            picture.add('rect', x=180 + (j + 0.5) * cell - side / 2, y=middle - side / 2, width=side, height=side, fill=ORANGE)
    return picture


if __name__ == '__main__':
    model, encoding, _ = run.load_run(out_dir)
    n_layer, n_head = model.config.n_layer, model.config.n_head
    if layer > n_layer or head > n_head:
        fail(f'layer={layer}, head={head}: {out_dir} has {n_layer} layers of {n_head} heads')
    ids = [encoding.eot_token, *encoding.encode_ordinary(prompt)]
    if not 1 < len(ids) <= min(60, model.config.block_size):
        fail(f'the prompt has {len(ids) - 1} tokens; 1 to {min(60, model.config.block_size) - 1} can be drawn')
    heads = weights(model, torch.tensor([ids]), layer - 1 if layer else n_layer - 1)
    spelling = tokenizers.spelling(encoding)
    names = [spelling[i].decode(errors='replace').strip() or repr(spelling[i].decode(errors='replace')) if spelling[i] else
             '(start)' for i in ids]
    title = f'layer {layer or n_layer}, {f"head {head}" if head else "mean of all heads"}: what each row looks at'
    pathlib.Path(file).write_text(draw(heads[head - 1] if head else heads.mean(0), names, title).svg(), encoding='utf-8')
    print(f'{file}: open it in a browser')
