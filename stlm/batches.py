"""
Token files -> batches. Every block of text once in an epoch, in an order that a few integers remember, from one data
set or a mix of several; so a run that goes on reads what it would have read.
"""
import math
import os
import pathlib

import numpy as np
import torch

from configurator import Failure


def parse_mix(dataset):
    """{name: share} of 'simplewiki:3,pydocs:1', or of one name."""
    mix = {}
    for item in dataset.split(','):
        name, _, share = item.partition(':')
        try:
            known, mix[name] = name in mix, float(share or 1)
        except ValueError:
            known = True
        if known or not 0 < mix[name] < math.inf or pathlib.Path(name).name != name:
            raise Failure(f"dataset={dataset}: a name, or a mix of several as 'simplewiki:3,pydocs:1', with shares above 0")
    return mix


def open_split(folder, meta, split, block_size, most=0):
    """The token ids of a data set's split, or its first so many, as an array that stays on the disk."""
    tokens = np.memmap(folder / f'{split}.bin', meta['dtype'], 'r')[:most or None]
    if len(tokens) <= block_size:
        raise Failure(f'{folder}/{split}.bin has {len(tokens)} tokens and one block needs {block_size + 1}: '
             f'give more text{" (--train_tokens)" if most else ""}, or a smaller --block_size')
    return tokens


def count_tokens(tokens, vocab_size):
    """(vocab_size), how often each id occurs; counted in pieces, since numpy makes 8 bytes of each id."""
    counts = np.zeros(vocab_size)
    for piece in np.array_split(tokens, len(tokens) // 2**24 + 1):
        found = np.bincount(piece, minlength=vocab_size)
        if len(found) > vocab_size:
            raise Failure(f'{tokens.filename} has an id of {len(found) - 1}, but there are {vocab_size}; prepare it again')
        counts += found
    return counts


def load_blocks(blocks, block_size, device):
    """The tokens of the blocks [(token file, start)], and the token after each: two (B, T) int64."""
    rows = []
    for tokens, start in blocks:
        if os.path.getsize(tokens.filename) < tokens.nbytes:   # reading on would end the process without a word
            raise Failure(f'{tokens.filename} has become shorter; prepare it again, then go on with --init_from=resume')
        rows.append(tokens[start:start + block_size + 1])
    rows = torch.from_numpy(np.stack(rows).astype(np.int64)).to(device)          # (B, T + 1)
    return rows[:, :-1], rows[:, 1:]


class Order:
    """Every block of a token file once in an epoch, in an order drawn from (seed, epoch), cut elsewhere each
    epoch. Two integers say where we are: the epoch, and how many of its blocks are read."""

    def __init__(self, tokens, block_size, seed, epoch=0, read=0):
        self.tokens, self.block_size, self.seed = tokens, block_size, seed
        self.epoch, self.read = epoch, read
        self.shuffle()

    def shuffle(self):
        rng = np.random.default_rng((self.seed, self.epoch))
        first = rng.integers(min(self.block_size, len(self.tokens) - self.block_size))
        n = (len(self.tokens) - 1 - first) // self.block_size
        self.starts = first + self.block_size * rng.permutation(n)

    def next(self):
        """(token file, where the next block starts)."""
        if self.read >= len(self.starts):
            self.epoch += 1
            self.read = 0
            self.shuffle()
        self.read += 1
        return self.tokens, self.starts[self.read - 1]


class Mix:
    """Blocks of several orders, each from the one that is owed most: as many from each as its share, evenly."""

    def __init__(self, orders, owed=None):
        self.orders = orders
        self.owed = np.zeros(len(orders)) if owed is None else np.array(owed, float).reshape(len(orders))

    def next(self, shares):
        self.owed += shares / np.sum(shares)
        most = self.owed.argmax()
        self.owed[most] -= 1
        return self.orders[most].next()
