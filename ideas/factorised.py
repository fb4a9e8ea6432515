"""
A factorised table: the usual table for a fraction of its parameters.

A token looks up n_factor numbers, and one matrix for all tokens makes the C of the model of them; on the way out
another makes n_factor numbers of the state, which the same table compares with each token:
    x = U e_token     logits = E D h + bias       E: V x n_factor, U: C x n_factor, D: n_factor x C
(arXiv 1909.11942, section 3.1, where n_factor is 128 at C = 768 and more). It is the plainest rival of byte pooling:
what a token is like is still learned for each token, not read from its spelling, but it has to fit into few numbers.

Changes: the table; V (C - n_factor) - 2 C n_factor parameters fewer, and a softmax of n_factor / C of the FLOPs.
Try:     python train.py --idea=factorised --n_factor=32 --out_dir=out/factorised
Took:    0.48 s a step in the study `embedding` (n_factor=22), byte pooling of as many parameters 0.75, the plain table 0.75
Result:  2.113 bits per byte beside byte pooling's 2.051 and the plain table's 2.062 (3.1, 3.1 and 11.6 million parameters;
         three seeds, one set of rates)
"""
import copy
from dataclasses import dataclass

import torch.nn as nn

import model


@dataclass
class Config(model.Config):
    n_factor: int = 64   # how many numbers the table has for each token; 0 is off

    def __post_init__(self):
        super().__post_init__()
        if self.n_factor and self.embedding != 'table':
            raise ValueError(f'embedding={self.embedding} has no table to factorise: it needs embedding=table')


class FactorisedTable(model.TokenTable):
    """A TokenTable of width n_factor, and the matrices between it and the layers."""

    def __init__(self, config, counts):
        narrow = copy.copy(config)
        narrow.n_embd = config.n_factor
        super().__init__(narrow, counts)
        self.up = nn.Linear(config.n_factor, config.n_embd, bias=False)
        self.down = nn.Linear(config.n_embd, config.n_factor, bias=False)
        for linear in (self.up, self.down):   # so that what comes out is as large as what went in
            nn.init.normal_(linear.weight, std=linear.in_features**-0.5)

    def embed(self, idx):
        return self.up(super().embed(idx))                              # (B, T) -> (B, T, C)

    def nll(self, h, targets):
        return super().nll(self.down(h), targets)

    def log_probs(self, h):
        return super().log_probs(self.down(h))


class GPT(model.GPT):

    def make_tokens(self, spelling, counts):
        if self.config.n_factor:
            return FactorisedTable(self.config, counts)
        return super().make_tokens(spelling, counts)
