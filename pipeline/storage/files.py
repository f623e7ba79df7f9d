"""Files that are complete or absent."""

import contextlib
import errno
import functools
import hashlib
import logging
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from ..errors import StorageError

log = logging.getLogger(__name__)

_WRITTEN_AT_ONCE = 1 << 19


class HashedWriter:
    """Appends to an open file, at least half a megabyte at a time; counts and hashes what it appends.

    Every write and every update of a digest releases the GIL, and the threads that prepare images take it: with both
    for each image, the converter needs 1.4 times as much CPU time (`keep`, shards, not verified, 2 threads).
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self.size = file, 0
        self._digest, self._held, self._held_size = hashlib.sha256(), list[bytes](), 0

    def write(self, data: bytes) -> None:
        """Append; the data may be held back until more has come."""
        self._held.append(data)
        self._held_size += len(data)
        self.size += len(data)
        if self._held_size >= _WRITTEN_AT_ONCE:
            self._write_held()

    def finish(self) -> str:
        """Write what is held back; the file stays open. Returns the SHA-256 of all data, hexadecimal."""
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


def open_temporary(path: Path, mode: str, **options: Any) -> IO[Any]:
    """Open temporary_path(path) for writing: a new file, whatever was there before. A link that somebody has put there
    is removed, not followed."""
    temporary_path(path).unlink(missing_ok=True)
    file: IO[Any] = open(temporary_path(path), mode.replace("w", "x"), **options)  # noqa: SIM115 (the caller's)
    return file


def regular(path: str, flags: int) -> int:
    """An `opener` for `open` where strangers may have put something else than a file: through a link, this process
    would write into any of its user's files, and at a pipe it would wait for ever. Raises OSError."""
    following = os.O_NOFOLLOW if flags & (os.O_WRONLY | os.O_RDWR) else 0
    try:
        descriptor = os.open(path, flags | os.O_NONBLOCK | following, 0o666)
    except OSError as error:
        if error.errno == errno.ELOOP and following:
            raise OSError(errno.ELOOP, "is a link, which is not followed; remove it", path) from None
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "is no regular file", path)
    return descriptor


def own_lock(path: str, flags: int) -> int:
    """As `regular`, for a lock file: others may not open it, for who may read a file can lock it, and hold it for
    ever."""
    descriptor = regular(path, flags)
    with contextlib.suppress(PermissionError):  # root's, or on a file system without modes
        os.fchmod(descriptor, 0o600)
    return descriptor


def link_of_others(folder: Path) -> Path | None:
    """A link that another user has made: `folder` itself, or what is directly in it. It may lead to any file or folder
    of this user. Links of one's own, say to another disk, may be followed. Raises OSError."""
    found = [folder] if folder.is_symlink() else []
    if folder.is_dir():
        with os.scandir(folder) as entries:
            found += [Path(entry.path) for entry in entries if entry.is_symlink()]
    return next((link for link in found if link.lstat().st_uid not in (0, os.geteuid())), None)


def publish(file: IO[Any], path: Path) -> None:
    """Close `file`, which was written at temporary_path(path), and give it its name once it is on the disk."""
    flush(file)
    file.close()
    move(temporary_path(path), path)


def flush(file: IO[Any]) -> None:
    """Bring everything that was written to `file` to the disk."""
    file.flush()
    os.fsync(file.fileno())


def move(source: Path, path: Path) -> None:
    """Rename a file that is on the disk, on the same file system; the new name survives a power failure."""
    os.replace(source, path)
    flush_names(path.parent)


def flush_names(folder: Path) -> None:
    """Bring the names of the files in a folder to the disk, where its file system can do that for folders."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS, errno.EBADF):
            raise
        _warn_of_unflushed_names(folder, error.errno)
    finally:
        os.close(descriptor)


@functools.cache
def _warn_of_unflushed_names(folder: Path, number: int) -> None:
    reason = os.strerror(number)
    log.warning("%s: its file system cannot flush folders (%s): a power failure may undo renames", folder, reason)


def discard(file: IO[Any], path: Path) -> None:
    """Close `file` and remove what was written at temporary_path(path)."""
    with contextlib.suppress(OSError):  # closing writes the rest, which fails on a full disk
        file.close()
    temporary_path(path).unlink(missing_ok=True)


def check_unchanged(path: Path, size: int) -> None:
    """Raises StorageError where a file no longer has the size that it had when it was opened, or has vanished."""
    try:
        actual = path.stat().st_size
    except OSError as error:
        raise StorageError(f"{path}: {error.strerror}") from None
    if actual != size:
        raise StorageError(f"{path}: {actual} bytes, and {size} when it was opened; restore it, or convert again")


def read_extent(path: Path | str, start: int, size: int, name: str) -> bytes:
    """Read `size` bytes of a file from the offset `start`. Raises StorageError, beginning with `name`, where it cannot
    be read, or has become too short since its size was checked."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # a pipe is not waited for
        try:
            data = os.pread(descriptor, size, start)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise StorageError(f"{name}: {error.strerror}") from None
    if len(data) != size:
        raise StorageError(f"{name}: truncated; convert again")
    return data


@contextlib.contextmanager
def complete_or_absent(path: Path, mode: str = "w") -> Iterator[IO[Any]]:
    """Open `path` for writing; it appears under its name only if the block ends without an exception."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # Some texts contain file names, which may be any bytes.
    encoding, errors = (None, None) if "b" in mode else ("utf-8", "surrogateescape")
    file = open_temporary(path, mode, encoding=encoding, errors=errors)
    try:
        yield file
        publish(file, path)
    except BaseException:
        discard(file, path)
        raise
