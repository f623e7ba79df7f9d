"""Check a converted dataset: every checksum, count and index, and images by decoding them.

    python tools/verify_dataset.py data/shards
    python tools/verify_dataset.py data/shards --full

Every file is read once from start to end. Shards are compared with their index and, sample by sample, with the
`.beton` file; images and labels of both are the same. All problems are told, a line each. A contact sheet of random
images with their class is drawn, because people trust what they see.
"""

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])

import contextlib
import hashlib
import io
import itertools
import json
import logging
import os
import random
import stat
import time
from collections import Counter
from collections.abc import Container, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple, get_args, get_type_hints

import numpy as np
import tyro
from PIL import Image, ImageDraw, ImageFont
from tqdm import tqdm

from pipeline.cli import run_command
from pipeline.conversion.images import LARGEST_PIXELS, Handling, check_jpeg
from pipeline.conversion.work import Shard
from pipeline.conversion.writing import REPORT, counts_of
from pipeline.dataset import MANIFEST, RAW_MODES, Manifest, SplitInfo
from pipeline.errors import InputError
from pipeline.formats.archives import Member, list_members
from pipeline.formats.beton import HEADER, MODE_JPEG, MODE_RAW, SMALLEST_PAGE, BetonSamples, Extent
from pipeline.formats.files import complete_or_absent
from pipeline.formats.shards import INDEX_VERSION, ShardInfo, parse_label, sample_key
from pipeline.jpeg.headers import read_header
from pipeline.threads import in_order

log = logging.getLogger(__name__)

CHUNK = 1 << 20  # bytes that are read at a time where no sample is looked at
LARGEST_SAMPLE = 3 * LARGEST_PIXELS  # bytes: raw pixels of the largest image that is converted
LARGEST_LABEL = 32  # bytes of a .cls file
LARGEST_JSON = 1 << 30  # bytes; report.json of all of ImageNet has below 10 MB
LARGEST_COUNT = 1 << 40
LONGEST_LINE = 4096  # bytes; the lines of an index have about 200
LONGEST_TOLD = 400  # characters of a problem
LISTED = 5  # problems of one kind in one file that are told one by one
IMAGE_MODES = get_args(get_type_hints(Handling)["jpeg"])
READ_AS_DATA = (".tar", ".idx", ".beton")


@dataclass(frozen=True, kw_only=True)
class VerifySettings:
    """Check a dataset that tools/convert_imagenet.py made."""

    dst: tyro.conf.Positional[Path]
    """Dataset directory."""
    full: bool = False
    """Decode every image."""
    sample: int = 1000
    """Images to decode, chosen at random, without --full."""
    contact_sheet: Path | None = None
    """PNG to write; default: DST-contact-sheet.png, beside the dataset."""
    images: int = 64
    """Random images on the contact sheet; 0 for no sheet."""
    workers: int = len(os.sched_getaffinity(0))
    """Threads that read and check."""
    seed: int = 0
    """What random images are chosen by."""

    def __post_init__(self) -> None:
        if self.workers < 1:
            raise ValueError(f"--workers {self.workers}: must be at least 1")
        if self.sample < 0:
            raise ValueError(f"--sample {self.sample}: must be at least 0")
        if not 0 <= self.images <= 4096:
            raise ValueError(f"--images {self.images}: must be from 0 to 4096")

    @property
    def sheet_path(self) -> Path:
        """Where the contact sheet is written."""
        dst = self.dst.resolve()
        return self.contact_sheet or dst.with_name(f"{dst.name}-contact-sheet.png")


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


class Picture(NamedTuple):
    """An image of the contact sheet."""

    label: int | None
    thumbnail: Image.Image | None  # None where it cannot be used


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
                outcome.pictures[position] = Picture(stored.label, None if bad else thumbnail(stored))

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


# --- the files as dataset.json records them


def read_manifest(dst: Path) -> Manifest:
    """Raises InputError where there is none, or one with which nothing can be found."""
    path = dst / MANIFEST
    if not dst.is_dir():
        raise InputError(f"{dst}: no such directory")
    if not path.is_file():
        raise InputError(f"{path}: missing; an interrupted conversion is finished by starting it again")
    if path.stat().st_size > LARGEST_JSON:
        raise InputError(f"{path}: larger than any list of a dataset's files")
    manifest = Manifest.read(dst)
    for info in manifest.splits.values():
        counts = [info.samples, info.bytes, info.beton.bytes if info.beton else 0]
        if max(counts + [count for shard in info.shards for count in (shard.samples, shard.bytes)]) > LARGEST_COUNT:
            raise InputError(f"{path}: counts that no dataset has; convert again")
    return manifest


def check_manifest(dst: Path, manifest: Manifest, problems: Problems) -> None:
    """What dataset.json says is what a conversion writes."""
    path = dst / MANIFEST
    if list(manifest.classes) != sorted(manifest.classes):
        problems.add(path, "classes out of order: the index of a class is its sorted position")
    for split, info in manifest.splits.items():
        if split not in ("train", "val"):
            problems.add(path, "no split of ImageNet", repr(split))
        if info.image_mode not in IMAGE_MODES:
            problems.add(path, "no way in which images are stored", f"{split}: {info.image_mode!r}")
        if not info.shards and not info.beton:
            problems.add(path, "neither shards nor a .beton file", split)
        if info.shards and info.image_mode in RAW_MODES:
            problems.add(path, "shards of raw pixels", split)
        for number, shard in enumerate(info.shards):
            if shard.name != (name := f"webdataset/{Shard(split, number, 0, 0).name}.tar"):
                problems.add(path, "not the file of its place", shard.name, f", which is {name}")
        if info.beton and info.beton.name != (name := f"ffcv/{split}.beton"):
            problems.add(path, "not the file of its place", info.beton.name, f", which is {name}")
        if info.beton and info.shards and len(info.beton.extents) != len(info.shards) + 2:
            problems.add(path, f"{len(info.shards)} shards and {len(info.beton.extents) - 2} groups of pages", split)


def check_report(dst: Path, manifest: Manifest, problems: Problems) -> None:
    """report.json can be read and adds up."""
    path = dst / REPORT
    if not check_size(path, None, problems):
        return
    try:
        report = json.loads(path.read_text("utf-8"))
        images = report["images"]
        for entry in images:
            if {*entry} - {"odd", "bad"} != {"split", "file", "done"} or len(entry) != 4:
                raise ValueError(f"an entry of {', '.join(entry)}")
            if entry["split"] not in manifest.splits or not all(isinstance(text, str) for text in entry.values()):
                raise ValueError(f"an entry of split {entry['split']!r:.40}")
        if {*report} != {"stored", "counts", "images"} or report["counts"] != counts_of(images):
            raise ValueError("counts that are not those of its images")
        stored, infos = report["stored"], manifest.splits.values()
        if stored["lossless"] + stored["reencoded"] != sum(info.samples for info in infos):
            raise ValueError("not as many images as there are samples")
        if stored["bytes"] != sum(info.bytes for info in infos):
            raise ValueError("not the bytes of the stored images")
    except OSError as error:
        problems.add_error(path, error)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        problems.add(path, "damaged", detail=f" ({error!r:.200})")


def check_size(path: Path, size: int | None, problems: Problems) -> bool:
    """Whether a file is there, and of the size on record if there is one."""
    try:
        status = path.stat()
    except OSError as error:
        problems.add_error(path, error)
        return False
    if not stat.S_ISREG(status.st_mode):
        problems.add(path, "not a file")
    elif size is None and status.st_size > LARGEST_JSON:
        problems.add(path, f"{status.st_size} bytes: larger than a conversion makes it")
    elif size is not None and status.st_size != size:
        told = "truncated: " if status.st_size < size else ""
        problems.add(path, f"{told}{status.st_size} bytes, not {size} as {MANIFEST} says")
    else:
        return True
    return False


def check_strays(dst: Path, manifest: Manifest, problems: Problems) -> None:
    """Files that dataset.json does not name: wrong where a reader that is given `train-*.tar` would take them."""
    ours = {MANIFEST, REPORT}
    for info in manifest.splits.values():
        ours |= {shard.name for shard in info.shards} | {shard.name[:-4] + ".idx" for shard in info.shards}
        ours |= {info.beton.name} if info.beton else set()
    others = []
    for folder in ("", "webdataset", "ffcv"):
        if not (dst / folder).is_dir():
            continue
        with os.scandir(dst / folder) as entries:
            for entry in entries:
                name = f"{folder}/{entry.name}".lstrip("/")
                if name in ours or (not folder and name in ("webdataset", "ffcv")):
                    continue
                if folder and name.endswith(READ_AS_DATA) and not entry.name.startswith("."):
                    problems.add(dst / name, f"not of this dataset: {MANIFEST} does not name it")
                else:
                    others.append(name)
    if others:
        told = ", ".join(map(repr, sorted(others)[:5]))
        more = f" and {len(others) - 5} more" if len(others) > 5 else ""
        log.info("remark: %s: not of the dataset: %s%s", dst, told, more)


def open_beton(dst: Path, manifest: Manifest, split: str, problems: Problems) -> BetonSamples | None:
    """The tables of a split's .beton file, None where they cannot be used."""
    info = manifest.splits[split]
    assert info.beton
    path = dst / info.beton.name
    try:
        samples = BetonSamples(path, list(manifest.classes))
        page_size = int(np.fromfile(path, HEADER, 1)["page_size"][0])
    except (InputError, OSError) as error:
        problems.add_error(path, error)
        return None
    if len(samples) != info.samples:
        problems.add(path, f"{len(samples)} samples, not {info.samples} as {MANIFEST} says")
        return None
    modes = {"raw": {MODE_RAW}, "proportion": {MODE_RAW, MODE_JPEG}}.get(info.image_mode, {MODE_JPEG})
    if {*np.unique(samples.metadata["f0"]["mode"]).tolist()} - modes:
        problems.add(path, f"holds what --jpeg {info.image_mode} does not make")
    at, size = (samples.allocation[name].astype(np.int64) for name in ("ptr", "size"))
    if page_size < SMALLEST_PAGE or (at // page_size != (at + np.maximum(size, 1) - 1) // page_size).any():
        problems.add(path, "its samples do not lie on its pages")
    if (samples.allocation["sample_id"] != np.arange(len(samples))).any():
        problems.add(path, "its allocation table is not in order")
    return samples


def pieces_of(dst: Path, manifest: Manifest, split: str, problems: Problems) -> list[Piece]:
    """What there is to read of a split."""
    info = manifest.splits[split]
    shards, first = list[Piece](), 0
    for number, shard in enumerate(info.shards):
        if check_size(dst / shard.name, shard.bytes, problems):
            shards.append(Piece(split=split, first=first, number=number, shard=shard))
        first += shard.samples
    if not info.beton or not check_size(dst / info.beton.name, info.beton.bytes, problems):
        return shards
    head, *groups, table = beton_pieces(dst, manifest, split, problems)
    if len(groups) != len(info.shards):
        return [*shards, head, *groups, table]
    for number, (shard, group) in enumerate(zip(info.shards, groups, strict=True)):
        if group.samples and len(group.rows) != shard.samples:
            assert group.beton
            problems.add(group.beton, f"{len(group.rows)} samples in group {number} of pages, not {shard.samples}")
    readable = {piece.number: piece for piece in shards}
    return [head, *(merged(readable.get(number), group) for number, group in enumerate(groups)), table]


def beton_pieces(dst: Path, manifest: Manifest, split: str, problems: Problems) -> Iterator[Piece]:
    """The extents of a .beton file: head, groups of samples, table."""
    info = manifest.splits[split]
    assert info.beton
    samples = open_beton(dst, manifest, split, problems)
    starts = [0, *itertools.accumulate(extent.bytes for extent in info.beton.extents)]
    rows = np.searchsorted(samples.allocation["ptr"], np.array(starts, np.uint64)).tolist() if samples else starts
    if samples and (rows[1], rows[-2]) != (0, len(samples)):
        problems.add(dst / info.beton.name, "its samples do not lie in its groups of pages")
    for number, extent in enumerate(info.beton.extents):
        ours = range(rows[number], rows[number + 1]) if samples else range(0)
        yield Piece(
            split=split,
            first=ours.start if ours else 0,
            beton=dst / info.beton.name,
            start=starts[number],
            extent=extent,
            samples=samples,
            rows=ours,
        )


def merged(shard: Piece | None, group: Piece) -> Piece:
    """A shard together with its group of pages."""
    if shard is None:
        return group
    pages = {name: getattr(group, name) for name in ("beton", "start", "extent", "samples", "rows")}
    return Piece(split=shard.split, first=shard.first, number=shard.number, shard=shard.shard, **pages)


# --- the command


def positions_to_decode(settings: VerifySettings, splits: dict[str, SplitInfo]) -> dict[str, Container[int]]:
    """The images of each split that are decoded."""
    if settings.full:
        return {split: range(info.samples) for split, info in splits.items()}
    total = sum(info.samples for info in splits.values())
    chosen = sorted(random.Random(settings.seed).sample(range(total), min(settings.sample, total)))
    positions, first = dict[str, Container[int]](), 0
    for split, info in splits.items():
        positions[split] = {number - first for number in chosen if first <= number < first + info.samples}
        first += info.samples
    return positions


def positions_to_draw(settings: VerifySettings, splits: dict[str, SplitInfo]) -> dict[str, set[int]]:
    """The images of each split on the contact sheet: as many of each, or it would be training images alone."""
    chosen = {}
    for number, (split, info) in enumerate(splits.items()):
        share = settings.images // len(splits) + (number < settings.images % len(splits))
        chosen[split] = {*random.Random(settings.seed + 1).sample(range(info.samples), min(share, info.samples))}
    return chosen


def tell(problems: Problems) -> None:
    """A line for each."""
    for line in problems.lines():
        tqdm.write(f"bad: {line}", file=sys.stderr)


def verify(settings: VerifySettings) -> dict[str, Any]:
    """The command. Raises InputError where anything is wrong, after all of it has been told."""
    started = time.monotonic()
    dst, manifest, problems = settings.dst, read_manifest(settings.dst), Problems()
    if settings.images:
        check_writable(settings.sheet_path)
    check_manifest(dst, manifest, problems)
    check_strays(dst, manifest, problems)
    check_report(dst, manifest, problems)
    pieces = {split: pieces_of(dst, manifest, split, problems) for split in manifest.splits}
    tell(problems)
    draw = positions_to_draw(settings, manifest.splits)
    checker = Checker(dst, len(manifest.classes), positions_to_decode(settings, manifest.splits), draw)
    count, decoded, pictures = problems.count, 0, dict[str, dict[int, Picture]]()
    for split, ours in pieces.items():
        outcome = check_split(checker, dst, manifest.splits[split], split, ours, settings.workers)
        count, decoded = count + outcome.problems.count, decoded + outcome.decoded
        pictures[split] = outcome.pictures
    sheet = write_sheet(settings, manifest, pictures) if settings.images else None
    if count:
        seen = f" ({sheet} shows what could be read)" if sheet else ""
        raise InputError(f"{dst}: {count} problem{'s' if count > 1 else ''}, listed above{seen}; convert again")
    splits = manifest.splits.values()
    return {
        "samples": sum(info.samples for info in splits),
        "shards": sum(len(info.shards) for info in splits),
        "bytes": sum(piece.bytes for ours in pieces.values() for piece in ours),
        "decoded": decoded,
        "problems": 0,
        "contact_sheet": str(sheet) if sheet else None,
        "seconds": round(time.monotonic() - started, 1),
    }


def check_split(checker: Checker, dst: Path, info: SplitInfo, split: str, pieces: list[Piece], workers: int) -> Outcome:
    """Check the pieces of a split in threads; problems are told as they are found."""
    whole, problems = Outcome(), Problems()
    with tqdm(desc=split, total=sum(p.bytes for p in pieces), unit="B", unit_scale=True, disable=None) as bar:
        for piece, outcome in zip(pieces, in_order(checker.check, pieces, workers), strict=True):
            tell(outcome.problems)
            whole.problems.count += outcome.problems.count
            whole.bytes, whole.decoded = whole.bytes + outcome.bytes, whole.decoded + outcome.decoded
            whole.pictures |= outcome.pictures
            bar.update(piece.bytes)
    if not whole.problems.count and whole.bytes != info.bytes and complete(info, pieces):
        problems.add(dst / MANIFEST, f"the images of {split} have {whole.bytes} bytes, not {info.bytes}")
        tell(problems)
    whole.problems.count += problems.count
    return whole


def complete(info: SplitInfo, pieces: Iterable[Piece]) -> bool:
    """Whether every sample of a split is in its pieces, once."""
    return sum(piece.shard.samples if piece.shard else len(piece.rows) for piece in pieces) == info.samples


# --- the contact sheet

TILE = 150  # pixels
CAPTION, HEADING, TITLE = 38, 44, 52  # pixels in height
MARGIN, GAP, COLUMNS = 24, 12, 8
PAPER, PLACE, INK, FAINT = "#ffffff", "#eeeeee", "#202020", "#808080"


def thumbnail(stored: Stored) -> Image.Image | None:
    """A whole image, small; None where PIL cannot decode it."""
    try:
        if stored.mode == MODE_RAW:
            assert stored.size
            image = Image.frombytes("RGB", stored.size[::-1], stored.data)
        else:
            image = Image.open(io.BytesIO(stored.data), formats=("JPEG", "MPO"))
            image.draft("RGB", (2 * TILE, 2 * TILE))
        image = image.convert("RGB")
        image.thumbnail((TILE, TILE), Image.Resampling.LANCZOS)
        return image
    except (OSError, SyntaxError, ValueError):
        return None


def check_writable(path: Path) -> None:
    """Raises InputError now rather than when everything has been read."""
    if path.is_dir():
        raise InputError(f"--contact-sheet {path}: is a directory")
    if not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
        raise InputError(
            f"--contact-sheet {path}: its folder is missing or not writable; name another, or none with --images 0"
        )


def write_sheet(settings: VerifySettings, manifest: Manifest, pictures: dict[str, dict[int, Picture]]) -> Path:
    """Write the contact sheet. Raises InputError."""
    path = settings.sheet_path
    sheet = draw_sheet(str(settings.dst), manifest, pictures)
    try:
        with complete_or_absent(path, "wb") as file:
            sheet.save(file, "PNG")
    except OSError as error:
        raise InputError(f"--contact-sheet {path}: cannot be written ({error.strerror or error})") from None
    return path


def draw_sheet(name: str, manifest: Manifest, pictures: dict[str, dict[int, Picture]]) -> Image.Image:
    """Random images of each split, in the order of their classes, so that one among others that is of another class
    is seen."""
    columns = max(4, min(COLUMNS, max(map(len, pictures.values()))))
    heights = [HEADING + -(-len(ours) // columns) * (TILE + CAPTION) for ours in pictures.values()]
    width = 2 * MARGIN + columns * (TILE + GAP) - GAP
    sheet = Image.new("RGB", (width, TITLE + sum(heights) + MARGIN), PAPER)
    draw = ImageDraw.Draw(sheet)
    count = len(manifest.classes)
    write(draw, (MARGIN, 20), f"{name} · {count:,} class{'es' if count > 1 else ''}", 20, INK, width - 2 * MARGIN)
    top = TITLE
    for (split, ours), height in zip(pictures.items(), heights, strict=True):
        told = f"{split} · {len(ours):,} of {manifest.splits[split].samples:,} images"
        write(draw, (MARGIN, top + 14), told, 16, INK, width - 2 * MARGIN)
        by_class = sorted(ours.items(), key=lambda item: (item[1].label is None, item[1].label, item[0]))
        for place, (position, picture) in enumerate(by_class):
            row, column = divmod(place, columns)
            corner = MARGIN + column * (TILE + GAP), top + HEADING + row * (TILE + CAPTION)
            draw_picture(sheet, draw, corner, position, picture, manifest.classes)
        top += height
    return sheet


def draw_picture(
    sheet: Image.Image,
    draw: ImageDraw.ImageDraw,
    corner: tuple[int, int],
    position: int,
    picture: Picture,
    classes: tuple[str, ...],
) -> None:
    """One image with its class below."""
    left, top = corner
    draw.rectangle((left, top, left + TILE - 1, top + TILE - 1), PLACE)
    if picture.thumbnail is None:
        write(draw, (left + 8, top + TILE // 2 - 8), "cannot be used", 12, FAINT, TILE - 16)
    else:
        free = TILE - picture.thumbnail.width, TILE - picture.thumbnail.height
        sheet.paste(picture.thumbnail, (left + free[0] // 2, top + free[1] // 2))
    told = "no label" if picture.label is None else f"{classes[picture.label]} · {picture.label}"
    write(draw, (left, top + TILE + 3), told, 13, INK, TILE)
    write(draw, (left, top + TILE + 18), f"position {position:,}", 10, FAINT, TILE)


def write(draw: ImageDraw.ImageDraw, at: tuple[int, int], text: str, size: int, colour: str, width: int) -> None:
    """Text, cut off where it is wider than `width`."""
    font = ImageFont.load_default(size)
    shown = text = "".join(letter if letter.isprintable() else "?" for letter in text)
    while shown and draw.textlength(shown, font) > width:
        text = text[:-1]
        shown = f"{text}…" if text else ""
    draw.text(at, shown, colour, font)


if __name__ == "__main__":
    sys.exit(run_command(verify, VerifySettings))
