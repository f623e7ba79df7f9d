"""Settings tried for a model that is the limit."""

import dataclasses
import json
import os
from pathlib import Path

import psutil
import pytest
import torch

from pipeline.cli import run_command
from tests.helpers.profiles import QUICK
from tools.profiling.profile import profile
from tools.profiling.settings import ProfileSettings
from tools.profiling.trials import Change, Trial, candidates, try_all, try_change
from tools.profiling.windows import Windows
from train.config import TrainConfig
from train.inputs import open_data

WINDOWS = Windows(count=2, seconds=0.1)


@pytest.fixture
def config(dataset: Path) -> TrainConfig:
    return TrainConfig(
        data=str(dataset), model="torchvision/squeezenet1_1", loader="torch", batch_size=4, resolution=32, workers=1,
        device="cpu",
    )  # fmt: skip


def names_of(config: TrainConfig, device: str) -> tuple[list[str], dict[str, str]]:
    """The flags that would be tried, and why the others would not."""
    found = list(candidates(config, device, open_data(config, "train")))
    reasons = {one.flag: one.problem for one in found if isinstance(one, Trial)}
    return [one.flag for one in found if isinstance(one, Change)], reasons


def test_what_is_on_or_impossible_is_not_tried_and_the_reason_is_said(config: TrainConfig) -> None:
    tried, reasons = names_of(config, "cuda")
    assert tried == ["--amp bf16", "--amp fp16", "--batch-size 8", "--compile"]
    assert reasons == {"--channels-last": "is on already"}
    everything = dataclasses.replace(config, amp="bf16", compile=True, channels_last=False, batch_size=30)
    tried, reasons = names_of(everything, "cuda")
    assert tried == ["--channels-last"]
    assert reasons == {
        "--amp": "bf16 is on already",
        "--batch-size 60": "more images than the data has",
        "--compile": "is on already",
    }
    assert names_of(everything, "npu")[1]["--channels-last"] == "PyTorch has no such memory format on npu"


def test_a_change_is_measured_in_pairs_of_windows(config: TrainConfig) -> None:
    trial = try_change(config, Change("batch_size", 8), WINDOWS, 120)
    assert trial.flag == "--batch-size 8"
    assert trial.problem == ""
    assert trial.ratio is not None
    assert 0 < trial.ratio.low <= trial.ratio.median <= trial.ratio.high


def test_a_change_that_fails_is_said_in_words(config: TrainConfig) -> None:
    trial = try_change(config, Change("resolution", 8), WINDOWS, 120)
    assert trial.ratio is None
    assert trial.problem.startswith("fails here: ")
    assert "\n" not in trial.problem


def test_time_is_bounded_and_nothing_is_left_running(config: TrainConfig) -> None:
    before = set(psutil.Process(os.getpid()).children(recursive=True))
    trial = try_change(config, Change("amp", "bf16"), Windows(count=10_000, seconds=1.0), 10)
    assert trial.problem == "took longer than 10 s; more --advice-seconds"
    started = set(psutil.Process(os.getpid()).children(recursive=True)) - before
    assert not [one for one in started if "resource_tracker" not in " ".join(one.cmdline())]


def test_without_time_left_nothing_is_started(config: TrainConfig) -> None:
    started: list[str] = []
    trials = try_all(config, "cpu", WINDOWS, 0.0, started.append)
    assert {trial.problem for trial in trials.trials} == {"is on already", "no time left; more --advice-seconds"}
    assert started == ["--amp bf16", "--amp fp16", "--batch-size 8", "--compile"]


def test_a_compute_bound_verdict_says_what_was_tried(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A model of which a step takes far longer than loading its images, in one thread so that no thread waits for a
    core that others use."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    flags = ["--data", str(dataset), "--out", str(tmp_path), "--loader", "torch", *QUICK, "--windows", "1"]
    flags += ["--model", "torchvision/resnet18", "--resolution", "64", "--batch-size", "2", "--advice-seconds", "25"]
    try:
        assert run_command(profile, ProfileSettings, flags) == 0
    finally:
        torch.set_num_threads(threads)
    content = json.loads((tmp_path / "profile.json").read_text())
    assert content["verdicts"][0]["limited_by"] == "compute"
    trials = {trial["flag"]: trial for trial in content["trials"]["torch"]}
    assert set(trials) == {"--amp bf16", "--amp fp16", "--channels-last", "--batch-size 4", "--compile"}
    text = content["verdicts"][0]["text"]
    assert all(flag in text for flag in trials)
    assert all(bool(trial["ratio"]) != bool(trial["problem"]) for trial in trials.values())
