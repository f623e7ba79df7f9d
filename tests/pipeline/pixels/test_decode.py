"""Images whose headers promise more pixels than any memory: refused before any is decoded."""

import struct
import zlib
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from pipeline.contract import NO_CLOCK
from pipeline.errors import InputError
from pipeline.pixels.decode import decode, load_image
from tests.helpers.images import jpeg_bytes, photograph

SIDE = 65_500
SAMPLES = SimpleNamespace(name=lambda index: f"sample {index}", remedy="convert again")


def huge_jpeg(**options: Any) -> bytes:
    """A JPEG of 32 x 32 pixels whose header says more."""
    jpeg = bytearray(jpeg_bytes(photograph(32, 32, seed=1), **options))
    at = next(jpeg.index(marker) for marker in (b"\xff\xc0", b"\xff\xc2") if marker in jpeg)
    jpeg[at + 5 : at + 9] = struct.pack(">HH", SIDE, SIDE)
    return bytes(jpeg)


def huge_png() -> bytes:
    """A PNG as large, of few bytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", SIDE, SIDE, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(bytes(1 << 20))) + chunk(b"IEND", b"")


HUGE = {"baseline": huge_jpeg(), "progressive": huge_jpeg(progressive=True), "PNG": huge_png()}


@pytest.mark.parametrize("stored", HUGE.values(), ids=HUGE.keys())
def test_an_image_of_12_gb_is_refused(stored: bytes) -> None:
    spec = SimpleNamespace(clock=NO_CLOCK, decoder="auto")
    with pytest.raises(InputError, match=r"^sample 7: .*(65500x65500|4290250000) pixels"):
        decode(SAMPLES, 7, stored)
    with pytest.raises(InputError, match=r"^sample 7: .*(65500x65500|4290250000) pixels"):
        load_image(spec, SAMPLES, 7, stored, 0, np.empty((32, 32, 3), np.uint8))  # type: ignore[arg-type]
