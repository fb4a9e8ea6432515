# 10M parameters, all of them core but the 1.3M that spell: python train.py config/byte_10m.py
# Parameters: 9.8 million: byte encoder and decoder 1.3, attention 2.6, feed-forward 5.9.
# The whole run is about 3.1e16 floating-point operations.
# Measured: 43,000 tokens/s (median) on an H100 that other programs used too, batches of 48 blocks.
out_dir = 'out/byte_10m'
dataset = 'simplewiki'
tokenizer = 'gpt2-16'
embedding = 'byte_pool'
n_layer, n_head, n_kv_head, n_embd, d_ff = 10, 8, 8, 256, 768
block_size = 512
muon_lr, learning_rate = 0.04, 6e-3
batch_size, grad_accum = 32, 4   # 65,536 tokens
max_iters, warmup_iters = 5500, 50   # about 6 epochs of 60 million tokens
eval_interval = 250
