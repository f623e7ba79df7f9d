"""Class names: their order, which gives each its index, and how one list of classes maps to another."""

import re
from collections.abc import Iterable, Sequence

from ..errors import InputError, one_line

_WNID = re.compile(r"n\d{8}", re.ASCII)
_SHOWN = 3  # names at the beginning of a list in messages


def is_wnid(name: str) -> bool:
    """Whether a name is a WordNet ID, as ImageNet's classes are called."""
    return _WNID.fullmatch(name) is not None


def are_numbers(names: Iterable[str]) -> bool:
    """Whether every class name is a decimal number."""
    return all(name.isascii() and name.isdecimal() for name in names)


def sort_classes(names: Iterable[str]) -> list[str]:
    """Class names in index order: numbers by value (9 before 10), any others as text, as ImageNet's wnids are."""
    names = sorted({*names})
    return sorted(names, key=int) if are_numbers(names) else names


def check_class_names(where: str, names: Iterable[str]) -> None:
    """Raises InputError for a class name that cannot be printed (it is not UTF-8, for example): logs, checkpoints and
    other programs need it."""
    for name in names:
        if not name.isprintable():
            raise InputError(f"{where}: the class name {name!a}; rename it to plain letters")


def classes_in_words(classes: Sequence[str], order: str | None = None) -> str:
    """A line that shows the classes in index order; `order` says where the order comes from."""
    order = order or ("sorted as numbers" if are_numbers(classes) else "sorted by name")
    if list(classes) != sort_classes(classes) and order.startswith("sorted"):
        order = "in the order of the dataset"
    shown = list(classes) if len(classes) <= _SHOWN + 2 else [*classes[:_SHOWN], "...", classes[-1]]
    return one_line(f"classes: {len(classes)}, {order}: {', '.join(shown)}")


def class_positions(classes: Sequence[str], wanted: Sequence[str]) -> list[int]:
    """Where each of `wanted` is in `classes`: the logits of weights trained on `classes` that a dataset of the classes
    `wanted` uses, in its order.

    Raises InputError naming the first class that `classes` lacks.
    """
    index = {name: number for number, name in enumerate(classes)}
    if missing := [name for name in wanted if name not in index]:
        raise InputError(f"class {missing[0]} of the data is not among the {len(classes)} of the weights")
    return [index[name] for name in wanted]
