"""One image on its way from the source to the dataset: checked once, then kept, tiled, re-encoded, or decoded."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import simplejpeg
from PIL import Image

from ..order.random import RAW_DRAW, random_words
from ..pixels.formats import (
    STRAY_BYTES,
    BadImage,
    check_size,
    decode_any,
    encode_jpeg,
    read_header_or_stray,
)
from ..pixels.jpeg.headers import EOI, PROGRESSIVE_HUFFMAN, SOS, JpegError, JpegHeader, segments
from ..pixels.jpeg.tiles import NotTileable, check_entropy, tile
from ..storage.beton import MODE_JPEG, MODE_RAW

QUALITY = 90  # FFCV's default
APP1 = 0xE1
END = b"\xff\xd9"
NO_END = "no end marker"
_MARKER = re.compile(rb"\xff+([^\0\xff\xd0-\xd7])", re.DOTALL)  # not a stuffed zero or a restart marker
_TIFF_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8}  # bytes by type
_DIRECTORIES = (0x8769, 0x8825, 0xA005)  # tags of entries that point to one: Exif, GPS, interoperability

Subsampling = Literal["444", "422", "420"]


@dataclass(frozen=True, kw_only=True)
class Handling:
    """How images are stored."""

    jpeg: Literal["tile", "keep", "reencode", "raw", "proportion"] = "tile"
    max_side: int | None = None  # longest side in pixels of re-encoded images and raw pixels
    quality: int | None = None  # of re-encoded images; None stands for 90
    subsampling: Subsampling | None = None  # of re-encoded images; None stands for 4:2:0
    compress_probability: float = 0.5  # that an image is stored as a JPEG, with "proportion"
    seed: int = 0
    verify: bool = True
    largest: int = 1 << 32  # bytes that an image may take: a page of a .beton

    @property
    def reencodes(self) -> bool:
        """Whether sound JPEGs are encoded again; tiling is lossless unless an encoding is asked for."""
        encoding = (self.max_side, self.quality, self.subsampling)
        return self.jpeg == "reencode" or (self.jpeg == "tile" and encoding != (None, None, None))


class PreparedImage(NamedTuple):
    """An image as it will be stored."""

    data: bytes
    mode: int  # MODE_JPEG or MODE_RAW
    height: int
    width: int
    odd: str  # what was odd about it; empty if nothing was
    reencoded: bool  # encoded from pixels, or reduced


def prepare(data: bytes, position: int, handling: Handling) -> PreparedImage:
    """Check an image and make of it what will be stored; `position` is its place in the listing. Raises BadImage."""
    try:
        prepared = _prepare(data, position, handling)
    except JpegError as error:
        raise BadImage(str(error)) from None
    except ValueError as error:
        if isinstance(error, BadImage):
            raise
        raise BadImage(f"cannot be decoded ({error})") from None
    if len(prepared.data) > handling.largest:
        smaller = "--jpeg reencode --max-side" if handling.jpeg == "keep" else "--max-side"
        size = len(prepared.data)
        raise BadImage(f"stored it takes {size} bytes, of at most {handling.largest}; {smaller} reduces it")
    return prepared


def _prepare(data: bytes, position: int, handling: Handling) -> PreparedImage:
    header, cleaned = read_header_or_stray(data)
    if header is None or not header.is_decodable_everywhere:
        if header is not None and handling.verify:
            check_jpeg(cleaned)
        pixels, odd = decode_any(cleaned, header)
        return _changed(pixels, pixels.shape[:2], position, handling, odd)
    check_size(header.width, header.height)
    if len(cleaned) < len(data):
        remarks = [STRAY_BYTES, *oddities(cleaned, header, handling.verify)]
        return _decoded_and_changed(cleaned, header, position, handling, remarks, handling.verify)
    remarks = oddities(data, header, handling.verify)
    if handling.jpeg == "tile" and not handling.reencodes:
        return _tiled(data, header, remarks, position, handling)
    if handling.jpeg != "keep":
        return _decoded_and_changed(data, header, position, handling, remarks, handling.verify)
    if handling.verify:
        data = _with_end(data, remarks)
        remarks += check_jpeg(data) + check_scans(data, header, remarks)
    return PreparedImage(data, MODE_JPEG, header.height, header.width, ", ".join(remarks), False)


def _tiled(data: bytes, header: JpegHeader, remarks: list[str], position: int, handling: Handling) -> PreparedImage:
    """Tile without loss, which reads every coefficient; if that is impossible, encode again."""
    try:
        return PreparedImage(tile(data), MODE_JPEG, header.height, header.width, ", ".join(remarks), False)
    except JpegError as error:
        remarks.append(str(error))
    return _decoded_and_changed(data, header, position, handling, remarks, verify=True)


def _with_end(data: bytes, remarks: list[str]) -> bytes:
    """A JPEG with an end marker, without which PIL calls it truncated."""
    return data + END if NO_END in remarks else data


def check_jpeg(data: bytes) -> list[str]:
    """Decode a JPEG to its end. Returns what decoders warn of although every pixel is present; raises JpegError or
    ValueError if one is missing.

    All coefficients are read; only the inverse transform is the cheapest one, to 1/8 of the size: 0.8 ms an image
    instead of 1.3.
    """
    try:
        simplejpeg.decode_jpeg(data, "GRAY", fastdct=True, min_height=1, min_width=1, strict=True)
        return []
    except ValueError as warning:
        message = str(warning)
    try:
        check_entropy(data)
    except NotTileable:  # progressive: it is not known which of its warnings are harmless
        raise BadImage(message) from None
    return [f"decoders warn: {message}"]


def check_scans(data: bytes, header: JpegHeader, remarks: list[str]) -> list[str]:
    """What is missing from all scans. Raises BadImage if it is a whole colour component, or if the file had no end
    marker.

    To a decoder, a file of several scans is whole if it was cut between two of them and got an end marker. JPEG allows
    bits of coefficients to be left out for good (T.81, G.1.1.1), so it is no error if some are missing.
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


def oddities(data: bytes, header: JpegHeader, verify: bool) -> list[str]:
    """What is unusual about a JPEG and harmless."""
    end = end_of(data, header) if verify or data[-2:] != END else len(data) - len(END)
    trailing = len(data) - end - 2 if end >= 0 else 0
    remarks = ["greyscale"] if len(header.components) == 1 else []
    remarks += [f"{trailing} bytes behind the end"] if trailing else []
    remarks += [NO_END] if end < 0 else []
    remarks += ["corrupt EXIF data"] if not exif_is_sound(data) else []
    return remarks


def end_of(data: bytes, header: JpegHeader) -> int:
    """The offset of the end marker, -1 without one. bytes.find takes 90 us an image here, this 30."""
    codes = np.frombuffer(data, np.uint8, offset=header.scan_offset)
    is_end = (codes[:-1] == END[0]) & (codes[1:] == END[1])
    first = int(is_end.argmax())
    return header.scan_offset + first if is_end[first] else -1


def exif_is_sound(data: bytes) -> bool:
    """Whether the directories of a JPEG's EXIF data, if it has any, lie inside it (TIFF 6.0, section 2; Exif 2.3,
    4.6.3), except those of its thumbnail."""
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
        if start in seen or len(seen) > len(_DIRECTORIES):  # each occurs once
            return False
        seen.add(start)
        end = start + 2 + 12 * number(start, 2)
        if end + 4 > len(tiff):  # the offset of the next directory follows the entries
            return False
        for at in range(start + 2, end, 12):
            size = _TIFF_SIZES.get(number(at + 2, 2), 0) * number(at + 4, 4)
            if size > 4 and number(at + 8, 4) + size > len(tiff):
                return False
            if number(at, 2) in _DIRECTORIES:
                waiting.append(number(at + 8, 4))
    return True


def _decoded(data: bytes, header: JpegHeader, handling: Handling, strict: bool) -> np.ndarray:
    """uint8 [H, W, 3], or [H, W, 1] for grey, at the next DCT scale that is not below the size asked for. Raises
    ValueError if libjpeg-turbo cannot decode it; with `strict`, also if it warns."""
    space = "GRAY" if len(header.components) == 1 and handling.jpeg in ("tile", "reencode") else "RGB"
    height, width = _reduced(header.height, header.width, handling.max_side)
    pixels: np.ndarray = simplejpeg.decode_jpeg(data, space, min_height=height, min_width=width, strict=strict)
    return pixels


def _checked_and_decoded(data: bytes, header: JpegHeader, handling: Handling, remarks: list[str]) -> np.ndarray:
    """Decode and check; one decode does both, unless there is a warning."""
    data = _with_end(data, remarks)
    try:
        pixels, warned = _decoded(data, header, handling, strict=True), []
    except ValueError:
        pixels, warned = None, check_jpeg(data)
    remarks += warned + check_scans(data, header, remarks)
    return _leniently_decoded(data, header, handling) if pixels is None else pixels


def _leniently_decoded(data: bytes, header: JpegHeader, handling: Handling) -> np.ndarray:
    """Decode without checking, with PIL if need be."""
    try:
        return _decoded(data, header, handling, strict=False)
    except ValueError:  # a sampling that TurboJPEG does not support
        return decode_any(data, header)[0]


def _reduced(height: int, width: int, max_side: int | None) -> tuple[int, int]:
    """Height and width scaled so that the longest side is at most `max_side`."""
    longest = max(height, width)
    if max_side is None or longest <= max_side:
        return height, width
    return max(1, round(height * max_side / longest)), max(1, round(width * max_side / longest))


def _decoded_and_changed(
    data: bytes, header: JpegHeader, position: int, handling: Handling, remarks: list[str], verify: bool
) -> PreparedImage:
    if verify:
        pixels = _checked_and_decoded(data, header, handling, remarks)
    else:
        pixels = _leniently_decoded(data, header, handling)
    return _changed(pixels, (header.height, header.width), position, handling, ", ".join(remarks))


def _changed(pixels: np.ndarray, full: tuple[int, ...], position: int, handling: Handling, odd: str) -> PreparedImage:
    """Store decoded pixels, of an image of `full` height and width: reduced if asked for, as a JPEG, tiled or not, or
    raw."""
    pixels = _resized(pixels, _reduced(full[0], full[1], handling.max_side))
    height, width = pixels.shape[:2]
    if handling.jpeg == "raw" or (handling.jpeg == "proportion" and not _compressed(position, handling)):
        return PreparedImage(pixels.tobytes(), MODE_RAW, height, width, odd, (height, width) != tuple(full[:2]))
    jpeg = _encoded(pixels, handling)
    return PreparedImage(tile(jpeg) if handling.jpeg == "tile" else jpeg, MODE_JPEG, height, width, odd, True)


def _resized(pixels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize [H, W, 3 or 1] to this height and width."""
    if size == pixels.shape[:2]:
        return pixels
    image = Image.fromarray(pixels.squeeze(2) if pixels.shape[2] == 1 else pixels)
    return np.asarray(image.resize(size[::-1], Image.Resampling.BICUBIC)).reshape(*size, pixels.shape[2])


def _compressed(position: int, handling: Handling) -> bool:
    """Whether this image is stored as a JPEG (FFCV's proportion mode)."""
    word = random_words(handling.seed, 0, position, RAW_DRAW)[0]
    return float(word) < handling.compress_probability * 2**32


def _encoded(pixels: np.ndarray, handling: Handling) -> bytes:
    """Encode as asked for, or nearly without loss if the JPEG only replaces an odd image."""
    if handling.jpeg in ("keep", "tile") and not handling.reencodes:
        return encode_jpeg(pixels)
    return encode_jpeg(pixels, handling.quality or QUALITY, handling.subsampling or "420")
