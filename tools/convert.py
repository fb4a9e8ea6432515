"""
Weights in and out: a public Llama becomes a run like any other, and a run becomes what other programs read.

    python -m tools.convert --from=HuggingFaceTB/SmolLM2-135M --out_dir=out/smollm2      # or --from=FOLDER
    python -m tools.convert --out_dir=out/quick --to=hf --file=out/quick-hf              # for transformers
    python -m tools.convert --out_dir=out/tiny --to=llama2c --file=out/tiny.bin          # for llama2.c's run.c
    python -m tools.convert --out_dir=out/tiny --to=llama2c_q8 --file=out/tiny-q8.bin    # for its runq.c
    python -m tools.convert --out_dir=out/quick --to=int8 --file=out/quick-int8          # a run of a quarter of the size

--from and --to=hf need `pip install safetensors`. llama2.c's files get a tokenizer.bin beside them.
"""
from_ = ''     # make a run of this folder in Hugging Face's layout, or of a name on huggingface.co
out_dir = ''   # the run's folder
to = ''        # what to make of the run: hf, llama2c, llama2c_q8 or int8
file = ''      # where: a folder for hf and int8, else a file

from configurator import Failure, configure
if __name__ == '__main__':
    configure(globals())   # before what takes long to import

import json
import math
import pathlib

import torch

from tools import llama2c
from stlm import run
from stlm import tokenizer as tokenizers
from stlm.download import download
from model import Config

# {name on huggingface.co: (revision, {file: sha256})}; others are taken as they are today
PINNED = {'HuggingFaceTB/SmolLM2-135M': ('93efa2f097d58c2a74874c7e644dbc9b0cee75a2', {
    'config.json': '1d556eab73b69c7f11f64c557a2f9c6f440bd4c6b89bb2584a6b498c92603843',
    'tokenizer.json': '9ca9acddb6525a194ec8ac7a87f24fbba7232a9a15ffa1af0c1224fcd888e47c',
    'model.safetensors': '80521b40281d6ce74e35c9282c22539e75aa0ac8578892b2a59955ef78d55da1'})}

# config.json: our names of what may vary, and what a Llama of ours has in common with theirs
SHAPE = dict(vocab_size='vocab_size', block_size='max_position_embeddings', n_layer='num_hidden_layers',
             n_head='num_attention_heads', n_kv_head='num_key_value_heads', n_embd='hidden_size',
             d_ff='intermediate_size', norm_eps='rms_norm_eps', tie_embeddings='tie_word_embeddings')
FIXED = dict(model_type='llama', hidden_act='silu', attention_bias=False, mlp_bias=False)

LAYER = {'attn_norm': 'input_layernorm', 'attn.query': 'self_attn.q_proj',
         'attn.key': 'self_attn.k_proj', 'attn.value': 'self_attn.v_proj',
         'attn.out': 'self_attn.o_proj', 'ffn_norm': 'post_attention_layernorm',
         'ffn.gate': 'mlp.gate_proj', 'ffn.up': 'mlp.up_proj', 'ffn.down': 'mlp.down_proj'}

# {our pattern of words: tokenizer.json's pre_tokenizer}: GPT-2's; none, for bytes; SmolLM2's, in which
# each digit is a word and white space before it stays whole
DIGITS = tokenizers.WORDS.replace(r' ?\p{N}++', r'\p{N}|\s++(?=\p{N})')
BYTES = dict(type='ByteLevel', add_prefix_space=False, trim_offsets=True, use_regex=True)
CUTS = {tokenizers.WORDS: BYTES, '': BYTES | dict(use_regex=False), DIGITS: dict(
    type='Sequence', pretokenizers=[dict(type='Digits', individual_digits=True), BYTES])}


def names_of(n_layer):
    """{a weight's name in our table model: its name in Hugging Face's Llama}"""
    names = {'tokens.embedding': 'model.embed_tokens', 'norm': 'model.norm', 'tokens.head': 'lm_head'}
    for i in range(n_layer):
        for ours, theirs in LAYER.items():
            names[f'blocks.{i}.{ours}'] = f'model.layers.{i}.{theirs}'
    return {f'{ours}.weight': f'{theirs}.weight' for ours, theirs in names.items()}


# --------------------------------------------------------------------------------------------------
# The tokenizer: tiktoken's ranks say which merge comes first, tokenizer.json which two parts it joins

def byte_letters():
    """The letter for each byte in tokenizer.json: its own in Latin-1 if that prints, else one from 256 on."""
    others = iter(range(256, 512))
    prints = {*range(33, 127), *range(161, 173), *range(174, 256)}
    return [chr(byte if byte in prints else next(others)) for byte in range(256)]


def halves(token, ranks):
    """The two parts that the merges before a token's own leave of its letters."""
    parts = list(token)
    while len(parts) > 2:
        merges = [ranks.get(a + b, math.inf) for a, b in zip(parts, parts[1:])]
        i = merges.index(min(merges))
        parts[i:i + 2] = [parts[i] + parts[i + 1]]
    return parts


def tokenizer_json(tokenizer):
    letters = dict(enumerate(byte_letters()))   # for str.translate
    ranks = {token.decode('latin-1').translate(letters): i for token, i in tokenizer.ranks.items()}
    merged = sorted((token for token in ranks if len(token) > 1), key=ranks.get)
    merges = [' '.join(halves(token, ranks)) for token in merged]
    end = dict(id=tokenizer.eot_token, content=tokenizers.END, special=True, normalized=False,
               single_word=False, lstrip=False, rstrip=False)
    model = dict(type='BPE', byte_fallback=False, merges=merges,
                 vocab=ranks | {tokenizers.END: tokenizer.eot_token})
    return dict(version='1.0', added_tokens=[end], normalizer=None, decoder=BYTES, model=model,
                pre_tokenizer=CUTS.get(tokenizer.pattern))


def read_tokenizer(path, name, start, vocab_size):
    """tokenizer.json as a tokenizer of ours. What would cut a text otherwise than ours is refused."""
    theirs = json.loads(path.read_text(encoding='utf-8'))
    model, cut, normalizer = theirs['model'], theirs['pre_tokenizer'], theirs['normalizer']
    patterns = [pattern for pattern, known in CUTS.items() if known == cut]
    if normalizer or model['type'] != 'BPE' or model.get('byte_fallback') or not patterns:
        raise Failure(f'{path}: {model["type"]}, normalizer {normalizer}, pre_tokenizer {cut}: supported is '
             'byte-level BPE without a normalizer, with the words of GPT-2 or SmolLM2')
    letters = {ord(letter): byte for byte, letter in enumerate(byte_letters())}
    special = {token['content'] for token in theirs['added_tokens'] if token['special']}
    ranks = {token.translate(letters).encode('latin-1'): i
             for token, i in model['vocab'].items() if token not in special}
    tokenizer = tokenizers.make_tokenizer(name, ranks, patterns[0], start, vocab_size)
    merges = [merge if isinstance(merge, str) else ' '.join(merge) for merge in model['merges']]
    if merges != tokenizer_json(tokenizer)['model']['merges']:
        raise Failure(f'{path}: its merges are not those of byte-pair encoding in the order of the ids')
    return tokenizer


# --------------------------------------------------------------------------------------------------
# Hugging Face's layout

def fetch(name):
    """The folder where a model of huggingface.co now lies."""
    if name.count('/') != 1:
        raise Failure(f'from={name}: no such folder, and on huggingface.co a name is OWNER/MODEL')
    folder = pathlib.Path('data/downloads', name.replace('/', '--'))
    revision, sums = PINNED.get(name, ('main', {}))
    for part in ('config.json', 'tokenizer.json', 'model.safetensors'):
        address = f'https://huggingface.co/{name}/resolve/{revision}/{part}'
        download(address, folder / part, sha256=sums.get(part))
    return folder


def read_hf(folder, name):
    """(tokenizer, config, weights) of a Llama."""
    from safetensors.torch import load_file
    theirs = json.loads((folder / 'config.json').read_text(encoding='utf-8'))
    theirs = dict(tie_word_embeddings=False, rope_theta=10000.0, rms_norm_eps=1e-6) | theirs
    theirs |= theirs.get('rope_parameters') or {}   # where newer ones keep RoPE's base
    head_size = theirs['hidden_size'] // theirs['num_attention_heads']
    only = dict(head_dim=head_size, rope_scaling=None, rope_type='default', quantization_config=None)
    for key, value in (FIXED | only).items():
        if theirs.get(key, value) not in (value, None):
            raise Failure(f'{folder}/config.json: {key}={theirs[key]} is not supported, only {value}')
    shape = {ours: theirs[key] for ours, key in SHAPE.items()}
    config = Config(**shape, rope_base=float(theirs['rope_theta']))
    tensors = {}
    for path in folder.glob('*.safetensors'):   # a large model comes in several
        tensors |= load_file(path)
    if config.tie_embeddings:
        tensors['lm_head.weight'] = tensors['model.embed_tokens.weight']
    names = names_of(config.n_layer)
    if odd := tensors.keys() ^ names.values():
        raise Failure(f'{folder}: {sorted(odd)[0]} is missing, or more than a Llama of this config.json has')
    end = theirs.get('eos_token_id')
    start = end if theirs.get('bos_token_id') is None else theirs['bos_token_id']   # of every text
    tokenizer = read_tokenizer(folder / 'tokenizer.json', name, start, config.vocab_size)
    if start != end:
        print(f'there, a text ends with {end}; here it ends as it begins, with {start}')
    return tokenizer, config, {ours: tensors[theirs].float() for ours, theirs in names.items()}


@torch.no_grad()
def llama_weights(model, idea=''):
    """{name: matrix or vector} of the Llama that computes the same: what layers share, and adapters,
    written out. A matrix is what it does to each unit vector."""
    config = model.config
    bias = 'output_bias' if config.output_bias else ''
    odd = {idea, config.embedding, config.ffn, bias} - {'', 'table', 'swiglu'}
    if odd:
        raise Failure(f'{" and ".join(odd)} is no Llama; only --to=int8 writes it')
    weights = {}
    for name in names_of(config.n_layer):
        module = model.get_submodule(name.removesuffix('.weight'))
        weights[name] = module.weight
        if 'ffn.' in name or 'attn.' in name:
            width = config.d_ff if 'down' in name else config.n_embd
            weights[name] = module(torch.eye(width)).T.contiguous()
    return weights


def write_hf(folder, weights, config, tokenizer):
    """A folder that transformers loads, from llama_weights()."""
    from safetensors.torch import save_file
    if tokenizer.pattern not in CUTS:
        raise Failure(f'tokenizer.json can say the words of GPT-2 and SmolLM2, not {tokenizer.pattern}')
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {theirs: weights[ours] for ours, theirs in names_of(config.n_layer).items()}
    if config.tie_embeddings:
        del tensors['lm_head.weight']
    save_file(tensors, folder / 'model.safetensors', {'format': 'pt'})
    shape = {theirs: getattr(config, ours) for ours, theirs in SHAPE.items()}
    ends = dict(bos_token_id=tokenizer.eot_token, eos_token_id=tokenizer.eot_token)
    files = dict(
        config=dict(**FIXED, **shape, **ends, architectures=['LlamaForCausalLM'],
                    rope_theta=config.rope_base, torch_dtype='float32'),
        generation_config=ends,
        tokenizer_config=dict(bos_token=tokenizers.END, eos_token=tokenizers.END,
                              tokenizer_class='PreTrainedTokenizerFast', model_max_length=config.block_size),
        tokenizer=tokenizer_json(tokenizer))
    for name, content in files.items():
        (folder / f'{name}.json').write_text(json.dumps(content, indent=1), encoding='utf-8')


def int8_rows(state_dict):
    """The weights with their matrices in int8, and {name: scales} of these."""
    weights, scales, done = dict(state_dict), {}, {}
    for name, weight in weights.items():
        if weight.dim() == 2:   # norms and biases are small, and stay
            key = weight.data_ptr()
            if key not in done:   # what layers share is kept once
                done[key] = llama2c.to_int8(weight)
            weights[name], scales[name] = done[key]
    return weights, scales


def main():
    target = pathlib.Path(file or out_dir)
    if not out_dir or bool(from_) == bool(to) or bool(to) != bool(file):
        raise Failure('give --from and --out_dir, or --out_dir, --to and --file: see convert.py --help')
    if to not in ('', 'hf', 'llama2c', 'llama2c_q8', 'int8'):
        raise Failure(f'to={to} must be hf, llama2c, llama2c_q8 or int8')
    if list(target.glob('*.pt')):
        raise Failure(f'{target}: holds a run already; choose another folder')
    if from_:
        source = pathlib.Path(from_)
        try:
            tokenizer, config, weights = read_hf(source if source.is_dir() else fetch(from_), source.name)
        except (ImportError, KeyError, TypeError, ValueError) as error:
            raise Failure(f'{from_}: {type(error).__name__}: {error}')
        spec = tokenizers.spec_of(tokenizer)
        checkpoint = dict(format=run.FORMAT, config=vars(config), idea='', model=weights, counts=None,
                          iter=0, tokenizer=spec, settings=dict(source=from_))
    else:
        model, tokenizer, checkpoint = run.load_run(out_dir)
    if to == 'int8':
        checkpoint = {key: checkpoint.get(key) for key in [*run.CONTENTS, 'counts']}
        checkpoint['model'], checkpoint['scales'] = int8_rows(model.state_dict())
        if checkpoint['counts'] is not None:   # their logarithms matter: two digits are enough
            checkpoint['counts'] = torch.as_tensor(checkpoint['counts']).bfloat16()
    if from_ or to == 'int8':
        target.mkdir(parents=True, exist_ok=True)
        tokenizers.save_tokenizer(tokenizer, target)
        run.save_checkpoint(target / 'best.pt', checkpoint)
    elif to == 'hf':
        write_hf(target, llama_weights(model, checkpoint['idea']), model.config, tokenizer)
    else:
        weights = llama_weights(model, checkpoint['idea'])
        llama2c.write_llama2c(target, weights, model.config, tokenizer, int8=to == 'llama2c_q8')
    files = [*target.iterdir()] if target.is_dir() else [target]
    print(f'{target}: written, {sum(one.stat().st_size for one in files) / 1e6:.1f} MB')


if __name__ == '__main__':
    main()
