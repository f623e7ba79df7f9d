"""Parquet files with an image in each row, as Hugging Face has them: `data/train-00000-of-00294.parquet`.

The image is a column of bytes, or `image{bytes, path}`; the label is an index or a name. The names of the classes, and
which columns these are, is in the metadata that the datasets library writes; other files are judged by their columns.

Images can only be read by row group, and are decompressed on the way. So a listing reads labels and names alone, sizes
are the average of each row group, training images are shuffled within as many row groups as fit into memory
(`listing.mixed_images`), and these are held until all of their images have been written.
"""

import contextlib
import io
import json
import threading
from collections import Counter, OrderedDict
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ...errors import InputError
from ...pixels.formats import BadImage
from ...storage.reading import any_remote, each, open_to_read, status_of
from ...storage.remote.paths import RemotePath
from ..archives import Member
from ..listing import MIXED_BYTES, Label, ListedImage, Listing, listed_in, make_listing, range_of
from .parquet_pages import unpacked_size

_LARGEST_GROUP = 1 << 29  # bytes
_HELD_BYTES = MIXED_BYTES + (1 << 27)  # a few images of a window may still be wanted when the next one begins
_LOADED_AT_ONCE = 4  # row groups: at 10 ms for 100 images, enough for the fastest machines
_BATCH_ROWS = 64
_LONGEST_LABEL = 1000  # characters
_LARGEST_TEXTS = 1 << 26  # bytes of the labels or the names of a row group
_LONGEST_NAME = 255  # letters of a file's name, as file systems take
_FEWEST_BYTES = 8  # that an image takes in a file: a row without any takes a bit, in memory a hundred bytes
_ROWS_IN_ANY_FILE = 1 << 20
_LIKELY_LARGEST = 15 << 20  # bytes of an image; ImageNet's largest has 15 MB
_LABELS = ("label", "labels", "cls", "class", "wnid", "synset", "target")


def list_split(files: Sequence[Path], split: str, known: Collection[str]) -> Listing:
    """The images of Parquet files. Raises InputError."""
    names: list[str] | None = None
    columns_of = dict[Path, _Columns]()
    for path, columns in zip(files, each(_columns_in, files), strict=True):
        columns_of[path] = columns
        names = columns_of[files[0]].names
        if columns_of[path].names != names:
            raise InputError(f"{path}: has other class names than {files[0]}; convert them one by one")
    held = _Held(_HELD_BYTES)
    listing = make_listing(
        f"Parquet files {range_of(files)}",
        listed_in(lambda path, _: _images_in(path, columns_of[path], held), files, Counter(), any_remote(files)),
    )
    return replace(listing, class_words=names)


# --- columns


def _columns_in(path: Path) -> "_Columns":
    with _opened(path) as (file, _):
        return _find_columns(file.schema_arrow, path)


@dataclass(frozen=True)
class _Columns:
    image: str  # the leaf column with the bytes
    path: str | None  # the leaf column with the name of the image's file
    label: str
    names: list[str] | None  # of the classes, in index order


def _find_columns(schema: pa.Schema, path: Path) -> _Columns:
    """Which columns have image and label: as the metadata says, otherwise by type and name. Raises InputError."""
    features = _features(schema)
    images = [name for name, feature in features.items() if feature.get("_type") == "Image"]
    images = [name for name in images if name in schema.names] or [
        field.name for field in schema if _is_bytes(field.type) or _bytes_inside(field.type)
    ]
    image = _the_one(images, ("image", "img", "jpg"), schema, path, "images")
    kind = schema.field(image).type
    inside = _bytes_inside(kind)
    if not inside and not _is_bytes(kind):
        raise InputError(f"{path}: its column {image} has no images, but {str(kind)[:100]}")
    named = inside and any(field.name == "path" and pa.types.is_string(field.type) for field in kind)
    classes = [name for name, feature in features.items() if feature.get("_type") == "ClassLabel"]
    labels = [name for name in classes if name in schema.names] or [name for name in _LABELS if name in schema.names]
    label = _the_one(labels, _LABELS, schema, path, "labels")
    if pa.types.is_nested(schema.field(label).type):
        raise InputError(f"{path}: its column {label} has no labels, but {str(schema.field(label).type)[:100]}")
    names = features.get(label, {}).get("names")
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        names = None
    return _Columns(f"{image}.{inside}" if inside else image, f"{image}.path" if named else None, label, names)


def _features(schema: pa.Schema) -> dict[str, Any]:
    """What the datasets library says of the columns."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return {name: feature for name, feature in features.items() if isinstance(feature, dict)}
    except (KeyError, ValueError, TypeError, AttributeError, RecursionError):
        return {}


def _is_bytes(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _bytes_inside(kind: pa.DataType) -> str | None:
    """The field with bytes of a structure, if there is one alone."""
    fields = [kind.field(number) for number in range(kind.num_fields)] if pa.types.is_struct(kind) else []
    names = [field.name for field in fields if _is_bytes(field.type)]
    return names[0] if len(names) == 1 else None


def _the_one(found: list[str], preferred: Sequence[str], schema: pa.Schema, path: Path, what: str) -> str:
    """The only column that was found, or the preferred one of several."""
    if len(found) == 1:
        return found[0]
    if usual := [name for name in preferred if name in found]:
        return usual[0]
    raise InputError(f"{path}: {'several columns' if found else 'no column'} with {what} in {', '.join(schema.names)}")


# --- rows


def _images_in(path: Path, columns: _Columns, held: "_Held") -> Iterator[ListedImage]:
    """The images of one file, row by row."""
    with _opened(path) as (file, data):
        status = status_of(data)
        modified = status.st_mtime_ns
        _check_rows(path, file.metadata, status.st_size)
        for number in range(file.metadata.num_row_groups):
            group = file.metadata.row_group(number)
            if group.num_rows == 0:
                continue
            size = _leaf(group, columns.image).total_uncompressed_size
            _check_size(path, number, size)
            container = RowGroup(path, number, columns.image, min(size, _LIKELY_LARGEST), modified, held)
            for row, (label, name) in enumerate(_labels_and_names(file, data, path, columns, number)):
                name = _file_name(name) or f"group-{number}-row-{row}"
                file_in_group = Member(name, row, max(1, size // group.num_rows), modified)
                yield ListedImage(container, file_in_group, _label(label, path, name))


def _labels_and_names(
    file: pq.ParquetFile, data: io.RawIOBase, path: Path, columns: _Columns, number: int
) -> Iterator[tuple[Any, str | None]]:
    """Label and file name of each row of a group."""
    wanted = [columns.label, *([columns.path] if columns.path else [])]
    largest = total = 0
    for column in wanted:
        size = _unpacked_size(data, file, number, column)
        _check_texts(path, number, column, size)
        largest = max(largest, size)
    for batch in file.iter_batches(_rows_at_once(largest, _LARGEST_TEXTS), [number], columns=wanted, use_threads=False):
        total += batch.nbytes
        _check_texts(path, number, " and ".join(wanted), total)  # a dictionary may have made them smaller in the file
        labels = batch.column(columns.label).to_pylist()
        names = [None] * len(labels)
        if columns.path:
            image, _, field = columns.path.rpartition(".")
            names = pc.struct_field(batch.column(image), field).to_pylist()
        yield from zip(labels, names, strict=True)


def _check_texts(path: Path, number: int, columns: str, size: int) -> None:
    if size > _LARGEST_TEXTS:
        raise InputError(f"{path}: {columns} has {size >> 20} MB in row group {number}, which no labels or names take")


def _rows_at_once(size: int, most: int) -> int:
    """How many rows of a column of `size` bytes take no more than `most`: each may be its dictionary's only value."""
    return max(1, min(_BATCH_ROWS, most // max(1, size)))


def _leaf(group: pq.RowGroupMetaData, column: str) -> pq.ColumnChunkMetaData:
    """The column chunk of a name. Raises ArrowInvalid where there is none."""
    for at in range(group.num_columns):
        if (leaf := group.column(at)).path_in_schema == column:
            return leaf
    raise pa.ArrowInvalid(f"no column {column}")


def _unpacked_size(data: io.RawIOBase, file: pq.ParquetFile, number: int, column: str) -> int:
    """Bytes of a column in a row group. Raises ArrowInvalid where its pages cannot be found."""
    leaf = _leaf(file.metadata.row_group(number), column)
    try:
        return unpacked_size(data, leaf)
    except InputError:
        raise
    except ValueError as error:
        raise pa.ArrowInvalid(str(error)) from None


def _check_rows(path: Path, metadata: pq.FileMetaData, size: int) -> None:
    """Raises InputError for more rows than a file of `size` bytes can have images."""
    rows = [metadata.row_group(number).num_rows for number in range(metadata.num_row_groups)]
    if min(rows, default=0) < 0 or sum(rows) > _ROWS_IN_ANY_FILE + size // _FEWEST_BYTES:
        raise InputError(f"{path}: {sum(rows)} rows in {size} bytes, which cannot all have images")


def _file_name(name: str | None) -> str:
    return PurePosixPath(name).name[:_LONGEST_NAME] if name else ""


def _label(label: Any, path: Path, name: str) -> Label:
    if isinstance(label, str) and 0 < len(label) <= _LONGEST_LABEL:
        return label
    if isinstance(label, int) and not isinstance(label, bool) and label >= 0:
        return label
    raise InputError(f"{path}: {name} has the label {label!r:.60}, which is no class")


def _check_size(path: Path, number: int, size: int) -> None:
    if size > _LARGEST_GROUP:
        raise InputError(
            f"{path}: row group {number} has {size >> 20} MB, of at most {_LARGEST_GROUP >> 20}; write the file again "
            f"in smaller ones, with pyarrow's ParquetFile.iter_batches(100) and ParquetWriter.write_batch"
        )


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[tuple[pq.ParquetFile, io.RawIOBase]]:
    """A file, for pyarrow and as it is. pyarrow reads what is on this machine without Python's help."""
    with (
        _reading(path),
        open_to_read(path) as data,
        pq.ParquetFile(data if isinstance(path, RemotePath) else path) as file,
    ):
        yield file, data


class _reading:
    """Report what pyarrow raises as bad input."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        raised = (pa.ArrowException, OSError, UnicodeDecodeError)  # the last for names and texts that are no UTF-8
        if isinstance(error, raised) and not isinstance(error, InputError):
            raise InputError(f"{self._path}: cannot be read as Parquet ({str(error)[:100]})") from None


# --- images


class RowGroup:
    """The images of one row group."""

    read_whole = True

    def __init__(self, path: Path, number: int, column: str, largest: int, modified: int, held: "_Held") -> None:
        self.path, self.number, self.largest = path, number, largest
        self._column, self._modified, self._held = column, modified, held

    def read(self, name: str, offset: int, size: int) -> bytes:
        """The image in the row `offset`."""
        image = self._held.of(self)[offset].as_py()
        if not image:
            raise BadImage("no bytes in this row")
        assert isinstance(image, bytes)
        return image

    def load(self) -> pa.Array:
        """All images. Raises InputError."""
        batches, total = list[pa.Array](), 0
        with _opened(self.path) as (file, data):
            self._check_unchanged()
            size = _unpacked_size(data, file, self.number, self._column)
            _check_size(self.path, self.number, size)
            at_once = _rows_at_once(size, _LARGEST_GROUP)
            rows = file.iter_batches(at_once, [self.number], columns=[self._column], use_threads=False)
            for batch in rows:
                images = batch.column(0)
                if pa.types.is_struct(images.type):
                    images = pc.struct_field(images, 0)
                batches.append(images)
                total += images.nbytes
                _check_size(self.path, self.number, total)  # a dictionary may have made it smaller in the file
            self._check_unchanged()
        return pa.chunked_array(batches)

    def _check_unchanged(self) -> None:
        if self.path.stat().st_mtime_ns != self._modified:
            raise InputError(f"{self.path}: has changed while it was being converted; start again")


class _Held:
    """The row groups read last, of about `limit` bytes together. Used by several threads."""

    def __init__(self, limit: int) -> None:
        self._limit, self._size = limit, 0
        self._lock, self._loading = threading.Lock(), threading.BoundedSemaphore(_LOADED_AT_ONCE)
        self._groups: OrderedDict[RowGroup, Future[pa.Array]] = OrderedDict()

    def of(self, group: RowGroup) -> pa.Array:
        """The images of a row group. Raises InputError."""
        with self._lock:
            if (images := self._groups.get(group)) is not None:
                self._groups.move_to_end(group)
            else:
                mine = self._groups[group] = Future()
        return self._loaded(group, mine).result() if images is None else images.result()

    def _loaded(self, group: RowGroup, images: "Future[pa.Array]") -> "Future[pa.Array]":
        """Fill the future, and let go of what was used least recently."""
        try:
            with self._loading:
                images.set_result(group.load())
        except BaseException as error:
            images.set_exception(error)
            return images
        with self._lock:
            self._size += images.result().nbytes
            for other, content in list(self._groups.items()):
                if self._size <= self._limit:
                    break
                if other is not group and content.done():
                    self._size -= content.result().nbytes
                    del self._groups[other]
        return images
