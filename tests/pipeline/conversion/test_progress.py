"""Lines of progress."""

import re
from pathlib import Path

import pytest

from tests.helpers.conversions import run


def test_progress_shows_rates_remaining_time_and_odd_images(
    imagenet_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.conversion.progress.LOG_SECONDS", -1)
    with caplog.at_level("INFO", "pipeline.conversion.progress"):
        assert run("--src", imagenet_folder, "--splits", "train", "--dst", tmp_path) == 0
    lines = [line for line in caplog.messages if line.startswith("train: ") and "left" in line]
    assert len(lines) == 47
    odd = sum(number % 7 in (2, 4) for count in (12, 10, 14, 11) for number in range(count))  # grey or progressive
    line = rf"train: 47 of 47 images, \d+ images/s, \d+ MB/s, 0 min left, {odd} odd"
    assert re.fullmatch(line, lines[-1])
