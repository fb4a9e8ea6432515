"""
Training and generation beside nanoGPT's and llama2.c's, in turn, on this machine. A command: times depend on the hour.

    git clone https://github.com/karpathy/nanoGPT ../nanoGPT       # commit 3adf61e
    git clone https://github.com/karpathy/llama2.c ../llama2.c     # commit 350e04f
    gcc -Ofast -fopenmp -march=native -o ../llama2.c/run ../llama2.c/run.c -lm
    python tests/speed.py --nanogpt=../nanoGPT                     # training, as nanoGPT's shape is: gelu
    python tests/speed.py --job=generate --llama2c=../llama2.c --ffn=swiglu --d_ff=1536
    python tests/speed.py --nanogpt=../nanoGPT --device=cuda --batch_size=32

Each model lives in a process of its own, and the processes take turns. A training step is forward, backward, clipping
and AdamW on blocks of 512 tokens. On a CPU nanoGPT's is in float32, as its train.py runs there, and ours in --dtype; on
a GPU both are in --dtype and compiled. Generation is one sample, token by token, always the likeliest; for nanoGPT,
which reads everything again for each token, after a prompt of 400.
"""
job = 'train'              # train or generate
nanogpt = ''               # a clone of it
llama2c = ''               # a clone of it, with `run` built: generation only
rounds = 5                 # measurements of each, in turn; the median counts
text = ''                  # a token file of gpt2-16, as data/mine-gpt2-16/train.bin: then byte pooling runs as well,
#                            whose speed depends on the words; none: random tokens
dtype = 'auto'             # ours: bfloat16 or float32; auto is bfloat16 where the hardware computes in it
device = 'cpu'             # or cuda; then training is compiled, nanoGPT's and ours
batch_size = 4             # blocks of 512 tokens in a training step
steps = 0                  # of training in one measurement; 0 is 1 on a CPU, and 20 on a GPU, where one is too short
ffn = 'gelu'               # with d_ff 2048, nanoGPT's own shape: 57.2 million parameters each
d_ff = 2048                # ours
dropout = 0.1              # both
prompt = 1                 # tokens of the prompt of generation
new = 64                   # tokens of generation
peak = 0.0                 # TFLOP/s of the hardware in this dtype: training says its share of them (MFU); 0: of PEAKS
worker = ''                # (how the script calls itself, for each model)

import pathlib
import re
import statistics
import struct
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from configurator import Failure, configure
configure(globals(),
          one_of=dict(job='train generate'))

V, T, L, H, C = 50304, 512, 10, 16, 512
# TFLOP/s in bfloat16 without sparsity, by NVIDIA's data sheets; a name may be part of a later one
PEAKS = {'H100 PCIe': 756, 'H100 NVL': 835, 'H100': 989, 'H200 NVL': 835, 'H200': 989, 'A100': 312, 'L4': 121}


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


def our_model(kind, where, context):
    """(model, tokens), of kind table, byte_pool, int8 or batch16."""
    from stlm import fast
    from stlm import machine as machines
    from stlm import run
    machines.keep_freed_memory()
    tokens, spelling, counts = tokens_and_vocabulary()
    from model import Config
    config = Config(block_size=T, vocab_size=V, n_layer=L, n_head=H, n_kv_head=H, n_embd=C, ffn=ffn, d_ff=d_ff,
                    embedding='byte_pool' if kind == 'byte_pool' else 'table')
    model = run.build_model(config, spelling or [None] * V, counts).to(where)
    model.dropout.set(dropout)
    if job == 'generate':
        model.eval()
        with context:
            fast.prepare_to_generate(model, 'int8' if kind == 'int8' else 'float32', where)
    return model, tokens.to(where)


def now():
    """Seconds, when all that a GPU was told to do is done: its kernels only start when Python calls them."""
    import torch
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.perf_counter()


def work():
    """For each line of standard input do the job once, and answer with tokens per second."""
    import contextlib
    import torch
    from stlm.machine import pick_device
    where, context, _ = pick_device(device, dtype)
    on_gpu = where.type == 'cuda'
    torch.manual_seed(0)
    if worker == 'nanogpt':
        sys.path.insert(0, nanogpt)
        sys.stdout, stdout = sys.stderr, sys.stdout
        from model import GPT, GPTConfig
        model = GPT(GPTConfig(block_size=T, vocab_size=V, n_layer=L, n_head=H, n_embd=C, dropout=dropout, bias=False))
        model.to(where)
        optimizer = model.configure_optimizers(0.1, 6e-4, (0.9, 0.95), where.type)
        sys.stdout = stdout
        if on_gpu:
            torch.set_float32_matmul_precision('high')   # TF32 outside of bfloat16, as its train.py has it
        else:
            context = contextlib.nullcontext()
        tokens = tokens_and_vocabulary()[0].to(where)
    else:
        model, tokens = our_model(worker, where, context)
        if job == 'train':
            optimizer = torch.optim.AdamW(model.parameters(), 6e-4, (0.9, 0.95), weight_decay=0.1, fused=True)
    compiled = torch.compile(model) if on_gpu and job == 'train' else model
    x, y = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()
    n_steps = steps or (20 if on_gpu else 1)
    for _ in sys.stdin:
        if job == 'train':
            start = now()
            for _ in range(n_steps):
                with context:
                    loss = compiled(x, y)
                (loss[1] if worker == 'nanogpt' else loss.mean()).backward()
                torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
            print(n_steps * x.numel() / (now() - start), flush=True)
        elif worker == 'nanogpt':
            model.eval()
            start = now()
            with context:
                model.generate(tokens[:1, :400], 8, top_k=200)
            print(8 / (now() - start), flush=True)
        else:
            size = 16 if worker == 'batch16' else 1
            with context, torch.no_grad():
                produced = model.generate(tokens[:1, :prompt].expand(size, -1), new + 1, temperature=0)
                next(produced)   # the prompt is read
                start = now()
                for _ in produced:
                    pass
            print(size * new / (now() - start), flush=True)


def ask(process):
    """Let a worker do the job once; tokens per second."""
    try:
        print('go', file=process.stdin, flush=True)
        return float(process.stdout.readline())
    except (OSError, ValueError):   # it is dead, or died
        raise Failure(f'{process.args[-1]} ended without an answer; its error is above')


def peak_of(where, machine):
    """(TFLOP/s that the hardware reaches or 0, its name)"""
    import torch
    if where.type != 'cuda':
        return peak, 'cpu'
    name = torch.cuda.get_device_name(where)
    known = [tflops for part, tflops in PEAKS.items() if re.search(rf'\b{part}\b', name)]
    return peak or (known[0] if known and 'bfloat16' in machine else 0), name


def llama2c_rate(folder):
    """Tokens per second of run.c with random weights of the same shape, float32."""
    import numpy as np
    files = pathlib.Path(folder) / 'model.bin', pathlib.Path(folder) / 'tokenizer.bin'
    if not files[0].exists():
        numbers = V * C + 2 * L * C + 4 * L * C * C + 3 * L * C * d_ff + C + T * (C // H)
        weights = np.random.default_rng(0).standard_normal(numbers, dtype='f4') * 0.02
        files[0].write_bytes(struct.pack('7i', C, d_ff, L, H, H, V, T) + weights.tobytes())
        pieces = [f'<{i}>'.encode() for i in range(V)]
        files[1].write_bytes(struct.pack('i', 16) + b''.join(
            struct.pack('fi', 0.0, len(piece)) + piece for piece in pieces))
    done = subprocess.run([pathlib.Path(llama2c).resolve() / 'run', files[0], '-z', files[1], '-t', '0',
                           '-n', str(new)], capture_output=True)
    return float(re.search(rb'achieved tok/s: ([\d.]+)', done.stderr)[1])


def main():
    from stlm.machine import pick_device
    where, _, machine = pick_device(device, dtype)   # or the end, in one line
    names = ['nanogpt'] * bool(nanogpt) + ['table'] + ['byte_pool'] * bool(text)
    if job == 'generate':
        names += ['int8'] * (where.type == 'cpu') + ['batch16'] + ['llama2c'] * bool(llama2c)
    if nanogpt and not pathlib.Path(nanogpt, 'model.py').exists():
        raise Failure(f'--nanogpt={nanogpt}: no model.py there; git clone https://github.com/karpathy/nanoGPT {nanogpt}')
    if llama2c and not pathlib.Path(llama2c, 'run').exists():
        raise Failure(f'--llama2c={llama2c}: no `run` there; {__doc__.splitlines()[5].strip()}')
    processes = {name: subprocess.Popen(
        [sys.executable, __file__, *sys.argv[1:], f'--worker={name}'], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        text=True) for name in names if name != 'llama2c'}
    rates = {name: [] for name in names}
    with tempfile.TemporaryDirectory() as folder:
        for i in range(rounds + 1):   # the first one compiles and warms up
            for name in names:
                if name == 'llama2c':
                    rates[name].append(llama2c_rate(folder))
                else:
                    rates[name].append(ask(processes[name]))
    for process in processes.values():
        process.stdin.close()
    tflops, hardware = peak_of(where, machine)
    print(f'{machine}, {hardware}')
    for name, found in rates.items():
        print(f'{job:8} {name:10} {statistics.median(found[1:]):8.1f} tokens/s '
              f'({min(found[1:]):.1f} to {max(found[1:]):.1f})')
    for name, matrices, width in [('nanogpt', 2, 4 * C), ('table', 3 if ffn == 'swiglu' else 2, d_ff)]:
        if tflops and job == 'train' and name in rates:
            core = L * (4 * C * C + matrices * C * width) + V * C
            operations = 6 * core + 6 * L * T * C   # a token's: products with matrices, and attention's, causal
            share = statistics.median(rates[name][1:]) * operations / tflops / 1e12
            print(f'{name}: {share:.1%} of {tflops} TFLOP/s (MFU)')
    if where.type == 'cuda' and job == 'train' and not tflops:
        print('MFU needs --peak: the TFLOP/s of this GPU are not among PEAKS, or not in this dtype')
    for name, other in [('table', 'nanogpt'), ('byte_pool', 'nanogpt'), ('byte_pool', 'table'), ('table', 'llama2c'),
                        ('int8', 'table'), ('batch16', 'table')]:
        if name in rates and other in rates:
            ratios = [a / b for a, b in zip(rates[name][1:], rates[other][1:])]
            print(f'{name} / {other}: {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})')


work() if worker else main()
