#!/usr/bin/env bash
# For the day when a GPU is at hand, alone on it, at most 9 minutes of an H100:
#     bash tests/on_a_gpu.sh OUT          # OUT gets report.txt, appended at once, tables and logs
#     TINY=1 bash tests/on_a_gpu.sh OUT   # the same commands on a CPU, with tiny sizes: does the script work?
# It needs no network. Its inputs lie in gpu_inputs/ (ignored by git, at most 64 MiB): nanogpt/model.py,
# text.txt (a megabyte of it is enough), data/enwiki-gpt2-16/ (prepare_wiki.py --dataset=enwiki --tokenizer=gpt2-16
# --data_dir=gpu_inputs/data), and eval/ with the benchmarks' folders, as eval_mc.py keeps them.
set -u
cd "$(dirname "$0")/.."
out=${1:?a folder for the results}
in=gpu_inputs
mkdir -p "$out"
device=cuda; rounds=5; batch=32; seconds=200; small=""; few=""
if [ -n "${TINY:-}" ]; then
    device=cpu; rounds=1; batch=1; seconds=10; few="--limit=2"
    small="--n_layer=2 --n_embd=64 --d_ff=96 --n_head=4 --n_kv_head=4 --block_size=64 --batch_size=2 --grad_accum=1"
fi
say() { echo "$(date +%T) $*" | tee -a "$out/report.txt"; }
part() {   # part SECONDS NAME COMMAND...: its own limit, and its last lines in the report
    local limit=$1 name=$2; shift 2
    timeout "$limit" "$@" > "$out/$name.log" 2>&1
    say "$name: status $? (124: its $limit s were over)"
    tail -n 12 "$out/$name.log" | tr '\r' '\n' | tail -n 12 >> "$out/report.txt"
}

say "$(python -c 'import torch; print(torch.__version__, torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu")')"
part 120 test_gpu python -m pytest -q tests/test_gpu.py
part 120 speed python tests/speed.py --nanogpt=$in/nanogpt --device=$device --batch_size=$batch \
    --rounds=$rounds --text=$in/text.txt

# The paper's comparison: the core of tiny_50m with gpt2-16's table and with byte pooling, the same tokens in the same order,
# as many as both read in $seconds seconds together. Their rates are those of forty steps of each.
common="--dataset=enwiki --data_dir=$in/data --device=$device --seed=1337 --optimizer=muon --muon_lr=0.02 --learning_rate=3e-3
        --schedule=wsd --warmup_iters=20 --eval_tokens=131072 --log_interval=10 --batch_size=32 --grad_accum=1 $small"
table="config/tiny_50m.py --dropout=0 --tokenizer=gpt2-16 --output_bias=True"
byte="config/tiny_50m.py --dropout=0 --tokenizer=gpt2-16 --embedding=byte_pool"
for kind in table byte; do
    part 60 rate_$kind python train.py ${!kind} $common --max_iters=40 --eval_interval=1000 --eval_tokens=1024 --compile=yes --out_dir="$out/rate_$kind"
done
steps=$(python - "$out" "$seconds" <<'PYTHON'
import csv, json, statistics, sys
out, seconds = sys.argv[1], float(sys.argv[2])
a_step = 0
for kind in ('table', 'byte'):
    rows = [row for row in csv.DictReader(open(f'{out}/rate_{kind}/log.csv')) if row['tokens_per_s']]
    tokens = int(rows[-1]['tokens']) / int(rows[-1]['iter'])
    a_step += tokens / statistics.median(float(row['tokens_per_s']) for row in rows)
print(int(seconds / a_step))
PYTHON
)
say "steps of each: $steps"
for kind in table byte; do
    part 150 $kind python train.py ${!kind} $common --max_iters=$steps --eval_interval=$((steps / 5 + 1)) --compile=yes --out_dir="$out/$kind"
done
for kind in table byte; do
    part 30 test_$kind python train.py --out_dir="$out/$kind" --eval_only=True --split=test --device=$device
    part 60 mc_$kind python eval_mc.py --out_dir="$out/$kind" --data_dir=$in/eval --tasks=blimp,arc_easy,hellaswag --device=$device $few
    rm -f "$out/$kind"/*.pt "$out/rate_$kind"/*.pt   # tables and logs come back; int8 models of this size wouldn't
done
say "done"
