"""The configs are what their names and first lines say."""
import math
import re

import pytest
import torch

import configurator
import helpers
import prepare_wiki
import train
from helpers import ROOT
from model import GPT, Config
from stlm import tokenizer as tokenizers
from tools import parts


def run(*files):
    """The settings that train.py would have after these config files."""
    return configurator.configure(dict(vars(train)), argv=[f'config/{file}.py' for file in files])


def parameters(settings):
    vocab_size = {'bpe4096': 4096, 'bpe8192': 8192}.get(settings['tokenizer'], 50257)
    fields = {name: value for name, value in settings.items() if name in Config.__dataclass_fields__}
    with torch.device('meta'):   # shapes without numbers
        return GPT(Config(vocab_size=vocab_size, **fields), [b''] * vocab_size).count_parameters()


@pytest.mark.parametrize('size', [10, 50, 100])
@pytest.mark.parametrize('kind', ['tiny', 'byte'])
def test_parameters_are_those_of_the_name_and_of_the_header(kind, size):
    settings, found = run(f'{kind}_{size}m'), parameters(run(f'{kind}_{size}m'))
    header = (ROOT / f'config/{kind}_{size}m.py').read_text(encoding='utf-8')
    total = sum(found.values()) / 1e6
    assert float(re.search(r'Parameters: ([\d.]+) million', header)[1]) == round(total, 1)
    assert abs(total / size - 1) <= 0.03 or (kind, size) == ('tiny', 50)   # which is the paper's Table 1
    assert settings['dataset'] == 'simplewiki' and settings['out_dir'] == f'out/{kind}_{size}m'
    ends = sum(n for part, n in found.items() if part.startswith(('token', 'byte'))) / 1e6
    stated = re.search(r'(?:tables|decoder) ([\d.]+)', header)[1]
    assert float(stated) == round(ends, 1)


@pytest.mark.parametrize('name, V', [('tiny_10m', 8192), ('tiny_50m', 50257), ('tiny_100m', 50257)])
def test_the_operations_of_a_whole_run_are_those_of_a_count_by_hand(name, V):
    found = run(name)
    T, C, tokens = found['block_size'], found['n_embd'], found['block_size'] * found['batch_size'] * found['grad_accum'] * found['max_iters']
    a_layer = 2 * (4 * C * C + 3 * C * found['d_ff']) + 4 * T * C   # projections and feed-forward; q k' and its product with v
    in_all = 3 * (found['n_layer'] * a_layer + 2 * C * V) * tokens   # a backward pass costs two
    assert f'about {in_all:.1e}'.replace('+', '') in (ROOT / f'config/{name}.py').read_text(encoding='utf-8')


def test_model_py_lists_each_parameter_with_its_shape():
    status, out, err = helpers.run(ROOT, 'tools/parts.py', 'config/tiny_10m.py', '--n_kv_head=2')
    assert status == 0, err
    rows = [line.split() for line in out.splitlines()[:-2]]
    shapes = {name: [int(n) for n in numbers if n != 'x'] for name, *numbers, _ in rows}   # first, how many
    assert shapes['blocks.*.attn.key.weight'] == [9, 2 * 32, 256] and shapes['blocks.*.ffn.up.weight'] == [9, 768, 256]
    counts = {row[0]: int(row[-1].replace(',', '')) for row in rows}
    assert counts == {name: math.prod(numbers) for name, numbers in shapes.items()}
    assert f'parameters: {sum(counts.values()):,} = ' in out
    helpers.fails_in_one_line(helpers.run(ROOT, 'tools/parts.py', '--n_layer=3000'), '3000')


@pytest.mark.parametrize('name, folder', [('byte', ''), ('gpt2-16', 'byte_10m'), (str(ROOT / 'pretrained/tiny_10m'), 'tiny_10m')])
def test_a_planned_models_vocabulary_is_that_of_its_tokenizer(name, folder):
    made = tokenizers.load_tokenizer(None, ROOT / 'pretrained' / folder) if folder else prepare_wiki.ready_tokenizer(name)
    assert parts.size_of(name) == (made.n_vocab, max(len(token) for token in made.ranks))
    assert parts.size_of('gpt2') == (50257, 128)   # the longest: 64 characters of two bytes each
    if name in ('byte', 'gpt2-16'):
        with torch.device('meta'):
            model = GPT(Config(made.n_vocab, max(map(len, made.ranks)), embedding='byte_pool'), [b''] * made.n_vocab)
        planned, _ = parts.planned_model([f'--tokenizer={name}', '--embedding=byte_pool'])
        assert planned.count_parameters() == model.count_parameters()


def test_tiny_50m_is_table_1_of_the_paper():
    found = run('tiny_50m')
    expected = dict(n_layer=10, n_embd=512, n_head=16, ffn='swiglu', d_ff=1536, block_size=512, tokenizer='gpt2',
                    batch_size=24, grad_accum=20, max_iters=25000, warmup_iters=5000, optimizer='adamw',
                    learning_rate=6e-4, weight_decay=0.1, dropout=0.1, schedule='cosine', output_bias=False)
    assert {name: found[name] for name in expected} == expected


@pytest.mark.parametrize('name, part, share', [
    ('mobillama', 'feed-forward', 1 / 10), ('one_wide_ffn', 'feed-forward', 1), ('albert', 'attention', 1 / 10),
    ('mobilellm_ls', 'attention', 1 / 2), ('relaxed_recursive', 'feed-forward', 1 / 10)])
def test_sharing_configs_share_on_top_of_another(name, part, share):
    plain, changed = parameters(run('byte_10m')), parameters(run('byte_10m', name))
    assert changed[part] == plain[part] * share
    assert ('LoRA' in changed) == (name == 'relaxed_recursive')
