"""
Next thought: besides the next token, predict the state that the model will be in a few tokens later.

Section 5.4 of arXiv 2405.14159 proposes to predict in latent space, and leaves open what. Chosen here: the final state
h, n_ahead tokens later, by its direction,
    loss = -log p(next token) + weight * (1 - cos(P h_t, stop(h_t+n)))
as a direction has no scale to be shrunk, and because nothing flows back into what is to be predicted: else all states
could become alike, and easy to predict. Several tokens ahead, since one ahead is what the token's loss asks for
already. P is a matrix of its own, so that h itself doesn't have to resemble the future.

Changes: the loss in training, and C^2 parameters that nothing else uses. Evaluation and generation are the plain model's.
Try:     python train.py config/quick_byte.py --idea=next_thought --out_dir=out/next_thought
Took:    as long as the plain model
Result:  a tie, 2.669 bits per byte beside 2.668
"""
from dataclasses import dataclass

import torch.nn as nn
import torch.nn.functional as F

import model


@dataclass
class Config(model.Config):
    n_ahead: int = 4              # tokens from a state to the one that it is to predict
    thought_weight: float = 0.1   # weight of the predicted state in the loss; 0 is off


class GPT(model.GPT):

    def __init__(self, config, *vocabulary):
        super().__init__(config, *vocabulary)
        if config.thought_weight:
            self.thought = nn.Linear(config.n_embd, config.n_embd, bias=False)
            nn.init.normal_(self.thought.weight, std=0.02)

    def forward(self, idx, targets):
        n, weight = self.config.n_ahead, self.config.thought_weight
        if not (self.training and weight):
            return super().forward(idx, targets)
        h = self.hidden(idx)
        guess, later = self.thought(h[:, :-n]), h[:, n:].detach()       # 2 x (B, T - n, C)
        missed = 1 - F.cosine_similarity(guess.float(), later.float(), dim=-1)              # (B, T - n)
        return self.tokens.nll(h, targets) + weight * missed.mean()
