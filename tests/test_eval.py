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
from collections import Counter
from dataclasses import asdict

import pytest
import torch

import eval_mc
from stlm.console import Failure
from stlm import questions
from stlm import tokenizer as tokenizers
from stlm.download import RemoteFile
from helpers import ROOT, story
from model import GPT, Config
from stlm.run import FORMAT
import test_ideas
from test_model import BYTES, TINY, tiny


@pytest.fixture(scope='module')
def encoding():
    return tokenizers.make_tokenizer('bpe401', tokenizers.train_bpe(tokenizers.count_words([story()]), 400))


def write(path, *records):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text('\n'.join(r if isinstance(r, str) else json.dumps(r) for r in records) + '\n', encoding='utf-8')
    return path


def exits(*words, lines=2):
    """The exit's message has these words, and is a line, or two where lines aren't 1."""
    class Exits:
        def __enter__(self):
            return self

        def __exit__(self, kind, error, trace):
            assert kind is Failure and str(error).count('\n') < lines, (kind, error)
            for word in words:
                assert word in str(error), (word, str(error))
            return True
    return Exits()


# ---- log-probabilities

def some(rng, n):
    return [rng.randrange(97) for _ in range(n)]


def random_questions(most=64):
    """One context for all choices and a context for each, of all lengths up to longer than the model reads; choices of
    1 token and of many, that begin alike, that are equal, and that are as long as the model reads."""
    rng, questions = random.Random(0), []
    for _ in range(50):
        start = some(rng, rng.choice([1, 2, 9, 9, 9, 40, 62, 63, 64, 65, 90]))
        ending, choices = some(rng, 5), range(rng.choice([2, 3, 4]))
        questions.append(rng.choice([
            [(start, some(rng, rng.choice([1, 1, 2, 7, 20]))) for _ in choices],
            [(start, some(rng, 1)) for _ in choices],
            [(start + some(rng, rng.choice([1, 2])), ending) for _ in choices],
            [(start, ending + some(rng, i)) for i in choices]]))
    return questions + [[([5], some(rng, most)), ([5], [7])], [([1, 2, 3], ending)] * 3]


def alone(model, questions):
    """Each choice read alone and whole, truncated as the harness does it."""
    expected = []
    for context, continuation in (choice for question in questions for choice in question):
        ids = torch.tensor([(context + continuation)[-(64 + 1):]])
        with torch.no_grad():
            expected.append(-model(ids[:, :-1], ids[:, 1:])[0, -len(continuation):].double().sum().item())
    return torch.tensor(expected).double()


@pytest.mark.parametrize('change', [{}, BYTES])
@pytest.mark.parametrize('batch_tokens', [1, 300, 4096])
def test_log_probabilities_equal_those_of_each_choice_read_alone(change, batch_tokens):
    model, questions = tiny(**change), random_questions()
    for p in model.parameters():   # sharp distributions
        p.data *= 2
    found = eval_mc.log_probs(model, questions, batch_tokens)
    assert [len(scores) for scores in found] == [len(question) for question in questions]
    expected = alone(model, questions)
    torch.testing.assert_close(torch.tensor(sum(found, [])).double(), expected, atol=1e-4, rtol=1e-5)
    assert len({round(x, 3) for x in expected.tolist()}) > len(expected) // 2


@pytest.mark.parametrize('kind', [{}, BYTES], ids=['table', 'byte_pool'])
@pytest.mark.parametrize('idea', sorted(file.stem for file in (ROOT / 'ideas').glob('[!_]*.py')))
def test_every_idea_is_scored_as_by_one_plain_call(idea, kind):
    if idea == 'factorised' and kind:
        pytest.skip('byte pooling has no table to factorise')
    leaves = dict(exit_above=0.5) if idea == 'early_exit' else {}
    model = test_ideas.tiny(idea, n_layer=4, **test_ideas.ON.get(idea, {}), **leaves, **kind)
    questions = random_questions()[::3]
    expected = alone(model, questions)
    for batch_tokens in (300, 4096):
        found = torch.tensor(sum(eval_mc.log_probs(model, questions, batch_tokens), [])).double()
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-5)


def test_what_several_choices_read_alike_is_read_once(monkeypatch):
    model, questions, read = tiny(), random_questions(), []
    hidden = model.hidden
    monkeypatch.setattr(model, 'hidden', lambda idx: read.append(tuple(idx[0].tolist())) or hidden(idx))
    progress = []
    eval_mc.log_probs(model, questions, batch_tokens=1, progress=progress.append)   # each row alone
    rows = {tuple((context + continuation)[-65:-1]) for question in questions for context, continuation in question}
    assert sorted(read) == sorted(rows) and len(rows) < sum(map(len, questions))
    assert progress == sorted(progress) and progress[-1] == 1


def test_equal_choices_have_equal_scores_to_the_last_bit(encoding):
    items = [questions.make_item('The cat sees' * n, ['the moon', 'a house', 'the moon'], 0) for n in range(1, 9)]
    result, scores = eval_mc.answer_questions(tiny(vocab_size=401), encoding, items)
    assert all(score[0] == score[2] != score[1] for score in scores)


def test_context_and_continuation_are_encoded_together(encoding):
    lines = story(40).splitlines()
    for line in filter(None, lines):
        for cut in range(1, len(line)):
            start, rest = eval_mc.encode_choice(encoding, line[:cut], line[cut:])
            assert start == encoding.encode_ordinary(line[:cut].rstrip())
            assert rest == encoding.encode_ordinary(line)[len(start):]
    space = eval_mc.encode_choice(tokenizers.make_tokenizer('byte', tokenizers.named_ranks('byte')), 'ab  ', ' c')
    assert space == ([97, 98], [32, 32, 32, 99])   # a context's last spaces are the continuation's
    assert eval_mc.encode_choice(encoding, '', ' cat') == ([400], encoding.encode_ordinary(' cat'))


def test_a_choice_that_a_model_cannot_read_is_named():
    model = tiny(vocab_size=256)
    with exits("'xxx", '66 tokens', '1 to 64'):
        eval_mc.answer_questions(model, tokenizers.make_tokenizer('byte', tokenizers.named_ranks('byte')), [questions.make_item('Q', ['y', 'x' * 65], 0)])


def test_a_choice_without_a_context_is_no_question():
    with pytest.raises(ValueError, match='2 contexts for 3 choices'):
        questions.make_item(['In France', 'In Spain'], ['Paris', 'Rome', 'Madrid'], 0)


@pytest.mark.parametrize('part', ['blocks.0.ffn.up', 'blocks.1.attn.key', 'tokens.head', 'tokens.pool', 'tokens.decoder.0.attn.out'])
def test_a_model_whose_numbers_are_none_is_refused(part):
    table, change = part == 'tokens.head', BYTES | dict(vocab_size=256, max_bytes=1)
    bytes_ = tokenizers.make_tokenizer('byte', tokenizers.named_ranks('byte'))
    model = tiny(vocab_size=256) if table else GPT(Config(**TINY | change), tokenizers.spelling_of(bytes_)).eval()
    items = [questions.make_item('The longer of the two', ['cat', 'moon'], 0)] * 3   # below 16 tokens torch's attention makes 0 of NaN
    eval_mc.answer_questions(model, bytes_, items)
    model.get_submodule(part).weight.data[5] = float('nan')
    with exits('nan', 'weights', lines=1):
        eval_mc.answer_questions(model, bytes_, items)


# ---- metrics

def test_metrics_equal_those_worked_out_by_hand():
    items = [questions.make_item('', ['no', 'nooo'], 0), questions.make_item('', ['éé', 'abc'], 0),
             questions.make_item('', ['a', 'b', 'c', 'd'], 2), questions.make_item('', ['a', 'b', 'c', 'd'], 1)]
    scores = [[-2, -3],                                 # acc right; per character -1, -0.75: wrong
              [-2.4, -2.7],                             # acc right; per character -1.2, -0.9; per byte -0.6, -0.9
              [-1, -1, -0.5, -1], [-3, -2, -1, -2]]     # right by each; wrong by each
    result = eval_mc.metrics(items, scores)
    assert result['n'] == 4 and result['chance'] == (0.5 + 0.5 + 0.25 + 0.25) / 4
    assert (result['acc'], result['acc_norm'], result['acc_bytes']) == (0.75, 0.25, 0.5)
    assert result['log_prob'] == pytest.approx((-2 - 2.4 - 0.5 - 2) / 4) and result['acc_ties'] == 0
    assert result['acc_se'] == pytest.approx(0.25)      # sqrt((3 * 0.25**2 + 0.75**2) / 3) / sqrt(4)
    assert result['acc_z'] == pytest.approx(0.375 / ((2 * 0.5 * 0.5 + 2 * 0.25 * 0.75)**0.5 / 4))   # of a guesser
    one = eval_mc.metrics(items[:1], scores[:1])
    assert (one['acc'], one['acc_z']) == (1, 1) and one['acc_se'] is None   # unknown


def test_a_tie_is_counted_and_never_right_wherever_the_right_choice_stands():
    items = [questions.make_item('', ['a', 'b', 'c'], right) for right in (0, 1, 2, 0)]
    result = eval_mc.metrics(items, [[-1, -1, -1], [-2, -1, -1], [-1, -1, -2], [-1, -2, -2]])
    assert (result['acc'], result['acc_ties']) == (0.25, 2)   # the third is wrong without a tie, the fourth right
    lengths = eval_mc.metrics([questions.make_item('', ['ab', 'abcd'], 0)], [[-1, -2]])
    assert (lengths['acc'], lengths['acc_norm'], lengths['acc_norm_ties'], lengths['acc_ties']) == (1, 0, 1, 0)


def test_a_model_that_knows_nothing_has_no_blimp_pair_right(encoding):
    model = tiny(vocab_size=401, tie_embeddings=False)
    model.tokens.head.weight.data.zero_()   # all tokens are equally likely
    pairs = [questions.make_item('', ['She sleeps.', 'She sleeps.'], 0)] * 3
    result = eval_mc.answer_questions(model, encoding, pairs)[0]
    assert (result['acc'], result['acc_ties']) == (0, 3)


def test_a_model_that_knows_one_word_chooses_it_wherever_it_stands(encoding):
    rng, model = random.Random(0), tiny(vocab_size=401, output_bias=True)
    model.tokens.head.bias.data.zero_()
    model.tokens.head.bias.data[encoding.encode_ordinary(' moon')] = 60.0
    orders = [rng.sample(['seven', 'moon', 'cat', 'idea'], 4) for _ in range(30)]
    items = [questions.make_item('Which?', names, names.index('moon')) for names in orders]
    result = eval_mc.answer_questions(model, encoding, items)[0]
    assert result['acc'] == result['acc_norm'] == 1


# ---- prompts

MMLU = ['"  Is it?\nReally? ",yes, no,"a, b",d,C', 'Two?,1,2,3,4,B']

PARADIGMS = dict(agree_1='anaphor_agreement', animate='s-selection', causative='argument_structure',
                 agree_2='anaphor_agreement')


@pytest.fixture
def folder(tmp_path):
    """A record or more of each task, in native layout."""
    def arc(stem, texts, labels, key):
        return dict(id='x', question=dict(stem=stem, choices=[dict(text=t, label=l) for t, l in zip(texts, labels)]),
                    answerKey=key)
    for part in ('Easy', 'Challenge'):
        write(tmp_path / f'arc/ARC-{part}-Test.jsonl', arc(f'{part}?', ['x', 'y', 'z'], '123', '3'),
              arc('Five — naïve?', 'pqrst', 'ABCDE', 'D'))
    write(tmp_path / 'winogrande/dev.jsonl',
          dict(sentence="Ann saw Bea so _ 's  glad she_d. ", option1='Ann', option2='Bea', answer='2'))
    write(tmp_path / 'hellaswag/hellaswag_val.jsonl', dict(
        ind=4, activity_label='How to BAKE', ctx_a='[header] Mix it. [title] Stir  twice', ctx_b='the COOK', label=2,
        endings=['eats [step] it.', ' [title] Go   on', 'stops.', 'x [substeps] y']))
    for subject in 'high_school_art', 'virology':
        write(tmp_path / f'mmlu/test/{subject}_test.csv', *MMLU)
    for name, phenomenon in PARADIGMS.items():
        write(tmp_path / f'blimp/{name}.jsonl', *(dict(
            sentence_good=f'{word} sleeps.', sentence_bad=f'{word} sleep.', field='syntax', UID=name,
            linguistics_term=phenomenon) for word in ('She', 'He', 'Zoë')))
    return tmp_path


def test_pairs_of_blimp_have_no_context_and_are_grouped_by_phenomenon(folder):
    items = questions.load_questions('blimp', folder)
    assert items[0] == ([''] * 2, ['She sleeps.', 'She sleep.'], 0, 'anaphor agreement') and len(items) == 12
    assert Counter(item.group for item in items) == {'anaphor agreement': 6, 'argument structure': 6}
    assert len(questions.load_questions('blimp', folder, limit=2)) == 4 * 2   # of each paradigm


def test_prompts_of_arc(folder):
    first, second = questions.load_questions('arc_easy', folder)
    assert first == (['Question: Easy?\nAnswer:'] * 3, ['x', 'y', 'z'], 2, '')
    assert second == (['Question: Five — naïve?\nAnswer:'] * 5, list('pqrst'), 3, '')
    assert questions.load_questions('arc_challenge', folder)[0].contexts[0] == 'Question: Challenge?\nAnswer:'


def test_prompts_of_winogrande_score_what_follows_the_option(folder):
    item, = questions.load_questions('winogrande', folder)
    assert item == (['Ann saw Bea so Ann', 'Ann saw Bea so Bea'], ["'s  glad she_d."] * 2, 1, '')


def test_prompts_of_hellaswag_are_cleaned(folder):
    item, = questions.load_questions('hellaswag', folder)
    assert item.contexts == ['How to BAKE: Mix it.. Stir twice The cook'] * 4 and item.right == 2
    assert item.choices == ['eats it.', ' Go  on', 'stops.', 'x y']   # two of three spaces stay: cleaned once


def test_prompts_of_mmlu(folder):
    items = questions.load_questions('mmlu', folder)
    assert [item.group for item in items] == ['high school art'] * 2 + ['virology'] * 2
    head = 'The following are multiple choice questions (with answers) about high school art.\n\n'
    asked = 'Is it?\nReally?\nA. yes\nB.  no\nC. a, b\nD. d\nAnswer:'
    assert items[0] == ([head + asked] * 4, list('ABCD'), 2, 'high school art')
    cloze = questions.load_questions('mmlu_cloze', folder)[1]
    assert cloze == (['The following are questions (with answers) about high school art.\n\nQuestion: Two?\nAnswer:'] * 4,
                     list('1234'), 1, 'high school art')
    assert len(questions.load_questions('mmlu', folder, limit=1)) == 2   # of each subject


def test_own_questions_name_the_answer_as_one_likes(tmp_path):
    asked = dict(question='2 + 2?', choices=['3', '4', 'B'])
    file = write(tmp_path / 'my.jsonl', {**asked, 'answer': '4'}, '', {**asked, 'answer': 1},
                 {**asked, 'answer': 'C'}, {**asked, 'answer': 'B'}, {**asked, 'question': '', 'answer': 'A'},
                 dict(sentence_good='She sleeps.', sentence_bad='She sleep.', UID='x'))
    file.write_bytes(b'\xef\xbb\xbf' + file.read_bytes().replace(b'\n', b'\r\n'))   # as on Windows
    items = questions.load_questions(str(file))
    assert [item.right for item in items] == [1, 1, 2, 2, 0, 0]
    assert items[0].contexts == ['Question: 2 + 2?\nAnswer:'] * 3 and items[4].contexts == [''] * 3
    assert items[5] == ([''] * 2, ['She sleeps.', 'She sleep.'], 0, '')


@pytest.mark.parametrize('bad', [
    '{"question": "x"', '{"question": "x", "choices": ["a", "b"]}', '[1, 2]', '7', '{"sentence_good": "x"}', 'null',
    '{"sentence_good": "x", "sentence_bad": ""}', '{"sentence_good": "x", "sentence_bad": " "}',
    '{"sentence_good": "x", "sentence_bad": ["y"]}', '{"sentence_good": "x", "sentence_bad": "y", "linguistics_term": 3}',
    '{"question": "x", "choices": ["a", "b"], "answer": "c"}', '{"question": "x", "choices": ["a", "b"], "answer": 2}',
    '{"question": "x", "choices": ["a", "b"], "answer": -1}', '{"question": "x", "choices": ["a", "b"], "answer": 0.0}',
    '{"question": "x", "choices": ["a", "b"], "answer": "C"}', '{"question": "x", "choices": ["a", "b"], "answer": "AB"}',
    '{"question": "x", "choices": ["a", "b"], "answer": ""}', '{"question": "x", "choices": ["a", "b"], "answer": ["a"]}',
    '{"question": "x", "choices": ["a", "b"], "answer": true}', '{"question": "x", "choices": "ab", "answer": "a"}',
    '{"question": "x", "choices": {"a": 1, "b": 2}, "answer": "a"}', '{"question": "x", "choices": 12, "answer": 0}',
    '{"question": null, "choices": ["a", "b"], "answer": "a"}', '{"question": ["x"], "choices": ["a", "b"], "answer": "a"}',
    '{"question": 3, "choices": ["a", "b"], "answer": "a"}', '{"question": "x", "choices": ["a", 2], "answer": "a"}',
    '{"question": "x", "choices": ["a"], "answer": "a"}', '{"question": "x", "choices": ["a", ""], "answer": "a"}',
    '{"question": "x", "choices": ["a", "a"], "answer": 0}', '{"question": "x", "choices": ["a", "b", "a "], "answer": "b"}',
    '{"sentence_good": "x", "sentence_bad": "x"}',
    r'{"question": "\ud800", "choices": ["a", "b"], "answer": 0}', r'{"question": "x", "choices": ["a", "\udc00"], "answer": 0}',
    '[' * 100000, '{"question": "x", "choices": ["a", "b"], "answer": ' + '9' * 5000 + '}', '{"a": "\0"}'])
def test_a_malformed_line_is_named(tmp_path, bad):
    file = write(tmp_path / 'my.jsonl', dict(question='x', choices=['a', 'b'], answer='a'), '', bad)
    with exits('my.jsonl, line 3', '"choices"', lines=1):
        questions.load_questions(str(file))


GOOD_ARC = dict(question=dict(stem='x', choices=[dict(text='a', label='A'), dict(text='b', label='B')]), answerKey='A')
GOOD_HELLASWAG = dict(activity_label='x', ctx_a='y', ctx_b='z', endings=['a', 'b', 'c', 'd'], label=0)
GOOD_WINOGRANDE = dict(sentence='a _ b', option1='x', option2='y', answer='1')


@pytest.mark.parametrize('task, file, good, change', [
    ('hellaswag', 'hellaswag/hellaswag_val.jsonl', GOOD_HELLASWAG, change) for change in (
        dict(label=2.9), dict(label='2'), dict(label=True), dict(label=4), dict(label=-1), dict(endings='abcd'),
        dict(endings=['a', '[step]']), dict(endings=['a', 3]), dict(ctx_a=None), dict(activity_label=7))] + [
    ('arc_easy', 'arc/ARC-Easy-Test.jsonl', GOOD_ARC, change) for change in (
        dict(answerKey='C'), dict(answerKey=1), dict(question='xy'), dict(question=dict(stem=3, choices=GOOD_ARC['question']['choices'])),
        dict(question=dict(stem='x', choices='ab')), dict(question=dict(stem='x', choices=GOOD_ARC['question']['choices'][:1])),
        dict(question=dict(stem='x', choices=[dict(text='', label='A'), dict(text='b', label='B')])))] + [
    ('winogrande', 'winogrande/dev.jsonl', GOOD_WINOGRANDE, change) for change in (
        dict(answer=1), dict(answer='3'), dict(answer='12'), dict(sentence='none'), dict(sentence='ends in _'), dict(option1=1),
        dict(sentence=['a', '_', 'b']))])
def test_a_malformed_record_of_a_task_is_named(tmp_path, task, file, good, change):
    questions.load_questions(task, write(tmp_path / file, good).parent.parent)
    write(tmp_path / file, good, {**good, **change})
    with exits(f'{file}, line 2', lines=1):
        questions.load_questions(task, tmp_path)


@pytest.mark.parametrize('row', ['Two?,1,2,3,4,', 'Two?,1,2,3,4,BC', 'Two?,1,2,3,4,b', 'Two?,1,2,3,B', 'Two?,1,2,3,4,5,B',
                                 'Two?,1,,3,4,B', 'Two?,1," ",3,4,B', 'Two?,1,2,3,4,"B', 'Two?,' + '1' * 200000 + ',2,3,4,B'])
@pytest.mark.parametrize('task', ['mmlu', 'mmlu_cloze'])
def test_a_malformed_row_of_mmlu_is_named_by_its_line_in_the_file(folder, task, row):
    write(folder / 'mmlu/test/virology_test.csv', *MMLU, row)   # whose first row has two lines
    with exits('virology_test.csv, line 4', 'question,A,B,C,D,letter', lines=1):
        questions.load_questions(task, folder)


def test_a_line_that_is_not_utf_8_is_named_and_so_is_an_empty_file(tmp_path):
    (tmp_path / 'my.jsonl').write_bytes(b'\n{"question": "na\xefve"}')
    with exits('my.jsonl, line 2', 'UTF-8'):
        questions.load_questions(str(tmp_path / 'my.jsonl'))
    (tmp_path / 'my.jsonl').write_bytes('\ufeff{"question": "x", "choices": ["a", "b"], "answer": 1}\n'.encode('utf-16'))
    with exits('my.jsonl, line 1', 'UTF-8'):
        questions.load_questions(str(tmp_path / 'my.jsonl'))
    (tmp_path / 'my.jsonl').write_bytes(b'\xef\xbb\xbf\n\n\xc3')   # signed, and cut inside of a letter
    with exits('my.jsonl, line 3', 'UTF-8'):
        questions.load_questions(str(tmp_path / 'my.jsonl'))
    with exits('no question'):
        questions.load_questions(str(write(tmp_path / 'empty.jsonl')))


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
    for source, words in (((f'{address}/a.zip', 'f/x.jsonl', '0' * 64), ['sha256']),
                          ((f'{address}/a.zip', 'g/x.jsonl', good), ['KeyError']),
                          (('http://127.0.0.1:9', 'f/x.jsonl', good), ['ConnectionError', '--data_dir', str(path)])):
        monkeypatch.setitem(questions.SOURCES, 'data/x.jsonl', source)
        with exits(*words):
            questions.fetch_source(tmp_path, 'data/x.jsonl')
        assert not path.parent.exists()
    served.clear()
    monkeypatch.setitem(questions.SOURCES, 'data/x.jsonl', (f'{address}/a.zip', 'f/x.jsonl', good))
    assert questions.fetch_source(tmp_path, 'data/x.jsonl') == path
    assert path.read_bytes() == wanted and [*path.parent.iterdir()] == [path]
    assert sum(served) < 2**22 < 2**24
    (tmp_path / 'www/a.zip').rename(tmp_path / 'www/plain')   # a server without Range
    monkeypatch.setitem(questions.SOURCES, 'y.jsonl', (f'{address}/plain', 'f/x.jsonl', good))
    with exits('RequestException', '--data_dir'):
        questions.fetch_source(tmp_path, 'y.jsonl')


def test_a_remote_file_reads_as_the_file(tmp_path, server):
    (tmp_path / 'www').mkdir()
    data = random.Random(0).randbytes(1000)
    (tmp_path / 'www/a').write_bytes(data)
    remote, local, rng = RemoteFile(f'{server[0]}/a'), io.BytesIO(data), random.Random(0)
    for _ in range(30):
        where = rng.choice([(rng.randrange(1200), 0), (-rng.randrange(900), 2)])
        assert remote.seek(*where) == local.seek(*where) and remote.tell() == local.tell()
        n = rng.randrange(300)
        assert remote.read(n) == local.read(n)


def test_mmlus_archive_is_kept_without_its_training_part(tmp_path, monkeypatch):
    def download(url, path, size=None, sha256=None):
        assert 'hendrycks' in url and sha256.startswith('bec563ba')
        path.parent.mkdir()
        with tarfile.open(path, 'w') as archive:
            for name in ('README.txt', 'dev/a_dev.csv', 'test/a_test.csv', 'auxiliary_train/a.csv', 'val/a.csv'):
                info = tarfile.TarInfo(f'data/{name}')
                info.size = len(MMLU[1])
                archive.addfile(info, io.BytesIO(MMLU[1].encode()))
        path.with_name('mmlu.tar.json').write_text('{}')
    monkeypatch.setattr(questions, 'download', download)
    item, = questions.load_questions('mmlu', tmp_path / 'new')
    assert item.choices == list('ABCD') and item.right == 1
    files = sorted(str(f.relative_to(tmp_path / 'new')) for f in (tmp_path / 'new').rglob('*') if f.is_file())
    assert files == ['mmlu/README.txt', 'mmlu/dev/a_dev.csv', 'mmlu/test/a_test.csv', 'mmlu/val/a.csv']


def test_of_blimps_archive_its_folder_of_paradigms_is_kept(tmp_path, monkeypatch):
    def download(url, path, size=None, sha256=None):
        assert url.endswith('alexwarstadt/blimp/3e56b06/BLiMP.zip') and sha256.startswith('172a1a71')
        path.parent.mkdir()
        pair = json.dumps(dict(sentence_good='a', sentence_bad='b', linguistics_term='ellipsis'))
        with zipfile.ZipFile(path, 'w') as archive:
            for name in ('data/.DS_Store', '__MACOSX/data/._x.jsonl', 'data/x.jsonl', 'data/y_2.jsonl'):
                archive.writestr(name, pair)
        path.with_name(path.name + '.json').write_text('{}')
    monkeypatch.setattr(questions, 'download', download)
    items = questions.load_questions('blimp', tmp_path / 'new')
    assert items == [([''] * 2, ['a', 'b'], 0, 'ellipsis')] * 2
    files = sorted(str(f.relative_to(tmp_path / 'new')) for f in (tmp_path / 'new').rglob('*') if f.is_file())
    assert files == ['blimp/.DS_Store', 'blimp/x.jsonl', 'blimp/y_2.jsonl']


# ---- the script

@pytest.fixture
def script(tmp_path, folder, monkeypatch, capsys):
    """eval_mc.py as a command, in this process, on a tiny model's checkpoint; what it prints."""
    monkeypatch.chdir(tmp_path)
    config = Config(vocab_size=256, block_size=64, n_layer=1, n_head=2, n_kv_head=2, n_embd=16, d_ff=16)
    torch.manual_seed(0)
    model = GPT(config).eval()
    (tmp_path / 'out').mkdir()
    spec = tokenizers.save_tokenizer(tokenizers.make_tokenizer('byte', tokenizers.named_ranks('byte')), tmp_path / 'out')
    torch.save(dict(format=FORMAT, model=model.state_dict(), config=asdict(config), settings={}, idea='', counts=None,
                    tokenizer=spec, iter=7), tmp_path / 'out/ckpt.pt')

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
    assert 'out, limit=1' in out and 'In brackets' in out
    for task in questions.TASKS:
        kept = json.loads((tmp_path / f'out/mc_{task}.json').read_text())
        items = questions.load_questions(task, folder, limit=1)
        result, scores = eval_mc.answer_questions(model, tokenizers.make_tokenizer('byte', tokenizers.named_ranks('byte')), items)
        assert kept['n'] == len(items) and kept['step'] == 7 and kept['acc'] == result['acc']
        assert [item['right'] for item in kept['items']] == [item.right for item in items]
        assert [item['log_probs'] for item in kept['items']] == scores
        assert f'| {task} | {len(items)} | {result["acc_ties"]} |' in out
        assert {group: of['n'] for group, of in kept['groups'].items()} == Counter(item.group for item in items if item.group)
    assert '| virology | 1 | 0 | 25.00% |' in out
    widths = {line.count('|') for line in out.splitlines() if line.startswith('|')}
    assert widths == {9}   # every row has the table's columns


def test_the_script_answers_your_own_questions_in_words(script, tmp_path):
    pairs = [dict(sentence_good=f'She {word}s.', sentence_bad=f'She {word}.') for word in ('eat', 'run')]
    write(tmp_path / 'pairs.jsonl', *pairs)
    out = script[1]('--file=pairs.jsonl')
    kept = json.loads((tmp_path / 'out/mc_pairs_own.json').read_text())
    assert len(kept['items']) == 2 and all(len(item['log_probs']) == 2 for item in kept['items'])
    hits = [good > bad for good, bad in (item['log_probs'] for item in kept['items'])]
    for hit, word in zip(hits, ('eat', 'run')):
        assert (f'\nright: She {word}s.\n' if hit else f'\nwrong: She {word}. (right: She {word}s.)\n') in out
    assert f'\n{sum(hits)} of 2 right; guessing gets 1.0 on average, and rarely more than 2.4\n' in out   # 1 + 2 sqrt(1/2)
    assert '|' not in out
    with exits('arc: no such file', 'arc_easy'):
        script[1]('--tasks=arc')


def test_an_answer_in_words_says_what_is_special_about_its_question(capsys):
    bytes_ = tokenizers.make_tokenizer('byte', tokenizers.named_ranks('byte'))
    items = [questions.make_item('Question: Who?\nAnswer:', ['me', 'you', 'we'], 1), questions.make_item('x' * 80, ['a', 'bc'], 1),
             questions.make_item('', ['It is.', 'It is. So'], 0), questions.make_item('', ['It is.', 'It is so.'], 0)]
    encoded = eval_mc.encode_items(bytes_, items, 64)
    eval_mc.print_answers(items, [[-1, -2, -1], [-1, -2], [-1, -2], [-2, -1]], encoded, 64)
    assert capsys.readouterr().out.splitlines() == [
        'tie:   Question: Who? Answer: me / Question: Who? Answer: we',
        f'wrong: {"x" * 80} a (right: bc) [too long: the first 18 tokens were not read]',   # 80 + 3 - (64 + 1)
        'right: It is. [one choice is the beginning of another: it is always the likelier of the two]',
        'wrong: It is so. (right: It is.)']
