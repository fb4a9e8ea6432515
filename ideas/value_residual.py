"""
Value residual: what attention reads at the first layer stays readable at every layer.

Deep in the network a state has become what predicts the next token, and which token it began as is hard to read from
it. So each later layer's values are mixed with the first layer's:
    v_l = (1 - s_l) W_l x_l + s_l v_1        (after arXiv 2410.17897; s_l is learned, one number a layer)
In modded-nanoGPT's log of 2024-11-06 (124M, 3,200 steps) it gained 0.021 nats: 3.3274 without, 3.3065 with it.

Changes: a layer's `value` is wrapped; one number a layer more, next to no computing.
Try:     python train.py config/quick_byte.py --idea=value_residual --out_dir=out/value_residual
Took:    as long as the plain model
Result:  2.660 bits per byte beside 2.668, a tie by the ranges, lower with each of three seeds by 0.005 to 0.011;
         after 600 steps 2.157 beside 2.160, a tie

This file is also the template of an idea of one's own: see docs/ideas.md.
"""
from dataclasses import dataclass

import torch
import torch.nn as nn

import model


@dataclass
class Config(model.Config):
    value_share: float = 0.5   # share of later layers' values that comes from the first layer, at the start; 0 is off


class MixedValue(nn.Module):
    """A layer's projection to values, mixed with what the first layer's gave for the same tokens."""

    def __init__(self, linear, first, share):
        super().__init__()
        self.linear = linear
        self.first = first                                              # a dict that the layers have in common
        self.share = nn.Parameter(torch.full((1,), share)) if share else None   # the first layer has nothing to mix

    def forward(self, x):
        own = self.linear(x)                                            # (B, T, n_kv_head K)
        if self.share is None:
            self.first['value'] = own
            return own
        return torch.lerp(own, self.first['value'], self.share.type_as(own))


class GPT(model.GPT):

    def __init__(self, config, *vocabulary):
        super().__init__(config, *vocabulary)
        if config.value_share == 0:
            return
        first = {}
        for i, block in enumerate(self.blocks):
            block.attn.value = MixedValue(block.attn.value, first, config.value_share if i > 0 else 0)
