"""
The log-probability of every choice of many questions, many at once. Of one choice the same, slowly:

    ids = torch.tensor([context + continuation])
    log_prob = -model(ids[:, :-1], ids[:, 1:])[0, -len(continuation):].sum()
"""
from collections import defaultdict

import torch
from torch.nn.utils.rnn import pad_sequence


@torch.no_grad()
def log_probs(model, questions, batch_tokens=4096, progress=lambda done: None):
    """log p(continuation | context), in nats, of each choice of each question, a list of (context, continuation) in
    token ids. Of what is too long for the model the end is read. Choices that read the same, as all of one token, are
    read once. The model must be in eval()."""
    scores = [[0.0] * len(pairs) for pairs in questions]
    rows = defaultdict(list)   # {tokens that are read: [(its question's scores, its number, token after them, tokens scored)]}
    for score, pairs in zip(scores, questions):
        for number, (context, continuation) in enumerate(pairs):
            *read, last = (*context, *continuation)[-model.config.block_size - 1:]
            rows[tuple(read)].append((score, number, last, len(continuation)))

    longest_first = sorted(rows, key=len, reverse=True)
    while longest_first:   # rows of about one length, padded at the end, where no earlier token sees it
        n = batch_tokens // len(longest_first[0]) or 1
        batch, longest_first = longest_first[:n], longest_first[n:]
        h = model.hidden(pad_sequence([torch.tensor(row) for row in batch], batch_first=True))     # (B, T, C)
        predictions = defaultdict(list)   # {(row, place in it, next token): [(scores, number) of each choice that has it]}
        for b, row in enumerate(batch):
            for score, number, last, scored in rows[row]:
                for place, token in enumerate((*row, last)[-scored:], len(row) - scored):
                    predictions[b, place, token].append((score, number))
        b, t, targets = torch.tensor([*predictions]).T                                             # 3 x (N)
        nll = model.tokens.nll(h[b, t][None], targets[None])[0]                                    # (N)
        for nats, choices in zip(nll.tolist(), predictions.values()):
            for score, number in choices:
                score[number] -= nats
        progress(1 - len(longest_first) / len(rows))
    return scores
