"""
Draws the pictures of README and docs, as SVG into assets/: surprise, pooling, tree, transformer, parameters, schedules, trained,
compress, and of each study with a table in docs/ what came of it.

    python -m tools.pictures      # nothing to install; it prepares the quick start's data if they aren't there
"""
only = ''   # the name of one of them; none: all

import functools
import math
import pathlib
import re

from configurator import Failure, configure
if __name__ == '__main__':
    configure(globals())

import numpy as np
import torch

import prepare_wiki
import train
from model import grow_tree
from stlm import run
from stlm import tokenizer as tokenizers
from tools import compare, compress
from tools.parts import planned_model
from tools.svg import BLUE, GREY, ORANGE, PURPLE, Picture

ROOT = pathlib.Path(__file__).resolve().parent.parent
PROMPT = 'She was born in 1985 in the United'
SENTENCE = 'It returns a new list.'
WORD = ' returns'
STUDIES = 'embedding', 'sharing', 'dropout', 'schedule', 'curriculum', 'ideas', 'ideas_600'


def pooling(tree, ids):
    """A sentence of these tokens: their bytes, a vector for each, the transformer, and the next token's symbols.
    `tree` is model.grow_tree()'s, of the vocabulary; ids end with the token that comes last of all."""
    rows = dict(tokens=12, encoder=72, vectors=146, core=210, states=294, decoder=358, after=432)   # upper edges
    lengths = [tree.length[token].item() for token in ids]
    columns = [max(pair) + 0.7 for pair in zip(lengths, lengths[1:])]   # END takes 1.7 cells
    cell = min(24.0, (865 - 12 * len(columns)) / sum(columns))
    picture = Picture(582, 'Byte pooling: a sentence spelled in, processed, and spelled out')
    x = 130.0
    for now, after, wide in zip(ids, ids[1:], columns):
        middle = x + wide * cell / 2
        for top, bottom in ('tokens', 'encoder'), ('encoder', 'vectors'), ('vectors', 'core'), ('core', 'states'), (
                'states', 'decoder'), ('decoder', 'after'):
            picture.line([(middle, rows[top] + 32), (middle, rows[bottom] - 2)], arrow=True)
        forks = {tree.place[number].item() for number in tree.forks[after, :tree.n_forks[after]]}
        for row, token, colour in ('tokens', now, BLUE), ('after', after, PURPLE):
            symbols = tree.symbols[token, :tree.length[token]].tolist()
            left = middle - (len(symbols) + 0.7) * cell / 2
            for i, symbol in enumerate(symbols):
                free = row == 'after' and i not in forks
                picture.symbol(left + i * cell, rows[row], symbol, (1.7 if symbol == 256 else 1) * cell - 2, colour=colour,
                               filled=not free, dashed=free)
        picture.box(middle - 22, rows['vectors'], 44, 32, 'C', ORANGE)
        picture.box(middle - 22, rows['states'], 44, 32, 'h', ORANGE)
        x += wide * cell + 12
    for row, colour, text in (
            ('encoder', BLUE, 'encoder, inside each token: (n, L) → (n, L, D) → mean → (n, C)'),
            ('core', GREY, 'transformer: each token looks at earlier ones, (B, T, C) → (B, T, C)'),
            ('decoder', PURPLE, 'decoder, fork after fork: (n, C) → (n, L, D) → (n, L, 257)')):
        picture.box(124, rows[row], x - 130, 40, text, colour, size=17)
    for row, text in dict(tokens='tokens', encoder='spelled in', vectors='vectors', core='processed', states='states',
                          decoder='spelled\nout', after='next\ntokens').items():
        for i, part in enumerate(lines := text.split('\n')):
            picture.text(4, rows[row] + 18 + 21 * (i - (len(lines) - 1) / 2), part, 17, anchor='start')
    for y, line in ((492, 'END: the token is complete. Alone it is the end of a text.'),
                    (520, 'Dashed: nothing else can follow, which costs no time and no bits.'),
                    (548, 'B texts of T tokens, width C. n tokens, L symbols or forks each, width D.')):
        picture.text(130, y, line, 17, anchor='start')
    return picture


def tree_of_choices(tree, log_counts, token, shown=4):
    """How one token is spelled: at each place, which symbols may follow, and how often they did in the training text."""
    symbols = tree.symbols[token, :tree.length[token]].tolist()
    numbers = tree.forks[token, :tree.n_forks[token]]
    at = {tree.place[number].item(): number for number in numbers}
    wide, total, free = min(112.0, 1010 / len(symbols)), 0.0, 0
    picture = Picture(400, 'The tree of choices of one token')
    picture.text(5, 14, 'how many symbols can follow', 17, anchor='start')
    for place, symbol in enumerate(symbols):
        x = 5.0 + place * wide
        if place not in at:
            free += 1
            picture.text(x + wide / 2 - 14, 44, '1', 18)
            picture.symbol(x, 70, symbol, wide - 28, colour=PURPLE, filled=False, dashed=True)
            picture.text(x + wide / 2 - 14, 118, 'free', 15)
        else:
            shares = log_counts[at[place]].softmax(-1)
            order = [i for i in shares.argsort(descending=True).tolist() if shares[i] > 0]
            share = shares[symbol].item()
            total -= math.log2(share)
            picture.text(x + wide / 2 - 14, 44, f'{len(order)}', 18)
            picture.symbol(x, 70, symbol, wide - 28, colour=PURPLE)
            picture.text(x + wide / 2 - 14, 118, percent(share), 15)
            others = [i for i in order if i != symbol]
            for i, other in enumerate(others[:shown - 1]):
                y = 146 + i * 58
                picture.symbol(x, y, other, wide - 28, colour=GREY, filled=False)
                picture.text(x + wide / 2 - 14, y + 43, percent(shares[other].item()), 15)
            if others[shown - 1:]:
                picture.text(x + wide / 2 - 14, 322, f'+ {len(others) - shown + 1}', 16)
        if place + 1 < len(symbols):
            picture.line([(x + wide - 26, 85), (x + wide - 3, 85)], arrow=True)
    picture.text(5, 358, f'{len(at)} forks, and {free} symbols that follow by themselves. Judged by how often each branch was', 17, anchor='start')
    picture.text(5, 382, f'taken in the training text, this token costs {total:.1f} bits. The network only changes these shares.', 17,
                 anchor='start')
    return picture


def percent(share):
    return f'{share:.0%}' if share >= 0.01 else f'{share:.2%}'


def surprise(tokens, bits, likeliest):
    """What each token of a text cost a model, as bars, and {token: probability} of what may come next."""
    picture, wide, height = Picture(290, 'How surprising each word was to a model, and what it expects next'), 664 / len(tokens), 12.0
    picture.text(10, 14, 'How surprising was each word to the model, in bits?', 20, anchor='start')
    for i, (token, cost) in enumerate(zip(tokens, bits)):
        x = 10 + i * wide
        picture.box(x, 235, wide - 8, 44, token.strip(), BLUE, size=18)
        picture.add('rect', x=x + 10, y=227 - height * cost, width=wide - 28, height=height * cost, fill=ORANGE)
        picture.text(x + wide / 2 - 4, 213 - height * cost, f'{cost:.1f}', 20)
    picture.line([(674, 257), (708, 257)], arrow=True)
    picture.text(724, 14, 'What comes next?', 20, anchor='start')
    shown = {token: p for token, p in likeliest.items() if p >= 0.001}   # else it would say 0.0 %
    for i, (token, p) in enumerate(shown.items()):
        y, length = 257 - 50 * (len(shown) - 1 - i), max(120 * p, 2.0)
        picture.text(826, y, token.strip(), 20, anchor='end')
        picture.add('rect', x=836, y=y - 17, width=length, height=34, fill=PURPLE)
        picture.text(844 + length, y, f'{p:.1%}', 20, anchor='start')
    return picture


def ask(out_dir, prompt, n=6):
    """(tokens, their bits, {token: probability} of the n likeliest next ones) of a run."""
    model, encoding, _ = run.load_run(out_dir)
    ids = encoding.encode_ordinary(prompt)
    idx = torch.tensor([[encoding.eot_token, *ids]])                                 # (1, T)
    with torch.no_grad():
        bits = model(idx[:, :-1], idx[:, 1:])[0] / math.log(2)                       # (T - 1)
        values, best = model.log_probs(idx)[0].topk(n)

    def name(i):
        return encoding.decode_bytes([i]).decode(errors='replace')
    return [name(i) for i in ids], bits.tolist(), {name(i): p for i, p in zip(best.tolist(), values.exp().tolist())}


def transformer(c):
    """The path of a batch through the network of chapter 1, and what a block is, with the shapes of the config c."""
    H, K, V = c.n_head, c.n_embd // c.n_head, c.vocab_size
    C, B, T = c.n_embd, 8, c.block_size
    picture = Picture(640, 'The transformer, with the shapes of the quick start')

    def down(x, y, length, shape=''):
        picture.line([(x, y), (x, y + length)], arrow=True)
        picture.text(x + 12, y + length / 2 - 2, shape, 15, anchor='start')

    # the whole, on the left
    picture.text(185, 14, 'token ids', 16)
    down(185, 28, 34, f'(B, T) = ({B}, {T})')
    picture.box(20, 64, 330, 44, f'embed: {V:,} rows of {C}', BLUE, size=16)
    down(185, 108, 36, f'(B, T, C) = ({B}, {T}, {C})')
    gap, y = 300 // c.n_layer, 146
    for i in range(c.n_layer):
        picture.box(20, y + gap * i, 330, gap - 20, f'Block {i + 1}', ORANGE, filled=i == 0)
        down(185, y + gap * (i + 1) - 20, 18)
    y += gap * c.n_layer
    picture.box(20, y, 330, 44, 'Norm')
    down(185, y + 44, 36, f'states h ({B}, {T}, {C})')
    picture.box(20, y + 82, 330, 44, f'nll: {V:,} logits each', BLUE, size=16)
    down(185, y + 126, 36, f'nats ({B}, {T})')
    picture.text(185, y + 176, 'bits per byte = nats / ln 2 / bytes', 16)

    # a block, on the right: twice a norm, a part that adds to x, and the addition
    picture.line([(353, 146 + (gap - 20) / 2), (402, 146 + (gap - 20) / 2)], dashed=True)
    picture.box(402, 6, 592, 628, '', ORANGE, filled=False)
    halves = (('attn_norm: Norm', 'Attention: tokens look at earlier ones\n'
               f'q, k, v: (B, H, T, K) = ({B}, {H}, {T}, {K})\nq and k are turned by their positions\nout(softmax(q kᵀ / √K) v)'),
              ('ffn_norm: Norm', 'FeedForward: each token thinks for itself\n'
               f'gate and up: (B, T, d_ff) = ({B}, {T}, {c.d_ff})\ndown(silu(gate) · up)'))
    picture.text(715, 26, f'x ({B}, {T}, {C})', 16)
    y = 38
    for norm, part in halves:
        height = 22 * part.count('\n') + 44
        down(715, y, 32)
        picture.box(450, y + 34, 530, 36, norm, size=16)
        down(715, y + 70, 24)
        picture.box(450, y + 96, 530, height, part, PURPLE, size=16)
        down(715, y + 96 + height, 26)
        plus = y + 138 + height
        picture.add('circle', cx=715, cy=plus, r=14, fill='none', stroke=GREY, stroke_width=2.5)
        picture.text(715, plus - 1, '+', 22)
        picture.line([(715, y + 12), (426, y + 12), (426, plus), (699, plus)], arrow=True)
        y = plus + 14
    down(715, y, 34)
    picture.text(715, y + 48, f'x ({B}, {T}, {C})', 16)
    picture.text(698, 616, f'B texts of T tokens, width C, {H} heads of size K', 15)
    return picture


def parameters(rows):
    """{config: {part: parameters}}, two configs at each size: a bar for each, as long as it has parameters."""
    picture = Picture(40 + 152 * (len(rows) // 2), 'Where the parameters sit')
    kinds = (('tokens', BLUE), ('attention', PURPLE), ('feed-forward', ORANGE))
    for i, (name, parts) in enumerate(rows.items()):
        y = 44 + 152 * (i // 2) + 66 * (i % 2)
        total = sum(parts.values())
        longest = max(sum(parts.values()) for parts in [*rows.values()][i // 2 * 2:i // 2 * 2 + 2])
        picture.text(140, y + 22, name, 18, anchor='end')
        ends = next(n for part, n in parts.items() if part.startswith(('token', 'byte')))
        sizes, x = (ends, parts['attention'], parts['feed-forward']), 150.0
        for (kind, colour), n in zip(kinds, sizes):
            width = 720 * n / longest
            picture.add('rect', x=x, y=y, width=width, height=44, fill=colour, stroke='none')
            if kind == 'tokens':
                for k in range(int(width / 9)):   # hatched, to be told apart without colour
                    picture.line([(x + 9 * k, y + 44), (x + 9 * k + 9, y)], 'white', 1)
            label = f'{kind} {n / 1e6:.1f}'
            label = label if width > 11 * len(label) + 8 else f'{n / 1e6:.1f}'
            if width > 40:
                if kind == 'tokens':
                    picture.add('rect', x=x + width / 2 - 5.8 * len(label), y=y + 10, width=11.6 * len(label), height=24, rx=4, fill=colour)
                picture.text(x + width / 2, y + 22, label, 17, 'white')
            else:
                picture.text(x + width / 2, y - 11, label, 16)
            x += width
        picture.text(x + 10, y + 22, f'{total / 1e6:.1f}', 18, anchor='start')
    picture.text(150, 12, 'millions, each size to its own scale; hatched: tokens; then attention, feed-forward', 17, anchor='start')
    return picture


def schedules(along, learning_rate_factor):
    """Dropout p (arXiv 2405.14159, section 5.5) and the learning rate over a run of 1,000 steps, by train.py's own
    functions. What each panel is, is the flag that makes it."""
    flags = {'constant': [(0, 0.1)], 'early': [(0, 0.1), (300, 0.1), (301, 0)], 'late': [(699, 0), (700, 0.1)],
             'linear up': [(0, 0), (1000, 0.1)], 'linear down': [(0, 0.1), (1000, 0)],
             'triangle': [(0, 0), (500, 0.1), (1000, 0)]}
    picture, steps = Picture(716, 'Schedules of dropout and of the learning rate'), range(0, 1001, 5)
    curves = [(name, f'--dropout="{points}"' if len(points) > 1 else '--dropout=0.1',
               [along(points, it) / 0.1 for it in steps], '0.1') for name, points in flags.items()]
    curves += [(name, f'--schedule={name}', [learning_rate_factor(it, 1000, 50, name) for it in steps], 'peak')
               for name in ('cosine', 'wsd')]
    for i, (name, flag, values, top) in enumerate(curves):
        x, y, width, height = 60 + 500 * (i % 2), 40 + 180 * (i // 2), 420, 84
        picture.text(x + width / 2, y - 20, f'dropout {name}' if i < 6 else f'learning rate {name}', 17)
        picture.line([(x, y - 4), (x, y + height), (x + width, y + height)], width=1.5)
        picture.text(x - 8, y + 2, top, 16, anchor='end')
        picture.text(x - 8, y + height, '0', 16, anchor='end')
        picture.text(x + width, y + height + 14, 'step 1000', 15, anchor='end')
        picture.line([(x + width * it / 1000, y + height * (1 - value)) for it, value in zip(steps, values)], ORANGE if i < 6 else BLUE, 4)
        picture.text(x, y + height + 36, flag, 15, anchor='start')
    return picture


def trained():
    """The curves of the two runs that come along."""
    names = ['byte_10m', 'tiny_10m']
    return compare.draw(names, [compare.read(ROOT / 'pretrained' / name)[1] for name in names])


def compress_rows():
    """[(method, amount, MB, bits per byte before, after)] of the table in docs/ideas.md that tools/compress.py printed."""
    text = (ROOT / 'docs/ideas.md').read_text(encoding='utf-8')
    lines = text.split('| | keep, or bits |')[1].split('\n\n')[0].splitlines()[2:]
    return [(name, *map(float, numbers)) for name, *numbers in (line.strip('| ').split(' | ') for line in lines)]


def table_file(study):
    return ROOT / f'docs/{"ideas_table" if study == "ideas" else study}.md'   # docs/ideas.md is written by hand


def table_of(study):
    """[(name, lowest, mean, highest of its seeds)] in bits per byte, from the table that tools/study.py writes."""
    rows = []
    for line in table_file(study).read_text(encoding='utf-8').splitlines()[2:]:
        if line.startswith('|'):
            name, *_, found = line.strip('| ').split(' | ')
            numbers = [float(number) for number in re.findall(r'\d\.\d+', found)]
            if not numbers or 'nan' in found:
                raise Failure(f'{table_file(study)}: {name} has no number of bits per byte, but {found}')
            mean, *ends = numbers
            lowest, highest = ends or [mean, mean]
            rows.append((name, lowest, mean, highest))
    return rows


def ranges(study):
    """Each row's bits per byte: a dot at the mean, a line over its seeds, and all rows beside the first one's seeds."""
    rows, top, right = table_of(study), 76, 860
    left = max(330, round(11.2 * max(len(row[0]) for row in rows)))
    picture = Picture(top + 36 * len(rows) + 44, f'{study}: bits per byte at the end, fewer are better')
    low, high = min(row[1] for row in rows), max(row[3] for row in rows)

    def place(bits):
        return left + (right - left) * (bits - low) / (high - low or 1)

    picture.text((left + right) / 2, 22, 'bits per byte: the mean, and the range of seeds; fewer is better', 16)
    picture.text((left + right) / 2, picture.height - 24, f'▼ better, ▲ worse than every seed of {rows[0][0]} (dashed)', 16)
    _, first, _, last = rows[0]
    picture.add('rect', x=place(first) - 3, y=top - 30, width=place(last) - place(first) + 6, height=36.0 * len(rows) + 26,
                fill='none', stroke=GREY, stroke_width=1.5, stroke_dasharray='5 4')
    for i, (name, lowest, mean, highest) in enumerate(rows):
        y = top + 36 * i
        colour = ORANGE if lowest > last else BLUE if highest < first else GREY
        picture.text(left - 14, y, name, 17, anchor='end')
        picture.line([(place(lowest), y), (place(highest), y)], colour, 4)
        picture.add('circle', cx=place(mean), cy=float(y), r=7, fill=colour)
        picture.text(right + 20, y, f'{mean:.3f}' + ' ▲' * (lowest > last) + ' ▼' * (highest < first), 17, colour, 'start')
    return picture


def planned(name=''):
    """The model that train.py makes of its own settings, or of a config file."""
    return planned_model([f'config/{name}.py'] if name else [])[0]


def sizes():
    """{config: {part: parameters}} of the six, a table and byte pooling at each size."""
    names = [f'{kind}_{size}' for size in ('10m', '50m', '100m') for kind in ('tiny', 'byte')]
    return {name: planned(name).count_parameters() for name in names}


def main(only):
    folder, meta = prepare_wiki.load_data('pydocs', 'bpe4096', ROOT / 'data')
    encoding = tokenizers.load_tokenizer(meta['tokenizer'], folder)
    counts = np.bincount(np.fromfile(folder / 'train.bin', meta['dtype']), minlength=encoding.n_vocab)
    tree, log_counts = grow_tree(tokenizers.spelling_of(encoding), torch.from_numpy(counts), meta['tokenizer']['max_token_bytes'] + 1)
    pictures = dict(
        surprise=lambda: surprise(*ask(ROOT / 'pretrained/tiny_10m', PROMPT)),
        pooling=lambda: pooling(tree, encoding.encode_ordinary(SENTENCE) + [encoding.eot_token]),
        tree=lambda: tree_of_choices(tree, log_counts, encoding.encode_ordinary(WORD)[0]),
        transformer=lambda: transformer(planned().config), parameters=lambda: parameters(sizes()), trained=trained,
        compress=lambda: compress.draw(compress_rows()), schedules=lambda: schedules(train.along, train.learning_rate_factor),
        **{study: functools.partial(ranges, study) for study in STUDIES if table_file(study).exists()})
    if only and only not in pictures:
        raise Failure(f'only={only} is none of {", ".join(pictures)}')
    for name, draw in pictures.items():
        if only in ('', name):
            (ROOT / 'assets').mkdir(exist_ok=True)
            (ROOT / f'assets/{name}.svg').write_text(draw().svg(), encoding='utf-8')
            print(f'assets/{name}.svg')


if __name__ == '__main__':
    main(only)
