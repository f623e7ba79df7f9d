"""WebDataset shards: tar files of `KEY.jpg` + `KEY.cls`, each with an index in the form of DALI's wds2idx.

The key begins with the number of the shard and the place in it (`000012_000017_n01440764_10026`), so it is unique
and identifies the sample in a stream. The label is a decimal class index in ASCII.

The index, as DALI documents it for fn.readers.webdataset: a line `v1.2 SAMPLES`, then one line per sample with
`EXTENSION OFFSET SIZE NAME` for each of its files.
"""

import re
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError, StorageError, one_line
from ..pixels.formats import LARGEST_FILE
from .files import HashedWriter, complete_or_absent, discard, open_temporary, publish, read_extent
from .reading import read_bounded
from .samples import Sample
from .shard_index import OUTSIDE, SOUND, UNREADABLE, parse_index

INDEX_VERSION = "v1.2"
INDEX_ENTRY = 128  # bytes of a sample's line, about
_BLOCK = tarfile.BLOCKSIZE
_LARGEST_LABEL_FILE = 32
_LARGEST_ROW = 400  # bytes of an index
_PASSED_AT_ONCE = 1 << 20
_OWN_KEY = re.compile(r"^\d{6}_\d{6}_(?=.)")


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardInfo:
    """A finished shard as dataset.json records it."""

    name: str  # relative to the dataset directory
    samples: int
    bytes: int
    sha256: str


def sample_key(shard: int, place: int, stem: str) -> str:
    """The name of a sample's files, without the extension: number of the shard, place in it, original name.

    Contains only characters that every tar reader and webdataset (which splits at the first dot) leave unchanged.
    """
    return f"{shard:06d}_{place:06d}_{re.sub(r'[^A-Za-z0-9_-]', '_', stem)[:64]}"


def original_name(name: str) -> str:
    """An image's original file name: without folders, and without what `sample_key` puts before it."""
    return _OWN_KEY.sub("", name.rpartition("/")[2], count=1)


def position_of_key(key: str, first: NDArray[np.int64]) -> int:
    """The dataset position of a key made by `sample_key`; `first` has the first position of each shard and, last, the
    number of samples. Raises ValueError for a foreign key."""
    shard, place = (int(number) for number in key.rpartition("/")[2].split("_")[:2])
    if not 0 <= shard < len(first) - 1 or not 0 <= place < first[shard + 1] - first[shard]:
        raise ValueError(f"{key!r} is not a sample of this dataset")
    return int(first[shard]) + place


def stored_size(jpeg_bytes: int) -> int:
    """The bytes that a sample adds to a shard: two headers, the JPEG and the label, each padded."""
    return 3 * _BLOCK + jpeg_bytes + -jpeg_bytes % _BLOCK


class ShardWriter:
    """Writes one shard and its index, which appear under their names once they are complete."""

    def __init__(self, path: Path, number: int) -> None:
        self._path, self._number = path, number
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = cast(BinaryIO, open_temporary(path, "wb"))
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
        """Discard what was written."""
        discard(self._file, self._path)


_HEADER = tarfile.TarInfo("").tobuf(tarfile.USTAR_FORMAT)  # independent of the machine and the time
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


class Readable(Protocol):
    """A stream of bytes."""

    def read(self, size: int, /) -> bytes: ...


END = bytes(_BLOCK)
"""What ends a tar stream."""


def members_of(stream: Readable, name: str, most: int) -> Iterator[tuple[str, bytes]]:
    """Names and contents of the `.jpg` and `.cls` files in a tar stream of at most `most` bytes, in order; what else a
    shard may hold is passed over.

    tarfile would believe a stranger's headers: links and holes, gigabytes of a name, a compressed stream without end.
    Here memory is bounded by one image. Raises InputError, beginning with `name`, where a header is not one of a plain
    file, and StorageError where the stream breaks off.
    """
    read = 0
    while (header := _read(stream, _BLOCK, name)).strip(b"\0"):
        member, size = _own_file(header) or _plain_file(header, name)
        padded = size + -size % _BLOCK
        read += _BLOCK + padded
        if read > most:
            raise InputError(f"{name}: holds more than the {most} bytes that it should have; convert again")
        if member.endswith((".jpg", ".cls")):
            if size > LARGEST_FILE:
                raise InputError(f"{name}: {member} in it has {size} bytes; no image has as many")
            yield member, _read(stream, padded, name)[:size]
        else:
            for start in range(0, padded, _PASSED_AT_ONCE):
                _read(stream, min(_PASSED_AT_ONCE, padded - start), name)


def _own_file(header: bytes) -> tuple[str, int] | None:
    """Name and size of a file whose header `member_header` has made: 2 us, where tarfile takes 16. None for others."""
    try:
        member, size = header[_NAME].rstrip(b"\0").decode("ascii"), int(header[_SIZE], 8)
    except ValueError:
        return None
    is_own = "\0" not in member and size >= 0 and header == member_header(member, size)
    return (member, size) if is_own else None


def _plain_file(header: bytes, name: str) -> tuple[str, int]:
    """Name and size of a file in a tar archive. Raises InputError, beginning with `name`, for anything else."""
    try:
        member = tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape")
    except tarfile.HeaderError as error:
        raise InputError(f"{name}: not a shard, or a damaged one ({error}); convert again") from None
    if member.type not in (tarfile.REGTYPE, tarfile.AREGTYPE) or member.size < 0:
        shown = one_line(member.name)[:60]
        raise InputError(f"{name}: {shown} in it is no plain file, which no conversion writes; convert again")
    return member.name, member.size


def _read(stream: Readable, size: int, name: str) -> bytes:
    """So many bytes, of a stream that may give fewer at a time."""
    pieces, left = list[bytes](), size
    while left and (piece := stream.read(left)):
        pieces.append(piece)
        left -= len(piece)
    if left:
        raise StorageError(f"{name}: breaks off")
    return b"".join(pieces)


IndexReader = Callable[[ShardInfo, int], bytes]
"""Returns the index of a shard, of at most so many bytes."""


class ShardSamples:
    """A split read from shards by position, through their indices.

    A shard is opened for each read: 4 us on a local disk, and 600 shards in many workers stay below every
    limit on open files.
    """

    remedy = "convert again"

    def __init__(
        self, dataset: Path, shards: tuple[ShardInfo, ...], num_classes: int, read_index: IndexReader | None = None
    ) -> None:
        """`read_index` returns the index of a shard, of at most so many bytes, where that is not next to the shard."""
        self._num_classes = num_classes
        self._folder, self._names = str(dataset), [shard.name for shard in shards]
        self.first = np.cumsum([0] + [shard.samples for shard in shards])  # position of each shard's first sample
        # Of each sample: the block where its JPEG begins, its bytes, those of its label. 14 million images take 128 MB;
        # arrays that grow took 174. What dataset.json promises is not believed beyond what the shards can hold.
        count = int(self.first[-1])
        if count * stored_size(1) > sum(shard.bytes for shard in shards):
            raise InputError(f"{dataset}: its shards are too small for {count} samples; convert again")
        self._blocks, self._sizes = np.empty(count, np.uint32), np.empty(count, np.uint32)
        self._label_sizes = np.empty(count, np.uint8)
        for shard, at in zip(shards, self.first.tolist(), strict=False):
            rows = slice(at, at + shard.samples)
            _read_index(dataset, shard, read_index, self._blocks[rows], self._sizes[rows], self._label_sizes[rows])

    def __len__(self) -> int:
        return len(self._blocks)

    def shard_of(self, index: int) -> Path:
        """The shard that holds a sample."""
        return Path(self._path(self._number_of(index)))

    def _number_of(self, index: int) -> int:
        return int(self.first.searchsorted(index, side="right")) - 1

    def _path(self, number: int) -> str:
        """A shard: a text, which takes 0.2 us, and a Path 5."""
        return f"{self._folder}/{self._names[number]}"

    def _files(self, index: int) -> tuple[int, int, int, int]:
        """Offset and size of a sample's JPEG in its shard, and of its label."""
        at, size = int(self._blocks[index]) * _BLOCK, int(self._sizes[index])
        return at, size, at + size + -size % _BLOCK + _BLOCK, int(self._label_sizes[index])

    def name(self, index: int) -> str:
        return f"{self._path(self._number_of(index))} sample {index}"

    def key(self, index: int) -> str:
        """The name of a sample's files, without the extension: see `sample_key`. Raises InputError."""
        start, _ = self.extent(index)
        header = read_extent(self.shard_of(index), start, _BLOCK, self.name(index))
        return one_line(header[_NAME].rstrip(b"\0").decode("utf-8", "replace")).removesuffix(".jpg")

    def extent(self, index: int) -> tuple[int, int]:
        """The offsets in its shard at which the tar members of a sample begin and end."""
        jpeg_at, _, label_at, label_size = self._files(index)
        return jpeg_at - _BLOCK, label_at + label_size + -label_size % _BLOCK

    def read_members(self, index: int) -> bytes:
        """The sample's members as they are in the shard: a piece of a tar stream."""
        shard, (start, end) = self._number_of(index), self.extent(index)
        name = f"{self._path(shard)} sample {index}"
        data = read_extent(self._path(shard), start, end - start, name)
        key = sample_key(shard, index - int(self.first[shard]), "").encode()
        jpeg_at, jpeg_size, label_at, label_size = self._files(index)
        for at, size in ((jpeg_at - start, jpeg_size), (label_at - start, label_size)):
            header = data[at - _BLOCK : at]
            if not header.startswith(key) or header[_SIZE] != b"%011o" % size:
                raise InputError(f"{name}: the shard's index points to something else; convert again")
        return data

    def __getitem__(self, index: int) -> Sample:
        data = self.read_members(index)
        jpeg_at, jpeg_size, label_at, label_size = self._files(index)
        label_at -= jpeg_at - _BLOCK  # from where `data` begins
        return Sample(data[_BLOCK : _BLOCK + jpeg_size], self.label(data[label_at : label_at + label_size], index))

    def label(self, text: bytes, index: int) -> int:
        """The class index in a sample's `.cls` file. Raises InputError if it is not one."""
        return parse_label(text, self._num_classes, self.name(index))


def parse_label(text: bytes, num_classes: int, name: str) -> int:
    """The class index in a `.cls` file. Raises InputError, beginning with `name`, if it is not one."""
    if not text.isdigit() or len(text) > _LARGEST_LABEL_FILE or int(text) >= num_classes:
        raise InputError(f"{name}: the label {text[:40]!r} is not one of {num_classes} classes")
    return int(text)


def _read_index(dataset: Path, shard: ShardInfo, read: IndexReader | None, *columns: NDArray[Any]) -> None:
    """Write blocks, sizes and label sizes from the index of a shard, see `parse_index`. Raises InputError where it
    cannot be that of a shard with this size and sample count."""
    path = (dataset / shard.name).with_suffix(".idx")
    try:
        most = _LARGEST_ROW * (shard.samples + 1)
        version, _, lines = (read(shard, most) if read else read_bounded(path, most)).partition(b"\n")
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); convert again") from None
    limits = shard.bytes, LARGEST_FILE, _LARGEST_LABEL_FILE
    count, state = parse_index(np.frombuffer(lines, np.uint8), *limits, *columns)
    if version != b"%s %d" % (INDEX_VERSION.encode(), shard.samples) or (state == SOUND and count != shard.samples):
        raise InputError(f"{path}: does not list the {shard.samples} samples of its shard; convert again")
    if state == UNREADABLE:
        raise InputError(f"{path}: cannot be read (line {count + 2}); convert again")
    if state == OUTSIDE:
        raise InputError(f"{path}: points to where its shard cannot have a sample (line {count + 2}); convert again")
