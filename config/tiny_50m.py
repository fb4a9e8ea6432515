# The paper's 50M model, arXiv 2405.14159, Table 1: python train.py config/tiny_50m.py
# Table 1 gives the shape, the batch, the schedule and AdamW. It leaves open, and here it is: key/value heads (as many
# as heads), tied tables, beta2 0.95, clipping at 1, where the cosine ends (a tenth), where dropout acts (on what each
# attention and feed-forward adds, and on the embeddings).
# Parameters: 59.8 million: tables 25.7, attention 10.5, feed-forward 23.6.
# The whole run is about 2.4e18 floating-point operations; nobody has run it yet.
out_dir = 'out/tiny_50m'
dataset = 'simplewiki'
tokenizer = 'gpt2'
n_layer, n_head, n_kv_head, n_embd, d_ff = 10, 16, 16, 512, 1536
block_size = 512
optimizer = 'adamw'
learning_rate = 6e-4
final_lr = 0.1
weight_decay = 0.1
dropout = 0.1
batch_size, grad_accum = 24, 20
max_iters, warmup_iters = 25000, 5000
eval_interval = 500
