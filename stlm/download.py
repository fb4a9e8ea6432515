"""
Files from the web, whole or not at all: download() goes on where a broken one stopped, tries again, and checks
what came; RemoteFile reads parts of a large one; write_whole() and lock() for what is written here.
"""
import contextlib
import datetime
import io
import json
import math
import os
import pathlib
import re
import sys
import time

from configurator import Failure
from stlm.files import fingerprint, lock, write_whole
from stlm.console import Progress

AGENT = 'nanoSTLM/1.0 (educational; python-requests)'   # some servers answer 403 to a library's bare name
TIMEOUT = 30               # seconds without a byte
TRIES = 5                  # that get no further than the one before
PAUSE = 1.0                # seconds after the first of them, doubled after each


class Again(Exception):
    """(reason, seconds that the server wants us to wait; inf: trying again is of no use)"""


def download(url, path, size=None, sha256=None):
    """Fetch url to path unless it is there; return its {url, size, sha256, date}, which path.json keeps.
    It is whole when its size and sha256 are the given ones, or where one isn't given, the one that the server
    states. An unfinished one is path.part, where the next call goes on. Failure ends in one line."""
    path = pathlib.Path(path)
    part, note = path.with_name(f'{path.name}.part'), path.with_name(f'{path.name}.json')
    given = {key: value for key, value in dict(size=size, sha256=sha256).items() if value}
    if path.exists():   # from an earlier call, or put there by hand
        known = dict(url=url, date=datetime.date.fromtimestamp(path.stat().st_mtime).isoformat())
        try:
            known.update(json.loads(note.read_text(encoding='utf-8')))
        except (OSError, ValueError, TypeError):
            pass
        known, found = known | given, fingerprint(path)
        if known | found == found | known:
            return known | found
        print(f'{path}: not the whole file of {url}; fetching it anew')
    with lock(path.parent, f'{path.name}.lock') as held:
        try:
            return fetch_whole(url, path, part, note, given)
        finally:
            with contextlib.suppress(PermissionError):   # of Windows, for an open file
                os.unlink(held.name)


def fetch_whole(url, path, part, note, given):
    """Fetch again and again until part is whole, then give it its name; return its record."""
    failed = longest = 0
    while True:
        try:
            wanted = fetch(url, part) | given
            found = fingerprint(part)
            if found['size'] < wanted.get('size', 0):
                raise Again(f"only {found['size']:,} of {wanted['size']:,} bytes came", 0)
            if wanted and wanted | found == found | wanted:
                break
            part.unlink()
            raise Again(f'what came, {found}, is not {wanted or "of a size that the server states"}', 0)
        except Again as error:
            reason, wait = error.args
            have = part.stat().st_size if part.exists() else 0
            failed = 1 if have > longest else failed + 1
            longest, wait = max(longest, have), max(wait, PAUSE * 2**(failed - 1))
            if failed == TRIES or wait > 600:
                raise Failure(f'{url}: {reason}. Try again later, or with a browser save it as {path}')
            print(f'{url}: {reason}; trying again in {wait:.0f} s', file=sys.stderr)
            time.sleep(wait)
    record = dict(url=url, date=datetime.date.today().isoformat()) | found
    write_whole(note, json.dumps(record).encode())
    os.replace(part, path)
    return record


def fetch(url, part):
    """Download what part lacks; the whole file's {size, sha256}, as far as the server states them."""
    import requests
    import urllib3
    have = part.stat().st_size if part.exists() else 0
    headers = {'User-Agent': AGENT, 'Accept-Encoding': 'identity'} | ({'Range': f'bytes={have}-'} if have else {})
    try:
        with requests.get(url, headers=headers, stream=True, timeout=TIMEOUT) as response:
            status, has = response.status_code, response.headers
            if status not in (200, 206, 416):
                wait = has.get('Retry-After', '')
                raise Again(f'the server says {status} {response.reason}', math.inf if status < 500 and status != 429
                            else int(wait) if wait.isdigit() else 0)
            # Hugging Face states a large file's size and sha256 where it redirects to it
            linked = next((r.headers for r in response.history if 'X-Linked-Etag' in r.headers), {})
            etag = re.fullmatch('"?([0-9a-f]{64})"?', linked.get('X-Linked-Etag') or has.get('ETag', ''))
            start, total = re.fullmatch(r'(?:bytes (\d+|\*).*/(\d+))?.*', has.get('Content-Range', '')).groups()
            total = linked.get('X-Linked-Size') or total or status == 200 and has.get('Content-Length')
            stated = ({'size': int(total)} if total else {}) | ({'sha256': etag[1]} if etag else {})
            if status == 416 and stated.get('size') == have:
                return stated
            if status == 416 or status == 206 and start != str(have):
                part.unlink(missing_ok=True)
                raise Again(f'asked for what follows byte {have:,}, the server says {status}', 0)
            have, total = have if status == 206 else 0, stated.get('size', sys.maxsize)
            progress = Progress(part.stem, have / max(total, 1), total)
            with open(part, 'ab' if have else 'wb') as out:
                for piece in response.raw.stream(2**14, decode_content=False):   # a .gz stays a .gz
                    out.write(piece)
                    have += len(piece)
                    progress(have / total)
                out.flush()
                os.fsync(out.fileno())
            progress.end(f'{have:,} bytes')
            return stated
    except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
        raise Again(f'{type(error).__name__} at byte {have:,}', 0)


class RemoteFile(io.RawIOBase):
    """A file at a web address, read only where it is wanted (HTTP Range): of ARC's 680 MB, less than 3."""

    def __init__(self, url):
        self.url, self.at = url, 0
        self.size = int(self.fetch(0, 1).headers['Content-Range'].rpartition('/')[2])

    def fetch(self, start, end):
        import requests
        answer = requests.get(self.url, headers={'User-Agent': AGENT, 'Range': f'bytes={start}-{end - 1}'}, timeout=60)
        answer.raise_for_status()
        if answer.status_code != 206:   # Partial Content
            raise requests.RequestException('all of it in place of a part')
        return answer

    def seek(self, offset, whence=io.SEEK_SET):
        self.at = offset + (0, self.at, self.size)[whence]
        return self.at

    def readinto(self, buffer):
        end = min(self.at + len(buffer), self.size)
        data = self.fetch(self.at, end).content if end > self.at else b''
        buffer[:len(data)], self.at = data, self.at + len(data)
        return len(data)

    def seekable(self):
        return True

    readable = seekable
