"""Processes: one by itself, several through PyTorch's elastic launcher, or those that another launcher started."""

import contextlib
import ctypes
import dataclasses
import logging
import os
import re
import signal
import socket
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

import psutil
import torch
import torch.distributed as dist
from torch.distributed.elastic.agent.server.api import RunResult, WorkerGroup, WorkerSpec
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
from torch.distributed.elastic.multiprocessing.errors import ProcessFailure
from torch.distributed.elastic.rendezvous import RendezvousParameters
from torch.distributed.elastic.rendezvous.registry import get_rendezvous_handler
from torch.distributed.elastic.rendezvous.utils import parse_rendezvous_endpoint
from torch.distributed.elastic.utils.store import barrier
from torch.distributed.rendezvous import rendezvous

from pipeline.cli import EXIT_BAD_INPUT, EXIT_FAILURE
from pipeline.errors import InputError
from train import checkpoint
from train.config import TrainConfig
from train.device import DEVICE_TYPES

log = logging.getLogger(__name__)

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
"""What schedulers send before they kill: the launcher passes it on and waits for its processes to end."""

_OURS = "SLUICE_LAUNCHER"  # its process id
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
    elastic = "TORCHELASTIC_RUN_ID" in os.environ
    if not elastic and (config.nproc > 1 or config.nnodes > 1):
        return None
    for launcher, names in _LAUNCHERS.items():
        if all(name in os.environ for name in names[:2]):
            world = _described(launcher, *(os.environ.get(name) for name in names))
            break
    else:
        return None
    if elastic and config.nproc not in (1, world.local_size):
        raise InputError(f"--nproc {config.nproc}: the launcher started {world.local_size} processes here")
    if world.size > 1 and not (os.environ.get("MASTER_ADDR") and os.environ.get("MASTER_PORT", "").isdigit()):
        raise InputError(
            f"{launcher} started {world.size} processes: export MASTER_ADDR (the host of rank 0) and MASTER_PORT "
            "(a free port there) for them, or start one on each machine, with --nproc, --nnodes and --node-rank"
        )
    return world


def _described(launcher: str, *values: str | None) -> World:
    rank, size, local_rank, local_size = values
    if launcher == "srun":
        local_size = _tasks_of_node(local_size or "", int(os.environ.get("SLURM_NODEID", "0")))
    try:
        return World(
            rank=int(rank or 0),
            size=int(size or 1),
            # Set by hand, they may be left out on a single machine.
            local_rank=int(local_rank or rank or 0),
            local_size=int(local_size or size or 1),
        )
    except ValueError:
        told = " ".join(f"{name}={value}" for name, value in zip(_LAUNCHERS[launcher], values, strict=True))
        raise InputError(f"{launcher}'s environment has no numbers where they belong: {told}") from None


def _tasks_of_node(described: str, node: int) -> str | None:
    """The tasks of a node as srun describes those of all: "2(x3),1" is 2 on each of three nodes and 1 on the last."""
    counts: list[str] = []
    for count, times in re.findall(r"(\d+)(?:\(x(\d+)\))?", described):
        counts += [count] * int(times or 1)
    return counts[node] if node < len(counts) else None


# Being one of several processes


def reports_to_parent() -> bool:
    """Whether our own launcher waits for this process and prints its error."""
    return _OURS in os.environ


def end_with_launcher() -> None:
    """Let the kernel kill this process when our launcher dies: it would train on for ever, watched by nobody."""
    parent_death_signal = 1  # PR_SET_PDEATHSIG of <linux/prctl.h>
    ctypes.CDLL(None).prctl(parent_death_signal, int(signal.SIGKILL))
    if os.getppid() != int(os.environ[_OURS]):  # it has died before
        os._exit(EXIT_FAILURE)


def as_restarted(config: TrainConfig) -> TrainConfig:
    """`config`, or where the launcher restarted this process after a failure, the same going on from the newest
    checkpoint. Raises InputError where nobody said in which directory that is."""
    restarts = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))
    if restarts == 0 or config.evaluate:
        return config
    if config.run_dir is None:
        raise InputError("a run that is to be restarted needs --run-dir, where its checkpoints are found again")
    if config.resume and not checkpoint.existing(config.run_dir):
        return config
    return dataclasses.replace(config, resume="auto")


def initialize(world: World, device: torch.device, timeout_s: int) -> None:
    """Join the process group, if there are several processes. Raises InputError where they do not find each other
    within `timeout_s` seconds."""
    if world.size == 1:
        return
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    where = f"MASTER_ADDR {address}, MASTER_PORT {port}"
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        _check_meeting_point(where, address, port, timeout_s, is_host=world.is_main)
    try:
        store, _, _ = next(rendezvous("env://", world.rank, world.size, timeout=timedelta(seconds=timeout_s)))
        # A launcher on several machines keeps its store over a restart.
        store = dist.PrefixStore(f"attempt {os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
        barrier(store, world.size, "started", timeout_s)
    except dist.DistError as error:
        raise InputError(
            f"{where}: {world.size} processes did not meet there within --rdzv-timeout {timeout_s} s "
            f"({_first_line(error)})"
        ) from None
    # Gloo, which groups may use beside any device, listens where the machine's own name points: often the loopback.
    os.environ.setdefault("GLOO_SOCKET_IFNAME", _interface_towards(address))
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


def _check_meeting_point(where: str, address: str, port: int, timeout_s: int, is_host: bool) -> None:
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


def _first_line(error: object) -> str:
    return str(error).strip().partition("\n")[0]


# Starting processes


class Agent(LocalElasticAgent):
    """PyTorch's agent, which starts, watches and restarts the processes of this machine.

    It tells of each failure once; passes a signal to stop on, and lets the processes end by themselves.
    """

    stopping: bool = False
    """Whether a signal to stop was passed on."""

    def _start_workers(self, worker_group: WorkerGroup) -> dict[int, Any]:
        started = super()._start_workers(worker_group)
        for number in STOP_SIGNALS:  # in place of PyTorch's handlers, which kill after 30 s
            signal.signal(number, self._pass_on)
        return started

    def _pass_on(self, number: int, frame: FrameType | None) -> None:
        self.stopping = True
        self._remaining_restarts = 0
        for worker in self._worker_group.workers:
            with contextlib.suppress(ProcessLookupError):
                os.kill(worker.id, number)

    def _monitor_workers(self, worker_group: WorkerGroup) -> RunResult:
        result = super()._monitor_workers(worker_group)
        if result.is_failed():
            rank, failure = first_failure(result.failures)
            if failure.exitcode == EXIT_BAD_INPUT:
                self._remaining_restarts = 0  # it stays bad
            elif not self.stopping or isinstance(failure.message, dict):
                log.error("%s", described(rank, failure))
            if self._remaining_restarts:
                log.error("restarting from the last checkpoint; %d restarts left", self._remaining_restarts - 1)
        return result


def launch(config: TrainConfig, entry: Callable[..., Any] | str, *arguments: Any) -> dict[int, Any]:
    """Run a Python program or a function in --nproc processes on each of --nnodes machines, and wait for those of this
    one. Returns what the function returned, by rank.

    Raises InputError where the machines do not meet, and with the message of the first failing rank where that
    found bad input; SystemExit with its exit code where one failed otherwise; KeyboardInterrupt.
    """
    cores = len(os.sched_getaffinity(0))
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cores // config.nproc)))
    os.environ[_OURS] = str(os.getpid())
    # PyTorch would print a report of every rank; the agent tells of the first failure.
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    meeting = _meeting(config)
    # PyTorch waits for other machines in C++, where Python does not notice Ctrl-C.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    with tempfile.TemporaryDirectory(prefix="sluice-errors-") as folder:
        return _run(config, _agent(config, entry, arguments, meeting, folder))


def _run(config: TrainConfig, agent: Agent) -> dict[int, Any]:
    try:
        result = agent.run()
    except dist.DistError as error:
        raise InputError(
            f"--rdzv-endpoint {config.rdzv_endpoint}: {config.nnodes} machines did not meet there within "
            f"--rdzv-timeout {config.rdzv_timeout} s ({_first_line(error)})"
        ) from None
    except SignalException as stop:
        if stop.sigval == signal.SIGINT:
            raise KeyboardInterrupt from None
        sys.exit(128 + stop.sigval)
    if result.is_failed():
        _, failure = first_failure(result.failures)
        if failure.exitcode == EXIT_BAD_INPUT:
            raise InputError(_message(failure).removeprefix("InputError: "))
        sys.exit(failure.exitcode if failure.exitcode > 0 else 128 - failure.exitcode)
    return result.return_values


def _meeting(config: TrainConfig) -> RendezvousParameters:
    """Where the machines meet. Raises InputError where that cannot be."""
    if config.nnodes == 1:
        return RendezvousParameters("c10d", "localhost:0", uuid.uuid4().hex, 1, 1, local_addr="localhost")
    endpoint, nodes, timeout = config.rdzv_endpoint, config.nnodes, config.rdzv_timeout
    log.info("machine %d of %d: meeting the others at %s", config.node_rank, nodes, endpoint)
    host, port = parse_rendezvous_endpoint(endpoint, -1)
    _check_meeting_point(f"--rdzv-endpoint {endpoint}", host, port, timeout, is_host=config.node_rank == 0)
    # Not c10d, with which machines get their numbers by chance.
    return RendezvousParameters("static", endpoint, "sluice", nodes, nodes, rank=config.node_rank, timeout=timeout)


def _agent(
    config: TrainConfig,
    entry: Callable[..., Any] | str,
    arguments: Sequence[Any],
    meeting: RendezvousParameters,
    folder: str,
) -> Agent:
    host, port = parse_rendezvous_endpoint(meeting.endpoint, -1) if config.nnodes > 1 else (None, None)
    spec = WorkerSpec(
        role="sluice",
        local_world_size=config.nproc,
        entrypoint=sys.executable if isinstance(entry, str) else entry,
        args=(entry, *arguments) if isinstance(entry, str) else tuple(arguments),
        rdzv_handler=get_rendezvous_handler(meeting),
        max_restarts=config.max_restarts,
        monitor_interval=0.1,
        master_addr=host,
        master_port=port,
        local_addr=meeting.local_addr,
    )
    return Agent(spec, DefaultLogsSpecs(folder))


def first_failure(failures: Mapping[int, ProcessFailure]) -> tuple[int, ProcessFailure]:
    """The rank that failed first, and how. The others fail as they lose their connection to it, or are ended."""

    def order(item: tuple[int, ProcessFailure]) -> tuple[bool, bool, float]:
        failure = item[1]
        error_file = Path(failure.error_file)
        # A killed process leaves no file: it is noticed a second later at most, and counted in whole seconds.
        when = error_file.stat().st_mtime if error_file.is_file() else failure.timestamp - 2
        return failure.exitcode != EXIT_BAD_INPUT, failure.exitcode == -signal.SIGTERM, when

    return min(failures.items(), key=order)


def described(rank: int, failure: ProcessFailure) -> str:
    """What happened to a rank: its traceback, if it left one, and a line."""
    if failure.exitcode < 0:
        return f"rank {rank} was killed by {failure.signal_name()}"
    if not isinstance(failure.message, dict):  # it failed before it could leave a message, and has printed it
        return f"rank {rank} ended with exit code {failure.exitcode}"
    told = _message(failure)
    if re.search("[Cc]onnection (closed|reset)|^Dist[A-Za-z]*Error", told):
        return f"rank {rank} lost the connection to another rank: {_first_line(told)}"
    return f"{failure.message['extraInfo']['py_callstack']}rank {rank} failed: {told}"


def _message(failure: ProcessFailure) -> str:
    return failure.message["message"] if isinstance(failure.message, dict) else failure.message
