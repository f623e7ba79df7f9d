"""Everything that must be the same with numba and without: draws, orders, crops, the index of a shard, batches.

Run as a program, `draws.py FILE DATASET FOLDER`, it writes them to a file.
"""

import sys
from pathlib import Path
from typing import Any

import numpy as np

import pipeline as sluice
from pipeline.order.crops import CropPolicy
from pipeline.order.erasing import erased_boxes, fill_from_table
from pipeline.order.plan import Plan
from pipeline.order.random import keys_of, random_keys, random_uniforms, scatter_by_key
from pipeline.order.stream import StreamPlan, bounded_shuffle
from pipeline.storage.shard_index import parse_index

SEEDS = (0, 2**31 + 7, 2**62 + 1)
SIZES = ((1, 1), (1, 500), (500, 1), (375, 500), (47, 31), (3000, 17))


Arrays = dict[str, np.ndarray]


def draws() -> Arrays:
    """Arrays by name."""
    made: Arrays = {}
    for seed in SEEDS:
        positions = np.arange(2**33, 2**33 + 50)
        made[f"keys {seed}"] = random_keys(300, seed, 5, 17)
        made[f"keys of {seed}"] = keys_of(positions, seed, 2**32 - 1, 64)
        made[f"uniforms {seed}"] = random_uniforms(seed, 3, positions, 64, 2)
        made[f"shuffle {seed}"] = bounded_shuffle(np.arange(200), 16, seed, 1, 3)
        scattered, ends = np.empty(500, np.int64), np.empty(7, np.int64)
        scatter_by_key(scattered, ends, seed, 2, 17)
        made[f"scattered {seed}"], made[f"ends {seed}"] = scattered, ends
        made[f"boxes {seed}"] = erased_boxes(seed, 1, positions, 0.7, 3, 64)
        content, table = np.zeros((3, 29), np.uint8), np.arange(3 << 16).astype(np.uint8).reshape(3, -1)
        fill_from_table(seed, 1, 7, 1 << 20, table, content)
        made[f"content {seed}"] = content
        for training in (True, False):
            crops = [CropPolicy(training=training).crop(seed, 2, 9, *size, 224) for size in SIZES]
            made[f"crops {seed} {training}"] = np.array([(*crop.box, *crop.window, crop.flip) for crop in crops])
        shared: dict[str, Any] = {"batch_size": 4, "seed": seed, "rank": 1, "world_size": 2, "training": True}
        plan = Plan(num_samples=103, repeats=2, **shared)
        stream = StreamPlan(shard_samples=(9, 20, 31), **shared)
        made[f"plan {seed}"] = np.concatenate(list(plan.batches(3)))
        made[f"stream {seed}"] = np.concatenate(list(stream.batches(3)))
    return made


def parsed(index: Path, shard_bytes: int) -> Arrays:
    """The index of a shard."""
    text = np.frombuffer(index.read_bytes().partition(b"\n")[2], np.uint8)
    blocks, sizes, labels = np.zeros(99, np.uint32), np.zeros(99, np.uint32), np.zeros(99, np.uint8)
    made: Arrays = {"blocks": blocks, "sizes": sizes, "label sizes": labels}
    for name, changed in (("whole", text), ("cut", text[:-5]), ("odd", np.append(text, [65, 10]).astype(np.uint8))):
        made[f"status {name}"] = np.array(parse_index(changed, shard_bytes, 1 << 20, 9, blocks, sizes, labels))
    return made


def batches(data: Path, split: str, loader: str, **changes: Any) -> Arrays:
    """The batches of a split: images, labels, positions."""
    settings: dict[str, Any] = {"batch_size": 8, "resolution": 48, "workers": 1, "indices": True, "seed": 3, **changes}
    with sluice.open(data, split, loader=loader, **settings) as opened:
        some = [tuple(np.array(part) for part in batch) for batch in opened]
    names = (f"{split} {loader} {part}" for part in ("images", "labels", "positions"))
    return {name: np.concatenate(parts) for name, parts in zip(names, zip(*some, strict=True), strict=True)}


def everything(dataset: Path, folder: Path) -> Arrays:
    """All of it, from a converted dataset and from a folder in ImageNet's form."""
    index = sorted(dataset.rglob("*.idx"))[0]
    made = draws() | parsed(index, index.with_suffix(".tar").stat().st_size)
    made |= batches(dataset, "val", "threads") | batches(dataset, "train", "webdataset", interpolation="bicubic")
    return made | {f"folder {name}": array for name, array in batches(folder, "train", "torch").items()}


if __name__ == "__main__":
    made: dict[str, Any] = {**everything(Path(sys.argv[2]), Path(sys.argv[3]))}
    np.savez(sys.argv[1], **made)
