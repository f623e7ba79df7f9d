"""Training on an NPU, emulated on the CPU: what a device that PyTorch learns of from a vendor's package needs."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from scripts import ROOT, finish, losses, result_of, start

from pipeline.cli import run_command
from train.config import TrainConfig
from train.run import main

EMULATION = ROOT / "tests" / "npu_emulation"


@pytest.fixture(scope="session")
def npu(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, str]:
    """The environment in which a Python process finds the emulated device's package, torch_npu."""
    if shutil.which(os.environ.get("CXX", "c++")) is None:
        pytest.skip("the emulated NPU needs a C++ compiler: apt-get install g++")
    build = [sys.executable, str(EMULATION / "build.py"), str(tmp_path_factory.mktemp("npu"))]
    built = subprocess.run(build, capture_output=True, text=True, timeout=240)
    assert built.returncode == 0, built.stderr
    library = built.stdout.splitlines()[-1]
    return {"PYTHONPATH": str(EMULATION), "NPU_EMULATION_LIBRARY": library, "OMP_NUM_THREADS": "1"}


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Sums are rounded in the order of their parts: in this process as in those of the NPU."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("one_thread")
def test_alexnet_trains_with_the_losses_of_the_cpu(
    dataset: Path, tmp_path: Path, npu: Mapping[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    common = ["--data", dataset, "--model", "alexnet", "--loader", "torch", "--batch-size", 12, "--workers", 1]
    training = ["--resolution", 64, "--epochs", 1, "--lr", 0.05, "--warmup-epochs", 0, "--print-freq", 1]

    def on_cpu(*flags: object) -> dict[str, Any]:
        words = map(str, [*common, "--device", "cpu", "--no-channels-last", *flags])
        assert run_command(main, TrainConfig, [*words]) == 0
        return json.loads(capsys.readouterr().out)["result"]

    def on_npu(*flags: object) -> str:
        done = finish(start(*common, *flags, environment=npu))
        assert result_of(done)["evaluated"] == (0 if "--performance" in flags else 19)
        return done.stderr

    cpu, device, cpu_amp, device_amp = (tmp_path / name for name in ("cpu", "npu", "cpu-amp", "npu-amp"))
    on_cpu(*training, "--run-dir", cpu)
    on_npu(*training, "--run-dir", device, "--device", "npu")
    assert len(losses(cpu)) == 3
    assert losses(device) == losses(cpu)

    amp = [*training, "--amp", "bf16", "--performance", 3]
    on_cpu(*amp, "--run-dir", cpu_amp)
    assert "on 1 x npu" in on_npu(*amp, "--run-dir", device_amp, "--device", "auto")
    # The first pass forward is the CPU's; the one backward rounds its sums to bf16 in another order.
    assert losses(device_amp)[0] == losses(cpu_amp)[0] != losses(cpu)[0]
    assert losses(device_amp) == pytest.approx(losses(cpu_amp), rel=1e-3)

    # A checkpoint of the NPU is read where there is none.
    checkpoints = [next((run_dir / "checkpoints").iterdir()) for run_dir in (cpu, device)]
    evaluated = [on_cpu("--evaluate", path) for path in checkpoints]
    assert evaluated[0]["loss"] == evaluated[1]["loss"]


def test_more_processes_than_devices(dataset: Path, npu: Mapping[str, str]) -> None:
    done = finish(start("--data", dataset, "--device", "npu", "--batch-size", 4, "--nproc", 3, environment=npu))
    assert done.returncode == 2
    assert done.stderr == "error: --nproc 3: this machine has 2 npu device(s)\n"


def test_the_emulation_refuses_what_the_device_refuses(npu: Mapping[str, str]) -> None:
    """Else training would not show a mistake."""
    program = """
import torch, torch_npu
images = torch.zeros(2, 3, 4, 4)
for attempt in (
    lambda: images.to("npu").to(memory_format=torch.channels_last),
    lambda: images.to(memory_format=torch.channels_last).to("npu"),
    lambda: torch.nn.Conv2d(3, 3, 3).to("npu").to(memory_format=torch.channels_last),
):
    try:
        attempt()
    except RuntimeError as error:
        assert "channels_last memory format is not supported" in str(error)
    else:
        raise AssertionError("accepted")
"""
    done = subprocess.run(
        [sys.executable, "-c", program], env={**os.environ, **npu}, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
