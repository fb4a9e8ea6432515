"""
Mixture of experts: several feed-forwards, of which each token takes the two that suit it.

Parameters are cheap to store and dear to use. A router scores the experts, and only the best are computed:
    p = softmax(W x)     y = sum over the top 2 of p_e / (p_1st + p_2nd) * FFN_e(x)       (arXiv 2401.04088)
Experts are d_ff / 2 wide, so a token costs what it costs without them. Left alone, the router would feed a few experts
and starve the others; the loss is raised by n * sum_e (share of tokens at e) * (mean p_e), 1 where all are fed alike
(arXiv 2101.03961, equation 4). No token is turned away from a full expert, so none depends on another.

Changes: each layer's feed-forward; n_experts / experts_used times its parameters, its FLOPs and a router's.
Try:     python train.py config/quick_byte.py --idea=experts --out_dir=out/experts
Took:    1.3 minutes beside the plain model's 1.0
Result:  worse after 100 steps, 2.696 bits per byte beside 2.668 for the same FLOPs, and 2.646 of a plain model with as many
         parameters and twice the FLOPs; better after 600, 2.131 beside 2.160, but not than the steps of as many minutes, 2.078
"""
from dataclasses import dataclass

import torch
import torch.nn as nn

import model


@dataclass
class Config(model.Config):
    n_experts: int = 8             # feed-forwards in each layer; 1 is off
    experts_used: int = 2          # how many of them a token uses; each is d_ff / experts_used wide
    balance_weight: float = 0.01   # weight of the loss that feeds all experts alike

    def __post_init__(self):
        super().__post_init__()
        if self.d_ff % self.experts_used or not 1 <= self.experts_used <= max(2, self.n_experts):
            raise ValueError(f'experts_used={self.experts_used} must divide d_ff={self.d_ff} and be at most '
                             f'n_experts={self.n_experts}')
        if self.n_experts > 1 and self.share != 'none':
            raise ValueError(f'share={self.share}: experts are each layer\'s own, they need share=none')


class Experts(nn.Module):

    def __init__(self, config):
        super().__init__()
        self.n, self.used = config.n_experts, config.experts_used
        self.router = nn.Linear(config.n_embd, self.n, bias=False)
        width = config.d_ff // self.used
        self.experts = nn.ModuleList(model.FeedForward(config.n_embd, width, config.ffn) for _ in range(self.n))
        for name, p in self.named_parameters():
            adds = name.endswith('down.weight')                         # to the residual stream, as in init_weights()
            nn.init.normal_(p, std=0.02 / (2 * config.n_layer)**0.5 if adds else 0.02)

    def forward(self, x):
        shape, x = x.shape, x.flatten(0, 1)                             # (N, C), the tokens of all texts alike
        p = self.router(x).float().softmax(-1)                          # (N, n)
        best, chosen = p.topk(self.used, dim=-1)                        # (N, used)
        weights = best / best.sum(-1, keepdim=True)
        fed = chosen.flatten().bincount(minlength=self.n) / chosen.numel()
        self.imbalance = self.n * (fed * p.mean(0)).sum()               # 1 if all are fed alike
        y = torch.zeros_like(x)
        for e, expert in enumerate(self.experts):
            rows, place = (chosen == e).nonzero(as_tuple=True)          # the tokens that chose it
            if len(rows) == 0 and not self.training:                    # in training an idle one has a gradient, of 0
                continue
            y = y.index_add(0, rows, (expert(x[rows]) * weights[rows, place, None]).type_as(y))
        return y.view(shape)


class GPT(model.GPT):

    def __init__(self, config, *vocabulary):
        super().__init__(config, *vocabulary)
        if config.n_experts > 1:
            for block in self.blocks:
                block.ffn = Experts(config)

    def forward(self, idx, targets):
        nll = super().forward(idx, targets)
        if not self.training or self.config.n_experts == 1:
            return nll
        return nll + self.config.balance_weight * sum(block.ffn.imbalance for block in self.blocks)
