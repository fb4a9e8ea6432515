"""
Files from the web, whole or not at all: download() tries again where a try fails, goes on where it broke off, and checks
what came; RemoteFile reads parts of a large one.
"""
import datetime
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
TRIES = 5                  # tries in a row that get no further
PAUSE = 1.0                # seconds after the first of them, doubled after each


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
        found = fetch(url, path, given)
    date = datetime.date.fromtimestamp(path.stat().st_mtime).isoformat()
    return dict(url=url, date=date) | found


def fetch(url, path, given):
    """Write what lies at url to path; its size and sha256. A try goes on where the one before broke off."""
    found = {}

    def write(file):
        failed, known = 0, {}   # tries in a row that got no further; what the server has said of the file
        while True:
            before = file.tell()
            try:
                return found.update(receive(url, given, file, known))
            except Again as error:
                reason, wanted = error.args
                failed = 1 if file.tell() > before else failed + 1
                wait = max(wanted, PAUSE * 2**(failed - 1))
                if failed == TRIES or wait > 600:
                    raise Failure(f'{url}: {reason}. Try again later, or with a browser save it as {path}')
                print(f'{url}: {reason}; trying again in {wait:.0f} s', file=sys.stderr)
                time.sleep(wait)

    with lock(path.parent):
        sweep(path.parent, path.name)
        write_whole(path, write)
    return found


def receive(url, given, file, known):
    """Add to an open file what it lacks, until it is what was given, or as long as the server states; its size and sha256."""
    import requests
    import urllib3
    headers = {'User-Agent': AGENT, 'Accept-Encoding': 'identity'}
    if known.get('edition'):   # a server that has another edition by now sends all of that one
        headers |= {'Range': f'bytes={file.tell()}-', 'If-Range': known['edition']}
    try:
        with requests.get(url, headers=headers, stream=True, timeout=TIMEOUT) as response:
            status, has = response.status_code, response.headers
            if status not in (200, 206, 416):
                wait = number(has.get('Retry-After')) or 0
                raise Again(f'the server says {status} {response.reason}', wait if status >= 500 or status == 429 else math.inf)
            if status != 206 or not has.get('Content-Range', '').startswith(f'bytes {file.tell()}-'):
                begin_anew(file, known)
            if status != 200 and not file.tell():
                raise Again(f'asked for the rest, the server says {status}', 0)
            tag, length, have = has.get('ETag', 'W/'), number(has.get('Content-Length')), file.tell()
            known['edition'] = has.get('Last-Modified') if tag.startswith('W/') else tag   # W/: much the same, no more
            wanted = dict(size=length and have + length) | given
            total = wanted['size'] or sys.maxsize
            progress = Progress(url.rpartition('/')[2], have / total, total)
            for piece in response.raw.stream(2**14, decode_content=False):   # a .gz stays a .gz
                file.write(piece)
                progress(file.tell() / total)
    except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
        have = file.tell()
        if not known.get('edition'):   # nothing would tell what the rest belongs to
            begin_anew(file, known)
        raise Again(f'{type(error).__name__} at byte {have:,}', 0)
    file.flush()
    found = fingerprint(file.name)
    if not wanted.items() <= found.items():
        begin_anew(file, known)
        raise Again(f'{found} came, but stated is {wanted}', 0)
    progress.end(f"{found['size']:,} bytes")
    return found


def begin_anew(file, known):
    file.seek(0)
    file.truncate()
    known.clear()


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
