"""What a loader would gain from other data: a few images are converted in memory, and loaded beside the originals."""

from pathlib import Path

import numpy as np

from pipeline.contract import CropPolicy, LoaderSpec
from pipeline.conversion.images import BadImage, Handling, prepare
from pipeline.dataset import Split
from pipeline.formats.samples import Sample
from pipeline.profiling import measure_parts

IMAGES, BATCH, ROUNDS = 48, 16, 3

CONVERSIONS = {
    "convert to tiles (tools/convert_imagenet.py)": Handling(),
    "convert with --max-side 400": Handling(max_side=400),
}


class _InMemory:
    """Samples that were read already."""

    def __init__(self, samples: list[Sample]) -> None:
        self._samples = samples

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, index: int) -> Sample:
        return self._samples[index]

    def name(self, index: int) -> str:
        return f"sample {index} in memory"


def conversion_factors(split: Split, resolution: int) -> dict[str, float]:
    """How many times less CPU time the torch loader needs for images that are converted with other flags."""
    if split.url or split.formats == ("ffcv-raw",):
        return {}  # no random access, or no JPEGs
    positions = np.linspace(0, split.num_samples - 1, min(IMAGES, split.num_samples)).astype(int)
    originals = [split.samples[index] for index in positions.tolist()]
    before = _cpu_seconds(originals, resolution)
    factors = {}
    for change, handling in CONVERSIONS.items():
        try:
            converted = [Sample(prepare(jpeg, 0, handling).data, label) for jpeg, label in originals]
        except BadImage:
            continue  # the converter would stop too
        if converted != originals:  # tiled images are not changed by tiling
            factors[change] = before / _cpu_seconds(converted, resolution)
    return factors


def _cpu_seconds(samples: list[Sample], resolution: int) -> float:
    """For one image, in one thread."""
    split = Split("train", Path("in memory"), ("any",))
    split.__dict__["samples"] = _InMemory(samples)  # in place of opening it
    spec = LoaderSpec(split=split, batch_size=min(BATCH, len(samples)), crop=CropPolicy(training=True))
    return measure_parts("torch", spec, resolution, len(samples) // spec.batch_size, ROUNDS).whole_s
