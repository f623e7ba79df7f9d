"""Feeds damaged JPEGs to the checker, the transcoder and the crop kernel. Run by hand; pytest does not collect it.
Needs simplejpeg.

    python tests/pipeline/pixels/jpeg/fuzz_tiles.py --cases 1000000
    NUMBA_BOUNDSCHECK=1 NUMBA_CACHE_DIR=/tmp/checked python tests/pipeline/pixels/jpeg/fuzz_tiles.py --cases 200000

Every array that a kernel gets ends where a page begins that may not be touched, so that a read or write behind it ends
the process with a signal; with NUMBA_BOUNDSCHECK=1 any index out of range raises IndexError. Every case is a function
of the seed and its number, which the last line on a failure names (`--first N --cases 1` repeats it). The tiles of
what is accepted have to decode, to the same pixels; what a strict TurboJPEG thinks of the same files is counted.
"""

import ctypes
import mmap
import random
import re
import sys
from collections import Counter
from pathlib import Path
from typing import Any

sys.path[0] = str(Path(__file__).resolve().parents[4])

import numpy as np  # noqa: E402
import pytest  # noqa: E402
import simplejpeg  # noqa: E402

from pipeline.pixels.jpeg import tiles  # noqa: E402
from pipeline.pixels.jpeg.crop import ALTERED, crop_tiles  # noqa: E402
from pipeline.pixels.jpeg.headers import JpegError, read_header  # noqa: E402
from tests.helpers import fuzzing  # noqa: E402
from tests.helpers.images import decoded, jpeg_bytes, photograph  # noqa: E402
from tests.helpers.jpegs import SAMPLINGS, drawn_jpeg, with_index_version_1  # noqa: E402

REGION = 1 << 22
TELLING_BYTES = bytes([0, 1, 0x7F, 0x80, 0xC4, 0xD0, 0xD3, 0xD7, 0xD9, 0xDA, 0xDD, 0xE9, 0xFE, 0xFF])


class GuardedNumpy:
    """numpy, but arrays from `empty` and `frombuffer` end where a page begins that may not be touched."""

    def __init__(self) -> None:
        self._regions: list[np.ndarray] = []
        self._used = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(np, name)

    def reset(self) -> None:
        """Reuse the regions for the next case."""
        self._used = 0

    def empty(self, shape: Any, dtype: Any) -> np.ndarray:
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        if size > REGION:
            return np.empty(shape, dtype)
        if self._used == len(self._regions):
            self._regions.append(self._region())
        region = self._regions[self._used]
        self._used += 1
        array: np.ndarray = region[REGION - size :].view(dtype).reshape(shape)
        return array

    def frombuffer(self, data: bytes, dtype: Any, count: int = -1, offset: int = 0) -> np.ndarray:
        source = np.frombuffer(data, dtype, count, offset)
        array = self.empty(source.shape, dtype)
        array[:] = source
        array.flags.writeable = False
        return array

    @staticmethod
    def _region() -> np.ndarray:
        memory = mmap.mmap(-1, REGION + mmap.PAGESIZE)
        array = np.frombuffer(memory, np.uint8)
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.mprotect(ctypes.c_void_p(array.ctypes.data + REGION), mmap.PAGESIZE, 0) != 0:
            raise OSError(ctypes.get_errno(), "mprotect")
        return array[:REGION]


def whole_files() -> list[bytes]:
    """Small files of every kind, tiled and not."""
    files = []
    for seed, factors in enumerate(SAMPLINGS.values()):
        files.append(drawn_jpeg(27, 35, factors, seed))
        files.append(drawn_jpeg(20, 33, factors, seed, restart_interval=2))
        files.append(tiles.tile(files[-1], width=1))
    image = photograph(40, 64, seed=1)
    for options in (
        {"subsampling": "4:2:0", "optimize": True},
        {"mode": "L"},
        {"progressive": True},
        {"keep_rgb": True},
    ):
        files.append(jpeg_bytes(image, quality=60, **options))
    return files + [tiles.tile(file, width=2) for file in (files[-4], files[-3], files[-1])]


def damaged(files: list[bytes], rng: random.Random, kinds: int) -> bytes:
    """One of the files with a few changes of the first `kinds` kinds, half of them in the headers."""
    data = bytearray(rng.choice(files))
    for _ in range(rng.choice((1, 1, 1, 2, 3, 6))):
        in_headers = rng.random() < 0.5
        at = rng.randrange(min(len(data), 700) if in_headers else len(data))
        kind = rng.randrange(kinds)
        if kind < 8:
            data[at] ^= 1 << rng.randrange(8)
        elif kind < 14:
            data[at] = rng.choice(TELLING_BYTES)
        elif kind < 16:
            del data[at : at + rng.choice((1, 2, 64))]
        elif kind < 18:
            data[at:at] = rng.choice((b"\0", b"\xff\xd9", b"\xff\xff", rng.randbytes(rng.randrange(40))))
        elif kind == 18:
            other = rng.choice(files)
            data[at:] = other[rng.randrange(len(other)) :]
        else:
            del data[at:]
        if not data:
            break
    return bytes(data)


def verdict(decode: Any) -> str:
    """How a decoder received a file: "decoded", or its error without numbers."""
    try:
        decode()
    except (ValueError, OSError, SyntaxError) as error:
        return re.sub(r"[0-9]+|0x[0-9a-f]+", "#", f"{type(error).__name__}: {error}")
    return "decoded"


def check_transcoding(jpeg: bytes, counts: Counter[str], compare: bool) -> None:
    """Check and tile one file; accepted, it has the same pixels in tiles."""
    try:
        tiles.check_entropy(jpeg)
    except JpegError as error:
        counts["refused"] += 1
        check_refusal(jpeg, str(error), counts, compare)
        return
    try:
        tiled = tiles.tile(jpeg)
    except JpegError as error:  # the only reason left: a difference of two accepted coefficients
        if str(error) != "a DC coefficient out of range":
            raise
        return
    counts["accepted"] += 1
    tiles.check_entropy(tiled)
    header = read_header(jpeg)
    if compare and header.width * header.height < 10**6:
        before = verdict(lambda: decoded(jpeg))
        counts[f"accepted, PIL: {before}"] += 1
        counts[f"accepted, strict TurboJPEG: {verdict(lambda: simplejpeg.decode_jpeg(jpeg, strict=True))}"] += 1
        image = decoded(tiled)
        if before == "decoded":  # PIL alone wants an end marker
            assert np.array_equal(image, decoded(jpeg)), "other pixels"


def check_refusal(jpeg: bytes, reason: str, counts: Counter[str], compare: bool) -> None:
    """Count what was refused although a strict TurboJPEG accepts it."""
    try:
        header = read_header(jpeg)
    except JpegError:
        return
    if compare and header.width * header.height < 10**6:
        opinion = verdict(lambda: simplejpeg.decode_jpeg(jpeg, strict=True))
        counts[f"refused, strict TurboJPEG: {reason if opinion == 'decoded' else 'refused'}"] += 1


def check_crop(jpeg: bytes, rng: random.Random, guarded: GuardedNumpy, counts: Counter[str]) -> None:
    """Crop one file into an output of any size."""
    source = guarded.frombuffer(jpeg, np.uint8)
    out = guarded.empty(rng.choice((len(jpeg), rng.randrange(len(jpeg) + 1))), np.uint8)
    box = [rng.randrange(1, 14) if rng.random() < 0.95 else rng.randrange(-(2**40), 2**40) for _ in range(4)]
    size, top, left = crop_tiles(source, *box, out)
    if size == ALTERED:
        counts["altered"] += 1
        return
    assert 0 <= size <= out.size
    counts["cropped" if size else "not cropped"] += 1
    if size:
        header = read_header(out[:size].tobytes())
        assert 0 <= top <= header.height - box[2]
        assert 0 <= left <= header.width - box[3]


def main() -> None:
    parser = fuzzing.parser(__doc__, 100_000)
    parser.add_argument("--compare-every", type=int, default=10, help="decode every n-th case (0: none)")
    settings = parser.parse_args()
    files, counts, guarded = whole_files(), Counter[str](), GuardedNumpy()
    tiled = [file for file in files if tiles.INDEX_IDENTIFIER in file]
    tiled += map(with_index_version_1, tiled[:])

    def check(case: int, rng: random.Random) -> None:
        guarded.reset()
        jpeg = damaged(files, rng, 20)
        check_transcoding(jpeg, counts, bool(settings.compare_every) and case % settings.compare_every == 0)
        for _ in range(3):
            guarded.reset()
            check_crop(damaged(tiled, rng, 14), rng, guarded, counts)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiles, "np", guarded)
        fuzzing.run(settings, counts, check)


if __name__ == "__main__":
    main()
