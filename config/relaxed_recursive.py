# One block for all layers, and a small change of it for each (relaxed recursive transformers, arXiv 2410.20672):
# python train.py config/byte_10m.py config/relaxed_recursive.py --out_dir=out/relaxed_recursive
share = 'block'
lora_rank = 16
