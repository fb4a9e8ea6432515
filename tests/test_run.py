"""Checkpoints: what is saved is what is loaded, and what is not whole is one line."""
import copy
import math
import random

import pytest
import torch

import train
from configurator import configure
from stlm.console import Failure
from stlm import run as runs
from stlm import tokenizer as tokenizers
from model import Config

SHAPE = dict(vocab_size=300, block_size=16, n_layer=2, n_head=2, n_kv_head=1, n_embd=32, d_ff=48)


@pytest.fixture
def folder(tmp_path):
    """A run's folder with best.pt, of random weights."""
    ranks = tokenizers.train_bpe(tokenizers.count_words(['the cat sees the moon and the cat forgets the moon'] * 9), 299)
    tokenizer = tokenizers.make_tokenizer('bpe300', ranks)
    tokenizers.save_tokenizer(tokenizer, tmp_path)
    config = Config(**SHAPE | dict(vocab_size=tokenizer.n_vocab))
    model = runs.build_model(config, tokenizers.spelling_of(tokenizer))
    runs.save_checkpoint(tmp_path / 'best.pt', dict(
        format=runs.FORMAT, config=vars(config), idea='', model=model.state_dict(), counts=None,
        tokenizer=tokenizers.spec_of(tokenizer), settings={}, iter=7))
    return tmp_path


def change(folder, **values):
    path = folder / 'best.pt'
    torch.save(torch.load(path, weights_only=True) | values, path)


def one_line(folder, *words):
    with pytest.raises(Failure) as error:
        runs.load_run(folder)
    message = str(error.value)
    assert '\n' not in message and 'best.pt' in message, message
    for word in words:
        assert word in message, (word, message)


def test_a_run_is_loaded_as_it_was_saved(folder):
    model, tokenizer, checkpoint = runs.load_run(folder)
    saved = torch.load(folder / 'best.pt', weights_only=True)
    assert checkpoint['iter'] == 7 and not model.training
    assert all(torch.equal(p, saved['model'][name]) for name, p in model.state_dict().items())
    assert tokenizer.decode_bytes(tokenizer.encode_ordinary('the cat')) == b'the cat'


def test_each_bit_that_flips_is_noticed_or_changes_nothing(folder):
    raw, rng = (folder / 'best.pt').read_bytes(), random.Random(1)
    right = runs.load_run(folder)[0].state_dict()
    for _ in range(150):
        harmed = bytearray(raw)
        harmed[rng.randrange(len(raw))] ^= 1 << rng.randrange(8)
        (folder / 'best.pt').write_bytes(harmed)
        try:
            state = runs.load_run(folder)[0].state_dict()
        except Failure as error:
            assert '\n' not in str(error)
        else:
            assert all(torch.equal(state[name], p) for name, p in right.items())


@pytest.mark.parametrize('damage, words', [
    (torch.zeros(3), ['other contents']), ({'format': 2}, ['format 2', 'train again']), ({'format': 3}, ['its config is None']),
    ([1, 2], ['other contents']), ({'format': '3'}, ['other contents'])])
def test_a_foreign_file_is_one_line(folder, damage, words):
    torch.save(damage, folder / 'best.pt')
    one_line(folder, *words)


def test_so_are_weights_and_shapes_that_do_not_fit(folder):
    saved = torch.load(folder / 'best.pt', weights_only=True)
    change(folder, model={f'_orig_mod.{name}': p for name, p in saved['model'].items()})
    one_line(folder, 'not a checkpoint of this code')
    change(folder, model=saved['model'], config=saved['config'] | dict(n_wings=2))
    one_line(folder, 'n_wings')
    for wrong in dict(n_head=3), dict(n_layer='two'), dict(n_embd=64):
        change(folder, config=saved['config'] | wrong)
        one_line(folder)
    change(folder, config=saved['config'], idea='none_such')
    one_line(folder, 'ideas')
    (folder / 'best.pt').write_bytes(b'')
    one_line(folder, 'not a whole checkpoint')
    (folder / 'best.pt').unlink()
    one_line(folder, 'train first', '--out_dir=')


def test_no_field_is_compared_with_one_that_is_odd(folder):
    saved = torch.load(folder / 'best.pt', weights_only=True)
    for odd in (torch.zeros(2), '300', None):
        change(folder, counts=torch.ones(300), tokenizer=saved['tokenizer'] | dict(vocab_size=odd))
        one_line(folder, 'vocab_size')
    change(folder, tokenizer=saved['tokenizer'], model=saved['model'] | {'norm.weight': 'x'}, scales={'norm.weight': torch.ones(1)})
    one_line(folder, 'norm.weight')


def test_another_tokenizer_beside_it_is_refused(folder):
    file = folder / 'tokenizer.tiktoken'
    lines = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b''.join(lines[:-1]))
    with pytest.raises(Failure) as error:
        runs.load_run(folder)
    assert '\n' not in str(error.value)


def test_int8_rows_come_back_as_what_they_stand_for(folder):
    saved = torch.load(folder / 'best.pt', weights_only=True)
    name = 'blocks.0.ffn.up.weight'
    weight = saved['model'][name]
    scale = weight.abs().amax(1) / 127
    change(folder, model=saved['model'] | {name: (weight / scale[:, None]).round().to(torch.int8)}, scales={name: scale})
    loaded = runs.load_run(folder)[0].state_dict()[name]
    assert loaded.dtype == torch.float32 and (loaded - weight).abs().max() <= scale.max() * 0.51


def test_a_file_is_replaced_by_a_whole_one_or_not_at_all(folder, monkeypatch):
    before = (folder / 'best.pt').read_bytes()
    monkeypatch.setattr(torch, 'save', lambda state, file: file.write(b'half') and (_ for _ in ()).throw(OSError('disk full')))
    with pytest.raises(Failure, match='disk full'):
        runs.save_checkpoint(folder / 'best.pt', dict(model={}))
    assert (folder / 'best.pt').read_bytes() == before and not [*folder.glob('*.part')]


@pytest.mark.parametrize('kind', ['table', 'byte_pool'])
def test_with_adapters_a_run_computes_what_it_did(folder, kind):
    saved = torch.load(folder / 'best.pt', weights_only=True)
    tokenizer = tokenizers.load_tokenizer(saved['tokenizer'], folder)
    spelling = tokenizers.spelling_of(tokenizer)
    model = runs.build_model(Config(**saved['config'] | dict(embedding=kind, n_byte_embd=16)), spelling).eval()
    checkpoint = saved | dict(config=vars(model.config), model=model.state_dict())
    adapted = runs.restore_model(checkpoint, spelling, 'here', lora_rank=2).eval()
    idx = torch.randint(tokenizer.n_vocab, (2, 9))
    assert torch.equal(adapted(idx[:, :-1], idx[:, 1:]), model(idx[:, :-1], idx[:, 1:]))
    assert adapted.count_parameters()['LoRA'] > 0


def test_an_output_bias_starts_at_the_log_counts(folder):
    counts = torch.arange(300.0)
    model = runs.build_model(Config(**SHAPE, output_bias=True), [b'x'] * 300, counts)
    torch.testing.assert_close(model.tokens.head.bias.softmax(0), (counts + 1) / (counts + 1).sum())


def train_settings(folder, *argv):
    """train.py's settings for these flags, an earlier run's included."""
    script = dict(vars(train))
    settings = configure(script, train.KINDS, train.MAY_BE_0, argv=[f'--out_dir={folder}', *argv])
    return configure(script, train.KINDS, train.MAY_BE_0, argv=[f'--out_dir={folder}', *argv], earlier=runs.earlier_run(settings))


def test_a_run_is_evaluated_on_another_machine_than_it_was_trained_on(folder):
    change(folder, settings=dict(device='cuda', split='val', eval_only=False, dataset='mine'))
    settings = train_settings(folder, '--eval_only=True', '--split=test')
    assert settings['device'] == 'auto' and settings['split'] == 'test' and settings['dataset'] == 'mine'


def test_an_earlier_runs_settings_hold_but_for_those_given_now_that_may_change(folder):
    saved = torch.load(folder / 'best.pt', weights_only=True)
    plain = train_settings(folder, '--n_layer=2')
    before = plain | saved['config'] | dict(learning_rate=0.5, seed=7, dropout=[(0, 0.1), (9, 0)])
    torch.save(saved | dict(settings=before, parts={}, best=1.0, counts=torch.ones(saved['config']['vocab_size'])), folder / 'ckpt.pt')
    settings = train_settings(folder, '--init_from=resume', '--max_iters=50')
    assert [settings[name] for name in ('learning_rate', 'seed', 'max_iters', 'n_embd')] == [0.5, 7, 50, SHAPE['n_embd']]
    assert settings['dropout'] == [(0, 0.1), (9, 0)]
    for flag, words in (('--seed=8', ['seed=8', '7']), ('--n_layer=9', ['n_layer=9', str(SHAPE['n_layer'])])):
        with pytest.raises(Failure) as error:
            train_settings(folder, '--init_from=resume', flag)
        assert all(word in str(error.value) for word in ['has to keep it', *words])
    assert train_settings(folder, '--init_from=resume', '--seed=8', '--seed=7')['seed'] == 7   # what comes last holds
    for wrong in dict(batch_size=-1), dict(dropout={}), dict(max_iters=float('nan')), dict(schedule='up'):
        torch.save(saved | dict(settings=before | wrong, parts={}, best=1.0, counts=torch.ones(saved['config']['vocab_size'])), folder / 'ckpt.pt')
        with pytest.raises(Failure, match=[*wrong][0]):
            train_settings(folder, '--init_from=resume')


def test_a_field_that_is_younger_than_a_run_has_its_default_there(folder):
    saved = torch.load(folder / 'best.pt', weights_only=True)
    older = {name: value for name, value in saved['config'].items() if name != 'share_every'}
    change(folder, config=older)
    settings = configure(dict(vars(train)), train.KINDS, train.MAY_BE_0, argv=[f'--init_from={folder}'])
    with pytest.raises(Failure, match='share_every=2.*has to keep it'):
        configure(dict(vars(train)), train.KINDS, train.MAY_BE_0, argv=[f'--init_from={folder}', '--share_every=2'], earlier=runs.earlier_run(settings))


# ---- what isn't a number, and fields of another type

@pytest.mark.parametrize('bad', [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize('name', ['tokens.embedding.weight', 'blocks.1.ffn.down.weight', 'norm.weight'])
def test_weights_that_are_no_numbers_are_refused_by_tensor_and_count(folder, name, bad):
    saved = torch.load(folder / 'best.pt', weights_only=True)
    weight = saved['model'][name].clone()
    weight.view(-1)[3] = bad
    change(folder, model=saved['model'] | {name: weight})
    one_line(folder, name, '1 of the', 'best.pt')
    with pytest.raises(Failure, match=name):
        runs.save_checkpoint(folder / 'new.pt', saved | dict(model=saved['model'] | {name: weight}))
    assert not (folder / 'new.pt').exists()
    weight = saved['model'][name] * 0 + 1e38   # whose sum alone is infinite
    change(folder, model=saved['model'] | {name: weight})
    runs.load_run(folder)


def test_scales_of_int8_that_are_no_numbers_are_refused(folder):
    saved = torch.load(folder / 'best.pt', weights_only=True)
    name = 'blocks.0.ffn.up.weight'
    weight = saved['model'][name]
    change(folder, model=saved['model'] | {name: weight.to(torch.int8)}, scales={name: torch.full((len(weight),), math.nan)})
    one_line(folder, 'scales', name)


def leaves(value, path=()):
    """(path, value) of everything in a checkpoint that isn't a dict or list."""
    if isinstance(value, dict):
        for key, each in value.items():
            yield from leaves(each, (*path, key))
    else:
        yield path, value


def test_a_field_of_another_type_or_out_of_its_range_is_one_line(folder):
    saved = torch.load(folder / 'best.pt', weights_only=True)
    fields = [(path, value) for path, value in leaves(saved) if path[0] != 'model']
    assert len(fields) > 25
    for path, value in fields:
        for wrong in (torch.ones(2), None, {'a': 1}, -1, 10**12):
            if wrong is value or type(wrong) is int and path[0] != 'config':   # another number may stand elsewhere
                continue
            harmed = copy.deepcopy(saved)
            place = harmed
            for key in path[:-1]:
                place = place[key]
            place[path[-1]] = wrong
            torch.save(harmed, folder / 'best.pt')
            one_line(folder)
        if path[0] in ('tokenizer',):
            del place[path[-1]]
            torch.save(harmed, folder / 'best.pt')
            one_line(folder)
