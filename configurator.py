"""
What the scripts share: settings, and after them the checkpoint, the device and progress.

Settings for a script that keeps them as plain `name = value  # comment` lines at its top, before it calls
    settings, given = configure(globals())
Then `python train.py config/tiny.py --max_iters=100` runs the config file (it is Python), applies the
flags, left to right, and returns all settings and the names of the given ones. `--help` lists them.
"""
import ast
import builtins
import ctypes
import difflib
import os
import pathlib
import pickle
import sys
import time

FORMAT = 2   # of checkpoints


def configure(namespace, at_least={}, one_of={}, argv=None):
    """at_least {number: 'names'} and one_of {name: 'values'} are checked. A mistake exits with one line."""
    sys.excepthook = one_line
    if hasattr(sys.stdout, 'reconfigure'):
        sys.stdout.reconfigure(encoding='utf-8', errors='replace')   # not every system's default prints every text
    script = pathlib.Path(namespace['__file__'])
    found = read_settings(script)
    settings, given = {name: namespace[name] for name in found}, []

    def put(name, value, where):
        if name not in settings:
            near = difflib.get_close_matches(name, settings, 1, cutoff=0)[0]
            sys.exit(f'{where}: no setting is called {name}; did you mean {near}? All: {script.name} --help')
        settings[name] = convert(value, found[name][1] or [type(namespace[name])], f'{where}: {name}')
        given.append(name)

    for arg in sys.argv[1:] if argv is None else argv:
        if arg in ('-h', '--help'):
            print(namespace['__doc__'].strip() + '\n\nsettings, with their defaults:')
            for name, (comment, _) in found.items():
                print(f'  --{name}={namespace[name]!r}'.ljust(36) + f'  {comment}')
            sys.exit()
        name, equals, text = arg.removeprefix('--').partition('=')
        if not arg.startswith('--'):
            for name, value in run_file(arg, settings, script.parent).items():
                put(name, value, arg)
        elif not equals:
            sys.exit(f'{arg}: a flag needs a value: {arg}=VALUE (all flags: {script.name} --help)')
        else:
            put(name.replace('-', '_'), text, arg)
    for number, names in at_least.items():
        for name in names.split():
            if settings[name] < number:
                sys.exit(f'{name}={settings[name]} must be at least {number}')
    for name, values in one_of.items():
        if settings[name] not in values.split():
            sys.exit(f"{name}={settings[name]} must be one of: {', '.join(values.split())}")
    namespace.update(settings)
    return settings, given


def one_line(kind, error, trace):
    """What a user can cause ends in one line; anything else is our mistake and keeps its traceback."""
    lines = dict(KeyboardInterrupt='interrupted', BrokenPipeError='', OutOfMemoryError='out of memory: give a smaller '
                 '--batch_size (and train.py a larger --grad_accum), --batch_tokens or --num_samples')
    if kind.__name__ in lines or issubclass(kind, OSError):
        where = getattr(error, 'filename', None)
        print(lines.get(kind.__name__, f'{where}: {error.strerror}' if where else error), file=sys.stderr)
        os._exit(130 if kind is KeyboardInterrupt else 1)   # at once: a closed pipe can't be flushed
    sys.__excepthook__(kind, error, trace)


def read_settings(script):
    """{name: (comment, types)} of the assignments above the script's call of configure(); the types are those of an
    annotation, as float | list, and none without one."""
    source, found = script.read_text(encoding='utf-8'), {}
    for node in ast.parse(source).body:
        if 'configure' in (getattr(child, 'id', '') for child in ast.walk(node)):
            break
        if isinstance(node, (ast.Assign, ast.AnnAssign)):
            name = (node.targets[0] if isinstance(node, ast.Assign) else node.target).id
            comment = source.splitlines()[node.end_lineno - 1][node.end_col_offset:].strip(' #')
            parts = ast.walk(node.annotation) if isinstance(node, ast.AnnAssign) else ()
            found[name] = comment, [getattr(builtins, part.id) for part in parts if isinstance(part, ast.Name)]
    return found


def run_file(path, settings, script_folder):
    """{name: value} of what a config file sets. It sees the settings; _underscored names are its own."""
    file = next((f for f in (pathlib.Path(path), script_folder / path) if f.is_file()), None)
    names = dict(settings)
    try:
        code = ast.parse(file.read_text(encoding='utf-8'), path)
        exec(compile(code, path, 'exec'), names)
    except Exception as error:
        what = f'{type(error).__name__}: {error}' if file else 'no such config file (a setting is --name=value)'
        sys.exit(f'{path}: {what}')
    stored = (node.id for node in ast.walk(code) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store))
    return {name: names[name] for name in stored if name in names and name[0] != '_'}


def convert(value, kinds, where):
    """A flag's text, or a config file's value, as one of kinds; 1 is also a float, and 1e4 an int."""
    text = value
    if isinstance(value, str) and str not in kinds:
        try:
            value = ast.literal_eval({'true': 'True', 'false': 'False'}.get(text.lower(), text))
        except (ValueError, SyntaxError):
            pass
    if type(value) in (int, float) and type(value) not in kinds:
        value = next((kind(value) for kind in kinds if kind in (int, float) and value % 1 == 0), value)
    if type(value) not in kinds:
        sys.exit(f'{where}={text!r} is not of type {" or ".join(kind.__name__ for kind in kinds)}')
    return value


def load_checkpoint(path):
    """The dict that train.py saved at path, on the CPU: model = GPT(Config(**its['config'])), then its weights."""
    import torch
    try:
        checkpoint = torch.load(path, map_location='cpu', weights_only=True)
        if checkpoint['format'] != FORMAT:
            raise SystemExit(f"{path}: in format {checkpoint['format']}, this code reads {FORMAT}; train again")
    except FileNotFoundError:
        raise SystemExit(f'{path}: no such file; train first: python train.py --out_dir={path.parent}')
    except (RuntimeError, OSError, EOFError, KeyError, TypeError, pickle.UnpicklingError) as error:
        raise SystemExit(f'{path}: not a whole checkpoint of train.py ({type(error).__name__})')
    return checkpoint


def load_run(out_dir, device):
    """(model, tokenizer, checkpoint) of a run's folder, which has all that they need: its best.pt, else ckpt.pt."""
    import prepare_wiki
    from model import GPT, Config
    folder = pathlib.Path(out_dir)
    checkpoint = load_checkpoint(next((f for f in (folder / 'best.pt', folder / 'ckpt.pt') if f.exists()),
                                      folder / 'best.pt'))
    model = GPT(Config(**checkpoint['config'])).eval()
    model.load_state_dict(checkpoint['model'])
    return model.to(device), prepare_wiki.make_tokenizer(checkpoint['settings']['tokenizer'], folder), checkpoint


def pick_device(name='auto', dtype='auto', local_rank=0):
    """(device, context to compute in, one line about both) for a name out of auto, cuda, cuda:1, mps, cpu and
    a dtype out of auto, bfloat16, float32. auto takes bfloat16 only where the hardware computes in it: older
    GPUs emulate it, slowly, and float16 overflows."""
    import torch
    there = dict(cuda=torch.cuda.is_available(), mps=torch.backends.mps.is_available(), cpu=True)
    name = next(kind for kind in there if there[kind]) if name == 'auto' else name
    kind, _, index = name.partition(':')
    index = int(index) if index.isdigit() else local_rank if not index and kind == 'cuda' else 0
    if not there.get(kind) or kind == 'cuda' and index >= torch.cuda.device_count():
        found = [f'{torch.cuda.device_count()} cuda'] * there['cuda'] + ['mps'] * there['mps'] + ['cpu']
        raise SystemExit(f"device={name} (number {index}) isn't on this machine, which has {', '.join(found)}")
    device = torch.device(kind, index) if kind == 'cuda' else torch.device(kind)
    if kind == 'cuda':
        torch.cuda.set_device(device)
    native = (torch.cuda.get_device_capability(device) >= (8, 0) if device.type == 'cuda' else
              any(on for flag, on in torch.cpu.get_capabilities().items() if 'bf16' in flag and device.type == 'cpu'))
    bfloat16 = dtype == 'bfloat16' or dtype == 'auto' and native
    threads = f', {torch.get_num_threads()} threads' if device.type == 'cpu' else ''
    if device.type == 'cpu' and sys.platform == 'linux' and hasattr(libc := ctypes.CDLL(None), 'mallopt'):
        # glibc gives every large tensor back to the system when it is freed, and pays for its pages
        # anew at the next one, a quarter of a training step; keep them (mallopt(3))
        libc.mallopt(-4, 0)    # M_MMAP_MAX
        libc.mallopt(-1, -1)   # M_TRIM_THRESHOLD
    return (device, torch.autocast(device.type, torch.bfloat16, enabled=bfloat16),
            f'device {device}{threads}, {"bfloat16" if bfloat16 else "float32"}, torch {torch.__version__}')


def peak_memory(device):
    """The most bytes that this process has held so far: tensors on a GPU, else all memory, what it has read
    of mapped files included; nan on Windows."""
    if device.type == 'cuda':
        import torch
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:
        return float('nan')
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == 'darwin' else 1024)


class Progress:
    """progress(done), done from `first` to 1, shows one line, each second; what is printed next overwrites it.
    With the size of the whole in bytes it says the rate."""

    def __init__(self, what, first=0.0, size=0):
        self.what, self.start, self.shown, self.first, self.size = what, time.time(), 0, first, size

    def __call__(self, done):
        now = time.time()
        if now - self.shown > 1 and done > self.first and now - self.start > 1:
            self.shown, speed = now, (done - self.first) / (now - self.start)
            rate = f'{self.size * speed / 1e6:.1f} MB/s, ' if self.size else ''
            print(f'{self.what}: {done:4.0%}, {rate}{(1 - done) / speed:.0f} s left'.ljust(60), end='\r',
                  file=sys.stderr, flush=True)

    def end(self, result):
        print(f'{self.what}: {result}, {time.time() - self.start:.1f} s'.ljust(60), flush=True)
