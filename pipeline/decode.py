"""From stored bytes to an R x R image: the reference, and the shorter way that loaders take.

The reference decodes the whole image and resizes with torchvision. Loaders cut the tiles under the crop out of a
tiled JPEG before it is decoded, which gives the same pixels, and resize with `resize_crop`, which is within 1/255.

Decoding at half the size (a DCT scale), where the crop is twice the output, is not used: of 300 crops of ImageNet it
would concern 7, and change their pixels by 3/255 on average and up to 96/255.
"""

import numpy as np
import torch
from torch import Tensor
from torchvision.io import ImageReadMode, decode_image
from torchvision.transforms.v2 import functional

from pipeline.contract import Crop, CropPolicy
from pipeline.errors import InputError
from pipeline.formats.samples import Named
from pipeline.jpeg.crop import crop as crop_jpeg
from pipeline.jpeg.headers import JpegError, read_header
from pipeline.resize import resize_crop


def decode(samples: Named, index: int, stored: bytes | np.ndarray) -> Tensor:
    """Decode a whole image, uint8 [3, H, W] RGB (in HWC memory). Raises InputError naming the sample."""
    try:
        # bytearray: frombuffer wants writable memory; the copy is 20 us of a 1 ms decode.
        data = stored if isinstance(stored, np.ndarray) else np.frombuffer(bytearray(stored), np.uint8)
        return decode_image(torch.from_numpy(data), ImageReadMode.RGB)
    except (RuntimeError, ValueError) as error:
        reason = str(error).partition("\n")[0].rpartition(", ")[2]
        raise InputError(f"{samples.name(index)}: cannot be decoded ({reason}); convert again") from None


def crop_and_resize(image: Tensor, crop: Crop, resolution: int) -> Tensor:
    """uint8 [3, H, W] to uint8 [3, R, R]: the crop, bilinear resize with antialias, the flip."""
    top, left, height, width, flip = crop
    box = image[:, top : top + height, left : left + width]
    resized = functional.resize(box, [resolution, resolution], antialias=True)
    return functional.horizontal_flip(resized) if flip else resized


def cropped(stored: bytes, policy: CropPolicy, seed: int, epoch: int, index: int) -> tuple[np.ndarray, Crop]:
    """The part of a JPEG that a sample's crop needs, as a JPEG uint8 [N], and the crop's box in it.

    Raises JpegError where the bytes are no JPEG.
    """
    header = read_header(stored)
    crop = policy.crop(seed, epoch, index, header.height, header.width)
    part, top, left = crop_jpeg(stored, crop[:4])
    return part, crop._replace(top=top, left=left)


def load_image(
    samples: Named, index: int, stored: bytes, policy: CropPolicy, seed: int, epoch: int, out: np.ndarray
) -> None:
    """Fill `out`, uint8 [R, R, 3], with a sample's image. Raises InputError naming the sample."""
    try:
        part, crop = cropped(stored, policy, seed, epoch, index)
        image = decode(samples, index, part)
    except JpegError:  # a folder may hold PNG files
        image = decode(samples, index, stored)
        crop = policy.crop(seed, epoch, index, *image.shape[1:])
    resize_into(samples, index, image.permute(1, 2, 0).contiguous().numpy(), crop, out)


def resize_into(samples: Named, index: int, image: np.ndarray, crop: Crop, out: np.ndarray) -> None:
    """Resize the crop of `image`, uint8 [H, W, 3], into `out`. Raises InputError where it is not inside."""
    if crop.top + crop.height > image.shape[0] or crop.left + crop.width > image.shape[1]:
        raise InputError(f"{samples.name(index)}: decodes to another size than its header says; convert again")
    resize_crop(image, *crop, out)
