"""What readers of the cache write is what others read; distances are those of the nearest reader."""

import math
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.storage.remote.reader_record import (
    DONE,
    ENTRY,
    IN_USE,
    UPCOMING,
    OwnRecord,
    Record,
    bytes_of,
    distances,
    key_of,
    keys_in_use,
)

KEYS = st.integers(0, 5)
TIMES = st.integers(0, 30).map(float)
PLANS = st.lists(st.tuples(KEYS, TIMES), max_size=12, unique=True)
MARKS = st.lists(st.tuples(st.integers(0, 11), st.sampled_from([IN_USE, DONE])), max_size=12)
NO_RESET = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)


def own_record(path: Path) -> OwnRecord:
    return OwnRecord(os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC))


@NO_RESET
@given(first=PLANS, second=PLANS, marks=MARKS)
def test_others_read_what_was_written(
    tmp_path: Path, first: list[tuple[int, float]], second: list[tuple[int, float]], marks: list[tuple[int, int]]
) -> None:
    path = tmp_path / "own.plan"
    own, states = own_record(path), dict[tuple[int, float], int]()
    for plan in (first, second):
        entries = own.planned(plan)
        own.replace(entries, 0.5)
        states = {**{key: state for key, state in states.items() if state == IN_USE}, **dict.fromkeys(plan, UPCOMING)}
        for place, state in marks:
            if place < len(plan):
                own.mark(*plan[place], state)
        seen = Record.read(path)
        assert seen is not None
        assert path.stat().st_size == bytes_of(own.entries)
        assert np.array_equal(seen.entries, own.entries)
        assert seen.now == own.now >= 0.5
        assert keys_in_use([seen]) == keys_in_use([own])
        states |= {plan[place]: state for place, state in marks if place < len(plan)}
        assert {key for (key, _), state in states.items() if state == IN_USE} <= keys_in_use([own])
    os.close(own._descriptor)


@given(plans=st.lists(st.lists(st.tuples(KEYS, TIMES, st.sampled_from([UPCOMING, IN_USE, DONE])), max_size=12)),
       now=TIMES, keys=st.lists(st.integers(0, 9)))  # fmt: skip
def test_distances(plans: list[list[tuple[int, float, int]]], now: float, keys: list[int]) -> None:
    records = [Record(now=now, entries=np.array(plan, ENTRY)) for plan in plans]
    expected = [
        min((when - now for plan in plans for key, when, state in plan if key == one and state != DONE),
            default=math.inf)
        for one in keys
    ]  # fmt: skip
    assert distances(keys, records).tolist() == expected


def test_a_mark_writes_a_few_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However long the plan is."""
    own, written = own_record(tmp_path / "own.plan"), list[int]()
    own.replace(own.planned((key, key / 10) for key in range(10_000)), 0.0)
    original = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda *arguments: written.append(original(*arguments)))
    own.mark(7, 0.7, IN_USE)
    assert written == [8, 1]
    seen = Record.read(tmp_path / "own.plan")
    assert seen is not None
    assert seen.entries[7].item() == (7, 0.7, IN_USE)
    os.close(own._descriptor)


def test_keys() -> None:
    assert key_of("f" * 64) == 2**64 - 1
    assert key_of("stray") == 0
