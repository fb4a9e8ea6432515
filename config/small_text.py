# A trained model goes on with a small text: few and small steps, so that it doesn't learn the text by heart.
# python train.py config/small_text.py --init_from=out/quick --dataset=novel --out_dir=out/novel
max_iters = 100
eval_interval = 20
muon_lr, learning_rate = 0.01, 1.5e-3
