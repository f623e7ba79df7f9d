"""FFCV's `.beton` file, with JPEG files byte for byte, or raw pixels.

The layout is that of FFCV 1.0.2 (ffcv/types.py, ffcv/writer.py), so its own Loader and RGBImageField decoders
read it:

    header             version, fields, page size, samples, address of the allocation table
    field descriptors  "image" (RGBImageField, type 2) and "label" (IntField, type 1)
    metadata           one row per sample: mode (0 JPEG, 1 raw pixels), width, height, address of the bytes; label
    pages              JPEG bytes or RGB pixels; a sample does not cross a page
    allocation table   one row per sample: sample, address, size

FFCV's own writer re-encodes images, distributes them to processes in no fixed order (so no two files are
equal) and cannot be resumed; this one appends bytes in order, group by group, each on pages of its own. The image
field's arguments, which RGBImageField does not use, hold a digest of the class list.
"""

import hashlib
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..pixels.formats import LARGEST_FILE, LARGEST_PIXELS
from .files import HashedWriter, read_extent, regular
from .samples import MOST_SAMPLES, Sample

VERSION = 2
IMAGE_TYPE, INT_TYPE = 2, 1
MODE_JPEG, MODE_RAW = 0, 1
SMALLEST_PAGE = 1 << 21  # ffcv.writer.MIN_PAGE_SIZE, 2 MiB
_LARGEST_PAGE = 1 << 32
CLASSES_MAGIC = b"sluice-classes-1"

HEADER = np.dtype(
    [
        ("version", "<u2"),
        ("num_fields", "<u2"),
        ("page_size", "<u4"),
        ("num_samples", "<u8"),
        ("alloc_table_ptr", "<u8"),
    ],
    align=True,
)
FIELD = np.dtype([("type_id", "<u1"), ("name", ("<u1", 16)), ("arguments", ("<u1", (1024,)))], align=True)
IMAGE = np.dtype([("mode", "<u1"), ("width", "<u2"), ("height", "<u2"), ("data_ptr", "<u8")])
METADATA = np.dtype([("f0", IMAGE), ("f1", "<i8")], align=True)
ALLOCATION = np.dtype([("sample_id", "<u8"), ("ptr", "<u8"), ("size", "<u8")])
_METADATA_AT = HEADER.itemsize + 2 * FIELD.itemsize
_CHECKED_AT_ONCE = 1 << 16  # rows of the tables


@dataclass(frozen=True, kw_only=True)
class Extent:
    """A piece of a file."""

    bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class BetonInfo:
    """A finished file as dataset.json records it.

    `extents` are digests of the whole file, piece by piece: first the head (everything before the first page),
    then the pages of each group of samples, last the allocation table. So pieces can be written on several
    machines, resumed and checked without reading those before them.
    """

    name: str  # relative to the dataset directory
    samples: int
    bytes: int
    extents: tuple[Extent, ...]


def page_size_for(largest_sample: int) -> int:
    """The page size for samples of at most `largest_sample` bytes: a power of two, and no less than FFCV allows."""
    return max(SMALLEST_PAGE, 1 << math.ceil(math.log2(max(largest_sample, 1))))


def classes_digest(classes: list[str]) -> bytes:
    """48 bytes that identify a class list."""
    return CLASSES_MAGIC + hashlib.sha256("\n".join(classes).encode()).digest()


def head_bytes(num_samples: int, page_size: int) -> int:
    """The size of everything before the first page, padded to a page."""
    return -(-(_METADATA_AT + num_samples * METADATA.itemsize) // page_size) * page_size


class PageWriter:
    """Appends a group of samples to an open file that ends at a page boundary, and fills the last page.

    `rows` collects (mode, height, width, offset from the group's first page, size, label) of each sample.
    """

    def __init__(self, file: BinaryIO, page_size: int) -> None:
        self._writer, self._page_size = HashedWriter(file), page_size
        self.rows: list[tuple[int, int, int, int, int, int]] = []

    def add(self, data: bytes, mode: int, height: int, width: int, label: int) -> None:
        """Append one sample of `height` x `width` pixels (each below 65536) and at most a page's size."""
        assert len(data) <= self._page_size
        if self._writer.size // self._page_size != (self._writer.size + len(data) - 1) // self._page_size:
            self._pad()
        self.rows.append((mode, height, width, self._writer.size, len(data), label))
        self._writer.write(data)

    def close(self) -> Extent:
        """Fill the last page. The file stays open."""
        self._pad()
        sha256 = self._writer.finish()
        return Extent(bytes=self._writer.size, sha256=sha256)

    def _pad(self) -> None:
        missing = -self._writer.size % self._page_size
        for start in range(0, missing, SMALLEST_PAGE):  # a page of raw pixels has 128 MB
            self._writer.write(bytes(min(SMALLEST_PAGE, missing - start)))


@dataclass(frozen=True)
class PageGroup:
    """What a PageWriter wrote: the rows of its samples, and its extent."""

    rows: NDArray[np.int64]  # [N, 6]
    extent: Extent


def finish_beton(file: BinaryIO, first_page: int, groups: list[PageGroup], page_size: int, classes: list[str]) -> None:
    """Write the head and the allocation table around the pages of `groups`, which begin in `file` at the
    offset `first_page`."""
    starts = first_page + np.cumsum([0] + [group.extent.bytes for group in groups])
    rows = np.concatenate([group.rows for group in groups])
    rows[:, 3] += np.repeat(starts[:-1], [len(group.rows) for group in groups])
    metadata, allocation = np.zeros(len(rows), METADATA), np.zeros(len(rows), ALLOCATION)
    images = metadata["f0"]
    images["mode"], images["height"], images["width"], images["data_ptr"] = rows[:, :4].T
    metadata["f1"] = rows[:, 5]
    allocation["sample_id"] = np.arange(len(rows))
    allocation["ptr"], allocation["size"] = rows[:, 3:5].T
    table_at = int(starts[-1])
    file.truncate(table_at)
    file.seek(table_at)
    file.write(allocation.tobytes())
    file.seek(0)
    file.write(_head(metadata, page_size, table_at, classes).ljust(first_page, b"\0"))


def beton_extents(file: BinaryIO, first_page: int, groups: list[PageGroup]) -> tuple[Extent, ...]:
    """The extents of a finished file; those of the pages are known already."""
    file.seek(0)
    head = _extent(file.read(first_page))
    file.seek(first_page + sum(group.extent.bytes for group in groups))
    return head, *(group.extent for group in groups), _extent(file.read())


def _extent(data: bytes) -> Extent:
    return Extent(bytes=len(data), sha256=hashlib.sha256(data).hexdigest())


def _head(metadata: np.ndarray, page_size: int, table_at: int, classes: list[str]) -> bytes:
    """Header, field descriptors and metadata."""
    header = np.zeros((), HEADER)
    header[()] = (VERSION, 2, page_size, len(metadata), table_at)
    fields = np.zeros(2, FIELD)
    for field, type_id, name in zip(fields, (IMAGE_TYPE, INT_TYPE), (b"image", b"label"), strict=True):
        field["type_id"] = type_id
        field["name"][: len(name)] = np.frombuffer(name, np.uint8)
    digest = np.frombuffer(classes_digest(classes), np.uint8)
    fields[0]["arguments"][: len(digest)] = digest
    return header.tobytes() + fields.tobytes() + metadata.tobytes()


def head_matches(path: Path, info: BetonInfo) -> bool:
    """Whether the first extent of a file, by which all others are found, is the recorded one."""
    head = info.extents[0]
    if head.bytes > head_bytes(info.samples, _LARGEST_PAGE):
        return False
    digest, left = hashlib.sha256(), head.bytes
    with open(path, "rb", opener=regular) as file:
        while left and (piece := file.read(min(left, SMALLEST_PAGE))):
            digest.update(piece)
            left -= len(piece)
    return left == 0 and digest.hexdigest() == head.sha256


class BetonSamples:
    """A split read from a `.beton` file by position.

    Raises InputError on opening if the file is not a beton, is truncated, or belongs to another class list.
    """

    remedy = "convert again"

    def __init__(self, path: Path, classes: list[str]) -> None:
        self._path, self._classes = path, classes
        try:
            with open(path, "rb", opener=regular) as file:
                self._size = os.fstat(file.fileno()).st_size
                self._read(file.read(_METADATA_AT))
        except (OSError, ValueError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(f"{path}: cannot be read as a beton ({error})") from None

    def _read(self, start: bytes) -> None:
        if len(start) < _METADATA_AT:
            raise InputError(f"{self._path}: not a beton (too short)")
        header = np.frombuffer(start, HEADER, count=1)[0]
        fields = np.frombuffer(start, FIELD, count=2, offset=HEADER.itemsize)
        if header["version"] != VERSION or header["num_fields"] != 2:
            raise InputError(f"{self._path}: not a beton of FFCV's format version {VERSION} with two fields")
        if fields["type_id"].tolist() != [IMAGE_TYPE, INT_TYPE]:
            raise InputError(f"{self._path}: its fields are not an image and a label")
        if not fields["arguments"][0].tobytes().startswith(classes_digest(self._classes)):
            raise InputError(f"{self._path}: belongs to another class list; convert again")
        count, table_at = int(header["num_samples"]), int(header["alloc_table_ptr"])
        sizes = count * METADATA.itemsize, count * ALLOCATION.itemsize
        if count > MOST_SAMPLES or _METADATA_AT + sizes[0] > table_at or table_at + sizes[1] != self._size:
            raise InputError(f"{self._path}: truncated or damaged; convert again")
        self.metadata = np.fromfile(self._path, METADATA, count, offset=_METADATA_AT)
        # Bytes of each stored sample, uint32 [N]. Where it begins is in the metadata, too, and the rest of the
        # allocation table is only checked: of 14 million samples it would take 280 MB.
        self.sizes = np.empty(len(self.metadata), np.uint32)
        self._table_at, end = table_at, 0
        for first in range(0, count, _CHECKED_AT_ONCE):
            rows = slice(first, min(first + _CHECKED_AT_ONCE, count))
            table = self.allocation(rows)
            if not 0 < len(self.metadata[rows]) == len(table):
                raise InputError(f"{self._path}: truncated or damaged; convert again")
            self._check(self.metadata[rows], table, end)
            self.sizes[rows] = table["size"]
            end = int(table["ptr"][-1] + table["size"][-1])

    def allocation(self, rows: slice = slice(None)) -> NDArray[Any]:
        """These rows of the file's allocation table, read from it: `ALLOCATION` [N]."""
        start, stop, _ = rows.indices(len(self.metadata))
        at = self._table_at + start * ALLOCATION.itemsize
        return np.fromfile(self._path, ALLOCATION, stop - start, offset=at)

    def _check(self, metadata: NDArray[Any], allocation: NDArray[Any], end: int) -> None:
        """Raises InputError unless every address and label in these rows is within bounds, and behind `end`; nothing
        needs to check them again."""
        images, labels = metadata["f0"], metadata["f1"]
        at, size, table_at = allocation["ptr"], allocation["size"], self._table_at
        pixels = 3 * images["height"].astype(np.uint64) * images["width"]
        sound = (
            ((images["mode"] == MODE_JPEG) | (images["mode"] == MODE_RAW) & (pixels == size)).all()
            and ((pixels > 0) & (pixels <= 3 * LARGEST_PIXELS)).all()
            and (size <= LARGEST_FILE).all()
            and (images["data_ptr"] == at).all()
            and (at <= table_at).all()
            and (size <= table_at - at).all()
            and at[0] >= end
            and (at[:-1] + size[:-1] <= at[1:]).all()
            and (labels >= 0).all()
            and (labels < len(self._classes)).all()
        )
        if not sound:
            raise InputError(f"{self._path}: its tables point outside the file; convert again")

    def __len__(self) -> int:
        return len(self.metadata)

    def name(self, index: int) -> str:
        return f"{self._path} sample {index}"

    def __getitem__(self, index: int) -> Sample:
        if self.metadata["f0"]["mode"][index] != MODE_JPEG:
            raise InputError(f"{self.name(index)}: raw pixels, no JPEG; use --loader ffcv")
        return Sample(self.read(index), int(self.metadata["f1"][index]))

    def read(self, index: int) -> bytes:
        """The stored bytes: a JPEG, or RGB pixels of height x width x 3."""
        at, size = int(self.metadata["f0"]["data_ptr"][index]), int(self.sizes[index])
        return read_extent(self._path, at, size, self.name(index))
