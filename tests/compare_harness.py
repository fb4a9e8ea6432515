"""
eval_mc.py beside EleutherAI's lm-evaluation-harness: the same questions, the same weights. A command, not a test.

    pip install lm_eval==0.4.13 transformers accelerate   # in a virtual environment of its own, with torch
    python tests/compare_harness.py --data_dir=data/eval --limit=100
    python tests/compare_harness.py --data_dir=data/eval --out_dir=out/quick    # a trained run
    python tests/compare_harness.py --data_dir=data/eval --speed=200

convert.py writes the model, a random one or a run, as Hugging Face's Llama into a folder, which the harness loads. It
reads its own task files and makes its own prompts, requests and metrics from the same records. Compared are
every request (two strings), every log-probability, and every accuracy: the harness's must be ours by its own rule
that the first of equal scores is the answer, and lie between ours and ours with all ties added.
--speed times both instead, in turns, and prints one table of all tasks.
"""
out_dir = ''             # a run, a Llama; without, a small random model with GPT-2's tokenizer
data_dir = 'data/eval'   # the tasks' files, as eval_mc.py has them
limit = 20               # items of each task, of MMLU of each subject; 0 for all
block_size = 512         # of the random model: shorter ones truncate more
tasks = ''               # only these of eval_mc.py's; without, all of them and a file of our own pairs
speed = 0                # time about this many items of each task, at 50M parameters
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

from configurator import configure
if __name__ == '__main__':
    configure(globals(), one_of=dict(dtype='bfloat16 float32', harness_dtype='bfloat16 float32'))

import datasets
import lm_eval
import numpy as np
import torch
import transformers
from lm_eval.api.task import ConfigurableTask
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks._yaml_loader import load_yaml

from tools import convert, huggingface
import eval_mc
from stlm import questions
from stlm import tokenizer as tokenizers
from model import GPT, Config
from stlm.machine import keep_freed_memory
from stlm.run import load_run

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


def sources(folder, name):
    """[(the harness's task file, its data set)] of one of our tasks, in our order of the items."""
    if name == 'blimp':
        return [(f'blimp/{path.stem}.yaml', dict(train=lines(path))) for path in sorted((folder / 'blimp').glob('*.jsonl'))]
    if name.startswith('arc'):
        part = name.removeprefix('arc_').capitalize()
        docs = arc_docs(folder / f'arc/ARC-{part}-Test.jsonl')
        return [(f'arc/{name}.yaml', dict(train=docs, validation=docs, test=docs))]   # the first two aren't read
    if name.startswith('mmlu'):
        kind = 'continuation' if name == 'mmlu_cloze' else 'default'
        subjects = [path.name.removesuffix('_test.csv') for path in sorted((folder / 'mmlu/test').glob('*.csv'))]
        return [(f'mmlu/{kind}/mmlu_{subject}.yaml', {
            split: mmlu_docs(folder / f'mmlu/{split}/{subject}_{split}.csv') for split in ('dev', 'test')})
            for subject in subjects]
    file, split = dict(winogrande=('winogrande/default.yaml', 'winogrande/dev.jsonl'),
                       hellaswag=('hellaswag/hellaswag.yaml', 'hellaswag/hellaswag_val.jsonl')).get(
                           name, ('blimp/anaphor_number_agreement.yaml', name))   # our own pairs
    records = lines(folder / split)
    return [(file, dict(train=records, validation=records))]


def task_of(file, splits):
    data = datasets.DatasetDict({name: datasets.Dataset.from_list(docs) for name, docs in splits.items()})
    config = load_yaml(THEIRS / file)
    task = ConfigurableTask(config={**config, 'custom_dataset': lambda **settings: data, 'metadata': None})
    task.set_config('num_fewshot', 0)
    return task


# ---- agreement

def first_of_equals(items, scores):
    """{metric: whether each answer is right by the harness's rule}"""
    right = {metric: [] for metric in ('acc', 'acc_norm')}
    for item, score in zip(items, scores):
        lengths = [len(choice) for choice in item.choices]
        right['acc'].append(np.argmax(score) == item.right)
        right['acc_norm'].append(np.argmax(np.divide(score, lengths)) == item.right)
    return right


def compare(model, tokenizer, lm, folder, name):
    items = questions.load_questions(name, folder, limit)
    result, scores = eval_mc.answer_questions(model, tokenizer, items)
    ours = [(context, ' ' + choice) for item in items for context, choice in zip(item.contexts, item.choices)]
    instances, docs = [], []
    for file, splits in sources(folder, name):
        task = task_of(file, splits)
        task.build_all_requests(limit=limit or None, rank=0, world_size=1)
        instances += task.instances
        docs += [(task, doc) for _, doc in task.doc_iterator(rank=0, limit=limit or None, world_size=1)]
    assert [instance.args for instance in instances] == ours, f'{name}: the requests differ'
    answers = iter(lm.loglikelihood(instances, disable_tqdm=True))
    theirs, difference = {'acc': [], 'acc_norm': []}, 0.0
    for (task, doc), score in zip(docs, scores, strict=True):
        answer = [next(answers) for _ in score]
        difference = max(difference, np.abs(np.subtract([nats for nats, greedy in answer], score)).max())
        for metric, right in task.process_results(doc, answer).items():
            theirs[metric].append(right)
    ok = difference <= 1e-4
    said = []
    for metric, by_their_rule in first_of_equals(items, scores).items():
        if theirs[metric]:
            accuracy, mine, ties = np.mean(theirs[metric]), result[metric], result[f'{metric}_ties'] / len(items)
            ok &= theirs[metric] == by_their_rule and mine - 1e-12 <= accuracy <= mine + ties + 1e-12
            error = np.std(theirs[metric], ddof=1) / len(items)**0.5
            ok &= ties > 0 or len(items) == 1 or bool(np.isclose(error, result[f'{metric}_se'], 1e-12, 0))
            said.append(f'{metric} {accuracy:.6f} and {mine:.6f}, {result[f"{metric}_ties"]} ties')
    print(f'{"same" if ok else "DIFFERENT"}: {pathlib.Path(name).stem:13} {len(items):6} items, {len(ours):6} requests equal, '
          f'log-probabilities differ by at most {difference:.1e}; harness and ours: {"; ".join(said)}', flush=True)
    return ok


GOLDEN = {   # the harness's own tests/testdata/<task>-v0-loglikelihood: sha256 of all requests, shuffled with seed 42
    'arc_easy': (2376, 'ffa6e39a35a16299dcb015f17f986aaa598ad8b4840c4cebe0339a7042232741'),
    'arc_challenge': (1172, '41c34c96cca8ace661911d0033d630c554b283f5a3953bcdc50720ae6b00a9c1'),
    'hellaswag': (10042, 'abb808c97d6529eda6c11067837a132c62d25cba0394d720f80cca6df9f7196e'),
    'winogrande': (1267, '90a3eff49de9173964d46f5ed57bcf9a78a72dd1bfe0e5323b25cebb40b49ea9')}


def golden(folder):
    for name, (n, expected) in GOLDEN.items():
        items = questions.load_questions(name, folder)
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

def time_both(model, tokenizer, lm, folder, name):
    """A line of the table: medians of several rounds in turns, by the clock, and the ratio per CPU second too."""
    parts = sources(folder, name)
    share = max(1, speed // len(parts))   # of each file
    items = questions.load_questions(name, folder, share)
    instances = []
    for file, splits in parts:
        task = task_of(file, splits)
        task.build_all_requests(limit=share, rank=0, world_size=1)
        instances += task.instances

    def turn(size):
        """(seconds by the clock, CPU seconds) of the harness at a batch size, or of ours"""
        start, cpu_start = time.perf_counter(), time.process_time()
        if size:
            lm.batch_size_per_gpu = size
            lm.loglikelihood(instances, disable_tqdm=True)
        else:
            with torch.autocast('cpu', torch.bfloat16, enabled=dtype == 'bfloat16'):
                eval_mc.answer_questions(model, tokenizer, items)
        return time.perf_counter() - start, time.process_time() - cpu_start
    turn(0)   # warms up
    best = min(map(int, batch_sizes.split(',')), key=turn)
    ours, theirs, by_clock, by_cpu = [], [], [], []
    for _ in range(rounds):
        (mine, my_cpu), (other, other_cpu) = turn(0), turn(best)
        ours.append(len(items) / mine)
        theirs.append(len(items) / other)
        by_clock.append(other / mine)
        by_cpu.append(other_cpu / my_cpu)
    median = statistics.median
    print(f'| {name} | {len(items)} | {median(ours):.2f} | {median(theirs):.2f} | {best} | {median(by_clock):.2f} '
          f'({min(by_clock):.2f} to {max(by_clock):.2f}) | {median(by_cpu):.2f} |', flush=True)


def the_model():
    """A random one: when timed of 50M parameters, else small, with weights far from the initial ones."""
    torch.manual_seed(seed)
    shape = dict(n_layer=3, n_head=4, n_kv_head=2, n_embd=64, d_ff=128)
    if speed:   # config/tiny_50m.py
        shape = dict(n_layer=10, n_head=16, n_kv_head=16, n_embd=512, d_ff=1536)
    model = GPT(Config(vocab_size=50257, block_size=block_size, **shape)).eval()
    for p in model.parameters():
        torch.nn.init.normal_(p, mean=float(p.dim() == 1), std=0.02 if speed else 0.2)
    return model


def main():
    keep_freed_memory()   # for both
    if out_dir:
        model, tokenizer, checkpoint = load_run(out_dir)
        weights = convert.llama_weights(model, checkpoint['idea'])
    else:
        model, tokenizer = the_model(), tokenizers.make_tokenizer('gpt2', tokenizers.named_ranks('gpt2'))
        weights = convert.llama_weights(model)
    with tempfile.TemporaryDirectory() as folder:
        huggingface.write_model(pathlib.Path(folder), weights, model.config, tokenizer)
        lm = HFLM(pretrained=folder, dtype=harness_dtype, batch_size=8, device='cpu')
    print(f'{datasets.__name__} {datasets.__version__}, lm_eval {lm_eval.__version__}, torch {torch.__version__}, '
          f'{torch.get_num_threads()} threads')
    names = tasks.split(',') if tasks else [*questions.TASKS]
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(shutil.copytree(data_dir, folder, dirs_exist_ok=True))
        if speed:
            print(f'| task | items | ours ({dtype}), items/s | harness ({harness_dtype}) | at batch size | ratio | '
                  'per CPU second |\n|---' + '|---:' * 6 + '|')
            for name in names:
                time_both(model, tokenizer, lm, folder, name)
            return
        pairs = [dict(sentence_good=f'The {who} {does}s.', sentence_bad=f'The {who}s {does}s, naïvely.')
                 for who in ('cat', 'poet', 'tree') for does in ('walk', 'grow', 'run')]
        first = min((folder / 'blimp').glob('*.jsonl'))   # begins with a tie, which a file of your own may not have
        same_twice = {**lines(first)[0], **dict.fromkeys(('sentence_good', 'sentence_bad'), 'Twice the same.')}
        first.write_text('\n'.join(map(json.dumps, [same_twice, *lines(first)])))
        (folder / 'pairs.jsonl').write_text('\n'.join(map(json.dumps, pairs)))
        if not tasks:
            names.append(str(folder / 'pairs.jsonl'))
        same = [compare(model, tokenizer, lm, folder, name) for name in names]
        if not tasks:
            same += golden(folder)
        sys.exit(0 if all(same) else 'not the same')


if __name__ == '__main__':
    main()
