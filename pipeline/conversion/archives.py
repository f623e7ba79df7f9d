"""Tar archives read in place: where each member's bytes are. Nothing is unpacked."""

import io
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from ..errors import InputError
from ..pixels.formats import is_image_name
from ..storage.reading import open_to_read, read_at, status_of
from ..storage.remote.paths import RemotePath, read_range

_LARGEST = 1 << 24  # bytes: of a header (a long name, or metadata of a member), and of zeros after the last member


class Member(NamedTuple):
    """A regular file in an archive, or in a folder."""

    name: str
    offset: int  # of its first byte, in the outermost archive; -1 in a folder
    size: int
    modified: int  # ns: modification time of the outermost archive


@dataclass(frozen=True)
class RemoteArchive:
    """An archive in a bucket, from which images are read. `list_members` says where they are."""

    path: RemotePath
    largest: int = 0
    read_whole: bool = False

    def read(self, name: str, offset: int, size: int) -> bytes:
        """A member's bytes. Raises InputError, also if the object has changed, and StorageError."""
        return read_range(self.path, size, offset)


def list_members(path: Path, inner: Member | None = None) -> Iterator[Member]:
    """The regular files of an uncompressed archive, or of the archive that is its member `inner`, in order.

    Raises InputError if it is not an archive, is damaged or is truncated.
    """
    name = f"{path}: {inner.name}" if inner else str(path)
    try:
        with open_to_read(path) as file:
            yield from members_in(file, path, inner)
    except OSError as error:
        raise InputError(f"{name}: cannot be read ({error.strerror or error})") from None


def members_in(file: io.RawIOBase, path: Path, inner: Member | None = None) -> Iterator[Member]:
    """`list_members` of a file from `open_to_read`. Raises OSError too."""
    name = f"{path}: {inner.name}" if inner else str(path)
    status = status_of(file)
    start, size = (inner.offset, inner.size) if inner else (0, status.st_size)
    yield from _members(_Section(file, start, size), name, status.st_mtime_ns)


def _members(section: "_Section", name: str, modified: int) -> Iterator[Member]:
    end = 0
    try:
        with tarfile.open(fileobj=section, mode="r:") as archive:  # type: ignore[call-overload]
            while (member := archive.next()) is not None:
                if member.size < 0 or archive.offset <= end:  # or a damaged size could lead into a loop
                    raise InputError(f"{name}: damaged at byte {end}")
                end = archive.offset
                if (member.islnk() or member.issym()) and is_image_name(PurePosixPath(member.name).name):
                    raise InputError(f"{name}: {member.name} is a link; make the archive with --hard-dereference -h")
                if member.isreg():
                    _check(member, section, name)
                    yield Member(member.name, section.start + member.offset_data, member.size, modified)
                archive.members = []  # or every header would stay in memory
    except (InputError, OSError):
        raise
    except Exception as error:  # damaged data makes tarfile raise exceptions of any type
        raise InputError(f"{name}: not a tar archive, or damaged ({error})") from None
    _check_end(section, end, name)


def _check(member: tarfile.TarInfo, section: "_Section", name: str) -> None:
    if member.issparse():
        raise InputError(f"{name}: {member.name} is stored with holes; make the archive without tar's --sparse")
    if member.offset_data + member.size > section.size:
        raise InputError(f"{name}: truncated in {member.name}")


def _check_end(section: "_Section", end: int, name: str) -> None:
    """Raises InputError unless only zeros follow: a header that a broken download has left empty looks like the end."""
    left = section.size - end
    if left < tarfile.BLOCKSIZE:
        raise InputError(f"{name}: truncated (no end of the archive)")
    section.seek(end)
    if left > _LARGEST or section.read(left).strip(b"\0"):
        raise InputError(f"{name}: damaged at byte {end}, or an incomplete download")


class _Section:
    """A range of a file, as a file for tarfile."""

    def __init__(self, file: io.RawIOBase, start: int, size: int) -> None:
        self._file, self.start, self.size, self._at = file, start, size, 0

    def tell(self) -> int:
        return self._at

    def seek(self, at: int) -> int:
        self._at = at
        return at

    def read(self, count: int) -> bytes:
        if count > _LARGEST:
            raise ValueError(f"a header of {count} bytes")
        data = read_at(self._file, max(0, min(count, self.size - self._at)), self.start + self._at)
        self._at += len(data)
        return data
