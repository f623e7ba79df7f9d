"""Runs that are killed at any moment and resumed end with the weights of an uninterrupted run."""

import signal
from pathlib import Path

import pytest
import torch

import models
from pipeline import loaders
from tests.helpers.processes import EVERYTHING, KILLED, Accident, run_process, run_ranks
from tests.helpers.runs import assert_same_end, metrics, newest_step

MODERN = [
    "--recipe", "timm-a1", "--model", "timm/deit_tiny_distilled_patch16_224",
    "--model-kwargs", "img_size=32", "depth=2", "embed_dim=48", "drop_path_rate=0.3",
    "--resolution", 32, "--val-crop", 32, "--val-resize", 36, "--val-flip", "--batch-size", 6, "--workers", 1,
    "--epochs", 3, "--warmup-epochs", 0, "--lr", 0.01, "--layer-decay", 0.8, "--grad-checkpointing",
    "--aug-repeats", 3, "--random-erase", 0.5, "--distillation", "soft", "--distillation-tau", 2,
    "--model-ema", "--model-ema-steps", 2, "--model-ema-warmup", "torchvision", "--model-ema-decay", 0.99,
    "--checkpoint-every", 2, "--log-indices", "--print-freq", 1,
]  # fmt: skip
"""Flags of a run with what recipes consist of: LAMB, binary cross-entropy, mixing, augmentation, repeats, a teacher,
stochastic depth, layer decay, averages: 7 batches of 6 images an epoch, or of 12 in 3 steps on two ranks."""

STEP = "--lr-scheduler step --lr-step-size 1 --min-lr 0"
PLATEAU = "--lr-scheduler plateau --lr-patience 0"


@pytest.mark.parametrize("loader", loaders.names())
def test_killed_runs_end_as_an_uninterrupted_one(dataset: Path, tmp_path: Path, loader: str) -> None:
    log, flags = tmp_path / "log", ["--data", dataset, "--loader", loader, *EVERYTHING]
    if loader == "threads":  # the two batches of a step go through the model at once while images are small
        flags += ["--progressive-batch", "--progressive-resize", "1:48"]
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
        (Accident("evaluation, SIGTERM", 2), 128 + signal.SIGTERM),
    ]
    if loader in ("torch", "webdataset"):  # a plan and a stream of samples
        accidents += [(Accident("group", 2), 128 + signal.SIGTERM), (Accident("worker", 1), 1)]
    else:  # the rest of the state is the same
        accidents = accidents[1::3]
    for accident, code in accidents:
        log.write_text("")
        before = newest_step(tmp_path / "parts")
        ended = run_process(resumed, log, accident)
        # A worker that has loaded all its batches already is not missed.
        assert ended == code or (accident.moment == "worker" and ended == 0), (accident, log.read_text())
        if accident.moment.startswith("SIG"):
            assert newest_step(tmp_path / "parts") == before + accident.count, (
                "saved after the step in which the signal arrived"
            )
    assert run_process(resumed, log) == 0, log.read_text()
    assert_same_end(tmp_path / "whole", tmp_path / "parts")


@pytest.mark.parametrize(("size", "scheduler"), [(1, STEP), (1, PLATEAU), (2, PLATEAU)])
def test_a_killed_recipe_ends_as_an_uninterrupted_one(dataset: Path, tmp_path: Path, size: int, scheduler: str) -> None:
    torch.manual_seed(1)
    teacher = tmp_path / "teacher.pt"
    torch.save(models.create("torchvision/squeezenet1_1", 4).network.state_dict(), teacher)
    log, flags = tmp_path / "log", ["--data", dataset, "--loader", "torch", *MODERN, *scheduler.split()]
    flags += ["--teacher", "torchvision/squeezenet1_1", "--teacher-weights", teacher]
    assert run_ranks(size, [*flags, "--run-dir", tmp_path / "whole"], log) == size * [0], log.read_text()
    resumed = [*flags, "--run-dir", tmp_path / "parts", "--resume", "auto"]
    for accident in (Accident("step", 4), Accident("evaluation", 1)):
        assert run_ranks(size, resumed, log, accident)[-1] == KILLED, (accident, log.read_text())
    assert run_ranks(size, resumed, log) == size * [0], log.read_text()
    assert_same_end(tmp_path / "whole", tmp_path / "parts")
    rates = [row["lr"] for row in metrics(tmp_path / "whole", "train")]
    assert rates[-1] < rates[0]  # the schedule has acted, also that of evaluations
