"""What becomes of one image: checked once, stored as it is, re-encoded, or as pixels."""

import io
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import simplejpeg
from PIL import Image, UnidentifiedImageError

from pipeline.augment import RAW_DRAW, random_words
from pipeline.formats.beton import MODE_JPEG, MODE_RAW
from pipeline.jpeg.headers import (
    EOI,
    PROGRESSIVE_HUFFMAN,
    SEQUENTIAL_HUFFMAN,
    SOS,
    JpegError,
    JpegHeader,
    read_header,
    segments,
)
from pipeline.jpeg.tiles import NotTileable, check_entropy, tile

# What PIL may open: formats it decodes itself. For PostScript, say, it would start a program.
IMAGE_FORMATS = ("JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF")
QUALITY = 90  # FFCV's default
ODD_QUALITY = 95  # of what cannot be kept: with full chroma, nearly as it was
LARGEST_PIXELS = 1 << 27  # 134 million; ImageNet's largest image has 28 million
# What is odd is reported, and LARGEST_PIXELS is the limit to size.
warnings.filterwarnings("ignore", module=r"PIL\.")

APP1 = 0xE1
END = b"\xff\xd9"
HUFFMAN = (*SEQUENTIAL_HUFFMAN, PROGRESSIVE_HUFFMAN)
NO_END = "no end marker"
_MARKER = re.compile(rb"\xff+([^\0\xff\xd0-\xd7])", re.DOTALL)  # not a stuffed zero, nor a restart
_TIFF_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8}  # bytes by type
_DIRECTORIES = (0x8769, 0x8825, 0xA005)  # tags of entries that lead to one: Exif, GPS, interoperability

Subsampling = Literal["444", "422", "420"]


class BadImage(ValueError):
    """An image that cannot be used; the message says why."""


@dataclass(frozen=True, kw_only=True)
class Handling:
    """How images are stored."""

    jpeg: Literal["tile", "keep", "reencode", "raw", "proportion"] = "tile"
    max_side: int | None = None  # longest side in pixels of what is re-encoded or stored raw
    quality: int | None = None  # of what is re-encoded; 90 if it is not said
    subsampling: Subsampling | None = None  # of what is re-encoded; 4:2:0 if it is not said
    compress_probability: float = 0.5  # of a JPEG, with "proportion"
    seed: int = 0
    verify: bool = True
    largest: int = 1 << 32  # bytes: what a .beton's page holds

    @property
    def reencodes(self) -> bool:
        """Whether sound JPEGs are encoded again; tiles are lossless unless something about the encoding is said."""
        said = (self.max_side, self.quality, self.subsampling)
        return self.jpeg == "reencode" or (self.jpeg == "tile" and said != (None, None, None))


class Stored(NamedTuple):
    """An image as it will be stored."""

    data: bytes
    mode: int  # MODE_JPEG or MODE_RAW
    height: int
    width: int
    odd: str  # what was odd about it, or nothing
    reencoded: bool  # from pixels to a JPEG, or to fewer pixels


def prepare(data: bytes, position: int, handling: Handling) -> Stored:
    """Check an image and make of it what is stored; `position` is its place in the listing. Raises BadImage."""
    try:
        stored = _prepare(data, position, handling)
    except JpegError as error:
        raise BadImage(str(error)) from None
    except ValueError as error:
        if isinstance(error, BadImage):
            raise
        raise BadImage(f"cannot be decoded ({error})") from None
    if len(stored.data) > handling.largest:
        smaller = "--jpeg reencode --max-side" if handling.jpeg == "keep" else "--max-side"
        raise BadImage(f"stored it takes {len(stored.data)} bytes, of at most {handling.largest}; {smaller} reduces it")
    return stored


def _prepare(data: bytes, position: int, handling: Handling) -> Stored:
    header = read_header(data) if data[:2] == b"\xff\xd8" else None
    if header is None or not header.is_decodable_everywhere:
        if header is not None and handling.verify:
            check_jpeg(data)
        pixels, odd = _odd_pixels(data, header)
        return _changed(pixels, pixels.shape[:2], position, handling, odd)
    _check_size(header.width, header.height)
    remarks = oddities(data, header, handling.verify)
    if handling.jpeg == "tile" and not handling.reencodes:
        return _tiled(data, header, remarks, position, handling)
    if handling.jpeg != "keep":
        return _decoded_and_changed(data, header, position, handling, remarks, handling.verify)
    if handling.verify:
        data = _with_end(data, remarks)
        remarks += check_jpeg(data) + check_scans(data, header, remarks)
    return Stored(data, MODE_JPEG, header.height, header.width, ", ".join(remarks), False)


def _tiled(data: bytes, header: JpegHeader, remarks: list[str], position: int, handling: Handling) -> Stored:
    """Without loss, which reads every coefficient; what cannot be tiled so is encoded again."""
    try:
        return Stored(tile(data), MODE_JPEG, header.height, header.width, ", ".join(remarks), False)
    except JpegError as error:
        remarks.append(str(error))
    return _decoded_and_changed(data, header, position, handling, remarks, verify=True)


def _with_end(data: bytes, remarks: list[str]) -> bytes:
    """A JPEG with an end marker; PIL calls it truncated without."""
    return data + END if NO_END in remarks else data


def check_jpeg(data: bytes) -> list[str]:
    """Decode a JPEG to its end. Returns what a decoder would warn of though every pixel is there; raises
    JpegError or ValueError where one is not.

    All coefficients are read; only the transform is the cheapest one, to 1/8 of the size: 0.8 ms an image instead
    of 1.3.
    """
    try:
        simplejpeg.decode_jpeg(data, "GRAY", fastdct=True, min_height=1, min_width=1, strict=True)
        return []
    except ValueError as warning:
        told = str(warning)
    try:
        check_entropy(data)
    except NotTileable:  # progressive: which of its warnings are harmless is not known
        raise BadImage(told) from None
    return [f"decoders warn: {told}"]


def check_scans(data: bytes, header: JpegHeader, remarks: list[str]) -> list[str]:
    """What no scan has, though it should; raises BadImage where that is a whole colour component, or where the file
    had no end marker.

    To a decoder, a file of several scans is whole where it was cut between two of them and got an end marker. JPEG
    allows to leave out bits of coefficients for good (T.81, G.1.1.1), so their lack is no error.
    """
    progressive = header.frame_marker == PROGRESSIVE_HUFFMAN
    if not progressive and data[header.scan_offset + 4] == len(header.components):
        return []
    lowest_bit = {component.identifier: [-1] * 64 for component in header.components}  # of each coefficient, so far
    for scan in scan_headers(data, header):
        first, last, bits = scan[-3:] if progressive else (0, 63, 0)
        for identifier in scan[1:-3:2]:
            lowest_bit[identifier][first : last + 1] = [bits & 15] * (last + 1 - first)
    if any(bits[0] < 0 for bits in lowest_bit.values()):
        raise BadImage("a colour component is missing")
    if not any(any(bits) for bits in lowest_bit.values()):
        return []
    if NO_END in remarks:
        raise BadImage("truncated")
    return ["not every bit of every coefficient"]


def scan_headers(data: bytes, header: JpegHeader) -> Iterator[bytes]:
    """The payload of every scan header."""
    at = header.scan_offset
    while (marker := _MARKER.search(data, at)) and marker[1][0] != EOI:
        size = int.from_bytes(data[marker.end() : marker.end() + 2], "big")
        if marker[1][0] == SOS:
            yield data[marker.end() + 2 : marker.end() + size]
        at = marker.end() + size


def _odd_pixels(data: bytes, header: JpegHeader | None) -> tuple[np.ndarray, str]:
    """What not every decoder reads alike, as PIL reads it: uint8 [H, W, 3], and what is odd about it."""
    try:
        with Image.open(io.BytesIO(data), formats=IMAGE_FORMATS) as image:
            _check_size(*image.size)
            odd = f"a {image.format} file"
            if header is not None:
                odd = f"a JPEG of {header.precision} bit with {len(header.components)} components (mode {image.mode})"
                odd += "" if header.frame_marker in HUFFMAN else ", arithmetically coded"
            elif image.mode not in ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK"):
                odd += f" (mode {image.mode})"
            return np.asarray(_eight_bit(image).convert("RGB")), odd
    except BadImage:
        raise
    except UnidentifiedImageError:
        raise BadImage("not an image") from None
    except Exception as error:  # PIL raises whatever damaged data leads to
        raise BadImage(f"cannot be decoded ({error or type(error).__name__})") from None


def _check_size(width: int, height: int) -> None:
    if width * height > LARGEST_PIXELS or max(width, height) > 65535:
        raise BadImage(f"{width}x{height} pixels, of at most {LARGEST_PIXELS}")


def _eight_bit(image: Image.Image) -> Image.Image:
    """16-bit grey scaled to 8 bit; PIL's own conversion would clip it to white."""
    if image.mode == "F":
        raise BadImage("pixels in floating point, whose range is not known")
    if not image.mode.startswith("I"):
        return image
    values = np.asarray(image)
    if values.min() < 0 or values.max() > 65535:
        raise BadImage("32-bit pixels, whose range is not known")
    return Image.fromarray((values.astype(np.float64) / 257).round().astype(np.uint8))


def oddities(data: bytes, header: JpegHeader, verify: bool) -> list[str]:
    """What is unusual about a JPEG and harmless."""
    end = end_of(data, header) if verify or data[-2:] != END else len(data) - len(END)
    trailing = len(data) - end - 2 if end >= 0 else 0
    found = ["greyscale"] if len(header.components) == 1 else []
    found += [f"{trailing} bytes behind the end"] if trailing else []
    found += [NO_END] if end < 0 else []
    found += ["corrupt EXIF data"] if not exif_is_sound(data) else []
    return found


def end_of(data: bytes, header: JpegHeader) -> int:
    """Where the end marker is, -1 without one. bytes.find takes 90 us an image here, this 30."""
    codes = np.frombuffer(data, np.uint8, offset=header.scan_offset)
    found = (codes[:-1] == END[0]) & (codes[1:] == END[1])
    first = int(found.argmax())
    return header.scan_offset + first if found[first] else -1


def exif_is_sound(data: bytes) -> bool:
    """Whether the directories of a JPEG's EXIF data, if it has any, lie inside it (TIFF 6.0, section 2; Exif 2.3,
    4.6.3), but for those of its thumbnail."""
    for marker, start, end in segments(data):
        if marker == APP1 and data[start : start + 6] == b"Exif\0\0":
            return _directories_are_sound(data[start + 6 : end])
    return True


def _directories_are_sound(tiff: bytes) -> bool:
    if len(tiff) < 8 or tiff[:4] not in (b"II*\0", b"MM\0*"):
        return False
    order: Literal["little", "big"] = "little" if tiff[:2] == b"II" else "big"

    def number(at: int, size: int) -> int:
        return int.from_bytes(tiff[at : at + size], order)

    waiting, seen = [number(4, 4)], set[int]()
    while waiting:
        start = waiting.pop()
        if start in seen or len(seen) > len(_DIRECTORIES):  # each is there once
            return False
        seen.add(start)
        end = start + 2 + 12 * number(start, 2)
        if end + 4 > len(tiff):  # behind the entries stands where the next directory is
            return False
        for at in range(start + 2, end, 12):
            size = _TIFF_SIZES.get(number(at + 2, 2), 0) * number(at + 4, 4)
            if size > 4 and number(at + 8, 4) + size > len(tiff):
                return False
            if number(at, 2) in _DIRECTORIES:
                waiting.append(number(at + 8, 4))
    return True


def _decoded(data: bytes, header: JpegHeader, handling: Handling, strict: bool) -> np.ndarray:
    """uint8 [H, W, 3], or [H, W, 1] for grey, as --max-side asks or the next DCT scale above. Raises ValueError where
    libjpeg-turbo cannot decode it, strictly where it warns."""
    space = "GRAY" if len(header.components) == 1 and handling.jpeg in ("tile", "reencode") else "RGB"
    height, width = _reduced(header.height, header.width, handling.max_side)
    return simplejpeg.decode_jpeg(data, space, min_height=height, min_width=width, strict=strict)


def _checked_and_decoded(data: bytes, header: JpegHeader, handling: Handling, remarks: list[str]) -> np.ndarray:
    """The same of an image that is checked; one decode is both, unless there is a warning."""
    data = _with_end(data, remarks)
    try:
        pixels, warned = _decoded(data, header, handling, strict=True), []
    except ValueError:
        pixels, warned = None, check_jpeg(data)
    remarks += warned + check_scans(data, header, remarks)
    return _leniently_decoded(data, header, handling) if pixels is None else pixels


def _leniently_decoded(data: bytes, header: JpegHeader, handling: Handling) -> np.ndarray:
    """The same of an image that may be anything."""
    try:
        return _decoded(data, header, handling, strict=False)
    except ValueError:  # a sampling that TurboJPEG does not know
        return _odd_pixels(data, header)[0]


def _reduced(height: int, width: int, max_side: int | None) -> tuple[int, int]:
    """The size of an image whose longest side is at most `max_side`."""
    longest = max(height, width)
    if max_side is None or longest <= max_side:
        return height, width
    return max(1, round(height * max_side / longest)), max(1, round(width * max_side / longest))


def _decoded_and_changed(
    data: bytes, header: JpegHeader, position: int, handling: Handling, remarks: list[str], verify: bool
) -> Stored:
    if verify:
        pixels = _checked_and_decoded(data, header, handling, remarks)
    else:
        pixels = _leniently_decoded(data, header, handling)
    return _changed(pixels, (header.height, header.width), position, handling, ", ".join(remarks))


def _changed(pixels: np.ndarray, full: tuple[int, ...], position: int, handling: Handling, odd: str) -> Stored:
    """Pixels of an image of `full` height and width, reduced if that is asked for, as a JPEG, tiled or not, or as they
    are."""
    pixels = _resized(pixels, _reduced(full[0], full[1], handling.max_side))
    height, width = pixels.shape[:2]
    if handling.jpeg == "raw" or (handling.jpeg == "proportion" and not _compressed(position, handling)):
        return Stored(pixels.tobytes(), MODE_RAW, height, width, odd, (height, width) != tuple(full[:2]))
    jpeg = _encoded(pixels, handling)
    return Stored(tile(jpeg) if handling.jpeg == "tile" else jpeg, MODE_JPEG, height, width, odd, True)


def _resized(pixels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """[H, W, 3 or 1] of this height and width."""
    if size == pixels.shape[:2]:
        return pixels
    image = Image.fromarray(pixels.squeeze(2) if pixels.shape[2] == 1 else pixels)
    return np.asarray(image.resize(size[::-1], Image.Resampling.BICUBIC)).reshape(*size, pixels.shape[2])


def _compressed(position: int, handling: Handling) -> bool:
    """FFCV's proportion mode: whether this image is stored as a JPEG."""
    word = random_words(handling.seed, 0, position, RAW_DRAW)[0]
    return float(word) < handling.compress_probability * 2**32


def _encoded(pixels: np.ndarray, handling: Handling) -> bytes:
    """A JPEG as it was asked for; nearly as good as the pixels where it only stands in for an odd image."""
    stands_in = handling.jpeg in ("keep", "tile") and not handling.reencodes
    quality = ODD_QUALITY if stands_in else handling.quality or QUALITY
    subsampling = "444" if stands_in else handling.subsampling or "420"
    space, sampling = ("GRAY", "Gray") if pixels.shape[2] == 1 else ("RGB", subsampling)
    return simplejpeg.encode_jpeg(np.ascontiguousarray(pixels), quality, space, sampling, fastdct=False)
