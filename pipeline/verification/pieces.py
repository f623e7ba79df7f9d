"""Divides a split into pieces that threads check: a shard with the pages of a `.beton` file that hold its samples."""

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ..errors import InputError
from ..storage.beton import HEADER, MODE_JPEG, MODE_RAW, SMALLEST_PAGE, BetonSamples, Extent
from ..storage.manifest import MANIFEST, Manifest, SplitInfo
from ..storage.shards import ShardInfo
from .problems import Problems
from .records import check_size


@dataclass(frozen=True, kw_only=True)
class Piece:
    """What one thread checks: a shard, the pages with its samples, or both; or pages that hold no samples."""

    split: str
    first: int = 0  # dataset position of its first sample
    number: int = 0  # of the shard
    shard: ShardInfo | None = None
    beton: Path | None = None
    start: int = 0  # of the extent, in bytes
    extent: Extent | None = None
    samples: BetonSamples | None = None  # None if the tables of the .beton file cannot be read
    rows: range = range(0)  # of the tables

    @property
    def bytes(self) -> int:
        """Bytes to read."""
        return (self.shard.bytes if self.shard else 0) + (self.extent.bytes if self.extent else 0)


def pieces_of(dst: Path, manifest: Manifest, split: str, problems: Problems) -> list[Piece]:
    """The pieces of a split whose files exist in the recorded size."""
    info = manifest.splits[split]
    shards, first = list[Piece](), 0
    for number, shard in enumerate(info.shards):
        if check_size(dst / shard.name, shard.bytes, problems):
            shards.append(Piece(split=split, first=first, number=number, shard=shard))
        first += shard.samples
    if not info.beton or not check_size(dst / info.beton.name, info.beton.bytes, problems):
        return shards
    head, *groups, table = _beton_pieces(dst, manifest, split, problems)
    if len(groups) != len(info.shards):
        return [*shards, head, *groups, table]
    for number, (shard, group) in enumerate(zip(info.shards, groups, strict=True)):
        if group.samples and len(group.rows) != shard.samples:
            assert group.beton
            problems.add(group.beton, f"{len(group.rows)} samples in group {number} of pages, not {shard.samples}")
    readable = {piece.number: piece for piece in shards}
    return [head, *(_joined(readable.get(number), group) for number, group in enumerate(groups)), table]


def _beton_pieces(dst: Path, manifest: Manifest, split: str, problems: Problems) -> Iterator[Piece]:
    """The extents of a .beton file: head, groups of pages, table."""
    info = manifest.splits[split]
    assert info.beton
    samples = _open_beton(dst, manifest, split, problems)
    starts = [0, *itertools.accumulate(extent.bytes for extent in info.beton.extents)]
    edges = np.array(starts, np.uint64)
    rows = np.searchsorted(samples.metadata["f0"]["data_ptr"], edges).tolist() if samples else starts
    if samples and (rows[1], rows[-2]) != (0, len(samples)):
        problems.add(dst / info.beton.name, "has samples outside its groups of pages")
    for number, extent in enumerate(info.beton.extents):
        group = range(rows[number], rows[number + 1]) if samples else range(0)
        yield Piece(
            split=split,
            first=group.start if group else 0,
            beton=dst / info.beton.name,
            start=starts[number],
            extent=extent,
            samples=samples,
            rows=group,
        )


def _open_beton(dst: Path, manifest: Manifest, split: str, problems: Problems) -> BetonSamples | None:
    """The tables of a split's .beton file; None if they cannot be used."""
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
        problems.add(path, f"holds images that --jpeg {info.image_mode} does not write")
    allocation = samples.allocation()
    at, size = (allocation[name].astype(np.int64) for name in ("ptr", "size"))
    if page_size < SMALLEST_PAGE or (at // page_size != (at + np.maximum(size, 1) - 1) // page_size).any():
        problems.add(path, "has samples that cross its pages")
    if (allocation["sample_id"] != np.arange(len(samples))).any():
        problems.add(path, "its allocation table is out of order")
    return samples


def _joined(shard: Piece | None, group: Piece) -> Piece:
    """A shard together with its group of pages."""
    if shard is None:
        return group
    return replace(group, first=shard.first, number=shard.number, shard=shard.shard)


def are_complete(pieces: Iterable[Piece], info: SplitInfo) -> bool:
    """Whether the pieces hold every sample of a split once."""
    return sum(piece.shard.samples if piece.shard else len(piece.rows) for piece in pieces) == info.samples
