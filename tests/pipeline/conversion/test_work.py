"""An unfinished conversion: killed at any moment, continued, refused, shared by several machines.

Conversions are killed for real: they run in forked processes that get SIGKILL.
"""

import contextlib
import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tarfile
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from images import files_in, jpeg_bytes, photograph
from PIL import Image

from pipeline.conversion.sources import Images, Request, Source
from pipeline.conversion.work import END_OF_SHARD, Part, plan_shards
from pipeline.dataset import Manifest, open_split
from pipeline.errors import InputError
from pipeline.formats.shards import stored_size
from tools import convert_imagenet
from tools.convert_imagenet import ConvertSettings, convert

WNIDS = ("n00000001", "n00000002")
TRAIN = "train/n00000001/n00000001_2.JPEG"
VAL = "val/n00000001/ILSVRC2012_val_00000003.JPEG"
BAD = b"404 not found"


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """What SIGKILL leaves behind does not depend on fsync, which takes most of the time here."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """12 training images of 2 classes and 3 validation images; a grey one, and a PNG in disguise."""
    root = tmp_path_factory.mktemp("source")
    for number in range(12):
        path = root / "train" / WNIDS[number % 2] / f"{WNIDS[number % 2]}_{number}.JPEG"
        path.parent.mkdir(parents=True, exist_ok=True)
        image = photograph(30 + number, 41, seed=number)
        path.write_bytes(jpeg_bytes(image, "L" if number == 3 else "RGB"))
        if number == 5:
            Image.fromarray(image).save(path, "PNG")
    for number in range(3):
        path = root / "val" / WNIDS[number % 2] / f"ILSVRC2012_val_{number + 1:08d}.JPEG"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(jpeg_bytes(photograph(37, 40, seed=90 + number)))
    return root


@pytest.fixture
def changing(source: Path, tmp_path: Path) -> Path:
    """A copy of the source that a test may change."""
    return shutil.copytree(source, tmp_path / "source")


def settings(source: Path, dst: Path, **flags: Any) -> ConvertSettings:
    return ConvertSettings(**{"src": (source,), "dst": dst, "shard_size": "18KB", "workers": 2, **flags})


@pytest.fixture(scope="module")
def expected(source: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What a conversion writes that nothing disturbs: 3 training shards, 1 validation shard, and a .beton of each."""
    dst = tmp_path_factory.mktemp("expected")
    convert(settings(source, dst))
    files = files_in(dst)
    assert sorted(name for name in files if name.endswith(".tar")) == [
        "webdataset/train-000000.tar",
        "webdataset/train-000001.tar",
        "webdataset/train-000002.tar",
        "webdataset/val-000000.tar",
    ]
    return files


def refused(conversion: ConvertSettings) -> str:
    """The one line that a conversion ends with."""
    with pytest.raises(InputError) as raised:
        convert(conversion)
    assert len(str(raised.value).splitlines()) == 1
    return str(raised.value)


def unfinished_files(dst: Path) -> dict[str, bytes]:
    """The files of an unfinished conversion; nothing but its work folder is there."""
    files = files_in(dst)
    assert all(name.startswith(".conversion/") for name in files)
    return files


# --- processes


def in_child(action: Callable[[], object]) -> int:
    """Start it in a forked process that ends with 0 where all went well. Returns its number."""
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            action()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    return pid


def wait_for(pid: int) -> int:
    """How a process ended: its exit code, or the signal that ended it as a negative number."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


When = Callable[[int, str], bool]
"""Chooses a change of a file by its number, counted from 1, and the path."""


def signalled(number: signal.Signals, when: When, action: Callable[[], object]) -> Callable[[], object]:
    """The action, with a signal to its own process in front of the change of a file that `when` chooses."""
    changes = 0

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal changes
        writes = event == "open" and isinstance(arguments[0], str) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        if writes or event in ("os.rename", "os.remove", "os.rmdir"):
            changes += 1
            if when(changes, str(arguments[0])):
                os.kill(os.getpid(), number)

    def run() -> None:
        sys.addaudithook(hook)  # for good, as the process is
        action()

    return run


def killed_when(when: When, conversion: ConvertSettings) -> bool:
    """Convert and be killed there. False where it was done before."""
    code = wait_for(in_child(signalled(signal.SIGKILL, when, lambda: convert(conversion))))
    assert code in (0, -signal.SIGKILL)
    return code != 0


def killed_at(step: int, conversion: ConvertSettings) -> bool:
    """Convert and be killed in front of the step-th change of a file. False where it was done before."""
    return killed_when(lambda number, path: number == step, conversion)


# --- killed


def test_any_number_of_workers_writes_the_same_bytes(source: Path, expected: dict[str, bytes], tmp_path: Path) -> None:
    for workers in (1, 5):
        convert(settings(source, tmp_path / str(workers), workers=workers))
        assert files_in(tmp_path / str(workers)) == expected


def test_conversion_killed_again_and_again_ends_with_the_same_bytes(
    source: Path, expected: dict[str, bytes], tmp_path: Path
) -> None:
    """Each attempt comes one step further before it is killed, and has another number of workers."""
    dst, workers, kills = tmp_path / "dst", itertools.cycle([1, 5, 2]), 0
    while killed_at(kills + 1, settings(source, dst, workers=next(workers))):
        kills += 1
        if not any((dst / name).exists() for name in (".conversion/finishing", "dataset.json")):
            unfinished_files(dst)
    assert kills > 10
    assert files_in(dst) == expected


def test_conversion_killed_at_random_moments_ends_with_the_same_bytes(
    source: Path, expected: dict[str, bytes], tmp_path: Path
) -> None:
    moments, dst = random.Random(0), tmp_path / "dst"
    for attempt in range(8):
        pid = in_child(lambda: convert(settings(source, dst, workers=1 + attempt % 3)))  # noqa: B023
        time.sleep(moments.uniform(0, 0.2))
        os.kill(pid, signal.SIGKILL)
        wait_for(pid)
        if (dst / "dataset.json").exists() and not (dst / ".conversion").exists():
            break  # done, even if it was killed before it could say so
    else:
        convert(settings(source, dst))
    assert files_in(dst) == expected


def written(source: Path, dst: Path, parts: int, **flags: Any) -> ConvertSettings:
    """Write all parts up to the moment when files are given their names. Returns what is to be started then."""
    if parts > 1:
        for number in range(1, parts + 1):
            convert(settings(source, dst, part=f"{number}/{parts}"))
        return settings(source, dst, merge=True)
    assert killed_when(lambda number, path: path.endswith("/finishing"), settings(source, dst, **flags))
    unfinished_files(dst)
    return settings(source, dst, **flags)


@pytest.mark.parametrize("parts", [1, 3])
def test_finishing_killed_at_every_step_ends_with_the_same_bytes(
    source: Path, expected: dict[str, bytes], tmp_path: Path, parts: int
) -> None:
    last = written(source, tmp_path / "written", parts)
    for step in itertools.count(1):
        dst = shutil.copytree(tmp_path / "written", tmp_path / f"dst{step}")
        if not killed_at(step, replace(last, dst=dst)):
            break
        if (dst / "dataset.json").exists() and not [*(dst / ".conversion").glob("part-*")] and parts == 1:
            assert "holds a converted dataset already" in refused(replace(last, dst=dst))
        else:
            result = convert(replace(last, dst=dst))
            assert (result["train"], result["val"], result["bad"], result["reencoded"]) == (12, 3, 0, 1)
        assert files_in(dst) == expected
        shutil.rmtree(dst)
    assert step > 15


def test_killed_conversion_that_leaves_out_bad_images_ends_with_the_same_bytes(changing: Path, tmp_path: Path) -> None:
    (changing / TRAIN).write_bytes(BAD)
    dst = tmp_path / "dst"
    step = 0
    while killed_at(step := step + 7, settings(changing, dst, on_bad="skip")):
        pass
    convert(settings(changing, tmp_path / "once", on_bad="skip"))
    assert files_in(dst) == files_in(tmp_path / "once")


@pytest.mark.parametrize(
    "name", ["train-000001.tar", "train-000001.idx", "train-000001.json", "train-001-of-001.pages"]
)
def test_what_is_lost_from_the_work_folder_is_written_again(
    source: Path, expected: dict[str, bytes], tmp_path: Path, name: str
) -> None:
    written(source, tmp_path, 1)
    (tmp_path / ".conversion" / name).unlink()
    convert(settings(source, tmp_path))
    assert files_in(tmp_path) == expected


@pytest.mark.parametrize("name", ["train-000001.json", "part-001-of-001.json"])
@pytest.mark.parametrize("content", ["", "[]", '{"samples": 1}', "{"])
def test_damaged_record_is_named(source: Path, tmp_path: Path, name: str, content: str) -> None:
    written(source, tmp_path, 1)
    path = tmp_path / ".conversion" / name
    path.write_text(content)
    assert refused(settings(source, tmp_path)).startswith(f"{path}: cannot be read (")


# --- started with other arguments


@pytest.fixture(scope="module")
def half(source: Path, tmp_path_factory: pytest.TempPathFactory) -> ConvertSettings:
    """A half-written conversion, and what it was started with."""
    dst = tmp_path_factory.mktemp("half")
    begun = settings(source, dst, jpeg="reencode", max_side=40, quality=80, subsampling="444")
    assert killed_at(25, begun)
    return begun


OTHER_FLAGS: dict[str, tuple[dict[str, Any], str]] = {
    "jpeg": (
        {"jpeg": "proportion", "format": ("ffcv",)},
        "--jpeg reencode then, proportion now, --format ffcv webdataset then, ffcv now",
    ),
    "max side": ({"max_side": 39}, "--max-side 40 then, 39 now"),
    "no max side": ({"max_side": None}, "--max-side 40 then, not given now"),
    "quality": ({"quality": 81}, "--quality 80 then, 81 now"),
    "subsampling": ({"subsampling": "420"}, "--subsampling 444 then, 420 now"),
    "seed": ({"seed": 3}, "--seed 0 then, 3 now"),
    "verify": ({"verify": False}, "--verify True then, False now"),
    "format": ({"format": ("webdataset",)}, "--format ffcv webdataset then, webdataset now"),
    "splits": ({"splits": ("train",)}, "--splits train val then, train now"),
    "shard size": ({"shard_size": "15KB"}, "--shard-size 18000 then, 15000 now"),
    "part": ({"part": "1/2"}, "--part K/1 then, K/2 now"),
    "two": ({"seed": 3, "quality": 81}, "--quality 80 then, 81 now, --seed 0 then, 3 now"),
}


@pytest.mark.parametrize(("flags", "told"), OTHER_FLAGS.values(), ids=OTHER_FLAGS.keys())
def test_other_flags_are_refused_and_nothing_changes(half: ConvertSettings, flags: dict[str, Any], told: str) -> None:
    before = unfinished_files(half.dst)
    assert f"holds an unfinished conversion with other arguments ({told}" in refused(replace(half, **flags))
    assert files_in(half.dst) == before


def test_other_paths_are_refused_and_nothing_changes(half: ConvertSettings, changing: Path) -> None:
    before = unfinished_files(half.dst)
    classes = changing / "classes.txt"
    classes.write_text("\n".join(WNIDS))
    assert f"(--src {half.src[0]} then, {changing} now)" in refused(replace(half, src=(changing,)))
    assert f"(--classes not given then, {classes} now)" in refused(replace(half, classes=classes))
    assert files_in(half.dst) == before


def test_other_validation_labels_are_refused(changing: Path, tmp_path: Path) -> None:
    for path in sorted(changing.glob("val/*/*")):
        path.rename(changing / "val" / path.name)
    for wnid in WNIDS:
        (changing / "val" / wnid).rmdir()
    labels = [tmp_path / "a.txt", tmp_path / "b.txt"]
    for path in labels:
        path.write_text("\n".join([WNIDS[0], WNIDS[1], WNIDS[0]]))
    assert killed_at(20, settings(changing, tmp_path / "dst", val_labels=labels[0]))
    told = refused(settings(changing, tmp_path / "dst", val_labels=labels[1]))
    assert f"(--val-labels {labels[0]} then, {labels[1]} now)" in told


def test_flags_that_bytes_do_not_depend_on_may_change(half: ConvertSettings, tmp_path: Path) -> None:
    dst = shutil.copytree(half.dst, tmp_path / "dst")
    convert(replace(half, dst=dst, workers=5, on_bad="skip", format=("ffcv", "webdataset"), shard_size="18000"))
    convert(replace(half, dst=tmp_path / "once"))
    assert files_in(dst) == files_in(tmp_path / "once")


def test_other_flags_are_refused_while_files_are_being_named(source: Path, tmp_path: Path) -> None:
    last = written(source, tmp_path, 1)
    assert killed_when(lambda number, path: path.endswith("/train-000001.tar"), last)
    assert (tmp_path / "webdataset/train-000000.tar").exists()
    before = files_in(tmp_path)
    assert "--seed 0 then, 1 now" in refused(replace(last, seed=1))
    assert files_in(tmp_path) == before


# --- two processes


def test_second_process_on_a_target_is_refused(source: Path, expected: dict[str, bytes], tmp_path: Path) -> None:
    pid = in_child(
        signalled(signal.SIGSTOP, lambda number, path: number == 20, lambda: convert(settings(source, tmp_path)))
    )
    os.waitpid(pid, os.WUNTRACED)
    try:
        before = unfinished_files(tmp_path)
        for conversion in (settings(source, tmp_path), settings(source, tmp_path, merge=True)):
            assert refused(conversion) == f"--dst {tmp_path}: another conversion is writing to it; wait for it"
        assert files_in(tmp_path) == before
    finally:
        os.kill(pid, signal.SIGCONT)
    assert wait_for(pid) == 0
    assert files_in(tmp_path) == expected


def test_parts_are_written_at_the_same_time(source: Path, expected: dict[str, bytes], tmp_path: Path) -> None:
    pid = in_child(
        signalled(
            signal.SIGSTOP, lambda number, path: number == 12, lambda: convert(settings(source, tmp_path, part="1/2"))
        )
    )
    os.waitpid(pid, os.WUNTRACED)
    convert(settings(source, tmp_path, part="2/2"))
    os.kill(pid, signal.SIGCONT)
    assert wait_for(pid) == 0
    convert(settings(source, tmp_path, merge=True))
    assert files_in(tmp_path) == expected


# --- parts


@pytest.mark.parametrize("order", [(1,), (2, 1), (3, 1, 2), (2, 5, 7, 1, 3, 6, 4)], ids=lambda order: str(len(order)))
def test_parts_in_any_order_make_what_one_machine_makes(
    source: Path, expected: dict[str, bytes], tmp_path: Path, order: tuple[int, ...]
) -> None:
    results = [
        convert(settings(source, tmp_path, part=f"{number}/{len(order)}", workers=1 + number % 3)) for number in order
    ]
    unfinished_files(tmp_path)
    merged = convert(settings(tmp_path / "nowhere", tmp_path, merge=True))
    assert files_in(tmp_path) == expected
    for key in ("train", "val", "bad", "reencoded", "bytes"):
        assert sum(result[key] for result in results) == merged[key]
    assert results[0]["part"] == f"{order[0]}/{len(order)}"


def test_killed_parts_continue(source: Path, expected: dict[str, bytes], tmp_path: Path) -> None:
    for part in ("2/2", "1/2"):
        step = 0
        while killed_at(step := step + 6, settings(source, tmp_path, part=part)):
            unfinished_files(tmp_path)
    convert(settings(source, tmp_path, merge=True))
    assert files_in(tmp_path) == expected


def test_parts_on_disks_of_their_own_are_merged_where_they_are_copied_together(
    source: Path, expected: dict[str, bytes], tmp_path: Path
) -> None:
    for number in (1, 2, 3):
        convert(settings(source, tmp_path / str(number), part=f"{number}/3"))
        shutil.copytree(tmp_path / str(number), tmp_path / "dst", dirs_exist_ok=True)
    convert(settings(source, tmp_path / "dst", merge=True))
    assert files_in(tmp_path / "dst") == expected


def test_merge_names_what_it_lacks(source: Path, expected: dict[str, bytes], tmp_path: Path) -> None:
    merge = settings(source, tmp_path, merge=True)
    assert refused(merge) == f"--dst {tmp_path}: no parts in it; write them with --part 1/N to N/N"
    convert(settings(source, tmp_path, part="3/3"))
    assert refused(merge) == f"--dst {tmp_path}: part 1/3 has not begun"
    convert(settings(source, tmp_path, part="1/3"))
    assert refused(merge) == f"--dst {tmp_path}: part 2/3 has not begun"
    assert killed_at(8, settings(source, tmp_path, part="2/3"))
    assert refused(merge) == f"--dst {tmp_path}: part 2/3 is not finished; start it again to continue"
    unfinished_files(tmp_path)
    convert(settings(source, tmp_path, part="2/3"))
    convert(merge)
    assert files_in(tmp_path) == expected
    assert refused(merge).startswith(f"--dst {tmp_path}: no parts in it")


def test_parts_of_other_sources_are_not_merged(source: Path, changing: Path, tmp_path: Path) -> None:
    shutil.copy(changing / VAL, changing / "val/n00000001/ILSVRC2012_val_00000009.JPEG")
    dst = tmp_path / "dst"
    convert(settings(source, dst, part="1/2"))
    convert(settings(changing, dst, part="2/2"))
    told = refused(settings(source, dst, merge=True))
    assert told.startswith(f"--dst {dst}: part 2/2 converts with other arguments, or another source, than part 1/2")
    unfinished_files(dst)


def test_part_with_other_flags_than_another_is_refused(source: Path, tmp_path: Path) -> None:
    convert(settings(source, tmp_path, part="1/2"))
    before = unfinished_files(tmp_path)
    assert "(--seed 0 then, 4 now)" in refused(settings(source, tmp_path, part="2/2", seed=4))
    assert "(--part K/2 then, K/3 now)" in refused(settings(source, tmp_path, part="2/3"))
    assert files_in(tmp_path) == before


def test_part_of_a_finished_dataset_is_refused(source: Path, tmp_path: Path) -> None:
    convert(settings(source, tmp_path))
    before = files_in(tmp_path)
    assert "holds a converted dataset already" in refused(settings(source, tmp_path, part="1/2"))
    assert files_in(tmp_path) == before


# --- bad images


def spoil(source: Path) -> list[Path]:
    """Make three images bad, in several shards of both splits."""
    bad = [*sorted(source.glob("train/*/*_[07].JPEG")), source / VAL]
    for path in bad:
        path.write_bytes(BAD)
    return bad


def test_all_bad_images_are_listed(changing: Path, tmp_path: Path) -> None:
    bad = spoil(changing)
    dst = tmp_path / "dst"
    listing = dst / ".conversion/bad-images.txt"
    for workers in (2, 1):
        told = refused(settings(changing, dst, workers=workers))
        assert told.startswith(f"3 of 15 images cannot be used, listed in {listing}; the first is {changing}/train/")
        assert sorted(listing.read_text().splitlines()) == [f"{path}: not an image" for path in sorted(bad)]
        unfinished_files(dst)


def test_single_bad_image_is_named(changing: Path, tmp_path: Path) -> None:
    (changing / VAL).write_bytes(BAD)
    told = refused(settings(changing, tmp_path / "dst"))
    assert told.startswith(f"{changing / VAL}: not an image; replace what is bad and start again, or leave it out with")
    unfinished_files(tmp_path / "dst")


def test_conversion_after_mended_images_gives_what_a_fresh_one_gives(
    changing: Path, expected: dict[str, bytes], source: Path, tmp_path: Path
) -> None:
    bad = spoil(changing)
    dst = tmp_path / "dst"
    refused(settings(changing, dst))
    for path in bad:
        shutil.copy(source / path.relative_to(changing), path)
    convert(settings(changing, dst))
    files = files_in(dst)
    assert files.pop("report.json") == expected["report.json"].replace(bytes(source), bytes(changing))
    assert files == {name: data for name, data in expected.items() if name != "report.json"}


@pytest.mark.parametrize("before", ["nothing", "failed", "killed"])
def test_bad_images_are_left_out_and_counted(changing: Path, tmp_path: Path, before: str) -> None:
    bad = spoil(changing)
    dst, skip = tmp_path / "dst", settings(changing, tmp_path / "dst", on_bad="skip")
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
        stored = [opened.shards[index] for index in range(count)]
        assert stored == [opened.beton[index] for index in range(count)]
        assert BAD not in [sample.jpeg for sample in stored]


def test_bad_images_in_archives_are_listed_or_left_out(changing: Path, tmp_path: Path) -> None:
    (changing / TRAIN).write_bytes(BAD)
    archive, dst = tmp_path / "train.tar", tmp_path / "dst"
    subprocess.run(["tar", "-cf", archive, "-C", changing / "train", *WNIDS], check=True)
    told = refused(settings(archive, dst, splits=("train",)))
    assert told.startswith(f"{archive}/{TRAIN.removeprefix('train/')}: not an image")
    result = convert(settings(archive, tmp_path / "skipped", splits=("train",), on_bad="skip"))
    assert (result["train"], result["bad"]) == (11, 1)


def test_bad_images_that_were_left_out_are_bad_again_where_they_are_to_fail(changing: Path, tmp_path: Path) -> None:
    bad = spoil(changing)
    dst = tmp_path / "dst"
    written(changing, dst, 1, on_bad="skip")
    refused(settings(changing, dst))
    listed = (dst / ".conversion/bad-images.txt").read_text().splitlines()
    assert sorted(listed) == [f"{path}: not an image" for path in sorted(bad)]


def test_shard_of_nothing_but_bad_images_is_refused(changing: Path, tmp_path: Path) -> None:
    for path in changing.glob("val/*/*"):
        path.write_bytes(BAD)
    told = refused(settings(changing, tmp_path / "dst", on_bad="skip"))
    assert str(changing / "val") in told
    assert "every image of its shard is bad (3)" in told
    unfinished_files(tmp_path / "dst")


def test_each_part_lists_its_own_bad_images(changing: Path, tmp_path: Path) -> None:
    bad = spoil(changing)
    dst, listed = tmp_path / "dst", []
    for number in (1, 2):
        told = refused(settings(changing, dst, part=f"{number}/2"))
        listed += (dst / f".conversion/00{number}-of-002-bad-images.txt").read_text().splitlines()
        assert any(str(path) in told for path in bad)
    assert sorted(listed) == [f"{path}: not an image" for path in sorted(bad)]
    for number in (1, 2):
        convert(settings(changing, dst, part=f"{number}/2", on_bad="skip"))
    assert convert(settings(changing, dst, merge=True))["bad"] == 3


# --- the disk


@contextlib.contextmanager
def small_disk(path: Path, size: str) -> Iterator[None]:
    """A file system in memory; skips the test where this must not be mounted."""
    path.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", path], capture_output=True, text=True)
    if made.returncode:
        pytest.skip(f"no file system can be mounted: {made.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", path], check=True)


def remount(path: Path, option: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{option}", path], check=True)


@pytest.mark.parametrize("parts", [1, 2])
def test_full_disk_is_one_error_and_the_conversion_continues_when_there_is_room(
    source: Path, expected: dict[str, bytes], tmp_path: Path, parts: int
) -> None:
    disk = tmp_path / "disk"
    dst, fulls = disk / "dst", 0
    jobs = [settings(source, dst, part=f"{number}/{parts}") for number in range(1, parts + 1)] if parts > 1 else []
    jobs.append(settings(source, dst, merge=parts > 1))
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
                no_space = f"--dst {dst}: cannot be written (No space left on device); mend that and start again to"
                assert str(error).startswith(no_space)  # noqa: PT017
                assert not (dst / "dataset.json").exists()
                if not (dst / ".conversion/finishing").exists():
                    unfinished_files(dst)
        assert fulls > 10
        assert files_in(dst) == expected


def test_disk_that_is_not_writable_is_one_error(source: Path, expected: dict[str, bytes], tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    with small_disk(disk, "30m"):
        remount(disk, "ro")
        told = refused(settings(source, disk / "dst"))
        assert told.startswith(f"--dst {disk}/dst: cannot be written (Read-only file system); mend that and start")
        remount(disk, "rw")
        assert killed_at(20, settings(source, disk / "dst"))
        remount(disk, "ro")
        assert refused(settings(source, disk / "dst")) == told
        remount(disk, "rw")
        convert(settings(source, disk / "dst"))
        assert files_in(disk / "dst") == expected


# --- the source changes


CHANGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "grows": (
        lambda image: image.write_bytes(image.read_bytes() + b"more"),
        "has changed while it was being converted",
    ),
    "shrinks": (lambda image: os.truncate(image, 100), "has changed while it was being converted"),
    "vanishes": (lambda image: image.unlink(), "cannot be read (No such file or directory)"),
    "becomes a folder": (lambda image: (image.unlink(), image.mkdir()), "cannot be read (Is a directory)"),
}


def image_is_good(path: Path) -> bool:
    """Whether an image is there after what CHANGES did to it."""
    return path.is_file() and path.stat().st_size > 100


def change_after_listing(monkeypatch: pytest.MonkeyPatch, change: Callable[[], object]) -> None:
    """Let it happen between the listing of the source and the first image."""
    listing = convert_imagenet.open_source

    def listed(request: Request) -> Source:
        found = listing(request)
        change()
        return found

    monkeypatch.setattr(convert_imagenet, "open_source", listed)


@pytest.mark.parametrize("image", [TRAIN, VAL])
@pytest.mark.parametrize(("change", "told"), CHANGES.values(), ids=CHANGES.keys())
def test_image_that_changes_underneath_is_named(
    changing: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    image: str,
    change: Callable[[Path], object],
    told: str,
) -> None:
    dst = tmp_path / "dst"
    with monkeypatch.context() as patch:
        change_after_listing(patch, lambda: change(changing / image))
        assert refused(settings(changing, dst)).startswith(f"{changing / image}: {told}")
    unfinished_files(dst)
    result = convert(settings(changing, dst, on_bad="skip"))
    assert result["train"] + result["val"] == 14 + image_is_good(changing / image)
    convert(settings(changing, tmp_path / "fresh", on_bad="skip"))
    assert files_in(dst) == files_in(tmp_path / "fresh")


def test_archive_that_is_truncated_underneath_is_named(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive, dst = tmp_path / "train.tar", tmp_path / "dst"
    subprocess.run(["tar", "-cf", archive, "-C", source / "train", *WNIDS], check=True)
    whole = archive.read_bytes()
    with monkeypatch.context() as patch:
        change_after_listing(patch, lambda: os.truncate(archive, 12_000))
        told = refused(settings(archive, dst, splits=("train",)))
        assert told.startswith(f"{archive}/n0000000")
        assert "has changed while it was being converted" in told
    unfinished_files(dst)
    archive.write_bytes(whole)
    assert convert(settings(archive, dst, splits=("train",)))["train"] == 12


def add_image(source: Path, recorded: str) -> None:
    shutil.copy(source / TRAIN, source / "train/n00000002/n00000002_0.JPEG")


def enlarge_recorded_image(source: Path, recorded: str) -> None:
    (path,) = source.glob(f"train/*/{recorded}.JPEG")
    path.write_bytes(jpeg_bytes(photograph(70, 80, seed=5)))


def replace_recorded_image(source: Path, recorded: str) -> None:
    """By another of the same size."""
    (path,) = source.glob(f"train/*/{recorded}.JPEG")
    data = path.read_bytes()
    other = jpeg_bytes(photograph(20, 20, seed=7), quality=50)
    assert len(other) < len(data)
    path.write_bytes(other[:2] + comment(len(data) - len(other)) + other[2:])


def comment(size: int) -> bytes:
    """A JPEG's comment segment of so many bytes."""
    return b"\xff\xfe" + (size - 2).to_bytes(2, "big") + bytes(size - 4)


def outgrow_the_pages(source: Path, recorded: str) -> None:
    """By an image that is not on record."""
    (path,) = source.glob("train/*/n00000001_10.JPEG")
    assert path.stem != recorded
    noise = np.random.default_rng(0).integers(0, 256, (1300, 1300, 3)).astype(np.uint8)
    path.write_bytes(jpeg_bytes(noise, quality=98))
    assert path.stat().st_size > 1 << 21


@pytest.mark.parametrize("jpeg", ["keep", "reencode"])
@pytest.mark.parametrize("change", [add_image, enlarge_recorded_image, replace_recorded_image, outgrow_the_pages])
def test_source_that_changed_between_two_attempts_gives_what_a_fresh_conversion_gives(
    changing: Path, tmp_path: Path, change: Callable[[Path, str], None], jpeg: str
) -> None:
    dst = tmp_path / "dst"
    begun = settings(changing, dst, jpeg=jpeg, shard_size="6KB", splits=("train",))
    assert killed_when(lambda number, path: path.endswith("/.train-000004.tar.partial"), begun)
    assert (dst / ".conversion/train-000003.json").exists()
    with tarfile.open(dst / ".conversion/train-000000.tar") as archive:
        recorded = archive.getnames()[0].removesuffix(".jpg").split("_", 2)[2]
    change(changing, recorded)
    convert(begun)
    convert(replace(begun, dst=tmp_path / "fresh"))
    assert files_in(dst) == files_in(tmp_path / "fresh")


# --- shards and shares


@given(
    sizes=st.lists(st.integers(1, 300_000), min_size=1, max_size=60),
    shard_bytes=st.integers(1, 1_000_000),
    growth=st.sampled_from([1.0, 0.37, 2.5]),
)
def test_shards_hold_all_images_in_order_and_as_many_as_fit(sizes: list[int], shard_bytes: int, growth: float) -> None:
    column = np.array(sizes, np.int64)
    images = Images([str(at) for at in sizes], [], *[column] * 5)  # type: ignore[arg-type]
    shards = plan_shards("train", images, shard_bytes, growth)
    assert [shard.number for shard in shards] == list(range(len(shards)))
    assert [shard.start for shard in shards] == [0, *(shard.stop for shard in shards[:-1])]
    assert shards[-1].stop == len(sizes)

    def total(start: int, stop: int) -> int:
        return END_OF_SHARD + sum(stored_size(int(size * growth)) for size in sizes[start:stop])

    for shard in shards:
        assert shard.start < shard.stop
        assert shard.stop - shard.start == 1 or total(shard.start, shard.stop) <= shard_bytes
    for shard in shards[:-1]:
        assert total(shard.start, shard.stop + 1) > shard_bytes


@given(total=st.integers(0, 700), count=st.integers(1, 64))
def test_shares_are_disjoint_complete_and_even(total: int, count: int) -> None:
    shares = [Part(number, count).share(total) for number in range(1, count + 1)]
    assert [at for share in shares for at in share] == list(range(total))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
