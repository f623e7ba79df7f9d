"""Putting all parts together: every file gets its name, `dataset.json` last."""

import json
import re
import shutil
from collections import Counter
from pathlib import Path
from typing import Any, BinaryIO

from ..errors import InputError
from ..storage.beton import BetonInfo, Extent, PageGroup, beton_extents, finish_beton, head_bytes
from ..storage.files import complete_or_absent, flush, regular
from ..storage.manifest import MANIFEST, Manifest, SplitInfo
from ..storage.shard_info import write_shard_info
from ..storage.shards import ShardInfo
from .work import ConversionPlan, Part, ShardRecord, Workspace, move_once

REPORT = "report.json"
FINISHING = "finishing"  # in the work folder: all parts are written, files are being moved


def finish(workspace: Workspace) -> dict[str, int]:
    """Give every file its name, `dataset.json` last, and remove the work folder. Can be called again after it was
    killed at any point. Returns `finished_counts`."""
    if not (workspace.dst / MANIFEST).exists():
        _publish_all(workspace, _check_complete(workspace))
    counts = finished_counts(workspace.dst)
    workspace.remove()
    return counts


def read_report(dst: Path) -> dict[str, Any]:
    """The content of a finished conversion's report.json. Raises InputError."""
    try:
        with open(dst / REPORT, encoding="utf-8", opener=regular) as file:
            report: dict[str, Any] = json.load(file)
        return report
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{dst / REPORT}: cannot be read ({error}); convert again") from None


def finished_counts(dst: Path) -> dict[str, int]:
    """The result of a finished conversion: samples of each split, `bad`, `reencoded`, `bytes`."""
    manifest, report = Manifest.read(dst), read_report(dst)
    return {
        **{split: info.samples for split, info in manifest.splits.items()},
        "bad": sum("bad" in entry for entry in report["images"]),
        "reencoded": report["stored"]["reencoded"],
        "bytes": sum(info.bytes for info in manifest.splits.values()),
    }


def _check_complete(workspace: Workspace) -> ConversionPlan:
    """The common plan of all parts. Raises InputError naming the first part that is missing, different or
    unfinished."""
    parts = workspace.parts()
    if not parts:
        raise InputError(f"--dst {workspace.dst}: no part of a conversion in it; start with --part 1/N")
    first = workspace.begun_plan(parts[0])
    missing = sorted({*range(1, parts[0].count + 1)} - {part.number for part in parts})
    if missing:
        raise InputError(f"--dst {workspace.dst}: part {missing[0]}/{parts[0].count} has not begun")
    for part in parts:
        if not workspace.begun_plan(part).same_conversion(first):
            raise InputError(
                f"--dst {workspace.dst}: part {part} converts with other arguments, or another source, than part "
                f"{parts[0]}; remove {workspace.plan_path(part)} and run it again"
            )
        if not all(workspace.record_path(shard).exists() for shard in first.shards_of(part)):
            raise InputError(f"--dst {workspace.dst}: part {part} is not finished; start it again to continue")
    return first


def _publish_all(workspace: Workspace, plan: ConversionPlan) -> None:
    """Move every file to its place, and write the report and `dataset.json`."""
    (workspace.folder / FINISHING).touch()
    records = {
        split: [workspace.finished_record(shard) for shard in plan.planned_shards(split)] for split in plan.samples
    }
    splits = {split: _finish_split(workspace, plan, split, records[split]) for split in records}
    with complete_or_absent(workspace.dst / REPORT) as file:
        json.dump(_report(plan, [record for of_split in records.values() for record in of_split]), file, indent=1)
    if shards := {split: info.shards for split, info in splits.items() if info.shards}:
        write_shard_info(workspace.dst / "webdataset", shards)
    Manifest(classes=tuple(plan.classes), splits=splits).write(workspace.dst)


def _report(plan: ConversionPlan, records: list[ShardRecord]) -> dict[str, Any]:
    """The content of report.json: the flags of the conversion, how many images were stored without loss and how sizes
    changed, how many files of each kind are no images, then every odd or bad image."""
    images = [entry for record in records for entry in record.report]
    reencoded = sum(record.reencoded for record in records)
    stored = {
        "lossless": sum(record.samples for record in records) - reencoded,
        "reencoded": reencoded,
        "source_bytes": sum(record.source_bytes for record in records),
        "bytes": sum(record.bytes for record in records),
    }
    flags = {**plan.paths, **plan.arguments}
    del flags["part"]  # the bytes are those of a single machine
    return {
        "flags": flags,
        "stored": stored,
        "passed_over": plan.passed_over,
        "counts": counts_of(images),
        "images": images,
    }


def counts_of(report: list[dict[str, str]]) -> dict[str, int]:
    """How many images there are of each oddity and what was done with them; sizes in the texts are left out."""
    kinds = (f"{re.sub(r'[0-9]+ bytes', 'bytes', entry.get('odd', 'bad'))}: {entry['done']}" for entry in report)
    return dict(Counter(kinds).most_common())


def _finish_split(workspace: Workspace, plan: ConversionPlan, split: str, records: list[ShardRecord]) -> SplitInfo:
    """Name a split's files."""
    beton = _finish_pages(workspace, plan, split, records) if records[0].pages else None
    infos = []
    for shard, record in zip(plan.planned_shards(split), records, strict=True):
        if record.tar:
            name = f"webdataset/{shard.name}.tar"
            workspace.publish_tar(shard, record)
            infos.append(ShardInfo(name=name, samples=record.samples, bytes=record.tar[0], sha256=record.tar[1]))
    return SplitInfo(
        samples=sum(record.samples for record in records),
        bytes=sum(record.bytes for record in records),
        image_mode=plan.arguments["jpeg"],
        shards=tuple(infos),
        beton=beton,
    )


def _finish_pages(workspace: Workspace, plan: ConversionPlan, split: str, records: list[ShardRecord]) -> BetonInfo:
    """Join the pages of all parts, and write head and table around them."""
    name = f"ffcv/{split}.beton"
    groups = [
        PageGroup(record.rows, Extent(bytes=record.pages[0], sha256=record.pages[1]))
        for record in records
        if record.pages
    ]
    page_size = plan.page_sizes[split]
    first_page = head_bytes(plan.samples[split], page_size)
    pages = workspace.pages_path(split, _parts_with(workspace, plan, split)[0])
    if not (workspace.dst / name).exists():
        if not pages.exists():
            raise InputError(f"{pages}: missing; remove {workspace.folder} and start again")
        with open(pages, "r+b", opener=regular) as file:
            _append_parts(workspace, plan, split, file, first_page)
            finish_beton(file, first_page, groups, page_size, plan.classes)
            flush(file)
    move_once(pages, workspace.dst / name)
    with open(workspace.dst / name, "rb") as file:
        extents = beton_extents(file, first_page, groups)
    size = sum(extent.bytes for extent in extents)
    return BetonInfo(name=name, samples=sum(record.samples for record in records), bytes=size, extents=extents)


def _parts_with(workspace: Workspace, plan: ConversionPlan, split: str) -> list[Part]:
    """The parts that have shards of a split, in order."""
    return [part for part in workspace.parts() if plan.shards_of(part, split)]


def _append_parts(workspace: Workspace, plan: ConversionPlan, split: str, file: BinaryIO, first_page: int) -> None:
    """Append the pages of the other parts to those of the first, in `file`."""
    end = first_page
    for number, part in enumerate(_parts_with(workspace, plan, split)):
        path = workspace.pages_path(split, part)
        if number and path.exists():
            file.truncate(end)
            file.seek(end)
            with open(path, "rb") as pages:
                shutil.copyfileobj(pages, file, 1 << 24)
            flush(file)
            path.unlink()  # its pages are on the disk now, so another attempt skips it
        records = [workspace.finished_record(shard) for shard in plan.shards_of(part, split)]
        end += sum(record.pages[0] for record in records if record.pages)
        if file.seek(0, 2) < end:
            raise InputError(f"{path}: missing or too short; remove {workspace.folder} and start again")
