"""The flags of a conversion."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.conversion.settings import ConvertSettings
from tests.helpers.conversions import SCRIPT, assert_refused, run


@pytest.mark.parametrize(
    "flags",
    [
        ["--shard-size", "256XB"],
        ["--shard-size", "0"],
        ["--shard-size", "-5MB"],
        ["--shard-size", ""],
        ["--workers", "0"],
        ["--workers", "many"],
        ["--seed", "-1"],
        ["--seed", str(1 << 64)],
        ["--format", "zip"],
        ["--format"],
        ["--no-such-flag", "1"],
        ["--splits", "test"],
        ["--jpeg", "tiff"],
        ["--on-bad", "ignore"],
        ["--quality", "80", "--jpeg", "keep"],
        ["--subsampling", "444", "--jpeg", "keep"],
        ["--max-side", "100", "--jpeg", "keep"],
        ["--max-side", "0", "--jpeg", "reencode"],
        ["--max-side", "65536", "--jpeg", "reencode"],
        ["--quality", "0", "--jpeg", "reencode"],
        ["--quality", "101", "--jpeg", "reencode"],
        ["--subsampling", "440", "--jpeg", "reencode"],
        ["--jpeg", "raw"],
        ["--jpeg", "proportion", "--format", "webdataset"],
        ["--quality", "50", "--jpeg", "raw", "--format", "ffcv"],
        ["--compress-probability", "0.5"],
        ["--compress-probability", "1.5", "--jpeg", "proportion", "--format", "ffcv"],
        ["--compress-probability", "nan", "--jpeg", "proportion", "--format", "ffcv"],
        ["--part", "0/3"],
        ["--part", "4/3"],
        ["--part", "3"],
        ["--part", "1/0"],
        ["--merge", "--part", "1/2"],
    ],
    ids=" ".join,
)
def test_wrong_flag_is_named(few: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str]) -> None:
    code = run("--src", few, "--dst", tmp_path / "dst", *flags)
    assert_refused(code, capsys, flags[0])
    assert not (tmp_path / "dst").exists()


@pytest.mark.parametrize(("encoding", "terminal"), [("ascii", False), ("utf-8", True)], ids=["pipe", "terminal"])
def test_script_names_a_wrong_flag_in_one_plain_line(tmp_path: Path, encoding: str, terminal: bool) -> None:
    """In a pipe, in a terminal, and where Python cannot write box-drawing characters."""
    environment = {**os.environ, "PYTHONIOENCODING": encoding, "TERM": "xterm"}
    keyboard, screen = os.openpty()
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--workers", "0"],
        stdout=screen if terminal else subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        cwd=tmp_path,
        check=False,
    )
    os.close(keyboard)
    os.close(screen)
    assert done.returncode == 2
    assert done.stderr == "error: --workers 0: must be at least 1 (see --help)\n"


@pytest.mark.parametrize(
    ("text", "size"),
    [("256MB", 256_000_000), ("1GB", 10**9), ("1.5kb", 1500), ("20 M", 20_000_000), ("7", 7), (" 3K ", 3000)],
)
def test_shard_sizes_are_decimal(text: str, size: int) -> None:
    assert ConvertSettings(shard_size=text).shard_bytes == size


@pytest.mark.parametrize("name", ["", "."])
def test_current_folder_as_target_is_refused(few: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    """An unset shell variable gives an empty name."""
    assert_refused(run("--src", few, "--dst", name), capsys, "--dst: is empty or the current folder")
