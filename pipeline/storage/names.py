"""Many texts in one block of memory."""

from array import array
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

_SELECTED_AT_ONCE = 1 << 16


class Names(Sequence[str]):
    """Immutable texts, for example the file names of a listing: a name of 18 letters takes 26 bytes, as a `str` 75.

    Reading one changes no counter in memory, so processes forked later keep sharing all of it. Any name that the system
    returns can be stored, also one that is not UTF-8.
    """

    def __init__(self, texts: Iterable[str] = ()) -> None:
        block, ends = bytearray(), array("q", [0])
        for text in texts:
            block += text.encode("utf-8", "surrogatepass")
            ends.append(len(block))
        self._block, self._ends = bytes(block), np.frombuffer(ends, np.int64)

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, index: int) -> str:  # type: ignore[override]  # slices are not needed
        if not 0 <= index < len(self):
            raise IndexError(index)
        return self._block[self._ends[index] : self._ends[index + 1]].decode("utf-8", "surrogatepass")

    def __iter__(self) -> Iterator[str]:
        return self.between(0, len(self))

    def between(self, start: int, stop: int) -> Iterator[str]:
        """The texts from position `start` up to, not including, `stop`."""
        for index in range(start, stop):
            yield self[index]

    def select(self, positions: NDArray[np.int64]) -> "Names":
        """The texts at these positions, in this order."""
        starts, stops = self._ends[positions], self._ends[positions + 1]
        block = bytearray()
        for first in range(0, len(positions), _SELECTED_AT_ONCE):
            part = slice(first, first + _SELECTED_AT_ONCE)
            pairs = zip(starts[part].tolist(), stops[part].tolist(), strict=True)
            block += b"".join(self._block[start:stop] for start, stop in pairs)
        selected = Names()
        selected._block = bytes(block)
        selected._ends = np.concatenate([np.zeros(1, np.int64), np.cumsum(stops - starts)])
        return selected
