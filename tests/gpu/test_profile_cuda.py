"""Profiling on a CUDA device: phases from its events, copies, the accelerator's verdicts. Skipped without one."""

import json
from pathlib import Path

import pytest
import torch

from pipeline.cli import run_command
from tools.profiling.profile import profile
from tools.profiling.settings import ProfileSettings

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


def test_the_phases_fill_the_step_and_the_trace_has_kernels(dataset: Path, tmp_path: Path) -> None:
    flags = ["--data", str(dataset), "--model", "resnet152", "--batch-size", "8", "--loader", "torch", "--trace"]
    flags += ["--device", "cuda", "--windows", "3", "--window-seconds", "0.3", "--out", str(tmp_path)]
    assert run_command(profile, ProfileSettings, flags) == 0
    (base,) = json.loads((tmp_path / "profile.json").read_text())["profiles"]
    assert base["transfer"]["median"] > base["model_alone"]["rate"]["median"]
    assert min(base["step_s"][phase] for phase in ("forward", "backward", "optimiser")) > 0
    assert sum(base["step_s"].values()) == pytest.approx(8 / base["together"]["rate"]["median"], rel=0.2)
    trace = json.loads((tmp_path / "trace-torch.json").read_text())
    assert any(event.get("cat") == "kernel" for event in trace["traceEvents"])
