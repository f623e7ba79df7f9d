"""The lines and the bar of a training run."""

import contextlib
import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest

from tests.helpers.runs import TINY
from tests.helpers.scripts import ROOT
from train.progress import ALWAYS, LINE, Piece, fitted, time_in_words


def test_a_line_that_is_too_long_loses_what_matters_least() -> None:
    pieces = [Piece("epoch 3"), Piece("loss 2.345", 2), Piece("", 5), Piece("top1 45.6", 1), Piece("lr 0.1", 3)]
    assert fitted(pieces) == "epoch 3 loss 2.345 top1 45.6 lr 0.1"
    assert fitted(pieces, 30) == "epoch 3 loss 2.345 lr 0.1"
    assert fitted(pieces, 20) == "epoch 3 lr 0.1"
    assert fitted(pieces, 3) == "epoch 3"
    assert fitted([Piece("x" * 99, ALWAYS)], LINE) == "x" * 99


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.4, "0:00"), (62, "1:02"), (3599, "59:59"), (11662, "3:14:22"), (184440, "2d 3:14"), (float("inf"), "?")],
)
def test_times_are_short(seconds: float, words: str) -> None:
    assert time_in_words(seconds) == words


def on_a_terminal(columns: int, *arguments: object) -> str:
    """What train/run.py writes to a terminal of so many columns."""
    main, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    words = [sys.executable, str(ROOT / "train" / "run.py"), *map(str, arguments)]
    with subprocess.Popen(words, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=terminal) as process:
        os.close(terminal)
        written = b""
        with contextlib.suppress(OSError):  # EIO: the last process has closed its side
            while data := os.read(main, 1 << 16):
                written += data
    os.close(main)
    assert process.returncode == 0, written.decode()
    return written.decode()


@pytest.mark.parametrize("columns", [80, 160])
def test_a_terminal_gets_a_bar_with_everything_that_fits(dataset: Path, tmp_path: Path, columns: int) -> None:
    flags = ["--data", dataset, *TINY, "--epochs", 2, "--resolution", 96, "--print-freq", 2]
    text = on_a_terminal(columns, *flags, "--run-dir", tmp_path / "run", "--label-smoothing", 0.1)
    bars = [line for line in re.split(r"[\r\n]", text) if line.startswith("epoch ") and "%|" in line]
    assert bars
    assert all(len(line) <= columns for line in bars)
    whole = r"epoch [12]/2 +\d+%\|.*\| [\d:]+, run [\d:]+ loss \d\.\d{3} lr \S+ \S+ img/s wait \d+%( \d\.\d GB)?$"
    assert any(re.search(whole, line.rstrip()) for line in bars), bars
    logged = [line.strip() for line in re.split(r"[\r\n]", text) if " step " in line]
    assert logged
    assert all(len(line) <= 80 and "objective" in line and "loss" in line for line in logged), logged
