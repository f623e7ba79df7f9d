"""Where a loader's time goes: CPU seconds per image of reading, cropping, decoding, resizing and collating.

A loader runs in this process, in one thread, with clocks around the functions it calls (SEAMS), and then without. What
the clocks saw is the parts, the CPU time without them is the whole. Compiled kernels pass no seam: the steps of the
ffcv loader's are called one by one. CPU time is what is compared, because other programs on the machine do not add
to it; time spent waiting for storage is wall time that is not CPU time, and counted beside.

Nothing in the loaders knows of this, so it costs nothing while nobody measures.
"""

import contextlib
import functools
import importlib
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from itertools import islice
from statistics import median
from typing import Any, BinaryIO, NamedTuple
from unittest.mock import patch

import numpy as np
import torch
from numba import njit

from pipeline import loaders
from pipeline.contract import Loader, LoaderSpec
from pipeline.dataset import Split
from pipeline.formats.beton import MODE_JPEG
from pipeline.formats.samples import Sample
from pipeline.jpeg import turbojpeg
from pipeline.jpeg.crop import crop_tiles
from pipeline.resize import resize_crop

READ, CROP, DECODE, RESIZE, COLLATE = PARTS = ("read", "crop", "decode", "resize", "collate")

SEAMS = (
    ("pipeline.decode", "cropped", CROP),
    ("pipeline.decode", "decode_image", DECODE),
    ("pipeline.decode", "resize_crop", RESIZE),
    ("pipeline.loaders.torch", "BatchDataset.__getitem__", COLLATE),
    ("pipeline.loaders.webdataset", "load_batch", COLLATE),
    ("pipeline.loaders.dali", "cropped", CROP),
)
"""Module, function, and the part its time belongs to, less that of the parts it calls."""

COMPILED = ("ffcv",)
"""Loaders whose pixels are made in one compiled kernel."""

UNSEEN = {
    "webdataset": "taking the tar stream apart, webdataset's stages",
    "dali": "decoding in DALI's threads, DALI's own work",
}
"""What the time outside the seams is spent on, where that is more than Python between the parts."""

EPOCH = 2  # any; the crops of one epoch are measured
_PAGE = 4096


class Sums(NamedTuple):
    """Seconds by part."""

    cpu: Counter[str]
    wall: Counter[str]


class PartClock:
    """Sums CPU and wall seconds by part, from any thread. A part inside another is not counted in both."""

    def __init__(self) -> None:
        self.sums = Sums(Counter(), Counter())
        self._inside = threading.local()

    @contextlib.contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Count what runs inside to a part."""
        outer = getattr(self._inside, "seconds", None)
        inner = self._inside.seconds = [0.0, 0.0]
        wall, cpu = time.perf_counter(), time.thread_time()
        try:
            yield
        finally:
            took = time.thread_time() - cpu, time.perf_counter() - wall
            self.sums.cpu[name] += took[0] - inner[0]
            self.sums.wall[name] += took[1] - inner[1]
            self._inside.seconds = outer
            if outer is not None:
                outer[0] += took[0]
                outer[1] += took[1]

    def timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, counted to a part."""

        @functools.wraps(function)
        def run(*arguments: Any, **named: Any) -> Any:
            with self.part(name):
                return function(*arguments, **named)

        return run


class _TimedSamples:
    """A split's samples; reading them is counted."""

    def __init__(self, samples: Any, clock: PartClock) -> None:
        self._samples, self._clock = samples, clock

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, index: int) -> Sample:
        with self._clock.part(READ):
            return self._samples[index]

    def read_members(self, index: int) -> bytes:
        """As ShardSamples has it."""
        with self._clock.part(READ):
            return self._samples.read_members(index)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._samples, name)


class _TimedStream:
    """A stream from a web server; reading it is counted."""

    def __init__(self, stream: BinaryIO, clock: PartClock) -> None:
        self._stream, self.read = stream, clock.timed(READ, stream.read)

    def __enter__(self) -> "_TimedStream":
        return self

    def __exit__(self, *exception: object) -> None:
        self._stream.close()


def _timed_split(split: Split, clock: PartClock) -> Split:
    """The same split, its reads counted. A split's opened storages are its cached properties."""
    timed = replace(split)
    if split.url is None:
        opened = _TimedSamples(split.samples, clock)
        timed.__dict__["samples"] = opened
        if "webdataset" in split.formats:
            timed.__dict__["shards"] = opened
    return timed


@contextlib.contextmanager
def _clocks_at_seams(clock: PartClock) -> Iterator[None]:
    """Functions of the loaders that are imported are counted inside this block."""
    with contextlib.ExitStack() as patches:
        for module, path, part in SEAMS:
            if module in sys.modules:
                owner = functools.reduce(getattr, path.split(".")[:-1], importlib.import_module(module))
                name = path.rpartition(".")[2]
                patches.enter_context(patch.object(owner, name, clock.timed(part, getattr(owner, name))))
        if webdataset := sys.modules.get("pipeline.loaders.webdataset"):
            opened = webdataset.open_url
            patches.enter_context(patch.object(webdataset, "open_url", lambda url: _TimedStream(opened(url), clock)))
        yield


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
    """Wall time that reading took beyond its CPU time: waiting for storage or a network."""

    @property
    def other_s(self) -> float:
        """CPU time that no clock saw."""
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
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in a DataLoader's worker
    spec = replace(spec, workers=0, max_resolution=resolution)
    wholes, sums = list[float](), list[Sums]()
    try:
        with contextlib.closing(loaders.create(name, spec)) as loader, _clocked(name, spec, resolution) as run:
            # In turn, so that a machine whose speed changes changes both.
            for number in range(rounds + 1):
                before()
                whole = _whole_seconds(loader, spec, resolution, batches)
                before()
                seconds, images = run(batches)
                if number:  # the first compiles
                    wholes.append(whole)
                    sums.append(seconds)
    finally:
        torch.set_num_threads(threads)
    parts = {part: median(one.cpu[part] for one in sums) / images for part in PARTS if sums[0].cpu[part]}
    waited = median(max(0.0, one.wall[READ] - one.cpu[READ]) for one in sums) / images
    return LoaderParts(images=images, whole_s=median(wholes), parts_s=parts, read_wait_s=waited)


def _whole_seconds(loader: Loader, spec: LoaderSpec, resolution: int, batches: int) -> float:
    """CPU seconds an image. What beginning an epoch costs (the order of a million samples) is that of one batch."""
    long, long_s = _take(loader, spec, resolution, batches)
    short, short_s = _take(loader, spec, resolution, 1)
    return (long_s - short_s) / (long - short) if long > short else long_s / long


def _take(loader: Loader, spec: LoaderSpec, resolution: int, batches: int) -> tuple[int, float]:
    """Images and CPU seconds of the last batches of an epoch (its end, so that nothing is made ahead and not counted);
    of a stream, which reads what it passes over, the first."""
    start = max(0, loader.batches_per_epoch - batches) if spec.split.url is None else 0
    started = time.process_time()
    taken = sum(len(batch.labels) for batch in islice(loader.epoch(EPOCH, resolution, start), batches))
    return taken, time.process_time() - started


Clocked = Callable[[int], tuple[Sums, int]]
"""Runs so many batches; returns seconds and how many images they had."""


@contextlib.contextmanager
def _clocked(name: str, spec: LoaderSpec, resolution: int) -> Iterator[Clocked]:
    """The loader with clocks in it."""
    if name in COMPILED:
        yield _CompiledSteps(spec, resolution).run
        return
    clock = PartClock()
    loader = loaders.create(name, replace(spec, split=_timed_split(spec.split, clock)))

    def run(batches: int) -> tuple[Sums, int]:
        clock.sums = Sums(Counter(), Counter())
        with _clocks_at_seams(clock):
            images, _ = _take(loader, spec, resolution, batches)
        return clock.sums, images

    with contextlib.closing(loader):
        yield run


@njit(cache=True, nogil=True)
def _touch(stored):  # type: ignore[no-untyped-def]
    """Read one byte of each page of uint8 [N], which brings mapped pages in. Returns their sum."""
    total = 0
    for at in range(0, stored.size, _PAGE):
        total += stored[at]
    return total


class _CompiledSteps:
    """The steps of the ffcv loader's kernel, one call each: from the bytes of a mapped `.beton` file to an image."""

    def __init__(self, spec: LoaderSpec, resolution: int) -> None:
        self._spec, self._clock = spec, PartClock()
        self._file = np.memmap(spec.split.beton_path, np.uint8, "r")
        self._metadata, self._allocation = spec.split.beton.metadata["f0"], spec.split.beton.allocation
        self._decoder = turbojpeg.create_decoder()
        self._out = np.empty((resolution, resolution, 3), np.uint8)
        # The kernel's scratch comes from its thread's heap, at no cost after the first image.
        self._part, self._pixels = np.empty(0, np.uint8), np.empty(0, np.uint8)

    def run(self, batches: int) -> tuple[Sums, int]:
        """The last batches of an epoch."""
        self._clock, images = PartClock(), 0
        plan = self._spec.plan
        for indices in plan.batches(EPOCH, max(0, plan.batches_per_epoch - batches)):
            for index in indices.tolist():
                self._load(index)
            images += len(indices)
        return self._clock.sums, images

    def _load(self, index: int) -> None:
        mode, width, height, at = self._metadata[index].tolist()
        stored = self._file[at : at + int(self._allocation["size"][index])]
        spec, clock = self._spec, self._clock
        with clock.part(READ):
            _touch(stored)
        with clock.part(CROP):
            crop = spec.crop.crop(spec.seed, EPOCH, index, height, width)
        if mode == MODE_JPEG:
            pixels, top, left = self._decode(stored, *crop[:4])
        else:
            pixels, top, left = stored.reshape(height, width, 3), crop.top, crop.left
        if top + crop.height > pixels.shape[0] or left + crop.width > pixels.shape[1]:
            return  # the loader decodes such an image again, with the reference decoder
        with clock.part(RESIZE):
            resize_crop(pixels, top, left, *crop[2:], self._out)

    def _decode(self, jpeg: np.ndarray, *box: int) -> tuple[np.ndarray, int, int]:
        self._part = _of_size(self._part, jpeg.size)
        with self._clock.part(CROP):
            size, top, left = crop_tiles(jpeg, *box, self._part)
        with self._clock.part(DECODE):
            jpeg = self._part[:size] if size else jpeg
            height, width = turbojpeg.read_size(self._decoder, jpeg)
            self._pixels = _of_size(self._pixels, height * width * 3)
            pixels = self._pixels[: height * width * 3].reshape(height, width, 3)
            turbojpeg.decode_rgb(self._decoder, jpeg, pixels)
        return pixels, top, left


def _of_size(buffer: np.ndarray, size: int) -> np.ndarray:
    """uint8 with at least `size` elements: the buffer, or a new one."""
    return buffer if buffer.size >= size else np.empty(size, np.uint8)
