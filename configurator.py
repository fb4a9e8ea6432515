"""
Settings. A script keeps them as plain `name = value  # comment` lines at its top, and below them calls
    settings = configure(globals())
Then `python train.py config/tiny_10m.py --max_iters=100` runs the config file (it is Python), applies the flags,
left to right, and returns all settings. `--help` lists them. To use the scripts, or to read them, nobody needs the rest of this file.
"""
import ast
import builtins
import difflib
import itertools
import os
import pathlib
import re
import sys
import traceback
import types
from collections import namedtuple

from stlm.console import Failure, check_torch, speak_plainly

LARGEST = 10**11   # number that makes sense as a setting
ROOT = pathlib.Path(__file__).resolve().parent
FROM_TOKENIZER = {'vocab_size', 'max_bytes'}   # fields of a model's Config that are no settings

Setting = namedtuple('Setting', 'default comment types')
Earlier = namedtuple('Earlier', 'path checkpoint settings fixed')   # a run to go on from; `fixed` names what it keeps


def configure(namespace, one_of={}, may_be_0='', argv=None, earlier=None):
    """All settings, {name: value}, which also become the script's globals. An earlier run is a config file that comes
    first. A script with a setting called idea has the fields of model.py's class Config as settings too, and those of
    the Config in ideas/<idea>.py. `one_of` {name: 'values'} says what a text may be; for numbers see check_number()."""
    speak_plainly()
    script = pathlib.Path(namespace['__file__'])
    usage = f'-m tools.{script.stem} --help' if script.parent.name == 'tools' else f'{script.name} --help'
    argv = sys.argv[1:] if argv is None else argv
    known = read_settings(script)   # {name: Setting}
    if 'idea' in known:
        known |= settings_of_model()
    settings = {name: each.default for name, each in known.items()}
    before = earlier.settings.items() if earlier else ()
    held = {}   # what the earlier run has
    # an idea first, since it brings more settings
    given = [(earlier.path, name, value) for name, value in sorted(before, key=lambda item: item[0] != 'idea')]
    for where, name, value in itertools.chain(given, read_argv(argv, settings, usage)):
        if name not in known:
            if earlier and where == earlier.path:   # a setting of another version
                continue
            near = difflib.get_close_matches(name, known, 1, cutoff=0)[0]
            raise Failure(f'{where}: no setting is called {name}; did you mean {near}? All: {usage}')
        default, _, kinds = known[name]
        value = convert(value, kinds, f'{where}: {name}')
        if name in one_of and str(value) not in one_of[name].split():
            raise Failure(f"{name}={value} must be one of: {', '.join(one_of[name].split())}")
        if type(value) in (int, float):
            check_number(name, value, 0 if name in may_be_0.split() else default)
        settings[name] = value
        if earlier and where == earlier.path:
            held[name] = value
        if name == 'idea' and value:
            known |= settings_of_model(value)
            settings |= {name: each.default for name, each in known.items() if name not in settings}
    for name, value in held.items():
        if name in earlier.fixed and settings[name] != value:
            raise Failure(f'--{name}={settings[name]}: the run in {earlier.path.parent} has {value} and has to keep it')
    if '-h' in argv or '--help' in argv:
        print(namespace['__doc__'].strip() + '\n\nsettings, with their defaults:')
        for name, each in known.items():
            print(f'  {f"--{name}={each.default!r}":34}  {each.comment}')
        sys.exit()
    # on Linux threads that wait spin for milliseconds; beside other work that made training 3 to 5 times slower
    os.environ.setdefault('GOMP_SPINCOUNT', '1000')
    check_torch()
    namespace.update(settings)
    return settings


def read_argv(argv, settings, usage):
    """(where, name, value) of each setting that config files and flags give, an idea first, since it brings more."""
    for arg in sorted(argv, key=lambda arg: not arg.startswith('--idea=')):
        name, equals, text = arg.removeprefix('--').partition('=')
        if not arg.startswith('-'):
            for name, value in run_file(arg, settings).items():
                yield arg, name, value
        elif equals:
            yield arg, name.replace('-', '_'), text
        elif arg not in ('-h', '--help'):
            raise Failure(f'{arg}: a flag needs a value: {arg}=VALUE (all flags: {usage})')


def check_number(name, value, default):
    """No number is negative, and a whole one is at least 1 unless its default is 0."""
    least = 1 if type(default) is int and default > 0 else 0
    if not least <= value <= LARGEST:   # false for nan, too
        raise Failure(f'{name}={value} must be at least {least} and at most {LARGEST:,}')


def read_settings(path, inside=''):
    """{name: Setting} of the assignments above a script's call of configure(), or in a class. The types are those of
    an annotation, as float | list, else the default's own."""
    source = path.read_text(encoding='utf-8')
    lines, nodes = source.splitlines(), ast.parse(source).body
    if inside:
        nodes = [line for node in nodes if getattr(node, 'name', '') == inside for line in node.body]
    found = {}
    for node in nodes:
        if isinstance(node, (ast.ImportFrom, ast.If)) and not inside:   # the settings stand above these
            break
        if isinstance(node, ast.Assign) and not node.targets[0].id.isupper():   # a CONSTANT is no setting
            name, kinds = node.targets[0].id, ''
        elif isinstance(node, ast.AnnAssign) and node.value:
            name, kinds = node.target.id, ast.unparse(node.annotation)
        else:
            continue
        default = eval(ast.unparse(node.value), {})   # as 2**20
        comment = lines[node.end_lineno - 1].encode()[node.end_col_offset:].decode()
        kinds = [getattr(builtins, kind) for kind in kinds.split(' | ') if kind]
        found[name] = Setting(default, comment.strip(' #'), kinds or [type(default)])
    return found


def settings_of_model(idea=''):
    """{name: Setting} of the fields of Config in model.py, or of those that an idea adds."""
    there = sorted(file.stem for file in (ROOT / 'ideas').glob('[!_]*.py'))
    if idea and idea not in there:
        raise Failure(f'idea={idea}: there is no ideas/{idea}.py, but there are: {", ".join(there) or "none"}')
    fields = read_settings(ROOT / (f'ideas/{idea}.py' if idea else 'model.py'), 'Config')
    return {name: each for name, each in fields.items() if name not in FROM_TOKENIZER}


def run_file(path, settings):
    """{name: value} of what a config file changes or adds. It sees the settings; _underscored names are its own."""
    file = pathlib.Path(path) if pathlib.Path(path).is_file() else ROOT / path
    if not file.is_file():
        raise Failure(f'{path}: no such config file (a setting is --name=value)')
    names = dict(settings)
    try:
        exec(compile(file.read_text(encoding='utf-8-sig'), path, 'exec'), names)   # -sig: a BOM is no error
    except Exception as error:
        trace = traceback.extract_tb(error.__traceback__)
        lines = [f', line {at.lineno}' for at in trace if at.filename == path]
        raise Failure(f'{path}{"".join(lines[-1:])}: {type(error).__name__}: {error}')
    found = {name: value for name, value in names.items() if name not in settings or value is not settings[name]}
    not_settings = (types.ModuleType, types.FunctionType, type)   # what it imports and defines
    return {name: value for name, value in found.items() if not name.startswith('_') and not isinstance(value, not_settings)}


def literal(text):
    """The number, list or other plain value that the text is in Python; the text if it is none."""
    try:
        return ast.literal_eval({'true': 'True', 'false': 'False'}.get(text.lower(), text))
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return text


def convert(value, kinds, where):
    """A flag's text, or a config file's value, as one of kinds; 1 is also a float, 1e4 an int."""
    text = value
    if re.search('[\0\ud800-\udfff]', str(text)):   # no text of ours, and no path, has these
        raise Failure(f'{where}={text!a:.80}: not UTF-8 (a terminal in another encoding?)')
    if isinstance(value, str) and str not in kinds:
        value = literal(text)
    if type(value) is int and int not in kinds and float in kinds and abs(value) <= LARGEST:
        value = float(value)
    elif type(value) is float and float not in kinds and int in kinds and value % 1 == 0:
        value = int(value)
    if type(value) not in kinds:
        raise Failure(f'{where}={text!r:.80} is not of type {" or ".join(kind.__name__ for kind in kinds)}')
    return value
