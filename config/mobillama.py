# One feed-forward for all layers (MobiLlama, arXiv 2402.16840), on top of another config:
# python train.py config/byte_10m.py config/mobillama.py --out_dir=out/mobillama
share = 'ffn'
