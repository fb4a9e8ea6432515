"""Text -> token files: lossless, whole or absent, split by the text alone."""
import functools
import gzip
import json
import os
import random
import resource
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
    files = prepare_wiki.input_files(str(tmp_path / 'in'))
    assert list(prepare_wiki.read_files(files, lambda done: None)) == [
        'A\n\nfirst 🐈', 'second\nline', 'third', 'fourth']


def test_passages_paragraphs_and_parquet_become_articles(tmp_path):
    passages = [{'wiki_id': w, 'paragraph_id': i, 'title': f'T{w}', 'text': f'{w}.{i}'} for w in (7, 3) for i in range(12)]
    random.Random(0).shuffle(passages)   # in no order, over two files
    for name, part in ('a', passages[:9]), ('b', passages[9:]):
        (tmp_path / f'{name}.jsonl').write_text('\n'.join(map(json.dumps, part)))
    (tmp_path / 'c.jsonl').write_text(json.dumps({'id': '1', 'title': 'P', 'paragraphs': ['one', 'two']}))
    (tmp_path / 'd.jsonl').write_text(json.dumps({'title': 'only a title', 'text': ' '}))
    read = list(prepare_wiki.read_files(prepare_wiki.input_files(str(tmp_path)), lambda done: None))
    assert read[:2] == ['P\n\none\n\ntwo', ' ']   # passages come last, once they are all there
    assert sorted(read[2:]) == [f'T{w}\n\n' + '\n\n'.join(f'{w}.{i}' for i in range(12)) for w in (3, 7)]


def test_parquet_is_read_and_a_broken_one_is_named(tmp_path):
    pyarrow, parquet = pytest.importorskip('pyarrow'), pytest.importorskip('pyarrow.parquet')
    columns = {'id': ['1', '2'], 'url': ['', ''], 'title': ['A', 'B'], 'text': ['first 🐈', 'second']}
    parquet.write_table(pyarrow.table(columns), tmp_path / 'a.parquet')
    files = prepare_wiki.input_files(str(tmp_path))
    assert list(prepare_wiki.read_files(files, lambda done: None)) == ['A\n\nfirst 🐈', 'B\n\nsecond']
    (tmp_path / 'a.parquet').write_bytes((tmp_path / 'a.parquet').read_bytes()[:-9])
    fails_in_one_line(prepare(tmp_path, '--input=a.parquet'), 'a.parquet', 'broken')


def test_without_pyarrow_parquet_fails_in_one_line_before_anything_is_downloaded(tmp_path, monkeypatch):
    (tmp_path / 'a.parquet').touch()
    monkeypatch.setitem(sys.modules, 'pyarrow', None)
    monkeypatch.setattr(documents, 'download', lambda *args: pytest.fail('downloaded'))
    for call in (lambda: prepare_wiki.input_files(str(tmp_path)),
                 lambda: prepare_wiki.prepare('simplewiki', 'byte', data_dir=tmp_path, source='wikimedia')):
        with pytest.raises(Failure, match='a?.parquet: .*pip install pyarrow'):
            call()


@pytest.mark.parametrize('left_out, text', [
    (1, 'Mercury\n\nMercury may refer to:\n\nMercury (planet), near the Sun'), (1, 'Sand\n\nSand could mean'),
    (1, 'War (disambiguation)\n\nWar is a conflict.'), (1, 'Bell\n\nBell can also mean one of these:\nBell, a city'),
    (0, 'Cat\n\nA cat is an animal. It may refer to a lion.'), (0, 'Cat\n\nA cat.\n\nThe word can mean:'),
    (0, 'Can\n\nA can may mean trouble: it is sharp.')])
def test_a_disambiguation_stub_is_told_from_an_article(left_out, text):
    for wikipedia in False, True:
        counts = Counter()
        kept = list(prepare_wiki.clean([text], wikipedia, counts))
        assert counts['disambiguation'] == left_out * wikipedia and len(kept) == 1 - left_out * wikipedia


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
    assert meta['left_out'] == {'empty': 150, 'duplicate': 100, 'disambiguation': 0}
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
    for text in prepare_wiki.read_files([tmp_path / 'long.txt'], lambda done: None):
        count.update(text)
        longest = max(longest, len(text))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == {c: 100 * 2**13 for c in '猫🐈é'} and longest < 2**18 and peak < size / 3


# ---- what users do

@pytest.mark.parametrize('content, args, words', [
    (None, ['--input=story.txt'], ['story.txt', 'no such file']),
    (b'', ['--input=story.txt'], ['story.txt', 'empty']),
    (b'caf\xe9', ['--input=story.txt'], ['story.txt', 'not UTF-8', '0xe9']),
    (b'end \xf0\x9f', ['--input=story.txt'], ['story.txt', 'not UTF-8']),
    (b'one document', ['--input=story.txt'], ['12 characters', 'too few']),
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
    assert not list(tmp_path.glob('data/*'))


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


def test_a_full_disk_leaves_the_old_data_whole_and_nothing_else(mine):
    data = mine[0]
    before = {file.name: file.read_bytes() for file in data.iterdir()}
    result = prepare(data.parent.parent, '--input=story.txt',
                     first=functools.partial(resource.setrlimit, resource.RLIMIT_FSIZE, (20000, 20000)))
    fails_in_one_line(result, 'large')   # the system's own words
    assert {file.name: file.read_bytes() for file in data.iterdir()} == before
    assert os.listdir(data.parent) == ['mine-bpe300']


def test_a_name_prepared_again_with_other_text_has_the_new_texts_tokenizer(tmp_path):
    for text in (story(), story().upper().replace('E', 'Q')):
        (tmp_path / 'story.txt').write_text(text, encoding='utf-8')
        assert prepare(tmp_path, '--input=story.txt')[0] == 0
        data = tmp_path / 'data' / 'mine-bpe300'
        encoding = tokenizer.load_tokenizer(None, data)
        ids = np.fromfile(data / 'val.bin', dtype='<u2').tolist()
        assert encoding.decode_bytes([i for i in ids if i != encoding.eot_token]).decode() == (
            ''.join(part for part in prepare_wiki.read_files([tmp_path / 'story.txt'], lambda done: None)
                    if prepare_wiki.split_of(part, 0.2) == 'val'))


# ---- nothing lost, nothing silently wrong

def small_set(folder, *args, text=None, **kwargs):
    """A prepared data set's folder, of bytes, which needs no training."""
    (folder / 'story.txt').write_text(text or story(1000), encoding='utf-8')
    status, out, err = prepare(folder, '--input=story.txt', '--tokenizer=byte', *args, **kwargs)
    assert status == 0, err
    return folder / 'data/mine-byte'


def test_a_second_preparation_is_refused_and_a_killed_ones_lock_is_no_obstacle(tmp_path):
    data = small_set(tmp_path)
    before = {file.name: file.read_bytes() for file in data.iterdir()}
    code = f"""
import sys, time
sys.path.insert(0, {str(ROOT)!r})
from stlm import files
held = files.lock('data/mine-byte.part')
print('ready', flush=True)
time.sleep(60)"""
    other = subprocess.Popen([sys.executable, '-c', code], cwd=tmp_path, stdout=subprocess.PIPE)
    other.stdout.readline()
    fails_in_one_line(prepare(tmp_path, '--input=story.txt', '--tokenizer=byte'), 'another run', str(other.pid))
    assert {file.name: file.read_bytes() for file in data.iterdir()} == before
    other.kill()
    other.communicate()
    assert (tmp_path / 'data/mine-byte.part').exists()
    small_set(tmp_path, text=story(1010))
    assert os.listdir(tmp_path / 'data') == ['mine-byte']


def test_two_preparations_at_once_leave_one_whole_data_set(tmp_path):
    (tmp_path / 'story.txt').write_text(story(20000), encoding='utf-8')
    command = [sys.executable, str(ROOT / 'prepare_wiki.py'), '--input=story.txt', '--dataset=mine', '--tokenizer=byte']
    both = [subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE) for _ in range(2)]
    ends = [(process.communicate()[1], process.returncode) for process in both]
    assert 0 in [status for _, status in ends]
    assert all(status == 0 or b'another run is writing here' in err for err, status in ends)
    prepare_wiki.check_files(*prepare_wiki.load_data('mine', 'byte', tmp_path / 'data'))
    assert os.listdir(tmp_path / 'data') == ['mine-byte']


def test_a_linked_folder_stays_linked_and_a_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / 'disk').mkdir()
    (tmp_path / 'data').mkdir()
    (tmp_path / 'data/mine-byte').symlink_to('../disk/mine')
    for n in 1000, 1010:
        data = small_set(tmp_path, text=story(n))
        assert data.is_symlink() and os.listdir(tmp_path / 'disk') == ['mine']
        total = sum(has['chars'] for has in prepare_wiki.load_data('mine', 'byte', tmp_path / 'data')[1]['splits'].values())
        assert total == len(story(n))
    (tmp_path / 'disk/mine/meta.json').unlink()
    fails_in_one_line(prepare(tmp_path, '--input=story.txt', '--tokenizer=byte'), 'no meta.json')
    assert (data / 'train.bin').exists()


def test_a_death_between_the_two_renames_loses_nothing(tmp_path):
    data = small_set(tmp_path)
    work = data.with_name('mine-byte.part')
    work.mkdir()
    os.replace(data, work / 'old')
    (tmp_path / 'story.txt').write_bytes(b'\xff')
    fails_in_one_line(prepare(tmp_path, '--input=story.txt', '--tokenizer=byte'), 'not UTF-8')
    prepare_wiki.check_files(*prepare_wiki.load_data('mine', 'byte', tmp_path / 'data'))
    assert os.listdir(data.parent) == ['mine-byte']


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


def test_on_request_every_byte_is_compared(mine, tmp_path):
    data = tmp_path / 'data/mine-bpe300'
    shutil.copytree(mine[0], data)
    check = ['--dataset=mine', '--tokenizer=bpe300', '--check=True']
    status, out, err = run(tmp_path, 'prepare_wiki.py', *check)
    assert status == 0 and 'whole' in out, err
    for name in 'train.bin', 'tokenizer.tiktoken':
        whole = (data / name).read_bytes()
        harm = bytearray(whole)
        harm[len(harm) // 2] ^= 1
        (data / name).write_bytes(harm)
        fails_in_one_line(run(tmp_path, 'prepare_wiki.py', *check), name)
        (data / name).write_bytes(whole)


# ---- nothing learned from what is held out

def test_the_tokenizer_is_trained_on_the_training_split_alone(mine):
    data, meta, encoding = mine
    (data.parent / 'story.txt').write_text(story(), encoding='utf-8')
    texts = prepare_wiki.read_files([data.parent / 'story.txt'], lambda done: None)
    seen = [text for text in texts if prepare_wiki.split_of(text, 0.2) == 'train']
    assert encoding.ranks == tokenizer.train_bpe(tokenizer.count_words(seen), 299)


@pytest.mark.parametrize('held, readings', [(2**24, 1), (1000, 2)])
def test_a_text_that_memory_holds_is_read_once_and_both_ways_give_the_same(mine, tmp_path, monkeypatch, held, readings):
    (tmp_path / 'story.txt').write_text(story(), encoding='utf-8')
    calls, read_files = [], prepare_wiki.read_files
    monkeypatch.setattr(prepare_wiki, 'HELD', held)
    monkeypatch.setattr(prepare_wiki, 'read_files', lambda *args: calls.append(args) or read_files(*args))
    prepare_wiki.prepare('mine', 'bpe300', str(tmp_path / 'story.txt'), 0.2, tmp_path)
    assert len(calls) == readings
    for name in 'train.bin', 'val.bin', 'test.bin', 'tokenizer.tiktoken':
        assert (tmp_path / 'mine-bpe300' / name).read_bytes() == (mine[0] / name).read_bytes()
    assert prepare_wiki.load_data('mine', 'bpe300', tmp_path)[1]['left_out'] == mine[1]['left_out']


def test_another_folders_tokenizer_is_taken_as_it_is(mine, tmp_path):
    (tmp_path / 'novel.txt').write_text(story(999).upper(), encoding='utf-8')
    args = ['--input=novel.txt', '--dataset=novel', f'--tokenizer={mine[0]}', '--val_fraction=0.2']
    status, out, err = run(tmp_path, 'prepare_wiki.py', *args)
    assert status == 0 and '--dataset=novel' in out, err
    folder, meta = prepare_wiki.load_data('novel', str(mine[0]), tmp_path / 'data')
    assert folder.name == 'novel-bpe300' and meta['tokenizer'] == mine[1]['tokenizer']
    assert (folder / 'tokenizer.tiktoken').read_bytes() == (mine[0] / 'tokenizer.tiktoken').read_bytes()
    status, out, err = run(tmp_path, 'prepare_wiki.py', *args[:2], '--tokenizer=bpe300', '--val_fraction=0.2')
    assert 'another tokenizer' in exits(prepare_wiki.load_data, 'novel', str(mine[0]), tmp_path / 'data')
    fails_in_one_line(run(tmp_path, 'prepare_wiki.py', *args[:2], '--tokenizer=data'), 'tokenizer.meta.json', 'missing')


# ---- small texts

NAMES = '\n'.join(f'name{i * 7919 % 30011}' for i in range(26000))   # 240 kB without a blank line


@pytest.mark.parametrize('text, how', [
    (NAMES, 'last parts'), (NAMES.replace('\n', ' '), 'last parts'), (NAMES.replace('\n', ''), 'last parts'),
    ('A title\n\n' + 'x' * 200, 'last parts'), (tokenizer.END.join(['one' * 40, 'two' * 40, 'three' * 40]), 'last parts'),
    ('\n\n'.join('a novel ' * 600 + str(i) for i in range(60)), 'hash'),
    (tokenizer.END.join(f'{i} line' * 9 for i in range(25)), 'last documents')], ids=range(7))
def test_a_small_text_has_some_in_each_split_and_nothing_is_lost(tmp_path, text, how):
    (tmp_path / 'a.txt').write_text(text)
    status, out, err = run(tmp_path, 'prepare_wiki.py', '--input=a.txt', '--dataset=a', '--tokenizer=byte')
    assert status == 0 and how in out, (out, err)
    folder, meta = prepare_wiki.load_data('a', 'byte', tmp_path / 'data')
    splits = [(folder / f'{split}.bin').read_bytes() for split in ('train', 'val', 'test')]
    assert how in meta['split'] and all(len(split) > 1 for split in splits)
    if how != 'hash':
        assert b''.join(splits).replace(b'\xff', b'').decode() == text.replace(tokenizer.END, '')   # in its order
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

def test_names_in_any_case_with_commas_and_behind_links_are_read_and_the_rest_is_named(tmp_path, capsys):
    (tmp_path / 'in/deep').mkdir(parents=True)
    (tmp_path / 'elsewhere').mkdir()
    for name in 'in/A.TXT', 'in/deep/b.Txt', 'elsewhere/c.JSONL', 'Smith, John.txt', 'in/notes.pdf':
        (tmp_path / name).write_text('{"text": "c"}' if 'JSON' in name else name)
    (tmp_path / 'in/d.JSONL.GZ').write_bytes(gzip.compress(b'{"text": "d"}'))
    (tmp_path / 'in/linked').symlink_to('../elsewhere')
    (tmp_path / 'in/deep/round').symlink_to('..')   # a walk without an end, if one isn't careful
    both = f'{tmp_path}/in,{tmp_path}/Smith, John.txt'
    files = prepare_wiki.input_files(both)
    assert [file.name for file in files] == ['A.TXT', 'd.JSONL.GZ', 'b.Txt', 'c.JSONL', 'Smith, John.txt']
    assert list(prepare_wiki.read_files(files, lambda done: None)) == ['in/A.TXT', 'd', 'in/deep/b.Txt', 'c', 'Smith, John.txt']
    out = capsys.readouterr().out
    assert '5 files to read' in out and '1 (notes.pdf)' in out


@pytest.mark.parametrize('line, words', [
    ('{"text": "a\\ud800b"}', ['line 1', 'half a surrogate', 'ud800']), ('{"paragraphs": "Document"}', ['line 1', 'paragraphs']),
    ('{"text": ' + '[' * 100_000, ['line 1', 'too deep']), ('{"wiki_id": 1, "paragraph_id": 1e400, "text": "a"}', ['line 1']),
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


def test_a_byte_without_a_token_is_one_line(mine, tmp_path):
    ranks = {token: i for token, i in mine[2].ranks.items() if token != b'z'}
    tokenizer.save_tokenizer(tokenizer.make_tokenizer('noz', ranks), tmp_path)
    (tmp_path / 'a.txt').write_text(story(500) + 'A zebra.')
    result = run(tmp_path, 'prepare_wiki.py', '--input=a.txt', '--dataset=a', '--tokenizer=.')
    fails_in_one_line(result, "'z'", 'U+007A')
