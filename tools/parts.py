"""
The parameters of the model that train.py would make, with their shapes.

    python -m tools.parts config/byte_10m.py
"""
import math
import re
import sys
from collections import Counter

from configurator import Failure, configure
if __name__ == '__main__':   # before the slow imports; train.py's settings are read after them
    configure(globals(), argv=[])

import torch

import prepare_wiki
import train
from stlm import run
from stlm import tokenizer as tokenizers


def size_of(name):
    """(tokens, bytes of the longest) of the tokenizer that has the name, or lies in the folder."""
    if not re.fullmatch(prepare_wiki.NAMED, name):
        spec = tokenizers.spec_of(tokenizers.load_tokenizer(None, name))
        return spec['vocab_size'], spec['max_token_bytes']
    if name.startswith('bpe'):   # at most so many: known when it is trained
        return int(name[3:]), tokenizers.MAX_BYTES
    return dict(byte=(256, 1), gpt2=(50257, 128)).get(name) or (50257, int(name[5:]))


def planned_model(argv):
    """(model, settings): what train.py would make of a config file and flags, as shapes without numbers."""
    settings = configure(dict(vars(train)), argv=argv)
    module = run.idea_module(settings['idea'])
    shape = {field: settings[field] for field in module.Config.__dataclass_fields__ if field in settings}
    vocab_size, max_bytes = size_of(settings['tokenizer'])
    spelling = [b''] * vocab_size   # unknown before there is a data set; the parameters don't depend on it
    try:
        with torch.device('meta'):
            return module.GPT(module.Config(vocab_size=vocab_size, max_bytes=max_bytes, **shape), spelling), settings
    except ValueError as error:
        raise Failure(error)


def print_parts(argv):
    """Each parameter of planned_model() with its shape; layers that are alike share a line."""
    model, settings = planned_model(argv)
    rows = Counter((re.sub(r'\.\d+\.', '.*.', name), tuple(p.shape)) for name, p in model.named_parameters())
    for (name, shape), n in rows.items():
        print(f"{name:34} {n:3} x {' x '.join(map(str, shape)):12} {n * math.prod(shape):12,}")
    print(f"{model.config.n_layer} layers, context {model.config.block_size} tokens, vocabulary {model.config.vocab_size:,} "
          f"({settings['tokenizer']})\n{run.count_line(model)}")


if __name__ == '__main__':
    print_parts(sys.argv[1:])
