"""Downloads, from a server of our own that misbehaves in one way after another."""
import contextlib
import functools
import gzip
import hashlib
import http.server
import itertools
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading

import pytest

import windows
from configurator import Failure
from stlm import documents, files
from stlm import download as download_module
from stlm.download import download
from helpers import ROOT, SMALL, run

DATA = random.Random(0).randbytes(300_000)
SHA = hashlib.sha256(DATA).hexdigest()


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers with server.files[path]; server.faults, one for each request, say what goes wrong."""

    def do_GET(self):
        server, self.close_connection = self.server, True
        server.requests.append(dict(self.headers))
        fault = server.faults.pop(0) if server.faults else 'none'
        if fault[:3].isdigit():
            status, _, wait = fault.partition(' ')
            return self.answer(int(status), b'sorry', **{'Retry-After': wait} if wait else {})
        data, headers = server.files[self.path], {}
        if fault == 'wrong bytes':
            data = data[:-1] + b'?'
        status, start, asked = 200, 0, self.headers.get('Range')
        if server.edition:
            headers = {'ETag': server.edition}
            if asked and self.headers['If-Range'] == server.edition and fault != 'ignores Range':
                status, start = 206, int(asked[6:-1]) + (fault == 'another part')
                headers |= {'Content-Range': f'bytes {start}-{len(data) - 1}/{len(data)}'}
        body = data[start:]
        length = len(body)
        if fault == 'wrong length':
            length += 1000
        if fault == 'Content-Length: abc':
            length = 'abc'
        if fault == 'drop' or fault == 'stall':
            body = body[:len(body) // 2]
        if fault == 'nothing stated':
            length = None
        self.answer(status, body, length, fault, **headers)

    def answer(self, status, body, length=-1, fault='', **headers):
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        if length is not None:
            self.send_header('Content-Length', len(body) if length == -1 else length)
        self.end_headers()
        with contextlib.suppress(ConnectionError):
            for i in range(0, len(body), 2**13):
                self.wfile.write(body[i:i + 2**13])
        if fault == 'stall':   # until the test is over; a client that waits for us waits in vain
            self.server.gave_up = not self.server.over.wait(60)

    def log_message(self, *args):
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(download_module, 'PAUSE', 0.001)
    monkeypatch.setenv('NO_PROXY', '127.0.0.1')
    server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler)
    server.files, server.faults, server.requests, server.edition = {'/data': DATA}, [], [], ''
    server.over, server.gave_up = threading.Event(), False
    server.url = f'http://127.0.0.1:{server.server_port}/'
    threading.Thread(target=functools.partial(server.serve_forever, 0.01), daemon=True).start()
    yield server
    server.over.set()
    server.shutdown()
    server.server_close()


def fails(*args):
    """The one line that the download ends in."""
    with pytest.raises(Failure) as error:
        download(*args)
    assert len(str(error.value).splitlines()) == 1
    return str(error.value)


@pytest.mark.parametrize('faults', [
    ['drop'], ['drop', 'drop', 'drop', 'drop'], ['429'], ['503', '500'], ['429 0'], ['stall'], ['drop', 'stall', '503', 'drop'],
    ['wrong length'], ['wrong bytes'], ['drop', 'wrong bytes'], ['429 ²'], ['503 ' + '9' * 5000], ['Content-Length: abc']],
    ids=' + '.join)
def test_what_goes_wrong_for_a_while_ends_in_the_right_bytes(server, tmp_path, monkeypatch, faults):
    if 'stall' in faults:
        monkeypatch.setattr(download_module, 'TIMEOUT', 0.3)
    for name, given in ('a', ()), ('b', (len(DATA),)), ('c', (len(DATA), SHA)):
        if 'wrong bytes' in faults and name != 'c':   # as many as the right ones
            continue
        server.faults = list(faults)
        record = download(server.url + 'data', tmp_path / name / 'data', *given)
        assert (tmp_path / name / 'data').read_bytes() == DATA and not server.faults
        assert (record['size'], record['sha256'], record['url']) == (len(DATA), SHA, server.url + 'data')
        assert sorted(file.name for file in (tmp_path / name).iterdir()) == ['.lock', 'data']
        assert not server.gave_up


def test_a_download_goes_on_where_it_broke_off_while_the_server_has_the_same_edition(server, tmp_path):
    server.edition, server.faults = '"1"', ['drop', '503', 'drop']
    download(server.url + 'data', tmp_path / 'data', len(DATA), SHA)
    assert (tmp_path / 'data').read_bytes() == DATA
    assert [headers.get('Range') for headers in server.requests] == [None, *2 * ['bytes=150000-'], 'bytes=225000-']


@pytest.mark.parametrize('faults', [['drop', 'ignores Range'], ['drop', 'another part'], ['drop', '416'], ['drop', 'wrong bytes'],
                                    ['drop', 'drop', 'wrong length'], ['drop', 'another edition']], ids=' + '.join)
def test_what_is_not_the_rest_of_the_same_file_is_never_added_to_it(server, tmp_path, monkeypatch, faults):
    server.edition, server.faults = '"1"', list(faults)
    if 'another edition' in faults:
        monkeypatch.setattr(download_module.time, 'sleep', lambda _: (server.files.update({'/data': DATA[::-1]}), setattr(server, 'edition', '"2"')))
        server.faults = ['drop']
        download(server.url + 'data', tmp_path / 'data', len(DATA))
        assert (tmp_path / 'data').read_bytes() == DATA[::-1]
    else:
        download(server.url + 'data', tmp_path / 'data', len(DATA), SHA)
        assert (tmp_path / 'data').read_bytes() == DATA and not server.faults


def test_what_has_no_stated_size_is_fetched_again(server, tmp_path):
    server.faults = ['nothing stated']
    download(server.url + 'data', tmp_path / 'data')
    assert len(server.requests) == 2 and (tmp_path / 'data').read_bytes() == DATA


def test_no_link_of_a_download_is_followed(server, tmp_path):
    precious = tmp_path / 'thesis.txt'
    precious.write_text('years of work')
    for name in 'data', f'data.{os.getpid()}.part', 'data.1.part', '.lock':
        (tmp_path / 'to').mkdir()
        (tmp_path / 'to' / name).symlink_to(precious)
        if name == '.lock':
            assert 'a link' in fails(server.url + 'data', tmp_path / 'to/data')
        else:
            download(server.url + 'data', tmp_path / 'to/data', len(DATA))
            assert (tmp_path / 'to/data').read_bytes() == DATA and not (tmp_path / 'to/data').is_symlink()
        assert precious.read_text() == 'years of work'
        shutil.rmtree(tmp_path / 'to')


@pytest.mark.parametrize('status', ['403', '404'])
def test_a_refusal_fails_at_once_in_one_line(server, tmp_path, status):
    server.faults = [status] * 9
    message = fails(server.url + 'data', tmp_path / 'data')
    assert status in message and server.url in message and str(tmp_path / 'data') in message
    assert len(server.requests) == 1 and os.listdir(tmp_path) == ['.lock']


@pytest.mark.parametrize('fault, word', [
    ('503', '503'), ('wrong bytes', 'sha256'), ('wrong length', '300,000'), ('nothing stated', 'None')])
def test_what_stays_wrong_fails_in_one_line_and_is_never_taken_for_whole(server, tmp_path, fault, word):
    server.faults = [fault] * 20
    given = (len(DATA), SHA) if fault == 'wrong bytes' else ()
    assert word in fails(server.url + 'data', tmp_path / 'data', *given)
    assert len(server.requests) == 5 and os.listdir(tmp_path) == ['.lock']


def test_pinned_facts_are_checked_whatever_the_server_says(server, tmp_path):
    assert 'sha256' in fails(server.url + 'data', tmp_path / 'data', None, '1' * 64)
    assert '300001' in fails(server.url + 'data', tmp_path / 'data', len(DATA) + 1)
    download(server.url + 'data', tmp_path / 'data', len(DATA), SHA)
    assert (tmp_path / 'data').read_bytes() == DATA


def test_pauses_double_and_the_servers_wish_is_granted(server, tmp_path, monkeypatch):
    waits = []
    monkeypatch.setattr(download_module, 'PAUSE', 1)
    monkeypatch.setattr(download_module.time, 'sleep', waits.append)
    server.faults = ['503', '503', '429 7', '503']   # Retry-After: 7
    download(server.url + 'data', tmp_path / 'data')
    assert waits == [1, 2, 7, 8] and all('nanoSTLM/' in headers['User-Agent'] for headers in server.requests)


def test_a_whole_file_is_found_again_without_network(server, tmp_path):
    first = download(server.url + 'data', tmp_path / 'data')
    (tmp_path / 'by hand').write_bytes(DATA)
    asked = len(server.requests)
    assert download(server.url + 'data', tmp_path / 'data') == first
    assert download(server.url + 'data', tmp_path / 'by hand')['sha256'] == SHA
    assert download(server.url + 'data', tmp_path / 'by hand', len(DATA), SHA)['size'] == len(DATA)
    assert len(server.requests) == asked


def test_a_file_that_changed_is_fetched_anew(server, tmp_path):
    for harm in DATA[:-1], DATA[:-1] + b'?':
        (tmp_path / 'data').write_bytes(harm)
        download(server.url + 'data', tmp_path / 'data', len(DATA), SHA)
        assert (tmp_path / 'data').read_bytes() == DATA
    (tmp_path / 'data').write_bytes(DATA[:-1])
    server.faults = ['403']
    assert '403' in fails(server.url + 'data', tmp_path / 'data', len(DATA))
    assert (tmp_path / 'data').read_bytes() == DATA[:-1]   # what isn't replaced isn't deleted


def test_a_download_gets_along_with_windows_rules(server, tmp_path, monkeypatch):
    windows.simulate(monkeypatch)
    server.faults = ['drop', 'wrong bytes']
    for _ in range(2):   # at first there is none, then a damaged one
        download(server.url + 'data', tmp_path / 'data', len(DATA), SHA)
        assert (tmp_path / 'data').read_bytes() == DATA
        (tmp_path / 'data').write_bytes(b'?')


# ---- what is written here

def test_a_lock_keeps_others_away_until_it_is_closed_or_its_process_ends(tmp_path):
    held = files.lock(tmp_path / 'run')
    with pytest.raises(Failure, match='run: another run is writing here'):
        files.lock(tmp_path / 'run')
    held.close()
    with files.lock(tmp_path / 'run'):
        pass
    code = f"import os, sys; sys.path.insert(0, {str(ROOT)!r}); from stlm import files; held = files.lock('run'); os.kill(os.getpid(), 9)"
    assert subprocess.run([sys.executable, '-c', code], cwd=tmp_path).returncode == -9
    files.lock(tmp_path / 'run').close()


def test_a_lock_never_writes_to_what_another_made(tmp_path):
    (tmp_path / 'thesis.txt').write_text('years of work')
    (tmp_path / '.lock').symlink_to('thesis.txt')
    with pytest.raises(Failure, match='.lock: a link'):
        files.lock(tmp_path)
    (tmp_path / '.lock').unlink()
    os.link(tmp_path / 'thesis.txt', tmp_path / '.lock')   # which no link's name tells
    files.lock(tmp_path).close()
    assert (tmp_path / 'thesis.txt').read_text() == 'years of work'


def test_two_downloads_into_one_folder_dont_mix(server, tmp_path):
    with files.lock(tmp_path):
        assert 'another run is writing here' in fails(server.url + 'data', tmp_path / 'data')
    assert not server.requests
    download(server.url + 'data', tmp_path / 'data')
    assert (tmp_path / 'data').read_bytes() == DATA


def test_a_file_is_written_whole_on_the_disk_or_not_at_all(tmp_path, monkeypatch):
    synced, replace = [], os.replace
    monkeypatch.setattr(os, 'fsync', synced.append)
    monkeypatch.setattr(os, 'replace', lambda a, b: (synced.append('replaced'), replace(a, b)))
    files.write_whole(tmp_path / 'a', b'old')
    assert len(synced) == 2 and synced[1] == 'replaced' and (tmp_path / 'a').read_bytes() == b'old'
    (tmp_path / 'a.part').write_bytes(b"another one's")   # never touched

    def half(file):
        file.write(b'ne')
        raise RuntimeError('[enforce fail] unexpected pos 64 vs 0')   # torch.save's words for a full disk
    monkeypatch.setattr(os, 'fsync', lambda file: (_ for _ in ()).throw(OSError(28, 'No space left on device')))
    for write, words in (b'new', 'No space left'), (half, 'enforce fail'):
        with pytest.raises(Failure, match=words):
            files.write_whole(tmp_path / 'a', write)
        assert (tmp_path / 'a').read_bytes() == b'old' and sorted(os.listdir(tmp_path)) == ['a', 'a.part']


def test_what_writes_of_killed_processes_left_is_swept_up_and_nothing_else(tmp_path):
    for name in 'a.1.part', 'a.22.part', 'b.3.part', 'film.mkv.part', 'a.part', 'a.x.part', 'xa.4.part':
        (tmp_path / name).touch()
    files.sweep(tmp_path, 'a', 'b.1')
    assert sorted(os.listdir(tmp_path)) == ['a.part', 'a.x.part', 'b.3.part', 'film.mkv.part', 'xa.4.part']


def test_a_change_that_is_refused_for_a_moment_is_tried_again_and_one_that_stays_refused_fails(monkeypatch):
    now, calls = [0.0], []
    monkeypatch.setattr(files.time, 'monotonic', lambda: now[0])
    monkeypatch.setattr(files.time, 'sleep', lambda seconds: now.__setitem__(0, now[0] + seconds))

    def change(until, *paths):
        calls.append(now[0])
        if now[0] < until:
            raise PermissionError(13, 'Access is denied')
    files.insist(change, 1.0)
    assert len(calls) > 10
    with pytest.raises(PermissionError):
        files.insist(change, 1000.0)
    assert 4 < now[0] < 20


# ---- Simple English Wikipedia, from nothing

def articles():
    """A file as sbert's is: articles of paragraphs."""
    rng = random.Random(0)
    records = [dict(id=str(i), title=f'Article {i}', paragraphs=[f'Paragraph {n}: Zoë 猫 {rng.randbytes(60).hex()}.' for n in range(3)])
               for i in range(334)]
    lines = [json.dumps(record) + '\n' for record in records]
    return {'/simple.jsonl.gz': gzip.compress(''.join(lines).encode(), mtime=0)}


def take_from(url, die_before=None):
    """For run(): simplewiki comes from there, and the process is killed before it changes a file for the nth time."""
    documents.EDITIONS['sbert'] = (url, 'simple.jsonl.gz', None, None)
    download_module.PAUSE = 0.001
    here, n = os.getcwd(), itertools.count()

    def watch(event, args):
        is_change = event in ('os.rename', 'os.remove', 'os.mkdir', 'os.rmdir') or event == 'open' and args[2] & (
            os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        if is_change and os.path.abspath(os.fsdecode(args[0])).startswith(here) and next(n) == die_before:
            os.kill(os.getpid(), signal.SIGKILL)
    if die_before is not None:
        sys.addaudithook(watch)


PREPARE = 'prepare_wiki.py', '--tokenizer=byte', '--val_fraction=0.1'


def contents(folder):
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob('*') if file.is_file()}


def test_killed_at_any_moment_and_run_again_it_ends_in_the_same_files(server, tmp_path):
    server.files = articles()
    first = functools.partial(take_from, server.url)
    (tmp_path / 'once').mkdir()
    status, _, err = run(tmp_path / 'once', *PREPARE, first=first)
    assert status == 0, err
    right = contents(tmp_path / 'once')
    for n in itertools.count():
        folder = tmp_path / str(n)
        folder.mkdir()
        if run(folder, *PREPARE, first=functools.partial(first, n))[0] == 0:
            break   # all its changes are done
        left = contents(folder)
        whole = ['data/downloads/sbert/simple.jsonl.gz']   # what looks whole is whole
        if 'data/simplewiki-byte/meta.json' in left:
            whole += [name for name in right if 'simplewiki-byte' in name]
        assert all(left.get(name, right[name]) == right[name] for name in whole), n
        status, _, err = run(folder, *PREPARE, first=first)
        assert status == 0 or 'is there already' in err, (n, err)
        assert contents(folder) == right, n
    assert n > 20   # else it tested nothing


def test_from_nothing_to_a_trained_model(server, tmp_path):
    server.files = articles()
    status, out, err = run(tmp_path, 'train.py', '--dataset=simplewiki', '--tokenizer=byte', *SMALL, '--max_iters=2', '--out_dir=out',
                           first=functools.partial(take_from, server.url))
    assert status == 0, err
    assert (tmp_path / 'out' / 'ckpt.pt').exists() and 'bits per byte' in out
    meta = json.loads((tmp_path / 'data/simplewiki-byte/meta.json').read_text())
    assert [file['sha256'] for file in meta['files']] == [
        hashlib.sha256(data).hexdigest() for data in server.files.values()]
    assert all(file['url'].startswith(server.url) and file['size'] and file['date'] for file in meta['files'])
    whole = b''.join((tmp_path / f'data/simplewiki-byte/{split}.bin').read_bytes() for split in meta['splits'])
    found = [text.decode() for text in whole.split(b'\xff')[1:]]
    assert len(found) == 334
    assert any(re.fullmatch(r'Article 166\n\nParagraph 0:.*\n\nParagraph 1:.*\n\nParagraph 2:.*', text) for text in found)


def test_offline_it_says_in_one_line_what_to_do(server, tmp_path):
    server.server_close()   # nobody answers
    *tried, line = run(tmp_path, *PREPARE, first=functools.partial(take_from, server.url))[2].splitlines()
    assert tried and all('trying again' in line for line in tried)
    assert server.url + 'simple.jsonl.gz' in line and 'data/downloads/sbert/simple.jsonl.gz' in line
    assert '--edition=wikimedia' in line and 'python train.py' in line
