"""How the processes of a run find each other, and what they tell each other before they have a process group."""

import contextlib
import json
import os
import socket
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import NoReturn

import psutil
import torch
import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

from pipeline.errors import InputError
from train.device import DEVICE_TYPES
from train.world import World, is_elastic

_CALL = "call"
# Under the word that was called:
_ALL_HERE, _MAIN_SAYS, _FAILED = "all are here", "rank 0 says", "failed"


@dataclass(frozen=True)
class Meeting:
    """The processes of a run, all there, and the store that they share.

    A launcher keeps the store when it starts processes again, which it may do on one machine sooner than on another,
    and with another TORCHELASTIC_RESTART_COUNT: a torchrun counts the failures on its own machine. So rank 0 calls with
    a new word each time, and what the processes of one meeting tell each other stands under that word.
    """

    world: World
    timeout_s: int
    _kept: dist.Store | None = None
    """As long as the launcher. None for a single process without one."""
    _word: str = ""

    @property
    def _store(self) -> dist.PrefixStore:
        assert self._kept is not None
        return dist.PrefixStore(self._word, self._kept)

    @property
    def run_dir(self) -> Path | None:
        """Asked on rank 0: what `keep_run_dir` was told, which may have been before a restart; else None."""
        if self._kept is None or not self._kept.check([_run_dir_key()]):
            return None
        return Path(json.loads(self._kept.get(_run_dir_key())))

    def keep_run_dir(self, path: Path) -> None:
        """On rank 0, before anything is written there: this is the run's directory also after a restart."""
        if self._kept is not None:
            self._kept.set(_run_dir_key(), json.dumps(str(path)))

    def said_by_main(self, value: Callable[[], str]) -> str:
        """What `value` returns on rank 0, on every rank; once in a meeting. SystemExit where rank 0 fails."""
        if self.world.is_main:
            said = value()
            if self.world.size > 1:
                self._store.set(_MAIN_SAYS, said)
            return said
        try:
            self._wait(_MAIN_SAYS, 0, time.monotonic() + self.timeout_s)
            return self._store.get(_MAIN_SAYS).decode()
        except (dist.DistError, TimeoutError):
            _leave_to(0)

    @contextlib.contextmanager
    def joining(self, device: torch.device) -> Iterator[None]:
        """Join the process group at the end of this block, if there are several processes.

        In it, each does what it has to do before, and so alone: fork the processes of its loaders, above all, because
        the group has threads. SystemExit where another one fails at that. Raises InputError where one is not ready
        `timeout_s` seconds after this one.
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
                time.sleep(1)  # this process keeps the store, in which the others are to see it
            raise
        try:
            self._wait_for_all("ready")
            # A process may have been killed while it waited for the last one. In the group, nothing would tell of that.
            self._wait_for_all("still there")
        except dist.DistError:
            _leave_to(0)
        except TimeoutError as error:
            told = f"{error}, which was not ready --rdzv-timeout {self.timeout_s} s after this one"
            raise InputError(told) from None
        # Gloo, which groups may use beside any device, listens where the machine's own name points: often the loopback.
        os.environ.setdefault("GLOO_SOCKET_IFNAME", _interface_towards(os.environ["MASTER_ADDR"]))
        dist.init_process_group(
            DEVICE_TYPES[device.type].backend,
            store=self._store,
            rank=self.world.rank,
            world_size=self.world.size,
            device_id=device if device.type != "cpu" else None,
        )

    def _wait_for_all(self, state: str) -> None:
        """Until every rank is here. Raises as `_wait`."""
        end = time.monotonic() + self.timeout_s
        self._store.set(f"rank {self.world.rank} is {state}", "")
        if self.world.is_main:
            for rank in range(self.world.size):
                self._wait(f"rank {rank} is {state}", rank, end)
            self._store.set(f"all are {state}", "")
        self._wait(f"all are {state}", 0, end)

    def _wait(self, key: str, rank: int, end: float) -> None:
        """Until rank `rank` has put `key` into the store, or `end` of the monotonic clock. SystemExit where any rank
        has failed. Raises TimeoutError, and DistError where the store is no more: without a launcher rank 0 keeps
        it."""
        assert self._kept is not None
        store = self._store
        for _ in _until(end, rank, self.world):
            if store.check([_FAILED]):
                _leave_to(int(store.get(_FAILED)))
            if self._kept.get(_CALL).decode() != self._word:
                _leave_to(0)
            if store.check([key]):
                return


def meet(world: World, timeout_s: int) -> Meeting:
    """Wait until every process of the run is there. Raises InputError where they do not find each other within
    `timeout_s` seconds; SystemExit where one of them gives up before."""
    if world.size == 1 and not is_elastic():
        return Meeting(world, timeout_s)
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    where = f"MASTER_ADDR {address}, MASTER_PORT {port}"
    end = time.monotonic() + timeout_s
    if not is_elastic():
        check_meeting_point(where, address, port, timeout_s, is_host=world.is_main)
    try:
        store, _, _ = next(rendezvous("env://", world.rank, world.size, timeout=timedelta(seconds=timeout_s)))
        kept = dist.PrefixStore("meetings", store)
        if world.is_main:
            return _call(world, timeout_s, kept, end)
        return _answer(world, timeout_s, kept, end)
    except (dist.DistError, TimeoutError) as error:
        raise InputError(
            f"{where}: {world.size} processes did not meet there within --rdzv-timeout {timeout_s} s "
            f"({first_line(error)})"
        ) from None


def _call(world: World, timeout_s: int, kept: dist.Store, end: float) -> Meeting:
    """Rank 0's part: say a new word, and whose answers have come when there is one of each rank."""
    meeting = Meeting(world, timeout_s, kept, uuid.uuid4().hex)
    kept.set(_CALL, meeting._word)
    for rank in range(1, world.size):
        meeting._wait(_here(rank), rank, end)
    store = meeting._store
    store.set(_ALL_HERE, " ".join(store.get(_here(rank)).decode() for rank in range(1, world.size)))
    return meeting


def _answer(world: World, timeout_s: int, kept: dist.Store, end: float) -> Meeting:
    """Another rank's part: answer the call with a name of its own, until rank 0 has heard that one."""
    name, meeting, late = uuid.uuid4().hex, Meeting(world, timeout_s, kept), ""
    try:
        for _ in _until(end, 0, world):
            word = kept.get(_CALL).decode() if kept.check([_CALL]) else ""
            if word == late:
                continue
            if word != meeting._word:
                meeting = Meeting(world, timeout_s, kept, word)
                meeting._store.set(_here(world.rank), name)
            elif meeting._store.check([_ALL_HERE]):
                if name in meeting._store.get(_ALL_HERE).decode().split():
                    return meeting
                meeting._store.set(_FAILED, str(world.rank))  # rank 0 heard one that this one came in the place of
                late = word
    except BaseException as error:
        if meeting._word:
            with contextlib.suppress(dist.DistError):
                meeting._store.set(_FAILED, str(world.rank))
                absent = [rank for rank in range(1, world.size) if not meeting._store.check([_here(rank)])]
                if absent and isinstance(error, TimeoutError):
                    raise _timed_out(absent[0]) from None
        raise
    raise AssertionError


def _until(end: float, rank: int, world: World) -> Iterator[None]:
    """Tries to hear from rank `rank`. Raises TimeoutError at `end` of the monotonic clock.

    PyTorch's own waiting would notice neither a failure nor a signal.
    """
    while True:
        yield
        if time.monotonic() > end:
            raise _timed_out(rank)
        time.sleep(0.01 + world.size / 4000)  # a store on 2 cores answers 44,000 times a second, a try asks 3 times


def _timed_out(rank: int) -> TimeoutError:
    return TimeoutError(f"Timed out waiting for rank {rank}")


def _run_dir_key() -> str:
    """A launcher's script may train several times."""
    return f"directory of {json.dumps(sys.argv)}"


def _here(rank: int) -> str:
    return f"rank {rank} is here"


def _leave_to(rank: int) -> NoReturn:
    time.sleep(1)  # a launcher on this machine ends this process meanwhile, and tells of the other
    sys.exit(f"error: rank {rank} could not begin; what it said tells why")


def check_meeting_point(where: str, address: str, port: int, timeout_s: int, is_host: bool) -> None:
    """Raises InputError where this process cannot listen at the address, or does not reach it within `timeout_s`
    seconds. PyTorch waits too, but without the reason, and prints stack traces meanwhile."""
    end = time.monotonic() + timeout_s
    while True:
        try:
            if is_host:
                family = socket.getaddrinfo(address, port, type=socket.SOCK_STREAM)[0][0]
                socket.create_server((address, port), family=family).close()
            else:
                socket.create_connection((address, port), timeout=max(0.1, end - time.monotonic())).close()
            return
        except OSError as error:
            reason = error.strerror or error
            if is_host:
                raise InputError(f"{where}: rank 0 is to listen there, and cannot ({reason})") from None
            if time.monotonic() > end:
                raise InputError(f"{where}: not reached within --rdzv-timeout {timeout_s} s ({reason})") from None
            time.sleep(0.2)


def _interface_towards(host: str) -> str:
    """The network interface whose address this machine uses towards `host`."""
    family, kind, protocol, _, address = socket.getaddrinfo(host, 1, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, kind, protocol) as probe:
        probe.connect(address)  # sends nothing
        own = probe.getsockname()[0]
    interfaces = psutil.net_if_addrs().items()
    return next(name for name, addresses in interfaces if own in [each.address for each in addresses])


def first_line(error: object) -> str:
    """Of an error's message; those of PyTorch go on for pages."""
    return str(error).strip().partition("\n")[0]
