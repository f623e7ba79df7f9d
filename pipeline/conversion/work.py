"""A conversion as shards to be written, and the folder in which they are until all are there.

    DST/.conversion/
      part-001-of-001.json      what is being converted and how; one for each part
      train-000000.json         the record of a finished shard: digests, a row a sample, odd images
      train-000000.tar, .idx    the shard
      train-001-of-001.pages    the part's samples for train.beton, shard by shard

A shard's record is written when its tar and its pages are on the disk. So whatever a killed conversion leaves,
the shards on record are good, what is behind them is cut off, and the rest is done as if nothing had happened.
Where a shard begins depends on the source alone, so several machines write the bytes that one would.
"""

import contextlib
import fcntl
import hashlib
import json
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from pipeline.conversion.sources import Images
from pipeline.errors import InputError
from pipeline.formats.files import complete_or_absent
from pipeline.formats.shards import stored_size

Content = TypeVar("Content")

WORK = ".conversion"
END_OF_SHARD = 1024  # bytes


@dataclass(frozen=True)
class Part:
    """One of `count` machines' shares, counted from 1."""

    number: int
    count: int

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"

    @property
    def name(self) -> str:
        return f"{self.number:03d}-of-{self.count:03d}"

    def share(self, total: int) -> range:
        """The shards of this part, of `total`: as even as can be, in order."""
        return range(total * (self.number - 1) // self.count, total * self.number // self.count)


@dataclass(frozen=True)
class Shard:
    """Consecutive images of a split."""

    split: str
    number: int
    start: int
    stop: int

    @property
    def name(self) -> str:
        return f"{self.split}-{self.number:06d}"


def plan_shards(split: str, images: Images, shard_bytes: int, growth: float) -> list[Shard]:
    """Cut a split into shards of at most `shard_bytes`, one image at least, if images change by `growth`."""
    sizes = [stored_size(int(size)) for size in images.sizes * growth]
    shards, start, total = list[Shard](), 0, END_OF_SHARD
    for index, size in enumerate(sizes):
        if index > start and total + size > shard_bytes:
            shards.append(Shard(split, len(shards), start, index))
            start, total = index, END_OF_SHARD
        total += size
    return [*shards, Shard(split, len(shards), start, len(sizes))]


def source_digest(shard: Shard, images: Images, on_this_machine: bool) -> str:
    """What tells whether a shard's images are still the same: names, sizes and classes, and on this machine when they
    were last changed. Copies on other machines may have other times."""
    digest = hashlib.sha256("\n".join(images.names[shard.start : shard.stop]).encode("utf-8", "surrogateescape"))
    columns: list[NDArray[Any]] = [images.sizes, images.labels]
    for column in [*columns, images.changed] if on_this_machine else columns:
        digest.update(column[shard.start : shard.stop].tobytes())
    return digest.hexdigest()


@dataclass(frozen=True)
class Record:
    """A finished shard."""

    source: str  # source_digest
    samples: int
    bytes: int  # of the stored images
    source_bytes: int  # of the same images in the source
    reencoded: int  # images, from pixels to JPEG
    tar: list[Any] | None  # bytes, sha256
    pages: list[Any] | None  # bytes, sha256
    rows: NDArray[np.int64]  # [N, 6], of PageWriter; as lists, those of 1.3 million images would take 0.4 GB
    report: list[dict[str, str]]  # odd and left-out images

    def __post_init__(self) -> None:
        object.__setattr__(self, "rows", np.array(self.rows, np.int64).reshape(-1, 6))  # from JSON they are lists


@dataclass(frozen=True)
class State:
    """What a part converts. All parts of a conversion have the same, but for `paths`."""

    paths: dict[str, Any]  # the flags that say where the source is
    arguments: dict[str, Any]  # the flags that what is written depends on
    classes: list[str]
    samples: dict[str, int]  # of each split, bad ones too
    page_sizes: dict[str, int]
    shards: list[list[Any]]  # split, number, start, stop of every shard, of all parts
    digest: str  # of all images

    def planned(self, split: str | None = None) -> list[Shard]:
        """The shards, of one split or of all."""
        return [Shard(*fields) for fields in self.shards if split in (None, fields[0])]


class Workspace:
    """The folder of an unfinished conversion."""

    def __init__(self, dst: Path) -> None:
        self.dst, self.folder = dst, dst / WORK

    def tar(self, shard: Shard) -> Path:
        return self.folder / f"{shard.name}.tar"

    def pages(self, split: str, part: Part) -> Path:
        """The part's pages; those of the part with the split's first shard begin with room for the head."""
        return self.folder / f"{split}-{part.name}.pages"

    def record_path(self, shard: Shard) -> Path:
        return self.folder / f"{shard.name}.json"

    def write_record(self, shard: Shard, record: Record) -> None:
        with complete_or_absent(self.record_path(shard)) as file:
            json.dump(asdict(record) | {"rows": record.rows.tolist()}, file)

    def record(self, shard: Shard) -> Record | None:
        """The record of a shard, None where it has not been finished."""
        return _load(Record, self.record_path(shard))

    def state_path(self, part: Part) -> Path:
        return self.folder / f"part-{part.name}.json"

    def state(self, part: Part) -> State | None:
        """What a part converts, None where it has not begun."""
        return _load(State, self.state_path(part))

    def parts(self) -> list[Part]:
        """The parts that have begun, in order."""
        names = [path.stem.split("-") for path in sorted(self.folder.glob("part-*-of-*.json"))]
        return [Part(int(number), int(count)) for _, number, _, count in names]

    def write_state(self, part: Part, state: State) -> None:
        with complete_or_absent(self.state_path(part)) as file:
            json.dump(asdict(state), file)

    def remove(self) -> None:
        """Remove the folder; what tells of the parts last, so that a killed process can be started again."""
        states = {self.state_path(part) for part in self.parts()}
        for path in {*self.folder.iterdir()} - states:
            path.unlink(missing_ok=True)
        shutil.rmtree(self.folder, ignore_errors=True)  # a network file system may keep the lock

    @contextlib.contextmanager
    def locked(self, name: str) -> Iterator[None]:
        """One process alone. Raises InputError where another has it; a killed process leaves it free."""
        with open(self.folder / f"{name}.lock", "a") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise InputError(f"--dst {self.dst}: another conversion is writing to it; wait for it") from None
            yield


def _load(kind: type[Content], path: Path) -> Content | None:
    """What was written as JSON, None where there is no file."""
    try:
        return kind(**json.loads(path.read_text("utf-8")))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"{path}: cannot be read ({error}); remove {path.parent} and start again") from None
