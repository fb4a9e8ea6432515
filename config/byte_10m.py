# 10M parameters, all of them core but the 1.5M that spell: python train.py config/byte_10m.py
# HEADER
out_dir = 'out/byte_10m'
dataset = 'simplewiki'
tokenizer = 'gpt2-16'
embedding = 'byte_pool'
n_layer, n_head, n_kv_head, n_embd, d_ff = 10, 8, 8, 256, 768
block_size = 512
muon_lr, learning_rate = 0.04, 6e-3
batch_size, grad_accum = 32, 4   # 65,536 tokens
max_iters, warmup_iters = 5500, 50   # 6 epochs
eval_interval = 250
