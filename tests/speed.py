"""
Training and generation beside nanoGPT's and llama2.c's, in turn, on this machine. A command: times depend on the hour.

    git clone https://github.com/karpathy/nanoGPT ../nanoGPT       # commit 3adf61e
    git clone https://github.com/karpathy/llama2.c ../llama2.c     # commit 350e04f
    for i in run runq; do gcc -Ofast -fopenmp -march=native -o ../llama2.c/$i ../llama2.c/$i.c -lm; done
    python tests/speed.py --nanogpt=../nanoGPT                     # training, as nanoGPT's shape is: gelu
    python tests/speed.py --nanogpt=../nanoGPT --device=cuda --batch_size=32
    python tests/speed.py --job=generate --llama2c=../llama2.c --ffn=swiglu --d_ff=1536
    python tests/speed.py --job=generate --llama2c=../llama2.c --out_dir=pretrained/tiny_10m

Each model lives in a process of its own, and the processes take turns. A training step is forward, backward, clipping
and AdamW on blocks of 512 tokens. On a CPU nanoGPT's is in float32, as its train.py runs there, and ours in --dtype; on
a GPU both are in --dtype, compiled and eager, and the table is in float16 as well, as it is on a T4. Generation is one
sample, token by token, always the likeliest; for nanoGPT, which reads everything again for each token, after a prompt
of 400.
"""
job = 'train'              # train or generate
nanogpt = ''               # a clone of it
llama2c = ''               # a clone of it, with run and runq built: generation only
out_dir = ''               # generation: a run's folder, instead of random weights
rounds = 5                 # measurements of each, in turn; the median counts
text = ''                  # a token file of gpt2-16, as data/mine-gpt2-16/train.bin: then byte pooling runs as well,
#                            whose speed depends on the words; none: random tokens
dtype = 'auto'             # ours in training: bfloat16, float16 or float32; auto is what the hardware is fast with
device = 'cpu'             # or cuda
batch_size = 4             # blocks of 512 tokens in a training step
steps = 0                  # of training in one measurement; 0 is 1 on a CPU, and 20 on a GPU, where one is too short
ffn = 'gelu'               # with d_ff 2048, nanoGPT's own shape: 57.2 million parameters each
d_ff = 2048                # ours
dropout = 0.1              # both
prompt = 1                 # tokens of the prompt of generation
new = 64                   # tokens of generation
peak = 0.0                 # TFLOP/s of the hardware in this dtype: training says its share of them (MFU); 0: of PEAKS in stlm/machine.py
worker = ''                # (how the script calls itself, for each model: kind-way)

import contextlib
import pathlib
import re
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from configurator import configure
from stlm.console import Failure
configure(globals(), one_of=dict(job='train generate'))

V, T, L, H, C = 50304, 512, 10, 16, 512
LLAMA2C = dict(run='llama2c', runq='llama2c_q8')   # its programs, and what tools.convert calls their files
RATIOS = [('table', 'nanogpt'), ('byte_pool', 'nanogpt'), ('byte_pool', 'table'), ('nanogpt', 'nanogpt-eager'),
          ('table', 'table-eager'), ('byte_pool', 'byte_pool-eager'), ('table-float16', 'table'),
          ('table-float32', 'run'), ('table-bfloat16', 'run'), ('table-int8', 'runq'), ('table-bfloat16', 'table-float32'),
          ('table-int8', 'table-float32'), ('table-batch16', 'table-float32'), ('byte_pool-bfloat16', 'byte_pool-float32')]


def names_of_workers():
    """What takes turns. Of one kind of model there are several ways to compute it."""
    kinds = ['table'] + ['byte_pool'] * bool(text)
    if job == 'generate' and out_dir:
        from stlm import run
        kinds = [run.load_run(out_dir)[0].config.embedding]
    if job == 'generate':
        ways = ['float32', 'bfloat16', 'int8', 'batch16'] if device == 'cpu' else ['float32', 'bfloat16', 'batch16']
        programs = ['run', 'runq'] if llama2c and kinds[0] == 'table' else []
        return ['nanogpt'] * bool(nanogpt) + [f'{kind}-{way}' for kind in kinds for way in ways] + programs
    kinds = ['nanogpt'] * bool(nanogpt) + kinds
    if device == 'cpu':
        return kinds
    return [*kinds, *(f'{kind}-eager' for kind in kinds), 'table-float16']


def tokens_and_vocabulary():
    """batch_size blocks of 513 tokens, each token's bytes and how often it occurs."""
    import numpy as np
    import torch
    if not text:
        return torch.randint(50257, (batch_size, T + 1)), None, None
    from stlm import tokenizer
    file = np.memmap(text, '<u2', 'r')
    found = tokenizer.load_tokenizer(None, pathlib.Path(text).parent)
    spelling = [*tokenizer.spelling_of(found), *[None] * (V - 50257)]
    blocks = np.stack([file[i * len(file) // batch_size:][:T + 1] for i in range(batch_size)]).astype(np.int64)
    return torch.from_numpy(blocks), spelling, torch.from_numpy(np.bincount(file, minlength=V))


def our_model(kind, spelling, counts):
    """Of kind table or byte_pool, with random weights; or the run's."""
    from stlm import run
    if out_dir and job == 'generate':
        return run.load_run(out_dir)[0]
    from model import Config
    config = Config(block_size=T, vocab_size=V, n_layer=L, n_head=H, n_kv_head=H, n_embd=C, ffn=ffn, d_ff=d_ff,
                    embedding=kind)
    return run.build_model(config, spelling or [None] * V, counts)


def now():
    """Seconds, when all that a GPU was told to do is done: its kernels only start when Python calls them."""
    import torch
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.perf_counter()


def answer(measure):
    """For each line of standard input, measure once and print the tokens per second."""
    for _ in sys.stdin:
        print(measure(), flush=True)


def work():
    import torch
    from stlm.machine import keep_freed_memory, pick_device
    kind, _, way = worker.partition('-')
    numbers = {'float32': 'float32', 'int8': 'float32', 'float16': 'float16', 'bfloat16': 'bfloat16'}.get(way, dtype)
    where, context, _ = pick_device(device, numbers)
    keep_freed_memory()
    torch.manual_seed(0)
    tokens, spelling, counts = tokens_and_vocabulary()
    if kind == 'nanogpt':
        sys.path.insert(0, nanogpt)
        sys.stdout, stdout = sys.stderr, sys.stdout
        from model import GPT, GPTConfig
        model = GPT(GPTConfig(block_size=T, vocab_size=V, n_layer=L, n_head=H, n_embd=C, dropout=dropout, bias=False))
        sys.stdout = stdout
        tokens = tokens.to(where)
        if where.type == 'cuda':
            torch.set_float32_matmul_precision('high')   # TF32 outside of bfloat16, as its train.py has it
        else:
            context = contextlib.nullcontext()
    else:
        model = our_model(kind, spelling, counts)
        model.dropout.set(dropout)
    model.to(where)
    if job == 'train':
        train(model, tokens, where, context, kind, way)
    else:
        generate(model.eval(), tokens, where, context, kind, way)


def train(model, tokens, where, context, kind, way):
    import torch
    on_gpu = where.type == 'cuda'
    if kind == 'nanogpt':
        optimizer = model.configure_optimizers(0.1, 6e-4, (0.9, 0.95), where.type)
    else:
        optimizer = torch.optim.AdamW(model.parameters(), 6e-4, (0.9, 0.95), weight_decay=0.1, fused=True)
    scaler = torch.amp.GradScaler(where.type, enabled=way == 'float16')
    if on_gpu and way != 'eager':
        model.compile()   # as train.py does: of byte pooling, a group of tokens at a time
    x, y = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()
    n_steps = steps or (20 if on_gpu else 1)

    def measure():
        start = now()
        for _ in range(n_steps):
            with context:
                loss = model(x, y)
            scaler.scale(loss[1] if kind == 'nanogpt' else loss.mean()).backward()
            scaler.unscale_(optimizer)
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad(set_to_none=True)
        return n_steps * x.numel() / (now() - start)
    answer(measure)


def generate(model, tokens, where, context, kind, way):
    from stlm.fast import prepare_to_generate
    size = 16 if way == 'batch16' else 1
    idx, n = (tokens[:1, :400], 8) if kind == 'nanogpt' else (tokens[:1, :prompt].expand(size, -1), new)
    if out_dir and kind != 'nanogpt':
        idx = idx % model.config.vocab_size

    def measure():
        if kind == 'nanogpt':
            start = now()
            model.generate(idx, n, top_k=200)
        else:
            produced = model.generate(idx, n + 1, temperature=0)
            next(produced)   # the prompt is read
            start = now()
            for _ in produced:
                pass
        return size * n / (now() - start)
    with context:
        if kind == 'nanogpt':
            answer(measure)
        else:
            with prepare_to_generate(model, way if way in ('float32', 'bfloat16', 'int8') else dtype, where, size):
                answer(measure)


def ask(process):
    """Let a worker do the job once; tokens per second."""
    try:
        print('go', file=process.stdin, flush=True)
        return float(process.stdout.readline())
    except (OSError, ValueError):   # it is dead, or died
        raise Failure(f'{process.args[-1]} ended without an answer; its error is above')


def write_llama2c(folder):
    """The files of run and of runq: of the run, or of random weights in the same shape."""
    from stlm import run
    from stlm.tokenizer import make_tokenizer
    from tools import convert
    from tools.llama2c import write_model
    if out_dir:
        model, tokenizer, _ = run.load_run(out_dir)
    else:
        model = our_model('table', None, None)
        ranks = {bytes([i]): i for i in range(256)} | {b'<%d>' % i: i for i in range(256, V - 1)}
        tokenizer = make_tokenizer('numbers', ranks)
    weights = convert.llama_weights(model)
    for program in LLAMA2C:
        write_model(folder / f'{program}.bin', weights, model.config, tokenizer, program == 'runq')


def rate_of_llama2c(program, folder):
    done = subprocess.run([pathlib.Path(llama2c).resolve() / program, folder / f'{program}.bin', '-z',
                           folder / f'{program}.tokenizer.bin', '-t', '0', '-n', str(new)], capture_output=True)
    return float(re.search(rb'achieved tok/s: ([\d.]+)', done.stderr)[1])


def peak_of(where, machine):
    """(TFLOP/s that the hardware reaches or 0, its name)"""
    import torch
    from stlm.machine import peak_flops
    if where.type != 'cuda':
        return peak, 'cpu'
    known = peak_flops(where) if 'bfloat16' in machine else None
    return peak or (known or 0) / 1e12, torch.cuda.get_device_name(where)


def share_of_peak(name, rate, tflops):
    """How much of the peak a training reaches, in products with matrices and in causal attention (MFU)."""
    matrices, width = (2, 4 * C) if name.startswith('nanogpt') else (3 if ffn == 'swiglu' else 2, d_ff)
    core = L * (4 * C * C + matrices * C * width) + V * C
    return rate * (6 * core + 6 * L * T * C) / tflops / 1e12


def main():
    from stlm.machine import pick_device
    where, _, machine = pick_device(device, dtype)   # or the end, in one line
    if nanogpt and not pathlib.Path(nanogpt, 'model.py').exists():
        raise Failure(f'--nanogpt={nanogpt}: no model.py there; git clone https://github.com/karpathy/nanoGPT {nanogpt}')
    for program in LLAMA2C if llama2c else ():
        if not pathlib.Path(llama2c, program).exists():
            raise Failure(f'--llama2c={llama2c}: no `{program}` there; {__doc__.splitlines()[5].strip()}')
    names = names_of_workers()
    processes = {name: subprocess.Popen(
        [sys.executable, __file__, *sys.argv[1:], f'--worker={name}'], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        text=True) for name in names if name not in LLAMA2C}
    rates = {name: [] for name in names}
    with tempfile.TemporaryDirectory() as folder:
        if 'run' in names:
            write_llama2c(pathlib.Path(folder))
        for _ in range(rounds + 1):   # the first one compiles and warms up
            for name in names:
                rates[name].append(ask(processes[name]) if name in processes
                                   else rate_of_llama2c(name, pathlib.Path(folder)))
    for process in processes.values():
        process.stdin.close()
    tflops, hardware = peak_of(where, machine)
    print(f'{machine}, {hardware}')
    for name, found in rates.items():
        rate = statistics.median(found[1:])
        share = f', {share_of_peak(name, rate, tflops):.1%} of {tflops} TFLOP/s (MFU)' if (
            tflops and job == 'train' and not name.startswith('byte_pool')) else ''
        print(f'{job:8} {name:18} {rate:9.1f} tokens/s ({min(found[1:]):.1f} to {max(found[1:]):.1f}){share}')
    if where.type == 'cuda' and job == 'train' and not tflops:
        print('MFU needs --peak: the TFLOP/s of this GPU are not among PEAKS of stlm/machine.py, or not in this dtype')
    for name, other in RATIOS:
        if name in rates and other in rates:
            ratios = [a / b for a, b in zip(rates[name][1:], rates[other][1:])]
            print(f'{name} / {other}: {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})')


if __name__ == '__main__':
    work() if worker else main()
