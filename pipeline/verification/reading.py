"""Reads files from start to end once, while hashing or comparing them."""

import hashlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import BinaryIO

from ..errors import InputError
from ..pixels.formats import LARGEST_FILE
from .problems import Problems

CHUNK = 1 << 20  # bytes read at a time between samples
LONGEST_LINE = 4096  # bytes; the lines of an index have about 200


class HashingReader:
    """A range of a file, read once from start to end and hashed."""

    def __init__(self, path: Path, start: int, size: int) -> None:
        self._path, self._at, self._end, self._digest = path, start, start + size, hashlib.sha256()
        self._file = open(path, "rb", buffering=CHUNK)  # noqa: SIM115 (close does)
        self._file.seek(start)

    def read(self, start: int, size: int) -> bytes:
        """`size` bytes from `start` on, which must not be before the end of the last read. Raises InputError."""
        if start < self._at or start + size > self._end or size > LARGEST_FILE:
            raise InputError(f"{self._path}: {size} bytes at byte {start} are no sample in its place")
        self._skip(start - self._at)
        return self._next(size)

    def sha256(self) -> str:
        """Of the whole range. Raises InputError."""
        self._skip(self._end - self._at)
        return self._digest.hexdigest()

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _skip(self, count: int) -> None:
        while count:
            count -= len(self._next(min(count, CHUNK)))

    def _next(self, count: int) -> bytes:
        data = self._file.read(count)
        if len(data) != count:
            raise InputError(f"{self._path}: became shorter while it was read")
        self._digest.update(data)
        self._at += count
        return data


class IndexFile:
    """A shard's index, compared line by line with the shard's content."""

    def __init__(self, path: Path, problems: Problems) -> None:
        self._path, self._problems, self._number = path, problems, 0
        self._lines: Iterator[bytes] | None = None
        self._file: BinaryIO | None = None
        try:
            if not path.exists() or path.is_file():  # opening a pipe would block
                self._file = open(path, "rb")  # noqa: SIM115 (close does)
                self._lines = iter(partial(self._file.readline, LONGEST_LINE), b"")
            else:
                problems.add(path, "not a file")
        except OSError as error:
            problems.add_error(path, error)

    def expect(self, line: str) -> None:
        """The next line must be this one."""
        self._number += 1
        if self._lines and next(self._lines, b"") != line.encode("utf-8", "surrogateescape"):
            self._problems.add(self._path, "does not match the shard", f"line {self._number}")

    def expect_end(self) -> None:
        """No line may follow."""
        if self._lines and next(self._lines, b""):
            self._problems.add(self._path, f"continues after line {self._number}")

    def close(self) -> None:
        """Close the file."""
        if self._file:
            self._file.close()
