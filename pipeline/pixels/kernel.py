"""From a stored sample to its place in a batch, in compiled code: decode the tiles under the crop, resize and flip.

`fill_image` is what the `ffcv` loader's kernel calls for each sample. It is made of steps, each a function of its own
that Python can call too: a profiler times them one by one, and a kernel that nobody measures holds no clock.

    read    read_pages
    crop    order.crops.sample_crop, and for TurboJPEG cut_tiles
    decode  jpeg.decoder.decode_crop, or else decode_part
    resize  resize.resize_crop

Scratch memory is allocated for each image. It comes from the thread's heap, at no cost after the first image.
"""

import sys

import numpy as np
from numba import njit

from ..order import crops, random
from . import resize, turbojpeg
from .compilation import digest
from .jpeg import checksum, crop, headers, memory, processor, tiles
from .jpeg.crop import ALTERED, crop_tiles
from .jpeg.decoder import CHANGED, DONE, decode, decode_crop
from .resize import resize_crop

_PAGE = 4096

SOURCES = digest(
    sys.modules[__name__], random, crops, checksum, crop, headers, memory, processor, tiles, decode, turbojpeg, resize
)
"""What a kernel that calls `fill_image` closes over, if it is cached on disk."""


@njit(nogil=True)
def fill_image(own, stored, is_raw, height, width, box, window, flip, cubic, out):
    """Fill `out`, uint8 [R, R, 3], with a sample's image. Returns whether nothing was wrong with it; if not, `out` is
    left as it was.

    `stored` is uint8 [N]: a JPEG, or the RGB pixels of the image if `is_raw`; `own` says whether Sluice's decoder is
    used. `height` and `width` are its size on record; `box` is (top, left, height, width), inside it; of the box,
    `window` is mapped onto `out`, mirrored if `flip` and bicubic if `cubic` (see `Crop`).
    """
    if is_raw:
        image, top, left, sound = stored.reshape((height, width, 3)), box[0], box[1], True
    else:
        image, top, left, sound = decode_box(own, stored, height, width, box)
    if sound:
        resize_crop(image, (top, left, box[2], box[3]), window, flip, cubic, out)
    return sound


@njit(nogil=True)
def decode_box(own, jpeg, height, width, box):
    """Pixels that hold the box of a JPEG: uint8 [H, W, 3], where the box begins in them (top, left), and whether
    nothing was wrong; if something was, the pixels are of no use."""
    if own:
        image = np.empty((box[2], box[3], 3), np.uint8)
        status = decode_crop(jpeg, box[0], box[1], box[2], box[3], image)
        if status in (DONE, CHANGED):
            return image, np.int64(0), np.int64(0), status == DONE
    part, top, left, least_size, sound = cut_tiles(jpeg, height, width, box)
    if not sound:
        return np.empty((0, 0, 3), np.uint8), top, left, False
    image, sound = decode_part(part, least_size, (height, width))
    return image, top, left, sound


@njit(nogil=True)
def read_pages(stored):
    """Read one byte of each page of uint8 [N], which brings a mapped file's pages into memory. Returns their sum."""
    total = 0
    for at in range(0, stored.size, _PAGE):
        total += stored[at]
    return total


@njit(nogil=True)
def cut_tiles(jpeg, height, width, box):
    """The part of a JPEG that a box needs, as a JPEG, uint8 [N]; where the box begins in it (top, left); and the least
    (height, width) it may have, which of a whole JPEG is its size on record; and whether the tiles are those that were
    written."""
    part = np.empty(jpeg.size, np.uint8)
    size, top, left = crop_tiles(jpeg, box[0], box[1], box[2], box[3], part)
    if size == 0:
        return jpeg, top, left, (height, width), True
    sound = size != ALTERED
    return part[: max(size, 0)], top, left, (top + box[2], left + box[3]), sound


@njit(nogil=True)
def decode_part(jpeg, least_size, most_size):
    """Decode a JPEG, uint8 [N], that is to lie between two sizes (height, width), with TurboJPEG.

    Returns uint8 [H, W, 3] and whether nothing was wrong. Of another size it is not decoded, and has no pixels.
    """
    decoder = turbojpeg.create_decoder()
    image, sound = np.empty((0, 0, 3), np.uint8), False
    height, width = turbojpeg.read_size(decoder, jpeg)
    if least_size[0] <= height <= most_size[0] and least_size[1] <= width <= most_size[1]:
        image = np.empty((height, width, 3), np.uint8)
        sound = turbojpeg.decode_rgb(decoder, jpeg, image)
    turbojpeg.destroy_decoder(decoder)
    return image, sound
