"""What is measured of large runs, at a small size."""

import json
from pathlib import Path

import pytest

from pipeline.cli import run_command
from tools.bench.scale import ScaleSettings, bench


def test_everything_is_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--ranks", "3", "--images", "20000", "--shards", "20", "--epochs", "3", "--rows", "5", "--rounds", "1"]
    assert run_command(bench, ScaleSettings, [*flags, "--out", str(tmp_path)]) == 0
    costs = json.loads(capsys.readouterr().out.splitlines()[-1])["result"]["costs"]
    assert {"meeting of 3 ranks", "start with 20 shards of 20,000 images", "curves of 3 epochs"} <= costs.keys()
    assert all(cost["cpu_s"] > 0 for cost in costs.values())
    assert json.loads((tmp_path / "scale.json").read_text())["costs"] == costs


def test_impossible_sizes_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(bench, ScaleSettings, ["--images", "5"]) == 2
    assert "--shards 100000: more than the 5 images" in capsys.readouterr().err
