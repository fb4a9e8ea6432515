"""
Generation on a CPU, where PyTorch's small operations cost as much as the arithmetic: the same tokens, sooner.
"""
import contextlib
import functools
import warnings

import torch
import torch.nn.functional as F

from model import END, GPT, Attention, Block, Dropout, FeedForward, LayerCache, Norm, TokenTable, attend, choose, rotate
from stlm.console import Failure

PLAIN = {Block, Attention, FeedForward, Norm, Dropout, torch.nn.Linear, torch.nn.Identity}   # no adapters, no idea's


def scale_of(weight):
    """(rows, n) -> (rows, 1): a row is about its int8 numbers times its scale."""
    return weight.abs().amax(1, keepdim=True).clamp(min=1e-20) / 127   # a row of zeros stays one


class Product(torch.nn.Module):
    """x W' for few rows of x. W are the matrices of some Linears, one below the other; the Linears lose them."""

    def __init__(self, numbers, *linears):
        super().__init__()
        matrices = [linear.weight.detach() for linear in linears]
        for linear in linears:
            linear.weight = None
        weight = torch.cat(matrices) if len(matrices) > 1 else matrices[0]          # (out, in)
        self.bias, (self.out_features, self.in_features) = linears[0].bias, weight.shape
        self.weight = None if numbers == 'int8' else weight.to(getattr(torch, numbers))
        if numbers == 'int8':
            zeros = torch.zeros(len(weight), dtype=torch.long)
            rounded = torch.quantize_per_channel(weight, scale_of(weight)[:, 0], zeros, 0, torch.qint8)
            self.packed = torch.ops.quantized.linear_prepack(rounded, None)

    def forward(self, x):
        rows = x.flatten(0, -2)                                                     # (rows, in)
        if self.weight is None:   # x in 7 bits, since with 8 older processors overflow
            y = torch.ops.quantized.linear_dynamic(rows, self.packed, True)         # (rows, out)
        elif len(rows) == 1 and (self.weight.dtype != torch.float32 or self.weight.numel() < 2**16):
            y = F.linear(rows.to(self.weight.dtype), self.weight).float()
        else:   # W x' is faster than x W'; and since one row is multiplied in one thread, it is given twice
            columns = torch.cat((rows, rows)).T if len(rows) == 1 else rows.T       # (in, rows)
            y = (self.weight.float() @ columns).T[:len(rows)]
        return (y if self.bias is None else y + self.bias).reshape(*x.shape[:-1], -1)


def norm_of(x, norm):
    """norm(x), of one row in three small operations."""
    if x.numel() > x.size(-1):
        return norm(x)
    row = x.flatten()
    return x * norm.weight * (float(torch.dot(row, row)) / len(row) + norm.eps) ** -0.5


class FastBlock(torch.nn.Module):
    """A Block with one product for q, k and v, and one for gate and up."""

    def __init__(self, block, product):
        super().__init__()
        attn, ffn, self.norms = block.attn, block.ffn, (block.attn_norm, block.ffn_norm)
        self.head_size = attn.head_size
        self.H, self.n_kv_head = (linear.out_features // self.head_size for linear in (attn.query, attn.key))
        self.qkv, self.out = product(attn.query, attn.key, attn.value), product(attn.out)
        self.gate_up, self.down = product(ffn.gate, ffn.up), product(ffn.down)

    def forward(self, x, angles, cache=None, mask=None):
        qkv = self.qkv(norm_of(x, self.norms[0])).unflatten(-1, (-1, self.head_size)).transpose(1, 2)
        qk, v = qkv.split([self.H + self.n_kv_head, self.n_kv_head], dim=1)         # (B, heads, T, K)
        q, k = rotate(qk, angles).split([self.H, self.n_kv_head], dim=1)
        if cache is not None:
            k, v = cache.append(k, v)
        x = x + self.out(attend(q, k, v, mask=mask).transpose(1, 2).flatten(2))     # (B, T, C)
        gate, up = self.gate_up(norm_of(x, self.norms[1])).chunk(2, dim=-1)         # 2 x (B, T, d_ff)
        return x + self.down(F.silu(gate) * up)


class FastBytePool(torch.nn.Module):
    """BytePool for one text: a token is encoded once, and so is a fork, since the decoder has keys and values too."""

    def __init__(self, tokens):
        super().__init__()
        self.tokens = tokens
        self.encode = functools.cache(lambda token: tokens.embed(torch.tensor([[token]])))

    def embed(self, idx):
        return torch.cat([self.encode(token) for token in idx[0].tolist()], dim=1)  # (1, T) -> (1, T, C)

    def sample(self, h, temperature=1.0, top_k=0, top_p=1.0, generator=None):
        tokens, D = self.tokens, self.tokens.head.in_features
        if temperature == 0 or top_k or top_p < 1:   # of whole tokens
            return tokens.sample(h, temperature=temperature, top_k=top_k, top_p=top_p, generator=generator)
        caches = [LayerCache(tokens.S) for _ in tokens.decoder]
        fork, symbol, i = 0, END, 0
        while fork >= 0:
            x = F.linear(h, tokens.slices.weight[i * D:(i + 1) * D]) + tokens.byte_out.weight[symbol]   # (1, D)
            x = x[:, None]                                                          # (1, 1, D)
            for block, cache in zip(tokens.decoder, caches):
                x = block(x, tokens.rotary(i, 1), cache)
            logits = tokens.head(norm_of(x, tokens.norm))[0] + tokens.log_counts[fork]   # (1, 257)
            symbol = int(choose(logits, temperature, generator=generator))
            fork, i = int(tokens.tree.child[fork, symbol]), i + 1
        return torch.tensor([-1 - fork])


def lay_out(module, product):
    """Replace what is multiplied in a module by what multiplies faster."""
    for name, child in [*module.named_children()]:
        plain = isinstance(child, Block) and {type(part) for part in child.modules()} <= PLAIN
        if plain and child.attn.causal and child.ffn.gate is not None:
            setattr(module, name, FastBlock(child, product))
        elif isinstance(child, torch.nn.Linear):
            setattr(module, name, product(child))
        else:
            lay_out(child, product)


def lay_out_table(tokens, numbers):
    """Of a tied table one copy stays, but in int8, whose products can't be asked for a row: that is 1.4 times as much."""
    table, tied = tokens.embedding.weight.detach(), tokens.head.weight is tokens.embedding.weight
    # bfloat16 would move a logit of 12 by up to 0.03; a table has nothing that is too large for float16
    tokens.head = Product('float16' if numbers == 'bfloat16' else numbers, tokens.head)
    if numbers != 'float32':
        scale = scale_of(table) if numbers == 'int8' else torch.ones(len(table), 1)
        rows = (table / scale).round().to(torch.int8) if numbers == 'int8' else tokens.head.weight if tied else table.half()
        tokens.embed, tokens.embedding = lambda idx: rows[idx] * scale[idx], None   # (B, T) -> (B, T, C)


@contextlib.contextmanager
def prepare_to_generate(model, dtype, device, rows=1):
    """A context in which the model continues so many texts, and the numbers that its matrices are in; it can't be
    trained any more. One row mostly reads them: bfloat16 takes half the time, with native bfloat16 and without, if
    oneDNN stays away (measured with AVX512 and AVX2)."""
    half, int8 = torch.is_autocast_enabled(device.type), torch.backends.quantized
    warnings.filterwarnings('ignore', '.*quantize_per_channel')   # will go from PyTorch, whose version is pinned
    if dtype == 'int8' and int8.engine == 'none' and 'qnnpack' in int8.supported_engines:   # a Mac
        int8.engine = 'qnnpack'
    if dtype == 'int8' and (device.type != 'cpu' or int8.engine == 'none'):
        raise Failure(f'dtype=int8: {device} does not compute in int8 on this machine; add --device=cpu or choose another dtype')
    if device.type != 'cpu' or half and rows > 1:   # the model's own way
        yield str(torch.get_autocast_dtype(device.type) if half else torch.float32).removeprefix('torch.')
        return
    reads = rows == 1 and torch.backends.cpu.get_cpu_capability() in ('AVX2', 'AVX512')
    numbers = dtype if dtype != 'auto' else 'bfloat16' if reads else 'float32'
    if type(model.tokens) is TokenTable:
        lay_out_table(model.tokens, numbers)
    else:
        lay_out(model.tokens, functools.partial(Product, 'float32'))   # a byte decoder's matrices are small
    if type(model) is GPT and model.config.embedding == 'byte_pool' and rows == 1:
        model.tokens = FastBytePool(model.tokens)
    lay_out(model.blocks, functools.cache(functools.partial(Product, numbers)))   # what layers share stays one
    onednn, torch.backends.mkldnn.enabled = torch.backends.mkldnn.enabled, False
    try:
        with torch.autocast('cpu', enabled=False):
            yield numbers
    finally:
        torch.backends.mkldnn.enabled = onednn
