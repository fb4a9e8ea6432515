"""
A model laid out for one row at a time, which is what generation multiplies. sample.py asks for it; a model that went
through here is not trained any more.
"""
import warnings

import torch


class FewRows(torch.nn.Module):
    """A Linear, for few rows at a time on a CPU. PyTorch multiplies a single row with a matrix in one thread, unless
    it is a batch of products with a part of the matrix each, or a long matrix lies transposed. And W x' is several
    times as fast as x W' when x has 2 to 32 rows."""

    def __init__(self, linear):
        super().__init__()
        self.linear = linear
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.long = linear.out_features > 8 * linear.in_features
        threads = torch.get_num_threads()
        self.parts = threads if linear.out_features % threads == 0 else 1
        weight = linear.weight.detach()
        if self.long:
            self.matrix = weight.T.contiguous()                                   # (in, out)
        else:
            self.matrix = weight.view(self.parts, -1, linear.in_features).mT      # (parts, in, out / parts)

    def forward(self, x):
        rows = x.flatten(0, -2)                                                   # (rows, in)
        if len(rows) > 32 or self.linear.bias is not None:
            return self.linear(x)
        if len(rows) > 1:
            return (self.linear.weight @ rows.T).T.view(*x.shape[:-1], -1)
        if self.long:
            return x @ self.matrix
        return torch.bmm(rows.expand(self.parts, 1, -1), self.matrix).view(*x.shape[:-1], -1)


def prepare_to_generate(model, dtype, device):
    """Trade memory for tokens per second, in place: int8 weights (a scale for each row, and for each vector that
    comes; CPU only), or the same numbers laid out for few rows at a time."""
    parts = [model.blocks]
    if model.config.embedding == 'table':   # a byte decoder's matrices are small
        parts.append(model.tokens)
    if dtype == 'int8':
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')   # that it will be another library's; torch is pinned
            for part in parts:
                torch.ao.quantization.quantize_dynamic(part, {torch.nn.Linear}, torch.qint8, inplace=True)
    elif device.type == 'cpu' and not torch.is_autocast_enabled('cpu'):
        for part in parts:
            for module in [*part.modules()]:
                for name, child in [*module.named_children()]:
                    if isinstance(child, torch.nn.Linear):
                        setattr(module, name, FewRows(child))
