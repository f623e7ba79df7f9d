"""WebDataset shards: tar files of `KEY.jpg` + `KEY.cls`, each with an index in the form of DALI's wds2idx.

The key begins with the number of the shard and the place in it (`000012_000017_n01440764_10026`), so it is unique
and a stream of a shard tells which samples it holds. The label is a decimal class index in ASCII.

The index, as DALI documents it for fn.readers.webdataset: a line `v1.2 SAMPLES`, then one line a sample with
`EXTENSION OFFSET SIZE NAME` for each of its files.
"""

import re
import tarfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import InputError
from pipeline.formats.files import HashedWriter, complete_or_absent, discard, publish, read_extent, temporary_path
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


def sample_key(shard: int, place: int, stem: str) -> str:
    """The name of a sample's files, without the extension: number of the shard, place in it, original name.

    Only characters that every tar reader and webdataset (which splits at the first dot) take as they are.
    """
    return f"{shard:06d}_{place:06d}_{re.sub(r'[^A-Za-z0-9_-]', '_', stem)[:64]}"


def position_of_key(key: str, first: NDArray[np.int64]) -> int:
    """The dataset position of a key that `sample_key` made; `first` has the first position of each shard and,
    last, the number of samples. Raises ValueError for a foreign key."""
    shard, place = (int(number) for number in key.rpartition("/")[2].split("_")[:2])
    if not 0 <= shard < len(first) - 1 or not 0 <= place < first[shard + 1] - first[shard]:
        raise ValueError(f"{key!r} is no sample of this dataset")
    return int(first[shard]) + place


def stored_size(jpeg_bytes: int) -> int:
    """What a sample adds to a shard, in bytes: two headers, the JPEG and the label, each padded."""
    return 3 * _BLOCK + jpeg_bytes + -jpeg_bytes % _BLOCK


class ShardWriter:
    """Writes one shard and its index, which appear under their names when they are complete."""

    def __init__(self, path: Path, number: int) -> None:
        self._path, self._number = path, number
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = open(temporary_path(path), "wb")  # noqa: SIM115
        self._writer, self._index = HashedWriter(self._file), list[str]()

    def add(self, stem: str, jpeg: bytes, label: int) -> None:
        """Append one sample; `stem` is its original file name without extension."""
        key = sample_key(self._number, len(self._index), stem)
        jpeg_at = self._writer.size + _BLOCK
        self._writer.write(member_header(f"{key}.jpg", len(jpeg)))
        self._writer.write(jpeg)
        label_text = b"%d" % label
        padding = -len(jpeg) % _BLOCK
        label_at = jpeg_at + len(jpeg) + padding + _BLOCK
        header = bytes(padding) + member_header(f"{key}.cls", len(label_text))
        self._writer.write(header + label_text.ljust(_BLOCK, b"\0"))
        self._index.append(f"jpg {jpeg_at} {len(jpeg)} {key}.jpg cls {label_at} {len(label_text)} {key}.cls\n")

    def close(self) -> tuple[int, str]:
        """Finish the shard. Returns its size in bytes and its SHA-256."""
        self._writer.write(bytes(2 * _BLOCK))  # the end of a tar archive
        sha256 = self._writer.finish()
        with complete_or_absent(self._path.with_suffix(".idx")) as index:
            index.write(f"{INDEX_VERSION} {len(self._index)}\n")
            index.writelines(self._index)
        publish(self._file, self._path)
        return self._writer.size, sha256

    def abort(self) -> None:
        """Drop what was written."""
        discard(self._file, self._path)


_HEADER = tarfile.TarInfo("").tobuf(tarfile.USTAR_FORMAT)  # nothing in it depends on the machine or the time
_NAME, _SIZE, _CHECKSUM = slice(0, 100), slice(124, 135), slice(148, 156)
_REST = sum(_HEADER) - sum(_HEADER[_SIZE]) - sum(_HEADER[_CHECKSUM]) + sum(b" " * 8)


def member_header(name: str, size: int) -> bytes:
    """The header of a file in a tar archive, as `tarfile` makes it (16 us there, 2 us here). POSIX.1-1988, ustar."""
    name_field, size_field = name.encode("ascii"), b"%011o" % size
    assert len(name_field) <= _NAME.stop
    assert len(size_field) == 11
    header = bytearray(_HEADER)
    header[: len(name_field)] = name_field
    header[_SIZE] = size_field
    header[_CHECKSUM] = b"%06o\0 " % (_REST + sum(name_field) + sum(size_field))
    return bytes(header)


class ShardSamples:
    """A split read from shards by position, through their indices.

    A shard is opened for each read: 4 us on a local disk, and 600 shards in many workers stay below every
    limit on open files.
    """

    def __init__(self, dataset: Path, shards: tuple[ShardInfo, ...], num_classes: int) -> None:
        self._num_classes = num_classes
        self._paths = [dataset / shard.name for shard in shards]
        self.first = np.cumsum([0] + [shard.samples for shard in shards])  # position of each shard's first sample
        # One row a sample: offset and size of the JPEG, offset and size of the label.
        tables = [_read_index(path, shard) for path, shard in zip(self._paths, shards, strict=True)]
        self._table = np.concatenate([np.empty((0, 4), np.int64), *tables])

    def __len__(self) -> int:
        return len(self._table)

    def shard_of(self, index: int) -> Path:
        """The shard that holds a sample."""
        return self._paths[int(np.searchsorted(self.first, index, side="right")) - 1]

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
        shard = int(np.searchsorted(self.first, index, side="right")) - 1
        key = sample_key(shard, index - int(self.first[shard]), "").encode()
        for at, size in (self._table[index] - (start, 0, start, 0)).reshape(2, 2).tolist():
            header = data[at - _BLOCK : at]
            if not header.startswith(key) or header[_SIZE] != b"%011o" % size:
                raise InputError(f"{self.name(index)}: the shard's index points to something else; convert again")
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
