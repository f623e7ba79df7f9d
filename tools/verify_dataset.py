"""Check a converted dataset: every checksum, count and index, and images by decoding them.

    python tools/verify_dataset.py data/shards
    python tools/verify_dataset.py data/shards --full

Every file is read once from start to end. Shards are compared with their index and, sample by sample, with the
`.beton` file; images and labels of both are the same. All problems are told, a line each. A contact sheet of random
images with their class is drawn, because people trust what they see.
"""

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])

import itertools
import json
import logging
import os
import random
import stat
import time
from collections.abc import Container, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, get_args, get_type_hints

import numpy as np
import tyro
from tqdm import tqdm

from pipeline.cli import run_command
from pipeline.conversion.images import Handling
from pipeline.conversion.work import Shard
from pipeline.conversion.writing import REPORT, counts_of
from pipeline.dataset import MANIFEST, RAW_MODES, Manifest, SplitInfo
from pipeline.errors import InputError
from pipeline.formats.beton import HEADER, MODE_JPEG, MODE_RAW, SMALLEST_PAGE, BetonSamples
from pipeline.formats.files import complete_or_absent
from pipeline.threads import in_order
from tools.contact_sheet import Picture, draw_sheet
from tools.dataset_checks import Checker, Outcome, Piece, Problems

log = logging.getLogger(__name__)

LARGEST_JSON = 1 << 30  # bytes; report.json of all of ImageNet has below 10 MB
LARGEST_COUNT = 1 << 40
IMAGE_MODES = get_args(get_type_hints(Handling)["jpeg"])
READ_AS_DATA = (".tar", ".idx", ".beton")


@dataclass(frozen=True, kw_only=True)
class VerifySettings:
    """Check a dataset that tools/convert_imagenet.py made."""

    dst: tyro.conf.Positional[Path]
    """Dataset directory."""
    full: bool = False
    """Decode every image."""
    sample: int = 1000
    """Images to decode, chosen at random, without --full."""
    contact_sheet: Path | None = None
    """PNG to write; default: DST-contact-sheet.png, beside the dataset."""
    images: int = 64
    """Random images on the contact sheet; 0 for no sheet."""
    workers: int = len(os.sched_getaffinity(0))
    """Threads that read and check."""
    seed: int = 0
    """What random images are chosen by."""

    def __post_init__(self) -> None:
        if self.workers < 1:
            raise ValueError(f"--workers {self.workers}: must be at least 1")
        if self.sample < 0:
            raise ValueError(f"--sample {self.sample}: must be at least 0")
        if not 0 <= self.images <= 4096:
            raise ValueError(f"--images {self.images}: must be from 0 to 4096")

    @property
    def sheet_path(self) -> Path:
        """Where the contact sheet is written."""
        dst = self.dst.resolve()
        return self.contact_sheet or dst.with_name(f"{dst.name}-contact-sheet.png")


# --- the files as dataset.json records them


def read_manifest(dst: Path) -> Manifest:
    """Raises InputError where there is none, or one with which nothing can be found."""
    path = dst / MANIFEST
    if not dst.is_dir():
        raise InputError(f"{dst}: no such directory")
    if not path.is_file():
        raise InputError(f"{path}: missing; an interrupted conversion is finished by starting it again")
    if path.stat().st_size > LARGEST_JSON:
        raise InputError(f"{path}: larger than any list of a dataset's files")
    manifest = Manifest.read(dst)
    for info in manifest.splits.values():
        counts = [info.samples, info.bytes, info.beton.bytes if info.beton else 0]
        if max(counts + [count for shard in info.shards for count in (shard.samples, shard.bytes)]) > LARGEST_COUNT:
            raise InputError(f"{path}: counts that no dataset has; convert again")
    return manifest


def check_manifest(dst: Path, manifest: Manifest, problems: Problems) -> None:
    """What dataset.json says is what a conversion writes."""
    path = dst / MANIFEST
    if list(manifest.classes) != sorted(manifest.classes):
        problems.add(path, "classes out of order: the index of a class is its sorted position")
    for split, info in manifest.splits.items():
        if split not in ("train", "val"):
            problems.add(path, "no split of ImageNet", repr(split))
        if info.image_mode not in IMAGE_MODES:
            problems.add(path, "no way in which images are stored", f"{split}: {info.image_mode!r}")
        if not info.shards and not info.beton:
            problems.add(path, "neither shards nor a .beton file", split)
        if info.shards and info.image_mode in RAW_MODES:
            problems.add(path, "shards of raw pixels", split)
        for number, shard in enumerate(info.shards):
            if shard.name != (name := f"webdataset/{Shard(split, number, 0, 0).name}.tar"):
                problems.add(path, "not the file of its place", shard.name, f", which is {name}")
        if info.beton and info.beton.name != (name := f"ffcv/{split}.beton"):
            problems.add(path, "not the file of its place", info.beton.name, f", which is {name}")
        if info.beton and info.shards and len(info.beton.extents) != len(info.shards) + 2:
            problems.add(path, f"{len(info.shards)} shards and {len(info.beton.extents) - 2} groups of pages", split)


def check_report(dst: Path, manifest: Manifest, problems: Problems) -> None:
    """report.json can be read and adds up."""
    path = dst / REPORT
    if not check_size(path, None, problems):
        return
    try:
        report = json.loads(path.read_text("utf-8"))
        images = report["images"]
        for entry in images:
            if {*entry} - {"odd", "bad"} != {"split", "file", "done"} or len(entry) != 4:
                raise ValueError(f"an entry of {', '.join(entry)}")
            if entry["split"] not in manifest.splits or not all(isinstance(text, str) for text in entry.values()):
                raise ValueError(f"an entry of split {entry['split']!r:.40}")
        if {*report} != {"stored", "counts", "images"} or report["counts"] != counts_of(images):
            raise ValueError("counts that are not those of its images")
        stored, infos = report["stored"], manifest.splits.values()
        if stored["lossless"] + stored["reencoded"] != sum(info.samples for info in infos):
            raise ValueError("not as many images as there are samples")
        if stored["bytes"] != sum(info.bytes for info in infos):
            raise ValueError("not the bytes of the stored images")
    except OSError as error:
        problems.add_error(path, error)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        problems.add(path, "damaged", detail=f" ({error!r:.200})")


def check_size(path: Path, size: int | None, problems: Problems) -> bool:
    """Whether a file is there, and of the size on record if there is one."""
    try:
        status = path.stat()
    except OSError as error:
        problems.add_error(path, error)
        return False
    if not stat.S_ISREG(status.st_mode):
        problems.add(path, "not a file")
    elif size is None and status.st_size > LARGEST_JSON:
        problems.add(path, f"{status.st_size} bytes: larger than a conversion makes it")
    elif size is not None and status.st_size != size:
        told = "truncated: " if status.st_size < size else ""
        problems.add(path, f"{told}{status.st_size} bytes, not {size} as {MANIFEST} says")
    else:
        return True
    return False


def check_strays(dst: Path, manifest: Manifest, problems: Problems) -> None:
    """Files that dataset.json does not name: wrong where a reader that is given `train-*.tar` would take them."""
    ours = {MANIFEST, REPORT}
    for info in manifest.splits.values():
        ours |= {shard.name for shard in info.shards} | {shard.name[:-4] + ".idx" for shard in info.shards}
        ours |= {info.beton.name} if info.beton else set()
    others = []
    for folder in ("", "webdataset", "ffcv"):
        if not (dst / folder).is_dir():
            continue
        try:
            with os.scandir(dst / folder) as found:
                entries = list(found)
        except OSError as error:
            problems.add(dst / folder, f"cannot be read ({error.strerror})")
            continue
        for entry in entries:
            name = f"{folder}/{entry.name}".lstrip("/")
            if name in ours or (not folder and name in ("webdataset", "ffcv")):
                continue
            if folder and name.endswith(READ_AS_DATA) and not entry.name.startswith("."):
                problems.add(dst / name, f"not of this dataset: {MANIFEST} does not name it")
            else:
                others.append(name)
    if others:
        told = ", ".join(map(repr, sorted(others)[:5]))
        more = f" and {len(others) - 5} more" if len(others) > 5 else ""
        log.info("remark: %s: not of the dataset: %s%s", dst, told, more)


def open_beton(dst: Path, manifest: Manifest, split: str, problems: Problems) -> BetonSamples | None:
    """The tables of a split's .beton file, None where they cannot be used."""
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
        problems.add(path, f"holds what --jpeg {info.image_mode} does not make")
    at, size = (samples.allocation[name].astype(np.int64) for name in ("ptr", "size"))
    if page_size < SMALLEST_PAGE or (at // page_size != (at + np.maximum(size, 1) - 1) // page_size).any():
        problems.add(path, "its samples do not lie on its pages")
    if (samples.allocation["sample_id"] != np.arange(len(samples))).any():
        problems.add(path, "its allocation table is not in order")
    return samples


def pieces_of(dst: Path, manifest: Manifest, split: str, problems: Problems) -> list[Piece]:
    """What there is to read of a split."""
    info = manifest.splits[split]
    shards, first = list[Piece](), 0
    for number, shard in enumerate(info.shards):
        if check_size(dst / shard.name, shard.bytes, problems):
            shards.append(Piece(split=split, first=first, number=number, shard=shard))
        first += shard.samples
    if not info.beton or not check_size(dst / info.beton.name, info.beton.bytes, problems):
        return shards
    head, *groups, table = beton_pieces(dst, manifest, split, problems)
    if len(groups) != len(info.shards):
        return [*shards, head, *groups, table]
    for number, (shard, group) in enumerate(zip(info.shards, groups, strict=True)):
        if group.samples and len(group.rows) != shard.samples:
            assert group.beton
            problems.add(group.beton, f"{len(group.rows)} samples in group {number} of pages, not {shard.samples}")
    readable = {piece.number: piece for piece in shards}
    return [head, *(merged(readable.get(number), group) for number, group in enumerate(groups)), table]


def beton_pieces(dst: Path, manifest: Manifest, split: str, problems: Problems) -> Iterator[Piece]:
    """The extents of a .beton file: head, groups of samples, table."""
    info = manifest.splits[split]
    assert info.beton
    samples = open_beton(dst, manifest, split, problems)
    starts = [0, *itertools.accumulate(extent.bytes for extent in info.beton.extents)]
    rows = np.searchsorted(samples.allocation["ptr"], np.array(starts, np.uint64)).tolist() if samples else starts
    if samples and (rows[1], rows[-2]) != (0, len(samples)):
        problems.add(dst / info.beton.name, "its samples do not lie in its groups of pages")
    for number, extent in enumerate(info.beton.extents):
        ours = range(rows[number], rows[number + 1]) if samples else range(0)
        yield Piece(
            split=split,
            first=ours.start if ours else 0,
            beton=dst / info.beton.name,
            start=starts[number],
            extent=extent,
            samples=samples,
            rows=ours,
        )


def merged(shard: Piece | None, group: Piece) -> Piece:
    """A shard together with its group of pages."""
    if shard is None:
        return group
    pages = {name: getattr(group, name) for name in ("beton", "start", "extent", "samples", "rows")}
    return Piece(split=shard.split, first=shard.first, number=shard.number, shard=shard.shard, **pages)


# --- the command


def positions_to_decode(settings: VerifySettings, splits: dict[str, SplitInfo]) -> dict[str, Container[int]]:
    """The images of each split that are decoded."""
    if settings.full:
        return {split: range(info.samples) for split, info in splits.items()}
    total = sum(info.samples for info in splits.values())
    chosen = sorted(random.Random(settings.seed).sample(range(total), min(settings.sample, total)))
    positions, first = dict[str, Container[int]](), 0
    for split, info in splits.items():
        positions[split] = {number - first for number in chosen if first <= number < first + info.samples}
        first += info.samples
    return positions


def positions_to_draw(settings: VerifySettings, splits: dict[str, SplitInfo]) -> dict[str, set[int]]:
    """The images of each split on the contact sheet: as many of each, or it would be training images alone."""
    chosen = {}
    for number, (split, info) in enumerate(splits.items()):
        share = settings.images // len(splits) + (number < settings.images % len(splits))
        chosen[split] = {*random.Random(settings.seed + 1).sample(range(info.samples), min(share, info.samples))}
    return chosen


def tell(problems: Problems) -> None:
    """A line for each."""
    for line in problems.lines():
        tqdm.write(f"bad: {line}", file=sys.stderr)


def verify(settings: VerifySettings) -> dict[str, Any]:
    """The command. Raises InputError where anything is wrong, after all of it has been told."""
    started = time.monotonic()
    dst, manifest, problems = settings.dst, read_manifest(settings.dst), Problems()
    if settings.images:
        check_writable(settings.sheet_path)
    check_manifest(dst, manifest, problems)
    check_strays(dst, manifest, problems)
    check_report(dst, manifest, problems)
    pieces = {split: pieces_of(dst, manifest, split, problems) for split in manifest.splits}
    tell(problems)
    draw = positions_to_draw(settings, manifest.splits)
    checker = Checker(dst, len(manifest.classes), positions_to_decode(settings, manifest.splits), draw)
    count, decoded, pictures = problems.count, 0, dict[str, dict[int, Picture]]()
    for split, ours in pieces.items():
        outcome = check_split(checker, dst, manifest.splits[split], split, ours, settings.workers)
        count, decoded = count + outcome.problems.count, decoded + outcome.decoded
        pictures[split] = outcome.pictures
    sheet = write_sheet(settings, manifest, pictures) if settings.images else None
    if count:
        seen = f" ({sheet} shows what could be read)" if sheet else ""
        raise InputError(f"{dst}: {count} problem{'s' if count > 1 else ''}, listed above{seen}; convert again")
    splits = manifest.splits.values()
    return {
        "samples": sum(info.samples for info in splits),
        "shards": sum(len(info.shards) for info in splits),
        "bytes": sum(piece.bytes for ours in pieces.values() for piece in ours),
        "decoded": decoded,
        "problems": 0,
        "contact_sheet": str(sheet) if sheet else None,
        "seconds": round(time.monotonic() - started, 1),
    }


def check_split(checker: Checker, dst: Path, info: SplitInfo, split: str, pieces: list[Piece], workers: int) -> Outcome:
    """Check the pieces of a split in threads; problems are told as they are found."""
    whole, problems = Outcome(), Problems()
    with tqdm(desc=split, total=sum(p.bytes for p in pieces), unit="B", unit_scale=True, disable=None) as bar:
        for piece, outcome in zip(pieces, in_order(checker.check, pieces, workers), strict=True):
            tell(outcome.problems)
            whole.problems.count += outcome.problems.count
            whole.bytes, whole.decoded = whole.bytes + outcome.bytes, whole.decoded + outcome.decoded
            whole.pictures |= outcome.pictures
            bar.update(piece.bytes)
    if not whole.problems.count and whole.bytes != info.bytes and complete(info, pieces):
        problems.add(dst / MANIFEST, f"the images of {split} have {whole.bytes} bytes, not {info.bytes}")
        tell(problems)
    whole.problems.count += problems.count
    return whole


def complete(info: SplitInfo, pieces: Iterable[Piece]) -> bool:
    """Whether every sample of a split is in its pieces, once."""
    return sum(piece.shard.samples if piece.shard else len(piece.rows) for piece in pieces) == info.samples


def check_writable(path: Path) -> None:
    """Raises InputError now rather than when everything has been read."""
    if path.is_dir():
        raise InputError(f"--contact-sheet {path}: is a directory")
    if not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
        raise InputError(
            f"--contact-sheet {path}: its folder is missing or not writable; name another, or none with --images 0"
        )


def write_sheet(settings: VerifySettings, manifest: Manifest, pictures: dict[str, dict[int, Picture]]) -> Path:
    """Write the contact sheet. Raises InputError."""
    path = settings.sheet_path
    sheet = draw_sheet(str(settings.dst), manifest, pictures)
    try:
        with complete_or_absent(path, "wb") as file:
            sheet.save(file, "PNG")
    except OSError as error:
        raise InputError(f"--contact-sheet {path}: cannot be written ({error.strerror or error})") from None
    return path


if __name__ == "__main__":
    sys.exit(run_command(verify, VerifySettings))
