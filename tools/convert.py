"""
Weights in and out: a public Llama becomes a run like any other, and a run becomes what other programs read.

    python -m tools.convert --source=HuggingFaceTB/SmolLM2-135M --out_dir=out/smollm2    # or --source=FOLDER
    python -m tools.convert --out_dir=out/quick --to=hf --file=out/quick-hf              # for transformers
    python -m tools.convert --out_dir=out/tiny --to=llama2c --file=out/tiny.bin          # for llama2.c's run.c
    python -m tools.convert --out_dir=out/tiny --to=llama2c_q8 --file=out/tiny-q8.bin    # for its runq.c
    python -m tools.convert --out_dir=out/quick --to=int8 --file=out/quick-int8          # a run of a quarter of the size

--source and --to=hf need `pip install safetensors`. Nothing that exists is replaced.
"""
source = ''    # make a run of this folder in Hugging Face's layout, or of a name on huggingface.co
out_dir = ''   # the run's folder
to = ''        # what to make of the run: hf, llama2c, llama2c_q8 or int8
file = ''      # where: a folder for hf and int8, else a file

from configurator import Failure, configure
if __name__ == '__main__':
    configure(globals())

import contextlib
import dataclasses
import os
import pathlib
import shutil

import torch

from stlm import run
from stlm import tokenizer as tokenizers
from stlm.files import insist
from tools import huggingface, int8, llama2c


def refuse_existing(*paths):
    for path in paths:
        if os.path.lexists(path):
            raise Failure(f'{path} exists already; choose another name, or delete it first')


@contextlib.contextmanager
def new_folder(path):
    """A folder to write into, which gets its name at the end, whole; if that isn't reached, it is deleted."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f'{path.name}.{os.getpid()}.part')
    part.mkdir()
    try:
        yield part
        insist(os.rename, part, path)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def write_run(folder, tokenizer, checkpoint):
    with new_folder(folder) as part:
        tokenizers.save_tokenizer(tokenizer, part)
        run.save_checkpoint(part / 'best.pt', checkpoint)


def import_model(source, out_dir):
    """A run of a Llama in Hugging Face's layout. It has no steps of ours, and knows no counts of its training text."""
    folder = pathlib.Path(source)
    if not folder.is_dir():
        folder = huggingface.fetch_model(source)
    try:
        tokenizer, config, weights = huggingface.read_model(folder, pathlib.Path(source).resolve().name)
    except (AttributeError, KeyError, TypeError, ValueError) as error:   # of json that is not as it should be
        raise Failure(f'{source}: {type(error).__name__}: {error}')
    write_run(pathlib.Path(out_dir), tokenizer, dict(
        format=run.FORMAT, config=vars(config), idea='', model=weights, counts=None, iter=0,
        tokenizer=tokenizers.spec_of(tokenizer), settings=dict(source=source)))


@torch.no_grad()
def llama_weights(model, idea=''):
    """{our name: matrix or vector} of the Llama that computes the same as a table model: what layers share, and
    adapters, written out. A matrix is what it does to each unit vector."""
    config = model.config
    written = {*huggingface.SHAPE, 'rope_base', 'share', 'share_every', 'lora_rank'} | {
        'max_bytes', 'n_byte_embd', 'n_byte_head', 'n_encoder_layer', 'n_decoder_layer'}   # of byte pooling: refused below
    odd = [each.name for each in dataclasses.fields(config) if getattr(config, each.name) != each.default and each.name not in written]
    odd = [f'{name}={getattr(config, name)}' for name in odd] + [idea] * bool(idea)
    if odd:
        raise Failure(f'{" and ".join(sorted(odd))} is no Llama; only --to=int8 writes it')
    weights = {}
    for name in huggingface.names_of(config.n_layer):
        module = model.get_submodule(name.removesuffix('.weight'))
        if 'ffn.' in name or 'attn.' in name:   # it may have an adapter
            width = config.d_ff if 'down' in name else config.n_embd
            weights[name] = module(torch.eye(width)).T.contiguous()
        else:
            weights[name] = module.weight.detach()
    return weights


def export_run(out_dir, to, file):
    """Write a run in another form. Returns the files and folders."""
    path = pathlib.Path(file)
    written = [path, llama2c.tokenizer_of(path)] if to.startswith('llama2c') else [path]
    refuse_existing(*written)
    model, tokenizer, checkpoint = run.load_run(out_dir)
    if to == 'int8':
        write_run(path, tokenizer, int8.int8_checkpoint(checkpoint, model.state_dict()))
        return written
    weights = llama_weights(model, checkpoint['idea'])
    run.check_weights(weights, out_dir)   # adapters may add up to more than a number can be
    if to == 'hf':
        with new_folder(path) as part:
            huggingface.write_model(part, weights, model.config, tokenizer)
    else:
        llama2c.write_model(path, weights, model.config, tokenizer, int8=to == 'llama2c_q8')
    return written


def main():
    if not out_dir or bool(source) == bool(to) or bool(to) != bool(file):
        raise Failure('give --source and --out_dir, or --out_dir, --to and --file; python -m tools.convert --help')
    if to not in ('', 'hf', 'llama2c', 'llama2c_q8', 'int8'):
        raise Failure(f'to={to} must be hf, llama2c, llama2c_q8 or int8')
    if source:
        refuse_existing(out_dir)
        import_model(source, out_dir)
        written = [pathlib.Path(out_dir)]
    else:
        written = export_run(out_dir, to, file)
    for path in written:
        files = path.iterdir() if path.is_dir() else [path]
        print(f'{path}: written, {sum(each.stat().st_size for each in files) / 1e6:.1f} MB')


if __name__ == '__main__':
    main()
