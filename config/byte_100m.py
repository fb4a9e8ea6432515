# 100M parameters, 94 % of them core: python train.py config/byte_100m.py
# Many epochs of a small text: dropout, strong weight decay and an average of the weights.
# Parameters: 98.1 million: byte encoder and decoder 6.1, attention 28.3, feed-forward 63.7.
# The whole run is about 4.9e17 floating-point operations; nobody has run it yet.
out_dir = 'out/byte_100m'
dataset = 'simplewiki'
tokenizer = 'gpt2-16'
embedding = 'byte_pool'
n_layer, n_head, n_kv_head, n_embd, d_ff = 12, 12, 12, 768, 2304
n_byte_embd = 256
block_size = 512
muon_lr, learning_rate = 0.03, 4e-3
weight_decay, dropout, ema = 0.5, 0.1, 0.99
batch_size, grad_accum = 32, 8   # 131,072 tokens
max_iters, warmup_iters = 5500, 50   # about 12 epochs of 60 million tokens
eval_interval = 250
