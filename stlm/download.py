"""
Files from the web, whole or not at all: download() goes on where a broken one stopped, tries again, and checks what came;
RemoteFile reads parts of a large one.

While download() works, NAME.part is what has come of NAME, and NAME.json says of which edition. At the end NAME.json says
what NAME is.
"""
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
from stlm.console import Progress
from stlm.files import fingerprint, insist, lock, sweep, write_whole

AGENT = 'nanoSTLM/1.0 (educational; python-requests)'   # some servers answer 403 to a library's bare name
TIMEOUT = 30               # seconds without a byte
TRIES = 5                  # tries in a row that get no further
PAUSE = 1.0                # seconds after the first of them, doubled after each


class Again(Exception):
    """A try failed. Of its arguments the first says why, the second for how many seconds the server wants us to wait."""


def download(url, path, size=None, sha256=None):
    """Fetch url to path unless it is there; return its url, date, size and sha256. It is whole when it has the given size
    and sha256, or where one isn't given, the one that the server states."""
    path = pathlib.Path(path)
    part, note = path.with_name(f'{path.name}.part'), path.with_name(f'{path.name}.json')
    given = {key: value for key, value in dict(size=size, sha256=sha256).items() if value}
    if path.exists():   # from an earlier call, or put there by hand
        day = datetime.date.fromtimestamp(path.stat().st_mtime).isoformat()
        known, found = dict(url=url, date=day) | read_note(note) | given, fingerprint(path)
        if agree(known, found):
            return known | found
        print(f'{path}: not the whole file of {url}; fetching it anew')
    with lock(path.parent):
        sweep(path.parent, note.name)
        day = datetime.date.today().isoformat()
        record = dict(url=url, date=day) | fetch_whole(url, path, part, note, given)
        write_whole(note, json.dumps(record).encode())
        insist(os.replace, part, path)
    return record


def read_note(note):
    """What such a .json file says; {} if it is none."""
    try:
        return dict(json.loads(note.read_bytes()))
    except (OSError, ValueError, TypeError):
        return {}


def agree(known, found):
    """Whether two dicts say the same where both say something."""
    return known | found == found | known


def fetch_whole(url, path, part, note, given):
    """Try until part is whole; return what is then known of it."""
    failed = longest = 0
    while True:
        try:
            return fetch(url, part, note, given)
        except Again as error:
            reason, wanted = error.args
            have = part.stat().st_size if part.exists() else 0
            failed = 1 if have > longest else failed + 1
            longest, wait = max(longest, have), max(wanted, PAUSE * 2**(failed - 1))
            if failed == TRIES or wait > 600:
                raise Failure(f'{url}: {reason}. Try again later, or with a browser save it as {path}')
            print(f'{url}: {reason}; trying again in {wait:.0f} s', file=sys.stderr)
            time.sleep(wait)


def fetch(url, part, note, given):
    """Try once to make part whole; return what is then known of it."""
    known = read_note(note)
    have = 0
    if known.get('url') == url and known.get('edition') and part.is_file() and not part.is_symlink():
        have = part.stat().st_size   # else nothing says of which file it is the beginning
    if not have or have != known.get('size'):
        known = receive(url, part, note, known, have)
    found = fingerprint(part)
    wanted = {key: value for key, value in (known | given).items() if key in found}
    if found['size'] < wanted.get('size', 0):
        raise Again(f"only {found['size']:,} of {wanted['size']:,} bytes came", 0)
    if not wanted or not agree(wanted, found):
        part.unlink()
        raise Again(f"what came, {found}, is not {wanted or 'of a size that the server states'}", 0)
    return known | found


def receive(url, part, note, known, have):
    """Add to part what comes after its first `have` bytes, or all; return what is stated of the whole."""
    import requests
    import urllib3
    headers = {'User-Agent': AGENT, 'Accept-Encoding': 'identity'}
    if have:   # a server that has another edition by now sends all of that one
        headers |= {'Range': f'bytes={have}-', 'If-Range': known['edition']}
    try:
        with requests.get(url, headers=headers, stream=True, timeout=TIMEOUT) as response:
            status = response.status_code
            if status not in (200, 206, 416):
                final = status < 500 and status != 429
                wait = math.inf if final else number(response.headers.get('Retry-After')) or 0
                raise Again(f'the server says {status} {response.reason}', wait)
            start, stated = what_is_stated(url, response)
            if status == 416 or status == 206 and (start, stated) != (have, known):
                part.unlink(missing_ok=True)
                raise Again(f'asked for what follows byte {have:,}, the server says {status}', 0)
            if status == 200:
                part.unlink(missing_ok=True)
                write_whole(note, json.dumps(stated).encode())
                have = 0
            total = stated.get('size', sys.maxsize)
            progress = Progress(part.stem, have / total, total)
            with open(part, 'ab') as out:
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


def what_is_stated(url, response):
    """(the first byte that comes, what the server states of the whole file): its url, edition, size and sha256. No other
    content has the same edition."""
    has, tag = response.headers, response.headers.get('ETag', '')
    content = re.match('bytes ([0-9]+)-[0-9]+/([0-9]+)', has.get('Content-Range', ''))
    first, size = content.groups() if content else ('0', has.get('Content-Length'))
    # Hugging Face states a large file's size and sha256 where it redirects to it
    linked = next((answer.headers for answer in response.history if 'X-Linked-Etag' in answer.headers), {})
    sha256 = re.fullmatch('"?([0-9a-f]{64})"?', linked.get('X-Linked-Etag', tag))
    edition = tag if tag and not tag.startswith('W/') else has.get('Last-Modified')   # W/: much the same, no more
    stated = dict(url=url, edition=edition, size=number(linked.get('X-Linked-Size', size)), sha256=sha256 and sha256[1])
    return number(first), {key: value for key, value in stated.items() if value}


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
        data = self.read_range(self.at, end).content if end > self.at else b''
        buffer[:len(data)], self.at = data, self.at + len(data)
        return len(data)

    def seekable(self):
        return True

    readable = seekable
