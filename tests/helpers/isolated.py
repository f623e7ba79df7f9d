"""What tests have processes of their own do. They import nothing that takes long, so they start in a second."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any


def numbers(count: int, delay: float) -> Iterator[tuple[int, int]]:
    """Numbers from 0 on, each with the process's id, and so many seconds between them."""
    for number in range(count):
        yield number, os.getpid()
        time.sleep(delay)


def failing() -> Iterator[int]:
    """A result, then an error."""
    yield 1
    raise ValueError("for a reason\nthat takes two lines")


def dying() -> Iterator[int]:
    """A result, then the end."""
    yield 1
    os.kill(os.getpid(), signal.SIGKILL)


def with_a_child() -> Iterator[int]:
    """The id of a process that sleeps."""
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]) as child:
        yield child.pid


def first_of(names: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    """A figure, then nothing for a long time."""
    yield {"square": 1}
    time.sleep(600)
