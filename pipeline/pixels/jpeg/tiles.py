"""Tiled JPEG: the same image as before, in tiles that can be cut out without decoding.

`tile` rewrites a baseline JPEG losslessly: every coefficient stays, only the restart interval becomes k MCUs, where k
divides the MCUs of a row. So each restart interval is a tile, one MCU high and k MCUs wide, that can be decoded
without the others. `pipeline/pixels/jpeg/crop.py` copies the tiles under a crop into a small JPEG. A tiled file is an
ordinary JPEG: any decoder reads it and gives the pixels of the original.

The index
---------
The bytes of each tile stand in APP9 segments directly before the scan header (SOS), as many as it takes, in order.
The payload of each:

    offset  bytes  field
    0       7      identifier: "SLUICE" and a zero byte
    7       1      version: 2
    8       4      number of the first tile described here, big-endian; 0 in the first segment
    12      4      CRC-32C of the headers, big-endian, the same in each segment
    16      ...    of each tile, row by row from the top left: its bytes, a variable-length number; their CRC-32C, 4
                   bytes, big-endian

A length is that of the tile's entropy-coded data as stored, stuffed zeros included and the marker behind it (RST0 to
RST7 in turn, EOI behind the last) excluded. It is written in groups of seven bits, the highest first, one group a
byte; the high bit of a byte is set where another follows. At most five bytes; no tile's entry crosses segments. k is
the restart interval (DRI); the tiles of a row and the rows follow from k and the frame header. The headers are all
segments that decoding needs, markers and all, one behind the other: APP0, APP14, DQT, DHT, DRI, frame and scan header.
CRC-32C: `pipeline/pixels/jpeg/checksum.py`. Version 1, which is read but not written, has no CRCs.

What is changed
---------------
DRI and an index of ours are replaced; all other segments are kept as they are, in their order. Bytes behind the image
are dropped, as are fill bytes before markers. Where the DC table lacks a code for a difference that arises where a tile
starts, a complete table, optimal for the image, is defined in a DHT segment behind the others.

What is refused
---------------
Everything that could make decoders disagree on the pixels: codes that a table does not have or that mean nothing, more
than 64 coefficients in a block, DC coefficients beyond 16 bits, missing data, whole bytes left over before a restart
marker, restart markers out of turn, FF FF 00, missing tables (libjpeg-turbo then uses those of the standard). libjpeg
warns of some of it and decodes the rest in its own way.
Accepted are: a missing end marker where all data is there, fill bytes before markers, any padding bits, and up to
MAX_LEFT_OVER bytes behind the last MCU, which libjpeg drops (with a warning, from one byte on) and so does `tile`.
"""

import heapq
from dataclasses import dataclass

import numpy as np
from numba import njit

from .checksum import checksum_of, tile_checksums
from .entropy import (
    DC_RANGE,
    OK,
    SLACK,
    STATUS,
    TRUNCATED,
    Blocks,
    Layout,
    Tables,
    bound_on_tiles,
    count_sizes,
    define_tables,
    empty_tables,
    read_blocks,
    remove_stuffing,
    write_tiles,
)
from .headers import (
    APP0,
    APP9,
    APP14,
    COM,
    DHT,
    DQT,
    DRI,
    EOI,
    SEQUENTIAL_HUFFMAN,
    SOI,
    SOS,
    START_OF_FRAME,
    JpegError,
    JpegHeader,
    read_header,
    segments,
)

INDEX_IDENTIFIER = b"SLUICE\0"
INDEX_VERSIONS = 1, 2
"""Without checksums and with them. Those make a file of ImageNet 1.2 % larger, and reading a crop no slower: checking
takes 8 us, but a tile that is known to be sound is decoded only as far as the crop needs it."""
CHECKSUM_BYTES = 4
MAX_NUMBER = 5  # bytes of one length
DECODING_SEGMENTS = (APP0, APP14, DQT, DHT, DRI, SOS, *SEQUENTIAL_HUFFMAN)
"""Markers of what a decoder needs to know."""

MAX_SEGMENT = 65533  # bytes of payload
BLOCK_SIDE = 8

MIN_TILE_BYTES = 200
"""On 400 photographs of ImageNet (63 MCUs in a row where the width is 500) and the crops of RandomResizedCrop, which
keep 42 % of the area: 150 bytes make files 2.2 % larger and have 54 % of the area decoded, 200 bytes 1.7 % and 55 %,
300 bytes 1.2 % and 58 %, tiles as wide as the image 0.4 % and 69 %. Decoding the crops with libjpeg-turbo takes 0.57,
0.57, 0.62 and 0.79 of decoding the whole originals. (Tables optimal for the image do not make files smaller: where a
file's DC table has all codes that are needed, it is kept.)"""

_KEPT_MARKERS = frozenset([*range(APP0, APP0 + 16), COM, DQT, DHT, DRI, SOS, *START_OF_FRAME])


class NotTileable(JpegError):
    """A JPEG that cannot be tiled: it has to be decoded and encoded again as baseline."""


@dataclass(frozen=True, kw_only=True)
class _Scan:
    """A baseline JPEG, read to its end."""

    layout: Layout
    tables: Tables
    plain: np.ndarray  # uint8: the entropy-coded data without stuffing
    plain_size: int  # bytes of `plain` that are data
    blocks: Blocks


def check_entropy(jpeg: bytes) -> None:
    """Read a baseline JPEG to its end. Raises JpegError if anything is wrong, NotTileable for other kinds."""
    _read(jpeg)


def tile(jpeg: bytes, width: int | None = None) -> bytes:
    """The same image in tiles of `width` MCUs, which divides those of a row; by default that of `tile_width`.

    Raises JpegError if anything is wrong with the file, NotTileable for other kinds.
    """
    scan = _read(jpeg)
    layout = scan.layout
    interval = width or tile_width(layout.mcus_per_row, layout.mcus_per_row * layout.rows, scan.plain_size)
    assert layout.mcus_per_row % interval == 0, f"{layout.mcus_per_row} MCUs in a row, {interval} in a tile"
    replaced = _complete_dc_tables(scan, interval)
    recoded = np.zeros(4, np.bool_)
    recoded[list(replaced)] = True
    sizes = np.empty(layout.mcus_per_row * layout.rows // interval, np.int64)
    data = np.empty(bound_on_tiles(scan.plain_size, len(scan.blocks.dc), len(sizes)), np.uint8)
    size = write_tiles(scan.plain, scan.blocks, layout, interval, scan.tables, recoded, data, sizes)
    return _headers(jpeg, replaced, interval, sizes, data) + data[:size].tobytes()


def _headers(jpeg: bytes, dc_tables: dict[int, bytes], interval: int, sizes: np.ndarray, data: np.ndarray) -> bytes:
    """The headers of the tiled file, scan header included, from those of the original and the tiles' data."""
    parts = [bytes([0xFF, SOI])]
    for marker, start, end in segments(jpeg):
        if marker == SOS:
            parts += [_segment(DHT, table) for table in dc_tables.values()]
            parts.append(_segment(DRI, interval.to_bytes(2, "big")))
            scan_header = jpeg[start - 4 : end]
        elif marker != DRI and not (marker == APP9 and jpeg.startswith(INDEX_IDENTIFIER, start)):
            parts.append(jpeg[start - 4 : end])
    needed = b"".join(part for part in [*parts, scan_header] if part[1] in DECODING_SEGMENTS)
    return b"".join([*parts, index_segments(sizes, tile_checksums(data, sizes), checksum_of(needed)), scan_header])


def tile_width(mcus_per_row: int, mcus: int, data_bytes: int) -> int:
    """MCUs in a tile: the smallest divisor of a row's MCUs that makes tiles of MIN_TILE_BYTES or more on average.

    The whole row if there is no such divisor, as in most rows of a prime number of MCUs.
    """
    for width in range(1, mcus_per_row):
        if mcus_per_row % width == 0 and data_bytes * width >= MIN_TILE_BYTES * mcus:
            return width
    return mcus_per_row


def index_segments(sizes: np.ndarray, checksums: np.ndarray, header_checksum: int) -> bytes:
    """The index segments, markers and all, for tiles of these many bytes and CRCs, int64 [tiles] each."""
    before = INDEX_IDENTIFIER + bytes([INDEX_VERSIONS[-1]])
    tiles_in_segment = (MAX_SEGMENT - len(before) - 4 - CHECKSUM_BYTES) // (MAX_NUMBER + CHECKSUM_BYTES)
    parts = []
    for first in range(0, len(sizes), tiles_in_segment):
        part = slice(first, first + tiles_in_segment)
        entries = np.empty(len(sizes[part]) * (MAX_NUMBER + CHECKSUM_BYTES), np.uint8)
        used = _write_entries(sizes[part], checksums[part], entries)
        numbers = first.to_bytes(4, "big") + header_checksum.to_bytes(CHECKSUM_BYTES, "big")
        parts.append(_segment(APP9, before + numbers + entries[:used].tobytes()))
    return b"".join(parts)


@njit(cache=True, nogil=True)
def _write_entries(sizes, checksums, out):
    """Write sizes below 2**35, seven bits a byte, and the checksum behind each into `out`, uint8. Returns the bytes
    used."""
    at = 0
    for number, checksum in zip(sizes, checksums):  # noqa: B905 (numba knows no `strict`)
        groups = 1
        while number >> 7 * groups:
            groups += 1
        for group in range(groups - 1, -1, -1):
            out[at] = (number >> 7 * group) & 127 | (128 if group else 0)
            at += 1
        for place in range(CHECKSUM_BYTES - 1, -1, -1):
            out[at] = checksum >> 8 * place & 255
            at += 1
    return at


def _segment(marker: int, payload: bytes) -> bytes:
    return bytes([0xFF, marker]) + (len(payload) + 2).to_bytes(2, "big") + payload


def _read(jpeg: bytes) -> _Scan:
    """Check headers and data completely. Raises JpegError."""
    header = read_header(jpeg)
    _refuse_other_kinds(header)
    parts = list(segments(jpeg))
    tables, quantization_tables = _tables(jpeg, parts)
    _, scan_header, scan_start = parts[-1]
    layout = _layout(header, jpeg[scan_header:scan_start])
    if not tables.defined[[*layout.dc_slot, *layout.ac_slot]].all():
        raise JpegError("a Huffman table is missing")
    if not quantization_tables >= {component.quantization_table for component in header.components}:
        raise JpegError("a quantization table is missing")
    return _read_scan(jpeg, scan_start, layout, tables)


def _refuse_other_kinds(header: JpegHeader) -> None:
    if header.frame_marker not in SEQUENTIAL_HUFFMAN:
        raise NotTileable("not baseline")
    if header.precision != 8:
        raise NotTileable(f"{header.precision} bits a sample")
    if len(header.components) not in (1, 3):
        raise NotTileable(f"{len(header.components)} colour components")


def _tables(jpeg: bytes, parts: list[tuple[int, int, int]]) -> tuple[Tables, set[int]]:
    """The Huffman tables, and the numbers of the quantization tables. Checks the form of all segments."""
    tables, quantization_tables = empty_tables(), set[int]()
    for marker, start, end in parts:
        if marker not in _KEPT_MARKERS:
            raise JpegError(f"marker {marker:02X} in the headers")
        if marker == DHT:
            status = define_tables(np.frombuffer(jpeg, np.uint8, end - start, start), tables)
            if status != OK:
                raise JpegError(STATUS[status])
        elif marker == DQT:
            quantization_tables |= _quantization_tables(jpeg[start:end])
        elif (marker == DRI and end - start != 2) or (
            marker in START_OF_FRAME and end - start != 6 + 3 * jpeg[start + 5]
        ):
            raise JpegError(f"a segment {marker:02X} of {end - start} bytes")
    return tables, quantization_tables


def _quantization_tables(payload: bytes) -> set[int]:
    """The numbers of the tables that a DQT segment defines."""
    numbers = set()
    at = 0
    while at < len(payload):
        is_16_bit, number = payload[at] >> 4, payload[at] & 15
        if is_16_bit > 1 or number > 3:
            raise JpegError("an invalid quantization table")
        numbers.add(number)
        at += 129 if is_16_bit else 65
    if at != len(payload):
        raise JpegError("an invalid quantization table")
    return numbers


def _layout(header: JpegHeader, scan_header: bytes) -> Layout:
    """The order of blocks that frame and scan header describe (T.81, A.2). Raises JpegError."""
    components = header.components
    count = scan_header[0] if scan_header else 0
    if not 1 <= count <= 4 or len(scan_header) != 4 + 2 * count or scan_header[1 + 2 * count :] != bytes([0, 63, 0]):
        raise JpegError("an invalid scan header")
    if count < len(components):
        raise NotTileable("several scans")
    identifiers = [component.identifier for component in components]
    if list(scan_header[1 : 1 + 2 * count : 2]) != identifiers or len(set(identifiers)) != count:
        raise JpegError("a scan of other components than the frame's")
    factors = [(component.horizontal_sampling, component.vertical_sampling) for component in components]
    if not all(1 <= horizontal <= 4 and 1 <= vertical <= 4 for horizontal, vertical in factors):
        raise JpegError("an invalid sampling factor")
    blocks = [1] if count == 1 else [horizontal * vertical for horizontal, vertical in factors]
    if sum(blocks) > 10:
        raise JpegError("more than 10 blocks in an MCU")
    slots = np.frombuffer(scan_header[2 : 2 + 2 * count : 2], np.uint8).astype(np.int64)
    if (slots & 15).max() > 3 or (slots >> 4).max() > 3:
        raise JpegError("an invalid scan header")
    width, height = mcu_size(header)
    mcus_per_row, rows = -(-header.width // width), -(-header.height // height)
    component = np.repeat(np.arange(count), blocks)
    return Layout(
        component=component,
        dc_slot=slots[component] >> 4,
        ac_slot=(slots[component] & 15) + 4,
        mcus_per_row=mcus_per_row,
        rows=rows,
        restart_interval=header.restart_interval or mcus_per_row * rows,
    )


def mcu_size(header: JpegHeader) -> tuple[int, int]:
    """Width and height of an MCU in pixels. A scan of one component is not interleaved: its MCU is one block."""
    if len(header.components) == 1:
        return BLOCK_SIDE, BLOCK_SIDE
    return (
        BLOCK_SIDE * max(component.horizontal_sampling for component in header.components),
        BLOCK_SIDE * max(component.vertical_sampling for component in header.components),
    )


def _read_scan(jpeg: bytes, scan_start: int, layout: Layout, tables: Tables) -> _Scan:
    """Check and read the entropy-coded data. Raises JpegError."""
    mcus = layout.mcus_per_row * layout.rows
    count = mcus * len(layout.component)
    if count > 4 * (len(jpeg) - scan_start):  # a block has two bits at least
        raise JpegError(STATUS[TRUNCATED])
    plain = np.empty(len(jpeg) - scan_start + SLACK, np.uint8)
    ends = np.empty(-(-mcus // layout.restart_interval), np.int64)
    status, marker_at = remove_stuffing(np.frombuffer(jpeg, np.uint8), scan_start, plain, ends)
    blocks = Blocks(positions=np.empty((count, 3), np.int64), dc=np.empty(count, np.int64))
    if status == OK:
        status = read_blocks(plain, ends, layout, tables, blocks)
    if status != OK:
        raise JpegError(STATUS[status])
    marker = jpeg[marker_at] if marker_at < len(jpeg) else EOI
    if marker == SOS:
        raise NotTileable("several scans")
    if marker != EOI:
        raise JpegError(f"marker {marker:02X} where the image should end")
    return _Scan(layout=layout, tables=tables, plain=plain, plain_size=int(ends[-1]), blocks=blocks)


def _complete_dc_tables(scan: _Scan, interval: int) -> dict[int, bytes]:
    """Replace the DC tables that lack a code for tiles of `interval` MCUs: new tables by slot, as DHT defines them."""
    counts = count_sizes(scan.blocks, scan.layout, interval)
    if counts[:, 16:].any():
        raise JpegError(STATUS[DC_RANGE])
    lacking = (counts[:, :16] > 0) & (scan.tables.dc_lengths == 0)
    replaced: dict[int, bytes] = {}
    for slot in np.flatnonzero(lacking.any(axis=1)).tolist():
        replaced[slot] = bytes([slot]) + optimal_table(counts[slot, :16].tolist())
        define_tables(np.frombuffer(replaced[slot], np.uint8), scan.tables)
    return replaced


def optimal_table(counts: list[int]) -> bytes:
    """The Huffman table for symbols of these counts, as a DHT segment has it: 16 counts by length, the symbols.

    At most 16 symbols. T.81, K.2: one more symbol, the rarest, takes the code of ones only.
    """
    heap = [(0, -1, [-1])] + [(count, symbol, [symbol]) for symbol, count in enumerate(counts) if count]
    heapq.heapify(heap)
    lengths: dict[int, int] = dict.fromkeys([symbol for _, symbol, _ in heap], 0)
    while len(heap) > 1:
        rare, _, symbols = heapq.heappop(heap)
        common, order, others = heapq.heappop(heap)
        for symbol in symbols + others:
            lengths[symbol] += 1
        heapq.heappush(heap, (rare + common, order, symbols + others))
    del lengths[-1]
    of_length = [sorted(symbol for symbol in lengths if lengths[symbol] == length) for length in range(1, 17)]
    return bytes(map(len, of_length)) + b"".join(map(bytes, of_length))
