"""The tables that make one step of entropy decoding: from the next bits to a coefficient and its place.

A step looks the next CODE_BITS bits up in the table of *codes*, and what that gives, in the table of *moves*. Neither
the kind of symbol (DC, AC, run of zeros, end of block) nor the place in the MCU is asked for with a jump.

A code, uint32:

    bits   field
    0-5    bits that the code takes, those of the value behind it included
    6      SLOW: the value is not here; bits 0-5 are those of the code alone, bits 16-31 those of the value
    7      LONG: the code is longer than CODE_BITS; bits 16-31 are the number of a table of 16 codes by the next 4 bits
    8-15   what to add to the position in the table of moves: zeros before the coefficient, or STAY, or END
    16-31  the coefficient or the difference, signed

A move, uint64:

    bits   field
    0-5    place in the block's rows where the coefficient goes
    8-15   coefficients to go on by: 64 at the end of a block, else 0
    16-31  position from which the next code moves on
    32-63  where in the table of codes the next one is looked up

Bits that are no code do not move: the stream stays where it is, and so does whoever reads on behind the end of a tile,
where there are only ones, which begin no code. That is how the exact end of a tile is known although steps are taken
several at a time. A run that leads out of the block moves to a place from which nothing leads back.

Source: T.81, annexes C (codes), F.1.2 and F.2.2 (sequential coding).
"""

import numpy as np

from ...compilation import part
from .headers import AC, ACROSS, COMPONENTS, DC, DOWN, HUFFMAN_SLOTS, ZIGZAG

CODE_BITS = 12
"""Entropy decoding of a crop takes 238, 194, 185, 155 us with 9, 10, 11, 12 bits (C, originals of ImageNet)."""

STEPS = 4  # that are taken before more bits are loaded: 48 of the 57 that are there for certain
SLOW, LONG = 1 << 6, 1 << 7

_LONGEST = 16  # bits of a code
_REST = _LONGEST - CODE_BITS
_FIRST_LONG = HUFFMAN_SLOTS << CODE_BITS
CODES = _FIRST_LONG + (HUFFMAN_SLOTS * 256 << _REST)
"""Entries of the table of codes: a slot has at most 256 long codes, each in a table of its own at worst."""

_STAY, _END = 80, 144
_ROW = _END + 64
MOST_BLOCKS = 6  # in an MCU
_DEAD = MOST_BLOCKS * _ROW
MOVES = _DEAD + _ROW

_NO_CODE = _STAY << 8


@part
def _fill(codes, start, end, entry):
    for place in range(np.uint64(start), np.uint64(end)):
        codes[place] = entry


@part
def _fill_values(codes, start, bits, size, entry):
    """The 2**bits entries of a code whose value of `size` bits stands in the next of them."""
    below, full, half = bits - size, (1 << size) - 1, 1 << (size - 1)
    start = np.uint64(start)
    for place in range(np.uint64(1 << bits)):
        value = np.int64(place) >> below
        value = value - full if value < half else value
        codes[start + place] = np.uint32(entry | (value & 0xFFFF) << 16)


@part
def _symbol_move(symbol, is_ac):
    """What a symbol adds to the position, and the bits of its value. STAY is for those that mean nothing."""
    if not is_ac:
        return (0, symbol) if symbol < 16 else (_STAY, 0)
    run, size = symbol >> 4, symbol & 15
    if size == 0 and run < 15:
        return (_END if run == 0 else _STAY), 0
    return run, size


@part
def define_codes(jpeg, at, slot, codes, tables):
    """Fill one slot of `codes`, uint32 [CODES], from 16 counts and symbols at jpeg[at:]. Returns the tables of long
    codes in use, of which there are `tables` before; -1 if the counts are no code or it has one of ones only.
    """
    is_ac = slot >= 2
    base, filled, code, symbols = slot << CODE_BITS, 0, 0, at + 16
    for length in range(1, _LONGEST + 1):
        for _ in range(np.int64(jpeg[at + length - 1])):
            if code >= (1 << length) - 1:
                return -1
            move, size = _symbol_move(np.int64(jpeg[symbols]), is_ac)
            entry = move << 8 | (0 if move == _STAY else length)
            symbols += 1
            spare = CODE_BITS - length
            if spare >= size:
                start = base + (code << spare)
                if size:
                    _fill_values(codes, start, spare, size, entry + size)
                else:
                    _fill(codes, start, start + (1 << spare), np.uint32(entry))
            elif spare >= 0:
                start = base + (code << spare)
                _fill(codes, start, start + (1 << spare), np.uint32(entry | SLOW | size << 16))
            else:
                prefix, rest = code >> -spare, _REST + spare
                if prefix >= filled:  # the first with this prefix
                    _fill(codes, _FIRST_LONG + (tables << _REST), _FIRST_LONG + (tables + 1 << _REST), _NO_CODE)
                    codes[base + prefix] = np.uint32(SLOW | LONG | (_FIRST_LONG >> _REST) + tables << 16)
                    tables += 1
                start = _FIRST_LONG + (tables - 1 << _REST) + ((code << rest) & 15)
                _fill(codes, start, start + (1 << rest), np.uint32(entry | size << 16))
            code += 1
            filled = (code << spare) if spare >= 0 else (code - 1 >> -spare) + 1
        code <<= 1
    _fill(codes, base + filled, base + (1 << CODE_BITS), np.uint32(_NO_CODE))
    return tables


@part
def _codes_at(component, frame, is_dc):
    """Where the codes of a component begin, as a move has it."""
    slot = frame[DC + component] if is_dc else 2 + frame[AC + component]
    return np.uint64(slot << CODE_BITS) << np.uint64(32)


@part
def define_moves(frame, moves):
    """Fill `moves`, uint64 [MOVES], for the MCUs of a frame. Returns the state at the start of an MCU."""
    luma = frame[ACROSS] * frame[DOWN]
    blocks = luma + frame[COMPONENTS] - 1
    start = _codes_at(0, frame, True)
    dead = np.uint64(_DEAD << 16) | start
    for block in range(blocks):
        row, next_block = block * _ROW, (block + 1) % blocks
        dc = _codes_at(max(block - luma + 1, 0), frame, True)
        ac = _codes_at(max(block - luma + 1, 0), frame, False)
        end = np.uint64(64 << 8 | next_block * _ROW << 16) | _codes_at(max(next_block - luma + 1, 0), frame, True)
        for place in range(63):
            moves[row + place] = ZIGZAG[place] | np.uint64((row + place + 1) << 16) | ac
        moves[row + 63] = ZIGZAG[63] | end
        for place in range(64, _STAY):
            moves[row + place] = dead
        for place in range(64):
            codes = ac if place else dc
            moves[row + _STAY + place] = ZIGZAG[place] | np.uint64((row + place) << 16) | codes
            moves[row + _END + place] = ZIGZAG[place] | end
    for place in range(_ROW):
        moves[_DEAD + place] = dead
    return start
