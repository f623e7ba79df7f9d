"""The processes of a run: which one this is, and how they find each other."""

import contextlib
import os
import re
import socket
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import NoReturn, TypeVar

import psutil
import torch
import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

from pipeline.errors import InputError
from train.config import TrainConfig
from train.device import DEVICE_TYPES

_LAUNCHERS = {  # where each says the rank, the world size, the local rank and the processes of this machine
    "torchrun": ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"),
    "srun": ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID", "SLURM_STEP_TASKS_PER_NODE"),
    "mpirun": (
        "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE",
    ),
}  # fmt: skip

Value = TypeVar("Value")


@dataclass(frozen=True, kw_only=True)
class World:
    """This process among those of the run."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this process prints and writes."""
        return self.rank == 0


# What another launcher says


def find_world(config: TrainConfig) -> World | None:
    """The world as the environment of a launcher describes it: torchrun's, srun's, mpirun's, or RANK and WORLD_SIZE
    set by hand.

    None where no launcher started this process, or where it is to be one: --nproc or --nnodes under anything but
    torchrun. Raises InputError where --nproc contradicts torchrun, or where the processes cannot find each other.
    """
    elastic = _is_elastic()
    if not elastic and (config.nproc > 1 or config.nnodes > 1):
        return None
    launcher = launched_by()
    if launcher is None:
        if told := [name for name in ("RANK", "WORLD_SIZE") if name in os.environ]:
            raise InputError(f"{told[0]} {os.environ[told[0]]} is exported, and RANK and WORLD_SIZE are not both")
        return None
    world = _described(launcher, *(os.environ.get(name) for name in _LAUNCHERS[launcher]))
    if elastic and config.nproc not in (1, world.local_size):
        raise InputError(f"--nproc {config.nproc}: the launcher started {world.local_size} processes here")
    port = os.environ.get("MASTER_PORT", "")
    if world.size > 1 and not (os.environ.get("MASTER_ADDR") and port.isdecimal() and 0 < int(port) < 1 << 16):
        raise InputError(
            f"{launcher} started {world.size} processes: export MASTER_ADDR (the host of rank 0) and MASTER_PORT "
            "(a free port there) for them, or start one on each machine, with --nproc, --nnodes and --node-rank"
        )
    return world


def _is_elastic() -> bool:
    """Whether PyTorch's launcher, ours or torchrun, started this process: it keeps the store."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def launched_by() -> str | None:
    """The launcher that started this process (ours speaks as torchrun), None where none did."""
    found = (launcher for launcher, names in _LAUNCHERS.items() if all(name in os.environ for name in names[:2]))
    return next(found, None)


def _described(launcher: str, *values: str | None) -> World:
    rank, size, local_rank, local_size = values
    if launcher == "srun":
        local_size = _tasks_of_node(local_size or "", int(os.environ.get("SLURM_NODEID", "0")))
    try:
        world = World(
            rank=int(rank or 0),
            size=int(size or 1),
            # Set by hand, they may be left out on a single machine.
            local_rank=int(local_rank or rank or 0),
            local_size=int(local_size or size or 1),
        )
        if not (0 <= world.rank < world.size and 0 <= world.local_rank < world.local_size <= world.size):
            raise ValueError
        return world
    except ValueError:
        told = " ".join(f"{name}={value}" for name, value in zip(_LAUNCHERS[launcher], values, strict=True))
        raise InputError(f"{launcher}'s environment has no numbers where they belong: {told}") from None


def _tasks_of_node(described: str, node: int) -> str | None:
    """The tasks of a node as srun describes those of all: "2(x3),1" is 2 on each of three nodes and 1 on the last."""
    counts: list[str] = []
    for count, times in re.findall(r"(\d+)(?:\(x(\d+)\))?", described):
        counts += [count] * int(times or 1)
    return counts[node] if node < len(counts) else None


# Meeting the others


def meet(world: World, timeout_s: int) -> dist.PrefixStore | None:
    """Wait until every process of the run is there; None where there is one. Returns the store that they share, for
    what they have to tell each other before there is a process group. Raises InputError where they do not find each
    other within `timeout_s` seconds."""
    if world.size == 1:
        return None
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    where = f"MASTER_ADDR {address}, MASTER_PORT {port}"
    if not _is_elastic():
        check_meeting_point(where, address, port, timeout_s, is_host=world.is_main)
    try:
        kept, _, _ = next(rendezvous("env://", world.rank, world.size, timeout=timedelta(seconds=timeout_s)))
        # A launcher on several machines keeps its store over a restart.
        kept.set(_attempt(0), "")
        store = dist.PrefixStore(_attempt(0), kept)
        _wait_for_all(store, world, "is here", timeout_s)
    except (dist.DistError, TimeoutError) as error:
        raise InputError(
            f"{where}: {world.size} processes did not meet there within --rdzv-timeout {timeout_s} s "
            f"({first_line(error)})"
        ) from None
    return store


def restarts() -> int:
    """How often a launcher, ours or torchrun, has restarted the processes of the run after a failure."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))


def _attempt(later: int) -> str:
    """The name of the present attempt to run, or of the `later`-th after it."""
    return f"attempt {restarts() + later}"


def _wait_for_all(store: dist.PrefixStore, world: World, what: str, timeout_s: int) -> None:
    """Until every rank has said that it `what`. Raises as `_wait`."""
    end = time.monotonic() + timeout_s
    store.set(f"rank {world.rank} {what}", "")
    for rank in range(world.size):
        _wait(store, f"rank {rank} {what}", rank, end)


def _wait(store: dist.PrefixStore, key: str, rank: int, end: float) -> None:
    """Until rank `rank` has put `key` into the store, or `end` of the monotonic clock. SystemExit where it has failed
    instead. Raises TimeoutError, and DistError where the store is no more: without a launcher rank 0 keeps it.

    PyTorch's own waiting would notice neither a failure nor a signal.
    """
    while not store.check([key]):
        # On its machine they may have been restarted, where this one has not noticed a failure yet.
        if store.check([f"rank {rank} failed"]) or store.underlying_store.check([_attempt(1)]):
            _leave_to(rank)
        if time.monotonic() > end:
            raise TimeoutError(f"Timed out waiting for rank {rank}")
        time.sleep(0.01)


def _leave_to(rank: int) -> NoReturn:
    time.sleep(1)  # a launcher on this machine ends this process meanwhile, and tells of the other
    sys.exit(f"error: rank {rank} could not begin; what it said tells why")


def told_by_main(value: str, world: World, store: dist.PrefixStore | None, timeout_s: int) -> str:
    """Rank 0's value on every rank, once in a run, before there is a process group. SystemExit where it fails."""
    key = "told by rank 0"
    if store is None:
        return value
    if world.is_main:
        store.set(key, value)
        return value
    try:
        _wait(store, key, 0, time.monotonic() + timeout_s)
        return bytes(store.get(key)).decode()
    except (dist.DistError, TimeoutError):
        _leave_to(0)


@contextlib.contextmanager
def joining(world: World, device: torch.device, store: dist.PrefixStore | None, timeout_s: int) -> Iterator[None]:
    """Join the process group at the end of this block, if there are several processes.

    In it, each does what it has to do before, and so alone: fork the processes of its loaders, above all, because the
    group has threads. SystemExit where another one fails at that. Raises InputError where one is not ready `timeout_s`
    seconds after this one.
    """
    if store is None:
        yield
        return
    try:
        yield
    except BaseException:
        with contextlib.suppress(dist.DistError):
            store.set(f"rank {world.rank} failed", "")
        if world.is_main and not _is_elastic():
            time.sleep(1)  # this process keeps the store, in which the others are to see it
        raise
    try:
        _wait_for_all(store, world, "is ready", timeout_s)
    except dist.DistError:
        _leave_to(0)
    except TimeoutError as error:
        raise InputError(f"{error}, which was not ready --rdzv-timeout {timeout_s} s after this one") from None
    # Gloo, which groups may use beside any device, listens where the machine's own name points: often the loopback.
    os.environ.setdefault("GLOO_SOCKET_IFNAME", _interface_towards(os.environ["MASTER_ADDR"]))
    dist.init_process_group(
        DEVICE_TYPES[device.type].backend,
        store=store,
        rank=world.rank,
        world_size=world.size,
        device_id=device if device.type != "cpu" else None,
    )


def finalize(world: World) -> None:
    """Leave the process group."""
    if world.size > 1:
        dist.destroy_process_group()


def same_on_all(value: Value, world: World) -> Value:
    """Rank 0's value on every rank. A collective call."""
    values = [value]
    if world.size > 1:
        dist.broadcast_object_list(values, 0)
    return values[0]


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
