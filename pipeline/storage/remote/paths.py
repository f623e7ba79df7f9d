"""Objects in buckets and on web servers as paths, for what looks for files in folders: the source of a conversion.

A folder of a bucket is listed once, by `listed_below`. What has not been listed does not exist, and the system knows
none of these paths: `os.open` of one fails, and finds nothing that is on this machine. Objects are read in ranges. Each
must be what it was when it was listed, or reading ends with an InputError; faults are overcome as client.py says.
"""

import contextlib
import errno
import hashlib
import io
import os
import stat
import time
from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path, PosixPath
from typing import Any, NamedTuple
from urllib.parse import quote

from ...errors import InputError, one_line
from . import helper
from .address import ObjectInfo, address_of, is_bucket, place_of
from .settings import Access
from .traffic import Traffic

MOST_OBJECTS = 1 << 17
"""In a folder that is listed; they take 0.1 GB. ImageNet in shards of any kind has fewer than 10,000."""
_FIRST_AHEAD, _AHEAD = 1 << 16, 1 << 23
"""Bytes that are fetched at a time where a file is read from start to end: 64 KB, then twice as many, up to 8 MB."""

_MOST_AT_ONCE = 1 << 30

traffic = Traffic(1)
"""What this process has read of all remote paths."""


@dataclass(frozen=True)
class _Object:
    address: str  # quoted
    size: int  # bytes
    version: str
    access: Access


_folders: dict[str, dict[str, _Object | None]] = {}
"""What is in each folder that is known, None for a folder in it."""


class RemoteEntry(NamedTuple):
    """What os.DirEntry is for a local folder."""

    name: str
    path: str
    object: _Object | None

    def is_dir(self) -> bool:
        return self.object is None

    def is_file(self) -> bool:
        return self.object is not None

    def is_symlink(self) -> bool:
        return False


class RemotePath(PosixPath):
    """The path of an object or of a folder. As a text, it is an address in which nothing is quoted."""

    def __str__(self) -> str:
        text = super().__str__()
        return address_of(Path(text)) or text

    def __fspath__(self) -> str:
        return str(self)

    @property
    def object(self) -> _Object | None:
        """What has been listed under this name, None for a folder and for nothing."""
        return _folders.get(str(self.parent), {}).get(self.name)

    def is_file(self, **_: Any) -> bool:
        return self.object is not None

    def is_dir(self, **_: Any) -> bool:
        return str(self) in _folders

    def exists(self, **_: Any) -> bool:
        return self.is_file() or self.is_dir()

    def is_symlink(self) -> bool:
        return False

    def absolute(self) -> "RemotePath":
        return self

    def resolve(self, strict: bool = False) -> "RemotePath":
        return self

    def stat(self, **_: Any) -> os.stat_result:
        """Size and version, the latter in place of the time of modification. Raises FileNotFoundError."""
        size, modified = 0, 0
        if self.object:
            size = self.object.size
            modified = int.from_bytes(hashlib.sha256(self.object.version.encode()).digest()[:7], "big")
        elif not self.is_dir():
            raise FileNotFoundError(errno.ENOENT, "no such object", str(self))
        mode = 0o444 | (stat.S_IFREG if self.object else stat.S_IFDIR)
        return os.stat_result((mode, 0, 0, 1, 0, 0, size, 0, 0, 0), {"st_mtime_ns": modified})

    def iterdir(self) -> Generator["RemotePath", None, None]:
        return (self / entry.name for entry in self.scan())

    @contextlib.contextmanager
    def scanned(self) -> Iterator[Iterator[RemoteEntry]]:
        """As os.scandir."""
        yield iter(self.scan())

    def scan(self) -> list[RemoteEntry]:
        """What is in this folder."""
        return [RemoteEntry(name, f"{self}/{name}", found) for name, found in _folders.get(str(self), {}).items()]

    def open_ranges(self) -> "RemoteFile":
        """The object, to read. Raises FileNotFoundError."""
        if self.object is None:
            raise FileNotFoundError(errno.ENOENT, "no such object", str(self))
        return RemoteFile(self, self.object)


class RemoteFile(io.RawIOBase):
    """An object that is read in ranges, by one thread. Whoever reads on where the last range ended, or not far behind
    it, gets what was fetched ahead. Reading raises InputError and StorageError."""

    def __init__(self, path: RemotePath, found: _Object) -> None:
        self.path, self._object, self.size = path, found, found.size
        self._position = self._held_at = self._ahead = 0
        self._held = memoryview(b"")

    def pread(self, size: int, offset: int) -> bytes:
        """As os.pread: fewer bytes at the end of the file alone."""
        stop = min(offset + size, self.size)
        if offset >= stop:
            return b""
        if stop - offset > _MOST_AT_ONCE:
            raise InputError(f"{self.path}: damaged: {stop - offset} bytes of it would be read at once")
        if self._held and offset < self._held_at:  # what was passed, such as a label in front of the next header
            return bytes(_fetched(self._object, offset, stop))
        held_until = self._held_at + len(self._held)
        if stop > held_until:
            goes_on = self._held and offset - held_until < _AHEAD
            self._ahead = min(max(2 * self._ahead, _FIRST_AHEAD), _AHEAD) if goes_on else 0
            self.hold(offset, max(stop, offset + self._ahead))
        at = offset - self._held_at
        return bytes(self._held[at : at + stop - offset])

    def hold(self, start: int, stop: int) -> None:
        """Fetch a range, and keep it until another one is fetched."""
        self._held = memoryview(b"")  # never two at a time
        self._held = memoryview(_fetched(self._object, start, min(stop, self.size)))
        self._held_at = start

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._position = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self.size}[whence]
        return self._position

    def readinto(self, buffer: Any) -> int:
        data = self.pread(len(buffer), self._position)
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)


def _fetched(found: _Object, start: int, stop: int) -> bytearray:
    """A range of an object."""
    began, data, at = time.monotonic(), bytearray(stop - start), 0
    pieces = helper.iterate("stream", found.address, found.access, start, found.size, stop, found.version)
    with closing(pieces):
        for piece in pieces:
            data[at : at + len(piece)] = piece
            at += len(piece)
    assert at == len(data)
    traffic.add(bytes=at, waiting=time.monotonic() - began)
    return data


def read_range(path: RemotePath, size: int, offset: int) -> bytes:
    """A range of an object, and no more. Raises InputError, also if there is no such object, and StorageError."""
    if path.object is None:
        raise InputError(f"{path}: no such object")
    return bytes(_fetched(path.object, offset, offset + size)) if size else b""


def listed_below(address: str, access: Access) -> RemotePath:
    """The path of an object, or that of a folder of a bucket of which everything is listed now. Raises InputError, also
    where there is none or a name is no path, and StorageError."""
    place = place_of(address)
    _check_name(address, place.path.strip("/"))
    root = RemotePath(f"{place.root}/{place.path}")
    if place.path.strip("/") and (info := helper.call("info_of", address, access)):
        _folders.setdefault(str(root.parent), {})[root.name] = _object(address, access, info)
        return root
    if not is_bucket(address):
        raise InputError(f"{address}: no such file; a web server has no folders to list, so name its files")
    infos = helper.call("objects_below", address, access, MOST_OBJECTS)
    if not infos:
        raise InputError(f"{address}: no such object, and no folder with objects")
    _forget(root)
    for info in infos:
        _check_name(address, info.name)
        path = root / info.name
        _folders.setdefault(str(path.parent), {})[path.name] = _object(
            f"{place.root}/{quote('/'.join(filter(None, (place.path.strip('/'), info.name))))}", access, info
        )
    _join_folders(root)
    return root


def _object(address: str, access: Access, info: ObjectInfo) -> _Object:
    return _Object(address, info.size, info.version, access)


def _check_name(address: str, name: str) -> None:
    if name and (one_line(name) != name or {*name.split("/")} & {"", ".", ".."}):
        raise InputError(f"{address}: has an object called {name!a:.80}, which is no path; remove or rename it")


def _forget(root: RemotePath) -> None:
    """What an earlier listing found."""
    for folder in [folder for folder in _folders if folder == str(root) or folder.startswith(f"{root}/")]:
        del _folders[folder]


def _join_folders(root: RemotePath) -> None:
    """Enter each folder in the one above it. Objects of no bytes that consoles make for folders are dropped."""
    _folders.setdefault(str(root), {})
    for folder in [folder for folder in _folders if folder.startswith(f"{root}/")]:
        path = RemotePath(folder)
        while path != root:
            above = _folders.setdefault(str(path.parent), {})
            if (found := above.get(path.name)) and found.size:
                raise InputError(f"{path}: an object, and there are others below it; rename one of them")
            above[path.name] = None
            path = path.parent
