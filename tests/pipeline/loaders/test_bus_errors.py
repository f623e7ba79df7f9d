"""A mapped file that is truncated while it is read."""

import contextlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.contract import LoaderSpec
from pipeline.errors import StorageError
from pipeline.order.crops import CropPolicy
from pipeline.storage.split import open_split
from tests.helpers.loaders import loaded

CROP = CropPolicy(training=True)
ROOT = Path(__file__).resolve().parents[3]

READING = """
import os, sys
import numpy as np
from pipeline.loaders._bus_errors import explain_bus_errors

other, path = sys.argv[1:3]
files = [np.memmap(name, np.uint8, "r") for name in (other, path)]
for name, mapped in zip((other, path), files):
    explain_bus_errors(mapped, name)
os.truncate(sys.argv[3], 4096)
print(int(files[1][5000]), int(files[0][5000]))
"""


def read_truncated(tmp_path: Path, truncated: str) -> subprocess.CompletedProcess[str]:
    for name in ("train.beton", "val.beton", "unknown"):
        (tmp_path / name).write_bytes(b"x" * 20_000)
    arguments = [str(tmp_path / name) for name in ("val.beton", "train.beton", truncated)]
    return subprocess.run(
        [sys.executable, "-c", READING, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=120
    )


@pytest.mark.parametrize("name", ["train.beton", "val.beton"])
def test_the_file_is_named(tmp_path: Path, name: str) -> None:
    done = read_truncated(tmp_path, name)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        f"error: {tmp_path / name}: can no longer be read: it was truncated, or its disk or file system failed; "
        "restore it, or convert again\n"
    )


def test_other_files_are_read_as_before(tmp_path: Path) -> None:
    done = read_truncated(tmp_path, "unknown")
    assert (done.returncode, done.stdout, done.stderr) == (0, "120 120\n", "")


LOADING = """
import os, sys
from pipeline import loaders
from pipeline.contract import LoaderSpec
from pipeline.order.crops import CropPolicy
from pipeline.storage.split import open_split

split = open_split(sys.argv[1], "train")
loader = loaders.create("ffcv", LoaderSpec(split=split, batch_size=4, crop=CropPolicy(training=True)))
batches = loader.epoch(0, 32)
next(batches)
os.truncate(split.beton_path, 8192)
print(len(list(loader.epoch(0, 32) if sys.argv[2:] else batches)))
"""


def test_a_beton_that_was_truncated_between_epochs_is_named_before_it_is_read(dataset_copy: Path) -> None:
    split = open_split(dataset_copy, "train")
    with contextlib.closing(loaded("ffcv").create(spec := LoaderSpec(split=split, batch_size=4, crop=CROP))) as loader:
        assert len(list(loader.epoch(0, 32))) == spec.plan.batches_per_epoch
        os.truncate(split.beton_path, 8192)
        with pytest.raises(StorageError, match=r"train.beton: 8192 bytes, and \d+ when it was opened; restore it, or"):
            loader.epoch(1, 32)
        split.beton_path.unlink()
        with pytest.raises(StorageError, match=r"train.beton: No such file or directory"):
            loader.epoch(1, 32)


def test_a_beton_that_is_truncated_under_the_ffcv_loader_is_named(dataset_copy: Path) -> None:
    loaded("ffcv")
    done = subprocess.run(
        [sys.executable, "-c", LOADING, str(dataset_copy)], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"error: {dataset_copy / 'ffcv' / 'train.beton'}: can no longer be read")
    assert done.stderr.count("\n") == 1
