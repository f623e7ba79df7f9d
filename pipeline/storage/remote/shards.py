"""The shards of a split in a bucket or on a web server, as streams: directly, or from the cache."""

import io
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from typing import BinaryIO, Protocol

import numpy as np
from numpy.typing import NDArray

from ...errors import InputError, StorageError
from ..shards import ShardInfo, parse_label
from . import helper
from .address import below
from .settings import Access
from .traffic import Traffic


def read_text(address: str, access: Access, most: int) -> str:
    """The content of a text file of at most `most` bytes. Raises InputError, and ValueError if it is not UTF-8."""
    content: bytes = helper.call("read", address, access, most)
    return content.decode("utf-8")


class RemoteShards:
    """The shards of a split: their addresses, and names and labels of the samples streamed from them."""

    remedy = "convert again"

    def __init__(self, base: str, shards: tuple[ShardInfo, ...], num_classes: int) -> None:
        self.base, self.infos, self._num_classes = base.rstrip("/"), shards, num_classes
        self.shard_samples = tuple(shard.samples for shard in shards)
        self.first = np.cumsum((0, *self.shard_samples))

    def numbers_of(self, positions: NDArray[np.int64]) -> list[int]:
        """The shards that hold `positions` (in reading order), without repeats in a row."""
        shards = np.searchsorted(self.first, positions, side="right") - 1
        changes = np.flatnonzero(np.diff(shards, prepend=-1))
        return [int(shard) for shard in shards[changes]]

    def address(self, number: int) -> str:
        return below(self.base, self.infos[number].name)

    def name(self, index: int) -> str:
        return f"{self.base} sample {index}"

    def label(self, text: bytes, index: int) -> int:
        """The class index in a sample's `.cls` file. Raises InputError if it is not one."""
        return parse_label(text, self._num_classes, self.name(index))


class ShardSource(Protocol):
    """Opens the shards of a split."""

    def open(self, number: int) -> AbstractContextManager[BinaryIO]:
        """A shard from its beginning. Raises StorageError."""
        ...


class DirectSource:
    """Streams shards from where they are."""

    def __init__(self, shards: RemoteShards, access: Access, traffic: Traffic) -> None:
        self._shards, self._access, self._traffic = shards, access, traffic

    def open(self, number: int) -> AbstractContextManager[BinaryIO]:
        """A shard from its beginning. Raises StorageError."""
        return open_direct(self._shards.address(number), self._shards.infos[number].bytes, self._access, self._traffic)


@contextmanager
def open_direct(address: str, size: int, access: Access, traffic: Traffic) -> Iterator[BinaryIO]:
    """A shard of `size` bytes as a stream. Raises StorageError."""
    with closing(helper.iterate("stream", address, access, 0, size)) as pieces:
        yield io.BufferedReader(RemoteStream(pieces, traffic), 1 << 16)


class RemoteStream(io.RawIOBase):
    """Pieces of an object as a file to read from start to end. Raises StorageError: the dataset has been opened before,
    so that even a missing object is a fault of storage."""

    def __init__(self, pieces: Iterator[bytes], traffic: Traffic) -> None:
        self._pieces, self._held, self._traffic = pieces, memoryview(b""), traffic

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        """Fill a buffer, at least in part; 0 at the end."""
        if not self._held:
            started = time.monotonic()
            try:
                self._held = memoryview(next(self._pieces, b""))
            except StorageError:
                raise
            except InputError as error:
                raise StorageError(str(error)) from None
            self._traffic.add(bytes=len(self._held), waiting=time.monotonic() - started)
        count = min(len(buffer), len(self._held))
        buffer[:count] = self._held[:count]
        self._held = self._held[count:]
        return count
