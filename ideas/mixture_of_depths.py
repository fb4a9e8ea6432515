"""
Mixture of depths: in every second block only some tokens are computed, the others pass by.

A router scores the tokens, and in training the best share of each text goes through the block, attention included:
    x_i + sigmoid(w . x_i) f(x_i) for these, x_i for the others    (after arXiv 2404.02258, equation 1: without a sigmoid)
Who is best can't be known before a text ends: in evaluation and generation a predictor decides, which learns who was
taken (section 3.5). Both are linear here and read the normed state, and half of the tokens go through, there an eighth.

Changes: every second block costs depth_share of what it did. Evaluation reads each text of a batch by itself there.
Try:     python train.py config/quick_byte.py --idea=mixture_of_depths --out_dir=out/mixture_of_depths
Took:    0.8 minutes beside the plain model's 1.0
Result:  a tie, 2.668 bits per byte, at 0.81 of the FLOPs; one layer less is one, too: 2.664 at 0.83, without a router
"""
from dataclasses import dataclass

import torch
import torch.nn.functional as F

import model


@dataclass
class Config(model.Config):
    depth_share: float = 0.5   # share of the tokens that every second block computes; 1 is off


def computed(cache, b):
    """A layer's cache as text b of the batch sees it: the tokens that were computed."""
    row = model.LayerCache(cache.room)
    if cache.length:
        which = cache.computed[b].nonzero()[:, 0]
        row.append(cache.k[b:b + 1, :, which], cache.v[b:b + 1, :, which])
    return row


class Block(model.Block):
    share = 1.0

    def compute(self, x, places, score, angles, cache=None):   # x (B, T, C), with the block's work done at places (B, n)
        where = places[..., None].expand(-1, -1, x.size(-1))            # (B, n, C)
        taken = x.gather(1, where)
        y = super().forward(taken, [angle[places][:, None] for angle in angles], cache)
        weight = score.gather(1, places).sigmoid()[..., None]           # (B, n, 1)
        return x.scatter(1, where, torch.lerp(taken, y.type_as(x), weight.type_as(x)))

    def forward(self, x, angles, cache=None):
        if self.share == 1:
            return super().forward(x, angles, cache)
        seen = self.attn_norm(x).type_as(self.router)
        score = seen @ self.router                                      # (B, T)
        guess = seen.detach() @ self.predictor + self.threshold         # (B, T)
        if self.training:
            places = score.topk(round(self.share * x.size(1)) or 1, dim=1).indices.sort(dim=1).values
            self.missed = F.binary_cross_entropy_with_logits(guess, torch.zeros_like(score).scatter(1, places, 1.0))
            return self.compute(x, places, score, angles)
        cache = cache or model.LayerCache(x.size(1))
        out, new = x.clone(), x.new_zeros(len(x), 2, self.n_kv_head, x.size(1), self.attn.head_size)
        for b, taken in enumerate(guess > 0):                           # (T)
            if taken.any():
                row = computed(cache, b)
                out[b:b + 1] = self.compute(x[b:b + 1], taken.nonzero().T, score[b:b + 1], angles, row)
                new[b, :, :, taken] = torch.cat((row.k, row.v))[:, :, row.length - int(taken.sum()):row.length].type_as(new)
        cache.append(*new.unbind(1))
        cache.computed = torch.cat((getattr(cache, 'computed', guess[:, :0] > 0), guess > 0), dim=1)
        return out


class GPT(model.GPT):
    block_class = Block

    def __init__(self, config, *vocabulary):
        super().__init__(config, *vocabulary)
        for block in self.blocks[1::2] if config.depth_share < 1 else ():
            block.share, block.n_kv_head = config.depth_share, config.n_kv_head
            block.router = torch.nn.Parameter(0.02 * torch.randn(config.n_embd))
            block.predictor, block.threshold = (torch.nn.Parameter(torch.zeros(n)) for n in (config.n_embd, 1))

    def forward(self, idx, targets):
        nll = super().forward(idx, targets)
        return nll + sum(block.missed for block in self.blocks if self.training and block.share < 1)
