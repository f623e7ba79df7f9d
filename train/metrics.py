"""What a run measures and writes: accuracy, images/s, metrics.jsonl."""

import contextlib
import json
import logging
import math
import statistics
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional

from pipeline.errors import InputError
from pipeline.storage.files import complete_or_absent, regular
from train import tracking
from train.json_lines import are_numbers, read_rows, sound_lines
from train.tracking import Tracker, TrackerName

log = logging.getLogger(__name__)

Item = TypeVar("Item")

WARMUP_STEPS = 2
"""Steps at the start of a run that images/s does not count: allocation, autotuning, compilation."""

THROUGHPUT_DEFINITION = (
    f"training images over wall-clock seconds, all processes; waiting for data included, the first "
    f"{WARMUP_STEPS} steps, evaluation and checkpoints left out"
)


MIXED = "mixed_"
"""Prefix of what a training row says about images mixed by Mixup or CutMix."""

MOST_ROWS, MOST_POINTS = 20_000, 1_000
"""How many training rows of a run are parsed to draw it, and of how many points a curve is made: a picture has about
1,300 columns. A run of 1,000 epochs may have 350,000 rows."""

_EVALUATION, _LONGEST_LINE = b'{"kind": "eval"', 1 << 16

DATA_BOUND = 0.1
"""Above this share of the time spent waiting for batches, data limits a run."""


class Totals:
    """Sums over images, on the device until `result` is called."""

    def __init__(self, device: torch.device) -> None:
        self._counts = torch.zeros(3, dtype=torch.int64, device=device)  # images, top-1, top-5
        self._loss = torch.zeros((), dtype=torch.float32, device=device)

    def add(self, logits: Tensor, targets: Tensor) -> None:
        """Count a batch: logits [B, classes] and labels int64 [B], or for mixed images their probabilities, float32
        [B, classes]. Then an image counts for the label with the largest share. Nothing waits for the device."""
        labels = targets.argmax(1) if targets.ndim > 1 else targets
        best = logits.topk(min(5, logits.shape[1]), dim=1).indices == labels[:, None]
        self._counts += torch.stack([best.new_tensor(len(labels), dtype=torch.int64), best[:, 0].sum(), best.sum()])
        self._loss += functional.cross_entropy(logits.float(), targets, reduction="sum")

    def result(self) -> dict[str, float]:
        """Over all processes: images, mean cross-entropy as "loss", top-1 and top-5 in percent. A collective call."""
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


def training_names(totals: dict[str, float], mixed: bool) -> dict[str, float]:
    """`Totals.result()` under the names of a training row: loss and accuracy on mixed images get a prefix, because
    they cannot be compared with those on whole images."""
    return {MIXED + name if mixed and name in ("loss", "top1", "top5") else name: totals[name] for name in totals}


class Throughput:
    """Images, seconds and seconds spent waiting for data, as THROUGHPUT_DEFINITION says."""

    def __init__(self) -> None:
        self._steps = 0
        self.images, self.seconds, self.waited = 0, 0.0, 0.0
        self._warmup_images_per_s = 0.0
        self._mark: float | None = None
        self._before_restart = 0.0, 0.0  # seconds waited and elapsed in the warm-up
        self._interval_start = 0.0, 0.0  # and at the last call of `interval`

    def resume(self) -> None:
        """Start the clock."""
        self._mark = time.perf_counter()

    def pause(self) -> None:
        """Stop the clock; the device must be idle."""
        assert self._mark is not None
        self.seconds += time.perf_counter() - self._mark
        self._mark = None

    def timed(self, batches: Iterator[Item]) -> Iterator[Item]:
        """Pass batches on, and measure how long each is waited for."""
        while True:
            requested = time.perf_counter()
            try:
                batch = next(batches)
            except StopIteration:
                return
            self.waited += time.perf_counter() - requested
            yield batch

    def count(self, images: int) -> bool:
        """Count a step. True when the warm-up has just ended: then synchronise the device and call `restart`."""
        self._steps += 1
        self.images += images
        return self._steps == WARMUP_STEPS

    def restart(self) -> None:
        """Forget the warm-up."""
        self._warmup_images_per_s = self.images_per_s
        waited, elapsed = self._before_restart
        self._before_restart = waited + self.waited, elapsed + self.elapsed
        self.images, self.seconds, self.waited = 0, 0.0, 0.0
        self.resume()

    @property
    def elapsed(self) -> float:
        """Seconds so far, also while the clock runs."""
        running = time.perf_counter() - self._mark if self._mark is not None else 0.0
        return self.seconds + running

    @property
    def images_per_s(self) -> float:
        """Of this process; in a run without a step after the warm-up, that of the warm-up."""
        if self.images == 0 or self.elapsed == 0:
            return self._warmup_images_per_s
        return self.images / self.elapsed

    @property
    def data_wait(self) -> float:
        """The share of the time spent waiting for data, 0 to 1."""
        return share(self.waited, self.elapsed)

    def interval(self) -> tuple[float, float]:
        """Seconds spent waiting for data, and seconds, since the last call; those of the warm-up too."""
        waited, elapsed = self._before_restart
        now = waited + self.waited, elapsed + self.elapsed
        before, self._interval_start = self._interval_start, now
        return now[0] - before[0], now[1] - before[1]


def share(part: float, whole: float) -> float:
    """A part of a whole, 0 to 1; 0 of nothing."""
    return part / whole if whole else 0.0


def limited_by(data_wait: float, images: int) -> str:
    """What limited a run of so many measured images, in words; `data_wait` is the share spent waiting for data."""
    if not images:
        return "nothing: no step was measured"
    limit = "data" if data_wait > DATA_BOUND else "the training step"
    return f"{limit}: {data_wait:.0%} of the time was spent waiting for batches"


def finite(value: Any) -> Any:
    """The value, or None for a number that JSON cannot express."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def result_line(
    evaluation: dict[str, Any],
    images_per_s: float,
    seconds: float,
    loader_name: str,
    run_dir: Path,
    weights: str,
) -> dict[str, Any]:
    """The result line of a run. `weights` says which of a checkpoint's were evaluated: "ema", the averaged ones, or
    "model"."""
    return {
        "top1": evaluation.get("top1"),
        "top5": evaluation.get("top5"),
        "evaluated": evaluation.get("images", 0),
        "loss": finite(evaluation.get("loss")),
        "weights": weights,
        "images_per_s": round(images_per_s, 3),
        "seconds": round(seconds, 1),
        "loader": loader_name,
        "run_dir": str(run_dir),
    }


class RunWriter:
    """metrics.jsonl and the trackers of a run. Rows of steps after `step` are dropped: a resumed run writes them
    again. `settings` are what trackers show as the run's hyper-parameters."""

    def __init__(
        self, run_dir: Path, step: int, trackers: Iterable[TrackerName] = (), settings: Mapping[str, Any] | None = None
    ) -> None:
        self._path = run_dir / "metrics.jsonl"
        self.evaluations: dict[int, dict[str, Any]] = {}
        """The rows of all evaluations, by step."""
        with complete_or_absent(self._path, "wb") as file:
            for line, row in sound_lines(self._path, _is_sound):
                if row["step"] <= step:
                    file.write(line)
                    if row["kind"] == "eval":
                        self.evaluations[row["step"]] = row
        self._file = open(self._path, "a", opener=regular)  # noqa: SIM115 (closed in close)
        self._trackers: dict[TrackerName, Tracker] = {}
        for name in trackers:
            with self._optional(name):
                self._trackers[name] = tracking.open_tracker(name, run_dir, settings or {}, step)

    def write(self, kind: str, step: int, **values: float) -> None:
        """Append a row: kind is "train" or "eval", step counts the run's optimiser steps."""
        row = {"kind": kind, "step": step, **{name: finite(value) for name, value in values.items()}}
        if kind == "eval":
            self.evaluations[step] = row
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()
        scalars = {f"{kind}/{name}": value for name, value in values.items()}
        for name, tracker in list(self._trackers.items()):
            with self._optional(name):
                tracker.write(scalars, step)

    def close(self) -> None:
        """Close the files."""
        self._file.close()
        for name, tracker in list(self._trackers.items()):
            with self._optional(name):
                tracker.close()

    @contextlib.contextmanager
    def _optional(self, name: TrackerName) -> Iterator[None]:
        """Where a tracker fails, the log says so, and the run goes on without it. A setting that it does not take is
        the user's to correct."""
        try:
            yield
        except InputError:
            raise
        except Exception as error:
            self._trackers.pop(name, None)
            place = self._path.with_name(name) if name == "tensorboard" else f"--log {name}"
            reason = error.strerror if isinstance(error, OSError) and error.strerror else " ".join(str(error).split())
            log.warning("%s: nothing more is written there (%s)", place, reason)


def read_metrics(run_dir: Path) -> Iterator[dict[str, Any]]:
    """The sound rows of metrics.jsonl, see `read_rows`."""
    return read_rows(run_dir / "metrics.jsonl", _is_sound)


def rows_to_draw(run_dir: Path) -> list[dict[str, Any]]:
    """All evaluations in metrics.jsonl, and evenly spaced ones of the other rows, at most about MOST_ROWS."""
    path = run_dir / "metrics.jsonl"
    if not path.is_file():
        return []
    with path.open("rb") as file:
        lines = path.stat().st_size / max(len(file.readline(_LONGEST_LINE)), 1)
    step = max(1, round(lines / MOST_ROWS))

    def is_wanted(number: int, line: bytes) -> bool:
        return number % step == 0 or line.startswith(_EVALUATION)

    return [row for _, row in sound_lines(path, _is_sound, is_wanted)]


def thinned(epochs: list[float], values: list[float]) -> tuple[list[float], list[float]]:
    """A curve of at most MOST_POINTS points: the means of neighbours."""
    step = -(-len(epochs) // MOST_POINTS)
    if step <= 1:
        return epochs, values

    def means(numbers: list[float]) -> list[float]:
        return [statistics.fmean(numbers[start : start + step]) for start in range(0, len(numbers), step)]

    return means(epochs), means(values)


def _is_sound(row: dict[str, Any]) -> bool:
    """Whether a row of metrics.jsonl has what is read from it: numbers, of which a loss may be missing (`finite`)."""
    prefix = MIXED if row.get("kind") == "train" and f"{MIXED}loss" in row else ""
    loss = row.get(f"{prefix}loss", "")
    numbers = row.get("step"), row.get("epoch"), row.get(f"{prefix}top1"), 0 if loss is None else loss
    return row.get("kind") in ("train", "eval") and isinstance(row.get("step"), int) and are_numbers(*numbers)
