"""
The network: a Llama-style transformer over tokens (the "modern transformer" of arXiv 2405.14159,
section 4), in chapters: 1. the transformer over a token table; 2. byte pooling, which replaces that
table; 3. layers that share weights; 4. generation, and the whole, class GPT. A single call is all
that training and evaluation need:
    nll = model(idx, targets)      # (B, T), (B, T) -> (B, T) nats: -log p(target | idx so far)

Letters, the same in every comment: B batch, T tokens, C model width, H heads, K head size, V
vocabulary. Chapter 2 adds n or M tokens in any order, L symbols or forks of each, S the most of
them, D the width of the byte blocks.
"""
import functools
import math
from collections import Counter
from dataclasses import dataclass, replace

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

# -------------------------------------------------------------------------------------------
# 1. The transformer over a token table


@dataclass
class Config:
    """A model's shape; these are the paper's 50M. train.py has a setting for each, and says what
    it means."""
    vocab_size: int = 50257
    block_size: int = 512
    n_layer: int = 10
    n_head: int = 16
    n_kv_head: int = 16
    n_embd: int = 512
    d_ff: int = 1536
    ffn: str = 'swiglu'            # or 'gelu'
    tie_embeddings: bool = True
    output_bias: bool = False
    rope_base: float = 10000.0
    norm_eps: float = 1e-5
    embedding: str = 'table'       # or 'byte_pool': chapter 2, with the five that follow
    n_byte_embd: int = 128
    n_byte_head: int = 4
    n_encoder_layer: int = 1
    n_decoder_layer: int = 2
    max_bytes: int = 16
    share: str = 'none'            # or 'ffn', or 'block': chapter 3, with the two that follow
    share_every: int = 0
    lora_rank: int = 0

    def __post_init__(self):
        """What can't be; train.py checks the ranges of numbers."""
        kinds = dict(ffn=('swiglu', 'gelu'), embedding=('table', 'byte_pool'), share=('none', 'ffn', 'block'))
        for name, known in kinds.items():
            if getattr(self, name) not in known:
                raise ValueError(f"{name}='{getattr(self, name)}' must be one of: {', '.join(known)}")
        for whole, part, times in (('n_embd', 'n_head', 2), ('n_head', 'n_kv_head', 1), ('n_byte_embd', 'n_byte_head', 2)):
            number = times * getattr(self, part)  # twice, since rotary positions turn numbers in pairs
            if getattr(self, whole) % number:
                raise ValueError(f'{whole}={getattr(self, whole)} must be a multiple of {times} * {part}={number}')
        layers = max(self.n_layer, self.n_encoder_layer, self.n_decoder_layer)
        if layers > 1000:  # making them would take minutes, and then all memory
            raise ValueError(f'{layers} layers are more than 1000')
        if self.embedding == 'byte_pool' and self.max_bytes > 16:
            raise ValueError(f'max_bytes={self.max_bytes} must be at most 16 for byte_pool: a gpt2-16 or bpe<N> tokenizer')


class Norm(nn.RMSNorm):
    """x / sqrt(mean(x^2) + eps) * weight (arXiv 1910.07467), in the dtype of the matrix products
    that follow."""

    def forward(self, x):
        y = super().forward(x)
        if torch.is_autocast_enabled(x.device.type):
            y = y.to(torch.get_autocast_dtype(x.device.type))  # once here, not once in each product
        return y


class Dropout(nn.Module):
    """Inverted dropout whose p is a tensor: a schedule may move it without recompiling the
    model."""

    def __init__(self):
        super().__init__()
        self.register_buffer('p', torch.zeros(()), persistent=False)
        self.active = False   # a model that never drops doesn't pay for drawing random numbers

    def set(self, p):
        self.p.fill_(p)
        self.active = self.active or bool(p > 0)   # p may be numpy's; its bool would cut a compiled graph in two

    def forward(self, x):
        if not (self.training and self.active):
            return x
        keep = torch.rand_like(x) >= self.p
        return x * keep / (1 - self.p)


class Rotary(nn.Module):
    """cos and sin of position * base^(-2i/K), for positions from `past` on. RoPE, arXiv
    2104.09864."""

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
    """softmax(q k' / sqrt(K)) v, without ever holding all of q k'. The T queries are the last T
    of the P positions of k and v. A causal one sees nothing after its own and takes no mask;
    another looks where the mask is True. k and v may have fewer heads, each for several of q.
    (B, H, T, K), 2 x (B, n_kv_head, P, K) -> (B, H, T, K)"""
    T, P = q.size(2), k.size(2)
    if causal and 1 < T < P:   # PyTorch's own causal mask is for T = P
        mask = torch.ones(T, P, dtype=torch.bool, device=q.device).tril(P - T)
    return F.scaled_dot_product_attention(q, k, v, mask, is_causal=causal and T == P, enable_gqa=True)


class Attention(nn.Module):
    """Grouped-query attention: n_head queries share n_kv_head keys and values (arXiv
    2305.13245)."""

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
        if cache is not None:                                         # in generation: see chapter 4
            k, v = cache.append(k, v)                             # now with those of earlier tokens
        y = attend(q, k, v, self.causal, mask)                          # (B, H, T, K)
        return self.out(y.transpose(1, 2).flatten(2))                   # (B, T, C)


class FeedForward(nn.Module):
    """SwiGLU, down(silu(gate(x)) * up(x)) (arXiv 2002.05202), or GPT-2's plain
    down(gelu(up(x)))."""

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
    """Tokens look at earlier ones, then each thinks for itself; both add to what was there."""

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


class TokenTable(nn.Module):
    """Tokens in and out through the usual tables: a row of C numbers for each of the V tokens."""
    kept_logits = 2**27   # of float32: half a gigabyte

    def __init__(self, config):
        super().__init__()
        self.embedding = nn.Embedding(config.vocab_size, config.n_embd)
        self.head = nn.Linear(config.n_embd, config.vocab_size, bias=config.output_bias)
        if config.tie_embeddings:
            self.head.weight = self.embedding.weight
        nn.init.normal_(self.embedding.weight, std=0.02)
        nn.init.normal_(self.head.weight, std=0.02)
        if config.output_bias:
            nn.init.zeros_(self.head.bias)

    def embed(self, idx):
        return self.embedding(idx)                                      # (B, T) -> (B, T, C)

    def nll(self, h, targets):
        """(B, T, C) states, (B, T) targets -> (B, T) nats. The (B*T, V) logits would be the
        largest tensor of the step by far: they are made some rows at a time, and if they are too
        many to keep, they are forgotten and made again for the gradient."""
        V = self.head.out_features
        rows = (self.kept_logits if h.is_cuda else 2**24) // V + 1   # each adds to head's gradient
        chunks = zip(h.flatten(0, 1).split(rows), targets.flatten().split(rows))
        if targets.numel() * V <= self.kept_logits:
            nll = [self.nll_of_rows(*chunk) for chunk in chunks]
        else:
            nll = [checkpoint(self.nll_of_rows, *chunk, use_reentrant=False) for chunk in chunks]
        return torch.cat(nll).view_as(targets)

    def nll_of_rows(self, h, targets):
        return F.cross_entropy(self.head(h), targets, reduction='none')  # (rows, C), (rows) -> (rows)

    def nll_of_symbols(self, h, targets):
        return self.nll(h, targets)[..., None]                    # a token of a table is one symbol

    def log_probs(self, h):
        """(B, C) states -> (B, V) log-probabilities of every next token."""
        return self.head(h).float().log_softmax(-1)

    def sample(self, h, choose):
        return choose(self.head(h))                           # (B, C) -> (B) ids; choose: chapter 4


class Transformer(nn.Module):
    """Tokens in; out comes, for each of them, -log p of the token after it."""
    block_class = Block

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.dropout = Dropout()
        self.tokens = self.make_tokens()
        self.blocks = nn.ModuleList(self.make_blocks())
        self.norm = Norm(config.n_embd, eps=config.norm_eps)
        self.rotary = Rotary(config.block_size, config)
        self.init_weights()

    def make_tokens(self):
        return TokenTable(self.config)

    def make_blocks(self):
        return [self.block_class(self.config, self.dropout) for _ in range(self.config.n_layer)]

    def init_weights(self):
        """The blocks' matrices start normal with std 0.02, as the tables do; with 0.02 / sqrt(2
        n_layer) where they add to x, so that x doesn't grow with depth (GPT-2, section 2.3).
        Norms start at 1."""
        for module in self.blocks.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.02)
        for block in self.blocks:
            for proj in (block.attn.out, block.ffn.down):
                nn.init.normal_(proj.weight, std=0.02 / math.sqrt(2 * self.config.n_layer))

    def hidden(self, idx, caches=None):
        """(B, T) token ids -> (B, T, C) final states; with caches, idx continues what they hold."""
        x = self.dropout(self.tokens.embed(idx))                        # (B, T) -> (B, T, C)
        return self.norm(self.layers(x, caches))

    def layers(self, x, caches=None, first=0, last=None):
        """(B, T, C) states -> (B, T, C), what the layers make of them, or those from `first` to
        before `last`."""
        angles = self.rotary(caches[first].length if caches else 0, x.size(1))
        for i in range(len(self.blocks))[first:last]:
            x = self.blocks[i](x, angles, caches[i] if caches else None)
        return x

    def forward(self, idx, targets):
        """(B, T) token ids and the tokens that follow them -> (B, T) -log p(target) in nats."""
        return self.tokens.nll(self.hidden(idx), targets)

    def nll_of_symbols(self, idx, targets):
        """As forward(), but what each choice costs within a target: (B, T, symbols) nats."""
        return self.tokens.nll_of_symbols(self.hidden(idx), targets)


# -------------------------------------------------------------------------------------------
# 2. Byte pooling: tokens in and out by their spelling (arXiv 2405.14159, section 5.2). The tree is ours.
#
# A token is its bytes, then END. The encoder reads them and pools them into a vector of C: no embedding table. The
# decoder is given the state h and spells the next token: no softmax over the vocabulary. It walks down the tree of
# the vocabulary. Of the five tokens '', a, an, and, the
#     fork 0, at the beginning '':  END, a or t        ''  takes END at 0
#     fork 1, at the beginning a:   END or n           a   takes a at 0, END at 1; the takes t at 0
#     fork 2, at the beginning an:  END or d           an  takes a, n, END; and takes a, n, d
# At a fork the decoder chooses among the symbols that can follow. Elsewhere one symbol alone can follow (h and e of
# "the"): nothing is computed and nothing charged. So -log p(token) is the exact sum over its forks, the probabilities
# of all tokens sum to one, and what no token has is impossible.

END = 256   # the symbol after a token's last byte; the end of a text is the empty token, END alone


def grow_tree(spelling, counts, S):
    """The tree of a vocabulary of V tokens with N forks, as tables.

    `spelling` has the bytes of each token by id, b'' for the end of a text, None for an id
    without a token; `counts` (V) how often each occurs in the training text. All tokens walk
    from the empty beginning, a symbol at a time; one that has ended goes on with END after END,
    which is never a fork."""
    V = len(spelling)
    ids = torch.tensor([i for i, token in enumerate(spelling) if token is not None])           # (M)
    symbols = torch.full((V, S), END)
    symbols[ids] = torch.tensor([list(spelling[i]) + [END] * (S - len(spelling[i])) for i in ids.tolist()])
    counts = torch.as_tensor(counts)[ids].double() + 1  # (M), and 1, so that no token is impossible
    n_forks = torch.zeros(V, dtype=torch.long)
    forks = torch.full((V, S), -1)
    taken = torch.zeros(V, S, dtype=torch.long)
    places, log_counts = [], []
    beginning = torch.zeros(len(ids), dtype=torch.long)      # (M), each token's first `place` symbols, as an index
    for place in range(S):
        # an edge leads from a beginning, by a symbol, to one that is longer by this symbol
        edges, edge = (257 * beginning + symbols[ids, place]).unique(return_inverse=True)  # (edges), (M)
        start, symbol = edges // 257, edges % 257            # (edges)
        is_fork = start.bincount() > 1                       # (beginnings)
        number = len(places) + is_fork.cumsum(0) - 1  # (beginnings), of use for those that are forks
        log_count = torch.full((len(is_fork), 257), -math.inf)
        log_count[start, symbol] = edge.bincount(weights=counts).log().float()
        log_counts.append(log_count[is_fork])
        places += [place] * int(is_fork.sum())
        here = is_fork[beginning]                            # (M), which tokens are at a fork
        tokens = ids[here]
        forks[tokens, n_forks[tokens]] = number[beginning[here]]
        taken[tokens, n_forks[tokens]] = symbols[tokens, place]
        n_forks[tokens] += 1
        beginning = edge                                 # edges are numbered, and so are their ends
    places.append(S)              # number -1 stands for no fork; what is at place S is thrown away
    log_counts.append(torch.zeros(1, 257))
    return dict(symbols=symbols,                             # (V, S), bytes and END
                length=(symbols != END).sum(1) + 1,          # (V), how many symbols
                n_forks=n_forks,                   # (V), how many forks a token passes; 0: no token
                forks=forks,                                 # (V, S), their numbers, then -1
                taken=taken,                   # (V, S), the symbols that it takes there, then zeros
                place=torch.tensor(places),                  # (N + 1), of the symbol that is chosen
                log_counts=torch.cat(log_counts))    # (N + 1, 257), -inf for what can't follow


def by_size(sizes, multiple, most):
    """(M) sizes, rounded up to a multiple, but not above `most` -> yields each size above 0 that
    occurs, with the indices (n) of the items that have it."""
    sizes = ((sizes + multiple - 1) // multiple * multiple).clamp(max=most)
    order = sizes.argsort(stable=True)   # so that rounding doesn't depend on the number of threads
    for size, which in enumerate(order.split(sizes.bincount().tolist())):
        if size > 0 and len(which) > 0:
            yield size, which


class BytePool(nn.Module):
    """Has the methods of TokenTable, without a table. Its weights keep PyTorch's own
    initialisation: bytes (std 1) and slices of h have a like size, so that the decoder hears
    both from the start."""

    def __init__(self, config):
        super().__init__()
        C, D, S = config.n_embd, config.n_byte_embd, config.max_bytes + 1
        small = replace(config, n_embd=D, n_head=config.n_byte_head, n_kv_head=config.n_byte_head, d_ff=3 * D)
        no_dropout = nn.Identity()
        self.S = S
        self.rotary = Rotary(S, small)
        self.byte_in = nn.Embedding(257, D)
        self.encoder = nn.ModuleList(Block(small, no_dropout, causal=False) for _ in range(config.n_encoder_layer))
        self.pool = nn.Linear(D, C, bias=False)
        self.slices = nn.Linear(C, (S - 1) * D, bias=False)  # the S-th symbol can only be END: no fork
        self.byte_out = nn.Embedding(257, D)
        self.decoder = nn.ModuleList(Block(small, no_dropout) for _ in range(config.n_decoder_layer))
        self.norm = Norm(D, eps=config.norm_eps)
        self.head = nn.Linear(D, 257, bias=False)

    def spell(self, spelling, counts):
        """Tell the model its vocabulary, before anything else. grow_tree()'s tables become
        self.symbols, self.forks and so on; they are not saved, since vocabulary and counts make
        them again."""
        for name, table in grow_tree(spelling, counts, self.S).items():
            self.register_buffer(name, table.to(self.head.weight.device), persistent=False)

    def multiple(self):
        """To which multiple lengths and numbers of forks are rounded up, so that more tokens go
        together: 4 on a GPU, where a small product takes as long as a larger one. What is after a
        token's end is neither seen nor counted."""
        return 4 if self.head.weight.is_cuda else 1

    @torch.compiler.disable   # the shapes in here are others at each step
    def embed(self, idx):
        """(B, T) ids -> (B, T, C). A vector depends on the token alone, so each distinct one is
        encoded once."""
        tokens, where = idx.unique(return_inverse=True)                 # (M), (B, T)
        vectors = self.norm.weight.new_empty(len(tokens), self.pool.out_features)     # (M, C)
        for L, which in by_size(self.length[tokens], self.multiple(), self.S):
            length = self.length[tokens[which], None]                   # (n, 1)
            inside = torch.arange(L, device=idx.device) < length        # (n, L)
            mask = inside[:, None, None] if self.multiple() > 1 else None   # (n, 1, 1, L)
            x = self.byte_in(self.symbols[tokens[which], :L])           # (n, L, D)
            for block in self.encoder:
                x = block(x, self.rotary(0, L), mask=mask)
            mean = (x * inside[..., None]).sum(1) / length              # (n, D)
            vectors[which] = self.pool(mean).type_as(vectors)           # (n, C)
        return F.embedding(where, vectors)                              # (B, T, C)

    def decode(self, h, tokens, L):
        """(n, C) states, (n) tokens that may follow them -> (n, L, 257), logits of the symbols
        at their first L forks. Each fork has a slice of h of its own (as MegaByte's bytes do,
        arXiv 2305.07185) and hears what was taken at the one before; the blocks are causal. The
        network only has to correct the frequencies of the training text. After a token's last fork
        they mean nothing."""
        D = self.head.in_features
        before = F.pad(self.taken[tokens, :L - 1], (1, 0), value=END)   # (n, L)
        slices = F.linear(h, self.slices.weight[:L * D])                # (n, L D)
        x = slices.unflatten(-1, (L, D)) + self.byte_out(before)        # (n, L, D)
        for block in self.decoder:
            x = block(x, self.rotary(0, L))
        return self.head(self.norm(x)) + self.log_counts[self.forks[tokens, :L]]

    def nll_of_forks(self, h, tokens, L):
        logits = self.decode(h, tokens, L).transpose(1, 2)              # (n, 257, L)
        return F.cross_entropy(logits, self.taken[tokens, :L], reduction='none')      # (n, L)

    @torch.compiler.disable
    def nll_of_symbols(self, h, targets):
        """(B, T, C) states, (B, T) targets -> (B, T, S) nats of each symbol at its place in the
        token, nan where it was no choice."""
        h, tokens = h.flatten(0, 1), targets.flatten()                  # (M, C), (M)
        nats = self.log_counts.new_full((len(tokens), self.S + 1), math.nan)   # last: of no fork
        nats[self.n_forks[tokens] == 0] = math.inf                      # an id without a token
        for L, which in by_size(self.n_forks[tokens], self.multiple(), self.S - 1):
            places = self.place[self.forks[tokens[which], :L]]          # (n, L)
            nats[which[:, None], places] = self.nll_of_forks(h[which], tokens[which], L)
        return nats[:, :self.S].unflatten(0, targets.shape)             # (B, T, S)

    def nll(self, h, targets):
        return self.nll_of_symbols(h, targets).nansum(-1)              # (B, T, C), (B, T) -> (B, T)

    def log_probs(self, h):
        every = torch.arange(len(self.symbols), device=h.device).expand(len(h), -1)   # (B, V)
        parts = [self.nll(h[:, None].expand(-1, ids.size(1), -1), ids) for ids in every.split(2**12, dim=1)]
        return -torch.cat(parts, dim=1)                                 # (B, V)

    def sample(self, h, choose):
        """(B, C) states -> (B) token ids. At each fork fewer tokens remain possible, until it is
        one."""
        possible = (self.n_forks > 0).expand(len(h), -1)                # (B, V)
        for i in range(self.S):
            token = possible.byte().argmax(1)      # (B), any possible one: all are at the same fork
            done = self.n_forks <= i                              # (V): a token that is found stays
            if done[token].all():
                return token
            symbol = choose(self.decode(h, token, i + 1)[:, -1])        # (B)
            possible = possible & (done | (self.taken[:, i] == symbol[:, None]))


# -------------------------------------------------------------------------------------------
# 3. Layers that share weights (arXiv 2405.14159, sections 2.1 and 5.1)

class LoRA(nn.Module):
    """A Linear and a low-rank change to it, W x + B A x (arXiv 2106.09685, with alpha = r). B is
    0 at the start."""

    def __init__(self, linear, rank):
        super().__init__()
        self.linear = linear
        self.A = nn.Linear(linear.in_features, rank, bias=False)
        self.B = nn.Parameter(torch.zeros(linear.out_features, rank))  # no Linear: it has to stay 0

    @property
    def weight(self):
        return self.linear.weight   # by this name init_weights() reaches it

    def forward(self, x):
        return self.linear(x) + F.linear(self.A(x), self.B)


def use_matrices(module, matrices, lora_rank):
    """Let an attention or a feed-forward use these {name: Linear}. If lora_rank > 0, it gets a
    LoRA of its own on each."""
    for name, linear in matrices.items():
        setattr(module, name, LoRA(linear, lora_rank) if lora_rank else linear)


# -------------------------------------------------------------------------------------------
# 4. Generation, and the whole

def choose(logits, temperature=1.0, top_k=0, top_p=1.0, generator=None):
    """(B, V) logits -> (B) indices: the best at temperature 0, else drawn from the top_k likeliest
    (0: all) among the fewest that together reach probability top_p."""
    if temperature == 0:
        return logits.argmax(-1)
    probs = (logits.float() / temperature).softmax(-1)
    if not top_k and top_p >= 1:
        return torch.multinomial(probs, 1, generator=generator)[:, 0]
    k = min(top_k or probs.size(-1), probs.size(-1))
    probs, order = probs.topk(k)                                        # (B, k), likeliest first
    probs[probs.cumsum(-1) - probs >= top_p] = 0                  # those before already reach top_p
    return order.gather(-1, torch.multinomial(probs, 1, generator=generator))[:, 0]


class LayerCache:
    """Keys and values of one layer, for `room` tokens, or more: earlier tokens needn't be read
    again."""

    def __init__(self, room):
        self.room = room
        self.length = 0

    def append(self, k, v):
        """2 x (B, n_kv_head, T, K) new ones -> all so far, 2 x (B, n_kv_head, length, K)."""
        if self.length == 0:
            self.k = k.new_empty(*k.shape[:2], self.room, k.size(3))
            self.v = torch.empty_like(self.k)
        start, self.length = self.length, self.length + k.size(2)
        while self.length > self.k.size(2):
            self.k, self.v = (torch.cat((x, torch.empty_like(x)), dim=2) for x in (self.k, self.v))
        self.k[:, :, start:self.length] = k
        self.v[:, :, start:self.length] = v
        return self.k[:, :, :self.length], self.v[:, :, :self.length]


class GPT(Transformer):
    """The transformer of chapter 1, with what the chapters since then offer."""

    def make_tokens(self):
        return BytePool(self.config) if self.config.embedding == 'byte_pool' else super().make_tokens()

    def make_blocks(self):
        """The blocks, some with the matrices of an earlier one. Norms and LoRAs are each layer's
        own."""
        c = self.config
        shares_attn, shares_ffn = c.share == 'block', c.share in ('ffn', 'block')
        blocks = super().make_blocks()
        for i, block in enumerate(blocks):
            first = i % (c.share_every or c.n_layer) == 0       # the first of the layers that share
            if first or not shares_ffn:
                ffn = dict(block.ffn.named_children())
            if first or not shares_attn:
                attn = dict(block.attn.named_children())
            use_matrices(block.ffn, ffn, c.lora_rank)
            use_matrices(block.attn, attn, 0 if c.share == 'ffn' else c.lora_rank)
        return blocks

    @torch.inference_mode()
    def generate(self, idx, max_new_tokens, **how):
        """Continue (B, T) token ids, T >= 1: yields (B) ids, max_new_tokens times. `how`: see
        choose(). When the window outgrows block_size its older half is forgotten, and the newer
        half is read afresh from position 0, once in block_size / 2 tokens."""
        window, caches = idx, None
        for _ in range(max_new_tokens):
            if window.size(1) > self.config.block_size:
                window, caches = window[:, -(self.config.block_size // 2):], None
            if caches is None:
                idx, caches = window, [LayerCache(self.config.block_size) for _ in self.blocks]
            h = self.hidden(idx, caches)[:, -1]                         # (B, C)
            token = self.tokens.sample(h, functools.partial(choose, **how))
            yield token
            idx = token[:, None]                                        # (B) -> (B, 1)
            window = torch.cat((window, idx), dim=1)

    @torch.no_grad()
    def log_probs(self, idx):
        """(B, T) token ids -> (B, V), the log-probability of every token of the vocabulary after
        them."""
        return self.tokens.log_probs(self.hidden(idx[:, -self.config.block_size:])[:, -1])

    def count_parameters(self):
        """{part: parameters}; a tensor used twice counts once."""
        tokens = 'byte pooling' if self.config.embedding == 'byte_pool' else 'token tables'
        names = {'tokens': tokens, 'A': 'LoRA', 'B': 'LoRA', 'attn': 'attention', 'ffn': 'feed-forward'}
        names |= dict.fromkeys(('norm', 'attn_norm', 'ffn_norm'), 'norms')
        parts = Counter()
        for path, p in self.named_parameters():   # which yields a shared tensor once
            part = [name for word, name in names.items() if word in path.split('.')]
            parts[part[0] if part else path.split('.')[0]] += p.numel()   # of an idea: its own name
        return dict(parts)
