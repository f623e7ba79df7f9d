"""What loaders built on torch's DataLoader share."""

from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from pipeline.contract import Batch
from pipeline.errors import InputError
from pipeline.ring import PREFETCH


def loader(dataset: Dataset[Batch], num_workers: int, **options: Any) -> DataLoader[Batch]:
    """A DataLoader of whole batches. Its workers are forked, here and once for all epochs: they share what is opened
    before. What its first iteration gives is dropped: `dataset` or the sampler had better give nothing yet."""
    made = DataLoader(
        dataset,
        batch_size=None,
        num_workers=num_workers,
        collate_fn=_as_it_is,
        # Not pin_memory: its thread would be starting while the workers of the next loader are forked, see Loader.
        persistent_workers=num_workers > 0,
        prefetch_factor=PREFETCH if num_workers else None,
        multiprocessing_context="fork" if num_workers else None,
        generator=torch.Generator(),  # it draws a seed for the workers: not from the model's generator
        **options,
    )
    if num_workers:
        iter(made)
    return made


def _as_it_is(batch: Any) -> Any:
    return batch


def epoch(loader: DataLoader[Batch]) -> Iterator[Batch]:
    """What a DataLoader gives, from its beginning. An InputError of a worker loses the traceback torch puts into its
    text."""
    if loader.num_workers and loader._iterator is None:
        raise ValueError("the loader is closed")  # the DataLoader would fork new workers
    return _results(iter(loader))


def _results(iterator: Iterator[Batch]) -> Iterator[Batch]:
    try:
        yield from iterator
    except InputError as error:
        raise InputError(str(error).rstrip().rpartition("InputError: ")[2].partition("\n")[0]) from None


def end(loader: DataLoader[Batch]) -> None:
    """End a DataLoader's worker processes, if it has any: as its deletion does, but now."""
    if loader._iterator is not None:
        loader._iterator._shutdown_workers()  # type: ignore[attr-defined]
        loader._iterator = None
