"""Runs on a CUDA device that are killed and resumed. Skipped without one."""

import signal
from pathlib import Path

import pytest
import torch

from tests.helpers.processes import EVERYTHING, KILLED, Accident, run_process
from tests.helpers.runs import assert_same_end, metrics, newest_checkpoint, newest_step

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]

DEVICE = "cuda"
ACCIDENTS = [(Accident("step", 4), KILLED), (Accident("SIGTERM", 3), 128 + signal.SIGTERM)]


def run_in_parts(flags: list[object], folder: Path) -> None:
    """A run in `whole`, and the same in `parts`, killed, asked to stop, and resumed."""
    log = folder / "log"
    assert run_process([*flags, "--run-dir", folder / "whole"], log) == 0, log.read_text()
    resumed = [*flags, "--run-dir", folder / "parts", "--resume", "auto"]
    for accident, code in ACCIDENTS:
        assert run_process(resumed, log, accident) == code, log.read_text()
        assert newest_step(folder / "parts") > 0
    assert run_process(resumed, log) == 0, log.read_text()


@pytest.mark.parametrize("loader", ["torch", "ffcv"])
def test_with_deterministic_kernels_a_resumed_run_ends_bit_for_bit_as_a_whole_one(
    dataset: Path, tmp_path: Path, loader: str
) -> None:
    flags = ["--data", dataset, "--loader", loader, *EVERYTHING, "--device", DEVICE, "--deterministic"]
    run_in_parts(flags, tmp_path)
    assert_same_end(tmp_path / "whole", tmp_path / "parts")


def test_with_the_fastest_kernels_a_resumed_run_ends_close_to_a_whole_one(dataset: Path, tmp_path: Path) -> None:
    """The same batches, each once. Their sums are rounded in another order, which training amplifies from step to
    step."""
    run_in_parts(["--data", dataset, "--loader", "torch", *EVERYTHING, "--device", DEVICE], tmp_path)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert newest_step(whole) == newest_step(parts)
    assert (whole / "indices-rank0.jsonl").read_text() == (parts / "indices-rank0.jsonl").read_text()
    expected, resumed = (torch.load(newest_checkpoint(run), weights_only=True) for run in (whole, parts))
    assert expected["position"] == resumed["position"]
    assert expected["scheduler"] == resumed["scheduler"]
    weights, others = (
        torch.cat([tensor.flatten().float().cpu() for tensor in content["model"].values()])
        for content in (expected, resumed)
    )
    assert ((weights - others).norm() / weights.norm()).item() <= 0.05
    for one, other in zip(metrics(whole, "eval"), metrics(parts, "eval"), strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=0.1)
