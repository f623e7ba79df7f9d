"""Image files of every format that is read: what they are called, and what is stored instead of those that JPEG
decoders do not all read in the same way."""

import importlib.util
import io
import warnings

import numpy as np
import simplejpeg
from PIL import Image, UnidentifiedImageError

from .jpeg.headers import (
    PROGRESSIVE_HUFFMAN,
    SEQUENTIAL_HUFFMAN,
    SOI,
    SOS,
    JpegError,
    JpegHeader,
    read_header,
)

# What PIL may open: formats that it decodes itself. For PostScript it would start a program.
IMAGE_FORMATS: tuple[str, ...] = ("JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF", "PPM", "JPEG2000")
if importlib.util.find_spec("PIL.AvifImagePlugin"):  # since Pillow 11.3
    IMAGE_FORMATS = (*IMAGE_FORMATS, "AVIF")
JPEG_SUFFIXES = (".jpeg", ".jpg", ".jpe", ".jfif")
IMAGE_SUFFIXES = (
    *JPEG_SUFFIXES,
    *(".mpo", ".png", ".apng", ".gif", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm"),
    *(".jp2", ".j2k", ".j2c", ".jpc", ".jpf", ".jpx", ".avif", ".avifs"),
)
_SIGNATURES = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF87a", b"GIF89a", b"II*\0", b"MM\0*")
SIGNATURE_BYTES = 12
# Their content may be an image's: copies of editors, parts of downloads, and raw files of cameras, which are TIFF files
# with a small preview.
_OTHER_SUFFIXES = (
    *("~", ".bak", ".orig", ".tmp", ".temp", ".part", ".partial", ".crdownload", ".download"),
    *(".3fr", ".arw", ".cr2", ".dcr", ".dng", ".erf", ".kdc", ".nef", ".nrw", ".orf", ".pef", ".rw2", ".sr2", ".srw"),
)

ODD_QUALITY = 95  # of the JPEG that replaces a file; with full chroma, nearly without loss
LARGEST_PIXELS = 1 << 27  # 134 million; ImageNet's largest image has 28 million
LARGEST_FILE = 3 * LARGEST_PIXELS
"""Bytes of one stored image: raw pixels of the largest."""
HUFFMAN = (*SEQUENTIAL_HUFFMAN, PROGRESSIVE_HUFFMAN)
STRAY_BYTES = "stray bytes between header segments"
# What is odd is reported, and LARGEST_PIXELS limits the size.
warnings.filterwarnings("ignore", module=r"PIL\.")


class BadImage(ValueError):
    """An image that cannot be used; the message says why."""


def is_image_name(name: str) -> bool:
    """Whether a file of this name (without folders) counts as an image."""
    return name.lower().endswith(IMAGE_SUFFIXES) and not name.startswith(".")


def may_be_image(name: str) -> bool:
    """Whether a file of this name (without folders), which has no image's suffix, counts as an image if its content is
    one: with an unknown suffix or none."""
    return not name.startswith(".") and not name.lower().endswith(_OTHER_SUFFIXES)


def is_jpeg_name(name: str) -> bool:
    """Whether a file of this name counts as a JPEG."""
    return name.lower().endswith(JPEG_SUFFIXES)


def is_image_data(start: bytes) -> bool:
    """Whether a file that begins with these bytes, `SIGNATURE_BYTES` of them, is an image of a common format."""
    is_bmp = start[:2] == b"BM" and start[6:10] == b"\0\0\0\0"  # two letters alone begin many a text
    return start.startswith(_SIGNATURES) or is_bmp or (start[:4] == b"RIFF" and start[8:12] == b"WEBP")


def check_size(width: int, height: int) -> None:
    """Raises BadImage for an image that is too large."""
    if width * height > LARGEST_PIXELS or max(width, height) > 65535:
        raise BadImage(f"{width}x{height} pixels, of at most {LARGEST_PIXELS}")


def without_stray_bytes(jpeg: bytes) -> bytes:
    """A JPEG without the bytes between its header segments that belong to none. Decoders skip them, with a warning."""
    parts, at = [jpeg[:2]], 2
    while (start := jpeg.find(b"\xff", at)) >= 0 and start + 4 <= len(jpeg):
        marker, size = jpeg[start + 1], int.from_bytes(jpeg[start + 2 : start + 4], "big")
        if marker in (0, 0xFF):  # no marker: a stuffed zero, or a fill byte
            at = start + 1
            continue
        if marker == SOS:
            return b"".join([*parts, jpeg[start:]])
        if marker == SOI or size < 2:
            break
        parts.append(jpeg[start : start + 2 + size])
        at = start + 2 + size
    return jpeg


def read_header_or_stray(data: bytes) -> tuple[JpegHeader | None, bytes]:
    """The header of a JPEG, and the JPEG without stray bytes in its header; the header is None for any other file.

    Raises JpegError for a JPEG whose header cannot be read.
    """
    if data[:2] != bytes([0xFF, SOI]):
        return None, data
    try:
        return read_header(data), data
    except JpegError:
        cleaned = without_stray_bytes(data)
        if len(cleaned) == len(data):
            raise
        return read_header(cleaned), cleaned


def decode_any(data: bytes, header: JpegHeader | None) -> tuple[np.ndarray, str]:
    """Decode an image with PIL: its first frame as uint8 [H, W, 3], and what it is.

    16-bit grey is scaled to 8 bits, transparency is ignored. `header` is that of a JPEG. Raises BadImage.
    """
    try:
        with Image.open(io.BytesIO(data), formats=IMAGE_FORMATS) as image:
            check_size(*image.size)
            odd = f"a {image.format} file"
            if header is not None:
                odd = f"a JPEG of {header.precision} bit with {len(header.components)} components (mode {image.mode})"
                odd += "" if header.frame_marker in HUFFMAN else ", arithmetically coded"
            elif image.mode not in ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK"):
                odd += f" (mode {image.mode})"
            pixels = np.asarray(_eight_bit(image).convert("RGB"))
            return pixels, odd + (" (first frame)" if header is None and getattr(image, "is_animated", False) else "")
    except BadImage:
        raise
    except UnidentifiedImageError:
        raise BadImage("not an image") from None
    except Exception as error:  # damaged data makes PIL raise exceptions of any type
        raise BadImage(f"cannot be decoded ({error or type(error).__name__})") from None


def size_of_any(data: bytes) -> tuple[int, int]:
    """Width and height of an image that is no JPEG, from its header. Raises BadImage."""
    try:
        with Image.open(io.BytesIO(data), formats=IMAGE_FORMATS) as image:
            width, height = image.size
            return width, height
    except Exception as error:  # damaged data makes PIL raise exceptions of any type
        raise BadImage(f"not an image ({str(error)[:100] or type(error).__name__})") from None


def _eight_bit(image: Image.Image) -> Image.Image:
    """16-bit grey scaled to 8 bits; PIL's own conversion would clip it to white."""
    if image.mode == "F":
        raise BadImage("pixels in floating point, whose range is not known")
    if not image.mode.startswith("I"):
        return image
    values = np.asarray(image)
    if values.min() < 0 or values.max() > 65535:
        raise BadImage("32-bit pixels, whose range is not known")
    return Image.fromarray((values.astype(np.float64) / 257).round().astype(np.uint8))


def encode_jpeg(pixels: np.ndarray, quality: int = ODD_QUALITY, subsampling: str = "444") -> bytes:
    """Encode uint8 [H, W, 3], or [H, W, 1] for grey; the defaults are those of a file's replacement."""
    space, sampling = ("GRAY", "Gray") if pixels.shape[2] == 1 else ("RGB", subsampling)
    jpeg: bytes = simplejpeg.encode_jpeg(np.ascontiguousarray(pixels), quality, space, sampling, fastdct=False)
    return jpeg


def as_jpeg(data: bytes) -> bytes:
    """A JPEG that every decoder reads alike: the file itself, or what a conversion stores instead of it (`keep`).

    Costs 25 us for the header of a JPEG; other files are decoded and encoded. Raises BadImage.
    """
    try:
        header, cleaned = read_header_or_stray(data)
    except JpegError as error:
        raise BadImage(str(error)) from None
    if header is not None and header.is_decodable_everywhere and len(cleaned) == len(data):
        return data
    return encode_jpeg(decode_any(cleaned, header)[0])
