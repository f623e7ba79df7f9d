"""Data sets in other people's formats, recognised by their first bytes: what is converted, and not trained from."""

import contextlib
import functools
import shlex
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ..pixels.formats import is_image_name
from .beton import ALLOCATION, HEADER, SMALLEST_PAGE, VERSION
from .folder import is_hidden, split_called
from .reading import each, open_to_read, read_at
from .remote.paths import MOST_OBJECTS, RemotePath

PARQUET, BETON, TFRECORDS = "Parquet files", "FFCV files", "TFRecords"
ZIP, TAR, COMPRESSED = "zip archives", "tar archives", "compressed files"

UNPACK = {b"\x1f\x8b": "gunzip -k", b"BZh": "bunzip2 -k", b"\xfd7zXZ\0": "unxz -k", b"\x28\xb5\x2f\xfd": "zstd -d"}
"""How files that begin with these bytes are unpacked, next to what they were."""

_WRAPPERS = ("data", "default", "ffcv")  # folders around the files: of Hugging Face, its conversions, and our own
_MASK = 0xA282EAD8


def kind_of_file(path: Path) -> str | None:
    """What a file is, None if it is none of these. Raises OSError, also for a pipe or a device."""
    start, size = _start_of(path, path.stat().st_mtime_ns) if isinstance(path, RemotePath) else _read_start(path)
    if start.startswith(b"PAR1"):
        return PARQUET
    if start.startswith((b"PK\3\4", b"PK\5\6")):
        return ZIP
    if start.startswith(tuple(UNPACK)):
        return COMPRESSED
    if path.suffix == ".tar":
        return TAR
    if len(start) < HEADER.itemsize:
        return None
    return BETON if _is_beton(start, size) else TFRECORDS if _is_record(start, size) else None


def _read_start(path: Path) -> tuple[bytes, int]:
    """The first bytes of a file, and its size."""
    with open_to_read(path) as file:
        return read_at(file, HEADER.itemsize, 0), file.seek(0, 2)


@functools.lru_cache(MOST_OBJECTS)  # each takes a request, and is asked for a few times
def _start_of(path: RemotePath, version: int) -> tuple[bytes, int]:
    return _read_start(path)


def readable_kind(path: Path) -> str | None:
    """What a file is, None if it is none of these or cannot be read."""
    with contextlib.suppress(OSError):  # what lies in a folder need not be ours
        return kind_of_file(path)
    return None


def _is_beton(start: bytes, size: int) -> bool:
    header = np.frombuffer(start, HEADER, count=1)[0]
    page, table_at, samples = int(header["page_size"]), int(header["alloc_table_ptr"]), int(header["num_samples"])
    return (
        header["version"] == VERSION
        and header["num_fields"] > 0
        and page >= SMALLEST_PAGE
        and page & page - 1 == 0
        and HEADER.itemsize < table_at < size
        and 0 < samples < size // ALLOCATION.itemsize
    )


def _is_record(start: bytes, size: int) -> bool:
    """Whether a TFRecord begins here: its length and the checksum of that."""
    length = int.from_bytes(start[:8], "little")
    return 0 < length <= size - 16 and masked_checksum(start[:8]) == int.from_bytes(start[8:12], "little")


def masked_checksum(data: bytes) -> int:
    """The CRC-32C of some bytes as TFRecords have it (tensorflow/core/lib/hash/crc32c.h)."""
    from ..pixels.jpeg.checksum import checksum_of  # compiled; whoever trains on folders may not have numba

    crc = checksum_of(data)
    return ((crc >> 15 | crc << 17) + _MASK) & 0xFFFFFFFF


def foreign_files(root: Path) -> dict[Path, str]:
    """The files in a folder that are of these kinds, and in those below it that download tools make around them."""
    files = [*_files_in(root, depth=2)]
    return {path: kind for path, kind in zip(files, each(readable_kind, files), strict=True) if kind}


def _files_in(folder: Path, depth: int) -> Iterator[Path]:
    for path in sorted(folder.iterdir()):
        if is_hidden(path.name) or is_image_name(path.name):
            continue
        if path.is_file():
            yield path
        elif path.is_dir() and depth and (path.name in _WRAPPERS or split_called(path.name)):
            yield from _files_in(path, depth - 1)


def how_to_unpack(path: Path) -> str:
    """The command that unpacks a compressed file. Raises OSError."""
    start, _ = _read_start(path)
    return f"{next(command for magic, command in UNPACK.items() if start.startswith(magic))} {shlex.quote(str(path))}"
