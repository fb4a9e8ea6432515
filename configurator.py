"""
Settings for a script that keeps them as plain `name = value  # comment` lines at its top, before it calls
    settings, given = configure(globals())
Then `python train.py config/tiny.py --max_iters=100` runs the config file (it is Python), applies the
flags, left to right, and returns all settings and the names of the given ones. `--help` lists every setting.
"""
import ast
import difflib
import pathlib
import sys
import typing


def configure(namespace, argv=None):
    script = pathlib.Path(namespace['__file__'])
    comments = read_comments(script)
    settings, given = {name: namespace[name] for name in comments}, []

    def put(name, value, where):
        if name not in settings:
            near = difflib.get_close_matches(name, settings, 1, cutoff=0)
            sys.exit(f'{where}: no setting is called {name}; did you mean {near[0]}? '
                     f'All of them: python {script.name} --help')
        settings[name] = convert(value, allowed(namespace, name), f'{where}: {name}')
        given.append(name)

    for arg in sys.argv[1:] if argv is None else argv:
        if arg in ('-h', '--help'):
            print((namespace['__doc__'] or '').strip() + '\n\nsettings, with their defaults:')
            for name, comment in comments.items():
                print(f'  --{name}={namespace[name]!r}'.ljust(36) + f'  {comment}')
            sys.exit()
        if not arg.startswith('--'):
            for name, value in run_file(arg, settings, script.parent).items():
                put(name, value, arg)
            continue
        name, equals, text = arg[2:].partition('=')
        if not equals:
            sys.exit(f'{arg}: a flag needs a value: --{name}=VALUE (see python {script.name} --help)')
        put(name.replace('-', '_'), text, arg)
    namespace.update(settings)
    return settings, given


def read_comments(script):
    """{name: comment} of the assignments above the script's call of configure()."""
    source = script.read_text(encoding='utf-8')
    lines, comments = source.splitlines(), {}
    for node in ast.parse(source).body:
        if 'configure' in (getattr(name, 'id', '') for name in ast.walk(node)):
            break
        if isinstance(node, (ast.Assign, ast.AnnAssign)):
            name = (node.targets[0] if isinstance(node, ast.Assign) else node.target).id
            comments[name] = lines[node.end_lineno - 1][node.end_col_offset:].strip(' #')
    return comments


def run_file(path, settings, script_folder):
    """What a config file sets. Its names start out as the settings; _underscored ones are its own."""
    file = next((f for f in (pathlib.Path(path), script_folder / path) if f.is_file()), None)
    if file is None:
        sys.exit(f'{path}: no such config file (a setting is --name=value)')
    names = dict(settings)
    try:
        code = ast.parse(file.read_text(encoding='utf-8'), str(path))
        exec(compile(code, str(path), 'exec'), names)
    except Exception as error:
        sys.exit(f'{path}: {type(error).__name__}: {error}')
    stored = (node.id for node in ast.walk(code) if isinstance(getattr(node, 'ctx', None), ast.Store)
              and isinstance(node, ast.Name))
    return {name: names[name] for name in stored if name in names and name[0] != '_'}


def allowed(namespace, name):
    """The types that a setting may have: its annotation's, else its default's."""
    hint = namespace.get('__annotations__', {}).get(name, type(namespace[name]))
    return typing.get_args(hint) or (hint,)


def convert(value, kinds, where):
    """A flag's text, or a config file's value, as one of kinds."""
    text = value
    if isinstance(value, str) and str not in kinds:
        try:
            value = ast.literal_eval({'true': 'True', 'false': 'False'}.get(text.lower(), text))
        except (ValueError, SyntaxError):
            pass
    if type(value) is int and float in kinds and int not in kinds:
        value = float(value)
    if type(value) is float and int in kinds and float not in kinds and value == int(value):
        value = int(value)   # 1e4
    if type(value) not in kinds:
        sys.exit(f'{where}={text!r} is not {" or ".join(kind.__name__ for kind in kinds)}')
    return value
