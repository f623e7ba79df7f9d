"""Whether the profiler is right: what it predicts, against what training runs then reach; and what it says limits them,
against the same runs without any loading."""

import dataclasses
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tools.bench.gpu.record import Figure, Measurement, Record, measure_all
from tools.bench.gpu.settings import GpuSettings
from tools.bench.gpu.training import figure_of, loader_of, training_config
from tools.profiling import throughput
from tools.profiling.limit import TOLERANCE, Limit
from tools.profiling.throughput import Options
from tools.profiling.verdict import judge
from train import job
from train.config import TrainConfig
from train.world import World

GAIN = 1 + TOLERANCE
"""A run that is this much faster without loading was limited by loading."""

OF_LOADING: tuple[Limit, ...] = ("data", "storage", "transfer", "shared cores")
OF_MODEL: tuple[Limit, ...] = ("compute",)


@dataclass(frozen=True)
class Case:
    """A run that the profiler is asked about."""

    name: str
    model: str
    changes: dict[str, Any]


CASES = (
    Case("AlexNet, one thread", "alexnet", {"workers": 1, "amp": "bf16"}),
    Case("ResNet-152, all threads", "resnet152", {"amp": "bf16"}),
    Case("AlexNet, all threads", "alexnet", {"amp": "bf16"}),
    Case("ResNet-50, all threads", "torchvision/resnet50", {"amp": "bf16"}),
    Case("ResNet-50, two threads", "torchvision/resnet50", {"workers": 2, "amp": "bf16"}),
    Case("ResNet-50, all threads, float32", "torchvision/resnet50", {}),
    Case("SE-ResNet-50, all threads", "se_resnet50", {"amp": "bf16"}),
)
"""Runs of both kinds, and between them."""


def measure(record: Record) -> None:
    """The part."""
    settings = record.settings
    cases = [case for case in CASES if case.model in settings.sizes.batch_sizes]
    measure_all(
        record,
        [
            Measurement(names=(case.name,), function=figures, arguments=(settings, case), least_seconds=30.0)
            for case in cases[: settings.sizes.variants]
        ],
    )


def figures(settings: GpuSettings, case: Case, names: tuple[str, ...]) -> Iterator[Figure]:
    """A profile, the training run, and the training run without loading."""
    config = training_config(settings, case.model, loader=loader_of(settings), **case.changes)
    profile = throughput.profile(config, Options(windows=settings.sizes.windows, parts=False))
    verdict = judge(profile, [profile])
    trained, without_loading = (
        trained_rate(config, loader, settings.sizes.steps) for loader in (config.loader, "synthetic")
    )
    figure = figure_of(profile) | {
        "limited_by": verdict.limited_by,
        "verdict": str(verdict),
        "trained_images_per_s": trained,
        "without_loading_images_per_s": without_loading,
        "prediction_error": round(verdict.predicted / trained - 1, 4),
        "within_tolerance": abs(verdict.predicted / trained - 1) <= TOLERANCE,
    }
    yield figure | {"is_true": is_true(verdict.limited_by, without_loading / trained)}


def is_true(limited_by: Limit, gain: float) -> bool | None:
    """Whether a verdict is true of a run that is `gain` times as fast without loading; None where it says nothing that
    this can show."""
    if limited_by in OF_LOADING:
        return gain >= GAIN
    return gain < GAIN if limited_by in OF_MODEL else None


def trained_rate(config: TrainConfig, loader: str, steps: int) -> float:
    """Images/s of train/run.py --performance."""
    with tempfile.TemporaryDirectory() as folder:
        run = dataclasses.replace(config, loader=loader, performance=steps, run_dir=Path(folder) / "run")
        result = job.run(run, World())
    assert result is not None
    return float(result["images_per_s"])
