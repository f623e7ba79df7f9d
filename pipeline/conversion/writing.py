"""Writing the shards of a part: the images of each, checked and prepared by threads, into every format."""

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import BinaryIO

import numpy as np

from ..errors import InputError
from ..pixels.formats import BadImage
from ..storage.beton import PageWriter
from ..storage.files import flush, regular
from ..storage.shards import ShardWriter
from .images import Handling, PreparedImage, prepare
from .listing import Images, each_image
from .progress import ConversionProgress
from .work import Part, Shard, ShardRecord, Workspace, source_digest

Outcome = PreparedImage | BadImage
"""An image as it will be stored, or why it cannot be."""

BadImages = list[tuple[str, str]]
"""Where each bad image is, and why it is bad."""


@dataclass(frozen=True, kw_only=True)
class SplitShare:
    """What a part writes of one split, and how."""

    images: Images  # of the whole split
    shards: list[Shard]  # consecutive
    part: Part
    handling: Handling
    formats: tuple[str, ...]
    head_bytes: int  # to leave free in front of the pages
    page_size: int
    workers: int
    skip_bad: bool

    @property
    def split(self) -> str:
        return self.shards[0].split


def write_share(workspace: Workspace, share: SplitShare, progress: ConversionProgress) -> BadImages:
    """Write the shards that are not finished.

    Returns the bad images unless they are to be skipped; nothing is written after the shard of the first one.
    """
    finished = finished_shards(workspace, share)
    for shard, record in zip(share.shards, finished, strict=False):
        progress.add_resumed(shard.num_images, len(record.report))
    remaining = share.shards[len(finished) :]
    for shard in remaining:
        workspace.record_path(shard).unlink(missing_ok=True)
    if not remaining:
        return []
    pages = _open_pages(workspace, share, finished) if "ffcv" in share.formats else None
    positions = range(remaining[0].start, remaining[-1].stop)
    outcomes = each_image(partial(_prepare_image, share), share.images, positions, share.workers)
    try:
        return _write_shards(workspace, share, remaining, pages, _counted(outcomes, share, positions, progress))
    finally:
        outcomes.close()
        if pages:
            pages.close()


def finished_shards(workspace: Workspace, share: SplitShare) -> list[ShardRecord]:
    """The records of the share's first shards that need not be written again."""
    pages = workspace.pages_path(share.split, share.part)
    end = share.head_bytes
    size = pages.stat().st_size if pages.exists() else 0
    records = []
    for shard in share.shards:
        record = workspace.record(shard)
        if record is None or record.source != source_digest(shard, share.images, on_this_machine=True):
            break
        if not share.skip_bad and record.samples < shard.num_images:  # an attempt with --on-bad skip left some out
            break
        end += record.pages[0] if record.pages else 0
        if (record.tar and not workspace.has_tar(shard, record)) or (record.pages and size < end):
            break
        records.append(record)
    return records


def _open_pages(workspace: Workspace, share: SplitShare, finished: list[ShardRecord]) -> BinaryIO:
    """The part's pages, cut off after those of the finished shards."""
    path = workspace.pages_path(share.split, share.part)
    file = os.fdopen(regular(str(path), os.O_RDWR | os.O_CREAT), "r+b")
    file.truncate(share.head_bytes + sum(record.pages[0] for record in finished if record.pages))
    file.seek(0, 2)
    return file


def _prepare_image(share: SplitShare, index: int, data: bytes | BadImage) -> Outcome:
    """Check and prepare an image."""
    if isinstance(data, BadImage):
        return data
    try:
        return prepare(data, index, share.handling)
    except BadImage as bad:
        return bad


def _counted(
    outcomes: Iterable[Outcome], share: SplitShare, positions: Iterable[int], progress: ConversionProgress
) -> Iterator[Outcome]:
    """Pass the outcomes on, and count them in `progress`."""
    for index, outcome in zip(positions, outcomes, strict=False):
        progress.add_image(int(share.images.sizes[index]), isinstance(outcome, BadImage) or bool(outcome.odd))
        yield outcome


def _write_shards(
    workspace: Workspace, share: SplitShare, shards: list[Shard], pages: BinaryIO | None, outcomes: Iterator[Outcome]
) -> BadImages:
    """Write shards from the outcomes of their images."""
    bad: BadImages = []
    for shard in shards:
        if bad:  # only to list the other bad images too
            bad += [
                (share.images.where(index), str(outcome))
                for index, outcome in zip(range(shard.start, shard.stop), outcomes, strict=False)
                if isinstance(outcome, BadImage)
            ]
            continue
        bad = _write_shard(workspace, share, shard, pages, outcomes)
    return bad


@dataclass
class _ShardContent:
    """What has been counted of a shard's images."""

    bad: BadImages = field(default_factory=list)
    report: list[dict[str, str]] = field(default_factory=list)
    samples: int = 0
    bytes: int = 0
    source_bytes: int = 0
    reencoded: int = 0

    def add(self, split: str, images: Images, index: int, outcome: Outcome) -> None:
        """Count one image."""
        if isinstance(outcome, BadImage):
            where = images.where(index)
            self.bad.append((where, str(outcome)))
            self.report.append({"split": split, "file": where, "bad": str(outcome), "done": "left out"})
            return
        if outcome.odd:
            done = "re-encoded" if outcome.reencoded else "kept"
            self.report.append({"split": split, "file": images.where(index), "odd": outcome.odd, "done": done})
        self.samples += 1
        self.bytes += len(outcome.data)
        self.source_bytes += int(images.sizes[index])
        self.reencoded += outcome.reencoded


def _write_shard(
    workspace: Workspace, share: SplitShare, shard: Shard, pages: BinaryIO | None, outcomes: Iterator[Outcome]
) -> BadImages:
    """Write one shard in every format. Returns its bad images unless they are to be skipped; it has no record then."""
    tar = ShardWriter(workspace.tar_path(shard), shard.number) if "webdataset" in share.formats else None
    group = PageWriter(pages, share.page_size) if pages else None
    content, images = _ShardContent(), share.images
    try:
        for index, outcome in zip(range(shard.start, shard.stop), outcomes, strict=False):
            content.add(shard.split, images, index, outcome)
            if isinstance(outcome, BadImage):
                continue
            label = int(images.labels[index])
            if tar:
                tar.add(images.stem(index), outcome.data, label)
            if group:
                group.add(outcome.data, outcome.mode, outcome.height, outcome.width, label)
        if content.bad and not share.skip_bad:
            return content.bad
        if not content.samples:
            raise InputError(
                f"{content.bad[-1][0]}: every image of its shard is bad ({len(content.bad)}); is it the right --src?"
            )
        extent = group.close() if group else None
        if pages:
            flush(pages)
        tar_info = list(tar.close()) if tar else None
        tar = None
    finally:
        if tar:
            tar.abort()
    record = ShardRecord(
        source=source_digest(shard, images, on_this_machine=True),
        samples=content.samples,
        bytes=content.bytes,
        source_bytes=content.source_bytes,
        reencoded=content.reencoded,
        tar=tar_info,
        pages=[extent.bytes, extent.sha256] if extent else None,
        rows=np.array(group.rows if group else [], np.int64),
        report=content.report,
    )
    workspace.write_record(shard, record)
    return []
