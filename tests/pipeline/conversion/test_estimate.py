"""What a conversion says before it writes, next to what it then writes."""

import logging
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from pipeline.conversion.convert import convert
from pipeline.conversion.estimate import free_bytes, time_in_words
from pipeline.conversion.settings import ConvertSettings
from pipeline.sizes import size_in_words
from tests.helpers.conversions import killed_when, refused, result_of, run
from tests.helpers.disks import small_disk
from tests.helpers.files import files_in
from tests.helpers.foreign_forms import hugging_face
from tests.helpers.imagenet import COUNTS


def _sizes(dataset: Path) -> dict[str, int]:
    """The bytes of each format."""
    sizes = {"webdataset": 0, "ffcv": 0}
    for name, data in files_in(dataset).items():
        sizes[name.split("/")[0]] = sizes.get(name.split("/")[0], 0) + len(data)
    return {name: sizes[name] for name in ("webdataset", "ffcv")}


@pytest.mark.parametrize("jpeg", ["tile", "keep", "reencode"])
def test_estimate_is_near_what_is_written(
    imagenet_folder: Path, tmp_path: Path, jpeg: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--src", imagenet_folder, "--dst", tmp_path / "dst", "--jpeg", jpeg, "--shard-size", "200KB"]
    flags += ["--val-labels", imagenet_folder / "val_labels.txt"]
    assert run(*flags, "--dry-run") == 0
    said = result_of(capsys)
    assert not (tmp_path / "dst").exists(), "nothing is written"
    assert {split: said[split] for split in COUNTS} == COUNTS
    assert said["bytes"] == said["webdataset_bytes"] + said["ffcv_bytes"]
    assert abs(said["free_bytes"] / shutil.disk_usage(tmp_path).free - 1) < 0.5
    assert said["estimated_seconds"] >= 0
    assert run(*flags) == 0
    for name, size in _sizes(tmp_path / "dst").items():
        assert abs(said[f"{name}_bytes"] / size - 1) < 0.05, name


def test_pixels_are_estimated(imagenet_folder: Path, tmp_path: Path) -> None:
    flags: dict[str, Any] = {"src": (imagenet_folder,), "splits": ("train",), "dst": tmp_path / "dst"}
    flags |= {"jpeg": "raw", "format": ("ffcv",), "max_side": 100}
    said = convert(ConvertSettings(**flags, dry_run=True))
    convert(ConvertSettings(**flags))
    assert abs(said["ffcv_bytes"] / _sizes(tmp_path / "dst")["ffcv"] - 1) < 0.1


def test_containers_that_are_read_as_a_whole_are_sampled(imagenet_folder: Path, tmp_path: Path) -> None:
    (src,) = hugging_face(imagenet_folder, tmp_path / "parquet")
    settings = {"src": (src,), "dst": tmp_path / "dst", "shard_size": "200KB"}
    said = convert(ConvertSettings(**settings, dry_run=True))  # type: ignore[arg-type]
    convert(ConvertSettings(**settings))  # type: ignore[arg-type]
    for name, size in _sizes(tmp_path / "dst").items():
        assert abs(said[f"{name}_bytes"] / size - 1) < 0.1, name


def test_only_what_is_left_is_estimated(source: Path, tmp_path: Path) -> None:
    flags: dict[str, Any] = {"src": (source,), "dst": tmp_path / "dst", "shard_size": "18KB", "workers": 1}
    whole = convert(ConvertSettings(**flags, dry_run=True))
    part = convert(ConvertSettings(**flags, dry_run=True, part="1/2"))
    assert 0 < part["bytes"] < whole["bytes"]
    assert killed_when(lambda number, path: path.endswith("train-000002.tar.partial"), ConvertSettings(**flags))
    before = files_in(tmp_path / "dst")
    rest = convert(ConvertSettings(**flags, dry_run=True))
    assert files_in(tmp_path / "dst") == before
    assert 0 < rest["train"] < whole["train"]
    assert rest["val"] == whole["val"]
    assert rest["bytes"] < whole["bytes"]
    assert "with other arguments" in refused(ConvertSettings(**(flags | {"dry_run": True, "jpeg": "keep"})))


def test_a_conversion_says_it_first_and_warns_if_it_does_not_fit(
    source: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with small_disk(tmp_path / "disk", "1m") as disk, caplog.at_level(logging.INFO):
        message = refused(ConvertSettings(src=(source,), dst=disk / "dst"))
        assert "No space left on device" in message
        lines = "\n".join(caplog.messages)
        assert re.search(r"train: 12 images of \d+ KB to write\nval: 3 images of \d+ KB to write\n", lines)
        assert re.search(
            rf"about [\d.]+ MB \(webdataset \d+ KB, ffcv [\d.]+ MB\) of \S+ [KM]B free in {disk}/dst\n", lines
        )
        assert re.search(r"about \d+ s, at \d+ images/s\n", lines)
        assert re.search(
            rf"--dst {disk}/dst: about \S+ MB are needed, \S+ [KM]B are free; `--format webdataset`", lines
        )


def test_free_space_is_that_of_the_disk_that_will_have_it(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "3m") as disk:
        assert free_bytes(disk / "a" / "b") == shutil.disk_usage(disk).free < 4_000_000


def test_words() -> None:
    assert [size_in_words(size) for size in (900, 2_500_000, 140_200_000_000, 3 * 10**12)] == [
        "1 KB",
        "2.5 MB",
        "140.2 GB",
        "3.0 TB",
    ]
    assert [time_in_words(seconds) for seconds in (3.4, 1800, 9000)] == ["3 s", "30 min", "2.5 h"]
