"""What loaders built on torch's DataLoader share."""

import contextlib
import multiprocessing
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from ..contract import Batch
from ..errors import InputError
from . import _torch_internals
from ._ring import PREFETCH


def batch_loader(dataset: Dataset[Batch], num_workers: int, **options: Any) -> DataLoader[Batch]:
    """A DataLoader of whole batches.

    Its workers are forked here, once for all epochs: they share what was opened before. The results of this first
    iteration are dropped, so `dataset` or the sampler should have nothing to give yet.

    Raises InputError where /dev/shm has no room for their semaphores.
    """
    if num_workers:
        _check_semaphores(num_workers)
    loader = DataLoader(
        dataset,
        batch_size=None,
        num_workers=num_workers,
        collate_fn=_unchanged,
        # Not pin_memory: its thread would be starting while the workers of the next loader are forked, see Loader.
        persistent_workers=num_workers > 0,
        prefetch_factor=PREFETCH if num_workers else None,
        multiprocessing_context="fork" if num_workers else None,
        generator=torch.Generator(),  # it draws a seed for the workers: not from the model's generator
        **options,
    )
    if num_workers:
        iter(loader)
    return loader


def _check_semaphores(num_workers: int) -> None:
    """A DataLoader of PyTorch 2.14 makes 8 and another 3 for each worker, a page of /dev/shm each. Where it cannot, a
    traceback of its destructor would follow the error."""
    try:
        semaphores = [multiprocessing.get_context("fork").Semaphore() for _ in range(8 + 3 * num_workers)]
    except OSError as error:
        raise InputError(
            f"--workers {num_workers}: loading processes need semaphores in /dev/shm, which are refused "
            f"({error.strerror}); enlarge it, or use --workers 0"
        ) from None
    del semaphores


def _unchanged(batch: Any) -> Any:
    return batch


def epoch(loader: DataLoader[Batch]) -> Iterator[Batch]:
    """The batches of a DataLoader, from its beginning. An InputError of a worker is raised with its own text, without
    the traceback that torch adds to it; where a signal ended a worker, the error names it."""
    if loader.num_workers and not _torch_internals.has_workers(loader):
        raise ValueError("the loader is closed")  # the DataLoader would fork new workers
    with _errors_of_workers(loader):
        return _batches(loader, iter(loader))


def _batches(loader: DataLoader[Batch], iterator: Iterator[Batch]) -> Iterator[Batch]:
    with _errors_of_workers(loader):
        yield from iterator


@contextlib.contextmanager
def _errors_of_workers(loader: DataLoader[Batch]) -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        name = _torch_internals.killed_by(loader)
        if name is None or "exited unexpectedly" not in str(error):
            raise
        raise RuntimeError(str(error).replace("exited unexpectedly", f"is killed by signal: {name}.")) from None
    except InputError as error:
        kind = type(error)
        raise kind(str(error).rstrip().rpartition(f"{kind.__name__}: ")[2].partition("\n")[0]) from None


def close(loader: DataLoader[Batch]) -> None:
    """End a DataLoader's worker processes, if it has any."""
    _torch_internals.shut_down(loader)
