"""Verification finds and names every kind of damage."""

import itertools
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.storage.beton import ALLOCATION, HEADER, METADATA, head_bytes
from pipeline.storage.manifest import MANIFEST
from pipeline.verification.problems import LISTED
from tests.helpers.damage import (
    COUNTS,
    METADATA_AT,
    add_members,
    alter_image,
    change_manifest,
    change_report,
    change_split,
    cross_page,
    disorder_table,
    exchange_splits,
    flip,
    foreign_beton,
    forget_sample,
    join_extents,
    labels_in,
    rename_split,
    replace_by_pipe,
    shard,
    shift_extent,
    shift_samples,
    sign,
    swap,
    swap_beton_labels,
    swap_labels,
    truncate,
    write_label,
)
from tests.helpers.verification import Verify


def signed(damage: Callable[[Path], None]) -> Callable[[Path], None]:
    """Damage that dataset.json is updated to."""

    def damage_and_sign(dst: Path) -> None:
        damage(dst)
        sign(dst)

    return damage_and_sign


DAMAGE: dict[str, tuple[Callable[[Path], Any], str]] = {
    # Damage to files.
    "a shard is truncated": (lambda dst: truncate(shard(dst, 1), 700), "train-000001.tar: truncated: "),
    "a shard is missing": (lambda dst: shard(dst, 1).unlink(), "train-000001.tar: missing"),
    "an index is missing": (lambda dst: shard(dst, 1, suffix=".idx").unlink(), "train-000001.idx: missing"),
    "an index is a pipe": (lambda dst: replace_by_pipe(shard(dst, 1, suffix=".idx")), "train-000001.idx: not a file"),
    "a shard is a pipe": (lambda dst: replace_by_pipe(shard(dst, 1)), "train-000001.tar: not a file"),
    "a beton is truncated": (lambda dst: truncate(dst / "ffcv/val.beton", 24), "val.beton: truncated: "),
    "a beton is missing": (lambda dst: (dst / "ffcv/val.beton").unlink(), "val.beton: missing"),
    "a folder is missing": (lambda dst: shutil.rmtree(dst / "ffcv"), "train.beton: missing"),
    "the report is missing": (lambda dst: (dst / "report.json").unlink(), "report.json: missing"),
    "a report is empty": (lambda dst: (dst / "report.json").write_text(""), "report.json: damaged"),
    "an index of another shard": (
        lambda dst: shutil.copy(shard(dst, 0, suffix=".idx"), shard(dst, 1, suffix=".idx")),
        "train-000001.idx: line 2: does not match the shard",
    ),
    "an index with a line too many": (
        lambda dst: shard(dst, 0, suffix=".idx").open("a").write("\n"),
        "train-000000.idx: continues after line ",
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
        "train-000009.tar: not part of this dataset",
    ),
    "a beton of another dataset": (foreign_beton, "val.beton: belongs to another class list"),
    # Damage in files.
    "labels swapped in a shard": (swap_labels, "train-000001.tar: altered: its SHA-256"),
    "labels swapped in a beton": (swap_beton_labels, "train.beton: bytes 0 to "),
    "an image altered in a shard": (alter_image, "val-000000.tar: altered: its SHA-256"),
    # Damage in files that dataset.json was updated to.
    "labels swapped in a shard, signed": (
        signed(swap_labels),
        "train-000001.tar: 000001_",
    ),
    "labels swapped in a beton, signed": (
        signed(swap_beton_labels),
        "/ffcv/train.beton sample ",
    ),
    "an image altered in a shard, signed": (
        signed(alter_image),
        "/ffcv/val.beton sample 2",
    ),
    "two shards swapped, signed": (
        signed(lambda dst: swap(shard(dst, 0), shard(dst, 1))),
        ": key out of place, where 000000_000000_",
    ),
    "a file too many in a shard": (
        lambda dst: add_members(dst, "000000_000099_x.jpg"),
        "not KEY.jpg followed by KEY.cls",
    ),
    "a sample too many in a shard": (
        lambda dst: add_members(dst, "x.jpg", "x.cls"),
        ".tar: x: key out of place",
    ),
    "a label file that is too large": (
        lambda dst: add_members(dst, "x.jpg", "x.cls", size=99),
        "99 bytes are too many for a label",
    ),
    "a label beyond the classes": (lambda dst: write_label(dst, b"4"), ": not a label of 4 classes (b'4')"),
    "a label that is not a number": (lambda dst: write_label(dst, b"-"), ": not a label of 4 classes (b'-')"),
    "samples that cross pages": (cross_page, "val.beton: has samples that cross its pages"),
    "a table out of order": (disorder_table, "val.beton: its allocation table is out of order"),
    # Damage to dataset.json and report.json.
    "splits exchanged in dataset.json": (exchange_splits, "out of place, where webdataset/train-0000"),
    "classes out of order": (
        lambda dst: change_manifest(dst, lambda fields: fields["classes"].reverse()),
        "val.beton: belongs to another class list",
    ),
    "another class": (
        lambda dst: change_manifest(dst, lambda fields: fields["classes"].__setitem__(3, "n00000005")),
        "val.beton: belongs to another class list",
    ),
    "an unknown image mode": (
        lambda dst: change_split(dst, image_mode="kept"),
        "dataset.json: val: 'kept': unknown image mode",
    ),
    "another image mode": (
        lambda dst: change_split(dst, image_mode="raw"),
        "val.beton: holds images that --jpeg raw does not write",
    ),
    "shards of pixels": (lambda dst: change_split(dst, image_mode="raw"), "dataset.json: val: shards of raw pixels"),
    "a sample counted in another shard": (shift_samples, " samples, not "),
    "a sample that is not counted": (forget_sample, "val.beton: 19 samples, not 18 as dataset.json says"),
    "an unknown split": (rename_split, "dataset.json: 'test': not a split of ImageNet"),
    "pages counted to the head": (lambda dst: shift_extent(dst, 0, 1 << 21), "has samples outside its groups"),
    "pages counted to another group": (lambda dst: shift_extent(dst, 1, 1 << 21), " in group 0 of pages, not "),
    "a sample in two groups": (lambda dst: shift_extent(dst, 1, 600 - (1 << 21)), "are no sample in its place"),
    "groups joined": (join_extents, " groups of pages"),
    "bytes that do not add up": (lambda dst: change_split(dst, bytes=1), "dataset.json: the images of val have "),
    "shards out of order": (
        lambda dst: change_manifest(dst, lambda fields: fields["splits"]["train"]["shards"].reverse()),
        "train-000000.tar: out of place, where webdataset/train-",
    ),
    "a split without files": (lambda dst: change_split(dst, shards=[], beton=None), "val: neither shards nor a .beton"),
    "counts that do not match the report": (
        lambda dst: change_report(dst, lambda report: report["counts"].update(greyscale=1)),
        "report.json: damaged (ValueError('the counts are not those of its images'))",
    ),
    "a report of another split": (
        lambda dst: change_report(dst, lambda report: report["images"][0].update(split="test")),
        "report.json: damaged",
    ),
    "a report of empty lists": (
        lambda dst: (dst / "report.json").write_text(f"[{'[],' * 100_000}[]]"),
        "report.json: damaged (ValueError('more objects than a conversion writes into so many bytes'))",
    ),
    "a report with other content": (lambda dst: (dst / "report.json").write_text("[3]"), "report.json: damaged"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_found_and_named(dataset_copy: Path, name: str, verified: Verify) -> None:
    damage, message = DAMAGE[name]
    damage(dataset_copy)
    done = verified(dataset_copy, "--sample", 0)
    assert done.code == 2
    assert done.result is None
    assert any(message in line for line in done.bad), done.bad
    assert all(line.startswith(f"bad: {dataset_copy}/") for line in done.bad)
    assert done.error.startswith(f"error: {dataset_copy}: ")


def test_swapped_labels_name_both_samples_and_nothing_else(dataset_copy: Path, verified: Verify) -> None:
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


def test_every_problem_is_reported_on_a_line(dataset_copy: Path, verified: Verify) -> None:
    shard(dataset_copy, 0).unlink()
    truncate(shard(dataset_copy, 1), 1024)
    flip(shard(dataset_copy, 0, "val"), 700)
    flip(dataset_copy / "ffcv/val.beton", 5 << 20)
    (dataset_copy / "report.json").write_text("{")
    done = verified(dataset_copy)
    names = {line.split(": ")[1].rpartition("/")[2] for line in done.bad}
    assert names == {"train-000000.tar", "train-000001.tar", "val-000000.tar", "val.beton", "report.json"}
    assert f": {len(done.bad)} problems, listed above" in done.error


def test_many_problems_of_a_kind_are_counted(dataset_copy: Path, verified: Verify) -> None:
    index = shard(dataset_copy, 1, suffix=".idx")
    lines = index.read_text().splitlines(keepends=True)
    index.write_text(lines[0] + "".join(reversed(lines[1:])))
    wrong = sum(a != b for a, b in zip(lines[1:], reversed(lines[1:]), strict=True))
    assert wrong > LISTED
    done = verified(dataset_copy)
    assert len(done.bad) == LISTED + 1
    assert done.bad[-1] == f"bad: {index}: {wrong - LISTED} more: does not match the shard"
    assert f": {wrong} problems" in done.error


def positions_to_flip(path: Path) -> list[int]:
    """Offsets in a file: the first, the last, and some in each part between."""
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
def test_any_flipped_bit_is_found(dataset_copy: Path, name: str, verified: Verify) -> None:
    path = dataset_copy / name
    for at in positions_to_flip(path):
        before = path.read_bytes()
        flip(path, at, bit=at % 8)
        if path.name != MANIFEST or path.read_bytes()[at : at + 1].strip() != before[at : at + 1].strip():
            done = verified(dataset_copy, "--sample", 0)
            assert done.code == 2, f"byte {at}"
            assert path.name == MANIFEST or any(line.startswith(f"bad: {path}: ") for line in done.bad)
        path.write_bytes(before)


def test_no_damage_ends_in_a_traceback(dataset_copy: Path, verified: Verify) -> None:
    """Bytes are changed, removed, repeated or cleared, mostly in headers and tables."""
    rng = random.Random(3)
    files = sorted(path for path in dataset_copy.rglob("*") if path.is_file())
    for attempt in range(60):
        path = files[attempt % len(files)]
        before = path.read_bytes()
        at = rng.randrange(min(len(before), 4096)) if rng.random() < 0.6 else rng.randrange(len(before))
        if path.suffix == ".tar":
            at = at // 512 * 512 + rng.randrange(512)
        count = rng.choice([1, 4, 24, 512])
        replacement = [rng.randbytes(count), b"", before[at : at + count] * 2, bytes(count)][attempt // len(files) % 4]
        damaged = before[:at] + replacement + before[at + count :]
        path.write_bytes(damaged)
        done = verified(dataset_copy, *(["--full"] if attempt % 3 == 0 else ["--sample", 0]))
        # Names in the report and white space in JSON are not checked.
        assert done.code == 2 or damaged == before or path.suffix == ".json", (path, at, count)
        path.write_bytes(before)


def test_names_in_a_damaged_shard_cannot_write_lines_of_their_own(dataset_copy: Path, verified: Verify) -> None:
    add_members(dataset_copy, "x\nbad: nothing\x1b[2J.jpg")
    (line,) = verified(dataset_copy).bad
    assert "x?bad: nothing?[2J.jpg: not KEY.jpg" in line
