"""
Windows' rules for files, as far as Linux can play them; what they can't show, only a real machine can.

    run(folder, 'train.py', *flags, first=windows.simulate)   # in a process of its own
    windows.simulate(monkeypatch)                             # in a test

What any process has open is not renamed, replaced or deleted, nor a folder in which it lies, nor what this process has mapped
into its memory; a rename never replaces. Text is cp1252 with \\r\\n where nothing else is said. Names with <>:"|?* can't be
made. fcntl, resource and some signals aren't there, but msvcrt is. Not played: os.name, separators, names that differ in
capitals only, long paths.
"""
import builtins
import errno
import glob
import io
import os
import shutil
import signal
import sys
import types

import pytest

fcntl = pytest.importorskip('fcntl')   # on Windows its rules needn't be played

LACKING = {os: ['fork', 'getuid', 'geteuid', 'O_NOFOLLOW', 'sched_getaffinity', 'statvfs', 'sysconf', 'uname'],
           signal: ['SIGALRM', 'SIGHUP', 'SIGKILL', 'SIGQUIT', 'SIGUSR1', 'SIGUSR2']}
REAL_OPEN, REAL = open, {name: getattr(os, name) for name in ('mkdir', 'remove', 'rename', 'replace', 'unlink')}


def open_paths():
    """What processes have open, and what this one has mapped."""
    found = set()
    for link in glob.glob('/proc/[0-9]*/fd/*'):
        try:
            found.add(os.readlink(link))
        except OSError:   # closed in the meantime, or of another user
            pass
    with REAL_OPEN('/proc/self/maps', encoding='utf-8') as maps:
        found.update(line.split(maxsplit=5)[-1].rstrip('\n') for line in maps if '/' in line)
    return found


def refuse_open(*paths):
    there = open_paths()
    for path in paths:
        folder, name = os.path.split(os.path.abspath(os.fsdecode(path)))
        whole = os.path.join(os.path.realpath(folder), name)
        if any(found == whole or found.startswith(f'{whole}/') for found in there):
            raise PermissionError(errno.EACCES, 'The process cannot access the file because it is being used by another process', path)


def refuse_name(path):
    if isinstance(path, (str, bytes, os.PathLike)) and {*'<>:"|?*'} & {*os.fsdecode(path)}:
        raise OSError(errno.EINVAL, 'Invalid argument', path)


def unlink(path, *args, **kwargs):
    refuse_open(path)
    REAL['unlink'](path, *args, **kwargs)


def rename(source, target):
    refuse_open(source)
    if os.path.lexists(target):
        raise FileExistsError(errno.EEXIST, 'Cannot create a file when that file already exists', source, None, target)
    REAL['rename'](source, target)


def replace(source, target):
    refuse_open(source, target)
    if os.path.isdir(target):
        raise PermissionError(errno.EACCES, 'Access is denied', source, None, target)
    REAL['replace'](source, target)


def mkdir(path, *args, **kwargs):
    refuse_name(path)
    REAL['mkdir'](path, *args, **kwargs)


def open_file(file, mode='r', buffering=-1, encoding=None, errors=None, newline=None, closefd=True, opener=None):
    if {*mode} & {*'wax'}:
        refuse_name(file)
    if 'b' not in mode and encoding in (None, 'locale'):
        encoding = 'cp1252'
    if 'b' not in mode and 'r' not in mode and newline is None:
        newline = '\r\n'
    return REAL_OPEN(file, mode, buffering, encoding, errors, newline, closefd, opener)


def locking(fd, mode, size):
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise PermissionError(errno.EACCES, 'Permission denied')


def simulate(monkeypatch=None):
    """From now on, until the test or the process ends."""
    patch = monkeypatch or pytest.MonkeyPatch()
    for call in unlink, rename, replace, mkdir:
        patch.setattr(os, call.__name__, call)
    patch.setattr(os, 'remove', unlink)
    patch.setattr(shutil, '_use_fd_functions', False)   # by which rmtree() would get around unlink()
    patch.setattr(builtins, 'open', open_file)
    patch.setattr(io, 'open', open_file)   # pathlib's
    for module, names in LACKING.items():
        for name in names:
            patch.delattr(module, name, raising=False)
    for name in 'fcntl', 'grp', 'pwd', 'resource', 'termios':
        patch.setitem(sys.modules, name, None)
    msvcrt = types.ModuleType('msvcrt')
    msvcrt.LK_NBLCK, msvcrt.locking = 2, locking
    patch.setitem(sys.modules, 'msvcrt', msvcrt)
