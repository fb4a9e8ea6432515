# The quick start with byte pooling: python train.py config/quick_byte.py
# 3.3 million parameters and no vocabulary table; each token is spelled in and out by its bytes.
# At this size the byte decoder costs more than the rest of the model, so it sees fewer tokens in the same time.
out_dir = 'out/quick_byte'
embedding = 'byte_pool'
n_byte_embd = 128
n_encoder_layer = 1
n_decoder_layer = 3
learning_rate = 2e-2   # the byte embeddings start large and learn slowly below this
max_iters = 240
eval_interval = 80
