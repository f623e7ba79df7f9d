"""Other people's data sets: a file each, which lists the images of a split, and their classes.

Each defines `list_split(files, split, known) -> Listing`: the images of the files of one split; `known` are the labels
of training as texts, if it has been listed. What a file is, is recognised by its content in `storage/foreign.py`.
"""

from collections.abc import Callable, Collection, Sequence
from pathlib import Path

from ...storage.foreign import BETON, PARQUET, TFRECORDS
from ..listing import Listing
from . import beton, parquet, tfrecord

SOURCES: dict[str, Callable[[Sequence[Path], str, Collection[str]], Listing]] = {
    PARQUET: parquet.list_split,
    BETON: beton.list_split,
    TFRECORDS: tfrecord.list_split,
}
