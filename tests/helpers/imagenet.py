"""A small ImageNet, written to a folder, and converted."""

from pathlib import Path
from typing import Any

from pipeline.conversion.convert import convert
from pipeline.conversion.settings import ConvertSettings
from tests.helpers.images import varied_jpeg

TRAIN_COUNTS = {"n00000001": 12, "n00000002": 10, "n00000003": 14, "n00000004": 11}
CLASSES = list(TRAIN_COUNTS)
VAL_COUNT = 19
COUNTS = {"train": sum(TRAIN_COUNTS.values()), "val": VAL_COUNT}


def write_imagenet(root: Path) -> Path:
    """Write train/ in class folders, val/ flat, and val_labels.txt with one wnid per line. Returns `root`."""
    for wnid, count in TRAIN_COUNTS.items():
        folder = root / "train" / wnid
        folder.mkdir(parents=True)
        for number in range(count):
            (folder / f"{wnid}_{number * 37 + 5}.JPEG").write_bytes(varied_jpeg(number, seed=int(wnid[1:])))
    (root / "val").mkdir()
    for number in range(1, VAL_COUNT + 1):
        (root / "val" / f"ILSVRC2012_val_{number:08d}.JPEG").write_bytes(varied_jpeg(number, seed=0))
    labels = [CLASSES[number * number % 7 % len(CLASSES)] for number in range(1, VAL_COUNT + 1)]
    (root / "val_labels.txt").write_text("\n".join(labels) + "\n")
    return root


def converted(src: Path, dst: Path, **flags: Any) -> Path:
    """Convert what `write_imagenet` wrote, to several shards. Returns `dst`."""
    labels = src / "val_labels.txt"
    flags = {"shard_size": "100KB", "workers": 2, **flags}
    convert(ConvertSettings(src=(src,), dst=dst, val_labels=labels, **flags))
    return dst


def val_wnids(imagenet: Path) -> list[str]:
    """The wnid of each validation image, in file-name order."""
    return (imagenet / "val_labels.txt").read_text().split()
