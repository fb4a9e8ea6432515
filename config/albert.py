# One block for all layers (ALBERT, arXiv 1909.11942); norms stay each layer's own:
# python train.py config/byte_10m.py config/albert.py --out_dir=out/albert
share = 'block'
