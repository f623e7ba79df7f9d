"""Files that are complete or absent."""

import contextlib
import os
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest
from images import files_in

from pipeline.errors import InputError
from pipeline.formats.files import complete_or_absent, move, read_extent


@contextlib.contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """For the time of the block, the kernel lets no file of this process grow above `size` bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_file_has_its_name_only_when_it_is_complete(tmp_path: Path) -> None:
    with complete_or_absent(tmp_path / "new" / "some.txt") as file:
        file.write("text")
        assert not (tmp_path / "new" / "some.txt").exists()
    assert files_in(tmp_path) == {"new/some.txt": b"text"}


def test_a_file_that_was_there_is_replaced_at_once(tmp_path: Path) -> None:
    path = tmp_path / "some.txt"
    path.write_text("old")
    with complete_or_absent(path, "wb") as file:
        file.write(b"new")
        file.flush()
        assert path.read_text() == "old"
    assert files_in(tmp_path) == {"some.txt": b"new"}


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_error_leaves_what_was_there(tmp_path: Path, error: type[BaseException]) -> None:
    (tmp_path / "some.txt").write_text("old")
    with pytest.raises(error), complete_or_absent(tmp_path / "some.txt") as file:  # noqa: PT012
        file.write("new")
        raise error
    assert files_in(tmp_path) == {"some.txt": b"old"}


@pytest.mark.parametrize("size", [10, 100_000])
def test_a_disk_without_room_leaves_what_was_there(tmp_path: Path, size: int) -> None:
    """Noticed when the block ends and the last bytes are written, or inside it."""
    (tmp_path / "some.txt").write_text("old")
    with (
        files_of_at_most(5),
        pytest.raises(OSError, match="File too large"),
        complete_or_absent(tmp_path / "some.txt") as file,
    ):
        file.write("x" * size)
    assert files_in(tmp_path) == {"some.txt": b"old"}


def test_texts_may_hold_file_names_of_any_bytes(tmp_path: Path) -> None:
    name = b"caf\xe9 \xff \xe5\x86\x99.JPEG"
    with complete_or_absent(tmp_path / "some.txt") as file:
        file.write(os.fsdecode(name))
    assert (tmp_path / "some.txt").read_bytes() == name


def test_a_moved_file_replaces_another(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("new")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "b").write_text("old")
    move(tmp_path / "a", tmp_path / "folder" / "b")
    assert files_in(tmp_path) == {"folder/b": b"new"}


def test_an_extent_is_read_wholly_or_refused(tmp_path: Path) -> None:
    path = tmp_path / "some.bin"
    path.write_bytes(bytes(range(100)))
    assert read_extent(path, 0, 100, "it") == bytes(range(100))
    assert read_extent(path, 97, 3, "it") == bytes([97, 98, 99])
    assert read_extent(path, 100, 0, "it") == b""
    for start, size in ((0, 101), (98, 3), (100, 1), (1 << 40, 1)):
        with pytest.raises(InputError, match=r"^it: truncated; convert again$"):
            read_extent(path, start, size, "it")
    with pytest.raises(InputError, match=r"^it: No such file or directory$"):
        read_extent(tmp_path / "none", 0, 1, "it")
