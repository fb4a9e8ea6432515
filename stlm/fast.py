"""
Generation on a CPU, where PyTorch's small operations cost as much as the arithmetic: the same tokens, sooner. The model
runs as it stands in model.py or in an idea's file; only its Linears and Norms compute in fewer operations.
"""
import contextlib
import functools
import warnings

import torch
import torch.nn.functional as F

from model import BytePool, Norm, TokenTable
from stlm.console import Failure


def scale_of(weight):
    """(rows, n) -> (rows, 1): a row is about its int8 numbers times its scale."""
    return weight.abs().amax(1, keepdim=True).clamp(min=1e-20) / 127   # a row of zeros stays one


def multiply(x, W):
    """x W' for few rows of x, (..., in) -> (..., out)."""
    is_row = x.numel() == x.size(-1)
    if W.numel() < 2**17 if W.dtype == torch.float32 else is_row:
        return F.linear(x.to(W.dtype), W).float()
    # W x' is faster than x W'; and since one row is multiplied in one thread, it is given twice
    rows = x.flatten(0, -2)                                                         # (rows, in)
    columns = torch.cat((rows, rows)).T if is_row else rows.T                       # (in, rows)
    return (W.float() @ columns).T[:len(rows)].reshape(*x.shape[:-1], -1)


def lay_out(linear, numbers):
    """Let a Linear multiply by its matrix W in these numbers; it loses its own, and W is returned."""
    own, bias = linear.weight.detach(), linear.bias                                 # (out, in)
    if numbers == 'int8':   # x in 7 bits, since with 8 older processors overflow
        zeros = torch.zeros(len(own), dtype=torch.long)
        W = torch.ops.quantized.linear_prepack(torch.quantize_per_channel(own, scale_of(own)[:, 0], zeros, 0, torch.qint8), None)
        product = functools.partial(torch.ops.quantized.linear_dynamic, W_prepack=W, reduce_range=True)
    else:
        W = own.to(getattr(torch, numbers))
        product = functools.partial(multiply, W=W)
    linear.forward = product if bias is None else lambda x: product(x) + bias
    linear.weight = linear.weight if W is own else None
    return W


def lay_out_all(module, numbers):
    for part in module.modules():
        if type(part) is torch.nn.Linear and 'forward' not in vars(part):   # not laid out yet
            lay_out(part, numbers)


def lay_out_table(tokens, numbers):
    """Of a tied table one copy stays, but in int8, whose products can't be asked for a row: that is 1.4 times as much."""
    table, tied = tokens.embedding.weight.detach(), tokens.head.weight is tokens.embedding.weight
    # bfloat16 would move a logit of 12 by up to 0.03; a table has nothing that is too large for float16
    head = lay_out(tokens.head, 'float16' if numbers == 'bfloat16' else numbers)
    if numbers != 'float32':
        scale = scale_of(table) if numbers == 'int8' else torch.ones(len(table), 1)
        rows = (table / scale).round().to(torch.int8) if numbers == 'int8' else head if tied else table.half()
        tokens.embed, tokens.embedding = lambda idx: rows[idx] * scale[idx], None   # (B, T) -> (B, T, C)


def remembered(embed):
    """Let each token be encoded once in a run."""
    vector = functools.cache(lambda token: embed(torch.tensor([[token]])))          # (1, 1, C)
    return lambda idx: torch.cat([vector(i) for i in idx.flatten().tolist()], dim=1).view(*idx.shape, -1)   # (B, T, C)


def norm_of(norm, x):
    """norm(x), of one row in three small operations."""
    if x.numel() > x.size(-1):
        return type(norm).forward(norm, x)
    row = x.flatten()
    return x * norm.weight * (float(torch.dot(row, row)) / len(row) + norm.eps) ** -0.5


@contextlib.contextmanager
def prepare_to_generate(model, dtype, device, rows=1):
    """A context in which the model continues so many texts, and the numbers that its matrices are in; it can't be
    trained any more. One row mostly reads them: bfloat16 takes half the time, with native bfloat16 and without, if
    oneDNN stays away (measured with AVX512 and AVX2)."""
    half, int8 = torch.is_autocast_enabled(device.type), torch.backends.quantized
    # the one will go from PyTorch, whose version is pinned; the other speaks of GPUs
    warnings.filterwarnings('ignore', '.*(quantize_per_channel|TF32 acceleration on top of oneDNN)')
    if dtype == 'int8' and int8.engine == 'none' and 'qnnpack' in int8.supported_engines:   # a Mac
        int8.engine = 'qnnpack'
    if dtype == 'int8' and (device.type != 'cpu' or int8.engine == 'none'):
        raise Failure(f'dtype=int8: {device} has none on this machine; add --device=cpu or choose another dtype')
    if device.type != 'cpu' or half and rows > 1:   # the model's own way
        yield str(torch.get_autocast_dtype(device.type) if half else torch.float32).removeprefix('torch.')
        return
    reads = rows == 1 and torch.backends.cpu.get_cpu_capability() in ('AVX2', 'AVX512')
    numbers = dtype if dtype != 'auto' else 'bfloat16' if reads else 'float32'
    if type(model.tokens) is TokenTable:
        lay_out_table(model.tokens, numbers)
    else:
        lay_out_all(model.tokens, 'float32')   # a byte decoder's matrices are small
    if isinstance(model.tokens, BytePool):
        model.tokens.embed = remembered(model.tokens.embed)
    lay_out_all(model.blocks, numbers)
    with torch.autocast('cpu', enabled=False), torch.backends.mkldnn.flags(enabled=False):
        for norm in [part for part in model.modules() if type(part) is Norm]:
            x = torch.linspace(-1, 2, norm.weight.numel())
            if torch.allclose(norm_of(norm, x), norm(x)):   # not if you changed it
                norm.forward = functools.partial(norm_of, norm)
        yield numbers
