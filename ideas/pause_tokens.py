"""
Pause tokens: learned vectors after every n-th token give the model room to think before it goes on.

A state has as many operations to prepare the next token as there are layers. Where the same few learned vectors are put
in after a token, that token's successor is predicted from the last of them, after more operations:
    x_1 ... x_n p_1 ... p_m x_n+1 ...    -log p(x_n+1) is read at p_m     (after arXiv 2310.02226)
There one vector is repeated, at random places of the training text and after a prompt; here several, at fixed places.
Later tokens attend to the pauses, too. They are no tokens: nothing is charged for them, and no text changes.

Changes: (1 + n_pauses / pause_every) times the states in the layers and in the cache; the tables and heads as before.
Try:     python train.py config/quick_byte.py --idea=pause_tokens --out_dir=out/pause_tokens
Took:    1.2 minutes beside the plain model's 1.0
Result:  much worse, 2.777 bits per byte beside 2.668, and 2.676 of a fifth layer, which costs as much. Whether a longer
         training teaches a model to use them was not tried
"""
from dataclasses import dataclass

import torch
import torch.nn as nn

import model


@dataclass
class Config(model.Config):
    pause_every: int = 4   # tokens from one pause to the next
    n_pauses: int = 1      # learned vectors in a pause; 0 is off


class GPT(model.GPT):

    def __init__(self, config, *vocabulary):
        super().__init__(config, *vocabulary)
        if config.n_pauses:
            self.pauses = nn.Embedding(config.n_pauses, config.n_embd)
            nn.init.normal_(self.pauses.weight, std=0.02)
            self.rotary = model.Rotary(self.place(config.block_size) + 1, config)

    def place(self, token):
        """Where a token stands (the 0th at 0) among the tokens and pauses."""
        return token + token // self.config.pause_every * self.config.n_pauses

    def hidden(self, idx, caches=None):
        c = self.config
        if not c.n_pauses:
            return super().hidden(idx, caches)
        past = caches[0].length if caches else 0                        # tokens and pauses
        period = c.pause_every + c.n_pauses
        past_tokens = past // period * c.pause_every + past % period
        places = self.place(past_tokens + torch.arange(idx.size(1) + 1, device=idx.device)) - past   # (T + 1)
        x = self.tokens.embed(idx)                                      # (B, T, C)
        slots = torch.arange(past, past + int(places[-1]), device=idx.device)   # of all that is put in now
        pauses = self.pauses((slots % period - c.pause_every).clamp(0)).type_as(x)          # (slots, C)
        x = pauses.expand(len(x), -1, -1).index_copy(1, places[:-1], x)
        h = self.norm(self.layers(self.dropout(x), caches))
        return h[:, places[1:] - 1]                                     # the last before each next token
