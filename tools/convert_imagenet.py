"""Convert ImageNet to WebDataset shards and FFCV `.beton` files.

    python tools/convert_imagenet.py --src data/imagenet --dst data/shards
    python tools/convert_imagenet.py --src ILSVRC2012_img_train.tar ILSVRC2012_img_val.tar ILSVRC2012_devkit_t12.tar.gz

`--src` is what you have: ImageNet's folders, the official archives (read in place), Kaggle's download, or WebDataset
shards; a folder with any of these. Labels of a flat validation set are found next to it, or given with
`--val-labels`. Every image is decoded once, so that a bad one is found now and not in training.

A conversion that was interrupted continues when the same command is started again, and ends with the same bytes.
"""

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])

import contextlib
import hashlib
import logging
import os
import re
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from tqdm import tqdm

from pipeline.cli import run_command
from pipeline.conversion.images import BadImage, Handling, Subsampling, prepare
from pipeline.conversion.sources import SPLITS, Images, Request, Source, open_source
from pipeline.conversion.work import Part, Shard, State, Workspace, plan_shards, source_digest
from pipeline.conversion.writing import BAD_LIST, FINISHING, REPORT, Job, finish, write_split
from pipeline.dataset import MANIFEST
from pipeline.errors import InputError, one_line
from pipeline.formats.beton import head_bytes, page_size_for
from pipeline.formats.files import complete_or_absent
from pipeline.threads import in_order

log = logging.getLogger(__name__)

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9}
RAW_PAGE = 1 << 27  # bytes: room for 44 million pixels; ImageNet's largest image has 28 million
LARGEST_PAGE = 1 << 30
GROWTH_SAMPLES = 64  # images that tell how much re-encoding shrinks a split
LOG_SECONDS = 30  # between lines of progress where there is no terminal


@dataclass(frozen=True, kw_only=True)
class ConvertSettings:
    """Convert ImageNet to WebDataset shards and FFCV .beton files."""

    src: tuple[Path, ...] = (Path("data/imagenet"),)
    """ImageNet's folder, archives, Kaggle's download or WebDataset shards; several paths where they are apart."""
    dst: Path = Path("data/shards")
    """Dataset directory to make."""
    format: tuple[Literal["webdataset", "ffcv"], ...] = ("webdataset", "ffcv")
    """What to write."""
    splits: tuple[Literal["train", "val"], ...] = ("train", "val")
    """What to convert."""
    val_labels: Path | None = None
    """For flat validation images: valprep.sh, the development kit (folder or archive), Kaggle's csv, or a file with
    one wnid a line in file-name order. Found next to the source if it has its usual name."""
    classes: Path | None = None
    """File with one wnid a line: convert only these classes, or fix the list. The index is the sorted position."""
    jpeg: Literal["tile", "keep", "reencode", "raw", "proportion"] = "tile"
    """Cut JPEGs into tiles, without loss, so that loaders decode only what a crop needs; store them as they are;
    encode all again; store pixels, or a mix of JPEGs and pixels (as FFCV's "proportion"; both for .beton only)."""
    max_side: int | None = None
    """Longest side in pixels; larger images are reduced. All are encoded again then; not with --jpeg keep."""
    quality: int | None = None
    """JPEG quality; encodes all images again, before they are tiled if they are (default then 90)."""
    subsampling: Subsampling | None = None
    """Chroma subsampling of what is encoded again (default then 420)."""
    compress_probability: float | None = None
    """Share of JPEGs with --jpeg proportion (default 0.5)."""
    on_bad: Literal["fail", "skip"] = "fail"
    """An image that cannot be decoded: stop and list all of them, or leave them out."""
    verify: bool = True
    """Decode every image once. Without, only the headers are read, but for tiles, which need all of it."""
    shard_size: str = "256MB"
    """Largest WebDataset shard; where images change, about: shards are planned from the source alone."""
    workers: int = len(os.sched_getaffinity(0))
    """Threads that read and check images."""
    seed: int = 0
    """Shuffles the training images once, so that streaming reads are mixed."""
    part: str | None = None
    """K/N: write the K-th of N shares, on any machine. When all are written, --merge puts them together."""
    merge: bool = False
    """Put the parts in --dst together; reads no images."""

    def __post_init__(self) -> None:
        if self.workers < 1:
            raise ValueError(f"--workers {self.workers}: must be at least 1")
        if not self.src:
            raise ValueError("--src: name a folder or archives")
        if not self.format:
            raise ValueError("--format: name webdataset, ffcv or both")
        if not self.splits:
            raise ValueError("--splits: name train, val or both")
        if not 0 <= self.seed < 1 << 64:
            raise ValueError(f"--seed {self.seed}: must be at least 0 and below 2^64")
        if self.dst == Path():
            raise ValueError("--dst: is empty or the current folder; name a folder of its own")
        if self.merge and self.part:
            raise ValueError("--merge: not together with --part")
        self._check_images()
        _ = self.shard_bytes, self.the_part

    def _check_images(self) -> None:
        for name in ("max_side", "quality", "subsampling"):
            if self.jpeg == "keep" and (value := getattr(self, name)) is not None:
                flag = name.replace("_", "-")
                raise ValueError(
                    f"--{flag} {value}: --jpeg keep leaves images as they are; use --jpeg tile or reencode"
                )
        if self.jpeg in ("raw", "proportion") and "webdataset" in self.format:
            raise ValueError(f"--jpeg {self.jpeg}: pixels are for .beton files; add --format ffcv")
        if self.max_side is not None and not 1 <= self.max_side <= 65535:
            raise ValueError(f"--max-side {self.max_side}: must be from 1 to 65535")
        if self.quality is not None and not 1 <= self.quality <= 100:
            raise ValueError(f"--quality {self.quality}: must be from 1 to 100")
        for name in ("quality", "subsampling"):
            if self.jpeg == "raw" and (value := getattr(self, name)) is not None:
                raise ValueError(f"--{name} {value}: pixels are not encoded; leave it out")
        if self.compress_probability is None:
            return
        if self.jpeg != "proportion":
            raise ValueError(f"--compress-probability {self.compress_probability}: is for --jpeg proportion")
        if not 0 <= self.compress_probability <= 1:
            raise ValueError(f"--compress-probability {self.compress_probability}: must be from 0 to 1")

    @property
    def shard_bytes(self) -> int:
        """--shard-size in bytes."""
        match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMG]?)B?", self.shard_size.strip().upper())
        if not match or float(match.group(1)) <= 0:
            raise ValueError(f"--shard-size {self.shard_size}: write it like 256MB or 1GB")
        return int(float(match.group(1)) * _UNITS[match.group(2)])

    @property
    def the_part(self) -> Part:
        """--part, the only one if it is not given."""
        match = re.fullmatch(r"(\d{1,3})/(\d{1,3})", self.part or "1/1")
        if not match or not 1 <= int(match.group(1)) <= int(match.group(2)):
            raise ValueError(f"--part {self.part}: write it like 3/16")
        return Part(int(match.group(1)), int(match.group(2)))

    def handling(self, largest: int) -> Handling:
        """How images are stored in pages of `largest` bytes."""
        return Handling(
            jpeg=self.jpeg,
            max_side=self.max_side,
            quality=self.quality,
            subsampling=self.subsampling,
            compress_probability=0.5 if self.compress_probability is None else self.compress_probability,
            seed=self.seed,
            verify=self.verify,
            largest=largest,
        )


class Progress:
    """Images/s, MB/s, remaining time and odd files so far: a bar on a terminal, else a line every 30 s."""

    def __init__(self, split: str, total: int) -> None:
        self._bar = tqdm(desc=split, total=total, unit="img", disable=None)
        self._split, self._total = split, total
        self._started = self._told = time.monotonic()
        self._images = self._resumed = self._bytes = self._odd = 0

    def resumed(self, images: int, odd: int) -> None:
        """Images that were written by an earlier attempt."""
        self._resumed, self._odd = self._resumed + images, self._odd + odd
        self._bar.initial = self._bar.n = self._resumed

    def read(self, size: int, odd: bool) -> None:
        """One image of `size` bytes."""
        self._images, self._bytes, self._odd = self._images + 1, self._bytes + size, self._odd + odd
        now = time.monotonic()
        if not self._bar.disable:
            self._bar.set_postfix_str(f"{self._rate(now)}, {self._odd} odd", refresh=False)
        elif now - self._told > LOG_SECONDS:
            self._told = now
            log.info("%s", self._line(now))
        self._bar.update()

    def close(self) -> None:
        """The end of the bar."""
        self._bar.close()

    def _rate(self, now: float) -> str:
        return f"{self._bytes / 1e6 / max(now - self._started, 1e-3):.0f} MB/s"

    def _line(self, now: float) -> str:
        per_second = self._images / (now - self._started)
        left = (self._total - self._resumed - self._images) / per_second
        return (
            f"{self._split}: {self._resumed + self._images} of {self._total} images, {per_second:.0f} images/s, "
            f"{self._rate(now)}, {left / 60:.0f} min left, {self._odd} odd"
        )


def growth_of(images: Images, settings: ConvertSettings) -> float:
    """Stored bytes per source byte, told by a few images spread over the split: the same on every machine."""
    if settings.jpeg in ("keep", "raw", "proportion"):  # shards are cut by what is in the source
        return 1.0
    chosen = np.unique(np.linspace(0, len(images) - 1, GROWTH_SAMPLES).astype(int)).tolist()
    handling, before, after = settings.handling(1 << 32), 0, 0
    stored = in_order(lambda index: _stored_bytes(images, index, handling), chosen, settings.workers)
    for index, size in zip(chosen, stored, strict=True):
        if size:
            before, after = before + int(images.sizes[index]), after + size
    return after / before if before else 1.0


def _stored_bytes(images: Images, index: int, handling: Handling) -> int:
    try:
        return len(prepare(images.read(index), index, handling).data)
    except BadImage:
        return 0


def page_size_of(images: Images, settings: ConvertSettings, growth: float) -> int:
    """A page for the largest image of a split, as it will be stored."""
    if settings.jpeg not in ("raw", "proportion"):
        # An image can grow more than the others. What does not fit is a bad image.
        return page_size_for(min(int(images.sizes.max() * max(1.0, 2 * growth)), LARGEST_PAGE))
    return page_size_for(min(3 * settings.max_side**2, RAW_PAGE)) if settings.max_side else RAW_PAGE


def plan(settings: ConvertSettings, source: Source) -> State:
    """What will be written, and all that it depends on."""
    growths = {split: growth_of(images, settings) for split, images in source.splits.items()}
    shards = [
        shard
        for split, images in source.splits.items()
        for shard in plan_shards(split, images, settings.shard_bytes, growths[split])
    ]
    digest = hashlib.sha256()
    for shard in shards:
        digest.update(source_digest(shard, source.splits[shard.split], on_this_machine=False).encode())
    return State(
        paths=paths_of(settings),
        arguments=arguments_of(settings),
        classes=list(source.classes),
        samples={split: len(images) for split, images in source.splits.items()},
        page_sizes={split: page_size_of(source.splits[split], settings, growths[split]) for split in growths},
        shards=[[shard.split, shard.number, shard.start, shard.stop] for shard in shards],
        digest=digest.hexdigest(),
    )


def arguments_of(settings: ConvertSettings) -> dict[str, Any]:
    """The flags that the written bytes depend on, besides the source."""
    handling = asdict(settings.handling(0))
    del handling["largest"]
    return {
        **handling,
        "format": sorted({*settings.format}),
        "splits": sorted({*settings.splits}),
        "shard_size": settings.shard_bytes,
        "part": f"K/{settings.the_part.count}",
    }


def paths_of(settings: ConvertSettings) -> dict[str, Any]:
    """The flags that say where the source is, which may be another place on each machine."""
    return {
        "src": [str(path.resolve()) for path in settings.src],
        "val_labels": str(settings.val_labels.resolve()) if settings.val_labels else None,
        "classes": str(settings.classes.resolve()) if settings.classes else None,
    }


def begin(workspace: Workspace, settings: ConvertSettings) -> None:
    """Make the work folder. Raises InputError where the target is in use for something else."""
    dst = settings.dst
    # Without its state, the work folder is what a network file system or a signal has left of a finished conversion.
    if (dst / MANIFEST).exists() and (settings.part or workspace.state(settings.the_part) is None):
        raise InputError(f"--dst {dst}: holds a converted dataset already; remove it or choose another")
    if dst.exists() and not dst.is_dir():
        raise InputError(f"--dst {dst}: is a file; choose a directory")
    for name in ("webdataset", "ffcv"):
        if (dst / name).exists() and not (dst / name).is_dir():
            raise InputError(f"--dst {dst}: {name} in it is a file; remove it or choose another")
    if not workspace.folder.exists() and (found := finished_files(dst)):
        raise InputError(f"--dst {dst}: holds {found[0].name}, not from an unfinished conversion; choose another")
    refuse_other_flags(workspace, settings)
    workspace.folder.mkdir(parents=True, exist_ok=True)


def refuse_inside(dst: Path, source: Source) -> None:
    """Raises InputError where the target would be taken for a class folder of the source."""
    target = dst.resolve()
    for folder in source.folders:
        if folder.resolve() in (target, *target.parents):
            raise InputError(f"--dst {dst}: inside {folder}, which is converted; choose a folder outside")


def finished_files(dst: Path) -> list[Path]:
    """Files of the names that a conversion gives."""
    ours = re.compile(r"(train|val)-\d{6}\.(tar|idx)|(train|val)\.beton")
    inside = [path for name in ("webdataset", "ffcv") for path in (dst / name).glob("*") if ours.fullmatch(path.name)]
    return [*inside, *dst.glob(REPORT)]


def refuse_other_flags(workspace: Workspace, settings: ConvertSettings) -> None:
    """Raises InputError where the work folder is of a conversion with other flags; it says which."""
    for part in workspace.parts():
        state = workspace.state(part)
        assert state is not None
        then, now = state.arguments, arguments_of(settings)
        if part == settings.the_part:
            then, now = {**state.paths, **then}, {**paths_of(settings), **now}
        if told := ", ".join(differences(then, now)):
            raise InputError(
                f"--dst {workspace.dst}: holds an unfinished conversion with other arguments ({told}); start that one "
                f"again, or remove {workspace.folder}"
            )


def resume(workspace: Workspace, part: Part, state: State) -> None:
    """Write what is being converted; what was written of another source is not used."""
    begun = workspace.state(part)
    if begun and (begun.classes, begun.samples, begun.page_sizes) != (state.classes, state.samples, state.page_sizes):
        log.info("%s: the source has changed since; starting from the beginning", workspace.folder)
        for number in part.share(len(begun.shards)):
            workspace.record_path(begun.planned()[number]).unlink(missing_ok=True)
    workspace.write_state(part, state)


def differences(then: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """The flags that are not as they were."""
    return [
        f"--{name.replace('_', '-')} {said(then.get(name))} then, {said(now[name])} now"
        for name in now
        if then.get(name) != now[name]
    ]


def said(value: Any) -> str:
    """A flag's value as it would be typed."""
    if value is None:
        return "not given"
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


@contextlib.contextmanager
def failures_named(dst: Path) -> Iterator[None]:
    """A disk that is full or not writable is the user's to mend."""
    try:
        yield
    except OSError as error:
        raise InputError(
            f"--dst {dst}: cannot be written ({error.strerror or error}); mend that and start again to continue"
        ) from None


def write_part(workspace: Workspace, settings: ConvertSettings, source: Source, state: State) -> None:
    """Write the shards of one part. Raises InputError where there are bad images, listing all of them."""
    part, planned = settings.the_part, state.planned()
    mine = [planned[number] for number in part.share(len(planned))]
    bad: list[tuple[str, str]] = []
    for split, images in source.splits.items():
        shards = [shard for shard in mine if shard.split == split]
        if shards:
            bad += write_one(workspace, settings, state, images, shards)
    listing = workspace.folder / (f"{part.name}-{BAD_LIST}" if settings.part else BAD_LIST)
    refuse_bad(listing, bad, sum(shard.stop - shard.start for shard in mine))


def write_one(
    workspace: Workspace, settings: ConvertSettings, state: State, images: Images, shards: list[Shard]
) -> list[tuple[str, str]]:
    """Write a part's shards of one split."""
    split, page_size = shards[0].split, state.page_sizes[shards[0].split]
    job = Job(
        images=images,
        shards=shards,
        part=settings.the_part,
        handling=settings.handling(page_size),
        formats=settings.format,
        head_bytes=head_bytes(len(images), page_size) if shards[0].number == 0 else 0,
        page_size=page_size,
        workers=settings.workers,
        skip_bad=settings.on_bad == "skip",
    )
    progress = Progress(split, shards[-1].stop - shards[0].start)
    with contextlib.closing(progress):
        return write_split(workspace, job, progress)


def refuse_bad(listing: Path, bad: list[tuple[str, str]], total: int) -> None:
    """Raises InputError where there are bad images, of `total`, and lists them."""
    if not bad:
        listing.unlink(missing_ok=True)
        return
    with complete_or_absent(listing) as file:
        file.writelines(f"{one_line(f'{where}: {reason}')}\n" for where, reason in bad)
    where, reason = bad[0]
    told = f"{where}: {reason}"
    if len(bad) > 1:
        told = f"{len(bad)} of {total} images cannot be used, listed in {listing}; the first is {told}"
    raise InputError(f"{told}; replace what is bad and start again, or leave it out with --on-bad skip")


def merge(settings: ConvertSettings) -> dict[str, Any]:
    """The last call of several parts."""
    workspace = Workspace(settings.dst)
    if not workspace.folder.is_dir():
        raise InputError(f"--dst {settings.dst}: no parts in it; write them with --part 1/N to N/N")
    with failures_named(settings.dst), contextlib.ExitStack() as locks:
        for part in workspace.parts():
            locks.enter_context(workspace.locked(part.name))
        return finish(workspace)


def convert(settings: ConvertSettings) -> dict[str, Any]:
    """The command: find, check and write the images; `dataset.json` last."""
    started = time.monotonic()
    workspace = Workspace(settings.dst)
    if settings.merge:
        counts = merge(settings)
    else:
        splits = tuple(split for split in SPLITS if split in settings.splits)
        source = open_source(Request(settings.src, splits, settings.val_labels, settings.classes, settings.seed))
        refuse_inside(settings.dst, source)
        counts = convert_source(workspace, settings, source)
    seconds = round(time.monotonic() - started, 1)
    return {"train": 0, "val": 0, **counts, "seconds": seconds}


def convert_source(workspace: Workspace, settings: ConvertSettings, source: Source) -> dict[str, Any]:
    """Write this machine's part, and finish if it is the only one."""
    part = settings.the_part
    with failures_named(settings.dst):
        begin(workspace, settings)
        with workspace.locked(part.name):
            if not (workspace.folder / FINISHING).exists() and not (settings.dst / MANIFEST).exists():
                state = plan(settings, source)
                resume(workspace, part, state)
                write_part(workspace, settings, source, state)
            if settings.part:
                return part_counts(workspace, part)
            return finish(workspace)


def part_counts(workspace: Workspace, part: Part) -> dict[str, Any]:
    """What one of several parts has written."""
    state = workspace.state(part)
    assert state is not None
    planned, counts = state.planned(), {"train": 0, "val": 0, "bad": 0, "reencoded": 0, "bytes": 0}
    for number in part.share(len(planned)):
        record = workspace.record(planned[number])
        assert record is not None
        counts[planned[number].split] += record.samples
        counts["bad"] += sum("bad" in entry for entry in record.report)
        counts["reencoded"] += record.reencoded
        counts["bytes"] += record.bytes
    log.info("part %s is written; when all are, `--dst %s --merge` puts them together", part, workspace.dst)
    return {**counts, "part": str(part)}


if __name__ == "__main__":
    sys.exit(run_command(convert, ConvertSettings))
