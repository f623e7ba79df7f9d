"""Files on the disk, and a disk without room."""

import contextlib
import resource
from collections.abc import Iterator
from pathlib import Path


def files_in(folder: Path) -> dict[str, bytes]:
    """Every file under a folder: relative path and content."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@contextlib.contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """Inside the block, the kernel lets no file of this process grow above `size` bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
