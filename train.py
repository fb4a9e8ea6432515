"""
Train a super tiny language model.

    python train.py                                     # the quick start: minutes on a laptop, offline
    python train.py config/quick_byte.py                # an experiment: a few settings
    python train.py config/quick_byte.py --max_iters=100
    python train.py --out_dir=out/quick --init_from=resume
    torchrun --nproc_per_node=4 train.py --grad_accum=4 # several GPUs
"""
# data
dataset = 'pydocs'             # data/<dataset>-<tokenizer>/, made by prepare_wiki.py
tokenizer = 'bpe4096'          # bpe<N>, gpt2, gpt2-16 or byte
data_dir = 'data'              # where the data sets are
out_dir = 'out/quick'          # for ckpt.pt (last), best.pt, log.csv
# model
block_size = 256               # context, in tokens
n_layer = 4                    # blocks of attention and feed-forward
n_head = 6                     # attention heads
n_kv_head = 6                  # key/value heads; fewer than n_head is grouped-query attention
n_embd = 192                   # width
d_ff = 576                     # width of the feed-forward
ffn = 'swiglu'                 # swiglu or gelu
tie_embeddings = True          # one table for input and output
embedding = 'table'            # table, or byte_pool: no tables, tokens are spelled in and out
n_byte_embd = 128              # width of byte_pool's encoder and decoder
n_byte_head = 4                # their attention heads
n_encoder_layer = 1            # blocks that read a token's bytes
n_decoder_layer = 3            # blocks that spell the next token
# training
init_from = 'scratch'          # scratch, or resume: go on from out_dir/ckpt.pt
max_iters = 500                # steps of the optimizer
batch_size = 8                # blocks in a forward pass
grad_accum = 1                 # forward passes in a step, over all processes
optimizer = 'muon'             # muon (hidden matrices; AdamW for the rest) or adamw
learning_rate = 6e-3           # AdamW's
muon_lr = 0.04                 # Muon's
weight_decay = 0.1             # of matrices
beta2 = 0.95                   # AdamW's; its beta1 is 0.9
grad_clip = 1.0                # largest norm of the gradient; 0 for any
warmup_iters = 5               # steps of linear warmup
final_lr = 0.0                 # where the cosine ends, as a share of the peak
dropout: float | list = 0.0    # p, or [(step, p), ...] with straight lines between
seed = 1337                    # of the weights, the data order and dropout
# watching
eval_interval = 100            # steps from one held-out evaluation and checkpoint to the next
eval_tokens = 2**20            # most tokens of an evaluation; the final figure is of the whole split
eval_only = False              # evaluate out_dir/best.pt, and stop
split = 'val'                  # what eval_only reads: val, or test for a final figure
log_interval = 25              # steps from one line to the next
# machine
device = 'auto'                # cuda, mps or cpu; auto takes the first of them that is there
dtype = 'auto'                 # bfloat16 or float32; auto is bfloat16 where the hardware computes in it
compile = False                # torch.compile, on CUDA only

from configurator import FORMAT, configure, load_checkpoint, pick_device
settings, given = configure(
    globals(), one_of=dict(init_from='scratch resume', optimizer='adamw muon', split='val test',
                           dtype='auto bfloat16 float32'), at_least={
        0: 'learning_rate muon_lr weight_decay beta2 grad_clip warmup_iters final_lr seed',
        1: 'max_iters batch_size grad_accum eval_interval eval_tokens log_interval', 2: 'block_size'})

import csv
import gzip
import math
import os
import pathlib
import shutil
import signal
import sys
import time
from dataclasses import asdict, fields

import numpy as np
import torch
import torch.distributed as dist

import prepare_wiki
from model import GPT, Config

# -----------------------------------------------------------------------------------------------
# a resumed run has its checkpoint's settings, but for those given now

out, checkpoint = pathlib.Path(out_dir), None
if init_from == 'resume' or eval_only:
    checkpoint = load_checkpoint(out / ('best.pt' if eval_only else 'ckpt.pt'))
    kept = (*checkpoint['config'], 'dataset', 'tokenizer', 'optimizer', 'weight_decay', 'beta2', 'seed')
    for name, value in checkpoint['settings'].items():
        if name not in (*given, 'out_dir'):
            globals()[name] = settings[name] = value
        elif name in kept and value != settings[name]:
            sys.exit(f'--{name}={settings[name]}: the run in {out_dir} has {value} and has to keep it')
points = dropout if isinstance(dropout, list) else [(0, dropout)]
try:
    steps, ps = np.array(points, dtype=float).T
    if beta2 >= 1 or (np.diff(steps) <= 0).any() or not ((0 <= ps) & (ps < 1)).all():
        raise ValueError
except ValueError:
    sys.exit(f'beta2={beta2} must be below 1, and dropout={dropout} p, or [(step, p), ...] with growing steps, '
             'and p at least 0 and below 1')

# -----------------------------------------------------------------------------------------------
# machine: torchrun starts this script once for each GPU and sets RANK, LOCAL_RANK, WORLD_SIZE

rank, world = int(os.environ.get('RANK', 0)), int(os.environ.get('WORLD_SIZE', 1))
master = rank == 0   # the one process that prints and writes
if grad_accum % world:
    sys.exit(f'grad_accum={grad_accum} must be a multiple of the number of processes, {world}')
device, autocast, machine = pick_device(device, dtype, int(os.environ.get('LOCAL_RANK', 0)))
if world > 1:
    dist.init_process_group('nccl' if device.type == 'cuda' else 'gloo')


def say(message):
    if master:
        print(message, flush=True)


# -----------------------------------------------------------------------------------------------
# data

if not master:   # the others wait while the first process prepares the data, if need be
    dist.barrier()
folder, meta = prepare_wiki.load(dataset, tokenizer, data_dir)
if master and world > 1:
    dist.barrier()


def open_split(split):
    tokens = np.memmap(folder / f'{split}.bin', meta['dtype'], 'r')
    if len(tokens) <= block_size:
        sys.exit(f'{folder}/{split}.bin has {len(tokens)} tokens and one block needs {block_size + 1}: '
                 'give more text, or a smaller --block_size')
    return tokens


def load_blocks(tokens, starts, length=block_size):
    """The tokens of the blocks at `starts`, and the token after each: two (B, T) int64."""
    blocks = np.stack([tokens[start:start + length + 1] for start in starts]).astype(np.int64)
    blocks = torch.from_numpy(blocks).to(device)                                 # (B, T + 1)
    return blocks[:, :-1], blocks[:, 1:]


class Order:
    """Every block once in an epoch, in an order drawn from (seed, epoch), cut elsewhere each epoch.
    Two integers say where we are: the epoch, and how many of its blocks are read."""

    def __init__(self, n_tokens, epoch=0, read=0):
        self.n_tokens, self.epoch, self.read = n_tokens, epoch, read
        self.shuffle()

    def shuffle(self):
        rng = np.random.default_rng((seed, self.epoch))
        first = rng.integers(min(block_size, self.n_tokens - block_size))
        self.starts = first + block_size * rng.permutation((self.n_tokens - 1 - first) // block_size)

    def next(self, n):
        """Where the next n blocks start."""
        chosen = []
        while len(chosen) < n:
            if self.read >= len(self.starts):
                self.epoch, self.read = self.epoch + 1, 0
                self.shuffle()
            more = self.starts[self.read:self.read + n - len(chosen)]
            chosen, self.read = [*chosen, *more], self.read + len(more)
        return chosen


@torch.no_grad()
def evaluate(split, most_tokens=math.inf):
    """Held-out (nats per token, bits per byte) over blocks side by side of the split, or of its first
    most_tokens. All bytes are charged: only the very first token, an end of text, is not predicted."""
    tokens = open_split(split)
    n = min(len(tokens) - 1, most_tokens)
    size = int(token_bytes[tokens[1:n + 1]].sum())
    if n == len(tokens) - 1 and size != meta['splits'][split]['bytes']:
        sys.exit(f'{folder}: {split}.bin and meta.json disagree; delete the folder and prepare it again')
    full, rest = divmod(n, block_size)
    jobs = [(range(i, min(i + batch_size, full)), block_size) for i in range(0, full, batch_size)]
    jobs += [([full], rest)] * (rest > 0)
    nats = torch.zeros((), dtype=torch.float64)
    raw_model.eval()
    for blocks, length in jobs[rank::world]:
        with autocast:
            nll = raw_model(*load_blocks(tokens, [i * block_size for i in blocks], length))   # (B, T)
        nats += nll.cpu().double().sum()
    raw_model.train()
    if world > 1:
        dist.all_reduce(nats := nats.to(device))
    return nats.item() / n, nats.item() / math.log(2) / size


# -----------------------------------------------------------------------------------------------
# model and optimizers

torch.manual_seed(seed)
try:
    config = Config(vocab_size=meta['tokenizer']['vocab_size'], max_bytes=meta['tokenizer']['max_token_bytes'],
                    **{field.name: settings[field.name] for field in fields(Config) if field.name in settings})
except ValueError as error:
    sys.exit(str(error))
model = raw_model = GPT(config).to(device)
encoding = prepare_wiki.make_tokenizer(tokenizer, folder)
spelling = prepare_wiki.spelling(encoding)
raw_model.spell(spelling)
token_bytes = np.array([len(token) for token in spelling])
raw_model.dropout.set(ps.max())
torch.manual_seed(seed + rank)   # each process drops units of its own

tables = raw_model.tables()
matrices = [p for p in raw_model.parameters() if p.dim() == 2 and p not in {*tables}]
vectors = [p for p in raw_model.parameters() if p.dim() == 1]
adamw = [dict(params=tables, weight_decay=weight_decay), dict(params=vectors, weight_decay=0.0)]
optimizers = []
if optimizer == 'muon':
    optimizers.append(torch.optim.Muon(matrices, lr=muon_lr, weight_decay=weight_decay))
else:
    adamw.append(dict(params=matrices, weight_decay=weight_decay))
optimizers.append(torch.optim.AdamW(adamw, lr=learning_rate, betas=(0.9, beta2), fused=True))

tokens = open_split('train')
it, best, seconds, order = 0, math.inf, 0.0, Order(len(tokens))
if checkpoint:
    if checkpoint['data'] != [meta['tokenizer'], meta['splits']]:
        sys.exit(f'{folder}: not the data that {out_dir} was trained on; it was prepared again')
    raw_model.load_state_dict(checkpoint['model'])
    for o, state in zip(optimizers, checkpoint['optimizers']):
        o.load_state_dict(state)
    it, best, seconds = checkpoint['iter'], checkpoint['best'], checkpoint['seconds']
    order = Order(len(tokens), *checkpoint['order'])
    torch.set_rng_state(checkpoint['rng']) if master else torch.manual_seed(seed + rank + world * it)
    if master and device.type == 'cuda' and checkpoint['cuda_rng'] is not None:
        torch.cuda.set_rng_state(checkpoint['cuda_rng'])
    checkpoint = None   # so that its memory is free

parts = raw_model.count_parameters()
say(machine)
say(f'parameters: {sum(parts.values()):,} = ' + ' + '.join(f'{part} {n:,}' for part, n in parts.items()))
if eval_only:
    nats, bpb = evaluate(split)
    say(f'{split} split after {it} steps: {nats:.4f} nats per token, {bpb:.4f} bits per byte')
    sys.exit()
step_tokens, train_has = batch_size * grad_accum * block_size, meta['splits']['train']
say(f"data: {folder}, {train_has['tokens']:,} tokens of {train_has['bytes'] / train_has['tokens']:.2f} bytes; "
    f"{max_iters} steps of {step_tokens:,} tokens are {max_iters * step_tokens / train_has['tokens']:.1f} epochs")
if compile and device.type == 'cuda':
    model = torch.compile(model)
if world > 1:
    model = torch.nn.parallel.DistributedDataParallel(model, broadcast_buffers=False)


def lr_factor(it):
    """Linear warmup, then half a cosine from 1 to final_lr."""
    if it < warmup_iters:
        return (it + 1) / (warmup_iters + 1)
    done = (it - warmup_iters) / max(1, max_iters - warmup_iters)
    return final_lr + (1 - final_lr) * (1 + math.cos(math.pi * done)) / 2


# -----------------------------------------------------------------------------------------------
# what is written

def save(*names):
    """The whole state, under each name. A file is replaced only by a whole one."""
    state = dict(
        format=FORMAT, model=raw_model.state_dict(), optimizers=[o.state_dict() for o in optimizers],
        config=asdict(config), data=[meta['tokenizer'], meta['splits']], settings=settings, iter=it, best=best,
        seconds=time.time() - start, order=[order.epoch, order.read], rng=torch.get_rng_state(),
        cuda_rng=torch.cuda.get_rng_state() if device.type == 'cuda' else None)
    for name in names if master else ():
        part = out / f'{name}.part'
        try:
            torch.save(state, part)
            os.replace(part, out / name)
        except (OSError, RuntimeError) as error:   # torch reports a full disk as a RuntimeError
            part.unlink(missing_ok=True)
            sys.exit(f'{out / name}: not written ({str(error).splitlines()[0]}); any older one is kept')


COLUMNS = ('iter', 'tokens', 'epoch', 'train_loss', 'val_loss', 'val_bpb', 'lr', 'dropout', 'grad_norm',
           'tokens_per_s', 'seconds')
log_file = out / 'log.csv'
if master:
    if init_from == 'scratch' and (out / 'ckpt.pt').exists():   # a new run in an old one's place loses nothing
        old = next(old for n in range(1, 10**6) if not (old := out.with_name(f'{out.name}.{n}')).exists())
        os.rename(out, old)
        say(f'the run that was in {out} is now in {old}')
    out.mkdir(parents=True, exist_ok=True)
    for file in folder.glob('*.tiktoken'):   # so that sample.py needs nothing but out_dir
        shutil.copy(file, out)
    rows = list(csv.reader(log_file.open())) if init_from == 'resume' and log_file.exists() else [COLUMNS]
    with open(f'{log_file}.part', 'w', newline='') as file:   # what came after the checkpoint will come again
        csv.writer(file).writerows(row for row in rows if row and (row[0] == 'iter' or int(row[0]) <= it))
    os.replace(f'{log_file}.part', log_file)

# -----------------------------------------------------------------------------------------------
# the loop

def held_out():
    """Evaluate, and save the state; it is the best one too if nothing before it was better."""
    global best
    nats, bpb = evaluate('val', eval_tokens)
    if not math.isfinite(nats):
        sys.exit(f'step {it}: the held-out loss is {nats}; lower the learning rate. The last checkpoint is kept')
    say(f'step {it:6} | held out {nats:.4f} nats per token, {bpb:.4f} bits per byte')
    improved, best = bpb < best, min(best, bpb)
    if it:
        save('ckpt.pt', *['best.pt'] * improved)
    return dict(val_loss=nats, val_bpb=bpb)


def log(**values):
    values = dict(iter=it, tokens=it * step_tokens, epoch=it * step_tokens / train_has['tokens'],
                  seconds=time.time() - start, **values)
    values = {key: f'{value:.6g}' if isinstance(value, float) else value for key, value in values.items()}
    if master:
        with log_file.open('a', newline='') as file:
            csv.DictWriter(file, COLUMNS).writerow(values)


def stop(signum, frame):
    """Ctrl-C ends the step, saves and stops; a second one stops at once."""
    if stopped:
        sys.exit('stopped without saving')
    stopped.append(signum)


stopped, start, first = [], time.time() - seconds, it
if world == 1:
    signal.signal(signal.SIGINT, stop)
    signal.signal(signal.SIGTERM, stop)
if it == 0:
    log(**held_out())   # about ln(vocab_size) nats: the untrained model knows nothing
loss_sum, last = 0.0, (it, time.time())
while it < max_iters and not stopped:
    for o in optimizers:
        for group in o.param_groups:
            group['lr'] = (muon_lr if isinstance(o, torch.optim.Muon) else learning_rate) * lr_factor(it)
    p = float(np.interp(it, steps, ps))
    raw_model.dropout.set(p)

    mine = order.next(batch_size * grad_accum)[rank::world]
    n_micro = grad_accum // world
    for micro in range(n_micro):
        x, y = load_blocks(tokens, mine[micro::n_micro])
        model.require_backward_grad_sync = micro == n_micro - 1   # DDP: add up the gradients once
        with autocast:
            loss = model(x, y).mean() / n_micro
        loss.backward()
        loss_sum += loss.detach()
    norm = torch.nn.utils.clip_grad_norm_(raw_model.parameters(), grad_clip or math.inf)
    for o in optimizers:
        o.step()
        o.zero_grad(set_to_none=True)
    it += 1

    values = {}
    if it % log_interval == 0 or it == max_iters:
        n, now = it - last[0], time.time()
        values = dict(train_loss=loss_sum.item() / n, lr=learning_rate * lr_factor(it - 1), dropout=p,
                      grad_norm=norm.item(), tokens_per_s=n * step_tokens / (now - last[1]))
        if not math.isfinite(values['train_loss']):
            sys.exit(f'step {it}: the loss is {values["train_loss"]}; lower the learning rate')
        left = (now - start - seconds) / (it - first) * (max_iters - it)
        say(f'step {it:6} | loss {values["train_loss"]:.4f} | {values["tokens_per_s"]:,.0f} tokens/s | '
            f'{int(left) // 60}:{int(left) % 60:02} left')
    if it % eval_interval == 0 or it == max_iters:
        values.update(held_out())
    if values:
        log(**values)
        loss_sum, last = 0.0, (it, time.time())   # the time of an evaluation isn't training's

# -----------------------------------------------------------------------------------------------
# the end

if stopped:
    save('ckpt.pt')
    say(f'stopped at step {it} and saved; go on with: python train.py --out_dir={out_dir} --init_from=resume')
    sys.exit(130)
if it == first and master:
    sys.exit(f'nothing to do: {out_dir} is at step {it} of {max_iters} already; give a larger --max_iters')
whole = len(open_split('val')) - 1 <= eval_tokens   # then the last evaluation was of all of it
bpb = values['val_bpb'] if whole else evaluate('val')[1]
if master:
    raw_model.eval()
    prompt = open_split('val')[:9].tolist()   # the end of text before it, and a held-out text's first 8 tokens
    with autocast:
        more = raw_model.generate(torch.tensor([prompt], device=device), 100, temperature=0.8, top_k=50)
        ids = prompt[1:] + [token.item() for token in more]
    sample = b''.join(raw_model.spelled(i) or spelling[i] or b'\n\n' for i in ids)
    print(f"\n--- a held-out text's first words, continued\n{sample.decode(errors='replace')}\n---")
    text = b''.join(spelling[i] for i in open_split('val')[:2**21].tolist())   # a long one would take minutes
    print(f'held out: {bpb:.3f} bits per byte; gzip -9 needs {8 * len(gzip.compress(text, 9)) / len(text):.3f}'
          ' for the same text')
    print(f'checkpoint: {out / "best.pt"}, curve: {log_file}, {(time.time() - start) / 60:.1f} minutes')
    print(f'next: python sample.py --out_dir={out_dir} --prompt="A list is"')
if world > 1:
    dist.destroy_process_group()
