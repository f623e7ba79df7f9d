"""FFCV's `.beton` files, as its own writer makes them: images as JPEGs or raw pixels, and a label.

The layout is in `storage/beton.py`, which reads our own files; here fields may be any, and are found by their type.
"""

import io
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import InputError
from ...pixels.formats import BadImage
from ...storage.beton import ALLOCATION, FIELD, HEADER, IMAGE, IMAGE_TYPE, INT_TYPE, MODE_JPEG, MODE_RAW
from ...storage.manifest import MANIFEST, Manifest
from ...storage.reading import open_to_read, read_at, status_of
from ...storage.samples import MOST_SAMPLES
from ..archives import Member
from ..listing import ListedImage, Listing, make_listing, range_of

_MOST_FIELDS = 64
_BLOB = np.dtype([("ptr", "<u8"), ("size", "<u8")])
# ffcv/types.py and the metadata_type of each field: float, int, image, bytes, array, JSON, tensor.
_METADATA = {0: np.dtype("<f8"), INT_TYPE: np.dtype("<i8"), IMAGE_TYPE: IMAGE, 3: _BLOB, 4: "<u8", 5: _BLOB, 6: "<u8"}


def list_split(files: Sequence[Path], split: str, known: Collection[str]) -> Listing:
    """The images of `.beton` files. Raises InputError."""
    containers = [Beton(path) for path in files]
    listed = (image for container in containers for image in container.images())
    return replace(make_listing(f"FFCV files {range_of(files)}", listed), class_names=_class_names(files))


def _class_names(files: Sequence[Path]) -> list[str] | None:
    """The class list of an earlier conversion, if the files are from one."""
    datasets = {path.absolute().parent.parent for path in files if path.absolute().parent.name == "ffcv"}
    lists = {Manifest.read(dataset).classes for dataset in datasets if (dataset / MANIFEST).is_file()}
    if len(lists) > 1:
        raise InputError(f"{range_of(files)}: from datasets with different classes; convert them one by one")
    return next((list(classes) for classes in lists), None)


def _rows(file: io.RawIOBase, row: Any, count: int, offset: int) -> np.ndarray:
    """As np.fromfile: fewer rows at the end of the file."""
    data = read_at(file, min(count * row.itemsize, max(0, status_of(file).st_size - offset)), offset)
    return np.frombuffer(data, row, len(data) // row.itemsize)


class Beton:
    """The images of one file."""

    largest = 0
    read_whole = False

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with open_to_read(path) as file:
                self._modified = status_of(file).st_mtime_ns
                self._open(file)
        except (OSError, ValueError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(f"{path}: cannot be read as an FFCV file ({error})") from None

    def _open(self, file: io.RawIOBase) -> None:
        header = _rows(file, HEADER, 1, 0)[0]
        number = min(int(header["num_fields"]), _MOST_FIELDS + 1)
        fields = _rows(file, FIELD, number, HEADER.itemsize)
        types = [int(type_id) for type_id in fields["type_id"]]
        names = [bytes(name).rstrip(b"\0").decode("ascii", "replace") for name in fields["name"]]
        if len(types) > _MOST_FIELDS or len(types) < header["num_fields"]:
            raise InputError(f"{self.path}: truncated, damaged, or of more than {_MOST_FIELDS} fields")
        if unknown := [name for name, type_id in zip(names, types, strict=True) if type_id not in _METADATA]:
            raise InputError(f"{self.path}: its field {unknown[0]} is not one of FFCV's own; its size is not known")
        row = np.dtype([("", _METADATA[type_id]) for type_id in types], align=True)
        count, table_at = int(header["num_samples"]), int(header["alloc_table_ptr"])
        rows_at = HEADER.itemsize + fields.nbytes
        if rows_at + count * row.itemsize > table_at:
            raise InputError(f"{self.path}: truncated or damaged")
        if count > MOST_SAMPLES:
            raise InputError(f"{self.path}: {count} samples, of at most {MOST_SAMPLES}")
        rows = _rows(file, row, count, rows_at)
        allocations = _rows(file, ALLOCATION, count * len(types), table_at)  # one a field, at most
        self._images = rows[f"f{self._only(IMAGE_TYPE, types, names, 'image')}"]
        self._labels = rows[f"f{self._only(INT_TYPE, types, names, 'label')}"]
        self._sizes = self._sizes_in(allocations, table_at)

    def _only(self, type_id: int, types: list[int], names: list[str], usual: str) -> int:
        """The only field of a type, or the one with the usual name."""
        fields = [number for number, other in enumerate(types) if other == type_id]
        fields = [number for number in fields if names[number] == usual] or fields
        if len(fields) != 1:
            has = f"{len(fields)} fields" if fields else "no field"
            raise InputError(f"{self.path}: has {has} that may be the {usual}, in {', '.join(names)}")
        return fields[0]

    def _sizes_in(self, allocations: np.ndarray, table_at: int) -> np.ndarray:
        """The bytes of each image. FFCV's processes write the table in any order."""
        order = np.argsort(allocations["ptr"], kind="stable")
        starts = allocations["ptr"][order]
        at = np.searchsorted(starts, self._images["data_ptr"])
        found = at < len(starts)
        if not found.all() or not (starts[at] == self._images["data_ptr"]).all():
            raise InputError(f"{self.path}: its table lacks some images: truncated or damaged")
        sizes: np.ndarray = allocations["size"][order][at]
        pixels = 3 * self._images["height"].astype(np.uint64) * self._images["width"]
        raw = self._images["mode"] == MODE_RAW
        if not (raw | (self._images["mode"] == MODE_JPEG)).all() or (sizes[raw] != pixels[raw]).any():
            raise InputError(f"{self.path}: has images that are neither JPEGs nor pixels")
        if (self._images["data_ptr"] > table_at).any() or (sizes > table_at - self._images["data_ptr"]).any():
            raise InputError(f"{self.path}: its tables point outside the file")
        if sizes.sum(dtype=np.float64) > table_at:  # the same bytes, a million times, would take as long to convert
            raise InputError(f"{self.path}: its images overlap: damaged")
        return sizes

    def images(self) -> Iterator[ListedImage]:
        """Its images, in order. Raises InputError for a label that is no class."""
        for number, (label, size) in enumerate(zip(self._labels.tolist(), self._sizes.tolist(), strict=True)):
            name = f"sample-{number}"
            if label < 0:
                raise InputError(f"{self.path}: {name} has the label {label}, which is no class")
            yield ListedImage(self, Member(name, number, size, self._modified), label)

    def read(self, name: str, offset: int, size: int) -> bytes:
        """The image number `offset`: a JPEG as it is, pixels as a PPM."""
        image = self._images[offset]
        try:
            with open_to_read(self.path) as file:
                data = read_at(file, size, int(image["data_ptr"]))
        except OSError as error:
            raise InputError(f"{self.path}: cannot be read ({error.strerror})") from None
        if len(data) != size:
            raise InputError(f"{self.path}: has changed while it was being converted; start again")
        if not size:
            raise BadImage("no bytes")
        return data if image["mode"] == MODE_JPEG else b"P6 %d %d 255\n" % (image["width"], image["height"]) + data
