"""
Text from a trained model. Everything it needs lies in the run's folder.

    python sample.py --out_dir=out/quick --prompt="The function returns"
    python sample.py --prompt=FILE:story.txt --num_samples=3
    echo "Once upon" | python sample.py --prompt=-
    python sample.py --prompt="The function" --top=10              # what may come next, and how likely it is
    python sample.py --prompt="The function" --show_tokens=True --html=tokens.html
"""
out_dir = 'out/quick'     # the run's folder, of which best.pt is taken, else ckpt.pt; or the file itself
prompt = ''               # text, FILE:path, or - for standard input; none begins a new text
num_samples = 1           # drawn together, as one batch; the first one is streamed
max_new_tokens = 200      # for each; a sample ends earlier where the model ends its text
temperature = 0.8         # 0 always takes the likeliest token, above 1 is wilder than the model
top_k = 200               # draw among this many likeliest tokens; 0 for all
top_p = 1.0               # draw among the fewest tokens that together are this probable
top = 0                   # instead, show this many of the likeliest next tokens
show_tokens = False       # instead, show the prompt cut into tokens, and the bits that each of them costs
html = ''                 # with show_tokens, also a page of that name, the text coloured by how surprising it is
seed = 0                  # the same seed, the same text; 0 draws a new one
device = 'auto'           # cuda, mps or cpu; auto takes the first of them that is there
dtype = 'auto'            # bfloat16, float32, or int8 (CPU, faster); auto is bfloat16 where the hardware computes in it

from configurator import Failure, configure
configure(globals(), one_of=dict(dtype='auto bfloat16 float32 int8'),
          at_least={0: 'temperature top_k top seed', 1: 'num_samples max_new_tokens'})
if not 0 < top_p <= 1:
    raise Failure(f'top_p={top_p} must be above 0 and at most 1')
if 0 < temperature < 1e-3:   # its inverse would overflow
    raise Failure(f'temperature={temperature} must be 0 or at least 0.001')

import codecs
import math
import pathlib
import sys
import time
from html import escape

import torch

from stlm import fast
from stlm import machine as machines
from stlm import run
from stlm import tokenizer as tokenizers

PAGE = """<!doctype html><meta charset="utf-8"><title>Bits of each token</title>
<style>:root { color-scheme: light dark } body { font: 1.2em/1.9 sans-serif; max-width: 45em; margin: 2em auto; padding: 0 1em }
span { white-space: pre-wrap; border-radius: .2em; outline: 1px solid #8884 }</style>
"""


def read_prompt(prompt):
    try:
        if prompt == '-':
            return sys.stdin.buffer.read().decode()
        if prompt.startswith('FILE:'):
            return pathlib.Path(prompt[5:]).read_bytes().decode()
        prompt.encode()   # fails at bytes of a terminal in another encoding than the system's
        return prompt
    except UnicodeError as error:
        raise Failure(f'--prompt={prompt!a}: not UTF-8 at {error.start} (a terminal in another encoding?); '
             'write it to a file')


def bar(share):
    return '#' * min(round(share * 24), 24)


def named(raw):
    return repr(raw.decode(errors='replace')) if raw else '(end of text)'


def show_next(log_probs, spelling, n):
    """A line for each of the n likeliest tokens, of (V) log-probabilities."""
    values, tokens = log_probs.topk(min(n, len(log_probs)))
    for p, token in zip(values.exp().tolist(), tokens.tolist()):
        print(f'{p:6.1%} {bar(p):24} {named(spelling[token])}')


def show_tokens_of(tokens, bits):
    """A line for each token, its bytes: its bits, as a bar too, and those of each choice. bits
    (T, symbols) are nan where there was none: no other byte could follow. Returns the bits per byte."""
    for raw, total, costs in zip(tokens, bits.nansum(1).tolist(), bits.tolist()):
        line = f'{total:6.1f} {bar(total / 24):24} {named(raw):18}'
        if len(costs) > 1:   # byte pooling
            names = [repr(bytes([byte]).decode('ascii', 'backslashreplace')) for byte in raw]
            for name, cost in zip([*names, 'END'], costs):
                line += f' {name}' if math.isnan(cost) else f' {name} {cost:.1f}'
        print(line)
    size = sum(len(raw) for raw in tokens)
    mean = bits.nansum().item() / max(size, 1)
    print(f'{mean:6.2f} bits per byte, {len(tokens)} tokens, {size} bytes')
    return mean


def coloured(text, cost):
    red = min(cost / 12, 1) * 0.75
    return f'<span title="{cost:.1f} bits" style="background: rgb(255 60 0 / {red:.2f})">{escape(text)}</span>'


def page(tokens, costs, title):
    """The text as a page, each token on a background that is the redder the more bits it cost.
    Tokens that end inside of a character stand with the next one."""
    decoder, waiting, spans = codecs.getincrementaldecoder('utf-8')('replace'), 0.0, ''
    for raw, cost in zip(tokens, costs):
        waiting += cost
        shown = decoder.decode(raw)
        if shown:
            spans += coloured(shown, waiting)
            waiting = 0.0
    legend = ' '.join(coloured(f' {cost} ', cost) for cost in (0, 3, 6, 9, 12))
    return (f'{PAGE}<p>{spans}</p>\n<hr><p>bits that a token costs: {legend} and more<br>'
            f'{escape(title)}</p>\n')


device, autocast, machine = machines.pick_device(device, 'float32' if dtype == 'int8' else dtype)
machines.keep_freed_memory()
model, encoding, checkpoint = run.load_run(out_dir, device)
if not checkpoint['iter'] and checkpoint['settings'].get('init_from') == 'scratch':   # not converted, nor fine-tuned
    print(f'{out_dir}: a model of step 0, which has learned nothing yet', file=sys.stderr)
spelling = tokenizers.spelling_of(encoding)
generator = torch.Generator(device)
generator.manual_seed(seed) if seed else generator.seed()
text = read_prompt(prompt)
ids = [encoding.eot_token, *encoding.encode_ordinary(text)]   # every training document began like this

if top or show_tokens:
    if len(ids) - show_tokens > model.config.block_size or show_tokens and len(ids) == 1:
        raise Failure(f'the prompt has {len(ids) - 1} tokens; give it 1 to {model.config.block_size - 1}')
    idx = torch.tensor([ids], device=device)                                     # (1, T)
    with torch.no_grad(), autocast:
        if top:
            show_next(model.log_probs(idx)[0], spelling, top)
        else:
            nats = model.tokens.nll_of_symbols(model.hidden(idx[:, :-1]), idx[:, 1:])
            bits = nats[0].float() / math.log(2)                              # (T, symbols)
            tokens = [spelling[token] for token in ids[1:]]
            mean = show_tokens_of(tokens, bits)
            if html:
                title = f'{mean:.2f} bits per byte ({out_dir}, step {checkpoint["iter"]})'
                pathlib.Path(html).write_text(page(tokens, bits.nansum(1).tolist(), title), 'utf-8')
                print(f'{html}: open it in a browser', file=sys.stderr)
    sys.exit()

idx = torch.tensor([ids] * num_samples, device=device)                           # (num_samples, T)
decoders = [codecs.getincrementaldecoder('utf-8')('replace') for _ in range(num_samples)]
samples, ended = [text] * num_samples, [False] * num_samples
start, n = time.monotonic(), 0
print(text, end='', flush=True)
with autocast:   # which keeps the matrices that it has rounded
    fast.prepare_to_generate(model, dtype, device)
    for tokens in model.generate(idx, max_new_tokens, temperature=temperature, top_k=top_k, top_p=top_p,
                                 generator=generator):
        n += 1
        for i, token in enumerate(tokens.tolist()):
            ended[i] = ended[i] or token == encoding.eot_token
            if not ended[i]:   # a character cut between two tokens waits in the decoder until it is whole
                new = decoders[i].decode(spelling[token] or b'')
                samples[i] += new
                if i == 0:
                    print(new, end='', flush=True)
        if all(ended):
            break
for i, text in enumerate(samples[1:], 2):
    print(f'\n\n--- sample {i}\n{text}', end='')
print()
seconds = time.monotonic() - start
print(f'({num_samples} x {n} tokens, {num_samples * n / seconds:.0f} tokens/s, {machine}, step {checkpoint["iter"]}, '
      f'seed {generator.initial_seed()})', file=sys.stderr)
