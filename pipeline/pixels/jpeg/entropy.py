"""The entropy-coded data of a baseline JPEG: read strictly, and written again with other restart intervals.

Reading takes two steps. `remove_stuffing` copies the data without its stuffed zeros and restart markers, which leaves
the Huffman codes in plain bytes; `read_blocks` walks over them and notes for each block where its DC code, its AC codes
and the next block begin, and its DC coefficient. Writing (`write_tiles`) needs no more than that: a DC difference
changes only where the block it refers to does, all other bits are copied in runs.

A bit position counts from the first bit of the plain bytes, most significant bit first. Source: ITU-T T.81,
annexes B.1.1.5 (stuffing, restart markers), C (Huffman codes) and F (sequential coding). The bytes are not trusted; a
status other than OK is an index into STATUS.
"""

from typing import NamedTuple

import numpy as np
from numba import njit

STATUS = (
    "",
    "truncated",
    "a code that the Huffman table does not have",
    "too many coefficients in a block",
    "a DC coefficient out of range",
    "data left over after a restart interval",
    "data left over after the last MCU",
    "a wrong restart marker",
    "an invalid Huffman table",
)
OK, TRUNCATED, UNKNOWN_CODE, TOO_MANY, DC_RANGE, LEFT_OVER, LEFT_OVER_AT_END, WRONG_RESTART, BAD_TABLE = range(9)

SLACK = 512
"""Zero bytes behind the plain data. A block ends at most 63 * 31 + 31 bits behind the last byte known to be inside the
data, and eight bytes are read at a time: nothing else keeps `read_blocks` inside its array."""

MAX_LEFT_OVER = 16
"""Whole bytes allowed between the last MCU and the end marker: some writers pad. libjpeg drops any number with a
warning, but many of them probably mean that the headers describe only a part of the image."""

_FAST_BITS = 10
_FAST_SHIFT = np.uint64(64 - _FAST_BITS)
_LONGEST = 16  # bits in a Huffman code
_LENGTH_BITS = 5
_LENGTH = (1 << _LENGTH_BITS) - 1
_END_OF_BLOCK = 128
_SURE_BITS = 57  # of a window
_DC_LIMIT = 32767  # libjpeg keeps coefficients in 16 bits

_u0, _u3, _u7, _u32, _u48, _u64 = (np.uint64(value) for value in (0, 3, 7, 32, 48, 64))


class Tables(NamedTuple):
    """The Huffman tables of a file, by slot: DC tables 0 to 3, then AC tables 0 to 3.

    An entry holds what a code stands for: the number of bits to skip, which are the code's own and, in an AC table,
    those of the coefficient behind it; above them (<< 5) for DC the size of the difference, for AC the number of
    coefficients to skip (_END_OF_BLOCK for the end of the block). 0 is no code.
    """

    fast: np.ndarray  # uint16 [8, 1024]: entry by the next ten bits, 0 where the code is longer
    entries: np.ndarray  # uint16 [8, 256]: entry of each code, in the order of the codes
    limits: np.ndarray  # int64 [8, 17]: by length, the first 16-bit prefix behind the codes of at most that length
    first: np.ndarray  # int64 [8, 17]: by length, what to add to a code to get its number in `entries`
    dc_codes: np.ndarray  # int64 [4, 16]: code of each size
    dc_lengths: np.ndarray  # int64 [4, 16]: and its length in bits, 0 for none
    defined: np.ndarray  # bool [8]


class Layout(NamedTuple):
    """How blocks follow one another in the scan. The arrays are by block of an MCU."""

    component: np.ndarray  # int64 [B]: 0, 1, 2 in the order of the scan
    dc_slot: np.ndarray  # int64 [B]
    ac_slot: np.ndarray  # int64 [B], 4 to 7
    mcus_per_row: int
    rows: int
    restart_interval: int  # in MCUs; that of an unbroken scan is all of them


class Blocks(NamedTuple):
    """Where the blocks of a scan are in its plain bytes, in the order of the scan."""

    positions: np.ndarray  # int64 [blocks, 3]: bit where the DC code, the AC codes, and whatever follows begin
    dc: np.ndarray  # int64 [blocks]: DC coefficient


def empty_tables() -> Tables:
    """No table defined."""
    return Tables(
        fast=np.zeros((8, 1 << _FAST_BITS), np.uint16),
        entries=np.zeros((8, 256), np.uint16),
        limits=np.zeros((8, _LONGEST + 1), np.int64),
        first=np.zeros((8, _LONGEST + 1), np.int64),
        dc_codes=np.zeros((4, 16), np.int64),
        dc_lengths=np.zeros((4, 16), np.int64),
        defined=np.zeros(8, np.bool_),
    )


@njit(cache=True, nogil=True)
def _entry(symbol, length, is_ac):
    """The entry of a code of `length` bits that stands for `symbol`; 0 where the standard gives it no meaning."""
    if not is_ac:
        return symbol << _LENGTH_BITS | length
    run, size = symbol >> 4, symbol & 15
    if size:
        return (run + 1) << _LENGTH_BITS | (length + size)
    if run == 15:
        return 16 << _LENGTH_BITS | length
    return _END_OF_BLOCK << _LENGTH_BITS | length if run == 0 else 0


@njit(cache=True, nogil=True)
def _define_table(counts, symbols, slot, tables):
    """Define one table from its uint8 [16] code counts by length and its symbols. Returns a status."""
    is_ac = slot >= 4
    tables.fast[slot] = 0
    if not is_ac:
        tables.dc_lengths[slot] = 0
    code, number = 0, 0
    for length in range(1, _LONGEST + 1):
        tables.first[slot, length] = number - code
        for _ in range(counts[length - 1]):
            symbol = np.int64(symbols[number])
            entry = _entry(symbol, length, is_ac)
            tables.entries[slot, number] = entry
            if length <= _FAST_BITS:
                shift = _FAST_BITS - length
                tables.fast[slot, code << shift : (code + 1) << shift] = entry
            if not is_ac:
                if symbol > 15:
                    return BAD_TABLE
                tables.dc_codes[slot, symbol], tables.dc_lengths[slot, symbol] = code, length
            code += 1
            number += 1
            if code >= 1 << length:  # more codes than bits allow, or a code of ones only, which T.81 C.2 forbids
                return BAD_TABLE
        tables.limits[slot, length] = code << (_LONGEST - length)
        code <<= 1
    tables.defined[slot] = True
    return OK


@njit(cache=True, nogil=True)
def define_tables(payload, tables):
    """Define the tables of a DHT segment (its payload, uint8 [N]). Returns a status."""
    at = 0
    while at < payload.size:
        kind = np.int64(payload[at])
        if kind >> 4 > 1 or kind & 15 > 3 or at + 17 > payload.size:
            return BAD_TABLE
        counts = payload[at + 1 : at + 17]
        total = np.int64(0)
        for count in counts:
            total += count
        at += 17
        if total > 256 or at + total > payload.size:
            return BAD_TABLE
        status = _define_table(counts, payload[at : at + total], (kind >> 4) * 4 + (kind & 15), tables)
        if status != OK:
            return status
        at += total
    return OK


@njit(cache=True, nogil=True)
def remove_stuffing(jpeg, offset, plain, ends):
    """Copy the entropy-coded data at jpeg[offset:] into `plain` without stuffed zeros, fill bytes and restart markers.

    `ends`, int64 [intervals], receives where each restart interval ends in `plain`, which has room for the rest of
    the file and SLACK. Returns a status and the offset of the marker byte that ended the data, or the
    file's size.
    """
    size, at, to, interval = jpeg.size, offset, 0, 0
    while at < size:
        byte = jpeg[at]
        plain[to] = byte
        to += 1
        at += 1
        if byte != 0xFF:
            continue
        if at < size and jpeg[at] == 0:
            at += 1
            continue
        to -= 1
        while at < size and jpeg[at] == 0xFF:
            at += 1
        if at == size or not 0xD0 <= jpeg[at] <= 0xD7:
            break
        if interval + 1 >= ends.size or jpeg[at] - 0xD0 != interval & 7:
            return WRONG_RESTART, at
        ends[interval] = to
        interval += 1
        at += 1
    plain[to : to + SLACK] = 0
    ends[interval] = to
    return (OK if interval + 1 == ends.size else TRUNCATED), at


@njit(cache=True, nogil=True)
def _window(plain, position):
    """64 bits from a bit position on; up to seven of the lowest are missing (zero)."""
    at = position >> _u3
    word = _u0
    for number in range(8):  # the compiler turns this into one load
        word = word << np.uint64(8) | np.uint64(plain[at + np.uint64(number)])
    return word << (position & _u7)


@njit(cache=True, nogil=True)
def _long_code(window, slot, tables):
    """The entry of a code longer than those of the fast table, 0 if there is no such code."""
    prefix = np.int64(window >> _u48)
    if prefix < tables.limits[slot, _FAST_BITS]:
        return 0  # a short code without a meaning
    for length in range(_FAST_BITS + 1, _LONGEST + 1):
        if prefix < tables.limits[slot, length]:
            return np.int64(tables.entries[slot, tables.first[slot, length] + (prefix >> (_LONGEST - length))])
    return 0


@njit(cache=True, nogil=True)
def _read_dc(plain, position, slot, tables):
    """A DC difference and the number of bits it takes, 0 if there is no such code."""
    window = _window(plain, position)
    entry = np.int64(tables.fast[slot, window >> _FAST_SHIFT])
    if entry == 0:
        entry = _long_code(window, slot, tables)
    length, size = entry & _LENGTH, entry >> _LENGTH_BITS
    value = np.int64((window << np.uint64(length)) >> np.uint64(1) >> np.uint64(63 - size))
    is_negative = np.int64(value < (1 << size) >> 1)  # T.81, F.12, without an unpredictable branch
    return value - is_negative * ((1 << size) - 1), length + size


@njit(cache=True, nogil=True)
def _skip_ac(plain, position, slot, tables):
    """A status and the position behind the AC codes of a block."""
    coefficient = 1
    while True:
        window = _window(plain, position)
        used = 0
        while used <= _SURE_BITS - _LONGEST:  # a third faster than a window for each code
            entry = np.int64(tables.fast[slot, window >> _FAST_SHIFT])
            if entry == 0:
                entry = _long_code(window, slot, tables)
                if entry == 0:
                    return UNKNOWN_CODE, position + np.uint64(used)
            coefficient += entry >> _LENGTH_BITS
            used += entry & _LENGTH
            if coefficient >= 64:
                return (TOO_MANY if 64 < coefficient < _END_OF_BLOCK else OK), position + np.uint64(used)
            window <<= np.uint64(entry & _LENGTH)
        position += np.uint64(used)


@njit(cache=True, nogil=True)
def read_blocks(plain, ends, layout, tables, blocks):
    """Read every code of the scan; fill `blocks`. Returns a status. `plain` and `ends` come from `remove_stuffing`.

    The tables of all slots that the layout names must be defined.
    """
    per_mcu = layout.component.size
    interval = layout.restart_interval
    previous = np.zeros(3, np.int64)
    position = end = _u0
    block = 0
    for mcu in range(layout.mcus_per_row * layout.rows):
        if mcu % interval == 0:
            if position + _u7 < end:
                return LEFT_OVER
            number = mcu // interval
            position = np.uint64(8 * ends[number - 1]) if number else _u0
            end = np.uint64(8 * ends[number])
            previous[:] = 0
        for part in range(per_mcu):
            difference, bits = _read_dc(plain, position, layout.dc_slot[part], tables)
            ac = position + np.uint64(bits)
            status, behind = _skip_ac(plain, ac, layout.ac_slot[part], tables)
            if bits == 0:
                status = UNKNOWN_CODE
            if behind > end or (status == UNKNOWN_CODE and max(ac, behind) + np.uint64(_LONGEST) > end):
                return TRUNCATED
            if status != OK:
                return status
            component = layout.component[part]
            dc = previous[component] + difference
            if abs(dc) > _DC_LIMIT:
                return DC_RANGE
            previous[component] = dc
            blocks.positions[block, 0] = position
            blocks.positions[block, 1] = ac
            blocks.positions[block, 2] = behind
            blocks.dc[block] = dc
            block += 1
            position = behind
    return LEFT_OVER_AT_END if position + np.uint64(8 * MAX_LEFT_OVER + 7) < end else OK


@njit(cache=True, nogil=True)
def _size_of(difference):
    """The size category of a difference: the bits of its magnitude (T.81, table F.1)."""
    magnitude = abs(difference)
    size = 0
    while magnitude >> size:
        size += 1
    return size


@njit(cache=True, nogil=True)
def count_sizes(blocks, layout, interval):
    """How often each DC table codes each size if the DC prediction is reset every `interval` MCUs.

    int64 [4, 32]; differences of 16-bit coefficients can have up to 16 bits.
    """
    counts = np.zeros((4, 32), np.int64)
    previous = np.zeros(3, np.int64)
    block = 0
    for mcu in range(layout.mcus_per_row * layout.rows):
        if mcu % interval == 0:
            previous[:] = 0
        for part in range(layout.component.size):
            component = layout.component[part]
            counts[layout.dc_slot[part], _size_of(blocks.dc[block] - previous[component])] += 1
            previous[component] = blocks.dc[block]
            block += 1
    return counts


@njit(cache=True, nogil=True)
def _store(out, at, byte):
    """Store a byte, and a zero behind it where it is FF. Returns where the next one goes."""
    out[at] = byte
    if byte == 0xFF:
        at += 1
        out[at] = 0
    return at + 1


@njit(cache=True, nogil=True)
def _append(out, at, held, count, bits, number):
    """Append the lowest `number` (at most 32) of `bits`, all others being zero, to the output.

    The lowest `count` (below 32) bits of `held` are not stored yet. Returns the new at, held and count.
    """
    held = held << np.uint64(number) | bits
    count += number
    if count < 32:
        return at, held, count
    count -= 32
    word = (held >> np.uint64(count)) & np.uint64(0xFFFFFFFF)
    # A byte is FF if adding one to it carries out of its low seven bits and its high bit is set.
    if (((word & np.uint64(0x7F7F7F7F)) + np.uint64(0x01010101)) & word & np.uint64(0x80808080)) == _u0:
        out[at] = word >> np.uint64(24)
        out[at + 1] = word >> np.uint64(16)
        out[at + 2] = word >> np.uint64(8)
        out[at + 3] = word
        return at + 4, held, count
    for shift in (24, 16, 8, 0):
        at = _store(out, at, np.uint8(word >> np.uint64(shift)))
    return at, held, count


@njit(cache=True, nogil=True)
def _copy_bits(plain, start, end, out, at, held, count):
    """Append the bits from position `start` to `end` of the plain data."""
    position = np.uint64(start)
    while position + _u32 <= np.uint64(end):
        at, held, count = _append(out, at, held, count, _window(plain, position) >> _u32, 32)
        position += _u32
    rest = np.uint64(end) - position
    if rest:
        at, held, count = _append(out, at, held, count, _window(plain, position) >> (_u64 - rest), np.int64(rest))
    return at, held, count


@njit(cache=True, nogil=True)
def _pad(out, at, held, count):
    """Fill the last byte with ones and store what is held."""
    while count > 0:
        count -= 8
        byte = held >> np.uint64(count) if count >= 0 else held << np.uint64(-count) | np.uint64((1 << -count) - 1)
        at = _store(out, at, np.uint8(byte & np.uint64(0xFF)))
    return at


@njit(cache=True, nogil=True)
def write_tiles(plain, blocks, layout, interval, tables, recoded, out, sizes):
    """Write the scan with a restart interval of `interval` MCUs into `out`. Returns the number of bytes.

    `tables` has a DC code for every size that occurs; `recoded`, bool [4], marks the tables whose codes are not those
    that the blocks were read with. `sizes`, int64 [tiles], receives the bytes of each tile without the marker behind
    it: RST0 to RST7 in turn, and EOI behind the last. `out` has room for `bound_on_tiles` bytes.
    """
    per_mcu = layout.component.size
    source, target = np.zeros(3, np.int64), np.zeros(3, np.int64)  # previous DC coefficients
    at = block = tile = tile_start = 0
    held, count = _u0, 0
    run_start = run_end = 0  # bits that are copied as they are, not yet written
    mcus = layout.mcus_per_row * layout.rows
    for mcu in range(mcus):
        if mcu % layout.restart_interval == 0:
            source[:] = 0
        if mcu % interval == 0:
            target[:] = 0
        for part in range(per_mcu):
            component, slot = layout.component[part], layout.dc_slot[part]
            dc, start = blocks.dc[block], blocks.positions[block, 0]
            same = source[component] == target[component] and not recoded[slot]
            if not same or start != run_end:
                at, held, count = _copy_bits(plain, run_start, run_end, out, at, held, count)
                run_start = start
            if not same:
                difference = dc - target[component]
                size = _size_of(difference)
                bits = difference if difference >= 0 else difference + (1 << size) - 1
                code, length = np.uint64(tables.dc_codes[slot, size]), tables.dc_lengths[slot, size]
                at, held, count = _append(out, at, held, count, code, length)
                at, held, count = _append(out, at, held, count, np.uint64(bits), size)
                run_start = blocks.positions[block, 1]
            run_end = blocks.positions[block, 2]
            source[component] = target[component] = dc
            block += 1
        if (mcu + 1) % interval == 0 or mcu + 1 == mcus:
            at, held, count = _copy_bits(plain, run_start, run_end, out, at, held, count)
            at = _pad(out, at, held, count)
            held, count = _u0, 0
            run_start = run_end
            sizes[tile] = at - tile_start
            out[at] = 0xFF
            out[at + 1] = 0xD9 if mcu + 1 == mcus else 0xD0 + (tile & 7)
            at += 2
            tile_start = at
            tile += 1
    return at


def bound_on_tiles(plain_bytes: int, blocks: int, tiles: int) -> int:
    """Bytes that `write_tiles` needs at most: four for a DC code and a byte of padding for a tile, all stuffed."""
    return 2 * (plain_bytes + 4 * blocks + tiles) + 2 * tiles
