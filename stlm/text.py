"""
A run's text: token files -> blocks, each once in an epoch, in an order that a few integers remember, from one data set or
a mix of several; and how good a model is on text that it has not seen.
"""
import gzip
import math
import os
import pathlib

import numpy as np
import torch

from stlm import tokenizer as tokenizers
from stlm.console import Failure, command

XZ_READS = 2**25   # bytes of training text, which is as far as it looks back here


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
            raise Failure(f'{tokens.filename} has the id {len(found) - 1}, but the vocabulary has {vocab_size}; prepare it again')
        counts += found
    return counts


def load_blocks(blocks, block_size):
    """The tokens of the blocks [(token file, start)], and the token after each: two (B, T) int64 on the CPU."""
    rows = []
    for tokens, start in blocks:
        if os.path.getsize(tokens.filename) < tokens.nbytes:   # reading on would end the process without a word
            raise Failure(f'{tokens.filename} has become shorter; prepare it again, then go on with --init_from=resume')
        rows.append(tokens[start:start + block_size + 1])
    rows = torch.from_numpy(np.stack(rows).astype(np.int64))          # (B, T + 1)
    return rows[:, :-1], rows[:, 1:]


class Order:
    """Every block of a token file once in an epoch, in an order drawn from (seed, epoch), cut elsewhere each
    epoch. Two integers say where we are: the epoch, and how many of its blocks are read."""

    def __init__(self, tokens, block_size, seed):
        self.tokens, self.block_size, self.seed = tokens, block_size, seed
        self.begin(epoch=0)

    def begin(self, epoch, read=0):
        self.epoch, self.read = epoch, read
        rng = np.random.default_rng((self.seed, self.epoch))
        first = rng.integers(min(self.block_size, len(self.tokens) - self.block_size))
        n = (len(self.tokens) - 1 - first) // self.block_size
        self.starts = first + self.block_size * rng.permutation(n)

    def next(self):
        """(token file, where the next block starts)."""
        if self.read >= len(self.starts):
            self.begin(self.epoch + 1)
        self.read += 1
        return self.tokens, self.starts[self.read - 1]


class Text:
    """What a run trains on: the token files of its data sets, the order of their blocks, and what the model has to know
    of them. As a part of the training's state it remembers how far each set is read."""

    def __init__(self, sets, block_size, seed, most=0, tokenizer_of=None):
        """sets: [(folder, meta)], as prepare_wiki.load_data() gives them; of each its first `most` tokens (0: all).
        tokenizer_of: (folder, spec) of the run whose tokenizer they must have."""
        self.sets = sets
        folder, self.spec = tokenizer_of or (sets[0][0], sets[0][1]['tokenizer'])
        for other, meta in sets:
            if meta['tokenizer']['sha256'] != self.spec['sha256']:
                again = command('prepare_wiki.py', input='FILE', dataset=other.name.rpartition('-')[0], tokenizer=folder)
                raise Failure(f'{other} has another tokenizer than {folder}; prepare it with that one: {again}')
        self.encoding = tokenizers.load_tokenizer(self.spec, sets[0][0])
        self.spelling = tokenizers.spelling_of(self.encoding)
        self.token_bytes = np.array([len(token or b'') for token in self.spelling])
        self.files = [open_split(*each, 'train', block_size, most) for each in sets]
        self.n_tokens = sum(len(tokens) for tokens in self.files)
        self.orders = [Order(tokens, block_size, seed) for tokens in self.files]
        self.owed = np.zeros(len(sets))   # blocks, by which each set is behind its share

    def counts(self, shares):
        """(V), how often each token occurs in what will be read; shares (sets) of the mix add up to 1."""
        counts = torch.zeros(len(self.spelling))
        for share, tokens in zip(shares, self.files):
            found = count_tokens(tokens, len(self.spelling))
            counts += torch.from_numpy(found * share * self.n_tokens / len(tokens))
        return counts

    def bytes_per_token(self, shares):
        """Of what is read in these shares, (sets), which add up to 1; or in each step's, (sets, steps) -> (steps)."""
        means = []
        for (_, meta), tokens in zip(self.sets, self.files):
            n_bytes = meta['splits']['train']['bytes']
            if len(tokens) < meta['splits']['train']['tokens']:   # only its first ones are read
                n_bytes = count_tokens(tokens, len(self.spelling)) @ self.token_bytes
            means.append(n_bytes / len(tokens))
        return np.array(means) @ shares

    def next(self, shares, n):
        """The next n blocks, [(token file, start)], each from the set that is furthest behind its share."""
        blocks = []
        for _ in range(n):
            self.owed += shares / np.sum(shares)
            most = self.owed.argmax()
            self.owed[most] -= 1
            blocks.append(self.orders[most].next())
        return blocks

    def raw(self, split, most):
        """The bytes of a split of all sets, of each its share of the first `most`."""
        files = self.files if split == 'train' else [open_split(*each, split, 1) for each in self.sets]
        raw, most = b'', most // len(files)
        for tokens in files:
            read = bytearray()
            for piece in np.array_split(tokens, len(tokens) // 2**16 + 1):   # a list of all would take gigabytes
                if len(read) < most:
                    read += b''.join(self.spelling[i] or b'' for i in piece.tolist())
            raw += read[:most]
        return raw

    def identity(self):
        return [[meta['tokenizer']['sha256'], meta['splits']] for _, meta in self.sets]

    def state_dict(self):
        order = [[order.epoch, order.read] for order in self.orders]
        return dict(data=self.identity(), owed=self.owed.tolist(), order=order)

    def load_state_dict(self, state):
        if str(state['data']) != str(self.identity()):
            raise Failure(f'{self.sets[0][0]}: not the data that the run was trained on; it has been prepared again since')
        for order, (epoch, read) in zip(self.orders, state['order'], strict=True):
            order.begin(epoch, read)
        self.owed[:] = state['owed']


@torch.no_grad()
def bits_per_byte(machine, model, text, split='val', most_tokens=math.inf, batch_size=8, stride=0):
    """Nats per token, bits per byte, and all nats, over a split of a text, or the first most_tokens of each of its data sets.
    Windows of block_size begin every `stride` tokens, and each predicts what the one before didn't. All bytes are charged:
    only the very first token, an end of text, is not predicted."""
    block_size, progress = model.config.block_size, machine.watch(f'evaluating {split}')
    nats, n_tokens, n_bytes = torch.zeros((), dtype=torch.float64), 0, 0
    was_training = model.training
    model.eval()
    for folder, meta in text.sets:
        tokens = open_split(folder, meta, split, block_size)
        n = max(min(len(tokens) - 1, most_tokens), block_size)
        size = int(count_tokens(tokens[1:n + 1], len(text.token_bytes)) @ text.token_bytes)
        if n == len(tokens) - 1 and size != meta['splits'][split]['bytes']:
            raise Failure(f'{folder}: {split}.bin and meta.json disagree; delete it and prepare it again')
        ends = [*range(block_size, n, stride or block_size), n]
        windows = list(zip([0, *ends], ends))   # up to where is judged already, where it ends
        for i in range(machine.rank * batch_size, len(windows), machine.world * batch_size):
            batch = windows[i:i + batch_size]
            blocks = [(tokens, end - block_size) for _, end in batch]
            x, y = load_blocks(blocks, block_size)
            with machine.autocast:
                nll = model(x, y).cpu().double()                              # (B, T)
            for row, (done, end) in zip(nll, batch):
                nats += row[done - end:].sum()
            progress(min(1, (i + batch_size) / len(windows)))
        n_tokens += n
        n_bytes += size
    model.train(was_training)
    if machine.world > 1:
        nats = machine.mean(nats.to(machine.device)) * machine.world
    nats = nats.item()
    if not math.isfinite(nats):
        raise Failure(f'the held-out loss is {nats}; lower --learning_rate and --muon_lr. The last checkpoint is kept')
    return nats / n_tokens, nats / math.log(2) / n_bytes, nats


def compressors(seen, text, progress=lambda done: None):
    """Bits that gzip -9 needs for a byte of the text, and xz after the text that was seen: for both, less for that alone;
    None where this Python has no xz. For 30 MB this takes a minute."""
    gzip_bits = 8 * len(gzip.compress(text, 9)) / len(text)
    try:
        import lzma
    except ImportError:
        return gzip_bits, None
    filters = [dict(id=lzma.FILTER_LZMA2, preset=6, dict_size=XZ_READS)]
    sizes, read = [], 0
    for whole in (seen, seen + text):
        xz, size = lzma.LZMACompressor(filters=filters), 0
        for i in range(0, len(whole), 2**20):
            size += len(xz.compress(whole[i:i + 2**20]))
            read += 2**20
            progress(min(1, read / (2 * len(seen) + len(text))))
        sizes.append(size + len(xz.flush()))
    return gzip_bits, 8 * (sizes[1] - sizes[0]) / len(text)
