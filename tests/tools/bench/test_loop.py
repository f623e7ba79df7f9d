"""The training loop compared with a bare one."""

import json
from pathlib import Path

import pytest

from pipeline.cli import run_command
from tools.bench.loop import BenchSettings, bench


def test_all_loops_are_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--model", "torchvision/squeezenet1_1", "--resolution", "32", "--batch-size", "2"]
    assert run_command(bench, BenchSettings, [*flags, "--rounds", "2", "--steps", "2", "--out", str(tmp_path)]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])["result"]
    assert result["images_per_s"].keys() == {"training loop", "training loop, a log line per step", "bare loop"}
    assert result["ratios"].keys() == {"training loop", "training loop, a log line per step"}
    assert min(*result["images_per_s"].values(), *result["ratios"].values()) > 0
    assert json.loads((tmp_path / "loop.json").read_text())["model"] == "torchvision/squeezenet1_1"


def test_wrong_settings_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(bench, BenchSettings, ["--rounds", "0"]) == 2
    assert "--rounds 0: must be at least 1" in capsys.readouterr().err
