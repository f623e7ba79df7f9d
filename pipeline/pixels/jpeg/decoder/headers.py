"""Reads the headers of a tiled JPEG: can this decoder decode it, and what does it need to know?

Everything else is refused here, before anything is decoded: TurboJPEG decodes it. Source: ITU-T T.81, annex B, and for
what the components mean libjpeg's rules (jdapimin.c, default_decompress_parms).
"""

import numpy as np

from ...compilation import part
from ..checksum import crc32c
from ..crop import NO_CHECKSUM, header_checksum, index_version, read_number
from ..headers import APP0, APP9, APP14, COM, DHT, DQT, DRI, SEQUENTIAL_HUFFMAN, SOS
from ..tiles import DECODING_SEGMENTS

HEIGHT, WIDTH = 0, 1  # pixels
COMPONENTS = 2  # 1 or 3
ACROSS, DOWN = 3, 4  # blocks of luma in an MCU
INTERVAL = 5  # MCUs of a tile
INDEX, VERSION, DATA = 6, 7, 8  # where in the file the index and the entropy-coded data begin
QUANTIZATION, DC, AC = 9, 12, 15  # the table of each component: for quantization 0 to 3, else 0 or 1
FIELDS = 18

HUFFMAN_SLOTS = 4  # DC tables 0 and 1, AC tables 0 and 1
QUANTIZATION_SLOTS = 4

_BASELINE, _EXTENDED = SEQUENTIAL_HUFFMAN
_LAST_APP = APP0 + 15

ZIGZAG = np.array(
    [0, 1, 8, 16, 9, 2, 3, 10, 17, 24, 32, 25, 18, 11, 4, 5, 12, 19, 26, 33, 40, 48, 41, 34, 27, 20, 13, 6, 7, 14, 21,
     28, 35, 42, 49, 56, 57, 50, 43, 36, 29, 22, 15, 23, 30, 37, 44, 51, 58, 59, 52, 45, 38, 31, 39, 46, 53, 60, 61,
     54, 47, 55, 62, 63],
    np.uint64,
)  # fmt: skip
"""By the place in a block's order of coding, that in its rows (T.81, figure A.6)."""


@part
def read_headers(jpeg, frame, huffman, quantization):
    """Fill `frame`, int64 [FIELDS]. Returns whether this decoder can decode the file, and whether its headers have the
    checksum that the index gives (always, where it gives none).

    `huffman`, int64 [4], receives where in the file each Huffman table begins, `quantization`, int64 [4, 2], the same
    of each quantization table and the bytes of its entries. Only the tables that the image uses are known to be there.
    """
    huffman[:], quantization[:], frame[:] = 0, 0, 0
    supported, frame_at, at, marker = True, 0, 2, 0
    crc, expected = np.int64(0), np.int64(NO_CHECKSUM)
    if jpeg.size < 4 or jpeg[0] != 0xFF or jpeg[1] != 0xD8:
        return False, True
    while marker != SOS:
        if at + 4 > jpeg.size or jpeg[at] != 0xFF:
            return False, expected == NO_CHECKSUM
        marker, start = np.int64(jpeg[at + 1]), at + 4
        end = at + 2 + read_number(jpeg, at + 2, 2)
        if end < start or end > jpeg.size:
            return False, expected == NO_CHECKSUM
        if marker == APP9 and frame[INDEX] == 0:
            frame[VERSION] = index_version(jpeg, at, end, 0)
            frame[INDEX] = at if frame[VERSION] else 0
            expected = header_checksum(jpeg, at, frame[VERSION])
        if marker in DECODING_SEGMENTS:
            crc = crc32c(crc, jpeg, at, end)
        supported &= _read_segment(jpeg, marker, start, end, frame_at, frame, huffman, quantization)
        frame_at = start if marker in (_BASELINE, _EXTENDED) else frame_at
        at = end
    frame[DATA] = at
    supported = supported and frame[INDEX] > 0 and frame[INTERVAL] > 0 and _has_tables(frame, huffman, quantization)
    return supported, expected in (crc, NO_CHECKSUM)


@part
def _read_segment(jpeg, marker, start, end, frame_at, frame, huffman, quantization):
    """Read a segment's payload, jpeg[start:end]; the frame header's begins at `frame_at`, 0 where there was none yet.
    Returns whether this decoder can decode what it says."""
    if marker == DQT:
        return _find_quantization_tables(jpeg, start, end, quantization)
    if marker == DHT:
        return _find_huffman_tables(jpeg, start, end, huffman)
    if marker == DRI:
        if end - start != 2:
            return False
        frame[INTERVAL] = read_number(jpeg, start, 2)
        return True
    if marker in (_BASELINE, _EXTENDED):
        return frame_at == 0 and _read_frame(jpeg, start, end, frame)
    if marker == SOS:
        return frame_at > 0 and _read_scan(jpeg, start, end, frame_at, frame)
    if marker == APP14:
        return not _is_other_colour(jpeg, start, end)
    return APP0 <= marker <= _LAST_APP or marker == COM


@part
def _find_quantization_tables(jpeg, at, end, quantization):
    """Note the tables of a DQT segment. Returns whether it is well formed."""
    while at < end:
        slot, wide = np.int64(jpeg[at]) & 15, np.int64(jpeg[at]) >> 4
        at += 1
        if slot >= QUANTIZATION_SLOTS or wide > 1 or at + 64 * (wide + 1) > end:
            return False
        quantization[slot, 0], quantization[slot, 1] = at, wide + 1
        at += 64 * (wide + 1)
    return True


@part
def _find_huffman_tables(jpeg, at, end, huffman):
    """Note the tables of a DHT segment. Returns whether it is well formed and has none beyond the slots."""
    while at < end:
        kind, number = np.int64(jpeg[at]) >> 4, np.int64(jpeg[at]) & 15
        at += 1
        if kind > 1 or number > 1 or at + 16 > end:
            return False
        huffman[2 * kind + number] = at
        symbols = np.int64(0)
        for length in range(16):
            symbols += jpeg[at + length]
        at += 16 + symbols
        if symbols > 256 or at > end:
            return False
    return True


@part
def _read_frame(jpeg, at, end, frame):
    """Read a frame header. Returns whether it is of a kind that this decoder knows."""
    if end - at < 6:
        return False
    frame[HEIGHT], frame[WIDTH] = read_number(jpeg, at + 1, 2), read_number(jpeg, at + 3, 2)
    count = np.int64(jpeg[at + 5])
    if jpeg[at] != 8 or frame[HEIGHT] == 0 or frame[WIDTH] == 0 or count not in (1, 3) or end - at != 6 + 3 * count:
        return False
    frame[COMPONENTS], frame[ACROSS], frame[DOWN] = count, 1, 1
    for component in range(count):
        table = np.int64(jpeg[at + 8 + 3 * component])
        if table >= QUANTIZATION_SLOTS:
            return False
        frame[QUANTIZATION + component] = table
    if count == 1:  # coded alone, so that its sampling factors change nothing
        return 1 <= jpeg[at + 7] >> 4 <= 4 and 1 <= jpeg[at + 7] & 15 <= 4
    factors = jpeg[at + 7]
    frame[ACROSS], frame[DOWN] = np.int64(factors) >> 4, np.int64(factors) & 15
    if factors not in (0x11, 0x21, 0x22) or jpeg[at + 10] != 0x11 or jpeg[at + 13] != 0x11:
        return False
    if jpeg[at + 6] == ord("R") and jpeg[at + 9] == ord("G") and jpeg[at + 12] == ord("B"):
        return False
    return frame[ACROSS] == 1 or frame[WIDTH] > 4  # libjpeg does not interpolate one or two columns


@part
def _read_scan(jpeg, at, end, frame_at, frame):
    """Read the scan header. Returns whether it is that of the frame's components and of a sequential scan."""
    count = frame[COMPONENTS]
    if end - at != 4 + 2 * count or jpeg[at] != count:
        return False
    for component in range(count):
        identifier = jpeg[at + 1 + 2 * component]
        if identifier != jpeg[frame_at + 6 + 3 * component]:
            return False
        for other in range(component):
            if identifier == jpeg[frame_at + 6 + 3 * other]:
                return False
        dc, ac = np.int64(jpeg[at + 2 + 2 * component]) >> 4, np.int64(jpeg[at + 2 + 2 * component]) & 15
        if dc > 1 or ac > 1:
            return False
        frame[DC + component], frame[AC + component] = dc, ac
    at += 1 + 2 * count
    return jpeg[at] == 0 and jpeg[at + 1] == 63 and jpeg[at + 2] == 0


@part
def _is_other_colour(jpeg, at, end):
    """Whether an APP14 segment is Adobe's and says that the components are not Y, Cb and Cr."""
    if end - at < 12:
        return False
    is_adobe = (
        jpeg[at] == ord("A")
        and jpeg[at + 1] == ord("d")
        and jpeg[at + 2] == ord("o")
        and jpeg[at + 3] == ord("b")
        and jpeg[at + 4] == ord("e")
    )
    return is_adobe and jpeg[at + 11] != 1


@part
def _has_tables(frame, huffman, quantization):
    """Whether all tables that the components name are defined."""
    for component in range(frame[COMPONENTS]):
        dc, ac = frame[DC + component], 2 + frame[AC + component]
        if huffman[dc] == 0 or huffman[ac] == 0 or quantization[frame[QUANTIZATION + component], 0] == 0:
            return False
    return True


@part
def read_quantization_table(jpeg, at, width, table):
    """Read a table of 64 entries of 1 or 2 bytes into `table`, int16 [64], in rows.

    Entries above 32767 wrap, as they do in libjpeg-turbo's SIMD, which multiplies 16 bits by 16 to 16.
    """
    for place in range(64):
        table[ZIGZAG[place]] = read_number(jpeg, at + width * place, width)
