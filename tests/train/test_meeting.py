"""How processes meet: here threads, but where one is killed. One that is replaced is no longer asked for anything."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from scripts import ROOT, launched, wait_until

from pipeline.errors import InputError
from train.meeting import Meeting, meet
from train.world import World

SIZE = 3

JOINING = """
import torch
from train.meeting import meet
from train.world import World
meeting = meet(World(rank={rank}, size={size}), 60)
print("met", flush=True)
with meeting.joining(torch.device("cpu")):
    pass
"""

Come = Callable[[int], "Future[Meeting]"]


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> dist.TCPStore:
    """That of a launcher, which none of the processes takes with it."""
    return launched(monkeypatch)


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(8) as pool:
        yield pool


@pytest.fixture
def come(store: dist.TCPStore, pool: ThreadPoolExecutor) -> Come:
    """Let a rank come to the meeting."""
    return lambda rank: pool.submit(meet, World(rank=rank, size=SIZE), 60)


def told(pool: ThreadPoolExecutor, meetings: list[Meeting], value: str) -> list[str]:
    """What each of the processes takes for rank 0's value."""
    return list(pool.map(lambda meeting: meeting.said_by_main(lambda: value), meetings))


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 0, 2)])
def test_each_time_they_meet_anew(come: Come, pool: ThreadPoolExecutor, order: tuple[int, ...]) -> None:
    """Whoever is early: what stands in the store is of processes that are no more, but for the run's directory."""
    for value in ("first", "second", "third"):
        coming = {}
        for rank in order:
            coming[rank] = come(rank)
            time.sleep(0.03)
        meetings = [coming[rank].result() for rank in range(SIZE)]
        assert told(pool, meetings, value) == [value] * SIZE
        assert meetings[0].run_dir == (None if value == "first" else Path("runs/\udcff"))
        meetings[0].keep_run_dir(Path("runs/\udcff"))


def start_apart(rank: int) -> subprocess.Popen[str]:
    """Let a rank come that can be killed."""
    words = [sys.executable, "-c", JOINING.format(rank=rank, size=SIZE)]
    return subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_a_rank_that_is_killed_before_they_met(store: dist.TCPStore, come: Come, pool: ThreadPoolExecutor) -> None:
    """The one in its place is met, and no other has to be started again."""
    main = come(0)
    while not store.check(["meetings/call"]):
        time.sleep(0.01)
    keys, process = store.num_keys(), start_apart(1)
    wait_until(lambda: store.num_keys() > keys, process)
    process.kill()
    process.communicate()
    meetings = [come(1), come(2), main]
    assert told(pool, [meeting.result() for meeting in meetings], "hello") == ["hello"] * SIZE


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("first", ["the others", "the one in its place"])
def test_a_rank_that_is_killed_when_it_is_ready(come: Come, pool: ThreadPoolExecutor, rank: int, first: str) -> None:
    """The others hear of it from the one in its place, which meets those in theirs."""
    process = start_apart(rank)
    coming = [come(other) for other in range(SIZE) if other != rank]
    assert process.stdout is not None
    assert process.stdout.readline() == "met\n"
    time.sleep(0.2)
    process.kill()
    process.communicate()
    others = [each.result() for each in coming]
    if first == "the others":
        ends = [pool.submit(join, other) for other in others]
        time.sleep(0.2)
        early = come(rank)
    else:
        early = come(rank)
        time.sleep(0.2)
        ends = [pool.submit(join, other) for other in others]
    for end in ends:
        with pytest.raises(SystemExit, match=f"rank {rank} could not begin"):
            end.result()
    meetings = [early, *(come(other.world.rank) for other in others)]
    assert told(pool, [meeting.result() for meeting in meetings], "again") == ["again"] * SIZE


def join(meeting: Meeting) -> None:
    with meeting.joining(torch.device("cpu")):
        pass


def test_a_rank_that_fails_before_the_group(come: Come, pool: ThreadPoolExecutor) -> None:
    def fail() -> None:
        with met[1].joining(torch.device("cpu")):
            raise InputError("on purpose")

    met = [each.result() for each in [come(rank) for rank in range(SIZE)]]
    ends = [pool.submit(join, met[0]), pool.submit(join, met[2])]
    with pytest.raises(InputError, match="on purpose"):
        fail()
    for end in ends:
        with pytest.raises(SystemExit, match="rank 1 could not begin"):
            end.result()


def test_ranks_that_do_not_come(store: dist.TCPStore, pool: ThreadPoolExecutor) -> None:
    with pytest.raises(InputError, match=r"did not meet there within --rdzv-timeout 1 s .*waiting for rank 1"):
        meet(World(rank=0, size=2), 1)
    with pytest.raises(InputError, match=rf"MASTER_PORT {store.port}: .* 1 s .*waiting for rank 0"):
        meet(World(rank=1, size=2), 1)
    # Who has come and gone is not met.
    main = pool.submit(meet, World(rank=0, size=3), 60)
    with pytest.raises(InputError, match="waiting for rank 2"):
        meet(World(rank=1, size=3), 1)
    with pytest.raises(SystemExit, match="rank 1 could not begin"):
        main.result()
    meetings = [each.result() for each in [pool.submit(meet, World(rank=rank, size=2), 1) for rank in range(2)]]
    with pytest.raises(InputError, match="rank 1, which was not ready --rdzv-timeout 1 s after this one"):
        join(meetings[0])


def test_a_process_without_a_launcher_meets_nobody() -> None:
    assert "TORCHELASTIC_RUN_ID" not in os.environ
    meeting = meet(World(), 1)
    meeting.keep_run_dir(Path("runs/a"))
    assert meeting.run_dir is None
    assert meeting.said_by_main(lambda: "here") == "here"
    join(meeting)
