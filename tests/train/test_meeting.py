"""How processes meet. Here they are threads, except where one is killed; a thread that is replaced is just not used."""

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

from pipeline.errors import InputError
from tests.helpers.scripts import ROOT, launched, wait_until
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

Arrive = Callable[[int], "Future[Meeting]"]


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> dist.TCPStore:
    """A launcher's store, which outlives the processes."""
    return launched(monkeypatch)


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(8) as pool:
        yield pool


@pytest.fixture
def arrive(store: dist.TCPStore, pool: ThreadPoolExecutor) -> Arrive:
    """Lets a rank arrive at the meeting."""
    return lambda rank: pool.submit(meet, World(rank=rank, size=SIZE), 60)


def received(pool: ThreadPoolExecutor, meetings: list[Meeting], value: str) -> list[str]:
    """What each process receives where rank 0's value is `value`."""
    return list(pool.map(lambda meeting: meeting.from_main(lambda: value), meetings))


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 0, 2)])
def test_they_meet_again_after_each_restart(arrive: Arrive, pool: ThreadPoolExecutor, order: tuple[int, ...]) -> None:
    """In any order: all that is in the store is of processes that have ended, except for the run's directory."""
    for value in ("first", "second", "third"):
        arriving = {}
        for rank in order:
            arriving[rank] = arrive(rank)
            time.sleep(0.03)
        meetings = [arriving[rank].result() for rank in range(SIZE)]
        assert received(pool, meetings, value) == [value] * SIZE
        assert meetings[0].run_dir == (None if value == "first" else Path("runs/\udcff"))
        meetings[0].keep_run_dir(Path("runs/\udcff"))


def start_apart(rank: int) -> subprocess.Popen[str]:
    """Let a rank arrive that can be killed."""
    words = [sys.executable, "-c", JOINING.format(rank=rank, size=SIZE)]
    return subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_a_rank_that_is_killed_before_they_met(store: dist.TCPStore, arrive: Arrive, pool: ThreadPoolExecutor) -> None:
    """The one that replaces it is met, and no other has to be restarted."""
    main = arrive(0)
    while not store.check(["meetings/round"]):
        time.sleep(0.01)
    keys, process = store.num_keys(), start_apart(1)
    wait_until(lambda: store.num_keys() > keys, process)
    process.kill()
    process.communicate()
    meetings = [arrive(1), arrive(2), main]
    assert received(pool, [meeting.result() for meeting in meetings], "hello") == ["hello"] * SIZE


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("first", ["the others", "the replacement"])
def test_a_rank_that_is_killed_when_it_is_ready(
    arrive: Arrive, pool: ThreadPoolExecutor, rank: int, first: str
) -> None:
    """The others learn of it from the one that replaces it, which meets those that replace them."""
    process = start_apart(rank)
    arriving = [arrive(other) for other in range(SIZE) if other != rank]
    assert process.stdout is not None
    assert process.stdout.readline() == "met\n"
    time.sleep(0.2)
    process.kill()
    process.communicate()
    others = [meeting.result() for meeting in arriving]
    if first == "the others":
        ends = [pool.submit(join, other) for other in others]
        time.sleep(0.2)
        replacement = arrive(rank)
    else:
        replacement = arrive(rank)
        time.sleep(0.2)
        ends = [pool.submit(join, other) for other in others]
    for end in ends:
        with pytest.raises(SystemExit, match=f"rank {rank} could not start"):
            end.result()
    meetings = [replacement, *(arrive(other.world.rank) for other in others)]
    assert received(pool, [meeting.result() for meeting in meetings], "again") == ["again"] * SIZE


def join(meeting: Meeting) -> None:
    with meeting.joining(torch.device("cpu")):
        pass


def test_a_rank_that_fails_before_the_group(arrive: Arrive, pool: ThreadPoolExecutor) -> None:
    def fail() -> None:
        with met[1].joining(torch.device("cpu")):
            raise InputError("on purpose")

    met = [meeting.result() for meeting in [arrive(rank) for rank in range(SIZE)]]
    ends = [pool.submit(join, met[0]), pool.submit(join, met[2])]
    with pytest.raises(InputError, match="on purpose"):
        fail()
    for end in ends:
        with pytest.raises(SystemExit, match="rank 1 could not start"):
            end.result()


def test_ranks_that_do_not_arrive(store: dist.TCPStore, pool: ThreadPoolExecutor) -> None:
    with pytest.raises(InputError, match=r"did not meet there within --rdzv-timeout 1 s .*waiting for rank 1"):
        meet(World(rank=0, size=2), 1)
    with pytest.raises(InputError, match=rf"MASTER_PORT {store.port}: .* 1 s .*waiting for rank 0"):
        meet(World(rank=1, size=2), 1)
    # A process that has arrived and ended is not met.
    main = pool.submit(meet, World(rank=0, size=3), 60)
    with pytest.raises(InputError, match="waiting for rank 2"):
        meet(World(rank=1, size=3), 1)
    with pytest.raises(SystemExit, match="rank 1 could not start"):
        main.result()
    meetings = [meeting.result() for meeting in [pool.submit(meet, World(rank=rank, size=2), 1) for rank in range(2)]]
    with pytest.raises(InputError, match="rank 1, which was not ready --rdzv-timeout 1 s after this one"):
        join(meetings[0])


def test_a_single_process_without_a_launcher_needs_no_meeting() -> None:
    assert "TORCHELASTIC_RUN_ID" not in os.environ
    meeting = meet(World(), 1)
    meeting.keep_run_dir(Path("runs/a"))
    assert meeting.run_dir is None
    assert meeting.from_main(lambda: "here") == "here"
    join(meeting)
