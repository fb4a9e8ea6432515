# The quick start, wider, and with fewer steps, so that it takes about as long: python train.py config/quick_wide.py
out_dir = 'out/quick_wide'
n_embd, n_head, n_kv_head, d_ff = 192, 6, 6, 576
max_iters = 400
