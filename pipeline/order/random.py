"""Random numbers as a pure function of (seed, epoch, sample, draw).

They come from Philox4x32-10, a counter-based generator (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3",
SC 2011): the numbers of a sample are computed from its key alone, so they do not depend on the loader, the worker, the
world size or a restart. The functions here are compiled by numba and give the same numbers to Python and to other
compiled kernels.

The 128-bit counter is (sample, epoch, draw), the 64-bit key is the seed. A draw gives four 32-bit words. Draws 0 to 9
are the ten attempts of RandomResizedCrop; FLIP_DRAW decides the flip and ORDER_DRAW sorts the epoch; SHARD_DRAW and
BUFFER_DRAW are for streams, MIX_DRAW and RAW_DRAW for the conversion, STEP_DRAW for the randomness of a training step,
OWN_DRAW for augmentation of the user's own.
From POLICY_DRAW on are those of augmentation on the device: the operations of a policy, then colour, then the
rectangles that are erased, and from PIXEL_DRAW on their pixels.
"""

import numpy as np

from ..jit import HAS_NUMBA, njit

FLIP_DRAW = 16
ORDER_DRAW = 17
SHARD_DRAW = 18
BUFFER_DRAW = 19
MIX_DRAW = 20
RAW_DRAW = 21
STEP_DRAW = 22
OWN_DRAW = 23
POLICY_DRAW = 64
COLOUR_DRAW = 192
ERASE_DRAW = 256
PIXEL_DRAW = 1 << 20

_MULTIPLIER_0 = np.uint64(0xD2511F53)
_MULTIPLIER_1 = np.uint64(0xCD9E8D57)
_WEYL_0 = np.uint64(0x9E3779B9)
_WEYL_1 = np.uint64(0xBB67AE85)
_LOW_32 = np.uint64(0xFFFFFFFF)
_SHIFT_32 = np.uint64(32)


@njit(cache=True, nogil=True, inline="always")
def _round(c0, c1, c2, c3, k0, k1):
    product_0 = _MULTIPLIER_0 * c0
    product_1 = _MULTIPLIER_1 * c2
    return (
        (product_1 >> _SHIFT_32) ^ c1 ^ k0,
        product_1 & _LOW_32,
        (product_0 >> _SHIFT_32) ^ c3 ^ k1,
        product_0 & _LOW_32,
    )


@njit(cache=True, nogil=True)
def philox4x32(c0, c1, c2, c3, k0, k1):
    """Ten rounds of Philox4x32. All arguments and the four results are uint64 holding 32-bit words."""
    for _ in range(10):
        c0, c1, c2, c3 = _round(c0, c1, c2, c3, k0, k1)
        k0 = (k0 + _WEYL_0) & _LOW_32
        k1 = (k1 + _WEYL_1) & _LOW_32
    return c0, c1, c2, c3


@njit(cache=True, nogil=True)
def random_words(seed, epoch, sample, draw):
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
def uniform(word):
    """A 32-bit word as a float64 in [0, 1)."""
    return float(word) * (1.0 / 4294967296.0)


@njit(cache=True, nogil=True)
def random_keys(count, seed, epoch, draw):
    """One 64-bit random key for each of `count` positions: sorted, they are a random permutation."""
    return keys_of(np.arange(count), seed, epoch, draw)


@njit(cache=True, nogil=True)
def keys_of(positions, seed, epoch, draw):
    """The random keys of some positions."""
    keys = np.empty(len(positions), np.uint64)
    for place, position in enumerate(positions):
        w0, w1, _, _ = random_words(seed, epoch, position, draw)
        keys[place] = (w0 << _SHIFT_32) | w1
    return keys


@njit(cache=True, nogil=True)
def scatter_by_key(positions, ends, seed, epoch, draw):
    """Fill `positions`, int [N], with 0 to N - 1 in buckets: those with the lowest keys first, ascending in a bucket.
    Write where each of the buckets ends to `ends`, int64 [buckets]."""
    buckets = np.uint64(len(ends))
    starts = np.zeros(len(ends) + 1, np.int64)
    for position in range(len(positions)):
        word = random_words(seed, epoch, position, draw)[0]  # the high half of the key
        starts[np.int64((word * buckets) >> _SHIFT_32) + 1] += 1
    ends[:] = np.cumsum(starts)[:-1]
    for position in range(len(positions)):
        word = random_words(seed, epoch, position, draw)[0]
        bucket = np.int64((word * buckets) >> _SHIFT_32)
        positions[ends[bucket]] = position
        ends[bucket] += 1


@njit(cache=True, nogil=True)
def random_uniforms(seed, epoch, samples, draw, count):
    """Of each of `samples`, int64 [N], the draws from `draw` on: float64 [N, count, 4] in [0, 1)."""
    uniforms = np.empty((len(samples), count, 4), np.float64)
    for row in range(len(samples)):
        for number in range(count):
            w0, w1, w2, w3 = random_words(seed, epoch, samples[row], draw + number)
            uniforms[row, number, 0], uniforms[row, number, 1] = uniform(w0), uniform(w1)
            uniforms[row, number, 2], uniforms[row, number, 3] = uniform(w2), uniform(w3)
    return uniforms


if not HAS_NUMBA:  # the same numbers by numpy, 1 us each instead of 40

    def keys_of(positions, seed, epoch, draw):
        """The random keys of some positions."""
        w0, w1, _, _ = random_words(seed, epoch, positions, draw)
        return (w0 << _SHIFT_32) | w1

    def scatter_by_key(positions, ends, seed, epoch, draw):
        """As above."""
        words = random_words(seed, epoch, np.arange(len(positions)), draw)[0]
        buckets = ((words * np.uint64(len(ends))) >> _SHIFT_32).astype(np.int64)
        positions[:] = np.argsort(buckets, kind="stable")
        ends[:] = np.cumsum(np.bincount(buckets, minlength=len(ends)))
