"""Waiting for a state, never for a time."""

import time
from collections.abc import Callable


def wait_until(happened: Callable[[], bool], timeout: float = 200) -> None:
    """Until `happened()`, which must be within `timeout` seconds."""
    end = time.monotonic() + timeout
    while not happened():
        assert time.monotonic() < end, "it has not happened"
        time.sleep(0.01)
