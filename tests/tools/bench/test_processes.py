"""Measurements in processes of their own."""

import os
import time
from collections.abc import Callable, Iterator

import psutil
import pytest

from tests.helpers.isolated import dying, failing, numbers, with_a_child
from tools.bench.processes import NotMeasuredError, TooLongError, results_within


def test_results_come_from_another_process_in_their_order() -> None:
    found = list(results_within(120, numbers, 3, 0.0))
    assert [number for number, _ in found] == [0, 1, 2]
    assert {pid for _, pid in found}.isdisjoint({os.getpid()})


def test_what_was_there_in_time_is_not_lost() -> None:
    results = results_within(10, numbers, 1_000, 5.0)
    assert next(results)[0] == 0
    with pytest.raises(TooLongError, match="took longer than 10 s"):
        list(results)


@pytest.mark.parametrize(
    ("function", "reason"),
    [(failing, "fails here: for a reason"), (dying, "its process was killed by SIGKILL, perhaps for lack of memory")],
)
def test_a_failure_is_said_in_a_line(function: Callable[[], Iterator[int]], reason: str) -> None:
    results = results_within(120, function)
    assert next(results) == 1
    with pytest.raises(NotMeasuredError, match=reason) as caught:
        next(results)
    assert "\n" not in str(caught.value)


def test_children_end_with_it() -> None:
    results = results_within(120, with_a_child)
    child = psutil.Process(next(results))
    assert child.is_running()
    results.close()
    end = time.monotonic() + 20
    while child.is_running() and child.status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < end, "the child still runs"
        time.sleep(0.01)


def test_without_time_nothing_is_started() -> None:
    with pytest.raises(TooLongError, match="no time left"):
        next(results_within(0.0, numbers, 1, 0.0))
