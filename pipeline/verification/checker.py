"""Checks the contents of a converted dataset sample by sample: shards, their indices, the pages of `.beton` files."""

import contextlib
import itertools
from collections.abc import Container, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from ..conversion.archives import Member, list_members
from ..conversion.images import check_jpeg
from ..errors import InputError
from ..pixels.formats import LARGEST_PIXELS
from ..pixels.jpeg.headers import read_header
from ..storage.beton import MODE_JPEG, MODE_RAW
from ..storage.manifest import MANIFEST
from ..storage.shards import INDEX_VERSION, parse_label, sample_key
from .contact_sheet import Picture, thumbnail
from .pieces import Piece
from .problems import Problems
from .reading import HashingReader, IndexFile

LARGEST_LABEL = 32  # bytes of a .cls file


class StoredSample(NamedTuple):
    """A sample as it was read."""

    name: str
    data: bytes
    label: int | None  # None if it cannot be read
    mode: int
    size: tuple[int, int] | None  # recorded height and width


@dataclass
class Outcome:
    """The result of checking a piece."""

    problems: Problems = field(default_factory=Problems)
    bytes: int = 0  # of its images
    decoded: int = 0
    pictures: dict[int, Picture] = field(default_factory=dict)  # by dataset position


class Checker:
    """Checks the pieces of one dataset.

    `decode` and `draw` say by split which dataset positions are decoded, and which are drawn on the contact sheet.
    """

    def __init__(self, dst: Path, num_classes: int, decode: dict[str, Container[int]], draw: dict[str, set[int]]):
        self._dst, self._num_classes, self._decode, self._draw = dst, num_classes, decode, draw

    def check(self, piece: Piece) -> Outcome:
        """Read a piece, and decode those of its images that were chosen."""
        outcome, differences = Outcome(), (Problems(), Problems())
        path = self._dst / piece.shard.name if piece.shard else None
        shard_samples = self._shard_samples(piece, outcome.problems) if piece.shard else iter(())
        page_samples = self._page_samples(piece, outcome.problems) if piece.beton else iter(())
        pairs = itertools.zip_longest(shard_samples, page_samples)
        for position, (in_shard, in_pages) in enumerate(pairs, piece.first):
            if path and in_shard:
                self._check_image(piece, path, position, in_shard, outcome, decoded=False)
            if piece.beton and in_pages:  # the bytes are compared with the shard's, so only the size is left to check
                self._check_image(piece, piece.beton, position, in_pages, outcome, decoded=in_shard is not None)
            if path and piece.beton and in_shard and in_pages:
                compare(path, piece.beton, in_shard, in_pages, differences[0])
                compare(piece.beton, path, in_pages, in_shard, differences[1])
            outcome.bytes += len((in_shard or in_pages).data)
        # Differences are reported of the file that is known to be altered, if it is one of the two.
        altered = piece.beton and outcome.problems.about(piece.beton) and not (path and outcome.problems.about(path))
        outcome.problems.extend(differences[1 if altered else 0])
        return outcome

    def _check_image(
        self, piece: Piece, path: Path, position: int, sample: StoredSample, outcome: Outcome, decoded: bool
    ) -> None:
        """Decode a sample if it was chosen; `decoded`: its bytes have been decoded already."""
        drawn = position in self._draw[piece.split]
        if not drawn and position not in self._decode[piece.split]:
            return
        reason = size_difference(sample) if decoded else why_unusable(sample)
        if reason:
            outcome.problems.add(path, "cannot be used", sample.name, f" ({reason})")
        if not decoded:
            outcome.decoded += 1
            if drawn:
                small = None if reason else thumbnail(sample.data, sample.mode, sample.size)
                outcome.pictures[position] = Picture(sample.label, small)

    def _shard_samples(self, piece: Piece, problems: Problems) -> Iterator[StoredSample]:
        """The samples of a shard; checks their order, the index and, at the end, the digest."""
        shard = piece.shard
        assert shard
        path = self._dst / shard.name
        try:
            with (
                contextlib.closing(HashingReader(path, 0, shard.bytes)) as reader,
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
                    yield StoredSample(key, data, self._label(path, key, text, problems), MODE_JPEG, None)
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
            problems.add(path, f"not a label of {self._num_classes} classes", key, f" ({text!r})")
            return None

    def _page_samples(self, piece: Piece, problems: Problems) -> Iterator[StoredSample]:
        """The samples in a group of pages, none if the tables cannot be used; checks the digest at the end."""
        path, extent, samples = piece.beton, piece.extent, piece.samples
        assert path
        assert extent
        place = f"bytes {piece.start} to {piece.start + extent.bytes}"
        try:
            with contextlib.closing(HashingReader(path, piece.start, extent.bytes)) as reader:
                for row in piece.rows:
                    assert samples  # there are no rows otherwise
                    (mode, width, height, at), label = samples.metadata[row].tolist()
                    data = reader.read(at, int(samples.sizes[row]))
                    yield StoredSample(f"sample {row}", data, label, mode, (height, width))
                if reader.sha256() != extent.sha256:
                    problems.add(path, f"altered: their SHA-256 is not the one in {MANIFEST}", place)
        except (InputError, OSError) as error:
            problems.add_error(path, error)


def compare(path: Path, other_path: Path, sample: StoredSample, other: StoredSample, problems: Problems) -> None:
    """A sample in `path` must be the one that `other_path` has in its place."""
    if sample.data != other.data:
        problems.add(path, f"not the image of {other_path}", sample.name, f" {other.name}")
    if None not in (sample.label, other.label) and sample.label != other.label:
        labels = f" {other.name} ({sample.label}, there {other.label})"
        problems.add(path, f"not the label of {other_path}", sample.name, labels)


def keyed(
    path: Path, number: int, members: Iterator[Member], problems: Problems
) -> Iterator[tuple[str, Member, Member]]:
    """A shard's members in pairs of image and label, with their key. Raises InputError where they are not pairs."""
    for place, jpeg in enumerate(members):
        label = next(members, None)
        key = jpeg.name.removesuffix(".jpg")
        if label is None or (jpeg.name, label.name) != (f"{key}.jpg", f"{key}.cls"):
            raise InputError(f"{path}: {jpeg.name}: not KEY.jpg followed by KEY.cls")
        if not key.startswith(expected := sample_key(number, place, "")):
            problems.add(path, "key out of place", key, f", where {expected}... belongs")
        if label.size > LARGEST_LABEL:
            raise InputError(f"{path}: {label.name}: {label.size} bytes are too many for a label")
        yield key, jpeg, label


def size_difference(sample: StoredSample) -> str:
    """How a JPEG's size differs from the recorded one; "" if it does not."""
    if sample.mode != MODE_JPEG or sample.size is None:
        return ""
    try:
        header = read_header(sample.data)
    except ValueError:
        return ""  # reported of the shard, which has the same bytes or is reported to differ
    if (header.height, header.width) == sample.size:
        return ""
    return f"{header.width}x{header.height} pixels, recorded as {sample.size[1]}x{sample.size[0]}"


def why_unusable(sample: StoredSample) -> str:
    """Why an image cannot be used; "" if it can. The size of raw pixels has been checked with the tables."""
    if sample.mode == MODE_RAW:
        return ""
    try:
        header = read_header(sample.data)
        if header.width * header.height > LARGEST_PIXELS:
            return f"{header.width}x{header.height} pixels; at most {LARGEST_PIXELS} are allowed"
        if not header.is_decodable_everywhere:
            return "a kind of JPEG that not every decoder reads"
        check_jpeg(sample.data)
    except ValueError as error:
        return str(error)
    return size_difference(sample)
