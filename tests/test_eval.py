"""Multiple choice: the harness's prompts, exact log-probabilities, metrics worked out by hand."""
import hashlib
import http.server
import io
import json
import random
import re
import runpy
import sys
import tarfile
import threading
import zipfile
from dataclasses import asdict

import pytest
import requests
import tiktoken
import torch

import eval_mc
import prepare_wiki
from configurator import FORMAT
from helpers import ROOT, story
from model import GPT, Config
from test_model import BYTES, tiny


@pytest.fixture(scope='module')
def encoding():
    ranks = prepare_wiki.train_bpe(prepare_wiki.count_words([story()]), 400)
    return tiktoken.Encoding('bpe401', pat_str=prepare_wiki.WORDS, mergeable_ranks=ranks,
                             special_tokens={prepare_wiki.END: 400})


def write(path, *records):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text('\n'.join(r if isinstance(r, str) else json.dumps(r) for r in records) + '\n', encoding='utf-8')
    return path


def exits(*words):
    """The exit's message has these words, and is a line or two."""
    class Exits:
        def __enter__(self):
            return self

        def __exit__(self, kind, error, trace):
            assert kind is SystemExit and str(error).count('\n') < 2, (kind, error)
            for word in words:
                assert word in str(error), (word, str(error))
            return True
    return Exits()


# ---- log-probabilities

def random_pairs(n_contexts=15, most=64):
    """Contexts that are shared, of equal length, longer than the model reads; continuations from 1 token to all."""
    rng, pairs = random.Random(0), []
    for _ in range(n_contexts):
        context = [rng.randrange(97) for _ in range(rng.choice([1, 2, 9, 9, 9, 40, 62, 63, 64, 65, 90]))]
        sizes = rng.choice([[1], [1, 1, 2, 2, 7, 20]])
        pairs += [(context, [rng.randrange(97) for _ in range(rng.choice(sizes))]) for _ in range(4)]
    pairs += [(context, [rng.randrange(97) for _ in range(most)]) for context in ([5], [1, 2, 3])]
    rng.shuffle(pairs)
    return pairs


@pytest.mark.parametrize('change', [{}, BYTES])
@pytest.mark.parametrize('batch_tokens', [1, 300, 4096])
def test_log_probabilities_equal_those_of_each_choice_read_alone(change, batch_tokens):
    model, pairs = tiny(**change), random_pairs()
    for p in model.parameters():   # sharp distributions
        p.data *= 2
    expected = []
    for context, continuation in pairs:   # before freeze(); the harness's truncation, word for word
        ids = torch.tensor([(context + continuation)[-(64 + 1):]])
        with torch.no_grad():
            expected.append(-model(ids[:, :-1], ids[:, 1:])[0, -len(continuation):].double().sum().item())
    found = eval_mc.log_probs(model, pairs, batch_tokens)
    torch.testing.assert_close(torch.tensor(found), torch.tensor(expected).double(), atol=1e-4, rtol=1e-6)
    assert len({round(x, 3) for x in expected}) > len(pairs) // 2


def test_a_context_is_read_once_and_nothing_is_padding(monkeypatch):
    monkeypatch.setattr(eval_mc, 'LEAST', 0)   # smaller batches rather than any padding
    model, pairs, read = tiny(), random_pairs(), []
    hidden = model.hidden
    monkeypatch.setattr(model, 'hidden', lambda idx, caches: read.append(idx.numel()) or hidden(idx, caches))
    progress = []
    eval_mc.log_probs(model, pairs, progress=progress.append)
    contexts = {tuple((a + b)[-65:][:-len(b)]) for a, b in pairs}
    assert sum(read) == sum(map(len, contexts)) + sum(len(b) - 1 for a, b in pairs)
    assert progress == sorted(progress) and progress[-1] == 1


def test_context_and_continuation_are_encoded_together(encoding):
    lines = story(40).splitlines()
    for line in filter(None, lines):
        for cut in range(1, len(line)):
            start, rest = eval_mc.encode(encoding, line[:cut], line[cut:])
            assert start == encoding.encode_ordinary(line[:cut].rstrip())
            assert rest == encoding.encode_ordinary(line)[len(start):]
    space = eval_mc.encode(prepare_wiki.ByteTokenizer(), 'ab  ', ' c')
    assert space == ([97, 98], [32, 32, 32, 99])   # a context's last spaces are the continuation's
    assert eval_mc.encode(encoding, '', ' cat') == ([400], encoding.encode_ordinary(' cat'))


def test_a_choice_that_a_model_cannot_read_is_named():
    model = tiny(vocab_size=256)
    with exits("' xxx", '66 tokens', '1 to 64'):
        eval_mc.evaluate(model, prepare_wiki.ByteTokenizer(), [eval_mc.question('Q', ['y', 'x' * 65], 0)])


# ---- metrics

def test_metrics_equal_those_worked_out_by_hand():
    items = [eval_mc.question('', ['no', 'nooo'], 0), eval_mc.question('', ['éé', 'abc'], 0),
             eval_mc.question('', ['a', 'b', 'c', 'd'], 2), eval_mc.question('', ['a', 'b', 'c', 'd'], 1)]
    scores = [[-2, -3],                                 # acc right; per character -1, -0.75: wrong
              [-2.4, -2.7],                             # acc right; per character -1.2, -0.9; per byte -0.6, -0.9
              [-1, -1, -1, -1], [-3, -1, -1, -2]]       # the first of equals is chosen: wrong, then right
    result = eval_mc.metrics(items, scores)
    assert result['n'] == 4 and result['chance'] == (0.5 + 0.5 + 0.25 + 0.25) / 4
    assert (result['acc'], result['acc_norm'], result['acc_bytes']) == (0.75, 0.25, 0.5)
    assert result['log_prob'] == pytest.approx((-2 - 2.4 - 1 - 1) / 4)
    assert result['acc_se'] == pytest.approx(0.25)      # sqrt((3 * 0.25**2 + 0.75**2) / 3) / sqrt(4)
    assert result['acc_z'] == pytest.approx(0.375 / ((2 * 0.5 * 0.5 + 2 * 0.25 * 0.75)**0.5 / 4))   # of a guesser
    one = eval_mc.metrics(items[:1], scores[:1])
    assert (one['acc'], one['acc_z']) == (1, 1) and one['acc_se'] != one['acc_se']   # unknown


def test_a_model_that_knows_one_word_chooses_it_wherever_it_stands(encoding):
    rng, model = random.Random(0), tiny(vocab_size=401)
    known = torch.zeros(401)
    known[encoding.encode_ordinary(' moon')] = 1e30
    model.tokens.spell([], known)
    orders = [rng.sample(['seven', 'moon', 'cat', 'idea'], 4) for _ in range(30)]
    result = eval_mc.evaluate(model, encoding, [eval_mc.question('Which?', names, names.index('moon')) for names in orders])[0]
    assert result['acc'] == result['acc_norm'] == 1


# ---- prompts

MMLU = ['"  Is it?\nReally? ",yes, no,"a, b",d,C', 'Two?,1,2,3,4,B']


@pytest.fixture
def folder(tmp_path):
    """A record or more of each task, in native layout."""
    def arc(stem, texts, labels, key):
        return dict(id='x', question=dict(stem=stem, choices=[dict(text=t, label=l) for t, l in zip(texts, labels)]),
                    answerKey=key)
    for part in ('Easy', 'Challenge'):
        write(tmp_path / f'arc/ARC-{part}-Test.jsonl', arc(f'{part}?', ['x', 'y', 'z'], '123', '3'),
              arc('Five — naïve?', 'pqrst', 'ABCDE', 'D'))
        write(tmp_path / f'arc/ARC-{part}-Train.jsonl', *(arc(f'T{i}', ['u', 'v'], 'AB', 'B') for i in range(9)))
    write(tmp_path / 'winogrande/dev.jsonl',
          dict(sentence="Ann saw Bea so _ 's  glad she_d. ", option1='Ann', option2='Bea', answer='2'))
    write(tmp_path / 'hellaswag/hellaswag_val.jsonl', dict(
        ind=4, activity_label='How to BAKE', ctx_a='[header] Mix it. [title] Stir  twice', ctx_b='the COOK', label=2,
        endings=['eats [step] it.', ' [title] Go   on', 'stops.', 'x [substeps] y']))
    for split, rows in dict(dev=['D1,a,b,c,d,A', 'D2,e,f,g,h,D'], test=MMLU).items():
        write(tmp_path / f'mmlu/{split}/high_school_art_{split}.csv', *rows)
        write(tmp_path / f'mmlu/{split}/virology_{split}.csv', *rows)
    return tmp_path


def test_prompts_of_arc(folder):
    first, second = eval_mc.load('arc_easy', folder)
    assert first == (['Question: Easy?\nAnswer:'] * 3, ['x', 'y', 'z'], 2, '')
    assert second == (['Question: Five — naïve?\nAnswer:'] * 5, list('pqrst'), 3, '')
    assert eval_mc.load('arc_challenge', folder)[0].contexts[0] == 'Question: Challenge?\nAnswer:'
    draw = random.Random(1234)   # how the harness draws: from Train, anew for each item
    for item in eval_mc.load('arc_easy', folder, num_fewshot=2):
        a, b = draw.sample(range(9), 2)
        assert item.contexts[0].startswith(f'Question: T{a}\nAnswer: v\n\nQuestion: T{b}\nAnswer: v\n\nQuestion: ')


def test_prompts_of_winogrande_score_what_follows_the_option(folder):
    item, = eval_mc.load('winogrande', folder)
    assert item == (['Ann saw Bea so Ann', 'Ann saw Bea so Bea'], ["'s  glad she_d."] * 2, 1, '')


def test_prompts_of_hellaswag_are_cleaned(folder):
    item, = eval_mc.load('hellaswag', folder)
    assert item.contexts == ['How to BAKE: Mix it.. Stir twice The cook'] * 4 and item.gold == 2
    assert item.choices == ['eats it.', ' Go  on', 'stops.', 'x y']   # two of three spaces stay: cleaned once


def test_prompts_of_mmlu(folder):
    items = eval_mc.load('mmlu', folder)
    assert [item.group for item in items] == ['high school art'] * 2 + ['virology'] * 2
    head = 'The following are multiple choice questions (with answers) about high school art.\n\n'
    asked = 'Is it?\nReally?\nA. yes\nB.  no\nC. a, b\nD. d\nAnswer:'
    assert items[0] == ([head + asked] * 4, list('ABCD'), 2, 'high school art')
    shown = eval_mc.load('mmlu', folder, num_fewshot=2)[0]
    assert shown.contexts[0] == (head + 'D1\nA. a\nB. b\nC. c\nD. d\nAnswer: A\n\n'
                                 'D2\nA. e\nB. f\nC. g\nD. h\nAnswer: D\n\n' + asked)
    cloze = eval_mc.load('mmlu_cloze', folder, num_fewshot=1)[1]
    assert cloze == (['The following are questions (with answers) about high school art.\n\n'
                      'Question: D1\nAnswer: a\n\nQuestion: Two?\nAnswer:'] * 4, list('1234'), 1, 'high school art')
    assert len(eval_mc.load('mmlu', folder, limit=1)) == 2   # of each subject
    with exits('num_fewshot=3', 'has 2 examples'):
        eval_mc.load('mmlu', folder, num_fewshot=3)


def test_own_questions_name_the_answer_as_one_likes(tmp_path):
    asked = dict(question='2 + 2?', choices=['3', '4', 'B'])
    file = write(tmp_path / 'my.jsonl', {**asked, 'answer': '4'}, '', {**asked, 'answer': 1},
                 {**asked, 'answer': 'C'}, {**asked, 'answer': 'B'}, {**asked, 'question': '', 'answer': 'A'},
                 dict(sentence_good='She sleeps.', sentence_bad='She sleep.', UID='x'))
    file.write_bytes(b'\xef\xbb\xbf' + file.read_bytes().replace(b'\n', b'\r\n'))   # as on Windows
    items = eval_mc.load(str(file))
    assert [item.gold for item in items] == [1, 1, 2, 2, 0, 0]
    assert items[0].contexts == ['Question: 2 + 2?\nAnswer:'] * 3 and items[4].contexts == [''] * 3
    assert items[5] == ([''] * 2, ['She sleeps.', 'She sleep.'], 0, '')


@pytest.mark.parametrize('bad', [
    '{"question": "x"', '{"question": "x", "choices": ["a", "b"]}', '[1, 2]', '7', '{"sentence_good": "x"}',
    '{"question": "x", "choices": ["a", "b"], "answer": "c"}', '{"question": "x", "choices": ["a", "b"], "answer": 2}',
    '{"question": "x", "choices": ["a", "b"], "answer": true}', '{"question": "x", "choices": "ab", "answer": "a"}',
    '{"question": 3, "choices": ["a", "b"], "answer": "a"}', '{"question": "x", "choices": ["a", 2], "answer": "a"}',
    '{"question": "x", "choices": ["a"], "answer": "a"}', '{"question": "x", "choices": ["a", ""], "answer": "a"}'])
def test_a_malformed_line_is_named(tmp_path, bad):
    file = write(tmp_path / 'my.jsonl', dict(question='x', choices=['a', 'b'], answer='a'), '', bad)
    with exits('my.jsonl, line 3', '"choices"'):
        eval_mc.load(str(file))


def test_a_line_that_is_not_utf_8_is_named_and_so_is_an_empty_file(tmp_path, folder):
    (tmp_path / 'my.jsonl').write_bytes(b'\n{"question": "na\xefve"}')
    with exits('my.jsonl, line 2', 'UTF-8'):
        eval_mc.load(str(tmp_path / 'my.jsonl'))
    with exits('no question'):
        eval_mc.load(str(write(tmp_path / 'empty.jsonl')))
    write(folder / 'mmlu/test/virology_test.csv', 'Two?,1,2,3,B')
    with exits('virology_test.csv, line 1'):
        eval_mc.load('mmlu', folder)


# ---- files

@pytest.fixture
def server(tmp_path):
    """(address, bytes served) of a server of tmp_path/www that knows Range, but for the file `plain`."""
    served = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            data, asked = (tmp_path / 'www' / self.path[1:]).read_bytes(), self.headers['Range']
            start, end = map(int, re.fullmatch(r'bytes=(\d+)-(\d+)', asked).groups())
            part = data if self.path == '/plain' else data[start:end + 1]
            self.send_response(200 if self.path == '/plain' else 206)
            self.send_header('Content-Length', len(part))
            self.send_header('Content-Range', f'bytes {start}-{end}/{len(data)}')
            self.end_headers()
            self.wfile.write(part)
            served.append(len(part))

        def log_message(self, *args):
            pass
    with http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f'http://127.0.0.1:{server.server_port}', served
        server.shutdown()


def test_one_member_of_a_large_remote_zip_is_read_without_the_rest(tmp_path, server, monkeypatch):
    address, served = server
    wanted, noise = story(500).encode(), random.Random(0).randbytes(2**23)
    (tmp_path / 'www').mkdir()
    with zipfile.ZipFile(tmp_path / 'www/a.zip', 'w', zipfile.ZIP_DEFLATED) as archive:
        for name, data in (('f/before', noise), ('f/x.jsonl', wanted), ('f/after', noise)):
            archive.writestr(name, data)
    good, path = hashlib.sha256(wanted).hexdigest(), tmp_path / 'data/x.jsonl'
    for source, words in (((f'{address}/a.zip', 'f', '0' * 64), ['sha256']),
                          ((f'{address}/a.zip', 'g', good), ['KeyError']),
                          (('http://127.0.0.1:9', 'f', good), ['ConnectionError', '--data_dir', str(path)])):
        monkeypatch.setitem(eval_mc.ZIPPED, 'x.jsonl', source)
        with exits(*words):
            eval_mc.fetched(path)
        assert not path.parent.exists()
    served.clear()
    monkeypatch.setitem(eval_mc.ZIPPED, 'x.jsonl', (f'{address}/a.zip', 'f', good))
    assert eval_mc.fetched(path).read_bytes() == wanted and [*path.parent.iterdir()] == [path]
    assert sum(served) < 2**22 < 2**24
    (tmp_path / 'www/a.zip').rename(tmp_path / 'www/plain')   # a server without Range
    monkeypatch.setitem(eval_mc.ZIPPED, 'y.jsonl', (f'{address}/plain', 'f', good))
    with exits('RequestException'):
        eval_mc.fetched(tmp_path / 'y.jsonl')


def test_a_remote_file_reads_as_the_file(tmp_path, server):
    (tmp_path / 'www').mkdir()
    data = random.Random(0).randbytes(1000)
    (tmp_path / 'www/a').write_bytes(data)
    remote, local, rng = eval_mc.RemoteFile(f'{server[0]}/a'), io.BytesIO(data), random.Random(0)
    for _ in range(30):
        where = rng.choice([(rng.randrange(1200), 0), (-rng.randrange(900), 2)])
        assert remote.seek(*where) == local.seek(*where) and remote.tell() == local.tell()
        n = rng.randrange(300)
        assert remote.read(n) == local.read(n)


def test_of_mmlus_archive_the_test_and_dev_files_are_kept(tmp_path, monkeypatch):
    def download(url, path, size=None, sha256=None):
        assert 'hendrycks' in url and sha256.startswith('bec563ba')
        path.parent.mkdir()
        with tarfile.open(path, 'w') as archive:
            for name in ('README.txt', 'dev/a_dev.csv', 'test/a_test.csv', 'auxiliary_train/a.csv', 'val/a.csv'):
                info = tarfile.TarInfo(f'data/{name}')
                info.size = len(MMLU[1])
                archive.addfile(info, io.BytesIO(MMLU[1].encode()))
        path.with_name('mmlu.tar.json').write_text('{}')
    monkeypatch.setattr(eval_mc, 'download', download)
    item, = eval_mc.load('mmlu', tmp_path / 'new')
    assert item.choices == list('ABCD') and item.gold == 1
    files = sorted(str(f.relative_to(tmp_path / 'new')) for f in (tmp_path / 'new').rglob('*') if f.is_file())
    assert files == ['mmlu/dev/a_dev.csv', 'mmlu/test/a_test.csv']


# ---- the script

@pytest.fixture
def script(tmp_path, folder, monkeypatch, capsys):
    """eval_mc.py as a command, in this process, on a tiny model's checkpoint; what it prints."""
    monkeypatch.chdir(tmp_path)
    config = Config(vocab_size=256, block_size=64, n_layer=1, n_head=2, n_kv_head=2, n_embd=16, d_ff=16)
    torch.manual_seed(0)
    model = GPT(config).eval()
    (tmp_path / 'out').mkdir()
    torch.save(dict(format=FORMAT, model=model.state_dict(), config=asdict(config), settings=dict(tokenizer='byte'),
                    iter=7), tmp_path / 'out/ckpt.pt')

    def run(*args):
        flags = ['--out_dir=out', f'--data_dir={folder}', '--device=cpu', '--dtype=float32', *args]
        monkeypatch.setattr(sys, 'argv', ['eval_mc.py', *flags])
        monkeypatch.setattr(sys, 'excepthook', sys.excepthook)
        runpy.run_path(str(ROOT / 'eval_mc.py'), run_name='__main__')
        return capsys.readouterr().out
    return model, run


def test_the_script_scores_every_task_and_keeps_every_log_probability(script, tmp_path, folder):
    model, run = script
    out = run('--limit=1')
    assert 'out, first 1 of each task, of MMLU of each subject' in out and '| Pythia-70M ³ |' in out
    for task in eval_mc.TASKS:
        kept = json.loads((tmp_path / f'out/mc_{task}.json').read_text())
        items = eval_mc.load(task, folder, limit=1)
        result, scores = eval_mc.evaluate(model, prepare_wiki.ByteTokenizer(), items)
        assert kept['n'] == len(items) and kept['step'] == 7 and kept['acc'] == result['acc']
        assert [item['gold'] for item in kept['items']] == [item.gold for item in items]
        assert [item['log_probs'] for item in kept['items']] == scores
        assert f'| {task} | 0 | {len(items)} |' in out
    assert '| virology | 0 | 1 | 25.00 |' in out
    widths = {line.count('|') for line in out.splitlines() if line.startswith('|')}
    assert widths == {9, 8}   # every row has its table's columns


def test_the_script_scores_ones_own_questions(script, tmp_path):
    pairs = [dict(sentence_good=f'She {word}s.', sentence_bad=f'She {word}.') for word in ('eat', 'run')]
    write(tmp_path / 'pairs.jsonl', *pairs)
    out = script[1]('--file=pairs.jsonl', '--num_fewshot=2')
    assert '| pairs_own | 0 | 2 | 50.00 |' in out and 'Pythia' not in out
    kept = json.loads((tmp_path / 'out/mc_pairs_own.json').read_text())
    assert len(kept['items']) == 2 and all(len(item['log_probs']) == 2 for item in kept['items'])
    with exits('arc: no such file', 'arc_easy'):
        script[1]('--tasks=arc')
