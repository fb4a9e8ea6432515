"""The simulation of Windows' rules (windows.py) plays them, and what writes files gets along with them."""
import importlib
import os
import pathlib
import subprocess
import sys
import threading

import numpy as np
import pytest

import windows
from configurator import Failure
from helpers import run, story
from stlm import files

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
