"""
A run: its device, its folder and its checkpoints. train.py writes them; sample.py, eval_mc.py and notebooks read them:

    model, tokenizer, checkpoint = load_run('out/quick')

A checkpoint is a dict: format, config (a dict of model.Config), idea ('' or the name of a file in ideas/), model (its
state dict), counts (how often each token occurs in the training text, or None), tokenizer (its spec), settings, iter,
and what a resume needs. Beside it lie tokenizer.tiktoken and log.csv. With `scales` {name: (rows)}, some of the weights are int8.
"""
import csv
import ctypes
import importlib
import os
import pathlib
import sys
import warnings
import zipfile

import torch

import tokenizer as tokenizers
from configurator import command, fail
from download import lock

FORMAT = 3
COLUMNS = ('iter', 'tokens', 'bytes', 'epoch', 'train_loss', 'val_loss', 'val_bpb', 'lr', 'dropout', 'grad_norm',
           'tokens_per_s', 'seconds', 'mc_acc', 'mc_acc_norm', 'mc_log_prob')
# what a run has to keep when it goes on, beside its shape
KEPT = ('idea', 'dataset', 'shares', 'tokenizer', 'train_tokens', 'optimizer', 'weight_decay', 'beta2', 'ema', 'seed')
CONTENTS = dict(format=int, config=dict, idea=str, model=dict, tokenizer=dict, settings=dict, iter=int)


def pick_device(name='auto', dtype='auto', local_rank=0):
    """(device, context to compute in, one line about both) for a name out of auto, cuda, cuda:1, mps, cpu and
    a dtype out of auto, bfloat16, float32. auto takes bfloat16 only where the hardware computes in it: older
    GPUs emulate it, slowly, and float16 overflows."""
    there = dict(cuda=torch.cuda.is_available(), mps=torch.backends.mps.is_available(), cpu=True)
    if name == 'auto':
        name = next(kind for kind in there if there[kind])
    kind, _, index = name.partition(':')
    index = int(index) if index.isdecimal() else local_rank if name == 'cuda' else 0
    if not there.get(kind) or kind == 'cuda' and index >= torch.cuda.device_count():
        found = ', '.join(kind for kind in there if there[kind])
        sys.exit(f"device={name} isn't on this machine, which has {found} ({torch.cuda.device_count()} of cuda)")
    device = torch.device(kind, index) if kind == 'cuda' else torch.device(kind)
    native = kind == 'cpu' and any(on for flag, on in torch.cpu.get_capabilities().items() if 'bf16' in flag)
    if kind == 'cuda':
        torch.cuda.set_device(device)
        native = torch.cuda.get_device_capability(device) >= (8, 0)
    bfloat16 = dtype == 'bfloat16' or dtype == 'auto' and native
    threads = f', {torch.get_num_threads()} threads' if kind == 'cpu' else ''
    return (device, torch.autocast(kind, torch.bfloat16, enabled=bfloat16),
            f'device {device}{threads}, {"bfloat16" if bfloat16 else "float32"}, torch {torch.__version__}')


def keep_freed_memory():
    """On Linux, glibc gives every large tensor back to the system when it is freed, and pays for its pages anew at
    the next one: a quarter of a training step on a CPU. From now on it keeps them (mallopt(3))."""
    libc = ctypes.CDLL(None) if sys.platform == 'linux' else None
    if hasattr(libc, 'mallopt'):
        libc.mallopt(-4, 0)    # M_MMAP_MAX
        libc.mallopt(-1, -1)   # M_TRIM_THRESHOLD


def peak_memory(device):
    """The most bytes that this process has held so far: tensors on a GPU, else all memory, what it has read
    of mapped files included."""
    if device.type == 'cuda':
        return torch.cuda.max_memory_allocated(device)
    if sys.platform == 'win32':
        return float('nan')
    import resource
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == 'darwin' else 1024)


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


def load_checkpoint(path):
    """The dict that was saved at path, on the CPU and in float32. What isn't one ends in one line."""
    if not path.exists():
        fail(f'{path}: no such file; train first: {command("train.py", out_dir=path.parent)}')
    try:
        with zipfile.ZipFile(path) as file:   # torch.load doesn't compare checksums
            damaged = file.testzip()
        checkpoint = torch.load(path, map_location='cpu', weights_only=True)
    except Exception as error:   # many kinds: each byte that may be damaged makes another
        fail(f'{path}: not a whole checkpoint of train.py ({type(error).__name__})')
    version = checkpoint.get('format') if isinstance(checkpoint, dict) else None
    if damaged or not isinstance(version, int):
        fail(f'{path}: not a whole checkpoint of train.py ({damaged or "other contents"})')
    if version != FORMAT:
        fail(f'{path}: in format {version}, this code reads {FORMAT}; train again')
    if wrong := [name for name, kind in CONTENTS.items() if not isinstance(checkpoint.get(name), kind)]:
        fail(f'{path}: not a whole checkpoint of train.py (no {wrong[0]})')
    for name, scale in checkpoint.pop('scales', {}).items():
        checkpoint['model'][name] = checkpoint['model'][name].float() * scale[:, None]
    return checkpoint


def restore_model(checkpoint, spelling, path, **changes):
    """The model of the checkpoint that was loaded from path. With another lora_rank its matrices get adapters."""
    try:
        config = idea_module(checkpoint['idea']).Config(**checkpoint['config'] | changes)
        model = build_model(config, spelling, checkpoint.get('counts'), checkpoint['idea'])
        state, mine = checkpoint['model'], model.state_dict()
        if 'lora_rank' in changes:
            state = {name if name in mine else name.replace('.weight', '.linear.weight'): p for name, p in state.items()}
            state = {name: p for name, p in mine.items() if name.endswith(('.A.weight', '.B'))} | state
        model.load_state_dict(state)
    except (RuntimeError, TypeError, ValueError, KeyError, IndexError, ImportError, AttributeError) as error:
        fail(f'{path}: not a checkpoint of this code ({str(error)[:200]})')
    return model


def newest_checkpoint(out_dir):
    """Of a run's folder best.pt, else ckpt.pt."""
    folder = pathlib.Path(out_dir)
    return folder / ('ckpt.pt' if (folder / 'ckpt.pt').exists() and not (folder / 'best.pt').exists() else 'best.pt')


def load_run(out_dir, device='cpu'):
    """(model, tokenizer, checkpoint) of a run's folder, which has all that they need: its best.pt, else ckpt.pt."""
    path = newest_checkpoint(out_dir)
    checkpoint = load_checkpoint(path)
    tokenizer = tokenizers.load(checkpoint['tokenizer'], path.parent)
    model = restore_model(checkpoint, tokenizers.spelling(tokenizer), path)
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
        sys.exit(f'{path}: not written ({str(error).splitlines()[0]}); any older one is kept')


def take_over(settings, given, before, fixed, where):
    """An earlier run's settings hold, but for those given now; and those that are `fixed` can't be given otherwise."""
    for name, value in before.items():
        if name not in given:
            settings[name] = value
        elif name in fixed and value != settings[name]:
            fail(f'--{name}={settings[name]}: the run in {where} has {value} and has to keep it')


def go_on(settings, given, checkpoint, source, eval_only):
    """Settings for the run to go on as it began."""
    if 'optimizers' not in checkpoint and not eval_only:
        hint = command('train.py', init_from=source.parent, out_dir='out/NAME')
        fail(f'{source} has weights and no state of training; start from them: {hint}')
    before = {name: value for name, value in checkpoint['settings'].items() if name != 'out_dir'}
    take_over(settings, given, before, {*checkpoint['config'], *KEPT}, source.parent)
    blocks = settings['batch_size'] * settings['grad_accum']
    blocks_before = before.get('batch_size', 1) * before.get('grad_accum', 1)
    if blocks != blocks_before and not eval_only:
        fail(f"batch_size={settings['batch_size']} times grad_accum={settings['grad_accum']}: the run in "
             f'{source.parent} has {blocks_before} blocks in a step and has to keep them')


def start_from(settings, given, checkpoint, source):
    """Settings for a new run that starts from this one's weights: its shape. Returns what is to change in its config:
    a lora_rank, where it had none, gives it adapters."""
    if pathlib.Path(settings['out_dir']).resolve() == source.parent.resolve():
        fail(f"out_dir={settings['out_dir']} is the run to start from; give another one")
    shape = checkpoint['config'] | dict(idea=checkpoint['idea'], tokenizer=checkpoint['tokenizer']['name'])
    changes = {}
    if settings['lora_rank'] and not shape['lora_rank']:
        changes['lora_rank'] = settings['lora_rank']
        del shape['lora_rank']
    take_over(settings, given, shape, {*shape}, source.parent)
    return changes


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
    return held


def cut_log(path, keep):
    """Rewrite log.csv with the rows whose steps `keep` says yes to: what came after the checkpoint will come again."""
    rows = []
    if path.exists():
        try:
            with open(path, encoding='utf-8-sig', newline='') as file:
                rows = [row for row in csv.DictReader(file) if keep(int(row['iter']))]
            if any({*row} != {*COLUMNS} for row in rows):
                raise ValueError
        except (ValueError, KeyError, TypeError, csv.Error):
            fail(f'{path} is not as train.py wrote it (a spreadsheet?); mend it, or move it away')
    with open(part := path.with_suffix('.part'), 'w', newline='') as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    os.replace(part, path)


def add_to_log(path, values):
    values = {name: f'{value:.6g}' if isinstance(value, float) else value for name, value in values.items()}
    with open(path, 'a', newline='') as file:
        csv.DictWriter(file, COLUMNS).writerow(values)


class FewRows(torch.nn.Module):
    """A Linear, for few rows at a time on a CPU. PyTorch multiplies a single row with a matrix in one thread, unless
    it is a batch of products with a part of the matrix each, or a long matrix lies transposed. And W x' is several
    times as fast as x W' when x has 2 to 32 rows."""

    def __init__(self, linear):
        super().__init__()
        self.linear, threads = linear, torch.get_num_threads()
        self.parts = threads if linear.out_features % threads == 0 else 1
        self.long = linear.out_features > 8 * linear.in_features
        weight = linear.weight.detach()
        self.matrix = weight.T.contiguous() if self.long else weight.view(self.parts, -1, linear.in_features).mT

    def forward(self, x):
        rows = x.flatten(0, -2)                                                  # (rows, in)
        if len(rows) > 32 or self.linear.bias is not None:
            return self.linear(x)
        if len(rows) > 1:
            return (self.linear.weight @ rows.T).T.view(*x.shape[:-1], -1)
        if self.long:
            return x @ self.matrix
        return torch.bmm(rows[None].expand(self.parts, 1, -1), self.matrix).view(*x.shape[:-1], -1)


def prepare_to_generate(model, dtype, device):
    """Trade memory for tokens per second, in a model that will not be trained: int8 weights (a scale for each row,
    and for each vector that comes; CPU only), or the same numbers laid out for few rows at a time."""
    tables = [model.tokens] if model.config.embedding == 'table' else []   # a byte decoder's matrices are small
    if dtype == 'int8':
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')   # that it will be another library's; torch is pinned
            for module in (model.blocks, *tables):
                torch.ao.quantization.quantize_dynamic(module, {torch.nn.Linear}, torch.qint8, inplace=True)
    elif device.type == 'cpu' and not torch.is_autocast_enabled('cpu'):
        for module in [*model.blocks.modules(), *tables]:
            for name, child in [*module.named_children()]:
                if isinstance(child, torch.nn.Linear):
                    setattr(module, name, FewRows(child))
