"""Zip archives read in place, such as Kaggle's: where each member is, and its bytes. Nothing is unpacked.

The format is that of PKWARE's APPNOTE.TXT 6.3.10, with members that are stored or deflated, and with its 64-bit
extension. The archive's directory is read as a stream: `zipfile` would hold an object of 600 bytes for each of the 2
million members of Kaggle's download.
"""

import io
import shlex
import stat
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from ..errors import InputError
from ..pixels.formats import LARGEST_FILE, BadImage, is_image_name
from ..storage.reading import open_to_read, read_at, status_of, will_read
from .archives import Member

_RECORD = struct.Struct("<4s6H3L5H2L")  # 4.3.12: of a member, in the directory
_LOCAL = struct.Struct("<4s5H3L2H")  # 4.3.7: in front of its bytes
_END, _LOCATOR, _END_64 = struct.Struct("<4s4H2LH"), struct.Struct("<4sLQL"), struct.Struct("<4sQ2H2L4Q")
_STORED, _DEFLATED = 0, 8
_ENCRYPTED, _UTF_8 = 1, 1 << 11
_LARGEST_COMMENT = 1 << 16
_USUAL_NAME = 1 << 10  # bytes of a name and what follows it, of a member; a few times as many as any
_LARGEST_NUMBER = 1 << 62  # of a size or an offset: the system takes it, and what is added to it
_AT_ONCE = 1 << 20  # bytes of the directory
_COUNTED_TO = 1 << 16  # members, by what has 16 bits for their number
_LARGEST_RATIO = 1032  # of deflated data: 258 bytes for 2 bits (zlib.net/zlib_tech.html)


class _Record(NamedTuple):
    """A member, as the directory describes it."""

    name: str
    flags: int
    method: int
    checksum: int
    stored: int  # bytes in the archive
    size: int
    offset: int  # of its local header
    mode: int  # of a Unix file


def list_zip_members(path: Path) -> Iterator[Member]:
    """The regular files of a zip archive, in the order of its directory; `offset` is that of a member's entry there.

    Raises InputError if it is damaged or truncated, if members overlap, or if an image in it is encrypted or compressed
    in another way.
    """
    try:
        with open_to_read(path) as file:
            status, stored = status_of(file), 0
            for at, record in _records(file, path, status.st_size):
                if record.name.endswith("/"):
                    continue
                stored += record.stored if record.stored <= LARGEST_FILE else 0  # larger ones are never read
                if stored > status.st_size:  # a few bytes, inflated a million times, would hardly end
                    raise InputError(f"{path}: its members overlap; download it again")
                if is_image_name(PurePosixPath(record.name).name):
                    _check(record, path)
                yield Member(record.name, at, record.size, status.st_mtime_ns)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from None


def _check(record: _Record, path: Path) -> None:
    if record.flags & _ENCRYPTED:
        raise InputError(f"{path}: {record.name} is encrypted; unpack the archive")
    if record.method not in (_STORED, _DEFLATED):
        raise InputError(f"{path}: {record.name} is compressed by method {record.method}; unpack the archive")
    if not _is_possible(record):
        raise InputError(f"{path}: {record.name} is said to have {record.size} bytes, which it cannot; remove it")
    if stat.S_ISLNK(record.mode):
        raise InputError(f"{path}: {record.name} is a link; unpack the archive")


def _is_possible(record: _Record) -> bool:
    """Whether a member can have the size that the directory says, and may."""
    return record.size <= min(LARGEST_FILE, _LARGEST_RATIO * record.stored)


def _records(file: io.RawIOBase, path: Path, size: int) -> Iterator[tuple[int, _Record]]:
    """Every member's record, and where it is."""
    start, end, count = _directory(file, path, size)
    buffer, at, base, found = b"", 0, start, 0  # `base` is the offset of buffer[0]
    while base + at < end:
        if len(buffer) - at < _RECORD.size + 3 * _LARGEST_COMMENT and base + len(buffer) < end:
            base += at
            buffer = read_at(file, min(_AT_ONCE, end - base), base)
            at = 0
        record, length = _record(buffer, at, path)
        yield base + at, record
        at, found = at + length, found + 1
    # Programs without the 64-bit extension, as macOS's, count modulo 65,536.
    if base + at != end or (found - count) % _COUNTED_TO:
        raise InputError(f"{path}: its directory is damaged: it has {found} members, and says {count}")


def _record(buffer: bytes, at: int, path: Path) -> tuple[_Record, int]:
    """The record at `at`, and its length. Raises InputError."""
    fields = _RECORD.unpack_from(buffer, at) if at + _RECORD.size <= len(buffer) else (b"",)
    if fields[0] != b"PK\1\2":
        raise InputError(f"{path}: its directory is damaged; download it again")
    (flags, method), (checksum, stored, size, name_size, extra_size, comment_size) = fields[3:5], fields[7:13]
    attributes, offset = fields[15:17]
    name_at, extra_at = at + _RECORD.size, at + _RECORD.size + name_size
    name, extra = buffer[name_at:extra_at], buffer[extra_at : extra_at + extra_size]
    if 0xFFFFFFFF in (stored, size, offset):
        size, stored, offset = _extended(extra, (size, stored, offset), path)
    if max(size, offset) > _LARGEST_NUMBER:
        raise InputError(f"{path}: its directory is damaged; download it again")
    text = name.decode("utf-8" if flags & _UTF_8 else "cp437", "replace")
    length = _RECORD.size + name_size + extra_size + comment_size
    return _Record(text, flags, method, checksum, stored, size, offset, attributes >> 16), length


def _extended(extra: bytes, values: tuple[int, ...], path: Path) -> list[int]:
    """Values of which those that do not fit into 32 bits are in the extra field (4.5.3)."""
    at = 0
    while at + 4 <= len(extra):
        kind, size = struct.unpack_from("<2H", extra, at)
        if kind == 1 and at + 4 + size <= len(extra):
            wide = iter(struct.unpack_from(f"<{size // 8}Q", extra, at + 4))
            try:
                return [next(wide) if value == 0xFFFFFFFF else value for value in values]
            except StopIteration:
                break
        at += 4 + size
    raise InputError(f"{path}: its directory is damaged; download it again")


def _directory(file: io.RawIOBase, path: Path, size: int) -> tuple[int, int, int]:
    """Where the directory begins and ends, and how many members it has (4.3.14 to 4.3.16)."""
    tail_at = max(0, size - _END.size - _LARGEST_COMMENT)
    tail = read_at(file, size - tail_at, tail_at)
    at = tail.rfind(b"PK\5\6")
    if at < 0 or at + _END.size > len(tail):
        raise InputError(f"{path}: truncated, it has no directory at its end; download it again")
    _, disk, _, _, count, length, start, _ = _END.unpack_from(tail, at)
    locator = read_at(file, _LOCATOR.size, max(0, tail_at + at - _LOCATOR.size))
    if locator.startswith(b"PK\6\7"):
        end_64 = read_at(file, _END_64.size, min(_LOCATOR.unpack(locator)[2], size))
        if len(end_64) < _END_64.size or not end_64.startswith(b"PK\6\6"):
            raise InputError(f"{path}: its directory is damaged; download it again")
        _, _, _, _, disk, _, _, count, length, start = _END_64.unpack(end_64)
    if disk:
        raise InputError(
            f"{path}: one of several pieces; join them with `zip -s 0 {shlex.quote(str(path))} --out whole.zip`"
        )
    if start + length > tail_at + at or count * _RECORD.size > length:
        raise InputError(f"{path}: its directory is damaged; download it again")
    return start, start + length, count


@dataclass(frozen=True)
class ZipArchive:
    """A zip archive that images are read from. `list_zip_members` says where they are."""

    path: Path
    largest: int = 0
    read_whole: bool = False

    def read(self, name: str, offset: int, size: int) -> bytes:
        """A member's bytes. Raises BadImage if it is damaged, InputError if the archive has changed."""
        try:
            with open_to_read(self.path) as file:
                return self._read(file, name, offset, size)
        except OSError as error:
            raise InputError(f"{self.path}: cannot be read ({error.strerror})") from None

    def _read(self, file: io.RawIOBase, name: str, offset: int, size: int) -> bytes:
        entry = read_at(file, _RECORD.size + _USUAL_NAME, offset)
        if len(entry) >= _RECORD.size and sum(_RECORD.unpack_from(entry)[10:12]) > _USUAL_NAME:
            entry = read_at(file, _RECORD.size + 2 * _LARGEST_COMMENT, offset)
        record, _ = _record(entry, 0, self.path)
        if (record.name, record.size) != (name, size):
            raise InputError(f"{self.path}: has changed while it was being converted; start again")
        if record.stored > LARGEST_FILE:
            raise BadImage(f"{record.stored} bytes, of at most {LARGEST_FILE}")
        if not _is_possible(record):
            raise BadImage(f"said to have {record.size} bytes, which it cannot")
        will_read(file, _LOCAL.size + _USUAL_NAME + record.stored, record.offset)
        header = read_at(file, _LOCAL.size, record.offset)
        if len(header) < _LOCAL.size or not header.startswith(b"PK\3\4"):
            raise BadImage("the archive is damaged here")
        data_at = record.offset + _LOCAL.size + sum(_LOCAL.unpack(header)[-2:])
        data = read_at(file, record.stored, data_at)
        if record.method == _DEFLATED:
            data = _inflated(data, record.size)
        if len(data) != record.size or zlib.crc32(data) != record.checksum:
            raise BadImage("the archive is damaged here: the checksum is another")
        return data


def read_zipped(path: Path, name: str, limit: int) -> bytes:
    """The bytes of a member by its name, if it has less than `limit`. Raises InputError."""
    for member in list_zip_members(path):
        if member.name == name and member.size < limit:
            try:
                return ZipArchive(path).read(name, member.offset, member.size)
            except BadImage as error:
                raise InputError(f"{path}: {name}: {error}") from None
    raise InputError(f"{path}: has no file {name} of less than {limit} bytes")


def _inflated(data: bytes, size: int) -> bytes:
    """Deflated data, of which no more than one byte above `size` is made."""
    try:
        return zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, size + 1)
    except zlib.error as error:
        raise BadImage(f"the archive is damaged here ({error})") from None
