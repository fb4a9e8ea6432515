"""
Train a super tiny language model.

    python train.py                                     # the quick start: minutes on a laptop, offline
    python train.py config/quick_byte.py                # an experiment: a few settings
    python train.py config/quick_byte.py --max_iters=100
    python train.py --out_dir=out/quick --init_from=resume
    torchrun --nproc_per_node=4 train.py --grad_accum=4 # several GPUs
"""
# data
dataset = 'pydocs'             # data/<dataset>-<tokenizer>/, made by prepare_wiki.py; a mix is 'simplewiki:3,pydocs:1'
tokenizer = 'bpe4096'          # bpe<N>, gpt2, gpt2-16 or byte
data_dir = 'data'              # where the data sets are
out_dir = 'out/quick'          # for ckpt.pt (last), best.pt, log.csv
train_tokens = 0               # of each data set, train on its first so many only; 0 is all
# model
block_size = 256               # context, in tokens
n_layer = 4                    # blocks of attention and feed-forward
n_head = 6                     # attention heads
n_kv_head = 6                  # key/value heads; fewer than n_head is grouped-query attention
n_embd = 192                   # width
d_ff = 576                     # width of the feed-forward
ffn = 'swiglu'                 # swiglu or gelu
tie_embeddings = True          # one table for input and output
share = 'none'                 # what layers have in common: none, ffn, or block (attention too)
share_every = 0                # how many consecutive layers do; 0 is all
lora_rank = 0                  # of each layer's own change to the matrices that it shares; 0 is none
embedding = 'table'            # table, or byte_pool: no tables, tokens are spelled in and out
n_byte_embd = 128              # width of byte_pool's encoder and decoder
n_byte_head = 4                # their attention heads
n_encoder_layer = 1            # blocks that read a token's bytes
n_decoder_layer = 2            # blocks that spell the next token
counts = True                  # the output starts from how often each token occurs in the training text
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
schedule = 'cosine'            # of the learning rate after its warmup: cosine, or wsd (constant, then a line down)
warmup_iters = 5               # steps of linear warmup
decay_share = 0.4              # of all steps, that wsd's line takes
final_lr = 0.0                 # where the schedule ends, as a share of the peak
dropout: float | list = 0.0    # p, or [(step, p), ...] with straight lines between
ema = 0.0                      # evaluate and keep an average of the weights over about 1/(1 - ema) steps; 0 is none
seed = 1337                    # of the weights, the data order and dropout
# watching
eval_interval = 100            # steps from one held-out evaluation and checkpoint to the next
eval_tokens = 2**20            # most tokens of an evaluation, of each data set; the final figure is of the whole split
eval_only = False              # evaluate out_dir/best.pt, and stop
split = 'val'                  # what eval_only reads: val, or test for a final figure
stride = 0                     # tokens from one window of eval_only to the next; 0 is half of block_size
log_interval = 25              # steps from one line to the next
eval_mc = 0                    # at each evaluation, answer the first this many questions of each of mc_tasks
mc_tasks = 'arc_easy,hellaswag'   # eval_mc.py's, in data_dir/eval, or files of one's own questions
# machine
device = 'auto'                # cuda, mps or cpu; auto takes the first of them that is there
dtype = 'auto'                 # bfloat16 or float32; auto is bfloat16 where the hardware computes in it
compile = False                # torch.compile, on CUDA only

from configurator import FORMAT, Progress, configure, load_checkpoint, peak_memory, pick_device
settings, given = configure(
    globals(), one_of=dict(init_from='scratch resume', optimizer='adamw muon', split='val test',
                           schedule='cosine wsd', dtype='auto bfloat16 float32'), at_least={
        0: 'train_tokens learning_rate muon_lr weight_decay beta2 grad_clip warmup_iters decay_share final_lr ema '
           'stride eval_mc seed',
        1: 'max_iters batch_size grad_accum eval_interval eval_tokens log_interval', 2: 'block_size'})

import csv
import datetime
import gzip
import json
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
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.flop_counter import FlopCounterMode

import prepare_wiki
from download import write_whole
from model import GPT, Config

# -----------------------------------------------------------------------------------------------
# a resumed run has its checkpoint's settings, but for those given now

out, checkpoint = pathlib.Path(out_dir), None
if init_from == 'resume' or eval_only:
    checkpoint = load_checkpoint(out / ('best.pt' if eval_only else 'ckpt.pt'))
    kept = (*checkpoint['config'], 'dataset', 'tokenizer', 'train_tokens', 'optimizer', 'weight_decay', 'beta2', 'ema',
            'counts', 'seed')
    for name, value in checkpoint['settings'].items():
        if name not in (*given, 'out_dir'):
            globals()[name] = settings[name] = value
        elif name in kept and value != settings[name]:
            sys.exit(f'--{name}={settings[name]}: the run in {out_dir} has {value} and has to keep it')
    before = checkpoint['settings']
    if before['batch_size'] * before['grad_accum'] != batch_size * grad_accum and not eval_only:
        sys.exit(f'batch_size={batch_size} times grad_accum={grad_accum}: the run in {out_dir} has '
                 f"{before['batch_size'] * before['grad_accum']} blocks in a step and has to keep them")
try:
    steps, ps = np.array(dropout if isinstance(dropout, list) else [(0, dropout)], dtype=float).T
    if (np.diff(steps) <= 0).any() or not ((0 <= ps) & (ps < 1)).all():
        raise ValueError
except (ValueError, TypeError):
    sys.exit(f'dropout={dropout} must be p, or [(step, p), ...] with growing steps, and p at least 0 and below 1')
if beta2 >= 1 or ema >= 1 or stride > block_size:
    sys.exit(f'beta2={beta2} and ema={ema} must be below 1, and stride={stride} at most block_size={block_size}')

# -----------------------------------------------------------------------------------------------
# machine: torchrun starts this script once for each GPU and sets RANK, LOCAL_RANK, WORLD_SIZE

rank, world = int(os.environ.get('RANK', 0)), int(os.environ.get('WORLD_SIZE', 1))
master = rank == 0   # the one process that prints and writes
if grad_accum % world:
    sys.exit(f'grad_accum={grad_accum} must be a multiple of the number of processes, {world}')
device, autocast, machine = pick_device(device, dtype, int(os.environ.get('LOCAL_RANK', 0)))
if world > 1:
    dist.init_process_group('nccl' if device.type == 'cuda' else 'gloo',
                            timeout=datetime.timedelta(hours=3))   # the others wait while the first one downloads


def say(message):
    if master:
        print(message, flush=True)


# -----------------------------------------------------------------------------------------------
# data

if not master:   # the others wait while the first process prepares the data, if need be
    dist.barrier()
mix = dict(item.partition(':')[::2] for item in dataset.split(','))              # {name: share}
try:
    shares = np.array([float(share or 1) for share in mix.values()])
    if not all(shares > 0) or len(mix) <= dataset.count(','):
        raise ValueError
except ValueError:
    sys.exit(f"dataset={dataset}: a name, or a mix of several as 'simplewiki:3,pydocs:1', with shares above 0")
shares /= shares.sum()
sets = [prepare_wiki.load(name, tokenizer, data_dir) for name in mix]            # [(folder, meta)]
if master and world > 1:
    dist.barrier()
(folder, meta), *others = sets
if any(other['tokenizer'] != meta['tokenizer'] for _, other in others):
    sys.exit(f'dataset={dataset}: each has a tokenizer={tokenizer} of its own; a mix needs gpt2, gpt2-16 or byte')


def open_split(folder, meta, split):
    most = train_tokens * (split == 'train')
    tokens = np.memmap(folder / f'{split}.bin', meta['dtype'], 'r')[:most or None]
    if len(tokens) <= block_size:
        sys.exit(f'{folder}/{split}.bin has {len(tokens)} tokens and one block needs {block_size + 1}: '
                 f'give more text{" (--train_tokens)" * bool(most)}, or a smaller --block_size')
    return tokens


def load_blocks(blocks):
    """The tokens of the blocks [(token file, start)], and the token after each: two (B, T) int64."""
    blocks = np.stack([tokens[start:start + block_size + 1] for tokens, start in blocks]).astype(np.int64)
    blocks = torch.from_numpy(blocks).to(device)                                 # (B, T + 1)
    return blocks[:, :-1], blocks[:, 1:]


class Order:
    """Every block of a token file once in an epoch, in an order drawn from (seed, epoch), cut elsewhere each
    epoch. Two integers say where we are: the epoch, and how many of its blocks are read."""

    def __init__(self, tokens, epoch=0, read=0):
        self.tokens, self.epoch, self.read = tokens, epoch, read
        self.shuffle()

    def shuffle(self):
        rng, n = np.random.default_rng((seed, self.epoch)), len(self.tokens)
        first = rng.integers(min(block_size, n - block_size))
        self.starts = first + block_size * rng.permutation((n - 1 - first) // block_size)

    def next(self):
        """(token file, where the next block starts)."""
        if self.read >= len(self.starts):
            self.epoch, self.read = self.epoch + 1, 0
            self.shuffle()
        self.read += 1
        return self.tokens, self.starts[self.read - 1]


def next_blocks(n):
    """The n blocks of this step. Which data set the b-th block of the run is from: where b times the golden
    ratio, without its whole part, falls among the shares. So they are evenly spread, and b tells it all."""
    which = np.searchsorted(np.cumsum(shares), (it * n + np.arange(n)) * 0.618034 % 1, 'right')
    return [orders[i].next() for i in which]


@torch.no_grad()
def evaluate(split, most_tokens=math.inf, stride=block_size):
    """Held-out nats per token, bits per byte, and all nats, over the split, or its first most_tokens. Windows of
    block_size begin every `stride` tokens, and each predicts what the one before didn't. All bytes are charged:
    only the very first token, an end of text, is not predicted."""
    nats, n_tokens, n_bytes = torch.zeros((), dtype=torch.float64), 0, 0
    progress = Progress(f'evaluating {split}')
    judged.eval()
    for folder, meta in sets:
        tokens = open_split(folder, meta, split)
        n = max(min(len(tokens) - 1, most_tokens), block_size)
        size = int(token_bytes[tokens[1:n + 1]].sum())
        if n == len(tokens) - 1 and size != meta['splits'][split]['bytes']:
            sys.exit(f'{folder}: {split}.bin and meta.json disagree; delete the folder and prepare it again')
        ends = np.array([*range(block_size, n, stride), n])
        new = torch.from_numpy(np.diff(ends, prepend=0))   # how many tokens each window is the first to predict
        for i in range(rank * batch_size, len(ends), world * batch_size):
            batch = slice(i, i + batch_size)
            with autocast:
                nll = judged(*load_blocks([(tokens, end - block_size) for end in ends[batch]]))   # (B, T)
            fresh = torch.arange(block_size) >= block_size - new[batch, None]                     # (B, T)
            nats += nll.cpu().double()[fresh].sum()
            if master:
                progress((i + batch_size) / (len(ends) + batch_size))
        n_tokens, n_bytes = n_tokens + n, n_bytes + size
    judged.train()
    if world > 1:
        dist.all_reduce(nats := nats.to(device))
    return nats.item() / n_tokens, nats.item() / math.log(2) / n_bytes, nats.item()


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
orders = [Order(open_split(*data, 'train')) for data in sets]
if not checkpoint:   # which has them
    occurs = np.zeros(len(spelling))
    for share, tokens in zip(shares * counts, (order.tokens for order in orders)):
        for piece in np.array_split(tokens, len(tokens) // 2**24 + 1):
            occurs += np.bincount(piece, minlength=len(spelling)) * share / shares.max()
    raw_model.tokens.spell(spelling, torch.from_numpy(occurs))
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

trained_on = [[meta['tokenizer'], meta['splits']] for _, meta in sets]
it, best, seconds = 0, math.inf, 0.0
averaged = AveragedModel(raw_model, multi_avg_fn=get_ema_multi_avg_fn(ema)) if ema and not eval_only else None
judged = averaged.module if averaged else raw_model   # what is evaluated, and kept in best.pt
if checkpoint:
    if checkpoint['data'] != trained_on:
        sys.exit(f'{folder}: not the data that {out_dir} was trained on; it was prepared again')
    raw_model.load_state_dict(checkpoint['model'])
    if averaged:
        averaged.load_state_dict(checkpoint['ema'])
    for o, state in zip(optimizers, checkpoint['optimizers']):
        o.load_state_dict(state)
    it, best, seconds = checkpoint['iter'], checkpoint['best'], checkpoint['seconds']
    orders = [Order(order.tokens, *at) for order, at in zip(orders, checkpoint['order'])]
    torch.set_rng_state(checkpoint['rng']) if master else torch.manual_seed(seed + rank + world * it)
    if master and device.type == 'cuda' and checkpoint['cuda_rng'] is not None:
        torch.cuda.set_rng_state(checkpoint['cuda_rng'])
    checkpoint = None   # so that its memory is free

parts = raw_model.count_parameters()
say(machine)
say(f'parameters: {sum(parts.values()):,} = ' + ' + '.join(f'{part} {n:,}' for part, n in parts.items()))
if eval_only:
    stride = stride or block_size // 2
    nats, bpb, total = evaluate(split, stride=stride)
    say(f'{split} split after {it} steps, windows of {block_size} tokens, a new one every {stride}: '
        f'{nats:.4f} nats per token, {bpb:.4f} bits per byte')
    units = {unit: sum(meta['splits'][split][f'{unit}s'] for _, meta in sets) for unit in ('byte', 'char', 'word')}
    say('perplexity: ' + ', '.join(f'{np.exp(np.float64(total / n)):.4g} per {unit}' for unit, n in units.items()))
    sys.exit()
n_train = sum(len(order.tokens) for order in orders)
step_tokens = batch_size * grad_accum * block_size
step_bytes = step_tokens * sum(share * meta['splits']['train']['bytes'] / meta['splits']['train']['tokens']
                               for share, (_, meta) in zip(shares, sets))
with FlopCounterMode(display=False) as counter, torch.no_grad():
    raw_model.eval()(*load_blocks([(orders[0].tokens, 0)]))
raw_model.train()
flops = 3 * counter.get_total_flops() / block_size   # the backward pass costs two forward passes
say(f'training costs {flops / 1e6:,.1f} million floating-point operations a token')
say(f"data: {', '.join(str(folder) for folder, _ in sets)}: {n_train:,} tokens of "
    f"{step_bytes / step_tokens:.2f} bytes; {max_iters} steps of {step_tokens:,} tokens are "
    f"{max_iters * step_tokens / n_train:.1f} epochs")
questions = []   # for multiple choice on the way
if eval_mc and master:
    import eval_mc as multiple_choice
    for task in mc_tasks.split(','):
        questions += multiple_choice.load(task, f'{data_dir}/eval', limit=eval_mc)
if compile and device.type == 'cuda':
    model = torch.compile(model)
if world > 1:
    model = torch.nn.parallel.DistributedDataParallel(model, broadcast_buffers=False)


def lr_factor(it):
    """Linear warmup; then from 1 to final_lr as half a cosine, or level and then a straight line (wsd)."""
    if it < warmup_iters:
        return (it + 1) / (warmup_iters + 1)
    done = (it - warmup_iters) / max(1, max_iters - warmup_iters)
    cosine, line = (1 + math.cos(math.pi * done)) / 2, min(1, (max_iters - it) / (decay_share * max_iters + 1))
    return final_lr + (1 - final_lr) * (line if schedule == 'wsd' else cosine)


# -----------------------------------------------------------------------------------------------
# what is written

def save(*names):
    """The whole state, under each name; best.pt's model is the averaged one, if there is one. A file is replaced
    only by a whole one."""
    state = dict(
        format=FORMAT, ema=averaged.state_dict() if averaged else None, optimizers=[o.state_dict() for o in optimizers],
        config=asdict(config), data=trained_on, settings=settings, iter=it, best=best,
        seconds=time.time() - start, order=[[order.epoch, order.read] for order in orders], rng=torch.get_rng_state(),
        cuda_rng=torch.cuda.get_rng_state() if device.type == 'cuda' else None)
    for name in names if master else ():
        part, weights = out / f'{name}.part', judged if name == 'best.pt' else raw_model
        try:
            torch.save(dict(state, model=weights.state_dict()), part)
            os.replace(part, out / name)
        except (OSError, RuntimeError) as error:   # torch reports a full disk as a RuntimeError
            part.unlink(missing_ok=True)
            sys.exit(f'{out / name}: not written ({str(error).splitlines()[0]}); any older one is kept')


COLUMNS = ('iter', 'tokens', 'bytes', 'epoch', 'train_loss', 'val_loss', 'val_bpb', 'lr', 'dropout', 'grad_norm',
           'tokens_per_s', 'seconds', 'mc_acc', 'mc_acc_norm', 'mc_log_prob')
log_file = out / 'log.csv'
if master:
    if init_from == 'scratch' and (out / 'ckpt.pt').exists():   # a new run in an old one's place loses nothing
        old = next(old for n in range(1, 10**6) if not (old := out.with_name(f'{out.name}.{n}')).exists())
        os.rename(out, old)
        say(f'the run that was in {out} is now in {old}')
    out.mkdir(parents=True, exist_ok=True)
    for file in folder.glob('*.tiktoken'):   # so that sample.py needs nothing but out_dir
        shutil.copy(file, out)
    if it < max_iters:
        (out / 'result.json').unlink(missing_ok=True)   # of a shorter run
    rows = list(csv.reader(log_file.open())) if init_from == 'resume' and log_file.exists() else [COLUMNS]
    with open(f'{log_file}.part', 'w', newline='') as file:   # what came after the checkpoint will come again
        csv.writer(file).writerows(row for row in rows if row and (row[0] == 'iter' or it and int(row[0]) <= it))
    os.replace(f'{log_file}.part', log_file)

# -----------------------------------------------------------------------------------------------
# the loop

def held_out():
    """Evaluate; what came of it for the log."""
    nats, bpb, _ = evaluate('val', eval_tokens)
    if not math.isfinite(nats):
        sys.exit(f'step {it}: the held-out loss is {nats}; lower the learning rate. The last checkpoint is kept')
    say(f'step {it:6} | held out {nats:.4f} nats per token, {bpb:.4f} bits per byte')
    values = dict(val_loss=nats, val_bpb=bpb)
    if questions:
        with autocast:
            score, _ = multiple_choice.evaluate(judged.eval(), encoding, questions)
        judged.train()
        say(f'step {it:6} | {len(questions)} questions: {score["acc"]:.1%} right, {score["acc_norm"]:.1%} by character '
            f'(chance {score["chance"]:.1%}), log p(right answer) {score["log_prob"]:.3f}')
        values |= dict(mc_acc=score['acc'], mc_acc_norm=score['acc_norm'], mc_log_prob=score['log_prob'])
    return values


def log(**values):
    values = dict(iter=it, tokens=it * step_tokens, bytes=round(it * step_bytes),
                  epoch=it * step_tokens / n_train, seconds=time.time() - start, **values)
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
    log(**held_out())   # the untrained model knows how often each token occurs, or nothing (counts)
loss_sum, last = 0.0, (it, time.time())
while it < max_iters and not stopped:
    for o in optimizers:
        for group in o.param_groups:
            group['lr'] = (muon_lr if isinstance(o, torch.optim.Muon) else learning_rate) * lr_factor(it)
    p = float(np.interp(it, steps, ps))
    raw_model.dropout.set(p)

    mine = next_blocks(batch_size * grad_accum)[rank::world]
    n_micro = grad_accum // world
    for micro in range(n_micro):
        x, y = load_blocks(mine[micro::n_micro])
        model.require_backward_grad_sync = micro == n_micro - 1   # DDP: add up the gradients once
        with autocast:
            loss = model(x, y).mean() / n_micro
        loss.backward()
        loss_sum += loss.detach()
    norm = torch.nn.utils.clip_grad_norm_(raw_model.parameters(), grad_clip or math.inf)
    for o in optimizers:
        o.step()
        o.zero_grad(set_to_none=True)
    if averaged:
        averaged.update_parameters(raw_model)
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
        if 'val_bpb' in values:
            improved, best = values['val_bpb'] < best, min(best, values['val_bpb'])
            save('ckpt.pt', *['best.pt'] * improved)
        loss_sum, last = 0.0, (it, time.time())   # the time of an evaluation isn't training's

# -----------------------------------------------------------------------------------------------
# the end

if stopped and it < max_iters:
    save('ckpt.pt')
    say(f'stopped at step {it} and saved; go on with: python train.py --out_dir={out_dir} --init_from=resume')
    sys.exit(130)
if it == first and master and (out / 'result.json').exists():
    sys.exit(f'nothing to do: {out_dir} is at step {it} of {max_iters} already; give a larger --max_iters')
whole = it > first and all(len(open_split(*data, 'val')) - 1 <= eval_tokens for data in sets)
bpb = values['val_bpb'] if whole else evaluate('val')[1]   # if whole, the last evaluation was of all of it
if master:
    judged.eval()
    held = open_split(folder, meta, 'val')
    prompt = held[:9].tolist()   # the end of text before it, and a held-out text's first 8 tokens
    with autocast:
        more = judged.generate(torch.tensor([prompt], device=device), 100, temperature=0.8, top_k=50)
        ids = prompt[1:] + [token.item() for token in more]
    sample = b''.join((spelling[i] if i < len(spelling) else judged.tokens.spelled(i)) or b'\n\n' for i in ids)
    print(f"\n--- a held-out text's first words, continued\n{sample.decode(errors='replace')}\n---")
    text = b''.join(spelling[i] for i in held[:2**21].tolist())   # more would take minutes
    print(f'held out: {bpb:.3f} bits per byte; gzip -9 needs {8 * len(gzip.compress(text, 9)) / len(text):.3f}'
          f' for the same text{", its first megabytes" * (len(held) > 2**21)}')
    result = dict(val_bpb=bpb, best_bpb=best, tokens=it * step_tokens, bytes=round(it * step_bytes),
                  seconds=time.time() - start, flops_per_token=flops, parameters=parts, settings=settings,
                  machine=machine, peak_memory=peak_memory(device))
    write_whole(out / 'result.json', json.dumps(result, indent=1).encode())   # that it is there says: finished
    print(f'checkpoint: {out / "best.pt"}, curve: {log_file}, {(time.time() - start) / 60:.1f} minutes, '
          f'{result["peak_memory"] / 1e9:.1f} GB at most')
    print(f'next: python sample.py --out_dir={out_dir} --prompt="A list is"')
if world > 1:
    dist.barrier()   # gloo aborts a process whose peer is gone already
    dist.destroy_process_group()
