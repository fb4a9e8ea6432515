"""
Weights in and out. A run becomes what other programs read, and a public Llama becomes a run like any other.

    python convert.py --from=HuggingFaceTB/SmolLM2-135M --out_dir=out/smollm2      # or --from=FOLDER, in that layout
    python convert.py --out_dir=out/quick --to=hf --file=out/quick-hf              # a folder for transformers
    python convert.py --out_dir=out/quick --to=llama2c --file=model.bin            # for llama2.c's run.c
    python convert.py --out_dir=out/quick --to=llama2c_q8 --file=model_q8.bin      # for its runq.c, int8
    python convert.py --out_dir=out/quick --to=int8 --file=out/quick-int8          # a run, a quarter of the size

--from and --to=hf need `pip install safetensors`. llama2.c's files get a tokenizer.bin beside them.
"""
from_ = ''     # a folder in Hugging Face's layout, or a model's name on huggingface.co, to make a run of
out_dir = ''   # the run's folder
to = ''        # hf, llama2c, llama2c_q8 or int8
file = ''      # what to write: a folder for hf and int8, a file for llama2.c

from configurator import configure, fail
if __name__ == '__main__':
    configure(globals())   # before what takes long to import

import dataclasses
import json
import math
import pathlib
import re
import struct

import torch

import run
import tokenizer as tokenizers
from download import download
from model import Config

# {model on huggingface.co: (revision, {file: sha256})}; another one is taken as it is today
PINNED = {'HuggingFaceTB/SmolLM2-135M': ('93efa2f097d58c2a74874c7e644dbc9b0cee75a2', {
    'config.json': '1d556eab73b69c7f11f64c557a2f9c6f440bd4c6b89bb2584a6b498c92603843',
    'tokenizer.json': '9ca9acddb6525a194ec8ac7a87f24fbba7232a9a15ffa1af0c1224fcd888e47c',
    'model.safetensors': '80521b40281d6ce74e35c9282c22539e75aa0ac8578892b2a59955ef78d55da1'})}
SHAPE = dict(vocab_size='vocab_size', block_size='max_position_embeddings', n_layer='num_hidden_layers',
             n_head='num_attention_heads', n_kv_head='num_key_value_heads', n_embd='hidden_size',
             d_ff='intermediate_size', norm_eps='rms_norm_eps', tie_embeddings='tie_word_embeddings')
ONLY = dict(model_type='llama', hidden_act='silu', attention_bias=False, mlp_bias=False, quantization_config=None)
LAYER = {'attn_norm': 'input_layernorm', 'attn.query': 'self_attn.q_proj', 'attn.key': 'self_attn.k_proj',
         'attn.value': 'self_attn.v_proj', 'attn.out': 'self_attn.o_proj', 'ffn_norm': 'post_attention_layernorm',
         'ffn.gate': 'mlp.gate_proj', 'ffn.up': 'mlp.up_proj', 'ffn.down': 'mlp.down_proj'}
# SmolLM2's words: each digit is one, and white space before it isn't cut
DIGITS = tokenizers.WORDS.replace(r' ?\p{N}++', r'\p{N}|\s++(?=\p{N})')
BYTE_LEVEL = dict(type='ByteLevel', add_prefix_space=False, use_regex=True)
WORDS = {tokenizers.WORDS: [BYTE_LEVEL], DIGITS: [dict(type='Digits', individual_digits=True), BYTE_LEVEL],
         '': [BYTE_LEVEL | dict(use_regex=False)]}


# ---------------------------------------------------------------------------------------------------
# Hugging Face's layout

def names_of(n_layer):
    """{a weight's name in our table model: its name in Hugging Face's Llama}"""
    names = {'tokens.embedding': 'model.embed_tokens', 'norm': 'model.norm', 'tokens.head': 'lm_head'}
    for i in range(n_layer):
        names |= {f'blocks.{i}.{ours}': f'model.layers.{i}.{theirs}' for ours, theirs in LAYER.items()}
    return {f'{ours}.weight': f'{theirs}.weight' for ours, theirs in names.items()}


def byte_letters():
    """[letter] by byte. tokenizer.json writes a token as letters: a byte that prints is its own Latin-1 letter,
    the others follow each other from 256 on."""
    prints = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = iter(range(256, 512))
    return [chr(byte if byte in prints else next(others)) for byte in range(256)]


def halves(token, ranks):
    """The two parts that the merges of lower rank make of a token: byte-pair encoding stopped one merge early."""
    parts = [bytes([byte]) for byte in token]
    while len(parts) > 2:
        pairs = [ranks.get(a + b, math.inf) for a, b in zip(parts, parts[1:])]
        if min(pairs) > ranks[token]:
            fail(f'no merges lead to the token {token}')
        first = pairs.index(min(pairs))
        parts[first:first + 2] = [parts[first] + parts[first + 1]]
    return parts


def merges_of(ranks):
    """The merges, in their order, from the ranks of what they make."""
    return [halves(token, ranks) for token in sorted(ranks, key=ranks.get) if len(token) > 1]


def read_tokenizer(folder, name, config):
    """tokenizer.json as our tokenizer. What would cut a text otherwise is refused."""
    source = json.loads((folder / 'tokenizer.json').read_text(encoding='utf-8'))
    model, added, words = source['model'], source['added_tokens'], source.get('pre_tokenizer') or {}
    words = [{key: value for key, value in part.items() if key != 'trim_offsets'}   # which cuts nothing
             for part in words.get('pretokenizers', [words])]
    words = [BYTE_LEVEL | part if part.get('type') == 'ByteLevel' else part for part in words]
    pattern = next((pattern for pattern, parts in WORDS.items() if parts == words), None)
    odd = [key for key in ('dropout', 'byte_fallback', 'continuing_subword_prefix', 'end_of_word_suffix') if model.get(key)]
    odd += [f'the {key} {value.get("type")}' for key in ('normalizer',) if (value := source.get(key))]
    odd += [f'the added token {token["content"]}, which is not special' for token in added if not token['special']]
    if model.get('type') != 'BPE' or odd or pattern is None:
        fail(f'{folder}/tokenizer.json: only byte-level BPE with the words of GPT-2 or SmolLM2 is supported, not '
             f'{model.get("type")} with {"; ".join(odd) or json.dumps(words)}')
    letters = {letter: byte for byte, letter in enumerate(byte_letters())}
    special = {token['content'] for token in added}
    ranks = {bytes(letters[letter] for letter in token): i for token, i in model['vocab'].items() if token not in special}
    merges = [merge.split(' ') if isinstance(merge, str) else merge for merge in model['merges']]
    merges = [[bytes(letters[letter] for letter in part) for part in merge] for merge in merges]
    if merges_of(ranks) != merges:   # tiktoken merges by rank, whatever the two parts
        fail(f'{folder}/tokenizer.json: the merges are not in the order of the ids')
    ends = [config.get('bos_token_id'), config.get('eos_token_id')]   # a text begins with the first of them
    start = next((i for i in ends if isinstance(i, int)), None)
    if start is None or start in ranks.values():
        fail(f'{folder}/config.json: bos_token_id={start} is not a special token, but every text begins with one')
    if ends[1] != start:
        print(f'{folder}: a text begins with {start} and ends with {ends[1]}; here {start} does both')
    return tokenizers.make(name, ranks, pattern, start, config['vocab_size'])


def read_hf(source):
    """A folder in Hugging Face's layout, or a name on its hub -> (tokenizer, checkpoint)."""
    from safetensors.torch import load_file
    folder = pathlib.Path(source)
    if not folder.is_dir():
        if not re.fullmatch(r'[\w.-]+/[\w.-]+', source):
            fail(f"--from={source}: no such folder; a name on huggingface.co is OWNER/MODEL")
        folder = pathlib.Path('data/downloads', source.replace('/', '--'))
        revision, sums = PINNED.get(source, ('main', {}))
        for name in ('config.json', 'tokenizer.json', 'model.safetensors'):
            download(f'https://huggingface.co/{source}/resolve/{revision}/{name}', folder / name, sha256=sums.get(name))
    theirs = json.loads((folder / 'config.json').read_text(encoding='utf-8'))
    rope = dict(rope_theta=theirs.get('rope_theta', 10000.0)) | (theirs.get('rope_parameters') or {})
    head_size = theirs['hidden_size'] // theirs['num_attention_heads']
    only = ONLY | dict(head_dim=head_size, rope_scaling=None, rope_type='default')
    for name, value in only.items():
        if (found := (theirs | rope).get(name)) not in (value, None):
            fail(f'{folder}/config.json: {name}={found} is not supported, only {value}')
    config = Config(rope_base=float(rope['rope_theta']), **{
        ours: theirs[name] for ours, name in SHAPE.items() if name in theirs})
    tensors = {}
    for path in sorted(folder.glob('*.safetensors')):   # a large model comes in several
        tensors |= load_file(path)
    state = {}
    for ours, name in names_of(config.n_layer).items():
        if name == 'lm_head.weight' and config.tie_embeddings:
            name = 'model.embed_tokens.weight'
        if name not in tensors:
            fail(f'{folder}: no tensor {name} in *.safetensors')
        state[ours] = tensors[name].float()
    extra = tensors.keys() - {*names_of(config.n_layer).values()}
    if extra := sorted(name for name in extra if not name.endswith('inv_freq')):   # of RoPE: computed
        fail(f'{folder}: a Llama has no tensor {extra[0]}')
    tokenizer = read_tokenizer(folder, pathlib.Path(source).name, theirs)
    return tokenizer, dict(format=run.FORMAT, config=dataclasses.asdict(config), idea='', model=state, counts=None,
                           tokenizer=tokenizers.spec_of(tokenizer), settings=dict(source=source), iter=0)


@torch.no_grad()
def llama_weights(model, idea):
    """{name: float32 matrix or vector} of the plain Llama that computes what the model does: shared matrices
    and adapters are written out for each layer."""
    config = model.config
    reasons = {f'ideas/{idea}.py': idea, 'byte pooling': config.embedding != 'table', 'ffn=gelu': config.ffn != 'swiglu',
               'an output bias': config.output_bias}
    for reason, present in reasons.items():
        if present:
            fail(f'{out_dir}: a model with {reason} is no Llama; only --to=int8 writes it')
    weights = {}
    for name in names_of(config.n_layer):
        module = model.get_submodule(name.removesuffix('.weight'))
        if name.startswith('blocks') and 'norm' not in name:   # what it does to each unit vector
            width = config.d_ff if 'down' in name else config.n_embd
            weights[name] = module(torch.eye(width)).T.contiguous()
        else:
            weights[name] = module.weight.detach().float()
    return weights


def write_hf(folder, weights, config, tokenizer):
    from safetensors.torch import save_file
    if tokenizer.pattern not in WORDS:
        fail(f'{out_dir}: only the words of GPT-2 and SmolLM2 are known to tokenizer.json, not {tokenizer.pattern}')
    folder.mkdir(parents=True, exist_ok=True)
    names = names_of(config.n_layer)
    if config.tie_embeddings:
        del names['tokens.head.weight']
    save_file({theirs: weights[ours] for ours, theirs in names.items()}, folder / 'model.safetensors', {'format': 'pt'})
    letters = byte_letters()

    def spell(token):
        return ''.join(letters[byte] for byte in token)

    merges = [' '.join(map(spell, parts)) for parts in merges_of(tokenizer.ranks)]
    vocab = {spell(token): i for token, i in tokenizer.ranks.items()} | {tokenizers.END: tokenizer.eot_token}
    end = dict(id=tokenizer.eot_token, content=tokenizers.END, special=True, normalized=False, single_word=False,
               lstrip=False, rstrip=False)
    parts = [part | dict(trim_offsets=True) if part['type'] == 'ByteLevel' else part for part in WORDS[tokenizer.pattern]]
    ends = dict(bos_token_id=tokenizer.eot_token, eos_token_id=tokenizer.eot_token)
    shape = {theirs: getattr(config, ours) for ours, theirs in SHAPE.items()}
    files = {
        'config': dict(architectures=['LlamaForCausalLM'], **ONLY, **shape, **ends, rope_theta=config.rope_base,
                       head_dim=config.n_embd // config.n_head, torch_dtype='float32'),
        'generation_config': ends,
        'tokenizer_config': dict(tokenizer_class='PreTrainedTokenizerFast', bos_token=tokenizers.END,
                                 eos_token=tokenizers.END, model_max_length=config.block_size),
        'tokenizer': dict(version='1.0', added_tokens=[end], decoder=dict(BYTE_LEVEL, trim_offsets=True),
                          pre_tokenizer=dict(type='Sequence', pretokenizers=parts) if parts[1:] else parts[0],
                          model=dict(type='BPE', vocab=vocab, merges=merges))}
    del files['config']['quantization_config']
    for name, content in files.items():
        text = json.dumps(content, indent=1, ensure_ascii=False)
        (folder / f'{name}.json').write_text(text + '\n', encoding='utf-8')


# ---------------------------------------------------------------------------------------------------
# int8, and llama2.c's files

def to_int8(rows):
    """(N, n) floats -> (N, n) int8 and the (N) scales that they are to be multiplied by."""
    scales = rows.abs().amax(dim=1).clamp(min=1e-20) / 127   # a row of zeros stays one
    return (rows / scales[:, None]).round().to(torch.int8), scales


def int8_rows(state_dict):
    """The weights with int8 rows for each matrix, and the scales of these rows. A shared matrix stays shared."""
    weights, scales, done = {}, {}, {}
    for name, weight in state_dict.items():
        if weight.dim() == 1:   # norms and biases are small, and each number counts
            weights[name] = weight
            continue
        if weight.data_ptr() not in done:
            done[weight.data_ptr()] = to_int8(weight.float())
        weights[name], scales[name] = done[weight.data_ptr()]
    return weights, scales


def llama2c_vocabulary(tokenizer):
    """[(our id, its spelling, its score)] by the id that run.c wants: 1 starts a text, and bytes begin at 3.

    run.c puts a blank before a prompt. The 2 is a second start of a text, spelled as the first and a blank: the best
    score merges these two at once, and the blank is gone. White space merges last, so that the last blank joins the
    word after it, as our words have it."""
    end, byte = tokenizer.eot_token, [tokenizer.ranks.get(bytes([i]), tokenizer.eot_token) for i in range(256)]
    spelled = tokenizers.spelling(tokenizer)
    ids = [byte[0], end, end, *byte, *sorted({*range(tokenizer.n_vocab)} - {*byte, end})]
    vocabulary = []
    for place, i in enumerate(ids):
        token = spelled[i] or (f'<|{i}|>' if spelled[i] is None else tokenizers.END).encode()
        if b'\0' in token:   # which would end a string of C
            token = b'<0x00>' if len(token) == 1 else f'<|{i}|>'.encode()
        white = tokenizer.n_vocab if token.isspace() else 0
        vocabulary.append((i, token, -float(i + white)))
    vocabulary[2] = end, tokenizers.END.encode() + b' ', 1.0
    return vocabulary


def write_llama2c(path, weights, config, tokenizer, int8):
    """model.bin: a header, then the weights, all layers of a kind together. Its RoPE turns neighbours, not halves."""
    if config.rope_base != 10000 or config.norm_eps != 1e-5:
        fail(f'rope_base={config.rope_base:g}, norm_eps={config.norm_eps:g}: llama2.c has 10000 and 1e-05 built in')
    vocabulary = llama2c_vocabulary(tokenizer)
    ids = torch.tensor([i for i, _, _ in vocabulary])

    def layers(name):
        stack = torch.stack([weights[f'blocks.{i}.{name}.weight'] for i in range(config.n_layer)])
        if name in ('attn.query', 'attn.key'):   # (layers, heads * halves * K/2, C): the halves become neighbours
            stack = stack.unflatten(1, (-1, 2, config.n_embd // config.n_head // 2)).transpose(2, 3).flatten(1, 3)
        return stack

    attn = [layers(f'attn.{name}') for name in ('query', 'key', 'value', 'out')]
    ffn = [layers(f'ffn.{name}') for name in ('gate', 'down', 'up')]
    norms = [layers('attn_norm'), layers('ffn_norm'), weights['norm.weight']]
    table, head = (weights[f'tokens.{name}.weight'][ids] for name in ('embedding', 'head'))
    head = [] if config.tie_embeddings else [head]
    numbers = [config.n_embd, config.d_ff, config.n_layer, config.n_head, config.n_kv_head, len(ids), config.block_size]
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, 'wb') as out:
        if int8:
            group = math.gcd(64, config.n_embd, config.d_ff)   # numbers that share a scale
            header = struct.pack('<Ii7iBi', 0x616b3432, 2, *numbers, config.tie_embeddings, group)
            out.write(header.ljust(256, b'\0'))
            for norm in norms:
                out.write(norm.numpy().tobytes())
            for matrix in [table, *(layer for stack in attn + ffn for layer in stack), *head]:
                for part in to_int8(matrix.reshape(-1, group)):
                    out.write(part.numpy().tobytes())
        else:
            numbers[5] *= 1 if config.tie_embeddings else -1
            out.write(struct.pack('<7i', *numbers))
            angles = torch.zeros(config.block_size, config.n_embd // config.n_head)   # which run.c skips
            for stack in [table, norms[0], *attn, norms[1], *ffn, norms[2], angles, *head]:
                out.write(stack.numpy().tobytes())
    with open(path.with_name('tokenizer.bin'), 'wb') as out:
        out.write(struct.pack('<i', max(len(token) for _, token, _ in vocabulary)))
        for _, token, score in vocabulary:
            out.write(struct.pack('<fi', score, len(token)) + token)


def main():
    target = pathlib.Path(out_dir if from_ else file)
    if bool(from_) == bool(to) or not out_dir or bool(to) != bool(file):
        fail('give --from and --out_dir, or --out_dir, --to and --file: convert.py --help')
    if to and to not in ('hf', 'llama2c', 'llama2c_q8', 'int8'):
        fail(f'to={to} must be hf, llama2c, llama2c_q8 or int8')
    if from_ or to == 'int8':
        if (target / 'best.pt').exists() or (target / 'ckpt.pt').exists():
            fail(f'{target}: holds a run already; choose another folder')
    try:
        if from_:
            tokenizer, checkpoint = read_hf(from_)
        else:
            model, tokenizer, checkpoint = run.load_run(out_dir)
        if to == 'hf':
            write_hf(target, llama_weights(model, checkpoint['idea']), model.config, tokenizer)
        if to.startswith('llama2c'):
            write_llama2c(target, llama_weights(model, checkpoint['idea']), model.config, tokenizer, to == 'llama2c_q8')
    except ImportError as error:
        fail(f'{error.name} is missing: pip install {error.name}')
    except (KeyError, TypeError, ValueError) as error:
        fail(f'{from_ or out_dir}: {type(error).__name__}: {error}')
    if from_ or to == 'int8':
        target.mkdir(parents=True, exist_ok=True)
        tokenizers.save(tokenizer, target)
        kept = {key: checkpoint.get(key) for key in [*run.CONTENTS, 'counts']}
        if to == 'int8':
            kept['model'], kept['scales'] = int8_rows(model.state_dict())
        run.save_checkpoint(target / 'best.pt', kept)
    size = target.stat().st_size if target.is_file() else sum(path.stat().st_size for path in target.iterdir())
    print(f'{target}: {size:,} bytes')


if __name__ == '__main__':
    main()
