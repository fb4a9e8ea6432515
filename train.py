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

from configurator import Failure, configure

from stlm.console import command, duration, Progress
if __name__ == '__main__':
    settings, given = configure(globals(), one_of=dict(
        ffn='swiglu gelu', embedding='table byte_pool', share='none ffn block', optimizer='adamw muon',
        schedule='cosine wsd', split='val test', dtype='auto bfloat16 float32'), at_least={
        0: 'train_tokens share_every lora_rank learning_rate muon_lr weight_decay beta2 grad_clip warmup_iters '
           'decay_share final_lr ema stride eval_mc seed norm_eps',
        1: 'n_layer n_head n_kv_head n_embd d_ff n_byte_embd n_byte_head n_encoder_layer n_decoder_layer rope_base '
           'max_iters batch_size grad_accum eval_interval eval_tokens log_interval', 2: 'block_size'})

import datetime
import json
import math
import os
import pathlib
import signal
import sys
import time
from dataclasses import asdict

import numpy as np
import torch
import torch.distributed as dist
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.flop_counter import FlopCounterMode

from stlm import muon
import prepare_wiki
from stlm import machine as machines
from stlm import run
from stlm import tokenizer as tokenizers
from stlm.text import Mix, Order, count_tokens, load_blocks, open_split, parse_mix
from stlm.text import bits_per_byte, compressors
from model import LoRA

# ---------------------------------------------------------------------------------------------
# schedules


def along(points, it):
    """The value at step `it` of a schedule [(step, value), ...], with straight lines between its
    points: an array of one number, or of as many as a value has."""
    steps, values = zip(*points)
    columns = np.array(values, dtype=float).reshape(len(points), -1).T
    return np.array([np.interp(it, steps, column) for column in columns])


def check_points(name, points, fits):
    try:
        steps = [float(step) for step, _ in points]
        good = steps and steps == sorted(set(steps)) and all(fits(value) for _, value in points)
    except (TypeError, ValueError):
        good = False
    if not good:
        raise Failure(f'{name}={points} must be [(step, value), ...] with growing steps; of dropout, a '
             'value is at least 0 and below 1; of shares, a list with a number for each data set')


def learning_rate_factor(it, max_iters, warmup_iters, schedule='cosine', decay_share=0.4, final_lr=0.0):
    """Linear warmup; then from 1 to final_lr as half a cosine, or level and then a line (wsd)."""
    if it < warmup_iters:
        return (it + 1) / (warmup_iters + 1)
    done = (it - warmup_iters) / max(1, max_iters - warmup_iters)
    height = (1 + math.cos(math.pi * done)) / 2
    if schedule == 'wsd':
        height = min(1, (max_iters - it) / (decay_share * max_iters + 1))
    return final_lr + (1 - final_lr) * height


def pace(step_seconds, steps, step_tokens):
    """What a run will take, in words, and what to try instead of more than two days."""
    seconds = step_seconds * steps
    text = f'a step of {step_tokens:,} tokens takes about {step_seconds:.2g} s here: {duration(seconds)} left'
    if seconds > 2 * 86400:
        text += ('\nthat is more than two days: take a GPU, a smaller config or fewer --max_iters; '
                 'without a config, train.py takes minutes')
    return text


# ---------------------------------------------------------------------------------------------
# the run, top to bottom

if __name__ == '__main__':
    # torchrun starts this script once for each GPU and sets RANK, LOCAL_RANK, WORLD_SIZE
    rank, world = int(os.environ.get('RANK', 0)), int(os.environ.get('WORLD_SIZE', 1))
    out = pathlib.Path(out_dir)
    stopped = []   # by which signal

    def say(message):
        """Only the first process prints. Where nobody listens any more (`| head -1`), it stops."""
        try:
            if rank == 0:
                print(message, flush=True)
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            stopped.append('nobody listens')

    def stop(signum, frame):
        """Ctrl-C ends the step or the evaluation, saves and stops; a second one stops at once."""
        if stopped:
            raise Failure('stopped without saving')
        stopped.append(signum)

    def watch(what):
        """Progress of an evaluation, which a stop ends at once."""
        progress = Progress(what)

        def show(done):
            if stopped:
                raise KeyboardInterrupt
            progress(done)
        return show

    # settings: those of the run to go on with, or the shape of the run to start from, hold
    if out.resolve() in (pathlib.Path.cwd(), *pathlib.Path.cwd().parents):
        raise Failure(f"out_dir='{out_dir}' must be a folder of the run's own, as out/quick")
    going_on = init_from == 'resume' or eval_only
    source, checkpoint = run.earlier_run(settings, given)
    globals().update(settings)
    dropout_points = dropout if isinstance(dropout, list) else [(0, dropout)]
    check_points('dropout', dropout_points, lambda p: 0 <= p < 1)
    mix = parse_mix(dataset)
    share_points = shares if shares and not eval_only else [(0, [*mix.values()])]
    check_points('shares', share_points,
                 lambda row: len(row) == len(mix) and min(row) >= 0 and 0 < sum(row) < math.inf)
    if beta2 >= 1 or ema >= 1 or stride > block_size:
        raise Failure(f'beta2={beta2} and ema={ema} must be below 1, stride={stride} at most {block_size=}')
    if share == 'none' and (share_every or lora_rank and not checkpoint):
        raise Failure(f"share_every={share_every}, lora_rank={lora_rank}: these need share='ffn' or "
             "'block'; lora_rank may also have a run to start from (--init_from=FOLDER)")
    if grad_accum % world:
        raise Failure(f'grad_accum={grad_accum} must be a multiple of the number of processes, {world}')

    # the machine; the other processes wait until the first has prepared and checked everything
    device, autocast, machine = machines.pick_device(device, dtype, int(os.environ.get('LOCAL_RANK', 0)))
    machines.keep_freed_memory()
    if world > 1:
        backend = 'nccl' if device.type == 'cuda' else 'gloo'
        dist.init_process_group(backend, timeout=datetime.timedelta(hours=3))
    if rank > 0:
        dist.barrier()

    # data
    sets = [prepare_wiki.load_data(name, tokenizer, data_dir) for name in mix]     # [(folder, meta)]
    folder, meta = sets[0]
    spec = checkpoint['tokenizer'] if checkpoint else meta['tokenizer']
    for name, (other, other_meta) in zip(mix, sets):
        if other_meta['tokenizer']['sha256'] != spec['sha256']:
            wanted = source.parent if checkpoint else folder
            again = command('prepare_wiki.py', input='FILE', dataset=name, tokenizer=wanted)
            raise Failure(f'{other} has another tokenizer than {wanted}; make it with that one: {again}')
    encoding = tokenizers.load_tokenizer(spec, folder)
    spelling = tokenizers.spelling_of(encoding)
    token_bytes = np.array([len(token or b'') for token in spelling])
    trained_on = [[meta['tokenizer']['sha256'], meta['splits']] for _, meta in sets]
    if going_on and not eval_only and str(checkpoint['data']) != str(trained_on):
        raise Failure(f'{folder}: not the data that {out_dir} was trained on; it was prepared again')
    files = [open_split(*data, 'train', block_size, train_tokens) for data in sets]
    n_train = sum(len(tokens) for tokens in files)
    shares_of_steps = along(share_points, np.arange(max_iters))               # (sets, steps)
    average = (shares_of_steps / shares_of_steps.sum(axis=0)).mean(axis=1)
    bytes_per_token = 0.0
    for share_of_set, (_, about) in zip(average, sets):
        text = about['splits']['train']
        bytes_per_token += share_of_set * text['bytes'] / text['tokens']

    # model
    torch.manual_seed(seed)
    if checkpoint:
        model = run.restore_model(checkpoint, spelling, source, lora_rank)
        counts = checkpoint.get('counts')
    else:
        counts = torch.zeros(len(spelling))
        for share_of_set, tokens in zip(average, files):
            found = count_tokens(tokens, len(spelling))
            counts += torch.from_numpy(found * share_of_set * n_train / len(tokens))
        Config = run.idea_module(idea).Config
        shape = {name: settings[name] for name in Config.__dataclass_fields__ if name in settings}
        try:
            config = Config(vocab_size=spec['vocab_size'], max_bytes=spec['max_token_bytes'], **shape)
        except ValueError as error:
            raise Failure(error)
        model = run.build_model(config, spelling, counts, idea)
    raw_model = model.to(device)   # without what compiling and DDP wrap around it
    config = model.config
    if config.lora_rank and config.share == 'none':   # the run that it started from stays as it is
        model.requires_grad_(False)
        for module in model.modules():
            if isinstance(module, LoRA):
                module.A.requires_grad_()
                module.B.requires_grad_()
    averaged = None
    if ema and not eval_only:
        averaged = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(ema))
    judged = averaged.module if averaged else model   # what is evaluated, and kept in best.pt
    model.dropout.set(max(p for _, p in dropout_points))
    parts = model.count_parameters()
    say(machine)
    say(run.count_line(model))

    how = dict(batch_size=batch_size, autocast=autocast, rank=rank, world=world)
    if eval_only:
        stride = stride or block_size // 2
        nats, bpb, total = bits_per_byte(judged, sets, token_bytes, split, stride=stride,
                                    progress=watch(f'evaluating {split}'), **how)
        say(f'{split} split of {dataset} after {checkpoint["iter"]} steps, windows of {block_size} tokens, a new '
            f'one every {stride}: {nats:.4f} nats per token, {bpb:.4f} bits per byte')
        for unit in ('byte', 'char', 'word'):
            n = sum(meta['splits'][split][f'{unit}s'] for _, meta in sets)
            say(f'perplexity: {np.exp(np.float64(total / n)):.4g} per {unit}')
        sys.exit()

    # optimizers, and where the run is: at its beginning, or where the checkpoint left it
    with autocast:
        bfloat16 = torch.is_autocast_enabled(device.type)
    optimizers = muon.make_optimizers(model, optimizer, learning_rate, muon_lr, weight_decay, beta2,
                                      torch.bfloat16 if bfloat16 else torch.float32)
    torch.manual_seed(seed + rank)   # each process drops units of its own
    it, best, seconds = 0, math.inf, 0.0
    since = dict(it=0, loss=torch.zeros((), device=device))   # of the steps since the last line
    blocks = Mix([Order(tokens, block_size, seed) for tokens in files])
    if going_on:
        it = checkpoint['iter']
        if it >= max_iters and (out / 'result.json').exists():
            raise Failure(f'nothing to do: {out_dir} is at step {it} of {max_iters} already; '
                 'give a larger --max_iters')
        try:
            best, seconds = float(checkpoint['best']), float(checkpoint['seconds'])
            since = checkpoint['since']
            since['loss'] = since['loss'].to(device)
            if it > since['it']:
                since |= dict(lr=float(since['lr']), dropout=float(since['dropout']),
                              norm=since['norm'].to(device))
            orders = [Order(tokens, block_size, seed, epoch, read)
                      for tokens, (epoch, read) in zip(files, checkpoint['order'], strict=True)]
            blocks = Mix(orders, checkpoint['owed'])
            for each, state in zip(optimizers, checkpoint['optimizers'], strict=True):
                each.load_state_dict(state)
            if averaged:
                averaged.load_state_dict(checkpoint['ema'])
            torch.set_rng_state(checkpoint['rng'])
        except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
            raise Failure(f'{source}: not a state of training that this code can go on from '
                 f'({str(error)[:200]})')
        if rank > 0:
            torch.manual_seed(seed + rank + world * it)
        elif device.type == 'cuda' and checkpoint['cuda_rng'] is not None:
            torch.cuda.set_rng_state(checkpoint['cuda_rng'])
    checkpoint = None   # so that its memory is free
    log_file = out / 'log.csv'
    if rank == 0:   # the folder is this run's from here on
        lock = run.take_folder(out.resolve(), fresh=not going_on)
        (out / 'result.json').unlink(missing_ok=True)   # of a shorter run
        tokenizers.save_tokenizer(encoding, out)   # so that sample.py needs nothing but out_dir
        run.cut_log(log_file, it)

    step_tokens = batch_size * grad_accum * block_size
    with FlopCounterMode(display=False) as counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        model.eval()(*load_blocks([(files[0], 0)], block_size, device))
    flops = 3 * counter.get_total_flops() / block_size   # a backward pass costs two forward passes
    say(f'training costs {flops / 1e6:,.1f} million floating-point operations a token')
    say(f"data: {', '.join(str(folder) for folder, _ in sets)}: {n_train:,} tokens of "
        f'{bytes_per_token:.2f} bytes; {max_iters} steps of {step_tokens:,} tokens are '
        f'{max_iters * step_tokens / n_train:.1f} epochs')
    if init_from == 'scratch' and config.embedding == 'table' and not config.output_bias:
        say(f'the first loss is that of a model that knows nothing: each of {config.vocab_size:,} '
            f'tokens is as likely, ln V = {math.log(config.vocab_size):.3f}')
    questions = []   # for multiple choice on the way
    if eval_mc and rank == 0:
        import eval_mc as multiple_choice
        for task in mc_tasks.split(','):
            questions += multiple_choice.load_questions(task, f'{data_dir}/eval', limit=eval_mc)
    if compile and device.type == 'cuda':
        model = torch.compile(model)
    if world > 1:
        if rank == 0:
            dist.barrier()   # the others may go on
        model = torch.nn.parallel.DistributedDataParallel(model, broadcast_buffers=False)
    else:   # torchrun has its own way with signals
        for name in ('SIGINT', 'SIGTERM', 'SIGHUP'):
            number = getattr(signal, name, None)   # Windows has no SIGHUP
            if number and signal.getsignal(number) != signal.SIG_IGN:   # nohup ignores it
                signal.signal(number, stop)

    # the loop: look at where the run is, save it, then a step
    def is_due(interval):
        return it % interval == 0 or it >= max_iters

    def so_far():
        """What the log and the result say of the whole run up to here."""
        tokens = it * step_tokens
        return dict(tokens=tokens, bytes=round(tokens * bytes_per_token),
                    seconds=seconds + time.monotonic() - begun)

    raw_model.train()
    n_micro = grad_accum // world
    first = line_it = it
    begun = line_time = time.monotonic()   # which no change of the clock moves
    progress = Progress('training', first / max_iters)
    while True:
        row = {}
        if is_due(log_interval) and it > since['it']:
            loss = since['loss'] / (it - since['it'])
            if world > 1:
                dist.all_reduce(loss)   # the mean over the processes, as the gradient is
            loss = loss.item() / world
            if not math.isfinite(loss):
                raise Failure(f'step {it}: the loss is {loss}; lower the learning rate')
            now = time.monotonic()
            speed = (it - line_it) * step_tokens / (now - line_time)
            left = (now - begun) / max(it - first, 1) * (max_iters - it)
            say(f'step {it:6} | loss {loss:.4f} | {speed:,.0f} tokens/s | {duration(left)} left')
            row = dict(train_loss=loss, lr=since['lr'], dropout=since['dropout'],
                       grad_norm=since['norm'].item(), tokens_per_s=speed)
        improved = False
        if is_due(eval_interval) and not stopped:
            try:
                nats, bpb, _ = bits_per_byte(judged, sets, token_bytes, 'val', eval_tokens,
                                        progress=watch('evaluating val'), **how)
                if not math.isfinite(nats):
                    raise Failure(f'step {it}: the held-out loss is {nats}; lower the learning rate. '
                         'The last checkpoint is kept')
                say(f'step {it:6} | held out {nats:.4f} nats per token, {bpb:.4f} bits per byte')
                if questions:
                    with autocast:
                        score, _ = multiple_choice.answer_questions(
                            judged.eval(), encoding, questions, progress=watch('questions'))
                    judged.train()
                    say(f'step {it:6} | {len(questions)} questions: {score["acc"]:.1%} right, '
                        f'{score["acc_norm"]:.1%} by character (chance {score["chance"]:.1%}), '
                        f'log p(right answer) {score["log_prob"]:.3f}')
                    row |= dict(mc_acc=score['acc'], mc_acc_norm=score['acc_norm'],
                                mc_log_prob=score['log_prob'])
                row |= dict(val_loss=nats, val_bpb=bpb)
                improved = bpb < best
                best = min(best, bpb)
            except KeyboardInterrupt:
                row = {}   # it is made again when the run goes on
        if rank == 0 and (stopped or 'val_bpb' in row):
            state = dict(
                format=run.FORMAT, config=asdict(config), idea=idea, model=raw_model.state_dict(),
                counts=counts, tokenizer=spec, settings=settings, iter=it, best=best, since=since,
                optimizers=[each.state_dict() for each in optimizers],
                ema=averaged.state_dict() if averaged else None, seconds=so_far()['seconds'],
                data=trained_on, owed=blocks.owed.tolist(),
                order=[[order.epoch, order.read] for order in blocks.orders],
                rng=torch.get_rng_state(),
                cuda_rng=torch.cuda.get_rng_state() if device.type == 'cuda' else None)
            if improved:   # first, for ckpt.pt says how good it is
                run.save_checkpoint(out / 'best.pt', state | dict(model=judged.state_dict()))
            run.save_checkpoint(out / 'ckpt.pt', state)
        if stopped:
            say(f'stopped at step {it} and saved; go on with: '
                + command('train.py', out_dir=out_dir, init_from='resume'))
            sys.exit(130)
        if row:
            if rank == 0:
                row |= so_far() | dict(iter=it, epoch=it * step_tokens / n_train)
                run.add_to_log(log_file, row)
            since = dict(it=it, loss=torch.zeros((), device=device))
            line_it, line_time = it, time.monotonic()   # an evaluation's time isn't training's
        if it >= max_iters:
            break

        factor = learning_rate_factor(it, max_iters, warmup_iters, schedule, decay_share, final_lr)
        for each, peak in optimizers.items():
            for group in each.param_groups:
                group['lr'] = peak * factor
        p = along(dropout_points, it).item()
        raw_model.dropout.set(p)
        drawn = [blocks.next(along(share_points, it)) for _ in range(batch_size * grad_accum)]
        mine = drawn[rank::world]
        started = time.monotonic()
        for micro in range(n_micro):
            x, y = load_blocks(mine[micro::n_micro], block_size, device)
            model.require_backward_grad_sync = micro == n_micro - 1   # DDP: add up gradients once
            with autocast:
                loss = model(x, y).mean() / n_micro
            loss.backward()
            since['loss'] += loss.detach()
            progress((it + (micro + 1) / n_micro) / max_iters)
            if it == first and micro == 0:   # before anybody waits for long
                say(pace((time.monotonic() - started) * n_micro, max_iters - it, step_tokens))
        norm = torch.nn.utils.clip_grad_norm_(raw_model.parameters(), grad_clip or math.inf)
        for each in optimizers:
            each.step()
            each.zero_grad(set_to_none=True)
        if averaged:
            averaged.update_parameters(raw_model)
        it += 1
        since |= dict(lr=learning_rate * factor, dropout=p, norm=norm.detach())

    # the end: all of the held-out text, beside what compressors make of it
    if any(meta['splits']['val']['tokens'] - 1 > eval_tokens for _, meta in sets):
        _, bpb, _ = bits_per_byte(judged, sets, token_bytes, 'val', progress=watch('evaluating val'), **how)
    if rank == 0:
        judged.eval()
        held = open_split(*sets[0], 'val', block_size)
        prompt = held[:9].tolist()   # the end of text before it, and a text's first 8 tokens
        with autocast:
            more = judged.generate(torch.tensor([prompt], device=device), 100, temperature=0.8, top_k=50)
            ids = prompt[1:] + [token.item() for token in more]
        sample = b''.join(spelling[i] or b'\n\n' for i in ids).decode(errors='replace')
        say(f"\n--- a held-out text's first words, continued\n{sample}\n---")
        seen = b''.join(spelling[i] for i in files[0][:2**20])
        text = b''.join(spelling[i] for i in held[:2**21])
        gzip, xz = compressors(seen, text)
        say(f'held out: {bpb:.3f} bits per byte; gzip -9 needs {gzip:.3f} for the same text')
        say(f'and xz {xz:.3f} after it has read the training text, the fairer comparison')
        result = so_far() | dict(val_bpb=bpb, best_bpb=best, flops_per_token=flops, parameters=parts,
                                 settings=settings, machine=machine, peak_memory=machines.peak_memory(device))
        # that it is there means: finished
        files.write_whole(out / 'result.json', json.dumps(result, indent=1).encode())
        say(f'checkpoint: {out / "best.pt"}, curve: {log_file}, '
            f'{result["seconds"] / 60:.1f} minutes, {result["peak_memory"] / 1e9:.1f} GB at most')
        if row['val_bpb'] > best:
            say(f'best.pt is better than the end: {best:.4f} on the way. More text or fewer steps; '
                f'{out / "ckpt.pt"} has the end')
        say('next: ' + command('sample.py', out_dir=out_dir))
    if world > 1:
        dist.barrier()   # gloo aborts a process whose peer is gone already
        dist.destroy_process_group()
