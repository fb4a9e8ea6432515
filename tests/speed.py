"""
Training and generation beside nanoGPT's and llama2.c's, in turn, on this machine. A command: times depend on the hour.

    git clone https://github.com/karpathy/nanoGPT ../nanoGPT       # commit 3adf61e
    git clone https://github.com/karpathy/llama2.c ../llama2.c     # commit 350e04f
    gcc -Ofast -fopenmp -march=native -o ../llama2.c/run ../llama2.c/run.c -lm
    python tests/speed.py --nanogpt=../nanoGPT                     # training, as nanoGPT's shape is: gelu
    python tests/speed.py --job=generate --llama2c=../llama2.c --ffn=swiglu --d_ff=1536

Each model lives in a process of its own, and the processes take turns. A training step is forward, backward, clipping
and AdamW on 4 blocks of 512 tokens, nanoGPT's in float32, as its train.py runs on a CPU, ours in --dtype. Generation
is one sample, token by token, always the likeliest; for nanoGPT, which reads everything again for each token, after a prompt of 400.
"""
job = 'train'              # train or generate
nanogpt = ''               # a clone of it
llama2c = ''               # a clone of it, with `run` built: generation only
rounds = 5                 # measurements of each, in turn; the median counts
text = ''                  # a token file of gpt2-16, as data/mine-gpt2-16/train.bin: then byte pooling runs as well,
#                            whose speed depends on the words; none: random tokens
dtype = 'auto'             # ours: bfloat16 or float32; auto is bfloat16 where the hardware computes in it
device = 'cpu'             # or cuda; then nanoGPT and our table are compiled
ffn = 'gelu'               # with d_ff 2048, nanoGPT's own shape: 57.2 million parameters each
d_ff = 2048                # ours
dropout = 0.1              # both
prompt = 1                 # tokens of the prompt of generation
new = 64                   # tokens of generation
peak = 0.0                 # TFLOP/s of the hardware in this dtype: then training says its share of them (MFU)
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

from configurator import configure
configure(globals(), at_least={1: 'rounds d_ff prompt new'}, one_of=dict(job='train generate'))

V, T, L, H, C = 50304, 512, 10, 16, 512


def tokens_and_vocabulary():
    """4 blocks of 513 tokens, each token's bytes and how often it occurs."""
    import numpy as np
    import torch
    if not text:
        return torch.randint(50257, (4, T + 1)), None, None
    import tokenizer
    file = np.memmap(text, '<u2', 'r')
    found = tokenizer.load(None, pathlib.Path(text).parent)
    spelling = [*tokenizer.spelling(found), *[None] * (V - 50257)]
    blocks = np.stack([file[i * len(file) // 4:][:T + 1] for i in range(4)]).astype(np.int64)
    return torch.from_numpy(blocks), spelling, torch.from_numpy(np.bincount(file, minlength=V))


def our_model(kind):
    """(model, what to compute in, tokens), of kind table, byte_pool, int8 or batch16."""
    import fast
    import run
    run.keep_freed_memory()
    where, context, _ = run.pick_device(device, dtype)
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
    return model, context, tokens.to(where)


def work():
    """For each line of standard input do the job once, and answer with tokens per second."""
    import contextlib
    import torch
    torch.manual_seed(0)
    if worker == 'nanogpt':
        sys.path.insert(0, nanogpt)
        sys.stdout, stdout = sys.stderr, sys.stdout
        from model import GPT, GPTConfig
        model = GPT(GPTConfig(block_size=T, vocab_size=V, n_layer=L, n_head=H, n_embd=C, dropout=dropout, bias=False))
        model.to(device)
        optimizer = model.configure_optimizers(0.1, 6e-4, (0.9, 0.95), device)
        sys.stdout = stdout
        bfloat16 = device == 'cuda'   # as its train.py has it
        context = torch.autocast('cuda', torch.bfloat16) if bfloat16 else contextlib.nullcontext()
        tokens = tokens_and_vocabulary()[0].to(device)
    else:
        model, context, tokens = our_model(worker)
        if job == 'train':
            optimizer = torch.optim.AdamW(model.parameters(), 6e-4, (0.9, 0.95), weight_decay=0.1, fused=True)
    compiled = torch.compile(model) if device == 'cuda' and job == 'train' and worker != 'byte_pool' else model
    x, y = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()
    for _ in sys.stdin:
        if job == 'train':
            start = time.perf_counter()
            with context:
                loss = compiled(x, y)
            (loss[1] if worker == 'nanogpt' else loss.mean()).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            if device == 'cuda':
                torch.cuda.synchronize()
            print(4 * T / (time.perf_counter() - start), flush=True)
        elif worker == 'nanogpt':
            model.eval()
            start = time.perf_counter()
            model.generate(tokens[:1, :400], 8, top_k=200)
            print(8 / (time.perf_counter() - start), flush=True)
        else:
            size = 16 if worker == 'batch16' else 1
            with context, torch.no_grad():
                produced = model.generate(tokens[:1, :prompt].expand(size, -1), new + 1, temperature=0)
                next(produced)   # the prompt is read
                start = time.perf_counter()
                for _ in produced:
                    pass
            print(size * new / (time.perf_counter() - start), flush=True)


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
    names = ['nanogpt'] * bool(nanogpt) + ['table'] + ['byte_pool'] * bool(text)
    names += ['int8', 'batch16'] * (job == 'generate') + ['llama2c'] * (job == 'generate' and bool(llama2c))
    if nanogpt and not pathlib.Path(nanogpt, 'model.py').exists():
        sys.exit(f'--nanogpt={nanogpt}: no model.py there; git clone https://github.com/karpathy/nanoGPT {nanogpt}')
    if llama2c and not pathlib.Path(llama2c, 'run').exists():
        sys.exit(f'--llama2c={llama2c}: no `run` there; {__doc__.splitlines()[5].strip()}')
    processes = {name: subprocess.Popen(
        [sys.executable, __file__, *sys.argv[1:], f'--worker={name}'], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        text=True) for name in names if name != 'llama2c'}
    rates = {name: [] for name in names}
    with tempfile.TemporaryDirectory() as folder:
        for i in range(rounds + 1):   # the first one warms up
            for name in names:
                if name == 'llama2c':
                    rates[name].append(llama2c_rate(folder))
                else:
                    print('go', file=processes[name].stdin, flush=True)
                    rates[name].append(float(processes[name].stdout.readline()))
    for process in processes.values():
        process.stdin.close()
    for name, found in rates.items():
        print(f'{job:8} {name:10} {statistics.median(found[1:]):8.1f} tokens/s '
              f'({min(found[1:]):.1f} to {max(found[1:]):.1f})')
    if peak and job == 'train':
        core = L * (4 * C * C + (3 if ffn == 'swiglu' else 2) * C * d_ff) + V * C
        operations = 6 * core + 6 * L * T * C   # a token's: products with matrices, and attention's, causal
        print(f'table: {statistics.median(rates["table"][1:]) * operations / peak / 1e12:.1%} of {peak} TFLOP/s')
    for name, other in [('table', 'nanogpt'), ('byte_pool', 'nanogpt'), ('byte_pool', 'table'), ('table', 'llama2c'),
                        ('int8', 'table'), ('batch16', 'table')]:
        if name in rates and other in rates:
            ratios = [a / b for a, b in zip(rates[name][1:], rates[other][1:])]
            print(f'{name} / {other}: {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})')


work() if worker else main()
