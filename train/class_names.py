"""Which output of published weights belongs to which class of the data: their names say so, or nothing does."""

from collections.abc import Sequence
from dataclasses import dataclass

from models import imagenet
from pipeline.errors import InputError
from pipeline.storage.classes import class_positions


@dataclass(frozen=True)
class Choice:
    """The outputs of a model that belong to the classes of the data."""

    rows: list[int] | None = None
    """Their positions, in the order of the data's classes; None where the outputs stay as they are."""
    remark: str = ""
    """What a user should know about it."""


def choose_outputs(
    names: Sequence[str] | None, outputs: int, classes: Sequence[str], stated: int | None = None
) -> Choice:
    """The outputs of weights that belong to `classes`, those of the data.

    `names` are the classes of the weights, None where their file does not hold them: then 1000 outputs are taken for
    ImageNet's sorted wnids where the data has no others, and any outputs for the data's classes in their order where
    there are equally many, or as many as were `stated` (--num-classes). Raises InputError where nothing says which
    output is which.
    """
    if names is not None:
        return _by_name(names, classes)
    wnids = imagenet.wnids()
    if outputs == len(wnids) > len(classes) and {*classes} <= {*wnids}:
        subset = f"the {len(classes)} of the data are taken, by name"
        remark = f"it names no classes, its {outputs} outputs are taken for ImageNet's sorted wnids: {subset}"
        return Choice(class_positions(wnids, classes), remark)
    if outputs in (len(classes), stated):
        is_imagenet = outputs == len(wnids) and tuple(classes) == wnids
        return Choice(remark="" if is_imagenet else "it names no classes: its outputs are taken in the data's order")
    raise InputError(
        f"has {outputs} classes and does not name them, the data has {len(classes)}: which is which is unknown"
    )


def _by_name(names: Sequence[str], classes: Sequence[str]) -> Choice:
    if list(names) == list(classes):
        return Choice()
    if len(names) == len(classes) and (_are_positions(names) or _are_positions(classes)):
        return Choice(remark="its classes have other names than the data's: numbers, which are taken for positions")
    rows = class_positions(names, classes)
    if len(rows) == len(names):
        return Choice(rows, f"its {len(names)} classes are put into the data's order, by name")
    return Choice(rows, f"of its {len(names)} classes, the {len(rows)} of the data are taken, by name")


def _are_positions(names: Sequence[str]) -> bool:
    """Whether classes are called 0, 1, 2, ..., as where a tool wrote indices for names."""
    return list(names) == list(map(str, range(len(names))))
