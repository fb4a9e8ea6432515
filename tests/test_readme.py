"""README's quick start, run as written in a copy of the repository."""
import lzma
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest

import prepare_wiki
from helpers import ROOT


def commands(heading):
    """The lines of the first code block after a heading of README."""
    text = (ROOT / 'README.md').read_text(encoding='utf-8')
    block = re.search(rf'^## {heading}$.*?^```sh\n(.*?)^```$', text, re.M | re.S).group(1)
    return [line.split('  #')[0].strip() for line in block.splitlines()]


@pytest.fixture(scope='module')
def clone(tmp_path_factory):
    folder = tmp_path_factory.mktemp('clone') / 'nanoSTLM'
    shutil.copytree(ROOT, folder, ignore=shutil.ignore_patterns('data', 'out', '.git', '__pycache__'))
    return folder


def shell(clone, command):
    """What a command printed, in an environment where nothing can be downloaded."""
    assert command.startswith('python ')
    done = subprocess.run(f'"{sys.executable}" {command[7:]}', cwd=clone, shell=True, text=True, capture_output=True,
                          encoding='utf-8')
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_quick_start_trains_a_model_that_beats_xz(clone):
    install, train = commands('Quick start')
    assert install == 'pip install -r requirements.txt' and train == 'python train.py'
    out = shell(clone, train)
    found = re.search(r'held out: ([\d.]+) bits per byte', out)
    folder, meta = prepare_wiki.load('pydocs', 'bpe4096', clone / 'data')
    encoding = prepare_wiki.make_tokenizer('bpe4096', folder)
    ids = np.fromfile(folder / 'val.bin', meta['dtype'])
    text = encoding.decode_bytes(ids[ids != encoding.eot_token].tolist())
    assert len(text) == meta['splits']['val']['bytes'] > 50000
    xz = 8 * len(lzma.compress(text, preset=9 | lzma.PRESET_EXTREME)) / len(text)
    assert float(found.group(1)) < 0.8 * xz, (found.group(1), xz)
    assert 'continued' in out and 'out/quick/best.pt' in out
    following = re.search(r'^next: (python .*)$', out, re.M).group(1)
    assert re.match('A list is.+', shell(clone, following + ' --max_new_tokens=20 --seed=1'))   # it works


def test_every_command_of_the_readme_names_files_and_settings_that_exist():
    text = (ROOT / 'README.md').read_text(encoding='utf-8')
    for script, arguments in re.findall(r'python (\w+/?\w*\.py)([^\n`#]*)', text):
        source = (ROOT / script).read_text(encoding='utf-8')
        for name in re.findall(r'--(\w+)=', arguments):
            assert re.search(rf'^{name}(:.*)? = ', source, re.M), (script, name)
