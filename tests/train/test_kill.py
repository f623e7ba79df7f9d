"""Runs that are killed at any moment and gone on with end with the weights of those that were not."""

import json
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from processes import Accident, run_process

from pipeline import loaders

KILLED = -signal.SIGKILL
# A network with BatchNorm and dropout; 10 batches of 4 images in 5 steps an epoch.
EVERYTHING = [
    "--model", "pyramidnet", "--model-kwargs", "depth=14", "alpha=8", "drop_rate=0.5",
    "--resolution", 32, "--progressive-resize", "1:40", "--batch-size", 4, "--accumulate", 2, "--workers", 2,
    "--epochs", 3, "--warmup-epochs", 1, "--lr", 0.1, "--nesterov", "--norm-weight-decay", 0, "--clip-grad-norm", 5,
    "--label-smoothing", 0.1, "--mixup-alpha", 0.4, "--cutmix-alpha", 1, "--model-ema", "--model-ema-decay", 0.9,
    "--amp", "fp16", "--checkpoint-every", 2, "--log-indices",
]  # fmt: skip


def assert_equal(left: Any, right: Any, where: str = "") -> None:
    """Bit for bit, through dictionaries and lists."""
    assert type(left) is type(right), where
    if isinstance(left, torch.Tensor):
        assert torch.equal(left, right), where
    elif isinstance(left, dict):
        assert left.keys() == right.keys(), where
        for key in left:
            assert_equal(left[key], right[key], f"{where}.{key}")
    elif isinstance(left, list | tuple):
        assert len(left) == len(right), where
        for number, pair in enumerate(zip(left, right, strict=True)):
            assert_equal(*pair, f"{where}.{number}")
    else:
        assert left == right, where


def assert_same_end(whole: Path, parts: Path) -> None:
    """The same weights, averages, momentum, scale and position; the same batches, each once; the same evaluations."""
    assert step_of_newest(whole) == step_of_newest(parts)
    expected, resumed = (torch.load(newest(run), weights_only=True) for run in (whole, parts))
    expected["config"], resumed["config"] = {}, {}  # they differ in the run directory
    assert_equal(expected, resumed)
    for run in sorted(whole.glob("indices-rank*.jsonl")):
        assert run.read_text() == (parts / run.name).read_text()
    assert evaluations(whole) == evaluations(parts)
    assert not list(parts.glob("checkpoints/.*.partial"))


def newest(run: Path) -> Path:
    return max(run.glob("checkpoints/step-*.pt"))


def step_of_newest(run: Path) -> int:
    """0 where there is no checkpoint."""
    return max((int(path.stem.partition("-")[2]) for path in run.glob("checkpoints/step-*.pt")), default=0)


def evaluations(run: Path) -> list[dict[str, Any]]:
    rows = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [row for row in rows if row["kind"] == "eval"]


@pytest.mark.parametrize("loader", loaders.names())
def test_killed_runs_end_as_if_nothing_had_happened(dataset: Path, tmp_path: Path, loader: str) -> None:
    log, flags = tmp_path / "log", ["--data", dataset, "--loader", loader, *EVERYTHING]
    assert run_process([*flags, "--run-dir", tmp_path / "whole"], log) == 0, log.read_text()
    resumed = [*flags, "--run-dir", tmp_path / "parts", "--resume", "auto"]
    accidents = [
        (Accident("step", 1), KILLED),  # before there is any checkpoint
        (Accident("step", 4), KILLED),
        (Accident("write", 1), KILLED),
        (Accident("SIGUSR1", 1), 128 + signal.SIGUSR1),
        (Accident("evaluation", 3), KILLED),
        (Accident("rename", 2), KILLED),
        (Accident("SIGTERM", 2), 128 + signal.SIGTERM),
        (Accident("asked in an evaluation", 2), 128 + signal.SIGTERM),
    ]
    if loader in ("torch", "webdataset"):
        accidents += [(Accident("group", 2), 128 + signal.SIGTERM), (Accident("worker", 1), 1)]
    if loader == "ffcv":  # compiles for seconds in each process
        accidents = accidents[1::3]
    for accident, code in accidents:
        log.write_text("")
        before = step_of_newest(tmp_path / "parts")
        ended = run_process(resumed, log, accident)
        # A worker that has made all its batches is not missed.
        assert ended == code or (accident.moment == "worker" and ended == 0), (accident, log.read_text())
        if accident.moment.startswith("SIG"):
            assert step_of_newest(tmp_path / "parts") == before + accident.count, "saved after the step it came in"
    assert run_process(resumed, log) == 0, log.read_text()
    assert_same_end(tmp_path / "whole", tmp_path / "parts")
