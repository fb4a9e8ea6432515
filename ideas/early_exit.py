"""
Early exit: easy tokens leave after the first layers.

All layers learn to predict through the same norm and head; in training they are left out at times, the later the oftener,
so that the first ones are of use (LayerSkip, arXiv 2404.16710, section 4.1, simplified: one layer a step, no curriculum):
    loss = (1 - a) nll_last + a nll_l    with a layer l drawn at each step, in proportion to l
    P(layer l is left out) = layer_dropout * (2^(l / (L - 1)) - 1)
A token is done after exit_layer layers if its likeliest successor is more probable than exit_above (as in CALM, arXiv
2207.07061). The next one that isn't takes it along through the other layers, as if none had left. Evaluation computes all.

Changes: a second loss in training; generation of a single text.
Try:     python train.py config/quick_byte.py --idea=early_exit --exit_above=0.8 --out_dir=out/early_exit
Took:    1.3 minutes beside the plain model's 1.0; it writes 389 tokens/s with exit_above=0.7, the plain model 464
Result:  a tie, 2.667 bits per byte beside 2.668 (2.167 beside 2.160 after 600 steps); slower: the head costs more than two layers
"""
from dataclasses import dataclass

import torch

import model


@dataclass
class Config(model.Config):
    exit_layer: int = 2            # how many layers are the first ones
    exit_above: float = 2.0        # the probability above which a token leaves; above 1 none does
    exit_loss: float = 0.2         # the share of an earlier layer in the loss; 0 is off
    layer_dropout: float = 0.1     # how often the last layer is left out; 0 is off

    def __post_init__(self):
        super().__post_init__()
        if not 0 < self.exit_layer < self.n_layer:
            raise ValueError(f'exit_layer={self.exit_layer} must be above 0 and below n_layer={self.n_layer}')


class Block(model.Block):
    def forward(self, x, angles, cache=None):
        y = super().forward(x, angles, cache)
        if not (self.training and self.skip):
            return y
        return torch.where(torch.rand_like(x[:, :1, :1]) < self.skip, x, y)   # for all of a text, or none of it


class GPT(model.GPT):
    block_class = Block

    def __init__(self, config, *vocabulary):
        super().__init__(config, *vocabulary)
        for i, block in enumerate(self.blocks):
            block.skip = config.layer_dropout * (2**(i / (config.n_layer - 1)) - 1)

    def first_layers(self, idx, caches=None, n=0):
        return self.layers(self.dropout(self.tokens.embed(idx)), caches, last=n or self.config.exit_layer)

    def forward(self, idx, targets):
        if not (self.training and self.config.exit_loss):
            return super().forward(idx, targets)
        layer = 1 + torch.multinomial(torch.arange(1.0, self.config.n_layer), 1).item()
        early = self.first_layers(idx, n=layer)
        nll = [self.tokens.nll(self.norm(x), targets) for x in (self.layers(early, first=layer), early)]
        return torch.lerp(*nll, self.config.exit_loss)

    def best(self, h):   # (B, T, C) -> (B, T), the likeliest token; of byte pooling if it is above 0.5, it is quick to find
        pick = getattr(self.tokens, 'spell', self.tokens.sample)
        return pick(h.flatten(0, 1), temperature=0).view(h.shape[:2])

    def hidden(self, idx, caches=None):
        if self.training or self.config.exit_above > 1:
            return super().hidden(idx, caches)
        n, early = self.config.exit_layer, self.first_layers(idx, caches)
        h = self.norm(early)
        sure = (-self.tokens.nll(h, self.best(h))).exp() > self.config.exit_above           # (B, T)
        if caches:
            early = torch.cat((getattr(caches[n], 'waiting', early[:, :0]), early), dim=1)  # and those that have left
            alone = idx.numel() == 1 and caches[n].length > 0 and sure.item()
            caches[n].waiting = early if alone else early[:, :0]
            if alone:
                return h
        late = self.norm(self.layers(early, caches, first=n)[:, -idx.size(1):])
        return torch.where(sure[..., None], h, late)
