"""From samples to RGB: fancy upsampling and colour conversion, in the integers of libjpeg (jdsample.c, jdcolor.c).

numba computes in 64 bits what it is not told to cut; cut to 16 bits after each operation, LLVM finds vectors of 16 of
them.
"""

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from ...compilation import inlined_part, part
from ..memory import I16, I32

_u1, _u2, _u3 = (np.uint64(value) for value in (1, 2, 3))
_i16 = np.int16
_centre = _i16(128)
_RED, _GREEN_OF_BLUE, _GREEN_OF_RED, _BLUE = (
    np.int32(round(weight * 65536)) for weight in (1.40200, -0.34414, -0.71414, 1.77200)
)
_zero, _half = np.int32(0), np.int32(32768)


@intrinsic
def _weighted(typing_context, x, x_weight, y, y_weight, rounding):
    """(x * x_weight + y * y_weight + rounding) >> 16, in 32 bits where numba's own arithmetic would take 64."""

    def generate(context, builder, signature, arguments):
        x, x_weight, y, y_weight, rounding = (
            builder.sext(value, I32) if value.type.width < 32 else value for value in arguments
        )
        total = builder.add(builder.add(builder.mul(x, x_weight), builder.mul(y, y_weight)), rounding)
        return builder.trunc(builder.ashr(total, ir.Constant(I32, 16)), I16)

    return types.int16(types.int16, types.int32, types.int16, types.int32, types.int32), generate


@inlined_part
def _clamped(value):
    return np.uint8(min(max(value, _i16(0)), _i16(255)))


@part
def to_rgb(luma, luma_at, blue, blue_at, red, red_at, out, to, count):
    """Convert `count` pixels of Y, Cb and Cr (flat uint8) into out[to:], flat uint8."""
    luma_at, blue_at, red_at, to = np.uint64(luma_at), np.uint64(blue_at), np.uint64(red_at), np.uint64(to)
    for i in range(np.uint64(count)):
        y = _i16(luma[luma_at + i])
        b, r = _i16(_i16(blue[blue_at + i]) - _centre), _i16(_i16(red[red_at + i]) - _centre)
        pixel = to + _u3 * i
        out[pixel] = _clamped(_i16(y + _weighted(r, _RED, r, _zero, _half)))
        out[pixel + _u1] = _clamped(_i16(y + _weighted(b, _GREEN_OF_BLUE, r, _GREEN_OF_RED, _half)))
        out[pixel + _u2] = _clamped(_i16(y + _weighted(b, _BLUE, b, _zero, _half)))


@part
def grey_to_rgb(luma, luma_at, out, to, count):
    """to_rgb without colours."""
    luma_at, to = np.uint64(luma_at), np.uint64(to)
    for i in range(np.uint64(count)):
        pixel, value = to + _u3 * i, luma[luma_at + i]
        out[pixel], out[pixel + _u1], out[pixel + _u2] = value, value, value


@part
def enlarge(samples, near, far, count, rounding, at_left, at_right, sums, out):
    """Twice as many samples across from `count` at samples[near:], a quarter of each from its neighbour.

    A quarter of each comes from the row at samples[far:], which is the same one where columns alone are enlarged: then
    `rounding` is (4, 8), else (8, 7). There are samples on both sides, which are not used at the edges of the image
    (`at_left`, `at_right`). `sums`, int16, has room for `count` + 2, `out`, uint8, for twice `count`.
    """
    near, far, even, odd = np.uint64(near - 1), np.uint64(far - 1), _i16(rounding[0]), _i16(rounding[1])
    for i in range(np.uint64(count + 2)):
        sums[i] = _i16(_i16(_i16(3) * _i16(samples[near + i])) + _i16(samples[far + i]))
    if at_left:
        sums[0] = sums[1]
    if at_right:
        sums[count + 1] = sums[count]
    for i in range(np.uint64(count)):
        before, here, behind = sums[i], _i16(_i16(3) * sums[i + _u1]), sums[i + _u2]
        out[_u2 * i] = np.uint8(_i16(_i16(_i16(here + before) + even) >> _i16(4)))
        out[_u2 * i + _u1] = np.uint8(_i16(_i16(_i16(here + behind) + odd) >> _i16(4)))
