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
import symtable
import sys
import traceback
import types

LARGEST = 10**11   # of a number that makes sense as a setting
ROOT = pathlib.Path(__file__).resolve().parent


class Failure(Exception):
    """What a user can cause. Its message says in one line what happened, with which value, and what to do; a script
    prints that line and ends, a notebook gets an exception."""

    def __str__(self):
        return ' '.join(super().__str__().split())


def configure(namespace, at_least={}, one_of={}, argv=None):
    """at_least {number: 'names'} and one_of {name: 'values'} are checked. A setting called idea
    brings more: the fields of the class Config in ideas/<idea>.py, if it has one."""
    sys.excepthook = one_line
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, 'reconfigure'):   # a letter that a terminal lacks is no error
            encoding = None if stream.isatty() else 'utf-8'
            stream.reconfigure(encoding=encoding, errors='backslashreplace')
    script = pathlib.Path(namespace['__file__'])
    shown = f'-m tools.{script.stem}' if script.parent.name == 'tools' else script.name
    argv = sys.argv[1:] if argv is None else argv
    about = read_settings(script)   # {name: (default, comment, types)}
    settings = {name: namespace[name] for name in about}
    given = []

    def put(name, value, where):
        if f'{name}_' in settings:   # the setting from_ is the flag --from, which Python keeps for itself
            name += '_'
        if name not in settings:
            near = difflib.get_close_matches(name, settings, 1, cutoff=0)[0]
            raise Failure(f'{where}: no setting is called {name}; did you mean {near}? All: {shown} --help')
        kinds = about[name][2] or [type(settings[name])]
        settings[name] = convert(value, kinds, f'{where}: {name}')
        given.append(name)
        if name == 'idea' and value:
            about.update(settings_of_idea(value))
            for more in about:
                settings.setdefault(more, about[more][0])

    for arg in sorted(argv, key=lambda arg: not arg.startswith('--idea=')):   # it brings settings
        if arg in ('-h', '--help'):
            continue
        if not arg.startswith('--'):
            for name, value in run_file(arg, settings).items():
                put(name, value, arg)
            continue
        name, equals, text = arg.removeprefix('--').partition('=')
        if not equals:
            raise Failure(f'{arg}: a flag needs a value: {arg}=VALUE (all flags: {shown} --help)')
        put(name.replace('-', '_'), text, arg)

    if '-h' in argv or '--help' in argv:
        print(namespace['__doc__'].strip() + '\n\nsettings, with their defaults:')
        for name, (default, comment, _) in about.items():
            flag = f"--{name.rstrip('_')}={namespace.get(name, default)!r}"
            print(f'  {flag:34}  {comment}')
        sys.exit()
    least = {}
    for number, names in at_least.items():
        for name in names.split():
            least[name] = number
    for name, value in settings.items():
        if type(value) in (int, float):
            if value > LARGEST:
                raise Failure(f'{name}={value} must be at most {LARGEST:,}')
            if not value >= least.get(name, -LARGEST):   # nan is neither
                raise Failure(f'{name}={value} must be at least {least.get(name, -LARGEST):,}')
        if name in one_of and value not in one_of[name].split():
            raise Failure(f"{name}={value} must be one of: {', '.join(one_of[name].split())}")
    namespace.update(settings)
    return settings, given


def one_line(kind, error, trace):
    """What a user can cause ends in one line; anything else is our mistake and keeps its traceback."""
    where = getattr(error, 'filename', None)
    if isinstance(error, Failure):
        line = str(error)
    elif isinstance(error, MemoryError) or kind.__name__ == 'OutOfMemoryError' or "can't allocate memory" in str(error):
        line = 'out of memory: give a smaller --batch_size (with train.py a larger --grad_accum) or --num_samples'
    elif isinstance(error, (KeyboardInterrupt, BrokenPipeError)):
        line = 'interrupted' if kind is KeyboardInterrupt else ''
    elif isinstance(error, OSError):
        line = f'{where}: {error.strerror}' if where else str(error)
    else:
        return sys.__excepthook__(kind, error, trace)
    if os.environ.get('RANK', '0') == '0':   # of the processes that torchrun starts, the first speaks for all
        print(line, file=sys.stderr, flush=True)
    if kind in (KeyboardInterrupt, BrokenPipeError):
        os._exit(130 if kind is KeyboardInterrupt else 1)   # at once: a closed pipe can't be flushed


def read_settings(path, inside=''):
    """{name: (default, comment, types)} of the assignments above a script's call of configure(),
    or in a class. The types are those of an annotation, as float | list, and none without one."""
    source = path.read_text(encoding='utf-8')
    lines, nodes = source.splitlines(), ast.parse(source).body
    if inside:
        nodes = [line for node in nodes if getattr(node, 'name', '') == inside for line in node.body]
    found = {}
    for node in nodes:
        if 'configure(' in ast.unparse(node):
            break
        if isinstance(node, ast.Assign) and not node.targets[0].id.isupper():   # a CONSTANT is no setting
            name, kinds = node.targets[0].id, []
        elif isinstance(node, ast.AnnAssign):
            name, kinds = node.target.id, ast.unparse(node.annotation).split(' | ')
        else:
            continue
        comment = lines[node.end_lineno - 1].encode()[node.end_col_offset:].decode()
        kinds = [getattr(builtins, kind) for kind in kinds]
        found[name] = literal(ast.unparse(node.value)), comment.strip(' #'), kinds
    return found


def settings_of_idea(idea):
    there = sorted(file.stem for file in (ROOT / 'ideas').glob('[!_]*.py'))
    if idea not in there:
        raise Failure(f'idea={idea}: there is no ideas/{idea}.py, but there are: {", ".join(there) or "none"}')
    return read_settings(ROOT / f'ideas/{idea}.py', 'Config')


def run_file(path, settings):
    """{name: value} of what a config file sets, in whatever way: what differs afterwards, and what
    it assigns itself. It sees the settings; _underscored names are its own."""
    file = pathlib.Path(path)
    if not file.is_file():
        file = ROOT / path
    if not file.is_file():
        raise Failure(f'{path}: no such config file (a setting is --name=value)')
    names = dict(settings)
    try:
        source = file.read_text(encoding='utf-8-sig')   # a BOM is no error
        exec(compile(source, path, 'exec'), names)
    except Exception as error:
        trace = traceback.extract_tb(error.__traceback__)
        lines = [f', line {at.lineno}' for at in trace if at.filename == path]
        raise Failure(f'{path}{"".join(lines[-1:])}: {type(error).__name__}: {error}')
    symbols = symtable.symtable(source, path, 'exec').get_symbols()
    assigned = {symbol.get_name() for symbol in symbols if symbol.is_assigned()}
    found = {}
    for name, value in names.items():
        if name in settings and (name in assigned or value is not settings[name]):
            found[name] = value
        elif name not in settings and not name.startswith('_'):
            if not isinstance(value, (types.ModuleType, types.FunctionType, type)):
                found[name] = value   # a typing mistake, most likely
    return found


def literal(text):
    """The number, list or other plain value that the text is in Python; the text if it is none."""
    try:
        return ast.literal_eval({'true': 'True', 'false': 'False'}.get(text.lower(), text))
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return text


def convert(value, kinds, where):
    """A flag's text, or a config file's value, as one of kinds; 1 is also a float, 1e4 an int."""
    text = value
    if isinstance(value, str) and str not in kinds:
        value = literal(text)
    if type(value) is int and int not in kinds and float in kinds and abs(value) <= LARGEST:
        value = float(value)
    elif type(value) is float and float not in kinds and int in kinds and value % 1 == 0:
        value = int(value)
    if type(value) not in kinds:
        names = ' or '.join(kind.__name__ for kind in kinds)
        raise Failure(f'{where}={text!r:.80} is not of type {names}')
    return value
