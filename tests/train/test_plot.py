"""The curves of one or more runs."""

import os
from pathlib import Path

import pytest
from PIL import Image

from pipeline.cli import run_command
from tests.helpers.memory import memory_below
from train import json_lines
from train.curves import title_of
from train.metrics import RunWriter, read_metrics
from train.pictures import plain
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


EVALUATION = '{"kind": "eval", "step": 1, "epoch": 1, "loss": 1.5, "top1": 50.0}\n'
LARGE = "9" * 400


def written(run_dir: Path, config: str = "{}", rows: str = EVALUATION) -> Path:
    run_dir.mkdir()
    (run_dir / "metrics.jsonl").write_text(rows)
    (run_dir / "config.json").write_text(config)
    return run_dir


@pytest.mark.parametrize("name", ["a$\\frac{$", "$\\undefined{x}$", "\\$a$$", "a\n\x1b[2Jb", "\udcff"], ids=repr)
def test_names_are_drawn_as_they_are(tmp_path: Path, name: str) -> None:
    """Not as formulas, of which some cannot be set: a run would end in a traceback instead of its result."""
    run_dir, picture = written(tmp_path / name), tmp_path / "x.png"
    assert run_command(plot, PlotSettings, ["--runs", str(run_dir), "--picture", str(picture)]) == 0
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_a_name_without_an_end_is_cut_off(tmp_path: Path) -> None:
    config = '{"model": "' + "$" * 100_000 + '"}'
    title = title_of([written(tmp_path / "a", config)])
    assert plain(title) == "a: " + r"\$" * 997 + "..."


def test_settings_that_are_a_pipe_or_have_no_end_are_left_out(tmp_path: Path) -> None:
    config = written(tmp_path / "a") / "config.json"
    os.truncate(config, 1 << 40)
    assert title_of([tmp_path / "a"]) == "a"
    config.unlink()
    os.mkfifo(config)
    assert title_of([tmp_path / "a"]) == "a"


@pytest.mark.parametrize("large", [LARGE, f"-{LARGE}", "Infinity", "NaN", "1e300"], ids=lambda text: text[:9])
@pytest.mark.parametrize("number", ["1", "1.5", "50.0"])
def test_numbers_that_nothing_computes_with_are_damage(
    tmp_path: Path, number: str, large: str, caplog: pytest.LogCaptureFixture
) -> None:
    run_dir = written(tmp_path / "a", rows=EVALUATION + EVALUATION.replace(f": {number}", f": {large}"))
    assert run_command(plot, PlotSettings, ["--runs", str(run_dir), "--picture", str(tmp_path / "x.png")]) == 0
    assert "1 damaged of 2 lines are left out" in caplog.text


def test_a_line_of_a_terabyte_is_not_read_into_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """64 times what is read at once, so that it is quick."""
    monkeypatch.setattr(json_lines, "_LONGEST_LINE", 1 << 20)
    run_dir = written(tmp_path / "a")
    os.truncate(run_dir / "metrics.jsonl", 1 << 26)
    with memory_below(1 << 23):
        assert len(list(read_metrics(run_dir))) == 1


@pytest.mark.parametrize("picture", ["x.xyz", "folder.png", "file/x.png"])
def test_a_picture_that_cannot_be_written_is_refused(
    tmp_path: Path, picture: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "file").touch()
    run_dir = written(tmp_path / "a")
    assert run_command(plot, PlotSettings, ["--runs", str(run_dir), "--picture", str(tmp_path / picture)]) == 2
    assert f"error: --picture {tmp_path / picture}: " in capsys.readouterr().err
