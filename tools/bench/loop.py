"""Compare the training loop with a bare loop of forward, backward and step, on synthetic images.

    python tools/bench_loop.py --model torchvision/resnet18 --resolution 64 --batch-size 32

Each loop trains its own network with the same weights on the same batch; they take turns in one process, and the
medians of the ratios count. The training loop is that of train/run.py, with everything it does in a step and at a log
line: sums of loss and accuracy, the check for requests to stop, metrics.jsonl and TensorBoard. It is measured with a
log line per turn and with one per step, which shows the cost of a line.
"""

import contextlib
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Literal

import torch
from torch import nn

from pipeline.progress import counted
from pipeline.storage.manifest import SplitInfo
from pipeline.storage.split import Split
from tools.bench import report
from train.config import TrainConfig
from train.device import AMP_DTYPES, DeviceName, configure_math, select, synchronize
from train.logs import open_log
from train.loop import Trainer
from train.meeting import meet
from train.network import build_model
from train.process import Process
from train.run_directory import RunDirectory
from train.session import Session
from train.stopping import StopRequests
from train.world import World

CLASSES = 1000
TRAINING, LOGGING, BARE = "training loop", "training loop, a log line per step", "bare loop"


@dataclass(frozen=True, kw_only=True)
class BenchSettings:
    """Compare the training loop with a bare one."""

    model: str = "torchvision/resnet50"
    """As in train/run.py."""
    batch_size: int = 64
    resolution: int | None = None
    device: DeviceName = "auto"
    amp: Literal["off", "bf16"] = "off"
    compile: bool = False
    """torch.compile the models."""
    rounds: int = 15
    """Turns of each loop; the median counts."""
    steps: int = 20
    """Steps per turn; a turn ends with a log line."""
    out: Path = Path("runs/bench-loop")
    """Where loop.json goes."""

    def __post_init__(self) -> None:
        for name in ("batch_size", "rounds", "steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"--{name.replace('_', '-')} {getattr(self, name)}: must be at least 1")

    def training_config(self, run_dir: Path, print_freq: int) -> TrainConfig:
        """The settings of a measured run."""
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
    """A turn of the loop as tutorials write it, on the synthetic loader's batch."""
    model, loss_of = session.model.classifier, nn.CrossEntropyLoss()
    optimizer, dtype = session.train_step.optimizer, AMP_DTYPES[settings.amp]
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
    """Duration of a turn, until the device has finished."""
    synchronize(device)
    started = time.perf_counter()
    turn()
    synchronize(device)
    return time.perf_counter() - started


@contextlib.contextmanager
def open_run(settings: BenchSettings, device: torch.device, run_dir: Path, print_freq: int) -> Iterator[Trainer]:
    """A training run that has not taken a step."""
    config, world = settings.training_config(run_dir, print_freq), World()
    meeting = meet(world, config.rdzv_timeout)
    info = SplitInfo(samples=settings.steps * settings.batch_size, bytes=0, image_mode="synthetic")
    process = Process(config, world, device)
    split = Split("train", Path("none"), tuple(map(str, range(CLASSES))), info)
    with process.open_loader("synthetic", split, training=True) as training:
        session = Session(process, build_model(process, split.classes), training)
        with RunDirectory(config, meeting, "synthetic", None, session.position) as directory:
            yield Trainer(session, directory, StopRequests(world), "synthetic", open_log(config, world, device.type))


def bench(settings: BenchSettings) -> dict[str, Any]:
    """The command."""
    configure_math(deterministic=False)
    device = select(settings.device, 0, 1)
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as runs:
        training, logging, bare = (
            runs.enter_context(open_run(settings, device, Path(folder) / name, print_freq))
            for name, print_freq in (("training", settings.steps), ("logging", 1), ("bare", settings.steps))
        )
        turns = {TRAINING: training.train_epoch, LOGGING: logging.train_epoch, BARE: bare_loop(bare.session, settings)}
        return compare(settings, turns, device)


def compare(settings: BenchSettings, turns: dict[str, Callable[[], None]], device: torch.device) -> dict[str, Any]:
    """The rates of all loops, and the medians over rounds of their ratios to the bare loop."""
    images, rates = settings.steps * settings.batch_size, {name: list[float]() for name in turns}
    order = [
        (number, name)
        for number in range(settings.rounds + 1)
        for name in sorted(turns, reverse=bool(number % 2))  # so that none always comes first
    ]
    for number, name in counted(order, "turns of the loops", len(order), "turns"):
        turn_s = seconds(turns[name], device)
        if number:  # the first compiles, allocates and chooses kernels
            rates[name].append(images / turn_s)
    ratios = {
        name: round(median(rate / bare for rate, bare in zip(rates[name], rates[BARE], strict=True)), 4)
        for name in (TRAINING, LOGGING)
    }
    machine = report.machine(device)
    print(report.ratio_table("images/s", rates, dict.fromkeys(ratios, (BARE,))))
    medians_text = ", ".join(f"{name} {ratio:.4f}" for name, ratio in ratios.items())
    print(f"{settings.model}: medians of {settings.rounds} ratios to the {BARE} of the same round: {medians_text}")
    print(report.machine_line(machine))
    content = {"machine": machine, "model": settings.model, "images_per_s": rates, "ratios": ratios}
    report.write_json(settings.out / "loop.json", content)
    medians = {name: round(median(values), 1) for name, values in rates.items()}
    return {"model": settings.model, "images_per_s": medians, "ratios": ratios}
