"""FFCV's `.beton` file, with the stored JPEG bytes in it as they are.

The layout is that of FFCV 1.0.2 (ffcv/types.py, ffcv/writer.py), so its own Loader and RGBImageField decoders
read it:

    header             version, fields, page size, samples, address of the allocation table
    field descriptors  "image" (RGBImageField, type 2) and "label" (IntField, type 1)
    metadata           one row a sample: mode (0 = JPEG), width, height, address of the bytes; label
    pages              JPEG bytes; a sample does not cross a page
    allocation table   one row a sample: sample, address, size

FFCV's own writer re-encodes images, gives them out to processes as they come (so no two files are equal) and
cannot be interrupted; this one appends bytes in order. The image field's arguments, which RGBImageField does
not use, hold a digest of the class list.
"""

import hashlib
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.errors import InputError
from pipeline.formats.files import discard, publish, read_extent, temporary_path
from pipeline.formats.samples import Sample

VERSION = 2
IMAGE_TYPE, INT_TYPE = 2, 1
MODE_JPEG = 0
SMALLEST_PAGE = 1 << 23  # FFCV's default, 8 MiB
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


@dataclass(frozen=True, kw_only=True)
class BetonInfo:
    """A finished file as dataset.json records it.

    The metadata is known last and stands first, so the file has two digests: of its first `head_bytes` bytes
    and of the rest.
    """

    name: str  # relative to the dataset directory
    samples: int
    bytes: int
    head_bytes: int
    head_sha256: str
    rest_sha256: str


def page_size_for(largest_sample: int) -> int:
    """The page size for samples of at most so many bytes: a power of two, FFCV's default unless more is needed."""
    return max(SMALLEST_PAGE, 1 << math.ceil(math.log2(max(largest_sample, 1))))


def classes_digest(classes: list[str]) -> bytes:
    """What identifies a class list, 48 bytes."""
    return CLASSES_MAGIC + hashlib.sha256("\n".join(classes).encode()).digest()


class BetonWriter:
    """Writes the samples of a split, in order, into one file that appears when it is complete."""

    def __init__(self, dataset: Path, split: str, classes: list[str], num_samples: int, page_size: int) -> None:
        self._dataset, self._path = dataset, dataset / "ffcv" / f"{split}.beton"
        self._classes, self._page_size = classes, page_size
        self._metadata = np.zeros(num_samples, METADATA)
        self._allocation = np.zeros(num_samples, ALLOCATION)
        self._count = 0
        self._head_bytes = -(-(_METADATA_AT + self._metadata.nbytes) // page_size) * page_size
        self._digest = hashlib.sha256()
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._file = open(temporary_path(self._path), "wb")  # noqa: SIM115
        self._file.seek(self._head_bytes)
        self._offset = self._head_bytes

    def add(self, jpeg: bytes, height: int, width: int, label: int) -> None:
        """Append one sample of `height` x `width` pixels (each below 65536)."""
        if len(jpeg) > self._page_size:
            raise InputError(f"an image of {len(jpeg)} bytes does not fit a page of {self._page_size}")
        if self._offset // self._page_size != (self._offset + len(jpeg) - 1) // self._page_size:
            self._write(bytes(-self._offset % self._page_size))
        self._metadata[self._count] = ((MODE_JPEG, width, height, self._offset), label)
        self._allocation[self._count] = (self._count, self._offset, len(jpeg))
        self._write(jpeg)
        self._count += 1

    def close(self) -> BetonInfo:
        """Write what stands around the pages and give the file its name."""
        assert self._count == len(self._metadata)
        self._write(bytes(-self._offset % self._page_size))
        table_at = self._offset
        self._write(self._allocation.tobytes())
        head = self._head(table_at)
        self._file.seek(0)
        self._file.write(head)
        publish(self._file, self._path)
        return BetonInfo(
            name=str(self._path.relative_to(self._dataset)),
            samples=self._count,
            bytes=self._offset,
            head_bytes=len(head),
            head_sha256=hashlib.sha256(head).hexdigest(),
            rest_sha256=self._digest.hexdigest(),
        )

    def abort(self) -> None:
        """Drop the file that is being written."""
        discard(self._file, self._path)

    def _write(self, data: bytes) -> None:
        self._file.write(data)
        self._digest.update(data)
        self._offset += len(data)

    def _head(self, table_at: int) -> bytes:
        """Everything before the first page, padded to it."""
        header = np.zeros((), HEADER)
        header[()] = (VERSION, 2, self._page_size, self._count, table_at)
        fields = np.zeros(2, FIELD)
        for field, type_id, name in zip(fields, (IMAGE_TYPE, INT_TYPE), (b"image", b"label"), strict=True):
            field["type_id"] = type_id
            field["name"][: len(name)] = np.frombuffer(name, np.uint8)
        digest = np.frombuffer(classes_digest(self._classes), np.uint8)
        fields[0]["arguments"][: len(digest)] = digest
        head = header.tobytes() + fields.tobytes() + self._metadata.tobytes()
        return head.ljust(self._head_bytes, b"\0")


def head_digest(path: Path, head_bytes: int) -> str:
    """The SHA-256 of a file's first bytes, as BetonInfo.head_sha256 has it."""
    with open(path, "rb") as file:
        return hashlib.sha256(file.read(head_bytes)).hexdigest()


class BetonSamples:
    """A split read from a `.beton` file by position.

    Raises InputError on opening where the file is none, is truncated, or belongs to another class list.
    """

    def __init__(self, path: Path, classes: list[str]) -> None:
        self._path, self._classes = path, classes
        try:
            self._size = path.stat().st_size
            with open(path, "rb") as file:
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
        if _METADATA_AT + sizes[0] > table_at or table_at + sizes[1] != self._size:
            raise InputError(f"{self._path}: truncated or damaged; convert again")
        self.metadata = np.fromfile(self._path, METADATA, count, offset=_METADATA_AT)
        self.allocation = np.fromfile(self._path, ALLOCATION, count, offset=table_at)
        self._check(table_at)

    def _check(self, table_at: int) -> None:
        """Every address and label is inside its bounds, so nothing after this has to check again."""
        images, labels = self.metadata["f0"], self.metadata["f1"]
        at, size = self.allocation["ptr"], self.allocation["size"]
        sound = (
            (images["mode"] == MODE_JPEG).all()
            and (images["data_ptr"] == at).all()
            and (at <= table_at).all()
            and (size <= table_at - at).all()
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
        _, at, size = self.allocation[index].tolist()
        jpeg = read_extent(self._path, at, size, self.name(index))
        return Sample(jpeg, int(self.metadata["f1"][index]))
