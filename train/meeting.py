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

_CALL, _RUN_DIR = "call", "run directory"
_ALL_HERE, _MAIN_SAYS = "all are here", "rank 0 says"


@dataclass(frozen=True)
class Meeting:
    """The processes of a run, all there, and the store that they share.

    A launcher keeps the store when it starts processes again, for which those of a machine may be early or late, and
    their TORCHELASTIC_RESTART_COUNT another than elsewhere: a torchrun counts the failures on its own machine. So
    rank 0 calls with a new word each time, and what the processes of one meeting tell stands under that word.
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
        """Asked on rank 0: the directory that this run has already; None unless the launcher has restarted it."""
        if self._kept is None or not self._kept.check([_RUN_DIR]):
            return None
        return Path(json.loads(self._kept.get(_RUN_DIR)))

    def keep_run_dir(self, path: Path) -> None:
        """On rank 0, before anything is written there: this is the run's directory also after a restart."""
        if self._kept is not None:
            self._kept.set(_RUN_DIR, json.dumps(str(path)))

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
                self._store.set(_failed(self.world.rank), "")
            if self.world.is_main and not is_elastic():
                time.sleep(1)  # this process keeps the store, in which the others are to see it
            raise
        try:
            self._wait_until_all_are_ready()
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

    def _wait_until_all_are_ready(self) -> None:
        end = time.monotonic() + self.timeout_s
        self._store.set(f"rank {self.world.rank} is ready", "")
        for rank in range(self.world.size):
            self._wait(f"rank {rank} is ready", rank, end)

    def _wait(self, key: str, rank: int, end: float) -> None:
        """Until rank `rank` has put `key` into the store, or `end` of the monotonic clock. SystemExit where it has
        failed instead. Raises TimeoutError, and DistError where the store is no more: without a launcher rank 0 keeps
        it."""
        assert self._kept is not None
        for _ in _until(end, rank):
            if self._store.check([key]):
                return
            # Where a process was killed, the one in its place tells.
            if self._store.check([_failed(rank)]) or _called(self._kept) != self._word:
                _leave_to(rank)


def meet(world: World, timeout_s: int) -> Meeting:
    """Wait until every process of the run is there. Raises InputError where they do not find each other within
    `timeout_s` seconds."""
    if world.size == 1 and not is_elastic():
        return Meeting(world, timeout_s)
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    where = f"MASTER_ADDR {address}, MASTER_PORT {port}"
    end = time.monotonic() + timeout_s
    if not is_elastic():
        check_meeting_point(where, address, port, timeout_s, is_host=world.is_main)
    try:
        store, _, _ = next(rendezvous("env://", world.rank, world.size, timeout=timedelta(seconds=timeout_s)))
        kept = dist.PrefixStore("sluice", store)
        word = _call(kept, world, end) if world.is_main else _answer(kept, world, end)
    except (dist.DistError, TimeoutError) as error:
        raise InputError(
            f"{where}: {world.size} processes did not meet there within --rdzv-timeout {timeout_s} s "
            f"({first_line(error)})"
        ) from None
    return Meeting(world, timeout_s, kept, word)


def _call(kept: dist.Store, world: World, end: float) -> str:
    """Rank 0's part: say a new word, and whose answers have come when there is one of each rank."""
    word = uuid.uuid4().hex
    store = dist.PrefixStore(word, kept)
    kept.set(_CALL, word)
    for rank in range(1, world.size):
        for _ in _until(end, rank):
            if store.check([_here(rank)]):
                break
    store.set(_ALL_HERE, " ".join(store.get(_here(rank)).decode() for rank in range(1, world.size)))
    return word


def _answer(kept: dist.Store, world: World, end: float) -> str:
    """Another rank's part: answer the call with a name of its own, until rank 0 has heard that one."""
    name = uuid.uuid4().hex
    answered = ""
    for _ in _until(end, 0):
        word = _called(kept)
        if not word:
            continue
        store = dist.PrefixStore(word, kept)
        if word != answered:
            store.set(_here(world.rank), name)
            answered = word
        elif store.check([_ALL_HERE]):
            if name in store.get(_ALL_HERE).decode().split():
                return word
            store.set(_failed(world.rank), "")  # rank 0 heard the process that was killed before this one came
    raise AssertionError


def _until(end: float, rank: int) -> Iterator[None]:
    """Tries, 10 ms apart. Raises TimeoutError at `end` of the monotonic clock.

    PyTorch's own waiting would notice neither a failure nor a signal.
    """
    while True:
        yield
        if time.monotonic() > end:
            raise TimeoutError(f"Timed out waiting for rank {rank}")
        time.sleep(0.01)


def _called(kept: dist.Store) -> str:
    return kept.get(_CALL).decode() if kept.check([_CALL]) else ""


def _here(rank: int) -> str:
    return f"rank {rank} is here"


def _failed(rank: int) -> str:
    return f"rank {rank} failed"


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
