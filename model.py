"""
The network: a Llama-style transformer over tokens ("modern transformer", arXiv 2405.14159 section 4).

One call serves training and held-out evaluation alike, and multiple choice is made of its two halves:
    nll = model(idx, targets)      # (B, T), (B, T) -> (B, T) nats: -log p(target | everything up to idx)
Generation reads token by token through a key/value cache: model.generate().

Letters, the same in every comment: B batch, T tokens, C model width, H heads, K head size, V vocabulary; in
byte pooling M tokens in any order, S = max_bytes + 1 symbols (bytes and END) at most of each, N in all, D byte width.
"""
import copy
import math
from collections import Counter
from dataclasses import dataclass

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint


@dataclass
class Config:
    vocab_size: int = 50257       # V
    block_size: int = 512         # longest context, in tokens
    n_layer: int = 10
    n_head: int = 16              # H; the head size K is n_embd / n_head
    n_kv_head: int = 16           # key/value heads; fewer than n_head is grouped-query attention
    n_embd: int = 512             # C
    d_ff: int = 1536              # hidden width of the feed-forward
    ffn: str = 'swiglu'           # or 'gelu'
    tie_embeddings: bool = True   # one table for input and output
    share: str = 'none'           # what consecutive layers have in common: nothing, 'ffn', or 'block' (attention too)
    share_every: int = 0          # how many of them; 0 is all layers
    lora_rank: int = 0            # of each layer's own change to the matrices that it shares; 0 is none
    embedding: str = 'table'      # or 'byte_pool': no tables, tokens are spelled in and out
    n_byte_embd: int = 128        # D, the width of the byte encoder and decoder
    n_byte_head: int = 4          # their attention heads
    n_encoder_layer: int = 1      # blocks that read a token's bytes
    n_decoder_layer: int = 2      # blocks that spell the next token
    max_bytes: int = 16           # of the longest token that can be spelled

    def __post_init__(self):
        def check(ok, message):
            if not ok:
                raise ValueError(message)
        for name, value in vars(self).items():
            least = name not in ('share_every', 'lora_rank')
            check(not isinstance(value, int) or isinstance(value, bool) or value >= least,
                  f'{name}={value} must be at least {least:d}')
        check(self.n_embd % (2 * self.n_head) == 0,   # RoPE turns pairs, so K must be even
              f'n_embd={self.n_embd} must be a multiple of 2 * n_head={2 * self.n_head}')
        check(self.n_head % self.n_kv_head == 0,
              f'n_head={self.n_head} must be a multiple of n_kv_head={self.n_kv_head}')
        check(self.n_byte_embd % self.n_byte_head == 0,
              f'n_byte_embd={self.n_byte_embd} must be a multiple of n_byte_head={self.n_byte_head}')
        check(self.embedding in TOKENS, f"embedding='{self.embedding}' must be one of {', '.join(TOKENS)}")
        check(self.embedding != 'byte_pool' or self.max_bytes <= 16,
              f'max_bytes={self.max_bytes}: byte pooling is for tokens of at most 16 bytes: gpt2-16 or bpe<N>')
        check(self.ffn in ('swiglu', 'gelu'), f"ffn='{self.ffn}' must be swiglu or gelu")
        check(self.share in ('none', 'ffn', 'block'), f"share='{self.share}' must be none, ffn or block")
        check(self.share != 'none' or not (self.lora_rank or self.share_every),
              f"lora_rank={self.lora_rank}, share_every={self.share_every}: these need share='ffn' or 'block'")


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
        # 16 random bits a unit: on a CPU, drawing random numbers is the whole cost of dropout
        bits = torch.randint(-2**63, 2**63 - 1, (x.numel() // 4 + 1,), device=x.device)
        keep = bits.view(torch.int16)[:x.numel()].view_as(x) >= self.p * 2**16 - 2**15
        return x * (keep / (1 - self.p)).type_as(x)


def compute_dtype(x):
    """What autocast computes in: bfloat16, or x's own dtype outside of autocast."""
    on = torch.is_autocast_enabled(x.device.type)
    return torch.get_autocast_dtype(x.device.type) if on else x.dtype


def rotary_angles(block_size, head_size, base=10000.0):
    """cos and sin of position * base^(-2i/K), both (block_size, K/2). RoPE, arXiv 2104.09864."""
    frequencies = base ** (-torch.arange(0, head_size, 2).float() / head_size)   # (K/2)
    angles = torch.outer(torch.arange(block_size).float(), frequencies)          # (block_size, K/2)
    return angles.cos(), angles.sin()


def rotate(x, cos, sin):
    """Turn the pairs (i, i + K/2) of x (B, H, T, K) by the angles of their positions, (T, K/2) each.
    Halves rather than neighbours, as Hugging Face's Llama: its weights fit ours one to one."""
    a, b = x.chunk(2, dim=-1)                                                    # 2 x (B, H, T, K/2)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1).type_as(x)  # (B, H, T, K)


def causal_attention(q, k, v):
    """softmax(q k' / sqrt(K)) v, where the T queries are the last T of the S positions of k and v.
    q (B, H, T, K), k and v (B, H or fewer, S, K) -> (B, H, T, K)."""
    T, S = q.size(2), k.size(2)
    if T == 1 or not (q.is_cpu and T == S):
        mask = None if T in (1, S) else torch.ones(T, S, dtype=torch.bool, device=q.device).tril(S - T)
        return F.scaled_dot_product_attention(q, k, v, mask, is_causal=T == S > 1, enable_gqa=True)
    # on a CPU, training with plain products takes half of the time of scaled_dot_product_attention,
    # if 128 queries at a time look at the keys up to their own and the rest is never computed
    k, v = (x.repeat_interleave(q.size(1) // k.size(1), dim=1) for x in (k, v))
    q, future, y = q * q.size(3)**-0.5, q.new_full((T, T), -math.inf).triu(1), []
    for start in range(0, T, 128):
        end = min(start + 128, T)
        scores = q[:, :, start:end] @ k[:, :, :end].mT + future[start:end, :end]   # (B, H, 128, end)
        y.append(scores.softmax(-1) @ v[:, :, :end])                             # (B, H, 128, K)
    return torch.cat(y, dim=2)


class Attention(nn.Module):
    """Causal grouped-query attention: n_head queries share n_kv_head keys and values (arXiv 2305.13245)."""

    def __init__(self, config):
        super().__init__()
        self.head_size = config.n_embd // config.n_head
        kv_width = config.n_kv_head * self.head_size
        self.query = nn.Linear(config.n_embd, config.n_embd, bias=False)
        self.key = nn.Linear(config.n_embd, kv_width, bias=False)
        self.value = nn.Linear(config.n_embd, kv_width, bias=False)
        self.out = nn.Linear(config.n_embd, config.n_embd, bias=False)

    def forward(self, x, cos, sin, cache=None):
        x = x.to(compute_dtype(x))   # once, not once for each product
        q, k, v = (proj(x).unflatten(-1, (-1, self.head_size)).transpose(1, 2)   # (B, T, C) -> (B, H, T, K)
                   for proj in (self.query, self.key, self.value))
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        if cache is not None:
            k, v = cache.append(k, v)                                            # (B, H, past + T, K)
        y = causal_attention(q, k, v)                                            # (B, H, T, K)
        return self.out(y.transpose(1, 2).flatten(2))                            # (B, H, T, K) -> (B, T, C)


class FeedForward(nn.Module):
    """SwiGLU, down(silu(gate(x)) * up(x)) (arXiv 2002.05202), or GPT-2's plain down(gelu(up(x)))."""

    def __init__(self, width, d_ff, kind):
        super().__init__()
        self.gate = nn.Linear(width, d_ff, bias=False) if kind == 'swiglu' else None
        self.up = nn.Linear(width, d_ff, bias=False)
        self.down = nn.Linear(d_ff, width, bias=False)

    def forward(self, x):
        x = x.to(compute_dtype(x))
        return self.down(F.silu(self.gate(x)) * self.up(x) if self.gate else F.gelu(self.up(x)))


class LoRA(nn.Module):
    """A shared Linear and a low-rank change of one's own, W x + B A x (arXiv 2106.09685); B is 0 at the start."""

    def __init__(self, linear, rank):
        super().__init__()
        self.linear = linear
        self.A = nn.Linear(linear.in_features, rank, bias=False)
        self.B = nn.Parameter(torch.zeros(linear.out_features, rank))

    def forward(self, x):
        return self.linear(x) + F.linear(self.A(x), self.B)


def shared(module, lora_rank):
    """The module itself, for one more layer; with a rank, a twin that adds LoRA to each of its very matrices."""
    if lora_rank == 0:
        return module
    twin = copy.deepcopy(module)
    for name, linear in module.named_children():
        setattr(twin, name, LoRA(linear, lora_rank))
    return twin


class Block(nn.Module):
    def __init__(self, config, attn, ffn, dropout):
        super().__init__()
        self.attn_norm = nn.RMSNorm(config.n_embd, eps=1e-5)   # 1e-5 as in Llama
        self.attn = attn
        self.ffn_norm = nn.RMSNorm(config.n_embd, eps=1e-5)    # norms are each layer's own, shared or not
        self.ffn = ffn
        self.dropout = dropout

    def forward(self, x, cos, sin, cache=None):
        x = x + self.dropout(self.attn(self.attn_norm(x), cos, sin, cache))
        return x + self.dropout(self.ffn(self.ffn_norm(x)))


class TokenTable(nn.Module):
    """Tokens in and out through the usual tables: a row of C numbers for each of the V tokens."""

    def __init__(self, config):
        super().__init__()
        self.embedding = nn.Embedding(config.vocab_size, config.n_embd)
        self.head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        if config.tie_embeddings:
            self.head.weight = self.embedding.weight
        self.register_buffer('counts', torch.zeros(config.vocab_size))

    def init_weights(self):
        """Nothing but what GPT does."""

    def spell(self, spelling, counts):
        """A table knows nothing of bytes, but it may know (V) how often each token occurs in the training text:
        then its logits start from the log of that. Zeros: from nothing."""
        self.counts.copy_(counts)

    def embed(self, idx):
        return self.embedding(idx)                                               # (B, T) -> (B, T, C)

    def nll(self, h, targets):
        """(B, T, C) states, (B, T) targets -> (B, T, 1) nats. The (B*T, V) logits would be the largest
        tensor of the step by far, so they exist a few rows at a time, and again in the backward pass."""
        dtype = compute_dtype(h)
        weight = self.head.weight.to(dtype)   # once, not once for each chunk
        log_counts = self.counts.log1p()
        rows = 2**27 // self.head.out_features if h.is_cuda else 2**24 // self.head.out_features + 1

        def chunk_nll(h, targets):            # (rows, C), (rows) -> (rows)
            return F.cross_entropy(F.linear(h, weight) + log_counts, targets, reduction='none')
        chunks = zip(h.flatten(0, 1).to(dtype).split(rows), targets.flatten().split(rows))
        nll = [checkpoint(chunk_nll, *chunk, use_reentrant=False) for chunk in chunks]
        return torch.cat(nll).view(*targets.shape, 1)

    def freeze(self):
        """Nothing to prepare for generation."""

    def sample(self, h, **how):
        """(B, C) states -> (B) token ids."""
        return choose(self.head(h) + self.counts.log1p(), **how)


def pack(x, groups):
    """(M, S, ...), rows sorted into groups [(rows, length)] -> (N, ...), of each row its first `length`."""
    rows = x.split([n for n, L in groups])
    return torch.cat([part[:, :L].flatten(0, 1) for part, (n, L) in zip(rows, groups)])


def unpack(x, groups):
    """(N, ...) packed -> a view (rows, length, ...) for each group."""
    parts = x.split([n * L for n, L in groups])
    return [part.unflatten(0, group) for part, group in zip(parts, groups)]


class ByteBlock(nn.Module):
    """Attention among the symbols of one token, then a feed-forward. The symbols of many tokens lie packed in
    one flat (N, D), and attention is two matrix products a group: nothing is ever padded or masked."""

    def __init__(self, config, causal):
        super().__init__()
        D = config.n_byte_embd
        self.n_head, self.causal = config.n_byte_head, causal
        self.attn_norm, self.ffn_norm = nn.RMSNorm(D, eps=1e-5), nn.RMSNorm(D, eps=1e-5)
        self.qkv, self.out = nn.Linear(D, 3 * D, bias=False), nn.Linear(D, D, bias=False)
        self.ffn = FeedForward(D, 3 * D, config.ffn)

    def forward(self, x, groups):
        mixed = []
        for qkv in unpack(self.qkv(self.attn_norm(x)), groups):
            q, k, v = qkv.unflatten(-1, (3, self.n_head, -1)).permute(2, 0, 3, 1, 4)  # (n, L, 3 D) -> 3 x (n, H, L, K)
            scores = (q * q.size(-1)**-0.5) @ k.mT                               # (n, H, L, L)
            if self.causal:
                scores = scores + torch.full_like(scores[0, 0], -math.inf).triu(1)
            mixed.append((scores.softmax(-1) @ v).transpose(1, 2).flatten(2).flatten(0, 1))   # (n * L, D)
        x = x + self.out(torch.cat(mixed))                                       # (N, D)
        return x + self.ffn(self.ffn_norm(x))


class BytePool(nn.Module):
    """Tokens in and out by their spelling (arXiv 2405.14159, section 5.2), in place of the two tables.

    A token is its bytes and END; <|endoftext|> is the empty token, END alone. The encoder reads them and pools
    them into a vector of C; it sees nothing but the token, so each distinct one is encoded once. The decoder is
    given the state h, a slice of it for each position (MegaByte, arXiv 2305.07185), and spells the next token:
    -log p(token) is the exact sum over its bytes and its END, which is certain after max_bytes bytes. How often
    each token occurs in the training text is known before training, so the decoder starts from there: to its
    logits the log of how often each symbol follows what is spelled so far is added (see prior())."""
    END = 256

    def __init__(self, config):
        super().__init__()
        C, D, S = config.n_embd, config.n_byte_embd, config.max_bytes + 1
        self.register_buffer('spelling', torch.full((config.vocab_size, S), self.END, dtype=torch.int32))
        self.register_buffer('counts', torch.zeros(config.vocab_size))
        self.byte_in, self.place_in = nn.Embedding(257, D), nn.Embedding(S, D)
        self.encoder = nn.ModuleList(ByteBlock(config, causal=False) for _ in range(config.n_encoder_layer))
        self.pool = nn.Linear(D, C, bias=False)
        self.slices = nn.Linear(C, (S - 1) * D, bias=False)
        self.byte_out, self.place_out = nn.Embedding(257, D), nn.Embedding(S - 1, D)
        self.decoder = nn.ModuleList(ByteBlock(config, causal=True) for _ in range(config.n_decoder_layer))
        self.norm = nn.RMSNorm(D, eps=1e-5)
        self.head = nn.Linear(D, 257, bias=False)
        self.table = None   # every token encoded, while freeze() holds
        self.edges = None   # the vocabulary as a tree, once prior() has grown it

    def init_weights(self):
        """Bytes, places and slices of h of like size, so that the decoder hears all three from the start: with
        embeddings of 0.02 it takes hundreds of steps to notice the bytes. Its blocks start mild, as the core's."""
        for module in (self.byte_in, self.place_in, self.byte_out, self.place_out):
            nn.init.normal_(module.weight, std=1.0)
        nn.init.normal_(self.slices.weight, std=0.3 * self.slices.in_features**-0.5)
        nn.init.normal_(self.head.weight, std=0.02)
        for block in (*self.encoder, *self.decoder):
            for proj in (module for module in block.modules() if isinstance(module, nn.Linear)):
                nn.init.normal_(proj.weight, std=0.5 * proj.in_features**-0.5)
            for proj in (block.out, block.ffn.down):
                proj.weight.data /= math.sqrt(2 * len(self.decoder))

    def spell(self, spelling, counts):
        """Tell the model each token's bytes, a list with an item for each id, b'' for <|endoftext|>, and (V)
        how often it occurs in the training text, or zeros."""
        rows = [[*token, *[self.END] * (self.spelling.size(1) - len(token))] for token in spelling]
        self.spelling.copy_(torch.tensor(rows))                                  # (V, S)
        self.counts.copy_(counts)
        self.edges = None

    def grow(self):
        """The vocabulary as a tree of beginnings. Its edges are numbers 257 * node + symbol, growing; edge e leads
        to node e + 1, and node 0 is the empty beginning. Beside each, the log count of the tokens behind it."""
        counts = self.counts.cpu().double() + 1   # 1, so that none is impossible
        spelling = self.spelling[:len(counts)].cpu().long()
        node, edges, behind, total = torch.zeros_like(spelling[:, 0]), [], [], 0
        for place in range(spelling.size(1) - 1):
            edge, which = (257 * node + spelling[:, place]).unique(return_inverse=True)
            edges.append(edge)
            behind.append(which.bincount(counts))
            going = spelling[:, place] != self.END   # the other tokens end here
            node, counts, spelling = (total + which + 1)[going], counts[going], spelling[going]
            total += len(edge)
        self.edges = torch.cat(edges).to(self.counts.device)
        self.log_counts = torch.cat(behind).log().float().to(self.counts.device)

    def prior(self, spelling, groups):
        """(M, S) tokens -> (N, 257) log count of each symbol after the beginning of the token, less that of one
        which no token has there, a hundredth: the logits of a model that knows nothing but the counts."""
        if self.edges is None:
            self.grow()
        node, nodes = torch.zeros_like(spelling[:, 0], dtype=torch.long), []
        for place in range(groups[-1][1]):   # the longest token's places
            nodes.append(node)
            edge = 257 * node + spelling[:, place]
            found = torch.searchsorted(self.edges, edge).clamp(max=len(self.edges) - 1)
            node = (found + 1).where(self.edges[found] == edge, -1)              # -1: the vocabulary left behind
        distinct, which = pack(torch.stack(nodes, dim=1), groups).unique(return_inverse=True)
        logits = torch.zeros(len(distinct), 257, device=node.device)
        first, last = (torch.searchsorted(self.edges, 257 * (distinct + i)) for i in (0, 1))
        row = torch.arange(len(distinct), device=node.device).repeat_interleave(last - first)
        edge = torch.arange(len(row), device=node.device) + (last - (last - first).cumsum(0))[row]
        logits[row, self.edges[edge] % 257] = self.log_counts[edge] - math.log(0.01)
        return logits[which]                                                     # (N, 257)

    def spelled(self, token):
        """The bytes of a token, also of one that sample() added to the vocabulary."""
        return bytes(b for b in self.spelling[token].tolist() if b != self.END)

    def sort(self, tokens, most):
        """(M) ids -> the order that sorts them by length, their spelling (M, S) in it, and the groups
        [(tokens, length)] that they form; the length counts END, up to `most`."""
        spelling = self.spelling[tokens]                                         # (M, S)
        lengths = ((spelling != self.END).sum(1) + 1).clamp(max=most)            # (M)
        order = lengths.argsort(stable=True)
        return order, spelling[order], [(n, L) for L, n in enumerate(lengths.bincount().tolist()) if n]

    def encode(self, tokens):
        """(M) ids -> (M, C)."""
        order, spelling, groups = self.sort(tokens, most=self.spelling.size(1))
        places = torch.arange(spelling.size(1), device=tokens.device).expand_as(spelling)
        x = self.byte_in(pack(spelling, groups)) + self.place_in(pack(places, groups))           # (N, D)
        x = x.to(self.norm.weight.dtype)
        for block in self.encoder:
            x = block(x, groups)
        means = torch.cat([part.mean(1) for part in unpack(x, groups)])          # (M, D)
        return self.pool(means)[order.argsort()]                                 # (M, C)

    @torch.compiler.disable   # the shapes in here are others at each step
    def embed(self, idx):
        if self.table is not None:
            return F.embedding(idx, self.table)
        distinct, which = idx.unique(return_inverse=True)
        return F.embedding(which, self.encode(distinct))                         # (B, T) -> (B, T, C)

    def decode(self, h, spelling, groups):
        """(M, C) states and the (M, S) tokens to spell after them, sorted -> (N, 257) logits."""
        previous = spelling.roll(1, dims=1)
        previous[:, 0] = self.END   # of the token before
        places = torch.arange(spelling.size(1), device=h.device).expand_as(spelling)
        slices = self.slices(h).unflatten(-1, (spelling.size(1) - 1, -1))        # (M, S - 1, D)
        x = pack(slices, groups) + self.byte_out(pack(previous, groups)) + self.place_out(pack(places, groups))
        x = x.to(self.norm.weight.dtype)                                         # (N, D)
        for block in self.decoder:
            x = block(x, groups)
        return self.head(self.norm(x)) + self.prior(spelling, groups)

    @torch.no_grad()
    def freeze(self):
        """For generation: encode the whole vocabulary, once until the next train(). Then the encoder is free."""
        if self.table is not None:
            return
        self.table = torch.cat([self.encode(ids) for ids in torch.arange(
            len(self.spelling), device=self.spelling.device).split(2**13)])      # (V, C)
        self.ids = {tuple(spelling): i for i, spelling in enumerate(self.spelling.tolist())}

    def train(self, mode=True):
        if mode:
            self.table = None   # of weights that are about to change
        return super().train(mode)

    def _load_from_state_dict(self, *args):
        self.table = self.edges = None   # of the weights and counts before
        super()._load_from_state_dict(*args)

    @torch.no_grad()
    def sample(self, h, **how):
        """(B, C) states -> (B) token ids, spelled byte by byte. A spelling that the vocabulary doesn't have
        gets the next free id, and a row in the tables."""
        spelling = torch.full((len(h), self.spelling.size(1)), self.END, device=h.device)          # (B, S)
        going = torch.ones(len(h), dtype=torch.bool, device=h.device)
        for L in range(1, spelling.size(1)):
            logits = self.decode(h, spelling, [(len(h), L)]).unflatten(0, (len(h), L))[:, -1]      # (B, 257)
            symbol = choose(logits, **how).where(going, self.END)
            spelling[:, L - 1], going = symbol, going & (symbol != self.END)
            if not going.any():
                break
        spelled = [tuple(symbols) for symbols in spelling.tolist()]
        for new in {*spelled} - self.ids.keys():
            self.ids[new] = len(self.spelling)
            self.spelling = torch.cat((self.spelling, torch.tensor([new]).to(self.spelling)))
            self.table = torch.cat((self.table, self.encode(torch.tensor([self.ids[new]], device=h.device))))
        return torch.tensor([self.ids[symbols] for symbols in spelled], device=h.device)

    @torch.compiler.disable
    def nll(self, h, targets):
        """(B, T, C) states, (B, T) targets -> (B, T, S - 1) nats of each byte and END, then zeros."""
        order, spelling, groups = self.sort(targets.flatten(), most=self.spelling.size(1) - 1)
        logits = self.decode(h.flatten(0, 1)[order], spelling, groups)           # (N, 257)
        nll = F.cross_entropy(logits.float(), pack(spelling, groups).long(), reduction='none')   # (N)
        nll = torch.cat([F.pad(part, (0, spelling.size(1) - 1 - part.size(1))) for part in unpack(nll, groups)])
        return nll[order.argsort()].view(*targets.shape, -1)                     # (M, S - 1) -> (B, T, S - 1)


TOKENS = {'table': TokenTable, 'byte_pool': BytePool}


def choose(logits, temperature=1.0, top_k=0, top_p=1.0, generator=None):
    """(B, V) logits -> (B) choices: the best at temperature 0, else drawn from the top_k likeliest
    (0: all) among the fewest that together reach probability top_p."""
    if temperature == 0:
        return logits.argmax(-1)
    probs = (logits.float() / temperature).softmax(-1)
    if not top_k and top_p >= 1:
        return torch.multinomial(probs, 1, generator=generator)[:, 0]
    probs, order = probs.topk(min(top_k or probs.size(-1), probs.size(-1)))      # likeliest first
    probs[probs.cumsum(-1) - probs >= top_p] = 0   # what came before already reaches top_p
    return order.gather(-1, torch.multinomial(probs, 1, generator=generator))[:, 0]


class LayerCache:
    """Keys and values of one layer, for up to block_size tokens."""

    def __init__(self, room):
        self.room, self.length, self.k, self.v = room, 0, None, None

    def append(self, k, v):
        """(B, H, T, K) new ones -> all so far, (B, H, length, K)."""
        if self.k is None:
            shape = (*k.shape[:2], self.room, k.size(3))
            self.k, self.v = k.new_empty(shape), v.new_empty(shape)
        new = slice(self.length, self.length + k.size(2))
        self.k[:, :, new], self.v[:, :, new] = k, v
        self.length = new.stop
        return self.k[:, :, :self.length], self.v[:, :, :self.length]


class GPT(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config = config
        self.dropout = Dropout()
        self.tokens = TOKENS[config.embedding](config)
        self.blocks = nn.ModuleList()
        for i in range(config.n_layer):
            first = i % (config.share_every or config.n_layer) == 0   # of the layers that share
            if first or config.share != 'block':
                attn = Attention(config)
            if first or config.share == 'none':
                ffn = FeedForward(config.n_embd, config.d_ff, config.ffn)
            self.blocks.append(Block(config, shared(attn, config.lora_rank * (config.share == 'block')),
                                     shared(ffn, config.lora_rank), self.dropout))
        self.norm = nn.RMSNorm(config.n_embd, eps=1e-5)
        cos, sin = rotary_angles(config.block_size, config.n_embd // config.n_head)
        self.register_buffer('cos', cos, persistent=False)
        self.register_buffer('sin', sin, persistent=False)
        self.init_weights()

    def init_weights(self):
        """Normal with std 0.02; 0.02 / sqrt(2 n_layer) for the projections that add to the residual
        stream, so that its size doesn't grow with depth (GPT-2, section 2.3); norms start at 1."""
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Embedding)):
                nn.init.normal_(module.weight, std=0.02)
        for block in self.blocks:
            for proj in (block.attn.out, block.ffn.down):
                nn.init.normal_(getattr(proj, 'linear', proj).weight, std=0.02 / math.sqrt(2 * self.config.n_layer))
        self.tokens.init_weights()

    def hidden(self, idx, caches=None):
        """(B, T) token ids -> (B, T, C) final states; with caches, idx continues what they hold."""
        past = caches[0].length if caches else 0
        cos, sin = (table[past:past + idx.size(1)] for table in (self.cos, self.sin))   # (T, K/2)
        x = self.dropout(self.tokens.embed(idx).to(self.norm.weight.dtype))      # (B, T, C)
        for i, block in enumerate(self.blocks):
            x = block(x, cos, sin, caches[i] if caches else None)
        return self.norm(x)

    def tables(self):
        """The matrices that are AdamW's where Muon takes the others: those that are looked up or score symbols, and
        LoRA's (by Muon 2.186 bits per byte, by AdamW 2.157: docs/study.py, 'block + LoRA', seed 1337)."""
        embeddings = [module.weight for module in self.modules() if isinstance(module, nn.Embedding)]
        adapters = [p for module in self.modules() if isinstance(module, LoRA) for p in (module.A.weight, module.B)]
        return list(dict.fromkeys([*embeddings, self.tokens.head.weight, *adapters]))   # a tied one once

    def forward(self, idx, targets):
        """(B, T) token ids and the tokens that follow them -> (B, T) -log p(target) in nats."""
        return self.nll_of_symbols(idx, targets).sum(-1)

    def nll_of_symbols(self, idx, targets):
        """The same by symbol, (B, T, 1) for a table, (B, T, S - 1) for the bytes and END of byte pooling."""
        return self.tokens.nll(self.hidden(idx), targets)

    @torch.no_grad()
    def read(self, idx, window=None, caches=None):
        """Read (B, T) new tokens after those in window. Returns (B, C), the state after the last one,
        and the new window and caches. When the window outgrows block_size its older half is forgotten
        and the newer half is read afresh from position 0: exact, and paid once in block_size / 2 tokens."""
        window = idx if window is None else torch.cat((window, idx), dim=1)
        if window.size(1) > self.config.block_size:
            window, caches = window[:, -(self.config.block_size // 2):], None
        if caches is None:
            idx, caches = window, [LayerCache(self.config.block_size) for _ in self.blocks]
        return self.hidden(idx, caches)[:, -1], window, caches

    @torch.no_grad()
    def generate(self, idx, max_new_tokens, **how):
        """Continue (B, T) token ids, T >= 1: yields (B) ids, max_new_tokens times. `how`: see choose().
        A byte-pooling model may spell tokens that the vocabulary doesn't have; tokens.spelled() tells their bytes."""
        window = caches = None
        self.tokens.freeze()
        for _ in range(max_new_tokens):
            h, window, caches = self.read(idx, window, caches)
            idx = self.tokens.sample(h, **how)[:, None]                          # (B, 1)
            yield idx[:, 0]

    def matrices_to_bfloat16(self):
        """For generation under autocast: half the bytes to read for each token."""
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Embedding)):
                module.to(torch.bfloat16)

    def count_parameters(self):
        """{part: parameters}; a tensor used twice counts once."""
        def part(path):
            if path[0] == 'tokens' and self.config.embedding == 'byte_pool':
                return 'byte encoder' if path[1] in ('byte_in', 'place_in', 'encoder', 'pool') else 'byte decoder'
            names = {'tokens': 'token tables', 'attn': 'attention', 'ffn': 'feed-forward', 'A': 'LoRA', 'B': 'LoRA'}
            return next((names[word] for word in reversed(path) if word in names), 'norms')
        parts = Counter()
        for name, p in self.named_parameters():   # which yields a shared tensor once
            parts[part(name.split('.'))] += p.numel()
        return dict(parts)
