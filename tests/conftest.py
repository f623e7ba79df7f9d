"""Small real data for all tests: an ImageNet folder, and the datasets that the converter makes of it.

They live for the whole session; a test that changes files works on a copy.
"""

import fcntl
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from images import varied_jpeg

from tools.convert_imagenet import ConvertSettings, convert

# Derandomised: a test run gives the same result as the last one of the same code.
hypothesis.settings.register_profile("sluice", deadline=None, max_examples=40, derandomize=True)
hypothesis.settings.load_profile("sluice")

TRAIN_COUNTS = {"n00000001": 12, "n00000002": 10, "n00000003": 14, "n00000004": 11}
VAL_COUNT = 19


@pytest.fixture(autouse=True)
def _turn(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Where pytest runs tests side by side, those marked `alone` have the machine to themselves: each test holds a
    lock, which others share or not. Whoever waits for the lock is next in turn."""
    if not hasattr(request.config, "workerinput"):
        yield
        return
    shared = tmp_path_factory.getbasetemp().parent
    with open(shared / "turn.lock", "w") as turn, open(shared / "machine.lock", "w") as machine:
        fcntl.flock(turn, fcntl.LOCK_EX)
        fcntl.flock(machine, fcntl.LOCK_EX if request.node.get_closest_marker("alone") else fcntl.LOCK_SH)
        fcntl.flock(turn, fcntl.LOCK_UN)
        yield
        fcntl.flock(machine, fcntl.LOCK_UN)  # closing it would not do: forked processes may have it too


@pytest.fixture(scope="session")
def imagenet_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ImageNet as people have it: train/ in class folders, val/ flat, val_labels.txt with one wnid a line.

    4 classes of 10 to 14 images, 47 in all; 19 validation images. Grey, 4:4:4, 4:2:2 and 4:2:0, a few
    progressive, with an EXIF orientation or with restart markers.
    """
    root = tmp_path_factory.mktemp("imagenet")
    for wnid, count in TRAIN_COUNTS.items():
        folder = root / "train" / wnid
        folder.mkdir(parents=True)
        for number in range(count):
            (folder / f"{wnid}_{number * 37 + 5}.JPEG").write_bytes(varied_jpeg(number, seed=int(wnid[1:])))
    (root / "val").mkdir()
    for number in range(1, VAL_COUNT + 1):
        (root / "val" / f"ILSVRC2012_val_{number:08d}.JPEG").write_bytes(varied_jpeg(number, seed=0))
    wnids = list(TRAIN_COUNTS)
    labels = [wnids[number * number % 7 % len(wnids)] for number in range(1, VAL_COUNT + 1)]
    (root / "val_labels.txt").write_text("\n".join(labels) + "\n")
    return root


@pytest.fixture(scope="session")
def dataset(imagenet_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`imagenet_folder` converted to both formats, in several shards, its images byte for byte as they are."""
    return converted(imagenet_folder, tmp_path_factory.mktemp("converted") / "shards", jpeg="keep")


@pytest.fixture(scope="session")
def tiled_dataset(imagenet_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same as the converter writes it when nothing is said of its images: in tiles, the progressive ones anew."""
    return converted(imagenet_folder, tmp_path_factory.mktemp("tiled") / "shards")


def converted(src: Path, dst: Path, **flags: Any) -> Path:
    labels = src / "val_labels.txt"
    convert(ConvertSettings(src=(src,), dst=dst, val_labels=labels, shard_size="100KB", workers=2, **flags))
    return dst


@pytest.fixture
def dataset_copy(dataset: Path, tmp_path: Path) -> Path:
    """A copy of `dataset` that a test may damage."""
    return shutil.copytree(dataset, tmp_path / "copy")
