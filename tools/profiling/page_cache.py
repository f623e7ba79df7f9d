"""Drops files from the page cache, and measures how much of them it holds (Linux)."""

import ctypes
import mmap
import os
import random
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.storage.split import Split

_libc = ctypes.CDLL(None, use_errno=True)
_MOST_FILES = 500  # examined: ImageNet as a folder has more than a million


def files_of(split: Split) -> list[Path]:
    """The files that loaders read of a local split."""
    if split.info is None:
        return [Path(split.samples.name(index)) for index in range(split.num_samples)]
    beton = [split.beton_path] if split.info.beton else []
    return [*(split.path / shard.name for shard in split.info.shards), *beton]


def drop(paths: Sequence[Path]) -> None:
    """Drop files from the page cache, as far as the kernel releases them (see `resident_share`).

    Pages that this process has mapped would stay, so they are unmapped first; the next access reads them again.
    """
    _unmap(paths)
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)  # pages that are not on the disk yet are not dropped
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)


def _unmap(paths: Iterable[Path]) -> None:
    """MADV_DONTNEED on every mapping of the files in this process. Only read-only mappings, so that nothing is lost."""
    names = {str(path.resolve()) for path in paths}
    for line in Path("/proc/self/maps").read_text().splitlines():
        addresses, rights, *_, name = line.split(maxsplit=5)
        if name in names and "w" not in rights:
            start, end = (int(address, 16) for address in addresses.split("-"))
            _libc.madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), mmap.MADV_DONTNEED)


def resident_share(paths: Sequence[Path]) -> float:
    """The share of the files' pages in the page cache, 0 to 1; of many files a random sample is examined.

    Source: mincore(2). Linux reports pages of files that the process neither owns nor may write as resident.
    """
    chosen = random.Random(0).sample(list(paths), min(len(paths), _MOST_FILES))
    pages = np.concatenate([_resident_pages(path) for path in chosen])
    return float(pages.mean())


def _resident_pages(path: Path) -> NDArray[np.bool_]:
    """bool [pages of the file]."""
    size = path.stat().st_size
    if size == 0:
        return np.zeros(0, np.bool_)
    with open(path, "rb") as file, mmap.mmap(file.fileno(), size, prot=mmap.PROT_READ) as mapped:
        start = np.frombuffer(mapped, np.uint8)
        pages = np.zeros(-(-size // mmap.PAGESIZE), np.uint8)
        failed = _libc.mincore(
            ctypes.c_void_p(start.ctypes.data), ctypes.c_size_t(size), ctypes.c_void_p(pages.ctypes.data)
        )
        del start
        if failed:
            raise OSError(ctypes.get_errno(), "mincore", str(path))
    return (pages & 1).astype(np.bool_)
