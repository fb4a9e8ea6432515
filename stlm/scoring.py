"""
The log-probability of every choice of many questions: what choices begin with in common is read once. Of one choice
the same, slowly:

    ids = torch.tensor([context + continuation])
    log_prob = -model(ids[:, :-1], ids[:, 1:])[0, -len(continuation):].sum()
"""
import os.path
from collections import defaultdict

import torch
from torch.nn.utils.rnn import pad_sequence

from model import LayerCache

SMALL_BATCH = 64   # tokens; in a batch of 32 each takes a quarter longer, on a processor with AVX2


class Choice:
    """The token ids of a choice after its context. All but the last are read; the state at place `first` predicts the
    first token that is scored."""

    def __init__(self, context, continuation, block_size):
        self.ids = (*context, *continuation)[-block_size - 1:]
        self.first = len(self.ids) - len(continuation) - 1
        self.log_prob = 0.0


def shared_length(choices):
    """How many tokens all choices begin with, before the last one that each reads; 0 if all read the same."""
    rows = {choice.ids[:-1] for choice in choices}
    common = os.path.commonprefix([row[:-1] for row in rows])   # it takes any sequences, not only paths
    return len(common) if len(rows) > 1 else 0


def keeps_only_keys_and_values(model):
    """Can several texts go on from one text's cache? Not if an idea keeps something else there."""
    caches = [LayerCache(1) for _ in model.blocks]
    model.hidden(torch.zeros(1, 1, dtype=torch.long), caches)
    return all(vars(cache).keys() == {'room', 'length', 'k', 'v'} for cache in caches)


def make_batches(things, length, most_tokens):
    """Yields lists of things of nearly one length, the longest first. Padded to the first, a list has at most
    most_tokens tokens; as long as it has less than SMALL_BATCH, it takes shorter things too."""
    batch, longest = [], 0
    for thing in sorted(things, key=length, reverse=True):
        tokens = len(batch) * longest
        is_full = tokens + longest > most_tokens
        is_shorter = length(thing) < longest
        if batch and (is_full or is_shorter and tokens >= SMALL_BATCH):
            yield batch
            batch = []
        if not batch:
            longest = length(thing)
        batch.append(thing)
    if batch:
        yield batch


def score_rows(model, rows, choices_of_rows, caches, past=0):
    """Read rows of tokens that come after `past` others, and add to the choices of each row what its states say of
    their next tokens. A prediction that several choices have in common is computed once."""
    padded = pad_sequence([torch.tensor(row) for row in rows], batch_first=True)        # (B, T)
    h = model.hidden(padded, caches)                                                    # (B, T, C)
    predictions = defaultdict(list)   # {(row, place in it, next token): the choices that have it}
    for b, (row, choices) in enumerate(zip(rows, choices_of_rows)):
        for choice in choices:
            end = min(past + len(row), len(choice.ids) - 1)
            for place in range(max(past, choice.first), end):
                predictions[b, place - past, choice.ids[place + 1]].append(choice)
    if not predictions:
        return
    b, t, targets = torch.tensor([*predictions]).T                                      # 3 x (N)
    nll = model.tokens.nll(h[b, t][None], targets[None])[0]                             # (N)
    for nats, choices in zip(nll.tolist(), predictions.values()):
        for choice in choices:
            choice.log_prob -= nats


@torch.no_grad()
def log_probs(model, questions, batch_tokens=4096, progress=lambda done: None):
    """log p(continuation | context), in nats, of each choice of each question, a list of (context, continuation) in
    token ids. What a question's choices begin with in common is read once, together with that of other questions, all
    cut to the shortest. Its keys and values then serve each choice's rest, padded at the end to the longest. Choices
    that read the same, as all of one token, are one row. The model must be in eval()."""
    block_size = model.config.block_size
    questions = [[Choice(*pair, block_size) for pair in pairs] for pairs in questions]
    shared = shared_length if keeps_only_keys_and_values(model) else lambda choices: 0
    done, total = 0, sum(map(len, questions))
    for batch in make_batches(questions, shared, batch_tokens):
        cut = shared(batch[-1])
        caches = []
        if cut:
            caches = [LayerCache(cut) for _ in model.blocks]
            score_rows(model, [choices[0].ids[:cut] for choices in batch], batch, caches)
        rests = defaultdict(list)   # {(number of the question, tokens after the cut): the choices that read them}
        for number, choices in enumerate(batch):
            for choice in choices:
                rests[number, choice.ids[cut:-1]].append(choice)
        for part in make_batches(rests, lambda rest: len(rest[1]), batch_tokens):
            numbers, rows = zip(*part)
            choices_of_rows = [rests[rest] for rest in part]
            longer = [cache.rows(list(numbers), cache.length + len(rows[0])) for cache in caches]
            score_rows(model, rows, choices_of_rows, longer, cut)
            done += sum(map(len, choices_of_rows))
            progress(done / total)
    return [[choice.log_prob for choice in choices] for choices in questions]
