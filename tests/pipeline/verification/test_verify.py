"""The verification command: it accepts what the converter writes, and refuses wrong flags."""

import logging
import subprocess
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from pipeline.conversion.convert import convert
from pipeline.conversion.settings import ConvertSettings
from pipeline.storage.manifest import MANIFEST
from tests.helpers.damage import COUNTS, change_split, flip, shard, write_dataset
from tests.helpers.files import files_in
from tests.helpers.imagenet import converted
from tests.helpers.images import jpeg_bytes, photograph
from tests.helpers.verification import Verify

SCRIPT = Path(__file__).resolve().parents[3] / "tools" / "verify_dataset.py"


def test_sound_dataset_is_accepted(dataset: Path, tmp_path: Path, verified: Verify) -> None:
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


def test_classes_in_a_stated_order_are_accepted(imagenet_folder: Path, tmp_path: Path, verified: Verify) -> None:
    wnids = sorted(folder.name for folder in (imagenet_folder / "train").iterdir())
    stated = tmp_path / "classes.txt"
    stated.write_text("\n".join(reversed(wnids)))
    done = verified(converted(imagenet_folder, tmp_path / "shards", classes=stated), "--sample", 0)
    assert (done.code, done.bad) == (0, [])


def test_sample_and_full_set_how_many_images_are_decoded(dataset: Path, verified: Verify) -> None:
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
    imagenet_folder: Path, tmp_path: Path, flags: dict[str, Any], verified: Verify
) -> None:
    labels = imagenet_folder / "val_labels.txt"
    dst = tmp_path / "shards"
    convert(ConvertSettings(src=(imagenet_folder,), dst=dst, val_labels=labels, shard_size="100KB", **flags))
    done = verified(dst, "--full", "--images", 10)
    assert (done.code, done.bad) == (0, [])
    assert done.result is not None
    assert done.result["samples"] == done.result["decoded"] == sum(COUNTS[name] for name in flags.get("splits", COUNTS))
    assert done.result["contact_sheet"] == str(tmp_path / "shards-contact-sheet.png")
    for path in sorted(dst.rglob("*.*")):
        if path.suffix in (".tar", ".beton"):
            flip(path, path.stat().st_size // 3)
            done = verified(dst, "--sample", 0)
            assert done.code == 2
            assert all(line.startswith(f"bad: {path}: ") for line in done.bad)
            flip(path, path.stat().st_size // 3)


def test_files_of_others_are_noted(dataset_copy: Path, verified: Verify, caplog: pytest.LogCaptureFixture) -> None:
    (dataset_copy / "notes.txt").write_text("mine")
    (dataset_copy / "webdataset" / "README").write_text("mine")
    with caplog.at_level(logging.INFO):
        assert verified(dataset_copy).code == 0
    assert f"note: {dataset_copy}: not part of the dataset: 'notes.txt', 'webdataset/README'" in caplog.messages


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--workers", 0], "--workers 0: must be at least 1"),
        (["--sample", -1], "--sample -1: must be at least 0"),
        (["--images", 5000], "--images 5000: must be from 0 to 4096"),
        (["--contact-sheet", "/nowhere/sheet.png"], "--contact-sheet /nowhere/sheet.png: its folder is missing"),
        (["--contact-sheet", "/"], "--contact-sheet /: is a directory"),
    ],
)
def test_wrong_flags_are_refused(dataset: Path, flags: list[object], message: str, verified: Verify) -> None:
    done = verified(dataset, *flags)
    assert done.code == 2
    assert message in done.error


def test_a_folder_that_is_not_a_dataset_is_refused(tmp_path: Path, verified: Verify) -> None:
    assert verified(tmp_path / "none").error == f"error: {tmp_path / 'none'}: no such directory"
    assert "dataset.json: missing; to finish an interrupted conversion, start it again" in verified(tmp_path).error
    (tmp_path / MANIFEST).write_text("[" * 100_000)
    assert f"{tmp_path / MANIFEST}: cannot be read" in verified(tmp_path).error


@pytest.mark.parametrize("count", [1 << 62, 10**300])
def test_implausible_counts_are_refused(dataset_copy: Path, count: int, verified: Verify) -> None:
    change_split(dataset_copy, samples=count, beton=None, shards=[])
    assert "more than 268435456 samples" in verified(dataset_copy).error


def test_an_implausible_size_is_refused(dataset_copy: Path, verified: Verify) -> None:
    change_split(dataset_copy, bytes=1 << 62)
    assert "counts too large for any dataset" in verified(dataset_copy).error


def test_script_names_the_damage_and_ends_with_code_2(dataset_copy: Path) -> None:
    flip(shard(dataset_copy, 0), 5000)
    command = [sys.executable, str(SCRIPT), str(dataset_copy), "--images", "0"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (2, "")
    *bad, error = done.stderr.splitlines()
    assert bad
    assert all(line.startswith(f"bad: {shard(dataset_copy, 0)}: ") for line in bad)
    assert error.startswith("error: ")


def test_memory_does_not_grow_with_a_shard(tmp_path: Path, verified: Verify) -> None:
    size = write_dataset(tmp_path, [jpeg_bytes(photograph(64, 64, 0)) + bytes(200_000)] * 150)
    tracemalloc.start()
    assert verified(tmp_path, "--sample", 0, "--workers", 1).code == 0
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8e6 < size
