"""CRC-32C: the values of its definition, with and without the processor's instruction."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numba import njit

from pipeline.pixels.jpeg import checksum
from pipeline.pixels.jpeg.checksum import checksum_of, crc32c, in_software, tile_checksums


@njit
def in_two_parts(data: Any, middle: Any) -> Any:
    return crc32c(crc32c(0, data, 0, middle), data, middle, data.size)


@njit
def of_software(data: Any) -> Any:
    return in_software(0, data, 0, data.size)


def bit_by_bit(data: bytes) -> int:
    """The remainder of the division by the polynomial 1EDC6F41, bits reflected (RFC 3720, 12.1)."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


@pytest.mark.parametrize(
    ("data", "crc"),
    [
        (b"", 0),
        (b"123456789", 0xE3069283),
        (bytes(32), 0x8A9136AA),
        (b"\xff" * 32, 0x62A8AB43),
        (bytes(range(32)), 0x46DD794E),
    ],
    ids=["nothing", "digits", "zeros", "ones", "ascending"],
)
def test_examples_of_the_standard(data: bytes, crc: int) -> None:
    """RFC 3720, B.4, and the usual check value."""
    assert checksum_of(data) == bit_by_bit(data) == crc


@given(st.binary(max_size=70), st.data())
def test_any_bytes_in_one_part_or_two(data: bytes, draw: st.DataObject) -> None:
    array = np.frombuffer(bytearray(data), np.uint8)
    middle = draw.draw(st.integers(0, len(data)))
    assert checksum_of(data) == bit_by_bit(data) == in_two_parts(array, middle) == of_software(array)


def test_tiles_are_counted_without_the_marker_behind_each() -> None:
    data = np.frombuffer(bytearray(b"first\xff\xd0second\xff\xd9"), np.uint8)
    assert tile_checksums(data, np.array([5, 6])).tolist() == [bit_by_bit(b"first"), bit_by_bit(b"second")]


def test_the_instruction_is_used_where_the_processor_has_it() -> None:
    assert (crc32c is not in_software) == checksum.HAS_INSTRUCTION
