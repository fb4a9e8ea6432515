"""
A run: its folder and its checkpoints. train.py writes them; sample.py, eval_mc.py and notebooks read them:

    model, tokenizer, checkpoint = load_run('out/quick')

A checkpoint is a dict; FIELDS says what is in it. Beside it lie tokenizer.tiktoken, tokenizer.meta.json and log.csv.
"""
import dataclasses
import functools
import importlib
import math
import os
import pathlib
import zipfile

import torch

from configurator import Earlier, check_number
from stlm import tokenizer as tokenizers
from stlm.console import Failure, command
from stlm.files import insist, lock, sweep, write_whole
from stlm.search import use_search

FORMAT = 4
# what a checkpoint has: {name: (type, what it is)}. Of those after `iter`, imported weights have none.
FIELDS = dict(
    format=(int, 'FORMAT; 3 is read where it has no state of training'),
    config=(dict, "the fields of the model's Config"),
    idea=(str, "'', or the name of a file in ideas/"),
    model=(dict, 'its weights, by name; the averaged ones where a run averages'),
    tokenizer=(dict, 'its spec'),
    settings=(dict, "train.py's"),
    iter=(int, 'how many steps it was trained'),
    counts=(torch.Tensor, '(V), how often each token occurs in the training text'),
    scales=(dict, 'of weights that are int8: {name: (rows)}'),
    best=(float, 'the lowest held-out bits per byte so far'),
    parts=(dict, "the training's state: {part: its state_dict()}"))
NEEDED = list(FIELDS)[:7]
SPEC = dict(name=str, vocab_size=int, end_of_text=int, max_token_bytes=int, pattern=str, sha256=str)   # a tokenizer's
# what a run has to keep when it goes on, beside its shape
FIXED = {'dataset', 'mix_schedule', 'train_tokens', 'optimizer', 'weight_decay', 'beta2', 'ema', 'seed',
        'eval_tokens'}   # the held-out figures are compared with one another


# -------------------------------------------------------------------------------------------
# models

def idea_module(name):
    """The module that has GPT and Config: model.py, or an idea's file, which may have a Config with more fields."""
    try:
        return importlib.import_module(f'ideas.{name}' if name else 'model')
    except ImportError:
        raise Failure(f'idea={name!r:.40}: there is no such file in ideas/')


def build_model(config, spelling, counts=None, idea=''):
    model = idea_module(idea).GPT(config, spelling, counts)
    use_search(model)
    return model


def load_teacher(model, spec, device):
    """Before training: an idea that learns from another run, which its setting `teacher` names, is given that run's model.
    The two must have the tokenizer of this spec."""
    if getattr(model.config, 'teacher', ''):
        teacher, _, checkpoint = load_run(model.config.teacher, device)
        if checkpoint['tokenizer']['sha256'] != spec['sha256'] or teacher.config.embedding != model.config.embedding:
            raise Failure(f'teacher={model.config.teacher} must have the tokenizer of this run and embedding={model.config.embedding}')
        model.use_teacher(teacher)


def new_model(settings, text, counts):
    """The model of train.py's settings, for the tokens of a text."""
    Config = idea_module(settings['idea']).Config
    shape = {field.name: settings[field.name] for field in dataclasses.fields(Config) if field.name in settings}
    try:
        config = Config(vocab_size=text.spec['vocab_size'], max_bytes=text.spec['max_token_bytes'], **shape)
        return build_model(config, text.spelling, counts, settings['idea'])
    except ValueError as error:
        raise Failure(error)


def restore_model(checkpoint, spelling, path, lora_rank=0):
    """The model of the checkpoint that was loaded from path. With a lora_rank that it hasn't, its matrices get adapters,
    which alone are trained."""
    try:
        Config, shape, state = idea_module(checkpoint['idea']).Config, checkpoint['config'], checkpoint['model']
        for field in dataclasses.fields(Config):
            value = shape.get(field.name, field.default)
            if type(value) is not field.type:
                raise ValueError(f'its {field.name} is {value!r:.40}')
            if field.type in (int, float):
                check_number(field.name, value, field.default)
        adapt = lora_rank and not shape.get('lora_rank')
        config = Config(**shape | (dict(lora_rank=lora_rank) if adapt else {}))
        model = build_model(config, spelling, checkpoint.get('counts'), checkpoint['idea'])
        if adapt:   # the matrix W.weight is now W.linear.weight; the adapter's W.A and W.B are as they start
            mine = model.state_dict()
            state = {name if name in mine else name.replace('.weight', '.linear.weight'): p for name, p in state.items()}
            state |= {name: p for name, p in mine.items() if name.endswith(('.A.weight', '.B'))}
        model.load_state_dict(state)
    except (Failure, RuntimeError, TypeError, ValueError, KeyError, IndexError, ImportError, AttributeError) as error:
        raise Failure(f'{path}: not a checkpoint of this code ({str(error)[:200]})')
    if config.lora_rank and config.share == 'none':
        for name, p in model.named_parameters():
            p.requires_grad_(name.endswith(('.A.weight', '.B')))
    return model


def count_line(model):
    parts = model.count_parameters()
    return f"parameters: {sum(parts.values()):,} = {' + '.join(f'{part} {n:,}' for part, n in parts.items())}"


# -------------------------------------------------------------------------------------------
# checkpoints

def check_weights(weights, where):
    """Weights that aren't numbers are refused wherever weights come in or go out: they spread to all that is computed."""
    for name, p in weights.items():
        if p.is_floating_point() and not math.isfinite(p.sum(dtype=torch.float32)):
            n = int((~p.isfinite()).sum())
            if n:   # else only the sum is too large
                raise Failure(f'{where}: {n:,} of the {p.numel():,} numbers of {name} are infinite or not a number; '
                              'train again from an earlier checkpoint, with lower learning rates')


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
    if damaged or type(version) is not int:
        raise Failure(f'{path}: not a whole checkpoint of train.py ({damaged or "other contents"})')
    if version == 3 and 'optimizers' not in checkpoint:
        checkpoint['format'] = version = FORMAT
    if version != FORMAT:
        raise Failure(f'{path}: in format {version}, this code reads {FORMAT}; train again')
    for odd in oddities(checkpoint):
        raise Failure(f'{path}: not a whole checkpoint of train.py ({odd})')
    for name, scale in (checkpoint.pop('scales', None) or {}).items():
        checkpoint['model'][name] = checkpoint['model'][name].float() * scale[:, None]
    check_weights(checkpoint['model'], path)
    return checkpoint


def oddities(checkpoint):
    """Yields what is wrong with a checkpoint's fields. Nothing reads a field before its type has been seen here."""
    for name, (kind, _) in FIELDS.items():
        value = checkpoint.get(name)
        if not isinstance(value, kind) and (name in NEEDED or value is not None):
            yield f'its {name} is {value!r:.40}'
    spec, weights, counts = checkpoint['tokenizer'], checkpoint['model'], checkpoint.get('counts')
    for name, value in [*checkpoint['config'].items(), *checkpoint['settings'].items(), *spec.items()]:
        if not is_plain(value):
            yield f'{name}={value!r:.40}'
    for name, kind in SPEC.items():
        if type(spec.get(name)) is not kind:
            yield f'tokenizer {name}={spec.get(name)!r:.40}'
    for name, p in weights.items():
        if type(p) is not torch.Tensor:
            yield f'weight {name!r:.40}'
    if counts is not None and (counts.shape != (spec['vocab_size'],) or not (counts >= 0).all()):
        yield f'counts of {tuple(counts.shape)}'
    for name, scale in (checkpoint.get('scales') or {}).items():
        if type(scale) is not torch.Tensor or name not in weights or scale.shape != weights[name].shape[:1] or not scale.isfinite().all():
            yield f'scales of {name!r:.40}'
    if checkpoint['iter'] < 0:
        yield 'its iter is negative'


def is_plain(value):
    if isinstance(value, (list, tuple)):
        return all(map(is_plain, value))
    return value is None or type(value) in (bool, int, float, str)


def save_checkpoint(path, checkpoint):
    """Replace the file by a whole one, or not at all: a death or a full disk on the way leaves the older one. Where another
    program holds it for long, as on Windows, it is tried again the next time."""
    check_weights(checkpoint['model'], path)
    try:
        write_whole(path, functools.partial(torch.save, checkpoint))
    except Failure as error:
        if not isinstance(error.__context__, PermissionError):
            raise
        print(error)


def restore_parts(parts, checkpoint, path):
    """Give each part of the training its state back."""
    name = ''
    try:
        for name, part in parts.items():
            part.load_state_dict(checkpoint['parts'][name])
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise Failure(f'{path}: this code cannot continue from its state of training ({name}: {str(error)[:200]})')


# -------------------------------------------------------------------------------------------
# runs

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


def earlier_run(settings):
    """The run that train.py's settings name to go on with (resume), to evaluate (eval_only) or to start from, with what
    of its settings holds, and which it has to keep; None for a new run."""
    out_dir, init_from, eval_only = pathlib.Path(settings['out_dir']), settings['init_from'], settings['eval_only']
    if eval_only:
        path = out_dir / 'best.pt'
    elif init_from == 'scratch':
        return None
    elif init_from == 'resume':
        path = out_dir / 'ckpt.pt'
    else:
        path = newest_checkpoint(init_from)
        if out_dir.resolve() == path.parent.resolve():
            raise Failure(f'out_dir={out_dir} is the run to start from; choose another folder')
    checkpoint = load_checkpoint(path)
    fields = dataclasses.fields(idea_module(checkpoint['idea']).Config)   # a field that is younger than the run has its default
    shape = {field.name: checkpoint['config'].get(field.name, field.default) for field in fields}
    shape |= dict(idea=checkpoint['idea'], tokenizer=checkpoint['tokenizer']['name'])
    resume, held, fixed = init_from == 'resume' and not eval_only, {}, {*shape}
    if eval_only or resume:
        elsewhere = ('out_dir', 'device') if eval_only else ('out_dir',)   # it may have moved
        held = {name: value for name, value in checkpoint['settings'].items() if name not in elsewhere}
    if resume:
        fixed |= FIXED
        if not {'parts', 'best', 'counts'} <= checkpoint.keys():
            hint = command('train.py', init_from=path.parent, out_dir='out/NAME')
            raise Failure(f'{path} has weights but no state of training; start a new run from them: {hint}')
    elif not eval_only and not shape['lora_rank']:
        fixed.remove('lora_rank')   # it may get adapters
    return Earlier(path, checkpoint, held | shape, fixed)


OURS = 'ckpt.pt', 'best.pt', 'log.csv', 'result.json', 'tokenizer.tiktoken', 'tokenizer.meta.json'


def take_folder(folder, fresh):
    """Lock a run's folder, and keep what this returns. If a fresh run is to begin where files of another lie, its folder
    is moved aside, so that nothing is lost."""
    held = lock(folder)
    if fresh and any((folder / name).exists() for name in OURS):
        n = 1
        while (old := folder.with_name(f'{folder.name}.{n}')).exists():
            n += 1
        held.close()   # Windows moves no folder with an open file
        insist(os.rename, folder, old)
        print(f'the run that was in {folder} is now in {old}')
        held = lock(folder)
    sweep(folder, *OURS)
    return held
