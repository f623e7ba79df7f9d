"""Measures a loader alone, a model alone and both together, through the session that training uses."""

import contextlib
import itertools
import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import psutil
import torch

from pipeline.cli import configure_logging
from pipeline.contract import Batch, Loader, LoaderSpec
from pipeline.loaders import to_device
from tools.bench.report import Rate
from tools.profiling import page_cache
from tools.profiling.loader_parts import LoaderParts, measure_parts
from tools.profiling.profiles import Profile
from tools.profiling.windows import BatchSource, RateMeter, Windows, measure_in_turn
from train.config import TrainConfig
from train.device import configure_math, select, synchronize
from train.inputs import open_data
from train.launch import launch, work
from train.meeting import meet
from train.network import build_model
from train.process import Process
from train.session import Session
from train.step_clock import StepClock
from train.world import World, finalize, find_world, same_on_all

PART_IMAGES = 256
"""About this many images are measured part by part, or what a worker loads in a second if that is less."""
TRACED_STEPS = 5

Value = TypeVar("Value")


@dataclass(frozen=True, kw_only=True)
class Options:
    """What is measured of a training run."""

    windows: Windows
    cold: bool = False
    """Drop the files from the page cache before each window."""
    parts: bool = True
    """Measure the loader part by part too."""
    trace: Path | None = None
    """Write a trace of a few steps here."""


class InterruptedProfile(BaseException):
    """A measurement was stopped by `cause`; `profile` holds the windows that were measured before."""

    def __init__(self, profile: Profile, cause: BaseException) -> None:
        super().__init__(profile, cause)
        self.profile, self.cause = profile, cause


def profile(config: TrainConfig, options: Options) -> Profile:
    """Measure the training run that `config` describes, in --nproc processes. Raises InterruptedProfile in a single
    process, where a part can be kept."""
    measured = in_processes(config, _measure, options)
    assert measured is not None, "rank 0 returns the profile"
    return measured


def in_processes(config: TrainConfig, function: Callable[..., Value | None], *arguments: Any) -> Value | None:
    """What `function(config, *arguments, world)` returns on rank 0, called here or in --nproc processes."""
    if config.nproc == 1:
        return function(config, *arguments, World())
    with _environment_restored():  # the launcher sets the threads of each process, which is for this run only
        values: dict[int, Value | None] = launch(config, _worker, config, function, *arguments)
    return values[0]


def cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0))


@contextlib.contextmanager
def _environment_restored() -> Iterator[None]:
    """Undo what the block changes in this process's environment."""
    before = dict(os.environ)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _worker(config: TrainConfig, function: Callable[..., Value | None], *arguments: Any) -> Value | None:
    configure_logging()
    return work(function, config, *arguments, find_world(config) or World())


def _measure(config: TrainConfig, options: Options, world: World) -> Profile | None:
    """Measure as one process of `world`; rank 0 returns the profile."""
    device = select(config.device, world.local_rank, world.local_size)
    configure_math(deterministic=False)
    meeting = meet(world, config.rdzv_timeout)
    process = Process(config, world, device)
    with contextlib.ExitStack() as opened:
        with meeting.joining(device):
            split = open_data(config, "train")
            training = opened.enter_context(process.open_loader(config.loader, split, training=True))
            synthetic = opened.enter_context(process.open_loader("synthetic", split, training=True))
        session = Session(process, build_model(process, split.classes), training)
        measured = _measure_session(session, synthetic.loader, options)
    finalize(world)
    return measured if world.is_main else None


@dataclass(frozen=True, kw_only=True)
class _Meters:
    """What is measured of a session."""

    session: Session
    spec: LoaderSpec
    source: BatchSource
    loader_alone: RateMeter
    model_alone: RateMeter
    together: RateMeter
    transfer: RateMeter | None

    @classmethod
    def of(cls, session: Session, synthetic: Loader, files: list[Path] | None) -> "_Meters":
        """Of the session's loader, its model on `synthetic` images, and both. `files` are dropped from the page cache
        before each window."""
        clock, spec = StepClock(session), session.process.loader_spec(session.training.split, training=True)
        source = BatchSource(session.training.loader, session, ahead=2 * spec.workers + 3, files=files)
        return cls(
            session=session,
            spec=spec,
            source=source,
            loader_alone=RateMeter(source, _ignore),
            model_alone=RateMeter(BatchSource(synthetic, session), session.train_step),
            together=RateMeter(source, session.train_step, clock),
            transfer=None if session.device.type == "cpu" else _transfer_meter(session, spec),
        )

    @property
    def in_turn(self) -> list[RateMeter]:
        """All of them."""
        meters = (self.loader_alone, self.model_alone, self.together, self.transfer)
        return [meter for meter in meters if meter is not None]

    def profile(self, parts: LoaderParts | None = None, cold_parts: LoaderParts | None = None) -> Profile:
        """What was measured."""
        session, split = self.session, self.session.training.split
        return Profile(
            loader=session.config.loader,
            model=session.config.model,
            device=session.device.type,
            nproc=session.world.size,
            workers=self.spec.workers,
            batch_size=session.config.batch_size,
            resolution=session.resolution,
            cores=cores(),
            memory_bytes=psutil.virtual_memory().total,
            data_bytes=split.info.bytes if split.info and not split.url else None,
            windows=min(len(meter.rates) for meter in self.in_turn),
            loader_alone=self.loader_alone.measured,
            model_alone=self.model_alone.measured,
            together=self.together.measured,
            step_s=self.together.step_s,
            transfer=self.transfer.measured.rate if self.transfer else None,
            parts=parts,
            cold_parts=cold_parts,
            left_in_cache=self.source.left_in_cache,
        )


def _measure_session(session: Session, synthetic: Loader, options: Options) -> Profile:
    files = page_cache.files_of(session.training.split) if options.cold else None
    meters = _Meters.of(session, synthetic, files)
    try:
        measure_in_turn(meters.in_turn, options.windows, session.config.loader if session.world.is_main else None)
        if options.trace:
            trace(meters.source, options.trace)
        if not options.parts:
            return meters.profile()
        measure = partial(
            _measure_parts, session, meters.spec, meters.loader_alone.measured.rate, options.windows.count
        )
        return meters.profile(measure(None), measure(files) if files is not None else None)
    except (KeyboardInterrupt, SystemExit) as stop:
        if session.world.size == 1 and all(meter.rates for meter in meters.in_turn):
            raise InterruptedProfile(meters.profile(), stop) from None
        raise


def _transfer_meter(session: Session, spec: LoaderSpec) -> RateMeter:
    """Measures copying batches from pinned memory to the device, and nothing else."""
    return RateMeter(BatchSource(_PinnedBatches(spec, session.resolution), session), _ignore)


def _ignore(batch: Batch) -> None:
    """A step that does nothing."""


class _PinnedBatches:
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
    """Where the loader of rank 0 spends its time; None on other ranks.

    `rate` is the loader's, in images per second. Before each round `files` are dropped from the page cache.
    """
    parts = None
    if session.world.is_main:
        before = (lambda: None) if files is None else (lambda: page_cache.drop(files))
        images_per_worker_s = rate.median / (spec.world_size * max(1, spec.workers))
        batches = max(2, math.ceil(min(PART_IMAGES, images_per_worker_s) / spec.batch_size))
        parts = measure_parts(session.config.loader, spec, session.resolution, batches, rounds, before=before)
    same_on_all(0, session.world)  # the other ranks leave the machine to rank 0
    return parts


def trace(source: BatchSource, path: Path) -> None:
    """Write a Chrome trace of a few training steps (for chrome://tracing or ui.perfetto.dev)."""
    session = source.session
    batches = source.begin_window(session.train_step)
    with torch.profiler.profile() as profiler:
        for batch in itertools.islice(batches, TRACED_STEPS):
            session.train_step(batch)
        synchronize(session.device)
    if session.world.is_main:
        path.parent.mkdir(parents=True, exist_ok=True)
        profiler.export_chrome_trace(str(path))
