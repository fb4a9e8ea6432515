"""
log.csv: what is said of a run while it trains.
"""
import math
import time

import torch

from stlm.console import Failure, Progress, duration
from stlm.files import write_whole
from stlm.machine import peak_flops, peak_memory

COLUMNS = ('iter', 'tokens', 'bytes', 'epoch', 'train_loss', 'val_loss', 'val_bpb', 'lr', 'dropout', 'grad_norm',
           'tokens_per_s', 'seconds')


class Meter:
    """Adds up the loss since the last row of log.csv, and the seconds of the whole run. A part of the training's state."""

    def __init__(self, machine, scaler, path, max_iters, step_tokens, epoch_tokens, bytes_per_token, flops):
        self.machine, self.scaler, self.path, self.max_iters = machine, scaler, path, max_iters
        self.step_tokens, self.epoch_tokens, self.bytes_per_token = step_tokens, epoch_tokens, bytes_per_token
        self.flops = flops   # those of a token; bytes_per_token is that of each step
        self.last_row, self.earlier = 0, 0.0   # the step of the last row; seconds before this start
        self.last = {}                       # lr, dropout and grad_norm of the last step
        self.loss = torch.zeros((), device=machine.device)
        self.unwritten = []                  # rows that another program kept from being written

    def start(self, it):
        """Begin log.csv, or go on behind its rows before step `it`; from now on the time counts."""
        if self.machine.first:
            cut_log(self.path, it)
        self.first = self.line_it = it
        self.begun = self.line_time = time.monotonic()   # which no change of the clock moves
        self.told = self.machine.device.type == 'cuda'   # whose first part is mostly its start, and compiling
        self.progress = Progress('training', it / self.max_iters)

    def add(self, loss, done):
        """The loss of a part of a step; `done` steps are done with it, a fraction. The first part says how long all will
        take, before anybody waits for long."""
        if not self.told:
            loss.item()   # a Mac's GPU has to be waited for
            seconds = (time.monotonic() - self.line_time) / (done - self.line_it)
            left = seconds * (self.max_iters - self.first)
            self.machine.say(f'a step of {self.step_tokens:,} tokens takes about {seconds:.2g} s here: {duration(left)} left')
            if left > 2 * 86400:
                self.machine.say('more than two days: take a GPU, a smaller config or fewer --max_iters')
            self.told = True
        self.loss += loss
        self.progress(done / self.max_iters)

    def so_far(self, it):
        tokens = it * self.step_tokens
        return dict(tokens=tokens, bytes=round(tokens * self.bytes_per_token[:max(it, 1)].mean()),
                    seconds=self.earlier + time.monotonic() - self.begun)

    def row(self, it):
        """Say how it goes; the columns about training."""
        loss, now = self.machine.mean(self.loss / (it - self.last_row)).item(), time.monotonic()
        if not math.isfinite(loss):
            raise Failure(f'step {it}: the loss is {loss}; lower --learning_rate and --muon_lr. The last checkpoint is kept')
        if it > self.first:   # else a resumed run makes the row again, which it had said before it was saved
            self.last['tokens_per_s'] = speed = (it - self.line_it) * self.step_tokens / (now - self.line_time)
            left = (now - self.begun) / (it - self.first) * (self.max_iters - it)
            skipped = f' | {self.scaler.skipped} steps skipped' if self.scaler.skipped else ''   # their gradients overflowed
            self.machine.say(f'step {it:6} | loss {loss:.4f} | {speed:,.0f} tokens/s{self.of_the_gpu(speed)} | {duration(left)} left{skipped}')
        return dict(train_loss=loss) | {name: x for name, x in numbers(self.last).items() if math.isfinite(x)}

    def of_the_gpu(self, speed):
        """How much of a GPU these tokens per second, of all GPUs, use: the share of its operations (MFU), and its memory."""
        if self.machine.device.type != 'cuda':
            return ''
        peak = peak_flops(self.machine.device)
        share = f', {speed * self.flops / (peak * self.machine.world):.1%} of its peak' if peak else ''
        return f'{share}, {peak_memory(self.machine.device) / 1e9:.1f} GB'

    def write(self, it, row):
        """Append a row to log.csv. Where another program holds the file, as Excel does, it waits for the next."""
        row = row | self.so_far(it) | dict(iter=it, epoch=it * self.step_tokens / self.epoch_tokens)
        cells = [row.get(name, '') for name in COLUMNS]
        self.unwritten.append(','.join(f'{cell:.6g}' if isinstance(cell, float) else str(cell) for cell in cells) + '\n')
        self.last_row, self.loss = it, torch.zeros_like(self.loss)
        if self.machine.first:
            try:
                with open(self.path, 'a', newline='') as file:
                    file.write(''.join(self.unwritten))
                self.unwritten = []
            except PermissionError:
                self.machine.say(f'{self.path}: another program has it open; this row will be written with the next one')
        self.line_it, self.line_time = it, time.monotonic()   # an evaluation's time isn't training's

    def state_dict(self):
        return dict(last_row=self.last_row, loss=self.machine.mean(self.loss), last=numbers(self.last), step_tokens=self.step_tokens,
                    seconds=self.earlier + time.monotonic() - self.begun)

    def load_state_dict(self, state):
        if state['step_tokens'] != self.step_tokens:
            raise Failure(f"a step would have {self.step_tokens:,} tokens, but the run's steps have {state['step_tokens']:,}; "
                          'keep batch_size times grad_accum')
        self.last_row, self.earlier = int(state['last_row']), float(state['seconds'])
        self.last = numbers(state['last'])
        self.loss = state['loss'].to(self.loss)


def numbers(last):
    """Of tensors, as a step leaves them, and numbers, as a checkpoint has them."""
    return {name: float(x) for name, x in last.items()}


def cut_log(path, it):
    """Begin log.csv, or keep the rows before step `it`: what came after the checkpoint will come again."""
    rows = []
    if path.exists():
        try:
            header, *rows = path.read_text(encoding='utf-8-sig').splitlines()
            for row in rows:
                if len([float(cell or 0) for cell in row.split(',')]) != len(COLUMNS):
                    raise ValueError
            rows = [row for row in rows if int(row.split(',')[0]) < it]
        except ValueError:
            header = ''
        if header != ','.join(COLUMNS):
            raise Failure(f'{path} is not as train.py wrote it (did a spreadsheet save it?); mend it, or move it away')
    write_whole(path, '\n'.join([','.join(COLUMNS), *rows, '']).encode())
