# 50M parameters, four layers more than tiny_50m for fewer in all: python train.py config/byte_50m.py
# Many epochs of a small text: dropout, strong weight decay and an average of the weights.
# Parameters: 49.6 million: byte encoder and decoder 1.9, attention 14.7, feed-forward 33.0.
# The whole run is about 2.5e17 floating-point operations; nobody has run it yet.
out_dir = 'out/byte_50m'
dataset = 'simplewiki'
tokenizer = 'gpt2-16'
embedding = 'byte_pool'
n_layer, n_head, n_kv_head, n_embd, d_ff = 14, 16, 16, 512, 1536
block_size = 512
muon_lr, learning_rate = 0.03, 6e-3
weight_decay, dropout, ema = 0.4, 0.1, 0.99
batch_size, grad_accum = 32, 8   # 131,072 tokens
max_iters, warmup_iters = 5500, 50   # about 12 epochs of 60 million tokens
eval_interval = 250
