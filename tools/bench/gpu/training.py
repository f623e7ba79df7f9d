"""Whole training: the loader alone, the model alone and both together, through the session that training uses, from
eager float32 to compiled; the share of the step that waits for data, and of the matrix rate."""

from collections.abc import Iterator
from typing import Any, Literal

from pipeline import loaders
from pipeline.storage.split import open_split
from tools.bench.gpu import models
from tools.bench.gpu.data import data_of
from tools.bench.gpu.record import Figure, Measurement, Record, measure_all
from tools.bench.gpu.settings import GpuSettings
from tools.bench.models import CLASSES, Variant, arithmetic
from tools.bench.report import Rate
from tools.profiling import throughput
from tools.profiling.limit import limit, predicted_rate
from tools.profiling.profiles import Profile
from tools.profiling.throughput import Options
from train.config import TrainConfig
from train.step_clock import DATA


def measure(record: Record) -> None:
    """The part."""
    settings = record.settings
    models.measure_matrix(record)
    ceiling = models.matrix_tflops(record)
    measure_all(
        record,
        [
            Measurement(
                names=(f"{model}, {variant.name}",),
                function=figures,
                arguments=(settings, model, variant, ceiling),
                least_seconds=20.0,
            )
            for variant in models.variants(settings)
            for model in settings.sizes.batch_sizes
        ],
    )


def training_config(
    settings: GpuSettings,
    model: str,
    *,
    amp: Literal["off", "bf16", "fp16"] = "off",
    channels_last: bool = True,
    compile: bool = False,
    **changes: Any,
) -> TrainConfig:
    """The training run of a model, with 1,000 classes whatever the data has, and the loader that `auto` chooses."""
    sizes = settings.sizes
    return TrainConfig(
        data=str(data_of(settings).tiled),
        model=model,
        num_classes=CLASSES,
        batch_size=sizes.batch_sizes[model],
        resolution=sizes.resolution,
        device=settings.device,
        amp=amp,
        channels_last=channels_last,
        compile=compile,
        log=(),
        **changes,
    )


def figures(
    settings: GpuSettings, model: str, variant: Variant, ceiling: float | None, names: tuple[str, ...]
) -> Iterator[Figure]:
    """A training run, measured."""
    config = training_config(
        settings,
        model,
        amp=variant.amp,
        channels_last=variant.channels_last,
        compile=variant.compile,
        loader=loader_of(settings),
    )
    profile = throughput.profile(config, Options(windows=settings.sizes.windows, parts=False))
    figure = figure_of(profile)
    if ceiling:
        figure |= arithmetic(model, settings.sizes.resolution, profile.together.rate.median, ceiling)
    yield figure


def loader_of(settings: GpuSettings) -> str:
    """What `--loader auto` means for the data."""
    name, _ = loaders.choose(open_split(data_of(settings).tiled, "train"))
    return name


def figure_of(profile: Profile) -> Figure:
    """What is kept of a profile."""
    step_s = sum(profile.step_s.values())
    figure: Figure = {
        "loader": profile.loader,
        "workers": profile.workers,
        "batch_size": profile.batch_size,
        "loader_images_per_s": rounded(profile.loader_alone.rate),
        "loader_cores_used": round(profile.loader_alone.cores_used, 2),
        "model_images_per_s": rounded(profile.model_alone.rate),
        "images_per_s": rounded(profile.together.rate),
        "spread": round(profile.together.rate.spread, 3),
        "predicted_images_per_s": round(predicted_rate(profile), 1),
        "limited_by": limit(profile),
        "data_wait": round(profile.step_s[DATA] / step_s, 4),
        "step_ms": {phase: round(1000 * seconds, 3) for phase, seconds in profile.step_s.items()},
    }
    return figure | {"transfer_images_per_s": rounded(profile.transfer)} if profile.transfer else figure


def rounded(rate: Rate) -> float:
    """A rate as it is kept."""
    return round(rate.median, 2)
