"""Where an image is cropped and whether it is flipped.

In training, a pure function of (seed, epoch, sample): see `random.py`. In evaluation, a function of the image's size
and the output's.
"""

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from ..jit import njit
from .random import FLIP_DRAW, random_words, uniform

Interpolation = Literal["bilinear", "bicubic"]
Box = tuple[int, int, int, int]
"""Top, left, height, width in whole pixels of the stored image."""
Window = tuple[float, float, float, float]
"""Top, left, height, width in fractions of pixels, from the top left corner of a box."""


class Crop(NamedTuple):
    """A box in whole pixels of the stored image, what of it is mapped onto the output, whether that is mirrored, and
    whether the resize is bicubic.

    In training the crop comes before the resize: the window is the box, and no pixel beyond it counts. In evaluation
    the resize comes first: the window is the crop of the resized image, in fractions of stored pixels, and the box
    holds every pixel that the resize filter reads for it. Where the resized image is smaller than the output the window
    reaches beyond the box, and the output is black there.
    """

    top: int
    left: int
    height: int
    width: int
    window: Window
    flip: bool
    cubic: bool = False

    @property
    def box(self) -> Box:
        """The pixels to read."""
        return self[:4]


@dataclass(frozen=True, kw_only=True)
class CropPolicy:
    """How images become R x R: RandomResizedCrop and flip in training; in evaluation torchvision's Resize(val_resize)
    and CenterCrop(val_crop), where R is not val_crop Resize(round(R * val_resize / val_crop)) and CenterCrop(R)."""

    training: bool
    area: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip_probability: float = 0.5
    val_resize: int = 256
    val_crop: int = 224
    interpolation: Interpolation = "bilinear"

    def __post_init__(self) -> None:
        assert self.val_resize >= 1
        assert self.val_crop >= 1

    @property
    def numbers(self) -> tuple[float, float, float, float, float, float, float, float]:
        """For `sample_crop`: min area, max area, min ratio, max ratio, flip probability, val_resize, val_crop, and
        whether the resize is bicubic: 0 or 1."""
        least_area, most_area, least_ratio, most_ratio = map(float, (*self.area, *self.ratio))
        flip, resize, crop = map(float, (self.flip_probability, self.val_resize, self.val_crop))
        return least_area, most_area, least_ratio, most_ratio, flip, resize, crop, float(self.cubic)

    @property
    def cubic(self) -> bool:
        """Whether the resize is bicubic."""
        return self.interpolation == "bicubic"

    def crop(self, seed: int, epoch: int, sample: int, height: int, width: int, resolution: int) -> Crop:
        """The crop of one sample in one epoch, for an output of `resolution` x `resolution`."""
        box, window, flip = sample_crop(seed, epoch, sample, height, width, resolution, self.training, self.numbers)
        top, left, crop_height, crop_width = box
        return Crop(top, left, crop_height, crop_width, window, flip, self.cubic)


@njit(cache=True, nogil=True)
def random_resized_crop(seed, epoch, sample, height, width, min_area, max_area, min_ratio, max_ratio):
    """The training crop of a sample: (top, left, crop height, crop width) in pixels of the stored image.

    The algorithm of torchvision.transforms.RandomResizedCrop.get_params: ten attempts at a random area (as a
    share of the image, in [min_area, max_area]) and a log-uniform aspect ratio, then the largest centred crop
    whose ratio is allowed.
    """
    height, width = np.int64(height), np.int64(width)
    area = height * width
    log_min, log_max = math.log(min_ratio), math.log(max_ratio)
    for attempt in range(10):
        w0, w1, w2, w3 = random_words(seed, epoch, sample, attempt)
        target_area = area * (min_area + (max_area - min_area) * uniform(w0))
        ratio = math.exp(log_min + (log_max - log_min) * uniform(w1))
        crop_width = np.int64(np.rint(math.sqrt(target_area * ratio)))
        crop_height = np.int64(np.rint(math.sqrt(target_area / ratio)))
        if 0 < crop_width <= width and 0 < crop_height <= height:
            top = np.int64(uniform(w2) * (height - crop_height + 1))
            left = np.int64(uniform(w3) * (width - crop_width + 1))
            return top, left, crop_height, crop_width
    crop_height, crop_width = height, width
    if width < height * min_ratio:
        crop_height = max(np.int64(1), np.int64(np.rint(width / min_ratio)))
    elif width > height * max_ratio:
        crop_width = max(np.int64(1), np.int64(np.rint(height * max_ratio)))
    return (height - crop_height) // 2, (width - crop_width) // 2, crop_height, crop_width


@njit(cache=True, nogil=True)
def random_flip(seed, epoch, sample, probability):
    """Whether the training image is mirrored left to right."""
    return uniform(random_words(seed, epoch, sample, FLIP_DRAW)[0]) < probability


@njit(cache=True, nogil=True)
def resized_side(resolution, numbers):
    """The side that an evaluation resizes the shorter side to: rounded to the nearest, a half to the even neighbour."""
    return max(np.int64(1), np.int64(np.rint(resolution * numbers[5] / numbers[6])))


@njit(cache=True, nogil=True)
def center_crop(height, width, shorter, resolution, cubic):
    """The evaluation crop of torchvision: Resize(shorter), CenterCrop(resolution), in pixels of the stored image.

    Resize truncates the longer side to whole pixels, so the two axes are scaled differently. Returns a box (top, left,
    height, width) of whole pixels and the window in it; see `Crop`.
    """
    height, width = np.int64(height), np.int64(width)
    resized_height = shorter if height <= width else np.int64(shorter * height / width)
    resized_width = shorter if width <= height else np.int64(shorter * width / height)
    top, box_height, window_top, window_height = _centered(height, resized_height, resolution, cubic)
    left, box_width, window_left, window_width = _centered(width, resized_width, resolution, cubic)
    return (top, left, box_height, box_width), (window_top, window_left, window_height, window_width)


@njit(cache=True, nogil=True)
def _centered(stored, resized, resolution, cubic):
    """`center_crop` along one axis: the box's start and length, and those of the window in it.

    CenterCrop rounds its start to the nearest pixel of the resized image, a half to the even neighbour; a resized image
    that is too small it pads, with the odd pixel at the end. The box holds the pixels less than the filter's support
    away from the centres of the first and of the last output pixel.
    """
    scale = stored / resized
    excess = resized - resolution
    first = np.int64(np.rint(excess / 2)) if excess >= 0 else -(-excess // 2)
    support = max(scale, 1.0) * (2 if cubic else 1)
    start = max(np.int64(np.floor((first + 0.5) * scale - support + 0.5)), np.int64(0))
    stop = min(np.int64(np.floor((first + resolution - 0.5) * scale + support + 0.5)), stored)
    return start, stop - start, first * scale - start, resolution * scale


@njit(cache=True, nogil=True)
def sample_crop(seed, epoch, sample, height, width, resolution, training, numbers):
    """The crop of a sample under a policy's `numbers`: its box and window, each (top, left, height, width), and whether
    to flip it; see `Crop`."""
    if not training:
        box, window = center_crop(height, width, resized_side(resolution, numbers), resolution, numbers[7] > 0)
        return box, window, False
    box = random_resized_crop(seed, epoch, sample, height, width, numbers[0], numbers[1], numbers[2], numbers[3])
    window = 0.0, 0.0, float(box[2]), float(box[3])
    return box, window, random_flip(seed, epoch, sample, numbers[4])
