# One feed-forward for all layers, as wide as all of them together (One Wide FFN, arXiv 2309.01826):
# python train.py config/byte_10m.py config/one_wide_ffn.py --out_dir=out/one_wide_ffn
share = 'ffn'
d_ff = n_layer * d_ff
