"""
Files that are there whole or not at all, and folders that one process has for itself.
"""
import errno
import hashlib
import os
import pathlib

from configurator import Failure


def fingerprint(path):
    digest = hashlib.sha256()
    with open(path, 'rb') as file:
        for piece in iter(lambda: file.read(2**20), b''):
            digest.update(piece)
    return dict(size=path.stat().st_size, sha256=digest.hexdigest())


def lock(folder, name='.lock'):
    """Take a folder for this process, or exit if another one has it. Returns the open file that holds the lock: until
    it is closed, or the process ends, however it ends. Keep it, or say `with lock(folder):`."""
    folder = pathlib.Path(folder)
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        file = open(folder / name, 'a+', encoding='utf-8')
        try:
            if os.name == 'nt':
                import msvcrt
                file.seek(2**20)   # nobody may read a locked byte, so it is far from the number
                msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
            else:
                import fcntl
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN, errno.EDEADLK):
                file.seek(0)
                raise Failure(f'{folder}: another run is writing here (process {file.read().strip() or "unknown"})')
            # else the file system knows no locks, and there is none
        try:
            if os.path.samestat(os.stat(file.name), os.fstat(file.fileno())):
                break
        except FileNotFoundError:
            pass
        file.close()   # its owner has just deleted it: this lock would keep nobody away
    file.truncate(0)
    file.write(str(os.getpid()))
    file.flush()
    return file


def write_whole(path, data):
    """Bytes to a file that is there whole or not at all, also after a power cut."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f'{path.name}.{os.getpid()}.part')
    try:
        with open(part, 'wb') as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
