"""Sources for conversions."""

import os
import shutil
from pathlib import Path

import pytest

from pipeline.conversion.convert import convert
from tests.helpers.conversions import convert_settings, write_source
from tests.helpers.files import files_in
from tests.helpers.imagenet import val_wnids


@pytest.fixture(autouse=True)
def _no_fsync(monkeypatch: pytest.MonkeyPatch) -> None:
    """What SIGKILL leaves behind does not depend on fsync, which would take most of the time here."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.fixture(scope="session")
def expected_images(imagenet_folder: Path) -> dict[str, list[tuple[str, str, bytes]]]:
    """What must be found in `imagenet_folder`: name, wnid and bytes of each image."""
    train = [(path.stem, path.parent.name, path.read_bytes()) for path in imagenet_folder.glob("train/*/*.JPEG")]
    val = zip(sorted((imagenet_folder / "val").iterdir()), val_wnids(imagenet_folder), strict=True)
    return {"train": sorted(train), "val": [(path.stem, wnid, path.read_bytes()) for path, wnid in val]}


@pytest.fixture
def src(imagenet_folder: Path, tmp_path: Path) -> Path:
    """A copy of `imagenet_folder` that a test may change."""
    return shutil.copytree(imagenet_folder, tmp_path / "imagenet")


@pytest.fixture
def few(imagenet_folder: Path, tmp_path: Path) -> Path:
    """Two training images of one class, neither odd, and nothing else."""
    folder = tmp_path / "few" / "train" / "n00000001"
    folder.mkdir(parents=True)
    for name in ("n00000001_5.JPEG", "n00000001_116.JPEG"):
        shutil.copy(imagenet_folder / "train" / "n00000001" / name, folder)
    return tmp_path / "few"


@pytest.fixture(scope="session")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Few and small images for conversions that are repeated many times."""
    return write_source(tmp_path_factory.mktemp("source"))


@pytest.fixture
def changing(source: Path, tmp_path: Path) -> Path:
    """A copy of `source` that a test may change."""
    return shutil.copytree(source, tmp_path / "source")


@pytest.fixture(scope="session")
def uninterrupted(source: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of an undisturbed conversion of `source`: 3 training shards, 1 validation shard, and two .beton."""
    dst = tmp_path_factory.mktemp("uninterrupted")
    convert(convert_settings(source, dst))
    files = files_in(dst)
    assert sorted(name for name in files if name.endswith(".tar")) == [
        "webdataset/train-000000.tar",
        "webdataset/train-000001.tar",
        "webdataset/train-000002.tar",
        "webdataset/val-000000.tar",
    ]
    return files
