"""The check of a converted dataset: it accepts what the converter writes, and finds and names every kind of damage."""

import hashlib
import io
import itertools
import json
import logging
import os
import random
import shutil
import subprocess
import sys
import tarfile
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from images import decoded, files_in, jpeg_bytes, photograph
from PIL import Image

from pipeline.cli import run_command
from pipeline.dataset import MANIFEST, Manifest, SplitInfo, open_split
from pipeline.formats.beton import ALLOCATION, HEADER, METADATA, head_bytes
from pipeline.formats.shards import ShardInfo, ShardWriter
from tools import verify_dataset
from tools.contact_sheet import CAPTION, COLUMNS, GAP, HEADING, MARGIN, TILE, TITLE, Picture, draw_sheet
from tools.convert_imagenet import ConvertSettings, convert
from tools.dataset_checks import LISTED
from tools.verify_dataset import VerifySettings, verify

COUNTS = {"train": 47, "val": 19}
METADATA_AT = HEADER.itemsize + 2 * (1 + 16 + 1024)


class Verified(NamedTuple):
    """What a verification said."""

    code: int
    bad: list[str]
    error: str
    result: dict[str, Any] | None


@pytest.fixture
def verified(capsys: pytest.CaptureFixture[str]) -> Callable[..., Verified]:
    """The command in this process, by default without a contact sheet."""

    def run(dst: Path, *flags: object) -> Verified:
        sheet = [] if "--contact-sheet" in flags or "--images" in flags else ["--images", "0"]
        capsys.readouterr()
        code = run_command(verify, VerifySettings, [str(dst), *map(str, flags), *sheet])
        told = capsys.readouterr()
        lines = told.err.splitlines()
        errors = [line for line in lines if line.startswith("error: ")]
        assert [line for line in lines if not line.startswith("bad: ")] == errors
        assert len(errors) == (code != 0)
        result = json.loads(told.out)["result"] if told.out else None
        return Verified(code, [line for line in lines if line not in errors], "".join(errors), result)

    return run


# --- a dataset as the converter writes it


def test_sound_dataset_is_accepted(dataset: Path, tmp_path: Path, verified: Callable[..., Verified]) -> None:
    before, sheet = files_in(dataset), tmp_path / "sheet.png"
    done = verified(dataset, "--contact-sheet", sheet)
    assert (done.code, done.bad) == (0, [])
    assert done.result is not None
    assert done.result.pop("seconds") >= 0
    data = [content for name, content in before.items() if name.endswith((".tar", ".beton"))]
    assert done.result == {
        "samples": 66,
        "shards": len(list(dataset.glob("webdataset/*.tar"))),
        "bytes": sum(map(len, data)),
        "decoded": 66,
        "problems": 0,
        "contact_sheet": str(sheet),
    }
    assert files_in(dataset) == before


def test_sample_is_as_large_as_asked_and_full_is_everything(dataset: Path, verified: Callable[..., Verified]) -> None:
    decoded_images = {}
    for flags in (("--sample", 0), ("--sample", 7), ("--sample", 66), ("--full",)):
        done = verified(dataset, *flags, "--workers", 1)
        assert done.result is not None
        decoded_images[flags] = done.result["decoded"]
    assert list(decoded_images.values()) == [0, 7, 66, 66]


@pytest.mark.parametrize(
    "flags",
    [
        {"format": ("webdataset",)},
        {"format": ("ffcv",), "jpeg": "keep"},
        {"format": ("ffcv",), "jpeg": "raw", "max_side": 100},
        {"format": ("ffcv",), "jpeg": "proportion", "max_side": 100},
        {"jpeg": "reencode", "max_side": 100, "quality": 80},
        {"splits": ("val",)},
    ],
    ids=lambda flags: " ".join(str(value) for value in flags.values()),
)
def test_everything_the_converter_writes_is_accepted(
    imagenet_folder: Path, tmp_path: Path, flags: dict[str, Any], verified: Callable[..., Verified]
) -> None:
    labels = imagenet_folder / "val_labels.txt"
    dst = tmp_path / "made"
    convert(ConvertSettings(src=(imagenet_folder,), dst=dst, val_labels=labels, shard_size="100KB", **flags))
    done = verified(dst, "--full", "--images", 10)
    assert (done.code, done.bad) == (0, [])
    assert done.result is not None
    assert done.result["samples"] == done.result["decoded"] == sum(COUNTS[name] for name in flags.get("splits", COUNTS))
    assert done.result["contact_sheet"] == str(tmp_path / "made-contact-sheet.png")
    for path in sorted(dst.rglob("*.*")):
        if path.suffix in (".tar", ".beton"):
            flip(path, path.stat().st_size // 3)
            done = verified(dst, "--sample", 0)
            assert done.code == 2
            assert all(line.startswith(f"bad: {path}: ") for line in done.bad)
            flip(path, path.stat().st_size // 3)


# --- damage


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
    """Make dataset.json agree with the files that are there, as someone who alters a dataset with care would."""

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
    """Where the content of each .cls file in a shard is, and what it is."""
    with tarfile.open(path) as archive:
        members = [member for member in archive if member.name.endswith(".cls")]
        return [(member.offset_data, path.read_bytes()[member.offset_data :][: member.size]) for member in members]


def swap_labels(dst: Path) -> None:
    """Two .cls files of one shard change places."""
    path = shard(dst, 1)
    data = bytearray(path.read_bytes())
    one, other = next(
        (a, b) for a, b in itertools.combinations(labels_in(path), 2) if a[1] != b[1] and len(a[1]) == len(b[1])
    )
    data[one[0]], data[other[0]] = data[other[0]], data[one[0]]
    path.write_bytes(data)


def swap_beton_labels(dst: Path) -> None:
    """The labels of two neighbours in a .beton file change places."""
    rows = np.memmap(dst / "ffcv/train.beton", METADATA, "r+", METADATA_AT, (COUNTS["train"],))
    labels = rows["f1"]
    at = int(np.flatnonzero(np.diff(labels))[0])
    labels[at], labels[at + 1] = labels[at + 1].item(), labels[at].item()


def alter_image(dst: Path) -> None:
    """One byte of the scan of one image in a shard."""
    jpeg = open_split(dst, "val").shards
    at, _ = jpeg.extent(2)
    flip(jpeg.shard_of(2), at + 512 + 2000)


def exchange_splits(dst: Path) -> None:
    """What dataset.json calls training is validation, and the other way round."""

    def change(fields: dict[str, Any]) -> None:
        splits = fields["splits"]
        splits["train"], splits["val"] = splits["val"], splits["train"]

    change_manifest(dst, change)


def foreign_beton(dst: Path) -> None:
    """The .beton file of a dataset of the same images, whose classes have other names."""
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
    """More files at the end of a shard, which dataset.json is made to agree with."""
    with tarfile.open(shard(dst, 0), "a") as archive:
        for name in names:
            member = tarfile.TarInfo(name)
            member.size = size
            archive.addfile(member, io.BytesIO(b"0" * size))
    sign(dst)


def write_label(dst: Path, text: bytes) -> None:
    """Another text of the same length as the first label of a shard, which dataset.json is made to agree with."""
    at, _ = labels_in(shard(dst, 0))[0]
    with open(shard(dst, 0), "r+b") as file:
        file.seek(at)
        file.write(text)
    sign(dst)


def cross_page(dst: Path) -> None:
    """Pages that FFCV would take for smaller than they are."""
    with open(dst / "ffcv/val.beton", "r+b") as file:
        file.seek(HEADER.fields["page_size"][1])  # type: ignore[index]
        file.write((4096).to_bytes(4, "little"))
    sign(dst)


def disorder_table(dst: Path) -> None:
    with open(dst / "ffcv/val.beton", "r+b") as file:
        file.seek(-COUNTS["val"] * ALLOCATION.itemsize, 2)
        file.write((7).to_bytes(8, "little"))
    sign(dst)


def wrong_size_on_record(dst: Path) -> None:
    """The width of one image in the .beton file's metadata."""
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
    """dataset.json counts the first sample of the second shard to the first shard."""

    def change(fields: dict[str, Any]) -> None:
        first, second, *_ = fields["splits"]["train"]["shards"]
        first["samples"] += 1
        second["samples"] -= 1

    change_manifest(dst, change)


def shift_extent(dst: Path, number: int, by: int) -> None:
    """One of the pieces of a .beton file in dataset.json ends later or earlier."""

    def change(fields: dict[str, Any]) -> None:
        extents = fields["splits"]["train"]["beton"]["extents"]
        extents[number]["bytes"] += by
        extents[number + 1]["bytes"] -= by

    change_manifest(dst, change)
    sign(dst)


def join_extents(dst: Path) -> None:
    """Two of the pieces of a .beton file in dataset.json are one."""

    def change(fields: dict[str, Any]) -> None:
        extents = fields["splits"]["train"]["beton"]["extents"]
        extents[1]["bytes"] += extents.pop(2)["bytes"]

    change_manifest(dst, change)
    sign(dst)


def rename_split(dst: Path) -> None:
    change_manifest(dst, lambda fields: fields["splits"].update(test=fields["splits"].pop("val")))


def forget_sample(dst: Path) -> None:
    """dataset.json counts one sample less than the .beton file, which is the only one."""
    fields = json.loads((dst / MANIFEST).read_text())
    beton = {**fields["splits"]["val"]["beton"], "samples": COUNTS["val"] - 1}
    change_split(dst, samples=COUNTS["val"] - 1, shards=[], beton=beton)


DAMAGE: dict[str, tuple[Callable[[Path], Any], str]] = {
    # What happens to files.
    "a shard is truncated": (lambda dst: truncate(shard(dst, 1), 700), "train-000001.tar: truncated: "),
    "a shard is gone": (lambda dst: shard(dst, 1).unlink(), "train-000001.tar: missing"),
    "an index is gone": (lambda dst: shard(dst, 1, suffix=".idx").unlink(), "train-000001.idx: missing"),
    "an index is a pipe": (lambda dst: replace_by_pipe(shard(dst, 1, suffix=".idx")), "train-000001.idx: not a file"),
    "a shard is a pipe": (lambda dst: replace_by_pipe(shard(dst, 1)), "train-000001.tar: not a file"),
    "a beton is truncated": (lambda dst: truncate(dst / "ffcv/val.beton", 24), "val.beton: truncated: "),
    "a beton is gone": (lambda dst: (dst / "ffcv/val.beton").unlink(), "val.beton: missing"),
    "a folder is gone": (lambda dst: shutil.rmtree(dst / "ffcv"), "train.beton: missing"),
    "the report is gone": (lambda dst: (dst / "report.json").unlink(), "report.json: missing"),
    "a report is empty": (lambda dst: (dst / "report.json").write_text(""), "report.json: damaged"),
    "an index of another shard": (
        lambda dst: shutil.copy(shard(dst, 0, suffix=".idx"), shard(dst, 1, suffix=".idx")),
        "train-000001.idx: line 2: not what the shard holds",
    ),
    "an index with a line too many": (
        lambda dst: shard(dst, 0, suffix=".idx").open("a").write("\n"),
        "train-000000.idx: goes on behind line ",
    ),
    "an index that ends early": (
        lambda dst: truncate(shard(dst, 0, suffix=".idx"), 1),
        "train-000000.idx: line ",
    ),
    "training and validation exchanged": (
        lambda dst: swap(dst / "ffcv/train.beton", dst / "ffcv/val.beton"),
        "val.beton: ",
    ),
    "a shard of another dataset": (
        lambda dst: shutil.copy(shard(dst, 0), shard(dst, 9)),
        "train-000009.tar: not of this dataset",
    ),
    "a beton of another dataset": (foreign_beton, "val.beton: belongs to another class list"),
    # What happens in files.
    "labels swapped in a shard": (swap_labels, "train-000001.tar: altered: its SHA-256"),
    "labels swapped in a beton": (swap_beton_labels, "train.beton: bytes 0 to "),
    "an image altered in a shard": (alter_image, "val-000000.tar: altered: its SHA-256"),
    # What happens with care: dataset.json agrees.
    "labels swapped in a shard, signed": (
        lambda dst: (swap_labels(dst), sign(dst)),
        "train-000001.tar: 000001_",
    ),
    "labels swapped in a beton, signed": (
        lambda dst: (swap_beton_labels(dst), sign(dst)),
        "/ffcv/train.beton sample ",
    ),
    "an image altered in a shard, signed": (
        lambda dst: (alter_image(dst), sign(dst)),
        "/ffcv/val.beton sample 2",
    ),
    "two shards swapped, signed": (
        lambda dst: (swap(shard(dst, 0), shard(dst, 1)), sign(dst)),
        ": not the key of its place, which begins with 000000_000000_",
    ),
    "a file too many in a shard": (lambda dst: add_members(dst, "000000_000099_x.jpg"), "not KEY.jpg with KEY.cls"),
    "a sample too many in a shard": (
        lambda dst: add_members(dst, "x.jpg", "x.cls"),
        ".tar: x: not the key of its place",
    ),
    "a label file that is none": (lambda dst: add_members(dst, "x.jpg", "x.cls", size=99), "99 bytes are no label"),
    "a label that is no class": (lambda dst: write_label(dst, b"4"), ": no label of 4 classes (b'4')"),
    "a label that is no number": (lambda dst: write_label(dst, b"-"), ": no label of 4 classes (b'-')"),
    "samples that cross pages": (cross_page, "val.beton: its samples do not lie on its pages"),
    "a table out of order": (disorder_table, "val.beton: its allocation table is not in order"),
    # What dataset.json and report.json say.
    "splits exchanged in dataset.json": (exchange_splits, "not the file of its place, which is webdataset/train-0000"),
    "classes out of order": (
        lambda dst: change_manifest(dst, lambda fields: fields["classes"].reverse()),
        "dataset.json: classes out of order",
    ),
    "another class": (
        lambda dst: change_manifest(dst, lambda fields: fields["classes"].__setitem__(3, "n00000005")),
        "val.beton: belongs to another class list",
    ),
    "a way of storing images that there is not": (
        lambda dst: change_split(dst, image_mode="kept"),
        "dataset.json: val: 'kept': no way in which images are stored",
    ),
    "another way of storing images": (lambda dst: change_split(dst, image_mode="raw"), "val.beton: holds what --jpeg"),
    "shards of pixels": (lambda dst: change_split(dst, image_mode="raw"), "dataset.json: val: shards of raw pixels"),
    "a sample counted in another shard": (shift_samples, " samples, not "),
    "a sample that is not counted": (forget_sample, "val.beton: 19 samples, not 18 as dataset.json says"),
    "a split that is none": (rename_split, "dataset.json: 'test': no split of ImageNet"),
    "pages counted to the head": (lambda dst: shift_extent(dst, 0, 1 << 21), "its samples do not lie in its groups"),
    "pages counted to another group": (lambda dst: shift_extent(dst, 1, 1 << 21), " in group 0 of pages, not "),
    "a sample in two groups": (lambda dst: shift_extent(dst, 1, 600 - (1 << 21)), "are no sample in their place"),
    "groups joined": (join_extents, " groups of pages"),
    "bytes that do not add up": (lambda dst: change_split(dst, bytes=1), "dataset.json: the images of val have "),
    "shards out of order": (
        lambda dst: change_manifest(dst, lambda fields: fields["splits"]["train"]["shards"].reverse()),
        "train-000000.tar: not the file of its place, which is webdataset/train-",
    ),
    "no file of a split": (lambda dst: change_split(dst, shards=[], beton=None), "val: neither shards nor a .beton"),
    "counts that are not those of the report": (
        lambda dst: change_report(dst, lambda report: report["counts"].update(greyscale=1)),
        "report.json: damaged (ValueError('counts that are not those of its images'))",
    ),
    "a report of another split": (
        lambda dst: change_report(dst, lambda report: report["images"][0].update(split="test")),
        "report.json: damaged",
    ),
    "a report of something else": (lambda dst: (dst / "report.json").write_text("[3]"), "report.json: damaged"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_found_and_named(dataset_copy: Path, name: str, verified: Callable[..., Verified]) -> None:
    damage, told = DAMAGE[name]
    damage(dataset_copy)
    done = verified(dataset_copy, "--sample", 0)
    assert done.code == 2
    assert done.result is None
    assert any(told in line for line in done.bad), done.bad
    assert all(line.startswith(f"bad: {dataset_copy}/") for line in done.bad)
    assert done.error.startswith(f"error: {dataset_copy}: ")


def test_swapped_labels_name_both_samples_and_nothing_else(
    dataset_copy: Path, verified: Callable[..., Verified]
) -> None:
    before = labels_in(shard(dataset_copy, 1))
    swap_labels(dataset_copy)
    changed = [
        place
        for place, pair in enumerate(zip(before, labels_in(shard(dataset_copy, 1)), strict=True))
        if pair[0] != pair[1]
    ]
    done = verified(dataset_copy)
    digest, *labels = done.bad
    assert "SHA-256" in digest
    assert [f"000001_{place:06d}_" in line for place, line in zip(changed, labels, strict=True)] == [True, True]
    assert done.error.startswith(f"error: {dataset_copy}: 3 problems, listed above")


def test_all_problems_are_told_each_on_a_line(dataset_copy: Path, verified: Callable[..., Verified]) -> None:
    shard(dataset_copy, 0).unlink()
    truncate(shard(dataset_copy, 1), 1024)
    flip(shard(dataset_copy, 0, "val"), 700)
    flip(dataset_copy / "ffcv/val.beton", 5 << 20)
    (dataset_copy / "report.json").write_text("{")
    done = verified(dataset_copy)
    told = {line.split(": ")[1].rpartition("/")[2] for line in done.bad}
    assert told == {"train-000000.tar", "train-000001.tar", "val-000000.tar", "val.beton", "report.json"}
    assert f": {len(done.bad)} problems, listed above" in done.error


def test_many_problems_of_a_kind_are_counted(dataset_copy: Path, verified: Callable[..., Verified]) -> None:
    index = shard(dataset_copy, 1, suffix=".idx")
    lines = index.read_text().splitlines(keepends=True)
    index.write_text(lines[0] + "".join(reversed(lines[1:])))
    wrong = sum(a != b for a, b in zip(lines[1:], reversed(lines[1:]), strict=True))
    assert wrong > LISTED
    done = verified(dataset_copy)
    assert len(done.bad) == LISTED + 1
    assert done.bad[-1] == f"bad: {index}: {wrong - LISTED} more: not what the shard holds"
    assert f": {wrong} problems" in done.error


def positions_to_flip(path: Path) -> list[int]:
    """Bytes of a file: first, last, and some of each part between."""
    size, rng = path.stat().st_size, random.Random(path.name)
    if path.suffix == ".beton":
        samples = COUNTS[path.stem]
        parts = [HEADER.itemsize, METADATA_AT, METADATA_AT + samples * METADATA.itemsize, head_bytes(samples, 1 << 21)]
        parts += [size - samples * ALLOCATION.itemsize, size]
        return [0, size - 1, *(rng.randrange(*part) for part in itertools.pairwise([0, *parts]))]
    return [0, size - 1, *(rng.randrange(size) for _ in range(4))]


@pytest.mark.parametrize(
    "name",
    ["webdataset/train-000001.tar", "webdataset/val-000000.idx", "ffcv/train.beton", "ffcv/val.beton", "dataset.json"],
)
def test_any_flipped_bit_is_found(dataset_copy: Path, name: str, verified: Callable[..., Verified]) -> None:
    path = dataset_copy / name
    for at in positions_to_flip(path):
        before = path.read_bytes()
        flip(path, at, bit=at % 8)
        if path.name != MANIFEST or path.read_bytes()[at : at + 1].strip() != before[at : at + 1].strip():
            done = verified(dataset_copy, "--sample", 0)
            assert done.code == 2, f"byte {at}"
            assert path.name == MANIFEST or any(line.startswith(f"bad: {path}: ") for line in done.bad)
        path.write_bytes(before)


def test_no_damage_ends_in_a_traceback(dataset_copy: Path, verified: Callable[..., Verified]) -> None:
    """Bytes changed, cut out, repeated or cleared in the structures that other bytes are found by."""
    rng = random.Random(3)
    files = sorted(path for path in dataset_copy.rglob("*") if path.is_file())
    for attempt in range(60):
        path = files[attempt % len(files)]
        before = path.read_bytes()
        at = rng.randrange(min(len(before), 4096)) if rng.random() < 0.6 else rng.randrange(len(before))
        if path.suffix == ".tar":
            at = at // 512 * 512 + rng.randrange(512)
        count = rng.choice([1, 4, 24, 512])
        instead = [rng.randbytes(count), b"", before[at : at + count] * 2, bytes(count)][attempt // len(files) % 4]
        damaged = before[:at] + instead + before[at + count :]
        path.write_bytes(damaged)
        done = verified(dataset_copy, *(["--full"] if attempt % 3 == 0 else ["--sample", 0]))
        # A name in the report means nothing to anyone but its reader, nor does white space in JSON.
        assert done.code == 2 or damaged == before or path.suffix == ".json", (path, at, count)
        path.write_bytes(before)


def test_other_files_are_remarked_upon(
    dataset_copy: Path, verified: Callable[..., Verified], caplog: pytest.LogCaptureFixture
) -> None:
    (dataset_copy / "notes.txt").write_text("mine")
    (dataset_copy / "webdataset" / "README").write_text("mine")
    with caplog.at_level(logging.INFO):
        assert verified(dataset_copy).code == 0
    assert f"remark: {dataset_copy}: not of the dataset: 'notes.txt', 'webdataset/README'" in caplog.messages


def test_names_in_a_damaged_shard_cannot_write_lines_of_their_own(
    dataset_copy: Path, verified: Callable[..., Verified]
) -> None:
    add_members(dataset_copy, "x\nbad: nothing\x1b[2J.jpg")
    (line,) = verified(dataset_copy).bad
    assert "x?bad: nothing?[2J.jpg: not KEY.jpg" in line


# --- images that cannot be decoded


@pytest.fixture
def with_bad_image(imagenet_folder: Path, tmp_path: Path) -> Path:
    """A dataset in which one validation image is cut off, which `--jpeg keep --no-verify` lets pass."""
    src = shutil.copytree(imagenet_folder, tmp_path / "imagenet")
    bad = src / "val" / "ILSVRC2012_val_00000008.JPEG"
    truncate(bad, bad.stat().st_size // 2)
    labels = src / "val_labels.txt"
    convert(ConvertSettings(src=(src,), dst=tmp_path / "bad", val_labels=labels, jpeg="keep", verify=False))
    return tmp_path / "bad"


def test_full_finds_an_image_that_cannot_be_decoded(with_bad_image: Path, verified: Callable[..., Verified]) -> None:
    assert verified(with_bad_image, "--sample", 0).code == 0
    done = verified(with_bad_image, "--full")
    assert done.code == 2
    (line,) = done.bad
    assert "val-000000.tar: 000000_000007_ILSVRC2012_val_00000008: cannot be used (" in line


def write_dataset(dst: Path, images: list[bytes]) -> int:
    """A dataset of one shard with any bytes for images; its size."""
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


def enlarged(jpeg: bytes) -> bytes:
    """A JPEG whose header promises 60000x60000 pixels."""
    at = jpeg.index(b"\xff\xc0") + 5
    return jpeg[:at] + (60_000).to_bytes(2, "big") * 2 + jpeg[at + 4 :]


def test_images_that_no_conversion_lets_pass_are_found(tmp_path: Path, verified: Callable[..., Verified]) -> None:
    image = photograph(40, 50, 1)
    good = jpeg_bytes(image)
    write_dataset(tmp_path, [good, jpeg_bytes(image, "CMYK"), enlarged(good), b"", good[:-200], b"GIF89a"])
    done = verified(tmp_path, "--images", 6, "--contact-sheet", tmp_path / "sheet.png")
    told = [line.partition(": 000000_")[2] for line in done.bad]
    assert told[:3] == [
        "000001_x: cannot be used (a kind of JPEG that not every decoder reads)",
        "000002_x: cannot be used (60000x60000 pixels, of at most 134217728)",
        "000003_x: cannot be used (not a JPEG (it does not begin with FF D8))",
    ]
    assert [line[:25] for line in told[3:]] == ["000004_x: cannot be used ", "000005_x: cannot be used "]
    assert f": 5 problems, listed above ({tmp_path / 'sheet.png'} shows" in done.error


def test_size_on_record_is_the_image_s(dataset_copy: Path, verified: Callable[..., Verified]) -> None:
    wrong_size_on_record(dataset_copy)
    (line,) = verified(dataset_copy, "--full").bad
    assert line.startswith(f"bad: {dataset_copy / 'ffcv/val.beton'}: sample 3: cannot be used (")
    assert "pixels, on record" in line


def test_sheet_is_drawn_in_spite_of_problems(
    with_bad_image: Path, tmp_path: Path, verified: Callable[..., Verified]
) -> None:
    sheet = tmp_path / "sheet.png"
    done = verified(with_bad_image, "--sample", 0, "--images", 66, "--contact-sheet", sheet)
    assert (done.code, len(done.bad)) == (2, 1)
    assert f"({sheet} shows what could be read)" in done.error
    with Image.open(sheet) as image:
        assert image.width > 1000


# --- the contact sheet


@pytest.fixture(scope="module")
def colourful(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[tuple[int, int, int]]]:
    """A dataset with one colour a class, and the colours."""
    root = tmp_path_factory.mktemp("colourful")
    colours = [(200, 30, 30), (30, 200, 30), (30, 30, 200)]
    for split, count in (("train", 5), ("val", 2)):
        for wnid, colour in zip(("n00000001", "n00000002", "n00000003"), colours, strict=True):
            folder = root / "src" / split / wnid
            folder.mkdir(parents=True)
            for number in range(count):
                image = np.full((60 + 40 * number, 90, 3), colour, np.uint8)
                (folder / f"{wnid}_{number}.JPEG").write_bytes(jpeg_bytes(image))
    convert(ConvertSettings(src=(root / "src",), dst=root / "made"))
    return root / "made", colours


def test_sheet_shows_images_of_each_split_in_the_order_of_their_classes(
    colourful: tuple[Path, list[tuple[int, int, int]]], tmp_path: Path, verified: Callable[..., Verified]
) -> None:
    dst, colours = colourful
    assert verified(dst, "--images", 100, "--contact-sheet", tmp_path / "sheet.png").code == 0
    pixels = decoded((tmp_path / "sheet.png").read_bytes()).astype(int)
    row = TILE + CAPTION
    train = [divmod(place, COLUMNS) for place in range(15)]
    tops = [TITLE + HEADING + line * row for line, _ in train] + [TITLE + 2 * HEADING + 2 * row] * 6
    columns = [column for _, column in train] + list(range(6))
    shown = [colour for colour in colours for _ in range(5)] + [colour for colour in colours for _ in range(2)]
    for top, column, colour in zip(tops, columns, shown, strict=True):
        left = MARGIN + column * (TILE + GAP)
        middle = pixels[top + TILE // 2, left + TILE // 2]
        assert abs(middle - colour).max() < 12
        caption = pixels[top + TILE : top + row, left : left + TILE]
        assert (caption.max(2) < 100).any(), "its class is written below"


def test_captions_tell_the_class(colourful: tuple[Path, list[tuple[int, int, int]]]) -> None:
    """Two sheets that differ in nothing but the label of one image differ in its caption alone."""
    manifest = Manifest.read(colourful[0])
    image = Image.new("RGB", (TILE, TILE))
    one, other = (np.asarray(draw_sheet("x", manifest, {"val": {5: Picture(label, image)}})) for label in (1, 2))
    rows, columns = np.nonzero((one != other).any(2))
    assert TITLE + HEADING + TILE < rows.min() <= rows.max() < TITLE + HEADING + TILE + CAPTION // 2
    assert MARGIN <= columns.min() <= columns.max() < MARGIN + TILE


def test_sheet_depends_on_the_seed_and_not_on_the_workers(
    dataset: Path, tmp_path: Path, verified: Callable[..., Verified]
) -> None:
    sheets = []
    for seed, workers in ((0, 1), (0, 3), (1, 3)):
        flags = ["--images", 9, "--seed", seed, "--workers", workers, "--sample", 0]
        done = verified(dataset, *flags, "--contact-sheet", tmp_path / "sheet.png")
        assert done.result is not None
        assert done.result["decoded"] == 9, "what is shown has been checked"
        sheets.append((tmp_path / "sheet.png").read_bytes())
    assert sheets[0] == sheets[1] != sheets[2]


# --- the command


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--workers", 0], "--workers 0: must be at least 1"),
        (["--sample", -1], "--sample -1: must be at least 0"),
        (["--images", 5000], "--images 5000: must be from 0 to 4096"),
        (["--contact-sheet", "/nowhere/sheet.png"], "--contact-sheet /nowhere/sheet.png: its folder is missing"),
        (["--contact-sheet", "/"], "--contact-sheet /: is a directory"),
    ],
)
def test_wrong_flags_are_refused(
    dataset: Path, flags: list[object], told: str, verified: Callable[..., Verified]
) -> None:
    done = verified(dataset, *flags)
    assert done.code == 2
    assert told in done.error


def test_a_folder_that_is_no_dataset_is_refused(tmp_path: Path, verified: Callable[..., Verified]) -> None:
    assert verified(tmp_path / "none").error == f"error: {tmp_path / 'none'}: no such directory"
    assert "dataset.json: missing; an interrupted conversion is finished by" in verified(tmp_path).error
    (tmp_path / MANIFEST).write_text("[" * 100_000)
    assert f"{tmp_path / MANIFEST}: cannot be read" in verified(tmp_path).error


@pytest.mark.parametrize("count", [1 << 62, 10**300])
def test_counts_that_nothing_could_hold_are_refused(
    dataset_copy: Path, count: int, verified: Callable[..., Verified]
) -> None:
    change_split(dataset_copy, samples=count, beton=None, shards=[])
    assert "counts that no dataset has" in verified(dataset_copy).error


def test_script_names_the_damage_and_ends_with_code_2(dataset_copy: Path) -> None:
    flip(shard(dataset_copy, 0), 5000)
    command = [sys.executable, verify_dataset.__file__, str(dataset_copy), "--images", "0"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (2, "")
    *bad, error = done.stderr.splitlines()
    assert bad
    assert all(line.startswith(f"bad: {shard(dataset_copy, 0)}: ") for line in bad)
    assert error.startswith("error: ")


def test_memory_does_not_grow_with_a_shard(tmp_path: Path, verified: Callable[..., Verified]) -> None:
    size = write_dataset(tmp_path, [jpeg_bytes(photograph(64, 64, 0)) + bytes(200_000)] * 150)
    tracemalloc.start()
    assert verified(tmp_path, "--sample", 0, "--workers", 1).code == 0
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8e6 < size
