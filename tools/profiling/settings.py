"""The flags of tools/profile_throughput.py."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from pipeline.contract import Decoder
from pipeline.sizes import parse_bytes
from pipeline.storage.remote.address import is_remote
from tools.profiling.profiles import AXES
from train import recipes
from train.config import DEFAULT_DATA, TrainConfig
from train.device import DeviceName

SHARED = (
    "data", "endpoint_url", "io_timeout", "cache", "cache_size", "model", "model_kwargs", "workers", "decoder",
    "batch_size", "resolution", "nproc", "device", "amp", "compile",
)  # fmt: skip
"""Settings with the same flag as in train/run.py."""
_SIMULATED = ("bandwidth", "connection_bandwidth", "latency", "shard_size")
WITHOUT_MEANING: dict[str, Any] = {
    "resume": None, "evaluate": None, "performance": None, "run_dir": None, "max_restarts": 0, "profile_steps": None,
    "pretrained": None, "finetune": None, "nnodes": 1, "node_rank": 0,
}  # fmt: skip
"""Settings of a training run that mean nothing to a measurement, and the values they get."""


@dataclass(frozen=True, kw_only=True)
class ProfileSettings:
    """Measure what limits training, and say what to change."""

    recipe: str | None = None
    """As in train/run.py."""
    config: Path | None = None
    """Measure the training run that has this config.json. Other flags override it."""
    data: str = DEFAULT_DATA
    """As in train/run.py."""
    endpoint_url: str | None = None
    """As in train/run.py."""
    io_timeout: float = 60.0
    """As in train/run.py."""
    cache: Path | None = None
    """As in train/run.py."""
    cache_size: str = "0"
    """As in train/run.py."""
    model: str = "torchvision/resnet50"
    """As in train/run.py."""
    model_kwargs: tuple[str, ...] = ()
    """As in train/run.py."""
    loader: str = "auto"
    """Loaders to measure, separated by commas; all: every installed one that reads the data."""
    workers: int | None = None
    """Loading threads or processes of each training process; default: the machine's cores over --nproc."""
    decoder: Decoder = "auto"
    """As in train/run.py."""
    batch_size: int = 64
    """Images per step of each process."""
    resolution: int | None = None
    nproc: int = 1
    """Training processes on this machine, one per device."""
    device: DeviceName = "auto"
    amp: Literal["off", "bf16", "fp16"] = "off"
    compile: bool = False
    """torch.compile the model."""
    sweep: tuple[str, ...] = ()
    """Measure other settings too, one at a time: workers=1,2,4 batch-size=32,64 resolution=160,224 nproc=1,2."""
    cold: bool = False
    """Drop the data from the page cache before each measurement, as if it did not fit into memory."""
    trace: bool = False
    """Write a trace of a few steps with each loader, for chrome://tracing or ui.perfetto.dev."""
    advice_seconds: float = 300.0
    """Where the model is the limit, try what could make it faster (mixed precision, channels_last, a larger batch,
    compiling) for at most this long in all; 0: do not."""
    simulate: bool = False
    """Predict how the training images would be streamed from a bucket, in simulated time; do not train."""
    bandwidth: str | None = None
    """Of the machine, in bytes a second, such as 1GB; default: measured, where --data is a bucket or web server."""
    connection_bandwidth: str | None = None
    """Of a single connection; default: measured, or that of the machine."""
    latency: float | None = None
    """Seconds before the first byte of an answer; default: measured."""
    shard_size: str | None = None
    """Predict for shards of this size, such as 64MB, instead of those of --data."""
    windows: int = 5
    """Measurements of each rate; the median counts."""
    window_seconds: float = 1.0
    """Shortest duration of a measurement (a step, if that takes longer)."""
    out: Path = Path("runs/profile")
    """Where profile.json, profile.html and the traces go."""

    def __post_init__(self) -> None:
        if self.windows < 1 or not 0 < self.window_seconds < math.inf:
            raise ValueError("--windows must be at least 1, and --window-seconds a number above 0")
        if not 0 <= self.advice_seconds < math.inf:
            raise ValueError("--advice-seconds must be a number, at least 0")
        self._check_simulation()
        if not self.loader_names:
            raise ValueError("--loader: name at least one")
        if self.cold and is_remote(self.data):
            raise ValueError(f"--cold: {self.data} is not in this machine's page cache")
        for name in self.loader_names:
            for changes in ({}, *self.sweep_points):
                self.training_config(name if name != "all" else "auto", changes)

    def _check_simulation(self) -> None:
        for name in ("bandwidth", "connection_bandwidth", "shard_size"):
            if (value := getattr(self, name)) is None:
                continue
            try:
                parse_bytes(value)
            except ValueError as error:
                raise ValueError(f"--{name.replace('_', '-')} {value}: {error}") from None
        if self.latency is not None and not 0 <= self.latency < math.inf:
            raise ValueError(f"--latency {self.latency}: must be a number of seconds, at least 0")
        given = [name for name in _SIMULATED if getattr(self, name) is not None]
        if given and not self.simulate:
            raise ValueError(f"--{given[0].replace('_', '-')}: is for --simulate")

    @property
    def loader_names(self) -> list[str]:
        """--loader as a list."""
        return [name.strip() for name in self.loader.split(",") if name.strip()]

    @property
    def sweep_points(self) -> list[dict[str, int]]:
        """--sweep as changes to the settings."""
        points = []
        for axis in self.sweep:
            name, _, values = axis.partition("=")
            name = name.replace("-", "_")
            if name not in AXES or not all(value.isdigit() for value in values.split(",")):
                flags = ", ".join(AXES).replace("_", "-")
                raise ValueError(f"--sweep {axis}: must be like workers=1,2,4; it can change {flags}")
            points += [{name: int(value)} for value in values.split(",")]
        return points

    def training_config(self, loader: str, changes: Mapping[str, int]) -> TrainConfig:
        """The settings of the measured training run; what has no flag here is as in --recipe or --config."""
        settings = {name: getattr(self, name) for name in SHARED} | WITHOUT_MEANING
        return dataclasses.replace(self._base, loader=loader, **(settings | dict(changes)))

    @cached_property
    def _base(self) -> TrainConfig:
        """The training run that --recipe or --config names."""
        return recipes.settings_of(self.recipe, self.config) or TrainConfig()


def starting_point(argv: Sequence[str]) -> ProfileSettings | None:
    """The settings that --recipe or --config in a command line names."""
    config = recipes.starting_point(argv)
    return ProfileSettings(**{name: getattr(config, name) for name in SHARED}) if config else None
