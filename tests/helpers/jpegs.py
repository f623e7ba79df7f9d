"""JPEG files of any sampling, written block by block."""

from collections.abc import Iterator, Sequence
from functools import cache
from itertools import pairwise

import numpy as np

from pipeline.pixels.jpeg.checksum import checksum_of
from pipeline.pixels.jpeg.headers import segments
from tests.helpers.images import jpeg_bytes, photograph

Factors = tuple[tuple[int, int], ...]  # horizontal and vertical sampling of each component

SAMPLINGS: dict[str, Factors] = {
    "grey": ((1, 1),),
    "grey-2x2": ((2, 2),),  # a single component is coded by itself, so its sampling has no effect
    "444": ((1, 1),) * 3,
    "444-as-2x1": ((2, 1),) * 3,
    "422": ((2, 1), (1, 1), (1, 1)),
    "440": ((1, 2), (1, 1), (1, 1)),
    "420": ((2, 2), (1, 1), (1, 1)),
    "411": ((4, 1), (1, 1), (1, 1)),
    "410": ((4, 2), (1, 1), (1, 1)),
    "3x1": ((3, 1), (1, 1), (1, 1)),
    "chroma-larger": ((1, 1), (2, 2), (1, 1)),
    "mixed": ((2, 2), (2, 1), (1, 2)),
}


def segment(marker: int, payload: bytes) -> bytes:
    """A marker segment: marker, length, payload."""
    return bytes([0xFF, marker]) + (len(payload) + 2).to_bytes(2, "big") + payload


def mcu_size(factors: Factors) -> tuple[int, int]:
    """Width and height in pixels."""
    if len(factors) == 1:
        return 8, 8
    return 8 * max(horizontal for horizontal, _ in factors), 8 * max(vertical for _, vertical in factors)


def blocks_of_mcu(factors: Factors) -> list[int]:
    """The component of each block."""
    if len(factors) == 1:
        return [0]
    return [component for component, (x, y) in enumerate(factors) for _ in range(x * y)]


@cache
def standard_tables() -> tuple[bytes, dict[int, dict[int, str]]]:
    """The DHT segments of T.81, annex K, and the bits of each symbol by table class and number."""
    jpeg = jpeg_bytes(photograph(16, 16, seed=0))
    segments, codes = b"", {}
    at = 0
    while (at := jpeg.find(b"\xff\xc4", at)) >= 0:
        length = int.from_bytes(jpeg[at + 2 : at + 4], "big")
        segments += jpeg[at : at + 2 + length]
        codes[jpeg[at + 4]] = codes_of(jpeg[at + 5 : at + 2 + length])
        at += 2 + length
    return segments, codes


def codes_of(table: bytes) -> dict[int, str]:
    """The code of each symbol of a table in the form of a DHT segment: 16 counts, then the symbols."""
    codes, code, number = {}, 0, 16
    for length in range(1, 17):
        for _ in range(table[length - 1]):
            codes[table[number]] = f"{code:0{length}b}"
            code += 1
            number += 1
        code <<= 1
    return codes


def magnitude_bits(value: int) -> str:
    """The bits after a code, as many as its size category (T.81, F.1.2.1)."""
    size = abs(value).bit_length()
    return f"{value if value > 0 else value + (1 << size) - 1:0{size}b}" if size else ""


def block_bits(coefficients: Sequence[int], difference: int, dc: dict[int, str], ac: dict[int, str]) -> str:
    """The bits of a block of 64 coefficients in zigzag order; `difference` is coded for the first."""
    bits = dc[abs(difference).bit_length()] + magnitude_bits(difference)
    places = [0, *(place for place in range(1, 64) if coefficients[place])]
    for before, place in pairwise(places):
        run, value = place - before - 1, coefficients[place]
        bits += ac[0xF0] * (run // 16) + ac[run % 16 << 4 | abs(value).bit_length()] + magnitude_bits(value)
    return bits if places[-1] == 63 else bits + ac[0]


def packed(bits: str) -> bytes:
    """Bits as entropy-coded data: padded with ones, a zero stuffed after each FF."""
    bits += "1" * (-len(bits) % 8)
    return int("1" + bits, 2).to_bytes(len(bits) // 8 + 1, "big")[1:].replace(b"\xff", b"\xff\0")


def random_block(rng: np.random.Generator) -> list[int]:
    """A DC coefficient, and a few others, mostly low frequencies."""
    block = [0] * 64
    block[0] = int(rng.integers(-60, 61))
    for _ in range(rng.integers(0, 5)):
        block[min(63, 1 + int(rng.exponential(6)))] = int(rng.integers(-30, 31))
    if rng.random() < 0.05:
        block[63] = int(rng.integers(1, 4))
    return block


def restart_intervals(factors: Factors, blocks: Sequence[Sequence[int]], restart_interval: int) -> Iterator[bytes]:
    """The entropy-coded data of each restart interval; 0 stands for a single interval."""
    _, codes = standard_tables()
    components = blocks_of_mcu(factors)
    per_interval = restart_interval * len(components) or len(blocks)
    for start in range(0, len(blocks), per_interval):
        previous = [0] * len(factors)
        bits = ""
        for number, block in enumerate(blocks[start : start + per_interval]):
            component = components[number % len(components)]
            table = int(component > 0)
            bits += block_bits(block, block[0] - previous[component], codes[table], codes[0x10 | table])
            previous[component] = block[0]
        yield packed(bits)


def headers(height: int, width: int, factors: Factors, restart_interval: int = 0) -> bytes:
    """All headers: flat quantization by 8, standard Huffman tables, the first of each kind for luma."""
    frame = bytes([8, *height.to_bytes(2, "big"), *width.to_bytes(2, "big"), len(factors)])
    frame += b"".join(bytes([number + 1, x << 4 | y, 0]) for number, (x, y) in enumerate(factors))
    scan = bytes([len(factors), *(byte for n in range(len(factors)) for byte in (n + 1, 0x11 if n else 0)), 0, 63, 0])
    interval = segment(0xDD, restart_interval.to_bytes(2, "big")) if restart_interval else b""
    tables = segment(0xDB, bytes([0]) + bytes([8] * 64)) + standard_tables()[0]
    return b"\xff\xd8" + tables + segment(0xC0, frame) + interval + segment(0xDA, scan)


def drawn_jpeg(height: int, width: int, factors: Factors, seed: int, restart_interval: int = 0) -> bytes:
    """A JPEG of random coefficients; few pixels are clipped to black or white, where differences would hide."""
    rng = np.random.default_rng(seed)
    mcu_width, mcu_height = mcu_size(factors)
    mcus = -(-width // mcu_width) * -(-height // mcu_height)
    blocks = [random_block(rng) for _ in range(mcus * len(blocks_of_mcu(factors)))]
    data = b""
    for number, interval in enumerate(restart_intervals(factors, blocks, restart_interval)):
        data += (bytes([0xFF, 0xD0 + (number - 1) % 8]) if number else b"") + interval
    return headers(height, width, factors, restart_interval) + data + b"\xff\xd9"


def index_entries(jpeg: bytes) -> list[tuple[int, int]]:
    """The bytes and the checksum of each tile, read as the description of version 2 of the index says."""
    entries: list[tuple[int, int]] = []
    for marker, start, end in segments(jpeg):
        if marker != 0xE9 or jpeg[start : start + 7] != b"SLUICE\0":
            continue
        assert jpeg[start + 7] == 2
        assert int.from_bytes(jpeg[start + 8 : start + 12], "big") == len(entries)
        at = start + 16
        while at < end:
            number = jpeg[at] & 127
            while jpeg[at] >= 128:
                at += 1
                number = number << 7 | jpeg[at] & 127
            entries.append((number, int.from_bytes(jpeg[at + 1 : at + 5], "big")))
            at += 5
    return entries


def seven_bits_a_byte(number: int) -> bytes:
    groups = [number & 127]
    while number := number >> 7:
        groups.insert(0, number & 127 | 128)
    return bytes(groups)


def with_index_version_1(jpeg: bytes) -> bytes:
    """A tiled JPEG with an index as it was before there were checksums, of at most 10,000 tiles."""
    sizes = b"".join(seven_bits_a_byte(size) for size, _ in index_entries(jpeg))
    index = segment(0xE9, b"SLUICE\0\1\0\0\0\0" + sizes)
    parts = list(segments(jpeg))
    kept = [jpeg[start - 4 : end] for _, start, end in parts if jpeg[start : start + 7] != b"SLUICE\0"]
    return b"\xff\xd8" + b"".join([*kept[:-1], index, kept[-1]]) + jpeg[parts[-1][2] :]


DECODING_MARKERS = {0xE0, 0xEE, 0xDB, 0xC4, 0xDD, 0xC0, 0xC1, 0xDA}


def tiled_by_hand(headers: bytes, intervals: Sequence[bytes]) -> bytes:
    """A tiled JPEG with a sound index from its headers, scan header included, and the data of each tile."""
    parts = list(segments(headers))
    needed = b"".join(headers[start - 4 : end] for marker, start, end in parts if marker in DECODING_MARKERS)
    entries = b"".join(
        seven_bits_a_byte(len(interval)) + checksum_of(interval).to_bytes(4, "big") for interval in intervals
    )
    index = segment(0xE9, b"SLUICE\0\2\0\0\0\0" + checksum_of(needed).to_bytes(4, "big") + entries)
    scan = parts[-1][1] - 4
    data = b"".join(interval + bytes([0xFF, 0xD0 + number % 8]) for number, interval in enumerate(intervals))
    return headers[:scan] + index + headers[scan:] + data[:-2] + b"\xff\xd9"
