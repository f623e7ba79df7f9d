"""What loaders built on torch's DataLoader share."""

from collections.abc import Generator, Iterator
from typing import Any, TypeVar

import torch
from torch.utils.data import DataLoader, Dataset

from pipeline.contract import Batch, LoaderSpec
from pipeline.errors import InputError
from pipeline.ring import PREFETCH

Item = TypeVar("Item")


def loader(dataset: Dataset[Batch], spec: LoaderSpec, num_workers: int, **options: Any) -> DataLoader[Batch]:
    """A DataLoader of whole batches. Its workers are forked: they share what is opened before."""
    return DataLoader(
        dataset,
        batch_size=None,
        num_workers=num_workers,
        collate_fn=_as_it_is,
        pin_memory=spec.device.type != "cpu",
        prefetch_factor=PREFETCH if num_workers else None,
        multiprocessing_context="fork" if num_workers else None,
        generator=torch.Generator(),  # it draws a seed for the workers: not from the model's generator
        **options,
    )


def _as_it_is(batch: Any) -> Any:
    return batch


def results(iterator: Iterator[Item]) -> Generator[Item, None, None]:
    """Pass on what a DataLoader gives; an InputError of a worker loses the traceback torch puts into its text."""
    try:
        yield from iterator
    except InputError as error:
        raise InputError(str(error).rstrip().rpartition("InputError: ")[2].partition("\n")[0]) from None


def end(iterator: object) -> None:
    """End the worker processes of a DataLoader's iterator, if it has any: as its deletion does, but now."""
    shut_down = getattr(iterator, "_shutdown_workers", None)
    if shut_down is not None:
        shut_down()
