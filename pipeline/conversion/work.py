"""The folder of an unfinished conversion: what is being converted, and what has been written so far.

    DST/.conversion/
      part-001-of-001.json      what is being converted and how; one for each part
      train-000000.json         the record of a finished shard: digests, a row per sample, odd images
      train-000000.tar, .idx    the shard
      train-001-of-001.pages    the part's samples for train.beton, shard by shard

The record of a shard is written once its tar and its pages are on the disk. So whatever a killed conversion leaves, the
shards on record are good; what follows them is cut off, and the rest is written as if there had been no interruption.
Where a shard begins depends on the source alone, so several machines together write the bytes that one would.
"""

import contextlib
import fcntl
import hashlib
import json
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..storage.files import complete_or_absent, move, regular
from ..storage.manifest import Manifest, check_size
from .listing import Images

Content = TypeVar("Content")

WORK = ".conversion"


@dataclass(frozen=True)
class Part:
    """The share of one of `count` machines; `number` is counted from 1."""

    number: int
    count: int

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"

    @property
    def name(self) -> str:
        return f"{self.number:03d}-of-{self.count:03d}"

    def share(self, total: int) -> range:
        """The shards of this part, of `total`: consecutive, and as many as the other parts have or one more."""
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

    @property
    def num_images(self) -> int:
        return self.stop - self.start


def source_digest(shard: Shard, images: Images, on_this_machine: bool) -> str:
    """What changes when the source images of a shard change: a digest of names, sizes and classes, and on this machine
    of modification times. Copies on other machines may have other times."""
    digest = hashlib.sha256("\n".join(images.names.between(shard.start, shard.stop)).encode("utf-8", "surrogateescape"))
    columns: list[NDArray[Any]] = [images.sizes, images.labels]
    for column in [*columns, images.modified] if on_this_machine else columns:
        digest.update(column[shard.start : shard.stop].tobytes())
    return digest.hexdigest()


@dataclass(frozen=True)
class ShardRecord:
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
class ConversionPlan:
    """What a part converts and how. The plans of all parts are those of the `same_conversion`."""

    paths: dict[str, Any]  # the flags that say where the source is
    arguments: dict[str, Any]  # the flags that determine the bytes written
    classes: list[str]
    samples: dict[str, int]  # of each split, bad ones included
    page_sizes: dict[str, int]
    shards: list[list[Any]]  # split, number, start, stop of every shard of all parts
    digest: str  # of all images
    passed_over: dict[str, dict[str, int]]  # by split: how many files of each kind are no images

    def same_conversion(self, other: "ConversionPlan") -> bool:
        """Whether both write the same bytes. Paths and files that are no images may differ between machines."""
        return replace(self, paths={}, passed_over={}) == replace(other, paths={}, passed_over={})

    def planned_shards(self, split: str | None = None) -> list[Shard]:
        """The shards of all parts, of one split or of all."""
        return [Shard(*fields) for fields in self.shards if split in (None, fields[0])]

    def shards_of(self, part: Part, split: str | None = None) -> list[Shard]:
        """The shards of one part, of one split or of all."""
        planned = self.planned_shards()
        return [planned[at] for at in part.share(len(planned)) if split in (None, planned[at].split)]


class Workspace:
    """The folder of an unfinished conversion."""

    def __init__(self, dst: Path) -> None:
        self.dst, self.folder = dst, dst / WORK

    def check_finished(self, manifest: Manifest) -> None:
        """Raises InputError where a finished conversion has lost a file."""
        try:
            for split in manifest.splits.values():
                for shard in split.shards:
                    check_size(self.dst / shard.name, shard.bytes)
                if split.beton:
                    check_size(self.dst / split.beton.name, split.beton.bytes)
        except InputError as error:
            raise InputError(f"{error} into an empty folder") from None

    def tar_path(self, shard: Shard) -> Path:
        return self.folder / f"{shard.name}.tar"

    def pages_path(self, split: str, part: Part) -> Path:
        """The part's pages. Those of the part with the split's first shard begin with room for the head."""
        return self.folder / f"{split}-{part.name}.pages"

    def has_tar(self, shard: Shard, record: ShardRecord) -> bool:
        """Whether the shard of a record, and its index, have been written."""
        tar = self.tar_path(shard)
        assert record.tar
        return tar.exists() and tar.stat().st_size == record.tar[0] and tar.with_suffix(".idx").exists()

    def publish_tar(self, shard: Shard, record: ShardRecord) -> None:
        """Give a shard and its index their names in the dataset, unless an earlier attempt did."""
        for suffix in (".idx", ".tar"):
            target = (self.dst / "webdataset" / shard.name).with_suffix(suffix)
            move_once(self.tar_path(shard).with_suffix(suffix), target)

    def record_path(self, shard: Shard) -> Path:
        return self.folder / f"{shard.name}.json"

    def write_record(self, shard: Shard, record: ShardRecord) -> None:
        with complete_or_absent(self.record_path(shard)) as file:
            json.dump(asdict(record) | {"rows": record.rows.tolist()}, file)

    def record(self, shard: Shard) -> ShardRecord | None:
        """The record of a shard, None if it has not been finished."""
        return _read_json(ShardRecord, self.record_path(shard))

    def finished_record(self, shard: Shard) -> ShardRecord:
        """The record of a shard that is known to be finished."""
        record = self.record(shard)
        assert record is not None
        return record

    def plan_path(self, part: Part) -> Path:
        return self.folder / f"part-{part.name}.json"

    def plan(self, part: Part) -> ConversionPlan | None:
        """What a part converts, None if it has not begun."""
        return _read_json(ConversionPlan, self.plan_path(part))

    def begun_plan(self, part: Part) -> ConversionPlan:
        """What a part converts that is known to have begun."""
        plan = self.plan(part)
        assert plan is not None
        return plan

    def parts(self) -> list[Part]:
        """The parts that have begun, in order."""
        names = [path.stem.split("-") for path in sorted(self.folder.glob("part-*-of-*.json"))]
        return [Part(int(number), int(count)) for _, number, _, count in names]

    def write_plan(self, part: Part, plan: ConversionPlan) -> None:
        with complete_or_absent(self.plan_path(part)) as file:
            json.dump(asdict(plan), file)

    def remove(self) -> None:
        """Remove the folder, the plans last, so that a process killed here can be started again."""
        plans = {self.plan_path(part) for part in self.parts()}
        for path in {*self.folder.iterdir()} - plans:
            path.unlink(missing_ok=True)
        shutil.rmtree(self.folder, ignore_errors=True)  # a network file system may keep the lock

    @contextlib.contextmanager
    def locked(self, name: str) -> Iterator[None]:
        """Exclude other processes. Raises InputError if one holds the lock; a killed process releases it."""
        with open(self.folder / f"{name}.lock", "a", opener=regular) as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise InputError(f"--dst {self.dst}: another conversion is writing to it; wait for it") from None
            yield


def move_once(source: Path, target: Path) -> None:
    """Move a file, unless an earlier attempt did. Raises InputError where it is missing."""
    target.parent.mkdir(exist_ok=True)
    if source.exists():
        move(source, target)
    elif not target.exists():
        raise InputError(f"{source}: missing; remove {source.parent} and start again")


def _read_json(kind: type[Content], path: Path) -> Content | None:
    """A dataclass written as JSON, None if there is no file."""
    try:
        with open(path, encoding="utf-8", opener=regular) as file:
            return kind(**json.load(file))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise InputError(f"{path}: cannot be read ({error}); remove {path.parent} and start again") from None
