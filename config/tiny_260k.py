# 260,800 parameters, for a microcontroller: python train.py config/tiny_260k.py
# Then python -m tools.convert --out_dir=out/tiny_260k --to=llama2c --file=out/tiny_260k.bin: a megabyte for llama2.c's run.c,
# and with --to=llama2c_q8 under 0.3 MB for its runq.c. d_ff is a multiple of 32, so that 32 weights share a scale.
out_dir = 'out/tiny_260k'
dataset = 'pydocs'
tokenizer = 'bpe704'
n_layer, n_head, n_kv_head, n_embd, d_ff = 5, 8, 4, 64, 160
block_size = 512
muon_lr, learning_rate = 0.04, 6e-3
batch_size = 8   # 4,096 tokens
max_iters, warmup_iters = 1500, 50   # about 7 epochs of a million tokens
eval_interval = 250
