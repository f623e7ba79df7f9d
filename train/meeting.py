"""How the processes of a run find each other, and what they exchange before they have a process group."""

import contextlib
import json
import os
import socket
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import psutil
import torch
import torch.distributed as dist

from pipeline.cli import EXIT_FAILURE
from pipeline.errors import InputError
from train._elastic_internals import AGENT_STORE_VARIABLE
from train.device import DEVICE_TYPES
from train.failures import first_line, lost_connection
from train.rendezvous import (
    SignedStore,
    connect_store,
    host_store,
    refuse_own_name_for_loopback,
    run_token,
)
from train.world import World, is_elastic, is_ours

_ROUND = "round"
# Of one round:
_AWAITED, _MAIN_VALUE, _FAILED = "rank that rank 0 waits for", "value of rank 0", "failed"


@dataclass(frozen=True)
class Meeting:
    """The processes of a run, all present, and the store that they share.

    A launcher keeps the store when it restarts processes, which may happen on one machine sooner than on another, and
    with another TORCHELASTIC_RESTART_COUNT: each torchrun counts the failures on its own machine. So rank 0 opens a
    round with a new ID each time, and what the processes of one meeting exchange has that ID as its prefix.
    """

    world: World
    timeout_s: int
    _rounds: SignedStore | None = None
    """Lives as long as the launcher. None for a single process without one."""
    _round_id: str = ""

    @property
    def _store(self) -> SignedStore:
        """What belongs to this round."""
        assert self._rounds is not None
        return self._rounds.within(self._round_id)

    @property
    def run_dir(self) -> Path | None:
        """On rank 0: the run's directory if `keep_run_dir` recorded it, perhaps before a restart; else None."""
        if self._rounds is None or not self._rounds.has(_run_dir_key()):
            return None
        return Path(json.loads(self._rounds.get(_run_dir_key())))

    def keep_run_dir(self, path: Path) -> None:
        """On rank 0, before anything is written there: record the run's directory, also for after a restart."""
        if self._rounds is not None:
            self._rounds.set(_run_dir_key(), json.dumps(str(path)))

    def from_main(self, compute: Callable[[], str]) -> str:
        """What `compute` returns on rank 0, on every rank; once in a meeting. SystemExit where rank 0 fails."""
        if self.world.is_main:
            value = compute()
            if self.world.size > 1:
                self._store.set(_MAIN_VALUE, value)
            return value
        try:
            self._wait(_MAIN_VALUE, 0, time.monotonic() + self.timeout_s)
            return self._store.get(_MAIN_VALUE)
        except (dist.DistError, TimeoutError):
            _exit_because_of(0)

    @contextlib.contextmanager
    def joining(self, device: torch.device) -> Iterator[None]:
        """Join the process group at the end of this block, if there are several processes.

        In the block each process does, on its own, what must come before: above all it forks the processes of its
        loaders, because the group has threads. SystemExit where another process fails at that. Raises InputError where
        one is not ready `timeout_s` seconds after this one.
        """
        if self.world.size == 1:
            yield
            return
        try:
            yield
        except BaseException:
            with contextlib.suppress(dist.DistError):
                self._store.set(_FAILED, str(self.world.rank))
            if self.world.is_main and not is_elastic():
                time.sleep(1)  # this process holds the store, in which the others are to see the failure
            raise
        try:
            self._wait_for_all("ready")
            # A process may have been killed while it waited for the last one. In the group, nobody would notice.
            self._wait_for_all("still present")
        except dist.DistError:
            _exit_because_of(0)
        except TimeoutError as error:
            message = f"{error}, which was not ready --rdzv-timeout {self.timeout_s} s after this one"
            raise InputError(message) from None
        # Gloo, which a group may use with any device, listens where the machine's own name points: often the loopback.
        os.environ.setdefault("GLOO_SOCKET_IFNAME", _interface_towards(os.environ["MASTER_ADDR"]))
        dist.init_process_group(
            DEVICE_TYPES[device.type].backend,
            store=self._store.raw,
            rank=self.world.rank,
            world_size=self.world.size,
            device_id=device if device.type != "cpu" else None,
        )

    @contextlib.contextmanager
    def announcing_failures(self) -> Iterator[None]:
        """Let one rank say why the run ends. Where it is in a process group and another launcher than Sluice's started
        it, those that lose the connection to a failed rank end without a word: SystemExit."""
        if self.world.size == 1 or is_ours():
            yield
            return
        try:
            yield
        except Exception as error:
            if not dist.is_initialized():  # `joining` announces it
                raise
            if not lost_connection(f"{type(error).__name__}: {error}"):
                with contextlib.suppress(dist.DistError):
                    self._store.set(_FAILED, str(self.world.rank))
            elif self._is_announced():
                sys.exit(EXIT_FAILURE)
            if self.world.is_main and not is_elastic():
                time.sleep(2)  # this process holds the store, where the others look
            raise

    def _is_announced(self) -> bool:
        """Whether another rank says why the run ends. One that was killed does not: then this is for the first to ask,
        or for rank 1 where rank 0 has ended, and the store with it."""
        end = time.monotonic() + 1
        try:
            while time.monotonic() < end:
                if self._store.has(_FAILED):
                    return True
                time.sleep(0.05)
            return self._store.raw.add("lost connections", 1) > 1
        except dist.DistError:
            return self.world.rank != 1

    def _wait_for_all(self, state: str) -> None:
        """Wait until every rank has called this with `state`. Raises as `_wait` does."""
        end = time.monotonic() + self.timeout_s
        self._store.set(f"rank {self.world.rank} is {state}", "")
        if self.world.is_main:
            for rank in range(self.world.size):
                self._wait(f"rank {rank} is {state}", rank, end)
            self._store.set(f"all are {state}", "")
        self._wait(f"all are {state}", 0, end)

    def _wait(self, key: str, rank: int, end: float) -> None:
        """Wait until rank `rank` has put `key` into the store. SystemExit where any rank has failed. Raises
        TimeoutError at `end` of the monotonic clock, and DistError where the store is gone: without a launcher, rank 0
        holds it."""
        assert self._rounds is not None
        store = self._store
        for _ in _attempts(end, rank, self.world):
            if store.has(_FAILED):
                _exit_because_of(int(store.get(_FAILED)))
            if self._rounds.get(_ROUND) != self._round_id:
                _exit_because_of(0)
            if store.has(key):
                return


def meet(world: World, timeout_s: int) -> Meeting:
    """Wait until every process of the run is present. Raises InputError where they do not find each other within
    `timeout_s` seconds; SystemExit where one of them gives up earlier."""
    if world.size == 1 and not is_elastic():
        return Meeting(world, timeout_s)
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    where = f"MASTER_ADDR {address}, MASTER_PORT {port}"
    end = time.monotonic() + timeout_s
    is_host = world.is_main and os.environ.get(AGENT_STORE_VARIABLE) != str(True)
    try:
        if is_host and world.local_size < world.size:
            refuse_own_name_for_loopback(where, address)
        store = (host_store if is_host else connect_store)(where, address, port, timeout_s)
        rounds = SignedStore(store, run_token(), "meetings/")
        if world.is_main:
            return _open_round(world, timeout_s, rounds, end)
        return _join_round(world, timeout_s, rounds, end)
    except (dist.DistError, TimeoutError) as error:
        raise InputError(
            f"{where}: {world.size} processes did not meet there within --rdzv-timeout {timeout_s} s "
            f"({first_line(error)})"
        ) from None


def _open_round(world: World, timeout_s: int, rounds: SignedStore, end: float) -> Meeting:
    """Rank 0's part: publish a new round ID and, when each rank has joined, to each rank which process did. Not to all
    which processes did: that would grow with the square of the ranks."""
    meeting = Meeting(world, timeout_s, rounds, uuid.uuid4().hex)
    rounds.set(_ROUND, meeting._round_id)
    store = meeting._store
    for rank in range(1, world.size):
        store.set(_AWAITED, str(rank))
        meeting._wait(_present(rank), rank, end)
    joined = {rank: store.get(_present(rank)) for rank in range(1, world.size)}
    for rank, process_id in joined.items():
        store.set(_met(rank), process_id)
    return meeting


def _join_round(world: World, timeout_s: int, rounds: SignedStore, end: float) -> Meeting:
    """Another rank's part: join with an ID of its own, until rank 0 has published that one."""
    process_id, meeting, missed_round = uuid.uuid4().hex, Meeting(world, timeout_s, rounds), ""
    try:
        for _ in _attempts(end, 0, world):
            round_id = rounds.get(_ROUND) if rounds.has(_ROUND) else ""
            if round_id == missed_round:
                continue
            if round_id != meeting._round_id:
                meeting = Meeting(world, timeout_s, rounds, round_id)
                meeting._store.set(_present(world.rank), process_id)
            elif meeting._store.has(_met(world.rank)):
                if process_id == meeting._store.get(_met(world.rank)):
                    return meeting
                meeting._store.set(_FAILED, str(world.rank))  # rank 0 met the process that this one replaces
                missed_round = round_id
    except BaseException as error:
        if meeting._round_id:
            with contextlib.suppress(dist.DistError):
                meeting._store.set(_FAILED, str(world.rank))
                if isinstance(error, TimeoutError) and meeting._store.has(_AWAITED):
                    awaited = int(meeting._store.get(_AWAITED))
                    # Rank 0 had given up where it still waits for this one, which is present.
                    raise _timed_out(awaited if awaited != world.rank else 0) from None
        raise
    raise AssertionError


def _attempts(end: float, rank: int, world: World) -> Iterator[None]:
    """Attempts to hear from rank `rank`, with pauses. Raises TimeoutError at `end` of the monotonic clock.

    PyTorch's own waiting would notice neither a failure nor a signal.
    """
    while True:
        yield
        if time.monotonic() > end:
            raise _timed_out(rank)
        time.sleep(0.01 + world.size / 4000)  # a store on 2 cores answers 44,000 queries a second; an attempt takes 3


def _timed_out(rank: int) -> TimeoutError:
    return TimeoutError(f"Timed out waiting for rank {rank}")


def _run_dir_key() -> str:
    """A key for this command: a launcher's script may train several times."""
    return f"directory of {json.dumps(sys.argv)}"


def _present(rank: int) -> str:
    return f"rank {rank} is present"


def _met(rank: int) -> str:
    return f"rank {rank} was met, all are present"


def _exit_because_of(rank: int) -> NoReturn:
    time.sleep(1)  # a launcher on this machine ends this process in the meantime, and reports the other's error
    sys.exit(f"error: rank {rank} could not start; its own error message says why")


def _interface_towards(host: str) -> str:
    """The network interface whose address this machine uses towards `host`."""
    family, kind, protocol, _, address = socket.getaddrinfo(host, 1, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, kind, protocol) as probe:
        probe.connect(address)  # sends nothing
        own = probe.getsockname()[0]
    interfaces = psutil.net_if_addrs().items()
    names = (name for name, addresses in interfaces if own in [entry.address for entry in addresses])
    return str(next(names))
