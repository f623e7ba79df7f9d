"""What reading from a bucket has cost: shards, bytes, seconds."""

import copy
import mmap
import threading

import numpy as np

from ...sizes import size_in_words


class Traffic:
    """What reading has cost, in memory that processes share."""

    FIELDS = ("hits", "misses", "bytes", "fetching", "waiting")

    def __init__(self, readers: int) -> None:
        memory = mmap.mmap(-1, 8 * len(self.FIELDS) * readers)
        self._table, self._row = np.frombuffer(memory, np.float64).reshape(readers, -1), 0
        self._lock = threading.Lock()

    def of_reader(self, number: int) -> "Traffic":
        """That which one reader counts in."""
        mine = copy.copy(self)
        mine._row, mine._lock = number, threading.Lock()
        return mine

    def add(self, **amounts: float) -> None:
        """Count: shards found and not found, bytes fetched and the seconds that took, seconds that a reader waited."""
        with self._lock:
            for name, amount in amounts.items():
                self._table[self._row, self.FIELDS.index(name)] += amount

    def take(self) -> dict[str, float]:
        """The sums over all readers; they begin again at 0."""
        sums: list[float] = self._table.sum(axis=0).tolist()
        self._table[:] = 0
        return dict(zip(self.FIELDS, sums, strict=True))


def in_words(counts: dict[str, float], seconds: float) -> str:
    """What `Traffic.take` returns, after that many seconds."""
    opened = counts["hits"] + counts["misses"]
    cached = f"{counts['hits']:.0f} of {opened:.0f} shards were in the cache ({counts['hits'] / max(1, opened):.0%}), "
    fetched = fetched_in_words(counts, seconds)
    return (
        f"{cached if opened else ''}{fetched}, {counts['waiting']:.1f} s of waiting for them in all loading processes"
    )


def fetched_in_words(counts: dict[str, float], seconds: float) -> str:
    """The bytes alone."""
    rate = counts["bytes"] / max(seconds, 1e-9)
    return f"{size_in_words(counts['bytes'])} fetched ({size_in_words(rate)}/s)"
