"""
Text from a trained model. Everything it needs lies in the run's folder.

    python sample.py --out_dir=out/quick --prompt="The function returns"
    python sample.py --prompt=FILE:story.txt --num_samples=3
    echo "Once upon" | python sample.py --prompt=-
"""
out_dir = 'out/quick'     # the run's folder: best.pt, else ckpt.pt, and the tokenizer
prompt = ''               # text, FILE:path, or - for standard input; none begins a new text
num_samples = 1           # drawn together, as one batch; the first one is streamed
max_new_tokens = 200      # for each; a sample ends earlier where the model ends its text
temperature = 0.8         # 0 always takes the likeliest token, above 1 is wilder than the model
top_k = 200               # draw among this many likeliest tokens; 0 for all
top_p = 1.0               # draw among the fewest tokens that together are this probable
show_tokens = False       # instead, show the prompt cut into tokens, and the bits that each of its bytes costs
seed = 0                  # the same seed, the same text; 0 draws a new one
device = 'auto'           # cuda, mps or cpu; auto takes the first of them that is there
dtype = 'auto'            # bfloat16 or float32; auto is bfloat16 where the hardware computes in it

from configurator import configure, load_run, pick_device
configure(globals(), one_of=dict(dtype='auto bfloat16 float32'),
          at_least={0: 'temperature top_k', 1: 'num_samples max_new_tokens'})

import codecs
import math
import pathlib
import sys
import time

import torch

import prepare_wiki

if not 0 < top_p <= 1:
    sys.exit(f'top_p={top_p} must be above 0 and at most 1')


def read_prompt(prompt):
    try:
        if prompt == '-':
            return sys.stdin.buffer.read().decode()
        if prompt.startswith('FILE:'):
            return pathlib.Path(prompt[5:]).read_bytes().decode()
    except UnicodeDecodeError as error:
        sys.exit(f'--prompt={prompt}: not UTF-8 at byte {error.start}')
    return prompt


device, autocast, machine = pick_device(device, dtype)
model, encoding, checkpoint = load_run(out_dir, device)
spelling = prepare_wiki.spelling(encoding)
generator = torch.Generator(device)
generator.manual_seed(seed) if seed else generator.seed()


def show(ids, nats):
    """A line for each token: its bits, as a bar too, and those of each of its symbols."""
    for token, symbols in zip(ids, (nats / math.log(2)).tolist()):
        raw, total = encoding.decode_bytes([token]), sum(symbols)
        parts = [f'{bytes([b]).decode("ascii", "backslashreplace")!r} {bits:.1f}' for b, bits in zip(raw, symbols)]
        parts += [f'END {bits:.1f}' for bits in symbols[len(raw):len(raw) + 1]]
        print(f'{total:6.1f} {"#" * round(total):24} {raw.decode(errors="replace")!r:18}', *parts * (len(symbols) > 1))
    size = sum(len(encoding.decode_bytes([token])) for token in ids)
    print(f'{nats.sum().item() / math.log(2) / max(size, 1):6.2f} bits per byte, {len(ids)} tokens, {size} bytes')


text = read_prompt(prompt)
ids = [encoding.eot_token, *encoding.encode_ordinary(text)]   # every training document began like this
if show_tokens:
    if not ids[1:] or len(ids) > model.config.block_size:
        sys.exit(f'show_tokens: the prompt has {len(ids) - 1} tokens; give it 1 to {model.config.block_size - 1}')
    idx = torch.tensor([ids], device=device)
    with torch.no_grad(), autocast:
        nats = model.nll_of_symbols(idx[:, :-1], idx[:, 1:])[0].float()          # (T, symbols)
    show(ids[1:], nats)
    sys.exit()
idx = torch.tensor([ids] * num_samples, device=device)        # (num_samples, T)
decoders = [codecs.getincrementaldecoder('utf-8')('replace') for _ in range(num_samples)]
samples, ended, start, n = [text] * num_samples, [False] * num_samples, time.time(), 0
print(text, end='', flush=True)
with autocast:
    if torch.is_autocast_enabled(device.type):
        model.matrices_to_bfloat16()
    for tokens in model.generate(idx, max_new_tokens, temperature=temperature, top_k=top_k, top_p=top_p,
                                 generator=generator):
        n += 1
        for i, token in enumerate(tokens.tolist()):
            ended[i] = ended[i] or token == encoding.eot_token
            if not ended[i]:   # a character cut between two tokens waits in the decoder until it is whole
                new = decoders[i].decode(spelling[token] if token < len(spelling) else model.tokens.spelled(token))
                samples[i] += new
                if i == 0:
                    print(new, end='', flush=True)
        if all(ended):
            break
for i, text in enumerate(samples[1:], 2):
    print(f'\n\n--- sample {i}\n{text}', end='')
print()
print(f'({num_samples} x {n} tokens, {num_samples * n / (time.time() - start):.0f} tokens/s, {machine}, '
      f'step {checkpoint["iter"]}, seed {generator.initial_seed()})', file=sys.stderr)
