"""
Weights in 8 bits: each row of a matrix becomes whole numbers from -127 to 127 and one scale. convert.py writes runs of
a quarter of the size by it, and files for llama2.c's runq.
"""
import torch


def to_int8(rows):
    """(N, n) floats -> (N, n) int8 and (N) scales: a row is its int8 numbers times its scale."""
    scales = rows.abs().amax(dim=1).clamp(min=1e-20) / 127   # a row of zeros stays one
    return (rows / scales[:, None]).round().to(torch.int8), scales


def int8_checkpoint(checkpoint, weights):
    """A run's checkpoint with its matrices in int8, and {name: scales} of these, as load_run() reads it. What a resume
    needs is left out; what layers share is kept once."""
    names = ('format', 'config', 'idea', 'tokenizer', 'settings', 'iter')
    small = {name: checkpoint[name] for name in names} | dict(model=dict(weights), scales={})
    done = {}   # {where a matrix lies in memory: its int8 form}
    for name, weight in weights.items():
        if weight.dim() == 2:   # norms and biases are small, and stay
            key = weight.data_ptr()
            if key not in done:
                done[key] = to_int8(weight)
            small['model'][name], small['scales'][name] = done[key]
    if checkpoint.get('counts') is not None:   # their logarithms matter: two digits are enough
        small['counts'] = torch.as_tensor(checkpoint['counts']).bfloat16()
    return small
