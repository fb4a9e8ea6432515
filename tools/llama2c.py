"""
A run in the files of llama2.c (https://github.com/karpathy/llama2.c), for its run.c and runq.c: NAME.bin, and its
vocabulary beside it, NAME.tokenizer.bin. convert.py calls write_model().

    ./run out/tiny.bin -z out/tiny.tokenizer.bin
"""
import math
import struct

import torch

from stlm.console import Failure
from stlm.files import write_whole
from stlm.tokenizer import END_OF_TEXT, spelling_of
from tools.int8 import to_int8

LAYER = ('attn_norm', 'attn.query', 'attn.key', 'attn.value', 'attn.out', 'ffn_norm',
         'ffn.gate', 'ffn.down', 'ffn.up')


def tokenizer_of(path):
    """The file of the vocabulary that belongs to a model's file."""
    return path.with_name(f'{path.stem}.tokenizer.bin')


def vocabulary_of(tokenizer):
    """[(our id, spelling, score)] by the id that run.c wants: 1 begins a text, and the bytes follow from 3 on.

    run.c puts a blank before a prompt. With the start of a text it makes the 2: a second start, which
    is spelled like both and has the best score. White space merges last, so that its last blank goes
    to the word that follows."""
    end = tokenizer.eot_token
    bytes_ = [tokenizer.ranks.get(bytes([byte]), end) for byte in range(256)]
    others = sorted({*range(tokenizer.n_vocab)} - {end, *bytes_})
    spelled = spelling_of(tokenizer)
    vocabulary = []
    for i in [bytes_[0], end, end, *bytes_, *others]:
        token = spelled[i] or b'<|%d|>' % i         # an empty one would end the file,
        token = token.replace(b'\0', b'<0x00>')     # and a 0 the string
        late = tokenizer.n_vocab if token.isspace() else 0
        vocabulary.append((i, token, -float(i + late)))
    vocabulary[1] = (end, END_OF_TEXT.encode(), 0.0)
    vocabulary[2] = (end, END_OF_TEXT.encode() + b' ', 1.0)
    return vocabulary


def in_pairs(weight, head_size):
    """Rows of queries or keys for a RoPE that turns neighbours, where ours turns halves."""
    heads = weight.unflatten(0, (-1, 2, head_size // 2))   # (H, 2, K/2, C)
    return heads.transpose(1, 2).flatten(0, 2)


def in_float32(tensors, head, shape, config):
    """The bytes of run.c's file, in pieces."""
    if not config.tie_embeddings:
        shape[5] *= -1
    yield struct.pack('<7i', *shape)
    angles = torch.zeros(config.block_size, config.n_embd // config.n_head)   # which run.c skips
    for tensor in [*tensors, angles, *head]:
        yield tensor.numpy().tobytes()


def in_int8(tensors, head, shape, config):
    """The bytes of runq.c's file, in pieces: the vectors in float32, then the matrices, in int8 groups with a scale each."""
    group = math.gcd(64, config.n_embd, config.d_ff)
    header = struct.pack('<Ii7iBi', 0x616b3432, 2, *shape, config.tie_embeddings, group)
    yield header.ljust(256, b'\0')
    for tensor in tensors:
        if tensor.dim() == 1:
            yield tensor.numpy().tobytes()
    for tensor in [*tensors, *head]:
        if tensor.dim() == 2:
            for part in to_int8(tensor.reshape(-1, group)):
                yield part.numpy().tobytes()


def in_bytes(vocabulary):
    yield struct.pack('<i', max(len(token) for _, token, _ in vocabulary))
    for _, token, score in vocabulary:
        yield struct.pack('<fi', score, len(token)) + token


@torch.no_grad()
def write_model(path, weights, config, tokenizer, int8):
    """The model's file at path, and its vocabulary beside it. weights are a Llama's, by our names."""
    if (config.rope_base, config.norm_eps) != (10000, 1e-5):
        raise Failure('llama2.c has rope_base=10000 and norm_eps=1e-05 built in, '
                      f'not {config.rope_base} and {config.norm_eps}')
    vocabulary = vocabulary_of(tokenizer)
    ids = [i for i, _, _ in vocabulary]
    tensors = [weights['tokens.embedding.weight'][ids]]
    for name in LAYER:   # all layers of a kind together
        for i in range(config.n_layer):
            tensor = weights[f'blocks.{i}.{name}.weight']
            if name in ('attn.query', 'attn.key'):
                tensor = in_pairs(tensor, config.n_embd // config.n_head)
            tensors.append(tensor)
    tensors.append(weights['norm.weight'])
    head = [] if config.tie_embeddings else [weights['tokens.head.weight'][ids]]
    shape = [config.n_embd, config.d_ff, config.n_layer, config.n_head, config.n_kv_head,
             len(ids), config.block_size]
    pieces = (in_int8 if int8 else in_float32)(tensors, head, shape, config)
    write_whole(tokenizer_of(path), lambda file: file.writelines(in_bytes(vocabulary)))
    write_whole(path, lambda file: file.writelines(pieces))   # last: it never lies beside the vocabulary of another model
