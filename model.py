"""
The network: a Llama-style transformer over tokens (the "modern transformer" of arXiv 2405.14159,
section 4), in chapters: 1. the transformer over a token table; 2. byte pooling, which replaces that
table; 3. layers that share weights; 4. generation. At a first reading 2 and 3 can wait. A single
call is all that training and evaluation need:
    nll = model(idx, targets)      # (B, T), (B, T) -> (B, T) nats: -log p(target | idx so far)

Letters, the same in every comment: B batch, T tokens, C model width, H heads, K head size, V
vocabulary, P positions so far (T of them are new). Chapter 2 adds: M tokens in any order, n of them
in one group, L symbols or forks of each, S the most of these, D width of the byte blocks, N forks.
"""
import math
from collections import Counter
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint as forget_and_recompute

# -------------------------------------------------------------------------------------------
# 1. The transformer over a token table


@dataclass
class Config:
    """A model's shape. The first two fields come from the tokenizer; the others are settings of
    train.py, with these comments."""
    CHOICES = dict(ffn='swiglu gelu', embedding='table byte_pool', share='none ffn block')

    vocab_size: int = 4096         # how many token ids there are
    max_bytes: int = 16            # the most bytes of a token
    block_size: int = 256          # context, in tokens
    n_layer: int = 4               # blocks of attention and feed-forward
    n_head: int = 4                # attention heads
    n_kv_head: int = 4             # key/value heads; fewer than n_head is grouped-query attention
    n_embd: int = 128              # width
    d_ff: int = 384                # width of the feed-forward
    ffn: str = 'swiglu'            # kind of feed-forward: swiglu or gelu
    tie_embeddings: bool = True    # one table for input and output
    output_bias: bool = False      # a number added to each token's logit, at first log(count + 1)
    rope_base: float = 10000.0     # RoPE turns pair i by rope_base^(-2i/K) radians a token
    norm_eps: float = 1e-5         # added to the mean square before its root
    embedding: str = 'table'       # table; or byte_pool: no tables, tokens are spelled in and out
    n_byte_embd: int = 128         # byte_pool: width of its encoder and decoder
    n_byte_head: int = 4           # byte_pool: their attention heads
    n_encoder_layer: int = 1       # byte_pool: blocks that read a token's bytes
    n_decoder_layer: int = 2       # byte_pool: blocks that spell the next token
    share: str = 'none'            # what layers have in common: none, ffn, or block (attention too)
    share_every: int = 0           # how many consecutive layers share one copy; 0: all
    lora_rank: int = 0             # rank of LoRA, a layer's own change to its matrices; 0: none

    def __post_init__(self):
        for name, known in self.CHOICES.items():
            if getattr(self, name) not in known.split():
                raise ValueError(f"{name}='{getattr(self, name)}' must be one of: {known}")
        # rotary positions turn a head's numbers in pairs
        if self.n_embd % (2 * self.n_head):
            raise ValueError(f'n_embd={self.n_embd} must be a multiple of 2 * n_head={2 * self.n_head}')
        if self.n_head % self.n_kv_head:
            raise ValueError(f'n_head={self.n_head} must be a multiple of n_kv_head={self.n_kv_head}')
        if self.n_byte_embd % (2 * self.n_byte_head):
            raise ValueError(f'n_byte_embd={self.n_byte_embd} must be a multiple of '
                             f'2 * n_byte_head={2 * self.n_byte_head}')
        layers = max(self.n_layer, self.n_encoder_layer, self.n_decoder_layer)
        if layers > 200:   # making thousands would take minutes and all memory
            raise ValueError(f'{layers} layers are more than 200')
        if self.embedding == 'byte_pool' and self.max_bytes > 16:
            raise ValueError(f'max_bytes={self.max_bytes} is above 16: byte_pool takes gpt2-16 or bpe<N>')


class Norm(nn.RMSNorm):
    """x / sqrt(mean(x^2) + eps) * weight, arXiv 1910.07467, in the matrix products' dtype."""

    def forward(self, x):
        y = super().forward(x)
        if torch.is_autocast_enabled(x.device.type):
            y = y.to(torch.get_autocast_dtype(x.device.type))   # once here; else each product casts
        return y


class Dropout(nn.Module):
    """Inverted dropout whose p is a tensor: a schedule may move it without recompiling the model,
    if set() had its largest p before compiling (`active` is a constant there)."""

    def __init__(self):
        super().__init__()
        self.register_buffer('p', torch.zeros(()), persistent=False)
        self.active = False   # once True, it stays so; a model that never drops draws no random numbers

    def set(self, p):
        self.p.fill_(p)
        self.active = self.active or p > 0

    def forward(self, x):
        if not (self.training and self.active):
            return x
        keep = torch.rand_like(x, dtype=torch.float32) >= self.p   # bfloat16 is too coarse for p
        return x * keep / (1 - self.p)


class Rotary(nn.Module):
    """cos and sin of position * base^(-2i/K), from position `past` on: RoPE, arXiv 2104.09864."""

    def __init__(self, block_size, config):
        super().__init__()
        K = config.n_embd // config.n_head
        frequencies = config.rope_base ** (-torch.arange(0, K, 2).float() / K)   # (K/2)
        angles = torch.outer(torch.arange(block_size).float(), frequencies)      # (block_size, K/2)
        self.register_buffer('cos', angles.cos(), persistent=False)
        self.register_buffer('sin', angles.sin(), persistent=False)

    def forward(self, past, T):
        return self.cos[past:past + T], self.sin[past:past + T]                  # 2 x (T, K/2)


def rotate(x, angles):
    """Turn the pairs (i, i + K/2) of x (B, H, T, K) by the angles of their positions. We pair
    halves, not neighbours, as Hugging Face's Llama does: its weights fit ours one to one."""
    cos, sin = angles                                                   # (T, K/2) each
    a, b = x.chunk(2, dim=-1)                                           # 2 x (B, H, T, K/2)
    turned = torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)  # (B, H, T, K)
    return turned.type_as(x)


def attend(q, k, v, causal=True, mask=None):
    """softmax(q k' / sqrt(K)) v, without ever holding all of q k'.
    (B, H, T, K), 2 x (B, n_kv_head, P, K) -> (B, H, T, K): several heads of q may share a key.

    The T queries belong to the last T of P positions. Causal attention sees no position after a
    query's own. Where there is a mask, a query sees only where it is True."""
    T, P = q.size(2), k.size(2)
    if causal and T == P and mask is None:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    if causal and T > 1:   # PyTorch's own causal mask is for T = P
        not_later = torch.ones(T, P, dtype=torch.bool, device=q.device).tril(P - T)
        mask = not_later if mask is None else mask & not_later
    return F.scaled_dot_product_attention(q, k, v, mask, enable_gqa=True)


class Attention(nn.Module):
    """Grouped-query attention, arXiv 2305.13245: n_head queries share n_kv_head keys and values."""

    def __init__(self, config, causal):
        super().__init__()
        self.causal = causal
        self.head_size = config.n_embd // config.n_head
        kv_width = config.n_kv_head * self.head_size
        self.query = nn.Linear(config.n_embd, config.n_embd, bias=False)
        self.key = nn.Linear(config.n_embd, kv_width, bias=False)
        self.value = nn.Linear(config.n_embd, kv_width, bias=False)
        self.out = nn.Linear(config.n_embd, config.n_embd, bias=False)

    def heads(self, x):
        """(B, T, H K) -> (B, H, T, K)"""
        return x.unflatten(-1, (-1, self.head_size)).transpose(1, 2)

    def forward(self, x, angles, cache=None, mask=None):
        q = rotate(self.heads(self.query(x)), angles)                   # (B, T, C) -> (B, H, T, K)
        k = rotate(self.heads(self.key(x)), angles)                     # (B, n_kv_head, T, K)
        v = self.heads(self.value(x))                                   # (B, n_kv_head, T, K)
        if cache is not None:   # in generation: T new tokens, and those that were read before them
            k, v = cache.append(k, v)                                   # 2 x (B, n_kv_head, P, K)
        y = attend(q, k, v, self.causal, mask)                          # (B, H, T, K)
        return self.out(y.transpose(1, 2).flatten(2))                   # (B, T, C)


class FeedForward(nn.Module):
    """SwiGLU, arXiv 2002.05202: down(silu(gate(x)) * up(x)); or GPT-2's: down(gelu(up(x)))."""

    def __init__(self, width, d_ff, kind):
        super().__init__()
        self.gate = nn.Linear(width, d_ff, bias=False) if kind == 'swiglu' else None
        self.up = nn.Linear(width, d_ff, bias=False)
        self.down = nn.Linear(d_ff, width, bias=False)

    def forward(self, x):
        if self.gate is None:
            return self.down(F.gelu(self.up(x)))
        return self.down(F.silu(self.gate(x)) * self.up(x))


class Block(nn.Module):
    """Attention mixes what other tokens know into a token (causal: earlier ones), the feed-forward
    changes each token on its own; both add to the token's state x."""

    def __init__(self, config, dropout, causal=True):
        super().__init__()
        self.attn_norm = Norm(config.n_embd, eps=config.norm_eps)
        self.attn = Attention(config, causal)
        self.ffn_norm = Norm(config.n_embd, eps=config.norm_eps)
        self.ffn = FeedForward(config.n_embd, config.d_ff, config.ffn)
        self.dropout = dropout

    def forward(self, x, angles, cache=None, mask=None):
        x = x + self.dropout(self.attn(self.attn_norm(x), angles, cache, mask))
        return x + self.dropout(self.ffn(self.ffn_norm(x)))


@torch.compiler.assume_constant_result
def most_logits(device):
    """(logits made at a time, logits kept for the gradient). On a GPU both are a quarter of its
    memory, at up to 16 bytes each; elsewhere 64 MB, near a CPU's cache, and 512 MB."""
    if device.type == 'cuda':
        return 2 * [torch.cuda.get_device_properties(device).total_memory // 64]
    return 2**24, 2**27


class TokenTable(nn.Module):
    """Tokens in and out through the usual tables: a row of C numbers for each of the V tokens."""

    def __init__(self, config, counts):
        super().__init__()
        self.embedding = nn.Embedding(config.vocab_size, config.n_embd)
        self.head = nn.Linear(config.n_embd, config.vocab_size, bias=config.output_bias)
        if config.tie_embeddings:
            self.head.weight = self.embedding.weight
        nn.init.normal_(self.embedding.weight, std=0.02)
        nn.init.normal_(self.head.weight, std=0.02)
        if config.output_bias:   # at first a token is as likely as it is frequent
            self.head.bias.data.copy_(counts.log1p())

    def embed(self, idx):
        return self.embedding(idx.to(self.embedding.weight.device, non_blocking=True))   # (B, T, C)

    def nll(self, h, targets):
        """(B, T, C) states, (B, T) targets -> (B, T) nats. The (B*T, V) logits would be the
        largest tensor of the step by far: they are made some rows at a time, and if they are too
        many to keep, they are forgotten and made again for the gradient."""
        V = self.head.out_features
        at_once, kept = most_logits(h.device)
        rows = at_once // V + 1
        targets = targets.to(h.device, non_blocking=True)
        pieces = zip(h.flatten(0, 1).split(rows), targets.flatten().split(rows))
        if targets.numel() * V <= kept:
            nll = [self.nll_of_rows(*piece) for piece in pieces]
        else:
            nll = [forget_and_recompute(self.nll_of_rows, *piece, use_reentrant=False) for piece in pieces]
        return torch.cat(nll).view_as(targets)

    def nll_of_rows(self, h, targets):
        return F.cross_entropy(self.head(h), targets, reduction='none')  # (rows, C), (rows) -> (rows)

    def log_probs(self, h):
        """(B, C) states -> (B, V) log-probabilities of every next token."""
        return self.head(h).float().log_softmax(-1)

    def sample(self, h, **sampling):
        """(B, C) states -> (B) ids of next tokens; `sampling` as in choose(), chapter 4."""
        return choose(self.log_probs(h), **sampling).cpu()


class GPT(nn.Module):
    """Tokens in; out comes, for each of them, -log p of the token after it. Token ids stay on the
    CPU. `spelling` has each token's bytes by id, for byte pooling; `counts` (V) how often each
    occurs in the training text, from which byte pooling and an output bias start."""
    block_class = Block   # an idea may bring its own

    def __init__(self, config, spelling=None, counts=None):
        super().__init__()
        if counts is None:
            counts = torch.zeros(config.vocab_size, device='cpu')
        self.config = config
        self.dropout = Dropout()
        self.tokens = self.make_tokens(spelling, counts)
        self.blocks = nn.ModuleList(self.block_class(config, self.dropout) for _ in range(config.n_layer))
        share_matrices(self.blocks, config)                             # chapter 3
        self.norm = Norm(config.n_embd, eps=config.norm_eps)
        self.rotary = Rotary(config.block_size, config)
        self.init_weights()

    def make_tokens(self, spelling, counts):
        if self.config.embedding == 'byte_pool':
            return BytePool(self.config, spelling, counts)              # chapter 2
        return TokenTable(self.config, counts)

    def init_weights(self):
        """Matrices start normal with std 0.02, as tables do; with 0.02 / sqrt(2 n_layer) where they
        add to x, so that x doesn't grow with depth (GPT-2, section 2.3). Norms start at 1."""
        for module in self.blocks.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.02)
        for block in self.blocks:
            for adds_to_x in (block.attn.out, block.ffn.down):
                linear = getattr(adds_to_x, 'linear', adds_to_x)        # that of a LoRA
                nn.init.normal_(linear.weight, std=0.02 / math.sqrt(2 * self.config.n_layer))

    def hidden(self, idx, caches=None):
        """(B, T) token ids -> (B, T, C) final states; with caches, idx continues what they hold."""
        x = self.dropout(self.tokens.embed(idx))                        # (B, T) -> (B, T, C)
        return self.norm(self.layers(x, caches))

    def layers(self, x, caches=None, first=0, last=None):
        """(B, T, C) -> (B, T, C), after all layers, or after those from `first` to before `last`."""
        angles = self.rotary(caches[first].length if caches else 0, x.size(1))
        for i in range(len(self.blocks))[first:last]:
            x = self.blocks[i](x, angles, caches[i] if caches else None)
        return x

    def forward(self, idx, targets):
        """(B, T) token ids and the tokens that follow them -> (B, T) -log p(target) in nats."""
        return self.tokens.nll(self.hidden(idx), targets)

    def compile(self, **how):
        """torch.compile, in place: the layers as one graph, byte pooling a group of tokens at a time."""
        if self.config.embedding == 'byte_pool':
            self.tokens.compile_groups(**how)
        super().compile(**how)

    @torch.no_grad()
    def log_probs(self, idx):
        """(B, T) token ids -> (B, V), the log-probability of every token after them."""
        return self.tokens.log_probs(self.hidden(idx[:, -self.config.block_size:])[:, -1])

    @torch.inference_mode()
    def generate(self, idx, max_new_tokens, **sampling):
        """Continue (B, T) token ids, T >= 1: yields (B) ids, max_new_tokens times; `sampling` as in
        choose(), chapter 4. When the context outgrows block_size, only its last block_size / 2
        tokens are kept and read again from position 0: once in block_size / 2 tokens."""
        context, caches = idx, None
        for _ in range(max_new_tokens):
            if context.size(1) > self.config.block_size:
                context, caches = context[:, -(self.config.block_size // 2):], None
            if caches is None:
                idx, caches = context, [LayerCache(self.config.block_size) for _ in self.blocks]
            h = self.hidden(idx, caches)[:, -1]                         # (B, C)
            token = self.tokens.sample(h, **sampling)
            yield token
            idx = token[:, None]                                        # (B) -> (B, 1)
            context = torch.cat((context, idx), dim=1)

    def adamw_matrices(self):
        """The matrices that AdamW trains even where Muon trains the others: tables, the head, and
        LoRA's, for which AdamW was better."""
        found = [self.tokens.head.weight]
        for module in self.modules():
            if isinstance(module, nn.Embedding):
                found.append(module.weight)
            if isinstance(module, LoRA):
                found += [module.A.weight, module.B]
        return list(dict.fromkeys(found))   # a tied table only once

    def count_parameters(self):
        """{part: parameters}; a tensor used twice counts once."""
        tokens = 'byte pooling' if self.config.embedding == 'byte_pool' else 'token tables'
        part_of = dict(tokens=tokens, A='LoRA', B='LoRA', attn='attention', ffn='feed-forward',
                       attn_norm='norms', ffn_norm='norms', norm='norms')
        parts = Counter()
        for path, p in self.named_parameters():   # which yields a shared tensor once
            words = path.split('.')
            names = [name for word, name in part_of.items() if word in words]   # the first counts
            parts[names[0] if names else words[0]] += p.numel()   # an idea's own: by its first word
        return dict(parts)


# -------------------------------------------------------------------------------------------
# 2. Byte pooling: tokens in and out by their spelling (arXiv 2405.14159, section 5.2; the tree is ours)
#
# A token is its bytes, then END. The encoder reads them and pools them into a vector of C: no
# embedding table. The decoder is given the state h and spells the next token: no softmax over the
# vocabulary. It walks down the tree of the vocabulary. Of the five tokens '', c, ca, cat, dog
#     fork 0, after the prefix '':  END, c or d        ''  takes END at 0
#     fork 1, after the prefix c:   END or a           c   takes c at 0, END at 1; dog takes d at 0
#     fork 2, after the prefix ca:  END or t           ca  takes c, a, END; cat takes c, a, t
# At a fork it chooses among the symbols that can follow. Elsewhere only one can (o and g of dog):
# nothing is computed and nothing charged. So -log p(token) is the exact sum over its forks, the
# probabilities of all tokens sum to one, and what no token has is impossible.

END = 256   # the symbol after a token's last byte; the end of a text is the empty token, only END


class Tree(NamedTuple):
    """The tree of V tokens with N forks, as integers, which stay on the CPU as token ids do."""
    symbols: torch.Tensor   # (V, S), a token's bytes, then END and END again
    length: torch.Tensor    # (V), how many symbols it has, with one END
    n_forks: torch.Tensor   # (V), how many forks it passes; 0: the id has no token
    forks: torch.Tensor     # (V, S), which forks these are, then zeros
    taken: torch.Tensor     # (V, S), which symbols it takes there, then -1
    place: torch.Tensor     # (N), which of a token's symbols is chosen at the fork, from 0 on
    child: torch.Tensor     # (N, 257), the fork that a symbol leads to; or a token, as -1 - id


def grow_tree(spelling, counts, S):
    """The tree, and for each fork the log counts of what follows, (N, 257), -inf for what can't.
    `spelling` has each token's bytes by id, b'' for the end of a text, None for an id without a
    token; `counts` (V) how often each occurs in the training text.

    All tokens walk from the empty prefix, a symbol at a time. One that has ended goes on with END
    after END, which is never a fork. At the right is what the five tokens above give at place 1,
    where `prefix` is [2, 0, 0, 0, 1]: '' has spelled END; c, ca, cat have spelled c; dog has d."""
    ids = torch.tensor([i for i, token in enumerate(spelling) if token is not None])    # (M)
    padded = [[*(token or b''), *[END] * (S - len(token or b''))] for token in spelling]
    symbols = torch.tensor(padded)                                                      # (V, S)
    n_forks = torch.zeros(len(spelling), dtype=torch.long)
    forks, taken, places = torch.zeros_like(symbols), torch.full_like(symbols, -1), []
    prefix = torch.zeros(len(ids), dtype=torch.long)          # (M), ids of what is spelled so far
    for place in range(S):
        symbol = symbols[ids, place]                          # [END, END, a, a, o], (M)
        step = 257 * prefix + symbol                          # (M), both as one number
        steps, next_prefix = step.unique(return_inverse=True)      # next_prefix: [3, 1, 0, 0, 2], (M)
        start = steps // 257                                  # [0, 0, 1, 2], (steps)
        is_fork = start.bincount() > 1                        # [True, False, False], (prefixes)
        fork_id = len(places) + is_fork.cumsum(0) - 1         # [1, 1, 1], (prefixes), of forks alone
        places += [place] * int(is_fork.sum())
        chooses = is_fork[prefix]                             # [False, True, True, True, False], (M)
        tokens = ids[chooses]                                 # [1, 2, 3]
        forks[tokens, n_forks[tokens]] = fork_id[prefix[chooses]]
        taken[tokens, n_forks[tokens]] = symbol[chooses]
        n_forks[tokens] += 1
        prefix = next_prefix
    child = torch.zeros(len(places), 257, dtype=torch.long)
    counted = torch.zeros(len(places), 257, dtype=torch.double)
    for i in range(S - 1):
        tokens = (n_forks > i).nonzero()[:, 0]
        at = forks[tokens, i], taken[tokens, i]
        is_last = n_forks[tokens] == i + 1
        child[at] = torch.where(is_last, -1 - tokens, forks[tokens, i + 1])
        counted.index_put_(at, counts[tokens].double() + 1, accumulate=True)   # so none is impossible
    length = (symbols != END).sum(1) + 1
    tree = Tree(symbols, length, n_forks, forks, taken, torch.tensor(places), child)
    return tree, counted.log().to(torch.get_default_dtype())


def by_size(sizes, round_to, most, function):
    """Group M items by their (M) sizes, above 0, rounded up to a multiple of round_to or to `most`,
    and call function(size, indices (n)) -> (n, ...) for each group. Returns all results, (M, ...),
    and which of these is each item's, (M)."""
    sizes = ((sizes + round_to - 1) // round_to * round_to).clamp(max=most)
    order = sizes.argsort(stable=True)   # stable: the same order, so the same sums, always
    groups = enumerate(order.split(sizes.bincount().tolist()))   # a group's number is its size
    results = [function(size, which) for size, which in groups if len(which) > 0]
    return torch.cat(results), order.argsort()


class BytePool(nn.Module):
    """Has the methods of TokenTable, without a table. Its weights keep PyTorch's own
    initialisation: embedded bytes (std 1) and what `slices` makes of h have a comparable size, so
    that the decoder hears both from the start."""

    def __init__(self, config, spelling, counts):
        super().__init__()
        if len(spelling or ()) != config.vocab_size:
            raise ValueError(f"embedding='byte_pool' needs the spelling of {config.vocab_size} tokens, "
                             f'not of {len(spelling or ())}: GPT(config, spelling)')
        C, D, S = config.n_embd, config.n_byte_embd, config.max_bytes + 1
        heads, no_dropout = config.n_byte_head, nn.Identity()
        small = Config(n_embd=D, n_head=heads, n_kv_head=heads, d_ff=3 * D, ffn=config.ffn,
                       rope_base=config.rope_base, norm_eps=config.norm_eps)
        self.S, self.compiled = S, {}
        self.rotary = Rotary(S, small)
        self.byte_in = nn.Embedding(257, D)
        self.encoder = nn.ModuleList(
            Block(small, no_dropout, causal=False) for _ in range(config.n_encoder_layer))
        self.pool = nn.Linear(D, C, bias=False)
        self.slices = nn.Linear(C, (S - 1) * D, bias=False)   # the S-th symbol can only be END
        self.byte_out = nn.Embedding(257, D)
        self.decoder = nn.ModuleList(Block(small, no_dropout) for _ in range(config.n_decoder_layer))
        self.norm = Norm(D, eps=config.norm_eps)
        self.head = nn.Linear(D, 257, bias=False)
        with torch.device('cpu'):   # also where the weights are made on another device
            self.tree, log_counts = grow_tree(spelling, counts, S)
        # not saved: vocabulary and counts make them again
        self.register_buffer('log_counts', log_counts.to(self.head.weight.device), persistent=False)

    @property
    def round_to(self):
        """Lengths are rounded up to a multiple of this, so that more tokens form a group: a GPU
        takes as long for a small product as for a larger one."""
        return 1 if self.head.weight.device.type == 'cpu' else 4

    def move(self, x):
        """To the weights' device. Out of pinned memory a GPU copies without a wait of the CPU."""
        device = self.byte_in.weight.device
        return x.pin_memory().to(device, non_blocking=True) if device.type == 'cuda' else x.to(device)

    def compile_groups(self, **how):
        """Compile the two methods that groups run, one graph for all sizes of a group above 1."""
        for name in 'encode', 'nll_of_forks':   # the class's: a copy has its own weights
            self.compiled[name] = torch.compile(getattr(type(self), name), dynamic=True, **how)

    def run_group(self, name, *tensors):
        """What the method of that name makes of the (n, ...) tensors of a group. torch.compile makes a
        graph of its own for n = 1: there a single token is given twice."""
        if name not in self.compiled:
            return getattr(self, name)(*tensors)
        if len(tensors[0]) == 1:
            return self.compiled[name](self, *(torch.cat((x, x)) for x in tensors))[:1]
        return self.compiled[name](self, *tensors)

    @torch.compiler.disable   # how many groups there are differs from step to step
    def embed(self, idx):
        """(B, T) ids -> (B, T, C). A vector depends on nothing but its token, so each distinct token
        is encoded once."""
        tokens, where = idx.unique(return_inverse=True)                 # (M), (B, T)
        lengths = self.tree.length[tokens]                              # (M)

        def encode(L, which):
            symbols = self.move(self.tree.symbols[tokens[which], :L])   # (n, L)
            return self.run_group('encode', symbols, self.move(lengths[which]))              # (n, C)

        vectors, row = by_size(lengths, self.round_to, self.S, encode)              # (M, C), (M)
        vectors = vectors.to(self.byte_in.weight.dtype)
        return F.embedding(self.move(row[where]), vectors)              # (B, T, C)

    def encode(self, symbols, length):
        """(n, L) symbols of tokens of these lengths (n) -> (n, C)"""
        L = symbols.size(1)
        inside = torch.arange(L, device=length.device) < length[:, None]              # (n, L)
        # (n, 1, 1, L); if lengths aren't rounded, a group's are all L
        mask = None if self.round_to == 1 else inside[:, None, None]
        x = self.byte_in(symbols)                                       # (n, L, D)
        for block in self.encoder:
            x = block(x, self.rotary(0, L), mask=mask)
        mean = (x * inside[..., None]).sum(1) / length[:, None]         # (n, D)
        return self.pool(mean)                                          # (n, C)

    def decode(self, h, forks, before, caches=None):
        """(n, C) states, (n, L) forks, (n, L) the symbols taken before them -> (n, L, 257), logits
        of the symbols there. Each fork of a token has a projection of h of its own (as MegaByte's
        bytes do, arXiv 2305.07185) and hears what was taken at the one before; the blocks are
        causal. The logits start from the frequencies in the training text, the log counts."""
        L, D = forks.size(1), self.head.in_features
        first = caches[0].length if caches else 0
        slices = F.linear(h, self.slices.weight[first * D:(first + L) * D])           # (n, L D)
        x = slices.unflatten(-1, (L, D)) + self.byte_out(before)        # (n, L, D)
        for i, block in enumerate(self.decoder):
            x = block(x, self.rotary(first, L), caches[i] if caches else None)
        return self.head(self.norm(x)) + self.log_counts[forks]

    def nll_of_forks(self, h, forks, before, taken):
        """As decode(); taken (n, L) are the symbols -> (n, L) nats, 0 where taken is -1."""
        logits = self.decode(h, forks, before).transpose(1, 2)          # (n, 257, L)
        return F.cross_entropy(logits, taken, reduction='none', ignore_index=-1)

    def nll_of_choices(self, h, targets):
        """(B, T, C) states, (B, T) targets -> (B, T, S - 1) nats at each fork that the target
        passes, then zeros."""
        h, tokens, most = h.flatten(0, 1), targets.flatten(), self.S - 1              # (M, C), (M)

        def nll(L, which):
            forks = self.tree.forks[tokens[which], :L]                  # (n, L)
            taken = self.tree.taken[tokens[which], :L]                  # (n, L)
            # END also stands before the first symbol
            before = F.pad(taken[:, :-1].clamp(min=0), (1, 0), value=END)             # (n, L)
            path = self.move(torch.stack((forks, before, taken)))       # (3, n, L)
            nats = self.run_group('nll_of_forks', h[self.move(which)], *path)                # (n, L)
            return F.pad(nats, (0, most - L))                           # (n, S - 1)

        n_forks = self.tree.n_forks[tokens].clamp(min=1)
        nats, row = by_size(n_forks, self.round_to, most, nll)        # (M, S - 1), (M)
        return nats[self.move(row)].unflatten(0, targets.shape)

    @torch.compiler.disable
    def nll(self, h, targets):
        """(B, T, C), (B, T) -> (B, T). An id without a token is impossible."""
        no_token = self.move(self.tree.n_forks[targets] == 0)
        return self.nll_of_choices(h, targets).sum(-1).masked_fill(no_token, math.inf)

    def log_probs(self, h):
        nll = []
        for ids in torch.arange(len(self.tree.symbols)).split(2**12):   # (n), some of the V
            states = h[:, None].expand(-1, len(ids), -1)                # (B, n, C)
            nll.append(self.nll(states, ids.expand(len(h), -1)))        # (B, n)
        return -torch.cat(nll, dim=1)                                   # (B, V)

    def next_symbols(self, h, fork, before, caches):
        """As decode() for one fork, (n), after those in the caches -> (n, 257) log-probabilities."""
        logits = self.decode(h, self.move(fork[:, None]), self.move(before[:, None]), caches)
        return logits[:, 0].log_softmax(-1)

    def sample(self, h, temperature=1.0, top_k=0, top_p=1.0, generator=None):
        """(B, C) states -> (B) ids of next tokens. Without top_k and top_p symbol by symbol, each with
        the temperature; else by choose() among all tokens (which stlm/search.py does sooner)."""
        if temperature > 0 and not top_k and top_p >= 1:
            return self.spell(h, temperature=temperature, generator=generator)
        return choose(self.log_probs(h), temperature, top_k, top_p, generator).cpu()

    def spell(self, h, **sampling):
        """(B, C) states -> (B) ids, a symbol at a time, each by choose()."""
        caches = [LayerCache(self.S) for _ in self.decoder]
        fork, symbol = torch.zeros(len(h), dtype=torch.long), torch.full((len(h),), END)
        child = fork                                                    # (B), -1 - id at a token
        while (child >= 0).any():
            log_p = self.next_symbols(h, fork, symbol, caches)          # (B, 257)
            symbol = choose(log_p, **sampling).cpu()                    # (B)
            child = torch.where(child < 0, child, self.tree.child[fork, symbol])
            fork = child.clamp(min=0)
        return -1 - child


# -------------------------------------------------------------------------------------------
# 3. Layers that share weights (arXiv 2405.14159, sections 2.1 and 5.1)

class LoRA(nn.Module):
    """A Linear and a low-rank change to it, W x + B A x (arXiv 2106.09685, whose scale alpha / r is 1
    here). B is 0 at the start."""

    def __init__(self, linear, rank):
        super().__init__()
        self.linear = linear
        self.A = nn.Linear(linear.in_features, rank, bias=False)
        self.B = nn.Parameter(torch.zeros(linear.out_features, rank))   # init_weights() leaves it 0

    def forward(self, x):
        return self.linear(x) + F.linear(self.A(x), self.B)


def share_matrices(blocks, config):
    """Let consecutive blocks use the matrices of the first of them, then give each block LoRAs of
    its own on these matrices, or on all if none is shared. Norms stay each block's own."""
    shared = dict(none=[], ffn=['ffn'], block=['ffn', 'attn'])[config.share]
    for i, block in enumerate(blocks):
        first = blocks[i - i % (config.share_every or len(blocks))]
        for part in shared:
            for name, linear in getattr(first, part).named_children():
                setattr(getattr(block, part), name, linear)
    if config.lora_rank == 0:
        return
    for block in blocks:
        for part in shared or ['ffn', 'attn']:
            module = getattr(block, part)
            for name, linear in list(module.named_children()):
                setattr(module, name, LoRA(linear, config.lora_rank))


# -------------------------------------------------------------------------------------------
# 4. Generation

def choose(log_p, temperature=1.0, top_k=0, top_p=1.0, generator=None):
    """(B, n) log-probabilities -> (B) indices: the likeliest at temperature 0, else drawn from the
    top_k likeliest (0: all) and among these from the fewest that reach probability top_p. A
    temperature below 1 prefers the likelier of them, above 1 it makes them more alike."""
    if temperature == 0:
        return log_p.argmax(-1)
    if not top_k and top_p >= 1:
        return torch.multinomial((log_p / temperature).softmax(-1), 1, generator=generator)[:, 0]
    n = log_p.size(-1)
    log_p, order = log_p.topk(min(top_k or n, n))                       # (B, k), likeliest first
    p = log_p.exp()
    log_p = log_p.masked_fill(p.cumsum(-1) - p >= top_p, -math.inf)     # those before reach top_p
    p = (log_p / temperature).softmax(-1)
    return order.gather(-1, torch.multinomial(p, 1, generator=generator))[:, 0]


class LayerCache:
    """Keys and values of the tokens that one layer has read, so that they aren't computed again.
    There is room for `room` tokens at first, and for more when it is needed."""

    def __init__(self, room):
        self.room = room
        self.length = 0

    def append(self, k, v):
        """2 x (B, n_kv_head, T, K) new ones -> all so far, 2 x (B, n_kv_head, length, K)."""
        start, end = self.length, self.length + k.size(2)
        if start == 0:
            self.k = k.new_empty(*k.shape[:2], max(end, self.room), k.size(3))
            self.v = torch.empty_like(self.k)
        elif end > self.k.size(2):
            self.k, self.v = (F.pad(x, (0, 0, 0, end)) for x in (self.k, self.v))
        self.k[:, :, start:end] = k
        self.v[:, :, start:end] = v
        self.length = end
        return self.k[:, :, :end], self.v[:, :, :end]
