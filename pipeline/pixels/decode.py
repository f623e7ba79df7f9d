"""From stored bytes to an R x R image, in Python.

The reference, torchvision, decodes the whole image and resizes it. Loaders decode the tiles under the crop alone, which
gives the same pixels, and resize with `resize_crop`, which is within 1/255. Sluice's decoder takes them where they lie;
for libjpeg-turbo they are cut out of the JPEG first. kernel.py does this in compiled code.

Decoding at half the size (a DCT scale), where the crop is twice the output, is not used: of 300 crops of ImageNet it
would concern 7, and change their pixels by 3/255 on average and up to 96/255.
"""

import numpy as np
from torch import Tensor

from ..contract import NO_CLOCK, Clock, LoaderSpec
from ..errors import InputError
from ..order.crops import Box, Crop
from ..order.plan import POSITION
from ..storage.samples import SampleNames
from .decoders import uses_own
from .formats import BadImage, check_size
from .jpeg.crop import AlteredError, read_size
from .jpeg.crop import crop as crop_jpeg
from .jpeg.decoder import CHANGED, DAMAGED, DONE, STEPS, decode_crop, time_crop
from .jpeg.headers import JpegError, read_header
from .resize import resize_crop
from .whole import decode_whole, pixels_of, size_in_header


def decode(samples: SampleNames, index: int, stored: bytes | np.ndarray) -> Tensor:
    """Decode a whole image, uint8 [3, H, W] RGB (in HWC memory). Raises InputError naming the sample."""
    return decode_whole(samples, index, stored, _size)


def _size(stored: np.ndarray) -> tuple[int, int]:
    """Width and height of an image, uint8 [N], from its header. Raises BadImage or JpegError where it has none."""
    height, width = read_size(stored)
    if height and width:
        return width, height
    return size_in_header(stored)


def altered(samples: SampleNames, index: int) -> InputError:
    """The error for a sample whose bytes have not the checksum that was written with them."""
    return InputError(f"{samples.name(index)}: altered since it was converted (a checksum differs); convert again")


def decode_tiles(
    spec: LoaderSpec, samples: SampleNames, index: int, stored: bytes | np.ndarray, crop: Crop
) -> tuple[np.ndarray, Crop] | None:
    """Pixels that hold a crop, uint8 [H, W, 3], from Sluice's decoder, and the crop in them; None where it is not used
    or does not know the file. Raises InputError naming the sample where it is damaged."""
    if not uses_own(spec.decoder):
        return None
    pixels = np.empty((crop.height, crop.width, 3), np.uint8)
    status = _decode_tiles(spec.clock, np.frombuffer(stored, np.uint8), crop.box, pixels)
    if status == CHANGED:
        raise altered(samples, index)
    if status == DAMAGED:  # libjpeg-turbo has the last word
        return decode_part(spec, samples, index, stored, crop)
    return (pixels, crop._replace(top=0, left=0)) if status == DONE else None


def _decode_tiles(clock: Clock, jpeg: np.ndarray, box: Box, pixels: np.ndarray) -> int:
    """decode_crop, its steps timed if there is a clock."""
    if clock is NO_CLOCK:
        return int(decode_crop(jpeg, *box, pixels))
    nanoseconds = np.zeros(len(STEPS), np.int64)
    with clock.parts(STEPS, nanoseconds):
        return int(time_crop(jpeg, *box, pixels, nanoseconds))


def decode_part(
    spec: LoaderSpec, samples: SampleNames, index: int, stored: bytes | np.ndarray, crop: Crop
) -> tuple[np.ndarray, Crop]:
    """decode_tiles with libjpeg-turbo, of any JPEG."""
    with spec.clock.part("crop"):
        part, crop = cut(samples, index, stored, crop)
    with spec.clock.part("decode"):
        return pixels_of(decode(samples, index, part)), crop


def cut(samples: SampleNames, index: int, stored: bytes | np.ndarray, crop: Crop) -> tuple[np.ndarray, Crop]:
    """The part of a JPEG that a crop needs, as a JPEG uint8 [N], and the crop in it. Raises InputError naming the
    sample where it was altered."""
    try:
        part, top, left = crop_jpeg(stored, crop.box)
    except AlteredError:
        raise altered(samples, index) from None
    return part, crop._replace(top=top, left=left)


def prepare(spec: LoaderSpec) -> None:
    """Decide which decoder is used, once: before workers are forked."""
    uses_own(spec.decoder)


def load_image(spec: LoaderSpec, samples: SampleNames, key: int, stored: bytes, epoch: int, out: np.ndarray) -> None:
    """Fill `out`, uint8 [R, R, 3], with the image of the sample that has this key. Raises InputError naming it."""
    index = key & POSITION
    try:
        crop = crop_of(spec, key, stored, epoch, len(out))
    except BadImage as error:
        raise InputError(f"{samples.name(index)}: {error}; {samples.remedy}") from None
    except JpegError:  # a folder may hold PNG files
        with spec.clock.part("decode"):
            image = pixels_of(decode(samples, index, stored))
        crop = spec.crop.crop(spec.seed, epoch, key, image.shape[0], image.shape[1], len(out))
    else:
        tiles = decode_tiles(spec, samples, index, stored, crop)
        image, crop = tiles or decode_part(spec, samples, index, stored, crop)
    with spec.clock.part("resize"):
        resize_into(samples, index, image, crop, out)


def crop_of(spec: LoaderSpec, key: int, stored: bytes, epoch: int, resolution: int) -> Crop:
    """The crop of the sample that has this key. Raises JpegError where the bytes are not a JPEG, BadImage
    where it is too large."""
    with spec.clock.part("crop"):
        height, width = read_size(np.frombuffer(stored, np.uint8))
        if height == 0 or width == 0:
            header = read_header(stored)
            height, width = header.height, header.width
        check_size(width, height)
        return spec.crop.crop(spec.seed, epoch, key, height, width, resolution)


def resize_into(samples: SampleNames, index: int, image: np.ndarray, crop: Crop, out: np.ndarray) -> None:
    """Resize the crop of `image`, uint8 [H, W, 3], into `out`. Raises InputError where it is not inside."""
    if crop.top + crop.height > image.shape[0] or crop.left + crop.width > image.shape[1]:
        raise InputError(f"{samples.name(index)}: decodes to another size than its header says; {samples.remedy}")
    resize_crop(image, crop.box, crop.window, crop.flip, crop.cubic, out)
