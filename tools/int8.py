"""
Weights in 8 bits: each row of a matrix becomes whole numbers from -127 to 127 and one scale. convert.py writes runs of
a quarter of the size by it, and files for llama2.c's runq.
"""
import torch


def to_int8(rows):
    """(N, n) floats -> (N, n) int8 and (N) scales: a row is its int8 numbers times its scale."""
    scales = rows.abs().amax(dim=1).clamp(min=1e-20) / 127   # a row of zeros stays one
    return (rows / scales[:, None]).round().to(torch.int8), scales


def int8_rows(weights):
    """The weights with their matrices in int8, and {name: scales} of these."""
    small, scales = dict(weights), {}
    done = {}   # {where a matrix lies in memory: its int8 form}, since layers may share it
    for name, weight in weights.items():
        if weight.dim() == 2:   # norms and biases are small, and stay
            key = weight.data_ptr()
            if key not in done:
                done[key] = to_int8(weight)
            small[name], scales[name] = done[key]
    return small, scales


def int8_checkpoint(checkpoint, weights):
    """A run's checkpoint in int8, as load_run() reads it, without what a resume needs."""
    names = ('format', 'config', 'idea', 'tokenizer', 'settings', 'iter')
    small = {name: checkpoint[name] for name in names}
    small['model'], small['scales'] = int8_rows(weights)
    if checkpoint.get('counts') is not None:   # their logarithms matter: two digits are enough
        small['counts'] = torch.as_tensor(checkpoint['counts']).bfloat16()
    return small
