"""What a reader of the cache reads and will read: a file that the other readers see.

    8 bytes    `MAGIC`
    8 bytes    float64: how far the reader has come, in epochs from the beginning of the run
    17 bytes   `ENTRY`, of each time at which a shard is needed

All numbers are little-endian. The file keeps its size while a plan holds, because it counts within the cache's limit.
A shard that is opened or closed changes a few bytes of it, however many are planned.
"""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..reading import read_bounded

MAGIC = b"sluice1\n"
ENTRY = np.dtype([("key", "<u8"), ("when", "<f8"), ("state", "u1")])
"""The key of a shard, when it is needed, and UPCOMING, IN_USE or DONE."""
UPCOMING, IN_USE, DONE = 0, 1, 2

_NOW_AT, _ENTRIES_AT = len(MAGIC), len(MAGIC) + 8
_LARGEST = 1 << 26  # bytes


def key_of(digest: str) -> int:
    """The key of a shard with this SHA-256: its first 64 bits. What is no digest has key 0, as no shard has."""
    try:
        return int(digest[:16], 16)
    except ValueError:
        return 0


@dataclass(frozen=True, kw_only=True)
class Record:
    """How far a reader has come, and the shards it needs, as `ENTRY`."""

    now: float
    entries: NDArray[Any]

    @classmethod
    def read(cls, path: Path) -> "Record | None":
        """That in a file, whoever wrote it; None where the file holds none."""
        try:
            content = read_bounded(path, _LARGEST)
            if not content.startswith(MAGIC):
                return None
            (now,) = np.frombuffer(content, "<f8", 1, _NOW_AT)
            entries = np.frombuffer(content, ENTRY, offset=_ENTRIES_AT)
        except (OSError, ValueError):  # too short, or no whole number of entries
            return None
        is_sound = np.isfinite(now) and np.isfinite(entries["when"]).all() and (entries["state"] <= DONE).all()
        return cls(now=float(now), entries=entries) if is_sound else None


class OwnRecord:
    """That of this process, in an open file. The caller holds the cache's lock."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self.now = 0.0
        self.entries = np.empty(0, ENTRY)
        self._rows = dict[tuple[int, float], int]()

    def planned(self, times: Iterable[tuple[int, float]]) -> NDArray[Any]:
        """The entries of a plan, from keys and when they are needed; what is in use stays."""
        rows = [(key, when, UPCOMING) for key, when in times]
        return np.concatenate([np.array(rows, ENTRY), self.entries[self.entries["state"] == IN_USE]])

    def replace(self, entries: NDArray[Any], now: float) -> None:
        """Write a new plan."""
        self.entries, self.now = entries, now
        keys = zip(entries["key"].tolist(), entries["when"].tolist(), strict=True)
        self._rows = {key: row for row, key in enumerate(keys)}
        content = MAGIC + np.float64(now).astype("<f8").tobytes() + entries.tobytes()
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, content, 0)

    def mark(self, key: int, when: float, state: int) -> None:
        """Write that a shard is in use, or done with, and that the reader has come to this time."""
        self.now = max(self.now, when)
        os.pwrite(self._descriptor, np.float64(self.now).astype("<f8").tobytes(), _NOW_AT)
        if (row := self._rows.get((key, when))) is not None:
            self.entries["state"][row] = state
            os.pwrite(self._descriptor, bytes([state]), _ENTRIES_AT + (row + 1) * ENTRY.itemsize - 1)


def bytes_of(entries: NDArray[Any]) -> int:
    """Of a file with these entries."""
    return _ENTRIES_AT + entries.nbytes


def keys_in_use(records: Sequence[Record | OwnRecord]) -> set[int]:
    """The keys of the shards that some reader has open."""
    return {key for one in records for key in one.entries["key"][one.entries["state"] == IN_USE].tolist()}


def distances(keys: Sequence[int], records: Sequence[Record | OwnRecord]) -> NDArray[np.float64]:
    """In how many epochs the next reader needs each of these shards, float64 [keys]; infinity where none does."""
    if not keys:
        return np.empty(0)
    different, places = np.unique(np.array(keys, np.uint64), return_inverse=True)
    nearest = np.full(len(different), np.inf)
    for one in records:
        left = one.entries[one.entries["state"] != DONE]
        found = np.minimum(np.searchsorted(different, left["key"]), len(different) - 1)
        is_asked = different[found] == left["key"]
        np.minimum.at(nearest, found[is_asked], left["when"][is_asked] - one.now)
    return nearest[places]
