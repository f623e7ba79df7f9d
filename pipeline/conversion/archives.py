"""Tar archives read in place: where each member's bytes are. Nothing is unpacked."""

import io
import re
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from ..errors import InputError
from ..pixels.formats import is_image_name
from ..storage.reading import open_to_read, read_at, status_of
from ..storage.remote.paths import RemotePath, read_range

_LARGEST = 1 << 24  # bytes of zeros after the last member
_LARGEST_HEADER = 1 << 20  # bytes of a long name, or of metadata of a member
_LONGEST_NAME = 1 << 12  # characters of a member's name, as Linux takes of a path
_MOST_RECORDS = 1 << 10  # of metadata; a member has a few
_TOO_MANY_DIGITS = re.compile(rb"[0-9]{256}")  # the name of a file has 255 bytes
_RECORD = re.compile(rb"([0-9]{1,20}) [^=]{1,1024}=")  # its length in bytes, and a keyword
_METADATA = (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE)
_LONG_NAMES = (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK)
_TYPE = slice(156, 157)  # of a header block: what the member is


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
    section = _Section(lambda count, at: read_at(file, count, at), start, size)
    yield from _members(section, name, status.st_mtime_ns)


def list_unpacked(data: bytes, name: str) -> Iterator[Member]:
    """`list_members` of an archive that is in memory, called `name` in messages."""
    yield from _members(_Section(lambda count, at: data[at : at + count], 0, len(data)), name, 0)


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
    if len(member.name) > _LONGEST_NAME:  # metadata of all members can say one of megabytes for each of thousands
        raise InputError(f"{name}: damaged, or a member has a name of {len(member.name)} characters")
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
    """A range of a file, as a file for tarfile; `read` gives so many bytes from an offset on."""

    def __init__(self, read: Callable[[int, int], bytes], start: int, size: int) -> None:
        self._read, self.start, self.size, self._at = read, start, size, 0
        self._kind = b""  # of the header block that was read last, if nothing else was read since
        self._records = 0  # that hold for all further members

    def tell(self) -> int:
        return self._at

    def seek(self, at: int) -> int:
        self._at = at
        return at

    def read(self, count: int) -> bytes:
        if count > _LARGEST_HEADER:
            raise ValueError(f"a header of {count} bytes")
        data = self._read(max(0, min(count, self.size - self._at)), self.start + self._at)
        self._at += len(data)
        before, self._kind = self._kind, b""
        if before in _METADATA:
            self._check_metadata(data, before)
        elif before not in _LONG_NAMES and count == tarfile.BLOCKSIZE:
            self._kind = data[_TYPE]
        return data

    def _check_metadata(self, data: bytes, kind: bytes) -> None:
        """Raises ValueError for records that fill memory or time. Before Python 3.11.10 and 3.12.6, tarfile looks
        through digits again and again (CVE-2024-6232), and takes keywords that are longer than their record."""
        if _TOO_MANY_DIGITS.search(data):
            raise ValueError("metadata without end")
        at = count = 0
        while data[at : at + 1].isdigit():
            record = _RECORD.match(data, at)
            if record is None or record.end() > at + int(record[1]):
                raise ValueError("metadata that are none")
            at, count = at + int(record[1]), count + 1
        self._records += count if kind == tarfile.XGLTYPE else 0
        if max(count, self._records) > _MOST_RECORDS:
            raise ValueError(f"more than {_MOST_RECORDS} records of metadata")
