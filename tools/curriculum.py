"""
A curriculum: a text's articles in two data sets, easy and hard, for a mix whose shares change on the way.

    python -m tools.curriculum --input=articles.jsonl.gz
    python train.py --dataset=easy,hard --tokenizer=gpt2-16 --mix_schedule="[(0, [1, 0]), (599, [0, 1])]"   # easy ones first
    python -m tools.study --study=curriculum                                                           # and other orders

Easy is short and simple, and simple is what gzip makes few bytes of, for each byte. In a short text gzip finds nothing to
refer to: of English Wikipedia's articles of 100 to 200 bytes it leaves 80 %, of those above 12,800 only 39 %. So it reads
a primer first, beginnings of test articles, and what an article adds is counted: 40 % and 37 %. Size and simplicity count
alike: an article's place by size is how much training text is in articles up to its size, by simplicity likewise, and the
half of the training text with the lowest sums is easy. (How many bytes gzip adds would say both, but is 99.8 % size.)
Held-out articles are divided at the same sum: val of both sets is val of the whole, and train.py judges a mix on both.
"""
input = ''             # as prepare_wiki.py's: file or folder
tokenizer = 'gpt2-16'  # both sets have it, so no bpe<N>, which each would train for itself
val_fraction = 0.005   # share of the articles for each of val and test
data_dir = 'data'      # where the two sets go, and easy.jsonl and hard.jsonl, their articles

import collections
import json
import pathlib
import zlib

import numpy as np

import prepare_wiki
from configurator import Failure, configure
from stlm.console import Progress
from stlm.documents import clean, input_files, read_files
from stlm.files import write_whole


def ratios(texts, primer):
    """For each text, what gzip adds to the compressed primer, per byte."""
    after_primer = zlib.compressobj(9, zlib.DEFLATED, 31, 9)   # level, method, gzip's format, memory
    after_primer.compress(primer)
    primer_size, found = len(after_primer.copy().flush()), []
    for text in texts:
        gzip = after_primer.copy()
        found.append((len(gzip.compress(text) + gzip.flush()) - primer_size) / len(text))
    return np.array(found)


def place(values, weights):
    """For each value, how much of all weights belongs to values up to it."""
    order = np.argsort(values, kind='stable')
    places = np.empty(len(values))
    places[order] = np.cumsum(weights[order]) / np.sum(weights)
    return places


def divide(texts, val_fraction):
    """For each text, whether it is easy, and its ratio. Half of the training text's bytes are easy."""
    splits = np.array([prepare_wiki.split_of(text, val_fraction) for text in texts])
    texts = [text.encode() for text in texts]
    primer = b''.join(text[:512] for text, split in zip(texts, splits) if split == 'test')[:2**14]   # half of gzip's window
    sizes, simple = np.array([len(text) for text in texts]), ratios(texts, primer)
    weights = np.where(splits == 'train', sizes, 0)
    return place(place(sizes, weights) + place(simple, weights), weights) <= 0.5, simple


def main():
    if tokenizer.startswith('bpe'):
        raise Failure(f'tokenizer={tokenizer}: the two sets need the same tokens; take gpt2-16, gpt2, byte or the folder of a run')
    texts = [*clean(read_files(input_files(input), Progress('reading')), collections.Counter())]
    easy, simple = divide(texts, val_fraction)
    for name, mine in dict(easy=easy, hard=~easy).items():
        chosen = [texts[i] for i in np.flatnonzero(mine)]
        print(f'{name}: {len(chosen):,} articles, half of them below {np.median([len(text) for text in chosen]):,.0f} '
              f'letters; gzip shrinks them to {np.median(simple[mine]):.0%} (medians)')
        file = pathlib.Path(data_dir, f'{name}.jsonl')
        if file.exists():
            raise Failure(f'{file} is there already: delete it, or give another --data_dir')
        write_whole(file, ''.join(json.dumps(dict(text=text)) + '\n' for text in chosen).encode())
        prepare_wiki.prepare(name, tokenizer, str(file), val_fraction, data_dir)


if __name__ == '__main__':
    configure(globals())
    main()
