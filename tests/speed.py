"""
Training and generation beside nanoGPT's, in turn, on this machine. A command, not a test: times depend on the hour.

    git clone https://github.com/karpathy/nanoGPT ../nanoGPT      # commit 3adf61e
    python tests/speed.py --nanogpt=../nanoGPT

Each model lives in a process of its own, and the processes take turns. A training step is forward, backward,
clipping and AdamW on 4 blocks of 512 tokens, nanoGPT's in float32, as its train.py runs on a CPU, ours as
train.py runs here. Generation is token by token after a prompt of 400.
"""
nanogpt = '../nanoGPT'     # a clone of it
rounds = 5                 # measurements of each, in turn; the median counts
worker = ''                # (how the script calls itself, for each of nanogpt, table, byte_pool)
text = ''                  # a token file of gpt2-16, as data/mine-gpt2-16/train.bin: then byte pooling runs as well,
#                            whose speed depends on the words; none: random tokens
ffn = 'gelu'               # with d_ff 2048, nanoGPT's own shape: 57.2 million parameters each
d_ff = 2048                # ours
dropout = 0.1              # both

import pathlib
import statistics
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from configurator import configure
configure(globals(), at_least={1: 'rounds d_ff'})


if not pathlib.Path(nanogpt, 'model.py').exists():
    sys.exit(f'--nanogpt={nanogpt}: no model.py there; git clone https://github.com/karpathy/nanoGPT {nanogpt}')


def work():
    """Read `train` or `generate` from standard input, do it, answer with tokens per second."""
    if worker == 'nanogpt':
        sys.path.insert(0, nanogpt)
    import contextlib
    import torch
    torch.manual_seed(0)
    tokens = torch.randint(50257, (4, 513))
    if text:
        import numpy as np
        import prepare_wiki
        file = np.memmap(text, '<u2', 'r')
        counts = torch.from_numpy(np.bincount(file, minlength=50304))
        spelling = [*prepare_wiki.spelling(prepare_wiki.make_tokenizer('gpt2-16')), *[b''] * 47]
        tokens = torch.from_numpy(np.stack([file[i * 50000:][:513] for i in range(4)]).astype(np.int64))
    x, y = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()
    if worker == 'nanogpt':
        sys.stdout, stdout = sys.stderr, sys.stdout
        from model import GPT, GPTConfig
        model = GPT(GPTConfig(block_size=512, vocab_size=50304, n_layer=10, n_head=16, n_embd=512, dropout=dropout,
                              bias=False))
        optimizer = model.configure_optimizers(0.1, 6e-4, (0.9, 0.95), 'cpu')
        sys.stdout = stdout
        context, loss_of = contextlib.nullcontext(), lambda: model(x, y)[1]
        generate = lambda n: model.generate(tokens[:1, :400], n, top_k=200)
    else:
        from configurator import pick_device
        from model import GPT, Config
        _, context, _ = pick_device('cpu')
        model = GPT(Config(block_size=512, vocab_size=50304, n_layer=10, n_head=16, n_kv_head=16, n_embd=512,
                           ffn=ffn, d_ff=d_ff, embedding=worker))
        if text:
            model.tokens.spell(spelling, counts)
        model.dropout.set(dropout)
        optimizer = torch.optim.AdamW(model.parameters(), 6e-4, (0.9, 0.95), weight_decay=0.1, fused=True)
        loss_of = lambda: model(x, y).mean()
        generate = lambda n: list(model.generate(tokens[:1, :400], n, top_k=200))
    for job in sys.stdin:
        start = time.perf_counter()
        if job.strip() == 'train':
            model.train()
            with context:
                loss = loss_of()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            print(2048 / (time.perf_counter() - start), flush=True)
        else:
            model.eval()
            n = 8 if worker == 'nanogpt' else 64
            with context, torch.no_grad():
                if torch.is_autocast_enabled('cpu'):
                    model.matrices_to_bfloat16()   # as sample.py does; nothing trains after this
                generate(n)
            print(n / (time.perf_counter() - start), flush=True)


def main():
    workers = {name: subprocess.Popen(
        [sys.executable, __file__, *sys.argv[1:], f'--worker={name}'], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        text=True) for name in ('nanogpt', 'table', *['byte_pool'] * bool(text))}

    def ask(name, job):
        print(job, file=workers[name].stdin, flush=True)
        return float(workers[name].stdout.readline())

    for job in ('train', 'generate'):
        rates = {name: [] for name in workers}
        for i in range(rounds + 2):   # the first two warm up
            for name in workers:
                rates[name].append(ask(name, job))
        for name, other in [('table', 'nanogpt'), ('byte_pool', 'nanogpt'), ('byte_pool', 'table')][:3 if text else 1]:
            ratios = [a / b for a, b in zip(rates[name][2:], rates[other][2:])]
            a, b = (statistics.median(rates[n][2:]) for n in (name, other))
            print(f'{job:8}  {other} {b:6.1f} tokens/s, {name} {a:6.1f} tokens/s, '
                  f'ratio {statistics.median(ratios):.1f} ({min(ratios):.1f} to {max(ratios):.1f})', flush=True)
    for process in workers.values():
        process.stdin.close()


work() if worker else main()
