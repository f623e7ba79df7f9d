"""Loaders alone: images/s by threads, from tiles and at quality 90, next to FFCV and DALI; with the GPU's JPEG engine
and without."""

import contextlib
import importlib.util
import itertools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import torch

from pipeline import loaders
from pipeline.contract import CPU
from pipeline.errors import InputError
from tools.bench.gpu.card import watched_engine
from tools.bench.gpu.data import Data, data_of, has_ffcv
from tools.bench.gpu.record import Figure, Measurement, Record, measure_all
from tools.bench.gpu.settings import Sizes
from tools.bench.loaders import Batches, BenchSettings, dali_batches, ffcv_batches, sluice_batches, sluice_spec
from tools.bench.report import Rate
from tools.profiling.windows import cpu_seconds
from train.device import select, synchronize

TILES, Q90, ORIGINAL, OWN_Q90 = "tiles", "q90 tiles", "original bytes", "q90"
Open = Callable[[BenchSettings, torch.device], contextlib.AbstractContextManager[Batches]]
"""Opens a loader, which is closed at the end of the block."""

SHARES = (0.0, 0.65, 1.0)
"""Of the images, how many go to the JPEG engine; DALI's default is in the middle."""


@dataclass(frozen=True, kw_only=True)
class Variant:
    """A loader over data."""

    name: str
    """What its figures are called."""
    open: Open
    most_threads_only: bool = False
    on_gpu: bool = False
    """Whether the GPU decodes. Its engine is watched then, by a program that takes CPU time itself."""

    def names(self, threads: tuple[int, ...]) -> tuple[str, ...]:
        """Of its figures."""
        counts = threads[-1:] if self.most_threads_only else threads
        return tuple(f"{self.name}, {count} {'thread' if count == 1 else 'threads'}" for count in counts)


def threads_of(name: str) -> int:
    """The threads that the name of a figure tells."""
    return int(name.rpartition(", ")[2].partition(" ")[0])


def loader_of(name: str) -> str:
    """The rest of that name."""
    return name.rpartition(", ")[0]


@contextlib.contextmanager
def open_sluice(dataset: Path, loader: str, settings: BenchSettings, device: torch.device) -> Iterator[Batches]:
    """A loader of Sluice."""
    with contextlib.closing(loaders.create(loader, sluice_spec(dataset, settings, device=device))) as opened:
        yield sluice_batches(opened)


@contextlib.contextmanager
def open_dali_loader(
    dataset: Path, share: float, fancy: bool, settings: BenchSettings, device: torch.device
) -> Iterator[Batches]:
    """Sluice's `dali` loader, with DALI's decoder set otherwise than there."""
    from pipeline.loaders.dali import DaliLoader, GpuDecoding

    decoding = GpuDecoding(hardware_share=share, fancy_upsampling=fancy)
    with contextlib.closing(DaliLoader(sluice_spec(dataset, settings, device=device), decoding)) as opened:
        yield sluice_batches(opened)


@contextlib.contextmanager
def open_dali(
    folder: Path, roi: bool, on_cpu: bool, share: float, settings: BenchSettings, device: torch.device
) -> Iterator[Batches]:
    """DALI as in its examples."""
    yield dali_batches(folder, settings, roi, CPU if on_cpu else device, share)


@contextlib.contextmanager
def open_ffcv(beton: Path, settings: BenchSettings, device: torch.device) -> Iterator[Batches]:
    """FFCV's own loader."""
    yield ffcv_batches(beton, settings, True, device)


def sluice_variants(data: Data, device: torch.device) -> Iterator[Variant]:
    """Sluice's loaders that are installed, over both datasets."""
    for name in loaders.by_priority():
        try:
            loaders.load(name)
        except InputError:  # `measure` says which are missing
            continue
        for kind, dataset in ((TILES, data.tiled), (Q90, data.q90)):
            on_gpu = name == "dali" and device.type == "cuda"
            yield Variant(name=f"{name}, {kind}", open=partial(open_sluice, dataset, name), on_gpu=on_gpu)


def peers(data: Data, device: torch.device) -> Iterator[Variant]:
    """FFCV and DALI as they are."""
    if has_ffcv():
        yield Variant(name=f"FFCV, {ORIGINAL}", open=partial(open_ffcv, data.kept / "ffcv/train.beton"))
        yield Variant(name=f"FFCV, {OWN_Q90}", open=partial(open_ffcv, data.ffcv_q90))
    if not has_dali():
        return
    for kind, folder in ((ORIGINAL, data.images), (OWN_Q90, data.q90_images)):
        yield Variant(name=f"DALI on the CPU, {kind}", open=partial(open_dali, folder, True, True, 0.0))
        if device.type != "cuda":
            continue
        name = f"DALI on the GPU, ROI decode, {kind}"
        yield Variant(name=name, open=partial(open_dali, folder, True, False, 0.0), on_gpu=True)
        for share in SHARES:
            name = f"DALI on the GPU, {share:.0%} to the engine, {kind}"
            yield Variant(name=name, open=partial(open_dali, folder, False, False, share), on_gpu=True)


def engine_variants(data: Data, device: torch.device) -> Iterator[Variant]:
    """The `dali` loader with the JPEG engine and without, with fancy upsampling, which Sluice's batches need, and
    without: whether the engine takes such images at all is to be seen."""
    if device.type != "cuda" or not has_dali():
        return
    for fancy in (True, False):
        for share in SHARES:
            upsampling = "fancy" if fancy else "plain"
            name = f"dali, cut bytes, {share:.0%} to the engine, {upsampling} upsampling"
            opened = partial(open_dali_loader, data.tiled, share, fancy)
            yield Variant(name=name, open=opened, most_threads_only=True, on_gpu=True)


def has_dali() -> bool:
    """Whether DALI is installed."""
    return importlib.util.find_spec("nvidia") is not None and importlib.util.find_spec("nvidia.dali") is not None


def measure(record: Record) -> None:
    """The part."""
    settings = record.settings
    data, device = data_of(settings), settings.torch_device()
    variants = [*engine_variants(data, device), *sluice_variants(data, device), *peers(data, device)]
    for name, package in (("ffcv", has_ffcv()), ("dali", has_dali())):
        if not package:
            record.leave_out(f"all of {name}", "it is not installed")
    measurements = [
        Measurement(
            names=variant.names(settings.sizes.threads), function=figures, arguments=(variant, settings.sizes, device)
        )
        for variant in variants
    ]
    measure_all(record, measurements)


def figures(variant: Variant, sizes: Sizes, device: torch.device, names: tuple[str, ...]) -> Iterator[Figure]:
    """The rate of a loader with each number of threads."""
    select(device.type, 0, 1)
    with contextlib.ExitStack() as opened:
        # All are opened before any of them touches the device: some fork.
        loaders_of = [
            opened.enter_context(
                variant.open(
                    BenchSettings(images=sizes.images, batch_size=sizes.loader_batch, workers=threads_of(name)), device
                )
            )
            for name in names
        ]
        for batches in loaders_of:
            with watched_engine(device) if variant.on_gpu else contextlib.nullcontext() as engine:
                figure = rate(batches, sizes, device)
            yield figure | engine.figure if engine is not None else figure


def rate(batches: Batches, sizes: Sizes, device: torch.device) -> Figure:
    """Images/s in windows of endless epochs, after a first one, and the CPU time behind them."""
    endless = chain.from_iterable(map(batches, itertools.count()))
    window(endless, sizes.loader_seconds, device)  # compiles, allocates, fills queues
    counts, seconds, cpu = [], [], cpu_seconds()
    for _ in range(sizes.rounds):
        count, window_s = window(endless, sizes.loader_seconds / sizes.rounds, device)
        counts.append(count)
        seconds.append(window_s)
    cpu = cpu_seconds() - cpu
    measured = Rate.of([count / window_s for count, window_s in zip(counts, seconds, strict=True)])
    return {
        "images_per_s": round(measured.median, 1),
        "low": round(measured.low, 1),
        "high": round(measured.high, 1),
        "cpu_us_per_image": round(1e6 * cpu / sum(counts), 1),
        "cores_used": round(cpu / sum(seconds), 2),
    }


def window(endless: Iterator[Any], seconds: float, device: torch.device) -> tuple[int, float]:
    """Batches for so many seconds, one at least: their images, and how long they took until the device had them."""
    count, started = 0, time.perf_counter()
    while not count or time.perf_counter() - started < seconds:
        count += len(next(endless))
    synchronize(device)
    return count, time.perf_counter() - started
