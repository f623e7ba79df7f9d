"""How far a command is: a bar where stderr is a terminal, otherwise lines, as in the log of a job."""

import logging
import time
from collections.abc import Callable, Collection, Generator, Iterable
from typing import TypeVar

from tqdm import tqdm

log = logging.getLogger("progress")
"""Not a child of `pipeline`, whose messages some commands silence."""

FIRST_LINE_SECONDS, LINE_SECONDS = 5.0, 30.0
"""Until the first line about many small items, and between two of them."""

Item = TypeVar("Item")


class Progress:
    """Counts many small items. A line says how many of how many are done, and what is left at this rate."""

    def __init__(self, description: str, total: int, unit: str, *, leave: bool = True) -> None:
        self._bar = tqdm(desc=description, total=total, unit=unit, unit_scale=unit == "B", leave=leave, disable=None)
        self._description, self._total, self._unit = description, total, unit
        self._started = time.monotonic()
        self._next_line = self._started + FIRST_LINE_SECONDS
        self._done = 0

    def add(self, count: int = 1) -> None:
        """Count items that are done."""
        self._done += count
        self._bar.update(count)
        now = time.monotonic()
        if self._bar.disable and now >= self._next_line:
            self._next_line = now + LINE_SECONDS
            log.info("%s", self._line(now - self._started))

    def close(self) -> None:
        """End the bar."""
        self._bar.close()

    def _line(self, seconds: float) -> str:
        seconds_left = (self._total - self._done) * seconds / self._done if self._done else 0.0
        share = f"{self._done / self._total:.0%}" if self._total else "100%"
        count = share if self._unit == "B" else f"{self._done} of {self._total} {self._unit} ({share})"
        return f"{self._description}: {count} after {seconds:.0f} s, about {seconds_left:.0f} s left"


def counted(
    items: Iterable[Item], description: str, total: int, unit: str, *, leave: bool = True
) -> Generator[Item, None, None]:
    """Pass many small items on, and count each when the next one is wanted."""
    progress = Progress(description, total, unit, leave=leave)
    try:
        for item in items:
            yield item
            progress.add()
    finally:
        progress.close()


def announced(
    items: Collection[Item], description: str, name: Callable[[Item], str] = str
) -> Generator[Item, None, None]:
    """Pass a few items on, each of which takes seconds or minutes: a line before each says which one is next."""
    with tqdm(items, desc=description, disable=None if items else True) as bar:
        for number, item in enumerate(bar, 1):
            if bar.disable:
                log.info("%s %d of %d: %s", description, number, len(items), name(item))
            else:
                bar.set_postfix_str(name(item))
            yield item
