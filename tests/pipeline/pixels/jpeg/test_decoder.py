"""The decoder of tiles: bit for bit what TurboJPEG makes of the whole image, cropped; everything else is refused, and
no damage goes unnoticed."""

import os
import subprocess
import sys
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import simplejpeg
from hypothesis import given
from hypothesis import strategies as st
from numba import njit

from pipeline.pixels.jpeg.crop import Box
from pipeline.pixels.jpeg.decoder import CHANGED, DAMAGED, DONE, UNSUPPORTED, decode_crop
from pipeline.pixels.jpeg.decoder.transform import compile_transform
from pipeline.pixels.jpeg.processor import AVAILABLE, IS_X86
from pipeline.pixels.jpeg.tiles import INDEX_IDENTIFIER, tile
from tests.helpers.images import jpeg_bytes, photograph
from tests.helpers.jpegs import (
    SAMPLINGS,
    Factors,
    block_bits,
    blocks_of_mcu,
    drawn_jpeg,
    headers,
    mcu_size,
    packed,
    restart_intervals,
    segment,
    standard_tables,
    tiled_by_hand,
    with_index_version_1,
)

SUPPORTED = ("grey", "grey-2x2", "444", "422", "420")
PHOTOGRAPH = photograph(120, 192, seed=5)
UNTILED = jpeg_bytes(PHOTOGRAPH, subsampling="4:2:0")
TILED = tile(UNTILED, width=2)
UNCHECKED = with_index_version_1(TILED)
BOX = (37, 50, 60, 51)


def turbojpeg_decoded(jpeg: bytes) -> np.ndarray:
    image: np.ndarray = simplejpeg.decode_jpeg(jpeg, fastdct=False, fastupsample=False)
    return image


def cropped(jpeg: bytes, box: Box) -> tuple[int, np.ndarray]:
    """Status and pixels of a crop."""
    out = np.full((max(box[2], 0), max(box[3], 0), 3), 0xA5, np.uint8)
    return int(decode_crop(np.frombuffer(bytearray(jpeg), np.uint8), *box, out)), out


def assert_same_pixels(jpeg: bytes, boxes: Sequence[Box]) -> None:
    whole = turbojpeg_decoded(jpeg)
    for box in boxes:
        status, out = cropped(jpeg, box)
        top, left, height, width = box
        assert status == DONE, box
        assert np.array_equal(out, whole[top : top + height, left : left + width]), box


def telling_intervals(size: int, mcu: int) -> list[tuple[int, int]]:
    """(start, length) from and to pixels at the edges of MCUs and of the image, and next to them."""
    edges = range(0, size, mcu)
    pixels = sorted({pixel for edge in edges for pixel in (edge - 1, edge, edge + 1) if 0 <= pixel < size} | {size - 1})
    return [(first, last - first + 1) for first in pixels for last in pixels if first <= last]


@pytest.mark.parametrize("sampling", SUPPORTED)
@pytest.mark.parametrize("rest", [1, 2, 5, 8])
def test_crops_have_the_pixels_of_the_whole(sampling: str, rest: int) -> None:
    """Three MCUs each way, the last cut short, with every start and end that could matter."""
    mcu_width, mcu_height = mcu_size(SAMPLINGS[sampling])
    height, width = 2 * mcu_height + rest, 2 * mcu_width + rest
    jpeg = tile(drawn_jpeg(height, width, SAMPLINGS[sampling], seed=rest), width=1)
    down, across = telling_intervals(height, mcu_height), telling_intervals(width, mcu_width)
    pairs = [*product(down, across[::7]), *product(down[::7], across)]
    boxes = [(top, left, box_height, box_width) for (top, box_height), (left, box_width) in pairs]
    for file in (jpeg, with_index_version_1(jpeg)):
        assert_same_pixels(file, boxes)


@given(st.data())
def test_any_box_of_any_image_has_the_pixels_of_the_whole(data: st.DataObject) -> None:
    factors = SAMPLINGS[data.draw(st.sampled_from(SUPPORTED))]
    height, width = data.draw(st.integers(1, 120)), data.draw(st.integers(1 if factors[0][0] == 1 else 5, 120))
    width = max(width, 5 if len(factors) == 3 and factors[0][0] == 2 else 1)
    mcus_per_row = -(-width // mcu_size(factors)[0])
    tile_width = data.draw(st.sampled_from([k for k in range(1, mcus_per_row + 1) if mcus_per_row % k == 0]))
    jpeg = tile(drawn_jpeg(height, width, factors, data.draw(st.integers(0, 9))), width=tile_width)
    top, left = data.draw(st.integers(0, height - 1)), data.draw(st.integers(0, width - 1))
    box = top, left, data.draw(st.integers(1, height - top)), data.draw(st.integers(1, width - left))
    assert_same_pixels(jpeg, [box])


@pytest.mark.parametrize("quality", [5, 50, 90, 100])
@pytest.mark.parametrize(
    "options",
    [{"subsampling": "4:4:4"}, {"subsampling": "4:2:2"}, {"subsampling": "4:2:0", "optimize": True}, {"mode": "L"}],
    ids=["444", "422", "420", "grey"],
)
def test_photographs_of_any_quality(quality: int, options: dict[str, Any]) -> None:
    """At 100 there are codes and values of all lengths."""
    jpeg = jpeg_bytes(photograph(177, 211, seed=quality), quality=quality, **options)
    for width in (None, 1):
        assert_same_pixels(tile(jpeg, width), [(0, 0, 177, 211), (3, 5, 170, 200), (40, 81, 90, 47), (176, 210, 1, 1)])


def large_block(rng: np.random.Generator) -> list[int]:
    """Coefficients that no photograph has, many of them in the first row or in none of the lower rows."""
    block = [0] * 64
    scale = int(rng.choice([20, 300, 1000]))
    block[0] = int(rng.integers(-scale, scale + 1))
    for _ in range(rng.integers(0, 8)):
        block[min(63, 1 + int(rng.exponential(rng.choice([1, 4, 20]))))] = int(rng.integers(-scale, scale + 1))
    return block


def file_of(height: int, width: int, factors: Factors, blocks: Sequence[Sequence[int]], step: int) -> bytes:
    """A tiled file of given blocks with a flat quantization table."""
    head = headers(height, width, factors, 1).replace(bytes([8] * 64), bytes([step] * 64))
    return tiled_by_hand(head, list(restart_intervals(factors, blocks, 1)))


@pytest.mark.parametrize("step", [1, 16, 255])
@pytest.mark.parametrize("sampling", ["grey", "444", "420"])
def test_extreme_coefficients_wrap_and_saturate_as_in_turbojpeg(sampling: str, step: int) -> None:
    if not IS_X86:
        pytest.skip("libjpeg-turbo's SIMD for other processors treats coefficients beyond its range in other ways")
    rng = np.random.default_rng(step)
    factors = SAMPLINGS[sampling]
    mcus = (80 // mcu_size(factors)[0]) ** 2
    blocks = [large_block(rng) for _ in range(mcus * len(blocks_of_mcu(factors)))]
    jpeg = file_of(80, 80, factors, blocks, step)
    assert_same_pixels(jpeg, [(0, 0, 80, 80), (9, 9, 40, 50)])


def samples_of(vectors: str, coefficients: np.ndarray, table: np.ndarray) -> np.ndarray:
    """The samples of some blocks, int16 [N, 64] each, from the transform itself."""
    count = len(coefficients)
    blocks = np.stack([64 * np.arange(count), coefficients[:, 0] + np.arange(count), 64 * np.arange(count)], axis=1)
    samples = np.zeros(64 * count, np.uint8)
    run = compile_transform(vectors)

    def pointer(array: np.ndarray, kind: str) -> Any:
        return array.ctypes.data_as(run.ctypes.argtypes[{"coefficients": 0, "blocks": 2, "samples": 5}[kind]])

    run.ctypes(
        pointer(coefficients, "coefficients"),
        coefficients.size,
        pointer(np.ascontiguousarray(blocks), "blocks"),
        count,
        pointer(table, "coefficients"),
        pointer(samples, "samples"),
        samples.size,
        8,
    )
    return samples


@pytest.mark.parametrize("vectors", AVAILABLE)
@pytest.mark.parametrize("count", [1, 2, 501])
def test_all_vectors_give_the_same_samples(vectors: str, count: int) -> None:
    rng = np.random.default_rng(count)
    coefficients = np.zeros((count, 64), np.int16)
    for block in coefficients:
        scale = int(rng.choice([10, 1000, 32767]))
        places = rng.choice([1, 8, 32, 64])
        block[:places] = rng.integers(-scale, scale, places) * (rng.random(places) < rng.choice([0.1, 0.9]))
    table = rng.integers(1, 256, 64).astype(np.int16)
    samples = samples_of(vectors, coefficients, table)
    assert np.array_equal(samples, samples_of("any", coefficients, table))
    assert len(np.unique(samples)) > 8 or count < 3


@pytest.mark.parametrize(
    ("name", "jpeg"),
    [
        ("440", tile(drawn_jpeg(40, 40, SAMPLINGS["440"], 0))),
        ("411", tile(drawn_jpeg(40, 40, SAMPLINGS["411"], 0))),
        ("444-as-2x1", tile(drawn_jpeg(40, 40, SAMPLINGS["444-as-2x1"], 0))),
        ("mixed", tile(drawn_jpeg(40, 40, SAMPLINGS["mixed"], 0))),
        ("two-columns-of-chroma", tile(drawn_jpeg(40, 4, SAMPLINGS["420"], 0))),
        ("rgb", tile(jpeg_bytes(PHOTOGRAPH, keep_rgb=True))),
        ("adobe-rgb", tile(UNTILED[:2] + segment(0xEE, b"Adobe\0\x64\0\0\0\0\0") + UNTILED[2:])),
        ("untiled", UNTILED),
        ("restarted", jpeg_bytes(PHOTOGRAPH, restart_marker_blocks=4)),
        ("progressive", jpeg_bytes(PHOTOGRAPH, progressive=True)),
        ("cmyk", jpeg_bytes(PHOTOGRAPH, "CMYK")),
        ("12-bit", UNCHECKED.replace(b"\xff\xc0\0\x11\x08", b"\xff\xc1\0\x11\x0c")),
        ("arithmetic", UNCHECKED.replace(b"\xff\xc0", b"\xff\xc9")),
        ("third-huffman-table", UNCHECKED.replace(b"\3\1\0\2\x11\3\x11\0\x3f\0", b"\3\1\0\2\x21\3\x21\0\x3f\0")),
        ("spectral-selection", UNCHECKED.replace(b"\3\1\0\2\x11\3\x11\0\x3f\0", b"\3\1\0\2\x11\3\x11\0\x3e\0")),
        ("no-huffman-table", with_index_version_1(TILED).replace(standard_tables()[0], b"")),
        ("no-quantization-table", UNCHECKED.replace(b"\xff\xdb\0\x43\0", b"\xff\xdb\0\x43\2")),
        ("interval-that-does-not-divide", UNCHECKED.replace(b"\xff\xdd\0\4\0\2", b"\xff\xdd\0\4\0\5")),
        ("unknown-index", UNCHECKED.replace(INDEX_IDENTIFIER + b"\1", INDEX_IDENTIFIER + b"\3")),
        ("png", b"\x89PNG\r\n\x1a\n" + bytes(100)),
        ("nothing", b""),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_other_kinds_are_refused(name: str, jpeg: bytes) -> None:
    assert jpeg != UNCHECKED, name
    assert cropped(jpeg, (0, 0, 3, 3))[0] == UNSUPPORTED


@pytest.mark.parametrize(
    "box",
    [(-1, 0, 5, 5), (0, -1, 5, 5), (0, 0, 0, 5), (0, 0, 5, 0), (116, 0, 5, 5), (0, 188, 5, 5), (2**40, 0, 5, 5)],
    ids=str,
)
def test_a_box_outside_is_refused(box: Box) -> None:
    assert cropped(TILED, box)[0] == UNSUPPORTED


def test_an_output_of_another_size_is_refused() -> None:
    source = np.frombuffer(TILED, np.uint8)
    assert decode_crop(source, *BOX, np.empty((60, 52, 3), np.uint8)) == UNSUPPORTED
    assert decode_crop(source, *BOX, np.empty((60, 51, 3), np.uint8)) == DONE


def test_what_decoding_does_not_need_is_passed_over() -> None:
    jpeg = jpeg_bytes(PHOTOGRAPH, comment=b"a comment", icc_profile=b"x" * 70_000)
    foreign = jpeg[:2] + segment(0xE9, b"SLUICE") + segment(0xE9, b"something else") + jpeg[2:]
    assert_same_pixels(tile(foreign), [BOX])


def test_an_index_of_several_segments_is_followed() -> None:
    jpeg = tile(jpeg_bytes(photograph(920, 944, seed=0), "L", quality=30), width=1)
    assert jpeg.count(INDEX_IDENTIFIER) > 1
    assert_same_pixels(jpeg, [(500, 400, 40, 50), (900, 900, 20, 44), (0, 0, 8, 8)])


# ---------------------------------------------------------------------------------------------------------- damage

GREY_HEADERS = headers(8, 32, SAMPLINGS["grey"], restart_interval=2)
_DC, _AC = standard_tables()[1][0], standard_tables()[1][0x10]
BLOCK = block_bits([20, 0, 3, *[0] * 61], 20, _DC, _AC)
TWO = BLOCK + block_bits([25, 0, 3, *[0] * 61], 5, _DC, _AC)


def grey_tiles(first: bytes, second: bytes = packed(TWO)) -> bytes:
    """Two tiles of two blocks, with a sound index for whatever they hold."""
    return tiled_by_hand(GREY_HEADERS, [first, second])


def test_tiles_made_by_hand_are_decoded() -> None:
    assert_same_pixels(grey_tiles(packed(TWO)), [(0, 0, 8, 32), (0, 3, 8, 5), (2, 14, 3, 4)])


PADDING = -len(TWO) % 8


@pytest.mark.parametrize(
    "data",
    [
        packed(BLOCK),
        packed(TWO + BLOCK),
        packed(TWO + "0" * PADDING),
        packed(TWO) + b"\xfe",
        packed(TWO)[:-1],
        packed(BLOCK + "1" * 40),
        packed(_DC[0] + "1" * 16 + TWO),
        packed(_DC[0] + _AC[0xF0] * 4 + _AC[0] + BLOCK),
        packed(_DC[0] + _AC[0xF0] * 3 + _AC[0xF1] + "1" + _AC[0] + BLOCK),
        b"",
        packed(TWO) + b"\xff\0",
    ],
    ids=[
        "a-block-too-few", "a-block-too-many", "padding-of-zeros", "a-byte-too-many", "a-byte-too-few",
        "ones-instead-of-a-block", "no-code", "too-many-zeros", "a-coefficient-beyond-the-block", "nothing",
        "a-stuffed-byte-too-many",
    ],
)  # fmt: skip
def test_a_tile_that_is_not_its_blocks_is_damaged(data: bytes) -> None:
    """Though its checksum is right, and wherever in the file it stands."""
    assert PADDING > 0
    for jpeg in (grey_tiles(data), grey_tiles(packed(TWO), data)):
        for file in (jpeg, with_index_version_1(jpeg)):
            assert cropped(file, (0, 0, 8, 32))[0] == DAMAGED


def test_a_marker_within_a_tile_is_damage() -> None:
    data = packed(TWO)
    for place in range(len(data)):
        assert cropped(grey_tiles(data[:place] + b"\xff\xd0" + data[place:]), (0, 0, 8, 32))[0] == DAMAGED


def test_every_other_bit_of_what_is_read_is_noticed() -> None:
    """With checksums: whichever bit of the headers that decoding needs, of the index or of the tiles under the crop."""
    right = cropped(TILED, BOX)[1]
    scan = TILED.index(b"\xff\xda")
    needless = {*range(4, 20)}  # the payload of JFIF counts too, but not every bit of where segments begin
    places = [*range(20, scan + 14), *range(scan + 14, len(TILED), 7)]
    unnoticed = 0
    for place in places:
        changed = bytearray(TILED)
        changed[place] ^= 1 << place % 8
        status, out = cropped(bytes(changed), BOX)
        assert status != DONE or np.array_equal(out, right), place
        unnoticed += status == DONE and place not in needless
    assert 0 < unnoticed < 0.8 * len(places)  # outside the crop


def test_changed_tiles_and_headers_are_told_from_other_damage() -> None:
    scan = TILED.index(b"\xff\xda")
    for place, status in ((TILED.index(b"\xff\xdb") + 20, CHANGED), (scan + 10 + (len(TILED) - scan) // 2, CHANGED)):
        changed = bytearray(TILED)
        changed[place] ^= 0x10
        assert cropped(bytes(changed), (0, 0, 120, 192))[0] == status
    assert cropped(TILED[: len(TILED) * 3 // 4], (0, 0, 120, 192))[0] == DAMAGED


def test_truncation_at_any_byte_is_noticed() -> None:
    for jpeg in (TILED, UNCHECKED):
        for length in (*range(0, jpeg.index(b"\xff\xda") + 20, 3), *range(len(jpeg) // 2, len(jpeg) - 2, 97)):
            assert cropped(jpeg[:length], (0, 0, 120, 192))[0] in (UNSUPPORTED, DAMAGED, CHANGED)


@given(st.lists(st.tuples(st.integers(0, len(UNCHECKED) - 1), st.integers(0, 255)), max_size=6), st.data())
def test_any_damage_gives_a_status(damage: list[tuple[int, int]], data: st.DataObject) -> None:
    damaged = bytearray(UNCHECKED)
    for at, byte in damage:
        damaged[at] = byte
    box: Box = tuple(data.draw(st.integers(1, 100)) for _ in range(4))  # type: ignore[assignment]
    assert cropped(bytes(damaged), box)[0] in (DONE, UNSUPPORTED, DAMAGED, CHANGED)


# -------------------------------------------------------------------------------------------------------- elsewhere


@njit
def decode_from_a_kernel(jpeg: Any, top: Any, left: Any, height: Any, width: Any) -> Any:
    out = np.empty((height, width, 3), np.uint8)
    return decode_crop(jpeg, top, left, height, width, out), out


def test_kernels_call_it() -> None:
    status, out = decode_from_a_kernel(np.frombuffer(bytearray(TILED), np.uint8), *BOX)
    assert status == DONE
    assert np.array_equal(out, cropped(TILED, BOX)[1])


ELSEWHERE = """
import logging
import sys
logging.basicConfig(level=logging.INFO)
import numpy as np
from pipeline.pixels.jpeg import processor
from pipeline.pixels.jpeg.decoder import decode_crop
out = np.empty((60, 51, 3), np.uint8)
data = np.frombuffer(bytearray(open(sys.argv[1], "rb").read()), np.uint8)
assert decode_crop(data, 37, 50, 60, 51, out) == 0
print(processor.VECTORS, processor.has("avx2"), out.tobytes().hex())
"""


def test_processors_without_avx2_give_the_same_pixels(tmp_path: Path) -> None:
    """numba compiles for one that has nothing but what every x86-64 has; where it cannot load what it compiled, a line
    says that it takes some time."""
    if "sse2" not in AVAILABLE:
        pytest.skip("no x86-64")
    (tmp_path / "tiled.jpg").write_bytes(TILED)
    plain = {"NUMBA_CPU_NAME": "x86-64", "NUMBA_CPU_FEATURES": "", "PYTHONPATH": str(Path(__file__).parents[4])}
    plain["NUMBA_CACHE_DIR"] = str(tmp_path / "cache")
    lines = []
    for _ in range(2):
        process = subprocess.run(
            [sys.executable, "-c", ELSEWHERE, str(tmp_path / "tiled.jpg")],
            env=os.environ | plain,
            capture_output=True,
            text=True,
            check=False,
        )
        assert process.stdout.split() == ["sse2", "False", cropped(TILED, BOX)[1].tobytes().hex()], process.stderr
        lines.append(process.stderr.count("compiling the decoder, once"))
    assert lines == [1, 0]


def test_other_vectors_than_the_processor_has_are_refused() -> None:
    process = subprocess.run(
        [sys.executable, "-c", "import pipeline.pixels.jpeg.processor"],
        env=os.environ | {"SLUICE_VECTORS": "avx9", "PYTHONPATH": str(Path(__file__).parents[4])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "SLUICE_VECTORS=avx9: this processor has" in process.stderr
    assert process.returncode == 1
