"""
The network: a Llama-style transformer over tokens (the "modern transformer" of arXiv 2405.14159, section 4), in
chapters, each understandable from what stands above it: 1. the transformer over a token table; 2. byte pooling,
which replaces that table; 3. layers that share weights; 4. generation, and the whole: class GPT.
    nll = model(idx, targets)      # (B, T), (B, T) -> (B, T) nats: -log p(target | everything up to idx)
is all that training and evaluation need.

Letters, the same in every comment: B batch, T tokens, C model width, H heads, K head size, V vocabulary. In byte
pooling n tokens of L symbols (bytes and END) or choices each, S symbols at most, D byte width.
"""
import functools
import math
from collections import Counter
from dataclasses import dataclass, replace

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

# ---------------------------------------------------------------------------------------------------
# 1. The transformer over a token table


@dataclass
class Config:
    """A model's shape, here the paper's 50M. train.py has a setting for each, and says what it means."""
    vocab_size: int = 50257
    block_size: int = 512
    n_layer: int = 10
    n_head: int = 16
    n_kv_head: int = 16
    n_embd: int = 512
    d_ff: int = 1536
    ffn: str = 'swiglu'
    tie_embeddings: bool = True
    output_bias: bool = False
    rope_base: float = 10000.0
    norm_eps: float = 1e-5
    embedding: str = 'table'       # this and what follows: chapter 2
    n_byte_embd: int = 128
    n_byte_head: int = 4
    n_encoder_layer: int = 1
    n_decoder_layer: int = 2
    max_bytes: int = 16
    share: str = 'none'            # this and what follows: chapter 3
    share_every: int = 0
    lora_rank: int = 0

    def __post_init__(self):
        """What isn't possible; train.py checks that each number is in its range."""
        for whole, part, times in (('n_embd', 'n_head', 2), ('n_head', 'n_kv_head', 1), ('n_byte_embd', 'n_byte_head', 1)):
            if getattr(self, whole) % (times * getattr(self, part)):   # RoPE turns pairs, so twice n_head
                raise ValueError(f'{whole}={getattr(self, whole)} must be a multiple of '
                                 f'{times} * {part}={times * getattr(self, part)}')
        if self.embedding == 'byte_pool' and self.max_bytes > 16:
            raise ValueError(f'max_bytes={self.max_bytes} must be at most 16 for byte_pool: take gpt2-16 or bpe<N>')


class Norm(nn.RMSNorm):
    """x / sqrt(mean(x^2) + eps) * weight (arXiv 1910.07467), in the dtype that the next products compute in."""

    def forward(self, x):
        y = super().forward(x)
        if torch.is_autocast_enabled(x.device.type):
            y = y.to(torch.get_autocast_dtype(x.device.type))   # once here, not once in each product
        return y


class Dropout(nn.Module):
    """Inverted dropout whose p is a tensor: a schedule may move it without recompiling the model."""

    def __init__(self):
        super().__init__()
        self.register_buffer('p', torch.zeros(()), persistent=False)
        self.active = False   # a model that never drops doesn't pay for drawing random numbers

    def set(self, p):
        self.p.fill_(p)
        self.active = self.active or bool(p > 0)   # not numpy's bool, which would cut a compiled graph in two

    def forward(self, x):
        if not (self.training and self.active):
            return x
        keep = torch.rand_like(x) >= self.p
        return x * keep / (1 - self.p)


class Rotary(nn.Module):
    """cos and sin of position * base^(-2i/K), for positions from `past` on. RoPE, arXiv 2104.09864."""

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
    """Turn the pairs (i, i + K/2) of x (B, H, T, K) by the angles of their positions.
    Halves rather than neighbours, as Hugging Face's Llama: its weights fit ours one to one."""
    cos, sin = angles                                                   # (T, K/2) each
    a, b = x.chunk(2, dim=-1)                                           # 2 x (B, H, T, K/2)
    turned = torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)  # (B, H, T, K)
    return turned.type_as(x)


def attend(q, k, v, causal=True):
    """softmax(q k' / sqrt(K)) v, without ever holding all of q k'. The T queries are the last T of the S positions of
    k and v, and a causal one sees nothing after its own. k and v may have fewer heads, each for several of q.
    (B, H, T, K), 2 x (B, n_kv_head, S, K) -> (B, H, T, K)"""
    T, S = q.size(2), k.size(2)
    mask = None
    if causal and 1 < T < S:   # PyTorch's own causal mask is for T = S
        mask = torch.ones(T, S, dtype=torch.bool, device=q.device).tril(S - T)
    return F.scaled_dot_product_attention(q, k, v, mask, is_causal=causal and T == S, enable_gqa=True)


class Attention(nn.Module):
    """Grouped-query attention: n_head queries share n_kv_head keys and values (arXiv 2305.13245)."""

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

    def forward(self, x, angles, cache=None):
        q = rotate(self.heads(self.query(x)), angles)                   # (B, T, C) -> (B, H, T, K)
        k = rotate(self.heads(self.key(x)), angles)                     # (B, n_kv_head, T, K)
        v = self.heads(self.value(x))                                   # (B, n_kv_head, T, K)
        if cache is not None:
            k, v = cache.append(k, v)                                   # now with those of earlier tokens
        y = attend(q, k, v, self.causal)                                # (B, H, T, K)
        return self.out(y.transpose(1, 2).flatten(2))                   # (B, T, C)


class FeedForward(nn.Module):
    """SwiGLU, down(silu(gate(x)) * up(x)) (arXiv 2002.05202), or GPT-2's plain down(gelu(up(x)))."""

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

    def forward(self, x, angles, cache=None):
        x = x + self.dropout(self.attn(self.attn_norm(x), angles, cache))
        return x + self.dropout(self.ffn(self.ffn_norm(x)))


class TokenTable(nn.Module):
    """Tokens in and out through the usual tables: a row of C numbers for each of the V tokens."""
    kept_logits = 2**27   # half a gigabyte of them

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
        """(B, T, C) states, (B, T) targets -> (B, T) nats. The (B*T, V) logits would be the largest tensor of
        the step by far: they are made some rows at a time, and if they are too many made again for the gradient."""
        V = self.head.out_features
        rows = 2**24 // V + 1
        nll = []
        for chunk in zip(h.flatten(0, 1).split(rows), targets.flatten().split(rows)):
            if targets.numel() * V <= self.kept_logits:
                nll.append(self.nll_of_rows(*chunk))
            else:
                nll.append(checkpoint(self.nll_of_rows, *chunk, use_reentrant=False))
        return torch.cat(nll).view_as(targets)

    def nll_of_rows(self, h, targets):
        return F.cross_entropy(self.head(h), targets, reduction='none')   # (rows, C), (rows) -> (rows)

    def nll_of_symbols(self, h, targets):
        return self.nll(h, targets)[..., None]                          # a token of a table is one symbol

    def log_probs(self, h):
        """(B, C) states -> (B, V) log-probabilities of every next token."""
        return self.head(h).float().log_softmax(-1)

    def sample(self, h, choose):
        return choose(self.head(h))                                     # (B, C) -> (B) token ids


class Transformer(nn.Module):
    """Tokens in; out comes, for each of them, how well it foretells the one after."""
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
        """Normal with std 0.02 here and in the tables; 0.02 / sqrt(2 n_layer) for the projections that add to the
        residual stream, so that its size doesn't grow with depth (GPT-2, section 2.3). Norms start at 1."""
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
        """(B, T, C) states -> (B, T, C), what the layers make of them, or those from `first` to before `last`."""
        angles = self.rotary(caches[first].length if caches else 0, x.size(1))
        for i in range(len(self.blocks))[first:last]:
            x = self.blocks[i](x, angles, caches[i] if caches else None)
        return x

    def forward(self, idx, targets):
        """(B, T) token ids and the tokens that follow them -> (B, T) -log p(target) in nats."""
        return self.tokens.nll(self.hidden(idx), targets)

# ---------------------------------------------------------------------------------------------------
# 2. Byte pooling: tokens in and out by their spelling (arXiv 2405.14159, section 5.2)

END = 256   # the symbol after a token's last byte; the end of a text is the empty token, END alone


def grow_tree(spelling, counts, S):
    """The tree of a vocabulary, as tables. `spelling` has the bytes of each token by id, b'' for the end of a text,
    None for an id without a token; `counts` (V) how often each occurs in the training text.

    All tokens walk from the empty beginning, a symbol at a time. A beginning that more than one symbol follows
    is a choice, and has a number. Of each choice the tables tell its place in the token, the byte before it and
    the log count of each symbol that may follow, minus infinity for the others; of each token its symbols, how many
    choices it makes, their numbers, and the symbol that it takes at each."""
    V = len(spelling)
    ids = torch.tensor([i for i, token in enumerate(spelling) if token is not None])
    symbols = torch.full((V, S), END)
    symbols[ids] = torch.tensor([[*spelling[i], *[END] * (S - len(spelling[i]))] for i in ids.tolist()])
    counts = torch.as_tensor(counts)[ids].double() + 1    # 1, so that no token is impossible
    n_choices = torch.zeros(V, dtype=torch.long)
    choices = torch.zeros(V, S, dtype=torch.long)
    chosen = torch.zeros(V, S, dtype=torch.long)
    places, befores, log_counts = [], [], []
    at = torch.zeros(len(ids), dtype=torch.long)          # which of the beginnings of this length each token has
    before = torch.tensor([END])                          # the last symbol of each of these beginnings
    for place in range(S):
        # an edge leads from a beginning, by a symbol, to one that is longer by this symbol
        edges, edge = (257 * at + symbols[ids, place]).unique(return_inverse=True)
        start, symbol = edges // 257, edges % 257
        is_choice = start.bincount() > 1                  # of each beginning
        number = len(places) + is_choice.cumsum(0) - 1    # of each that is one
        known = torch.full((len(is_choice), 257), -math.inf)
        known[start, symbol] = edge.bincount(counts).log().float()
        log_counts.append(known[is_choice])
        befores.append(before[is_choice])
        places += [place] * int(is_choice.sum())
        here = is_choice[at]                              # of each token: does it have to choose?
        tokens = ids[here]
        choices[tokens, n_choices[tokens]] = number[at[here]]
        chosen[tokens, n_choices[tokens]] = symbols[tokens, place]
        n_choices[tokens] += 1
        at, before = edge, symbol
    return dict(symbols=symbols, length=(symbols != END).sum(1) + 1, n_choices=n_choices, choices=choices, chosen=chosen,
                place=torch.tensor(places), before=torch.cat(befores), log_counts=torch.cat(log_counts))


def by_size(sizes):
    """(M) sizes -> for each size above 0 that occurs: yields it, and which items have it, (n)."""
    order = sizes.argsort()
    for size, which in enumerate(order.split(sizes.bincount().tolist())):
        if size > 0 and len(which) > 0:
            yield size, which


class Slices(nn.Linear):
    """The first numbers of W h: a vector for each choice that a token makes (MegaByte, arXiv 2305.07185)."""

    def forward(self, h, n):
        return F.linear(h, self.weight[:n])                             # (n, C) -> (n, L D)


class BytePool(nn.Module):
    """An embedding table that is computed from spelling, and a softmax that spells the next token.

    The encoder reads a token's bytes and END and pools them into a vector of C. The decoder is given the state h
    and walks down the tree of the vocabulary: where tokens with the same beginning go on differently, it chooses
    the next symbol among those that follow there. A token is a short list of choices, and -log p(token) the exact
    sum over them. Where only one symbol can follow, nothing is computed; what no token has there is impossible."""

    def __init__(self, config):
        super().__init__()
        C, D, S = config.n_embd, config.n_byte_embd, config.max_bytes + 1
        small = replace(config, n_embd=D, n_head=config.n_byte_head, n_kv_head=config.n_byte_head, d_ff=3 * D)
        self.S = S
        self.rotary = Rotary(S, small)
        self.byte_in = nn.Embedding(257, D)
        self.encoder = nn.ModuleList(Block(small, nn.Identity(), False) for _ in range(config.n_encoder_layer))
        self.pool = nn.Linear(D, C, bias=False)
        self.slices = Slices(C, (S - 1) * D, bias=False)
        self.byte_out = nn.Embedding(257, D)
        self.decoder = nn.ModuleList(Block(small, nn.Identity()) for _ in range(config.n_decoder_layer))
        self.norm = Norm(D, eps=config.norm_eps)
        self.head = nn.Linear(D, 257, bias=False)

    def spell(self, spelling, counts):
        """Tell the model its vocabulary; see grow_tree(). From then on all is look-ups in its tables."""
        for name, table in grow_tree(spelling, counts, self.S).items():
            self.register_buffer(name, table.to(self.head.weight.device), persistent=False)

    @torch.compiler.disable   # the shapes in here are others at each step
    def embed(self, idx):
        """(B, T) ids -> (B, T, C). A vector depends on the token alone, so each distinct one is encoded once."""
        tokens, where = idx.unique(return_inverse=True)                 # (M), (B, T)
        vectors = self.norm.weight.new_empty(len(tokens), self.pool.out_features)
        for L, which in by_size(self.length[tokens]):
            symbols = self.symbols[tokens[which], :L]                   # (n, L)
            x = self.byte_in(symbols)                                   # (n, L, D)
            for block in self.encoder:
                x = block(x, self.rotary(0, L))
            vectors[which] = self.pool(x.mean(1)).type_as(vectors)      # (n, C)
        return F.embedding(where, vectors)

    def decode(self, h, choices):
        """(n, C) states, (n, L) choices to make after them -> (n, L, 257) logits of the symbols at each."""
        L, D = choices.size(1), self.head.in_features
        x = self.slices(h, L * D).unflatten(-1, (L, D))                 # (n, L, D)
        x = x + self.byte_out(self.before[choices])                     # (n, L, D)
        for block in self.decoder:
            x = block(x, self.rotary(0, L))
        return self.head(self.norm(x)) + self.log_counts[choices]       # a model that knows nothing knows these

    @torch.compiler.disable
    def nll_of_symbols(self, h, targets):
        """(B, T, C) states, (B, T) targets -> (B, T, S) nats of each symbol, nan where there is no choice."""
        h, tokens = h.flatten(0, 1), targets.flatten()
        nats = self.log_counts.new_full((len(tokens), self.S), math.nan)
        nats[self.n_choices[tokens] == 0] = math.inf                    # an id without a token
        for L, which in by_size(self.n_choices[tokens]):
            choices = self.choices[tokens[which], :L]                   # (n, L)
            chosen = self.chosen[tokens[which], :L]                     # (n, L)
            nats[which[:, None], self.place[choices]] = self.nll_of_choices(h[which], choices, chosen)
        return nats.view(*targets.shape, -1)

    def nll_of_choices(self, h, choices, chosen):
        logits = self.decode(h, choices).flatten(0, 1)                  # (n, C), (n, L) -> (n L, 257)
        return F.cross_entropy(logits, chosen.flatten(), reduction='none').view(choices.shape)

    def nll(self, h, targets):
        """(B, T, C) states, (B, T) targets -> (B, T) nats."""
        return self.nll_of_symbols(h, targets).nansum(-1)

    def log_probs(self, h):
        """(B, C) states -> (B, V) log-probabilities of every next token."""
        every = torch.arange(len(self.symbols), device=h.device).expand(len(h), -1)   # (B, V)
        parts = [self.nll(h[:, None].expand(-1, ids.size(1), -1), ids) for ids in every.split(2**12, dim=1)]
        return -torch.cat(parts, dim=1)

    def sample(self, h, choose):
        """(B, C) states -> (B) token ids. The tokens that are still possible become fewer with each choice."""
        possible = (self.n_choices > 0).expand(len(h), -1)              # (B, V)
        for i in range(self.S):
            token = possible.byte().argmax(1)                           # (B), any one of them: all agree so far
            if (self.n_choices[token] <= i).all():
                return token
            symbol = choose(self.decode(h, self.choices[token, :i + 1])[:, -1])       # (B)
            possible = possible & ((self.chosen[:, i] == symbol[:, None]) | (self.n_choices <= i))


# ---------------------------------------------------------------------------------------------------
# 3. Layers that share weights (arXiv 2405.14159, sections 2.1 and 5.1)

class LoRA(nn.Module):
    """A Linear and a low-rank change to it, W x + B A x (arXiv 2106.09685). B is 0 at the start: no change."""

    def __init__(self, linear, rank):
        super().__init__()
        self.linear = linear
        self.A = nn.Linear(linear.in_features, rank, bias=False)
        self.B = nn.Parameter(torch.zeros(linear.out_features, rank))

    @property
    def weight(self):
        return self.linear.weight

    def forward(self, x):
        return self.linear(x) + F.linear(self.A(x), self.B)


def use_matrices(module, matrices, lora_rank):
    """Let an attention or a feed-forward use these {name: Linear}; with a rank, and a change of its own to each."""
    for name, linear in matrices.items():
        setattr(module, name, LoRA(linear, lora_rank) if lora_rank else linear)


# ---------------------------------------------------------------------------------------------------
# 4. Generation, and the whole

def choose(logits, temperature=1.0, top_k=0, top_p=1.0, generator=None):
    """(B, V) logits -> (B) choices: the best at temperature 0, else drawn from the top_k likeliest
    (0: all) among the fewest that together reach probability top_p."""
    if temperature == 0:
        return logits.argmax(-1)
    probs = (logits.float() / temperature).softmax(-1)
    if not top_k and top_p >= 1:
        return torch.multinomial(probs, 1, generator=generator)[:, 0]
    k = min(top_k or probs.size(-1), probs.size(-1))
    probs, order = probs.topk(k)                                        # (B, k), likeliest first
    probs[probs.cumsum(-1) - probs >= top_p] = 0                        # those before already reach top_p
    return order.gather(-1, torch.multinomial(probs, 1, generator=generator))[:, 0]


class LayerCache:
    """Keys and values of one layer, for `room` tokens, or more: earlier tokens needn't be read again."""

    def __init__(self, room):
        self.room = room
        self.length = 0

    def append(self, k, v):
        """(B, H, T, K) new ones -> all so far, (B, H, length, K)."""
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
        """The blocks, some with matrices in common. Norms and adapters are each layer's own."""
        c = self.config
        blocks = super().make_blocks()
        for i, block in enumerate(blocks):
            first = i % (c.share_every or c.n_layer) == 0               # of the layers that share
            if first or c.share == 'none':
                ffn = dict(block.ffn.named_children())
            if first or c.share != 'block':
                attn = dict(block.attn.named_children())
            use_matrices(block.ffn, ffn, c.lora_rank)
            use_matrices(block.attn, attn, 0 if c.share == 'ffn' else c.lora_rank)
        return blocks

    @torch.inference_mode()
    def generate(self, idx, max_new_tokens, **how):
        """Continue (B, T) token ids, T >= 1: yields (B) ids, max_new_tokens times. `how`: see choose().
        When the window outgrows block_size its older half is forgotten and the newer half is read afresh from
        position 0: exact, and paid once in block_size / 2 tokens."""
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
        """(B, T) token ids -> (B, V), the log-probability of every token of the vocabulary after them."""
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
