"""Entropy decoding of four tiles in one loop, so that one's wait for its table overlaps with the others' work.

Huffman time of a crop with 1, 2, 3, 4, 5, 6 tiles at once: 526, 228, 183, 171, 155, 179 us (C, originals of ImageNet);
numba has registers for four.

The bits that a stream has not used yet stand at the top of `held`, below them a one that tells how many of them there
are: shifting is all that a step does. `state` is the last move (huffman.py).
"""

import numpy as np

from ...compilation import inlined_part, part
from ..memory import borrowed, load_big, trailing_zeros
from .huffman import CODE_BITS, LONG, SLOW, STEPS

SENTINEL = 8
"""Bytes FF behind each tile, and before the first: they begin no code. Two would do."""

SLACK = 64
"""Bytes behind the last sentinel: STEPS codes of at most 31 bits are read beyond the last bit that counts, eight
bytes at a time, and 16 bytes are copied at a time."""

SPARE = STEPS
"""Blocks behind the last tile's: where a damaged tile has more blocks than it should, that many more are written
before it is noticed. One block behind each tile takes the zeros of a stream that stays."""

NOT_TO_ITS_END = -1

FIRST_BIT, END_BIT, FIRST_COEFFICIENT, END_COEFFICIENT, TILE_FIELDS = range(5)
"""Of each tile: its first bit in the plain data, the one behind its last; where its coefficients begin, and end."""

_u1, _u3, _u6, _u7, _u8, _u16, _u32, _u63 = (np.uint64(value) for value in (1, 3, 6, 7, 8, 16, 32, 63))
_top = np.uint64(64 - CODE_BITS)
_slow, _long = np.uint64(SLOW), np.uint64(LONG)
_low_byte, _low_half = np.uint64(0xFF), np.uint64(0xFFFF)
_never = np.uint64(1 << 62)
_sure, _mark = np.uint64(0xFFFFFFFFFFFFFF80), np.uint64(0x40)


@inlined_part
def _window(plain, bit):
    """64 bits from a bit on; the lowest seven may be missing (zero)."""
    return load_big(plain, bit >> _u3) << (bit & _u7)


@inlined_part
def _hold(plain, bit):
    """57 bits from a bit on, or a few more, and the one below them."""
    return (_window(plain, bit) & _sure) | _mark


@inlined_part
def _step(plain, codes, moves, coefficients, bit, held, state, at):
    """Decode one code and what stands behind it. `bit` is that of the last load."""
    code = np.uint64(codes[(state >> _u32) + (held >> _top)])
    if code & _slow:
        bit += trailing_zeros(held) - _u6
        window = _window(plain, bit)
        if code & _long:
            code = np.uint64(codes[(code >> _u16 << np.uint64(4)) + ((window >> np.uint64(48)) & np.uint64(15))])
        length, size = code & _u63, code >> _u16
        value = window << length >> _u1 >> (_u63 - size)
        value -= np.uint64(value < (_u1 << size) >> _u1) * ((_u1 << size) - _u1)  # T.81, F.12
        bit += length + size
        held = _hold(plain, bit)
        code = (code & np.uint64(0xFF00)) | value << _u16
    else:
        held <<= code & _u63
    state = moves[(state >> _u16 & _low_half) + (code >> _u8 & _low_byte)]
    coefficients[at + (state & _u63)] = np.int16(code >> _u16)
    return bit, held, state, at + (state >> _u8 & _low_byte)


@inlined_part
def _begin(tiles, tile, last, idle):
    """Bit, coefficient and end of the coefficients with which a stream begins a tile, or idles where there is none
    left: at the sentinel before the first tile, where it stays."""
    if tile < last:
        return (
            np.uint64(tiles[tile, FIRST_BIT]),
            np.uint64(tiles[tile, FIRST_COEFFICIENT]),
            np.uint64(tiles[tile, END_COEFFICIENT]),
        )
    return np.uint64(0), idle, _never


@inlined_part
def _is_end(plain, tile, bit, at, state):
    """Whether a stream stands at the exact end of a tile: all its blocks are there, none but them, and the bits left
    of the last byte are ones."""
    left = np.uint64(tile[END_BIT]) - bit
    if left > _u7:  # also where it is negative
        return False
    padding = _window(plain, bit) >> _u1 >> (_u63 - left)
    return at == np.uint64(tile[END_COEFFICIENT]) and (state >> _u16 & _low_half) == 0 and padding + _u1 == _u1 << left


@part
def read_tiles(plain, codes, moves, start, tiles, coefficients, idle, end):
    """Decode some tiles. Returns whether all of them are sound.

    `plain` is uint8, its bits up to `end` are followed by SLACK bytes. `tiles` is int64 [tiles, TILE_FIELDS]; those
    whose END_BIT is NOT_TO_ITS_END are not read so far. `coefficients` is int16, zeros; a stream that has nothing to
    do writes zeros at `idle`, behind which there is room for a block. `start` is what `define_moves` returns.

    All is written out four times: only so do the streams stay in registers.
    """
    plain, codes, moves, coefficients = borrowed(plain), borrowed(codes), borrowed(moves), borrowed(coefficients)
    first, last = 0, len(tiles)
    end, idle = np.uint64(end), np.uint64(idle)
    bit0, at0, end0 = _begin(tiles, first, last, idle)
    bit1, at1, end1 = _begin(tiles, first + 1, last, idle)
    bit2, at2, end2 = _begin(tiles, first + 2, last, idle)
    bit3, at3, end3 = _begin(tiles, first + 3, last, idle)
    held0, held1, held2, held3 = _hold(plain, bit0), _hold(plain, bit1), _hold(plain, bit2), _hold(plain, bit3)
    state0 = state1 = state2 = state3 = start
    tile0, tile1, tile2, tile3, following, left, sound = (
        first,
        first + 1,
        first + 2,
        first + 3,
        first + 4,
        last - first,
        True,
    )
    for _ in range(_most_rounds(tiles, first, last)):
        for _ in range(STEPS):
            bit0, held0, state0, at0 = _step(plain, codes, moves, coefficients, bit0, held0, state0, at0)
            bit1, held1, state1, at1 = _step(plain, codes, moves, coefficients, bit1, held1, state1, at1)
            bit2, held2, state2, at2 = _step(plain, codes, moves, coefficients, bit2, held2, state2, at2)
            bit3, held3, state3, at3 = _step(plain, codes, moves, coefficients, bit3, held3, state3, at3)
        bit0 = min(bit0 + trailing_zeros(held0) - _u6, end)
        if at0 >= end0:
            sound &= tiles[tile0, END_BIT] == NOT_TO_ITS_END or _is_end(plain, tiles[tile0], bit0, at0, state0)
            left -= 1
            if left == 0:
                return sound
            tile0 = following
            following += 1
            bit0, at0, end0 = _begin(tiles, tile0, last, idle)
            state0 = start
        held0 = _hold(plain, bit0)
        bit1 = min(bit1 + trailing_zeros(held1) - _u6, end)
        if at1 >= end1:
            sound &= tiles[tile1, END_BIT] == NOT_TO_ITS_END or _is_end(plain, tiles[tile1], bit1, at1, state1)
            left -= 1
            if left == 0:
                return sound
            tile1 = following
            following += 1
            bit1, at1, end1 = _begin(tiles, tile1, last, idle)
            state1 = start
        held1 = _hold(plain, bit1)
        bit2 = min(bit2 + trailing_zeros(held2) - _u6, end)
        if at2 >= end2:
            sound &= tiles[tile2, END_BIT] == NOT_TO_ITS_END or _is_end(plain, tiles[tile2], bit2, at2, state2)
            left -= 1
            if left == 0:
                return sound
            tile2 = following
            following += 1
            bit2, at2, end2 = _begin(tiles, tile2, last, idle)
            state2 = start
        held2 = _hold(plain, bit2)
        bit3 = min(bit3 + trailing_zeros(held3) - _u6, end)
        if at3 >= end3:
            sound &= tiles[tile3, END_BIT] == NOT_TO_ITS_END or _is_end(plain, tiles[tile3], bit3, at3, state3)
            left -= 1
            if left == 0:
                return sound
            tile3 = following
            following += 1
            bit3, at3, end3 = _begin(tiles, tile3, last, idle)
            state3 = start
        held3 = _hold(plain, bit3)
    return False


@part
def _most_rounds(tiles, first, last):
    """Rounds of the loop after which every sound tile has ended. A stream that is not at its end takes STEPS steps in
    each, and each step but the first of a block moves on by a coefficient at least."""
    rounds = np.int64(0)
    for tile in range(first, last):
        rounds += (tiles[tile, END_COEFFICIENT] - tiles[tile, FIRST_COEFFICIENT]) // STEPS + 1
    return rounds + 1
