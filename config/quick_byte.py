# The quick start with byte pooling: python train.py config/quick_byte.py
# 1.9 million parameters and no vocabulary table; each token is spelled in and out by its bytes.
# At this size the byte decoder costs more than the rest of the model, so it sees fewer tokens in the same time.
out_dir = 'out/quick_byte'
embedding = 'byte_pool'
max_iters = 240
eval_interval = 80
