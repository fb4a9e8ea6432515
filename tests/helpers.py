"""What the tests of the scripts share: a small text, and a way to run a script as a user does."""
import multiprocessing
import os
import pathlib
import runpy
import shutil
import signal
import sys
import tempfile
import time

import pytest

if not hasattr(os, 'fork'):
    pytest.skip('these tests start scripts by fork, which Windows lacks', allow_module_level=True)


ROOT = pathlib.Path(__file__).parent.parent
SMALL = ['--n_layer=2', '--n_head=2', '--n_kv_head=1', '--n_embd=32', '--d_ff=64', '--block_size=32',
         '--batch_size=4', '--device=cpu', '--warmup_iters=2', '--max_iters=20', '--eval_interval=10',
         '--log_interval=5']
SHAPE = dict(n_layer=3, n_head=4, n_kv_head=2, n_embd=64, d_ff=96, block_size=64)


# a Python that has imported what takes long, and forks for each script
forks = multiprocessing.get_context('forkserver')
forks.set_forkserver_preload(['torch._dynamo', 'torch.utils.flop_counter', 'torch.optim.swa_utils', 'tiktoken', 'requests'])


def script_process(cwd, path, args, env, first):
    """A process of run(): first(), then much as `python path *args` in folder cwd."""
    for fd, (name, mode) in enumerate({'in': 'r', 'out': 'w', 'err': 'w'}.items()):
        with open(f'{env["FILES"]}/{name}', mode) as file:
            os.dup2(file.fileno(), fd)
        setattr(sys, f'std{name}', open(fd, mode, 1 if fd == 2 else -1, encoding='utf-8'))
    os.chdir(cwd)
    os.environ.update(env)
    folder = os.path.dirname(path)
    sys.argv, sys.path[:0] = [path, *args], [folder.removesuffix('/tools')]
    signal.signal(signal.SIGINT, signal.default_int_handler)   # a test run in the background ignores it
    import torch
    torch.set_num_threads(1)
    first()
    try:
        runpy.run_path(path, run_name='__main__')
    except Exception:
        sys.excepthook(*sys.exc_info())   # which a script may have set
        sys.exit(1)


def run(cwd, script, *args, input='', first=list, after=None, send=signal.SIGKILL):
    """Run a script of the repository in folder cwd; (exit status, stdout, stderr). After so many seconds it gets a
    signal, if it still runs."""
    with tempfile.TemporaryDirectory() as files:
        files = pathlib.Path(files)
        (files / 'in').write_text(input, encoding='utf-8')
        process = forks.Process(target=script_process, args=(
            cwd, str(ROOT / script), args, {**os.environ, 'OMP_NUM_THREADS': '1', 'FILES': str(files)}, first))
        process.start()
        process.join(after)
        if process.is_alive():
            os.kill(process.pid, send)
            process.join()
        # as bytes: reading text would turn the carriage return after a line of progress into a line's end
        return process.exitcode, *((files / name).read_bytes().decode() for name in ('out', 'err'))


def copy_repository(folder):
    """A copy to change, without what was made in this one: data, runs, an environment."""
    return shutil.copytree(ROOT, folder, ignore=shutil.ignore_patterns('data', 'out', '.*', '__pycache__'))


def set_clock_back():
    """For run(): from now on the system's clock goes an hour back at each look."""
    now = [time.time()]

    def earlier():
        now[0] -= 3600
        return now[0]
    time.time = earlier


def fails_in_one_line(result, *words):
    """The error is one line, says these words, and the exit status is not 0."""
    status, out, err = result
    err = err.split('\r')[-1]   # progress lines are rewritten
    assert status != 0 and len(err.strip().splitlines()) == 1, (status, out, err)
    for word in words:
        assert word in err, (word, err)


def story(n=2500):
    """n sentences that differ, in English of a kind, with accents, emoji and Chinese."""
    who, did = ['The cat', 'A teacher', 'Zoë', 'Nobody', '老师', 'My 🐈'], ['sees', 'draws', 'forgets', 'eats']
    what, when = ['the moon', 'a naïve idea', 'seven apples', 'eine Straße'], ['today', 'in 1066', 'at noon']
    lines = []
    for i in range(n):
        lines.append(f'{who[i % 6]} {did[i // 6 % 4]} {what[i // 5 % 4]} {when[i // 7 % 3]}, number {i}.')
        if i % 10 == 9:
            lines.append('')
    return '\n'.join(lines)


def make_run(folder, tokenizer=None, idea='', **changes):
    """A run's folder with a random model whose every number matters, norms and adapters too."""
    import torch   # here, since a forked script may be that of a copy of the repository

    from model import Config
    from stlm import run as runs
    from stlm import tokenizer as tokenizers
    if tokenizer is None:
        tokenizer = tokenizers.make_tokenizer('bpe400', tokenizers.train_bpe(tokenizers.count_words([story(300)]), 400))
    config = Config(**{'vocab_size': tokenizer.n_vocab, **SHAPE, **changes})
    torch.manual_seed(0)
    model = runs.build_model(config, tokenizers.spelling_of(tokenizer), torch.ones(tokenizer.n_vocab)).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * (0.3 if p.dim() == 1 else 0.1))
    folder.mkdir(parents=True)
    tokenizers.save_tokenizer(tokenizer, folder)
    runs.save_checkpoint(folder / 'best.pt', dict(
        format=runs.FORMAT, config=vars(config), idea=idea, model=model.state_dict(), counts=torch.ones(tokenizer.n_vocab),
        tokenizer=tokenizers.spec_of(tokenizer), settings={}, iter=1))
    return model, tokenizer
