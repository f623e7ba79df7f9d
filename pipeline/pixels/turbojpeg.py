"""TurboJPEG's decoder, callable from numba kernels.

The functions are external symbols, not ctypes pointers, so that kernels that call them can be cached on disk. The
library is the one that FFCV's extension is linked with: loading the extension loads it too.

Source: turbojpeg.h of libjpeg-turbo 2.1.
"""

import llvmlite.binding
import numpy as np
from numba import njit, types

PIXEL_FORMAT_RGB = 0
_ACCURATE = 4096  # TJFLAG_ACCURATEDCT: the slow DCT that torchvision and PIL use too

_int, _pointer, _ulong = types.int32, types.uintp, types.uint64
_init = types.ExternalFunction("tjInitDecompress", _pointer())
_destroy = types.ExternalFunction("tjDestroy", _int(_pointer))
_header = types.ExternalFunction(
    "tjDecompressHeader3",
    _int(_pointer, _pointer, _ulong, _pointer, _pointer, _pointer, _pointer),
)
_decompress = types.ExternalFunction(
    "tjDecompress2", _int(_pointer, _pointer, _ulong, _pointer, _int, _int, _int, _int, _int)
)


def load_from(extension: str) -> None:
    """Make the symbols of an extension module's file, and of the libraries it is linked with, visible to kernels."""
    llvmlite.binding.load_library_permanently(extension)


@njit(cache=True, nogil=True)
def create_decoder():
    """A decoder handle (0 on failure), for one thread at a time."""
    return _init()


@njit(cache=True, nogil=True)
def destroy_decoder(decoder):
    """Free a decoder handle."""
    _destroy(decoder)


@njit(cache=True, nogil=True)
def read_size(decoder, jpeg):
    """(height, width) of a JPEG, (0, 0) where its headers cannot be read. `jpeg` is uint8 [N]."""
    numbers = np.zeros(4, np.int32)  # width, height, subsampling, colour space
    at = numbers.ctypes.data
    if _header(decoder, jpeg.ctypes.data, jpeg.size, at, at + 4, at + 8, at + 12) != 0:
        return np.int64(0), np.int64(0)
    return np.int64(numbers[1]), np.int64(numbers[0])


@njit(cache=True, nogil=True)
def decode_rgb(decoder, jpeg, image):
    """Decode into `image`, uint8 [H, W, 3] of the JPEG's own size. Returns whether nothing was wrong.

    False also where libjpeg only warns, of anything from a few stray bytes to missing data.
    """
    height, width = image.shape[0], image.shape[1]
    failed = _decompress(
        decoder,
        jpeg.ctypes.data,
        jpeg.size,
        image.ctypes.data,
        width,
        width * 3,
        height,
        PIXEL_FORMAT_RGB,
        _ACCURATE,
    )
    return failed == 0
