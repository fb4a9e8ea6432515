"""
Draws assets/schedules.png: dropout (arXiv 2405.14159, section 5.5) and learning rate over a run of 1,000 steps.

    python docs/schedules.py      # needs matplotlib
"""
import pathlib
import sys

import matplotlib.pyplot as plt

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from train import along, learning_rate_factor

DROPOUT = {   # each as train.py takes it: --dropout=0.1, or --dropout="[(step, p), ...]"
    'constant': [(0, 0.1)],
    'early': [(0, 0.1), (300, 0.1), (301, 0)],
    'late': [(699, 0), (700, 0.1)],
    'linear up': [(0, 0), (1000, 0.1)],
    'linear down': [(0, 0.1), (1000, 0)],
    'triangle': [(0, 0), (500, 0.1), (1000, 0)]}
figure, panels = plt.subplots(1, 7, figsize=(14, 2), sharex=True)
for panel, (name, points) in zip(panels, DROPOUT.items()):
    panel.plot([along(points, it) for it in range(1000)])
    panel.set(title=name, ylim=(-0.005, 0.11), xlabel='step')
for name in 'cosine', 'wsd':
    panels[6].plot([learning_rate_factor(it, 1000, 50, name, final_lr=0.1) for it in range(1000)], label=name)
panels[6].set(title='learning rate', xlabel='step')
panels[6].legend(frameon=False, fontsize=8)
panels[0].set_ylabel('dropout p')
figure.tight_layout()
(ROOT / 'assets').mkdir(exist_ok=True)
figure.savefig(ROOT / 'assets/schedules.png', dpi=90)
