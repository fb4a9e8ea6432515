"""What the tests of the scripts share: a small text, and a way to run a script as a user does."""
import os
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).parent.parent
SMALL = ['--n_layer=2', '--n_head=2', '--n_kv_head=1', '--n_embd=32', '--d_ff=64', '--block_size=32',
         '--batch_size=4', '--device=cpu', '--warmup_iters=2', '--max_iters=20', '--eval_interval=10',
         '--log_interval=5']


def run(cwd, script, *args, **kwargs):
    """Run a script of the repository in folder cwd; (exit status, stdout, stderr)."""
    done = subprocess.run([sys.executable, str(ROOT / script), *args], cwd=cwd, text=True, capture_output=True,
                          encoding='utf-8', env={**os.environ, 'OMP_NUM_THREADS': '1'}, **kwargs)
    return done.returncode, done.stdout, done.stderr


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
