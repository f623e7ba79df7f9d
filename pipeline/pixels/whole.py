"""Whole images, decoded by torchvision."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torchvision.io import ImageReadMode, decode_image

from ..errors import InputError
from ..storage.samples import SampleNames
from .formats import BadImage, check_size, size_of_any
from .jpeg.headers import JpegError, read_header


def size_in_header(stored: np.ndarray) -> tuple[int, int]:
    """Width and height of an image, uint8 [N]. Raises BadImage or JpegError where its header does not say."""
    if stored[:2].tobytes() != b"\xff\xd8":
        return size_of_any(stored.tobytes())
    header = read_header(stored.tobytes())
    return header.width, header.height


def decode_whole(
    samples: SampleNames,
    index: int,
    stored: bytes | np.ndarray,
    size: Callable[[np.ndarray], tuple[int, int]] = size_in_header,
) -> Tensor:
    """Decode an image, uint8 [3, H, W] RGB (in HWC memory), which `size` finds small enough. Raises InputError naming
    the sample."""
    # bytearray: frombuffer wants writable memory; the copy is 20 us of a 1 ms decode.
    data = stored if isinstance(stored, np.ndarray) else np.frombuffer(bytearray(stored), np.uint8)
    try:
        check_size(*size(data))
    except (BadImage, JpegError) as error:
        raise InputError(f"{samples.name(index)}: cannot be decoded ({error}); {samples.remedy}") from None
    try:
        image: Tensor = decode_image(torch.from_numpy(data), ImageReadMode.RGB)
    except (RuntimeError, ValueError) as error:
        reason = str(error).partition("\n")[0].rpartition(", ")[2]
        raise InputError(f"{samples.name(index)}: cannot be decoded ({reason}); {samples.remedy}") from None
    return image


def pixels_of(image: Tensor) -> np.ndarray:
    """A decoded image, uint8 [3, H, W], as contiguous uint8 [H, W, 3]."""
    pixels: np.ndarray = image.permute(1, 2, 0).contiguous().numpy()
    return pixels
