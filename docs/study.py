"""
Experiments side by side, over seeds: one command runs a study, or goes on where it was stopped.

    python docs/study.py --study=embedding --dataset=enwiki      # how enwiki was prepared: README
    python docs/study.py --study=sharing --more="--device=cpu --max_iters=50"

Each run is `python train.py FLAGS --seed=S --out_dir=out/<study>/<name>-S`. What came of them goes to
docs/<study>.csv (a line for each evaluation), docs/<study>.md (a table) and, with matplotlib, assets/<study>.png.
"""
study = 'embedding'      # embedding, sharing, dropout or schedule: see STUDIES
dataset = 'simplewiki'   # prepared for the tokenizers that the study names
seeds = 3                # 1337 and the following ones
more = ''                # flags for all runs
only = ''                # the name of one of its runs; none: all
table = False            # only write the table and the picture of what has been run

import csv
import json
import pathlib
import signal
import statistics
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from configurator import configure
configure(globals(), at_least={1: 'seeds'})
signal.signal(signal.SIGINT, lambda *_: None)   # Ctrl-C is train.py's, which saves; its exit status tells us

# 450 steps of about 9 kB of text, whatever the tokenizer, with about 1.1 kB of context; 4 layers of width 192
SMALL = dict(max_iters=450, eval_interval=50, eval_tokens=32768, log_interval=50)
GPT2, BPE = SMALL | dict(tokenizer='gpt2-16', block_size=256), SMALL | dict(tokenizer='bpe8192', block_size=308)
POOL = GPT2 | dict(embedding='byte_pool')
STUDIES = dict(
    embedding={
        'byte_pool': POOL,
        'gpt2 softmax': GPT2,
        'gpt2 softmax, small': GPT2 | dict(n_embd=60, d_ff=180),   # 3.2M parameters; byte_pool has 3.1M
        'bpe8192 softmax': BPE,
        'bytes': SMALL | dict(tokenizer='byte', block_size=1124),
        'byte_pool, no counts': POOL | dict(counts=False),
        'gpt2 softmax, no counts': GPT2 | dict(counts=False)},
    sharing={   # the same shape costs the same FLOPs; wide: as many parameters in the core as none, and more FLOPs
        'none': POOL,
        'ffn': POOL | dict(share='ffn'),
        'ffn, wide': POOL | dict(share='ffn', d_ff=2304),
        'ffn + LoRA': POOL | dict(share='ffn', lora_rank=16),
        'block': POOL | dict(share='block'),
        'block, wide': POOL | dict(share='block', n_embd=384, d_ff=1152, n_head=12, n_kv_head=12),
        'block x 2': POOL | dict(share='block', share_every=2),
        'block + LoRA': POOL | dict(share='block', lora_rank=16)},
    dropout={f'{name}, {steps} steps': BPE | dict(max_iters=steps, dropout=points)   # 1 and 10 epochs of 900 kB
             for steps in (100, 1000) for name, points in {
                 'none': 0.0, 'constant': 0.1, 'early linear': [(0, 0.1), (steps // 3, 0)],
                 'late': [(steps * 2 // 3, 0), (steps * 2 // 3 + 1, 0.1)]}.items()},
    schedule={'cosine': POOL, 'wsd': POOL | dict(schedule='wsd'), 'wsd + ema': POOL | dict(schedule='wsd', ema=0.95)})
if study not in STUDIES:
    sys.exit(f'study={study} is none of {", ".join(STUDIES)}')
runs = {name: settings for name, settings in STUDIES[study].items() if only in ('', name)}


def folder(name, seed):
    return ROOT / 'out' / study / f'{name}-{seed}'.replace(' ', '_').replace(',', '')


for seed in range(1337, 1337 + seeds) if not table else ():
    for name, settings in runs.items():
        out = folder(name, seed)
        given = dict(settings, dataset=dataset, seed=seed, out_dir=out) | dict(
            flag.removeprefix('--').split('=', 1) for flag in more.split())
        if (out / 'result.json').exists():
            old = json.loads((out / 'result.json').read_text(encoding='utf-8'))['settings']
            if wrong := [key for key, value in given.items() if str(old[key]) != str(value)]:
                sys.exit(f'{out}: was run with another {", ".join(wrong)}; move it away')
            continue
        print(f'--- {name}, seed {seed}', flush=True)
        command = [f'--{key}={value}' for key, value in given.items()]
        command += ['--init_from=resume'] * (out / 'ckpt.pt').exists()
        if subprocess.run([sys.executable, ROOT / 'train.py', *command], cwd=ROOT).returncode:
            sys.exit(f'{name}, seed {seed}: stopped; the same command goes on from here')

results = {}   # name: its results, a seed each
lines = []
for name in STUDIES[study]:
    for seed in range(1337, 1337 + 100):
        file = folder(name, seed) / 'result.json'
        if file.exists():
            results.setdefault(name, []).append(json.loads(file.read_text(encoding='utf-8')))
            for row in csv.DictReader((folder(name, seed) / 'log.csv').open()):
                if row['val_bpb']:
                    lines.append([name, seed, *(row[key] for key in ('iter', 'tokens', 'bytes', 'seconds', 'val_bpb'))])
if not results:
    sys.exit(f'study={study}: no run is finished yet')
with open(ROOT / f'docs/{study}.csv', 'w', newline='') as file:
    csv.writer(file).writerows([['name', 'seed', 'iter', 'tokens', 'bytes', 'seconds', 'val_bpb'], *lines])

text = ['| | parameters, M | of these tables or bytes | text, MB | PFLOP | minutes | bits per byte (range, seeds) |',
        '|---|---:|---:|---:|---:|---:|---:|']
for name, found in results.items():
    one, bpb = found[0], [result['val_bpb'] for result in found]
    ends = sum(n for part, n in one['parameters'].items() if part.startswith(('token', 'byte')))
    text.append(f'| {name} | {sum(one["parameters"].values()) / 1e6:.2f} | {ends / 1e6:.2f} | {one["bytes"] / 1e6:.1f} | '
                f'{one["flops_per_token"] * one["tokens"] / 1e15:.3f} | '
                f'{statistics.mean(result["seconds"] for result in found) / 60:.1f} | '
                f'{statistics.mean(bpb):.3f} ({min(bpb):.3f} to {max(bpb):.3f}, {len(bpb)}) |')
text.append(f'\n{one["machine"]}; data {one["settings"]["dataset"]}')
(ROOT / f'docs/{study}.md').write_text('\n'.join(text) + '\n', encoding='utf-8')
print('\n'.join(text))

try:
    import matplotlib.pyplot as plt
except ImportError:
    sys.exit('pip install matplotlib, and run it again, for the picture')
figure, panels = plt.subplots(1, 2, figsize=(10, 4), sharey=True)
for i, name in enumerate(results):
    for seed in {line[1] for line in lines if line[0] == name}:
        _, _, _, _, size, seconds, bpb = zip(*[line for line in lines if line[:2] == [name, seed]])
        for panel, x, unit in zip(panels, (size, seconds), (1e6, 60)):
            panel.plot([float(v) / unit for v in x][1:], [float(v) for v in bpb][1:], color=f'C{i}', lw=1,
                       label=name if seed == 1337 else None)
panels[0].set(xlabel='text read, MB', ylabel='held-out bits per byte')
panels[1].set(xlabel='minutes, held-out evaluations included')
panels[0].legend(frameon=False)
figure.tight_layout()
(ROOT / 'assets').mkdir(exist_ok=True)
figure.savefig(ROOT / f'assets/{study}.png', dpi=120)
