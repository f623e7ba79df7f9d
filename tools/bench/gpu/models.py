"""Models alone, next to the implementations they replace, from eager float32 to compiled; and the rate of a large
matrix product, which none can exceed."""

from collections.abc import Iterator

from tools.bench.gpu.record import Figure, Measurement, Record, measure_all
from tools.bench.gpu.settings import GpuSettings
from tools.bench.models import (
    ACCELERATOR_VARIANTS,
    CPU_VARIANTS,
    REFERENCES,
    BenchSettings,
    Variant,
    arithmetic,
    compare,
    matrix_rate,
)

MATRIX = "bf16 matrix product"


def variants(settings: GpuSettings) -> tuple[Variant, ...]:
    """How networks are run. The compiled ones are the last: compiling takes minutes."""
    known = ACCELERATOR_VARIANTS if settings.device == "cuda" else CPU_VARIANTS
    return known[: settings.sizes.variants]


def measure(record: Record) -> None:
    """The part."""
    settings = record.settings
    measure_matrix(record)
    measurements = []
    for variant in variants(settings):
        for model in settings.sizes.batch_sizes:
            name = f"{model}, {variant.name}"
            arguments = (settings, model, variant, matrix_tflops(record))
            measurements.append(Measurement(names=(name,), function=figures, arguments=arguments, least_seconds=20.0))
    measure_all(record, measurements)


def measure_matrix(record: Record) -> None:
    """The rate of the matrix product."""
    measure_all(record, [Measurement(names=(MATRIX,), function=matrix_figure, arguments=(record.settings,))])


def matrix_tflops(record: Record) -> float | None:
    """The measured matrix rate."""
    return record.figures[MATRIX]["tflops"] if MATRIX in record.figures else None


def bench_settings(settings: GpuSettings, model: str) -> BenchSettings:
    """Those of `make bench-models`."""
    sizes = settings.sizes
    return BenchSettings(
        model=model,
        batch_size=sizes.batch_sizes[model],
        resolution=sizes.resolution,
        device=settings.device,
        rounds=sizes.rounds,
    )


def matrix_figure(settings: GpuSettings, names: tuple[str, ...]) -> Iterator[Figure]:
    """The measured matrix rate."""
    model = next(iter(settings.sizes.batch_sizes))
    side = settings.sizes.matrix_side
    yield {"tflops": float(f"{matrix_rate(bench_settings(settings, model), side):.4g}"), "side": side}


def figures(
    settings: GpuSettings, model: str, variant: Variant, ceiling: float | None, names: tuple[str, ...]
) -> Iterator[Figure]:
    """Ours and the reference, forward and training step."""
    row: Figure = {"batch_size": settings.sizes.batch_sizes[model], "reference": REFERENCES[model][0]}
    row |= compare(bench_settings(settings, model), model, variant)
    if ceiling:
        row |= arithmetic(model, settings.sizes.resolution, row["step_ours_images_per_s"], ceiling)
    yield row
