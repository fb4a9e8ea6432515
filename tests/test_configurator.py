"""Each of the ways in which nanoGPT's configurator fails works here, or ends in one clear line."""
import os
import re
import shlex
import subprocess
import sys
import time

import pytest

import configurator
from stlm import console
from configurator import Failure
from helpers import ROOT

SCRIPT = '''
"""A script."""
max_iters = 600      # how many steps
learning_rate = 6e-3 # the peak
compile = False      # yes or no
name = 'x'           # any text
dropout: float | list = 0.0  # p or points
unused = 2 * 300  # computed
from configurator import configure
settings = configure(globals())
later = 1            # not a setting
'''


@pytest.fixture
def configure(tmp_path, monkeypatch):
    monkeypatch.setattr(configurator, 'ROOT', tmp_path)
    script = tmp_path / 'script.py'
    script.write_text(SCRIPT)

    def run(*argv, config=None):
        if config is not None:
            (tmp_path / 'my.py').write_text(config)
            argv = ('my.py', *argv)   # relative to the repository
        namespace = {'__file__': str(script), '__doc__': 'A script.'}
        exec(SCRIPT.split('from configurator')[0], namespace)
        return configurator.configure(namespace, argv=argv, may_be_0="start", one_of={"name": "x a=b 1"})
    return run


@pytest.mark.parametrize('flag, name, value', [
    ('--max_iters=5', 'max_iters', 5), ('--max-iters=5', 'max_iters', 5), ('--max_iters=1e4', 'max_iters', 10000),
    ('--learning_rate=1', 'learning_rate', 1.0), ('--learning_rate=3e-4', 'learning_rate', 3e-4),
    ('--compile=true', 'compile', True), ('--compile=False', 'compile', False), ('--name=a=b', 'name', 'a=b'),
    ('--name=1', 'name', '1'), ('--dropout=0', 'dropout', 0.0),
    ('--dropout=[(0, 0.1), (10, 0)]', 'dropout', [(0, 0.1), (10, 0)])])
def test_flags_get_the_type_of_their_default(configure, flag, name, value):
    settings = configure(flag)
    assert settings[name] == value and type(settings[name]) is type(value)
    assert all(settings[other] == default for other, default in configure().items() if other != name)


@pytest.mark.parametrize('argv, words', [
    (['--max_itres=3'], ['max_itres', 'max_iters']), (['--max_iters=1.5'], ['max_iters', '1.5', 'int']),
    (['--max_iters=many'], ['many', 'int']), (['--learning_rate=fast'], ['fast', 'float']),
    (['--compile=maybe'], ['maybe', 'bool']), (['--max_iters'], ['--max_iters', 'VALUE']),
    (['--later=2'], ['later']), (['--max_iters=0'], ['max_iters=0', '1']), (['--name=y'], ['name=y', 'x, a=b']), (['nowhere.py'], ['nowhere.py']), (['-x'], ['-x']),
    (['--name=a\udce9'], ['name', 'udce9', 'UTF-8'])])
def test_a_wrong_flag_ends_in_one_line_that_names_it(configure, argv, words):
    with pytest.raises(Failure) as error:
        configure(*argv)
    assert '\n' not in str(error.value) and all(word in str(error.value) for word in words)


@pytest.mark.parametrize('config, words', [
    ('max_itres = 3', ['my.py', 'max_itres', 'max_iters']), ("max_iters = 'three'", ['my.py', 'three', 'int']),
    ('max_iters = ', ['my.py', 'SyntaxError', 'line 1']), ('max_iters = nmae', ['my.py', 'nmae']),
    ("name = 'a\\0'", ['my.py', 'name', 'UTF-8'])])
def test_so_does_a_wrong_config_file(configure, config, words):
    with pytest.raises(Failure) as error:
        configure(config=config)
    assert '\n' not in str(error.value) and all(word in str(error.value) for word in words)


def test_a_config_file_is_python_and_later_flags_win(configure):
    config = 'import math\n_half = 300\nmax_iters = sum(_half for i in range(2))\nlearning_rate = 1\ndropout = 0'
    settings = configure('--learning_rate=2', config=config)
    assert settings['max_iters'] == 600
    assert settings['learning_rate'] == 2.0 and settings['dropout'] == 0.0


@pytest.mark.parametrize('path', sorted({*ROOT.glob('*.py'), *ROOT.glob('ideas/*.py'), *ROOT.glob('tools/*.py')}), ids=lambda path: path.name)
def test_a_settings_comment_is_in_one_line_which_is_all_that_help_shows(path):
    lines = path.read_text(encoding='utf-8').splitlines()
    for line, after in zip(lines, lines[1:]):
        if re.match(r'( {4})?\w+(: [\w |]+)? = .*  # ', line):
            assert not re.match(' {20,}#', after), (path.name, line, after)


@pytest.mark.parametrize('flag', ['--help', '-h'])
def test_help_lists_each_setting_with_default_and_comment(configure, capsys, flag):
    with pytest.raises(SystemExit) as done:
        configure(flag)
    out = capsys.readouterr().out
    assert not done.value.code and '--max_iters=600' in out and 'how many steps' in out and 'later' not in out


@pytest.mark.parametrize('config', [
    'from other import *\nname = "1"', 'exec(open("other.py").read())', 'globals().update(max_iters=7, learning_rate=6e-3)',
    '\ufeffmax_iters = 7', 'def steps():\n    learning_rate = 5\n    return 7\nmax_iters = steps()'])
def test_a_config_sets_what_it_inherits_and_nothing_else(configure, config, tmp_path, monkeypatch):
    (tmp_path / 'other.py').write_text('max_iters = 7')
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    settings = configure(config=config)
    assert settings['max_iters'] == 7 and settings['learning_rate'] == 6e-3


@pytest.mark.parametrize('seconds, said', [
    (0.4, '0:00'), (59, '0:59'), (3599, '59:59'), (7530, '2:05:30'), (47.9 * 3600, '47:54:00'), (48 * 3600, '2.0 days'),
    (3.44 * 86400, '3.4 days'), (1e8, '1,157.4 days'), (float('inf'), 'inf days')])
def test_a_duration_is_said_in_the_unit_that_it_needs(seconds, said):
    assert console.duration(seconds) == said


def test_the_time_that_is_left_may_be_days(monkeypatch, capsys):
    now = [0.0]
    monkeypatch.setattr(time, 'monotonic', lambda: now[0])
    progress = console.Progress('step 1')
    now[0] = 3600.0
    progress(0.01)   # 99 hours are left
    assert capsys.readouterr().err.startswith('step 1:   1%, 4.1 days left')


@pytest.mark.parametrize('value', ['out/my', 'out/my run', r'C:\my run', r'out\my', r'\\server\run', 'a\\', "it's", 'a "b"', '$HOME', '50%', '[(0, 1)]', 'é', ''])
def test_a_command_to_paste_is_read_by_a_shell_as_it_was_meant(value):
    line = console.command('train.py', out_dir=value)
    assert shlex.split(line) == ['python', 'train.py', f'--out_dir={value}']
    said = subprocess.run(['sh', '-c', line.replace('python train.py', "printf '%s'")], capture_output=True, text=True)
    assert said.stdout == f'--out_dir={value}'
    if value in ('out/my run', r'C:\my run', r'out\my'):   # Windows' cmd knows double quotes alone
        assert line == f'python train.py --out_dir="{value}"'


@pytest.mark.parametrize('version, words', [
    ('', ['not installed', 'activate']), ('2.8.0+cpu', ['torch 2.8.0+cpu is too old', '2.9']), ('1.13', ['too old']), ('2.10.0', ['No module'])])
def test_without_torch_or_with_an_older_one_a_script_says_so_and_its_help_works(tmp_path, version, words):
    if version:   # as pip notes what it has installed
        (tmp_path / f'torch-{version}.dist-info').mkdir()
        (tmp_path / f'torch-{version}.dist-info/METADATA').write_text(f'Name: torch\nVersion: {version}\n')
    def script(*flags):   # by a Python that finds no other packages
        return subprocess.run([sys.executable, '-S', configurator.ROOT / 'train.py', *flags], capture_output=True, encoding='utf-8',
                              env=os.environ | dict(PYTHONPATH=str(tmp_path)))
    assert '--max_iters=600' in script('--help').stdout
    done = script('--max_iters=1')
    assert done.returncode == 1 and all(word in done.stderr for word in words)
    assert (len(done.stderr.splitlines()) == 1) == (version != '2.10.0')   # it goes on to import, where nothing is
