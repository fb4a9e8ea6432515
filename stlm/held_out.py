"""
How good is a model on text that it has not seen: bits per byte, and what compressors make of the same text.
"""
import contextlib
import gzip
import lzma
import math

import torch
import torch.distributed as dist

from stlm.batches import count_tokens, load_blocks, open_split
from configurator import Failure


@torch.no_grad()
def evaluate(model, sets, token_bytes, split='val', most_tokens=math.inf, stride=0, batch_size=8,
             autocast=contextlib.nullcontext(), rank=0, world=1, progress=lambda done: None):
    """Held-out nats per token, bits per byte, and all nats, over a split of the data sets
    [(folder, meta)], or its first most_tokens. Windows of block_size begin every `stride` tokens,
    and each predicts what the one before didn't. All bytes are charged: only the very first token,
    an end of text, is not predicted."""
    device, block_size = model.norm.weight.device, model.config.block_size
    nats, n_tokens, n_bytes = torch.zeros((), dtype=torch.float64), 0, 0
    was_training = model.training
    model.eval()
    for folder, meta in sets:
        tokens = open_split(folder, meta, split, block_size)
        n = max(min(len(tokens) - 1, most_tokens), block_size)
        size = int(count_tokens(tokens[1:n + 1], len(token_bytes)) @ token_bytes)
        if n == len(tokens) - 1 and size != meta['splits'][split]['bytes']:
            raise Failure(f'{folder}: {split}.bin and meta.json disagree; delete it and prepare it again')
        ends = [*range(block_size, n, stride or block_size), n]
        windows = list(zip([0, *ends], ends))   # up to where is judged already, where it ends
        for i in range(rank * batch_size, len(windows), world * batch_size):
            batch = windows[i:i + batch_size]
            blocks = [(tokens, end - block_size) for _, end in batch]
            x, y = load_blocks(blocks, block_size, device)
            with autocast:
                nll = model(x, y).cpu().double()                              # (B, T)
            for row, (done, end) in zip(nll, batch):
                nats += row[done - end:].sum()
            progress(min(1, (i + batch_size) / len(windows)))
        n_tokens += n
        n_bytes += size
    model.train(was_training)
    if world > 1:
        nats = nats.to(device)
        dist.all_reduce(nats)
    nats = nats.item()
    return nats / n_tokens, nats / math.log(2) / n_bytes, nats


def compressors(seen, text):
    """What gzip -9 needs for a byte of the text, and xz after the text that was seen: for both, less for that alone."""
    filters = [dict(id=lzma.FILTER_LZMA2, preset=6, dict_size=2**25)]
    alone = lzma.compress(seen, filters=filters)
    both = lzma.compress(seen + text, filters=filters)
    gzip_bytes, xz_bytes = len(gzip.compress(text, 9)), len(both) - len(alone)
    return 8 * gzip_bytes / len(text), 8 * xz_bytes / len(text)
