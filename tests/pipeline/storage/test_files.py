"""Files that are complete or absent."""

import os
from pathlib import Path

import pytest

from pipeline.errors import InputError
from pipeline.storage.files import complete_or_absent, flush_names, move, read_extent, regular
from tests.helpers.files import files_in, files_of_at_most


def test_a_file_appears_only_once_it_is_complete(tmp_path: Path) -> None:
    with complete_or_absent(tmp_path / "new" / "some.txt") as file:
        file.write("text")
        assert not (tmp_path / "new" / "some.txt").exists()
    assert files_in(tmp_path) == {"new/some.txt": b"text"}


def test_an_existing_file_is_replaced_at_once(tmp_path: Path) -> None:
    path = tmp_path / "some.txt"
    path.write_text("old")
    with complete_or_absent(path, "wb") as file:
        file.write(b"new")
        file.flush()
        assert path.read_text() == "old"
    assert files_in(tmp_path) == {"some.txt": b"new"}


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_error_leaves_the_existing_file(tmp_path: Path, error: type[BaseException]) -> None:
    (tmp_path / "some.txt").write_text("old")
    with pytest.raises(error), complete_or_absent(tmp_path / "some.txt") as file:  # noqa: PT012
        file.write("new")
        raise error
    assert files_in(tmp_path) == {"some.txt": b"old"}


@pytest.mark.parametrize("size", [10, 100_000])
def test_a_full_disk_leaves_the_existing_file(tmp_path: Path, size: int) -> None:
    """It is noticed when the last bytes are written at the end of the block, or inside it."""
    (tmp_path / "some.txt").write_text("old")
    with (
        files_of_at_most(5),
        pytest.raises(OSError, match="File too large"),
        complete_or_absent(tmp_path / "some.txt") as file,
    ):
        file.write("x" * size)
    assert files_in(tmp_path) == {"some.txt": b"old"}


def test_texts_may_contain_file_names_of_any_bytes(tmp_path: Path) -> None:
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


def test_a_file_system_that_cannot_flush_folders_costs_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    """/proc is one."""
    with pytest.raises(OSError, match="Invalid argument"):
        os.fsync(os.open("/proc/self", os.O_RDONLY))
    for _ in range(2):
        flush_names(Path("/proc/self"))
    assert caplog.messages == [
        "/proc/self: its file system cannot flush folders (Invalid argument): a power failure may undo renames"
    ]


def test_an_extent_is_read_completely_or_refused(tmp_path: Path) -> None:
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


def test_links_and_pipes_that_others_have_put_there_are_not_followed(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("kept")
    (tmp_path / ".some.txt.partial").symlink_to(secret)
    (tmp_path / "some.txt").symlink_to(secret)
    with complete_or_absent(tmp_path / "some.txt") as file:
        file.write("text")
    assert not (tmp_path / "some.txt").is_symlink()
    assert (tmp_path / "some.txt").read_text() == "text"
    (tmp_path / "link").symlink_to(secret)
    with pytest.raises(OSError, match="is a link, which is not followed"):
        open(tmp_path / "link", "a", opener=regular)  # noqa: SIM115 (it is not opened)
    assert secret.read_text() == "kept"


def test_written_files_have_the_modes_that_the_umask_leaves(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        with complete_or_absent(tmp_path / "folder" / "some.txt") as file:
            file.write("text")
        open(tmp_path / "log", "a", opener=regular).close()
    finally:
        os.umask(before)
    assert [(tmp_path / name).stat().st_mode & 0o777 for name in ("folder", "folder/some.txt", "log")] == [
        0o750,
        0o640,
        0o640,
    ]
