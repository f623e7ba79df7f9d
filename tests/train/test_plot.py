"""The curves of one or more runs."""

from pathlib import Path

import pytest
from PIL import Image

from pipeline.cli import run_command
from train.curves import title_of
from train.metrics import RunWriter
from train.plot import PlotSettings, plot


def test_runs_are_drawn_into_one_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        writer = RunWriter(tmp_path / name, 0)
        for epoch in (1, 2):
            prefix = "mixed_" if name == "b" else ""
            measured = {f"{prefix}loss": 2 / epoch, f"{prefix}top1": 30.0 * epoch}
            writer.write("train", 10 * epoch, epoch=epoch, **measured)
            writer.write("eval", 10 * epoch, epoch=epoch, loss=2 / epoch, top1=35 * epoch)
        writer.close()
    picture = tmp_path / "ab.png"
    runs = [str(tmp_path / "a"), str(tmp_path / "b")]
    assert run_command(plot, PlotSettings, ["--runs", *runs, "--picture", str(picture)]) == 0
    with Image.open(picture) as image:
        assert image.width > image.height > 300


def test_a_folder_without_a_run_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(plot, PlotSettings, ["--runs", str(tmp_path)]) == 2
    assert "has no metrics.jsonl of a run" in capsys.readouterr().err


def test_settings_that_are_nested_without_end_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("[" * 200_000)
    assert title_of([tmp_path]) == tmp_path.name
