"""Cropping in the bitstream: pixel for pixel what cropping the decoded image gives, and no trust in the index."""

import contextlib
import io
from collections.abc import Callable, Iterator
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torchvision.io import ImageReadMode, decode_jpeg

from pipeline.pixels import turbojpeg
from pipeline.pixels.jpeg.crop import AlteredError, Box, crop, crop_tiles, read_size
from pipeline.pixels.jpeg.headers import JpegError, read_header, segments
from pipeline.pixels.jpeg.tiles import INDEX_IDENTIFIER, check_entropy, tile
from tests.helpers.images import decoded, jpeg_bytes, photograph, turned
from tests.helpers.jpegs import SAMPLINGS, Factors, drawn_jpeg, mcu_size, segment, with_index_version_1
from tests.helpers.loaders import loaded

PHOTOGRAPH = photograph(200, 256, seed=5)
TILED = tile(jpeg_bytes(PHOTOGRAPH, subsampling="4:2:0"), width=2)
UNCHECKED = with_index_version_1(TILED)
BOX = (70, 90, 60, 50)


def intervals(size: int) -> list[tuple[int, int]]:
    """Every (start, length) within `size` pixels."""
    return [(start, length) for start in range(size) for length in range(1, size - start + 1)]


def telling_intervals(size: int, tile_size: int) -> list[tuple[int, int]]:
    """(start, length) from and to pixels at the edges of tiles, their neighbours, and those of the image."""
    edges = range(0, size, tile_size)
    pixels = sorted({pixel for edge in edges for pixel in (edge - 1, edge, edge + 1) if 0 <= pixel < size} | {size - 1})
    return [(first, last - first + 1) for first in pixels for last in pixels if first <= last]


def boxes_across_all_edges(height: int, width: int, factors: Factors) -> Iterator[Box]:
    """Every interval across with the telling ones down, and the other way round."""
    mcu_width, mcu_height = mcu_size(factors)
    down, across = intervals(height), intervals(width)
    few_down, few_across = telling_intervals(height, mcu_height)[::5], telling_intervals(width, mcu_width)[::5]
    for (top, box_height), (left, box_width) in (*product(few_down, across), *product(down, few_across)):
        yield top, left, box_height, box_width


def assert_same_pixels(jpeg: bytes, boxes: Iterator[Box], decode: Callable[[bytes], np.ndarray]) -> int:
    """Check each box; how many different crops there were."""
    whole = decode(jpeg)
    crops: dict[bytes, np.ndarray] = {}
    for top, left, height, width in boxes:
        small, small_top, small_left = crop(jpeg, (top, left, height, width))
        key = small.tobytes()
        if key not in crops:
            check_entropy(key)
            crops[key] = decode(key)
        cut = crops[key][small_top : small_top + height, small_left : small_left + width]
        assert np.array_equal(cut, whole[top : top + height, left : left + width]), (top, left, height, width)
    return len(crops)


@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("rest", [1, 4, 5], ids=lambda rest: f"rest-{rest}")
def test_crops_have_the_pixels_of_the_whole(sampling: str, rest: int) -> None:
    """Three MCUs each way, the last cut short: chroma of one, two or more columns and rows."""
    factors = SAMPLINGS[sampling]
    mcu_width, mcu_height = mcu_size(factors)
    height, width = 2 * mcu_height + rest, 2 * mcu_width + rest
    jpeg = tile(drawn_jpeg(height, width, factors, seed=rest), width=1)
    assert assert_same_pixels(jpeg, boxes_across_all_edges(height, width, factors), decoded) > 10


def torchvision_decoded(jpeg: bytes) -> np.ndarray:
    image = decode_jpeg(torch.frombuffer(bytearray(jpeg), dtype=torch.uint8), ImageReadMode.RGB)
    pixels: np.ndarray = image.permute(1, 2, 0).numpy()
    return pixels


def turbojpeg_decoded(jpeg: bytes) -> np.ndarray:
    loaded("ffcv")  # which loads TurboJPEG
    header = read_header(jpeg)
    image = np.empty((header.height, header.width, 3), np.uint8)
    assert turbojpeg.decode_rgb(turbojpeg.create_decoder(), np.frombuffer(bytearray(jpeg), np.uint8), image)
    return image


@pytest.mark.parametrize("decode", [decoded, torchvision_decoded, turbojpeg_decoded], ids=lambda d: d.__name__)
@pytest.mark.parametrize("sampling", ["grey", "444", "422", "440", "420", "411"])
def test_every_decoder_gives_the_pixels_of_the_whole(decode: Callable[[bytes], np.ndarray], sampling: str) -> None:
    jpeg = tile(drawn_jpeg(50, 70, SAMPLINGS[sampling], seed=2), width=1)
    rows, columns = ((0, 50), (7, 9), (15, 1), (16, 20), (31, 19)), ((0, 70), (15, 2), (16, 16), (33, 31), (69, 1))
    boxes = ((top, left, height, width) for (top, height), (left, width) in product(rows, columns))
    assert assert_same_pixels(jpeg, boxes, decode) > 10


@given(st.data())
def test_any_box_of_any_image_has_the_pixels_of_the_whole(data: st.DataObject) -> None:
    factors = data.draw(st.sampled_from(list(SAMPLINGS.values())))
    height, width = data.draw(st.integers(1, 120)), data.draw(st.integers(1, 120))
    mcus_per_row = -(-width // mcu_size(factors)[0])
    tile_width = data.draw(st.sampled_from([k for k in range(1, mcus_per_row + 1) if mcus_per_row % k == 0]))
    jpeg = tile(drawn_jpeg(height, width, factors, data.draw(st.integers(0, 9))), width=tile_width)
    top, left = data.draw(st.integers(0, height - 1)), data.draw(st.integers(0, width - 1))
    box = top, left, data.draw(st.integers(1, height - top)), data.draw(st.integers(1, width - left))
    assert_same_pixels(jpeg, iter([box]), decoded)


@pytest.mark.parametrize("options", [{"mode": "L"}, {"keep_rgb": True}, {"subsampling": "4:4:4"}, {"exif": turned()}])
def test_photographs_are_cropped_to_a_fraction_of_their_bytes(options: dict[str, Any]) -> None:
    jpeg = tile(jpeg_bytes(PHOTOGRAPH, **options), width=2)
    assert_same_pixels(jpeg, iter([BOX]), decoded)
    assert len(crop(jpeg, BOX)[0]) < 0.4 * len(jpeg)


def test_only_what_decoding_needs_is_copied() -> None:
    jpeg = tile(jpeg_bytes(PHOTOGRAPH, keep_rgb=True, exif=turned(), comment=b"a comment", icc_profile=b"x" * 70_000))
    small = crop(jpeg, BOX)[0].tobytes()
    assert {marker for marker, _, _ in segments(jpeg)} >= {0xE1, 0xE2, 0xE9, 0xEE, 0xFE}
    assert {marker for marker, _, _ in segments(small)} == {0xDB, 0xC0, 0xC4, 0xDD, 0xDA, 0xEE}
    assert read_header(small).restart_interval == read_header(jpeg).restart_interval
    with Image.open(io.BytesIO(crop(tile(jpeg_bytes(PHOTOGRAPH)), BOX)[0].tobytes())) as image:
        assert "jfif" in image.info


def test_an_index_of_several_segments_is_followed() -> None:
    jpeg = tile(jpeg_bytes(photograph(920, 944, seed=0), "L", quality=30), width=1)
    assert jpeg.count(INDEX_IDENTIFIER) == 2
    boxes: list[Box] = [(500, 400, 40, 50), (900, 900, 20, 44), (0, 0, 8, 8), (880, 40, 1, 1)]
    assert assert_same_pixels(jpeg, iter(boxes), decoded) == len(boxes)


def is_whole(jpeg: bytes, box: Box) -> bool:
    """Whether the answer is to decode the whole file; the box must then stay as it is."""
    small, top, left = crop(jpeg, box)
    same = small.tobytes() == jpeg
    assert not same or (top, left) == box[:2]
    return same


def test_whole_file_where_there_is_nothing_to_leave_out() -> None:
    assert not is_whole(TILED, BOX)
    assert is_whole(TILED, (0, 0, 200, 256))
    assert is_whole(TILED, (1, 1, 198, 254))
    assert is_whole(jpeg_bytes(PHOTOGRAPH), BOX)
    assert is_whole(jpeg_bytes(PHOTOGRAPH, restart_marker_blocks=4), BOX)
    assert is_whole(jpeg_bytes(PHOTOGRAPH, progressive=True), BOX)


@pytest.mark.parametrize(
    "box", [(-1, 0, 5, 5), (0, -1, 5, 5), (0, 0, 0, 5), (0, 0, 5, 0), (196, 0, 5, 5), (0, 252, 5, 5)]
)
def test_whole_file_for_a_box_outside(box: Box) -> None:
    assert is_whole(TILED, box)


def test_an_output_that_is_too_small_is_not_written_beyond_its_end() -> None:
    source = np.frombuffer(TILED, np.uint8)
    needed = len(crop(TILED, BOX)[0])
    for room in (*range(700), needed - 1, needed, needed + 1):
        out = np.full(needed + 10, 0xAA, np.uint8)
        size, _, _ = crop_tiles(source, *BOX, out[:room])
        assert size == (needed if room >= needed else 0)
        assert (out[room:] == 0xAA).all()


def test_every_false_length_up_to_the_crop_is_noticed() -> None:
    jpeg = UNCHECKED
    index = jpeg.index(INDEX_IDENTIFIER)
    scan = jpeg.index(b"\xff\xda", index)
    lengths = range(index + 12, index + 12 + (scan - index - 12) // 2)  # the box begins below the middle
    for place in lengths:
        false = bytearray(jpeg)
        false[place] ^= 1
        assert is_whole(bytes(false), (120, 90, 60, 50))


def test_an_index_without_checksums_is_followed() -> None:
    assert len(UNCHECKED) < len(TILED)
    assert crop(UNCHECKED, BOX)[0].tobytes() == crop(TILED, BOX)[0].tobytes()


def test_an_altered_tile_under_the_box_is_noticed() -> None:
    """Any bit of it; also where the whole image is needed. Tiles elsewhere are not read."""
    scan = TILED.index(b"\xff\xda")
    altered = 0
    for at in range(scan + 14, len(TILED) - 2, 7):
        file = bytearray(TILED)
        file[at] ^= 1 << at % 8
        with contextlib.suppress(JpegError):  # a marker became something else: the whole file is to be decoded
            assert crop(bytes(file), BOX)[0].tobytes() in (crop(TILED, BOX)[0].tobytes(), bytes(file))
            continue
        altered += 1
        with pytest.raises(AlteredError):
            crop(bytes(file), (0, 0, 200, 256))
    assert altered > 100


@pytest.mark.parametrize("box", [BOX, (0, 0, 200, 256), (-1, 0, 5, 5)])
def test_altered_headers_are_noticed(box: Box) -> None:
    quantization = TILED.index(b"\xff\xdb")
    for place in (quantization + 10, TILED.index(b"\xff\xdd") + 5):
        file = bytearray(TILED)
        file[place] ^= 1
        with pytest.raises(AlteredError):
            crop(bytes(file), box)


@pytest.mark.parametrize(
    "replacement",
    [
        (INDEX_IDENTIFIER, b"SLUICY\0"),
        (INDEX_IDENTIFIER + b"\1", INDEX_IDENTIFIER + b"\3"),
        (INDEX_IDENTIFIER + b"\1\0\0\0\0", INDEX_IDENTIFIER + b"\1\0\0\0\1"),
        (b"\xff\xdd\0\4\0\2", b"\xff\xdd\0\4\0\3"),
        (b"\xff\xdd\0\4\0\2", b"\xff\xdd\0\4\0\0"),
    ],
    ids=["identifier", "version", "first-tile", "interval-that-does-not-divide", "no-interval"],
)
def test_whole_file_for_an_index_of_something_else(replacement: tuple[bytes, bytes]) -> None:
    assert UNCHECKED.count(replacement[0]) == 1
    assert is_whole(UNCHECKED.replace(*replacement), BOX)


def test_truncation_at_any_byte_of_the_headers_gives_the_whole_file() -> None:
    for length in (*range(TILED.index(b"\xff\xda") + 20), len(TILED) // 4):
        assert is_whole(TILED[:length], BOX)


@given(
    st.lists(st.tuples(st.integers(0, UNCHECKED.index(b"\xff\xda") + 40), st.integers(0, 255)), max_size=4), st.data()
)
def test_damage_gives_a_jpeg_no_larger_than_the_file(damage: list[tuple[int, int]], data: st.DataObject) -> None:
    damaged = bytearray(UNCHECKED)
    for at, byte in damage:
        damaged[at] = byte
    box: Box = tuple(data.draw(st.integers(0, 300)) for _ in range(4))  # type: ignore[assignment]
    small, top, left = crop(bytes(damaged), box)
    assert len(small) <= len(damaged)
    if small.tobytes() != damaged:
        header = read_header(small.tobytes())
        assert top + box[2] <= header.height
        assert left + box[3] <= header.width


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_the_size_is_that_of_the_headers(sampling: str) -> None:
    for jpeg in (drawn_jpeg(27, 35, SAMPLINGS[sampling], seed=1), TILED, UNCHECKED):
        header = read_header(jpeg)
        assert read_size(np.frombuffer(jpeg, np.uint8)) == (header.height, header.width)


def test_a_size_that_takes_more_is_left_to_the_parser_of_headers() -> None:
    frame = TILED.index(b"\xff\xc0")
    for length in range(frame + 9):
        assert read_size(np.frombuffer(TILED[:length], np.uint8)) == (0, 0)
    for jpeg in (b"no JPEG at all", jpeg_bytes(PHOTOGRAPH, progressive=True), TILED[:2] + b"\xff" + TILED[2:]):
        assert read_size(np.frombuffer(jpeg, np.uint8)) == (0, 0)


def test_foreign_app9_segments_are_passed_over() -> None:
    foreign = TILED[:2] + segment(0xE9, b"SLUICE") + segment(0xE9, b"something else") + TILED[2:]
    assert crop(foreign, BOX)[0].tobytes() == crop(TILED, BOX)[0].tobytes()
