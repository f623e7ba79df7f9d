"""What loaders built on torch's DataLoader share."""

from collections.abc import Generator, Iterator
from typing import TypeVar

from pipeline.errors import InputError

Item = TypeVar("Item")


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
