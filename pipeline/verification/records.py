"""Checks what dataset.json and report.json record, and that exactly the files they name exist."""

import json
import logging
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import get_args, get_type_hints

from ..conversion.finishing import REPORT, counts_of
from ..conversion.images import Handling
from ..conversion.work import Shard
from ..errors import InputError
from ..storage.manifest import MANIFEST, Manifest
from ..storage.shard_info import SHARD_INFO
from ..storage.split import RAW_MODES
from .problems import Problems

log = logging.getLogger(__name__)

LARGEST_JSON = 1 << 30  # bytes; report.json of all of ImageNet is smaller than 10 MB
_LEAST_OBJECT = 32  # bytes; that of an image has more than 60
LARGEST_COUNT = 1 << 50  # bytes; ImageNet-21k has 1.3 << 40
IMAGE_MODES = get_args(get_type_hints(Handling)["jpeg"])
READ_AS_DATA = (".tar", ".idx", ".beton")


def read_manifest(dst: Path) -> Manifest:
    """Raises InputError if there is none, or if it is too damaged to find the files by."""
    path = dst / MANIFEST
    if not dst.is_dir():
        raise InputError(f"{dst}: no such directory")
    if not path.is_file():
        raise InputError(f"{path}: missing; to finish an interrupted conversion, start it again")
    if path.stat().st_size > LARGEST_JSON:
        raise InputError(f"{path}: too large for a list of files")
    manifest = Manifest.read(dst)
    for info in manifest.splits.values():
        counts = [info.samples, info.bytes, info.beton.bytes if info.beton else 0]
        if max(counts + [count for shard in info.shards for count in (shard.samples, shard.bytes)]) > LARGEST_COUNT:
            raise InputError(f"{path}: counts too large for any dataset; convert again")
    return manifest


def check_manifest(dst: Path, manifest: Manifest, problems: Problems) -> None:
    """dataset.json records what a conversion writes."""
    path = dst / MANIFEST
    for split, info in manifest.splits.items():
        if split not in ("train", "val"):
            problems.add(path, "not a split of ImageNet", repr(split))
        if info.image_mode not in IMAGE_MODES:
            problems.add(path, "unknown image mode", f"{split}: {info.image_mode!r}")
        if not info.shards and not info.beton:
            problems.add(path, "neither shards nor a .beton file", split)
        if info.shards and info.image_mode in RAW_MODES:
            problems.add(path, "shards of raw pixels", split)
        for number, shard in enumerate(info.shards):
            if shard.name != (name := f"webdataset/{Shard(split, number, 0, 0).name}.tar"):
                problems.add(path, "out of place", shard.name, f", where {name} belongs")
        if info.beton and info.beton.name != (name := f"ffcv/{split}.beton"):
            problems.add(path, "out of place", info.beton.name, f", where {name} belongs")
        if info.beton and info.shards and len(info.beton.extents) != len(info.shards) + 2:
            problems.add(path, f"{len(info.shards)} shards but {len(info.beton.extents) - 2} groups of pages", split)


def check_report(dst: Path, manifest: Manifest, problems: Problems) -> None:
    """report.json can be read and adds up."""
    path = dst / REPORT
    if not check_size(path, None, problems):
        return
    try:
        text = path.read_text("utf-8")
        if text.count("[") + text.count("{") > 1000 + len(text) // _LEAST_OBJECT:  # of `[]`, 30 times the text
            raise ValueError("more objects than a conversion writes into so many bytes")
        report = json.loads(text)
        images = report["images"]
        for entry in images:
            if {*entry} - {"odd", "bad"} != {"split", "file", "done"} or len(entry) != 4:
                raise ValueError(f"an entry with {', '.join(entry)}")
            if entry["split"] not in manifest.splits or not all(isinstance(text, str) for text in entry.values()):
                raise ValueError(f"an entry of split {entry['split']!r:.40}")
        is_known = {*report} - {"flags", "passed_over"} == {"stored", "counts", "images"}
        if not is_known or report["counts"] != counts_of(images):
            raise ValueError("the counts are not those of its images")
        stored, infos = report["stored"], manifest.splits.values()
        if stored["lossless"] + stored["reencoded"] != sum(info.samples for info in infos):
            raise ValueError("the number of stored images is not that of the samples")
        if stored["bytes"] != sum(info.bytes for info in infos):
            raise ValueError("the bytes are not those of the stored images")
    except OSError as error:
        problems.add_error(path, error)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        problems.add(path, "damaged", detail=f" ({error!r:.200})")


def check_size(path: Path, size: int | None, problems: Problems) -> bool:
    """Whether a file exists and has the recorded size; None where no size is recorded."""
    try:
        status = path.stat()
    except OSError as error:
        problems.add_error(path, error)
        return False
    if not stat.S_ISREG(status.st_mode):
        problems.add(path, "not a file")
    elif size is None and status.st_size > LARGEST_JSON:
        problems.add(path, f"{status.st_size} bytes: larger than any conversion writes")
    elif size is not None and status.st_size != size:
        kind = "truncated: " if status.st_size < size else ""
        problems.add(path, f"{kind}{status.st_size} bytes, not {size} as {MANIFEST} says")
    else:
        return True
    return False


def check_strays(dst: Path, manifest: Manifest, problems: Problems) -> None:
    """Files that dataset.json does not name: a problem where a reader given `train-*.tar` would read them."""
    named = {MANIFEST, REPORT, f"webdataset/{SHARD_INFO}"}
    for info in manifest.splits.values():
        named |= {shard.name for shard in info.shards} | {shard.name[:-4] + ".idx" for shard in info.shards}
        named |= {info.beton.name} if info.beton else set()
    others = []
    for name in _listing(dst, problems):
        path = dst / name
        if name in named or name in ("webdataset", "ffcv"):
            continue
        if path.parent != dst and name.endswith(READ_AS_DATA) and not path.name.startswith("."):
            problems.add(path, f"not part of this dataset: {MANIFEST} does not name it")
        else:
            others.append(name)
    if others:
        listed = ", ".join(map(repr, sorted(others)[:5]))
        more = f" and {len(others) - 5} more" if len(others) > 5 else ""
        log.info("note: %s: not part of the dataset: %s%s", dst, listed, more)


def _listing(dst: Path, problems: Problems) -> Iterator[str]:
    """Files and folders in a dataset directory and its folders, relative to it."""
    for folder in ("", "webdataset", "ffcv"):
        if not (dst / folder).is_dir():
            continue
        try:
            names = os.listdir(dst / folder)
        except OSError as error:
            problems.add(dst / folder, f"cannot be read ({error.strerror})")
            continue
        yield from (f"{folder}/{name}".lstrip("/") for name in names)
