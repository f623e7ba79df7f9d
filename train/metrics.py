"""What a run measures and leaves behind: accuracy, images/s, metrics.jsonl, TensorBoard, curves."""

import json
import math
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from pipeline.formats.files import complete_or_absent

Item = TypeVar("Item")

WARMUP_STEPS = 2
"""Steps at the start of a run that images/s leaves out: allocation, autotuning, compilation."""

THROUGHPUT_DEFINITION = (
    f"training images over wall-clock seconds, all processes; waiting for data included, the first "
    f"{WARMUP_STEPS} steps, evaluation and checkpoints left out"
)


DATA_BOUND = 0.1
"""From this share of the time spent waiting for batches on, data limits a run."""


class Totals:
    """Sums over images, kept on the device until they are asked for."""

    def __init__(self, device: torch.device) -> None:
        self._counts = torch.zeros(3, dtype=torch.int64, device=device)  # images, top-1, top-5
        self._loss = torch.zeros((), dtype=torch.float32, device=device)

    def add(self, logits: Tensor, labels: Tensor, loss: Tensor) -> None:
        """Count a batch: logits [B, classes], labels int64 [B], its mean loss. Nothing waits for the device."""
        best = logits.topk(min(5, logits.shape[1]), dim=1).indices == labels[:, None]
        self._counts += torch.stack([best.new_tensor(len(labels), dtype=torch.int64), best[:, 0].sum(), best.sum()])
        self._loss += loss * len(labels)

    def result(self) -> dict[str, float]:
        """Over all processes: images, mean loss, top-1 and top-5 in percent. A collective call."""
        counts, loss = self._counts.clone(), self._loss.clone()
        if dist.is_initialized():
            dist.all_reduce(counts)
            dist.all_reduce(loss)
        images, top1, top5 = counts.tolist()
        share = 100 / max(images, 1)
        return {
            "images": images,
            "loss": loss.item() / max(images, 1),
            "top1": top1 * share,
            "top5": top5 * share,
        }


class Throughput:
    """Images, seconds and seconds spent waiting for data, as THROUGHPUT_DEFINITION says."""

    def __init__(self) -> None:
        self._steps = 0
        self.images, self.seconds, self.waited = 0, 0.0, 0.0
        self._warmup_images_per_s = 0.0
        self._mark: float | None = None
        self._last = 0.0, 0.0  # seconds waited and elapsed when interval_wait was called

    def resume(self) -> None:
        """Start the clock."""
        self._mark = time.perf_counter()

    def pause(self) -> None:
        """Stop the clock; the device must have finished."""
        assert self._mark is not None
        self.seconds += time.perf_counter() - self._mark
        self._mark = None

    def waiting(self, batches: Iterator[Item]) -> Iterator[Item]:
        """Pass batches on and time how long each is waited for."""
        while True:
            asked = time.perf_counter()
            try:
                batch = next(batches)
            except StopIteration:
                return
            self.waited += time.perf_counter() - asked
            yield batch

    def count(self, images: int) -> bool:
        """Count a step. True when the warm-up just ended: then synchronise and call `restart`."""
        self._steps += 1
        self.images += images
        return self._steps == WARMUP_STEPS

    def restart(self) -> None:
        """Leave the warm-up behind."""
        self._warmup_images_per_s = self.images_per_s
        self.images, self.seconds, self.waited = 0, 0.0, 0.0
        self._last = 0.0, 0.0
        self.resume()

    @property
    def elapsed(self) -> float:
        """Seconds so far, the running ones included."""
        running = time.perf_counter() - self._mark if self._mark is not None else 0.0
        return self.seconds + running

    @property
    def images_per_s(self) -> float:
        """Of this process; a run without a step after the warm-up has only that to show."""
        if self.images == 0 or self.elapsed == 0:
            return self._warmup_images_per_s
        return self.images / self.elapsed

    @property
    def data_wait(self) -> float:
        """The share of the time spent waiting for data, 0 to 1."""
        return _share(self.waited, self.elapsed)

    def interval_wait(self) -> float:
        """The same of the time since the last call."""
        waited, elapsed = self._last
        self._last = self.waited, self.elapsed
        return _share(self.waited - waited, self.elapsed - elapsed)


def _share(part: float, whole: float) -> float:
    return part / whole if whole else 0.0


def limited_by(data_wait: float, images: int) -> str:
    """In words, what a run of so many measured images spent its time on: the share `data_wait` on waiting for data."""
    if not images:
        return "nothing: no step was measured"
    what = "data" if data_wait > DATA_BOUND else "the training step"
    return f"{what}: {data_wait:.0%} of the time went into waiting for batches"


def finite(value: Any) -> Any:
    """The same, None for a number that JSON does not have."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def result_line(
    evaluation: dict[str, Any], images_per_s: float, seconds: float, loader_name: str, run_dir: Path
) -> dict[str, Any]:
    """What the last line of a run says."""
    return {
        "top1": evaluation.get("top1"),
        "top5": evaluation.get("top5"),
        "evaluated": evaluation.get("images", 0),
        "loss": finite(evaluation.get("loss")),
        "images_per_s": round(images_per_s, 3),
        "seconds": round(seconds, 1),
        "loader": loader_name,
        "run_dir": str(run_dir),
    }


class RunWriter:
    """metrics.jsonl and TensorBoard of a run. Rows of steps after `step` are dropped: a resumed run makes them
    again."""

    def __init__(self, run_dir: Path, step: int) -> None:
        self._path = run_dir / "metrics.jsonl"
        kept = [row for row in read_metrics(run_dir) if row["step"] <= step]
        self.evaluations = {row["step"]: row for row in kept if row["kind"] == "eval"}
        """What `write` was given of each evaluation, by step."""
        with complete_or_absent(self._path) as file:
            file.writelines(json.dumps(row) + "\n" for row in kept)
        self._file = open(self._path, "a")  # noqa: SIM115 (closed in close)
        self._board = SummaryWriter(str(run_dir / "tensorboard"), purge_step=step + 1)

    def write(self, kind: str, step: int, **values: float) -> None:
        """Append a row: kind is "train" or "eval", step counts the run's optimiser steps."""
        row = {"kind": kind, "step": step, **{name: finite(value) for name, value in values.items()}}
        if kind == "eval":
            self.evaluations[step] = row
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()
        for name, value in values.items():
            self._board.add_scalar(f"{kind}/{name}", value, step)

    def close(self) -> None:
        """Finish the files."""
        self._file.close()
        self._board.close()


def read_metrics(run_dir: Path) -> list[dict[str, Any]]:
    """The rows of metrics.jsonl; a last line that was cut off is left out."""
    path = run_dir / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def plot_curves(run_dirs: Iterable[Path], picture: Path) -> None:
    """Draw loss and top-1 of one or more runs, training dashed, evaluation solid."""
    from matplotlib.figure import Figure  # here: 0.5 s of the start of every process otherwise

    figure = Figure(figsize=(11, 4.2), layout="constrained")
    loss_axes, top1_axes = figure.subplots(1, 2)
    for number, run_dir in enumerate(run_dirs):
        rows = read_metrics(run_dir)
        for kind, style in (("train", "--"), ("eval", "-o")):
            chosen = [row for row in rows if row["kind"] == kind]
            for axes, name in ((loss_axes, "loss"), (top1_axes, "top1")):
                label = f"{run_dir.name} {kind}"
                points = (
                    [row["epoch"] for row in chosen],
                    [math.nan if row[name] is None else row[name] for row in chosen],
                )
                axes.plot(*points, style, color=f"C{number}", label=label, markersize=3, linewidth=1.2)
    loss_axes.set(xlabel="epoch", ylabel="cross-entropy")
    top1_axes.set(xlabel="epoch", ylabel="top-1 (%)", ylim=(0, 100))
    for axes in (loss_axes, top1_axes):
        axes.grid(alpha=0.3)
    top1_axes.legend(fontsize=7)
    figure.savefig(picture, dpi=120)
