"""
Train a super tiny language model.

    python train.py                                     # the quick start: minutes on a laptop, offline
    python train.py config/quick_byte.py                # an experiment: a few settings
    python train.py config/quick_byte.py --max_iters=100
    python train.py --out_dir=out/quick --init_from=resume
    python train.py --init_from=out/quick --dataset=novel --out_dir=out/novel
    torchrun --nproc_per_node=4 train.py --grad_accum=4 # several GPUs
"""
# data
dataset = 'pydocs'             # data/<dataset>-<tokenizer>/, made by prepare_wiki.py; a mix is 'simplewiki:3,pydocs:1'
tokenizer = 'bpe4096'          # bpe<N>, gpt2, gpt2-16 or byte
shares: list = []              # of a mix as a schedule: [(step, [share of each]), ...] with straight lines between
data_dir = 'data'              # where the data sets are
out_dir = 'out/quick'          # for ckpt.pt (last), best.pt, log.csv
train_tokens = 0               # of each data set, train on its first so many only; 0 is all
# model
block_size = 256               # context, in tokens
n_layer = 4                    # blocks of attention and feed-forward
n_head = 4                     # attention heads
n_kv_head = 4                  # key/value heads; fewer than n_head is grouped-query attention
n_embd = 128                   # width
d_ff = 384                     # width of the feed-forward
ffn = 'swiglu'                 # swiglu or gelu
tie_embeddings = True          # one table for input and output
output_bias = False            # one for each token, which starts at the log of how often it occurs in the training text
rope_base = 10000.0            # of the slowest rotation of positions
norm_eps = 1e-5                # added to the mean square before its root
embedding = 'table'            # table, or byte_pool: no tables, tokens are spelled in and out
n_byte_embd = 128              # width of byte_pool's encoder and decoder
n_byte_head = 4                # their attention heads
n_encoder_layer = 1            # blocks that read a token's bytes
n_decoder_layer = 2            # blocks that spell the next token
share = 'none'                 # what layers have in common: none, ffn, or block (attention too)
share_every = 0                # how many consecutive layers do; 0 is all
lora_rank = 0                  # of each layer's own change to its matrices, where they are shared or not trained; 0 is none
idea = ''                      # of ideas/<idea>.py, whose own settings --help then lists; none is model.py alone
# training
init_from = 'scratch'          # scratch; resume: go on from out_dir/ckpt.pt; or a run's folder: start from its weights,
                               # with lora_rank train adapters to them alone
max_iters = 600                # steps of the optimizer
batch_size = 8                 # blocks in a forward pass
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
eval_interval = 200            # steps from one held-out evaluation and checkpoint to the next
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

from configurator import Progress, command, configure, duration, fail
if __name__ == '__main__':
    settings, given = configure(globals(), one_of=dict(
        ffn='swiglu gelu', embedding='table byte_pool', share='none ffn block', optimizer='adamw muon',
        schedule='cosine wsd', split='val test', dtype='auto bfloat16 float32'), at_least={
        0: 'train_tokens share_every lora_rank learning_rate muon_lr weight_decay beta2 grad_clip warmup_iters '
           'decay_share final_lr ema stride eval_mc seed norm_eps',
        1: 'n_layer n_head n_kv_head n_embd d_ff n_byte_embd n_byte_head n_encoder_layer n_decoder_layer rope_base '
           'max_iters batch_size grad_accum eval_interval eval_tokens log_interval', 2: 'block_size'})

import contextlib
import datetime
import gzip
import json
import lzma
import math
import os
import pathlib
import signal
import sys
import threading
import time
from dataclasses import asdict

import numpy as np
import torch
import torch.distributed as dist
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.flop_counter import FlopCounterMode

import download
import muon
import prepare_wiki
import run
import tokenizer as tokenizers
from batches import Mix, Order, count_tokens, load_blocks, open_split, parse_mix
from model import LoRA

# -----------------------------------------------------------------------------------------------
# schedules and optimizers

def along(points, it):
    """At step `it` the value of a schedule [(step, value), ...], with straight lines between its points: a number,
    or a list of them."""
    steps, values = zip(*points)
    rows = np.array(values, dtype=float).reshape(len(points), -1)
    return np.array([np.interp(it, steps, column) for column in rows.T])


def check_points(name, points, fits):
    try:
        steps = [float(step) for step, _ in points]
        good = steps == sorted({*steps}) and steps and all(fits(value) for _, value in points)
    except (TypeError, ValueError):
        good = False
    if not good:
        fail(f'{name}={points} must be [(step, value), ...] with growing steps; of dropout, a value is a p, at least 0 '
             'and below 1; of shares, a list with a number for each data set')


def learning_rate_factor(it, max_iters, warmup_iters, schedule='cosine', decay_share=0.4, final_lr=0.0):
    """Linear warmup; then from 1 to final_lr as half a cosine, or level and then a straight line (wsd)."""
    if it < warmup_iters:
        return (it + 1) / (warmup_iters + 1)
    done = (it - warmup_iters) / max(1, max_iters - warmup_iters)
    height = (1 + math.cos(math.pi * done)) / 2
    if schedule == 'wsd':
        height = min(1, (max_iters - it) / (decay_share * max_iters + 1))
    return final_lr + (1 - final_lr) * height


def make_optimizers(model, kind, learning_rate, muon_lr, weight_decay, beta2, dtype):
    """{optimizer: its peak learning rate}. Only matrices decay; Muon's are those within the layers."""
    trained = [p for p in model.parameters() if p.requires_grad]
    tables = [p for p in muon.tables(model) if p.requires_grad]
    matrices = [p for p in trained if p.dim() == 2 and p not in {*tables}]
    vectors = [p for p in trained if p.dim() == 1]
    optimizers = {}
    if kind == 'muon' and matrices:
        optimizers[muon.Muon(matrices, lr=muon_lr, weight_decay=weight_decay, dtype=dtype)] = muon_lr
        matrices = []
    groups = [dict(params=tables, weight_decay=weight_decay), dict(params=vectors, weight_decay=0.0),
              dict(params=matrices, weight_decay=weight_decay)]
    groups = [group for group in groups if group['params']]
    optimizers[torch.optim.AdamW(groups, lr=learning_rate, betas=(0.9, beta2), fused=True)] = learning_rate
    return optimizers


# -----------------------------------------------------------------------------------------------
# how good is it?

@torch.no_grad()
def evaluate(model, sets, token_bytes, split='val', most_tokens=math.inf, stride=0, batch_size=8,
             autocast=contextlib.nullcontext(), rank=0, world=1, progress=lambda done: None):
    """Held-out nats per token, bits per byte, and all nats, over a split of the data sets [(folder, meta)], or its
    first most_tokens. Windows of block_size begin every `stride` tokens, and each predicts what the one before
    didn't. All bytes are charged: only the very first token, an end of text, is not predicted."""
    block_size = model.config.block_size
    nats, n_tokens, n_bytes = torch.zeros((), dtype=torch.float64), 0, 0
    was_training = model.training
    model.eval()
    for folder, meta in sets:
        tokens = open_split(folder, meta, split, block_size)
        n = max(min(len(tokens) - 1, most_tokens), block_size)
        size = int(count_tokens(tokens[1:n + 1], len(token_bytes)) @ token_bytes)
        if n == len(tokens) - 1 and size != meta['splits'][split]['bytes']:
            fail(f'{folder}: {split}.bin and meta.json disagree; delete the folder and prepare it again')
        ends = [*range(block_size, n, stride or block_size), n]
        windows = list(zip([0, *ends], ends))   # up to where is judged already, and where the window ends
        for i in range(rank * batch_size, len(windows), world * batch_size):
            batch = windows[i:i + batch_size]
            x, y = load_blocks([(tokens, end - block_size) for _, end in batch], block_size, model.norm.weight.device)
            with autocast:
                nll = model(x, y).cpu().double()                                 # (B, T)
            for row, (done, end) in zip(nll, batch):
                nats += row[done - end:].sum()
            progress(min(1, (i + batch_size) / len(windows)))
        n_tokens += n
        n_bytes += size
    model.train(was_training)
    if world > 1:
        nats = nats.to(model.norm.weight.device)
        dist.all_reduce(nats)
    return nats.item() / n_tokens, nats.item() / math.log(2) / n_bytes, nats.item()


def xz_bits_per_byte(seen, text):
    """What xz needs for each byte of a text after having seen another: for both together, less for that alone."""
    filters = [dict(id=lzma.FILTER_LZMA2, preset=6, dict_size=2**25)]
    alone, both = (len(lzma.compress(data, filters=filters)) for data in (seen, seen + text))
    return 8 * (both - alone) / len(text)


# -----------------------------------------------------------------------------------------------
# the run, top to bottom

if __name__ == '__main__':
    # torchrun starts this script once for each GPU and sets RANK, LOCAL_RANK, WORLD_SIZE
    rank, world = int(os.environ.get('RANK', 0)), int(os.environ.get('WORLD_SIZE', 1))
    out, checkpoint, stopped = pathlib.Path(out_dir), None, []

    def say(message):
        """Of the processes the first one prints. Where nobody listens any more (`| head -1`), the run stops."""
        try:
            if rank == 0:
                print(message, flush=True)
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            stopped.append('nobody listens')

    def stop(signum, frame):
        """Ctrl-C ends the step or the evaluation, saves and stops; a second one stops at once."""
        if stopped:
            sys.exit('stopped without saving')
        stopped.append(signum)

    def watch(what):
        """Progress of an evaluation, which a stop ends at once."""
        progress = Progress(what)

        def show(done):
            if stopped:
                raise KeyboardInterrupt
            if rank == 0:
                progress(done)
        return show

    # settings: those of the run to go on with, or the shape of the run to start from, hold
    if out.resolve() in (pathlib.Path.cwd(), *pathlib.Path.cwd().parents):
        fail(f"out_dir='{out_dir}' must be a folder of the run's own, as out/quick")
    going_on = init_from == 'resume' or eval_only
    adapters = {}
    if going_on:
        source = out / ('best.pt' if eval_only else 'ckpt.pt')
        checkpoint = run.load_checkpoint(source)
        run.go_on(settings, given, checkpoint, source, eval_only)
    elif init_from != 'scratch':
        source = run.newest_checkpoint(init_from)
        checkpoint = run.load_checkpoint(source)
        adapters = run.start_from(settings, given, checkpoint, source)
    globals().update(settings)
    dropout_points = dropout if isinstance(dropout, list) else [(0, dropout)]
    check_points('dropout', dropout_points, lambda p: 0 <= p < 1)
    mix = parse_mix(dataset)
    share_points = shares or [(0, [*mix.values()])]
    check_points('shares', share_points, lambda row: len(row) == len(mix) and min(row) >= 0 and 0 < sum(row) < math.inf)
    if beta2 >= 1 or ema >= 1 or stride > block_size:
        fail(f'beta2={beta2} and ema={ema} must be below 1, and stride={stride} at most block_size={block_size}')
    if share == 'none' and (share_every or lora_rank and init_from == 'scratch'):
        fail(f"share_every={share_every}, lora_rank={lora_rank}: these need share='ffn' or 'block'; lora_rank may also "
             'have a run to start from (--init_from=FOLDER)')
    if grad_accum % world:
        fail(f'grad_accum={grad_accum} must be a multiple of the number of processes, {world}')

    # the machine; the other processes wait until the first one has prepared and checked everything
    device, autocast, machine = run.pick_device(device, dtype, int(os.environ.get('LOCAL_RANK', 0)))
    run.keep_freed_memory()
    if world > 1:
        dist.init_process_group('nccl' if device.type == 'cuda' else 'gloo', timeout=datetime.timedelta(hours=3))
    if rank > 0:
        dist.barrier()

    # data
    sets = [prepare_wiki.load(name, tokenizer, data_dir) for name in mix]        # [(folder, meta)]
    spec = checkpoint['tokenizer'] if checkpoint else sets[0][1]['tokenizer']
    for name, (folder, meta) in zip(mix, sets):
        if (meta['tokenizer']['name'], meta['tokenizer']['sha256']) != (spec['name'], spec['sha256']):
            fail(f'{folder} has another tokenizer than {source if checkpoint else sets[0][0]}; make it with that one: '
                 + command('prepare_wiki.py', input='FILE', dataset=name, tokenizer=source.parent if checkpoint else sets[0][0]))
    folder, meta = sets[0]
    encoding = tokenizers.load(spec, folder)
    spelling = tokenizers.spelling(encoding)
    token_bytes = np.array([len(token or b'') for token in spelling])
    trained_on = [[meta['tokenizer']['sha256'], meta['splits']] for _, meta in sets]
    if going_on and not eval_only and checkpoint['data'] != trained_on:
        fail(f'{folder}: not the data that {out_dir} was trained on; it was prepared again')
    files = [open_split(*data, 'train', block_size, train_tokens) for data in sets]
    n_train = sum(map(len, files))
    rows = [along(share_points, it) for it in range(0, max_iters, max_iters // 100 + 1)]
    average = np.mean([row / row.sum() for row in rows], axis=0)   # the share of each set, over the whole run
    counts = n_train * sum(share * count_tokens(tokens, len(spelling)) / len(tokens) for share, tokens in zip(average, files))

    # model and optimizers
    torch.manual_seed(seed)
    if checkpoint:
        model = run.restore_model(checkpoint, spelling, source, **adapters)
        counts = checkpoint['counts']
    else:
        kinds = run.idea_module(idea).Config
        shape = {name: settings[name] for name in kinds.__dataclass_fields__ if name in settings}
        try:
            config = kinds(vocab_size=spec['vocab_size'], max_bytes=spec['max_token_bytes'], **shape)
        except ValueError as error:
            fail(error)
        counts = torch.from_numpy(counts).float()
        model = run.build_model(config, spelling, counts, idea)
    raw_model = model.to(device)
    config = model.config
    if config.lora_rank and config.share == 'none':   # the run that it started from stays as it is
        model.requires_grad_(False)
        for module in model.modules():
            if isinstance(module, LoRA):
                module.A.requires_grad_()
                module.B.requires_grad_()
    with autocast:
        computing = torch.bfloat16 if torch.is_autocast_enabled(device.type) else torch.float32
    optimizers = make_optimizers(model, optimizer, learning_rate, muon_lr, weight_decay, beta2, computing)
    averaged = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(ema)) if ema and not eval_only else None
    judged = averaged.module if averaged else model   # what is evaluated, and kept in best.pt
    model.dropout.set(max(p for _, p in dropout_points))
    torch.manual_seed(seed + rank)   # each process drops units of its own

    parts = model.count_parameters()
    say(machine)
    say(f'parameters: {sum(parts.values()):,} = ' + ' + '.join(f'{part} {n:,}' for part, n in parts.items()))
    how = dict(batch_size=batch_size, autocast=autocast, rank=rank, world=world)
    if eval_only:
        stride = stride or block_size // 2
        nats, bpb, total = evaluate(model, sets, token_bytes, split, stride=stride, progress=watch(f'evaluating {split}'), **how)
        say(f'{split} split after {checkpoint["iter"]} steps, windows of {block_size} tokens, a new one every {stride}: '
            f'{nats:.4f} nats per token, {bpb:.4f} bits per byte')
        units = {unit: sum(meta['splits'][split][f'{unit}s'] for _, meta in sets) for unit in ('byte', 'char', 'word')}
        say('perplexity: ' + ', '.join(f'{np.exp(np.float64(total / n)):.4g} per {unit}' for unit, n in units.items()))
        sys.exit()

    # where the run is: at its beginning, or where the checkpoint left it
    it, best, seconds = 0, math.inf, 0.0
    since = dict(it=0, loss=torch.zeros((), device=device))   # of the steps since the last line
    blocks = Mix([Order(tokens, block_size, seed) for tokens in files])
    if going_on:
        it, best, seconds = checkpoint['iter'], checkpoint['best'], checkpoint['seconds']
        if it >= max_iters and (out / 'result.json').exists():
            fail(f'nothing to do: {out_dir} is at step {it} of {max_iters} already; give a larger --max_iters')
        since = checkpoint['since'] | dict(loss=checkpoint['since']['loss'].to(device))
        blocks = Mix([Order(tokens, block_size, seed, *at) for tokens, at in zip(files, checkpoint['order'])], checkpoint['owed'])
        for o, state in zip(optimizers, checkpoint['optimizers']):
            o.load_state_dict(state)
        if averaged:
            averaged.load_state_dict(checkpoint['ema'])
        torch.set_rng_state(checkpoint['rng'])
        if rank > 0:
            torch.manual_seed(seed + rank + world * it)
        elif device.type == 'cuda' and checkpoint['cuda_rng'] is not None:
            torch.cuda.set_rng_state(checkpoint['cuda_rng'])
    checkpoint = None   # so that its memory is free

    def is_due(interval):
        return it % interval == 0 or it >= max_iters

    log_file = out / 'log.csv'
    if rank == 0:   # the folder is this run's from here on
        lock = run.take_folder(out.resolve(), fresh=not going_on)
        for part in out.glob('*.part'):   # of a process that was killed
            part.unlink()
        (out / 'result.json').unlink(missing_ok=True)   # of a shorter run
        tokenizers.save(encoding, out)   # so that sample.py needs nothing but out_dir
        again = is_due(log_interval) or is_due(eval_interval)
        run.cut_log(log_file, lambda step: step < it or step == it and not again)

    step_tokens = batch_size * grad_accum * block_size
    bytes_per_token = sum(share * meta['splits']['train']['bytes'] / meta['splits']['train']['tokens']
                          for share, (_, meta) in zip(average, sets))
    with FlopCounterMode(display=False) as counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):   # whose products count
        model.eval()(*load_blocks([(files[0], 0)], block_size, device))
    flops = 3 * counter.get_total_flops() / block_size   # the backward pass costs two forward passes
    say(f'training costs {flops / 1e6:,.1f} million floating-point operations a token')
    say(f"data: {', '.join(str(folder) for folder, _ in sets)}: {n_train:,} tokens of {bytes_per_token:.2f} bytes; "
        f'{max_iters} steps of {step_tokens:,} tokens are {max_iters * step_tokens / n_train:.1f} epochs')
    if init_from == 'scratch' and it == 0:
        say('the first loss is that of a model that ' + (
            'knows only how often each token occurs' if config.embedding == 'byte_pool' or config.output_bias else
            f'knows nothing: each of {config.vocab_size:,} tokens is as likely, ln V = {math.log(config.vocab_size):.3f}'))
    questions = []   # for multiple choice on the way
    if eval_mc and rank == 0:
        import eval_mc as multiple_choice
        for task in mc_tasks.split(','):
            questions += multiple_choice.load(task, f'{data_dir}/eval', limit=eval_mc)
    held = open_split(folder, meta, 'val', block_size)
    texts = [b''.join(spelling[i] for i in tokens.tolist()) for tokens in (files[0][:2**22], held[:2**21])]
    xz = []
    xz_thread = threading.Thread(target=lambda: xz.append(xz_bits_per_byte(*texts)), daemon=True)
    if rank == 0:
        xz_thread.start()
    if compile and device.type == 'cuda':
        model = torch.compile(model)
    if world > 1:
        if rank == 0:
            dist.barrier()
        model = torch.nn.parallel.DistributedDataParallel(model, broadcast_buffers=False)
    for name in ('SIGINT', 'SIGTERM', 'SIGHUP') if world == 1 else ():
        if hasattr(signal, name) and signal.getsignal(getattr(signal, name)) != signal.SIG_IGN:   # nohup ignores one
            signal.signal(getattr(signal, name), stop)

    # the loop: look at where the run is, save it, then a step
    raw_model.train()
    first, n_micro = it, grad_accum // world
    begun, line_time, pass_times = time.monotonic(), time.monotonic(), []
    while True:
        row = {}
        if is_due(log_interval) and it > since['it']:
            n, loss, now = it - since['it'], since['loss'].clone(), time.monotonic()
            if world > 1:
                dist.all_reduce(loss)   # the mean over the processes, as the gradient is
            loss = loss.item() / n / world
            if not math.isfinite(loss):
                fail(f'step {it}: the loss is {loss}; lower the learning rate')
            row = dict(train_loss=loss, lr=since['lr'], dropout=since['dropout'], grad_norm=since['norm'].item(),
                       tokens_per_s=(it - max(since['it'], first)) * step_tokens / (now - line_time))
            left = (now - begun) / max(it - first, 1) * (max_iters - it)
            say(f'step {it:6} | loss {loss:.4f} | {row["tokens_per_s"]:,.0f} tokens/s | {duration(left)} left')
        improved = False
        if is_due(eval_interval) and not stopped:
            try:
                nats, bpb, _ = evaluate(judged, sets, token_bytes, 'val', eval_tokens, progress=watch('evaluating val'), **how)
                if not math.isfinite(nats):
                    fail(f'step {it}: the held-out loss is {nats}; lower the learning rate. The last checkpoint is kept')
                say(f'step {it:6} | held out {nats:.4f} nats per token, {bpb:.4f} bits per byte')
                if questions:
                    with autocast:
                        score, _ = multiple_choice.evaluate(judged.eval(), encoding, questions, progress=watch('questions'))
                    judged.train()
                    say(f'step {it:6} | {len(questions)} questions: {score["acc"]:.1%} right, {score["acc_norm"]:.1%} by '
                        f'character (chance {score["chance"]:.1%}), log p(right answer) {score["log_prob"]:.3f}')
                    row |= dict(mc_acc=score['acc'], mc_acc_norm=score['acc_norm'], mc_log_prob=score['log_prob'])
                row |= dict(val_loss=nats, val_bpb=bpb)
                improved = bpb < best
                best = min(best, bpb)
            except KeyboardInterrupt:
                row = {}   # it is made again when the run goes on
        if rank == 0 and (stopped or 'val_bpb' in row):
            state = dict(
                format=run.FORMAT, config=asdict(config), idea=idea, model=raw_model.state_dict(), counts=counts,
                tokenizer=spec, settings=settings, iter=it, ema=averaged.state_dict() if averaged else None,
                optimizers=[o.state_dict() for o in optimizers], data=trained_on, owed=blocks.owed.tolist(),
                order=[[order.epoch, order.read] for order in blocks.orders], best=best, since=since,
                seconds=seconds + time.monotonic() - begun, rng=torch.get_rng_state(),
                cuda_rng=torch.cuda.get_rng_state() if device.type == 'cuda' else None)
            if improved:   # first, for ckpt.pt says how good it is
                run.save_checkpoint(out / 'best.pt', state | dict(model=judged.state_dict()))
            run.save_checkpoint(out / 'ckpt.pt', state)
        if stopped:
            say(f'stopped at step {it} and saved; go on with: ' + command('train.py', out_dir=out_dir, init_from='resume'))
            sys.exit(130)
        if row:
            row |= dict(iter=it, tokens=it * step_tokens, bytes=round(it * step_tokens * bytes_per_token),
                        epoch=it * step_tokens / n_train, seconds=seconds + time.monotonic() - begun)
            if rank == 0:
                run.add_to_log(log_file, row)
            since = dict(it=it, loss=torch.zeros((), device=device))
            line_time = time.monotonic()   # the time of an evaluation isn't training's
        if it >= max_iters:
            break

        factor = learning_rate_factor(it, max_iters, warmup_iters, schedule, decay_share, final_lr)
        for o, peak in optimizers.items():
            for group in o.param_groups:
                group['lr'] = peak * factor
        p = along(dropout_points, it).item()
        raw_model.dropout.set(p)
        mine = [blocks.next(along(share_points, it)) for _ in range(batch_size * grad_accum)][rank::world]
        progress = Progress(f'step {it + 1}')
        for micro in range(n_micro):
            x, y = load_blocks(mine[micro::n_micro], block_size, device)
            model.require_backward_grad_sync = micro == n_micro - 1   # DDP: add up the gradients once
            with autocast:
                loss = model(x, y).mean() / n_micro
            loss.backward()
            since['loss'] += loss.detach()
            if len(pass_times) < 2:   # the first one is slower than the others, the second shows the rate
                loss.item()
                pass_times.append(time.monotonic())
                if len(pass_times) == 2:
                    whole = (pass_times[1] - pass_times[0]) * n_micro * (max_iters - it)
                    say(f'a step of {step_tokens:,} tokens takes about {whole / (max_iters - it):.2g} s here: '
                        f'{duration(whole)} left')
                    if whole > 2 * 86400:
                        say('that is long: try config/tiny_10m.py or the quick start, fewer steps (--max_iters), or a GPU')
            elif rank == 0 and micro < n_micro - 1:
                progress((micro + 1) / n_micro)
        norm = torch.nn.utils.clip_grad_norm_(raw_model.parameters(), grad_clip or math.inf)
        for o in optimizers:
            o.step()
            o.zero_grad(set_to_none=True)
        if averaged:
            averaged.update_parameters(raw_model)
        it += 1
        since |= dict(lr=learning_rate * factor, dropout=p, norm=norm.detach())

    # the end
    if not all(len(open_split(*data, 'val', block_size)) - 1 <= eval_tokens for data in sets):
        bpb = evaluate(judged, sets, token_bytes, 'val', progress=watch('evaluating val'), **how)[1]
    if rank == 0:
        judged.eval()
        prompt = held[:9].tolist()   # the end of text before it, and a held-out text's first 8 tokens
        with autocast:
            more = judged.generate(torch.tensor([prompt], device=device), 100, temperature=0.8, top_k=50)
            ids = prompt[1:] + [token.item() for token in more]
        sample = b''.join(spelling[i] or b'\n\n' for i in ids)
        say(f"\n--- a held-out text's first words, continued\n{sample.decode(errors='replace')}\n---")
        xz_thread.join()
        size = len(texts[1])
        say(f'held out: {bpb:.3f} bits per byte; gzip -9 needs {8 * len(gzip.compress(texts[1], 9)) / size:.3f} for the same '
            f'text{", its first megabytes" if len(held) > 2**21 else ""}\n'
            f'and xz {xz[0]:.3f} after it has read the training text, the fairer comparison, for the model has read it too')
        result = dict(val_bpb=bpb, best_bpb=best, tokens=it * step_tokens, bytes=round(it * step_tokens * bytes_per_token),
                      seconds=seconds + time.monotonic() - begun, flops_per_token=flops, parameters=parts,
                      settings=settings, machine=machine, peak_memory=run.peak_memory(device))
        download.write_whole(out / 'result.json', json.dumps(result, indent=1).encode())   # that it is there: finished
        say(f'checkpoint: {out / "best.pt"}, curve: {log_file}, {result["seconds"] / 60:.1f} minutes, '
            f'{result["peak_memory"] / 1e9:.1f} GB at most')
        say('next: ' + command('sample.py', out_dir=out_dir, prompt='A list is'))
    if world > 1:
        dist.barrier()   # gloo aborts a process whose peer is gone already
        dist.destroy_process_group()
