"""Starting the processes of a run, and restarting those that fail: PyTorch's elastic launcher."""

import contextlib
import ctypes
import logging
import os
import re
import signal
import sys
import tempfile
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

import torch.distributed as dist
from torch.distributed.elastic.agent.server.api import RunResult, WorkerGroup, WorkerSpec
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
from torch.distributed.elastic.multiprocessing.errors import ProcessFailure, record
from torch.distributed.elastic.rendezvous import RendezvousParameters
from torch.distributed.elastic.rendezvous.registry import get_rendezvous_handler
from torch.distributed.elastic.rendezvous.utils import parse_rendezvous_endpoint

from pipeline.cli import EXIT_BAD_INPUT, EXIT_FAILURE
from pipeline.errors import InputError
from train.config import TrainConfig
from train.meeting import check_meeting_point, first_line
from train.stopping import STOP_SIGNALS

log = logging.getLogger(__name__)

_LAUNCHER = "SLUICE_LAUNCHER"  # its process id

Value = TypeVar("Value")


def work(function: Callable[..., Value], *arguments: Any) -> Value | None:
    """Call `function` in a process that a launcher started; an exception reaches it through a file.

    Where the launcher is `launch`, it tells of the exception and ends the other processes; this one ends at once and
    silently, before they notice and fail too.
    """
    recorded = record(function)
    if _LAUNCHER not in os.environ:
        return recorded(*arguments)
    _end_with_launcher()
    try:
        return recorded(*arguments)
    except InputError:
        os._exit(EXIT_BAD_INPUT)
    except (Exception, KeyboardInterrupt):
        os._exit(EXIT_FAILURE)


def _end_with_launcher() -> None:
    """Let the kernel kill this process when our launcher dies: it would train on for ever, watched by nobody."""
    parent_death_signal = 1  # PR_SET_PDEATHSIG of <linux/prctl.h>
    ctypes.CDLL(None).prctl(parent_death_signal, int(signal.SIGKILL))
    if os.getppid() != int(os.environ[_LAUNCHER]):  # it has died before
        os._exit(EXIT_FAILURE)


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
    os.environ[_LAUNCHER] = str(os.getpid())
    # PyTorch would print a report of every rank; the agent tells of the first failure.
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    meeting = _meeting(config)
    # PyTorch waits for other machines in C++, where Python does not notice Ctrl-C.
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, *STOP_SIGNALS)}
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        with tempfile.TemporaryDirectory(prefix="sluice-errors-") as folder:
            return _run(config, _agent(config, entry, arguments, meeting, folder))
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


def _run(config: TrainConfig, agent: Agent) -> dict[int, Any]:
    try:
        result = agent.run()
    except dist.DistError as error:
        raise InputError(
            f"--rdzv-endpoint {config.rdzv_endpoint}: {config.nnodes} machines did not meet there within "
            f"--rdzv-timeout {config.rdzv_timeout} s ({first_line(error)})"
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
    check_meeting_point(f"--rdzv-endpoint {endpoint}", host, port, timeout, is_host=config.node_rank == 0)
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
        return f"rank {rank} lost the connection to another rank: {first_line(told)}"
    return f"{failure.message['extraInfo']['py_callstack']}rank {rank} failed: {told}"


def _message(failure: ProcessFailure) -> str:
    return failure.message["message"] if isinstance(failure.message, dict) else failure.message
