"""Runs of train/run.py in this process, without the seconds that importing torch takes, and what they write."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.cli import run_command
from train.config import TrainConfig
from train.recipes import starting_point
from train.run import main

SMALL = ["--model", "torchvision/resnet18", "--resolution", "32", "--batch-size", "4", "--workers", "1"]
TINY = [*SMALL, "--model", "pyramidnet", "--model-kwargs", "depth=14", "alpha=8", "--loader", "torch"]


def run_here(*arguments: object) -> int:
    """Run the command in this process. Returns its exit code."""
    return run_command(main, TrainConfig, [*map(str, arguments)], starting_point)


def train(*arguments: object, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    """A run that must succeed. Returns its result."""
    code = run_here(*arguments)
    output = capsys.readouterr()
    assert code == 0, output.err
    result: dict[str, Any] = json.loads(output.out.splitlines()[-1])["result"]
    return result


def refused(*arguments: object, capsys: pytest.CaptureFixture[str]) -> str:
    """A run that must be refused at once. Returns the line on stderr, which must be the only output."""
    assert run_here(*arguments) == 2
    output = capsys.readouterr()
    assert output.out == ""
    (line,) = output.err.splitlines()
    return str(line)


def refused_later(*arguments: object, capsys: pytest.CaptureFixture[str]) -> str:
    """A run that must be refused after it has logged something. Returns the last line on stderr."""
    assert run_here(*arguments) == 2
    return capsys.readouterr().err.splitlines()[-1]


def indices(run_dir: Path, rank: int = 0) -> list[list[int]]:
    """The dataset positions of a rank's batches, from --log-indices."""
    rows = (run_dir / f"indices-rank{rank}.jsonl").read_text().splitlines()
    return [json.loads(row)["indices"] for row in rows]


def metrics(run_dir: Path, kind: str) -> list[dict[str, Any]]:
    """The rows of a kind, "train" or "eval", in metrics.jsonl."""
    rows = map(json.loads, (run_dir / "metrics.jsonl").read_text().splitlines())
    return [row for row in rows if row["kind"] == kind]


def newest_checkpoint(run_dir: Path) -> Path:
    """The checkpoint of the last step."""
    return max(run_dir.glob("checkpoints/step-*.pt"))


def newest_step(run_dir: Path) -> int:
    """The step of the newest checkpoint, 0 where there is none."""
    return max((int(path.stem.partition("-")[2]) for path in run_dir.glob("checkpoints/step-*.pt")), default=0)


def assert_same_end(whole: Path, parts: Path) -> None:
    """Two runs end with the same weights, averages, momentum, loss scale and position; the same batches, each once; the
    same evaluations."""
    assert newest_step(whole) == newest_step(parts)
    expected, resumed = (torch.load(newest_checkpoint(run), weights_only=True) for run in (whole, parts))
    expected["config"], resumed["config"] = {}, {}  # they differ in the run directory
    assert_equal(expected, resumed)
    for file in sorted(whole.glob("indices-rank*.jsonl")):
        assert file.read_text() == (parts / file.name).read_text()
    assert metrics(whole, "eval") == metrics(parts, "eval")
    assert not list(parts.glob("checkpoints/.*.partial"))


def assert_equal(left: Any, right: Any, path: str = "") -> None:
    """Equal bit for bit, through dictionaries and lists."""
    assert type(left) is type(right), path
    if isinstance(left, torch.Tensor):
        assert torch.equal(left, right), path
    elif isinstance(left, dict):
        assert left.keys() == right.keys(), path
        for key in left:
            assert_equal(left[key], right[key], f"{path}.{key}")
    elif isinstance(left, list | tuple):
        assert len(left) == len(right), path
        for number, pair in enumerate(zip(left, right, strict=True)):
            assert_equal(*pair, f"{path}.{number}")
    else:
        assert left == right, path
