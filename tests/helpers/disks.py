"""Small disks, full ones, and those that lack what most have: real file systems, mounted for a test."""

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest


@contextlib.contextmanager
def small_disk(path: Path, size: str) -> Iterator[Path]:
    """A disk of this size (such as "2m") mounted at `path`. Skips the test where mounting is not allowed."""
    path.mkdir(exist_ok=True)
    words = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(path)]
    if subprocess.run(words, capture_output=True, check=False).returncode:
        pytest.skip("needs the right to mount a file system")
    try:
        yield path
    finally:
        subprocess.run(["umount", "--lazy", str(path)], check=True)


def fill(disk: Path, left: int) -> Path:
    """Fill a disk but for `left` bytes. Returns the file that fills it."""
    status = os.statvfs(disk)
    path = disk / "filler"
    path.write_bytes(bytes(status.f_bavail * status.f_frsize - left))
    return path
