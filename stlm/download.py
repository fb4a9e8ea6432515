"""
Files from the web, whole or not at all: download() tries again where a try fails, and checks what came; RemoteFile reads
parts of a large one.
"""
import datetime
import functools
import hashlib
import io
import math
import pathlib
import re
import sys
import time

from stlm.console import Failure, Progress
from stlm.files import fingerprint, lock, sweep, write_whole

AGENT = 'nanoSTLM/1.0 (educational; python-requests)'   # some servers answer 403 to a library's bare name
TIMEOUT = 30               # seconds without a byte
TRIES = 5
PAUSE = 1.0                # seconds after the first try, doubled after each


class Again(Exception):
    """A try failed. Of its arguments the first says why, the second for how many seconds the server wants us to wait."""


def download(url, path, size=None, sha256=None):
    """Fetch url to path unless it is there; return its url, date, size and sha256. It is whole when it has the given size
    and sha256, or else the size that the server states."""
    path = pathlib.Path(path)
    given = {key: value for key, value in dict(size=size, sha256=sha256).items() if value}
    found = fingerprint(path) if path.exists() else None
    if found and not given.items() <= found.items():
        print(f'{path}: not the whole file of {url}; fetching it anew')
        found = None
    if not found:
        fetch(url, path, given)
        found = fingerprint(path)
    date = datetime.date.fromtimestamp(path.stat().st_mtime).isoformat()
    return dict(url=url, date=date) | found


def fetch(url, path, given):
    """Try until path is there and whole."""
    with lock(path.parent):
        sweep(path.parent, path.name)
        for n in range(TRIES):
            try:
                return write_whole(path, functools.partial(receive, url, given))
            except Again as error:
                reason, wanted = error.args
                wait = max(wanted, PAUSE * 2**n)
                if n == TRIES - 1 or wait > 600:
                    raise Failure(f'{url}: {reason}. Try again later, or with a browser save it as {path}')
                print(f'{url}: {reason}; trying again in {wait:.0f} s', file=sys.stderr)
                time.sleep(wait)


def receive(url, given, file):
    """Write what lies at url into an open file, if it is what was given, or as long as the server states."""
    import requests
    import urllib3
    digest, size = hashlib.sha256(), 0
    headers = {'User-Agent': AGENT, 'Accept-Encoding': 'identity'}
    try:
        with requests.get(url, headers=headers, stream=True, timeout=TIMEOUT) as response:
            status = response.status_code
            if status != 200:
                wait = number(response.headers.get('Retry-After')) or 0
                raise Again(f'the server says {status} {response.reason}', wait if status >= 500 or status == 429 else math.inf)
            wanted = dict(size=number(response.headers.get('Content-Length'))) | given
            progress = Progress(url.rpartition('/')[2], size=wanted['size'] or sys.maxsize)
            for piece in response.raw.stream(2**14, decode_content=False):   # a .gz stays a .gz
                file.write(piece)
                digest.update(piece)
                size += len(piece)
                progress(size / (wanted['size'] or sys.maxsize))
    except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
        raise Again(f'{type(error).__name__} at byte {size:,}', 0)
    found = dict(size=size, sha256=digest.hexdigest())
    if not wanted.items() <= found.items():
        raise Again(f'{found} came, but stated is {wanted}', 0)
    progress.end(f'{size:,} bytes')


def number(text):
    """The whole number that a header states, if it states one."""
    return int(text) if re.fullmatch('[0-9]{1,18}', text or '') else None


class RemoteFile(io.RawIOBase):
    """A file at a web address, read only where it is wanted (HTTP Range): of ARC's 680 MB, less than 3."""

    def __init__(self, url):
        self.url, self.at = url, 0
        self.size = number(self.read_range(0, 1).headers.get('Content-Range', '').rpartition('/')[2]) or 0

    def read_range(self, start, end):
        import requests
        answer = requests.get(self.url, headers={'User-Agent': AGENT, 'Range': f'bytes={start}-{end - 1}'}, timeout=TIMEOUT)
        answer.raise_for_status()
        if answer.status_code != 206:   # Partial Content
            raise requests.RequestException('all of it in place of a part')
        return answer

    def seek(self, offset, whence=io.SEEK_SET):
        self.at = offset + (0, self.at, self.size)[whence]
        return self.at

    def readinto(self, buffer):
        end = min(self.at + len(buffer), self.size)
        data = self.read_range(self.at, end).content if end > self.at else b''
        buffer[:len(data)], self.at = data, self.at + len(data)
        return len(data)

    def seekable(self):
        return True

    readable = seekable
