"""Where a training image is cropped and whether it is flipped: a pure function of (seed, epoch, sample).

Random numbers come from Philox4x32-10, a counter-based generator (Salmon et al., "Parallel random numbers: as
easy as 1, 2, 3", SC 2011): the numbers of a sample are computed from its key alone, so they do not depend on
the loader, the worker, the world size or a restart. The functions here are compiled by numba and are the same
whether Python calls them or another compiled kernel does.

The 128-bit counter is (sample, epoch, draw), the 64-bit key is the seed. A draw gives four 32-bit words:
draws 0 to 9 are the ten tries of RandomResizedCrop, FLIP_DRAW decides the flip, ORDER_DRAW sorts the epoch, and
SHARD_DRAW and BUFFER_DRAW are for streams, MIX_DRAW and RAW_DRAW for the conversion, STEP_DRAW for what is random in
a training step.
"""

import math

import numpy as np
from numba import njit

FLIP_DRAW = 16
ORDER_DRAW = 17
SHARD_DRAW = 18
BUFFER_DRAW = 19
MIX_DRAW = 20
RAW_DRAW = 21
STEP_DRAW = 22

_MULTIPLIER_0 = np.uint64(0xD2511F53)
_MULTIPLIER_1 = np.uint64(0xCD9E8D57)
_WEYL_0 = np.uint64(0x9E3779B9)
_WEYL_1 = np.uint64(0xBB67AE85)
_LOW_32 = np.uint64(0xFFFFFFFF)
_SHIFT_32 = np.uint64(32)


@njit(cache=True, nogil=True, inline="always")
def _round(c0, c1, c2, c3, k0, k1):  # type: ignore[no-untyped-def]
    product_0 = _MULTIPLIER_0 * c0
    product_1 = _MULTIPLIER_1 * c2
    return (
        (product_1 >> _SHIFT_32) ^ c1 ^ k0,
        product_1 & _LOW_32,
        (product_0 >> _SHIFT_32) ^ c3 ^ k1,
        product_0 & _LOW_32,
    )


@njit(cache=True, nogil=True)
def philox4x32(c0, c1, c2, c3, k0, k1):  # type: ignore[no-untyped-def]
    """Ten rounds of Philox4x32. All arguments and the four results are uint64 holding 32-bit words."""
    for _ in range(10):
        c0, c1, c2, c3 = _round(c0, c1, c2, c3, k0, k1)
        k0 = (k0 + _WEYL_0) & _LOW_32
        k1 = (k1 + _WEYL_1) & _LOW_32
    return c0, c1, c2, c3


@njit(cache=True, nogil=True)
def random_words(seed, epoch, sample, draw):  # type: ignore[no-untyped-def]
    """Four independent uniform 32-bit words (as uint64) for one draw of one sample in one epoch.

    `seed`, `epoch` and `sample` are non-negative integers; epoch and draw are below 2**32, the others below
    2**63.
    """
    seed, sample = np.uint64(seed), np.uint64(sample)
    return philox4x32(
        sample & _LOW_32,
        sample >> _SHIFT_32,
        np.uint64(epoch) & _LOW_32,
        np.uint64(draw),
        seed & _LOW_32,
        seed >> _SHIFT_32,
    )


@njit(cache=True, nogil=True)
def _uniform(word):  # type: ignore[no-untyped-def]
    """A 32-bit word as a float64 in [0, 1)."""
    return float(word) * (1.0 / 4294967296.0)


@njit(cache=True, nogil=True)
def random_resized_crop(seed, epoch, sample, height, width, min_area, max_area, min_ratio, max_ratio):  # type: ignore[no-untyped-def]
    """The training crop of a sample: (top, left, crop height, crop width) in pixels of the stored image.

    The algorithm of torchvision.transforms.RandomResizedCrop.get_params: ten tries of a random area (as a
    share of the image, in [min_area, max_area]) and a log-uniform aspect ratio, then the largest centred crop
    whose ratio is allowed.
    """
    height, width = np.int64(height), np.int64(width)
    area = height * width
    log_min, log_max = math.log(min_ratio), math.log(max_ratio)
    for attempt in range(10):
        w0, w1, w2, w3 = random_words(seed, epoch, sample, attempt)
        target_area = area * (min_area + (max_area - min_area) * _uniform(w0))
        ratio = math.exp(log_min + (log_max - log_min) * _uniform(w1))
        crop_width = np.int64(np.rint(math.sqrt(target_area * ratio)))
        crop_height = np.int64(np.rint(math.sqrt(target_area / ratio)))
        if 0 < crop_width <= width and 0 < crop_height <= height:
            top = np.int64(_uniform(w2) * (height - crop_height + 1))
            left = np.int64(_uniform(w3) * (width - crop_width + 1))
            return top, left, crop_height, crop_width
    crop_height, crop_width = height, width
    if width < height * min_ratio:
        crop_height = max(np.int64(1), np.int64(np.rint(width / min_ratio)))
    elif width > height * max_ratio:
        crop_width = max(np.int64(1), np.int64(np.rint(height * max_ratio)))
    return (height - crop_height) // 2, (width - crop_width) // 2, crop_height, crop_width


@njit(cache=True, nogil=True)
def random_flip(seed, epoch, sample, probability):  # type: ignore[no-untyped-def]
    """Whether the training image is mirrored left to right."""
    return _uniform(random_words(seed, epoch, sample, FLIP_DRAW)[0]) < probability


@njit(cache=True, nogil=True)
def center_crop(height, width, share):  # type: ignore[no-untyped-def]
    """The evaluation crop: the centred square whose side is `share` of the shorter side.

    Resized to the model's input, this is torchvision's Resize(r / share) followed by CenterCrop(r), with the
    crop's edge on a whole pixel of the stored image. Returns (top, left, crop height, crop width).
    """
    height, width = np.int64(height), np.int64(width)
    side = max(np.int64(1), np.int64(np.rint(min(height, width) * share)))
    return (height - side) // 2, (width - side) // 2, side, side


@njit(cache=True, nogil=True)
def random_keys(count, seed, epoch, draw):  # type: ignore[no-untyped-def]
    """One 64-bit random key for each of `count` positions: sorted, they are a random permutation."""
    keys = np.empty(count, np.uint64)
    for position in range(count):
        w0, w1, _, _ = random_words(seed, epoch, position, draw)
        keys[position] = (w0 << _SHIFT_32) | w1
    return keys


@njit(cache=True, nogil=True)
def bounded_shuffle(sequence, capacity, seed, epoch):  # type: ignore[no-untyped-def]
    """Shuffle int64 [N] as a reader with a buffer of `capacity` can: it fills the buffer, then gives a random one
    of its samples for each that comes in. A sample is given at most `capacity` places early, and its word of
    randomness is that of its own position."""
    shuffled = np.empty_like(sequence)
    buffer = np.empty(max(1, capacity), np.int64)
    held, given = 0, 0
    for sample in sequence:
        if held == buffer.size:
            chosen = np.int64(_uniform(random_words(seed, epoch, sample, BUFFER_DRAW)[0]) * held)
            shuffled[given] = buffer[chosen]
            given += 1
            buffer[chosen] = sample
        else:
            buffer[held] = sample
            held += 1
    while held:
        chosen = np.int64(_uniform(random_words(seed, epoch, buffer[held - 1], BUFFER_DRAW)[1]) * held)
        shuffled[given] = buffer[chosen]
        given += 1
        held -= 1
        buffer[chosen] = buffer[held]
    return shuffled
