# A 10M transformer with a BPE of its own, since GPT-2's table would take them all: python train.py config/tiny_10m.py
# Parameters: 9.8 million: tables 2.1, attention 2.4, feed-forward 5.3.
# The whole run is about 2.9e16 floating-point operations.
# Measured: 408,000 tokens/s (median) on an H100 that other programs used too, not compiled, batches of 48 blocks.
out_dir = 'out/tiny_10m'
dataset = 'simplewiki'
tokenizer = 'bpe8192'
n_layer, n_head, n_kv_head, n_embd, d_ff = 9, 8, 8, 256, 768
block_size = 512
muon_lr, learning_rate = 0.04, 6e-3
batch_size, grad_accum = 32, 4   # 65,536 tokens
max_iters, warmup_iters = 6000, 50   # about 5 epochs of 73 million tokens
eval_interval = 250
