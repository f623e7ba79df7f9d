"""What is read of files on this machine; remote ones are in remote/test_paths.py."""

import os
from pathlib import Path

import pytest

from pipeline.storage.reading import any_remote, each, open_to_read, read_at, read_bounded, status_of, will_read


def test_only_files_are_read(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("kept")
    (tmp_path / "link").symlink_to(tmp_path / "file")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="is no regular file"):
        read_bounded(tmp_path / "pipe", 10)
    with pytest.raises(OSError, match="more than 3 bytes"):
        read_bounded(tmp_path / "file", 3)
    assert read_bounded(tmp_path / "link", 10) == b"kept"  # reading follows links: datasets may have some


def test_parts_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"0123456789")
    with open_to_read(tmp_path / "file") as file:
        assert status_of(file).st_size == 10
        will_read(file, 5, 2)
        assert read_at(file, 4, 8) == b"89"
        assert read_at(file, 2, 3) == b"34"
    assert not any_remote([tmp_path])
    assert [*each(lambda path: path.name, [tmp_path / "b", tmp_path / "a"])] == ["b", "a"]
