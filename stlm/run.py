"""
A run: its folder and its checkpoints. train.py writes them; sample.py, eval_mc.py and notebooks read them:

    model, tokenizer, checkpoint = load_run('out/quick')

A checkpoint is a dict: format, config (a dict of model.Config), idea ('' or the name of a file in ideas/), model (its
state dict), counts (how often each token occurs in the training text, or None), tokenizer (its spec), settings, iter,
and what a resume needs. Beside it lie tokenizer.tiktoken and log.csv. With `scales` {name: (rows)}, some of the weights are int8.
"""
import importlib
import os
import pathlib
import zipfile

import torch

from stlm import tokenizer as tokenizers
from configurator import Failure
from stlm.console import command
from stlm.files import lock, write_whole

FORMAT = 3
COLUMNS = ('iter', 'tokens', 'bytes', 'epoch', 'train_loss', 'val_loss', 'val_bpb', 'lr', 'dropout', 'grad_norm',
           'tokens_per_s', 'seconds', 'mc_acc', 'mc_acc_norm', 'mc_log_prob')
# what a run has to keep when it goes on, beside its shape
KEPT = ('idea', 'dataset', 'shares', 'tokenizer', 'train_tokens', 'optimizer', 'weight_decay', 'beta2', 'ema', 'seed')
STATE = {'optimizers', 'ema', 'data', 'order', 'owed', 'rng', 'best', 'seconds', 'since'}   # of training
CONTENTS = dict(format=int, config=dict, idea=str, model=dict, tokenizer=dict, settings=dict, iter=int)


def idea_module(name):
    """The module that has GPT and Config: model.py, or an idea's file, which may have a Config with more fields."""
    return importlib.import_module(f'ideas.{name}' if name else 'model')


def build_model(config, spelling, counts=None, idea=''):
    """A new model that knows its vocabulary: `spelling` is each token's bytes by id, and `counts` (V) how often it
    occurs in the training text. From them byte pooling starts, and an output bias."""
    model = idea_module(idea).GPT(config)
    counts = torch.zeros(len(spelling)) if counts is None else torch.as_tensor(counts).float()
    if config.embedding == 'byte_pool':
        model.tokens.spell(spelling, counts)
    elif config.output_bias:
        model.tokens.head.bias.data = counts.log1p()
    return model


def count_line(model):
    parts = model.count_parameters()
    return f"parameters: {sum(parts.values()):,} = {' + '.join(f'{part} {n:,}' for part, n in parts.items())}"


def load_checkpoint(path):
    """The dict that was saved at path, on the CPU and in float32. What isn't one ends in one line."""
    if not path.exists():
        raise Failure(f'{path}: no such file; train first: {command("train.py", out_dir=path.parent)}')
    try:
        with zipfile.ZipFile(path) as file:   # torch.load doesn't compare checksums
            damaged = file.testzip()
        checkpoint = torch.load(path, map_location='cpu', weights_only=True)
    except Exception as error:   # many kinds: each byte that may be damaged makes another
        raise Failure(f'{path}: not a whole checkpoint of train.py ({type(error).__name__})')
    version = checkpoint.get('format') if isinstance(checkpoint, dict) else None
    if damaged or not isinstance(version, int):
        raise Failure(f'{path}: not a whole checkpoint of train.py ({damaged or "other contents"})')
    if version != FORMAT:
        raise Failure(f'{path}: in format {version}, this code reads {FORMAT}; train again')
    if wrong := [name for name, kind in CONTENTS.items() if not isinstance(checkpoint.get(name), kind)]:
        raise Failure(f'{path}: not a whole checkpoint of train.py (no {wrong[0]})')
    for name, scale in checkpoint.pop('scales', {}).items():
        checkpoint['model'][name] = checkpoint['model'][name].float() * scale[:, None]
    return checkpoint


def restore_model(checkpoint, spelling, path, lora_rank=0):
    """The model of the checkpoint that was loaded from path. Matrices without adapters get them, of a lora_rank."""
    try:
        config = idea_module(checkpoint['idea']).Config(**checkpoint['config'])
        state, adapt = checkpoint['model'], lora_rank and not config.lora_rank
        if adapt:
            config.lora_rank = lora_rank
        model = build_model(config, spelling, checkpoint.get('counts'), checkpoint['idea'])
        if adapt:   # a matrix that was W.weight is W.linear.weight beside its W.A and W.B, which are as they start
            mine = model.state_dict()
            state = {name if name in mine else name.replace('.weight', '.linear.weight'): p for name, p in state.items()}
            state |= {name: p for name, p in mine.items() if name.endswith(('.A.weight', '.B'))}
        model.load_state_dict(state)
    except (RuntimeError, TypeError, ValueError, KeyError, IndexError, ImportError, AttributeError) as error:
        raise Failure(f'{path}: not a checkpoint of this code ({str(error)[:200]})')
    return model


def newest_checkpoint(out_dir):
    """Of a run's folder best.pt, else ckpt.pt; or the checkpoint that was named instead of its folder."""
    path = pathlib.Path(out_dir)
    if path.suffix == '.pt':
        return path
    best, last = path / 'best.pt', path / 'ckpt.pt'
    return last if last.exists() and not best.exists() else best


def load_run(out_dir, device='cpu'):
    """(model, tokenizer, checkpoint) of a run's folder, which has all that they need: its best.pt, else ckpt.pt."""
    path = newest_checkpoint(out_dir)
    checkpoint = load_checkpoint(path)
    tokenizer = tokenizers.load_tokenizer(checkpoint['tokenizer'], path.parent)
    model = restore_model(checkpoint, tokenizers.spelling_of(tokenizer), path)
    return model.to(device).eval(), tokenizer, checkpoint


def save_checkpoint(path, checkpoint):
    """Replace the file by a whole one, or not at all: a death or a full disk on the way leaves the older one."""
    part = path.with_name(f'{path.name}.{os.getpid()}.part')
    try:
        with open(part, 'wb') as file:
            torch.save(checkpoint, file)
            file.flush()
            os.fsync(file.fileno())   # else the new name may reach the disk before the new bytes
        os.replace(part, path)
    except (OSError, RuntimeError) as error:   # torch reports a full disk as a RuntimeError
        part.unlink(missing_ok=True)
        raise Failure(f'{path}: not written ({str(error).splitlines()[0]}); any older one is kept')


def earlier_run(settings, given):
    """(path, checkpoint) of the run to go on with, to evaluate or to start from, or (None, None). Its settings then
    hold, or its shape where this one only starts from it, but for those that are given now and may change."""
    out_dir, init_from = pathlib.Path(settings['out_dir']), settings['init_from']
    resume = init_from == 'resume' and not settings['eval_only']
    if settings['eval_only']:
        path = out_dir / 'best.pt'
    elif resume:
        path = out_dir / 'ckpt.pt'
    elif init_from == 'scratch':
        return None, None
    else:
        path = newest_checkpoint(init_from)
        if out_dir.resolve() == path.parent.resolve():
            raise Failure(f'out_dir={out_dir} is the run to start from; give another one')
    checkpoint = load_checkpoint(path)
    if resume and not STATE <= checkpoint.keys():
        hint = command('train.py', init_from=path.parent, out_dir='out/NAME')
        raise Failure(f'{path} has weights and no state of training; start from them: {hint}')

    if resume or settings['eval_only']:
        before = dict(checkpoint['settings'])
        fixed = {*checkpoint['config'], *(KEPT if resume else ('idea', 'tokenizer'))}
        for name, value in settings.items():
            kinds = (int, float, list) if type(value) in (int, float, list) else type(value)
            if (resume or name in before) and not isinstance(before.get(name), kinds):
                raise Failure(f'{path}: not a checkpoint of train.py (its {name} is {before.get(name)!r})')
        before.pop('out_dir', None)   # the folder may have been renamed
        if not resume:
            before.pop('device', None)   # it was trained on another machine, maybe
    else:
        before = checkpoint['config'] | dict(idea=checkpoint['idea'], tokenizer=checkpoint['tokenizer']['name'])
        if not before.get('lora_rank'):   # it may get adapters
            before.pop('lora_rank', None)
        fixed = {*before}
    for name, value in before.items():
        if name not in given:
            settings[name] = value
        elif name in fixed and value != settings[name]:
            raise Failure(f'--{name}={settings[name]}: the run in {path.parent} has {value} and has to keep it')
    blocks = settings['batch_size'] * settings['grad_accum']
    blocks_before = before.get('batch_size', 1) * before.get('grad_accum', 1)
    if resume and blocks != blocks_before:
        raise Failure(f"batch_size={settings['batch_size']} times grad_accum={settings['grad_accum']}: the run in "
             f'{path.parent} has {blocks_before} blocks in a step and has to keep them')
    return path, checkpoint


def take_folder(folder, fresh):
    """Lock a run's folder, and keep what this returns. What an older run left there is moved beside it if a fresh one
    is to begin, so that nothing is lost."""
    held = lock(folder)
    if fresh and any((folder / name).exists() for name in ('ckpt.pt', 'best.pt', 'log.csv')):
        n = 1
        while (old := folder.with_name(f'{folder.name}.{n}')).exists():
            n += 1
        os.rename(folder, old)
        print(f'the run that was in {folder} is now in {old}')
        held = lock(folder)
    for part in folder.glob('*.part'):   # of a process that was killed
        part.unlink()
    return held


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
            raise Failure(f'{path} is not as train.py wrote it (a spreadsheet?); mend it, or move it away')
    write_whole(path, '\n'.join([','.join(COLUMNS), *rows, '']).encode())


def add_to_log(path, values):
    cells = []
    for name in COLUMNS:
        value = values.get(name, '')
        cells.append(f'{value:.6g}' if isinstance(value, float) else str(value))
    with open(path, 'a', newline='') as file:
        file.write(','.join(cells) + '\n')
