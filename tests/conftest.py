import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))   # the tests import the scripts' modules

import torch

torch.set_num_threads(1)   # what the tests compute is tiny: a second thread would only be waited for
