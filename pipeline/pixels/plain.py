"""Images by torchvision alone, decoded whole, where numba cannot be had: the reference for every other way.

A checksum in the index of a tiled JPEG is not looked at.
"""

import functools
import logging

import numpy as np
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

from .. import jit
from ..contract import LoaderSpec
from ..order.crops import resized_side
from ..order.plan import POSITION
from ..storage.samples import SampleNames
from .whole import decode_whole, pixels_of

log = logging.getLogger(__name__)


def prepare(spec: LoaderSpec) -> None:
    """Say what is used, once."""
    if spec.rank == 0:
        _warn()


@functools.cache
def _warn() -> None:
    log.warning("no numba (%s): images are decoded whole, by torchvision, several times slower", jit.reason)


def load_image(spec: LoaderSpec, samples: SampleNames, key: int, stored: bytes, epoch: int, out: np.ndarray) -> None:
    """Fill `out`, uint8 [R, R, 3], with the image of the sample that has this key. Raises InputError naming it."""
    with spec.clock.part("decode"):
        image = decode_whole(samples, key & POSITION, stored)
    height, width = image.shape[1:]
    side, mode = len(out), InterpolationMode(spec.crop.interpolation)
    if spec.crop.cubic:  # of bytes, torchvision cuts what overshoots between the two axes
        image = image.float()
    with spec.clock.part("resize"):
        if spec.crop.training:
            crop = spec.crop.crop(spec.seed, epoch, key, height, width, side)
            image = F.resized_crop(image, *crop.box, [side, side], mode, antialias=True)
            image = F.horizontal_flip(image) if crop.flip else image
        else:
            image = F.resize(image, [int(resized_side(side, spec.crop.numbers))], mode, antialias=True)
            image = F.center_crop(image, [side, side])
        out[:] = pixels_of(image.clamp(0, 255).round().byte() if spec.crop.cubic else image)
