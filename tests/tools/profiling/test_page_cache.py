"""Dropping files from the page cache."""

import mmap
import os
from pathlib import Path

import pytest

from pipeline.storage.split import open_split
from tools.profiling import page_cache


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "data.bin"
    path.write_bytes(os.urandom(1 << 20))
    if "tmpfs" in file_system(path):
        pytest.skip("files of a file system in memory are always resident")
    return path


def file_system(path: Path) -> str:
    mounts = [line.split()[1:3] for line in Path("/proc/mounts").read_text().splitlines()]
    return max((mount for mount in mounts if path.is_relative_to(mount[0])), key=lambda mount: len(mount[0]))[1]


def test_a_dropped_file_is_out_of_the_cache_until_it_is_read(file: Path) -> None:
    assert page_cache.resident_share([file]) == 1
    page_cache.drop([file])
    assert page_cache.resident_share([file]) == 0
    file.read_bytes()
    assert page_cache.resident_share([file]) == 1


def test_files_that_this_process_has_mapped_are_dropped_too(file: Path) -> None:
    with open(file, "rb") as opened, mmap.mmap(opened.fileno(), 0, prot=mmap.PROT_READ) as mapped:
        before = mapped[:]
        page_cache.drop([file])
        assert page_cache.resident_share([file]) == 0
        assert mapped[:] == before


def test_the_files_of_a_split_are_those_that_loaders_read(dataset: Path, imagenet_folder: Path) -> None:
    names = {path.name for path in page_cache.files_of(open_split(dataset, "train"))}
    assert {"train.beton", "train-000000.tar"} <= names
    assert not any(name.startswith("val") for name in names)
    assert len(page_cache.files_of(open_split(imagenet_folder, "train"))) == 47
