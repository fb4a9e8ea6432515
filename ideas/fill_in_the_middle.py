"""
Fill in the middle: a left-to-right model that can also write what is missing between two pieces of text.

In training some texts are cut, and what comes after the cut is read first:
    before | after  ->  after' before      (arXiv 2207.14255, section 3: suffix, prefix, middle)
and tokens of `after'` carry a learned mark, added to their vectors. To fill a gap, read what comes after it, marked, then
what comes before it, and go on. As the middle follows its beginning without a seam, no symbols stand between the parts:
so nothing says when a gap is full, as the paper's end symbol does. Cuts lie between tokens, there between characters.
A marked token is written as id + vocab_size, so cache and generation work as they are. Nothing else is new: the other
texts are read left to right as ever, and the paper finds their loss unharmed; that is what to measure.
Of UL2's denoisers (arXiv 2205.05131) this one is short and long gaps. Its prefix-LM, which reads a prefix in both
directions, doesn't fit: keys and values of a cached beginning would change with each token that is added to it.

Changes: the order of some texts in training; n_embd numbers. Left to right nothing changes.
Try:     python train.py config/quick_byte.py --idea=fill_in_the_middle --out_dir=out/fill
         then: model.fill_in(before, after, 20, temperature=0), see run.load_run()
Took:    as long as the plain model
Result:  left to right slightly worse, 2.690 bits per byte beside 2.668: half of the texts were rearranged. In so short a run
         that is not free, as the paper says it is at its size
"""
from dataclasses import dataclass

import torch
import torch.nn as nn

import model


@dataclass
class Config(model.Config):
    fill_share: float = 0.5   # share of the texts that are cut; 0 is off


class GPT(model.GPT):

    def __init__(self, config, *vocabulary):
        super().__init__(config, *vocabulary)
        if config.fill_share:
            self.mark = nn.Embedding(1, config.n_embd)
            nn.init.normal_(self.mark.weight, std=0.02)

    def hidden(self, idx, caches=None):
        if not self.config.fill_share:
            return super().hidden(idx, caches)
        V = self.config.vocab_size
        marks = (idx >= V)[..., None] * self.mark.weight[0]             # (B, T, C)
        x = self.tokens.embed(idx % V)
        return self.norm(self.layers(self.dropout(x + marks.type_as(x)), caches))

    def forward(self, idx, targets):
        if not (self.training and self.config.fill_share):
            return super().forward(idx, targets)
        text = torch.cat((idx, targets[:, -1:]), dim=1)                 # (B, T + 1)
        (B, length), places = text.shape, torch.arange(text.size(1), device=idx.device)
        cut = torch.randint(1, length, (B, 1), device=idx.device)       # what comes after it is read first
        cut = cut * (torch.rand(B, 1, device=idx.device) < self.config.fill_share)   # 0: not cut
        text = text.gather(1, (places + cut) % length)
        after = (cut > 0) & (places < length - cut)                     # (B, T + 1)
        marked = text + after * self.config.vocab_size
        return super().forward(marked[:, :-1], text[:, 1:])

    def fill_in(self, before, after, max_new_tokens, **how):
        """(B, T) ids before and after a gap: yields (B) ids for it, as generate() does."""
        T, most = before.size(1) + after.size(1) + max_new_tokens - 1, self.config.block_size
        if T > most:   # generate() would forget what comes after
            raise ValueError(f'before, after and max_new_tokens={max_new_tokens} need {T} places of block_size={most}')
        return self.generate(torch.cat((after + self.config.vocab_size, before), dim=1), max_new_tokens, **how)
