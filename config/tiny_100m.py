# A 100M transformer with GPT-2's vocabulary: python train.py config/tiny_100m.py
# Many epochs of a small text: dropout, strong weight decay and an average of the weights.
# Parameters: 101.4 million: tables 32.2, attention 21.3, feed-forward 47.9.
# The whole run is about 4.8e17 floating-point operations; nobody has run it yet.
out_dir = 'out/tiny_100m'
dataset = 'simplewiki'
tokenizer = 'gpt2'
n_layer, n_head, n_kv_head, n_embd, d_ff = 13, 10, 10, 640, 1920
block_size = 512
muon_lr, learning_rate = 0.03, 4e-3
weight_decay, dropout, ema = 0.5, 0.1, 0.99
batch_size, grad_accum = 32, 8   # 131,072 tokens
max_iters, warmup_iters = 5500, 50   # about 12 epochs of 60 million tokens
eval_interval = 250
