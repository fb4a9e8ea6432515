"""
Files that are there whole or not at all, and folders that one process has for itself. A link that lies where one of our
files belongs is never followed: who unpacks a stranger's run must not lose a file of his own by it.
"""
import contextlib
import errno
import hashlib
import os
import pathlib
import re
import time

from configurator import Failure

PATIENCE = 5.0   # seconds for which a rename or a deletion is tried


def fingerprint(path):
    """{size, sha256} of a file."""
    digest, size = hashlib.sha256(), 0
    with open(path, 'rb') as file:
        while piece := file.read(2**20):
            digest.update(piece)
            size += len(piece)
    return dict(size=size, sha256=digest.hexdigest())


def insist(change, *paths):
    """os.replace, os.rename or os.unlink of paths, tried again for some seconds: Windows refuses it while anybody has one
    of the files open, a reader or a virus scanner, which is mostly over in a moment."""
    end = time.monotonic() + PATIENCE
    while True:
        try:
            return change(*paths)
        except PermissionError:
            if time.monotonic() > end:
                raise
        time.sleep(0.05)


def write_whole(path, write):
    """Make a file that is there whole or not at all, also after a power cut, in place of any older one. `write` is its
    bytes, or a function that writes them into an open file."""
    path = pathlib.Path(path)
    part = path.with_name(f'{path.name}.{os.getpid()}.part')
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.unlink(missing_ok=True)
        with open(part, 'xb') as file:
            write(file) if callable(write) else file.write(write)
            file.flush()
            os.fsync(file.fileno())   # else the new name may reach the disk before the bytes
        insist(os.replace, part, path)
    except (OSError, RuntimeError) as error:   # torch reports a full disk as a RuntimeError
        raise Failure(f'{path}: not written ({error!s:.200}); any older one is kept')
    finally:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)


def sweep(folder, *names):
    """Delete what write_whole() left of these files when its process was killed. Only who has locked the folder may."""
    for file in pathlib.Path(folder).glob('*.part'):
        ours = re.fullmatch(r'(.+)\.[0-9]+\.part', file.name)
        if ours and ours[1] in names:
            insist(os.unlink, file)


def lock(folder):
    """Take a folder for this process, or fail if another one has it. Returns the open file that holds the lock until it is
    closed, or the process ends, however it ends. Keep it, or say `with lock(folder):`."""
    path = pathlib.Path(folder, '.lock')
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_symlink():
        raise Failure(f'{path}: a link, not a lock file that this code made; delete it')
    file = open(path, 'a')   # nothing is ever written to it
    try:
        try:
            import fcntl
        except ImportError:
            import msvcrt   # Windows
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN, errno.EDEADLK):
            file.close()
            raise Failure(f'{folder}: another run is writing here; wait until it ends, or take another folder')
        # else the file system knows no locks, and there is none
    return file
