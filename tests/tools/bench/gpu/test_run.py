"""Everything that is to be measured on a GPU, on the CPU at the smallest sizes."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.cli import run_command
from tools.bench.gpu.accuracy import TINY, progress, run_for
from tools.bench.gpu.run import bench
from tools.bench.gpu.settings import GpuSettings

QUICK = ["--device", "cpu", "--quick", "--no-isolate"]


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where all parts write: the data is made once."""
    return tmp_path_factory.mktemp("bench-gpu")


def measured(part: str, data: Path, out: Path) -> dict[str, Any]:
    """The figures of a part, none of which may be left out."""
    flags = [*QUICK, "--part", part, "--data", str(data), "--out", str(out)]
    assert run_command(bench, GpuSettings, flags) == 0
    content = json.loads((out / f"{part}.json").read_text())
    assert content["left_out"] == {}
    figures: dict[str, Any] = content["figures"]
    return figures


def test_loaders(dataset: Path, out: Path, one_thread: None) -> None:
    figures = measured("loaders", dataset, out)
    assert {"torch, tiles, 1 thread", "torch, q90 tiles, 1 thread", "webdataset, tiles, 1 thread"} <= figures.keys()
    assert all(figure["images_per_s"] > 0 and figure["cpu_us_per_image"] > 0 for figure in figures.values())


def test_models(dataset: Path, out: Path, one_thread: None) -> None:
    figures = measured("models", dataset, out)
    assert figures["bf16 matrix product"]["tflops"] > 0
    assert figures["torchvision/resnet50, NCHW"]["share_of_matrix_rate"] > 0


def test_training(dataset: Path, out: Path, one_thread: None) -> None:
    figure = measured("training", dataset, out)["torchvision/resnet50, NCHW"]
    assert figure["limited_by"] in ("compute", "unexplained")
    assert 0 <= figure["data_wait"] < 1
    assert figure["loader_images_per_s"] > figure["model_images_per_s"]


def test_verdicts(dataset: Path, out: Path, one_thread: None) -> None:
    figure = measured("verdicts", dataset, out)["ResNet-50, all threads"]
    assert figure["trained_images_per_s"] > 0
    assert figure["within_tolerance"] == (abs(figure["prediction_error"]) <= 0.1)
    assert figure["verdict"]


def test_accuracy(dataset: Path, out: Path, one_thread: None) -> None:
    run = measured("accuracy", dataset, out)["training"]
    assert run["finished"]
    assert run["result"]["evaluated"] == 19
    assert run["top1"] == pytest.approx(run["result"]["top1"], abs=0.01)
    assert measured("accuracy", dataset, out)["training"] == run  # nothing is left to do


@pytest.mark.skipif(torch.cuda.is_available(), reason="there the tests run, which takes minutes")
def test_tests(dataset: Path, out: Path) -> None:
    figures = measured("tests", dataset, out)
    assert {figure["outcome"] for figure in figures.values()} == {"skipped"}
    assert any("test_cut_bytes_are_decoded" in name for name in figures)


def test_the_report_has_what_was_measured(
    dataset: Path, out: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    measured("models", dataset, out)
    with caplog.at_level("INFO"):
        assert run_command(bench, GpuSettings, ["--report", "--out", str(out)]) == 0
    assert "torchvision/resnet50, NCHW" in caplog.text
    assert "published: torchvision/resnet50, 1,218 images/s on one NVIDIA GeForce RTX 3090 (timm" in caplog.text
    assert "verdicts: not measured" in caplog.text or "within 10%" in caplog.text
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == {"result": {"out": str(out)}}


@pytest.mark.skipif(torch.cuda.is_available(), reason="has a CUDA device")
def test_without_a_gpu_the_command_says_so_in_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(bench, GpuSettings, ["--out", str(tmp_path / "none")]) == 2
    output = capsys.readouterr()
    assert output.out == ""
    (line,) = output.err.splitlines()
    assert "PyTorch sees no CUDA device here" in line
    assert not (tmp_path / "none").exists()


def test_a_training_is_stopped_in_time(dataset: Path, tmp_path: Path) -> None:
    """Whether it has taken a step by then or is still starting."""
    flags = ["--data", dataset, *TINY, "--device", "cpu", "--epochs", 10_000, "--run-dir", tmp_path / "run"]
    assert run_for(6.0, flags) == (143, None)
    assert progress(tmp_path / "run").keys() >= {"epochs", "evaluations", "data_wait", "top1"}


def test_wrong_settings_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(bench, GpuSettings, ["--seconds", "0"]) == 2
    assert "--seconds 0.0: must be a number above 0" in capsys.readouterr().err
