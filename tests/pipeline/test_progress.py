"""Progress where stderr is no terminal: lines."""

import logging

import pytest

from pipeline import progress
from pipeline.progress import announced, counted


def test_a_line_says_which_of_a_few_steps_is_next(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    seen = []
    for item in announced(["torch", "ffcv"], "loader", str.upper):
        seen.append((item, caplog.messages[-1]))
    assert seen == [("torch", "loader 1 of 2: TORCH"), ("ffcv", "loader 2 of 2: FFCV")]
    assert list(announced([], "sweep")) == []
    assert len(caplog.messages) == 2


def test_many_items_are_counted_in_a_line_now_and_then(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO)
    assert list(counted(range(4), "val", 4, "images")) == [0, 1, 2, 3]
    assert caplog.messages == [], "a short command needs none"
    monkeypatch.setattr(progress, "FIRST_LINE_SECONDS", 0.0)
    monkeypatch.setattr(progress, "LINE_SECONDS", 0.0)
    assert list(counted(range(4), "val", 4, "images")) == [0, 1, 2, 3]
    assert len(caplog.messages) == 4
    assert caplog.messages[1].startswith("val: 2 of 4 images (50%) after 0 s, about 0 s left")


def test_bytes_are_a_share(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(progress, "FIRST_LINE_SECONDS", 0.0)
    bar = progress.Progress("train", 1000, "B")
    bar.add(250)
    bar.close()
    assert caplog.messages == ["train: 25% after 0 s, about 0 s left"]
