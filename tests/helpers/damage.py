"""Ways to damage a converted dataset, and to write one of arbitrary bytes."""

import hashlib
import io
import itertools
import json
import os
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.storage.beton import ALLOCATION, HEADER, METADATA
from pipeline.storage.manifest import MANIFEST, Manifest, SplitInfo
from pipeline.storage.shards import ShardInfo, ShardWriter
from pipeline.storage.split import open_split

COUNTS = {"train": 47, "val": 19}
METADATA_AT = HEADER.itemsize + 2 * (1 + 16 + 1024)
"""Where the metadata of a `.beton` file with two fields begins, in bytes."""


def flip(path: Path, at: int, bit: int = 0) -> None:
    """Change one bit of a file."""
    with open(path, "r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 1 << bit]))


def swap(one: Path, other: Path) -> None:
    """Give two files each other's name."""
    spare = one.with_name("spare")
    one.rename(spare)
    other.rename(one)
    spare.rename(other)


def change_manifest(dst: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    fields = json.loads((dst / MANIFEST).read_text())
    change(fields)
    (dst / MANIFEST).write_text(json.dumps(fields))


def sign(dst: Path) -> None:
    """Update dataset.json to match the files, as someone who alters a dataset with care would."""

    def digest(data: bytes) -> str:
        return hashlib.sha256(data).hexdigest()

    def change(fields: dict[str, Any]) -> None:
        for split in fields["splits"].values():
            for shard in split["shards"]:
                data = (dst / shard["name"]).read_bytes()
                shard.update(bytes=len(data), sha256=digest(data))
            data = (dst / split["beton"]["name"]).read_bytes()
            for extent in split["beton"]["extents"]:
                extent["sha256"] = digest(data[: extent["bytes"]])
                data = data[extent["bytes"] :]

    change_manifest(dst, change)


def shard(dst: Path, number: int, split: str = "train", suffix: str = ".tar") -> Path:
    return dst / "webdataset" / f"{split}-{number:06d}{suffix}"


def labels_in(path: Path) -> list[tuple[int, bytes]]:
    """Offset and content of each .cls file in a shard."""
    with tarfile.open(path) as archive:
        members = [member for member in archive if member.name.endswith(".cls")]
        return [(member.offset_data, path.read_bytes()[member.offset_data :][: member.size]) for member in members]


def swap_labels(dst: Path) -> None:
    """Exchange two .cls files of one shard."""
    path = shard(dst, 1)
    data = bytearray(path.read_bytes())
    one, other = next(
        (a, b) for a, b in itertools.combinations(labels_in(path), 2) if a[1] != b[1] and len(a[1]) == len(b[1])
    )
    data[one[0]], data[other[0]] = data[other[0]], data[one[0]]
    path.write_bytes(data)


def swap_beton_labels(dst: Path) -> None:
    """Exchange the labels of two neighbours in a .beton file."""
    rows = np.memmap(dst / "ffcv/train.beton", METADATA, "r+", METADATA_AT, (COUNTS["train"],))
    labels = rows["f1"]
    at = int(np.flatnonzero(np.diff(labels))[0])
    labels[at], labels[at + 1] = labels[at + 1].item(), labels[at].item()


def alter_image(dst: Path) -> None:
    """Change one bit in the scan of an image in a shard."""
    samples = open_split(dst, "val").shards
    at, _ = samples.extent(2)
    flip(samples.shard_of(2), at + 512 + 2000)


def exchange_splits(dst: Path) -> None:
    """Exchange training and validation in dataset.json."""

    def change(fields: dict[str, Any]) -> None:
        splits = fields["splits"]
        splits["train"], splits["val"] = splits["val"], splits["train"]

    change_manifest(dst, change)


def foreign_beton(dst: Path) -> None:
    """Replace a .beton file by that of a dataset with the same images and other class names."""
    path = dst / "ffcv/val.beton"
    data = bytearray(path.read_bytes())
    at = data.index(b"sluice-classes-1")
    data[at + 16 : at + 48] = hashlib.sha256(b"other classes").digest()
    path.write_bytes(data)


def truncate(path: Path, by: int) -> None:
    os.truncate(path, path.stat().st_size - by)


def replace_by_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def add_members(dst: Path, *names: str, size: int = 1) -> None:
    """Append files to a shard and update dataset.json."""
    with tarfile.open(shard(dst, 0), "a") as archive:
        for name in names:
            member = tarfile.TarInfo(name)
            member.size = size
            archive.addfile(member, io.BytesIO(b"0" * size))
    sign(dst)


def write_label(dst: Path, text: bytes) -> None:
    """Replace the first label of a shard by a text of the same length and update dataset.json."""
    at, _ = labels_in(shard(dst, 0))[0]
    with open(shard(dst, 0), "r+b") as file:
        file.seek(at)
        file.write(text)
    sign(dst)


def cross_page(dst: Path) -> None:
    """Record a page size below the real one."""
    with open(dst / "ffcv/val.beton", "r+b") as file:
        file.seek(HEADER.fields["page_size"][1])  # type: ignore[index]
        file.write((4096).to_bytes(4, "little"))
    sign(dst)


def disorder_table(dst: Path) -> None:
    with open(dst / "ffcv/val.beton", "r+b") as file:
        file.seek(-COUNTS["val"] * ALLOCATION.itemsize, 2)
        file.write((7).to_bytes(8, "little"))
    sign(dst)


def record_wrong_size(dst: Path) -> None:
    """Change the width of one image in the .beton file's metadata."""
    rows = np.memmap(dst / "ffcv/val.beton", METADATA, "r+", METADATA_AT, (COUNTS["val"],))
    rows["f0"]["width"][3] += 1
    rows.flush()
    sign(dst)


def change_split(dst: Path, **values: Any) -> None:
    change_manifest(dst, lambda fields: fields["splits"]["val"].update(values))


def change_report(dst: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    report = json.loads((dst / "report.json").read_text())
    change(report)
    (dst / "report.json").write_text(json.dumps(report))


def shift_samples(dst: Path) -> None:
    """Count the first sample of the second shard to the first shard in dataset.json."""

    def change(fields: dict[str, Any]) -> None:
        first, second, *_ = fields["splits"]["train"]["shards"]
        first["samples"] += 1
        second["samples"] -= 1

    change_manifest(dst, change)


def shift_extent(dst: Path, number: int, by: int) -> None:
    """Move the end of an extent of a .beton file in dataset.json."""

    def change(fields: dict[str, Any]) -> None:
        extents = fields["splits"]["train"]["beton"]["extents"]
        extents[number]["bytes"] += by
        extents[number + 1]["bytes"] -= by

    change_manifest(dst, change)
    sign(dst)


def join_extents(dst: Path) -> None:
    """Join two extents of a .beton file in dataset.json."""

    def change(fields: dict[str, Any]) -> None:
        extents = fields["splits"]["train"]["beton"]["extents"]
        extents[1]["bytes"] += extents.pop(2)["bytes"]

    change_manifest(dst, change)
    sign(dst)


def rename_split(dst: Path) -> None:
    change_manifest(dst, lambda fields: fields["splits"].update(test=fields["splits"].pop("val")))


def forget_sample(dst: Path) -> None:
    """Count one sample less than the .beton file holds, and name no shards."""
    fields = json.loads((dst / MANIFEST).read_text())
    beton = {**fields["splits"]["val"]["beton"], "samples": COUNTS["val"] - 1}
    change_split(dst, samples=COUNTS["val"] - 1, shards=[], beton=beton)


def write_dataset(dst: Path, images: list[bytes]) -> int:
    """Write a dataset of one shard with any bytes as images. Returns the shard's size in bytes."""
    writer = ShardWriter(dst / "webdataset" / "train-000000.tar", 0)
    for image in images:
        writer.add("x", image, 0)
    size, digest = writer.close()
    info = ShardInfo(name="webdataset/train-000000.tar", samples=len(images), bytes=size, sha256=digest)
    split = SplitInfo(samples=len(images), bytes=sum(map(len, images)), image_mode="keep", shards=(info,))
    Manifest(classes=("n00000001",), splits={"train": split}).write(dst)
    stored = {"lossless": split.samples, "reencoded": 0, "source_bytes": split.bytes, "bytes": split.bytes}
    (dst / "report.json").write_text(json.dumps({"stored": stored, "counts": {}, "images": []}))
    return size
