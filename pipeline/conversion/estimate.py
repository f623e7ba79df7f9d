"""What a conversion will take, before it writes: images, space for each format against what is free, and time.

A few images of each split are read and prepared as the conversion will do it. What they grow by also decides where a
shard begins, so they are always the same ones.
"""

import hashlib
import logging
import math
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ..pixels.formats import BadImage
from ..sizes import size_in_words
from ..storage.beton import ALLOCATION, head_bytes
from ..storage.shards import INDEX_ENTRY, stored_size
from .images import Handling, prepare
from .listing import Images, each_image
from .settings import ConvertSettings
from .work import ConversionPlan, Shard

log = logging.getLogger(__name__)

SAMPLED = 64  # images of a split
_SAMPLED_CONTAINERS = 4  # from which they are, if these are read as a whole
_LARGEST_IMAGE = 1 << 32  # bytes: any


@dataclass(frozen=True)
class Sample:
    """What a few images of a split show."""

    growth: float  # stored bytes per byte in the source
    seconds: float  # for an image, with all threads


def sample_images(images: Images, settings: ConvertSettings) -> Sample:
    """Read and prepare a few images at fixed positions of a split."""
    chosen = _positions(images)
    prepared, hashes = partial(_stored, settings.handling(_LARGEST_IMAGE)), len({*settings.format})
    once = {int(images.container[index]): index for index in chosen}.values() if images.read_whole else ()
    for _ in each_image(prepared, images, [chosen[0], *once], 1):  # compiles, and decompresses whole containers
        pass
    before = after = 0
    began = time.monotonic()
    for index, data in zip(chosen, each_image(prepared, images, chosen, settings.workers), strict=True):
        for _ in range(hashes):
            hashlib.sha256(data)
        if data:
            before, after = before + int(images.sizes[index]), after + len(data)
    return Sample(after / before if before else 1.0, (time.monotonic() - began) / len(chosen))


def _positions(images: Images) -> list[int]:
    if not images.read_whole:
        positions: list[int] = np.unique(np.linspace(0, len(images) - 1, SAMPLED).astype(int)).tolist()
        return positions
    containers = np.unique(images.container)
    few = containers[np.unique(np.linspace(0, len(containers) - 1, _SAMPLED_CONTAINERS).astype(int))]
    each = SAMPLED // len(few)
    return sorted(at for number in few for at in np.flatnonzero(images.container == number)[:each].tolist())


def _stored(handling: Handling, index: int, data: bytes | BadImage) -> bytes:
    """An image as it will be stored; nothing of a bad one."""
    if isinstance(data, BadImage):
        return b""
    try:
        return prepare(data, index, handling).data
    except BadImage:
        return b""


@dataclass(frozen=True)
class Estimate:
    """What the shards that are still to be written take."""

    images: dict[str, int]  # by split
    source_bytes: dict[str, int]  # by split
    bytes: dict[str, int]  # by format
    seconds: float
    free: int  # bytes

    @property
    def fits(self) -> bool:
        """Whether there is room for it."""
        return sum(self.bytes.values()) <= self.free

    def log(self, dst: Path) -> None:
        """Say it, and warn if it does not fit."""
        for split, count in self.images.items():
            log.info("%s: %d images of %s to write", split, count, size_in_words(self.source_bytes[split]))
        formats = ", ".join(f"{name} {size_in_words(size)}" for name, size in self.bytes.items())
        needed, free = size_in_words(sum(self.bytes.values())), size_in_words(self.free)
        log.info("about %s (%s) of %s free in %s", needed, formats, free, dst)
        total = sum(self.images.values())
        if total:
            log.info("about %s, at %.0f images/s", time_in_words(self.seconds), total / max(self.seconds, 1e-9))
        if not self.fits:
            log.warning(
                "--dst %s: about %s are needed, %s are free; `--format webdataset` or `ffcv` writes one format alone, "
                "and the same command resumes a conversion that a full disk has stopped",
                *(dst, needed, free),
            )

    def as_result(self) -> dict[str, Any]:
        """The result of --dry-run."""
        return {
            **self.images,
            "bytes": sum(self.bytes.values()),
            **{f"{name}_bytes": size for name, size in self.bytes.items()},
            "free_bytes": self.free,
            "estimated_seconds": round(self.seconds, 1),
        }


def estimate(
    settings: ConvertSettings,
    splits: Mapping[str, Images],
    plan: ConversionPlan,
    samples: Mapping[str, Sample],
    remaining: Sequence[Shard],
) -> Estimate:
    """What the shards `remaining` take."""
    images, source_bytes = dict.fromkeys(splits, 0), dict.fromkeys(splits, 0)
    sizes: dict[str, int] = dict.fromkeys(settings.format, 0)
    for shard in remaining:
        in_source = splits[shard.split].sizes[shard.start : shard.stop]
        images[shard.split] += shard.num_images
        source_bytes[shard.split] += int(in_source.sum())
        stored = in_source * samples[shard.split].growth
        if "webdataset" in sizes:
            sizes["webdataset"] += sum(stored_size(int(size)) + INDEX_ENTRY for size in stored)
        if "ffcv" in sizes:
            sizes["ffcv"] += _pages(stored, plan.page_sizes[shard.split]) + shard.num_images * ALLOCATION.itemsize
            first = head_bytes(plan.samples[shard.split], plan.page_sizes[shard.split])
            sizes["ffcv"] += first if shard.number == 0 else 0
    seconds = sum(samples[split].seconds * count for split, count in images.items())
    return Estimate(images, source_bytes, sizes, seconds, free_bytes(settings.dst))


def _pages(stored: np.ndarray, page_size: int) -> int:
    """The bytes of pages with images of these sizes: on average, half an image at the end of each is left free."""
    room = page_size - min(float(stored.mean()) / 2, page_size / 2)
    return math.ceil(float(stored.sum()) / room) * page_size if stored.sum() > page_size else page_size


def free_bytes(path: Path) -> int:
    """What is free on the disk where `path` is or will be."""
    existing = next(above for above in (path.absolute(), *path.absolute().parents) if above.exists())
    return shutil.disk_usage(existing).free


def time_in_words(seconds: float) -> str:
    """Seconds in a unit that suits them."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
