"""
Compress a trained run: what do fewer weights, or fewer bits for each, cost in bits per byte?

Each matrix W within the layers becomes what the method leaves of it, and is trained for some steps in that form:
    prune      its largest numbers, the others are 0                                    (arXiv 1506.02626)
    lowrank    U V of the rank that has so many numbers, nearest by singular values     (arXiv 2405.14159, section 2)
    int8 int4  round(W / s) s, s its row's largest / 127 or 7; gradients pass as if unrounded      (arXiv 2103.13630)

Try:     python ideas/compress.py --out_dir=out/quick --method=prune
Makes:   runs as any other, out/quick-prune-0.5 and so on; out/quick/compress.csv, a line for each
Took:    NOT MEASURED YET (minutes)
Result:  NOT MEASURED YET (bits per byte against size, before and after the training)
"""
out_dir = 'out/quick'     # the run to compress
method = 'prune'          # prune, lowrank, int8 or int4
keep = [0.5, 0.25, 0.1]   # of prune and lowrank, the shares of the numbers to keep, one after another
recovery = 50             # steps of training afterwards, of 8 blocks
learning_rate = 3e-4      # AdamW's; it falls to 0 in a straight line

import csv
import pathlib
import sys
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))
from configurator import configure
if __name__ == '__main__':
    configure(globals(), {0: 'recovery learning_rate'}, dict(method='prune lowrank int8 int4'))

import numpy as np
import torch
from torch.nn.utils.parametrize import register_parametrization, remove_parametrizations

import batches
import prepare_wiki
import run
import tokenizer as tokenizers
from train import evaluate


class Prune(torch.nn.Module):
    def __init__(self, W, keep):
        super().__init__()
        n = max(1, round(keep * W.numel()))
        self.kept = W.abs() >= W.abs().flatten().topk(n).values[-1]
        self.bytes = 4 * n + W.numel() / 8                              # and a bit for each number: is it kept?

    def forward(self, W):
        return W * self.kept


class LowRank(torch.nn.Module):
    def __init__(self, W, keep):
        super().__init__()
        self.rank = max(1, round(keep * W.numel() / sum(W.shape)))
        self.bytes = 4 * self.rank * sum(W.shape)

    def right_inverse(self, W):
        U, S, Vh = torch.linalg.svd(W, full_matrices=False)
        return U[:, :self.rank] * S[:self.rank], Vh[:self.rank]         # (rows, rank), (rank, columns)

    def forward(self, U, V):
        return U @ V


class Rounded(torch.nn.Module):
    def __init__(self, W, bits):
        super().__init__()
        self.largest = 2**(bits - 1) - 1
        self.bytes = bits / 8 * W.numel() + 4 * len(W)                  # and a scale for each row

    def forward(self, W):
        scale = W.detach().abs().amax(dim=1, keepdim=True).clamp(min=1e-20) / self.largest
        return W + ((W / scale).round() * scale - W).detach()


def compress(model, method, keep):
    """Give each matrix within the layers its new form. Returns them, and the bytes that the whole model needs."""
    linears = [module for module in model.blocks.modules() if isinstance(module, torch.nn.Linear)]
    others = sum(p.numel() for p in model.parameters()) - sum(linear.weight.numel() for linear in linears)
    kind, amount = dict(prune=(Prune, keep), lowrank=(LowRank, keep), int8=(Rounded, 8), int4=(Rounded, 4))[method]
    forms = [kind(linear.weight.detach(), amount) for linear in linears]
    for linear, form in zip(linears, forms):
        register_parametrization(linear, 'weight', form)
    return linears, 4 * others + sum(form.bytes for form in forms)


def recover(model, tokens, steps, peak):
    optimizer = torch.optim.AdamW(model.train().parameters(), lr=peak, betas=(0.9, 0.95), weight_decay=0.0)
    order = batches.Order(tokens, model.config.block_size, seed=0)
    for step in range(steps):
        optimizer.param_groups[0]['lr'] = peak * (1 - step / steps)
        model(*batches.load_blocks([order.next() for _ in range(8)], order.block_size, 'cpu')).mean().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    model.eval()


if __name__ == '__main__':
    source, log = pathlib.Path(out_dir), pathlib.Path(out_dir) / 'compress.csv'
    rows = [row for row in csv.reader(log.open()) if row[0] != method] if log.exists() else []
    for share in keep if method in ('prune', 'lowrank') else [1]:
        model, encoding, checkpoint = run.load_run(out_dir)
        sets = [prepare_wiki.load(name, checkpoint['tokenizer']['name'], checkpoint['settings']['data_dir'])
                for name in batches.parse_mix(checkpoint['settings']['dataset'])]
        token_bytes = np.array([len(token or b'') for token in tokenizers.spelling(encoding)])
        linears, size = compress(model, method, share)
        found = [evaluate(model, sets, token_bytes, most_tokens=2**17)[1]]
        recover(model, batches.open_split(*sets[0], 'train', model.config.block_size), recovery, learning_rate)
        found.append(evaluate(model, sets, token_bytes, most_tokens=2**17)[1])
        for linear in linears:
            remove_parametrizations(linear, 'weight', leave_parametrized=True)
        folder = source.with_name(f'{source.name}-{method}' + (f'-{share}' if share < 1 else ''))
        folder.mkdir(exist_ok=True)
        kept = {name: checkpoint.get(name) for name in [*run.CONTENTS, 'counts']} | dict(model=model.state_dict())
        run.save_checkpoint(folder / 'best.pt', kept)
        tokenizers.save(encoding, folder)
        rows.append([method, share, f'{size / 1e6:.2f}', *(f'{bpb:.4f}' for bpb in found)])
        print('| method | share | MB | bits per byte before the training | after |\n|---|---|---|---|---|', *(
            f'| {" | ".join(map(str, row))} |' for row in rows), sep='\n')
        csv.writer(log.open('w', newline='')).writerows(rows)
