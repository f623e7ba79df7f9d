"""Estimates what a loader would gain from converting the data: a few images are converted in memory, and loading them
is compared with loading the originals."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from pipeline.contract import LoaderSpec
from pipeline.conversion.images import Handling, prepare
from pipeline.order.crops import CropPolicy
from pipeline.pixels.formats import BadImage
from pipeline.storage.samples import Sample, StoredSamples
from pipeline.storage.split import Split
from tools.profiling.loader_parts import measure_parts

IMAGES, BATCH, ROUNDS = 48, 16, 3

CONVERSIONS = {
    "convert to tiles (tools/convert_imagenet.py)": Handling(),
    "convert with --max-side 400": Handling(max_side=400),
}


class _SamplesInMemory:
    """Samples that have been read."""

    remedy = "convert again"

    def __init__(self, samples: tuple[Sample, ...]) -> None:
        self._samples = samples

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, index: int) -> Sample:
        return self._samples[index]

    def name(self, index: int) -> str:
        return f"sample {index} in memory"


@dataclass(frozen=True)
class _SplitInMemory(Split):
    """A split whose samples have been read."""

    in_memory: tuple[Sample, ...] = ()

    @cached_property
    def samples(self) -> StoredSamples:
        return _SamplesInMemory(self.in_memory)


def conversion_factors(split: Split, resolution: int) -> dict[str, float]:
    """How many times less CPU time the torch loader takes for images converted with other flags, by conversion."""
    if split.url or split.formats == ("ffcv-raw",):
        return {}  # no random access, or no JPEGs
    positions = np.linspace(0, split.num_samples - 1, min(IMAGES, split.num_samples)).astype(int)
    originals = [split.samples[index] for index in positions.tolist()]
    original_s = _cpu_seconds(originals, resolution)
    factors = {}
    for change, handling in CONVERSIONS.items():
        try:
            converted = [Sample(prepare(jpeg, 0, handling).data, label) for jpeg, label in originals]
        except BadImage:
            continue  # the converter would stop too
        if converted != originals:  # images that are tiled already stay as they are
            factors[change] = original_s / _cpu_seconds(converted, resolution)
    return factors


def _cpu_seconds(samples: list[Sample], resolution: int) -> float:
    """CPU seconds per image, in one thread."""
    split = _SplitInMemory("train", Path("in memory"), ("any",), in_memory=tuple(samples))
    spec = LoaderSpec(split=split, batch_size=min(BATCH, len(samples)), crop=CropPolicy(training=True))
    return measure_parts("torch", spec, resolution, len(samples) // spec.batch_size, ROUNDS).whole_s
