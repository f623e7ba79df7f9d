"""Measures rates in windows of equally many steps, after a warm-up that finds how many steps fill a window.

All processes of the run take part; rates are those of all processes together.
"""

import contextlib
import itertools
import math
import resource
import sys
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import psutil
import torch.distributed as dist
from tqdm import tqdm

from pipeline.contract import Batch, Loader
from pipeline.progress import LINE_SECONDS
from tools.bench.report import Rate
from tools.profiling import page_cache
from tools.profiling.profiles import Measured
from train.device import synchronize
from train.metrics import WARMUP_STEPS
from train.session import Session
from train.step_clock import PHASES, StepClock
from train.world import same_on_all

READY_WITHIN_S = 0.01
"""A batch that was loaded ahead arrives within this time."""

SHORT_SECONDS = 5.0
"""What is left and takes less than this needs no line."""


@dataclass(frozen=True, kw_only=True)
class Windows:
    """How often and how long a rate is measured."""

    count: int = 5
    seconds: float = 1.0


class BatchSource:
    """Endless batches of a loader that loads up to `ahead` batches ahead.

    With `files`, these are dropped from the page cache before each window, which then starts a new epoch.
    """

    def __init__(self, loader: Loader, session: Session, ahead: int = 0, files: list[Path] | None = None) -> None:
        self.session, self.left_in_cache = session, None if files is None else 1.0
        self._loader, self._ahead, self._files = loader, ahead, files
        self._epochs = itertools.count()
        self._batches = self._endless()

    def begin_window(self, step: Callable[[Batch], object]) -> Iterator[Batch]:
        """The batches of a window.

        Batches that were loaded before the window are skipped, and one step is run outside it. A cold window starts
        with its first batch instead.
        """
        if self._files is not None:
            self._batches.close()
            page_cache.drop(self._files)
            self.left_in_cache = page_cache.resident_share(self._files)
            self._batches = self._endless()
            return self._batches
        for _ in range(self._ahead):
            requested = time.perf_counter()
            next(self._batches)
            if time.perf_counter() - requested > READY_WITHIN_S:
                break  # this one was not loaded ahead, so neither are those after it
        step(next(self._batches))
        return self._batches

    @property
    def longest_window(self) -> float:
        """In batches: files that were read in a window are cold no longer."""
        return math.inf if self._files is None else self._loader.batches_per_epoch

    def _endless(self) -> Generator[Batch, None, None]:
        for epoch in self._epochs:
            yield from self._loader.epoch(epoch, self.session.resolution)


def cpu_seconds() -> float:
    """CPU time so far of this process and its children: running ones (to a tick, 10 ms) and ended ones."""
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    total = time.process_time() + ended.ru_utime + ended.ru_stime
    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):  # it has just ended
            times = child.cpu_times()
            total += times.user + times.system + times.children_user + times.children_system
    return total


def machine_cpu_seconds() -> float:
    """CPU time so far of everything on the machine, including what its hypervisor gave to other machines."""
    times = psutil.cpu_times()
    # Time of guests is contained in user and nice.
    return float(sum(times) - times.idle - times.iowait - times.guest - times.guest_nice)


@dataclass(frozen=True, kw_only=True)
class WindowTotals:
    """One window over all processes."""

    images: int
    seconds: float
    """Of the slowest process."""
    cpu_s: float
    """CPU time of all processes."""
    machine_cpu_s: float
    """CPU time of everything on the machine."""

    @classmethod
    def gathered(cls, images: int, seconds: float, cpu_s: float, machine_cpu_s: float) -> "WindowTotals":
        """From the figures of each process. A collective call."""
        rows: list[Any] = [(images, seconds, cpu_s, machine_cpu_s)]
        if dist.is_initialized():
            rows = [None] * dist.get_world_size()
            dist.all_gather_object(rows, (images, seconds, cpu_s, machine_cpu_s))
        all_images, all_seconds, all_cpu_s, all_machine_cpu_s = zip(*rows, strict=True)
        return cls(
            images=sum(all_images),
            seconds=max(all_seconds),
            cpu_s=sum(all_cpu_s),
            machine_cpu_s=max(all_machine_cpu_s),
        )


class RateMeter:
    """Takes batches from a source and runs `step` on each, in windows. All processes run equally many steps."""

    def __init__(self, source: BatchSource, step: Callable[[Batch], object], clock: StepClock | None = None) -> None:
        self._source, self._step, self._clock = source, step, clock
        self._steps = 0
        self._windows: list[WindowTotals] = []
        self._phases: list[dict[str, float]] = []

    def warm_up(self, seconds: float) -> None:
        """Find how many steps fill a window of so many seconds."""
        most = self._source.longest_window
        steps = int(min(WARMUP_STEPS, most))
        self._run(steps)
        while (window_s := self._run(steps).seconds) < seconds / 2 and steps < most:
            steps = int(min(2 * steps, most))
        self._steps = max(1, int(min(most, math.ceil(steps * seconds / window_s))))
        self._phases.clear()

    def measure_window(self) -> None:
        """Measure once."""
        self._windows.append(self._run(self._steps))

    def _run(self, steps: int) -> WindowTotals:
        source, clock = self._source, self._clock
        batches = source.begin_window(self._step)
        synchronize(source.session.device)
        same_on_all(0, source.session.world)  # all processes begin at once
        if clock:
            clock.seconds()  # discards the time before the window
        images, started, cpu, machine = 0, time.perf_counter(), cpu_seconds(), machine_cpu_seconds()
        for batch in itertools.islice(clock.timed(batches) if clock else batches, steps):
            images += len(batch.labels)
            self._step(batch)
        synchronize(source.session.device)
        seconds, machine = time.perf_counter() - started, machine_cpu_seconds() - machine
        totals = WindowTotals.gathered(images, seconds, cpu_seconds() - cpu, machine)
        if clock:
            self._phases.append(clock.seconds())
        return totals

    @property
    def rates(self) -> list[float]:
        """Images per second in each window."""
        return [window.images / window.seconds for window in self._windows]

    @property
    def measured(self) -> Measured:
        """Medians of the windows."""
        windows = self._windows
        return Measured(
            rate=Rate.of(self.rates),
            cpu_s=median(window.cpu_s / window.images for window in windows),
            cores_used=median(window.cpu_s / window.seconds for window in windows),
            others_cores=median(max(0.0, window.machine_cpu_s - window.cpu_s) / window.seconds for window in windows),
        )

    @property
    def step_s(self) -> dict[str, float]:
        """Seconds per step, by phase."""
        steps = self._steps * len(self._phases)
        return {phase: sum(window[phase] for window in self._phases) / steps for phase in PHASES}


def measure_in_turn(meters: list[RateMeter], windows: Windows, progress: str | None = None) -> None:
    """Measure one window of each in turn, so that changes in the machine's speed affect all of them. `progress` begins
    the lines that say how many windows are measured, where it takes long."""
    for meter in meters:
        meter.warm_up(windows.seconds)
    started, logged = time.monotonic(), -math.inf
    for done in range(1, windows.count + 1):
        for meter in meters:
            meter.measure_window()
        now = time.monotonic()
        seconds_left = (windows.count - done) * (now - started) / done
        if progress and seconds_left > SHORT_SECONDS and now - logged >= LINE_SECONDS:
            logged = now
            line = f"{progress}: {done} of {windows.count} windows measured, about {seconds_left:.0f} s left"
            tqdm.write(line, sys.stderr)
