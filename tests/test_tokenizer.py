"""Tokenizers: the merges are the naive algorithm's, every text comes back, and what is saved is checked when loaded."""
import json
import random
import sys
from collections import Counter

import pytest
import requests
import tiktoken
from tiktoken import _educational

from configurator import Failure
from stlm import tokenizer
from helpers import story


def naive_bpe(counts, size, max_bytes):
    """All pairs counted anew for each merge; of equally common ones that with the lowest ids."""
    ids = {bytes([byte]): byte for byte in range(256)}
    split = {word: [bytes([byte]) for byte in word] for word in counts}
    while len(ids) < size:
        pairs = Counter()
        for word, n in counts.items():
            for a, b in zip(split[word], split[word][1:]):
                pairs[a, b] += n * (len(a + b) <= max_bytes)
        a, b = max(pairs, key=lambda pair: (pairs[pair], -ids[pair[0]], -ids[pair[1]]), default=(b'', b''))
        if not pairs[a, b]:
            break
        ids[a + b] = len(ids)
        for word, parts in split.items():
            i, new = 0, []
            while i < len(parts):
                hit = parts[i:i + 2] == [a, b]
                new.append(a + b if hit else parts[i])
                i += 1 + hit
            split[word] = new
    return ids


@pytest.mark.parametrize('words', [
    ['low', 'lower', 'newest', 'widest', 'wide', 'älter', 'a' * 40, 'ab' * 9, 'aab' * 7 + 'a'], ['a' * 500],
    [''.join(random.Random(1).choices('abc', k=600))], [''.join(random.Random(2).choices('天地玄黄', k=300))]])
@pytest.mark.parametrize('max_bytes', [3, 8, 99])
def test_the_merges_are_those_of_the_naive_algorithm(words, max_bytes):
    counts = {word.encode(): n for word, n in Counter(random.Random(0).choices(words, k=500)).items()}
    assert tokenizer.train_bpe(counts, 330, max_bytes) == naive_bpe(counts, 330, max_bytes)


def test_the_work_of_training_grows_with_the_text_even_if_that_is_one_word():
    """Counted in steps of Python, which other work on the machine doesn't change."""
    rng, steps = random.Random(0), Counter()
    word = ''.join(chr(0x4e00 + int(min(rng.expovariate(1 / 300), 5000))) for _ in range(6000)).encode()

    def count(frame, event, arg):
        frame.f_trace_lines, frame.f_trace_opcodes = False, True
        steps[event] += 1
        return count

    before = sys.gettrace()
    sys.settrace(count)
    try:
        tokenizer.train_bpe({word: 1}, 400)
    finally:
        sys.settrace(before)
    assert 10 * len(word) < steps['opcode'] < 400 * len(word)   # 125; 1,260 where each merge looks at the whole text


@pytest.fixture(scope='module')
def trained():
    return tokenizer.make_tokenizer('bpe300', tokenizer.train_bpe(tokenizer.count_words([story()]), 299))


def test_encoding_equals_tiktokens_own_teaching_encoder(trained):
    teacher = _educational.SimpleBytePairEncoding(pat_str=tokenizer.WORDS, mergeable_ranks=trained.ranks)
    text = story(60) + '\n\n  def f(x):\n\treturn x**2 # 1234567 ﷽ 👩‍👩‍👧'
    assert trained.encode_ordinary(text) == teacher.encode(text, visualise=None)


@pytest.mark.parametrize('name', ['trained', 'byte'])
def test_any_text_comes_back_even_one_that_looks_like_the_end_of_a_text(trained, name):
    encoding = trained if name == 'trained' else tokenizer.make_tokenizer('byte', tokenizer.named_ranks('byte'))
    rng = random.Random(0)
    for _ in range(200):
        text = ''.join(chr(rng.choice([rng.randrange(128), rng.randrange(0x800), rng.randrange(0x10000, 0x110000)]))
                       for _ in range(40)) + tokenizer.END_OF_TEXT
        ids = encoding.encode_ordinary(text)
        assert encoding.decode_bytes(ids).decode() == text and encoding.eot_token not in ids
        assert encoding.encode_to_numpy(text).tolist() == ids


def test_gpt2_without_its_long_tokens_is_lossless_and_keeps_its_ids(monkeypatch):
    ranks = {bytes([i]): i for i in range(256)} | {b'ab': 256, b'abab': 257, b'abababab': 258}
    small = tiktoken.Encoding('gpt2', pat_str=tokenizer.WORDS, mergeable_ranks=ranks, special_tokens={})
    monkeypatch.setattr(tiktoken, 'get_encoding', lambda name: small)
    whole = tokenizer.make_tokenizer('gpt2', tokenizer.named_ranks('gpt2'), end_of_text=259)
    short = tokenizer.make_tokenizer('gpt2-4', tokenizer.named_ranks('gpt2-4'), end_of_text=259)
    assert whole.encode_ordinary('abababab') == [258] and short.encode_ordinary('abababab') == [257, 257]
    assert tokenizer.spelling_of(short)[255:] == [b'\xff', b'ab', b'abab', None, b''] and short.n_vocab == whole.n_vocab


def test_ids_may_begin_anywhere_and_a_byte_without_a_token_is_one_line(capfd, tmp_path):
    ranks = {bytes([b]): b + 17 for b in range(256) if b not in 'ã'.encode()} | {'é'.encode(): 400, b'12': 401}
    odd = tokenizer.make_tokenizer('odd', ranks, pattern=r'\p{N}|\P{N}+', end_of_text=0, vocab_size=500)
    assert odd.encode_ordinary('é12') == [400, ord('1') + 17, ord('2') + 17]   # digits one by one, as the pattern says
    with pytest.raises(Failure, match=r"^tokenizer=odd has no token for 'ã' \(U\+00E3\)$"):
        odd.encode_ordinary('é12 pão')
    spelled = tokenizer.spelling_of(odd)
    assert len(spelled) == odd.n_vocab == 500 and spelled[0] == b'' and spelled[1] is None and spelled[17] == b'\0'
    assert {i: token for i, token in enumerate(spelled) if token} == {i: token for token, i in ranks.items()}
    tokenizer.save_tokenizer(odd, tmp_path)
    again = tokenizer.load_tokenizer(None, tmp_path)
    assert tokenizer.spec_of(again) == tokenizer.spec_of(odd) and again.encode_ordinary('é12') == odd.encode_ordinary('é12')
    assert capfd.readouterr() == ('', '')   # tiktoken, when it panics, writes to the terminal itself


def test_what_is_saved_is_loaded_and_anything_else_is_one_line(trained, tmp_path):
    tokenizer.save_tokenizer(trained, tmp_path)
    spec = json.loads(json.dumps(tokenizer.spec_of(trained)))
    assert sorted(file.name for file in tmp_path.iterdir()) == ['tokenizer.meta.json', 'tokenizer.tiktoken']
    for given in spec, None:
        assert tokenizer.load_tokenizer(given, tmp_path).encode_ordinary(story(20)) == trained.encode_ordinary(story(20))
    others = [spec | change for change in (dict(vocab_size=299), dict(end_of_text=5), dict(max_token_bytes=2), dict(
        name='../x'), dict(sha256='0'), dict(pattern='('), dict(pattern=None), dict(name=3))] + [{}, [], 'byte']
    for wrong in others:
        with pytest.raises(Failure) as error:
            tokenizer.load_tokenizer(wrong, tmp_path)
        assert len(str(error.value).splitlines()) == 1, wrong
    rng = random.Random(0)
    for file in tmp_path.iterdir():
        whole = file.read_bytes()
        flip = bytearray(whole)
        flip[rng.randrange(len(flip))] ^= 1
        for harm in b'', whole[:len(whole) // 2], bytes(flip), whole + b'QQ== 7\n', None:
            file.write_bytes(harm) if harm is not None else file.unlink()
            with pytest.raises(Failure) as error:
                tokenizer.load_tokenizer(None, tmp_path)
            assert len(str(error.value).splitlines()) == 1 and str(tmp_path) in str(error.value)
        file.write_bytes(whole)
    tokenizer.save_tokenizer(tokenizer.make_tokenizer('byte', tokenizer.named_ranks('byte')), tmp_path)   # in place of the other
    assert tokenizer.load_tokenizer(None, tmp_path).name == 'byte'


def test_without_gpt2s_vocabulary_the_line_says_what_to_take(tmp_path, monkeypatch):
    def unreachable(name):
        raise requests.ConnectionError
    monkeypatch.setattr(tiktoken, 'get_encoding', unreachable)
    with pytest.raises(Failure) as error:
        tokenizer.named_ranks('gpt2')
    assert 'TIKTOKEN_CACHE_DIR=FOLDER' in str(error.value) and '--tokenizer=bpe4096' in str(error.value)
