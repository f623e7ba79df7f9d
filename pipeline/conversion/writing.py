"""Writing a part's shards, and putting all parts together."""

import json
import logging
import os
import re
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np

from pipeline.conversion.images import BadImage, Handling, Stored, prepare
from pipeline.conversion.sources import Images
from pipeline.conversion.work import Part, Record, Shard, State, Workspace, source_digest
from pipeline.dataset import MANIFEST, Manifest, SplitInfo
from pipeline.errors import InputError
from pipeline.formats.beton import BetonInfo, Extent, PageGroup, PageWriter, beton_extents, finish_beton, head_bytes
from pipeline.formats.files import complete_or_absent, move
from pipeline.formats.shards import ShardInfo, ShardWriter
from pipeline.threads import in_order

log = logging.getLogger(__name__)

REPORT = "report.json"
BAD_LIST = "bad-images.txt"
FINISHING = "finishing"  # in the work folder: all parts are written, files are being moved


@dataclass(frozen=True)
class Job:
    """A split's share of a part."""

    images: Images
    shards: list[Shard]  # consecutive
    part: Part
    handling: Handling
    formats: tuple[str, ...]
    head_bytes: int  # to leave free in front of the pages
    page_size: int
    workers: int
    skip_bad: bool


def finished_shards(workspace: Workspace, job: Job) -> list[Record]:
    """The records of the job's first shards that need not be written again."""
    pages = workspace.pages(job.shards[0].split, job.part)
    end = job.head_bytes
    size = pages.stat().st_size if pages.exists() else 0
    records = []
    for shard in job.shards:
        record = workspace.record(shard)
        if record is None or record.source != source_digest(shard, job.images, on_this_machine=True):
            break
        if not job.skip_bad and record.samples < shard.stop - shard.start:  # left out by an attempt that was to skip
            break
        end += record.pages[0] if record.pages else 0
        tar = workspace.tar(shard)
        if record.tar and not (
            tar.exists() and tar.stat().st_size == record.tar[0] and tar.with_suffix(".idx").exists()
        ):
            break
        if record.pages and size < end:
            break
        records.append(record)
    return records


class Progress(Protocol):
    """Is told what has been done."""

    def resumed(self, images: int, odd: int) -> None:
        """Images that were written by an earlier attempt."""

    def read(self, size: int, odd: bool) -> None:
        """One image of `size` bytes."""


def write_split(workspace: Workspace, job: Job, progress: Progress) -> list[tuple[str, str]]:
    """Write the shards that are not finished.

    Returns the bad images (place, reason) if they are not to be skipped; nothing is written behind the first.
    """
    finished = finished_shards(workspace, job)
    for shard, record in zip(job.shards, finished, strict=False):
        progress.resumed(shard.stop - shard.start, len(record.report))
    todo = job.shards[len(finished) :]
    for shard in todo:
        workspace.record_path(shard).unlink(missing_ok=True)
    if not todo:
        return []
    pages = open_pages(workspace, job, finished) if "ffcv" in job.formats else None
    outcomes = in_order(lambda index: outcome(job, index), range(todo[0].start, todo[-1].stop), job.workers)
    try:
        return write_shards(workspace, job, todo, pages, counted(outcomes, job, todo[0].start, progress))
    finally:
        outcomes.close()
        if pages:
            pages.close()


def open_pages(workspace: Workspace, job: Job, finished: list[Record]) -> BinaryIO:
    """The part's pages, cut off behind those of the finished shards."""
    path = workspace.pages(job.shards[0].split, job.part)
    path.touch()
    file = open(path, "r+b")  # noqa: SIM115 (write_split closes it)
    file.truncate(job.head_bytes + sum(record.pages[0] for record in finished if record.pages))
    file.seek(0, 2)
    return file


def outcome(job: Job, index: int) -> Stored | BadImage:
    """An image as it will be stored, or why it cannot be. Raises InputError where the source has changed."""
    try:
        return prepare(job.images.read(index), index, job.handling)
    except BadImage as bad:
        return bad


def counted(
    outcomes: Iterable[Stored | BadImage], job: Job, start: int, progress: Progress
) -> Iterator[Stored | BadImage]:
    """Tell progress of each outcome that passes."""
    for index, made in enumerate(outcomes, start):
        progress.read(int(job.images.sizes[index]), isinstance(made, BadImage) or bool(made.odd))
        yield made


def write_shards(
    workspace: Workspace, job: Job, shards: list[Shard], pages: BinaryIO | None, outcomes: Iterator[Stored | BadImage]
) -> list[tuple[str, str]]:
    """Write shards from the outcomes of their images."""
    bad: list[tuple[str, str]] = []
    for shard in shards:
        if bad:  # only to name the other bad images too
            bad += [
                (job.images.where(index), str(made))
                for index, made in zip(range(shard.start, shard.stop), outcomes, strict=False)
                if isinstance(made, BadImage)
            ]
            continue
        bad = write_shard(workspace, job, shard, pages, outcomes)
    return bad


def write_shard(
    workspace: Workspace, job: Job, shard: Shard, pages: BinaryIO | None, outcomes: Iterator[Stored | BadImage]
) -> list[tuple[str, str]]:
    """Write one shard, in every format. Returns its bad images if they are not to be skipped: it has no record then."""
    tar = ShardWriter(workspace.tar(shard), shard.number) if "webdataset" in job.formats else None
    group = PageWriter(pages, job.page_size) if pages else None
    report, bad, samples, total, source_bytes, reencoded = [], [], 0, 0, 0, 0
    try:
        for index, made in zip(range(shard.start, shard.stop), outcomes, strict=False):
            label = int(job.images.labels[index])
            if isinstance(made, BadImage):
                where = job.images.where(index)
                bad.append((where, str(made)))
                report.append({"split": shard.split, "file": where, "bad": str(made), "done": "left out"})
                continue
            if made.odd:
                done = "re-encoded" if made.reencoded else "kept"
                report.append({"split": shard.split, "file": job.images.where(index), "odd": made.odd, "done": done})
            if tar:
                tar.add(job.images.stem(index), made.data, label)
            if group:
                group.add(made.data, made.mode, made.height, made.width, label)
            samples, total, reencoded = samples + 1, total + len(made.data), reencoded + made.reencoded
            source_bytes += int(job.images.sizes[index])
        if bad and not job.skip_bad:
            return bad
        if not samples:
            raise InputError(f"{bad[-1][0]}: every image of its shard is bad ({len(bad)}); is it the right --src?")
        extent = group.close() if group else None
        if pages:
            flush(pages)
        tar_info = list(tar.close()) if tar else None
        tar = None
    finally:
        if tar:
            tar.abort()
    record = Record(
        source=source_digest(shard, job.images, on_this_machine=True),
        samples=samples,
        bytes=total,
        source_bytes=source_bytes,
        reencoded=reencoded,
        tar=tar_info,
        pages=[extent.bytes, extent.sha256] if extent else None,
        rows=np.array(group.rows if group else [], np.int64),
        report=report,
    )
    workspace.write_record(shard, record)
    return []


# --- all parts together


def check_complete(workspace: Workspace) -> State:
    """What all parts convert. Raises InputError naming the first that is missing, different or unfinished."""
    parts = workspace.parts()
    if not parts:
        raise InputError(f"--dst {workspace.dst}: no part of a conversion in it; start with --part 1/N")
    first = workspace.state(parts[0])
    assert first is not None
    missing = sorted({*range(1, parts[0].count + 1)} - {part.number for part in parts})
    if missing:
        raise InputError(f"--dst {workspace.dst}: part {missing[0]}/{parts[0].count} has not begun")
    for part in parts:
        state = workspace.state(part)
        assert state is not None
        if replace(state, paths={}) != replace(first, paths={}):
            raise InputError(
                f"--dst {workspace.dst}: part {part} converts with other arguments, or another source, than part "
                f"{parts[0]}; remove {workspace.state_path(part)} and run it again"
            )
        for number in part.share(len(first.shards)):
            if not workspace.record_path(first.planned()[number]).exists():
                raise InputError(f"--dst {workspace.dst}: part {part} is not finished; start it again to continue")
    return first


def finish(workspace: Workspace) -> dict[str, int]:
    """Give everything its name, `dataset.json` last, and remove the work folder. Killed half-way, it can be called
    again.

    Returns counts: samples of each split, `bad`, `reencoded`, `bytes`.
    """
    if not (workspace.dst / MANIFEST).exists():
        publish_all(workspace, check_complete(workspace))
    manifest = Manifest.read(workspace.dst)
    report = json.loads((workspace.dst / REPORT).read_text("utf-8"))
    workspace.remove()
    return {
        **{split: info.samples for split, info in manifest.splits.items()},
        "bad": sum("bad" in entry for entry in report["images"]),
        "reencoded": report["stored"]["reencoded"],
        "bytes": sum(info.bytes for info in manifest.splits.values()),
    }


def publish_all(workspace: Workspace, state: State) -> None:
    """Move everything to where it belongs, and write the report and `dataset.json`."""
    (workspace.folder / FINISHING).touch()
    records = {split: [need(workspace, shard) for shard in state.planned(split)] for split in state.samples}
    splits = {split: finish_split(workspace, state, split, records[split]) for split in records}
    with complete_or_absent(workspace.dst / REPORT) as file:
        json.dump(report_of([record for ours in records.values() for record in ours]), file, indent=1)
    Manifest(classes=tuple(state.classes), splits=splits).write(workspace.dst)


def need(workspace: Workspace, shard: Shard) -> Record:
    record = workspace.record(shard)
    assert record is not None
    return record


def report_of(records: list[Record]) -> dict[str, Any]:
    """What report.json says: how many images are as they were and how sizes changed, then every odd or bad image."""
    images = [entry for record in records for entry in record.report]
    reencoded = sum(record.reencoded for record in records)
    stored = {
        "lossless": sum(record.samples for record in records) - reencoded,
        "reencoded": reencoded,
        "source_bytes": sum(record.source_bytes for record in records),
        "bytes": sum(record.bytes for record in records),
    }
    return {"stored": stored, "counts": counts_of(images), "images": images}


def counts_of(report: list[dict[str, str]]) -> dict[str, int]:
    """How many images there are of each oddity and what was done with them, numbers in the texts left out."""
    kinds = (f"{re.sub(r'[0-9]+ bytes', 'bytes', entry.get('odd', 'bad'))}: {entry['done']}" for entry in report)
    return dict(Counter(kinds).most_common())


def finish_split(workspace: Workspace, state: State, split: str, records: list[Record]) -> SplitInfo:
    """Name a split's files."""
    shards = state.planned(split)
    beton = None
    if records[0].pages:
        beton = finish_pages(workspace, state, split, records)
    infos = []
    for shard, record in zip(shards, records, strict=True):
        if record.tar:
            name = f"webdataset/{shard.name}.tar"
            for suffix in (".idx", ".tar"):
                move_once(workspace.tar(shard).with_suffix(suffix), (workspace.dst / name).with_suffix(suffix))
            infos.append(ShardInfo(name=name, samples=record.samples, bytes=record.tar[0], sha256=record.tar[1]))
    return SplitInfo(
        samples=sum(record.samples for record in records),
        bytes=sum(record.bytes for record in records),
        image_mode=state.arguments["jpeg"],
        shards=tuple(infos),
        beton=beton,
    )


def move_once(source: Path, target: Path) -> None:
    """Move a file, unless an earlier attempt did."""
    target.parent.mkdir(exist_ok=True)
    if source.exists():
        move(source, target)
    elif not target.exists():
        raise InputError(f"{source}: is gone; remove {source.parent} and start again")


def finish_pages(workspace: Workspace, state: State, split: str, records: list[Record]) -> BetonInfo:
    """The parts' pages one behind the other, with head and table around them."""
    name = f"ffcv/{split}.beton"
    groups = [
        PageGroup(record.rows, Extent(bytes=record.pages[0], sha256=record.pages[1]))
        for record in records
        if record.pages
    ]
    page_size = state.page_sizes[split]
    first_page = head_bytes(state.samples[split], page_size)
    pages = [workspace.pages(split, part) for part in parts_of(workspace, state, split)]
    if not (workspace.dst / name).exists():
        if not pages[0].exists():
            raise InputError(f"{pages[0]}: is gone; remove {workspace.folder} and start again")
        with open(pages[0], "r+b") as file:
            append_parts(workspace, state, split, file, first_page)
            finish_beton(file, first_page, groups, page_size, state.classes)
            flush(file)
    move_once(pages[0], workspace.dst / name)
    with open(workspace.dst / name, "rb") as file:
        extents = beton_extents(file, first_page, groups)
    size = sum(extent.bytes for extent in extents)
    return BetonInfo(name=name, samples=sum(record.samples for record in records), bytes=size, extents=extents)


def parts_of(workspace: Workspace, state: State, split: str) -> list[Part]:
    """The parts with shards of a split, in order."""
    splits = [shard.split for shard in state.planned()]
    return [part for part in workspace.parts() if any(splits[at] == split for at in part.share(len(splits)))]


def append_parts(workspace: Workspace, state: State, split: str, file: BinaryIO, first_page: int) -> None:
    """Move the pages of all parts but the first behind those of the first."""
    planned, end = state.planned(), first_page
    for number, part in enumerate(parts_of(workspace, state, split)):
        shards = [planned[at] for at in part.share(len(planned)) if planned[at].split == split]
        path = workspace.pages(split, part)
        if number and path.exists():
            file.truncate(end)
            file.seek(end)
            with open(path, "rb") as pages:
                shutil.copyfileobj(pages, file, 1 << 24)
            flush(file)
            path.unlink()  # its place is known to be filled, so a second attempt passes it over
        end += sum(record.pages[0] for record in (need(workspace, shard) for shard in shards) if record.pages)
        if file.seek(0, 2) < end:
            raise InputError(f"{path}: is gone or too short; remove {workspace.folder} and start again")


def flush(file: BinaryIO) -> None:
    """Everything on the disk."""
    file.flush()
    os.fsync(file.fileno())
