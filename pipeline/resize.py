"""Resize of a crop, fused with the horizontal flip: bilinear with antialias, as torchvision defines it.

The filter is the triangle of PyTorch's upsample_bilinear2d_aa (align_corners=False): its support is the scale
factor, at least one pixel, and weights are normalised over the pixels inside the crop. PyTorch rounds to uint8
between the two passes; here the intermediate rows are float32, so the results differ by at most 1/255.

Output rows are made in blocks. The vertical pass runs along the rows of the image; then the block is interleaved,
so that the rows of one column lie next to each other and the horizontal pass runs along them. Both passes are
then the same plain loop over neighbours in memory, which LLVM turns into vector instructions.
"""

from collections.abc import Callable

import llvmlite.binding
import numpy as np
from numba import carray, cfunc, njit, types

_ROWS = 16  # in a block: 2 % faster than 8, 9 % faster than 4
_LANES = 4 * _ROWS  # values of a column in a block: red, green, blue and one ignored value for each row
_MOST_TAPS = 6  # in one run over the data: enough for a crop of three times the output's size

_index = np.uint64  # for signed indices numba looks whether they are negative, which LLVM does not vectorise


@njit(cache=True, nogil=True, fastmath=True, error_model="numpy")
def _triangle_weights(size_in, size_out, mirror):  # type: ignore[no-untyped-def]
    """First source pixel (int64 [size_out]) and weights of it and the next ones (float32 [size_out, taps]).

    All output pixels have the same number of taps, all inside the crop; those beyond the support weigh nothing.
    """
    scale = size_in / size_out
    support = max(scale, 1.0)
    taps = min(int(np.ceil(2 * support)), size_in)
    first = np.empty(size_out, np.int64)
    weights = np.empty((size_out, taps), np.float32)
    for out in range(size_out):
        center = (out + 0.5) * scale
        low = min(max(int(center - support + 0.5), 0), size_in - taps)
        at = size_out - 1 - out if mirror else out
        first[at] = low
        total = 0.0
        for tap in range(taps):
            weight = max(0.0, 1.0 - abs(low + tap - center + 0.5) / support)
            weights[at, tap] = weight
            total += weight
        for tap in range(taps):
            weights[at, tap] /= total
    return first, weights


def _sum_taps(taps: int, add: bool) -> Callable:
    """Compile the loop of both passes for `taps` taps, a constant that lets LLVM unroll the innermost loop.

    For each item, an output row or an output column, it makes `size` values from those that start at
    starts[item] in `source` and, `stride` apart, the following ones. `weights` is float32 [items, all taps]; this
    run takes those from `tap` on. The first run starts from `bias`, later ones (`add`) from `sums`.
    """

    @njit(nogil=True, fastmath=True)
    def run(source, starts, stride, weights, tap, bias, sums, size):  # type: ignore[no-untyped-def]
        flat_weights = weights.reshape(-1)
        for item in range(len(starts)):
            at, to, weights_at = starts[item] + tap * stride, item * size, item * weights.shape[1] + tap
            for i in range(size):
                value = sums[_index(to + i)] if add else bias
                for k in range(taps):
                    value += flat_weights[_index(weights_at + k)] * source[_index(at + k * stride + i)]
                sums[_index(to + i)] = value

    return run


_sum_1, _sum_2, _sum_3, _sum_4, _sum_5, _sum_6 = (_sum_taps(taps, add=False) for taps in range(1, _MOST_TAPS + 1))
_add_6 = _sum_taps(_MOST_TAPS, add=True)


@njit(nogil=True)
def _weighted_sums(source, starts, stride, weights, bias, sums, size):  # type: ignore[no-untyped-def]
    """One pass with any number of taps, as _sum_taps describes it. More than _MOST_TAPS need float32 `sums`."""
    taps = weights.shape[1]
    done = (taps - 1) % _MOST_TAPS + 1
    if done == 1:
        _sum_1(source, starts, stride, weights, 0, bias, sums, size)
    elif done == 2:
        _sum_2(source, starts, stride, weights, 0, bias, sums, size)
    elif done == 3:
        _sum_3(source, starts, stride, weights, 0, bias, sums, size)
    elif done == 4:
        _sum_4(source, starts, stride, weights, 0, bias, sums, size)
    elif done == 5:
        _sum_5(source, starts, stride, weights, 0, bias, sums, size)
    else:
        _sum_6(source, starts, stride, weights, 0, bias, sums, size)
    for tap in range(done, taps, _MOST_TAPS):
        _add_6(source, starts, stride, weights, tap, bias, sums, size)


@njit(nogil=True)
def _interleave(rows, width, block):  # type: ignore[no-untyped-def]
    """From [_ROWS, width, 3] to [width, _ROWS, 4], both flat. Four values are moved at once, as one vector."""
    for x in range(width):
        for row in range(_ROWS):
            at, to = 3 * (row * width + x), 4 * (x * _ROWS + row)
            a, b, c, d = rows[_index(at)], rows[_index(at + 1)], rows[_index(at + 2)], rows[_index(at + 3)]
            block[_index(to)], block[_index(to + 1)], block[_index(to + 2)], block[_index(to + 3)] = a, b, c, d


@njit(nogil=True)
def _store(pixels, width, count, out, to):  # type: ignore[no-untyped-def]
    """`count` rows from [width, _ROWS, 4] to [count, width, 3] at `to`, both flat."""
    for row in range(count):
        at = 4 * row
        for _ in range(width - 1):  # with its fourth byte, one move; the next pixel overwrites that
            a, b, c, d = pixels[_index(at)], pixels[_index(at + 1)], pixels[_index(at + 2)], pixels[_index(at + 3)]
            out[_index(to)], out[_index(to + 1)], out[_index(to + 2)], out[_index(to + 3)] = a, b, c, d
            at, to = at + _LANES, to + 3
        a, b, c = pixels[_index(at)], pixels[_index(at + 1)], pixels[_index(at + 2)]
        out[_index(to)], out[_index(to + 1)], out[_index(to + 2)] = a, b, c
        to += 3


_pointer, _int = types.CPointer(types.uint8), types.int64
_arguments = (_pointer, _int, _int, _int, _int, _int, types.boolean, _pointer, _int, _int)


@cfunc(types.void(*_arguments), cache=True)
def _resize(image, image_width, top, left, height, width, flip, out, rows_out, columns_out):  # type: ignore[no-untyped-def]
    """resize_crop on the first bytes of two contiguous arrays."""
    pitch = 3 * image_width
    source, target = carray(image, (top + height) * pitch), carray(out, rows_out * columns_out * 3)
    first_row, row_weights = _triangle_weights(height, rows_out, False)
    first_column, column_weights = _triangle_weights(width, columns_out, flip)
    row_starts, column_starts = (top + first_row) * pitch + 3 * left, first_column * _LANES
    rows = np.zeros(_ROWS * 3 * width + 1, np.float32)  # zeros: all lanes are computed, also those not written
    block = np.empty(width * _LANES, np.float32)
    sums = np.empty(columns_out * _LANES, np.float32)
    pixels = np.empty(columns_out * _LANES, np.uint8)
    zero, half = np.float32(0.0), np.float32(0.5)  # a half rounds to nearest
    for y in range(0, rows_out, _ROWS):
        end = min(y + _ROWS, rows_out)
        _weighted_sums(source, row_starts[y:end], pitch, row_weights[y:end], zero, rows, 3 * width)
        _interleave(rows, width, block)
        if column_weights.shape[1] <= _MOST_TAPS:
            _weighted_sums(block, column_starts, _LANES, column_weights, half, pixels, _LANES)
        else:
            _weighted_sums(block, column_starts, _LANES, column_weights, half, sums, _LANES)
            pixels[:] = sums
        _store(pixels, columns_out, end - y, target, 3 * columns_out * y)


# Called by name: numba would compile all of it again with every kernel that calls it, 1 to 3 s at every start.
llvmlite.binding.add_symbol("sluice_resize", _resize.address)
_resize_by_name = types.ExternalFunction("sluice_resize", types.void(*_arguments))


@njit(cache=True, nogil=True)
def resize_crop(image, top, left, height, width, flip, out):  # type: ignore[no-untyped-def]
    """Resize the crop (top, left, height, width) of `image` into `out`, mirrored left to right if `flip`.

    `image` is uint8 [H, W, 3], `out` uint8 [R, S, 3], both contiguous; the crop lies inside the image.
    0.09 ms for a 330x350 crop to 224x224 on one core of an EPYC (torchvision: 0.16 ms, and its flip).
    """
    source, target = image.reshape(-1).ctypes, out.reshape(-1).ctypes  # numba reshapes contiguous arrays only
    _resize_by_name(source, image.shape[1], top, left, height, width, flip, target, out.shape[0], out.shape[1])
