"""
Hugging Face's layout of a Llama: config.json, tokenizer.json and model.safetensors in a folder. convert.py reads and
writes it. A Llama's weights map one to one onto our table model's.
"""
import json
import math
import pathlib

import torch

from stlm.console import Failure
from model import Config
from stlm import tokenizer as tokenizers
from stlm.download import download
from stlm.run import build_model, check_weights

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

# {our pattern of words: tokenizer.json's pre_tokenizer}: GPT-2's, and SmolLM2's, in which each digit is a word and
# white space before it stays whole
DIGITS = tokenizers.WORDS.replace(r' ?\p{N}++', r'\p{N}|\s++(?=\p{N})')
BYTES = dict(type='ByteLevel', add_prefix_space=False, trim_offsets=True, use_regex=True)
CUTS = {tokenizers.WORDS: BYTES, DIGITS: dict(
    type='Sequence', pretokenizers=[dict(type='Digits', individual_digits=True), BYTES])}


def safetensors():
    """The package that reads and writes weights, which only who converts needs."""
    try:
        import safetensors.torch
    except ImportError:
        raise Failure("weights in Hugging Face's layout need a package: pip install safetensors")
    return safetensors


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
    end = dict(id=tokenizer.eot_token, content=tokenizers.END_OF_TEXT, special=True, normalized=False,
               single_word=False, lstrip=False, rstrip=False)
    model = dict(type='BPE', byte_fallback=False, merges=merges,
                 vocab=ranks | {tokenizers.END_OF_TEXT: tokenizer.eot_token})
    return dict(version='1.0', added_tokens=[end], normalizer=None, decoder=BYTES, model=model,
                pre_tokenizer=CUTS.get(tokenizer.pattern))


def read_tokenizer(path, name, start, vocab_size):
    """tokenizer.json as a tokenizer of ours, in which `start` begins a text. What would cut a text otherwise than ours
    is refused."""
    theirs = json.loads(path.read_text(encoding='utf-8'))
    model, cut, normalizer = theirs['model'], theirs['pre_tokenizer'], theirs['normalizer']
    patterns = [pattern for pattern, known in CUTS.items() if known == cut]
    if normalizer or model['type'] != 'BPE' or model.get('byte_fallback') or not patterns:
        raise Failure(f'{path}: {model["type"]}, normalizer {normalizer}, pre_tokenizer {cut}: only byte-level '
                      'BPE without a normalizer that cuts text as GPT-2 or SmolLM2 do is supported')
    special = set()
    for token in theirs['added_tokens']:
        if not token['special']:
            raise Failure(f'{path}: {token["content"]!r} is an added token that is not special; here, text has no such tokens')
        special.add(token['content'])
    letters = {ord(letter): byte for byte, letter in enumerate(byte_letters())}
    ranks = {token.translate(letters).encode('latin-1'): i
             for token, i in model['vocab'].items() if token not in special}
    tokenizer = tokenizers.make_tokenizer(name, ranks, patterns[0], start, vocab_size)
    if tokenizer.n_vocab != vocab_size:
        raise Failure(f'{path}: has the id {tokenizer.n_vocab - 1}, but by config.json the vocabulary has {vocab_size} tokens')
    merges = [merge if isinstance(merge, str) else ' '.join(merge) for merge in model['merges']]
    if merges != tokenizer_json(tokenizer)['model']['merges']:
        raise Failure(f'{path}: its merges are not those of byte-pair encoding in the order of the ids')
    return tokenizer


# --------------------------------------------------------------------------------------------------
# The model

def fetch_model(name):
    """The folder where a model of huggingface.co now lies."""
    if name.count('/') != 1:
        raise Failure(f'source={name}: no such folder, and on huggingface.co a name is OWNER/MODEL')
    folder = pathlib.Path('data/downloads', name.replace('/', '--'))
    revision, sums = PINNED.get(name, ('main', {}))
    for part in ('config.json', 'tokenizer.json', 'model.safetensors'):
        address = f'https://huggingface.co/{name}/resolve/{revision}/{part}'
        download(address, folder / part, sha256=sums.get(part))
    return folder


def read_config(path):
    """(our Config, the id that begins a text) of config.json."""
    theirs = json.loads(path.read_text(encoding='utf-8'))
    theirs = dict(tie_word_embeddings=False, rope_theta=10000.0, rms_norm_eps=1e-6) | theirs
    theirs |= theirs.get('rope_parameters') or {}   # where newer ones keep RoPE's base
    head_size = theirs['hidden_size'] // theirs['num_attention_heads']
    only = dict(head_dim=head_size, rope_scaling=None, rope_type='default', quantization_config=None)
    for key, value in (FIXED | only).items():
        if theirs.get(key, value) not in (value, None):
            raise Failure(f'{path}: {key}={theirs[key]} is not supported, only {value}')
    config = Config(**{ours: theirs[key] for ours, key in SHAPE.items()}, rope_base=float(theirs['rope_theta']))
    end = theirs.get('eos_token_id')
    start = end if theirs.get('bos_token_id') is None else theirs['bos_token_id']
    if type(start) is not int or not 0 <= start < config.vocab_size:
        raise Failure(f'{path}: a text begins with the id {start}, but there are {config.vocab_size} tokens')
    if start != end:
        print(f'in the source a text ends with {end}; here it ends as it begins, with {start}')
    return config, start


def read_tensors(folder):
    """{name: tensor} of model.safetensors, or of the files that its index names."""
    index = folder / 'model.safetensors.index.json'
    if (folder / 'model.safetensors').exists() or not index.exists():
        files = ['model.safetensors']
    else:
        files = sorted({*json.loads(index.read_text(encoding='utf-8'))['weight_map'].values()})
    tensors = {}
    for file in files:
        try:
            more = safetensors().torch.load_file(folder / file)
        except safetensors().SafetensorError as error:
            raise Failure(f'{folder / file}: damaged ({error})')
        twice = tensors.keys() & more.keys()
        if twice:
            raise Failure(f'{folder}: {min(twice)} is in several of {", ".join(files)}')
        check_weights(more, folder / file)
        tensors |= more
    return tensors


def read_model(folder, name):
    """(tokenizer, Config, weights by our names) of a Llama in a folder. Its tokenizer gets the name."""
    config, start = read_config(folder / 'config.json')
    tokenizer = read_tokenizer(folder / 'tokenizer.json', name, start, config.vocab_size)
    tensors, names = read_tensors(folder), names_of(config.n_layer)
    if config.tie_embeddings:
        tensors['lm_head.weight'] = tensors['model.embed_tokens.weight']
    odd = tensors.keys() ^ names.values()
    if odd:
        raise Failure(f'{folder}: {min(odd)} is missing, or no Llama with this config.json has it')
    with torch.device('meta'):   # shapes without numbers
        model = build_model(config, tokenizers.spelling_of(tokenizer))
    for ours, p in model.state_dict().items():
        found = tensors[names[ours]].shape
        if found != p.shape:
            raise Failure(f'{folder}: {names[ours]} is {tuple(found)}, but by config.json it is {tuple(p.shape)}')
    return tokenizer, config, {ours: tensors[theirs].float() for ours, theirs in names.items()}


def write_model(folder, weights, config, tokenizer):
    """The files that transformers loads, from a Llama's weights by our names."""
    if tokenizer.pattern not in CUTS:
        raise Failure(f'tokenizer.json can cut text as GPT-2 and SmolLM2 do, not by {tokenizer.pattern}')
    tensors = {theirs: weights[ours] for ours, theirs in names_of(config.n_layer).items()}
    if config.tie_embeddings:
        del tensors['lm_head.weight']
    safetensors().torch.save_file(tensors, folder / 'model.safetensors', {'format': 'pt'})
    shape = {theirs: getattr(config, ours) for ours, theirs in SHAPE.items()}
    ends = dict(bos_token_id=tokenizer.eot_token, eos_token_id=tokenizer.eot_token)
    files = dict(
        config=dict(**FIXED, **shape, **ends, architectures=['LlamaForCausalLM'],
                    rope_theta=config.rope_base, torch_dtype='float32'),
        generation_config=ends,
        tokenizer_config=dict(bos_token=tokenizers.END_OF_TEXT, eos_token=tokenizers.END_OF_TEXT,
                              tokenizer_class='PreTrainedTokenizerFast', model_max_length=config.block_size),
        tokenizer=tokenizer_json(tokenizer))
    for name, content in files.items():
        (folder / f'{name}.json').write_text(json.dumps(content, indent=1), encoding='utf-8')
