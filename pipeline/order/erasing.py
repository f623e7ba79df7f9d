"""Which rectangles of a training image are erased, and random bytes to fill them with: pure functions of (seed, epoch,
sample key); see `random.py`."""

import math

import numpy as np

from ..jit import njit
from .random import ERASE_DRAW, random_words, uniform

MOST_BLOCKS = 16
"""How many rectangles an image can have."""
LEVELS = 1 << 16
"""Values of a table for `fill_from_table`."""

_ATTEMPTS = 10
_LEAST_AREA, _MOST_AREA = 0.02, 1 / 3
_LOG_ASPECT = math.log(0.3)


@njit(cache=True, nogil=True)
def erased_boxes(seed, epoch, keys, probability, most, side):
    """Top, left, height and width of each sample's blocks, int64 [B, most, 4]; of height 0 where there is none."""
    boxes = np.zeros((len(keys), most, 4), np.int64)
    for row in range(len(keys)):
        w0, w1, _, _ = random_words(seed, epoch, keys[row], ERASE_DRAW)
        if uniform(w0) >= probability:
            continue
        count = 1 + np.int64(uniform(w1) * most)
        for block in range(count):
            for attempt in range(_ATTEMPTS):
                draw = ERASE_DRAW + 1 + block * _ATTEMPTS + attempt
                w0, w1, w2, w3 = random_words(seed, epoch, keys[row], draw)
                area = (_LEAST_AREA + (_MOST_AREA - _LEAST_AREA) * uniform(w0)) * side * side / count
                aspect = math.exp(_LOG_ASPECT - 2 * _LOG_ASPECT * uniform(w1))
                height, width = np.int64(np.rint(math.sqrt(area * aspect))), np.int64(np.rint(math.sqrt(area / aspect)))
                if 0 < height < side and 0 < width < side:
                    boxes[row, block, 0] = np.int64(uniform(w2) * (side - height + 1))
                    boxes[row, block, 1] = np.int64(uniform(w3) * (side - width + 1))
                    boxes[row, block, 2], boxes[row, block, 3] = height, width
                    break
    return boxes


@njit(cache=True, nogil=True)
def fill_from_table(seed, epoch, key, draw, table, content):
    """Random bytes from `table`, uint8 [3, LEVELS], into uint8 [3, N]: 16 random bits each."""
    size = content.shape[1]
    for at in range(0, 3 * size, 8):
        words = random_words(seed, epoch, key, draw + at // 8)
        for number in range(min(8, 3 * size - at)):
            place = at + number
            half = (words[number >> 1] >> (np.uint64(16) * np.uint64(number & 1))) & np.uint64(0xFFFF)
            content[place // size, place % size] = table[place // size, half]
