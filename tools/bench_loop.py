"""What the training loop costs: `--loader synthetic` beside a bare loop of forward, backward and step.

    python tools/bench_loop.py --model torchvision/resnet18 --resolution 64 --batch-size 32

Both train networks of their own with the same weights on the same batch; they take turns in one process, and the
median of the ratios counts. The training loop is the one of train/run.py, with everything that it does in a step and at
a log line: sums of loss and accuracy, the look at requests to stop, metrics.jsonl and TensorBoard.
"""

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Any, Literal

import torch
from torch import nn

from pipeline.cli import run_command
from pipeline.dataset import Split, SplitInfo
from tools import report
from train.config import TrainConfig
from train.device import AMP_DTYPES, configure_math, select, synchronize
from train.run_directory import RunDirectory
from train.session import Session
from train.stopping import StopRequests
from train.trainer import Trainer
from train.world import World

CLASSES = 1000
LOOPS = ("training loop", "bare loop")


@dataclass(frozen=True, kw_only=True)
class BenchSettings:
    """Measure the training loop beside a bare one."""

    model: str = "torchvision/resnet50"
    """As in train/run.py."""
    batch_size: int = 64
    resolution: int | None = None
    device: Literal["auto", "cpu", "cuda", "npu", "sdaa"] = "auto"
    amp: Literal["off", "bf16"] = "off"
    compile: bool = False
    """torch.compile the models."""
    rounds: int = 15
    """Turns of each loop; the median counts."""
    steps: int = 20
    """Steps of a turn. Each ends with a log line."""
    out: Path = Path("runs/bench-loop")
    """Where the figures go."""

    def __post_init__(self) -> None:
        for name in ("batch_size", "rounds", "steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"--{name.replace('_', '-')} {getattr(self, name)}: must be at least 1")

    def training_config(self, run_dir: Path) -> TrainConfig:
        """The settings of the run that is measured."""
        return TrainConfig(
            data=str(run_dir / "none"),
            model=self.model,
            loader="synthetic",
            batch_size=self.batch_size,
            resolution=self.resolution,
            device=self.device,
            amp=self.amp,
            compile=self.compile,
            epochs=self.rounds + 1,
            warmup_epochs=0,
            run_dir=run_dir,
            print_freq=self.steps,
        )


def bare_loop(session: Session, settings: BenchSettings) -> Callable[[], None]:
    """A turn of the loop as a tutorial writes it, on the synthetic loader's batch."""
    model, loss_of = session.plain_model, nn.CrossEntropyLoss()
    optimizer, dtype = session.optimizer, AMP_DTYPES[settings.amp]
    batch = next(session.training_batches())

    def turn() -> None:
        for _ in range(settings.steps):
            with torch.autocast(session.device.type, dtype, enabled=dtype is not None):
                loss = loss_of(model(batch.images), batch.labels)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    return turn


def seconds(turn: Callable[[], None], device: torch.device) -> float:
    """How long it takes, the device included."""
    synchronize(device)
    started = time.perf_counter()
    turn()
    synchronize(device)
    return time.perf_counter() - started


def bench(settings: BenchSettings) -> dict[str, Any]:
    """The command."""
    configure_math(deterministic=False)
    device, world = select(settings.device, 0, 1), World()
    info = SplitInfo(samples=settings.steps * settings.batch_size, bytes=0, image_mode="synthetic")
    split = Split("train", Path("none"), tuple(map(str, range(CLASSES))), info)
    with tempfile.TemporaryDirectory() as folder:
        config = settings.training_config(Path(folder) / "run")
        with (
            Session(config, world, device) as ours,
            Session(config, world, device) as bare,
            StopRequests(world) as stop,
        ):
            for session in (ours, bare):
                session.build_training("synthetic", split)
                session.model.train()
            with RunDirectory(config, world, "synthetic", None, ours.position) as directory:
                trainer = Trainer(ours, directory, stop, "synthetic")
                return compare(settings, trainer.train_epoch, bare_loop(bare, settings), device)


def compare(
    settings: BenchSettings, ours: Callable[[], None], bare: Callable[[], None], device: torch.device
) -> dict[str, Any]:
    """Rates of both and the median of the ratios of neighbouring turns."""
    times: list[tuple[float, float]] = []
    for number in range(settings.rounds + 1):
        turns = (ours, bare) if number % 2 else (bare, ours)  # neither is always the first
        first, second = (seconds(turn, device) for turn in turns)
        times.append((first, second) if number % 2 else (second, first))
    del times[0]  # the first compiles, allocates and chooses kernels
    images = settings.steps * settings.batch_size
    rates = {
        name: [images / took for took in column] for name, column in zip(LOOPS, zip(*times, strict=True), strict=True)
    }
    ratio, found = median(theirs / own for own, theirs in times), report.machine(device)
    print(report.ratio_table("images/s", rates, {LOOPS[0]: LOOPS[1:]}))
    print(f"{settings.model}: median of the {settings.rounds} ratios of neighbouring turns {ratio:.4f}")
    print(report.machine_line(found))
    content = {"machine": found, "model": settings.model, "images_per_s": rates, "ratio": ratio}
    report.write_json(settings.out / "loop.json", content)
    return {
        "model": settings.model,
        "images_per_s": {name: round(median(values), 1) for name, values in rates.items()},
        "ratio": round(ratio, 4),
    }


if __name__ == "__main__":
    sys.exit(run_command(bench, BenchSettings))
