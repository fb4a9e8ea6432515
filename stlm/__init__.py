"""
What the scripts share: runs, machines, text, optimizers, tokenizers, files. Nobody needs to read it to understand
the model (model.py) or the training (train.py).
"""
