"""Tiling: the pixels stay, the tiles are what the index says, and what is damaged is refused with its reason."""

import contextlib
import io
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageCms

from pipeline.pixels.jpeg.checksum import checksum_of
from pipeline.pixels.jpeg.headers import JpegError, read_header, segments
from pipeline.pixels.jpeg.tiles import (
    INDEX_IDENTIFIER,
    NotTileable,
    check_entropy,
    index_segments,
    optimal_table,
    tile,
    tile_width,
)
from tests.helpers.images import decoded, jpeg_bytes, photograph, three_to_one_jpeg, turned
from tests.helpers.jpegs import (
    DECODING_MARKERS,
    SAMPLINGS,
    block_bits,
    codes_of,
    drawn_jpeg,
    headers,
    index_entries,
    magnitude_bits,
    mcu_size,
    packed,
    segment,
    standard_tables,
)

EOI = b"\xff\xd9"
PHOTOGRAPH = photograph(150, 250, seed=3)
SMALL = drawn_jpeg(20, 30, SAMPLINGS["420"], seed=0)
GREY_SCAN = segment(0xDA, b"\1\1\0\0\x3f\0")
RESTARTED = drawn_jpeg(20, 30, SAMPLINGS["444"], seed=0, restart_interval=3)


def with_tables(headers: bytes, tables: bytes) -> bytes:
    """Headers with more Huffman tables behind the standard ones."""
    return headers.replace(standard_tables()[0], standard_tables()[0] + tables)


def scan_data(jpeg: bytes) -> bytes:
    *_, (_, _, end) = segments(jpeg)
    return jpeg[end:]


def assert_tiled(original: bytes, tiled: bytes) -> None:
    """The same pixels, and one restart interval for each number in the index, dividing a row."""
    assert np.array_equal(decoded(tiled), decoded(original))
    check_entropy(tiled)
    header = read_header(tiled)
    width, height = mcu_size(tuple((c.horizontal_sampling, c.vertical_sampling) for c in header.components))
    mcus_per_row, rows = -(-header.width // width), -(-header.height // height)
    assert mcus_per_row % header.restart_interval == 0
    entries = index_entries(tiled)
    assert len(entries) == mcus_per_row // header.restart_interval * rows
    data, at = scan_data(tiled), 0
    for number, (size, checksum) in enumerate(entries):
        assert checksum_of(data[at : at + size]) == checksum
        at += size
        marker = EOI if number + 1 == len(entries) else bytes([0xFF, 0xD0 + number % 8])
        assert data[at : at + 2] == marker
        at += 2
    assert at == len(data)


@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("size", [(1, 1), (8, 8), (17, 65), (61, 90)], ids=lambda size: f"{size[0]}x{size[1]}")
def test_every_sampling_keeps_its_pixels(sampling: str, size: tuple[int, int]) -> None:
    jpeg = drawn_jpeg(*size, SAMPLINGS[sampling], seed=1)
    assert_tiled(jpeg, tile(jpeg))


@given(
    st.integers(1, 70),
    st.integers(1, 70),
    st.sampled_from(list(SAMPLINGS.values())),
    st.integers(0, 1000),
    st.one_of(st.just(0), st.integers(1, 90)),
)
def test_any_size_with_any_restart_interval_keeps_its_pixels(
    height: int, width: int, factors: Any, seed: int, restart_interval: int
) -> None:
    jpeg = drawn_jpeg(height, width, factors, seed, restart_interval)
    check_entropy(jpeg)
    tiled = tile(jpeg)
    assert_tiled(jpeg, tiled)
    assert_tiled(jpeg, tile(tiled))


@pytest.mark.parametrize(
    "options",
    [
        {"subsampling": "4:4:4"},
        {"subsampling": "4:2:2", "quality": 70},
        {"subsampling": "4:2:0", "optimize": True},
        {"subsampling": "4:2:0", "restart_marker_rows": 1},
        {"subsampling": "4:4:4", "restart_marker_blocks": 5, "quality": 100},
        {"mode": "L"},
        {"keep_rgb": True},
    ],
    ids=str,
)
def test_photographs_keep_their_pixels(options: dict[str, Any]) -> None:
    jpeg = jpeg_bytes(PHOTOGRAPH, **options)
    tiled = tile(jpeg)
    assert_tiled(jpeg, tiled)
    assert len(index_entries(tiled)) > 10


def test_three_to_one_sampling_keeps_its_pixels() -> None:
    jpeg = three_to_one_jpeg(50, 70)
    assert_tiled(jpeg, tile(jpeg))


def test_metadata_is_kept() -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    jpeg = jpeg_bytes(PHOTOGRAPH, exif=turned(), icc_profile=profile, comment=b"a comment", keep_rgb=True, dpi=(72, 72))
    with Image.open(io.BytesIO(jpeg)) as before, Image.open(io.BytesIO(tile(jpeg))) as after:
        assert before.info == after.info
        assert {"exif", "icc_profile", "comment", "adobe_transform"} <= set(after.info)
    kept = [jpeg[start:end] for marker, start, end in segments(jpeg)]
    assert [part for part in kept if part in tile(jpeg)] == kept


def test_only_restart_interval_and_index_of_a_tiled_file_are_replaced() -> None:
    foreign = segment(0xE9, b"someone else's")
    tiled = tile(SMALL[:2] + foreign + SMALL[2:])
    again = tile(tiled)
    assert again == tiled
    assert foreign in again
    assert again.count(INDEX_IDENTIFIER) == 1
    assert again.count(b"\xff\xdd\0\4") == 1


def test_a_dc_table_that_lacks_a_code_is_replaced() -> None:
    """The second tile starts with a DC coefficient of 80, of size 7; the file needed differences of size 0 and 6."""
    _, codes = standard_tables()
    table = bytes([0, 1, 1, *[0] * 14, 0, 6])
    differences = [40, 40, *[0] * 10]
    bits = "".join(block_bits([1] * 64, difference, codes_of(table[1:]), codes[0x10]) for difference in differences)
    jpeg = with_tables(headers(16, 48, SAMPLINGS["grey"]), segment(0xC4, table)) + packed(bits) + EOI
    tiled = tile(jpeg)
    assert_tiled(jpeg, tiled)
    assert len(index_entries(tiled)) > 1
    assert tiled.count(b"\xff\xc4") == jpeg.count(b"\xff\xc4") + 1


@given(st.lists(st.integers(0, 10**6), min_size=1, max_size=16).filter(any))
def test_optimal_table_is_a_shortest_prefix_code_without_all_ones(counts: list[int]) -> None:
    codes = codes_of(optimal_table(counts))
    assert sorted(codes) == [symbol for symbol, count in enumerate(counts) if count]
    assert all("0" in code for code in codes.values())
    ordered = sorted(codes.values())
    assert not any(after.startswith(before) for before, after in pairwise(ordered))
    total = sum(counts)
    entropy = -sum(count * np.log2(count / total) for count in counts if count)
    spent = sum(counts[symbol] * len(code) for symbol, code in codes.items())
    assert entropy - 1e-6 <= spent <= entropy + 2 * total  # one bit for whole bits, one for the reserved code


def test_tile_width_divides_the_row_and_keeps_tiles_large_enough() -> None:
    assert tile_width(63, 63 * 47, 63 * 47 * 40) == 7
    assert tile_width(63, 63 * 47, 63 * 47 * 1000) == 1
    assert tile_width(63, 63 * 47, 10) == 63
    assert tile_width(47, 47 * 63, 47 * 63 * 40) == 47
    assert tile_width(1, 5, 100) == 1


def test_an_index_larger_than_a_segment_continues_in_the_next() -> None:
    rng = np.random.default_rng(0)
    sizes = rng.integers(0, 1 << 35, 20_000) >> np.arange(20_000) % 36
    checksums = rng.integers(0, 1 << 32, 20_000)
    index = index_segments(sizes, checksums, 0x12345678)
    assert index.count(INDEX_IDENTIFIER + b"\2") == 3
    assert index.count(b"\x12\x34\x56\x78") == 3
    entries = index_entries(b"\xff\xd8" + index + segment(0xDA, b""))
    assert entries == list(zip(sizes.tolist(), checksums.tolist(), strict=True))


def test_the_headers_checksum_is_that_of_what_decoding_needs() -> None:
    jpeg = jpeg_bytes(PHOTOGRAPH, comment=b"a comment", icc_profile=b"x" * 2000)
    tiled = tile(jpeg, width=2)
    needed = b"".join(tiled[start - 4 : end] for marker, start, end in segments(tiled) if marker in DECODING_MARKERS)
    assert tiled.count(INDEX_IDENTIFIER + b"\2\0\0\0\0" + checksum_of(needed).to_bytes(4, "big")) == 1
    assert len(needed) < 1000


def test_bytes_behind_the_image_are_dropped() -> None:
    for tail in (b"trailing bytes", b"\0" * 100, SMALL):
        check_entropy(SMALL + tail)
        assert tile(SMALL + tail) == tile(SMALL)


@pytest.mark.parametrize("end", [b"", b"\xff", b"\xff\xff\xd9", b"\0" * 16 + EOI, b"padding" + EOI], ids=repr)
def test_unusual_ends_of_complete_data_are_accepted(end: bytes) -> None:
    check_entropy(SMALL[:-2] + end)
    assert tile(SMALL[:-2] + end) == tile(SMALL)


def test_fill_bytes_before_markers_and_any_padding_are_accepted() -> None:
    filled = RESTARTED.replace(b"\xff\xd1", b"\xff\xff\xff\xd1").replace(b"\xff\xda", b"\xff\xff\xda")
    check_entropy(filled)
    assert np.array_equal(decoded(tile(filled)), decoded(RESTARTED))
    zeros = "0" * (-len(GREY_BLOCK * 2) % 8)
    assert zeros
    check_entropy(grey(GREY_BLOCK * 2 + zeros))


GREY_HEADERS = headers(8, 16, SAMPLINGS["grey"])
_DC, _AC = standard_tables()[1][0], standard_tables()[1][0x10]
GREY_BLOCK = block_bits([20, 0, 3, *[0] * 61], 20, _DC, _AC)
GREY_DATA = packed(GREY_BLOCK * 2)
DC_ONLY = _DC[0]


def grey(bits: str) -> bytes:
    """An image of two blocks with any data."""
    return GREY_HEADERS + packed(bits) + EOI


@pytest.mark.parametrize(
    ("jpeg", "reason"),
    [
        (grey(GREY_BLOCK), "truncated"),
        (GREY_HEADERS, "truncated"),
        (GREY_HEADERS + EOI, "truncated"),
        (grey("1" * 400), "a code that the Huffman table does not have"),
        (grey(DC_ONLY + "1" * 400), "a code that the Huffman table does not have"),
        (grey(DC_ONLY + _AC[0xF0] * 4 + GREY_BLOCK), "too many coefficients in a block"),
        (grey(DC_ONLY + _AC[0xF0] * 3 + _AC[0xF1] + "1" + GREY_BLOCK), "too many coefficients in a block"),
        (grey(GREY_BLOCK * 2 + "0" * 144), "data left over after the last MCU"),
        (grey(GREY_BLOCK * 2)[:-2] + b"\xff\xd0" + EOI, "a wrong restart marker"),
        (grey(GREY_BLOCK * 2)[:-2] + b"\xff\xc4\0\2" + EOI, "marker C4 where the image should end"),
        (RESTARTED.replace(b"\xff\xd0", b"\xff\xd1"), "a wrong restart marker"),
        (RESTARTED.replace(b"\xff\xd0", b""), "a wrong restart marker"),
        (RESTARTED.replace(b"\xff\xd0", b"\0\xff\xd0"), "data left over after a restart interval"),
        (RESTARTED[: RESTARTED.index(b"\xff\xd1")] + EOI, "truncated"),
        (SMALL[:2] + segment(0xF0, b"") + SMALL[2:], "marker F0 in the headers"),
        (SMALL.replace(b"\xff\xdb\0\x43\0", b"\xff\xdb\0\x43\1"), "a quantization table is missing"),
        (SMALL.replace(b"\xff\xdb\0\x43\0", b"\xff\xdb\0\x43\x10"), "an invalid quantization table"),
        (SMALL.replace(b"\xff\xdb\0\x43\0", b"\xff\xdb\0\x43\x04"), "an invalid quantization table"),
        (SMALL.replace(standard_tables()[0], b""), "a Huffman table is missing"),
        (SMALL.replace(standard_tables()[0], segment(0xC4, bytes([0, 2, *[0] * 15, 0, 1]))), "an invalid Huffman"),
        (SMALL.replace(standard_tables()[0], segment(0xC4, bytes([0, 0, 1, *[0] * 14, 16]))), "an invalid Huffman"),
        (SMALL.replace(standard_tables()[0], segment(0xC4, bytes([0, 255] + [0] * 15))), "an invalid Huffman"),
        (SMALL.replace(standard_tables()[0], segment(0xC4, bytes([0, 0]))), "an invalid Huffman"),
        (SMALL.replace(standard_tables()[0], segment(0xC4, bytes([0x20] + [0] * 16))), "an invalid Huffman"),
        (SMALL[:2] + segment(0xDD, b"\0\0\0") + SMALL[2:], "a segment DD of 3 bytes"),
        (SMALL.replace(b"\3\1\x22\0", b"\3\1\x52\0"), "an invalid sampling factor"),
        (SMALL.replace(b"\3\1\x22\0", b"\3\1\x43\0"), "more than 10 blocks in an MCU"),
        (SMALL.replace(b"\xff\xda\0\x0c\3\1\0", b"\xff\xda\0\x0c\3\4\0"), "a scan of other components"),
        (SMALL.replace(b"\xff\xda\0\x0c\3\1\0", b"\xff\xda\0\x0c\3\1\4"), "an invalid scan header"),
        (SMALL.replace(b"\0\x3f\0", b"\0\x3e\0"), "an invalid scan header"),
        (b"", "not a JPEG"),
    ],
)  # fmt: skip
def test_malformed_files_are_refused_with_their_reason(jpeg: bytes, reason: str) -> None:
    for function in (check_entropy, tile):
        with pytest.raises(JpegError, match=reason) as error:
            function(jpeg)
        assert not isinstance(error.value, NotTileable)


def test_dc_coefficients_beyond_16_bits_are_refused() -> None:
    """Large differences of one sign add up; decoders then disagree."""
    table = bytes([0, 0, 1, *[0] * 14, 15])
    jpeg = with_tables(GREY_HEADERS, segment(0xC4, table))
    step = "00" + magnitude_bits(16384) + _AC[0]
    with pytest.raises(JpegError, match="a DC coefficient out of range"):
        check_entropy(jpeg + packed(step * 2) + EOI)


@pytest.mark.parametrize(
    ("jpeg", "reason"),
    [
        (jpeg_bytes(PHOTOGRAPH, progressive=True), "not baseline"),
        (jpeg_bytes(PHOTOGRAPH, "CMYK"), "4 colour components"),
        (SMALL.replace(b"\xff\xc0\0\x11\x08", b"\xff\xc1\0\x11\x0c"), "12 bits a sample"),
        (SMALL.replace(b"\xff\xc0", b"\xff\xc9"), "not baseline"),
        (
            SMALL.replace(segment(0xDA, b"\3\1\0\2\x11\3\x11\0\x3f\0"), segment(0xDA, b"\1\1\0\0\x3f\0")),
            "several scans",
        ),
        (SMALL[:-2] + segment(0xDA, b"\1\1\0\0\x3f\0") + EOI, "several scans"),
    ],
    ids=["progressive", "cmyk", "12-bit", "arithmetic", "scans", "second-scan"],
)
def test_other_kinds_are_distinguished_from_damage(jpeg: bytes, reason: str) -> None:
    for function in (check_entropy, tile):
        with pytest.raises(NotTileable, match=reason):
            function(jpeg)


def test_extended_sequential_of_8_bits_is_tiled() -> None:
    extended = SMALL.replace(b"\xff\xc0", b"\xff\xc1")
    assert_tiled(extended, tile(extended))


@pytest.mark.parametrize("jpeg", [SMALL, RESTARTED], ids=["unbroken", "restarted"])
def test_truncation_at_any_byte_is_refused(jpeg: bytes) -> None:
    for length in range(len(jpeg) - 2):
        for function in (check_entropy, tile):
            with pytest.raises(JpegError):
                function(jpeg[:length])


@given(st.sampled_from([SMALL, RESTARTED, GREY_HEADERS + GREY_DATA + EOI]), st.data())
def test_damage_is_refused_or_leaves_an_image_that_decoders_read(jpeg: bytes, data: st.DataObject) -> None:
    damaged = bytearray(jpeg)
    for _ in range(data.draw(st.integers(1, 3))):
        damaged[data.draw(st.integers(2, len(jpeg) - 3))] ^= 1 << data.draw(st.integers(0, 7))
    tiled = None
    with contextlib.suppress(JpegError):
        tiled = tile(bytes(damaged))
    if tiled is not None and read_header(tiled).width * read_header(tiled).height < 10**6:
        assert np.array_equal(decoded(tiled), decoded(bytes(damaged)))


@given(st.binary(max_size=300))
def test_random_data_is_refused_or_read(data: bytes) -> None:
    jpeg = GREY_HEADERS + data
    with contextlib.suppress(JpegError):
        assert_tiled(jpeg + b"\xff\xd9", tile(jpeg))  # PIL calls it truncated without the end marker
