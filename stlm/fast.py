"""
Generation on a CPU, where PyTorch's small operations cost as much as the arithmetic: the same tokens, sooner.
"""
import contextlib
import functools
import warnings

import torch
import torch.nn.functional as F

from stlm.console import Failure
from model import Attention, Block, Dropout, FeedForward, Norm, TokenTable, attend, rotate

PLAIN = {Block, Attention, FeedForward, Norm, Dropout, torch.nn.Linear, torch.nn.Identity}   # no adapters, no idea's


def scale_of(weight):
    """(rows, n) -> (rows, 1): a row is about its int8 numbers times its scale."""
    return weight.abs().amax(1, keepdim=True).clamp(min=1e-20) / 127   # a row of zeros stays one


def rows_of(weight, numbers):
    """An embedding of these rows, in int8 or bfloat16."""
    scale = scale_of(weight) if numbers == 'int8' else torch.ones(len(weight), 1)
    weight = (weight / scale).round().to(torch.int8) if numbers == 'int8' else weight.half()
    return lambda idx: weight[idx] * scale[idx]                                     # (B, T) -> (B, T, C)


class Product(torch.nn.Module):
    """x W' for few rows of x. W are the matrices of some Linears, one below the other; the Linears lose them."""

    def __init__(self, numbers, *linears):
        super().__init__()
        matrices = [linear.weight.detach() for linear in linears]
        for linear in linears:
            linear.weight = None
        weight = torch.cat(matrices) if len(matrices) > 1 else matrices[0]          # (out, in)
        self.bias, (self.out_features, self.in_features) = linears[0].bias, weight.shape
        if numbers == 'int8':
            zeros = torch.zeros(len(weight), dtype=torch.long)
            with warnings.catch_warnings():
                warnings.simplefilter('ignore')   # PyTorch will drop this; its version is pinned
                weight = torch.quantize_per_channel(weight, scale_of(weight)[:, 0], zeros, 0, torch.qint8)
            self.weight, self.packed = None, torch.ops.quantized.linear_prepack(weight, None)
            self.in_7_bits = torch.backends.quantized.engine != 'qnnpack'   # with 8, processors without VNNI overflow
        else:
            self.weight = weight.to(getattr(torch, numbers))

    def forward(self, x):
        rows = x.flatten(0, -2)                                                     # (rows, in)
        if self.weight is None:   # each row gets a scale as well
            y = torch.ops.quantized.linear_dynamic(rows, self.packed, self.in_7_bits)   # (rows, out)
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
        self.head_size, self.swiglu = attn.head_size, ffn.gate is not None
        self.H, self.n_kv_head = [linear.out_features // self.head_size for linear in (attn.query, attn.key)]
        self.qkv, self.out = product(attn.query, attn.key, attn.value), product(attn.out)
        self.up, self.down = product(*[ffn.gate] * self.swiglu, ffn.up), product(ffn.down)

    def forward(self, x, angles, cache=None, mask=None):
        qkv = self.qkv(norm_of(x, self.norms[0])).unflatten(-1, (-1, self.head_size)).transpose(1, 2)
        qk, v = qkv.split([self.H + self.n_kv_head, self.n_kv_head], dim=1)         # (B, heads, T, K)
        q, k = rotate(qk, angles).split([self.H, self.n_kv_head], dim=1)
        if cache is not None:
            k, v = cache.append(k, v)
        x = x + self.out(attend(q, k, v).transpose(1, 2).flatten(2))                # (B, T, C)
        y = self.up(norm_of(x, self.norms[1]))                                      # (B, T, d_ff), or twice that
        if not self.swiglu:
            return x + self.down(F.gelu(y))
        gate, y = y.chunk(2, dim=-1)                                                # 2 x (B, T, d_ff)
        return x + self.down(F.silu(gate) * y)


def lay_out(module, product):
    """Replace what is multiplied in a module by what multiplies faster."""
    for name, child in [*module.named_children()]:
        if isinstance(child, Block) and child.attn.causal and {type(part) for part in child.modules()} <= PLAIN:
            setattr(module, name, FastBlock(child, product))
        elif isinstance(child, torch.nn.Linear):
            setattr(module, name, product(child))
        else:
            lay_out(child, product)


@contextlib.contextmanager
def prepare_to_generate(model, dtype, device, rows=1):
    """Prepare a model to continue so many texts in this context, and yield the numbers that its matrices are in; it
    can't be trained any more. A row only reads them: in bfloat16 it takes half the time, with native bfloat16 and
    without, if oneDNN stays away (measured with AVX512 and AVX2)."""
    half = torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else None
    int8 = torch.backends.quantized
    if dtype == 'int8' and int8.engine == 'none' and 'qnnpack' in int8.supported_engines:   # a Mac
        int8.engine = 'qnnpack'
    if dtype == 'int8' and (device.type != 'cpu' or int8.engine == 'none'):
        raise Failure(f'dtype=int8: {device} has none on this machine; add --device=cpu or choose another dtype')
    if device.type != 'cpu' or half and rows > 1:
        yield str(half or torch.float32).removeprefix('torch.')
        return
    reads = rows == 1 and torch.backends.cpu.get_cpu_capability() in ('AVX2', 'AVX512')
    numbers = dtype if dtype != 'auto' else 'bfloat16' if reads else 'float32'
    product = functools.cache(functools.partial(Product, numbers))   # what layers share stays one
    tokens = model.tokens
    if type(tokens) is TokenTable:
        weight, tied = tokens.embedding.weight.detach(), tokens.head.weight is tokens.embedding.weight
        # bfloat16 would move a logit of 12 by up to 0.03; a table has nothing that is too large for float16
        tokens.head = Product('float16' if numbers == 'bfloat16' else numbers, tokens.head)
        if numbers != 'float32':
            tokens.embed = rows_of(tokens.head.weight if tied and numbers != 'int8' else weight, numbers)
            tokens.embedding = None
    else:
        lay_out(tokens, functools.partial(Product, 'float32'))   # a byte decoder's matrices are small
    lay_out(model.blocks, product)
    onednn, torch.backends.mkldnn.enabled = torch.backends.mkldnn.enabled, False
    try:
        with torch.autocast('cpu', enabled=False):
            yield numbers
    finally:
        torch.backends.mkldnn.enabled = onednn
