"""
Experiments side by side, over seeds: one command runs a study, or goes on where it was stopped.

    python -m tools.study --study=embedding --dataset=simplewiki
    python -m tools.study --study=sharing --more="--device=cpu --max_iters=50"

Each run is `python train.py FLAGS --seed=S --out_dir=out/study/<name>-S`. What came of them goes to
docs/<study>.csv (a line for each evaluation), docs/<study>.md (a table; of the ideas docs/ideas_table.md) and
assets/<study>.svg. A finished run of the ideas also writes 200 tokens at temperature 0, to time them.
"""
study = 'embedding'      # embedding, pair, sharing, dropout, schedule, curriculum, ideas or ideas_600: see STUDIES
dataset = 'simplewiki'   # prepared for the tokenizers that the study names; curriculum has its own, of tools/curriculum.py
seeds = 3                # 1337 and the following ones
more = ''                # flags for all runs
only = ''                # the name of one of its runs; none: all
table = False            # only write the table and the picture of what has been run

import csv
import json
import pathlib
import re
import signal
import statistics
import subprocess
import sys

COLUMNS = 'iter', 'tokens', 'bytes', 'seconds', 'val_bpb'
ROOT = pathlib.Path(__file__).resolve().parent.parent

from configurator import Failure, configure
if __name__ == '__main__':
    configure(globals())

from tools.pictures import ranges, table_file

# embedding: 450 steps of about 9 kB of text, whatever the tokenizer, with about 1.1 kB of context; the others: 200
# steps. 4 layers of width 192. A run that two studies name is run once. All start from how often each token occurs.
SMALL = dict(max_iters=450, eval_interval=50, eval_tokens=32768, log_interval=50,
             n_layer=4, n_head=6, n_kv_head=6, n_embd=192, d_ff=576, n_byte_embd=128, n_byte_head=4, batch_size=8)
TABLE = SMALL | dict(output_bias=True)
GPT2 = TABLE | dict(tokenizer='gpt2-16', block_size=256)
TUNED = dict(learning_rate=12e-3, muon_lr=0.01)   # what suits tables: docs/embedding_rates.csv
FACTORISED = GPT2 | dict(idea='factorised', n_factor=22)   # as many as byte_pool, as wide
# on the way all rows are judged on one text: of enwiki's val, as many bytes as 32,768 tokens of gpt2-16 (141 kB)
BPE = TABLE | dict(tokenizer='bpe8192', block_size=308, eval_tokens=38502)
BYTES = TABLE | dict(tokenizer='byte', block_size=1124, eval_tokens=141432)
POOL = SMALL | dict(tokenizer='gpt2-16', block_size=256, embedding='byte_pool')
BASE = POOL | dict(max_iters=200, dtype='float32')
# of the ideas, which are many: the quick start's model
SHORT = dict(tokenizer='bpe4096', max_iters=100, eval_interval=50, eval_tokens=32768, log_interval=25)
LONG = SHORT | dict(max_iters=600, eval_interval=100, dtype='float32')
# 10 MB of English, as gpt2-16 cuts it
WIDER = dict(n_embd=256, d_ff=768, n_head=4, n_kv_head=4, max_iters=1112, eval_interval=139, log_interval=139)
AGAIN = BASE | dict(train_tokens=200 * 2048 // 10)   # ten epochs of a tenth of the text
DROPOUTS = {'constant': 0.1, 'early linear': [[0, 0.1], [67, 0]], 'late': [[133, 0], [134, 0.1]]}
STUDIES = dict(
    embedding={
        'byte_pool': POOL,
        'gpt2 softmax': GPT2,
        'gpt2 softmax, small': GPT2 | dict(n_embd=60, d_ff=180),   # 3.2M parameters; byte_pool has 3.1M
        'gpt2 softmax, factorised': FACTORISED,
        'bpe8192 softmax': BPE,
        'bytes': BYTES,
        # at other rates than the quick start's
        'byte_pool, muon 0.02': POOL | dict(muon_lr=0.02),
        'byte_pool, muon 0.01': POOL | dict(muon_lr=0.01),
        'gpt2 softmax, tuned': GPT2 | TUNED,
        'gpt2 softmax, factorised, tuned': FACTORISED | TUNED,
        'bpe8192 softmax, tuned': BPE | TUNED,
        # for as long as byte_pool's 450 steps take, at 0.754 s each: docs/embedding_steps.csv
        'bpe8192 softmax, tuned, 961 steps': BPE | TUNED | dict(max_iters=961)},
    pair={'byte_pool, 4 x 256': POOL | WIDER,
          'byte_pool, 4 x 256, muon 0.02': POOL | WIDER | dict(muon_lr=0.02),
          'gpt2 softmax, 4 x 256': GPT2 | WIDER | dict(learning_rate=12e-3, muon_lr=0.02)},
    sharing={   # the same shape costs the same FLOPs; thin, narrow and wide are for as many parameters
        'base': BASE,
        'base, thin ffn': BASE | dict(d_ff=144),                                        # as many as ffn
        'base, narrow': BASE | dict(n_embd=96, d_ff=288, n_head=3, n_kv_head=3),        # as many in the core as block
        'ffn': BASE | dict(share='ffn'),
        'ffn, wide': BASE | dict(share='ffn', d_ff=2304),                               # as many as base
        'ffn + LoRA': BASE | dict(share='ffn', lora_rank=16),
        'block': BASE | dict(share='block'),
        'block x 2': BASE | dict(share='block', share_every=2),
        'block + LoRA': BASE | dict(share='block', lora_rank=16)},
    schedule={'base': BASE, 'wsd': BASE | dict(schedule='wsd'), 'wsd + ema': BASE | dict(schedule='wsd', ema=0.95)},
    dropout={'base': BASE} | {f'dropout {name}': BASE | dict(dropout=p) for name, p in DROPOUTS.items()} |
            {'10 epochs': AGAIN, **{f'10 epochs, dropout {name}': AGAIN | dict(dropout=p) for name, p in DROPOUTS.items()},
             '10 epochs, dropout, decay, ema': AGAIN | dict(dropout=0.1, weight_decay=0.8, ema=0.95)},
    curriculum={   # each reads the same 400 blocks of both sets once, only the order differs
        'shuffled': SHORT | dict(dataset='easy,hard'),
        'easy first': SHORT | dict(dataset='easy,hard', mix_schedule=[[0, [1, 0]], [99, [0, 1]]]),
        'hard first': SHORT | dict(dataset='easy,hard', mix_schedule=[[0, [0, 1]], [99, [1, 0]]])},
    ideas={   # each beside plain; beside them, what as many parameters or FLOPs do without an idea
        'plain': SHORT,
        'value_residual': SHORT | dict(idea='value_residual'),
        'experts': SHORT | dict(idea='experts'),
        'plain, wide ffn': SHORT | dict(d_ff=1536),                                     # as many parameters as experts
        'early_exit': SHORT | dict(idea='early_exit', exit_above=0.7),
        'self_speculation': SHORT | dict(idea='self_speculation'),                      # the same training
        'pause_tokens': SHORT | dict(idea='pause_tokens'),
        'plain, 5 layers': SHORT | dict(n_layer=5),                                     # as many FLOPs as pause_tokens
        'teacher': SHORT | dict(max_iters=300),                                         # plain, three times as long
        'distillation': SHORT | dict(idea='distillation', teacher='out/study/teacher-{seed}'),
        'mixture_of_depths': SHORT | dict(idea='mixture_of_depths'),
        'plain, 3 layers': SHORT | dict(n_layer=3),                                     # as mixture_of_depths
        'next_thought': SHORT | dict(idea='next_thought'),
        'fill_in_the_middle': SHORT | dict(idea='fill_in_the_middle')},
    ideas_600={   # the four that are asked for most, in the quick start's 600 steps; plain ones with the operations of each
        'plain, 600 steps': LONG,
        'value_residual, 600 steps': LONG | dict(idea='value_residual'),
        'experts, 600 steps': LONG | dict(idea='experts'),
        'early_exit, 600 steps': LONG | dict(idea='early_exit', exit_above=0.7),
        'plain, 792 steps': LONG | dict(max_iters=792),                                 # as early_exit
        'teacher, 1200 steps': LONG | dict(max_iters=1200),                             # plain
        'distillation, 600 steps': LONG | dict(idea='distillation', teacher='out/study/teacher_1200_steps-{seed}'),
        'plain, 864 steps': LONG | dict(max_iters=864),                                 # as distillation without its teacher's training
        'plain, 2064 steps': LONG | dict(max_iters=2064)})                              # as distillation with it


def folder(name, seed):
    return ROOT / 'out/study' / f'{name}-{seed}'.replace(' ', '_').replace(',', '')


def time_generation(out):
    """Keep in the run's folder how many tokens it writes in a second; only of the ideas, where it differs."""
    file = out / 'generation.txt'
    if study == 'ideas' and not file.exists():
        said = subprocess.run([sys.executable, ROOT / 'sample.py', f'--out_dir={out}', '--temperature=0', '--prompt=The city of',
                               '--device=cpu'], cwd=ROOT, capture_output=True, text=True, encoding='utf-8').stderr
        found = re.search(r'(\d+) tokens/s', said)
        if not found:
            raise Failure(f'{out}: sample.py failed: {said}')
        file.write_text(found[1])


def run_all(runs):
    """Train each run with each seed, unless it is done; one that was stopped goes on."""
    for seed in range(1337, 1337 + seeds):
        for name, settings in runs.items():
            out = folder(name, seed)
            flags = dict(dataset=dataset, seed=seed) | settings | dict(
                flag.removeprefix('--').split('=', 1) for flag in more.split())
            flags = {key: value.format(seed=seed) if key == 'teacher' else value for key, value in flags.items()}
            flags = json.loads(json.dumps(flags))   # as they will be read again
            asked, begun, ended = (out / file for file in ('flags.json', 'ckpt.pt', 'result.json'))
            if begun.exists() or ended.exists():
                old = json.loads(asked.read_text(encoding='utf-8'))
                if wrong := [key for key in {**old, **flags} if old.get(key) != flags.get(key)]:
                    raise Failure(f'{out}: was run with another {", ".join(wrong)}; move it away')
            if ended.exists():
                time_generation(out)
                continue
            print(f'--- {name}, seed {seed}', flush=True)
            out.mkdir(parents=True, exist_ok=True)
            asked.write_text(json.dumps(flags), encoding='utf-8')
            command = [f'--{key}={value}' for key, value in (flags | dict(out_dir=out)).items()]
            command += ['--init_from=resume'] * begun.exists()
            if status := subprocess.run([sys.executable, ROOT / 'train.py', *command], cwd=ROOT).returncode:
                raise Failure(f'{name}, seed {seed}: ' + ('stopped; the same command goes on' if status == 130 else 'failed'))
            time_generation(out)


def fastest(speeds):   # of its seeds: the one that had to share the machine least
    return '–' if None in speeds else f'{max(speeds):,.0f}'


def mean_and_range(values):
    return f'{statistics.mean(values):.3f} ' + (f'({min(values):.3f} to {max(values):.3f}, {len(values)})' if values[1:] else '(1 seed)')


def write_table():
    """What came of the runs that have ended: a table, a line for each evaluation, a picture."""
    results, lines = {}, []   # {name: its results, a seed each}, [[name, seed, *COLUMNS]]
    for name in STUDIES[study]:
        for seed in range(1337, 1337 + 100):
            file = folder(name, seed) / 'result.json'
            if file.exists():
                result, log = json.loads(file.read_text(encoding='utf-8')), list(csv.DictReader((folder(name, seed) / 'log.csv').open()))
                rows = [row for row in log if row['val_bpb']]
                lines += [[name, seed, *(row[key] for key in COLUMNS), 'first'] for row in rows]
                lines.append([name, seed, *(rows[-1][key] for key in COLUMNS[:-1]), f'{result["val_bpb"]:.8g}', 'all'])
                speeds = [float(row['tokens_per_s']) for row in log if row['tokens_per_s']]
                speed = folder(name, seed) / 'generation.txt'
                results.setdefault(name, []).append(result | dict(
                    training=statistics.median(speeds), generation=float(speed.read_text()) if speed.exists() else None))
    if not results:
        raise Failure(f'study={study}: no run is finished yet')
    with open(ROOT / f'docs/{study}.csv', 'w', newline='') as file:
        csv.writer(file).writerows([['name', 'seed', *COLUMNS, 'held_out'], *lines])

    rows = []
    for name, found in results.items():
        one = found[0]
        ends = sum(n for part, n in one['parameters'].items() if part.startswith(('token', 'byte')))
        rows.append({
            '': name,
            'parameters, M': f'{sum(one["parameters"].values()) / 1e6:.2f}',
            'of these tables or bytes': f'{ends / 1e6:.2f}',
            'text, MB': f'{one["bytes"] / 1e6:.1f}',
            'PFLOP': f'{one["flops_per_token"] * one["tokens"] / 1e15:.4f}',
            'GB': f'{one["peak_memory"] / 1e9:.1f}' if one.get('peak_memory') else '–',   # nothing tells on Windows
            'minutes': f'{min(result["seconds"] for result in found) / 60:.1f}',
            'training, tokens/s': fastest([result['training'] for result in found]),
            'generation, tokens/s': fastest([result['generation'] for result in found]),
            'lowest on the way': f'{statistics.mean(result["best_bpb"] for result in found):.3f}',
            'bits per byte (range, seeds)': mean_and_range([result['val_bpb'] for result in found])})
    heads = [head for head in rows[0] if {row[head] for row in rows} != {'–'}]
    text = [f'| {" | ".join(cells)} |' for cells in (heads, *([row[head] for head in heads] for row in rows))]
    text.insert(1, '|---|' + '---:|' * (len(heads) - 1))
    every = [result for found in results.values() for result in found]
    text += ['', *sorted({f'{result["machine"]}; data {result["settings"]["dataset"]}' for result in every}),
             f'At the end all held-out text counts, for "lowest on the way" its first {one["settings"]["eval_tokens"]:,} tokens: '
             'compare that among runs with one tokenizer.',
             'PFLOP is what training computes, with a second loss and a teacher. Where ranges overlap, it is a tie.']
    table_file(study).write_text('\n'.join(text) + '\n', encoding='utf-8')
    print('\n'.join(text))

    (ROOT / f'assets/{study}.svg').write_text(ranges(study).svg(), encoding='utf-8')


if __name__ == '__main__':
    signal.signal(signal.SIGINT, lambda *_: None)   # Ctrl-C is train.py's, which saves; its exit status tells us
    if study not in STUDIES:
        raise Failure(f'study={study} is none of {", ".join(STUDIES)}')
    runs = {name: settings for name, settings in STUDIES[study].items() if only in ('', name)}
    if not runs:
        raise Failure(f'only={only} is none of {"; ".join(STUDIES[study])}')
    if not table:
        run_all(runs)
    write_table()
