"""WebDataset shards: tar files of `KEY.jpg` + `KEY.cls`, each with an index in the form of DALI's wds2idx.

The key begins with the dataset position (`00000017_n01440764_10026`), so it is unique and a stream of a shard
tells which samples it holds. The label is a decimal class index in ASCII.

The index, as DALI documents it for fn.readers.webdataset: a line `v1.2 SAMPLES`, then one line a sample with
`EXTENSION OFFSET SIZE NAME` for each of its files.
"""

import hashlib
import re
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from pipeline.errors import InputError
from pipeline.formats.files import complete_or_absent, discard, publish, read_extent, temporary_path
from pipeline.formats.samples import Sample

INDEX_VERSION = "v1.2"
_BLOCK = tarfile.BLOCKSIZE
_LARGEST_LABEL_FILE = 32


@dataclass(frozen=True, kw_only=True)
class ShardInfo:
    """A finished shard as dataset.json records it."""

    name: str  # relative to the dataset directory
    samples: int
    bytes: int
    sha256: str


def sample_key(position: int, stem: str) -> str:
    """The name of a sample's files in its shard, without the extension.

    Only characters that every tar reader and webdataset (which splits at the first dot) take as they are.
    """
    return f"{position:08d}_{re.sub(r'[^A-Za-z0-9_-]', '_', stem)[:64]}"


def position_of_key(key: str) -> int:
    """The dataset position that `sample_key` put into a key. Raises ValueError for a foreign key."""
    return int(key.rpartition("/")[2].partition("_")[0])


class ShardWriter:
    """Writes the samples of a split, in order, into shards of at most `shard_bytes` (one sample at least).

    A shard and its index appear under their names when they are complete.
    """

    def __init__(self, dataset: Path, split: str, shard_bytes: int) -> None:
        self._dataset, self._split, self._shard_bytes = dataset, split, shard_bytes
        self._position = 0
        self.finished: list[ShardInfo] = []
        self._file: BinaryIO | None = None
        (dataset / "webdataset").mkdir(parents=True, exist_ok=True)

    @property
    def _path(self) -> Path:
        return self._dataset / "webdataset" / f"{self._split}-{len(self.finished):06d}.tar"

    def add(self, stem: str, jpeg: bytes, label: int) -> None:
        """Append one sample; `stem` is its original file name without extension."""
        key = sample_key(self._position, stem)
        members = [_member(f"{key}.jpg", jpeg), _member(f"{key}.cls", str(label).encode())]
        size = sum(map(len, members))
        if self._file is not None and self._offset + size + 2 * _BLOCK > self._shard_bytes:
            self._finish_shard()
        if self._file is None:
            self._open_shard()
        jpeg_at = self._offset + _BLOCK
        label_at = self._offset + len(members[0]) + _BLOCK
        self._index.append(f"jpg {jpeg_at} {len(jpeg)} {key}.jpg cls {label_at} {len(str(label))} {key}.cls\n")
        for member in members:
            self._write(member)
        self._position += 1

    def close(self) -> list[ShardInfo]:
        """Finish the last shard; returns all of them."""
        if self._file is not None:
            self._finish_shard()
        return self.finished

    def abort(self) -> None:
        """Drop the shard that is being written."""
        if self._file is not None:
            discard(self._file, self._path)
            self._file = None

    def _open_shard(self) -> None:
        self._file = open(temporary_path(self._path), "wb")  # noqa: SIM115
        self._digest, self._offset, self._index = hashlib.sha256(), 0, list[str]()

    def _write(self, data: bytes) -> None:
        assert self._file is not None
        self._file.write(data)
        self._digest.update(data)
        self._offset += len(data)

    def _finish_shard(self) -> None:
        assert self._file is not None
        self._write(bytes(2 * _BLOCK))  # the end of a tar archive
        path = self._path
        with complete_or_absent(path.with_suffix(".idx")) as index:
            index.write(f"{INDEX_VERSION} {len(self._index)}\n")
            index.writelines(self._index)
        publish(self._file, path)
        self._file = None
        self.finished.append(
            ShardInfo(
                name=str(path.relative_to(self._dataset)),
                samples=len(self._index),
                bytes=self._offset,
                sha256=self._digest.hexdigest(),
            )
        )


def _member(name: str, data: bytes) -> bytes:
    """A file in a tar archive: header, content, padding. Nothing in it depends on the machine or the time."""
    header = tarfile.TarInfo(name)
    header.size = len(data)
    return header.tobuf(tarfile.USTAR_FORMAT) + data + bytes(-len(data) % _BLOCK)


class ShardSamples:
    """A split read from shards by position, through their indices.

    A shard is opened for each read: 4 us on a local disk, and 600 shards in many workers stay below every
    limit on open files.
    """

    def __init__(self, dataset: Path, shards: tuple[ShardInfo, ...], num_classes: int) -> None:
        self._num_classes = num_classes
        self._paths = [dataset / shard.name for shard in shards]
        self._first = np.cumsum([0] + [shard.samples for shard in shards])
        # One row a sample: offset and size of the JPEG, offset and size of the label.
        tables = [_read_index(path, shard) for path, shard in zip(self._paths, shards, strict=True)]
        self._table = np.concatenate([np.empty((0, 4), np.int64), *tables])

    def __len__(self) -> int:
        return len(self._table)

    def shard_of(self, index: int) -> Path:
        """The shard that holds a sample."""
        return self._paths[int(np.searchsorted(self._first, index, side="right")) - 1]

    def name(self, index: int) -> str:
        return f"{self.shard_of(index)} sample {index}"

    def extent(self, index: int) -> tuple[int, int]:
        """Where the tar members of a sample begin in its shard, and where they end (bytes)."""
        jpeg_at, jpeg_size, label_at, label_size = self._table[index].tolist()
        end = max(at + size + -size % _BLOCK for at, size in ((jpeg_at, jpeg_size), (label_at, label_size)))
        return min(jpeg_at, label_at) - _BLOCK, end

    def read_members(self, index: int) -> bytes:
        """The sample's members as they stand in the shard: a piece of a tar stream."""
        start, end = self.extent(index)
        data = read_extent(self.shard_of(index), start, end - start, self.name(index))
        if not data.startswith(sample_key(index, "").encode()):
            raise InputError(f"{self.name(index)}: the shard's index points to another sample; convert again")
        return data

    def __getitem__(self, index: int) -> Sample:
        start, _ = self.extent(index)
        data = self.read_members(index)
        jpeg_at, jpeg_size, label_at, label_size = (self._table[index] - (start, 0, start, 0)).tolist()
        return Sample(data[jpeg_at : jpeg_at + jpeg_size], self.label(data[label_at : label_at + label_size], index))

    def label(self, text: bytes, index: int) -> int:
        """The class index in a sample's `.cls` file. Raises InputError where it is none."""
        return parse_label(text, self._num_classes, self.name(index))


def parse_label(text: bytes, num_classes: int, name: str) -> int:
    """The class index in a `.cls` file. Raises InputError, beginning with `name`, where it is none."""
    if not text.isdigit() or len(text) > _LARGEST_LABEL_FILE or int(text) >= num_classes:
        raise InputError(f"{name}: the label {text[:40]!r} is none of {num_classes} classes")
    return int(text)


def _read_index(path: Path, shard: ShardInfo) -> np.ndarray:
    """The index of a shard as int64 [samples, 4], checked against the shard's size and sample count."""
    index_path = path.with_suffix(".idx")
    try:
        lines = index_path.read_text("ascii").splitlines()
        table = np.array([_index_row(line) for line in lines[1:]], np.int64).reshape(-1, 4)
    except (OSError, ValueError, KeyError, OverflowError) as error:
        raise InputError(f"{index_path}: cannot be read ({error}); convert again") from None
    if lines[:1] != [f"{INDEX_VERSION} {shard.samples}"] or len(table) != shard.samples:
        raise InputError(f"{index_path}: does not list the {shard.samples} samples of its shard; convert again")
    fits = (table >= 0).all() and (table[:, [1, 3]] <= shard.bytes - table[:, [0, 2]]).all()
    if not fits or (table[:, [0, 2]] < _BLOCK).any() or (table[:, 3] > _LARGEST_LABEL_FILE).any():
        raise InputError(f"{index_path}: points outside its shard; convert again")
    return table


def _index_row(line: str) -> tuple[int, int, int, int]:
    words = line.split()
    files = {words[at]: (int(words[at + 1]), int(words[at + 2])) for at in range(0, len(words) - 3, 4)}
    return *files["jpg"], *files["cls"]
