"""JPEG headers: those of real files, and whatever damage makes of them."""

import contextlib
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.pixels.jpeg.headers import Component, JpegError, JpegHeader, read_header
from tests.helpers.images import jpeg_bytes, photograph, turned

HEIGHT, WIDTH = 61, 83
IMAGE = photograph(HEIGHT, WIDTH, seed=0)
SIMPLE = jpeg_bytes(IMAGE, subsampling="4:2:0")
SOS = bytes([0xFF, 0xDA])


def encoded(mode: str = "RGB", **options: Any) -> bytes:
    return jpeg_bytes(IMAGE, mode, **options)


def sampling(header: JpegHeader) -> list[tuple[int, int]]:
    return [(component.horizontal_sampling, component.vertical_sampling) for component in header.components]


def segment(marker: int, payload: bytes) -> bytes:
    return bytes([0xFF, marker]) + (len(payload) + 2).to_bytes(2, "big") + payload


def with_segment(marker: int, payload: bytes) -> bytes:
    """The simple file with one more segment behind its SOI."""
    return SIMPLE[:2] + segment(marker, payload) + SIMPLE[2:]


def frame_at(jpeg: bytes) -> int:
    """Where the payload of a baseline frame header begins: precision, height, width, components."""
    return jpeg.index(bytes([0xFF, 0xC0])) + 4


@pytest.mark.parametrize(
    ("subsampling", "luma"), [("4:4:4", (1, 1)), ("4:2:2", (2, 1)), ("4:2:0", (2, 2))], ids=["444", "422", "420"]
)
def test_colour_images_with_every_sampling_of_pil(subsampling: str, luma: tuple[int, int]) -> None:
    header = read_header(encoded(subsampling=subsampling))
    assert (header.height, header.width, header.precision) == (HEIGHT, WIDTH, 8)
    assert sampling(header) == [luma, (1, 1), (1, 1)]
    assert [component.identifier for component in header.components] == [1, 2, 3]
    assert [component.quantization_table for component in header.components] == [0, 1, 1]
    assert header.frame_marker == 0xC0
    assert header.restart_interval == 0
    assert header.adobe_transform is None
    assert header.is_decodable_everywhere


def test_grey_image() -> None:
    header = read_header(encoded("L"))
    component = Component(identifier=1, horizontal_sampling=1, vertical_sampling=1, quantization_table=0)
    assert header.components == (component,)
    assert header.is_decodable_everywhere


def test_progressive_image() -> None:
    header = read_header(encoded(progressive=True))
    assert header.frame_marker == 0xC2
    assert (header.height, header.width) == (HEIGHT, WIDTH)
    assert header.is_decodable_everywhere


def test_cmyk_image_is_not_decodable_everywhere() -> None:
    header = read_header(encoded("CMYK"))
    assert len(header.components) == 4
    assert header.adobe_transform == 0
    assert not header.is_decodable_everywhere


def test_rgb_image_without_colour_transform() -> None:
    header = read_header(encoded(keep_rgb=True))
    assert header.adobe_transform == 0
    assert sampling(header) == [(1, 1)] * 3


def test_exif_with_a_thumbnail_does_not_hide_the_image() -> None:
    """A thumbnail is a JPEG inside a segment, with a frame header and a scan of its own."""
    thumbnail = jpeg_bytes(photograph(10, 12, seed=1))
    assert read_header(with_segment(0xE1, b"Exif\0\0" + thumbnail)).width == WIDTH
    assert read_header(encoded(exif=turned())).height == HEIGHT


@pytest.mark.parametrize(("options", "interval"), [({"restart_marker_blocks": 5}, 5), ({"restart_marker_rows": 1}, 6)])
def test_restart_interval(options: dict[str, Any], interval: int) -> None:
    """In MCUs; a row of 83 pixels has 6 MCUs of 16."""
    assert read_header(encoded(subsampling="4:2:0", **options)).restart_interval == interval


def test_12_bit_and_arithmetic_coding_are_not_decodable_everywhere() -> None:
    header = read_header(SIMPLE)
    assert not replace(header, precision=12).is_decodable_everywhere
    assert not replace(header, frame_marker=0xC9).is_decodable_everywhere


def test_scan_offset_is_that_of_the_first_scan() -> None:
    jpeg = encoded(progressive=True)
    assert read_header(jpeg).scan_offset == jpeg.index(SOS)
    assert jpeg.count(SOS) > 1


def test_fill_bytes_before_a_marker_are_skipped() -> None:
    header = read_header(SIMPLE)
    assert read_header(SIMPLE[:2] + b"\xff\xff\xff" + SIMPLE[2:]) == replace(header, scan_offset=header.scan_offset + 3)


def test_largest_segment_is_skipped() -> None:
    assert read_header(with_segment(0xFE, bytes(65533))).width == WIDTH


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "not a JPEG"),
        (b"\x89PNG\r\n\x1a\n", "not a JPEG"),
        (b"\xff\xd8", "truncated"),
        (b"\xff\xd8\xff\xd9", "no image data"),
        (b"\xff\xd8hello", "no marker at byte 2"),
        (b"\xff\xd8" + segment(0xDA, bytes(10)), "a scan without a frame header"),
        (b"\xff\xd8\xff\xe0\x00\x01", "truncated"),
        (with_segment(0xC0, SIMPLE[frame_at(SIMPLE) : frame_at(SIMPLE) + 15]), "two frame headers"),
        (b"\xff\xd8" + segment(0xC0, bytes(5)) + segment(0xDA, bytes(10)), "truncated frame header"),
        (b"\xff\xd8" + segment(0xC0, bytes([8, 0, 9, 0, 9, 3, 1])) + segment(0xDA, b""), "truncated frame header"),
        (b"\xff\xd8" + segment(0xC0, bytes([8, 0, 0, 0, 9, 0])) + segment(0xDA, b""), "an image of 9x0 pixels"),
    ],
)
def test_the_reason_is_given_for_an_unusable_jpeg(data: bytes, message: str) -> None:
    with pytest.raises(JpegError, match=message):
        read_header(data)


def test_truncation_at_any_byte_is_an_error_until_the_scan_begins() -> None:
    whole = read_header(SIMPLE)
    scan_header_end = (
        whole.scan_offset + 2 + int.from_bytes(SIMPLE[whole.scan_offset + 2 : whole.scan_offset + 4], "big")
    )
    for length in range(scan_header_end):
        with pytest.raises(JpegError):
            read_header(SIMPLE[:length])
    for length in range(scan_header_end, len(SIMPLE)):
        assert read_header(SIMPLE[:length]) == whole


def test_any_bit_flipped_gives_a_header_or_a_jpeg_error() -> None:
    headers = np.frombuffer(SIMPLE, np.uint8)[: read_header(SIMPLE).scan_offset + 12]
    for at in range(len(headers)):
        for bit in range(8):
            damaged = headers.copy()
            damaged[at] ^= 1 << bit
            with contextlib.suppress(JpegError):
                assert isinstance(read_header(damaged.tobytes()), JpegHeader)


markers = st.sampled_from([0x00, 0x01, 0xC0, 0xC2, 0xC4, 0xD0, 0xD8, 0xD9, 0xDA, 0xDB, 0xDD, 0xE0, 0xEE, 0xFE, 0xFF])
segments = st.builds(
    lambda marker, length, body: bytes([0xFF, marker, 0, length]) + body,
    markers,
    st.integers(0, 30),
    st.binary(max_size=30),
)


@given(st.one_of(st.binary(max_size=200), st.lists(segments, max_size=6).map(b"".join)))
def test_random_bytes_give_a_header_or_a_jpeg_error(tail: bytes) -> None:
    with contextlib.suppress(JpegError):
        assert isinstance(read_header(b"\xff\xd8" + tail), JpegHeader)
