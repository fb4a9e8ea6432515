"""Text -> token files: lossless, whole or absent, split by the text alone."""
import functools
import gzip
import hashlib
import json
import os
import random
import re
import shlex
import shutil
import subprocess
import sys
import tracemalloc
from collections import Counter

import numpy as np
import pytest

from configurator import Failure
from stlm import documents
import prepare_wiki
from stlm import tokenizer
from helpers import ROOT, fails_in_one_line, run, story


def prepare(folder, *args, **kwargs):
    return run(folder, 'prepare_wiki.py', '--dataset=mine', '--tokenizer=bpe300', '--val_fraction=0.2', *args, **kwargs)


@pytest.fixture(scope='module')
def mine(tmp_path_factory):
    """A data set of the small story, and the text it was made of."""
    folder = tmp_path_factory.mktemp('mine')
    (folder / 'story.txt').write_text(story(), encoding='utf-8')
    status, out, err = prepare(folder, '--input=story.txt')
    assert status == 0, err
    data = folder / 'data' / 'mine-bpe300'
    return data, json.loads((data / 'meta.json').read_text()), tokenizer.load_tokenizer(None, data)


# ---- token files

def test_the_files_hold_the_text_document_by_document(mine):
    data, meta, encoding = mine
    found = []
    for split, has in meta['splits'].items():
        ids = np.fromfile(data / f'{split}.bin', dtype=meta['dtype']).tolist()
        assert ids[0] == encoding.eot_token and len(ids) == has['tokens']
        texts, tokens = [], []
        for i in ids[1:] + [encoding.eot_token]:
            if i == encoding.eot_token:
                texts.append(encoding.decode_bytes(tokens).decode())
                tokens = []
            else:
                tokens.append(i)
        assert len(texts) == has['documents'] and sum(len(text.encode()) for text in texts) == has['bytes']
        assert sum(map(len, texts)) == has['chars'] and sum(len(text.split()) for text in texts) == has['words']
        assert all(prepare_wiki.split_of(text, 0.2) == split for text in texts)
        found += texts
    assert sorted(''.join(found)) == sorted(story())   # nothing lost, nothing twice
    assert meta['tokenizer']['max_token_bytes'] <= tokenizer.MAX_BYTES


def test_a_document_stays_in_its_split_when_others_come(mine, tmp_path):
    texts = [f'document {i}' for i in range(1000)]
    for name, some in ('few', texts[::3]), ('all', texts):
        (tmp_path / f'{name}.jsonl').write_text('\n'.join(json.dumps({'text': text}) for text in some))
        status, _, err = run(tmp_path, 'prepare_wiki.py', f'--input={name}.jsonl', f'--dataset={name}',
                             '--tokenizer=byte', '--val_fraction=0.1')
        assert status == 0, err
    val = [set((tmp_path / f'data/{name}-byte/val.bin').read_bytes().split(b'\xff')) for name in ('few', 'all')]
    assert val[0] < val[1] and len(val[1]) > 60


def test_jsonl_gz_txt_and_folders_are_read_alike(tmp_path):
    (tmp_path / 'in').mkdir()
    records = [{'title': 'A', 'text': 'first 🐈'}, {'text': 'second\nline'}]
    with gzip.open(tmp_path / 'in' / 'a.jsonl.gz', 'wt', encoding='utf-8') as out:
        out.write('\n'.join(map(json.dumps, records)))
    (tmp_path / 'in' / 'b.txt').write_text('third<|endoftext|>fourth', encoding='utf-8')
    files = documents.input_files(str(tmp_path / 'in'))
    assert list(documents.read_files(files, lambda done: None)) == [
        'A\n\nfirst 🐈', 'second\nline', 'third', 'fourth']


def test_paragraphs_are_joined_and_a_title_needs_a_text(tmp_path):
    (tmp_path / 'c.jsonl').write_text(json.dumps({'id': '1', 'title': 'P', 'paragraphs': ['one', 'two']}))
    (tmp_path / 'd.jsonl').write_text(json.dumps({'title': 'only a title', 'text': ' '}))
    assert list(documents.read_files(documents.input_files(str(tmp_path)), lambda done: None)) == ['P\n\none\n\ntwo', ' ']


def test_parquet_is_read_and_a_broken_one_is_named(tmp_path):
    pyarrow, parquet = pytest.importorskip('pyarrow'), pytest.importorskip('pyarrow.parquet')
    columns = {'id': ['1', '2'], 'url': ['', ''], 'title': ['A', 'B'], 'text': ['first 🐈', 'second']}
    parquet.write_table(pyarrow.table(columns), tmp_path / 'a.parquet')
    files = documents.input_files(str(tmp_path))
    assert list(documents.read_files(files, lambda done: None)) == ['A\n\nfirst 🐈', 'B\n\nsecond']
    (tmp_path / 'a.parquet').write_bytes((tmp_path / 'a.parquet').read_bytes()[:-9])
    fails_in_one_line(prepare(tmp_path, '--input=a.parquet'), 'a.parquet', 'broken')


def test_without_pyarrow_parquet_fails_in_one_line_before_anything_is_downloaded(tmp_path, monkeypatch):
    (tmp_path / 'a.parquet').touch()
    monkeypatch.setitem(sys.modules, 'pyarrow', None)
    monkeypatch.setattr(documents, 'download', lambda *args: pytest.fail('downloaded'))
    for call in (lambda: documents.input_files(str(tmp_path)),
                 lambda: prepare_wiki.prepare('simplewiki', 'byte', data_dir=tmp_path, edition='wikimedia')):
        with pytest.raises(Failure, match='a?.parquet: .*pip install pyarrow'):
            call()


@pytest.mark.parametrize('kept, text', [
    (0, 'Mercury\n\nMercury may refer to:\n\nMercury (planet), near the Sun'), (0, 'Sand\n\nSand could mean'),
    (0, 'War (disambiguation)\n\nWar is a conflict.'), (0, 'Bell\n\nBell can also mean one of these:\nBell, a city'),
    (1, 'Cat\n\nA cat is an animal. It may refer to a lion.'), (1, 'Cat\n\nA cat.\n\nThe word can mean:'),
    (1, 'Can\n\nA can may mean trouble: it is sharp.')])
def test_wikipedias_disambiguation_pages_are_left_out_and_its_articles_are_not(tmp_path, monkeypatch, kept, text):
    def download(url, path, *given):
        path.parent.mkdir(parents=True)
        path.write_bytes(gzip.compress(json.dumps(dict(text=text)).encode()))
        return {}
    monkeypatch.setattr(documents, 'download', download)
    _, read = documents.simplewiki(tmp_path, 'sbert')
    assert list(read(lambda done: None)) == [text] * kept


def test_empty_and_twice_told_documents_are_left_out_and_change_no_others_split(tmp_path):
    texts = [f'document {i} é' for i in range(300)]
    more = [text for i, text in enumerate(texts) for text in [text] * (1 + (i % 3 == 0)) + [' \n'] * (i % 2)]
    for name, some in ('once', texts), ('more', more):
        (tmp_path / f'{name}.jsonl').write_text('\n'.join(json.dumps({'text': text}) for text in some))
        status, out, err = run(tmp_path, 'prepare_wiki.py', f'--input={name}.jsonl', f'--dataset={name}',
                               '--tokenizer=byte', '--val_fraction=0.2')
        assert status == 0, err
    assert '150 empty, 100 duplicate' in out
    once, more = (tmp_path / f'data/{name}-byte' for name in ('once', 'more'))
    for split in 'train', 'val', 'test':
        assert (once / f'{split}.bin').read_bytes() == (more / f'{split}.bin').read_bytes()
    meta = json.loads((more / 'meta.json').read_text())
    total = sum((Counter(has) for has in meta['splits'].values() if has.pop('sha256')), Counter())
    assert meta['left_out'] == {'empty': 150, 'duplicate': 100}
    assert total == {'documents': 300, 'words': 900, 'chars': sum(map(len, texts)),
                     'bytes': sum(map(len, texts)) + 300, 'tokens': sum(map(len, texts)) + 600}


def test_text_is_cut_in_bounded_memory_and_never_inside_a_character(tmp_path):
    piece = '猫🐈é' * 2**13   # lines far longer than a read: none of its cuts may fall inside a character
    with open(tmp_path / 'long.txt', 'w', encoding='utf-8') as out:
        for _ in range(100):
            out.write(piece)
    size, longest = (tmp_path / 'long.txt').stat().st_size, 0
    tracemalloc.start()
    count = Counter()
    for text in documents.read_files([tmp_path / 'long.txt'], lambda done: None):
        count.update(text)
        longest = max(longest, len(text))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == {c: 100 * 2**13 for c in '猫🐈é'} and longest < 2**18 and peak < size / 3


@pytest.mark.parametrize('before', [*range(2**16 - 14, 2**16 + 2), 3 * 2**16 - 5])
def test_an_end_of_text_is_found_wherever_a_read_ends(tmp_path, before):
    parts = ['猫' * (before - 7) + '<|endof', 'b' * 2**17 + '<', '<|endoftext', '']
    (tmp_path / 'a.txt').write_text(tokenizer.END_OF_TEXT.join(parts), encoding='utf-8')
    read = list(documents.read_files([tmp_path / 'a.txt'], lambda done: None))
    assert ''.join(read) == ''.join(parts) and tokenizer.END_OF_TEXT not in read   # and nothing of it is left
    assert all(len(text) < 2**18 for text in read)


# ---- what users do

@pytest.mark.parametrize('content, args, words', [
    (None, ['--input=story.txt'], ['story.txt', 'no such file']),
    (b'', ['--input=story.txt'], ['story.txt', '0 tokens']),
    (b'caf\xe9', ['--input=story.txt'], ['story.txt', 'not UTF-8', '0xe9']),
    (b'end \xf0\x9f', ['--input=story.txt'], ['story.txt', 'not UTF-8']),
    (b'one document', ['--input=story.txt'], ['story.txt', 'too few', 'more text']),
    (b'x', ['--input=.'], ['bpe300']),
    (b'x', ['--input=story.txt', '--tokenizer=word'], ['word', 'bpe<N>']),
    (b'x', ['--input=story.txt', '--tokenizer=bpe99999'], ['bpe99999', '65536']),
    (b'x', ['--input=story.txt', '--val_fraction=0.7'], ['0.7']),
    (b'x', ['--dataset=other'], ['other', 'pydocs', '--input']),
    (b'x', ['--input=story.txt', '--dataset=pydocs'], ['pydocs', 'taken'])])
def test_a_mistake_ends_in_one_line_and_leaves_nothing(tmp_path, content, args, words):
    if content is not None:
        (tmp_path / 'story.txt').write_bytes(content)
    if words == ['bpe300']:   # a folder without text
        (tmp_path / 'story.txt').unlink()
        words = ['.jsonl']
    fails_in_one_line(prepare(tmp_path, *args), *words)
    assert os.listdir(tmp_path / 'data') == ['.lock'] if (tmp_path / 'data').exists() else True


@pytest.mark.parametrize('line, words', [
    ('{"text": "fine"}\n\n{"txt": "no"}', ['line 3', 'txt']), ('{"text": 3}', ['line 1']), ('[1]', ['line 1']),
    ('{"text": "\\ud800"}', ['line 1'])])
def test_a_malformed_line_is_named(tmp_path, line, words):
    (tmp_path / 'a.jsonl').write_text(line)
    fails_in_one_line(prepare(tmp_path, '--input=a.jsonl'), 'a.jsonl', *words)


def test_a_broken_gzip_file_is_named(tmp_path):
    whole = gzip.compress(b'{"text": "hello"}\n' * 10000)
    (tmp_path / 'a.jsonl.gz').write_bytes(whole[:len(whole) // 2])
    fails_in_one_line(prepare(tmp_path, '--input=a.jsonl.gz'), 'a.jsonl.gz', 'broken')


def test_a_full_disk_leaves_nothing(tmp_path):
    resource = pytest.importorskip('resource')
    (tmp_path / 'story.txt').write_text(story(), encoding='utf-8')
    result = prepare(tmp_path, '--input=story.txt',
                     first=functools.partial(resource.setrlimit, resource.RLIMIT_FSIZE, (20000, 20000)))
    fails_in_one_line(result, 'large')   # the system's own words
    assert os.listdir(tmp_path / 'data') == ['.lock']


# ---- nothing lost, nothing silently wrong

def small_set(folder, *args, text=None, **kwargs):
    """A prepared data set's folder, of bytes, which needs no training."""
    (folder / 'story.txt').write_text(text or story(1000), encoding='utf-8')
    status, out, err = prepare(folder, '--input=story.txt', '--tokenizer=byte', *args, **kwargs)
    assert status == 0, err
    return folder / 'data/mine-byte'


def contents(folder):
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob('*') if file.is_file()}


def test_a_data_set_is_never_replaced_and_both_names_are_said(tmp_path, mine):
    small_set(tmp_path)
    before = contents(tmp_path / 'data')
    (tmp_path / 'other.txt').write_text(story(1010), encoding='utf-8')
    fails_in_one_line(prepare(tmp_path, '--input=other.txt', '--tokenizer=byte'), 'made from story.txt', 'from other.txt', 'delete it first')
    shutil.copytree(mine[0], tmp_path / 'data/mine-bpe300')
    ranks = tokenizer.train_bpe(tokenizer.count_words([story(99).upper()]), 299)
    (tmp_path / 'out').mkdir()
    tokenizer.save_tokenizer(tokenizer.make_tokenizer('bpe300', ranks), tmp_path / 'out')
    before = contents(tmp_path / 'data')
    fails_in_one_line(prepare(tmp_path, '--input=other.txt', '--tokenizer=out'), 'mine-bpe300', 'another tokenizer', 'in out:', '--dataset=NAME')
    assert contents(tmp_path / 'data') == before


def test_a_second_preparation_at_once_is_refused_and_a_killed_ones_lock_is_no_obstacle(tmp_path):
    code = f"""
import sys, time
sys.path.insert(0, {str(ROOT)!r})
from stlm import files
held = files.lock('data')
print('ready', flush=True)
time.sleep(600)"""
    other = subprocess.Popen([sys.executable, '-c', code], cwd=tmp_path, stdout=subprocess.PIPE)
    other.stdout.readline()
    (tmp_path / 'story.txt').write_text(story(1000), encoding='utf-8')
    fails_in_one_line(prepare(tmp_path, '--input=story.txt', '--tokenizer=byte'), 'another run')
    assert os.listdir(tmp_path / 'data') == ['.lock']
    other.kill()
    other.communicate()
    small_set(tmp_path)
    assert sorted(os.listdir(tmp_path / 'data')) == ['.lock', 'mine-byte']


def test_two_preparations_at_once_leave_one_whole_data_set(tmp_path):
    (tmp_path / 'story.txt').write_text(story(20000), encoding='utf-8')
    command = [sys.executable, str(ROOT / 'prepare_wiki.py'), '--input=story.txt', '--dataset=mine', '--tokenizer=byte']
    both = [subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE) for _ in range(2)]
    ends = [(process.communicate()[1], process.returncode) for process in both]
    assert 0 in [status for _, status in ends]
    assert all(status == 0 or b'another run is writing here' in err or b'is there already' in err for err, status in ends)
    is_whole('mine', tmp_path / 'data')
    assert sorted(os.listdir(tmp_path / 'data')) == ['.lock', 'mine-byte']


def is_whole(name, data):
    """Its files are, bit for bit, those that were written."""
    folder, meta = prepare_wiki.load_data(name, 'byte', data)
    for split, has in meta['splits'].items():
        assert hashlib.sha256((folder / f'{split}.bin').read_bytes()).hexdigest() == has['sha256']


def test_a_folder_of_something_else_is_left_alone_and_a_linked_one_is_written_to(tmp_path):
    data = small_set(tmp_path)
    (data / 'meta.json').unlink()
    (data / 'notes.txt').write_text('mine')
    before = contents(tmp_path / 'data')
    fails_in_one_line(prepare(tmp_path, '--input=story.txt', '--tokenizer=byte'), 'no meta.json')
    assert contents(tmp_path / 'data') == before
    (tmp_path / 'disk').mkdir()
    shutil.rmtree(data)
    data.symlink_to('../disk')
    small_set(tmp_path)
    assert data.is_symlink() and (tmp_path / 'disk/meta.json').exists()


def test_no_link_is_followed_to_a_file_that_is_not_ours(tmp_path):
    """As a stranger's archive could bring them: each of our names leads to a file of mine."""
    precious, data = tmp_path / 'thesis.txt', tmp_path / 'data/mine-byte'
    data.mkdir(parents=True)
    precious.write_text('years of work')
    for name in prepare_wiki.FILES:
        os.link(precious, data / name) if name == 'val.bin' else (data / name).symlink_to(precious)
    (tmp_path / 'data/.lock').symlink_to(precious)
    (tmp_path / 'story.txt').write_text(story(1000), encoding='utf-8')
    fails_in_one_line(prepare(tmp_path, '--input=story.txt', '--tokenizer=byte'), '.lock', 'a link')
    (tmp_path / 'data/.lock').unlink()
    assert prepare(tmp_path, '--input=story.txt', '--tokenizer=byte')[0] == 0
    assert precious.read_text() == 'years of work' and not any(file.is_symlink() for file in data.iterdir())
    is_whole('mine', tmp_path / 'data')


def exits(call, *args):
    """The one line that a call ends in."""
    with pytest.raises(Failure) as error:
        call(*args)
    assert len(str(error.value).splitlines()) == 1
    return str(error.value)


def test_damage_that_costs_little_to_see_is_seen_at_every_load(mine, tmp_path):
    shutil.copytree(mine[0], tmp_path / 'mine-bpe300')
    rng = random.Random(0)
    for name in 'meta.json', 'train.bin', 'val.bin', 'test.bin':
        file = tmp_path / 'mine-bpe300' / name
        whole = file.read_bytes()
        harms = [b'', whole[:len(whole) // 2], whole[:-1], whole + b'0']
        if name == 'meta.json':
            harms += [b'[]', b'3', b'{}', b'[' * 100_000, whole.replace(b'"documents": ', b'"documents": 1', 1)]
            for _ in range(200):
                place = rng.randrange(len(whole))
                flip = bytes([whole[place] ^ 1 << rng.randrange(8)])
                harms += [whole[:place] + flip + whole[place + 1:]] * (not (whole[place:place + 1] + flip).isspace())
        for harm in harms:
            file.write_bytes(harm)
            assert 'mine-bpe300' in exits(prepare_wiki.load_data, 'mine', 'bpe300', tmp_path)
        file.write_bytes(whole)
    prepare_wiki.load_data('mine', 'bpe300', tmp_path)
    (tmp_path / 'mine-bpe300/meta.json').write_text('{"format": 2}')
    line = exits(prepare_wiki.load_data, 'mine', 'bpe300', tmp_path)
    assert 'format 2' in line and 'reads 3' in line and 'prepare it again' in line


# ---- nothing learned from what is held out

def test_the_tokenizer_is_trained_on_the_training_split_alone(mine):
    data, meta, encoding = mine
    (data.parent / 'story.txt').write_text(story(), encoding='utf-8')
    texts = documents.read_files([data.parent / 'story.txt'], lambda done: None)
    seen = [text for text in texts if prepare_wiki.split_of(text, 0.2) == 'train']
    assert encoding.ranks == tokenizer.train_bpe(tokenizer.count_words(seen), 299)


@pytest.mark.parametrize('small, readings', [(2**24, 1), (1000, 2)])
def test_a_text_that_memory_holds_is_read_once_and_both_ways_give_the_same(mine, tmp_path, monkeypatch, small, readings):
    (tmp_path / 'story.txt').write_text(story(), encoding='utf-8')
    calls, read_files = [], documents.read_files
    monkeypatch.setattr(prepare_wiki, 'SMALL', small)
    monkeypatch.setattr(documents, 'read_files', lambda *args: calls.append(args) or read_files(*args))
    prepare_wiki.prepare('mine', 'bpe300', str(tmp_path / 'story.txt'), 0.2, tmp_path)
    assert len(calls) == readings
    for name in 'train.bin', 'val.bin', 'test.bin', 'tokenizer.tiktoken':
        assert (tmp_path / 'mine-bpe300' / name).read_bytes() == (mine[0] / name).read_bytes()
    assert prepare_wiki.load_data('mine', 'bpe300', tmp_path)[1]['left_out'] == mine[1]['left_out']


def test_what_is_held_out_is_the_same_share_of_a_text_that_memory_holds_and_of_a_larger_one(tmp_path, monkeypatch):
    (tmp_path / 'story.txt').write_text('\n\n'.join(story(100) + str(i) for i in range(200)), encoding='utf-8')
    for name, small in ('held', 2**24), ('read', 1000):
        monkeypatch.setattr(prepare_wiki, 'SMALL', small)
        prepare_wiki.prepare(name, 'byte', str(tmp_path / 'story.txt'), data_dir=tmp_path)
    held, read = (prepare_wiki.load_data(name, 'byte', tmp_path)[1]['splits'] for name in ('held', 'read'))
    assert held == read
    total = sum(has['documents'] for has in read.values())
    assert 0.02 < read['val']['documents'] / total < 0.09   # README's 0.05


def test_another_folders_tokenizer_is_taken_as_it_is(mine, tmp_path):
    (tmp_path / 'novel.txt').write_text(story(999).upper(), encoding='utf-8')
    args = ['--input=novel.txt', '--dataset=novel', f'--tokenizer={mine[0]}', '--val_fraction=0.2']
    status, out, err = run(tmp_path, 'prepare_wiki.py', *args)
    assert status == 0 and '--dataset=novel' in out, err
    folder, meta = prepare_wiki.load_data('novel', str(mine[0]), tmp_path / 'data')
    assert folder.name == 'novel-bpe300' and meta['tokenizer'] == mine[1]['tokenizer']
    assert (folder / 'tokenizer.tiktoken').read_bytes() == (mine[0] / 'tokenizer.tiktoken').read_bytes()
    shutil.rmtree(folder)
    assert run(tmp_path, 'prepare_wiki.py', *args[:2], '--tokenizer=bpe300', '--val_fraction=0.2')[0] == 0
    assert 'another tokenizer' in exits(prepare_wiki.load_data, 'novel', str(mine[0]), tmp_path / 'data')
    fails_in_one_line(run(tmp_path, 'prepare_wiki.py', *args[:2], '--tokenizer=data'), 'tokenizer.meta.json', 'missing')


# ---- small texts

NAMES = '\n'.join(f'name{i * 7919 % 30011}' for i in range(26000))   # 240 kB without a blank line


@pytest.mark.parametrize('text, how', [
    (NAMES, 'last parts'), (NAMES.replace('\n', ' '), 'last parts'), (NAMES.replace('\n', ''), 'last parts'),
    ('A title\n\n' + 'x' * 2000, 'last parts'), (tokenizer.END_OF_TEXT.join(['one' * 400, 'two' * 400, 'three' * 40]), 'last parts'),
    ('\n\n'.join('a novel ' * 600 + str(i) for i in range(60)), 'hash'),
    (tokenizer.END_OF_TEXT.join(f'{i} line' * 9 for i in range(25)), 'last parts')], ids=range(7))
def test_a_small_text_has_some_in_each_split_and_nothing_is_lost(tmp_path, text, how):
    (tmp_path / 'a.txt').write_text(text)
    status, out, err = run(tmp_path, 'prepare_wiki.py', '--input=a.txt', '--dataset=a', '--tokenizer=byte')
    assert status == 0 and how in out, (out, err)
    folder, meta = prepare_wiki.load_data('a', 'byte', tmp_path / 'data')
    splits = [(folder / f'{split}.bin').read_bytes() for split in ('train', 'val', 'test')]
    assert how in meta['split'] and all(len(split) > 1 for split in splits)
    if how != 'hash':
        assert b''.join(splits).replace(b'\xff', b'').decode() == text.replace(tokenizer.END_OF_TEXT, '')   # in its order
    if text == NAMES:   # cut where a line ends, near the shares that were asked for
        assert splits[0].endswith(b'\n') and splits[1].endswith(b'\n')
        assert [len(split) / len(text) for split in splits] == pytest.approx([0.9, 0.05, 0.05], abs=0.01)


def test_any_text_of_any_share_has_three_parts():
    rng = random.Random(0)
    for _ in range(2000):
        size = rng.choice([100, 101, 137, 1000])
        text, share = ''.join(rng.choices('ab \n', k=size)), rng.choice([1e-9, 0.001, 0.01, 0.05, 0.2, 0.4, 0.499999])
        cuts = sorted(rng.sample(range(1, size), rng.randrange(4)))
        texts = [text[a:b] for a, b in zip([0, *cuts], [*cuts, size])]
        parts, _ = prepare_wiki.split_small(texts, share)
        assert all(part for _, part in parts) and {split for split, _ in parts} == {'train', 'val', 'test'}
        assert sorted(''.join(part for _, part in parts)) == sorted(text)


# ---- text silently left out

def test_names_in_any_case_are_read_in_one_order_and_what_is_not_read_is_counted(tmp_path, capsys):
    (tmp_path / 'in/deep').mkdir(parents=True)
    for name in 'in/b.txt', 'in/A.TXT', 'in/deep/b.Txt', 'in/C.JSONL', 'in/notes.pdf', 'in/deep.txt':
        (tmp_path / name).write_text('{"text": "C"}' if 'JSON' in name else name)
    (tmp_path / 'in/d.JSONL.GZ').write_bytes(gzip.compress(b'{"text": "d"}'))
    (tmp_path / 'in/linked').symlink_to('deep')
    files = documents.input_files(f'{tmp_path}/in')
    right = ['A.TXT', 'C.JSONL', 'b.txt', 'd.JSONL.GZ', 'deep/b.Txt', 'deep.txt']   # capitals first, also on Windows
    assert [file.relative_to(tmp_path).as_posix() for file in files] == [f'in/{name}' for name in right]
    assert list(documents.read_files(files, lambda done: None))[:4] == ['in/A.TXT', 'C', 'in/b.txt', 'd']
    assert '6 of 8 files are read' in capsys.readouterr().out   # a linked folder isn't entered


def test_a_file_that_a_link_names_again_adds_nothing(tmp_path, monkeypatch):
    (tmp_path / 'in/deep').mkdir(parents=True)
    (tmp_path / 'in/0.txt').write_text(story(3000))   # of many documents
    monkeypatch.chdir(tmp_path)
    once = [*documents.clean(documents.own_files('in')[1](lambda done: None), Counter())]
    (tmp_path / 'in/1.txt').symlink_to('0.txt')
    (tmp_path / 'in/deep/2.txt').symlink_to('../0.txt')
    left_out = Counter()
    assert [*documents.clean(documents.own_files('in')[1](lambda done: None), left_out)] == once and len(once) > 3
    assert left_out['duplicate'] == 2 * len(once)


def test_twelve_thousand_files_are_not_silent_and_take_seconds(tmp_path, capsys, monkeypatch):
    (tmp_path / 'in').mkdir()
    for i in range(12000):
        (tmp_path / f'in/{i}.{"txt" if i % 2 else "pdf"}').write_text(f'text {i}')
    compared, equal = [], type(tmp_path).__eq__
    monkeypatch.setattr(type(tmp_path), '__eq__', lambda a, b: compared.append(1) or equal(a, b))
    files, read = documents.own_files(str(tmp_path / 'in'))
    assert len(compared) < 10 * 12000   # each with each would be 72,000,000
    assert len(files) == 6000 and '6000 of 12000 files' in capsys.readouterr().out


@pytest.mark.parametrize('line, words', [
    ('{"text": "a\\ud800b"}', ['line 1', 'surrogates', 'ud800']), ('{"paragraphs": "Document"}', ['line 1', 'paragraphs']),
    ('{"text": ' + '[' * 100_000, ['line 1', 'recursion']), ('{"text": "a", "title": 7}', ['line 1', 'text']),
    ('{"paragraphs": {"a": "b"}}', ['line 1']), ('{"paragraphs": ["a", 3]}', ['line 1'])], ids=range(6))
def test_what_json_allows_and_text_does_not_says_why(tmp_path, line, words):
    (tmp_path / 'a.jsonl').write_text(line)
    fails_in_one_line(prepare(tmp_path, '--input=a.jsonl'), 'a.jsonl', *words)


@pytest.mark.parametrize('name', ['../../x', 'a/b', 'a:1e400', 'a,b', '..', '', '.hidden', 'a\\b', 'a..b'])
def test_a_name_never_leads_out_of_the_data_folder(tmp_path, name):
    (tmp_path / 'story.txt').write_text(story(100))
    fails_in_one_line(run(tmp_path, 'prepare_wiki.py', '--input=story.txt', '--tokenizer=byte', f'--dataset={name}'), 'dataset=')
    assert 'dataset=' in exits(prepare_wiki.load_data, name, 'byte', tmp_path) and os.listdir(tmp_path) == ['story.txt']


def test_the_next_command_can_be_pasted(tmp_path):
    (tmp_path / 'story.txt').write_text(story(1000))
    _, out, _ = run(tmp_path, 'prepare_wiki.py', '--input=story.txt', '--tokenizer=byte', '--dataset=my novel')
    assert 'python train.py --dataset="my novel" --tokenizer=byte --out_dir="out/my novel"' in out


def test_a_gzip_file_whose_line_unpacks_to_gigabytes_is_refused_before_it_fills_the_memory(tmp_path):
    resource = pytest.importorskip('resource')
    with gzip.open(tmp_path / 'a.jsonl.gz', 'wb') as out:
        out.write(b'{"text": "fine"}\n{"text": "')
        for _ in range(100):
            out.write(b'x' * 2**20)
    result = prepare(tmp_path, '--input=a.jsonl.gz', first=functools.partial(resource.setrlimit, resource.RLIMIT_AS, (2**33, 2**33)))
    fails_in_one_line(result, 'a.jsonl.gz', 'line 2', '67,108,864 characters')


def test_the_next_command_fits_a_short_text_and_too_short_a_text_is_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'short.txt').write_text(story(60), encoding='utf-8')
    status, out, err = run(tmp_path, 'prepare_wiki.py', '--input=short.txt', '--dataset=short', '--tokenizer=byte')
    assert status == 0 and '--init_from=FOLDER' in out, err
    *_, command = [line for line in out.splitlines() if line.startswith('next: ')]
    flags = shlex.split(command)[3:]
    assert '--block_size=128' in flags
    _, out, err = run(tmp_path, 'train.py', *flags, '--max_iters=1', '--device=cpu')
    assert 'bits per byte' in out, err
    usual = int(re.search(r'--block_size=(\d+)', run(tmp_path, 'train.py', '--help')[1])[1])
    for tokens, fits in (usual, False), (usual + 1, True):
        text = [f'{chr(97 + i) * (tokens - 1)}' for i in range(3)]
        monkeypatch.setattr(prepare_wiki, 'split_small', lambda *args: ([*zip(prepare_wiki.SPLITS, text)], 'as the test says'))
        prepare_wiki.prepare(f'of {tokens}', 'byte', str(tmp_path / 'short.txt'), data_dir='data')
        prepare_wiki.print_next(f'of {tokens}', 'byte', 'data')
        assert ('--block_size' in capsys.readouterr().out) != fits
    (tmp_path / 'line.txt').write_text(story(8), encoding='utf-8')
    fails_in_one_line(run(tmp_path, 'prepare_wiki.py', '--input=line.txt', '--dataset=line', '--tokenizer=byte'), 'line.txt', 'too few')


def test_a_byte_without_a_token_is_one_line(mine, tmp_path):
    ranks = {token: i for token, i in mine[2].ranks.items() if token != b'z'}
    tokenizer.save_tokenizer(tokenizer.make_tokenizer('noz', ranks), tmp_path)
    (tmp_path / 'a.txt').write_text(story(500) + 'A zebra.')
    result = run(tmp_path, 'prepare_wiki.py', '--input=a.txt', '--dataset=a', '--tokenizer=.')
    fails_in_one_line(result, "'z'", 'U+007A')
