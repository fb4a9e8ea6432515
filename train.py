"""
Train a super tiny language model.

    python train.py                                     # the quick start: minutes, offline
    python train.py config/quick_byte.py                # an experiment: a few settings
    python train.py config/quick_byte.py --max_iters=100
    python train.py --out_dir=out/quick --init_from=resume
    python train.py --init_from=out/quick --dataset=novel --out_dir=out/novel
    torchrun --nproc_per_node=4 train.py --grad_accum=4 # several GPUs

Reading this file for the first time: the loop at its end is the training. Earlier runs, several
processes and averaged weights can wait.
"""
# data
dataset = 'pydocs'             # data/<dataset>-<tokenizer>/; a mix is 'simplewiki:3,pydocs:1'
tokenizer = 'bpe4096'          # bpe<N>, gpt2, gpt2-16 or byte
mix_schedule: list = []        # of a mix: [(step, [share of each set]), ...]
data_dir = 'data'              # folder of the data sets
out_dir = 'out/quick'          # folder for ckpt.pt (last), best.pt and log.csv
train_tokens = 0               # train on only the first so many tokens of each data set; 0: all
# model: the fields of Config in model.py are settings too, as --n_layer=6; --help lists them
idea = ''                      # a file in ideas/; --help then lists its settings too
# training
init_from = 'scratch'          # resume: from out_dir/ckpt.pt; a folder: from that run's weights
max_iters = 600                # steps of the optimizer
batch_size = 8                 # pieces of block_size tokens in a forward pass
grad_accum = 1                 # forward passes in a step, over all processes
optimizer = 'muon'             # muon (hidden matrices; AdamW for the rest) or adamw
learning_rate = 6e-3           # AdamW's peak learning rate
muon_lr = 0.04                 # Muon's peak learning rate
weight_decay = 0.1             # decay of matrices; vectors have none
beta2 = 0.95                   # AdamW's beta2; its beta1 is 0.9
grad_clip = 1.0                # largest norm of the gradient; 0: no limit
schedule = 'cosine'            # learning rate: half a cosine, or wsd (level, then a line down)
warmup_iters = 5               # steps of linear warmup
decay_share = 0.4              # share of all steps that wsd's line down takes
final_lr = 0.0                 # share of the peak at which the schedule ends
dropout: float | list = 0.0    # p, or [(step, p), ...] with straight lines between
ema = 0.0                      # keep an average of the weights over about 1/(1 - ema) steps
seed = 1337                    # random numbers: the weights, the data order and dropout
# watching
prompt = ''                    # beginning of the text that each evaluation shows
eval_interval = 200            # steps from one held-out evaluation and checkpoint to the next
eval_tokens = 2**20            # tokens of each data set that an evaluation reads; result.json's, all
eval_only = False              # evaluate out_dir/best.pt, and stop
split = 'val'                  # what eval_only reads: val, or test for a final figure
stride = 0                     # eval_only: tokens that the window moves on by; 0: half a window
log_interval = 25              # steps from one line to the next
# machine
device = 'auto'                # cuda, mps or cpu; auto takes the first of them that is there
dtype = 'auto'                 # bfloat16, float16 or float32; auto is what the hardware is fast with
compile: str | bool = 'auto'   # torch.compile: yes, no, or auto, which is yes on CUDA in a long run

# the values that some settings may have, and whole numbers that may be 0 though their default isn't
KINDS = dict(optimizer='adamw muon', schedule='cosine wsd', split='val test',
             dtype='auto bfloat16 float16 float32', compile='auto yes no True False')
MAY_BE_0 = 'warmup_iters seed'
from configurator import configure
# before the slow imports; config files and flags replace the settings above
if __name__ == '__main__':
    settings = configure(globals(), KINDS, MAY_BE_0)

import math
import pathlib
import sys
from dataclasses import asdict

import numpy as np
import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import prepare_wiki
from stlm import muon, report, run
from stlm.console import Failure, command
from stlm.machine import Machine, Scaler
from stlm.meter import Meter
from stlm.text import Text, bits_per_byte, load_blocks, parse_mix
from stlm.tokenizer import save_tokenizer


# ---------------------------------------------------------------------------------------------
# schedules

def along(points, it):
    """The value at step `it` of a schedule [(step, value), ...] with straight lines between its
    points; a value is a number, or a list of them."""
    steps, values = zip(*points)
    if isinstance(values[0], (int, float)):
        return float(np.interp(it, steps, values))
    return np.array([np.interp(it, steps, column) for column in zip(*values)])


def learning_rate_factor(it, max_iters, warmup_iters, schedule='cosine', decay_share=0.4,
                         final_lr=0.0):
    """Linear warmup; then from 1 to final_lr as half a cosine, or level and then a line (wsd)."""
    if it < warmup_iters:
        return (it + 1) / (warmup_iters + 1)
    if schedule == 'wsd':
        height = min(1, (max_iters - it) / (decay_share * max_iters + 1))   # + 1: at once
    else:
        done = (it - warmup_iters) / max(1, max_iters - warmup_iters)
        height = (1 + math.cos(math.pi * done)) / 2
    return final_lr + (1 - final_lr) * height


def check_points(name, points, is_valid):
    try:
        steps = [float(step) for step, _ in points]
        good = steps and steps == sorted(set(steps)) and all(is_valid(value) for _, value in points)
    except (TypeError, ValueError):
        good = False
    if not good:
        raise Failure(f'{name}={points} must be [(step, value), ...] with growing steps; a value of '
                      'dropout is at least 0 and below 1, one of mix_schedule a list with a number for each set')


def check_settings(settings, dropout_points, share_points, n_sets, earlier):
    """Refuse settings that contradict each other."""
    check_points('dropout', dropout_points, lambda p: 0 <= p < 1)
    check_points('mix_schedule', share_points,
                 lambda row: len(row) == n_sets and min(row) >= 0 and 0 < sum(row) < math.inf)
    if pathlib.Path(out_dir).resolve() in (pathlib.Path.cwd(), *pathlib.Path.cwd().parents):
        raise Failure(f"out_dir='{out_dir}' must be a folder of the run's own, as out/quick")
    block_size, share = settings['block_size'], settings['share']
    share_every, lora_rank = settings['share_every'], settings['lora_rank']
    if beta2 >= 1 or ema >= 1 or decay_share > 1 or stride > block_size or block_size < 2:
        raise Failure(f'{beta2=} and {ema=} must be below 1, {decay_share=} at most 1, '
                      f'{block_size=} at least 2, {stride=} at most block_size')
    if share == 'none' and (share_every or lora_rank and not earlier):
        raise Failure(f"{share_every=}, {lora_rank=}: these need share='ffn' or 'block'; lora_rank "
                      'may also have a run to start from (--init_from=FOLDER)')


# ---------------------------------------------------------------------------------------------
# the run, top to bottom

if __name__ == '__main__':
    # a new run; or an earlier one, whose settings hold where none is given now
    earlier = run.earlier_run(settings)
    if earlier:
        settings = configure(globals(), KINDS, MAY_BE_0, earlier=earlier)
    block_size, lora_rank = settings['block_size'], settings['lora_rank']
    out, mix = pathlib.Path(out_dir), parse_mix(dataset)
    dropout_points = dropout if isinstance(dropout, list) else [(0, dropout)]
    share_points = mix_schedule if mix_schedule and not eval_only else [(0, [*mix.values()])]
    check_settings(settings, dropout_points, share_points, len(mix), earlier)

    # the machine, the text, the model
    machine = Machine(device, dtype)
    sets = [prepare_wiki.load_data(name, tokenizer, data_dir) for name in mix]
    checkpoint = earlier.checkpoint if earlier else None
    tokenizer_of = (earlier.path.parent, checkpoint['tokenizer']) if earlier else None
    text = Text(sets, block_size, seed, train_tokens, tokenizer_of)
    shares_of_steps = along(share_points, np.arange(max_iters))                      # (sets, steps)
    shares_of_steps /= shares_of_steps.sum(axis=0)
    mean_shares = shares_of_steps.mean(axis=1)                                       # (sets)
    torch.manual_seed(seed)
    if earlier:
        model = run.restore_model(checkpoint, text.spelling, earlier.path, lora_rank)
        counts = checkpoint.get('counts')
    else:
        counts = text.counts(mean_shares)
        model = run.new_model(settings, text, counts)
    model.to(machine.device)
    if eval_only:
        report.final_figure(machine, model, text, checkpoint['iter'], settings)
        sys.exit()
    run.load_teacher(model, text.spec, machine.device)   # where an idea has one
    flops = report.before(machine, model, text, settings, mean_shares, checkpoint)
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(ema)) if ema else None
    judged = average.module if average else model   # what is evaluated and kept
    # the largest p first: a compiled model has dropout only if it was on when it was compiled
    model.dropout.set(max(p for _, p in dropout_points))

    # all that changes in training: a checkpoint has each part's state, a resume gives it back
    torch.manual_seed(seed + machine.rank)   # each process drops units of its own
    optimizers = muon.make_optimizers(model, optimizer, learning_rate, muon_lr, weight_decay, beta2,
                                      machine.dtype)
    scaler = Scaler(machine.device.type, machine.dtype)
    step_tokens = batch_size * grad_accum * block_size
    meter = Meter(machine, scaler, out / 'log.csv', max_iters, step_tokens, text.n_tokens,
                  text.bytes_per_token(shares_of_steps), flops['training'])
    parts = dict(text=text, meter=meter, machine=machine, scaler=scaler)
    parts |= {f'{type(each).__name__} {i}': each for i, (each, _) in enumerate(optimizers)}
    parts |= dict(weights=model, average=average) if average else {}
    it, best = 0, math.inf
    resume = init_from == 'resume'
    if resume:
        it, best = checkpoint['iter'], checkpoint['best']
        run.restore_parts(parts, checkpoint, earlier.path)
        if it >= max_iters and (out / 'result.json').exists():
            raise Failure(f'nothing to do: {out_dir} is at step {it} of {max_iters} already; '
                          'give a larger --max_iters')
    earlier = checkpoint = None   # so that its memory is free
    if machine.first:
        lock = run.take_folder(out.resolve(), fresh=not resume)   # until the process ends
        (out / 'result.json').unlink(missing_ok=True)   # left by a run with a smaller max_iters
        save_tokenizer(text.encoding, out)   # so that sample.py needs nothing but out_dir

    def is_due(interval):
        return it % interval == 0 or it >= max_iters

    def judge():
        """The columns of log.csv about held-out text; none if Ctrl-C comes."""
        try:
            nats, bpb, _ = bits_per_byte(machine, judged, text, 'val', eval_tokens, batch_size)
        except KeyboardInterrupt:
            return {}
        machine.say(f'step {it:6} | held out {nats:.4f} nats per token, {bpb:.4f} bits per byte')
        machine.say(f'step {it:6} | {report.continue_text(machine, judged, text, prompt)!r}')
        return dict(val_loss=nats, val_bpb=bpb)

    def save(*names):
        state = dict(format=run.FORMAT, config=asdict(model.config), idea=idea,
                     model=judged.state_dict(), counts=counts, tokenizer=text.spec,
                     settings=settings, iter=it, best=best,
                     parts={name: part.state_dict() for name, part in parts.items()})
        for name in names if machine.first else ():
            run.save_checkpoint(out / name, state)

    wrapped = machine.ready(model, compile, max_iters - it)   # compiled, on all GPUs; Ctrl-C saves
    model.train()
    n_micro = machine.part_of(grad_accum)   # forward passes of this process in a step
    meter.start(it)
    while True:
        # look: log, evaluate, save
        row = meter.row(it) if is_due(log_interval) and it > meter.last_row else {}
        if is_due(eval_interval) and not machine.stopped:
            row |= judge()
        if 'val_bpb' in row and row['val_bpb'] < best:
            best = row['val_bpb']
            save('best.pt', 'ckpt.pt')
        elif 'val_bpb' in row or machine.stopped:
            save('ckpt.pt')
        if machine.stopped:   # this step's row isn't written: the resumed run makes it again
            machine.say(f'stopped at step {it} and saved; go on with: '
                        + command('train.py', out_dir=out_dir, init_from='resume'))
            sys.exit(130)
        if row:
            meter.write(it, row)
        if it >= max_iters:
            break

        # one step: gradients of the whole batch, then each optimizer
        factor = learning_rate_factor(it, max_iters, warmup_iters, schedule, decay_share, final_lr)
        for each, peak in optimizers:
            for group in each.param_groups:
                group['lr'] = peak * factor
        p = along(dropout_points, it)
        model.dropout.set(p)
        drawn = text.next(along(share_points, it), batch_size * grad_accum)   # the step's blocks
        mine = drawn[machine.rank::machine.world]   # and this process's
        for micro in range(n_micro):
            x, y = load_blocks(mine[micro::n_micro], block_size)
            wrapped.require_backward_grad_sync = micro == n_micro - 1   # DDP: add up gradients once
            with machine.autocast:
                loss = wrapped(x, y).mean() / n_micro
            scaler.scale(loss).backward()
            meter.add(loss.detach(), it + (micro + 1) / n_micro)
        for each, _ in optimizers:
            scaler.unscale_(each)
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), grad_clip or math.inf)
        scaler.step_all([each for each, _ in optimizers], norm)
        for each, _ in optimizers:
            each.zero_grad(set_to_none=True)
        if average:
            average.update_parameters(model)
        it += 1
        meter.last = dict(lr=learning_rate * factor, dropout=p, grad_norm=norm.detach())

    result = dict(meter.so_far(it), flops_per_token=flops['training'], settings=settings,
                  flops_per_token_in_evaluation=flops['evaluation'], parameters=model.count_parameters())
    report.after(machine, judged.eval(), text, out, result, row['val_bpb'], best)
    machine.close()
