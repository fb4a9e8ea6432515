"""train.py and sample.py as a user runs them, on a tiny model and a small text."""
import csv
import functools
import json
import math
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
import tracemalloc
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from configurator import Failure
import prepare_wiki
from stlm import documents
from stlm import machine as machines
from stlm import meter
from stlm import muon
from stlm import run as runs
from stlm import text as texts
from stlm import tokenizer as tokenizers
import windows
from model import GPT, Config
from stlm.muon import make_optimizers
from helpers import ROOT, SMALL, fails_in_one_line, run, set_clock_back, story

BYTES = ['--embedding=byte_pool', '--n_byte_embd=16', '--n_byte_head=2', '--n_encoder_layer=1']
DATA = ['--dataset=mine', '--tokenizer=bpe300', '--out_dir=out/a']


def train(folder, *args, **kwargs):
    return run(folder, 'train.py', *DATA, *SMALL, *args, **kwargs)


def load(file):
    return torch.load(file, weights_only=True)


def stop_in_step(step):
    """For run(): Ctrl-C comes in this step, however long it takes."""
    from stlm.meter import Meter
    add = Meter.add

    def add_and_stop(self, loss, done):
        add(self, loss, done)
        if step < done <= step + 1:
            os.kill(os.getpid(), signal.SIGINT)
            Meter.add = add
    Meter.add = add_and_stop


def log_of(out):
    """log.csv, but for what depends on the clock."""
    return [{key: row[key] for key in row if key not in ('tokens_per_s', 'seconds')}
            for row in csv.DictReader((out / 'log.csv').open())]


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    """A folder with data/mine-bpe300 and a run of 20 steps in out/a, and what the run printed."""
    folder = tmp_path_factory.mktemp('train')
    (folder / 'story.txt').write_text(story(), encoding='utf-8')
    status, _, err = run(folder, 'prepare_wiki.py', '--input=story.txt', *DATA[:2], '--val_fraction=0.2')
    assert status == 0, err
    shutil.copytree(folder / 'data/mine-bpe300', folder / 'data/other-bpe300')   # for mixes
    status, out, err = train(folder, '--dropout=[(0, 0.2), (20, 0)]')
    assert status == 0, err
    return folder, out


def test_a_run_tells_what_it_does_and_ends_with_what_to_do_next(trained):
    folder, out = trained
    L, T, kv, C, d_ff = 2, 32, 16, 32, 64   # each product of n x k with k x m is 2 n k m operations
    flops = 3 * (L * (2 * (2 * C * C + 2 * C * kv + 3 * C * d_ff) + 2 * 2 * T * C) + 2 * C * 300)
    result = json.loads((folder / 'out/a/result.json').read_text())
    assert result['flops_per_token_in_evaluation'] == flops / 3
    assert 1e8 < result['peak_memory'] < 1e10
    assert result['flops_per_token'] == flops and result['tokens'] == 20 * 4 * 32
    assert f"held out: {result['val_bpb']:.3f} bits" in out and result['best_bpb'] <= result['val_bpb'] + 1e-3
    for words in ('parameters: ', 'epochs', 'tokens/s', 'left', 'bits per byte', 'gzip -9', 'continued',
                  'out/a/best.pt', 'python sample.py --out_dir=out/a'):
        assert words in out, words
    rows = list(csv.DictReader((folder / 'out/a/log.csv').open()))
    assert [int(row['iter']) for row in rows] == [0, 5, 10, 15, 20]
    assert [float(row['dropout'] or 0) for row in rows] == pytest.approx([0, 0.16, 0.11, 0.06, 0.01])
    assert float(rows[-1]['val_bpb']) < float(rows[0]['val_bpb'])
    seen, held = (np.fromfile(folder / f'data/mine-bpe300/{split}.bin', '<u2') for split in ('train', 'val'))
    assert float(rows[0]['val_loss']) == pytest.approx(math.log(300), abs=0.05)   # the untrained model knows nothing
    assert 'ln V = 5.704' in out and 'xz' in out
    # or the counts, where the output has a bias
    assert train(folder, '--output_bias=True', '--max_iters=1', '--out_dir=out/bias')[0] == 0
    rows = list(csv.DictReader((folder / 'out/bias/log.csv').open()))
    p = (np.bincount(seen, minlength=300) + 1) / (len(seen) + 300)
    assert float(rows[0]['val_loss']) == pytest.approx(-np.log(p[held[1:]]).mean(), abs=0.05)


def test_bits_per_byte_are_those_of_the_raw_text(trained):
    """Of all held-out bytes, emoji and Chinese among them, computed here from the text, one token at a time."""
    folder, out = trained
    model, encoding, _ = runs.load_run(folder / 'out/a')
    files = documents.input_files(str(folder / 'story.txt'))
    texts = [text for text in documents.read_files(files, lambda done: None)
             if prepare_wiki.split_of(text, 0.2) == 'val']
    assert any('🐈' in text and '老' in text for text in texts)
    ids = torch.tensor([i for text in texts for i in (encoding.eot_token, *encoding.encode_ordinary(text))])
    text = ''.join(texts)
    for stride in (32, 8):
        nats = 0.0
        with torch.no_grad():
            for t in range(1, len(ids)):   # a token's context: the first window that holds it, moved back at the end
                end = 32 if t <= 32 else min(32 + math.ceil((t - 32) / stride) * stride, len(ids) - 1)
                logits = model.hidden(ids[None, end - 32:t])[0, -1] @ model.tokens.head.weight.T
                nats += F.cross_entropy(logits, ids[t]).item()
        status, out, _ = run(folder, 'train.py', *DATA[2:], '--eval_only=True', f'--stride={stride}', '--dtype=float32')
        assert status == 0
        assert f'{nats / math.log(2) / len(text.encode()):.4f} bits per byte' in out
        for n, unit in ((len(text.encode()), 'byte'), (len(text), 'char'), (sum(len(t.split()) for t in texts), 'word')):
            assert f'{math.exp(nats / n):.4g} per {unit}' in out


def test_a_run_is_evaluated_on_a_text_that_it_was_not_trained_on(trained):
    folder, _ = trained
    model, encoding, _ = runs.load_run(folder / 'out/a')
    text = '\n\n'.join(f'Once upon a time there were {i} 女孩 and {i * i} 🐈s.' for i in range(1000))
    (folder / 'else.txt').write_text(text, encoding='utf-8')
    prepare = '--input=else.txt', '--dataset=else', '--val_fraction=0.1'
    assert run(folder, 'prepare_wiki.py', *prepare, '--tokenizer=out/a')[0] == 0
    about = json.loads((folder / 'data/else-bpe300/meta.json').read_text(encoding='utf-8'))
    ids = torch.from_numpy(np.fromfile(folder / 'data/else-bpe300/test.bin', about['dtype']).astype(np.int64))
    nats = 0.0
    with torch.no_grad():
        for start in range(0, len(ids) - 1, 32):
            end = min(start + 32, len(ids) - 1)
            logits = model.hidden(ids[None, max(0, end - 32):end])[0] @ model.tokens.head.weight.T
            nats += F.cross_entropy(logits[start - end:], ids[start + 1:end + 1], reduction='sum').item()
    status, out, err = run(folder, 'train.py', *DATA[2:], '--eval_only=True', '--dataset=else', '--stride=32', '--split=test',
                           '--dtype=float32')
    assert status == 0, err
    assert f'{nats / math.log(2) / about["splits"]["test"]["bytes"]:.4f} bits per byte' in out
    assert run(folder, 'prepare_wiki.py', *prepare, '--tokenizer=byte')[0] == 0
    fails_in_one_line(run(folder, 'train.py', *DATA[2:], '--eval_only=True', '--dataset=else', '--tokenizer=byte'), 'tokenizer')


@pytest.mark.parametrize('extra', [
    ['--optimizer=muon', *BYTES], ['--optimizer=adamw', '--dtype=float32', '--grad_accum=2', '--ema=0.9',
                                   '--dataset=mine:2,other', '--share=block', '--lora_rank=2', '--schedule=wsd']])
def test_a_resumed_run_is_the_same_run_bit_for_bit(trained, extra):
    folder, _ = trained
    extra = [*extra, '--dropout=[(0, 0.3), (40, 0.1)]', '--max_iters=40', '--eval_interval=20']
    assert train(folder, *extra, '--out_dir=out/whole')[0] == 0
    # stopped by Ctrl-C in a step, then resumed: with the settings of the checkpoint
    status, out, err = train(folder, *extra, '--out_dir=out/parts', first=functools.partial(stop_in_step, 7))
    assert status == 130 and 'stopped at step 8 and saved; go on with: python train.py --out_dir=out/parts --init_from=resume' in out, err
    assert load(folder / 'out/parts/ckpt.pt')['iter'] == 8
    assert run(folder, 'train.py', '--out_dir=out/parts', '--init_from=resume')[0] == 0
    whole, parts = load(folder / 'out/whole/ckpt.pt'), load(folder / 'out/parts/ckpt.pt')
    assert same(but_seconds(whole), but_seconds(parts))
    assert log_of(folder / 'out/whole') == log_of(folder / 'out/parts')


def but_seconds(state):
    """A checkpoint, but for what depends on the clock or on how the run was called."""
    meter = {name: value for name, value in state['parts']['meter'].items() if name != 'seconds'}
    meter['last'] = {name: value for name, value in meter['last'].items() if name != 'tokens_per_s'}
    settings = {name: value for name, value in state['settings'].items() if name not in ('out_dir', 'init_from')}
    return state | dict(settings=settings, parts=state['parts'] | dict(meter=meter))


def same(a, b):
    """Equal to the last bit, tensors in dicts and lists too."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    return len(a) == len(b) and all(map(same, a, b)) if isinstance(a, list) else a == b


@pytest.mark.parametrize('kind', ['table', 'bytes'])
def test_a_run_that_is_killed_again_and_again_is_the_undisturbed_run(trained, tmp_path, kind):
    """At ten random moments of each kind: loading, steps, evaluations, writing."""
    folder, rng = trained[0], random.Random(kind)
    size = [*BYTES, '--max_iters=12'] if kind == 'bytes' else ['--max_iters=40']   # a byte's step takes longer
    args = [*DATA, *SMALL, *size, '--dataset=mine:2,other', '--train_tokens=600',
            '--dropout=[(0, 0.3), (40, 0.1)]', '--ema=0.9', '--grad_accum=2', '--eval_interval=4',
            '--eval_tokens=320', '--log_interval=3', f'--data_dir={folder / "data"}']
    begun = time.monotonic()
    status, _, err = run(tmp_path, 'train.py', *args, '--out_dir=out/whole')
    assert status == 0, err
    seconds, kills, out = time.monotonic() - begun, 0, tmp_path / 'out/parts'
    while not (out / 'result.json').exists():
        more = ['--init_from=resume'] if (out / 'ckpt.pt').exists() else []
        send = rng.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
        after = rng.uniform(0.1, 0.8) * seconds if kills < 10 else None
        status, _, err = run(tmp_path, 'train.py', *args, '--out_dir=out/parts', *more, after=after, send=send)
        assert status in (0, 130, 1, -send), err
        kills += 1
        assert kills < 15, err
    for name in ('ckpt.pt', 'best.pt'):
        whole, parts = load(tmp_path / 'out/whole' / name), load(out / name)
        assert {'text', 'meter', 'machine', 'weights', 'average', 'Muon 0', 'AdamW 1'} <= parts['parts'].keys()
        assert same(but_seconds(whole), but_seconds(parts)), (name, kills)
    assert log_of(tmp_path / 'out/whole') == log_of(out)
    assert min(epoch for epoch, _ in whole['parts']['text']['order']) >= 1   # an epoch's end was among it
    assert not [*out.glob('*.part')]


@pytest.mark.parametrize('optimizer, extra', [
    ('muon', []), ('muon', ['--share=block', '--lora_rank=2']), ('adamw', BYTES)])
def test_each_parameter_is_updated_by_one_optimizer_and_only_matrices_decay(trained, optimizer, extra):
    folder, _ = trained
    assert train(folder, f'--optimizer={optimizer}', f'--out_dir=out/{optimizer}', '--max_iters=1', *extra)[0] == 0
    state = load(folder / f'out/{optimizer}/ckpt.pt')
    torch.manual_seed(1337)
    spelling, found = tokenizers.spelling_of(runs.load_run(folder / f'out/{optimizer}')[1]), []
    config = runs.idea_module('').Config(**state['config'])
    model = runs.build_model(config, spelling, state['counts'])   # as it was at the start
    assert all(not torch.equal(p, state['model'][name]) for name, p in model.named_parameters())
    optimizers = [part for name, part in state['parts'].items() if name.startswith(('Muon', 'AdamW'))]
    for o in optimizers:
        for group in o['param_groups']:
            for i in group['params']:
                moment = o['state'][i].get('exp_avg', o['state'][i].get('momentum_buffer'))
                found.append((tuple(moment.shape), group['weight_decay'] > 0))
    assert sorted(found) == sorted((tuple(p.shape), p.dim() == 2) for p in model.parameters())
    assert len(optimizers) == (2 if optimizer == 'muon' else 1)
    for moment in optimizers[0]['state'].values() if optimizer == 'muon' else ():
        assert min(moment['momentum_buffer'].shape) >= 16   # no adapter, of rank 2, is Muon's


def test_a_run_says_after_its_first_forward_pass_how_long_it_will_take_and_what_to_do_about_two_days(trained):
    assert re.search(r'a step of 128 tokens takes about [\d.e-]+ s here: 0:\d\d left', trained[1])
    for max_iters, days in (100, False), (10**9, True):
        said = []
        machine = SimpleNamespace(device=torch.device('cpu'), first=False, say=said.append)
        slow = meter.Meter(machine, None, None, max_iters, 128, 1, 1.0, 0.0)
        slow.start(0)
        slow.begun = slow.line_time = time.monotonic() - 1.0   # the first step took a second
        slow.add(torch.tensor(0.0), 1.0)
        assert ('a smaller config' in said[-1]) == days and bool(re.search(r'11,57\d\.\d days left', said[0])) == days, said


def test_an_epoch_reads_each_block_once():
    tokens, epochs = np.arange(1000), []
    order = texts.Order(tokens, 32, seed=5)
    for epoch in range(3):
        epochs.append([order.next()[1]])
        n = len(order.starts)
        epochs[-1] += [order.next()[1] for _ in range(n - 1)]
        assert (np.diff(sorted(epochs[-1])) == 32).all() and n >= (1000 - 32) // 32   # side by side, each once
        assert epochs[-1] != sorted(epochs[-1]) and max(epochs[-1]) + 33 <= 1000
    assert len({starts[0] % 32 for starts in epochs}) > 1                              # cut elsewhere
    order = texts.Order(tokens, 32, 5)
    order.begin(epoch=1, read=4)
    assert [order.next()[1] for _ in range(5)] == epochs[1][4:9]                       # two integers suffice


@pytest.mark.parametrize('shares', [[3, 1], [1, 1, 1], [5, 2, 0.1], [1, 0]])
def test_a_mix_is_never_a_whole_block_behind_its_shares(shares):
    mix, drawn = object.__new__(texts.Text), np.zeros(len(shares))
    mix.orders, mix.owed = [texts.Order(np.full(100, i), 10, 0) for i in range(len(shares))], np.zeros(len(shares))
    for n in range(1, 200):
        (tokens, _), = mix.next(shares, 1)
        drawn[tokens[0]] += 1
        assert (abs(drawn - n * np.array(shares) / sum(shares)) < 1).all()


def test_a_mix_reads_its_data_sets_in_proportion_evenly(trained):
    folder, _ = trained
    tokens = len(np.fromfile(folder / 'data/mine-bpe300/train.bin', '<u2'))
    status, out, err = train(folder, '--dataset=mine:3,other:1', '--batch_size=40', '--out_dir=out/mix')
    assert f'are {60 * 320 / tokens:.1f} and {20 * 320 / tokens:.1f} epochs' in out, err
    assert train(folder, '--dataset=mine:3,other:1', '--out_dir=out/mix')[0] == 0
    (_, mine), (_, other) = load(folder / 'out/mix/ckpt.pt')['parts']['text']['order']
    assert (mine, other) == (60, 20)
    assert train(folder, '--dataset=mine,other', '--mix_schedule=[(0, [1, 0]), (10, [1, 0]), (11, [0, 1])]', '--out_dir=out/mix')[0] == 0
    (_, mine), (_, other) = load(folder / 'out/mix/ckpt.pt')['parts']['text']['order']
    assert (mine, other) == (44, 36)   # eleven steps of four blocks from the first, nine from the second
    fails_in_one_line(train(folder, '--dataset=mine,other', '--mix_schedule=[(0, [1])]'), 'mix_schedule', 'each set')
    fails_in_one_line(train(folder, '--dataset=mine:3,other:0'), 'mine:3,other:0')


def test_a_run_may_be_given_little_of_the_text(trained):
    folder, _ = trained
    assert '2.1 epochs' in train(folder, '--train_tokens=600', '--max_iters=10', '--out_dir=out/little')[1]
    state, seen = load(folder / 'out/little/ckpt.pt'), np.fromfile(folder / 'data/mine-bpe300/train.bin', '<u2')[:600]
    assert state['counts'].tolist() == np.bincount(seen, minlength=300).tolist()
    (epoch, read), = state['parts']['text']['order']
    assert epoch == 2 and 17 * 2 + read <= 40 <= 18 * 2 + read   # blocks of 32
    fails_in_one_line(train(folder, '--train_tokens=32'), '32 tokens')


def test_the_learning_rate_follows_its_schedule_and_the_average_is_one_of_the_weights(trained):
    folder, states = trained[0], []
    args = ['--schedule=wsd', '--decay_share=0.5', '--warmup_iters=1', '--ema=0.5', '--eval_interval=1']
    for n in range(1, 4):   # level until the last step of each, so that the three runs are one
        more = ['--init_from=resume'] if n > 1 else []
        assert run(folder, 'train.py', *DATA, *SMALL, *args, '--out_dir=out/ema', *more, f'--max_iters={n}',
                   f'--decay_share={1e-9}')[0] == 0
        states.append(load(folder / 'out/ema/ckpt.pt'))
    weights = [state['parts']['weights'] for state in states]
    for name, w in weights[0].items():
        mean = (w / 2 + weights[1][name] / 2) / 2 + weights[2][name] / 2
        torch.testing.assert_close(states[2]['model'][name], mean)   # what is kept is what is evaluated
        assert torch.equal(load(folder / 'out/ema/best.pt')['model'][name], states[2]['model'][name])
    for schedule, expected in (('wsd', [0.5, 1, 1, 1, 1, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6]), ('cosine', [
            0.5, 1, *[(1 + math.cos(math.pi * i / 9)) / 2 for i in range(1, 9)]])):
        assert train(folder, *args[1:3], f'--schedule={schedule}', '--max_iters=10', '--log_interval=1',
                     '--learning_rate=0.01', f'--out_dir=out/{schedule}')[0] == 0
        rows = list(csv.DictReader((folder / f'out/{schedule}/log.csv').open()))
        assert [float(row['lr']) for row in rows[1:]] == pytest.approx([0.01 * x for x in expected], abs=1e-6)


def test_a_run_that_ends_worse_than_it_was_says_so_and_both_states_can_be_read(trained):
    folder, said = trained
    status, out, err = train(folder, '--max_iters=2', '--eval_interval=1', '--warmup_iters=0', '--muon_lr=9', '--learning_rate=3',
                             '--out_dir=out/worse')
    assert status == 0, err
    assert 'best.pt is better than the end' in out and 'better than the end' not in said
    assert [load(folder / f'out/worse/{name}.pt')['iter'] for name in ('best', 'ckpt')] == [0, 2]
    for name, step in ('', 0), ('/ckpt.pt', 2):
        _, _, err = run(folder, 'sample.py', f'--out_dir=out/worse{name}', '--max_new_tokens=1', '--device=cpu')
        assert f'step {step},' in err and ('learned nothing' in err) == (step == 0)
    shutil.copytree(folder / 'out/a', folder / 'out/ended')   # a run that died before it had said its result
    (folder / 'out/ended/result.json').unlink()
    status, out, err = train(folder, '--init_from=resume', '--out_dir=out/ended')
    assert status == 0 and 'better than the end' not in out, err


def test_a_study_runs_its_experiments_goes_on_and_refuses_other_settings(trained, tmp_path):
    for name in ('model.py', 'train.py', 'prepare_wiki.py', 'configurator.py'):
        shutil.copy(ROOT / name, tmp_path)
    for name in ('stlm', 'tools'):
        shutil.copytree(ROOT / name, tmp_path / name)
    for name in ('docs', 'assets'):
        (tmp_path / name).mkdir()
    study = (ROOT / 'tools/study.py').read_text(encoding='utf-8')
    (tmp_path / 'tools/study.py').write_text(re.sub(r'STUDIES = dict\(', "STUDIES = dict(few={'a': {}, 'b, 2': dict(dropout=[[0, 0.1], [2, 0]])},", study))
    args = ['--study=few', '--dataset=mine', '--seeds=2', f'--more={" ".join([*SMALL, "--tokenizer=bpe300", "--max_iters=2"])}'
            f' --data_dir={trained[0] / "data"}']
    shutil.copytree(trained[0] / 'data', tmp_path / 'data')
    one = run(tmp_path, tmp_path / 'tools/study.py', *args, '--only=a')
    assert (tmp_path / 'out/study/a-1338/result.json').exists() and not (tmp_path / 'out/study/b_2-1337').exists(), one
    stamp = (tmp_path / 'out/study/a-1337/result.json').stat().st_mtime_ns
    _, out, _ = run(tmp_path, tmp_path / 'tools/study.py', *args)
    assert (tmp_path / 'out/study/a-1337/result.json').stat().st_mtime_ns == stamp   # not again
    bpb = [json.loads((tmp_path / f'out/study/b_2-{seed}/result.json').read_text())['val_bpb'] for seed in (1337, 1338)]
    table = (tmp_path / 'docs/few.md').read_text()
    assert f'{sum(bpb) / 2:.3f} ({min(bpb):.3f} to {max(bpb):.3f}, 2)' in table and table.strip() in out
    assert f'>{sum(bpb) / 2:.3f}<' in (tmp_path / 'assets/few.svg').read_text(encoding='utf-8')
    assert len((tmp_path / 'docs/few.csv').read_text().splitlines()) == 1 + 4 * (2 + 1)   # two evaluations on the way, and the last
    fails_in_one_line(run(tmp_path, tmp_path / 'tools/study.py', *args, '--dataset=other'), 'dataset', 'move it away')


def test_two_processes_train_the_same_model_as_one(trained):
    folder, _ = trained
    args = [*DATA, *SMALL, *BYTES, '--dtype=float32', '--optimizer=adamw', '--grad_accum=2', '--max_iters=5']
    assert run(folder, 'train.py', *args, '--out_dir=out/one')[0] == 0
    done = subprocess.run([sys.executable, '-m', 'torch.distributed.run', '--nproc_per_node=2',
                           str(ROOT / 'train.py'), *args, '--out_dir=out/two'], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    one, two = (load(folder / f'out/{name}/ckpt.pt') for name in ('one', 'two'))
    assert one['parts']['text']['order'] == two['parts']['text']['order'] and one['best'] == pytest.approx(two['best'], abs=1e-4)
    for name, value in one['model'].items():
        torch.testing.assert_close(value, two['model'][name], atol=1e-4, rtol=0)


def test_a_new_run_in_an_old_runs_place_loses_nothing(trained):
    folder = trained[0]
    for seed in (1, 2):
        assert train(folder, f'--seed={seed}', '--max_iters=1', '--out_dir=out/again')[0] == 0
    seeds = [load(folder / 'out' / name / 'ckpt.pt')['settings']['seed'] for name in ('again.1', 'again')]
    assert seeds == [1, 2]
    (folder / 'out/again/ckpt.pt').unlink()   # what is left is a run still
    (folder / 'out/link').symlink_to('again')
    best = (folder / 'out/again/best.pt').read_bytes()
    assert train(folder, '--seed=3', '--max_iters=1', '--out_dir=out/link')[0] == 0
    assert (folder / 'out/again.2/best.pt').read_bytes() == best and (folder / 'out/link').is_symlink()
    assert load(folder / 'out/again/ckpt.pt')['settings']['seed'] == 3


# ---- what a figure is of, and what isn't a number

def test_each_evaluation_shows_a_text_and_the_run_stays_what_it_is(trained):
    folder, said = trained
    assert len(re.findall(r"^step +\d+ \| ['\"]The cat", said, re.M)) == 3   # at 0, 10 and 20
    status, out, err = train(folder, '--dropout=[(0, 0.2), (20, 0)]', '--prompt=Nobody sees', '--out_dir=out/asked')
    assert status == 0 and len(re.findall(r"^step +\d+ \| ['\"]Nobody sees", out, re.M)) == 3, err
    assert same(load(folder / 'out/a/ckpt.pt')['model'], load(folder / 'out/asked/ckpt.pt')['model'])


def test_with_an_average_what_is_sampled_is_what_was_evaluated(trained):
    folder = trained[0]
    assert train(folder, '--ema=0.5', '--dtype=float32', '--out_dir=out/averaged')[0] == 0
    at_end = float(log_of(folder / 'out/averaged')[-1]['val_loss'])
    model, _, checkpoint = runs.load_run(folder / 'out/averaged/ckpt.pt')
    text = texts.Text([prepare_wiki.load_data('mine', 'bpe300', folder / 'data')], 32, 0)
    assert texts.bits_per_byte(machines.Machine('cpu', 'float32'), model, text)[0] == pytest.approx(at_end, abs=1e-4)
    assert not same(checkpoint['model'], checkpoint['parts']['weights'])


def test_held_out_figures_of_other_lengths_are_not_compared(trained):
    fails_in_one_line(train(trained[0], '--init_from=resume', '--eval_tokens=64', '--max_iters=30'), '--eval_tokens=64', 'has to keep')


def test_a_mix_is_compressed_whole(trained):
    folder = trained[0]
    text = texts.Text([prepare_wiki.load_data(name, 'bpe300', folder / 'data') for name in ('mine', 'other')], 32, 0)
    one = texts.Text([prepare_wiki.load_data('mine', 'bpe300', folder / 'data')], 32, 0)
    assert text.raw('val', 10**9) == 2 * one.raw('val', 10**9)   # the second is a copy of the first
    files = documents.input_files(str(folder / 'story.txt'))
    held = [each for each in documents.read_files(files, lambda done: None) if prepare_wiki.split_of(each, 0.2) == 'val']
    assert one.raw('val', 10**9) == ''.join(held).encode() and len(text.raw('train', 1000)) == 1000


def test_bytes_are_those_of_the_sets_that_were_read(trained):
    folder = trained[0]
    (folder / 'digits.txt').write_text('\n\n'.join(f'{i * i}' for i in range(10**5, 10**5 + 5000)))
    prepare = '--input=digits.txt', '--dataset=digits', '--val_fraction=0.2'
    assert run(folder, 'prepare_wiki.py', *prepare, '--tokenizer=data/mine-bpe300')[0] == 0
    ids = [np.fromfile(folder / f'data/{name}-bpe300/train.bin', '<u2').tolist() for name in ('mine', 'digits')]
    encoding = tokenizers.load_tokenizer(None, folder / 'data/mine-bpe300')
    mine, digits = (sum(len(encoding.decode_bytes([i])) for i in each if i != encoding.eot_token) / len(each) for each in ids)
    assert mine > 1.5 * digits
    shares = '--mix_schedule=[(0, [1, 0]), (9, [1, 0]), (10, [0, 1])]'
    for n in (20, 25):   # goes on
        more = ['--init_from=resume'] if n > 20 else []
        assert train(folder, '--dataset=mine,digits', shares, f'--max_iters={n}', '--out_dir=out/kinds', *more)[0] == 0
    expected = [128 * (min(it, 10) * mine + max(it - 10, 0) * digits) for it in range(0, 26, 5)]
    assert [float(row['bytes']) for row in log_of(folder / 'out/kinds')] == pytest.approx(expected, abs=1)
    assert train(folder, '--train_tokens=600', '--max_iters=5', '--out_dir=out/few')[0] == 0
    few = sum(len(encoding.decode_bytes([i])) for i in ids[0][:600] if i != encoding.eot_token) / 600
    assert float(log_of(folder / 'out/few')[-1]['bytes']) == pytest.approx(5 * 128 * few, abs=1)


def test_a_resume_keeps_the_speed_of_the_row_that_it_makes_again(trained):
    folder = trained[0]
    assert train(folder, '--out_dir=out/speed')[0] == 0
    before = list(csv.DictReader((folder / 'out/speed/log.csv').open()))[-1]
    status, out, err = train(folder, '--out_dir=out/speed', '--init_from=resume', '--max_iters=25')
    again, after = list(csv.DictReader((folder / 'out/speed/log.csv').open()))[-2:]
    assert again['iter'] == '20' and again['tokens_per_s'] == before['tokens_per_s'] and float(after['tokens_per_s']) > 0
    assert not re.search(r'step +20 \| loss', out) and re.search(r'step +25 \| loss', out), err


def test_the_share_of_the_peak_is_of_all_gpus(monkeypatch):
    machine = machines.Machine('cpu', 'float32')
    machine.device, machine.world = torch.device('cuda'), 4
    monkeypatch.setattr(meter, 'peak_flops', lambda device: 1e12)
    monkeypatch.setattr(meter, 'peak_memory', lambda device: 5e9)
    monkeypatch.setattr(torch, 'zeros', lambda *shape, device: None)
    rows = meter.Meter(machine, machines.Scaler('cpu', torch.float32), 'log.csv', 10, 64, 640, np.full(10, 2.0), flops=1e8)
    assert rows.of_the_gpu(4000) == ', 10.0% of its peak, 5.0 GB'   # each of the four reads 1000 tokens/s


def test_how_long_a_step_takes_is_not_said_of_a_gpus_first_part_which_is_mostly_its_start(tmp_path, capsys):
    for kind, said in ('cpu', True), ('cuda', False):
        machine = machines.Machine('cpu', 'float32')
        rows = meter.Meter(machine, machines.Scaler('cpu', torch.float32), tmp_path / 'log.csv', 10, 64, 640, np.full(10, 2.0), flops=1)
        machine.device = torch.device(kind)
        rows.start(0)
        rows.add(torch.tensor(1.0), 0.5)
        assert ('a step of 64 tokens takes' in capsys.readouterr().out) == said


def compress_after_a_look_at_the_memory():
    """For run(): after the compressors the memory is said to be 2 bytes, before them 1."""
    from stlm import report
    found, compressors = [1], report.compressors
    report.peak_memory = lambda device: found[-1]
    report.compressors = lambda *texts: found.append(2) or compressors(*texts)


def test_the_memory_of_a_run_is_not_that_of_the_compressors_beside_it(trained):
    folder = trained[0]
    assert train(folder, '--max_iters=1', '--out_dir=out/memory', first=compress_after_a_look_at_the_memory)[0] == 0
    assert json.loads((folder / 'out/memory/result.json').read_text())['peak_memory'] == 1
    text = texts.Text([prepare_wiki.load_data('mine', 'bpe300', folder / 'data')], 32, 0)
    text.files = [np.full(3_000_000, 65, '<u2')]
    tracemalloc.start()
    assert len(text.raw('train', 2**25)) == 3_000_000 and tracemalloc.get_traced_memory()[1] < 2e7
    tracemalloc.stop()


def test_a_schedule_that_cannot_happen_is_said_and_stops_nothing(trained):
    folder = trained[0]
    status, out, err = train(folder, '--warmup_iters=100', '--max_iters=6', '--dropout=[(0, 0.1), (7, 0.1), (900, 0)]', '--out_dir=out/short')
    assert status == 0 and 'warmup_iters=100: the run ends at step 6' in out and 'dropout: the run ends at step 6, before (7, 0.1), (900, 0)' in out
    status, out, err = run(folder, 'train.py', '--out_dir=out/short', '--init_from=resume', '--max_iters=8')
    assert status == 0 and 'the run ends at step 8, before (900, 0)' in out, err
    assert 'the run ends' not in trained[1]
    assert 'decay_share=0.99' in train(folder, '--schedule=wsd', '--decay_share=0.99', '--max_iters=2', '--out_dir=out/wsd')[1]
    fails_in_one_line(train(folder, '--schedule=wsd', '--decay_share=1.5'), 'decay_share=1.5')


@pytest.mark.parametrize('extra', [[], BYTES, ['--ema=0.9']])
def test_a_run_whose_loss_is_no_number_keeps_its_good_checkpoint(trained, extra):
    """It diverges after its first evaluation, with no line of the log before the next; with byte pooling too."""
    folder, out = trained[0], trained[0] / 'out/diverges'
    shutil.rmtree(out, ignore_errors=True)
    args = [*extra, '--max_iters=40', '--eval_interval=10', '--grad_clip=0', '--warmup_iters=10', '--dtype=float32', '--out_dir=out/diverges']
    assert train(folder, *args, '--max_iters=10', '--log_interval=10')[0] == 0
    before = load(out / 'ckpt.pt')
    (out / 'result.json').unlink()
    fails_in_one_line(train(folder, *args, '--init_from=resume', '--learning_rate=1e11', '--muon_lr=1e11', '--log_interval=100'), 'learning_rate')
    for name in ('ckpt.pt', 'best.pt'):
        assert load(out / name)['iter'] == 10 and same(load(out / name)['model'], before['model'])


def test_float16_scales_its_loss_skips_a_step_that_overflows_and_resumes(trained):
    folder, args = trained[0], ['--dtype=float16', '--ema=0.9', '--log_interval=1']
    status, out, err = train(folder, *args, '--out_dir=out/half')
    assert status == 0 and 'float16' in out, err
    plain = train(folder, '--dtype=float32', '--ema=0.9', '--log_interval=1', '--out_dir=out/full32')
    assert plain[0] == 0
    ends = [float(log_of(folder / f'out/{name}')[-1]['val_bpb']) for name in ('half', 'full32')]
    assert ends[0] == pytest.approx(ends[1], abs=0.1)   # one or two of its first steps were skipped
    assert train(folder, *args, '--max_iters=20', '--out_dir=out/half2')[0] == 0
    state = load(folder / 'out/half/ckpt.pt')
    assert state['parts']['scaler']['scale'] <= 65536 and state['parts']['scaler'] == load(folder / 'out/half2/ckpt.pt')['parts']['scaler']
    scaler = machines.Scaler('cpu', torch.float16)
    p = torch.nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([p], 1.0)
    scaler.scale((p * 1e38).sum()).backward()   # times 65536 is infinite in float32 too
    scaler.unscale_(optimizer)
    scaler.step_all([optimizer], p.grad.norm())
    assert p.tolist() == [1, 1] and scaler.skipped == 1 and scaler.get_scale() == 32768
    saved = scaler.state_dict()
    again = machines.Scaler('cpu', torch.float16)
    again.load_state_dict(saved)
    assert again.get_scale() == 32768 and again.skipped == 1


@pytest.mark.parametrize('bad', [math.nan, math.inf])
@pytest.mark.parametrize('grad_clip', [1.0, math.inf])
def test_an_overflow_in_one_optimizers_gradient_skips_all(bad, grad_clip):
    weights = [torch.nn.Parameter(torch.ones(2, 2)) for _ in range(2)]
    optimizers = [torch.optim.SGD([p], 1.0) for p in weights]
    scaler = machines.Scaler('cpu', torch.float16)
    for step in range(2):   # the first overflows, the second doesn't
        scaler.scale(sum((p * (step + 1)).sum() for p in weights)).backward()
        if step == 0:
            weights[1].grad[0, 0] = bad
        for each in optimizers:
            scaler.unscale_(each)
        scaler.step_all(optimizers, torch.nn.utils.clip_grad_norm_(weights, grad_clip))
        for each in optimizers:
            each.zero_grad()
        if step == 0:
            assert scaler.skipped == 1 and all(torch.equal(p, torch.ones(2, 2)) for p in weights)
    assert scaler.skipped == 1 and all((p < 1).all() for p in weights)


def two_of_one_class():
    """For run(): matrices and vectors get an AdamW each."""
    def make_optimizers(model, kind, lr, *rest):
        return [(torch.optim.AdamW([p for p in model.parameters() if p.dim() == n], lr), lr) for n in (1, 2)]
    muon.make_optimizers = make_optimizers


def test_two_optimizers_of_one_class_both_keep_their_state(trained):
    status, _, err = train(trained[0], '--max_iters=2', '--out_dir=out/two', first=two_of_one_class)
    assert status == 0, err
    parts = load(trained[0] / 'out/two/ckpt.pt')['parts']
    moments = [state['exp_avg'].dim() for name in ('AdamW 0', 'AdamW 1') for state in parts[name]['state'].values()]
    assert {*moments} == {1, 2} and sorted(moments) == moments


def test_no_parameter_is_left_out_by_the_optimizers():
    model = GPT(Config(vocab_size=9, block_size=4, n_layer=1, n_head=1, n_kv_head=1, n_embd=4, d_ff=4))
    model.odd = torch.nn.Parameter(torch.ones(2, 3, 4))
    for kind, word in (('muon', '(2, 3, 4)'), ('nonsense', 'optimizer=nonsense')):
        with pytest.raises(ValueError, match=re.escape(word)):
            make_optimizers(model, kind, 1e-3, 1e-2, 0.1, 0.95, torch.float32)


# ---- what users do wrong

@pytest.mark.parametrize('args, words', [
    (['--dataset=nowhere'], ['nowhere', 'prepare_wiki.py']), (['--block_size=100000'], ['100001', '--block_size']),
    (['--n_head=3'], ['n_head', '32']), (['--dropout=1.5'], ['1.5']), (['--max_iters=0'], ['max_iters=0']),
    (['--optimizer=sgd'], ['sgd']), (['--device=tpu'], ['tpu', 'cpu']), (['--dtype=float8'], ['float8']),
    (['--learning_rate=-1'], ['learning_rate=-1']), (['--dropout=[(9,0.1),(0,0.3)]'], ['(9, 0.1)']),
    (['--beta2=1'], ['beta2=1']), (['--ema=1'], ['ema=1']), (['--share=all'], ["share='all'"]),
    (['--dataset=mine:x'], ['mine:x']), (['--dataset=mine,mine:2'], ['mine,mine:2']), (['--share_every=2'], ['share_every=2']),
    (['--dropout=[(0,0.1),(5,{})]'], ['dropout=']), (['--stride=99'], ['stride=99', 'block_size=32']),
    (['--init_from=resume', '--batch_size=2'], ['64 tokens', '128', 'batch_size']), (['--embedding=bytes'], ['bytes', 'byte_pool']), (['--tokenizer=words'], ['words']),
    (['--init_from=resume', '--out_dir=out/none'], ['out/none/ckpt.pt', 'train first']),
    (['--init_from=resume'], ['step 20 of 20', '--max_iters']),
    (['--init_from=resume', '--n_layer=3'], ['--n_layer=3', '2']),
    (['--learning_rate=1e9', '--optimizer=adamw', '--out_dir=out/nan'], ['loss', 'learning_rate']),
    (['--learning_rate=1e30'], ['learning_rate=1e+30'])])
def test_a_mistake_ends_in_one_line(trained, args, words):
    fails_in_one_line(train(trained[0], *args), *words)


def test_a_config_files_typo_names_the_nearest_setting(trained):
    (trained[0] / 'my.py').write_text('max_itres = 3')
    fails_in_one_line(train(trained[0], 'my.py'), 'my.py', 'max_itres', 'max_iters')


@pytest.mark.parametrize('script, harm, words', [
    ('train.py', lambda raw: raw[:len(raw) // 2], ['not a whole checkpoint']),
    ('sample.py', lambda raw: b'', ['not a whole checkpoint']), ('train.py', 'format', ['format 99'])])
def test_a_damaged_checkpoint_is_named(trained, tmp_path, script, harm, words):
    folder, file = trained[0], trained[0] / 'out' / 'bad' / 'ckpt.pt'
    file.parent.mkdir(exist_ok=True)
    if harm == 'format':
        torch.save(load(folder / 'out/a/ckpt.pt') | {'format': 99}, file)
    else:
        file.write_bytes(harm((folder / 'out/a/ckpt.pt').read_bytes()))
    args = ['--init_from=resume'] if script == 'train.py' else []
    fails_in_one_line(run(folder, script, '--out_dir=out/bad', *args), 'out/bad/ckpt.pt', *words)


def test_a_full_disk_keeps_the_older_checkpoint(trained):
    folder = trained[0]
    assert train(folder, '--out_dir=out/full')[0] == 0
    before = [(folder / 'out/full' / name).read_bytes() for name in ('ckpt.pt', 'best.pt')]
    limit = len(before[0]) // 2
    resource = pytest.importorskip('resource')
    result = run(folder, 'train.py', '--out_dir=out/full', '--init_from=resume', '--max_iters=30',
                 first=functools.partial(resource.setrlimit, resource.RLIMIT_FSIZE, (limit, limit)))
    fails_in_one_line(result, 'out/full/', 'not written')
    assert [(folder / 'out/full' / name).read_bytes() for name in ('ckpt.pt', 'best.pt')] == before
    assert not list((folder / 'out/full').glob('*.part'))


# ---- bad luck

def test_a_second_training_into_a_folder_ends_with_one_line(trained):
    first = subprocess.Popen([sys.executable, str(ROOT / 'train.py'), *DATA, *SMALL, '--out_dir=out/two', '--max_iters=100000'],
                             cwd=trained[0], stdout=subprocess.PIPE, text=True, env=os.environ | {'OMP_NUM_THREADS': '1'})
    try:
        for line in first.stdout:
            if line.startswith('step'):
                break
        fails_in_one_line(train(trained[0], '--out_dir=out/two'), 'another run is writing here')
    finally:
        first.kill()
        first.wait()


def test_a_reader_that_leaves_ends_the_run_saved(trained):
    process = subprocess.Popen([sys.executable, str(ROOT / 'train.py'), *DATA, *SMALL, '--out_dir=out/head', '--max_iters=100000'],
                               cwd=trained[0], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ | {'OMP_NUM_THREADS': '1'})
    assert process.stdout.readline()
    process.stdout.close()
    err = process.stderr.read()
    assert process.wait() == 130 and 'Traceback' not in err and 'Error' not in err
    assert load(trained[0] / 'out/head/ckpt.pt')['iter'] < 100000


def test_a_token_file_cut_while_training_is_one_line(trained, tmp_path):
    shutil.copytree(trained[0] / 'data', tmp_path / 'data')
    tokens = np.memmap(tmp_path / 'data/mine-bpe300/train.bin', '<u2', 'r')
    with open(tokens.filename, 'r+b') as file:
        file.truncate(4096)
    with pytest.raises(Failure, match='become shorter'):
        texts.load_blocks([(tokens, 20000)], 32)


def test_a_clock_set_back_never_makes_seconds_negative(trained):
    out, first = trained[0] / 'out/clock', dict(first=set_clock_back)
    assert train(trained[0], '--max_iters=10', '--out_dir=out/clock', **first)[0] == 0
    status, said, err = train(trained[0], '--max_iters=15', '--out_dir=out/clock', '--init_from=resume', **first)
    assert status == 0, err
    rows = list(csv.DictReader((out / 'log.csv').open()))
    seconds = [float(row['seconds']) for row in rows] + [json.loads((out / 'result.json').read_text())['seconds']]
    assert len(rows) == 4 and 0 <= seconds[0] and seconds == sorted(seconds)
    assert all(float(row['tokens_per_s'] or 0) >= 0 for row in rows)
    assert not re.search(r'-\d+:\d\d|-[\d.]+ (days|minutes|tokens)', said + err)


def test_an_interrupted_evaluation_ends_at_once(trained):
    model = runs.load_run(trained[0] / 'out/a')[0]
    text = texts.Text([prepare_wiki.load_data('mine', 'bpe300', trained[0] / 'data')], 32, 0)
    machine, read = machines.Machine('cpu', 'float32'), []

    def stop_at_once(x, y):
        machine.stopped = 'SIGINT'
        read.append(x)
        return GPT.forward(model, x, y)
    model.forward = stop_at_once
    with pytest.raises(KeyboardInterrupt):
        texts.bits_per_byte(machine, model, text, batch_size=1)
    assert len(read) == 1


def test_a_state_of_training_of_another_shape_is_one_line(trained):
    folder = trained[0]
    path = folder / 'out/foreign/ckpt.pt'
    shutil.copytree(folder / 'out/a', path.parent)
    whole = load(path)
    for name, value in (('meter', []), ('text', dict(whole['parts']['text'], owed=['x'])), ('text', dict(whole['parts']['text'], order=[[0]])),
                        ('Muon 0', {}), ('machine', dict(rng=None)), ('machine', 3)):
        torch.save(whole | dict(parts=whole['parts'] | {name: value}), path)
        fails_in_one_line(train(folder, '--out_dir=out/foreign', '--init_from=resume', '--max_iters=30'), 'state of training', name)
    torch.save(whole | dict(best='x'), path)
    fails_in_one_line(train(folder, '--out_dir=out/foreign', '--init_from=resume', '--max_iters=30'), "its best is 'x'")
    del whole['parts']
    torch.save(whole, path)
    fails_in_one_line(train(folder, '--out_dir=out/foreign', '--init_from=resume', '--max_iters=30'), 'no state of training')


def test_a_logs_spreadsheet_is_one_line(trained):
    folder = trained[0]
    assert train(folder, '--out_dir=out/sheet')[0] == 0
    log = folder / 'out/sheet/log.csv'
    raw = log.read_bytes()
    for harmed in (raw.replace(b',', b';'), raw[:100] + bytes(10) + raw[100:], raw.replace(b'5,', b'five,'),
                   raw.replace(b'.', b'x', 1), raw.rstrip() + b',7\n'):
        log.write_bytes(harmed)
        fails_in_one_line(train(folder, '--out_dir=out/sheet', '--init_from=resume', '--max_iters=25'), 'log.csv')
    log.write_bytes(b'\xef\xbb\xbf' + raw)   # a BOM is harmless
    assert train(folder, '--out_dir=out/sheet', '--init_from=resume', '--max_iters=25')[0] == 0
    assert [row['iter'] for row in log_of(log.parent)] == ['0', '5', '10', '15', '20', '25']


@pytest.mark.parametrize('args, words', [
    (['--out_dir=.'], ["out_dir='.'"]), (['--out_dir='], ["out_dir=''"]), (['--seed=1e30'], ['seed=1']),
    (['--batch_size=1e12'], ['batch_size=1000000000000']), (['--dataset=mine:1e400'], ['mine:1e400']),
    (['--dataset=../../mine'], ['../../mine']), (['--init_from=resum'], ['resum', 'no such file']),
    (['--lora_rank=2'], ['lora_rank=2', 'init_from']), (['--idea=nothing'], ['idea=nothing'])])
def test_settings_at_their_edges_are_one_line(trained, args, words):
    fails_in_one_line(train(trained[0], *args), *words)


def test_under_windows_rules_for_files_a_run_is_trained_replaced_resumed_and_sampled(trained):
    folder = trained[0]
    for flags in ([], ['--seed=3'], ['--init_from=resume', '--max_iters=25']):
        status, out, err = train(folder, *flags, '--out_dir=out/windows', first=windows.simulate)
        assert status == 0, err
    assert load(folder / 'out/windows/ckpt.pt')['iter'] == 25 and load(folder / 'out/windows.1/ckpt.pt')['iter'] == 20
    status, out, err = run(folder, 'sample.py', '--out_dir=out/windows', '--max_new_tokens=3', '--device=cpu', first=windows.simulate)
    assert status == 0, err
    with open(folder / 'out/windows/best.pt', 'rb'):   # a reader that stays: training goes on, and says so
        status, out, err = train(folder, '--out_dir=out/windows', '--init_from=resume', '--max_iters=30', '--eval_interval=30', first=windows.simulate)
    assert status == 0 and 'best.pt: not written' in out, err
    assert load(folder / 'out/windows/ckpt.pt')['iter'] == 30


def test_a_row_that_another_program_keeps_from_being_written_comes_with_the_next(tmp_path, monkeypatch):
    rows = meter.Meter(machines.Machine('cpu', 'float32'), machines.Scaler('cpu', torch.float32), tmp_path / 'log.csv', 10, 64, 640, np.full(10, 2.0), 1)
    rows.start(0)
    rows.write(0, dict(val_loss=3.0))
    with monkeypatch.context() as held:
        held.setattr('builtins.open', lambda *args, **kwargs: (_ for _ in ()).throw(PermissionError(13, 'held')))
        rows.write(1, dict(train_loss=2.0))
    rows.write(2, dict(train_loss=1.0))
    written = list(csv.DictReader((tmp_path / 'log.csv').open()))
    assert [row['iter'] for row in written] == ['0', '1', '2'] and written[1]['train_loss'] == '2'


# ---- to start from another run

@pytest.mark.parametrize('extra', [[], [*BYTES, '--share=block', '--lora_rank=2']])
def test_fine_tuning_starts_from_a_runs_weights_and_is_better_than_from_scratch(trained, extra):
    folder, kind = trained[0], 'byte' if extra else 'table'
    assert train(folder, *extra, '--max_iters=60', f'--out_dir=out/base_{kind}')[0] == 0
    args = ['--dataset=other', '--max_iters=5', '--eval_interval=5', '--batch_size=4', '--device=cpu']
    status, out, err = run(folder, 'train.py', f'--init_from=out/base_{kind}', f'--out_dir=out/tuned_{kind}', *args)
    assert status == 0, err
    tuned, base = load(folder / f'out/tuned_{kind}/ckpt.pt'), load(folder / f'out/base_{kind}/best.pt')
    assert tuned['config'] == base['config'] and tuned['iter'] == 5
    assert float(log_of(folder / f'out/tuned_{kind}')[0]['val_bpb']) == pytest.approx(base['best'], abs=1e-4)
    assert train(folder, *extra, *args, f'--out_dir=out/fresh_{kind}')[0] == 0
    assert tuned['best'] < load(folder / f'out/fresh_{kind}/ckpt.pt')['best']
    fails_in_one_line(run(folder, 'train.py', f'--init_from=out/base_{kind}', '--out_dir=out/x', '--n_layer=3', *args), '--n_layer=3')
    fails_in_one_line(run(folder, 'train.py', f'--init_from=out/base_{kind}', '--out_dir=out/x', '--tokenizer=byte', *args),
                      '--tokenizer=byte', 'bpe300')


def test_adapters_alone_are_trained_on_a_run_without_and_a_resume_goes_on(trained):
    folder = trained[0]
    args = ['--dataset=other', '--lora_rank=2', '--batch_size=4', '--device=cpu', '--learning_rate=0.02', '--out_dir=out/lora']
    status, out, err = run(folder, 'train.py', '--init_from=out/a', *args, '--max_iters=5')
    assert status == 0, err
    assert run(folder, 'train.py', '--out_dir=out/lora', '--init_from=resume', '--max_iters=10')[0] == 0
    before, after = load(folder / 'out/a/best.pt')['model'], load(folder / 'out/lora/ckpt.pt')
    for name, value in after['model'].items():
        if name.endswith(('.A.weight', '.B')):
            assert value.abs().max() > 0
        else:
            assert torch.equal(value, before[name.replace('.linear', '')])
    assert after['best'] < float(log_of(folder / 'out/lora')[0]['val_bpb']) == pytest.approx(load(folder / 'out/a/best.pt')['best'], abs=1e-4)


def test_a_data_set_with_another_tokenizer_names_the_command_that_makes_it(trained):
    folder = trained[0]
    shutil.copytree(folder / 'data/mine-bpe300', folder / 'data/strange-bpe300', dirs_exist_ok=True)
    status, _, err = run(folder, 'prepare_wiki.py', '--input=story.txt', '--dataset=strange', '--tokenizer=bpe301')
    assert status == 0, err
    shutil.rmtree(folder / 'data/strange-bpe300')
    (folder / 'data/strange-bpe301').rename(folder / 'data/strange-bpe300')
    fails_in_one_line(run(folder, 'train.py', '--init_from=out/a', '--dataset=strange', '--out_dir=out/x', '--device=cpu'),
                      'prepare_wiki.py', '--tokenizer=out/a')


# ---- ideas

IDEA = """from dataclasses import dataclass
import model

@dataclass
class Config(model.Config):
    strength: float = 0.5   # how strong the idea is
    where: str = 'end'      # and where

class GPT(model.GPT):
    def forward(self, idx, targets):
        return super().forward(idx, targets) * (1 + self.config.strength if self.training else 1)
"""


def test_an_idea_brings_its_model_and_its_own_settings(trained, tmp_path):
    for file in ROOT.glob('*.py'):
        shutil.copy(file, tmp_path)
    shutil.copytree(ROOT / 'stlm', tmp_path / 'stlm')
    (tmp_path / 'ideas').mkdir()
    (tmp_path / 'ideas/loud.py').write_text(IDEA)
    script, where = tmp_path / 'train.py', f'--data_dir={trained[0] / "data"}'
    status, out, err = run(tmp_path, script, '--help', '--idea=loud')
    assert '--strength=0.5' in out, err
    assert '--strength' not in run(tmp_path, script, '--help')[1]
    status, out, err = run(tmp_path, script, *DATA, *SMALL, where, '--strength=1', '--idea=loud', '--max_iters=6')
    assert status == 0, err
    state = load(tmp_path / 'out/a/ckpt.pt')
    assert state['idea'] == 'loud' and state['config']['strength'] == 1.0 and state['config']['where'] == 'end'
    rows = log_of(tmp_path / 'out/a')
    assert float(rows[1]['train_loss']) > 1.5 * float(rows[0]['val_loss'])   # twice the nats in training alone
    assert run(tmp_path, script, '--out_dir=out/a', '--init_from=resume', '--max_iters=8')[0] == 0
    assert run(tmp_path, tmp_path / 'sample.py', '--out_dir=out/a', '--device=cpu', '--max_new_tokens=3')[0] == 0
    fails_in_one_line(run(tmp_path, script, *DATA, *SMALL, where, '--idea=quiet'), 'idea=quiet', 'loud')
    fails_in_one_line(run(tmp_path, script, *DATA, *SMALL, where, '--strength=1'), 'strength')


def test_under_torchrun_a_mistake_is_said_once_and_the_loss_is_the_mean(trained):
    done = subprocess.run([sys.executable, '-m', 'torch.distributed.run', '--nproc_per_node=2', str(ROOT / 'train.py'), *DATA,
                           *SMALL, '--grad_accum=2', '--n_head=3'], cwd=trained[0], capture_output=True, text=True)
    assert done.returncode != 0 and done.stderr.count('must be a multiple of') == 1, done.stderr
    args = [*DATA, *SMALL, '--grad_accum=2', '--max_iters=5', '--log_interval=1']
    assert run(trained[0], 'train.py', *args, '--out_dir=out/mean1')[0] == 0
    done = subprocess.run([sys.executable, '-m', 'torch.distributed.run', '--nproc_per_node=2', str(ROOT / 'train.py'), *args,
                           '--out_dir=out/mean2'], cwd=trained[0], capture_output=True, text=True)
    losses = [[float(row['train_loss']) for row in log_of(trained[0] / f'out/mean{n}')[1:]] for n in (1, 2)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-3)


@pytest.mark.parametrize('script', ['train.py', 'sample.py', 'prepare_wiki.py', 'eval_mc.py'])
def test_help_imports_nothing_heavy(script, tmp_path):
    done = subprocess.run([sys.executable, '-X', 'importtime', str(ROOT / script), '--help'], cwd=tmp_path,
                          capture_output=True, text=True)
    assert done.returncode == 0 and '--out_dir' in done.stdout or '--data_dir' in done.stdout
    assert not any(line.endswith((' torch', ' numpy', ' tiktoken')) for line in done.stderr.splitlines())
