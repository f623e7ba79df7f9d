"""Imported by the process that training runs are forked from: compiled kernels are loaded once, not in each of them.

On one thread: PyTorch's others would not outlive the fork.
"""

import numpy as np
import processes  # noqa: F401 (with all of the program)
import torch
from images import varied_jpeg

from pipeline.contract import CropPolicy
from pipeline.decode import load_image
from pipeline.plan import epoch_order
from train.randomness import seed_step

torch.set_num_threads(1)
for _number in range(8):
    for _training in (False, True):
        _policy = CropPolicy(training=_training)
        load_image([], 0, varied_jpeg(_number, seed=0), _policy, 0, 0, np.empty((32, 32, 3), np.uint8))  # type: ignore[arg-type]
epoch_order(4, 0, 0)
seed_step(0, 0, 0, 0, torch.device("cpu"))
