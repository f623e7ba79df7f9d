"""Files that are complete or absent."""

import contextlib
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, BinaryIO

from pipeline.errors import InputError

_WRITTEN_AT_ONCE = 1 << 19


class HashedWriter:
    """Appends to an open file, half a megabyte and more at a time; `size` and `sha256` are of what was appended.

    Every write and every update of a digest lets go of the GIL, and the threads that prepare images take it: with both
    for each image, the converter needs 1.4 times as much CPU time (`keep`, shards, not verified, 2 threads).
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file, self.size = file, 0
        self._digest, self._held, self._held_size = hashlib.sha256(), list[bytes](), 0

    def write(self, data: bytes) -> None:
        """Append; what is written may be written later."""
        self._held.append(data)
        self._held_size += len(data)
        self.size += len(data)
        if self._held_size >= _WRITTEN_AT_ONCE:
            self._write_held()

    def finish(self) -> str:
        """Write what is left to the file, which stays open. Returns the SHA-256, hexadecimal."""
        self._write_held()
        return self._digest.hexdigest()

    def _write_held(self) -> None:
        data = b"".join(self._held)
        self._held, self._held_size = [], 0
        self._file.write(data)
        self._digest.update(data)


def temporary_path(path: Path) -> Path:
    """Where `path` is written until it is complete."""
    return path.with_name(f".{path.name}.partial")


def publish(file: IO[Any], path: Path) -> None:
    """Close `file`, which was written at temporary_path(path), and give it its name once it is on the disk."""
    file.flush()
    os.fsync(file.fileno())
    file.close()
    move(temporary_path(path), path)


def move(source: Path, path: Path) -> None:
    """Give a file that is on the disk another name on the same file system, for good."""
    os.replace(source, path)
    descriptor = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def discard(file: IO[Any], path: Path) -> None:
    """Close `file` and remove what was written at temporary_path(path)."""
    with contextlib.suppress(OSError):  # closing writes what is left: not to a full disk
        file.close()
    temporary_path(path).unlink(missing_ok=True)


def read_extent(path: Path, start: int, size: int, name: str) -> bytes:
    """`size` bytes of a file from `start` on. Raises InputError, beginning with `name`, if they are not there."""
    try:
        with open(path, "rb", buffering=0) as file:
            data = os.pread(file.fileno(), size, start)
    except OSError as error:
        raise InputError(f"{name}: {error.strerror}") from None
    if len(data) != size:
        raise InputError(f"{name}: truncated; convert again")
    return data


@contextlib.contextmanager
def complete_or_absent(path: Path, mode: str = "w") -> Iterator[IO[Any]]:
    """Open `path` for writing; it appears under its name only when the block ends without an exception."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # Some texts hold file names, which may be any bytes.
    encoding, errors = (None, None) if "b" in mode else ("utf-8", "surrogateescape")
    file = open(temporary_path(path), mode, encoding=encoding, errors=errors)  # noqa: SIM115 (it is closed below)
    try:
        yield file
        publish(file, path)
    except BaseException:
        discard(file, path)
        raise
