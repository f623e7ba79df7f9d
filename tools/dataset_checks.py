"""Checks of a converted dataset's contents: shards, their indices and pages of `.beton` files, sample by sample."""

import contextlib
import hashlib
import itertools
from collections import Counter
from collections.abc import Container, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import NamedTuple

from pipeline.conversion.images import LARGEST_PIXELS, check_jpeg
from pipeline.dataset import MANIFEST
from pipeline.errors import InputError
from pipeline.formats.archives import Member, list_members
from pipeline.formats.beton import MODE_JPEG, MODE_RAW, BetonSamples, Extent
from pipeline.formats.shards import INDEX_VERSION, ShardInfo, parse_label, sample_key
from pipeline.jpeg.headers import read_header
from tools.contact_sheet import Picture, thumbnail

CHUNK = 1 << 20  # bytes that are read at a time where no sample is looked at
LARGEST_SAMPLE = 3 * LARGEST_PIXELS  # bytes: raw pixels of the largest image that is converted
LARGEST_LABEL = 32  # bytes of a .cls file
LONGEST_LINE = 4096  # bytes; the lines of an index have about 200
LONGEST_TOLD = 400  # characters of a problem
LISTED = 5  # problems of one kind in one file that are told one by one


class Problems:
    """Lines that say what is wrong. Of one kind in one file the first few are told, the rest is counted."""

    def __init__(self) -> None:
        self.count, self._lines, self._kinds = 0, list[str](), Counter[tuple[str, str]]()

    def add(self, path: Path, what: str, where: str = "", detail: str = "") -> None:
        """`what` names the kind, in words; `where` and `detail` are about this one."""
        kind = str(path), what
        self._kinds[kind] += 1
        self.count += 1
        if self._kinds[kind] <= LISTED:
            self._lines.append(f"{path}: {where}{': ' if where else ''}{what}{detail}")

    def add_error(self, path: Path, error: InputError | OSError) -> None:
        """What was raised while a file was read; an InputError names it already."""
        if isinstance(error, InputError):
            self.count += 1
            self._lines.append(str(error))
        elif isinstance(error, FileNotFoundError):
            self.add(path, "missing")
        else:
            self.add(path, f"cannot be read ({error.strerror or error})")

    def about(self, path: Path) -> bool:
        """Whether any is about this file."""
        return any(line.startswith(f"{path}: ") for line in self._lines)

    def extend(self, others: "Problems") -> None:
        """Add what others found of other kinds."""
        self.count += others.count
        self._lines += others._lines
        self._kinds += others._kinds

    def lines(self) -> list[str]:
        """Each one line, whatever names are in it."""
        rest = [f"{path}: {n - LISTED} more: {what}" for (path, what), n in self._kinds.items() if n > LISTED]
        return [
            "".join(letter if letter.isprintable() else "?" for letter in line[:LONGEST_TOLD])
            for line in [*self._lines, *rest]
        ]


class Stored(NamedTuple):
    """A sample as it was read."""

    name: str
    data: bytes
    label: int | None  # None where there is none that can be read
    mode: int
    size: tuple[int, int] | None  # height and width on record


@dataclass(frozen=True, kw_only=True)
class Piece:
    """What one thread checks: a shard and the pages with the same samples, either alone, or no sample at all."""

    split: str
    first: int = 0  # dataset position of its first sample
    number: int = 0  # of the shard
    shard: ShardInfo | None = None
    beton: Path | None = None
    start: int = 0  # of the extent
    extent: Extent | None = None
    samples: BetonSamples | None = None  # where the beton's tables can be read
    rows: range = range(0)  # of the tables

    @property
    def bytes(self) -> int:
        """Bytes to read."""
        return (self.shard.bytes if self.shard else 0) + (self.extent.bytes if self.extent else 0)


@dataclass
class Outcome:
    """What became of a piece."""

    problems: Problems = field(default_factory=Problems)
    bytes: int = 0  # of its images
    decoded: int = 0
    pictures: "dict[int, Picture]" = field(default_factory=dict)  # by dataset position


class Reader:
    """A piece of a file, read once from start to end. Everything that passes is hashed."""

    def __init__(self, path: Path, start: int, size: int) -> None:
        self._path, self._at, self._end, self._digest = path, start, start + size, hashlib.sha256()
        self._file = open(path, "rb", buffering=CHUNK)  # noqa: SIM115 (close does)
        self._file.seek(start)

    def read(self, start: int, size: int) -> bytes:
        """`size` bytes from `start` on, which is not before what has passed. Raises InputError."""
        if start < self._at or start + size > self._end or size > LARGEST_SAMPLE:
            raise InputError(f"{self._path}: {size} bytes at byte {start} are no sample in their place")
        self._pass(start - self._at)
        return self._take(size)

    def sha256(self) -> str:
        """Of the whole piece. Raises InputError."""
        self._pass(self._end - self._at)
        return self._digest.hexdigest()

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _pass(self, count: int) -> None:
        while count:
            count -= len(self._take(min(count, CHUNK)))

    def _take(self, count: int) -> bytes:
        data = self._file.read(count)
        if len(data) != count:
            raise InputError(f"{self._path}: became shorter while it was read")
        self._digest.update(data)
        self._at += count
        return data


class IndexFile:
    """A shard's index, compared line by line with what the shard holds."""

    def __init__(self, path: Path, problems: Problems) -> None:
        self._path, self._problems, self._number = path, problems, 0
        self._lines: Iterator[bytes] | None = None
        self._file = None
        try:
            if not path.exists() or path.is_file():  # opening a pipe would wait
                self._file = open(path, "rb")  # noqa: SIM115 (close does)
                self._lines = iter(partial(self._file.readline, LONGEST_LINE), b"")
            else:
                problems.add(path, "not a file")
        except OSError as error:
            problems.add_error(path, error)

    def expect(self, line: str) -> None:
        """The next line is to be this one."""
        self._number += 1
        if self._lines and next(self._lines, b"") != line.encode("utf-8", "surrogateescape"):
            self._problems.add(self._path, "not what the shard holds", f"line {self._number}")

    def expect_end(self) -> None:
        """No line is to follow."""
        if self._lines and next(self._lines, b""):
            self._problems.add(self._path, f"goes on behind line {self._number}")

    def close(self) -> None:
        """Close the file."""
        if self._file:
            self._file.close()


class Checker:
    """Checks the pieces of one dataset."""

    def __init__(self, dst: Path, num_classes: int, decode: dict[str, Container[int]], draw: dict[str, set[int]]):
        self._dst, self._num_classes, self._decode, self._draw = dst, num_classes, decode, draw

    def check(self, piece: Piece) -> Outcome:
        """Read a piece, and decode those of its images that were chosen."""
        outcome, differences = Outcome(), (Problems(), Problems())
        path = self._dst / piece.shard.name if piece.shard else None
        shard = self._shard_samples(piece, outcome.problems) if piece.shard else iter(())
        pages = self._page_samples(piece, outcome.problems) if piece.beton else iter(())
        for position, (ours, theirs) in enumerate(itertools.zip_longest(shard, pages), piece.first):
            if path and ours:
                self._look(piece, path, position, ours, outcome, known=False)
            if piece.beton and theirs:  # with the same bytes as in the shard only the size on record is new
                self._look(piece, piece.beton, position, theirs, outcome, known=ours is not None)
            if path and piece.beton and ours and theirs:
                compare(path, piece.beton, ours, theirs, differences[0])
                compare(piece.beton, path, theirs, ours, differences[1])
            outcome.bytes += len((ours or theirs).data)
        # Said of the file that is known to be altered, if it is one of them.
        altered = piece.beton and outcome.problems.about(piece.beton) and not (path and outcome.problems.about(path))
        outcome.problems.extend(differences[1 if altered else 0])
        return outcome

    def _look(self, piece: Piece, path: Path, position: int, stored: Stored, outcome: Outcome, known: bool) -> None:
        """Decode a sample if it was chosen; `known` if that was done already."""
        drawn = position in self._draw[piece.split]
        if not drawn and position not in self._decode[piece.split]:
            return
        bad = size_differs(stored) if known else decoding_fails(stored)
        if bad:
            outcome.problems.add(path, "cannot be used", stored.name, f" ({bad})")
        if not known:
            outcome.decoded += 1
            if drawn:
                small = None if bad else thumbnail(stored.data, stored.mode, stored.size)
                outcome.pictures[position] = Picture(stored.label, small)

    def _shard_samples(self, piece: Piece, problems: Problems) -> Iterator[Stored]:
        """The samples of a shard, while its order, its index and in the end its digest are checked."""
        shard = piece.shard
        assert shard
        path = self._dst / shard.name
        try:
            with (
                contextlib.closing(Reader(path, 0, shard.bytes)) as reader,
                contextlib.closing(IndexFile(path.with_suffix(".idx"), problems)) as index,
            ):
                index.expect(f"{INDEX_VERSION} {shard.samples}\n")
                count = 0
                for key, jpeg, label in keyed(path, piece.number, list_members(path), problems):
                    index.expect(
                        f"jpg {jpeg.offset} {jpeg.size} {jpeg.name} cls {label.offset} {label.size} {label.name}\n"
                    )
                    data = reader.read(jpeg.offset, jpeg.size)
                    text = reader.read(label.offset, label.size)
                    yield Stored(key, data, self._label(path, key, text, problems), MODE_JPEG, None)
                    count += 1
                index.expect_end()
                if count != shard.samples:
                    problems.add(path, f"{count} samples, not {shard.samples} as {MANIFEST} says")
                if reader.sha256() != shard.sha256:
                    problems.add(path, f"altered: its SHA-256 is not the one in {MANIFEST}")
        except (InputError, OSError) as error:
            problems.add_error(path, error)

    def _label(self, path: Path, key: str, text: bytes, problems: Problems) -> int | None:
        try:
            return parse_label(text, self._num_classes, key)
        except InputError:
            problems.add(path, f"no label of {self._num_classes} classes", key, f" ({text!r})")
            return None

    def _page_samples(self, piece: Piece, problems: Problems) -> Iterator[Stored]:
        """The samples in a group of pages, or none where they cannot be found, while its digest is made."""
        path, extent, samples = piece.beton, piece.extent, piece.samples
        assert path
        assert extent
        place = f"bytes {piece.start} to {piece.start + extent.bytes}"
        try:
            with contextlib.closing(Reader(path, piece.start, extent.bytes)) as reader:
                for row in piece.rows:
                    assert samples  # or there would be no rows
                    (mode, width, height, at), label = samples.metadata[row].tolist()
                    data = reader.read(at, int(samples.allocation["size"][row]))
                    yield Stored(f"sample {row}", data, label, mode, (height, width))
                if reader.sha256() != extent.sha256:
                    problems.add(path, f"altered: their SHA-256 is not the one in {MANIFEST}", place)
        except (InputError, OSError) as error:
            problems.add_error(path, error)


def compare(path: Path, other: Path, ours: Stored, theirs: Stored, problems: Problems) -> None:
    """A sample in `path` is the one that `other` has in its place."""
    there = f" {theirs.name}"
    if ours.data != theirs.data:
        problems.add(path, f"not the image of {other}", ours.name, there)
    if None not in (ours.label, theirs.label) and ours.label != theirs.label:
        problems.add(path, f"not the label of {other}", ours.name, f"{there} ({ours.label}, there {theirs.label})")


def keyed(
    path: Path, number: int, members: Iterator[Member], problems: Problems
) -> Iterator[tuple[str, Member, Member]]:
    """A shard's members in pairs, with their key. Raises InputError where they are no pairs."""
    for place, jpeg in enumerate(members):
        label = next(members, None)
        key = jpeg.name.removesuffix(".jpg")
        if label is None or (jpeg.name, label.name) != (f"{key}.jpg", f"{key}.cls"):
            raise InputError(f"{path}: {jpeg.name}: not KEY.jpg with KEY.cls behind it")
        if not key.startswith(expected := sample_key(number, place, "")):
            problems.add(path, "not the key of its place", key, f", which begins with {expected}")
        if label.size > LARGEST_LABEL:
            raise InputError(f"{path}: {label.name}: {label.size} bytes are no label")
        yield key, jpeg, label


def size_differs(stored: Stored) -> str:
    """What is wrong with a JPEG's size on record, or nothing."""
    if stored.mode != MODE_JPEG or stored.size is None:
        return ""
    try:
        header = read_header(stored.data)
    except ValueError:
        return ""  # said of the same bytes in the shard, or that they are not the same
    if (header.height, header.width) == stored.size:
        return ""
    return f"{header.width}x{header.height} pixels, on record {stored.size[1]}x{stored.size[0]}"


def decoding_fails(stored: Stored) -> str:
    """Why an image cannot be used, or nothing. The size of raw pixels has been checked with the tables."""
    if stored.mode == MODE_RAW:
        return ""
    try:
        header = read_header(stored.data)
        if header.width * header.height > LARGEST_PIXELS:
            return f"{header.width}x{header.height} pixels, of at most {LARGEST_PIXELS}"
        if not header.is_decodable_everywhere:
            return "a kind of JPEG that not every decoder reads"
        check_jpeg(stored.data)
    except ValueError as error:
        return str(error)
    return size_differs(stored)
