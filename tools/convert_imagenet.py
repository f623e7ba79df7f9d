"""Convert ImageNet folders to WebDataset shards and FFCV `.beton` files.

    python tools/convert_imagenet.py --src data/imagenet --dst data/shards --val-labels valprep.sh

`--src` holds `train/<wnid>/*.JPEG` and `val/`, either in class folders too or flat with `--val-labels`. JPEG
bytes are kept as they are; what no decoder reads alike (CMYK, PNG in disguise, 12 bit) is re-encoded once at
quality 95 and listed in report.json. Every image is decoded once: one that cannot be stops the conversion.
"""

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])

import contextlib
import io
import json
import logging
import os
import re
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import numpy as np
from PIL import Image, UnidentifiedImageError
from tqdm import tqdm

from pipeline.cli import run_command
from pipeline.dataset import MANIFEST, Manifest, SplitInfo
from pipeline.errors import InputError
from pipeline.formats.beton import BetonInfo, BetonWriter, page_size_for
from pipeline.formats.files import complete_or_absent
from pipeline.formats.folder import list_class_folders, list_classes, list_images
from pipeline.formats.shards import ShardInfo, ShardWriter
from pipeline.jpeg.headers import JpegError, read_header
from pipeline.labels import label_images, read_validation_labels

log = logging.getLogger(__name__)

REENCODE_QUALITY = 95
# What PIL may open: formats it decodes itself. For PostScript, say, it would start a program.
IMAGE_FORMATS = ("JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF")
STATE = ".conversion"  # marks a target whose conversion has not finished
_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9}

Listing = list[tuple[Path, int]]
Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True, kw_only=True)
class ConvertSettings:
    """Convert ImageNet folders to WebDataset shards and FFCV .beton files."""

    src: Path = Path("data/imagenet")
    """Folder with train/<wnid>/*.JPEG and val/."""
    dst: Path = Path("data/shards")
    """Dataset directory to make."""
    format: tuple[Literal["webdataset", "ffcv"], ...] = ("webdataset", "ffcv")
    """What to write."""
    val_labels: Path | None = None
    """valprep.sh or a file with one wnid a line in file-name order, for a flat val/."""
    shard_size: str = "256MB"
    """Largest WebDataset shard."""
    workers: int = len(os.sched_getaffinity(0))
    """Threads that read and check images."""
    seed: int = 0
    """Shuffles the training images once, so that streaming reads are mixed."""

    def __post_init__(self) -> None:
        if self.workers < 1:
            raise ValueError(f"--workers {self.workers}: must be at least 1")
        if not self.format:
            raise ValueError("--format: name webdataset, ffcv or both")
        if self.seed < 0:
            raise ValueError(f"--seed {self.seed}: must be at least 0")
        _ = self.shard_bytes

    @property
    def shard_bytes(self) -> int:
        """--shard-size in bytes."""
        match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMG]?)B?", self.shard_size.strip().upper())
        if not match or float(match.group(1)) <= 0:
            raise ValueError(f"--shard-size {self.shard_size}: write it like 256MB or 1GB")
        return int(float(match.group(1)) * _UNITS[match.group(2)])


@dataclass(frozen=True)
class CheckedImage:
    """An image as it will be stored."""

    path: Path
    label: int
    jpeg: bytes
    height: int
    width: int
    remark: str | None  # what was odd, and what was done


def list_source(settings: ConvertSettings) -> tuple[list[str], dict[str, Listing]]:
    """The classes and, for each split, every image with its class. Raises InputError before anything is read."""
    train = settings.src / "train"
    if not train.is_dir():
        raise InputError(
            f"--src {settings.src}: no folder train/ in it; it must hold ImageNet's train/<wnid>/*.JPEG "
            f"(`python tools/make_demo_data.py` makes demo data)"
        )
    classes = list_classes(train)
    if not classes:
        raise InputError(f"{train}: no class folders")
    splits = {"train": list_class_folders(train, classes)}
    order = np.random.Generator(np.random.PCG64(settings.seed)).permutation(len(splits["train"]))
    splits["train"] = [splits["train"][position] for position in order]
    if (settings.src / "val").is_dir():
        splits["val"] = list_validation(settings, classes)
    else:
        if settings.val_labels:
            raise InputError(f"--val-labels {settings.val_labels}: there is no {settings.src / 'val'}")
        log.info("%s: no val/, converting train only", settings.src)
    return classes, splits


def list_validation(settings: ConvertSettings, classes: list[str]) -> Listing:
    """The validation images with their classes, from class folders or from a flat folder and --val-labels."""
    folder = settings.src / "val"
    images = list_images(folder)
    # A stray folder beside flat images (what a NAS leaves, say) is passed over like any other stray file.
    if any(name in classes or not images for name in list_classes(folder)):
        if settings.val_labels:
            raise InputError(f"--val-labels: not needed, {folder} is in class folders already; leave it out")
        return list_class_folders(folder, classes)
    if not images:
        raise InputError(f"{folder}: no images and no class folders")
    if settings.val_labels is None:
        raise InputError(f"{folder}: {len(images)} images without class folders; give --val-labels FILE")
    labels = read_validation_labels(settings.val_labels)
    return label_images(images, labels, classes, settings.val_labels)


def check_image(path: Path, label: int) -> CheckedImage:
    """Read an image, decode it once, and re-encode it if decoders would differ. Raises InputError."""
    try:
        data = path.read_bytes()
        with Image.open(io.BytesIO(data), formats=IMAGE_FORMATS) as image:
            image.load()
            remark = _oddity(data, image)
            if remark:
                data = _reencoded(image)
        header = read_header(data)
    except JpegError as error:
        raise InputError(f"{path}: {error}; remove or replace it") from None
    except UnidentifiedImageError:
        raise InputError(f"{path}: not an image; remove or replace it") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise InputError(f"{path}: cannot be read as an image ({error}); remove or replace it") from None
    return CheckedImage(path, label, data, header.height, header.width, remark)


def _oddity(data: bytes, image: Image.Image) -> str | None:
    """Why the bytes cannot be kept, or None."""
    if image.format not in ("JPEG", "MPO"):  # MPO: a JPEG with more pictures behind it
        return f"a {image.format} file"
    header = read_header(data)
    if header.is_decodable_everywhere:
        return None
    return f"a JPEG of {header.precision} bit with {len(header.components)} components (mode {image.mode})"


def _reencoded(image: Image.Image) -> bytes:
    encoded = io.BytesIO()
    image.convert("RGB").save(encoded, "JPEG", quality=REENCODE_QUALITY)
    return encoded.getvalue()


def in_order(function: Callable[[Item], Result], items: Iterable[Item], workers: int) -> Iterator[Result]:
    """Map with threads, in order, with a bounded number of results waiting.

    Reading, decoding and hashing release the GIL, so threads use every core without copying images between
    processes.
    """
    waiting: deque[Future[Result]] = deque()
    with ThreadPoolExecutor(workers) as pool:
        try:
            for item in items:
                waiting.append(pool.submit(function, item))
                if len(waiting) > 4 * workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)


def convert_split(
    settings: ConvertSettings, name: str, listing: Listing, classes: list[str], report: list[dict[str, str]]
) -> SplitInfo:
    """Write one split in every format, in one pass over the source."""
    largest = max(path.stat().st_size for path, _ in listing)
    shards = ShardWriter(settings.dst, name, settings.shard_bytes) if "webdataset" in settings.format else None
    beton = None
    if "ffcv" in settings.format:
        # What is re-encoded can grow, noise in a small PNG more than twofold.
        beton = BetonWriter(settings.dst, name, classes, len(listing), page_size_for(4 * largest))
    total = 0
    try:
        checked = in_order(lambda entry: check_image(*entry), listing, settings.workers)
        for image in tqdm(checked, desc=name, total=len(listing), unit="img", disable=None):
            total += len(image.jpeg)
            if image.remark:
                report.append({"split": name, "file": str(image.path), "odd": image.remark, "done": "re-encoded"})
            if shards:
                shards.add(image.path.stem, image.jpeg, image.label)
            if beton:
                beton.add(image.jpeg, image.height, image.width, image.label)
        finished: tuple[ShardInfo, ...] = tuple(shards.close()) if shards else ()
        beton_info: BetonInfo | None = beton.close() if beton else None
    except BaseException:
        if shards:
            shards.abort()
        if beton:
            beton.abort()
        raise
    return SplitInfo(samples=len(listing), bytes=total, image_mode="keep", shards=finished, beton=beton_info)


def prepare_target(dst: Path) -> None:
    """Make the dataset directory; drop what an interrupted conversion left. Raises InputError if it is in use."""
    if (dst / MANIFEST).exists():
        raise InputError(f"--dst {dst}: holds a converted dataset already; remove it or choose another")
    if dst.exists() and not dst.is_dir():
        raise InputError(f"--dst {dst}: is a file; choose a directory")
    dst.mkdir(parents=True, exist_ok=True)
    if (dst / STATE).exists():
        remove_unfinished(dst)
    elif found := unfinished_files(dst):
        raise InputError(f"--dst {dst}: holds {found[0].name}, not from an unfinished conversion; choose another")
    (dst / STATE).touch()


def unfinished_files(dst: Path) -> list[Path]:
    """Files of the names that a conversion gives and that are not part of a finished one."""
    ours = re.compile(r"\.?((train|val)-\d{6}\.(tar|idx)|(train|val)\.beton)(\.partial)?")
    return [path for folder in ("webdataset", "ffcv") for path in (dst / folder).glob("*") if ours.fullmatch(path.name)]


def remove_unfinished(dst: Path) -> None:
    """Remove what a conversion wrote that did not get to its dataset.json."""
    for path in [*unfinished_files(dst), dst / STATE]:
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def failures_named(dst: Path) -> Iterator[None]:
    """A disk that is full or not writable is the user's to mend."""
    try:
        yield
    except OSError as error:
        raise InputError(f"--dst {dst}: cannot be written ({error.strerror or error})") from None


@contextlib.contextmanager
def unfinished_removed(dst: Path) -> Iterator[None]:
    """Leave nothing behind that looks like a dataset when the conversion fails."""
    try:
        yield
    except BaseException:
        remove_unfinished(dst)
        raise


def convert(settings: ConvertSettings) -> dict[str, Any]:
    """The command: list, check and write every split; dataset.json last."""
    started = time.monotonic()
    classes, splits = list_source(settings)
    counts = ", ".join(f"{len(listing)} {name}" for name, listing in splits.items())
    log.info("%s: %d classes, %s images", settings.src, len(classes), counts)
    report: list[dict[str, str]] = []
    with failures_named(settings.dst):
        prepare_target(settings.dst)
    with failures_named(settings.dst), unfinished_removed(settings.dst):
        infos = {name: convert_split(settings, name, listing, classes, report) for name, listing in splits.items()}
        with complete_or_absent(settings.dst / "report.json") as file:
            json.dump(report, file, indent=1)
        Manifest(classes=tuple(classes), splits=infos).write(settings.dst)
        (settings.dst / STATE).unlink()
    return {
        "train": infos["train"].samples,
        "val": infos["val"].samples if "val" in infos else 0,
        "bad": 0,
        "reencoded": len(report),
        "bytes": sum(info.bytes for info in infos.values()),
        "seconds": round(time.monotonic() - started, 1),
    }


if __name__ == "__main__":
    sys.exit(run_command(convert, ConvertSettings))
