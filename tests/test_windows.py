"""The simulation of Windows' rules (windows.py) plays them, and what writes files gets along with them."""
import importlib
import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys
import threading
import types

import numpy as np
import pytest

import windows
from configurator import Failure
from helpers import ROOT, SMALL, run, story
from stlm import documents, files

PAGES = {name: (ROOT / name).read_text(encoding='utf-8') for name in ('README.md', 'docs/lesson.md')}
PREPARE = 'prepare_wiki.py', '--input=story.txt', '--dataset=mine', '--tokenizer=bpe300'


def test_the_rules(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    windows.simulate(monkeypatch)
    for folder in 'a', 'b':
        os.mkdir(folder)
        pathlib.Path(folder, 'file').write_text('naïve\n', newline='')
    pathlib.Path('text').write_text('é\n')
    assert pathlib.Path('text').read_bytes() == b'\xe9\r\n' and open('text').read() == 'é\n'
    held = open('a/file')
    for call in (lambda: os.unlink('a/file'), lambda: os.rename('a', 'c'), lambda: os.replace('b/file', 'a/file'),
                 lambda: pathlib.Path('a/file').unlink(), lambda: os.replace('a/file', 'c'), lambda: os.replace('b', 'a')):
        with pytest.raises(PermissionError):
            call()
    held.close()
    with pytest.raises(FileExistsError):
        os.rename('a/file', 'b/file')
    os.replace('a/file', 'b/file')
    mapped = np.memmap('b/file', 'u1', 'r')
    with pytest.raises(PermissionError):
        os.unlink('b/file')
    del mapped
    os.unlink('b/file')
    for call in lambda: open('a:b', 'w'), lambda: os.mkdir('a?'):
        with pytest.raises(OSError, match='Invalid argument'):
            call()
    with pytest.raises(ImportError):
        importlib.import_module('fcntl')


def test_what_another_process_has_open_stays_where_it_is(tmp_path, monkeypatch):
    (tmp_path / 'a').write_text('old')
    other = subprocess.Popen([sys.executable, '-c', "file = open('a'); print(flush=True); input()"], cwd=tmp_path, text=True,
                             stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    other.stdout.readline()
    windows.simulate(monkeypatch)
    monkeypatch.setattr(files, 'PATIENCE', 0.2)
    with pytest.raises(Failure, match='a: not written .*used by another process.*; any older one is kept'):
        files.write_whole(tmp_path / 'a', b'new')
    assert (tmp_path / 'a').read_text() == 'old' and os.listdir(tmp_path) == ['a']
    monkeypatch.setattr(files, 'PATIENCE', 60)
    threading.Timer(0.2, other.communicate, ['\n']).start()   # it ends, and what was refused is done
    files.write_whole(tmp_path / 'a', b'new')
    assert (tmp_path / 'a').read_bytes() == b'new'
    other.wait()


def test_a_lock_keeps_others_away(tmp_path, monkeypatch):
    windows.simulate(monkeypatch)
    held = files.lock(tmp_path)
    with pytest.raises(Failure, match='another run'):
        files.lock(tmp_path)
    held.close()
    files.lock(tmp_path).close()


def test_the_same_text_gives_the_same_files_and_a_failure_leaves_none(tmp_path):
    found = []
    for first in list, windows.simulate:
        folder = tmp_path / first.__name__
        folder.mkdir()
        (folder / 'story.txt').write_text(story(), encoding='utf-8')
        status, _, err = run(folder, *PREPARE, first=first)
        assert status == 0, err
        found.append({file.name: file.read_bytes() for file in (folder / 'data/mine-bpe300').iterdir()})
    assert found[0] == found[1]
    (folder / 'story.txt').write_bytes(b'a' * 5000 + b'\xff')
    assert run(folder, *PREPARE, '--tokenizer=byte', first=windows.simulate)[0] == 1
    assert sorted(os.listdir(folder / 'data')) == ['.lock', 'mine-bpe300']


def test_files_come_in_one_order_whether_or_not_a_system_tells_capitals_apart(tmp_path, monkeypatch):
    names = ['B', 'a-b/c', 'a/B', 'a/b/c', 'a/b-c', 'é', 'z', 'Z']
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).write_text('')
    here = documents.files_below(tmp_path)
    assert [*here] == sorted(tmp_path / name for name in names)
    monkeypatch.setattr(documents, 'pathlib', types.SimpleNamespace(Path=pathlib.PureWindowsPath))
    assert [file.as_posix() for file in documents.files_below(tmp_path)] == [file.as_posix() for file in here]


def test_a_python_without_xz_imports_everything():
    code = "import sys; sys.modules['_lzma'] = None\nimport train, sample, prepare_wiki, eval_mc, tools.page\n"
    code += "print(train.report.compressors(b'a' * 999, b'b' * 999)[1])"
    done = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, encoding='utf-8')
    assert done.returncode == 0 and done.stdout == 'None\n', done.stderr


def test_pytest_collects_there_what_needs_no_fork():
    code = 'import sys, torch; sys.path.insert(0, "tests")\nimport windows, pytest\nwindows.simulate()\n'
    code += 'sys.exit(pytest.main(["--collect-only", "-q", "-p", "no:cacheprovider"]))'
    done = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, encoding='utf-8')
    assert done.returncode == 0 and int(re.search(r'(\d+) tests collected', done.stdout)[1]) > 100, done.stdout[-2000:]


# ---- the commands that a class copies

def commands(page):
    lines = ''.join(re.findall('^```sh\n(.*?)^```$', PAGES[page], re.M | re.S)).splitlines()
    return [line for line in lines if not line.startswith('pip ') and line != 'python -m pytest']


@pytest.mark.parametrize('page', PAGES)
def test_sh_cmd_and_powershell_read_each_command_alike(page):
    """Outside of double quotes stands nothing that one of them takes for something else: cmd knows no comments and no other
    quotes, PowerShell splits at commas. Inside them stands nothing that one replaces."""
    for command in commands(page):
        assert re.fullmatch(r'python( ([\w=./:-]|"[^"$`%!\\]*")+)+', command), command


def few_documents(data_dir, edition):
    import pydoc_data.topics
    return [dict(file='topics')], lambda progress: iter([*pydoc_data.topics.topics.values()][:40])


def on_a_laptop():
    """For run(): Windows' rules, a Python without xz, a torch of before 2.11; each known text is short, and here."""
    import torch
    documents.SOURCES.update(dict.fromkeys(documents.SOURCES, few_documents))
    sys.modules['lzma'] = None
    del torch.cpu.get_capabilities
    windows.simulate()


@pytest.mark.parametrize('page', PAGES)
def test_the_pages_commands_pass_under_the_rules(page, tmp_path):
    for name in 'README.md', 'pretrained':
        (shutil.copytree if name == 'pretrained' else shutil.copy)(ROOT / name, tmp_path / name)
    (tmp_path / 'FILE').mkdir()
    (tmp_path / 'FILE/story.txt').write_text(story(), encoding='utf-8')
    for questions in re.findall('^```\n({.*?)^```$', PAGES[page], re.M | re.S):
        (tmp_path / 'out').mkdir(exist_ok=True)
        (tmp_path / 'out/my.jsonl').write_text(questions, encoding='utf-8')
    for command in commands(page):
        _, script, *args = shlex.split(command)
        if script == '-m':
            script = f'{args.pop(0).replace(".", "/")}.py'
        elif script == '-c':
            script = tmp_path / 'lines.py'
            script.write_text(args.pop(), encoding='utf-8')
        elif script == 'train.py':   # a model as small as it gets with four layers, which the pages' pictures show
            configs = [arg for arg in args if not arg.startswith('-')]
            args = [*configs, *SMALL, '--n_layer=4', '--n_head=4', '--block_size=64', *args[len(configs):]]
        status, out, err = run(tmp_path, script, *args, first=on_a_laptop)
        assert status == 0 and 'xz' not in out and ('gzip' in out) == (script == 'train.py'), (command, out, err)
        for file in re.findall(r'--(?:file|html)=(\S+)', command):
            assert (tmp_path / file).exists(), command
