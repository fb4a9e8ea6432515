"""
Distillation: a small model learns from a trained one's probabilities, not only from which token came.

The token that came is one draw; a teacher says how likely all others were. The student's loss mixes both:
    loss = (1 - a) * -log p(token) + a * -sum_v q_v log p_v     q: the teacher's, p: the student's  (arXiv 1503.02531)
Both at temperature 1 (the paper's is higher). The sum is the divergence of p from q, plus q's entropy, which no student
can change. A table sums over V tokens; byte pooling, for 257 numbers, over the symbols at each fork to the token that came.

Changes: the loss in training, and the teacher's forward pass. What it trains needs no teacher afterwards.
Try:     python train.py config/quick_byte.py --idea=distillation --teacher=out/quick_byte --out_dir=out/student
Took:    1.3 minutes beside the plain model's 1.0, and 2.6 for the teacher
Result:  2.548 bits per byte beside 2.668 after the same text; but the teacher, plain and trained for longer, has 2.385
         after 600 steps 2.022, a plain model of as many FLOPs 2.054, and with the teacher's own training in them, too, 1.790
"""
from dataclasses import dataclass

import torch
import torch.nn.functional as F

import model


@dataclass
class Config(model.Config):
    teacher: str = ''            # folder of a run with the same tokenizer; none is off
    teacher_share: float = 0.5   # share of the loss that compares with the teacher's probabilities


def mixed_loss(mine, theirs, targets, share):
    """(N, n) logits, (N, n) the teacher's, (N) what came -> (N) nats, 0 where that is -1."""
    log_p, q = mine.float().log_softmax(-1), theirs.float().softmax(-1)
    expected = -(q * log_p.masked_fill(q == 0, 0)).sum(-1)              # what is impossible for both counts nothing
    came = F.nll_loss(log_p, targets, reduction='none', ignore_index=-1)
    return torch.lerp(came, expected * (targets >= 0), share)


class StudentTable(model.TokenTable):
    teacher = None   # [the teacher]; in a list, it is no part of the student

    def nll_of_rows(self, h, targets):
        if not (self.training and self.teacher):
            return super().nll_of_rows(h, targets)
        mine, theirs = h.tensor_split([self.head.in_features], dim=-1)
        return mixed_loss(self.head(mine), self.teacher[0].tokens.head(theirs), targets, self.share)


class StudentBytes(model.BytePool):
    teacher = None

    def nll_of_forks(self, h, forks, before, taken):
        if not (self.training and self.teacher):
            return super().nll_of_forks(h, forks, before, taken)
        mine, theirs = h.tensor_split([self.slices.in_features], dim=-1)
        logits = self.decode(mine, forks, before), self.teacher[0].tokens.decode(theirs, forks, before)
        logits = [x.flatten(0, 1) for x in logits]                      # 2 x (n L, 257)
        return mixed_loss(*logits, taken.flatten(), self.share).view_as(taken)


class GPT(model.GPT):

    def make_tokens(self, spelling, counts):
        if self.config.embedding == 'byte_pool':
            tokens = StudentBytes(self.config, spelling, counts)
        else:
            tokens = StudentTable(self.config, counts)
        tokens.share = self.config.teacher_share
        return tokens

    def use_teacher(self, teacher):   # stlm/run.py does, before training
        self.tokens.teacher = [teacher.eval().requires_grad_(False)]

    def forward(self, idx, targets):
        if not (self.training and self.config.teacher):
            return super().forward(idx, targets)
        h = self.hidden(idx)
        theirs = self.tokens.teacher[0].to(h.device).hidden(idx)
        return self.tokens.nll(torch.cat((h, theirs), dim=-1), targets)   # both, side by side
