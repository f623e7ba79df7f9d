"""Where a loader's time goes: CPU seconds per image of reading, cropping, decoding, resizing and collating.

A loader runs in this process, in one thread, with a clock in its spec, and then without. What the clock counted is the
parts, the CPU time without it is the whole. Where the pixels are made in one compiled kernel, its steps are called one
by one instead (`create_stepped`). CPU time is what is compared, because other programs on the machine do not add to it;
time spent waiting for storage is wall time that is not CPU time, and counted separately.
"""

import contextlib
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from statistics import median
from typing import NamedTuple, get_args

import numpy as np
import torch

from pipeline import loaders
from pipeline.contract import Loader, LoaderSpec, Part

PARTS: tuple[Part, ...] = get_args(Part)

EPOCH = 2  # any; the crops of one epoch are measured


class PartSeconds(NamedTuple):
    """Seconds by part."""

    cpu: Counter[Part]
    wall: Counter[Part]


class PartClock:
    """Adds up CPU and wall seconds by part, from any thread. A part inside another is not counted in both."""

    def __init__(self) -> None:
        self.seconds = PartSeconds(Counter(), Counter())
        self._inner = threading.local()

    @contextlib.contextmanager
    def part(self, name: Part) -> Iterator[None]:
        """Count the time inside the block to a part."""
        with self.parts((name,), np.ones(1)):
            yield

    @contextlib.contextmanager
    def parts(self, names: Sequence[Part], shares: np.ndarray) -> Iterator[None]:
        """Count the time inside the block to parts, in proportion to `shares` as the block leaves them; if all are
        zero, to the first."""
        outer = getattr(self._inner, "seconds", None)
        inner = self._inner.seconds = [0.0, 0.0]  # of the parts inside this one
        wall, cpu = time.perf_counter(), time.thread_time()
        try:
            yield
        finally:
            cpu_s, wall_s = time.thread_time() - cpu, time.perf_counter() - wall
            whole = shares.sum()
            for number, name in enumerate(names):
                share = shares[number] / whole if whole else number == 0
                self.seconds.cpu[name] += share * (cpu_s - inner[0])
                self.seconds.wall[name] += share * (wall_s - inner[1])
            self._inner.seconds = outer
            if outer is not None:
                outer[0] += cpu_s
                outer[1] += wall_s

    def reset(self) -> PartSeconds:
        """The seconds since the last reset."""
        seconds, self.seconds = self.seconds, PartSeconds(Counter(), Counter())
        return seconds


@dataclass(frozen=True, kw_only=True)
class LoaderParts:
    """A loader's time for one image, in seconds, in one thread."""

    images: int
    """How many were measured."""
    whole_s: float
    """CPU time of the loader as a whole."""
    parts_s: dict[str, float] = field(default_factory=dict)
    """CPU time by part."""
    read_wait_s: float = 0.0
    """Wall time of reading beyond its CPU time: waiting for storage or a network."""

    @property
    def other_s(self) -> float:
        """CPU time outside the measured parts."""
        return self.whole_s - sum(self.parts_s.values())


def measure_parts(
    name: str,
    spec: LoaderSpec,
    resolution: int,
    batches: int,
    rounds: int,
    *,
    before: Callable[[], None] = lambda: None,
) -> LoaderParts:
    """Where the loader called `name` spends its time on the last `batches` batches of an epoch; medians of `rounds`.

    `before` is called before each run over them (to drop files from the page cache).
    """
    clock = PartClock()
    spec = replace(spec, workers=0, max_resolution=resolution)
    wholes, runs, images = list[float](), list[PartSeconds](), 0
    with (
        _one_torch_thread(),
        contextlib.closing(loaders.create(name, spec)) as loader,
        contextlib.closing(loaders.create_timed(name, replace(spec, clock=clock))) as timed_loader,
    ):
        # In turn, so that a machine whose speed changes changes both.
        for number in range(rounds + 1):
            before()
            whole = _whole_seconds(loader, spec, resolution, batches)
            before()
            clock.reset()
            images, _ = _run(timed_loader, spec, resolution, batches)
            if number:  # the first compiles
                wholes.append(whole)
                runs.append(clock.reset())
    used = [part for part in loaders.facts(name).timed if runs[0].cpu[part]]
    parts: dict[str, float] = {part: median(run.cpu[part] for run in runs) / images for part in used}
    waits = median(max(0.0, run.wall["read"] - run.cpu["read"]) for run in runs) / images
    return LoaderParts(images=images, whole_s=median(wholes), parts_s=parts, read_wait_s=waits)


@contextlib.contextmanager
def _one_torch_thread() -> Iterator[None]:
    """As in a DataLoader's worker."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _whole_seconds(loader: Loader, spec: LoaderSpec, resolution: int, batches: int) -> float:
    """CPU seconds an image, without the cost of beginning an epoch (the order of a million samples): that of a run over
    one batch is subtracted."""
    images, seconds = _run(loader, spec, resolution, batches)
    first_images, first_seconds = _run(loader, spec, resolution, 1)
    if images == first_images:
        return seconds / images
    return (seconds - first_seconds) / (images - first_images)


def _run(loader: Loader, spec: LoaderSpec, resolution: int, batches: int) -> tuple[int, float]:
    """Images and CPU seconds of the last batches of an epoch (its end, so that nothing is loaded ahead and not
    counted); of a stream, which has to read what it skips, the first."""
    start = max(0, loader.batches_per_epoch - batches) if spec.split.url is None else 0
    started = time.process_time()
    images = sum(len(batch.labels) for batch in islice(loader.epoch(EPOCH, resolution, start), batches))
    return images, time.process_time() - started
