"""Measures rates: a loader alone, a model alone, both together, through the session that training uses.

A rate is measured in windows of equally many steps, after a warm-up that also finds how many steps fill a window. All
processes of the run take part; rates are those of all of them together.
"""

import contextlib
import itertools
import math
import os
import resource
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

import psutil
import torch
import torch.distributed as dist

from pipeline import page_cache
from pipeline.cli import configure_logging
from pipeline.contract import Batch, Loader, LoaderSpec
from pipeline.profiling import LoaderParts, measure_parts
from pipeline.transfer import to_device
from tools.report import Rate
from tools.step_clock import PHASES, StepClock
from train.config import TrainConfig
from train.device import configure_math, select, synchronize
from train.launch import launch, work
from train.meeting import meet
from train.metrics import WARMUP_STEPS
from train.session import Session, open_data
from train.world import World, finalize, find_world, same_on_all

AXES = ("workers", "batch_size", "resolution", "nproc")
"""Settings that a sweep changes."""
PART_IMAGES = 256
"""About so many images are measured part by part, or what a worker loads in a second, if that is less."""
TRACED_STEPS = 5
HANDED_OVER_S = 0.01
"""A batch that is ready is handed over sooner."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A rate and what it took."""

    rate: Rate
    cpu_s: float
    """CPU seconds an image, worker processes included."""
    cores_used: float
    """CPU seconds a second, of all processes."""
    others_cores: float
    """The same of all other programs on the machine."""


@dataclass(frozen=True, kw_only=True)
class Profile:
    """All that was measured of one loader with one setting."""

    loader: str
    model: str
    device: str
    nproc: int
    workers: int
    """Of each process."""
    batch_size: int
    resolution: int
    cores: int
    """Of the machine."""
    memory_bytes: int
    data_bytes: int | None
    """Of the images; None where they are in a folder or on a web server."""
    loader_alone: Measured
    model_alone: Measured
    together: Measured
    step_s: dict[str, float]
    """Seconds of a step of both together, by phase, of rank 0."""
    transfer: Rate | None = None
    """Copying batches to the device and nothing else; None on a CPU."""
    parts: LoaderParts | None = None
    cold_parts: LoaderParts | None = None
    """With the files dropped from the page cache."""
    left_in_cache: float | None = None
    """The share of the files that was still in the page cache after dropping them; None where none were dropped."""


@dataclass(frozen=True, kw_only=True)
class Windows:
    """How rates are measured."""

    count: int = 5
    seconds: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Options:
    """What is measured of a training run."""

    windows: Windows
    cold: bool = False
    """Drop the files from the page cache before each window."""
    parts: bool = True
    trace: Path | None = None
    """Write a trace of a few steps here."""


def profile(config: TrainConfig, options: Options) -> Profile:
    """Measure the training run that `config` describes, in --nproc processes."""
    made = _measure(config, options, World()) if config.nproc == 1 else _launched(config, options)
    assert made is not None, "rank 0 returns what was measured"
    return made


def cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0))


def _launched(config: TrainConfig, options: Options) -> Profile | None:
    with patch.dict(os.environ):  # the launcher sets the threads of each process, for this run alone
        return launch(config, _worker, config, options)[0]


def _worker(config: TrainConfig, options: Options) -> Profile | None:
    configure_logging()
    return work(_measure, config, options, find_world(config) or World())


def _measure(config: TrainConfig, options: Options, world: World) -> Profile | None:
    """As one process of `world`; rank 0 returns what was measured."""
    device = select(config.device, world.local_rank, world.local_size)
    configure_math(deterministic=False)
    meeting = meet(world, config.rdzv_timeout)
    with Session(config, world, device) as session:
        with meeting.joining(device):
            session.open_training(config.loader, open_data(config, "train"))
        session.build_training()
        made = _measure_all(session, options)
    finalize(world)
    return made if world.is_main else None


def _measure_all(session: Session, options: Options) -> Profile:
    config, windows, split = session.config, options.windows, session.training_split
    session.model.train()
    clock, spec = StepClock(session), session.loader_spec(split, training=True)
    files = page_cache.files_of(split) if options.cold else None

    synthetic = session.open_loader("synthetic", split, training=True)
    feed = Feed(session.training, session, ahead=2 * spec.workers + 3, files=files)
    loader_alone = Windowed(feed, _ignore)
    model_alone = Windowed(Feed(synthetic, session), session.train_step)
    together = Windowed(feed, session.train_step, clock)
    transfer = None if session.device.type == "cpu" else _transfer(session, spec)
    measure_in_turn([one for one in (loader_alone, model_alone, together, transfer) if one], windows)
    if options.trace:
        trace(feed, options.trace)
    measured_parts = partial(_measure_parts, session, spec, loader_alone.measured.rate, windows.count)
    return Profile(
        loader=config.loader,
        model=config.model,
        device=session.device.type,
        nproc=session.world.size,
        workers=spec.workers,
        batch_size=config.batch_size,
        resolution=session.resolution,
        cores=cores(),
        memory_bytes=psutil.virtual_memory().total,
        data_bytes=split.info.bytes if split.info and not split.url else None,
        loader_alone=loader_alone.measured,
        model_alone=model_alone.measured,
        together=together.measured,
        step_s=together.step_s,
        transfer=transfer.measured.rate if transfer else None,
        parts=measured_parts(None) if options.parts else None,
        cold_parts=measured_parts(files) if options.parts and options.cold else None,
        left_in_cache=feed.left_in_cache,
    )


class Feed:
    """Endless batches of a loader, which makes up to `ahead` of them ahead. With `files`, they are dropped from the
    page cache before each window, which then is a new epoch from its beginning."""

    def __init__(self, loader: Loader, session: Session, ahead: int = 0, files: list[Path] | None = None) -> None:
        self.session, self.left_in_cache = session, None if files is None else 1.0
        self._loader, self._ahead, self._files = loader, ahead, files
        self._epochs = itertools.count()
        self._batches = self._endless()

    def begin_window(self, step: Callable[[Batch], object]) -> Iterator[Batch]:
        """The batches of a window, without those that were made while nobody measured, and after one step that is not
        measured; of a cold one, from the first."""
        if self._files is not None:
            self._batches.close()
            page_cache.drop(self._files)
            self.left_in_cache = page_cache.resident_share(self._files)
            self._batches = self._endless()
            return self._batches
        for _ in range(self._ahead):
            asked = time.perf_counter()
            next(self._batches)
            if time.perf_counter() - asked > HANDED_OVER_S:
                break  # it was not there yet, and so are those behind it
        step(next(self._batches))
        return self._batches

    @property
    def longest_window(self) -> float:
        """In batches: what was read once in a window is not cold any more."""
        return math.inf if self._files is None else self._loader.batches_per_epoch

    def _endless(self) -> Generator[Batch, None, None]:
        for epoch in self._epochs:
            yield from self._loader.epoch(epoch, self.session.resolution)


def cpu_seconds() -> float:
    """CPU time of this process and its children so far, running ones (to a tick, 10 ms) and ended ones."""
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    total = time.process_time() + ended.ru_utime + ended.ru_stime
    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):  # it ended meanwhile
            times = child.cpu_times()
            total += times.user + times.system + times.children_user + times.children_system
    return total


def machine_cpu_seconds() -> float:
    """CPU time of everything on the machine so far; what its hypervisor gave to other machines counts."""
    times = psutil.cpu_times()
    return sum(times) - times.idle - times.iowait - times.guest - times.guest_nice  # guests are in user and nice too


class Taken:
    """What a window took, over all processes: `images`, `seconds` of the slowest, `cpu_s`; `machine_s` is the CPU time
    of everything on the machine."""

    def __init__(self, images: int, seconds: float, cpu_s: float, machine_s: float) -> None:
        rows: list[Any] = [(images, seconds, cpu_s, machine_s)]
        if dist.is_initialized():
            rows = [None] * dist.get_world_size()
            dist.all_gather_object(rows, (images, seconds, cpu_s, machine_s))
        columns = list(zip(*rows, strict=True))
        self.images, self.seconds, self.cpu_s = sum(columns[0]), max(columns[1]), sum(columns[2])
        self.machine_s = max(columns[3])


class Windowed:
    """Asks a feed for batches and does `step` with each, in windows. All processes make equally many steps."""

    def __init__(self, feed: Feed, step: Callable[[Batch], object], clock: StepClock | None = None) -> None:
        self._feed, self._step, self._clock = feed, step, clock
        self._steps = 0
        self._taken: list[Taken] = []
        self._phases: list[dict[str, float]] = []

    def warm_up(self, seconds: float) -> None:
        """Find how many steps fill a window."""
        most = self._feed.longest_window
        steps = int(min(WARMUP_STEPS, most))
        self._run(steps)
        while (took := self._run(steps).seconds) < seconds / 2 and steps < most:
            steps = int(min(2 * steps, most))
        self._steps = max(1, int(min(most, math.ceil(steps * seconds / took))))
        self._phases.clear()

    def window(self) -> None:
        """Measure once."""
        self._taken.append(self._run(self._steps))

    def _run(self, steps: int) -> Taken:
        feed, clock = self._feed, self._clock
        batches = feed.begin_window(self._step)
        synchronize(feed.session.device)
        same_on_all(0, feed.session.world)  # all begin at once
        if clock:
            clock.seconds()  # of what was before
        images, started, cpu, machine = 0, time.perf_counter(), cpu_seconds(), machine_cpu_seconds()
        for batch in itertools.islice(clock.timed(batches) if clock else batches, steps):
            images += len(batch.labels)
            self._step(batch)
        synchronize(feed.session.device)
        seconds, machine = time.perf_counter() - started, machine_cpu_seconds() - machine
        taken = Taken(images, seconds, cpu_seconds() - cpu, machine)
        if clock:
            self._phases.append(clock.seconds())
        return taken

    @property
    def measured(self) -> Measured:
        """The medians of the windows."""
        rate = Rate.of([one.images / one.seconds for one in self._taken])
        return Measured(
            rate=rate,
            cpu_s=median(one.cpu_s / one.images for one in self._taken),
            cores_used=median(one.cpu_s / one.seconds for one in self._taken),
            others_cores=median(max(0.0, one.machine_s - one.cpu_s) / one.seconds for one in self._taken),
        )

    @property
    def step_s(self) -> dict[str, float]:
        """Seconds of a step, by phase."""
        steps = self._steps * len(self._phases)
        return {phase: sum(one[phase] for one in self._phases) / steps for phase in PHASES}


def measure_in_turn(measured: list[Windowed], windows: Windows) -> None:
    """A window of each, again and again: where the machine's speed changes, it changes for all of them."""
    for one in measured:
        one.warm_up(windows.seconds)
    for _ in range(windows.count):
        for one in measured:
            one.window()


def _transfer(session: Session, spec: LoaderSpec) -> Windowed:
    """The copies of `to_device` from pinned memory, and nothing else. On a CPU it has nothing to do."""
    return Windowed(Feed(_HostBatches(spec, session.resolution), session), _ignore)


def _ignore(batch: Batch) -> None:
    """A step that does nothing."""


class _HostBatches:
    """One batch in pinned memory, copied to the device again and again."""

    batches_per_epoch = 1 << 20

    def __init__(self, spec: LoaderSpec, resolution: int) -> None:
        images = torch.zeros(spec.batch_size, resolution, resolution, 3, dtype=torch.uint8).permute(0, 3, 1, 2)
        numbers = torch.arange(spec.batch_size)
        self._batch = Batch(*(tensor.pin_memory() for tensor in (images, numbers, numbers)))
        self._spec = spec

    def epoch(self, epoch: int, resolution: int, start_batch: int = 0) -> Iterator[Batch]:
        return to_device(itertools.repeat(self._batch, self.batches_per_epoch - start_batch), self._spec)

    def close(self) -> None:
        """Holds nothing but memory."""


def _measure_parts(
    session: Session, spec: LoaderSpec, rate: Rate, rounds: int, files: list[Path] | None
) -> LoaderParts | None:
    """Where rank 0's loader, which gives `rate`, spends its time; each image from the disk where `files` are given."""
    parts = None
    if session.world.is_main:
        before = (lambda: None) if files is None else (lambda: page_cache.drop(files))
        in_a_second = rate.median / (spec.world_size * max(1, spec.workers))
        batches = max(2, math.ceil(min(PART_IMAGES, in_a_second) / spec.batch_size))
        parts = measure_parts(session.config.loader, spec, session.resolution, batches, rounds, before=before)
    same_on_all(0, session.world)  # the others leave it the machine
    return parts


def trace(feed: Feed, path: Path) -> None:
    """Write a Chrome trace of a few training steps (for chrome://tracing or ui.perfetto.dev)."""
    session = feed.session
    batches = feed.begin_window(session.train_step)
    with torch.profiler.profile(activities=torch.profiler.supported_activities()) as profiler:
        for batch in itertools.islice(batches, TRACED_STEPS):
            session.train_step(batch)
        synchronize(session.device)
    if session.world.is_main:
        path.parent.mkdir(parents=True, exist_ok=True)
        profiler.export_chrome_trace(str(path))
