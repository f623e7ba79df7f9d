"""Cuts a small JPEG out of a tiled one (`pipeline/pixels/jpeg/tiles.py`), without decoding anything.

Decoding the small JPEG and cropping it gives exactly the pixels that decoding and cropping the whole would give, with
libjpeg-turbo. It holds the tiles under the crop, and what decoding them needs of the headers: JFIF and Adobe segments
(they say which colours the components mean), tables, frame header with the new size, restart interval and scan header.

Subsampled components are interpolated when they are enlarged, so a pixel depends on those next to it: where a
component has 1/f of the columns or rows, the crop takes f // 2 pixels of margin there, which costs a tile only where
its edge is so close to a tile's. The image's own right and bottom edges stay what they are.

The bytes are not trusted: where the file is not tiled, or its index does not lead to the restart markers that stand
behind each tile, the answer is to decode the whole file. Where the headers or a tile under the crop have not the
checksum that the index gives, there is no answer: a decoder might make other pixels of them without a warning.
"""

from typing import Any

import numpy as np
from numba import njit

from ..compilation import digest
from . import checksum, memory, processor
from .checksum import crc32c
from .headers import APP9, DRI, EOI, SEQUENTIAL_HUFFMAN, SOS, JpegError
from .tiles import CHECKSUM_BYTES, DECODING_SEGMENTS, INDEX_IDENTIFIER, INDEX_VERSIONS, MAX_NUMBER

Box = tuple[int, int, int, int]
"""top, left, height, width in pixels"""

_RST0 = 0xD0
_BASELINE, _EXTENDED = SEQUENTIAL_HUFFMAN
_INDEX_IDENTIFIER = np.frombuffer(INDEX_IDENTIFIER, np.uint8)
NO_CHECKSUM = -1
ALTERED = -1  # instead of a number of bytes
_UNCHECKED, _CHECKED = INDEX_VERSIONS
_NUMBER_AT = 4 + len(INDEX_IDENTIFIER) + 1  # in an index segment


class AlteredError(JpegError):
    """What a crop needs is not what the index was written for."""


def crop(jpeg: bytes | np.ndarray, box: Box) -> tuple[np.ndarray, int, int]:
    """A JPEG that holds at least the box, uint8 [N], and where in its image the box begins: top, left.

    It is a copy of the whole where nothing can be left out. Raises AlteredError. 19 us for an image of ImageNet, of
    which 4 are for checksums.
    """
    source = np.frombuffer(jpeg, np.uint8)
    out = np.empty(len(jpeg), np.uint8)
    size, top, left = crop_tiles(source, *box, out)
    if size == ALTERED:
        raise AlteredError("not what was written")
    if size == 0:
        out[:] = source
        return out, top, left
    return out[:size], top, left


def _compile_crop_tiles(sources: int) -> Any:
    @njit(cache=True, nogil=True)
    def crop_tiles(jpeg, top, left, height, width, out):
        """Write a JPEG that holds at least the box into `out`. Returns its bytes and where the box begins: top, left.

        `jpeg` and `out` are uint8 [N]; an `out` of the file's size is always large enough. 0 bytes mean that the whole
        file is to be decoded instead: it is not tiled, the box needs all of it or is not inside, or `out` is too small.
        ALTERED instead of a number means that nothing is to be decoded.
        """
        assert sources
        return _crop_tiles(jpeg, top, left, height, width, out)

    return crop_tiles


@njit(nogil=True)
def _crop_tiles(jpeg, top, left, height, width, out):
    whole = 0, top, left
    to, frame, index, version, data, interval = _copy_headers(jpeg, out)
    if to == 0:
        return whole
    expected = header_checksum(jpeg, index, version)
    if expected != NO_CHECKSUM and crc32c(np.int64(0), out, 2, to) != expected:
        return ALTERED, top, left
    image_height, image_width = read_number(out, frame + 1, 2), read_number(out, frame + 3, 2)
    if min(top, left) < 0 or min(height, width) < 1 or height > image_height - top or width > image_width - left:
        return whole
    mcu_width, mcu_height, margin_x, margin_y = _geometry(out, frame)
    tile_width = interval * mcu_width
    mcus_per_row, rows = -(-image_width // mcu_width), -(-image_height // mcu_height)
    if mcus_per_row % interval:
        return whole
    tiles_per_row = mcus_per_row // interval
    first_row, last_row = covered(top, height, margin_y, mcu_height, image_height)
    first, last = covered(left, width, margin_x, tile_width, image_width)
    if first > 0 and image_width - first * tile_width <= 4 * margin_x:
        first -= 1  # libjpeg does not interpolate a component of one or two columns
    to = _copy_tiles(jpeg, index, version, data, tiles_per_row, rows, first_row, last_row, first, last, out, to)
    if to == ALTERED:
        return ALTERED, top, left
    if to == 0 or (last - first + 1) * (last_row - first_row + 1) == tiles_per_row * rows:
        return whole
    _write_size(out, frame + 1, min((last_row + 1) * mcu_height, image_height) - first_row * mcu_height)
    _write_size(out, frame + 3, min((last + 1) * tile_width, image_width) - first * tile_width)
    return to, top - first_row * mcu_height, left - first * tile_width


@njit(cache=True, nogil=True)
def read_number(data, at, count):
    """The big-endian number in `count` bytes."""
    number = np.int64(0)
    for offset in range(count):
        number = number << 8 | np.int64(data[at + offset])
    return number


@njit(cache=True, nogil=True)
def read_size(jpeg):
    """Height and width of a JPEG, uint8 [N], from its frame header; (0, 0) where it takes `read_header` to find it, or
    to say what is wrong."""
    at, marker = 2, 0
    while jpeg.size >= at + 9 and jpeg[at] == 0xFF and marker != SOS:
        marker = np.int64(jpeg[at + 1])
        if marker in (_BASELINE, _EXTENDED) and jpeg[0] == 0xFF and jpeg[1] == 0xD8:
            return read_number(jpeg, at + 5, 2), read_number(jpeg, at + 7, 2)
        at += 2 + read_number(jpeg, at + 2, 2)
    return np.int64(0), np.int64(0)


@njit(cache=True, nogil=True)
def _write_size(out, at, size):
    """A big-endian number of two bytes."""
    out[at], out[at + 1] = size >> 8, size & 255


@njit(cache=True, nogil=True)
def _copy(data, start, end, out, to):
    """Copy data[start:end] to out[to:]; both have room. Unsigned, because only then does the compiler see a copy: a
    twentieth of the time."""
    source, target = np.uint64(start), np.uint64(to)
    for offset in range(np.uint64(end - start)):
        out[target + offset] = data[source + offset]


@njit(cache=True, nogil=True)
def _copy_headers(jpeg, out):
    """Copy the segments that decoding needs.

    Returns the bytes written, where in `out` the frame header's payload stands, where in the file the first index
    segment begins and its version, where the entropy-coded data begins, and the restart interval. All are 0 where the
    file is not a tiled one.
    """
    nothing = 0, 0, 0, 0, 0, 0
    if jpeg.size < 2 or out.size < 2 or jpeg[0] != 0xFF or jpeg[1] != 0xD8:
        return nothing
    _copy(jpeg, 0, 2, out, 0)
    to, at, frame, index, version, interval, marker = 2, 2, 0, 0, 0, 0, 0
    while marker != SOS:
        if at + 4 > jpeg.size or jpeg[at] != 0xFF:
            return nothing
        marker = np.int64(jpeg[at + 1])
        length = read_number(jpeg, at + 2, 2)
        end = at + 2 + length
        if length < 2 or end > jpeg.size:
            return nothing
        if marker == DRI and length == 4:
            interval = read_number(jpeg, at + 4, 2)
        elif marker in (_BASELINE, _EXTENDED):
            if frame or length < 11 or length != 8 + 3 * np.int64(jpeg[at + 9]):
                return nothing
            frame = to + 4
        elif marker == APP9 and not index:
            version = index_version(jpeg, at, end, 0)
            index = at if version else 0
        if marker in DECODING_SEGMENTS:
            if to + 2 + length > out.size:
                return nothing
            _copy(jpeg, at, end, out, to)
            to += 2 + length
        at = end
    if frame == 0 or index == 0 or interval == 0:
        return nothing
    return to, frame, index, version, at, interval


@njit(cache=True, nogil=True)
def index_version(jpeg, at, end, number):
    """The version of the index of which the segment jpeg[at:end] is the part that begins with tile `number`; 0 where
    it is something else."""
    if end - at < _NUMBER_AT + 4 or jpeg[at] != 0xFF or jpeg[at + 1] != APP9:
        return 0
    for offset in range(_INDEX_IDENTIFIER.size):
        if jpeg[at + 4 + offset] != _INDEX_IDENTIFIER[offset]:
            return 0
    version = np.int64(jpeg[at + _NUMBER_AT - 1])
    known = version == _UNCHECKED or (version == _CHECKED and end - at >= _tiles_at(version))
    return version if known and read_number(jpeg, at + _NUMBER_AT, 4) == number else 0


@njit(cache=True, nogil=True)
def header_checksum(jpeg, at, version):
    """The checksum of the headers that the index segment at jpeg[at:] gives."""
    return read_number(jpeg, at + _NUMBER_AT + 4, CHECKSUM_BYTES) if version == _CHECKED else np.int64(NO_CHECKSUM)


@njit(cache=True, nogil=True)
def _tiles_at(version):
    """Where in an index segment its tiles begin."""
    return _NUMBER_AT + 4 + (CHECKSUM_BYTES if version == _CHECKED else 0)


@njit(cache=True, nogil=True)
def _geometry(out, frame):
    """Width and height of an MCU, and the margin across and down, all in pixels, from a frame header's payload."""
    count = np.int64(out[frame + 5])
    if count == 1:
        return 8, 8, 0, 0
    most_x = most_y = 1
    least_x = least_y = 16
    for component in range(count):
        factors = np.int64(out[frame + 7 + 3 * component])
        x, y = max(factors >> 4, 1), max(factors & 15, 1)
        most_x, most_y, least_x, least_y = max(most_x, x), max(most_y, y), min(least_x, x), min(least_y, y)
    return 8 * most_x, 8 * most_y, most_x // least_x // 2, most_y // least_y // 2


@njit(cache=True, nogil=True)
def covered(start, length, margin, tile, image):
    """The first and the last tile along one axis that pixels [start, start + length) and their margin lie in."""
    return max(start - margin, 0) // tile, (min(start + length + margin, image) - 1) // tile


@njit(cache=True, nogil=True)
def next_tile(jpeg, at, end, limit, number, version):
    """Tile `number` from the index: its bytes (-1 where there are none), its checksum (NO_CHECKSUM in version
    1); where the index goes on, and its segment's end.

    All segments lie before `limit`. The first call has `at` and `end` where the first segment begins.
    """
    nothing = np.int64(-1), np.int64(NO_CHECKSUM), at, end
    if at == end:  # go on in the next segment
        if at + 4 > limit:
            return nothing
        end = at + 2 + read_number(jpeg, at + 2, 2)
        if end > limit or index_version(jpeg, at, end, number) != version:
            return nothing
        at += _tiles_at(version)
    size = np.int64(0)
    for _ in range(MAX_NUMBER):
        if at >= end:
            return nothing
        byte = np.int64(jpeg[at])
        at += 1
        size = size << 7 | byte & 127
        if byte < 128:
            if version == _UNCHECKED:
                return size, np.int64(NO_CHECKSUM), at, end
            if at + CHECKSUM_BYTES > end:
                return nothing
            return size, read_number(jpeg, at, CHECKSUM_BYTES), at + CHECKSUM_BYTES, end
    return nothing


@njit(cache=True, nogil=True)
def has_marker(jpeg, at, tile, tiles):
    """Whether at this byte stands the marker that belongs behind a tile."""
    marker = EOI if tile + 1 == tiles else _RST0 + (tile & 7)
    return at + 2 <= jpeg.size and jpeg[at] == 0xFF and jpeg[at + 1] == marker


@njit(nogil=True)
def _copy_tiles(jpeg, index, version, data, tiles_per_row, rows, first_row, last_row, first, last, out, to):
    """Copy the tiles of some rows and columns, the last of each included. Returns the end of `out`; 0 on failure;
    ALTERED where a tile has not its checksum."""
    tiles = tiles_per_row * rows
    at = end = index
    start = data
    copied = 0
    for tile in range(last_row * tiles_per_row + last + 1):
        size, expected, at, end = next_tile(jpeg, at, end, data, tile, version)
        if size < 0 or start + size + 2 > jpeg.size:
            return 0
        column = tile % tiles_per_row
        if tile >= first_row * tiles_per_row and first <= column <= last:
            if column == first and tile and not has_marker(jpeg, start - 2, tile - 1, tiles):
                return 0
            if not has_marker(jpeg, start + size, tile, tiles) or to + size + 2 > out.size:
                return 0
            if expected != NO_CHECKSUM and crc32c(np.int64(0), jpeg, start, start + size) != expected:
                return ALTERED
            _copy(jpeg, start, start + size + 2, out, to)
            to += size + 2
            out[to - 1] = _RST0 + (copied & 7)
            copied += 1
        start += size + 2
    out[to - 1] = EOI
    return to


crop_tiles = _compile_crop_tiles(digest(checksum, memory, processor))
