"""Text -> token files: lossless, whole or absent, split by the text alone."""
import functools
import gzip
import json
import os
import random
import resource
import sys
import tracemalloc
from collections import Counter

import numpy as np
import pytest

import prepare_wiki
import tokenizer
from helpers import fails_in_one_line, run, story


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
    return data, json.loads((data / 'meta.json').read_text()), tokenizer.load(None, data)


# ---- token files

def test_the_files_hold_the_text_document_by_document(mine):
    data, meta, encoding = mine
    documents = []
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
        documents += texts
    assert sorted(''.join(documents)) == sorted(story())   # nothing lost, nothing twice
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
    monkeypatch.setattr(prepare_wiki, 'download', lambda *args: pytest.fail('downloaded'))
    for call in (lambda: prepare_wiki.input_files(str(tmp_path)),
                 lambda: prepare_wiki.prepare('simplewiki', 'byte', data_dir=tmp_path, source='wikimedia')):
        with pytest.raises(SystemExit, match='a?.parquet: .*pip install pyarrow'):
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
    total = sum(map(Counter, meta['splits'].values()), Counter())
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
        encoding = tokenizer.load(None, data)
        ids = np.fromfile(data / 'val.bin', dtype='<u2').tolist()
        assert encoding.decode_bytes([i for i in ids if i != encoding.eot_token]).decode() == (
            ''.join(part for part in prepare_wiki.read_files([tmp_path / 'story.txt'], lambda done: None)
                    if prepare_wiki.split_of(part, 0.2) == 'val'))
