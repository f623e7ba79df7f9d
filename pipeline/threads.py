"""Threads that work ahead."""

import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

_thread = threading.local()


class Threads(ThreadPoolExecutor):
    """Threads that end soon when nobody wants their results any more: what waits for long asks `is_abandoned`."""

    def __init__(self, workers: int) -> None:
        self._abandoned = threading.Event()
        super().__init__(workers, initializer=lambda: setattr(_thread, "abandoned", self._abandoned))

    def abandon(self) -> None:
        """Start nothing that waits, and return when the threads have ended."""
        self._abandoned.set()
        self.shutdown(cancel_futures=True)


def is_abandoned() -> bool:
    """Whether this thread is one of `Threads` that were abandoned, after Ctrl-C or an error elsewhere."""
    return hasattr(_thread, "abandoned") and bool(_thread.abandoned.is_set())


def in_order(
    function: Callable[[Item], Result], items: Iterable[Item], workers: int, ahead: int | None = None
) -> Generator[Result, None, None]:
    """Apply `function` to each item in threads; results come in order, and at most `ahead` are held at a time, four for
    each thread by default.

    Reading, decoding and hashing release the GIL, so threads use every core without copying images between
    processes.
    """
    waiting: deque[Future[Result]] = deque()
    pool = Threads(workers)
    try:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > (4 * workers if ahead is None else ahead):
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.abandon()
