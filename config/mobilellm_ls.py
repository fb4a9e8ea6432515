# Each block twice in a row (MobileLLM-LS, arXiv 2402.14905), so half of the blocks:
# python train.py config/byte_10m.py config/mobilellm_ls.py --out_dir=out/mobilellm_ls
share = 'block'
share_every = 2
