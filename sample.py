"""
Text from a trained model. Everything it needs lies in the run's folder.

    python sample.py --out_dir=out/quick --prompt="The function returns"
    python sample.py --prompt=FILE:story.txt --num_samples=3
    echo "Once upon" | python sample.py --prompt=-
    python sample.py --prompt="The function" --top=10              # what may come next, and how likely it is
    python sample.py --prompt="The function" --show_tokens=True --html=tokens.html
    python sample.py --near=" returns"                             # the tokens whose vectors are nearest to its own

Reading this file for the first time: stream() is what it is about; how prompts are read can wait.
"""
out_dir = 'out/quick'     # the run's folder (its best.pt, or else ckpt.pt), or a checkpoint file
prompt = ''               # text, FILE:path, or - for standard input; none begins a new text
num_samples = 1           # drawn together, as one batch; the first one is streamed
max_new_tokens = 200      # for each sample, which ends earlier where the model ends its text
temperature = 0.8         # 0 always takes the likeliest token, above 1 is wilder than the model
top_k = 50                # draw among this many likeliest tokens; 0: all (the temperature of byte pooling is then that of each symbol)
top_p = 1.0               # draw among the fewest tokens that together are this probable
seed = 0                  # the same seed, the same text; 0 draws a new one
top = 0                   # instead of a sample, show this many of the likeliest next tokens
show_tokens = False       # instead of a sample, cut the prompt into tokens and show the bits that each of them costs
html = ''                 # with show_tokens: also write a page of this name, the text coloured by how surprising it is
near = ''                 # instead of a sample, the tokens nearest to this one (" north") or to a sum (" his - he + she")
device = 'auto'           # cuda, mps or cpu; auto takes the first of them that is there
dtype = 'auto'            # bfloat16, float32, or int8 (CPU, faster); auto is bfloat16 where the hardware is fast with it

from configurator import Failure, configure
if __name__ == '__main__':
    configure(globals(), one_of=dict(dtype='auto bfloat16 float32 int8'), may_be_0='top_k')

import codecs
import pathlib
import random
import sys
import time

import torch

from stlm.fast import prepare_to_generate
from stlm.machine import keep_freed_memory, pick_device
from stlm.run import load_run
from stlm.tokenizer import ids_of, spelling_of
from tools import show


def read_prompt(prompt):
    """The text that --prompt gives, or names. A byte order mark is no part of it."""
    try:
        if prompt == '-':
            return sys.stdin.buffer.read().decode('utf-8-sig')
        if prompt.startswith('FILE:'):
            return pathlib.Path(prompt[5:]).read_bytes().decode('utf-8-sig')
        prompt.encode()   # fails at bytes of a terminal in another encoding than the system's
        return prompt
    except UnicodeError as error:
        raise Failure(f'--prompt={prompt!a}: not UTF-8 at {error.start} (a terminal in another encoding?); '
                      'write it to a file')


def stream(model, tokenizer, text, num_samples=1, max_new_tokens=200, **choice):
    """Continue a text: after each new token yields what it adds to each sample, [num_samples strings]: '' after a
    sample's end, and while only some bytes of a character (é, 猫) are there. `choice` is what model.choose() takes."""
    spelling = spelling_of(tokenizer)
    idx = torch.tensor([ids_of(tokenizer, text)] * num_samples)                              # (num_samples, T)
    decoders = [codecs.getincrementaldecoder('utf-8')('replace') for _ in range(num_samples)]
    ended = [False] * num_samples
    for tokens in model.generate(idx, max_new_tokens, **choice):
        added = [''] * num_samples
        for i, token in enumerate(tokens.tolist()):
            ended[i] = ended[i] or token == tokenizer.eot_token
            if not ended[i]:
                added[i] = decoders[i].decode(spelling[token] or b'')
        yield added
        if all(ended):
            return


def write_samples(model, tokenizer, text, num_samples, max_new_tokens, **choice):
    """Print the first sample as it comes, then the others. Returns how many tokens were drawn."""
    samples, n = [text] * num_samples, 0
    print(text, end='', flush=True)
    for added in stream(model, tokenizer, text, num_samples, max_new_tokens, **choice):
        print(added[0], end='', flush=True)
        samples = [sample + new for sample, new in zip(samples, added)]
        n += num_samples
    for i, sample in enumerate(samples[1:], 2):
        print(f'\n\n--- sample {i}\n{sample}', end='')
    print()
    return n


def main():
    if not 0 < top_p <= 1:
        raise Failure(f'top_p={top_p} must be above 0 and at most 1')
    if 0 < temperature < 1e-3:   # its inverse would overflow
        raise Failure(f'temperature={temperature} must be 0 or at least 0.001')
    int8 = dtype == 'int8'
    torch_device, autocast, machine = pick_device('cpu' if int8 and device == 'auto' else device, 'float32' if int8 else dtype)
    keep_freed_memory()
    model, tokenizer, checkpoint = load_run(out_dir, torch_device)
    about = f'{out_dir}, step {checkpoint["iter"]}'
    if not checkpoint['iter'] and checkpoint['settings'].get('init_from') == 'scratch':   # else its weights are another run's
        print(f'{about}: a model that has learned nothing yet', file=sys.stderr)
    text = read_prompt(prompt)

    with autocast:   # around all steps: it keeps the matrices that it has made bfloat16
        if near:
            print(show.chart(show.nearest(model, tokenizer, near, top or 10), '{:.2f}'))
        elif top:
            print(show.chart(show.next_tokens(model, tokenizer, text, top), '{:.1%}'))
        elif show_tokens:
            rows = show.bits_of_tokens(model, tokenizer, text)
            print(show.chart_of_bits(rows))
            if html:
                pathlib.Path(html).write_text(show.page(rows, about), encoding='utf-8')
                print(f'{html}: open it in a browser', file=sys.stderr)
        else:
            drawn_seed = seed or random.randrange(1, 10**9)
            generator = torch.Generator(torch_device).manual_seed(drawn_seed)
            with prepare_to_generate(model, dtype, torch_device, num_samples) as numbers:
                start = time.monotonic()
                n = write_samples(model, tokenizer, text, num_samples, max_new_tokens, temperature=temperature, top_k=top_k,
                                  top_p=top_p, generator=generator)
                speed = n / (time.monotonic() - start)
            print(f'({n} tokens, {speed:.0f} tokens/s, {machine}, matrices in {numbers}, {about}, seed {drawn_seed})',
                  file=sys.stderr)


if __name__ == '__main__':
    main()
