"""Datasets on a web server: http(s) only, and nothing of what arrives is executed or unpickled.

webdataset's own opener hands URLs to a shell (`pipe:`, and curl for http); urllib opens them here.
"""

import urllib.error
import urllib.request
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import InputError
from pipeline.formats.shards import ShardInfo, parse_label

TIMEOUT_S = 60
LARGEST_MANIFEST = 1 << 28


def is_remote(location: str) -> bool:
    """Whether a dataset's location is a web address."""
    return location.startswith(("http://", "https://"))


def open_url(url: str) -> BinaryIO:
    """A stream of what is at `url`. Raises InputError."""
    try:
        return urllib.request.urlopen(url, timeout=TIMEOUT_S)
    except (OSError, ValueError) as error:
        reason = error.reason if isinstance(error, urllib.error.URLError) else error
        raise InputError(f"{url}: cannot be opened ({reason})") from None


def read_text(url: str) -> str:
    """A small text file. Raises InputError, and ValueError where it is no UTF-8."""
    with open_url(url) as stream:
        return stream.read(LARGEST_MANIFEST).decode("utf-8")


class RemoteShards:
    """The shards of a split on a web server: names and labels of what is streamed from them."""

    def __init__(self, base: str, shards: tuple[ShardInfo, ...], num_classes: int) -> None:
        self.base, self._num_classes = base.rstrip("/"), num_classes
        self.shard_samples = tuple(shard.samples for shard in shards)
        self._names = [shard.name for shard in shards]
        self.first = np.cumsum((0, *self.shard_samples))

    def urls_of(self, positions: NDArray[np.int64]) -> list[str]:
        """The shards that hold `positions` (in the order in which shards are read), each once in a row."""
        shards = np.searchsorted(self.first, positions, side="right") - 1
        changes = np.flatnonzero(np.diff(shards, prepend=-1))
        return [f"{self.base}/{self._names[shard]}" for shard in shards[changes]]

    def name(self, index: int) -> str:
        return f"{self.base} sample {index}"

    def label(self, text: bytes, index: int) -> int:
        """The class index in a sample's `.cls` file. Raises InputError where it is none."""
        return parse_label(text, self._num_classes, self.name(index))
