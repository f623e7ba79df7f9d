"""Writing with bad images, a full disk, or a source that changes."""

import contextlib
import json
import os
import shutil
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipeline.conversion.convert import convert
from pipeline.conversion.finding import Source, SourceFlags, open_source
from pipeline.errors import InputError
from pipeline.storage.manifest import Manifest
from pipeline.storage.split import open_split
from tests.helpers.conversions import (
    BAD,
    TRAIN,
    VAL,
    WNIDS,
    convert_settings,
    killed_at,
    killed_when,
    refused,
    spoil,
    unfinished_files,
    written,
)
from tests.helpers.files import files_in
from tests.helpers.images import jpeg_bytes, photograph


def test_all_bad_images_are_listed(changing: Path, tmp_path: Path) -> None:
    bad = spoil(changing)
    dst = tmp_path / "dst"
    listing = dst / ".conversion/bad-images.txt"
    for workers in (2, 1):
        message = refused(convert_settings(changing, dst, workers=workers))
        assert message.startswith(f"3 of 15 images cannot be used, listed in {listing}; the first is {changing}/train/")
        assert sorted(listing.read_text().splitlines()) == [f"{path}: not an image" for path in sorted(bad)]
        unfinished_files(dst)


def test_single_bad_image_is_named(changing: Path, tmp_path: Path) -> None:
    (changing / VAL).write_bytes(BAD)
    message = refused(convert_settings(changing, tmp_path / "dst"))
    assert message.startswith(
        f"{changing / VAL}: not an image; replace what is bad and start again, or leave it out with"
    )
    unfinished_files(tmp_path / "dst")


def test_conversion_continued_with_replaced_images_equals_a_fresh_one(
    changing: Path, uninterrupted: dict[str, bytes], source: Path, tmp_path: Path
) -> None:
    bad = spoil(changing)
    dst = tmp_path / "dst"
    refused(convert_settings(changing, dst))
    for path in bad:
        shutil.copy(source / path.relative_to(changing), path)
    convert(convert_settings(changing, dst))
    files = files_in(dst)
    assert files.pop("report.json") == uninterrupted["report.json"].replace(bytes(source), bytes(changing))
    assert files == {name: data for name, data in uninterrupted.items() if name != "report.json"}


@pytest.mark.parametrize("before", ["nothing", "failed", "killed"])
def test_bad_images_are_left_out_and_counted(changing: Path, tmp_path: Path, before: str) -> None:
    bad = spoil(changing)
    dst, skip = tmp_path / "dst", convert_settings(changing, tmp_path / "dst", on_bad="skip")
    if before == "failed":
        refused(replace(skip, on_bad="fail"))
    elif before == "killed":
        assert killed_at(30, skip)
    result = convert(skip)
    assert (result["train"], result["val"], result["bad"], result["reencoded"]) == (10, 2, 3, 1)
    assert {name: info.samples for name, info in Manifest.read(dst).splits.items()} == {"train": 10, "val": 2}
    report = json.loads((dst / "report.json").read_text())
    left_out = {entry["file"]: entry["bad"] for entry in report["images"] if entry["done"] == "left out"}
    assert left_out == {str(path): "not an image" for path in bad}
    assert report["counts"]["bad: left out"] == 3
    good = [path for path in changing.rglob("*.JPEG") if path not in bad]
    stored = {"lossless": 11, "reencoded": 1, "source_bytes": sum(path.stat().st_size for path in good)}
    assert report["stored"] == {**stored, "bytes": result["bytes"]}
    for split, count in (("train", 10), ("val", 2)):
        opened = open_split(dst, split)
        samples = [opened.shards[index] for index in range(count)]
        assert samples == [opened.beton[index] for index in range(count)]
        assert BAD not in [sample.jpeg for sample in samples]


def test_bad_images_in_archives_are_listed_or_left_out(changing: Path, tmp_path: Path) -> None:
    (changing / TRAIN).write_bytes(BAD)
    archive, dst = tmp_path / "train.tar", tmp_path / "dst"
    subprocess.run(["tar", "-cf", archive, "-C", changing / "train", *WNIDS], check=True)
    message = refused(convert_settings(archive, dst, splits=("train",)))
    assert message.startswith(f"{archive}/{TRAIN.removeprefix('train/')}: not an image")
    result = convert(convert_settings(archive, tmp_path / "skipped", splits=("train",), on_bad="skip"))
    assert (result["train"], result["bad"]) == (11, 1)


def test_bad_images_that_one_attempt_left_out_fail_the_next_without_skip(changing: Path, tmp_path: Path) -> None:
    bad = spoil(changing)
    dst = tmp_path / "dst"
    written(changing, dst, 1, on_bad="skip")
    refused(convert_settings(changing, dst))
    listed = (dst / ".conversion/bad-images.txt").read_text().splitlines()
    assert sorted(listed) == [f"{path}: not an image" for path in sorted(bad)]


def test_shard_of_bad_images_only_is_refused(changing: Path, tmp_path: Path) -> None:
    for path in changing.glob("val/*/*"):
        path.write_bytes(BAD)
    message = refused(convert_settings(changing, tmp_path / "dst", on_bad="skip"))
    assert str(changing / "val") in message
    assert "every image of its shard is bad (3)" in message
    unfinished_files(tmp_path / "dst")


def test_each_part_lists_its_own_bad_images(changing: Path, tmp_path: Path) -> None:
    bad = spoil(changing)
    dst, listed = tmp_path / "dst", []
    for number in (1, 2):
        message = refused(convert_settings(changing, dst, part=f"{number}/2"))
        listed += (dst / f".conversion/00{number}-of-002-bad-images.txt").read_text().splitlines()
        assert any(str(path) in message for path in bad)
    assert sorted(listed) == [f"{path}: not an image" for path in sorted(bad)]
    for number in (1, 2):
        convert(convert_settings(changing, dst, part=f"{number}/2", on_bad="skip"))
    assert convert(convert_settings(changing, dst, merge=True))["bad"] == 3


@contextlib.contextmanager
def small_disk(path: Path, size: str) -> Iterator[None]:
    """Mount a file system in memory; skips the test if that is not permitted."""
    path.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(path)]
    mounted = subprocess.run(command, capture_output=True, text=True, check=False)
    if mounted.returncode:
        pytest.skip(f"no file system can be mounted: {mounted.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", path], check=True)


def remount(path: Path, option: str) -> None:
    """Mount it again with another option."""
    subprocess.run(["mount", "-o", f"remount,{option}", path], check=True)


@pytest.mark.parametrize("parts", [1, 2])
def test_full_disk_is_one_error_and_the_conversion_continues_when_there_is_room(
    source: Path, uninterrupted: dict[str, bytes], tmp_path: Path, parts: int
) -> None:
    disk = tmp_path / "disk"
    dst, fulls = disk / "dst", 0
    jobs = [convert_settings(source, dst, part=f"{number}/{parts}") for number in range(1, parts + 1)]
    jobs = [*jobs, convert_settings(source, dst, merge=True)] if parts > 1 else [convert_settings(source, dst)]
    with small_disk(disk, "64k"):
        for size in range(64, 20_000, 400):
            remount(disk, f"size={size}k")
            try:
                while jobs:
                    convert(jobs[0])
                    jobs.pop(0)
                break
            except InputError as error:
                fulls += 1
                no_space = f"--dst {dst}: cannot be written (No space left on device); fix that and start again to"
                assert str(error).startswith(no_space)  # noqa: PT017
                assert not (dst / "dataset.json").exists()
                if not (dst / ".conversion/finishing").exists():
                    unfinished_files(dst)
        assert fulls > 10
        assert files_in(dst) == uninterrupted


def test_disk_that_is_not_writable_is_one_error(source: Path, uninterrupted: dict[str, bytes], tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    with small_disk(disk, "30m"):
        remount(disk, "ro")
        message = refused(convert_settings(source, disk / "dst"))
        assert message.startswith(f"--dst {disk}/dst: cannot be written (Read-only file system); fix that and start")
        remount(disk, "rw")
        assert killed_at(20, convert_settings(source, disk / "dst"))
        remount(disk, "ro")
        assert refused(convert_settings(source, disk / "dst")) == message
        remount(disk, "rw")
        convert(convert_settings(source, disk / "dst"))
        assert files_in(disk / "dst") == uninterrupted


def become_a_folder(image: Path) -> None:
    image.unlink()
    image.mkdir()


CHANGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "grows": (
        lambda image: image.write_bytes(image.read_bytes() + b"more"),
        "has changed while it was being converted",
    ),
    "shrinks": (lambda image: os.truncate(image, 100), "has changed while it was being converted"),
    "vanishes": (lambda image: image.unlink(), "cannot be read (No such file or directory)"),
    "becomes a folder": (become_a_folder, "cannot be read (is no regular file)"),
}


def image_is_good(path: Path) -> bool:
    """Whether an image can still be converted after one of the CHANGES."""
    return path.is_file() and path.stat().st_size > 100


def change_after_listing(monkeypatch: pytest.MonkeyPatch, change: Callable[[], object]) -> None:
    """Make a change after the source has been listed and before the first image is read."""

    def open_and_change(flags: SourceFlags) -> Source:
        source = open_source(flags)
        change()
        return source

    monkeypatch.setattr("pipeline.conversion.convert.open_source", open_and_change)


def test_an_image_that_becomes_a_pipe_is_not_waited_for(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / "source"
    shutil.copytree(source, copy)

    def become_a_pipe() -> None:
        (copy / TRAIN).unlink()
        os.mkfifo(copy / TRAIN)

    change_after_listing(monkeypatch, become_a_pipe)
    assert f"{copy / TRAIN}: cannot be read (is no regular file)" in refused(convert_settings(copy, tmp_path / "dst"))


@pytest.mark.parametrize("image", [TRAIN, VAL])
@pytest.mark.parametrize(("change", "message"), CHANGES.values(), ids=CHANGES.keys())
def test_image_that_changes_during_the_conversion_is_named(
    changing: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    image: str,
    change: Callable[[Path], object],
    message: str,
) -> None:
    dst = tmp_path / "dst"
    with monkeypatch.context() as patch:
        change_after_listing(patch, lambda: change(changing / image))
        assert refused(convert_settings(changing, dst)).startswith(f"{changing / image}: {message}")
    unfinished_files(dst)
    result = convert(convert_settings(changing, dst, on_bad="skip"))
    assert result["train"] + result["val"] == 14 + image_is_good(changing / image)
    convert(convert_settings(changing, tmp_path / "fresh", on_bad="skip"))
    assert files_in(dst) == files_in(tmp_path / "fresh")


def test_archive_that_is_truncated_during_the_conversion_is_named(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive, dst = tmp_path / "train.tar", tmp_path / "dst"
    subprocess.run(["tar", "-cf", archive, "-C", source / "train", *WNIDS], check=True)
    whole = archive.read_bytes()
    with monkeypatch.context() as patch:
        change_after_listing(patch, lambda: os.truncate(archive, 12_000))
        message = refused(convert_settings(archive, dst, splits=("train",)))
        assert message.startswith(f"{archive}/n0000000")
        assert "has changed while it was being converted" in message
    unfinished_files(dst)
    archive.write_bytes(whole)
    assert convert(convert_settings(archive, dst, splits=("train",)))["train"] == 12


def add_image(source: Path, recorded: str) -> None:
    shutil.copy(source / TRAIN, source / "train/n00000002/n00000002_0.JPEG")


def enlarge_recorded_image(source: Path, recorded: str) -> None:
    (path,) = source.glob(f"train/*/{recorded}.JPEG")
    path.write_bytes(jpeg_bytes(photograph(70, 80, seed=5)))


def replace_recorded_image(source: Path, recorded: str) -> None:
    """Replace it by another image of the same size."""
    (path,) = source.glob(f"train/*/{recorded}.JPEG")
    data = path.read_bytes()
    other = jpeg_bytes(photograph(20, 20, seed=7), quality=50)
    assert len(other) < len(data)
    path.write_bytes(other[:2] + comment(len(data) - len(other)) + other[2:])


def comment(size: int) -> bytes:
    """A JPEG comment segment of `size` bytes."""
    return b"\xff\xfe" + (size - 2).to_bytes(2, "big") + bytes(size - 4)


def outgrow_the_pages(source: Path, recorded: str) -> None:
    """Replace an image that is not on record by one that is larger than a page."""
    (path,) = source.glob("train/*/n00000001_10.JPEG")
    assert path.stem != recorded
    noise = np.random.default_rng(0).integers(0, 256, (1300, 1300, 3)).astype(np.uint8)
    path.write_bytes(jpeg_bytes(noise, quality=98))
    assert path.stat().st_size > 1 << 21


@pytest.mark.parametrize("jpeg", ["keep", "reencode"])
@pytest.mark.parametrize("change", [add_image, enlarge_recorded_image, replace_recorded_image, outgrow_the_pages])
def test_conversion_continued_with_a_changed_source_equals_a_fresh_one(
    changing: Path, tmp_path: Path, change: Callable[[Path, str], None], jpeg: str
) -> None:
    dst = tmp_path / "dst"
    begun = convert_settings(changing, dst, jpeg=jpeg, shard_size="6KB", splits=("train",))
    assert killed_when(lambda number, path: path.endswith("/.train-000004.tar.partial"), begun)
    assert (dst / ".conversion/train-000003.json").exists()
    with tarfile.open(dst / ".conversion/train-000000.tar") as archive:
        recorded = archive.getnames()[0].removesuffix(".jpg").split("_", 2)[2]
    change(changing, recorded)
    convert(begun)
    convert(replace(begun, dst=tmp_path / "fresh"))
    assert files_in(dst) == files_in(tmp_path / "fresh")
