"""Errors whose text is meant for the user."""

from collections.abc import Generator, Iterable
from typing import TypeVar

Item = TypeVar("Item")


class InputError(ValueError):
    """What the user gave cannot be used: a path, a flag, a file's content.

    The message is one line that says what is wrong, in which file or flag, and what to do. Commands print it
    on stderr and exit with code 2. Broken invariants of the code itself are asserts, not this.
    """


def named_by_workers(items: Iterable[Item]) -> Generator[Item, None, None]:
    """Pass on what a DataLoader gives; an InputError of a worker loses the traceback torch puts into its text."""
    try:
        yield from items
    except InputError as error:
        raise InputError(str(error).rstrip().rpartition("InputError: ")[2].partition("\n")[0]) from None
