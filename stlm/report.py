"""
What train.py says of a run before its first step, at each evaluation, and after its last step.
"""
import copy
import json
import math
import sys

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from stlm.console import Failure, command
from stlm.files import write_whole
from stlm.machine import peak_flops, peak_memory
from stlm.run import count_line
from stlm.text import XZ_READS, bits_per_byte, compressors, load_blocks, open_split


def before(machine, model, text, settings, shares, checkpoint):
    """Say what will be trained on what; the floating-point operations of a token, {'training': n, 'evaluation': n}."""
    config, steps = model.config, settings['max_iters']
    step_tokens = settings['batch_size'] * settings['grad_accum'] * config.block_size
    machine.say(machine.line)
    machine.say(count_line(model))
    flops = count_flops(model, text.files[0], config.block_size)
    machine.say(f'training costs {flops["training"] / 1e6:,.1f} million floating-point operations a token')
    epochs = ' and '.join(f'{steps * step_tokens * share / len(tokens):.1f}' for share, tokens in zip(shares, text.files))
    machine.say(f"data: {', '.join(str(folder) for folder, _ in text.sets)}: {text.n_tokens:,} tokens of "
                f'{text.bytes_per_token(shares):.2f} bytes; {steps} steps of {step_tokens:,} tokens are {epochs} epochs')
    if not checkpoint and config.embedding == 'table' and not config.output_bias:
        machine.say(f'the first held-out loss is that of a model that knows nothing: all {config.vocab_size:,} '
                    f'tokens are equally likely, ln V = {math.log(config.vocab_size):.3f}')
    for line in never_reached(settings):
        machine.say(line)
    return flops


def count_flops(model, tokens, block_size):
    """Of the first block, in a copy on the CPU, whose attention is counted: nothing of the training changes. In training the
    loss is often another than in evaluation; a backward pass costs two forward passes, or less where some weights are fixed."""
    model = copy.deepcopy(model).cpu()
    x, y = load_blocks([(tokens, 0)], block_size)
    counts = {}
    with torch.random.fork_rng(devices=[]), sdpa_kernel(SDPBackend.MATH):
        for what in ('training', 'evaluation'):
            model.train(what == 'training')
            with FlopCounterMode(display=False) as counter, torch.set_grad_enabled(what == 'training'):
                nll = model(x, y)
                if what == 'training':
                    nll.mean().backward()
            counts[what] = counter.get_total_flops() / block_size
    return counts


def never_reached(settings):
    """A line for each point of a schedule that lies outside of the run."""
    steps, lines = settings['max_iters'], []
    if settings['warmup_iters'] >= steps:
        lines.append(f"warmup_iters={settings['warmup_iters']}: the run ends at step {steps}, before the learning rate's peak")
    if settings['schedule'] == 'wsd' and settings['decay_share'] * steps > steps - settings['warmup_iters']:
        lines.append(f"decay_share={settings['decay_share']}: the line down begins within the warmup, below the peak")
    for name in ('dropout', 'mix_schedule'):
        late = [point for point in settings[name] if point[0] >= steps] if isinstance(settings[name], list) else []
        if late and (len(late) > 1 or late[0][0] > steps):
            lines.append(f'{name}: the run ends at step {steps}, before {", ".join(map(str, late))}')
    return lines


def continue_text(machine, model, text, prompt='', n=25):
    """A beginning, of the held-out text if none is given, and what the model makes of it, as text. It draws from a
    generator of its own, so that the training stays what it is."""
    ids = text.encoding.encode_ordinary(prompt) or open_split(*text.sets[0], 'val', 1)[1:9].tolist()
    generator = torch.Generator(machine.device)
    generator.manual_seed(0)
    idx = torch.tensor([[text.encoding.eot_token, *ids]])   # (1, T)
    was_training = model.training
    with machine.autocast:
        ids += [token.item() for token in model.eval().generate(idx, n, temperature=0.8, top_k=50, generator=generator)]
    model.train(was_training)
    return b''.join(text.spelling[i] or b'\n\n' for i in ids).decode(errors='replace')


def final_figure(machine, model, text, iterations, settings):
    """Say how good a model is on a whole split."""
    split, dataset = settings['split'], settings['dataset']
    if machine.world > 1:
        raise Failure('eval_only runs in one process: start it without torchrun')
    stride = settings['stride'] or model.config.block_size // 2
    nats, bpb, total = bits_per_byte(machine, model, text, split, math.inf, settings['batch_size'], stride)
    machine.say(f'{split} split of {dataset} after {iterations} steps, windows of {model.config.block_size} tokens, a new '
                f'one every {stride}: {nats:.4f} nats per token, {bpb:.4f} bits per byte')
    for unit in ('byte', 'char', 'word'):
        n = sum(meta['splits'][split][f'{unit}s'] for _, meta in text.sets)
        try:
            machine.say(f'perplexity: {math.exp(total / n):.4g} per {unit}')
        except OverflowError:
            machine.say(f'perplexity: above 1e308 per {unit}')


def after(machine, model, text, out, result, last, best):
    """All of the held-out text, beside what compressors make of it, a sample, and result.json: that it is there means
    that the run has ended. `last` is the last evaluation's bits per byte, `best` the lowest of all."""
    settings, bpb = result['settings'], last
    if any(meta['splits']['val']['tokens'] - 1 > settings['eval_tokens'] for _, meta in text.sets):
        bpb = bits_per_byte(machine, model, text, 'val', math.inf, settings['batch_size'])[1]
    if not machine.first:
        return
    machine.say(f"\n--- a held-out text's first words, continued\n{continue_text(machine, model, text, n=100)}\n---")
    result |= dict(val_bpb=bpb, best_bpb=best, machine=machine.line, peak_memory=peak_memory(machine.device),
                   peak_flops=peak_flops(machine.device))   # the memory before xz takes some
    seen, held = text.raw('train', XZ_READS), text.raw('val', sys.maxsize)
    write_whole(out / 'result.json', json.dumps(result, indent=1, allow_nan=False).encode())
    gzip, xz = compressors(seen, held, machine.watch('gzip and xz of the same text'))
    machine.say(f'held out: {bpb:.3f} bits per byte; gzip -9 needs {gzip:.3f} for the same text')
    if xz:
        machine.say(f'and xz {xz:.3f} after it has read {len(seen) / 1e6:.1f} MB of the training text, the fairer comparison')
    memory = f', {result["peak_memory"] / 1e9:.1f} GB at most' if result['peak_memory'] else ''
    machine.say(f'checkpoint: {out / "best.pt"}, curve: {out / "log.csv"}, {result["seconds"] / 60:.1f} minutes{memory}')
    if last > best:
        machine.say(f'best.pt is better than the end of the run: {best:.4f}. Try more text or fewer steps; {out / "ckpt.pt"} has the end')
    machine.say('next: ' + command('sample.py', out_dir=out))
