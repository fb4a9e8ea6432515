"""Downloads, from a server of our own that misbehaves in one way after another."""
import contextlib
import functools
import gzip
import hashlib
import http.server
import json
import os
import random
import re
import subprocess
import sys
import threading
import time

import pytest

from configurator import Failure
from stlm import download as download_module
from stlm.download import download
from helpers import ROOT, SMALL

DATA = random.Random(0).randbytes(300_000)
SHA = hashlib.sha256(DATA).hexdigest()


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers with server.files[path]; server.faults, one for each request, say what goes wrong."""

    def do_GET(self):
        server, self.close_connection = self.server, True
        server.requests.append((self.path, dict(self.headers)))
        fault = server.faults.pop(0) if server.faults else 'none'
        if fault[:3].isdigit():
            status, _, wait = fault.partition(' ')
            return self.answer(int(status), b'sorry', **{'Retry-After': wait} if wait else {})
        if fault == 'redirect':   # as Hugging Face does: the size and sha256 stand here, not at the file
            return self.answer(302, b'', Location='/data', **{
                'X-Linked-Etag': f'"{SHA}"', 'X-Linked-Size': str(len(DATA))})
        data = server.files[self.path]
        asked = re.fullmatch(r'bytes=(\d+)-', self.headers.get('Range', ''))
        start = int(asked[1]) if asked and fault not in ('ignores Range', 'wrong length') else 0
        extra = {'ETag': f'"{SHA}"'} if server.states_sha else {}
        if fault == 'other etag':
            extra = {'ETag': f'"{"0" * 64}"'}
        if fault == 'wrong bytes':
            data = data[:-1] + b'?'
        if asked and (start >= len(data) or fault == 'refuses Range'):
            return self.answer(416, b'', **{'Content-Range': f'bytes */{len(data)}'}, **extra)
        body, length = data[start:], len(data) - start
        if start:
            said = 0 if fault == 'wrong range' else start   # as many bytes, but the first ones
            body = data[said:said + length]
            extra['Content-Range'] = f'bytes {said}-{said + length - 1}/{len(data)}'
        if fault == 'wrong length':
            length += 1000
        if fault == 'drop' or fault == 'stall':
            body = body[:len(body) // 2]
        if fault == 'nothing stated':
            length = None
        self.answer(206 if start else 200, body, length, fault, **extra)

    def answer(self, status, body, length=-1, fault='', **headers):
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        if length is not None:
            self.send_header('Content-Length', len(body) if length < 0 else length)
        self.end_headers()
        with contextlib.suppress(ConnectionError):
            for i in range(0, len(body), 2**13):
                self.wfile.write(body[i:i + 2**13])
                self.server.sent += len(body[i:i + 2**13])
                self.server.over.wait(self.server.delay)
        if fault == 'stall':
            self.server.over.wait(5)

    def log_message(self, *args):
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(download_module, 'TIMEOUT', 0.3)
    monkeypatch.setattr(download_module, 'PAUSE', 0.001)
    monkeypatch.setenv('NO_PROXY', '127.0.0.1')
    server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler)
    server.files, server.faults, server.requests, server.sent = {'/data': DATA}, [], [], 0
    server.states_sha, server.delay, server.over = False, 0, threading.Event()
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
    ['drop'], ['drop', 'drop', 'drop', 'drop', 'drop', 'drop', 'drop'], ['drop', 'ignores Range'], ['429'],
    ['503', '500'], ['429 0'], ['stall'], ['drop', 'stall', '503', 'drop'], ['wrong length'], ['drop', 'wrong range'],
    ['drop', '416'], ['wrong bytes'], ['drop', 'wrong bytes']], ids='+'.join)
def test_what_goes_wrong_for_a_while_ends_in_the_right_bytes(server, tmp_path, faults):
    for name, given in ('a', ()), ('b', (len(DATA),)), ('c', (len(DATA), SHA)):
        server.faults, server.states_sha, start = list(faults), 'wrong bytes' in faults, time.monotonic()
        record = download(server.url + 'data', tmp_path / name / 'data', *given)
        assert (tmp_path / name / 'data').read_bytes() == DATA and not server.faults
        assert (record['size'], record['sha256'], record['url']) == (len(DATA), SHA, server.url + 'data')
        assert sorted(file.name for file in (tmp_path / name).iterdir()) == ['data', 'data.json']
        assert time.monotonic() - start < 4   # a stalled server closes after 5 s, which nobody waits for


def test_what_has_no_stated_size_is_fetched_again(server, tmp_path):
    server.faults = ['nothing stated']
    download(server.url + 'data', tmp_path / 'data')
    assert len(server.requests) == 2 and (tmp_path / 'data').read_bytes() == DATA


def test_a_server_that_refuses_every_range_is_asked_for_the_whole(server, tmp_path):
    server.faults = ['drop'] + ['refuses Range'] * 9
    download(server.url + 'data', tmp_path / 'data', len(DATA))
    assert len(server.requests) == 3 and (tmp_path / 'data').read_bytes() == DATA


def test_a_dropped_download_goes_on_where_it_stopped(server, tmp_path):
    server.faults = ['drop', 'drop']
    download(server.url + 'data', tmp_path / 'data')
    ranges = [headers.get('Range') for _, headers in server.requests]
    assert server.sent == len(DATA) and ranges == [None, 'bytes=150000-', 'bytes=225000-']


def test_what_an_earlier_process_left_is_gone_on_with(server, tmp_path):
    for left, sent in (DATA[:1000], len(DATA) - 1000), (DATA, 0), (DATA + b'more', len(DATA)):
        server.sent = 0
        (tmp_path / 'data').unlink(missing_ok=True)
        (tmp_path / 'data.part').write_bytes(left)
        download(server.url + 'data', tmp_path / 'data')
        assert (tmp_path / 'data').read_bytes() == DATA and server.sent == sent


@pytest.mark.parametrize('status', ['403', '404'])
def test_a_refusal_fails_at_once_in_one_line(server, tmp_path, status):
    server.faults = [status] * 9
    message = fails(server.url + 'data', tmp_path / 'data')
    assert status in message and server.url in message and str(tmp_path / 'data') in message
    assert len(server.requests) == 1 and not list(tmp_path.iterdir())


@pytest.mark.parametrize('fault, word', [
    ('503', '503'), ('wrong bytes', 'sha256'), ('wrong length', '300,000'), ('nothing stated', 'states')])
def test_what_stays_wrong_fails_in_one_line_and_is_never_taken_for_whole(server, tmp_path, fault, word):
    server.faults, server.states_sha = [fault] * 20, fault == 'wrong bytes'
    assert word in fails(server.url + 'data', tmp_path / 'data')
    assert len(server.requests) < 10 and not (tmp_path / 'data').exists()
    if fault == 'wrong bytes':
        assert not list(tmp_path.iterdir())


def test_pinned_facts_are_checked_whatever_the_server_says(server, tmp_path):
    assert 'sha256' in fails(server.url + 'data', tmp_path / 'data', None, '1' * 64)
    assert '300,001' in fails(server.url + 'data', tmp_path / 'data', len(DATA) + 1)
    server.faults = ['other etag']   # the pinned one counts
    download(server.url + 'data', tmp_path / 'data', len(DATA), SHA)
    assert (tmp_path / 'data').read_bytes() == DATA


def test_pauses_double_and_the_servers_wish_is_granted(server, tmp_path, monkeypatch):
    waits = []
    monkeypatch.setattr(download_module, 'PAUSE', 1)
    monkeypatch.setattr(download_module.time, 'sleep', waits.append)
    server.faults = ['503', '503', '429 7', '503']   # Retry-After: 7
    download(server.url + 'data', tmp_path / 'data')
    assert waits == [1, 2, 7, 8]


def test_what_hugging_face_states_before_it_redirects_is_what_counts(server, tmp_path):
    server.faults = ['redirect', 'wrong bytes', 'redirect', 'other etag']
    server.files['/resolve'] = b''
    record = download(server.url + 'resolve', tmp_path / 'data')
    assert record['sha256'] == SHA and [path for path, _ in server.requests] == ['/resolve', '/data'] * 2
    assert all('nanoSTLM/' in headers['User-Agent'] for _, headers in server.requests)


def test_a_whole_file_is_found_again_without_network(server, tmp_path):
    first = download(server.url + 'data', tmp_path / 'data')
    (tmp_path / 'by hand').write_bytes(DATA)
    asked = len(server.requests)
    assert download(server.url + 'data', tmp_path / 'data') == first
    assert download(server.url + 'data', tmp_path / 'by hand')['sha256'] == SHA
    assert download(server.url + 'data', tmp_path / 'by hand', len(DATA), SHA)['size'] == len(DATA)
    assert len(server.requests) == asked


def test_a_file_that_changed_is_fetched_anew(server, tmp_path):
    download(server.url + 'data', tmp_path / 'data')
    for harm in DATA[:-1], DATA[:-1] + b'?':
        (tmp_path / 'data').write_bytes(harm)
        download(server.url + 'data', tmp_path / 'data')
        assert (tmp_path / 'data').read_bytes() == DATA
    (tmp_path / 'data').write_bytes(DATA[:-1])
    server.faults = ['403']
    assert '403' in fails(server.url + 'data', tmp_path / 'data')
    assert (tmp_path / 'data').read_bytes() == DATA[:-1]   # what isn't replaced isn't deleted


# ---- what is written here

def test_a_lock_keeps_others_away_until_it_is_closed_or_its_process_ends(tmp_path):
    held = download_module.lock(tmp_path / 'run')
    with pytest.raises(Failure, match=f'run: another run is writing here .process {os.getpid()}.$'):
        download_module.lock(tmp_path / 'run')
    held.close()
    with download_module.lock(tmp_path / 'run'):
        assert (tmp_path / 'run/.lock').read_text() == str(os.getpid())
    code = f"import os, sys; sys.path.insert(0, {str(ROOT)!r}); from stlm import files; held = files.lock('run'); os.kill(os.getpid(), 9)"
    assert subprocess.run([sys.executable, '-c', code], cwd=tmp_path).returncode == -9
    download_module.lock(tmp_path / 'run').close()


def test_a_lock_that_its_owner_deletes_is_not_shared_with_a_later_one(tmp_path):
    """Two who open the file before its owner deletes it must not both go on: one of them holds a file without a name."""
    held = download_module.lock(tmp_path)
    os.unlink(held.name)
    new = download_module.lock(tmp_path)
    with pytest.raises(Failure, match='another run'):
        download_module.lock(tmp_path)
    held.close()
    with pytest.raises(Failure, match='another run'):
        download_module.lock(tmp_path)
    new.close()


def test_two_downloads_of_one_file_dont_mix(server, tmp_path):
    with download_module.lock(tmp_path, 'data.lock'):
        assert 'another run is writing here' in fails(server.url + 'data', tmp_path / 'data')
    assert not server.requests
    download(server.url + 'data', tmp_path / 'data')
    assert (tmp_path / 'data').read_bytes() == DATA


def test_a_file_is_written_whole_on_the_disk_or_not_at_all(tmp_path, monkeypatch):
    synced, replace = [], os.replace
    monkeypatch.setattr(os, 'fsync', synced.append)
    monkeypatch.setattr(os, 'replace', lambda a, b: (synced.append('replaced'), replace(a, b)))
    download_module.write_whole(tmp_path / 'a', b'old')
    assert len(synced) == 2 and synced[1] == 'replaced' and (tmp_path / 'a').read_bytes() == b'old'
    (tmp_path / 'a.part').write_bytes(b"another one's")   # never touched
    monkeypatch.setattr(os, 'fsync', lambda file: (_ for _ in ()).throw(OSError(28, 'No space left on device')))
    with pytest.raises(OSError):
        download_module.write_whole(tmp_path / 'a', b'new')
    assert (tmp_path / 'a').read_bytes() == b'old' and sorted(os.listdir(tmp_path)) == ['a', 'a.part']


# ---- Simple English Wikipedia, from nothing

def passages():
    """Two files as Cohere's are: passages of articles, one article across both."""
    rng = random.Random(0)
    records = [dict(id=i, title=f'Article {i // 3}', text=f'Passage {i}: Zoë 猫 {rng.randbytes(60).hex()}.', url='',
                    wiki_id=i // 3, views=1.5, paragraph_id=i % 3, langs=9) for i in range(1000)]
    lines = [json.dumps(record) + '\n' for record in records]
    return {f'/{name}': gzip.compress(''.join(part).encode(), mtime=0)
            for name, part in (('000.jsonl.gz', lines[:500]), ('001.jsonl.gz', lines[500:]))}


def python(server, folder, code, **kwargs):
    """A process in which simplewiki comes from the server."""
    names = {name[1:]: () for name in server.files}
    return subprocess.Popen([sys.executable, '-c', f'''
import sys
sys.path.insert(0, {str(ROOT)!r})
import prepare_wiki
from stlm import documents, download
download.PAUSE = 0.001
documents.SOURCES['cohere'] = ({server.url!r}, {names!r})
{code}'''], cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, encoding='utf-8', **kwargs)


PREPARE = "prepare_wiki.prepare('simplewiki', 'byte', val_fraction=0.1)"


def contents(folder):
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob('*') if file.is_file()}


def test_killed_at_any_moment_and_run_again_it_ends_in_the_same_files(server, tmp_path):
    server.files = passages()
    for name in 'once', 'killed':
        (tmp_path / name).mkdir()
    once = python(server, tmp_path / 'once', PREPARE)
    assert once.wait() == 0, once.stderr.read()
    right = contents(tmp_path / 'once')
    server.delay, killed, part = 0.01, 0, tmp_path / 'killed/data/simplewiki-byte.part/new'
    moments = [lambda n=n: server.sent > n for n in (0, 20000, 40000, 60000, 80000)]
    moments += [lambda file=file: (part / file).exists() and (part / file).stat().st_mtime > start
                for file in ('.', 'train.bin', 'meta.json')]
    for moment in moments:
        server.sent, start = 0, time.time()
        process = python(server, tmp_path / 'killed', PREPARE)
        while process.poll() is None and not moment():
            time.sleep(0.0005)
        killed += process.poll() is None
        process.kill()
        process.communicate()
        for name, data in contents(tmp_path / 'killed').items():   # what looks whole is whole
            assert '.part' in name or name.endswith('.lock') or data == right[name], name
    server.delay = 0
    last = python(server, tmp_path / 'killed', PREPARE)
    assert last.wait() == 0, last.stderr.read()
    assert contents(tmp_path / 'killed') == right
    assert killed > 4 and any('Range' in headers for _, headers in server.requests)   # else it tested nothing


def test_from_nothing_to_a_trained_model(server, tmp_path):
    server.files = passages()
    arguments = ['--dataset=simplewiki', '--tokenizer=byte', *SMALL, '--max_iters=2', '--out_dir=out']
    process = python(server, tmp_path, f'''
import runpy
sys.argv = ['train.py', *{arguments!r}]
runpy.run_path({str(ROOT / 'train.py')!r}, run_name='__main__')''')
    out, err = process.communicate()
    assert process.returncode == 0, err
    assert (tmp_path / 'out' / 'ckpt.pt').exists() and 'bits per byte' in out
    meta = json.loads((tmp_path / 'data/simplewiki-byte/meta.json').read_text())
    assert [file['sha256'] for file in meta['files']] == [
        hashlib.sha256(data).hexdigest() for data in server.files.values()]
    assert all(file['url'].startswith(server.url) and file['size'] and file['date'] for file in meta['files'])
    whole = b''.join((tmp_path / f'data/simplewiki-byte/{split}.bin').read_bytes() for split in meta['splits'])
    articles = {text.decode() for text in whole.split(b'\xff')[1:]}
    assert len(articles) == 334
    assert any(re.fullmatch(r'Article 166\n\nPassage 498:.*\n\nPassage 499:.*\n\nPassage 500:.*', text)
               for text in articles)


def test_offline_it_says_in_two_lines_what_to_do(server, tmp_path):
    server.server_close()   # nobody answers
    server.files = passages()
    process = python(server, tmp_path, PREPARE)
    err = process.communicate()[1].splitlines()
    assert process.returncode != 0 and 'Traceback' not in ''.join(err)
    tried, (first, second) = err[:-2], err[-2:]
    assert all('trying again' in line for line in tried)
    assert server.url + '000.jsonl.gz' in first and 'data/downloads/cohere/000.jsonl.gz' in first
    assert '001.jsonl.gz' in second and '--source=sbert' in second and 'python train.py' in second
