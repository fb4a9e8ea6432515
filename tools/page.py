"""
A run as one web page, to send or to take home: its weights in int8, its tokenizer, and model.py once more in plain
JavaScript (page.html beside this file; a change in model.py has to be made there, too). Any browser opens it, on a phone too; it needs no network.

    python -m tools.page --out_dir=out/quick                    # writes out/quick/page.html
    python -m tools.page --out_dir=pretrained/tiny_10m --prompt="The capital of France is"
"""
out_dir = 'out/quick'   # the run's folder
prompt = 'The'          # the text that stands there at first
file = ''               # where to write the page; page.html in the run's folder if not given

from configurator import Failure, configure
if __name__ == '__main__':
    configure(globals())

import base64
import csv
import datetime
import html
import json
import pathlib

import torch

from stlm import run
from stlm import tokenizer as tokenizers
from tools.huggingface import DIGITS
from tools.int8 import to_int8

TEMPLATE = pathlib.Path(__file__).with_name('page.html')


def javascript_pattern(pattern):
    """A pattern of words for JavaScript, which knows no ++ and has another \\s. In these two patterns + does the same as ++:
    what follows it never matches earlier."""
    if pattern not in (tokenizers.WORDS, DIGITS):
        raise Failure(f'the page cuts text into words as GPT-2 or SmolLM2 do, not by {pattern}')
    return pattern.replace('++', '+').replace(r'\s', r'\p{White_Space}').replace(r'\S', r'\P{White_Space}')


def pack(tensors):
    """{name: matrix or vector} -> ({name: rows, columns and where they begin}, bytes). A vector is float32, a matrix int8
    with a scale for each row. What layers share is there once."""
    shapes, data, first = {}, bytearray(), {}

    def put(tensor):
        data.extend(bytes(-len(data) % 4))   # JavaScript reads a float32 where 4 divides its place
        data.extend(tensor.numpy().tobytes())
        return len(data) - tensor.nbytes

    for name, tensor in tensors.items():
        same = first.setdefault(tensor.data_ptr(), name)
        if same != name:
            shapes[name] = shapes[same]
        elif tensor.dim() == 2:
            numbers, scales = to_int8(tensor)
            shapes[name] = dict(rows=tensor.size(0), columns=tensor.size(1), floats=put(scales), ints=put(numbers))
        else:
            shapes[name] = dict(rows=len(tensor), floats=put(tensor.float()))
    return shapes, bytes(data)


def describe(model, checkpoint, log):
    """What the model is, in some sentences; without a log of its training, the fewer."""
    row = {}
    if log.exists():
        with open(log, newline='', encoding='utf-8-sig') as lines:
            rows = {one['iter']: one for one in csv.DictReader(lines) if one['val_bpb']}
        row = rows.get(str(checkpoint['iter']), {})
    parts = [f'This is a language model of {sum(p.numel() for p in model.parameters()) / 1e6:.1f} million parameters.']
    if row:
        name, epochs, size, bpb = checkpoint['settings']['dataset'], *(float(row[key]) for key in ('epoch', 'bytes', 'val_bpb'))
        parts += [f'It has read its text ({name}) {epochs:.1f} times, {size / 1e6:.1f} MB in all. Of a text that it had not read, it needs '
                  f'{bpb:.2f} bits for each byte (in English, a letter); who knows nothing needs 8.']
    if model.config.embedding == 'byte_pool':
        parts += ['It spells: each token goes in and out byte after byte (byte pooling).']
    parts += ['It does nothing but go on with a text: what it writes is invented, also where it sounds like facts.',
              f'This page was made with nanoSTLM on {datetime.date.today()}.']
    return ' '.join(parts)


def make_page(out_dir, prompt=''):
    """The page of a run."""
    model, tokenizer, checkpoint = run.load_run(out_dir)
    path = run.newest_checkpoint(out_dir)
    if checkpoint['idea']:
        raise Failure(f"{path}: idea={checkpoint['idea']} can't run in the page, which has only what model.py has")
    tensors = {name: p.detach() for name, p in model.named_parameters(remove_duplicate=False)}
    if model.config.embedding == 'byte_pool':   # from its counts the page grows the vocabulary's tree
        counts = checkpoint.get('counts')
        tensors['counts'] = torch.zeros(tokenizer.n_vocab) if counts is None else torch.as_tensor(counts)
    shapes, data = pack(tensors)
    spelling = [None if token is None else token.decode('latin-1') for token in tokenizers.spelling_of(tokenizer)]
    facts = dict(config=vars(model.config), pattern=javascript_pattern(tokenizer.pattern), end=tokenizer.eot_token,
                 spelling=spelling, prompt=prompt, shapes=shapes)
    parts = dict(TITLE=html.escape(f'{path.resolve().parent.name}, a small language model'),
                 ABOUT=html.escape(describe(model, checkpoint, path.with_name('log.csv'))),
                 RUN=json.dumps(facts).replace('<', r'\u003c'),   # so that no text of it ends the script
                 WEIGHTS=base64.b64encode(data).decode())
    page = TEMPLATE.read_text(encoding='utf-8')
    for name, part in parts.items():
        page = page.replace(f'>{name}<', f'>{part}<')
    return page


if __name__ == '__main__':
    target = pathlib.Path(file) if file else run.newest_checkpoint(out_dir).with_name('page.html')
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(make_page(out_dir, prompt), encoding='utf-8')
    print(f'{target}: {target.stat().st_size / 1e6:.1f} MB; open it in a browser')
