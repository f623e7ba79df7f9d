"""Reads the headers of a JPEG file: size, coding process, components.

Source: ITU-T T.81 (JPEG), annex B; the Adobe segment as in Adobe Technical Note 5116. The bytes are not
trusted: every length is checked before it is used.
"""

from collections.abc import Iterator
from dataclasses import dataclass

SOI = 0xD8
EOI = 0xD9
SOS = 0xDA
DQT = 0xDB
DHT = 0xC4
DRI = 0xDD
APP0 = 0xE0
APP9 = 0xE9
APP14 = 0xEE
COM = 0xFE
TEM = 0x01
RESTARTS = range(0xD0, 0xD8)
START_OF_FRAME = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # C4, C8, CC are DHT, JPG, DAC
SEQUENTIAL_HUFFMAN = (0xC0, 0xC1)
PROGRESSIVE_HUFFMAN = 0xC2


class JpegError(ValueError):
    """The bytes are not a JPEG that can be used; the message says why."""


@dataclass(frozen=True, kw_only=True)
class Component:
    """One colour component of the frame header."""

    identifier: int
    horizontal_sampling: int
    vertical_sampling: int
    quantization_table: int


@dataclass(frozen=True, kw_only=True)
class JpegHeader:
    """What the segments before the first scan say."""

    height: int
    width: int
    precision: int  # bits per sample
    frame_marker: int  # 0xC0 baseline, 0xC1 extended sequential, 0xC2 progressive, ...
    components: tuple[Component, ...]
    restart_interval: int  # in MCUs, 0 for none
    adobe_transform: int | None  # colour transform of an Adobe segment, None without one
    scan_offset: int  # of the first SOS marker

    @property
    def is_decodable_everywhere(self) -> bool:
        """Whether every JPEG decoder turns it into RGB: 8-bit, Huffman-coded, grey or three components."""
        return (
            self.precision == 8
            and self.frame_marker in (*SEQUENTIAL_HUFFMAN, PROGRESSIVE_HUFFMAN)
            and len(self.components) in (1, 3)
        )


def segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """The segments up to and including the first scan header: marker, start and end of the payload.

    Marker and length field are the four bytes before the payload. Raises JpegError.
    """
    if data[:2] != bytes([0xFF, SOI]):
        raise JpegError("not a JPEG (it does not begin with FF D8)")
    marker, offset = SOI, 2
    while marker != SOS:
        marker, offset = _next_marker(data, offset)
        if marker == TEM or marker in RESTARTS:
            continue
        if marker == SOI:
            raise JpegError("two start markers")
        if marker == EOI:
            raise JpegError("no image data before the end marker")
        end = _segment_end(data, offset)
        yield marker, offset + 2, end
        offset = end


def read_header(data: bytes) -> JpegHeader:
    """Parse the segments up to the first scan. Raises JpegError."""
    frame: tuple[int, bytes] | None = None
    restart_interval, adobe_transform, scan_offset = 0, None, 0
    for marker, start, end in segments(data):
        if marker in START_OF_FRAME:
            if frame is not None:
                raise JpegError("two frame headers")
            frame = marker, data[start:end]
        elif marker == DRI and end - start >= 2:
            restart_interval = int.from_bytes(data[start : start + 2], "big")
        elif marker == APP14 and end - start >= 12 and data[start : start + 5] == b"Adobe":
            adobe_transform = data[start + 11]
        elif marker == SOS:
            scan_offset = start - 4
    if frame is None:
        raise JpegError("a scan without a frame header")
    return _frame_header(*frame, restart_interval, adobe_transform, scan_offset)


def _next_marker(data: bytes, offset: int) -> tuple[int, int]:
    """The marker at `offset`, after any fill bytes, and the offset behind it."""
    while offset + 1 < len(data):
        if data[offset] != 0xFF:
            raise JpegError(f"no marker at byte {offset}")
        if data[offset + 1] != 0xFF:
            return data[offset + 1], offset + 2
        offset += 1
    raise JpegError("truncated in the headers")


def _segment_end(data: bytes, offset: int) -> int:
    """The end of the segment whose length field is at `offset`."""
    length = int.from_bytes(data[offset : offset + 2], "big")
    if length < 2 or offset + length > len(data):
        raise JpegError("truncated in the headers")
    return offset + length


def _frame_header(
    marker: int, payload: bytes, restart_interval: int, adobe_transform: int | None, scan_offset: int
) -> JpegHeader:
    if len(payload) < 6 or len(payload) < 6 + 3 * payload[5]:
        raise JpegError("truncated frame header")
    height, width = int.from_bytes(payload[1:3], "big"), int.from_bytes(payload[3:5], "big")
    if height == 0 or width == 0:
        raise JpegError(f"an image of {width}x{height} pixels")
    components = tuple(
        Component(
            identifier=payload[at],
            horizontal_sampling=payload[at + 1] >> 4,
            vertical_sampling=payload[at + 1] & 15,
            quantization_table=payload[at + 2],
        )
        for at in range(6, 6 + 3 * payload[5], 3)
    )
    return JpegHeader(
        height=height,
        width=width,
        precision=payload[0],
        frame_marker=marker,
        components=components,
        restart_interval=restart_interval,
        adobe_transform=adobe_transform,
        scan_offset=scan_offset,
    )
