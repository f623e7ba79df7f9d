"""What limits training: the loader alone, the model alone on synthetic images, and both together.

    python tools/profile_throughput.py --data data/shards --model torchvision/resnet50 --loader ffcv,torch

Everything goes through the code that training uses.
"""

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])

import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass
from statistics import median
from typing import Any, Literal

from tqdm import tqdm

from pipeline import loaders
from pipeline.cli import run_command
from pipeline.contract import Batch, Loader
from train.config import DEFAULT_DATA, TrainConfig
from train.device import configure_math, select, synchronize
from train.launch import World
from train.loop import check
from train.session import Session, open_data

log = logging.getLogger(__name__)

UNDECIDED = 0.10  # rates closer than this are not told apart


@dataclass(frozen=True, kw_only=True)
class ProfileSettings:
    """Measure what limits training: the loader, the model, or what they share."""

    data: str = DEFAULT_DATA
    """Directory made by tools/convert_imagenet.py, or an ImageNet folder."""
    model: str = "torchvision/resnet50"
    """As in train/run.py."""
    loader: str = "auto"
    """Loaders to measure, separated by commas."""
    workers: int | None = None
    """Loading threads or processes; default: the machine's cores."""
    batch_size: int = 64
    resolution: int | None = None
    device: Literal["auto", "cpu", "cuda", "npu", "sdaa"] = "auto"
    amp: Literal["off", "bf16", "fp16"] = "off"
    compile: bool = False
    """torch.compile the model."""
    windows: int = 5
    """Measurements of each rate; the median counts."""
    window_steps: int = 8
    """Batches in a measurement."""

    def __post_init__(self) -> None:
        if self.windows < 1 or self.window_steps < 1:
            raise ValueError("--windows and --window-steps must be at least 1")
        if not self.loader_names:
            raise ValueError("--loader: name at least one")
        for name in self.loader_names:
            self.training_config(name)

    @property
    def loader_names(self) -> list[str]:
        """--loader as a list."""
        return [name.strip() for name in self.loader.split(",") if name.strip()]

    def training_config(self, loader: str) -> TrainConfig:
        """The settings of the training run that is measured."""
        return TrainConfig(
            data=self.data,
            model=self.model,
            loader=loader,
            workers=self.workers,
            batch_size=self.batch_size,
            resolution=self.resolution,
            device=self.device,
            amp=self.amp,
            compile=self.compile,
        )


def endless(loader: Loader, resolution: int) -> Iterator[Batch]:
    """Batches of one epoch after the other."""
    epoch = 0
    while True:
        yield from loader.epoch(epoch, resolution)
        epoch += 1


def measure(session: Session, loader: Loader, settings: ProfileSettings, train: bool) -> float:
    """Median images per second over the windows, after one window to warm up."""
    batches = endless(loader, session.resolution)
    rates = []
    for _ in range(settings.windows + 1):
        started, images = time.perf_counter(), 0
        for _ in range(settings.window_steps):
            batch = next(batches)
            images += len(batch.labels)
            if train:
                session.train_step(batch)
        synchronize(session.device)
        rates.append(images / (time.perf_counter() - started))
    return median(rates[1:])


def profile_loader(name: str, settings: ProfileSettings, model_rate: float | None) -> dict[str, Any]:
    """The three rates with one loader, and what they mean."""
    config = settings.training_config(name)
    check(config)
    device = select(config.device, 0, 1)
    split = open_data(config, "train")
    with Session(config, World(), device) as session:
        session.build_training(name, split)
        session.model.train()
        if model_rate is None:
            model_rate = measure(session, session.open_loader("synthetic", split, True), settings, train=True)
        loader_rate = measure(session, session.training, settings, train=False)
        train_rate = measure(session, session.training, settings, train=True)
    return {
        "loader": name,
        "loader_images_per_s": round(loader_rate, 1),
        "model_images_per_s": round(model_rate, 1),
        "train_images_per_s": round(train_rate, 1),
        "limited_by": limit(loader_rate, model_rate, train_rate, device.type),
    }


def limit(loader_rate: float, model_rate: float, train_rate: float, device_type: str) -> str:
    """`data`, `compute`, `shared cores` (the loader and a model on CPU take them from each other) or `undecided`."""
    if device_type == "cpu" and train_rate < (1 - UNDECIDED) * min(loader_rate, model_rate):
        return "shared cores"
    if abs(loader_rate - model_rate) < UNDECIDED * max(loader_rate, model_rate):
        return "undecided"
    return "data" if loader_rate < model_rate else "compute"


def sentence(row: dict[str, Any]) -> str:
    """What the rates mean, in words."""
    loader, model, both = (row[f"{what}_images_per_s"] for what in ("loader", "model", "train"))
    rates = f"the loader gives {loader:,.0f} img/s, the model takes {model:,.0f}, together {both:,.0f}"
    if row["limited_by"] == "data":
        return f"{row['loader']}: data-bound: {rates}. The device idles {1 - loader / model:.0%} of the time."
    if row["limited_by"] == "compute":
        return f"{row['loader']}: compute-bound: {rates}. The loader has {loader / model:.1f}x headroom."
    if row["limited_by"] == "shared cores":
        return f"{row['loader']}: the loader and the model share the CPU's cores: {rates}."
    return f"{row['loader']}: undecided: {rates}, too close to tell apart."


def table(rows: list[dict[str, Any]]) -> str:
    """The rates as text."""
    lines = [f"{'loader':<12}{'loader img/s':>14}{'model img/s':>14}{'together':>12}  limited by"]
    lines += [
        f"{row['loader']:<12}{row['loader_images_per_s']:>14,.0f}{row['model_images_per_s']:>14,.0f}"
        f"{row['train_images_per_s']:>12,.0f}  {row['limited_by']}"
        for row in rows
    ]
    return "\n".join(lines)


def profile(settings: ProfileSettings) -> dict[str, Any]:
    """The command."""
    configure_math(deterministic=False)
    names = settings.loader_names
    if "auto" in names:
        chosen, why = loaders.choose(open_data(settings.training_config("auto"), "train"))
        log.info("loader auto: %s (%s)", chosen, why)
        names = [chosen if name == "auto" else name for name in names]
    for name in names:
        loaders.load(name)  # a missing package is told before anything is measured
    rows: list[dict[str, Any]] = []
    for name in tqdm(names, desc="profiling", disable=None):
        rows.append(profile_loader(name, settings, rows[0]["model_images_per_s"] if rows else None))
    log.info("%s\n", table(rows))
    for row in rows:
        log.info("%s", sentence(row))
    return {"loaders": rows}


if __name__ == "__main__":
    sys.exit(run_command(profile, ProfileSettings))
