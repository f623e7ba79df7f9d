"""From the bytes of a tiled JPEG to the pixels of a crop, a few rows of tiles at a time.

Tiles are copied without their stuffing, decoded, and transformed where the crop needs their blocks; when all samples of
the crop are there, its rows are interpolated and converted to RGB. Scratch comes from the thread's heap, at no cost
after the first image.

A profiler passes an array for the nanoseconds of each step (STEPS); others pass an empty one, and no clock is read.
"""

import time
from typing import Any, Final

import llvmlite.binding
import numpy as np
from numba import carray, cfunc, njit, types

from ...compilation import digest, part
from .. import checksum, crop, memory, processor
from .. import headers as jpeg_headers
from .. import tiles as tiles_format
from ..checksum import crc32c
from ..crop import NO_CHECKSUM, covered, has_marker, next_tile
from ..memory import copy_16, trailing_zeros
from . import colour, entropy, headers, huffman, transform
from .colour import enlarge, grey_to_rgb, to_rgb
from .entropy import (
    END_BIT,
    END_COEFFICIENT,
    FIRST_BIT,
    FIRST_COEFFICIENT,
    NOT_TO_ITS_END,
    SENTINEL,
    SLACK,
    SPARE,
    TILE_FIELDS,
    read_tiles,
)
from .headers import (
    AC,
    ACROSS,
    COMPONENTS,
    DATA,
    DC,
    DOWN,
    FIELDS,
    HEIGHT,
    HUFFMAN_SLOTS,
    INDEX,
    INTERVAL,
    QUANTIZATION,
    QUANTIZATION_SLOTS,
    VERSION,
    WIDTH,
    read_headers,
    read_quantization_table,
)
from .huffman import CODES, MOVES, define_codes, define_moves
from .transform import transform_blocks

DONE, UNSUPPORTED, DAMAGED, CHANGED = range(4)

STEPS: Final = "crop", "entropy", "transform", "colour"
"""Finding and checking tiles and copying them without stuffing; entropy decoding; inverse DCT; upsampling and colour
conversion."""
_FIND, _ENTROPY, _TRANSFORM, _COLOUR = range(len(STEPS))
_NOW = len(STEPS)  # where a clock keeps the time of its last reading

_clock_gettime = types.ExternalFunction("clock_gettime", types.int32(types.int32, types.CPointer(types.int64)))
_MONOTONIC = np.int32(time.CLOCK_MONOTONIC)

_BLOCKS_AT_ONCE, _LEAST_TILES_AT_ONCE = 1024, 8
"""Of tiles that are decoded before they are transformed: enough to keep four at work, few enough for their coefficients
to stay in the cache. A crop takes 230, 229, 223, 217, 224 us with about 340, 510, 1020, 2040, 2700 blocks."""

_MARGIN = 64  # bytes around the samples of a component: rows are read one sample beyond the crop
_BLOCK = 64  # coefficients

_u1, _u16 = np.uint64(1), np.uint64(16)

# What of the image a crop needs, interpolation at its edges included: its grid, int64 [GRID_FIELDS].
FIRST_ROW, LAST_ROW = 0, 1  # of MCUs
FIRST_MCU, LAST_MCU = 2, 3  # of a row
FIRST_TILE, LAST_TILE = 4, 5  # of a row
TILES_PER_ROW, ROWS = 6, 7  # of the image
GRID_FIELDS = 8


@part
def _count_time(clock, step):
    """Add the time since the last reading to a step. `clock` is int64 [STEPS + 1], or empty."""
    if clock.size:
        now = np.empty(2, np.int64)  # seconds and nanoseconds
        _clock_gettime(_MONOTONIC, now.ctypes)
        nanoseconds = 1_000_000_000 * now[0] + now[1]
        clock[step] += nanoseconds - clock[_NOW]
        clock[_NOW] = nanoseconds


@part
def _lay_grid(frame, top, left, height, width, grid):
    """Fill `grid`. Returns whether the crop lies inside the image and tiles fill the rows."""
    if min(top, left) < 0 or min(height, width) < 1:
        return False
    if height > frame[HEIGHT] - top or width > frame[WIDTH] - left:
        return False
    mcu_width, mcu_height = 8 * frame[ACROSS], 8 * frame[DOWN]
    mcus_per_row = -(-frame[WIDTH] // mcu_width)
    if mcus_per_row % frame[INTERVAL]:
        return False
    grid[TILES_PER_ROW], grid[ROWS] = mcus_per_row // frame[INTERVAL], -(-frame[HEIGHT] // mcu_height)
    grid[FIRST_ROW], grid[LAST_ROW] = covered(top, height, frame[DOWN] // 2, mcu_height, frame[HEIGHT])
    grid[FIRST_MCU], grid[LAST_MCU] = covered(left, width, frame[ACROSS] // 2, mcu_width, frame[WIDTH])
    grid[FIRST_TILE], grid[LAST_TILE] = grid[FIRST_MCU] // frame[INTERVAL], grid[LAST_MCU] // frame[INTERVAL]
    return True


@part
def _find_tiles(jpeg, frame, grid, places):
    """Fill `places`, int64 [tiles, 2], with where in the file the tiles under the crop begin and end.

    Returns a status: CHANGED where a tile has not the checksum that the index gives, DAMAGED where the index does not
    lead to the markers that stand behind the tiles.
    """
    at = end = frame[INDEX]
    start, number, found = frame[DATA], 0, 0
    tiles = grid[TILES_PER_ROW] * grid[ROWS]
    for row in range(grid[LAST_ROW] + 1):
        for column in range(grid[TILES_PER_ROW] if row < grid[LAST_ROW] else grid[LAST_TILE] + 1):
            size, checksum, at, end = next_tile(jpeg, at, end, frame[DATA], number, frame[VERSION])
            if size < 0 or start + size + 2 > jpeg.size:
                return DAMAGED
            if row >= grid[FIRST_ROW] and grid[FIRST_TILE] <= column <= grid[LAST_TILE]:
                if number and not has_marker(jpeg, start - 2, number - 1, tiles):
                    return DAMAGED
                if not has_marker(jpeg, start + size, number, tiles):
                    return DAMAGED
                if checksum != NO_CHECKSUM and crc32c(np.int64(0), jpeg, start, start + size) != checksum:
                    return CHANGED
                places[found, 0], places[found, 1] = start, start + size
                found += 1
            start += size + 2
            number += 1
    return DONE


@part
def _put_sentinel(plain, to):
    for offset in range(SENTINEL):
        plain[to + offset] = 0xFF
    return to + SENTINEL


@part
def _remove_stuffing(jpeg, start, end, plain, to):
    """Copy jpeg[start:end] without the zeros behind FF. Returns the end of the copy, -1 where FF stands before anything
    else. `plain` has room for 16 bytes more."""
    at, end, to, size = np.uint64(start), np.uint64(end), np.uint64(to), np.uint64(jpeg.size)
    while at < end and at + _u16 <= size:
        is_ff = copy_16(jpeg, at, plain, to)
        copied = trailing_zeros(is_ff) + _u1 if is_ff else _u16
        if copied > end - at:
            return np.int64(to + (end - at))
        at, to = at + copied, to + copied
        if is_ff:
            if at >= end or jpeg[at] != 0:
                return np.int64(-1)
            at += _u1
    while at < end:  # the last bytes of the file
        plain[to] = jpeg[at]
        at, to = at + _u1, to + _u1
        if jpeg[at - _u1] == 0xFF:
            if at >= end or jpeg[at] != 0:
                return np.int64(-1)
            at += _u1
    return np.int64(to)


@part
def _copy_tiles(jpeg, places, plain, tiles):
    """Copy the tiles, with sentinels between them, and note where their bits begin and end. Returns the bit behind
    the last one, -1 where one is damaged."""
    to = _put_sentinel(plain, 0)
    for tile in range(len(places)):
        tiles[tile, FIRST_BIT] = 8 * to
        to = _remove_stuffing(jpeg, places[tile, 0], places[tile, 1], plain, to)
        if to < 0:
            return np.int64(-1)
        tiles[tile, END_BIT] = 8 * to
        to = _put_sentinel(plain, to)
    plain[to : to + SLACK] = 0
    return np.int64(8 * to)


@part
def _define_tables(jpeg, frame, huffman, codes):
    """Fill `codes` from the Huffman tables of the components. Returns whether they are sound."""
    tables = 0
    for slot in range(HUFFMAN_SLOTS):
        if _is_used(frame, slot):
            tables = define_codes(jpeg, huffman[slot], slot, codes, tables)
            if tables < 0:
                return False
    return True


@part
def _is_used(frame, slot):
    used = False
    for component in range(frame[COMPONENTS]):
        used |= slot in (frame[DC + component], 2 + frame[AC + component])
    return used


@part
def _place_tiles(frame, grid, tiles, checked):
    """Note where the coefficients of some rows of tiles, `tiles`, go. Returns the room they take.

    The last tile of a row is read as far as the crop needs it, where its checksum has told that it is sound.
    """
    across = grid[LAST_TILE] - grid[FIRST_TILE] + 1
    blocks = frame[ACROSS] * frame[DOWN] + frame[COMPONENTS] - 1
    size = frame[INTERVAL] * blocks * _BLOCK
    needed = (grid[LAST_MCU] + 1 - grid[LAST_TILE] * frame[INTERVAL]) * blocks * _BLOCK
    to = np.int64(0)
    for tile in range(len(tiles)):
        tiles[tile, FIRST_COEFFICIENT], tiles[tile, END_COEFFICIENT] = to, to + size
        if checked and tile % across == across - 1 and needed < size:
            tiles[tile, END_BIT], tiles[tile, END_COEFFICIENT] = NOT_TO_ITS_END, to + needed
        to += size + _BLOCK
    return to


@part
def _list_blocks(frame, grid, tiles, row, component, coefficients, base, pitch, blocks):
    """List what of a component the crop needs of some rows of tiles, the first being `row` of the crop's.

    `blocks`, int64 [N, 3], receives the first coefficient of each, the DC coefficient, and where its samples go.
    Returns how many there are.
    """
    luma = frame[ACROSS] * frame[DOWN]
    across, down = (frame[ACROSS], frame[DOWN]) if component == 0 else (np.int64(1), np.int64(1))
    of_mcu = luma + frame[COMPONENTS] - 1
    first = 0 if component == 0 else luma + component - 1
    columns = grid[LAST_TILE] - grid[FIRST_TILE] + 1
    count = 0
    for tile in range(len(tiles)):
        first_mcu = (grid[FIRST_TILE] + tile % columns) * frame[INTERVAL] - grid[FIRST_MCU]  # in a row of the crop's
        to = base + (row + tile // columns) * 8 * down * pitch
        at = tiles[tile, FIRST_COEFFICIENT] + first * _BLOCK
        dc = np.int64(0)
        for mcu in range(first_mcu, min(first_mcu + frame[INTERVAL], grid[LAST_MCU] - grid[FIRST_MCU] + 1)):
            for block in range(across * down):
                place = at + block * _BLOCK
                dc += coefficients[place]
                if mcu >= 0:
                    y, x = block // across, mcu * across + block % across
                    blocks[count, 0], blocks[count, 1] = place, dc
                    blocks[count, 2] = to + 8 * (y * pitch + x)
                    count += 1
            at += of_mcu * _BLOCK
    return count


@part
def _decode_samples(plain, end_bit, codes, moves, start, frame, grid, tiles, tables, layout, samples, clock):
    """Decode and transform all tiles, some rows at a time. Returns whether all are sound.

    `layout`, int64 [3, 2], says where in `samples` those of each component begin, and how far apart its rows are.
    """
    columns = grid[LAST_TILE] - grid[FIRST_TILE] + 1
    blocks_in_tile = frame[INTERVAL] * (frame[ACROSS] * frame[DOWN] + frame[COMPONENTS] - 1)
    at_once = max(_BLOCKS_AT_ONCE // blocks_in_tile, _LEAST_TILES_AT_ONCE)
    at_once = (at_once + columns - 1) // columns * columns
    checked = frame[VERSION] > 1
    room = _place_tiles(frame, grid, tiles[:at_once], checked)
    coefficients = np.empty(room + SPARE * _BLOCK + _BLOCK, np.int16)
    blocks = np.empty((room // _BLOCK, 3), np.int64)
    for first in range(0, len(tiles), at_once):
        some = tiles[first : first + at_once]
        used = _place_tiles(frame, grid, some, checked)
        coefficients[:used] = 0
        if not read_tiles(plain, codes, moves, start, some, coefficients, room + SPARE * _BLOCK, end_bit):
            return False
        _count_time(clock, _ENTROPY)
        for component in range(frame[COMPONENTS]):
            base, pitch = layout[component, 0], layout[component, 1]
            row = first // columns
            count = _list_blocks(frame, grid, some, row, component, coefficients, base, pitch, blocks)
            transform_blocks(coefficients, blocks, count, tables[component], samples, pitch)
        _count_time(clock, _TRANSFORM)
    return True


@part
def _lay_samples(frame, grid, layout):
    """Fill `layout` for `_decode_samples`. Returns the room that the samples take."""
    mcus, rows = grid[LAST_MCU] - grid[FIRST_MCU] + 1, grid[LAST_ROW] - grid[FIRST_ROW] + 1
    room = np.int64(0)
    for component in range(frame[COMPONENTS]):
        across, down = (frame[ACROSS], frame[DOWN]) if component == 0 else (np.int64(1), np.int64(1))
        layout[component, 0], layout[component, 1] = room + _MARGIN, 8 * mcus * across
        room += 8 * mcus * across * 8 * rows * down + 2 * _MARGIN
    return room


@part
def _convert(frame, grid, layout, samples, top, left, height, width, out):
    """Make the crop's pixels, `out`, flat uint8, from the samples."""
    x, y = left - 8 * frame[ACROSS] * grid[FIRST_MCU], top - 8 * frame[DOWN] * grid[FIRST_ROW]
    luma, pitch = layout[0, 0] + x, layout[0, 1]
    if frame[ACROSS] == 2:
        _convert_subsampled(frame, grid, layout, samples, top, left, height, width, out)
        return
    for row in range(height):
        at, to = (y + row) * pitch, 3 * row * width
        if frame[COMPONENTS] == 1:
            grey_to_rgb(samples, luma + at, out, to, width)
        else:
            to_rgb(samples, luma + at, samples, layout[1, 0] + x + at, samples, layout[2, 0] + x + at, out, to, width)


@part
def _convert_subsampled(frame, grid, layout, samples, top, left, height, width, out):
    """_convert where chroma has half the columns, or half of the rows too."""
    down = frame[DOWN]
    first, last = left // 2, (left + width - 1) // 2  # columns of chroma
    count, pitch = last - first + 1, layout[1, 1]
    columns, rows = (frame[WIDTH] + 1) // 2, -(-frame[HEIGHT] // down)
    sums = np.empty(count + 2, np.int16)
    blue, red = np.empty(2 * count, np.uint8), np.empty(2 * count, np.uint8)
    luma = layout[0, 0] + left - 16 * grid[FIRST_MCU]
    rounding = (4, 8) if down == 1 else (8, 7)
    for y in range(top, top + height):
        near = far = y // down
        if down == 2:
            far = min(near + 1, rows - 1) if y & 1 else max(near - 1, 0)
        near_at = (near - 8 * grid[FIRST_ROW]) * pitch + first - 8 * grid[FIRST_MCU]
        far_at = near_at + (far - near) * pitch
        for component, enlarged in ((1, blue), (2, red)):
            base = layout[component, 0]
            enlarge(
                samples, base + near_at, base + far_at, count, rounding, first == 0, last == columns - 1, sums, enlarged
            )
        at, to = luma + (y - 8 * down * grid[FIRST_ROW]) * layout[0, 1], 3 * (y - top) * width
        to_rgb(samples, at, blue, left - 2 * first, red, left - 2 * first, out, to, width)


@part
def _decode(jpeg, top, left, height, width, out, clock):
    """decode_crop into a flat `out`."""
    _count_time(clock, _NOW)
    frame, grid, layout = np.empty(FIELDS, np.int64), np.empty(GRID_FIELDS, np.int64), np.empty((3, 2), np.int64)
    huffman, quantization = np.empty(HUFFMAN_SLOTS, np.int64), np.empty((QUANTIZATION_SLOTS, 2), np.int64)
    supported, sound = read_headers(jpeg, frame, huffman, quantization)
    if not sound:
        return CHANGED
    if not supported or not _lay_grid(frame, top, left, height, width, grid):
        return UNSUPPORTED
    count = (grid[LAST_ROW] - grid[FIRST_ROW] + 1) * (grid[LAST_TILE] - grid[FIRST_TILE] + 1)
    if count > jpeg.size:
        return DAMAGED
    places, tiles = np.empty((count, 2), np.int64), np.empty((count, TILE_FIELDS), np.int64)
    status = _find_tiles(jpeg, frame, grid, places)
    if status != DONE:
        return status
    size = np.int64(0)
    for tile in range(count):
        size += places[tile, 1] - places[tile, 0] + SENTINEL
    plain = np.empty(size + SENTINEL + SLACK, np.uint8)
    end_bit = _copy_tiles(jpeg, places, plain, tiles)
    if end_bit < 0:
        return DAMAGED
    _count_time(clock, _FIND)
    codes, moves = np.empty(CODES, np.uint32), np.empty(MOVES, np.uint64)
    if not _define_tables(jpeg, frame, huffman, codes):
        return UNSUPPORTED
    start = define_moves(frame, moves)
    tables = np.empty((3, _BLOCK), np.int16)
    for component in range(frame[COMPONENTS]):
        table = frame[QUANTIZATION + component]
        read_quantization_table(jpeg, quantization[table, 0], quantization[table, 1], tables[component])
    samples = np.empty(_lay_samples(frame, grid, layout), np.uint8)
    if not _decode_samples(plain, end_bit, codes, moves, start, frame, grid, tiles, tables, layout, samples, clock):
        return DAMAGED
    _convert(frame, grid, layout, samples, top, left, height, width, out)
    _count_time(clock, _COLOUR)
    return DONE


_pointer, _int = types.CPointer(types.uint8), types.int64
_arguments = (_pointer, _int, _int, _int, _int, _int, _pointer, types.CPointer(types.int64), _int)


def _compile(sources: int) -> Any:
    @cfunc(types.int64(*_arguments), cache=True)
    def decode(jpeg, size, top, left, height, width, out, clock, clock_size):
        """decode_crop on the first bytes of contiguous arrays. Returns one more than the status: 0 is what numba
        returns where memory runs out."""
        assert sources
        pixels, clock = carray(out, 3 * height * width), carray(clock, clock_size)
        return 1 + _decode(carray(jpeg, size), top, left, height, width, pixels, clock)

    return decode


_compiled = _compile(
    digest(checksum, colour, crop, entropy, headers, huffman, jpeg_headers, memory, processor, tiles_format, transform)
)
# Called by name: numba would compile all of it again with every kernel that calls it.
llvmlite.binding.add_symbol("sluice_decode_crop", _compiled.address)
_decode_by_name = types.ExternalFunction("sluice_decode_crop", types.int64(*_arguments))


@njit(nogil=True)
def _call(jpeg, top, left, height, width, out, clock):
    if out.shape[0] != height or out.shape[1] != width or out.shape[2] != 3:
        return UNSUPPORTED
    result = _decode_by_name(
        jpeg.ctypes, jpeg.size, top, left, height, width, out.reshape(-1).ctypes, clock.ctypes, clock.size
    )
    return result - 1 if result > 0 else UNSUPPORTED


@njit(cache=True, nogil=True)
def decode_crop(jpeg, top, left, height, width, out):
    """The crop (top, left, height, width) of a tiled JPEG, uint8 [N], into `out`, uint8 [height, width, 3] RGB, both
    contiguous.

    Returns a status:

    - DONE.
    - UNSUPPORTED: not tiled, or of a kind that TurboJPEG has to decode, or the box is not inside, or `out` is of
      another size.
    - DAMAGED: the index does not lead to tiles, or a tile is not what it should be. TurboJPEG may make something of it.
    - CHANGED: what was read is not what the index was written for. TurboJPEG might decode it without a warning, to
      other pixels.

    Where it is not DONE, `out` may hold anything.
    """
    return _call(jpeg, top, left, height, width, out, np.empty(0, np.int64))


@njit(cache=True, nogil=True)
def time_crop(jpeg, top, left, height, width, out, nanoseconds):
    """decode_crop, which adds the time of each of the STEPS to `nanoseconds`, int64 [STEPS]."""
    clock = np.zeros(_NOW + 1, np.int64)
    status = _call(jpeg, top, left, height, width, out, clock)
    nanoseconds += clock[:_NOW]
    return status
