"""tools/page.py: the page computes what PyTorch does, in a real browser and in node, and does what it says there."""
import json
import math
import os
import random
import re
import shutil
import subprocess
import tempfile
import unicodedata

import pytest
import torch

from configurator import Failure
from helpers import ROOT, fails_in_one_line, make_run, run, story
from stlm import run as runs
from stlm import tokenizer as tokenizers
from tools import attention, page
from tools.huggingface import DIGITS

BYTES = dict(embedding='byte_pool', n_byte_embd=16, n_byte_head=2)
KINDS = dict(grouped=dict(n_head=4, n_kv_head=2, tie_embeddings=False, output_bias=True),
             adapted=dict(n_layer=4, tie_embeddings=False, ffn='gelu', share='block', share_every=2, lora_rank=3, norm_eps=1e-3),
             shared=dict(share='ffn', rope_base=500.0),
             bytes=dict(**BYTES, n_encoder_layer=2),
             bytes_adapted=dict(**BYTES, share='block', lora_rank=2, ffn='gelu'))


# ---- pages, and two programs that run them

@pytest.fixture(scope='module')
def pages(tmp_path_factory):
    """{kind: (model, tokenizer, page's path)}: weights that int8 numbers and a scale for each row say exactly."""
    made = {}
    for kind, changes in KINDS.items():
        folder = tmp_path_factory.mktemp('pages') / kind
        make_run(folder, block_size=64, **changes)
        checkpoint = torch.load(folder / 'best.pt', weights_only=True)
        for name, p in checkpoint['model'].items():
            if p.dim() == 2:
                scale = p.abs().amax(1, keepdim=True) / 127
                p.copy_((p / scale).round() * scale)
        checkpoint['counts'] = torch.randint(0, 1000, checkpoint['counts'].shape)
        runs.save_checkpoint(folder / 'best.pt', checkpoint)
        (folder / 'page.html').write_text(page.make_page(folder, 'The cat'), encoding='utf-8')
        made[kind] = *runs.load_run(folder)[:2], folder / 'page.html'
    return made


class Node:
    """The page's first script in node, with what the second one makes of the page's data."""
    program = shutil.which('node')

    def evaluate(self, path, code):
        text = path.read_text(encoding='utf-8')
        script, data, weights = (re.search(f'<script[^>]*id="{name}">(.*?)</script>', text, re.S)[1] for name in ('model', 'run', 'weights'))
        whole = (f'{script}\nconst {{ config, pattern, end, spelling, shapes }} = {data};\n'
                 f"const model = new GPT(config, readWeights(shapes, '{weights}'), spelling), {{ tokens }} = model;\n"
                 f'const tokenizer = new Tokenizer(spelling, pattern, end);\nconsole.log(JSON.stringify({code}))')
        done = subprocess.run([self.program, '-'], input=whole, capture_output=True, text=True, encoding='utf-8')
        assert done.returncode == 0, done.stderr[-2000:]
        return json.loads(done.stdout)

    def close(self):
        pass


class Browser:
    """A headless Chromium, spoken to over two pipes: messages of its DevTools protocol, each ended by a zero byte."""
    program = next(filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome'))), None)

    def __init__(self):
        self.folder, self.n, self.session, self.events, self.path = tempfile.mkdtemp(), 0, None, [], None
        theirs_in, self.questions = os.pipe()
        answers, theirs_out = os.pipe()
        command = [self.program, '--headless', '--no-sandbox', '--disable-gpu', '--remote-debugging-pipe', f'--user-data-dir={self.folder}']
        self.process = subprocess.Popen(   # it reads from file descriptor 3 and writes to 4
            ['bash', '-c', f'exec "$@" 3<&{theirs_in} 4>&{theirs_out}', 'bash', *command], pass_fds=(theirs_in, theirs_out),
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        os.close(theirs_in)
        os.close(theirs_out)
        self.answers = os.fdopen(answers, 'rb')
        target = self.call('Target.createTarget', url='about:blank')['targetId']
        self.session = self.call('Target.attachToTarget', targetId=target, flatten=True)['sessionId']
        for domain in ('Page', 'Runtime', 'Network'):
            self.call(f'{domain}.enable')

    def read(self):
        data = b''
        while not data.endswith(b'\0'):
            byte = self.answers.read(1)
            assert byte, 'the browser has ended'
            data += byte
        return json.loads(data[:-1])

    def call(self, method, **params):
        self.n += 1
        message = dict(id=self.n, method=method, params=params) | ({'sessionId': self.session} if self.session else {})
        os.write(self.questions, json.dumps(message).encode() + b'\0')
        while (answer := self.read()).get('id') != self.n:
            self.events.append(answer)
        assert 'error' not in answer, answer
        return answer['result']

    def open(self, path):
        self.path, self.events = path, []
        self.call('Page.navigate', url=path.as_uri())
        while not any(event['method'] == 'Page.loadEventFired' for event in self.events):
            self.events.append(self.read())

    def evaluate(self, path, code):
        if path != self.path:
            self.open(path)
        answer = self.call('Runtime.evaluate', expression=code, awaitPromise=True, returnByValue=True)
        assert 'exceptionDetails' not in answer, answer
        return answer['result'].get('value')

    def close(self):
        self.process.kill()
        self.process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)


def started(kind):
    if not kind.program:
        pytest.skip(f'no {kind.__name__.lower()} here')
    program = kind()
    yield program
    program.close()


@pytest.fixture(scope='module', params=[Node, Browser])
def engine(request):
    yield from started(request.param)


@pytest.fixture(scope='module')
def either():
    yield from started(Node if Node.program else Browser)


@pytest.fixture(scope='module')
def browser():
    yield from started(Browser)


# ---- it computes what PyTorch does

READ = '''{texts}.map(text => {{
    const reading = new Reading(model);
    for (const id of [end, ...tokenizer.encode(text)]) reading.append(id);
    while (reading.unread > 0) reading.read(7);
    return [reading.ids, reading.bits.slice(1), tokens.likeliest(reading.fork(reading.ids.length), 10)];
}})'''
GO_ON = '''(() => {{
    const reading = new Reading(model), {{ tokens }} = model;
    for (let n = 0, id = {first}; n <= 100; n++) {{
        reading.append(id);
        while (reading.unread > 0) reading.read(5);
        id = sample(tokens, reading.fork(reading.ids.length), 0, 0, Math.random);
    }}
    return reading.ids.slice(1);
}})()'''


@pytest.mark.parametrize('kind', KINDS)
def test_its_log_probabilities_are_pytorchs(kind, engine, pages):
    model, tokenizer, path = pages[kind]
    texts = [line[:60] for line in story(40).splitlines() if line][:16] + ['🐈', '<script>"\\', " \n\t'll 've", '\x00\x7f\x80']
    for text, (ids, bits, ten) in zip(texts, engine.evaluate(path, READ.format(texts=json.dumps(texts))), strict=True):
        assert ids == [tokenizer.eot_token, *tokenizer.encode_ordinary(text)] and len(ids) < 64
        idx = torch.tensor([ids])
        nll = model(idx[:, :-1], idx[:, 1:])[0].detach()
        torch.testing.assert_close(torch.tensor(bits).double() * math.log(2), nll.double(), atol=1e-4, rtol=0)
        best = model.log_probs(idx)[0].exp().topk(10)   # of all tokens
        torch.testing.assert_close(torch.tensor([one['p'] for one in ten]).float(), best.values, atol=1e-5, rtol=1e-4)
        assert {one['id'] for one in ten[:9]} <= {*best.indices.tolist()}   # the last two may be as likely


@pytest.mark.parametrize('kind', KINDS)
def test_it_goes_on_as_pytorch_does(kind, engine, pages):
    model, tokenizer, path = pages[kind]
    expected = [ids.item() for ids in model.generate(torch.tensor([[tokenizer.eot_token]]), 100, temperature=0)]
    assert engine.evaluate(path, GO_ON.format(first=tokenizer.eot_token)) == expected


@pytest.mark.parametrize('kind', ['grouped', 'bytes'])
def test_a_long_text_is_read_in_windows_that_keep_the_newer_half(kind, either, pages):
    model, tokenizer, path = pages[kind]
    ids = torch.randint(tokenizer.n_vocab, (100,), generator=torch.Generator().manual_seed(0))
    bits = either.evaluate(path, f"""(() => {{
        const reading = new Reading(model);
        for (const id of {ids.tolist()}) {{ reading.append(id); while (reading.unread > 0) reading.read(9); }}
        return reading.bits.slice(1);
    }})()""")
    start = 0
    for i in range(1, len(ids)):   # token i, after the window's first i - start; every window from its beginning again
        start = i - 32 if i - start > 64 else start
        nll = model(ids[None, start:i], ids[None, start + 1:i + 1])[0, -1].item()
        assert bits[i - 1] * math.log(2) == pytest.approx(nll, abs=1e-4), i


def odd_strings(n):
    """Strings of letters of all alphabets, emoji, blanks of all kinds, contractions, and whatever Unicode has."""
    draw = random.Random(0)
    every = [chr(i) for i in range(0x20000) if unicodedata.category(chr(i)) not in ('Cn', 'Cs', 'Co')]
    blanks = [c for c in every if c.isspace() or unicodedata.category(c) in ('Zs', 'Zl', 'Zp')] + ['\ufeff', '\u200b', '  ', '\r\n', '   ']
    words = ["'s", "'ll", "'LL", "don't", "’ve", '老师', '🐈', '👩‍👩‍👧', '🇫🇷', 'é', 'e\u0301', '١٢', 'Ⅷ', '½', '２０', 'the', ' cat', '<|endoftext|>', '\x00',
             '\x85', '_', '-', '...', '日本語', 'שלום', 'ß', 'İ', '1066', 'naïve', '\ufffd']
    return [''.join(draw.choice(draw.choice([every, blanks, words, words])) for _ in range(draw.randint(1, 12))) for _ in range(n)]


@pytest.mark.parametrize('pattern', [tokenizers.WORDS, DIGITS])
def test_its_tokens_are_tiktokens_on_odd_strings(pattern, engine, pages):
    ranks = tokenizers.load_tokenizer(None, ROOT / 'pretrained/byte_10m').ranks   # GPT-2's
    tokenizer = tokenizers.make_tokenizer('gpt2-16', ranks, pattern)
    spelling = [token if token is None else token.decode('latin-1') for token in tokenizers.spelling_of(tokenizer)]
    texts = [*odd_strings(1000), 'a' * 500, ' ' * 500 + 'x', '\n' * 300]
    parts = spelling, page.javascript_pattern(pattern), tokenizer.eot_token
    arguments = ', '.join(map(json.dumps, parts))
    found = engine.evaluate(pages['shared'][2], f'(other => {json.dumps(texts)}.map(text => other.encode(text)))(new Tokenizer({arguments}))')
    for text, ids in zip(texts, found, strict=True):
        assert ids == tokenizer.encode_ordinary(text), ascii(text)


def test_byte_after_byte_too(either, tmp_path):
    tokenizer = tokenizers.make_tokenizer('byte', tokenizers.named_ranks('byte'))
    model, _ = make_run(tmp_path / 'run', tokenizer)
    (tmp_path / 'page.html').write_text(page.make_page(tmp_path / 'run'), encoding='utf-8')
    assert either.evaluate(tmp_path / 'page.html', "tokenizer.encode('Zoë 🐈')") == [*'Zoë 🐈'.encode()]


@pytest.mark.parametrize('kind', ['grouped', 'bytes'])
@pytest.mark.parametrize('top_k', [0, 5])
def test_each_token_is_drawn_as_often_as_by_pytorch(kind, top_k, either, pages):
    model, tokenizer, path = pages[kind]
    drawn = either.evaluate(path, f"""(() => {{
        const reading = new Reading(model), random = randomNumbers(3);
        reading.append(end);
        reading.read(1);
        return Array.from({{ length: 4000 }}, () => sample(tokens, reading.fork(1), 0.5, {top_k}, random));
    }})()""")
    h = model.hidden(torch.tensor([[tokenizer.eot_token]]))[0].detach()                  # (1, C)
    expected = model.tokens.sample(h.expand(4000, -1) if not top_k or kind == 'grouped' else h.expand(1000, -1), temperature=0.5, top_k=top_k)
    shares = [torch.bincount(torch.as_tensor(ids), minlength=tokenizer.n_vocab) / len(ids) for ids in (drawn, expected)]
    assert (shares[0] - shares[1]).abs().max() < 0.06 and (not top_k or len({*drawn}) == top_k)


# ---- what one can do there, in the browser

READY = 'new Promise(done => { const look = () => running || columns.some(c => c.ahead.length + c.reading.unread) ? setTimeout(look, 20) : done(); look(); })'


def press(browser, key, **more):
    for kind in ('keyDown', 'keyUp'):
        browser.call('Input.dispatchKeyEvent', type=kind, key=key, code=key, **more)


def click(browser, element):
    x, y = browser.evaluate(browser.path, f"""(() => {{
        {element}.scrollIntoView({{ block: 'center' }});
        const box = {element}.getBoundingClientRect();
        return [box.x + box.width / 2, box.y + box.height / 2];
    }})()""")
    for kind in ('mousePressed', 'mouseReleased'):
        browser.call('Input.dispatchMouseEvent', type=kind, x=x, y=y, button='left', clickCount=1)


def write(browser, text):
    browser.evaluate(browser.path, "byId('beginning').select(); byId('beginning').focus()")
    browser.call('Input.insertText', text=text)
    browser.evaluate(browser.path, READY)


def texts_of(browser, selector):
    return browser.evaluate(browser.path, f"Array.from(document.querySelectorAll('{selector}'), one => one.innerText.replaceAll('\\u00a0', ' '))")


@pytest.mark.parametrize('kind', ['grouped', 'bytes'])
def test_one_writes_continues_stops_and_asks_about_a_token_with_mouse_and_keys(kind, browser, pages):
    model, tokenizer, path = pages[kind]
    browser.open(path)
    write(browser, 'The cat sees')
    ids = [tokenizer.eot_token, *tokenizer.encode_ordinary('The cat sees')]
    best = model.log_probs(torch.tensor([ids]))[0].exp().max().item()
    for slider, key in ('temperature', 'Home'), ('top_k', 'End'):   # 0, and all
        browser.evaluate(path, f"byId('{slider}').focus()")
        press(browser, key, windowsVirtualKeyCode={'Home': 36, 'End': 35}[key])
    shares = texts_of(browser, '#next .bar span:last-child')
    assert len(shares) == 10 and shares.count('100.0 %') == 1 and shares.count('0.0 %') == 9
    lines = browser.evaluate(path, "Array.from(document.querySelectorAll('#next .track i + i'), line => parseFloat(line.style.width))")
    assert max(lines) == pytest.approx(100 * best, rel=1e-3) and lines[1:] == sorted(lines[1:], reverse=True)

    write(browser, 'The cat sees the moon')
    press(browser, 'Enter', modifiers=2)   # with Ctrl
    browser.evaluate(path, READY)
    (status,), written = texts_of(browser, '#status'), browser.evaluate(path, 'columns[0].reading.ids.length - typed')
    assert status.startswith(f'{written} tokens') and 0 < written <= 200
    click(browser, "byId('go')")
    press(browser, 'Escape')
    browser.evaluate(path, READY)
    assert browser.evaluate(path, 'running') == 0 and texts_of(browser, '#go') == ['Continue']

    click(browser, "columns[0].spans.at(-9)")
    bits = browser.evaluate(path, 'columns[0].reading.bits')
    assert f'cost {bits[-9]:.1f} bits' in texts_of(browser, '#cost')[0] and len(texts_of(browser, '#expected .bar')) >= 10
    press(browser, 'ArrowRight')
    assert f'cost {bits[-8]:.1f} bits' in texts_of(browser, '#cost')[0]
    forks = [cells.split('\t') for cells in texts_of(browser, '#choices tr')]
    if kind == 'bytes':   # the product of its choices is the token's probability
        product = math.prod(float(cells[1].split()[0]) / 100 for cells in forks if '%' in cells[1])
        assert forks[-1][0] == 'END' and product == pytest.approx(2**-bits[-8], abs=0.02)
    took = texts_of(browser, '#most')[0]
    browser.evaluate(path, "byId('head').focus()")
    press(browser, 'ArrowRight', windowsVirtualKeyCode=39)
    assert texts_of(browser, '#most')[0] != took and '2 of 4' in texts_of(browser, 'label:has(#head)')[0]


def test_where_a_head_looks_is_what_the_tool_for_pictures_draws(either, pages):
    model, tokenizer, path = pages['grouped']
    ids = [tokenizer.eot_token, *tokenizer.encode_ordinary('The cat sees the moon')]
    code = f"""(() => {{
        const caches = model.makeCaches();
        model.hidden({ids}, caches);
        return caches.map(cache => [0, 1, 2, 3].map(h => [...shares(cache, h, {len(ids) - 1}, {len(ids)})]));
    }})()"""
    expected = torch.stack([attention.weights(model, torch.tensor([ids]), layer)[:, -1] for layer in range(3)])
    torch.testing.assert_close(torch.tensor(either.evaluate(path, code)), expected, atol=1e-5, rtol=1e-4)


def test_two_seeds_write_two_texts_and_the_same_seed_the_same(browser, pages):
    browser.open(pages['shared'][2])
    written = []
    for seed in (5, 5, 6):
        browser.evaluate(browser.path, f"byId('two').checked = true; byId('seed').value = {seed}; changeColumns(); go(); {READY}")
        written.append(texts_of(browser, '#texts p'))
    assert written[0] == written[1] and written[0][0] != written[0][1] == written[2][0]


def test_text_is_text_and_nothing_is_fetched(browser, tmp_path):
    evil = '</script><script>hacked = 1</script><img src="http://localhost:1/x.png" onerror="hacked = 1">'
    ranks = tokenizers.train_bpe({evil.encode(): 9}, 500, 99)
    make_run(tmp_path / '<img src=x onerror=hacked=1>', tokenizers.make_tokenizer('evil', ranks))
    path = tmp_path / 'page.html'
    path.write_text(page.make_page(*tmp_path.glob('<*'), prompt=evil), encoding='utf-8')
    browser.open(path)
    browser.evaluate(path, f'{READY}.then(() => choose(columns[0], 1))')
    assert texts_of(browser, '#texts p')[0] == evil
    assert browser.evaluate(path, "typeof hacked + document.querySelectorAll('img, #texts script').length") == 'undefined0'
    with pytest.raises(AssertionError, match='Failed to fetch'):
        browser.evaluate(path, "fetch('http://localhost:1/')")
    asked = [event['params']['request']['url'] for event in browser.events if event['method'] == 'Network.requestWillBeSent']
    assert {address for address in asked if not address.startswith('file:')} <= {'http://localhost:1/'}


@pytest.mark.parametrize('width', [360, 1600])
def test_it_fits_a_phone_and_a_wide_screen_and_all_has_a_name(width, browser, pages):
    browser.call('Emulation.setDeviceMetricsOverride', width=width, height=740, deviceScaleFactor=1, mobile=width < 500)
    browser.open(pages['bytes'][2])
    browser.evaluate(browser.path, f"byId('two').checked = true; changeColumns(); go(); {READY}.then(() => choose(columns[1], 2))")
    assert browser.evaluate(browser.path, 'document.documentElement.scrollWidth') <= width
    browser.call('Emulation.clearDeviceMetricsOverride')
    kinds = {'button', 'textbox', 'slider', 'checkbox', 'spinbutton', 'listbox', 'option', 'heading'}
    nodes = [node for node in browser.call('Accessibility.getFullAXTree')['nodes'] if node.get('role', {}).get('value') in kinds]
    assert {node['role']['value'] for node in nodes} == kinds
    assert [node for node in nodes if not node['name']['value']] == []


def test_all_that_one_can_use_is_reached_by_the_tabulator(browser, pages):
    browser.open(pages['bytes'][2])
    browser.evaluate(browser.path, f"{READY}.then(() => choose(columns[0], 1))")
    used = browser.evaluate(browser.path, """(() => {
        const all = [...document.querySelectorAll('button, input, textarea, a, [tabindex="0"]')].filter(one => one.checkVisibility());
        all.forEach((one, i) => { one.onfocus = () => { one.reached = true; }; });
        document.activeElement.blur();
        window.reached = () => all.filter(one => !one.reached).map(one => one.outerHTML);
        return all.length;
    })()""")
    for _ in range(used + 5):
        press(browser, 'Tab', windowsVirtualKeyCode=9)
    assert used > 20 and browser.evaluate(browser.path, 'reached()') == []


def luminance(colour):
    """Of WCAG 2.1."""
    parts = [c / 255 / 12.92 if c / 255 <= 0.04045 else ((c / 255 + 0.055) / 1.055)**2.4 for c in colour]
    return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]


def over(colour, share, under):
    return [share * c + (1 - share) * u for c, u in zip(colour, under)]


def pixel(layers, under, with_text):
    """The colour of a place in the last of elements that contain each other, where its text is or beside it."""
    (background, colour, opacity), *inner = [[[float(n) for n in re.findall(r'[\d.]+', part)] for part in layer] for layer in layers]
    result = over(background[:3], background[3] if background[3:] else 1, under)
    if inner:
        result = pixel(layers[1:], result, with_text)
    elif with_text:
        result = over(colour[:3], colour[3] if colour[3:] else 1, result)
    return over(result, opacity[0], under)


@pytest.mark.parametrize('scheme', ['light', 'dark'])
def test_each_text_has_a_contrast_of_at_least_4_5_to_what_is_behind_it(scheme, browser, pages):
    browser.call('Emulation.setEmulatedMedia', features=[dict(name='prefers-color-scheme', value=scheme)])
    browser.open(pages['bytes'][2])
    browser.evaluate(browser.path, f"go(); {READY}.then(() => choose(columns[0], 1))")   # a head can only look at the start: the bluest blue
    found = browser.evaluate(browser.path, """(() => {
        document.documentElement.style.background = 'Canvas';
        const styles = one => { const { backgroundColor, color, opacity } = getComputedStyle(one); return [backgroundColor, color, opacity]; };
        const chain = one => one ? [...chain(one.parentElement), styles(one)] : [];
        const says = one => one.matches('textarea, [type=number]') || [...one.childNodes].some(node => node.nodeType === 3 && node.data.trim());
        return [...document.querySelectorAll('body *')].filter(one => one.checkVisibility() && says(one)).map(one => [one.outerHTML, chain(one)]);
    })()""")
    browser.call('Emulation.setEmulatedMedia', features=[])
    assert len(found) > 100 and len({layers[0][0] for _, layers in found}) == 1
    for html, layers in found:
        light, dark = sorted((luminance(pixel(layers, (255, 255, 255), with_text)) for with_text in (True, False)), reverse=True)
        assert (light + 0.05) / (dark + 0.05) >= 4.5, html


# ---- the tool

def test_a_page_says_what_the_model_is(tmp_path):
    make_run(tmp_path / 'mine')
    path = tmp_path / 'mine/best.pt'
    checkpoint = torch.load(path, weights_only=True) | dict(iter=20, settings=dict(dataset='simplewiki'))
    runs.save_checkpoint(path, checkpoint)
    (tmp_path / 'mine/log.csv').write_text('iter,bytes,epoch,val_bpb\n10,1e6,0.5,3\n15,15e5,,\n20,2e6,1.25,2.5\n')
    status, out, err = run(tmp_path, 'tools/page.py', '--out_dir=mine')
    assert status == 0 and 'mine/page.html' in out, err
    text = (tmp_path / 'mine/page.html').read_text(encoding='utf-8')
    for part in ('of 0.1 million parameters', 'its text (simplewiki) 1.2 times, 2.0 MB in all', 'needs 2.50 bits', 'is invented'):
        assert part in text
    size = sum(p.numel() for p in runs.load_run(tmp_path / 'mine')[0].parameters())
    weights = re.search('id="weights">(.*?)<', text)[1]
    assert len(weights) < 4 / 3 * 1.15 * size   # a byte each, and the scales


def test_what_a_page_cant_run_ends_in_one_line(tmp_path):
    make_run(tmp_path / 'idea', idea='early_exit')
    fails_in_one_line(run(tmp_path, 'tools/page.py', '--out_dir=idea'), 'idea=early_exit')
    with pytest.raises(Failure, match='as GPT-2 or SmolLM2 do'):
        page.javascript_pattern(r'\w+')
    fails_in_one_line(run(tmp_path, 'tools/page.py', '--out_dir=nothing'), 'train first')


def test_the_template_is_one_file_of_at_most_600_lines_that_asks_for_nothing():
    text = page.TEMPLATE.read_text(encoding='utf-8')
    assert len(text.splitlines()) <= 600
    assert not re.search(r'https?:|@import|\bsrc=|<link|innerHTML|insertAdjacentHTML|document\.write', text)
