"""What the training loop costs: `--loader synthetic` beside a bare loop of forward, backward and step.

    python tools/bench_loop.py --model torchvision/resnet18 --resolution 64 --batch-size 32

All train networks of their own with the same weights on the same batch; they take turns in one process, and the medians
of the ratios count. The training loop is the one of train/run.py, with everything that it does in a step and at a log
line: sums of loss and accuracy, the look at requests to stop, metrics.jsonl and TensorBoard. It is measured with a log
line a turn and with one a step, which shows what the line costs.
"""

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])

import contextlib
import tempfile
import time
from collections.abc import Callable, Iterator
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
from train.meeting import meet
from train.run_directory import RunDirectory
from train.session import Session
from train.stopping import StopRequests
from train.trainer import Trainer
from train.world import World

CLASSES = 1000
OURS, LOGGING, BARE = "training loop", "training loop, a log line a step", "bare loop"


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
    """Steps of a turn, which ends with a log line."""
    out: Path = Path("runs/bench-loop")
    """Where the figures go."""

    def __post_init__(self) -> None:
        for name in ("batch_size", "rounds", "steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"--{name.replace('_', '-')} {getattr(self, name)}: must be at least 1")

    def training_config(self, run_dir: Path, print_freq: int) -> TrainConfig:
        """The settings of a run that is measured."""
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
            print_freq=print_freq,
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


@contextlib.contextmanager
def begun(settings: BenchSettings, device: torch.device, run_dir: Path, print_freq: int) -> Iterator[Trainer]:
    """A training run of its own."""
    config, world = settings.training_config(run_dir, print_freq), World()
    meeting = meet(world, config.rdzv_timeout)
    info = SplitInfo(samples=settings.steps * settings.batch_size, bytes=0, image_mode="synthetic")
    with Session(config, world, device) as session:
        session.open_training("synthetic", Split("train", Path("none"), tuple(map(str, range(CLASSES))), info))
        session.build_training()
        session.model.train()
        with RunDirectory(config, meeting, "synthetic", None, session.position) as directory:
            yield Trainer(session, directory, StopRequests(world), "synthetic")


def bench(settings: BenchSettings) -> dict[str, Any]:
    """The command."""
    configure_math(deterministic=False)
    device = select(settings.device, 0, 1)
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as runs:
        ours, logging, bare = (
            runs.enter_context(begun(settings, device, Path(folder) / name, print_freq))
            for name, print_freq in (("ours", settings.steps), ("logging", 1), ("bare", settings.steps))
        )
        turns = {OURS: ours.train_epoch, LOGGING: logging.train_epoch, BARE: bare_loop(bare.session, settings)}
        return compare(settings, turns, device)


def compare(settings: BenchSettings, turns: dict[str, Callable[[], None]], device: torch.device) -> dict[str, Any]:
    """Rates of all and the medians of the ratios of turns of one round."""
    images, rates = settings.steps * settings.batch_size, {name: list[float]() for name in turns}
    for number in range(settings.rounds + 1):
        for name in sorted(turns, reverse=bool(number % 2)):  # none is always the first
            took = seconds(turns[name], device)
            if number:  # the first compiles, allocates and chooses kernels
                rates[name].append(images / took)
    ratios = {
        name: round(median(own / bare for own, bare in zip(rates[name], rates[BARE], strict=True)), 4)
        for name in (OURS, LOGGING)
    }
    found = report.machine(device)
    print(report.ratio_table("images/s", rates, dict.fromkeys(ratios, (BARE,))))
    told = ", ".join(f"{name} {ratio:.4f}" for name, ratio in ratios.items())
    print(f"{settings.model}: medians of {settings.rounds} ratios to the {BARE} of the same round: {told}")
    print(report.machine_line(found))
    content = {"machine": found, "model": settings.model, "images_per_s": rates, "ratios": ratios}
    report.write_json(settings.out / "loop.json", content)
    medians = {name: round(median(values), 1) for name, values in rates.items()}
    return {"model": settings.model, "images_per_s": medians, "ratios": ratios}


if __name__ == "__main__":
    sys.exit(run_command(bench, BenchSettings))
