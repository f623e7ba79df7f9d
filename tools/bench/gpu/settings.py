"""The flags of tools/bench_gpu.py."""

import dataclasses
import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, get_args

import torch

from pipeline.errors import InputError
from tools.bench.models import MATRIX_SIDE
from tools.profiling.windows import Windows

Part = Literal["tests", "loaders", "models", "training", "verdicts", "accuracy"]
PARTS: tuple[Part, ...] = get_args(Part)
DATA = "data"
"""The part that the others need, and which is done first where it has not been done yet."""


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """How much is measured: what `--quick` makes small."""

    images: int
    """Training images of the loaders' and the models' measurements."""
    threads: tuple[int, ...]
    """Of a loader."""
    loader_batch: int
    loader_seconds: float
    """Shortest duration of a loader's measurement."""
    batch_sizes: dict[str, int]
    """By model."""
    resolution: int | None
    """Side of the images that models are given; None: each model's own."""
    rounds: int
    """Measurements of each rate."""
    windows: Windows
    steps: int
    """Of a training run whose rate is measured."""
    matrix_side: int
    variants: int | None
    """How many of the ways to run a network are measured, from plain to compiled, and how many of the profiler's
    verdicts; None: all."""


FULL = Sizes(
    images=16_384,
    threads=(1, 2, 4, 8, 16),
    loader_batch=256,
    loader_seconds=2.0,
    batch_sizes={
        "torchvision/resnet50": 256,
        "alexnet": 512,
        "resnet152": 128,
        "se_resnet50": 256,
        "pnasnet5large": 32,
        "pyramidnet": 128,
    },
    resolution=None,
    rounds=7,
    windows=Windows(count=5, seconds=1.0),
    steps=100,
    matrix_side=MATRIX_SIDE,
    variants=None,
)
"""What fits an accelerator of 40 GB or more, in float32 too."""

SMALL = Sizes(
    images=32,
    threads=(1,),
    loader_batch=4,
    loader_seconds=0.1,
    batch_sizes={"torchvision/resnet50": 2},
    resolution=32,
    rounds=1,
    windows=Windows(count=1, seconds=0.1),
    steps=3,
    matrix_side=64,
    variants=1,
)
"""What runs every line of these measurements in a few seconds each. Its figures mean nothing."""


@dataclass(frozen=True, kw_only=True)
class GpuSettings:
    """Measure on a GPU what was written without one: tests, loaders, models, training, the profiler, an accuracy."""

    part: tuple[Part, ...] = PARTS
    """What to measure, in this order. A part that ran out of time is resumed when it is called again."""
    data: Path | None = None
    """Folder of ImageNet's images or archives, or a converted dataset; default: the demo's data."""
    out: Path = Path("runs/bench-gpu")
    """Where a JSON file for each part goes, and the converted data."""
    seconds: float = 480.0
    """The longest that a part may take. It says what it left out."""
    device: Literal["cuda", "cpu"] = "cuda"
    quick: bool = False
    """Measure little, at small sizes: shows that everything runs."""
    again: bool = False
    """Forget the figures of earlier calls, which are kept otherwise."""
    report: bool = False
    """Measure nothing; print the tables of what was measured."""
    isolate: bool = True
    """Measure in processes of their own, which are ended when their time is up. Without, nothing ends a measurement
    that hangs."""

    def __post_init__(self) -> None:
        if not 0 < self.seconds < math.inf:
            raise ValueError(f"--seconds {self.seconds}: must be a number above 0")
        if not self.part:
            raise ValueError(f"--part: name at least one of {', '.join(PARTS)}")

    @property
    def sizes(self) -> Sizes:
        """How much is measured."""
        return SMALL if self.quick else FULL

    @cached_property
    def kept_with(self) -> dict[str, Any]:
        """The settings that figures of different calls must have in common."""
        data = str(self.data.resolve()) if self.data else None
        return {"data": data, "device": self.device, "sizes": _as_json(dataclasses.asdict(self.sizes))}

    def torch_device(self) -> torch.device:
        """Where to measure. Raises InputError where PyTorch sees no CUDA device."""
        if self.device == "cpu":
            return torch.device("cpu")
        if not torch.cuda.is_available():
            raise InputError(
                "--device cuda: PyTorch sees no CUDA device here; --device cpu --quick runs the same measurements, at "
                "small sizes"
            )
        return torch.device("cuda", 0)


def _as_json(value: Any) -> Any:
    """What a JSON file gives back of it."""
    if isinstance(value, dict):
        return {name: _as_json(each) for name, each in value.items()}
    return [_as_json(each) for each in value] if isinstance(value, tuple) else value
