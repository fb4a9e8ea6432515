"""
Cleaning and encoding beside tiktoken's encode_ordinary_batch, on the same text and cores. A command, not a test.

    taskset -c 0,1 python tests/speed_prepare.py --text=articles.jsonl.gz

They take turns, each in a process of its own. Ours is the whole way from the file to the data set; tiktoken's has the
text in memory already. Then the text, repeated with changes to `megabytes`, is prepared once, for the memory.
"""
text = ''                  # .txt, .jsonl, .jsonl.gz or .parquet
tokenizer = 'gpt2'         # what to encode with: gpt2 or gpt2-16
rounds = 3                 # measurements of each, in turn; the median counts
megabytes = 300            # of the text whose preparation's memory is measured; 0: not measured
job = ''                   # (how the script calls itself)

import contextlib
import json
import os
import pathlib
import resource
import statistics
import subprocess
import sys
import tempfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))
from configurator import configure
configure(globals())
import prepare_wiki
from stlm.documents import input_files, read_files


def work():
    """Do the job; print its seconds, processor seconds, bytes of text, and most memory in MB."""
    with contextlib.redirect_stdout(sys.stderr):
        encoding = prepare_wiki.ready_tokenizer(tokenizer)   # loaded before the clock starts
        if job == 'tiktoken':
            documents = list(read_files(input_files(text), lambda done: None))
            start, cpu, n = time.perf_counter(), time.process_time(), len(os.sched_getaffinity(0))
            encoding.encode_ordinary_batch(documents, num_threads=n)
            size = sum(len(document.encode()) for document in documents)
        else:
            with tempfile.TemporaryDirectory() as folder:
                start, cpu = time.perf_counter(), time.process_time()
                prepare_wiki.prepare('speed', tokenizer, text, data_dir=folder)
                meta = prepare_wiki.load_data('speed', tokenizer, folder)[1]
                size = sum(has['bytes'] for has in meta['splits'].values())
    print(time.perf_counter() - start, time.process_time() - cpu, size,
          resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def measure(job, text):
    out = subprocess.run([sys.executable, __file__, f'--text={text}', f'--tokenizer={tokenizer}', f'--job={job}'],
                         stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=True).stdout
    return [float(number) for number in out.split()]


def main():
    times = [(measure('tiktoken', text), measure('prepare', text)) for _ in range(rounds)]
    for i, clock in enumerate(('wall clock', 'processor time')):
        theirs, ours = ([size / 1e6 / seconds[i] for *seconds, size, _ in side] for side in zip(*times))
        ratios = [b / a for a, b in zip(theirs, ours)]
        print(f'{clock}: encode_ordinary_batch {statistics.median(theirs):.2f} MB/s, prepare_wiki '
              f'{statistics.median(ours):.2f} MB/s, ratio {statistics.median(ratios):.2f} '
              f'({min(ratios):.2f} to {max(ratios):.2f} in {rounds} rounds)', flush=True)
    if not megabytes:
        return
    documents = list(read_files(input_files(text), lambda done: None))
    with tempfile.TemporaryDirectory() as folder:
        size, number, file = 0, 0, pathlib.Path(folder, 'text.jsonl')
        with open(file, 'w', encoding='utf-8') as out:
            while size < megabytes * 1e6:   # a number makes each document a new one
                document = f'{number}. {documents[number % len(documents)]}'
                out.write(json.dumps(dict(text=document)) + '\n')
                size, number = size + len(document.encode()), number + 1
        del documents
        seconds, _, size, peak = measure('prepare', file)
        print(f'memory: {peak:,.0f} MB at most for {size / 1e6:,.0f} MB of text, {seconds:.1f} s')


work() if job else main()
