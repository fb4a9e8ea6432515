"""
What a script says to its user: settings, their help, errors of one line, and progress.

A script keeps its settings as plain `name = value  # comment` lines at its top, and below them calls
    settings, given = configure(globals())
Then `python train.py config/tiny_10m.py --max_iters=100` runs the config file (it is Python), applies the flags,
left to right, and returns all settings and the names of the given ones. `--help` lists them.
"""
import ast
import builtins
import difflib
import os
import pathlib
import shlex
import symtable
import sys
import time
import traceback
import types

LARGEST = 10**11   # of a number that makes sense as a setting


def configure(namespace, at_least={}, one_of={}, argv=None):
    """at_least {number: 'names'} and one_of {name: 'values'} are checked. A setting called idea brings more: the fields
    of the class Config in ideas/<idea>.py, if it has one."""
    sys.excepthook = one_line
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, 'reconfigure'):   # a terminal keeps its encoding; a letter that it lacks is no error
            stream.reconfigure(encoding=None if stream.isatty() else 'utf-8', errors='backslashreplace')
    script = pathlib.Path(namespace['__file__'])
    argv = sys.argv[1:] if argv is None else argv
    known, given = {}, []             # {name: (default, comment, types)}
    for name, (_, *about) in read_settings(script).items():
        known[name] = namespace[name], *about
    settings = {name: namespace[name] for name in known}

    def put(name, value, where):
        name += '_' * (f'{name}_' in settings)   # from_ is the flag --from, which Python keeps for itself
        if name not in settings:
            near = difflib.get_close_matches(name, settings, 1, cutoff=0)[0]
            fail(f'{where}: no setting is called {name}; did you mean {near}? All: {script.name} --help')
        settings[name] = convert(value, known[name][2] or [type(known[name][0])], f'{where}: {name}')
        given.append(name)
        if name == 'idea' and value:
            if not (path := script.parent / f'ideas/{value}.py').is_file() or not value.isidentifier():
                there = sorted(file.stem for file in path.parent.glob('[!_]*.py'))
                fail(f'idea={value}: there is no ideas/{value}.py, but there are: {", ".join(there) or "none"}')
            known.update(read_settings(path, 'Config'))
            settings.update({name: known[name][0] for name in known if name not in settings})

    for arg in sorted(argv, key=lambda arg: not arg.startswith('--idea=')):   # first, for it brings settings
        name, equals, text = arg.removeprefix('--').partition('=')
        if arg in ('-h', '--help'):
            continue
        if not arg.startswith('--'):
            for name, value in run_file(arg, settings, script.parent).items():
                put(name, value, arg)
        elif not equals:
            fail(f'{arg}: a flag needs a value: {arg}=VALUE (all flags: {script.name} --help)')
        else:
            put(name.replace('-', '_'), text, arg)
    if {'-h', '--help'} & {*argv}:
        print(namespace['__doc__'].strip() + '\n\nsettings, with their defaults:')
        for name, (default, comment, _) in known.items():
            print(f'  --{name.rstrip("_")}={default!r}'.ljust(36) + f'  {comment}')
        sys.exit()
    least = {name: number for number, names in at_least.items() for name in names.split()}
    for name, value in settings.items():
        if type(value) in (int, float) and not least.get(name, -LARGEST) <= value <= LARGEST:
            fail(f'{name}={value} must be at ' + (f'most {LARGEST:,}' if value > 0 else f'least {least.get(name, 0)}'))
        if name in one_of and value not in one_of[name].split():
            fail(f"{name}={value} must be one of: {', '.join(one_of[name].split())}")
    namespace.update(settings)
    return settings, given


def fail(message):
    """End with one line; of the processes that torchrun starts, the first one says it for all."""
    sys.exit(1 if int(os.environ.get('RANK', 0)) else ' '.join(str(message).split()))


def one_line(kind, error, trace):
    """What a user can cause ends in one line; anything else is our mistake and keeps its traceback."""
    where = getattr(error, 'filename', None)
    if isinstance(error, MemoryError) or kind.__name__ == 'OutOfMemoryError' or "can't allocate memory" in str(error):
        line = 'out of memory: give a smaller --batch_size (with train.py a larger --grad_accum) or --num_samples'
    elif isinstance(error, (KeyboardInterrupt, BrokenPipeError)):
        line = 'interrupted' if kind is KeyboardInterrupt else ''
    elif isinstance(error, OSError):
        line = f'{where}: {error.strerror}' if where else str(error)
    else:
        return sys.__excepthook__(kind, error, trace)
    print(line, file=sys.stderr, flush=True)
    os._exit(130 if kind is KeyboardInterrupt else 1)   # at once: a closed pipe can't be flushed


def command(script, **flags):
    """A command to paste, as in: python train.py '--out_dir=out/my run'."""
    return shlex.join(['python', script, *(f'--{name}={value}' for name, value in flags.items())])


def read_settings(path, inside=''):
    """{name: (default, comment, types)} of the assignments above a script's call of configure(), or inside of a class.
    The types are those of an annotation, as float | list, and none without one."""
    source, found = path.read_text(encoding='utf-8'), {}
    nodes = ast.parse(source).body
    if inside:
        nodes = [line for node in nodes if getattr(node, 'name', '') == inside for line in node.body]
    for node in nodes:
        if 'configure' in (getattr(child, 'id', '') for child in ast.walk(node)):
            break
        if isinstance(node, (ast.Assign, ast.AnnAssign)):
            name = (node.targets[0] if isinstance(node, ast.Assign) else node.target).id
            comment = source.splitlines()[node.end_lineno - 1].encode()[node.end_col_offset:].decode().strip(' #')
            parts = ast.walk(node.annotation) if isinstance(node, ast.AnnAssign) else ()
            kinds = [getattr(builtins, part.id) for part in parts if isinstance(part, ast.Name)]
            found[name] = literal(ast.unparse(node.value)), comment, kinds
    return found


def run_file(path, settings, script_folder):
    """{name: value} of what a config file sets, in whatever way: what differs afterwards, and what it assigns itself.
    It sees the settings; _underscored names are its own."""
    file = next((f for f in (pathlib.Path(path), script_folder / path) if f.is_file()), None)
    if not file:
        fail(f'{path}: no such config file (a setting is --name=value)')
    names = dict(settings)
    try:
        source = file.read_text(encoding='utf-8-sig')   # a BOM is no error
        exec(compile(source, path, 'exec'), names)
    except Exception as error:
        lines = [f', line {at.lineno}' for at in traceback.extract_tb(error.__traceback__) if at.filename == path]
        fail(f'{path}{"".join(lines[-1:])}: {type(error).__name__}: {error}')
    assigned = {name.get_name() for name in symtable.symtable(source, path, 'exec').get_symbols() if name.is_assigned()}
    changed = {name for name in names if name not in settings or names[name] is not settings[name]}
    return {name: value for name, value in names.items() if name[0] != '_' and name in assigned | changed and (
        name in settings or not isinstance(value, (types.ModuleType, types.FunctionType, type)))}


def literal(text):
    """The number, list or other plain value that the text is in Python; the text itself if it is none."""
    try:
        return ast.literal_eval({'true': 'True', 'false': 'False'}.get(text.lower(), text))
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return text


def convert(value, kinds, where):
    """A flag's text, or a config file's value, as one of kinds; 1 is also a float, and 1e4 an int."""
    text = value
    if isinstance(value, str) and str not in kinds:
        value = literal(text)
    if type(value) in (int, float) and type(value) not in kinds:
        value = next((kind(value) for kind in kinds if kind in (int, float) and value % 1 == 0), value)
    if type(value) not in kinds:
        fail(f'{where}={text!r:.80} is not of type {" or ".join(kind.__name__ for kind in kinds)}')
    return value


def duration(seconds):
    """How long it takes: 0:42, 2:05:30, or 3.4 days."""
    if not seconds < 2 * 86400:
        return f'{seconds / 86400:,.1f} days'
    minutes, seconds = divmod(int(seconds), 60)
    return f'{minutes}:{seconds:02}' if minutes < 60 else f'{minutes // 60}:{minutes % 60:02}:{seconds:02}'


class Progress:
    """progress(done), done from `first` to 1, shows one line, each second; what is printed next overwrites it.
    With the size of the whole in bytes it says the rate."""

    def __init__(self, what, first=0.0, size=0):
        self.what, self.start, self.shown, self.first, self.size = what, time.monotonic(), 0.0, first, size

    def __call__(self, done):
        now = time.monotonic()
        if min(now - self.shown, now - self.start) < 1 or done <= self.first:
            return
        self.shown = now
        speed = (done - self.first) / (now - self.start)
        rate = f'{self.size * speed / 1e6:.1f} MB/s, ' if self.size else ''
        line = f'{self.what}: {done:4.0%}, {rate}{duration((1 - done) / speed)} left'
        try:
            print(line.ljust(60), end='\r', file=sys.stderr, flush=True)
        except OSError:
            pass   # a terminal that was closed is no reason to stop

    def end(self, result):
        print(f'{self.what}: {result}, {time.monotonic() - self.start:.1f} s'.ljust(60), flush=True)
