"""Files that are read, on this machine or in a bucket."""

import errno
import io
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from ..threads import in_order
from .files import regular
from .remote.paths import RemoteFile, RemotePath

Result = TypeVar("Result")

REQUESTS = 32
"""To object stores at a time: each answer takes 10 to 100 ms to begin, however small it is."""
_MOST_AT_ONCE = 1 << 29  # bytes


def open_to_read(path: Path) -> io.RawIOBase:
    """A file without a buffer. Raises OSError, also for what is no regular file."""
    if isinstance(path, RemotePath):
        return path.open_ranges()
    return open(path, "rb", buffering=0, opener=regular)


def read_at(file: io.RawIOBase, size: int, offset: int) -> bytes:
    """As os.pread, of a file from `open_to_read`. Raises OSError, InputError and StorageError."""
    return file.pread(size, offset) if isinstance(file, RemoteFile) else os.pread(file.fileno(), size, offset)


def status_of(file: io.RawIOBase) -> os.stat_result:
    """As os.fstat, of a file from `open_to_read`."""
    return file.path.stat() if isinstance(file, RemoteFile) else os.fstat(file.fileno())


def will_read(file: io.RawIOBase, size: int, offset: int) -> None:
    """Fetch a range of a remote file at once, of which parts are read next. Locally there is nothing to save."""
    if isinstance(file, RemoteFile) and 0 <= offset < file.size and 0 < size <= _MOST_AT_ONCE:
        file.hold(offset, offset + size)


def any_remote(paths: Iterable[Path]) -> bool:
    """Whether some of these are not on this machine."""
    return any(isinstance(path, RemotePath) for path in paths)


def each(function: Callable[[Path], Result], paths: Sequence[Path]) -> Iterator[Result]:
    """What `function` says of each path, in order; of remote ones it is asked for several at a time."""
    if any_remote(paths):
        return in_order(function, paths, REQUESTS)
    return map(function, paths)


def read_bounded(path: Path, most: int) -> bytes:
    """The content of a file of at most `most` bytes. Raises OSError where it is larger or no file."""
    with open_to_read(path) as file:
        size = status_of(file).st_size
        if size > most:
            raise OSError(errno.EFBIG, f"more than {most} bytes", str(path))
        return file.read(size) or b""  # takes memory for `size` beforehand
