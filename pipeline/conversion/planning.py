"""What a conversion will write: shards, page sizes, and all that the bytes depend on.

The plan depends on the source and the flags alone, so every machine of a conversion in parts makes the same one.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..storage.beton import page_size_for
from ..storage.remote.address import address_of
from ..storage.shards import stored_size
from .estimate import Sample
from .finding import Source
from .listing import Images
from .settings import ConvertSettings
from .work import ConversionPlan, Shard, source_digest

END_OF_SHARD = 1024  # bytes
RAW_PAGE = 1 << 27  # bytes: room for 44 million pixels; ImageNet's largest image has 28 million
LARGEST_PAGE = 1 << 30


def plan_conversion(settings: ConvertSettings, source: Source, samples: Mapping[str, Sample]) -> ConversionPlan:
    """What will be written, and all that it depends on; `samples` is of each split."""
    # Where images are not tiled or encoded, shards are planned from the sizes in the source.
    exact = settings.jpeg in ("keep", "raw", "proportion")
    growths = {split: 1.0 if exact else samples[split].growth for split in source.splits}
    shards = [
        shard
        for split, images in source.splits.items()
        for shard in plan_shards(split, images, settings.shard_bytes, growths[split])
    ]
    digest = hashlib.sha256()
    for shard in shards:
        digest.update(source_digest(shard, source.splits[shard.split], on_this_machine=False).encode())
    return ConversionPlan(
        paths=source_paths(settings),
        arguments=byte_arguments(settings),
        classes=list(source.classes),
        samples={split: len(images) for split, images in source.splits.items()},
        page_sizes={split: choose_page_size(source.splits[split], settings, growths[split]) for split in growths},
        shards=[[shard.split, shard.number, shard.start, shard.stop] for shard in shards],
        digest=digest.hexdigest(),
        passed_over={split: dict(sorted(counts.items())) for split, counts in source.passed_over.items() if counts},
    )


def byte_arguments(settings: ConvertSettings) -> dict[str, Any]:
    """The flags that determine the bytes written, apart from the source."""
    handling = asdict(settings.handling(0))
    del handling["largest"]
    return {
        **handling,
        "format": sorted({*settings.format}),
        "splits": sorted({*settings.splits}),
        "shard_size": settings.shard_bytes,
        "part": f"K/{settings.this_part.count}",
    }


def source_paths(settings: ConvertSettings) -> dict[str, Any]:
    """The flags that say where the source is, which may be another place on each machine."""
    return {
        "src": [_place(path) for path in settings.src],
        "val_labels": _place(settings.val_labels) if settings.val_labels else None,
        "classes": _place(settings.classes) if settings.classes else None,
    }


def _place(path: Path) -> str:
    """An address as it is, a path from the root."""
    return address_of(path) or str(path.resolve())


def plan_shards(split: str, images: Images, shard_bytes: int, growth: float) -> list[Shard]:
    """Cut a split into shards of at most `shard_bytes`, or of one image, if stored images take `growth` times their
    size in the source."""
    sizes = [stored_size(int(size)) for size in images.sizes * growth]
    shards, start, total = list[Shard](), 0, END_OF_SHARD
    for index, size in enumerate(sizes):
        if index > start and total + size > shard_bytes:
            shards.append(Shard(split, len(shards), start, index))
            start, total = index, END_OF_SHARD
        total += size
    return [*shards, Shard(split, len(shards), start, len(sizes))]


def choose_page_size(images: Images, settings: ConvertSettings, growth: float) -> int:
    """Pages that hold the largest image of a split as it will be stored."""
    if settings.jpeg not in ("raw", "proportion"):
        # One image may grow more than the others. If it does not fit, it is a bad image.
        return page_size_for(min(int(images.largest * max(1.0, 2 * growth)), LARGEST_PAGE))
    return page_size_for(min(3 * settings.max_side**2, RAW_PAGE)) if settings.max_side else RAW_PAGE
