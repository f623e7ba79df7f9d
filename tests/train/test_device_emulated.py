"""Training on an NPU and an SDAA device emulated on the CPU: devices that PyTorch knows only after importing the
vendor's package. Only these packages are stood in for, at their import."""

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.runs import train
from tests.helpers.scripts import ROOT, finish, losses, result_of, start
from tests.helpers.zoo_parsers import ascend_results, tecorigin_records

EMULATION = ROOT / "tests" / "helpers" / "device_emulation"


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The compiled device."""
    if shutil.which(os.environ.get("CXX", "c++")) is None:
        pytest.skip("emulated devices need a C++ compiler: apt-get install g++")
    build = [sys.executable, str(EMULATION / "build.py"), str(tmp_path_factory.mktemp("device"))]
    built = subprocess.run(build, capture_output=True, text=True, timeout=240)
    assert built.returncode == 0, built.stderr
    return built.stdout.splitlines()[-1]


def environment(library: str, device: str) -> Mapping[str, str]:
    """In which a Python process can import the package of the emulated device."""
    return {"PYTHONPATH": str(EMULATION / device), "EMULATION_LIBRARY": library, "OMP_NUM_THREADS": "1"}


@pytest.fixture
def npu(library: str) -> Mapping[str, str]:
    """The environment of an emulated NPU."""
    return environment(library, "npu")


@pytest.fixture
def sdaa(library: str) -> Mapping[str, str]:
    """The environment of an emulated SDAA device."""
    return environment(library, "sdaa")


@pytest.mark.usefixtures("one_thread")
def test_a_model_trains_with_the_losses_of_the_cpu(
    dataset: Path, tmp_path: Path, npu: Mapping[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    # Without BatchNorm: the emulation's copies to the CPU lose what the forward pass writes to its statistics.
    common = ["--data", dataset, "--model", "torchvision/squeezenet1_1", "--loader", "torch"]
    common += ["--batch-size", 12, "--workers", 1]
    training = ["--resolution", 32, "--epochs", 1, "--lr", 0.05, "--warmup-epochs", 0, "--print-freq", 1]

    def on_cpu(*flags: object) -> dict[str, Any]:
        return train(*common, "--device", "cpu", "--no-channels-last", *flags, capsys=capsys)

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
    # The first forward pass is the CPU's; the backward pass rounds its sums to bf16 in another order.
    assert losses(device_amp)[0] == losses(cpu_amp)[0] != losses(cpu)[0]
    assert losses(device_amp) == pytest.approx(losses(cpu_amp), rel=1e-3)

    # A checkpoint written on the NPU is read on a machine without one.
    checkpoints = [next((run_dir / "checkpoints").iterdir()) for run_dir in (cpu, device)]
    evaluated = [on_cpu("--evaluate", path) for path in checkpoints]
    assert evaluated[0]["loss"] == evaluated[1]["loss"]


def test_a_script_of_the_zoo_trains_with_what_the_vendor_has(
    imagenet_folder: Path, tmp_path: Path, npu: Mapping[str, str]
) -> None:
    """SGD, compiler, profiler, HF32 and kernels that are not compiled when they are first used."""
    for split in ("train", "val"):
        (tmp_path / split).symlink_to(imagenet_folder / "train")
    script = ROOT / "tools" / "zoos" / "alexnet" / "test" / "train_full_1p.sh"
    flags = [f"--data_path={tmp_path}", "--batch_size=8", "--train_epochs=1", "--max_step=3", "--fp32", "--"]
    ours = ["--resolution", "64", "--workers", "1", "--compile", "--profile-steps", "1:2", "--run-dir", "run"]
    variables = {**os.environ, **npu, "PYTHON": sys.executable}
    done = subprocess.run(
        ["bash", str(script), *flags, *ours], env=variables, cwd=tmp_path, capture_output=True, text=True, timeout=280
    )
    assert done.returncode == 0, done.stderr
    assert "on 1 x npu" in done.stderr
    assert {"jit_compile False", "NpuFusedSGD made", "torchair compiles"} <= set(done.stdout.splitlines())
    assert (tmp_path / "run" / "trace-rank0.json").stat().st_size > 0
    results = ascend_results(tmp_path / "test" / "output" / "0", "AlexNet_bs8_1p_acc", 0, done.stdout)
    assert results["RankSize"] == "1"


def test_pyramidnet_trains_on_sdaa(imagenet_folder: Path, tmp_path: Path, sdaa: Mapping[str, str]) -> None:
    """The zoo's trainer; channels_last, which this device has, and the vendor's scaler."""
    for split in ("train", "val"):
        (tmp_path / split).symlink_to(imagenet_folder / "train")
    trainer = ROOT / "tools" / "zoos" / "pyramidnet" / "train.py"
    flags = ["--data", str(tmp_path), "--net_type", "pyramidnet", "--depth", "14", "--alpha", "8", "--batch_size", "4"]
    flags += ["--epochs", "1", "--max_step", "3", "--", "--resolution", "32", "--workers", "1"]
    done = subprocess.run(
        [sys.executable, str(trainer), *flags],
        env={**os.environ, **sdaa},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr
    assert "on 1 x sdaa" in done.stderr
    assert "GradScaler of the vendor" in done.stdout
    assert len(tecorigin_records(tmp_path)) == 4


def test_more_processes_than_devices(dataset: Path, npu: Mapping[str, str]) -> None:
    done = finish(start("--data", dataset, "--device", "npu", "--batch-size", 4, "--nproc", 3, environment=npu))
    assert done.returncode == 2
    assert done.stderr == "error: --nproc 3: this machine has 2 npu device(s)\n"


def test_the_emulation_refuses_what_the_device_refuses(npu: Mapping[str, str]) -> None:
    """Otherwise the training above would not show a mistake."""
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
        [sys.executable, "-c", program], env={**os.environ, **npu}, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr
