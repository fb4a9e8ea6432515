"""
A run's text beside llama2.c's from the files that convert.py makes of it. A command, not a test.

    git clone https://github.com/karpathy/llama2.c ../llama2.c      # commit 350e04f; build its run and runq there
    python tests/compare_llama2c.py --llama2c=../llama2.c --out_dir=out/tiny_260k --data=data/pydocs-bpe704

Greedy text must be the same byte for byte. run.c doesn't show its ids; but told to stop after n tokens, it prints
n tokens, for every n: so the ids of a prompt are compared one by one. Bits per byte are computed by the reader of
test_convert.py, which rounds the activations as runq.c does.
"""
llama2c = '../llama2.c'         # a clone of it, with its programs run and runq
out_dir = 'out/tiny_260k'       # a run
data = ''                       # a data set of the run's tokenizer: bits per byte of its val split
tokens = 256                    # of text
prompts = 'Return the|The class of a file|if x == 10:|  two blanks|the module os, version 3.12|def f(self):'   # | between

import pathlib
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
sys.path.insert(0, str(ROOT / 'tests'))

from configurator import Failure, configure
configure(globals())

import numpy as np

from stlm import run as runs
from tools import llama2c as llama2c_files
from test_convert import forward, read_llama2c, read_vocabulary


def output(*command):
    done = subprocess.run([str(part) for part in command], capture_output=True)
    if done.returncode:
        raise Failure(f'{command[0]}: {done.stderr.decode()}')
    return done.stdout.removesuffix(b'\n')


def bits_per_byte(path, tokenizer, activations):
    """Of the val split, each stretch of 512 tokens by itself."""
    config, weights = read_llama2c(path)
    vocabulary = read_vocabulary(llama2c_files.tokenizer_of(path))
    places = {token: i for i, (token, _) in reversed([*enumerate(vocabulary)])}
    place = np.ones(tokenizer.n_vocab, int)   # the end of a text is 1
    for token, i in tokenizer.ranks.items():
        place[i] = places[token.replace(b'\0', b'<0x00>')]
    ids = np.fromfile(pathlib.Path(data, 'val.bin'), '<u2')
    size = sum(len(tokenizer.decode_bytes([i])) for i in ids[1:].tolist() if i != tokenizer.eot_token)
    nats = 0.0
    for start in range(0, len(ids) - 1, config['length']):
        block = place[ids[start:start + config['length'] + 1]]
        logits = forward(config, weights, block[:-1], activations)
        logits[:, [0, 2]] = -np.inf   # the second byte 0, and the second start
        top = logits.max(-1)
        nats += (np.log(np.exp(logits - top[:, None]).sum(-1)) + top - logits[np.arange(len(block) - 1), block[1:]]).sum()
    return nats / np.log(2) / size


model, tokenizer, _ = runs.load_run(out_dir)
with tempfile.TemporaryDirectory() as folder:
    paths = dict(llama2c=pathlib.Path(folder, 'model.bin'), llama2c_q8=pathlib.Path(folder, 'q8.bin'))
    for to, path in paths.items():
        output(sys.executable, '-m', 'tools.convert', f'--out_dir={out_dir}', f'--to={to}', f'--file={path}')

    def theirs(program, to, n, prompt):
        return output(pathlib.Path(llama2c, program).resolve(), paths[to], '-z', llama2c_files.tokenizer_of(paths[to]),
                      '-t', '0', '-n', n, *(['-i', prompt] if prompt else []))

    for prompt in ['', *prompts.split('|')]:
        ids = tokenizer.encode_ordinary(prompt)
        same = [theirs('run', 'llama2c', n, prompt) == tokenizer.decode_bytes(ids[:n]) for n in range(1, len(ids) + 1)]
        ours = output(sys.executable, ROOT / 'sample.py', f'--out_dir={out_dir}', '--temperature=0', '--device=cpu',
                      '--dtype=float32', f'--max_new_tokens={tokens - len(ids)}', f'--prompt={prompt}')
        text = theirs('run', 'llama2c', tokens, prompt)
        q8 = theirs('runq', 'llama2c_q8', tokens, prompt)
        alike = next((i for i, (a, b) in enumerate(zip(q8, ours)) if a != b), min(len(q8), len(ours)))
        print(f'{prompt!r:32} {sum(same)} of {len(ids)} ids are the same; {len(text)} bytes of text, '
              f'{"the same" if text == ours else "NOT THE SAME"}; with runq the same for {alike}')
        if text != ours:
            print(f'  ours   {ours!r}\n  theirs {text!r}')
        if not prompt:
            print(ours.decode(errors='replace'))
    for (to, path), activations in zip(paths.items(), (False, True)):
        bits = f', {bits_per_byte(path, tokenizer, activations):.4f} bits per byte' if data else ''
        print(f'{to:10} {path.stat().st_size:,} bytes{bits}')
