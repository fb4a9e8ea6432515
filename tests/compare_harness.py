"""
eval_mc.py beside EleutherAI's lm-evaluation-harness: the same questions, the same weights. A command, not a test.

    pip install lm_eval==0.4.13 transformers accelerate pytest # in a virtual environment of its own, with torch
    python tests/compare_harness.py --data_dir=data/eval --limit=100
    python tests/compare_harness.py --data_dir=data/eval --speed=200

A random model's weights are also given to Hugging Face's Llama. The harness reads its own task files and makes its
own prompts, requests and metrics from the same records; nothing but the loading of a file is ours. Compared are
every request (two strings), every log-probability, and every accuracy. --speed times both instead, in turns.
"""
data_dir = 'data/eval'   # the tasks' files, as eval_mc.py has them
limit = 20               # items of each task, of MMLU of each subject; 0 for all
num_fewshot = 0          # answered examples before each question; where ARC's Train is missing its Dev stands in
block_size = 512         # shorter ones truncate more
speed = 0                # time this many items of HellaSwag and of MMLU (letters), at 50M parameters
rounds = 3               # of timing, in turns; the median counts
batch_sizes = '1,4,16,64'   # the harness's best of these counts
dtype = 'float32'        # ours when timed; or bfloat16
harness_dtype = 'float32'   # the harness's when timed, which takes a float32 model in float32 by itself
seed = 0                 # of the weights

import csv
import hashlib
import json
import logging
import os
import pathlib
import random
import shutil
import statistics
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
os.environ |= dict(HF_HUB_OFFLINE='1', TOKENIZERS_PARALLELISM='false')

from configurator import configure, pick_device
configure(globals(), one_of=dict(dtype='bfloat16 float32', harness_dtype='bfloat16 float32'),
          at_least={0: 'limit speed num_fewshot', 1: 'rounds'})

import datasets
import lm_eval
import numpy as np
import tiktoken
import torch
import transformers
from lm_eval.api.task import ConfigurableTask
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks._yaml_loader import load_yaml

import eval_mc
from model import GPT, Config
from test_model import llama_of

THEIRS = pathlib.Path(lm_eval.__file__).parent / 'tasks'
logging.getLogger().setLevel(logging.ERROR)
datasets.disable_progress_bars()
transformers.utils.logging.set_verbosity_error()


# ---- the harness's tasks, on local records

def lines(path):
    return [json.loads(line) for line in open(path, encoding='utf-8')]


def arc_docs(path):
    """As allenai/ai2_arc has them."""
    return [dict(id=record['id'], question=record['question']['stem'], answerKey=record['answerKey'], choices={
        key: [choice[key] for choice in record['question']['choices']] for key in ('text', 'label')})
        for record in lines(path)]


def mmlu_docs(path):
    """As cais/mmlu has them."""
    return [dict(question=row[0], choices=row[1:5], answer='ABCD'.index(row[5]))
            for row in csv.reader(open(path, encoding='utf-8', newline=''))]


def sources(folder):
    """Our task: [(the harness's task file, its data set)], in our order of the items."""
    folder = pathlib.Path(folder)
    hellaswag = lines(folder / 'hellaswag/hellaswag_val.jsonl')
    winogrande = lines(folder / 'winogrande/dev.jsonl')
    yield 'winogrande', [('winogrande/default.yaml', dict(train=winogrande[:9], validation=winogrande))]
    yield 'hellaswag', [('hellaswag/hellaswag.yaml', dict(train=hellaswag[:9], validation=hellaswag))]
    for part in ('Easy', 'Challenge'):
        train, test = (arc_docs(folder / f'arc/ARC-{part}-{split}.jsonl') for split in ('Train', 'Test'))
        yield f'arc_{part.lower()}', [(f'arc/arc_{part.lower()}.yaml', dict(train=train, validation=train, test=test))]
    subjects = [path.name.removesuffix('_test.csv') for path in sorted((folder / 'mmlu/test').glob('*.csv'))]
    data = {name: {split: mmlu_docs(folder / f'mmlu/{split}/{name}_{split}.csv') for split in ('dev', 'test')}
            for name in subjects}
    yield 'mmlu', [(f'mmlu/default/mmlu_{name}.yaml', data[name]) for name in subjects]
    yield 'mmlu_cloze', [(f'mmlu/continuation/mmlu_{name}.yaml', data[name]) for name in subjects]
    if (folder / 'pairs.jsonl').exists():
        pairs = dict(train=lines(folder / 'pairs.jsonl'))
        yield str(folder / 'pairs.jsonl'), [('blimp/anaphor_number_agreement.yaml', pairs)]


def task_of(file, splits):
    data = datasets.DatasetDict({name: datasets.Dataset.from_list(docs) for name, docs in splits.items()})
    config = load_yaml(THEIRS / file)
    task = ConfigurableTask(config={**config, 'custom_dataset': lambda **settings: data, 'metadata': None})
    task.set_config('num_fewshot', num_fewshot if splits.keys() & {'test'} else 0)
    task.set_fewshot_seed(1234)   # what `lm_eval` sets
    return task


# ---- the same weights

def harness_of(model, batch_size, dtype=torch.float32):
    """GPT-2's tokenizer comes from the files that tiktoken keeps."""
    tiktoken.get_encoding('gpt2')   # so that they are there
    cache = pathlib.Path(os.environ.get('TIKTOKEN_CACHE_DIR') or pathlib.Path(tempfile.gettempdir(), 'data-gym-cache'))
    with tempfile.TemporaryDirectory() as folder:
        for name, key in (('merges.txt', '6d1cbeee0f20b3d9449abfede4726ed8212e3aee'),
                          ('vocab.json', '6c7ea1a7e38e3a7f062df639a5b80947f075ffe6')):
            shutil.copy(cache / key, pathlib.Path(folder, name))
        tokenizer = transformers.GPT2TokenizerFast.from_pretrained(folder)
    return HFLM(pretrained=llama_of(model).to(dtype), tokenizer=tokenizer, batch_size=batch_size, device='cpu')


# ---- agreement

def compare(model, encoding, lm, folder):
    for name, parts in sources(folder):
        items = list(eval_mc.load(name, folder, num_fewshot, limit))
        result, scores = eval_mc.evaluate(model, encoding, items)
        ours = [(context, ' ' + choice) for item in items for context, choice in zip(item.contexts, item.choices)]
        theirs, difference, docs = [], 0.0, []
        for file, splits in parts:
            task = task_of(file, splits)
            task.build_all_requests(limit=limit or None, rank=0, world_size=1)
            theirs += [(instance.args, instance) for instance in task.instances]
            docs += [(task, doc) for _, doc in task.doc_iterator(rank=0, limit=limit or None, world_size=1)]
        assert [args for args, _ in theirs] == ours, f'{name}: the requests differ'
        answers = iter(lm.loglikelihood([instance for _, instance in theirs], disable_tqdm=True))
        their_acc = {'acc': [], 'acc_norm': []}
        for (task, doc), score in zip(docs, scores, strict=True):
            answer = [next(answers) for _ in score]
            difference = max(difference, np.abs(np.subtract([nats for nats, greedy in answer], score)).max())
            for metric, right in task.process_results(doc, answer).items():
                their_acc[metric].append(right)
        agree = {metric: (float(np.mean(right)), result[metric], float(np.std(right, ddof=1) / len(right)**0.5),
                          result[f'{metric}_se']) for metric, right in their_acc.items() if right}
        ok = difference <= 1e-4 and np.allclose(
            [*agree.values()], [[b, a, d, c] for a, b, c, d in agree.values()], 1e-12, 0, equal_nan=True)
        said = ', '.join(f'{metric} {a:.6f} and {b:.6f}' for metric, (a, b, *_) in agree.items())
        print(f'{"same" if ok else "DIFFERENT"}: {pathlib.Path(name).stem:13} {len(items):6} items, {len(ours):6} '
              f'requests equal, log-probabilities differ by at most {difference:.1e}; harness and ours: {said}', flush=True)
        yield ok


GOLDEN = {   # the harness's own tests/testdata/<task>-v0-loglikelihood: sha256 of all requests, shuffled with seed 42
    'arc_easy': (2376, 'ffa6e39a35a16299dcb015f17f986aaa598ad8b4840c4cebe0339a7042232741'),
    'arc_challenge': (1172, '41c34c96cca8ace661911d0033d630c554b283f5a3953bcdc50720ae6b00a9c1'),
    'hellaswag': (10042, 'abb808c97d6529eda6c11067837a132c62d25cba0394d720f80cca6df9f7196e'),
    'winogrande': (1267, '90a3eff49de9173964d46f5ed57bcf9a78a72dd1bfe0e5323b25cebb40b49ea9')}


def golden(folder):
    for name, (n, expected) in GOLDEN.items():
        items = list(eval_mc.load(name, folder))
        if len(items) != n:
            print(f'not checked: golden hash of {name}: {len(items)} items here, all are {n}')
            continue
        shuffle = random.Random()
        shuffle.seed(42)
        shuffle.shuffle(items)
        pairs = [[context, ' ' + choice] for item in items for context, choice in zip(item.contexts, item.choices)]
        found = hashlib.sha256(json.dumps(pairs, sort_keys=True).encode()).hexdigest()
        print(f'{"same" if found == expected else "DIFFERENT"}: golden hash of {name}')
        yield found == expected


# ---- speed

def time_both(model, encoding, folder):
    lm = harness_of(model, 1, getattr(torch, harness_dtype))
    if dtype == 'bfloat16':   # as eval_mc.py does
        model.matrices_to_bfloat16()
    for name, parts in sources(folder):
        if name not in ('hellaswag', 'mmlu'):
            continue
        share = max(1, speed // len(parts))
        items = list(eval_mc.load(name, folder, 0, share))
        instances = []
        for file, splits in parts:
            task = task_of(file, splits)
            task.build_all_requests(limit=share, rank=0, world_size=1)
            instances += task.instances
        sizes = [int(size) for size in batch_sizes.split(',')]
        rates = {who: [] for who in ('ours', *sizes)}

        def turn(who):
            start = time.perf_counter()
            if who == 'ours':
                with torch.autocast('cpu', torch.bfloat16, enabled=dtype == 'bfloat16'):
                    eval_mc.evaluate(model, encoding, items)
            else:
                lm.batch_size_per_gpu = who
                lm.loglikelihood(instances, disable_tqdm=True)
            rates[who].append(len(items) / (time.perf_counter() - start))
        for who in rates:   # which also warms up
            turn(who)
        best = max(sizes, key=rates.get)
        said = ', '.join(f'{rates[size][0]:.2f} at batch size {size}' for size in sizes)
        for _ in range(rounds):
            turn('ours')
            turn(best)
        ours, theirs = rates['ours'][1:], rates[best][1:]
        ratios = [a / b for a, b in zip(ours, theirs)]
        print(f'{name} ({len(items)} items): ours ({dtype}) {statistics.median(ours):.2f} items/s, harness ({harness_dtype}) '
              f'{statistics.median(theirs):.2f} at batch size {best} (first round: {said}); ratio '
              f'{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f} in {rounds} rounds)', flush=True)


def main():
    pick_device('cpu')   # as eval_mc.py does: memory that is kept, for both
    torch.manual_seed(seed)
    encoding = tiktoken.get_encoding('gpt2')
    small = {} if speed else dict(n_layer=3, n_head=4, n_kv_head=2, n_embd=64, d_ff=128)
    model = GPT(Config(block_size=block_size, **small)).eval()
    for p in model.parameters():   # far from the initial ones: answers that differ
        torch.nn.init.normal_(p, mean=float(p.dim() == 1), std=0.2 if not speed else 0.02)
    print(f'{datasets.__name__} {datasets.__version__}, lm_eval {lm_eval.__version__}, torch {torch.__version__}, '
          f'{torch.get_num_threads()} threads')
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(shutil.copytree(data_dir, folder, dirs_exist_ok=True))
        for part in ('Easy', 'Challenge'):
            if not (folder / f'arc/ARC-{part}-Train.jsonl').exists():
                shutil.copy(folder / f'arc/ARC-{part}-Dev.jsonl', folder / f'arc/ARC-{part}-Train.jsonl')
        pairs = [dict(sentence_good=f'The {who} {does}s.', sentence_bad=f'The {who}s {does}s, naïvely.')
                 for who in ('cat', 'poet', 'tree') for does in ('walk', 'grow', 'run')]
        (folder / 'pairs.jsonl').write_text('\n'.join(map(json.dumps, pairs)))
        if speed:
            return time_both(model, encoding, folder)
        same = [*golden(folder), *compare(model, encoding, harness_of(model, 8), folder)]
        sys.exit(0 if all(same) else 'not the same')


main()
