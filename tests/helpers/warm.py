"""Imported by the process that training runs are forked from: it loads compiled kernels once for all of them.

It uses one thread: the child of a fork does not have PyTorch's others.
"""

import contextlib

import numpy as np
import torch

import tests.helpers.processes  # noqa: F401 (imports the whole program)
from pipeline.contract import LoaderSpec
from pipeline.order.crops import CropPolicy
from pipeline.order.plan import epoch_order
from pipeline.pixels.decode import load_image
from pipeline.pixels.jpeg.tiles import NotTileable, tile
from tests.helpers.images import varied_jpeg
from train.randomness import seed_step

torch.set_num_threads(1)
for _number in range(8):
    _files = [varied_jpeg(_number, seed=0)]
    with contextlib.suppress(NotTileable):
        _files.append(tile(_files[0]))
    for _training in (False, True):
        _spec = LoaderSpec(split=None, batch_size=1, crop=CropPolicy(training=_training))  # type: ignore[arg-type]
        for _jpeg in _files:
            load_image(_spec, [], 0, _jpeg, 0, np.empty((32, 32, 3), np.uint8))  # type: ignore[arg-type]
epoch_order(4, 0, 0)
seed_step(0, 0, 0, 0, torch.device("cpu"))
