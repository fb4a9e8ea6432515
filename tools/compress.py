"""
Compress a trained run: what do fewer weights, or fewer bits for each, cost in bits per byte?

Each matrix W within the layers becomes what a method makes of it, and is trained for some steps in that form:
    prune      its largest numbers, the others are 0                                    (arXiv 1506.02626)
    lowrank    U V of the rank that has so many numbers, nearest by singular values     (arXiv 2405.14159, section 2)
    int8 int4  round(W / s) s, s its row's largest / 127 or 7; gradients pass as if unrounded      (arXiv 2103.13630)

Try:     python -m tools.compress --out_dir=out/quick       # makes compress.md and compress.svg there
Took:    all methods some minutes on one core (nine rows of 50 steps and two evaluations)
Result:  of the quick start's 5.5 MB, 1.856 bits per byte: int4 in 2.5 MB loses least, 1.863; pruning to a half has 1.872,
         to a tenth 2.459; low rank is far behind at each size (docs/ideas.md)
"""
out_dir = 'out/quick'     # the run to compress
method = 'all'            # prune, lowrank, int8, int4, or all of them
keep = [0.5, 0.25, 0.1]   # prune and lowrank: the shares of the numbers to keep
recovery = 50             # steps of training afterwards, of 8 blocks
learning_rate = 3e-4      # Adam's; it falls to 0 in a straight line

import pathlib

from configurator import Failure, configure
if __name__ == '__main__':
    configure(globals(), dict(method='all prune lowrank int8 int4'))

import torch
from torch.nn.utils.parametrize import register_parametrization

import prepare_wiki
from stlm import run
from stlm import text
from stlm.files import write_whole
from stlm.machine import Machine
from tools.svg import BLUE, GREY, ORANGE, PURPLE, Chart


# A method returns what is trained in place of W, how W is made of that, and how many bytes it needs.

def plain(W, _):
    return W, lambda W: W, 4 * W.numel()


def prune(W, share):
    n = max(1, round(share * W.numel()))
    kept = W.abs() >= W.abs().flatten().topk(n).values[-1]
    return W, lambda W: W * kept, 4 * n + W.numel() / 8                 # and a bit for each number: is it kept?


def lowrank(W, share):
    rank = max(1, round(share * W.numel() / sum(W.shape)))
    U, S, V = torch.linalg.svd(W, full_matrices=False)
    return (U[:, :rank] * S[:rank], V[:rank]), torch.matmul, 4 * rank * sum(W.shape)


def rounded(W, bits):
    def nearest(W):
        scale = W.detach().abs().amax(dim=1, keepdim=True).clamp(min=1e-20) / (2**(bits - 1) - 1)
        return W + ((W / scale).round() * scale - W).detach()
    return W, nearest, bits / 8 * W.numel() + 4 * len(W)                # and a scale for each row


class Form(torch.nn.Module):
    def __init__(self, trained, make):
        super().__init__()
        self.right_inverse, self.forward = lambda W: trained, make      # the names that PyTorch asks for


def compress(model, method, amount):
    """Give each matrix within the layers its new form. Returns the bytes that the whole model then needs."""
    size = sum(4 * p.numel() for p in model.parameters())
    for linear in [module for module in model.blocks.modules() if isinstance(module, torch.nn.Linear)]:
        trained, make, n_bytes = method(linear.weight.detach(), amount)
        size += n_bytes - 4 * linear.weight.numel()
        register_parametrization(linear, 'weight', Form(trained, make))
    return size


def recover(model, tokens, steps, peak):
    order = text.Order(tokens, model.config.block_size, seed=0)
    optimizer = torch.optim.Adam(model.parameters(), peak)
    for step in range(steps):
        optimizer.param_groups[0]['lr'] = peak * (1 - step / steps)
        x, y = text.load_blocks([order.next() for _ in range(8)], order.block_size)
        optimizer.zero_grad()
        model(x, y).mean().backward()
        optimizer.step()


MARKS = dict(plain=(GREY, 'triangle'), prune=(ORANGE, 'circle'), lowrank=(BLUE, 'square'), int8=(PURPLE, 'diamond'),
             int4=(PURPLE, 'triangle'))


def draw(rows):
    """[(method, amount, MB, bits per byte before, after)] -> a picture: with hollow marks before the recovery."""
    sizes, bits = [row[2] for row in rows], [bits for row in rows for bits in row[3:]]
    room = 0.1 * (max(bits) - min(bits))
    picture = Chart('What fewer weights, or fewer bits for each, cost a run', 'MB', 'held-out bits per byte; hollow: before recovery',
                    (0.75 * min(sizes), 1.05 * max(sizes)), (min(bits) - room, max(bits) + room), right=980)
    for name in dict.fromkeys(row[0] for row in rows):
        colour, kind = MARKS[name]
        mine = [row for row in rows if row[0] == name]
        picture.curve([(row[2], row[3]) for row in mine], colour, kind, dashed=True, hollow=True)
        picture.curve([(row[2], row[4]) for row in mine], colour, kind)
        x, y = picture.place(mine[-1][2], mine[-1][4])
        picture.text(x - 16, y, name, 16, colour, 'end')
    return picture


def main(out_dir, method, keep, recovery, learning_rate):
    if not all(isinstance(share, (int, float)) and 0 < share <= 1 for share in keep):
        raise Failure(f'keep={keep} must be shares above 0 and at most 1')
    methods = dict(plain=(plain, [1]), prune=(prune, keep), lowrank=(lowrank, keep), int8=(rounded, [8]), int4=(rounded, [4]))
    model, _, checkpoint = run.load_run(out_dir)
    settings, tokens = checkpoint['settings'], checkpoint['tokenizer']['name']
    sets = [prepare_wiki.load_data(name, tokens, settings['data_dir']) for name in text.parse_mix(settings['dataset'])]
    read, machine = text.Text(sets, model.config.block_size, seed=0), Machine('cpu', 'float32')
    rows, table = [], ['| | keep, or bits | MB | bits per byte before | after |', '|---|---:|---:|---:|---:|']
    print(*table, sep='\n')
    for name in methods if method == 'all' else ['plain', method]:
        form, amounts = methods[name]
        for amount in amounts:
            model = run.load_run(out_dir)[0]
            size = compress(model, form, amount)
            before = text.bits_per_byte(machine, model, read, most_tokens=2**17)[1]
            recover(model, read.files[0], recovery, learning_rate)
            after = text.bits_per_byte(machine, model, read, most_tokens=2**17)[1]
            rows.append((name, amount, size / 1e6, before, after))
            table.append('| {} | {} | {:.2f} | {:.4f} | {:.4f} |'.format(*rows[-1]))
            print(table[-1], flush=True)
    write_whole(pathlib.Path(out_dir, 'compress.md'), '\n'.join([*table, '']).encode())
    write_whole(pathlib.Path(out_dir, 'compress.svg'), draw(rows).svg().encode())


if __name__ == '__main__':
    main(out_dir, method, keep, recovery, learning_rate)
