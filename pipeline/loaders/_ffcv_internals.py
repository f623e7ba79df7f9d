"""FFCV's parts that it does not document, and what importing it changes. Written for FFCV 1.0.2, the last release.

Import FFCV through this module only: the import itself needs care.

While FFCV is imported:
- `numba.typed.Dict`: FFCV makes a constant of two entries with it, which numba compiles: 3 to 5 s at every start. A
  plain dict stands in for it. (`ffcv.memory_managers.base` imports the name too, and does not use it.)
- `torch.set_num_threads`: the import sets it to 1. It is set back.
- `numba.set_num_threads`: the import calls it, and that starts numba's threads (see HAS_CORES). A function that does
  nothing stands in for it.

Afterwards:
- `Compiler.set_num_threads` sets torch's threads too, which slows a model on the CPU down to the loader's number; it is
  replaced by one that sets numba's. `Compiler.num_threads` is what FFCV reads.
- `Compiler.set_enabled`: FFCV compiles the functions that call the operations, again in each process: 0.5 s, for what
  takes no time between calls of whole batches. It is off while a Loader is created.
- `ffcv.loader.loader.OSCacheManager`: a Loader creates its memory manager itself. While one is created this name is
  `MappedFile`, which sets `reader`, `ptrs`, `sizes` and `context` (`OSCacheContext`) as OSCacheManager does, empties
  the reader's `alloc_table` and replaces its `metadata`.
- `ffcv.memory_managers.os_cache.nb`: to say that its mapped file is read-only, OSCacheManager sets `mutable` of numba's
  own type for uint8 vectors. In a process that uses FFCV's Loader too, kernels compiled before are then not found, and
  compiling more ends in a KeyError. It gets the read-only type that it means instead.
- `ffcv._libffcv`: the extension, linked with the TurboJPEG that kernels call.
- `Loader.next_epoch`: the number that the traversal order is asked for.
- `EpochIterator`: the loading thread. Its `__next__` waits for ever when that thread has died, and its `close` does not
  end it: hence `output_queue`, `iter_ixes`, `terminate_event`, and `Thread.is_alive`.
"""

import importlib.metadata
import os
import queue
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from types import SimpleNamespace
from typing import Any

import numba
import numba.typed
import numpy as np
import torch

from ..errors import InputError
from ._bus_errors import explain_bus_errors

SUPPORTED = "1.0.2"


def check_version(installed: str) -> None:
    """Raises InputError where this is not the version that this module was written for."""
    if installed != SUPPORTED:
        raise InputError(f"--loader ffcv: FFCV {installed} is installed, {SUPPORTED} is supported; run `make env`")


@contextmanager
def _import_of_ffcv() -> Iterator[None]:
    """Keeps FFCV from compiling a constant, from starting numba's threads, and from changing torch's number of them."""
    torch_threads, typed_dict, set_num_threads = torch.get_num_threads(), numba.typed.Dict, numba.set_num_threads
    numba.typed.Dict, numba.set_num_threads = dict, lambda count: None
    try:
        yield
    finally:
        numba.typed.Dict, numba.set_num_threads = typed_dict, set_num_threads
        torch.set_num_threads(torch_threads)


check_version(importlib.metadata.version("ffcv"))
with _import_of_ffcv():
    import ffcv._libffcv
    import ffcv.loader.loader
    import ffcv.memory_managers.os_cache
    from ffcv.fields import IntField, RGBImageField
    from ffcv.loader import Loader
    from ffcv.loader.epoch_iterator import EpochIterator
    from ffcv.memory_managers import OSCacheManager
    from ffcv.memory_managers.os_cache import OSCacheContext
    from ffcv.pipeline.allocation_query import AllocationQuery
    from ffcv.pipeline.compiler import Compiler
    from ffcv.pipeline.operation import Operation
    from ffcv.pipeline.state import State
    from ffcv.reader import Reader
    from ffcv.traversal_order.base import TraversalOrder

__all__ = [
    "HAS_CORES",
    "LIBRARY",
    "AllocationQuery",
    "EpochIterator",
    "IntField",
    "Loader",
    "Operation",
    "RGBImageField",
    "State",
    "TraversalOrder",
    "begin_epoch",
    "create_loader",
    "results",
    "stop",
]

LIBRARY: str = ffcv._libffcv.__file__
"""The extension that is linked with TurboJPEG."""


HAS_CORES = len(os.sched_getaffinity(0)) > 1
"""Whether numba's threads are of use. On one core they are not started: a process that forks while they run on TBB
waits for a worker at its end, and there TBB has none (TBB 2021.8, numba 0.68)."""


def _set_numba_threads(cls: type[Compiler], count: int) -> None:
    cls.num_threads = min(max(count, 1), numba.config.NUMBA_NUM_THREADS)
    if HAS_CORES:
        numba.set_num_threads(cls.num_threads)  # starts them


Compiler.set_num_threads = classmethod(_set_numba_threads)


class _ReadOnlyBytes:
    """Where FFCV writes `nb.uint8[::1]`."""

    def __getitem__(self, _: slice) -> numba.types.Array:
        return numba.types.Array(numba.uint8, 1, "C", readonly=True)


ffcv.memory_managers.os_cache.nb = SimpleNamespace(uint8=_ReadOnlyBytes(), uint64=numba.uint64, types=numba.types)


class MappedFile(OSCacheManager):
    """FFCV's memory-mapped file, without its tables of pages (seconds of Python for a million samples), its compiled
    reader, and of the allocation table all but the sizes: nothing here needs them.

    The Loader goes on with the given metadata, which were checked when the file was opened, in the place of those that
    it has read itself: the file may have been replaced in between, and twice takes twice the memory.
    """

    def __init__(self, metadata: np.ndarray, reader: Reader) -> None:
        assert metadata.dtype == reader.metadata.dtype
        metadata.setflags(write=False)  # as FFCV's: numba compiles for either
        reader.metadata = metadata
        self.reader = reader
        self.ptrs, self.sizes = np.empty(0, np.uint64), np.ascontiguousarray(reader.alloc_table["size"])
        reader.alloc_table = np.empty(0, reader.alloc_table.dtype)
        self.context = OSCacheContext(self)
        self.context.mmap = np.memmap(reader.file_name, np.uint8, mode="r")
        explain_bus_errors(self.context.mmap, reader.file_name)

    def compile_reader(self) -> None:
        """Nothing reads through FFCV."""


def create_loader(path: str, metadata: np.ndarray, **options: Any) -> Loader:
    """FFCV's Loader of a file with these metadata, over a MappedFile, with operations that are called as they are."""
    ffcv.loader.loader.OSCacheManager = partial(MappedFile, metadata)
    Compiler.set_enabled(False)
    try:
        return Loader(path, os_cache=True, **options)
    finally:
        ffcv.loader.loader.OSCacheManager = OSCacheManager
        Compiler.set_enabled(True)


def begin_epoch(loader: Loader, epoch: int) -> EpochIterator:
    """Start the loading thread of an epoch."""
    loader.next_epoch = epoch
    return iter(loader)


def results(iterator: EpochIterator) -> Iterator[tuple[Any, ...]]:
    """What the pipelines gave for each batch of an epoch."""
    while True:
        try:
            slot_and_result = iterator.output_queue.get(timeout=1.0)
        except queue.Empty:
            if iterator.is_alive():
                continue
            raise RuntimeError("FFCV's loading thread died; its traceback is above") from None
        if slot_and_result is None:
            return
        yield slot_and_result[1]


def stop(iterator: EpochIterator) -> None:
    """End the loading thread, wherever it is: preparing a batch, or waiting for room in the queue."""
    iterator.iter_ixes = iter(())
    iterator.terminate_event.set()
    while iterator.is_alive():
        try:
            iterator.output_queue.get(timeout=0.01)
        except queue.Empty:
            continue
    iterator.close()
