"""convert.py beside transformers, tokenizers, and a reader of llama2.c's files that shares no code with it."""
import errno
import json
import math
import os
import pathlib
import random
import struct

import numpy as np
import pytest
import torch

from helpers import fails_in_one_line, make_run, run, story

from stlm import run as runs
from stlm import tokenizer as tokenizers

ODD = ['', ' ', 'Hello  world', "don't we'll I'M", 'x = 12345  67\n\n\n  y', '\t\ta\r\nb', 'Zoë 老师 🐈 naïve', 'a   1 \n 2',
       '½ ⅷ ٣٤', 'é', 'e\u0301', '\u00a0x\u2003y', ' .. !!??', 'x\u2028y', "'s 's's", '１２ ３']


def texts(n):
    """n strings of words, spaces, digits, signs and letters of many scripts, in no order."""
    letters = " \n\t'.,!?()abcdefgstrelABC0123456789éßжλ老师你🐈½\u00a0\u2003"
    words = story(60).split(' ')
    draw = random.Random(0)
    made = [''.join(draw.choice(letters) for _ in range(draw.randrange(30))) for _ in range(n // 2)]
    return made + [''.join(draw.choice([*words, ' ', '  ', '\n', '12', 'the ']) for _ in range(12)) for _ in range(n - n // 2)]


def converted(folder, *flags):
    status, out, err = run(folder, 'tools/convert.py', *flags)
    assert status == 0, err
    return out


def logits(model, idx):
    with torch.no_grad():
        return model.tokens.head(model.hidden(idx))


# ---------------------------------------------------------------------------------------------------
# Hugging Face's layout

BYTE_LEVEL = dict(type='ByteLevel', add_prefix_space=False, trim_offsets=True)


def foreign(folder, digits, tied=True):
    """A random Llama that transformers has saved, with a tokenizer that the library tokenizers has trained."""
    transformers, library = pytest.importorskip('transformers'), pytest.importorskip('tokenizers')
    tokenizer = library.Tokenizer(library.models.BPE())
    words = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
    if digits:
        words = library.pre_tokenizers.Sequence([library.pre_tokenizers.Digits(individual_digits=True), words])
    tokenizer.pre_tokenizer = words
    tokenizer.decoder = library.decoders.ByteLevel()
    special = ['<|endoftext|>', '<|im_start|>', '<|im_end|>']   # at the first ids
    tokenizer.train_from_iterator([story(300)], library.trainers.BpeTrainer(
        vocab_size=500, special_tokens=special, initial_alphabet=library.pre_tokenizers.ByteLevel.alphabet()))
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(
        vocab_size=512, hidden_size=64, intermediate_size=96, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, rms_norm_eps=1e-6, tie_word_embeddings=tied, bos_token_id=0,
        eos_token_id=0, rope_parameters=dict(rope_type='default', rope_theta=50000.0)))
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.1)
    model.save_pretrained(folder)
    tokenizer.save(str(folder / 'tokenizer.json'))
    return model.eval(), tokenizer


@pytest.mark.parametrize('digits, tied', [(True, True), (False, False)])
def test_a_llama_of_transformers_becomes_a_run_with_the_same_logits_and_the_same_ids(tmp_path, digits, tied):
    theirs, cut = foreign(tmp_path / 'theirs', digits, tied)
    converted(tmp_path, '--source=theirs', '--out_dir=ours')
    status, _, err = run(tmp_path, 'sample.py', '--out_dir=ours', '--max_new_tokens=1', '--device=cpu')
    assert status == 0 and 'learned nothing' not in err   # it has no steps of ours
    model, tokenizer, _ = runs.load_run(tmp_path / 'ours')
    idx = torch.randint(512, (2, 64))
    with torch.no_grad():
        assert (logits(model, idx) - theirs(idx).logits).abs().max() < 1e-4
    assert model.config.rope_base == 50000 and model.config.norm_eps == 1e-6 and tokenizer.eot_token == 0
    for text in ODD + texts(1000):
        assert tokenizer.encode_ordinary(text) == cut.encode(text).ids, text
    converted(tmp_path, '--out_dir=ours', '--to=hf', '--file=back')   # and all the way round
    converted(tmp_path, '--source=back', '--out_dir=again')
    again, same, _ = runs.load_run(tmp_path / 'again')
    assert same.ranks == tokenizer.ranks and same.pattern == tokenizer.pattern and same.eot_token == 0
    for (name, p), q in zip(model.state_dict().items(), again.state_dict().values()):
        assert torch.equal(p, q), name


@pytest.mark.parametrize('changes', [
    {}, dict(tie_embeddings=False, rope_base=500.0, norm_eps=1e-3), dict(share='ffn', lora_rank=3),
    dict(share='block', share_every=2), dict(share='block', lora_rank=4), dict(lora_rank=2)], ids=str)
def test_transformers_computes_what_a_run_computes(tmp_path, changes):
    transformers = pytest.importorskip('transformers')
    model, tokenizer = make_run(tmp_path / 'run', **changes)
    converted(tmp_path, '--out_dir=run', '--to=hf', '--file=hf')
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / 'hf').eval()
    idx = torch.randint(tokenizer.n_vocab, (2, 64))
    with torch.no_grad():
        assert (logits(model, idx) - theirs(idx).logits).abs().max() < 1e-5
    assert theirs.generation_config.eos_token_id == tokenizer.eot_token


@pytest.mark.parametrize('name', ['bpe', 'byte', 'sparse'])
def test_transformers_cuts_text_as_a_run_does(tmp_path, name):
    transformers = pytest.importorskip('transformers')
    ranks = tokenizers.train_bpe(tokenizers.count_words([story(300)]), 400)
    if name == 'sparse':   # ids that begin at 7, with gaps, as gpt2-16 and SmolLM2 have
        ranks = {token: 2 * rank + 7 for token, rank in ranks.items()}
    _, tokenizer = make_run(tmp_path / 'run', tokenizers.make_tokenizer(name, tokenizers.named_ranks(name) if name == 'byte' else ranks))
    converted(tmp_path, '--out_dir=run', '--to=hf', '--file=hf')
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / 'hf')
    for text in ODD + texts(1000):
        ids = tokenizer.encode_ordinary(text)
        assert theirs(text, add_special_tokens=False).input_ids == ids, text
        assert theirs.decode(ids, clean_up_tokenization_spaces=False) == text
    assert theirs.eos_token_id == theirs.bos_token_id == tokenizer.eot_token


def test_what_is_not_supported_is_one_line_that_names_it(tmp_path):
    foreign(tmp_path / 'good', digits=True)
    for file, change, word in [
            ('config.json', dict(model_type='qwen2'), 'qwen2'), ('config.json', dict(attention_bias=True), 'attention_bias'),
            ('config.json', dict(hidden_act='gelu'), 'gelu'), ('config.json', dict(bos_token_id=300), '300'),
            ('config.json', dict(rope_parameters=dict(rope_type='llama3', rope_theta=1e4)), 'llama3'),
            ('config.json', dict(bos_token_id=512), '512'), ('config.json', dict(bos_token_id=[1, 2]), '[1, 2]'),
            ('config.json', dict(intermediate_size=100), '(96, 64)'), ('config.json', dict(vocab_size=400), '(512, 64)'),
            ('config.json', dict(vocab_size='many'), 'TypeError'),
            ('config.json', dict(num_hidden_layers=4), 'model.layers.3'), ('config.json', dict(num_hidden_layers=2), 'model.layers.2'),
            ('tokenizer.json', dict(normalizer=dict(type='NFC')), 'NFC'),
            ('tokenizer.json', dict(pre_tokenizer=dict(type='Metaspace')), 'Metaspace'),
            ('tokenizer.json', dict(model=dict(type='Unigram')), 'Unigram'),
            ('tokenizer.json', dict(pre_tokenizer=dict(BYTE_LEVEL, use_regex=False)), "'use_regex': False"),
            ('tokenizer.json', dict(added_tokens=[dict(id=1, content='<think>', special=False)]), '<think>'),
            ('tokenizer.json', 'merges', 'merges')]:
        folder = tmp_path / 'changed'
        folder.mkdir(exist_ok=True)
        for path in (tmp_path / 'good').iterdir():
            (folder / path.name).write_bytes(path.read_bytes())
        content = json.loads((folder / file).read_text(encoding='utf-8'))
        if change == 'merges':
            content['model']['merges'].reverse()
        else:
            content |= change
        (folder / file).write_text(json.dumps(content), encoding='utf-8')
        fails_in_one_line(run(tmp_path, 'tools/convert.py', '--source=changed', '--out_dir=new'), word)
    fails_in_one_line(run(tmp_path, 'tools/convert.py', '--source=nowhere', '--out_dir=new'), 'nowhere')
    assert not (tmp_path / 'new').exists()


def test_what_is_no_llama_is_one_line(tmp_path):
    for i, (changes, word) in enumerate([(dict(output_bias=True), 'output_bias'), (dict(ffn='gelu'), 'gelu'),
                                         (dict(embedding='byte_pool', n_byte_embd=32), 'byte_pool')]):
        make_run(tmp_path / str(i), **changes)
        for to in ('hf', 'llama2c'):
            fails_in_one_line(run(tmp_path, 'tools/convert.py', f'--out_dir={i}', f'--to={to}', '--file=x'), word, 'no Llama')
    make_run(tmp_path / 'base', rope_base=500.0)
    fails_in_one_line(run(tmp_path, 'tools/convert.py', '--out_dir=base', '--to=llama2c', '--file=x'), '500')
    for flags in [[], ['--to=hf'], ['--out_dir=base', '--to=hf'], ['--out_dir=base', '--to=gguf', '--file=x'],
                  ['--source=x', '--to=hf', '--out_dir=base', '--file=x']]:
        fails_in_one_line(run(tmp_path, 'tools/convert.py', *flags))
    assert not (tmp_path / 'x').exists() and not (tmp_path / 'x.tokenizer.bin').exists()


def test_weights_in_several_files_are_those_of_model_safetensors_or_of_the_index(tmp_path):
    save_file = pytest.importorskip('safetensors.torch').save_file
    theirs, _ = foreign(tmp_path / 'theirs', digits=True)
    tensors = {name: p.detach().clone() for name, p in theirs.state_dict().items() if name != 'lm_head.weight'}
    other = {name: torch.zeros_like(p) for name, p in tensors.items()}
    save_file(other, tmp_path / 'theirs/z-older.safetensors')   # the last by name, and not the model
    names = sorted(tensors)
    converted(tmp_path, '--source=theirs', '--out_dir=one')
    (tmp_path / 'theirs/model.safetensors').unlink()
    for file, some in ('a', names[::2]), ('b', names[1::2]):
        save_file({name: tensors[name] for name in some}, tmp_path / f'theirs/{file}.safetensors')
    index = tmp_path / 'theirs/model.safetensors.index.json'
    fails_in_one_line(run(tmp_path, 'tools/convert.py', '--source=theirs', '--out_dir=two'), 'model.safetensors')
    index.write_text(json.dumps(dict(weight_map={name: f'{"ab"[i % 2]}.safetensors' for i, name in enumerate(names)})))
    converted(tmp_path, '--source=theirs', '--out_dir=two')
    for folder in 'one', 'two':
        ours = runs.load_run(tmp_path / folder)[0]
        assert torch.equal(ours.tokens.embedding.weight, theirs.model.embed_tokens.weight)
        assert torch.equal(ours.blocks[2].ffn.down.weight, theirs.model.layers[2].mlp.down_proj.weight)
    save_file({name: tensors[name] for name in names[1:]}, tmp_path / 'theirs/b.safetensors')
    fails_in_one_line(run(tmp_path, 'tools/convert.py', '--source=theirs', '--out_dir=three'), names[2], 'a.safetensors, b.safetensors')
    (tmp_path / 'theirs/b.safetensors').write_bytes(b'no weights')
    fails_in_one_line(run(tmp_path, 'tools/convert.py', '--source=theirs', '--out_dir=three'), 'b.safetensors: damaged')
    assert not (tmp_path / 'three').exists()


def test_a_converted_model_is_a_run_like_any_other(tmp_path):
    """Text is prepared for it, it is fine-tuned, asked, and exported again; a folder of its name lies there, as it would."""
    transformers = pytest.importorskip('transformers')
    foreign(tmp_path / 'theirs', digits=True)
    converted(tmp_path, '--source=theirs', '--out_dir=ours')
    (tmp_path / 'mine.txt').write_text(story(), encoding='utf-8')
    train = ['--dataset=mine', '--batch_size=2', '--eval_interval=2', '--eval_tokens=500', '--warmup_iters=0', '--device=cpu', '--dtype=float32']
    for script, *flags in (
            ('prepare_wiki.py', '--input=mine.txt', '--dataset=mine', '--tokenizer=ours'),
            ('train.py', '--init_from=ours', '--out_dir=tuned', '--max_iters=4', *train),
            ('train.py', '--init_from=resume', '--out_dir=tuned', '--max_iters=6', *train),
            ('train.py', '--eval_only=True', '--out_dir=tuned'),
            ('train.py', '--init_from=tuned', '--out_dir=again', '--max_iters=2', *train),
            ('sample.py', '--out_dir=again', '--max_new_tokens=3', '--device=cpu'),
            ('tools/convert.py', '--out_dir=again', '--to=hf', '--file=back')):
        status, _, err = run(tmp_path, script, *flags)
        assert status == 0, (script, flags, err)
    model = runs.load_run(tmp_path / 'again')[0]
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / 'back').eval()
    idx = torch.randint(512, (1, 64))
    with torch.no_grad():
        assert (logits(model, idx) - theirs(idx).logits).abs().max() < 1e-5
    weights = [runs.load_run(tmp_path / name)[0].tokens.embedding.weight for name in ('ours', 'tuned', 'again')]
    assert not torch.equal(weights[0], weights[1]) and not torch.equal(weights[1], weights[2])


def test_weights_that_are_no_numbers_are_named_and_go_neither_in_nor_out(tmp_path):
    save_file = pytest.importorskip('safetensors.torch').save_file
    theirs, _ = foreign(tmp_path / 'theirs', digits=True)
    tensors = {name: p.detach().clone() for name, p in theirs.state_dict().items() if name != 'lm_head.weight'}
    tensors['model.layers.1.mlp.up_proj.weight'][3, :2] = math.nan
    save_file(tensors, tmp_path / 'theirs/model.safetensors')
    fails_in_one_line(run(tmp_path, 'tools/convert.py', '--source=theirs', '--out_dir=new'),
                      'theirs/model.safetensors', '2 of', 'model.layers.1.mlp.up_proj.weight')
    model, _ = make_run(tmp_path / 'run', lora_rank=1)
    adapter = model.blocks[2].attn.value
    adapter.A.weight.data.fill_(1e30)   # each is a number, and what they make of the matrix is none
    adapter.B.data.fill_(1e30)
    path = tmp_path / 'run/best.pt'
    runs.save_checkpoint(path, runs.load_checkpoint(path) | dict(model=model.state_dict()))
    for to in 'hf', 'llama2c':
        fails_in_one_line(run(tmp_path, 'tools/convert.py', '--out_dir=run', f'--to={to}', '--file=new'), 'blocks.2.attn.value')
    assert not (tmp_path / 'new').exists()


# ---------------------------------------------------------------------------------------------------
# What is there stays there, and what is written is whole

EXPORTS = dict(hf='new', int8='new', llama2c='new.bin', llama2c_q8='new.bin')


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob('*') if path.is_file()}


@pytest.mark.parametrize('to', EXPORTS)
def test_nothing_that_exists_is_replaced(tmp_path, to):
    make_run(tmp_path / 'run')
    make_run(tmp_path / 'other', n_layer=1)
    target = tmp_path / EXPORTS[to]
    converted(tmp_path, '--out_dir=other', f'--to={to}', f'--file={target.name}')
    before = contents(tmp_path)
    fails_in_one_line(run(tmp_path, 'tools/convert.py', '--out_dir=run', f'--to={to}', f'--file={target.name}'), 'exists already')
    fails_in_one_line(run(tmp_path, 'tools/convert.py', '--out_dir=run', f'--to={to}', '--file=run/best.pt'), 'exists already')
    assert contents(tmp_path) == before
    if to.startswith('llama2c'):   # the words of one model never lie beside the weights of another
        target.unlink()
        fails_in_one_line(run(tmp_path, 'tools/convert.py', '--out_dir=run', f'--to={to}', '--file=new.bin'), 'new.tokenizer.bin exists')
        assert not target.exists()


def test_a_run_is_not_imported_over_anything(tmp_path):
    for name in 'run', 'empty':
        (tmp_path / name).mkdir()
    (tmp_path / 'run/notes.txt').write_text('mine')
    for name in 'run', 'empty':
        fails_in_one_line(run(tmp_path, 'tools/convert.py', '--source=theirs', f'--out_dir={name}'), 'exists already')
    assert [path.name for path in (tmp_path / 'run').iterdir()] == ['notes.txt']


@pytest.mark.parametrize('to', EXPORTS)
def test_an_export_and_an_import_get_along_with_windows_rules(tmp_path, to):
    windows = pytest.importorskip('windows')
    make_run(tmp_path / 'run')
    commands = [['--out_dir=run', f'--to={to}', f'--file={EXPORTS[to]}']]
    if to == 'hf':
        commands.append(['--source=new', '--out_dir=back'])
    for flags in commands:
        status, _, err = run(tmp_path, 'tools/convert.py', *flags, first=windows.simulate)
        assert status == 0, err
    assert not list(tmp_path.rglob('*.part'))
    if to == 'hf':
        assert torch.equal(*(runs.load_run(tmp_path / name)[0].norm.weight for name in ('run', 'back')))


def die_before_the_name():
    """For run(): the process ends where the finished folder would get its name."""
    os.rename = lambda *paths: os._exit(9)


def die_between_two_files():
    """For run(): the process ends where the second file would get its name."""
    replace, done = os.replace, []

    def one_only(*paths):
        done.append(paths)
        return replace(*paths) if len(done) == 1 else os._exit(9)
    os.replace = one_only


@pytest.mark.parametrize('to', EXPORTS)
def test_an_export_that_is_killed_leaves_nothing_under_the_models_name(tmp_path, to):
    make_run(tmp_path / 'run')
    flags = '--out_dir=run', f'--to={to}', f'--file={EXPORTS[to]}'
    die = die_between_two_files if to.startswith('llama2c') else die_before_the_name
    assert run(tmp_path, 'tools/convert.py', *flags, first=die)[0] == 9
    assert not (tmp_path / EXPORTS[to]).exists()
    if to.startswith('llama2c'):
        (tmp_path / 'new.tokenizer.bin').unlink()
    converted(tmp_path, *flags)
    assert (tmp_path / EXPORTS[to]).exists()


def no_space():
    """For run(): the disk is full at the third json file."""
    write_text, done = pathlib.Path.write_text, []

    def fails(path, *args, **kwargs):
        done.append(path)
        if len(done) == 3:
            raise OSError(errno.ENOSPC, 'No space left on device', str(path))
        return write_text(path, *args, **kwargs)
    pathlib.Path.write_text = fails


def test_an_export_that_fails_leaves_no_folder_at_all(tmp_path):
    make_run(tmp_path / 'run')
    before = contents(tmp_path)
    fails_in_one_line(run(tmp_path, 'tools/convert.py', '--out_dir=run', '--to=hf', '--file=new', first=no_space), 'No space left')
    assert contents(tmp_path) == before and [path.name for path in tmp_path.iterdir()] == ['run']


# ---------------------------------------------------------------------------------------------------
# int8

@pytest.mark.parametrize('changes', [{}, dict(tie_embeddings=False), dict(share='block', lora_rank=2),
                                     dict(embedding='byte_pool', n_byte_embd=32)], ids=str)
def test_a_run_in_int8_loads_as_any_run_and_is_a_quarter_of_the_size(tmp_path, changes):
    model, tokenizer = make_run(tmp_path / 'run', **{'n_embd': 256, 'd_ff': 512, **changes})
    converted(tmp_path, '--out_dir=run', '--to=int8', '--file=small')
    small, same, checkpoint = runs.load_run(tmp_path / 'small')
    assert same.ranks == tokenizer.ranks and checkpoint['config'] == vars(model.config)
    for (name, p), q in zip(model.state_dict().items(), small.state_dict().values()):
        allowed = p.abs().amax(-1, keepdim=True) / 127 * 0.5001 if p.dim() == 2 else 0
        assert ((p - q).abs() <= allowed).all(), name
    sizes = [(tmp_path / name / 'best.pt').stat().st_size for name in ('small', 'run')]
    assert sizes[0] < 0.29 * sizes[1], sizes   # 0.26, and torch's directory of a file this small


# ---------------------------------------------------------------------------------------------------
# llama2.c, read by its format's description: https://github.com/karpathy/llama2.c, run.c and runq.c

def read_llama2c(path):
    """(config, {name: array}) of a model.bin, whole or in int8 groups; those are multiplied out."""
    data, at, weights = path.read_bytes(), 28, {}
    int8 = data[:4] == b'24ka'   # 0x616b3432, little-endian
    fields = struct.unpack_from('<7i', data, 8 if int8 else 0)
    config = dict(zip(('dim', 'hidden', 'layers', 'heads', 'kv_heads', 'vocab', 'length'), fields))
    shared, config['vocab'] = config['vocab'] > 0, abs(config['vocab'])
    if int8:
        version, (shared, group), at = struct.unpack_from('<i', data, 4)[0], struct.unpack_from('<Bi', data, 36), 256
        assert version == 2
        config['group'] = group
    dim, hidden, layers = config['dim'], config['hidden'], config['layers']
    head_size = dim // config['heads']
    kv = head_size * config['kv_heads']
    shapes = dict(table=(config['vocab'], dim), att_norm=(layers, dim), wq=(layers, dim, dim), wk=(layers, kv, dim),
                  wv=(layers, kv, dim), wo=(layers, dim, dim), ffn_norm=(layers, dim), w1=(layers, hidden, dim),
                  w2=(layers, dim, hidden), w3=(layers, hidden, dim), norm=(dim,), angles=(config['length'], head_size),
                  head=(config['vocab'], dim))
    order = list(shapes)
    if int8:
        order = ['att_norm', 'ffn_norm', 'norm', 'table', 'wq', 'wk', 'wv', 'wo', 'w1', 'w2', 'w3', 'head']
    for name in order[:-1] if shared else order:
        shape = shapes[name]
        parts = []
        for _ in range(shape[0] if int8 and len(shape) == 3 else 1):
            count = int(np.prod(shape[1:] if int8 and len(shape) == 3 else shape))
            if int8 and 'norm' not in name:
                numbers = np.frombuffer(data, 'i1', count, at).reshape(-1, group)
                scales = np.frombuffer(data, '<f4', count // group, at + count)
                parts.append(numbers * scales[:, None])
                at += count + 4 * (count // group)
            else:
                parts.append(np.frombuffer(data, '<f4', count, at))
                at += 4 * count
        weights[name] = np.concatenate(parts).reshape(shape)
    assert at == len(data)
    weights.setdefault('head', weights['table'])
    return config, weights


def read_vocabulary(path):
    """[(spelling, score)] of a file that llama2.c takes for its tokenizer."""
    data, at, vocabulary = path.read_bytes(), 4, []
    while at < len(data):
        score, size = struct.unpack_from('<fi', data, at)
        assert size > 0   # run.c takes nothing for the end of the file
        vocabulary.append((data[at + 8:at + 8 + size], score))
        at += 8 + size
    assert struct.unpack_from('<i', data)[0] == max(len(token) for token, _ in vocabulary)
    return vocabulary


def forward(config, weights, ids, activations=False):
    """The logits after each of the ids, as run.c computes them: RoPE turns neighbours. With activations, as runq.c
    does: what a matrix is applied to is rounded to int8 too, in groups."""
    def norm(x, weight):
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-5) * weight

    def rounded(x):
        if not activations:
            return x
        groups = x.reshape(len(x), -1, config['group'])
        scales = np.abs(groups).max(-1, keepdims=True) / 127
        return (np.round(groups / scales) * scales).reshape(x.shape)

    T, K = len(ids), config['dim'] // config['heads']
    angles = np.outer(np.arange(T), 10000.0 ** (-np.arange(0, K, 2) / K))[:, None]

    def turn(x):
        pairs = x.reshape(T, -1, K // 2, 2)
        a, b = pairs[..., 0], pairs[..., 1]
        return np.stack((a * np.cos(angles) - b * np.sin(angles), a * np.sin(angles) + b * np.cos(angles)), -1).reshape(T, -1, K)

    x = weights['table'][ids].astype(np.float64)
    for i in range(config['layers']):
        w = {name: weight[i] for name, weight in weights.items() if len(weight) == config['layers']}
        h = rounded(norm(x, w['att_norm']))
        q, k, v = turn(h @ w['wq'].T), turn(h @ w['wk'].T), (h @ w['wv'].T).reshape(T, -1, K)
        k, v = (np.repeat(part, config['heads'] // config['kv_heads'], 1) for part in (k, v))
        scores = np.einsum('thk,shk->hts', q, k) / np.sqrt(K) + np.triu(np.full((T, T), -np.inf), 1)
        scores = np.exp(scores - scores.max(-1, keepdims=True))
        mixed = np.einsum('hts,shk->thk', scores / scores.sum(-1, keepdims=True), v).reshape(T, -1)
        x = x + rounded(mixed) @ w['wo'].T
        h = rounded(norm(x, w['ffn_norm']))
        gate = h @ w['w1'].T
        x = x + rounded(gate / (1 + np.exp(-gate)) * (h @ w['w3'].T)) @ w['w2'].T
    return rounded(norm(x, weights['norm'])) @ weights['head'].T


def encode(vocabulary, text):
    """The ids of a prompt as run.c finds them: a start, a blank, characters or else bytes, then the best merges."""
    ids = {token: i for i, (token, _) in reversed([*enumerate(vocabulary)])}
    found = [1]
    for character in ' ' + text if text else '':
        raw = character.encode()
        found += [ids[raw]] if raw in ids else [byte + 3 for byte in raw]
    while True:
        merges = [(vocabulary[ids[pair]][1], -at) for at in range(len(found) - 1)
                  if (pair := vocabulary[found[at]][0] + vocabulary[found[at + 1]][0]) in ids]
        if not merges:
            return found
        at = -max(merges)[1]
        found[at:at + 2] = [ids[vocabulary[found[at]][0] + vocabulary[found[at + 1]][0]]]


@pytest.mark.parametrize('changes', [{}, dict(tie_embeddings=False), dict(share='block', lora_rank=3)], ids=str)
def test_llama2c_files_compute_what_the_run_computes(tmp_path, changes):
    model, tokenizer = make_run(tmp_path / 'run', **changes)
    converted(tmp_path, '--out_dir=run', '--to=llama2c', '--file=model.bin')
    converted(tmp_path, '--out_dir=run', '--to=llama2c_q8', '--file=q8.bin')
    config, weights = read_llama2c(tmp_path / 'model.bin')
    vocabulary = read_vocabulary(tmp_path / 'model.tokenizer.bin')
    assert config['vocab'] == len(vocabulary) == tokenizer.n_vocab + 2
    places = {token: i for i, (token, _) in reversed([*enumerate(vocabulary)])}
    ours = [tokenizer.eot_token, *tokenizer.encode_ordinary('The cat draws seven apples.')]
    theirs = [1] + [places[tokenizer.decode_bytes([i])] for i in ours[1:]]
    expected = logits(model, torch.tensor([ours]))[0].numpy()
    got = forward(config, weights, theirs)
    for i in range(tokenizer.n_vocab - 1):
        assert np.abs(got[:, places[tokenizer.decode_bytes([i]) or b'<0x00>']] - expected[:, i]).max() < 1e-4 if i else True
    assert np.abs(got[:, 1] - expected[:, tokenizer.eot_token]).max() < 1e-4
    small, rounded = read_llama2c(tmp_path / 'q8.bin')
    assert small.pop('group') == 32 and small == config
    for name, weight in weights.items():
        assert np.abs(weight - rounded.get(name, 0)).max() <= np.abs(weight).max() / 254 * 1.001, name


def test_llama2c_cuts_a_prompt_as_the_run_does(tmp_path):
    _, tokenizer = make_run(tmp_path / 'run')
    converted(tmp_path, '--out_dir=run', '--to=llama2c', '--file=model.bin')
    vocabulary = read_vocabulary(tmp_path / 'model.tokenizer.bin')
    prompts = [line for line in story(200).split('\n') if line] + [
        'def f(x):\n    return x', ' begins with a blank', 'two  blanks', '\xa0', 'Zoë 老师 🐈', 'a' * 60, '1066!?']
    for text in prompts:
        ids = encode(vocabulary, text)
        assert ids[0] == 2   # the start of a text, with the blank that run.c puts before a prompt
        spelled = [vocabulary[i][0] for i in ids[1:]]
        assert spelled == [tokenizer.decode_bytes([i]) for i in tokenizer.encode_ordinary(text)], text
    assert encode(vocabulary, '') == [1]
