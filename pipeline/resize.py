"""Resize of a crop, fused with the horizontal flip: bilinear with antialias, as torchvision defines it.

The filter is the triangle of PyTorch's upsample_bilinear2d_aa (align_corners=False): its support is the scale
factor, at least one pixel, and weights are normalised over the pixels inside the crop. PyTorch rounds to uint8
between the two passes; here the intermediate row is float32, so the results differ by at most 1/255.
"""

import numpy as np
from numba import njit


@njit(cache=True, nogil=True)
def _triangle_weights(size_in, size_out):  # type: ignore[no-untyped-def]
    """First source pixel, number of source pixels, and their weights (float32) for each output pixel."""
    scale = size_in / size_out
    support = max(scale, 1.0)
    first = np.empty(size_out, np.int64)
    count = np.empty(size_out, np.int64)
    weights = np.empty((size_out, 2 * int(np.ceil(support)) + 1), np.float32)
    for out in range(size_out):
        center = (out + 0.5) * scale
        low = max(int(center - support + 0.5), 0)
        high = min(int(center + support + 0.5), size_in)
        total = 0.0
        for source in range(low, high):
            weight = max(0.0, 1.0 - abs((source - center + 0.5) / support))
            weights[out, source - low] = weight
            total += weight
        for tap in range(high - low):
            weights[out, tap] /= total
        first[out], count[out] = low, high - low
    return first, count, weights


@njit(cache=True, nogil=True, fastmath=True)
def _blend_rows(image, top, left, count, weights, row):  # type: ignore[no-untyped-def]
    """The vertical pass for one output row: a weighted sum of `count` source rows."""
    values = row.size
    for tap in range(count):
        source = image[top + tap].reshape(-1)[left * 3 : left * 3 + values]
        weight = weights[tap]
        if tap == 0:
            for i in range(values):
                row[i] = weight * source[i]
        else:
            for i in range(values):
                row[i] += weight * source[i]


@njit(cache=True, nogil=True, fastmath=True)
def resize_crop(image, top, left, height, width, flip, out):  # type: ignore[no-untyped-def]
    """Resize the crop (top, left, height, width) of `image` into `out`, mirrored left to right if `flip`.

    `image` is uint8 [H, W, 3] with contiguous rows, `out` uint8 [R, S, 3]; the crop lies inside the image.
    0.34 ms for a 330x350 crop to 224x224 on one core of an EPYC (torchvision: 0.18 ms plus its flip).
    """
    rows_first, rows_count, rows_weights = _triangle_weights(height, out.shape[0])
    first, count, weights = _triangle_weights(width, out.shape[1])
    row = np.empty(width * 3, np.float32)
    last_column = out.shape[1] - 1
    for y in range(out.shape[0]):
        _blend_rows(image, top + rows_first[y], left, rows_count[y], rows_weights[y], row)
        for x in range(out.shape[1]):
            red = green = blue = np.float32(0.5)  # rounds to nearest
            at = first[x] * 3
            for tap in range(count[x]):
                weight = weights[x, tap]
                red += weight * row[at]
                green += weight * row[at + 1]
                blue += weight * row[at + 2]
                at += 3
            column = last_column - x if flip else x
            out[y, column, 0] = np.uint8(red)
            out[y, column, 1] = np.uint8(green)
            out[y, column, 2] = np.uint8(blue)
