"""The dataset position of each image of a folder: where a conversion stores it, and where training from the folder
finds it, so that both have the same batches."""

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from ..order.random import MIX_DRAW, random_keys
from .shards import original_name

SEED = 0
"""Of `mixed_order`, where a conversion is given no other."""


def name_order(names: Iterable[str], labels: NDArray[np.int32]) -> NDArray[np.int64]:
    """By file name, then class, int64 [N]: the order does not depend on whether images are in folders or archives.
    Images that have both in common stay in the order they come in."""
    order = np.argsort(labels, kind="stable").tolist()
    order.sort(key=list(map(original_name, names)).__getitem__)  # a stable sort, too
    return np.array(order, np.int64)


def mixed_order(count: int, seed: int) -> NDArray[np.int64]:
    """A random order of the training images, int64 [count]: a stream reads them as they are stored."""
    return np.argsort(random_keys(count, seed, 0, MIX_DRAW), kind="stable")
