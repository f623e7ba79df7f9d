"""Starting the processes of a run, and restarting those that fail: PyTorch's elastic launcher."""

import contextlib
import ctypes
import logging
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

import torch.distributed as dist
from torch.distributed.elastic.agent.server.api import RunResult, WorkerSpec
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
from torch.distributed.elastic.multiprocessing.errors import ProcessFailure, record
from torch.distributed.elastic.rendezvous.utils import parse_rendezvous_endpoint

from pipeline.cli import EXIT_BAD_INPUT, EXIT_FAILURE, EXIT_INTERRUPTED
from pipeline.errors import InputError, StorageError
from train._elastic_internals import (
    SIGNALS_VARIABLE,
    ObservedAgent,
    has_recorded_error,
    recorded_message,
    recorded_traceback,
)
from train.config import TrainConfig
from train.failures import explanation, first_line, probably_out_of_memory
from train.rendezvous import LOOPBACK, Machines, generate_token, refuse_own_name_for_loopback
from train.stopping import STOP_SIGNALS
from train.world import LAUNCHER_VARIABLE, is_ours

log = logging.getLogger(__name__)

_HANDLED = (*STOP_SIGNALS, signal.SIGHUP, signal.SIGQUIT)
"""The signals that the launcher and PyTorch's agent handle."""

IGNORED_VARIABLE = "SLUICE_IGNORED_SIGNALS"
"""The numbers of the signals that the launcher was started to ignore, by nohup or by a shell that started it in the
background. While its processes start, PyTorch's handlers stand in their place, so they cannot inherit this."""

Value = TypeVar("Value")


def work(function: Callable[..., Value], *arguments: Any) -> Value | None:
    """Call `function` in a process that a launcher started; the launcher learns of an exception through a file.

    Where the launcher is `launch`, it reports the exception and ends the other processes; this one ends at once and
    silently, before they notice and fail too.
    """
    recorded: Callable[..., Value | None] = record(function)
    if not is_ours():
        return recorded(*arguments)
    for number in map(int, os.environ.get(IGNORED_VARIABLE, "").split()):
        signal.signal(number, signal.SIG_IGN)
    _end_with_launcher()
    try:
        return recorded(*arguments)
    except InputError as error:
        os._exit(EXIT_FAILURE if isinstance(error, StorageError) else EXIT_BAD_INPUT)
    except KeyboardInterrupt:
        if os.environ.get("RANK") == "0":
            print("interrupted", file=sys.stderr, flush=True)
        os._exit(EXIT_INTERRUPTED)
    except Exception:
        os._exit(EXIT_FAILURE)


def _end_with_launcher() -> None:
    """Have the kernel kill this process when the launcher dies: it would train on unwatched."""
    parent_death_signal = 1  # PR_SET_PDEATHSIG of <linux/prctl.h>
    ctypes.CDLL(None).prctl(parent_death_signal, int(signal.SIGKILL))
    if os.getppid() != int(os.environ[LAUNCHER_VARIABLE]):  # it died before that
        os._exit(EXIT_FAILURE)


class Agent(ObservedAgent):
    """Reports each failure once; passes a signal to stop on, and lets the processes end by themselves."""

    def __init__(self, spec: WorkerSpec, logs: DefaultLogsSpecs) -> None:
        super().__init__(spec, logs)
        self._passed_on: set[int] = set()
        self._ignored = _ignored()

    @property
    def stopping(self) -> bool:
        """Whether a signal to stop was passed on."""
        return bool(self._passed_on)

    @contextlib.contextmanager
    def starting(self) -> Iterator[None]:
        """Note the signals meanwhile: what a handler raises would leave a process half started, which fails with a
        traceback. Then take over those to stop; ignored signals, for which PyTorch may have installed handlers, stay
        ignored."""
        noted: list[int] = []
        for number in _HANDLED:
            if number not in self._ignored:
                signal.signal(number, lambda number, _: noted.append(number))
        yield
        for number in _HANDLED:
            signal.signal(number, self._pass_on if number in STOP_SIGNALS else _end)
        for number in self._ignored:
            signal.signal(number, signal.SIG_IGN)
        for missed in dict.fromkeys(noted):
            signal.raise_signal(missed)

    def _pass_on(self, number: int, frame: FrameType | None) -> None:
        """Signal the processes. A second Ctrl-C ends everything at once."""
        end_at_once = number == signal.SIGINT and number in self._passed_on
        self._passed_on.add(number)
        self.forbid_restarts()
        for process_id in self.process_ids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process_id, signal.SIGKILL if end_at_once else number)
        if end_at_once:
            raise KeyboardInterrupt

    def on_failed(self, result: RunResult) -> None:
        """Report the first failure, and what follows."""
        rank, failure = first_failure(result.failures)
        if failure.exitcode == EXIT_BAD_INPUT:
            self.forbid_restarts()  # retrying bad input cannot help
        elif not self.stopping or has_recorded_error(failure):
            log.error("%s", description(rank, failure))
        if self.remaining_restarts:
            log.error("restarting from the last checkpoint; %d restarts left", self.remaining_restarts - 1)


def _end(number: int, frame: FrameType | None) -> None:
    """End the processes: the agent does when this is raised."""
    raise SignalException("the launcher received it", sigval=signal.Signals(number))


def _ignored() -> list[signal.Signals]:
    return [number for number in _HANDLED if signal.getsignal(number) is signal.SIG_IGN]


def launch(config: TrainConfig, entry: Callable[..., Any] | str, *arguments: Any) -> dict[int, Any]:
    """Run a Python program or a function in --nproc processes on each of --nnodes machines, and wait for those of this
    machine. Returns what the function returned, by rank.

    Raises InputError where the machines do not meet, and with the message of the first failing rank where that is
    about bad input; SystemExit with its exit code where it failed otherwise; KeyboardInterrupt.
    """
    cores = len(os.sched_getaffinity(0))
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cores // config.nproc)))
    os.environ[LAUNCHER_VARIABLE] = str(os.getpid())
    os.environ[SIGNALS_VARIABLE] = ""  # the agent handles them
    os.environ[IGNORED_VARIABLE] = " ".join(str(int(number)) for number in _ignored())
    # PyTorch would print a report of every rank; the agent reports the first failure.
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    machines = _machines(config)
    before = {number: signal.getsignal(number) for number in _HANDLED}
    try:
        with tempfile.TemporaryDirectory(prefix="sluice-errors-") as folder:
            return _run(config, _agent(config, entry, arguments, machines, folder))
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


def _run(config: TrainConfig, agent: Agent) -> dict[int, Any]:
    try:
        result: RunResult = agent.run()
    except dist.DistError as error:
        sys.exit(f"error: the launcher of machine 0 has ended; its own error message says why ({first_line(error)})")
    except SignalException as stop:
        if stop.sigval == signal.SIGINT:
            raise KeyboardInterrupt from None
        sys.exit(128 + stop.sigval)
    if result.is_failed():
        _, failure = first_failure(result.failures)
        if failure.exitcode == EXIT_BAD_INPUT:
            raise InputError(recorded_message(failure).partition(": ")[2])
        sys.exit(failure.exitcode if failure.exitcode > 0 else 128 - failure.exitcode)
    return result.return_values


def _machines(config: TrainConfig) -> Machines:
    """How the machines of this run meet. Raises InputError where they cannot meet there."""
    timeout = config.rdzv_timeout
    if config.nnodes == 1:
        generate_token()
        return Machines(f"{LOOPBACK}, any port", LOOPBACK, 0, 0, 1, timeout)
    endpoint, rank = config.rdzv_endpoint, config.node_rank
    where = f"--rdzv-endpoint {endpoint}"
    log.info("machine %d of %d: meeting the others at %s", rank, config.nnodes, endpoint)
    host, port = parse_rendezvous_endpoint(endpoint, -1)
    if rank == 0:
        refuse_own_name_for_loopback(where, host)
    return Machines(where, host, port, rank, config.nnodes, timeout)


def _agent(
    config: TrainConfig,
    entry: Callable[..., Any] | str,
    arguments: Sequence[Any],
    machines: Machines,
    folder: str,
) -> Agent:
    spec = WorkerSpec(
        role="sluice",
        local_world_size=config.nproc,
        entrypoint=sys.executable if isinstance(entry, str) else entry,
        args=(entry, *arguments) if isinstance(entry, str) else tuple(arguments),
        rdzv_handler=machines,
        max_restarts=config.max_restarts,
        monitor_interval=0.1,
    )
    return Agent(spec, DefaultLogsSpecs(folder))


def first_failure(failures: Mapping[int, ProcessFailure]) -> tuple[int, ProcessFailure]:
    """The rank that failed first, and how. The others fail because they lose their connection to it, or are ended."""
    ended = (-signal.SIGTERM, 128 + signal.SIGTERM)  # by the launcher, once another had failed

    def order(item: tuple[int, ProcessFailure]) -> tuple[bool, bool, float]:
        failure = item[1]
        error_file = Path(failure.error_file)
        # A killed process leaves no file: it is noticed at most a second later, and its time is in whole seconds.
        when = error_file.stat().st_mtime if error_file.is_file() else failure.timestamp - 2
        return failure.exitcode != EXIT_BAD_INPUT, failure.exitcode in ended, when

    return min(failures.items(), key=order)


def description(rank: int, failure: ProcessFailure) -> str:
    """What happened to a rank: a line, after its traceback if it left one that nothing else explains."""
    if failure.exitcode < 0:
        hint = f", {probably_out_of_memory()}" if failure.exitcode == -signal.SIGKILL else ""
        return f"rank {rank} was killed by {failure.signal_name()}{hint}"
    if not has_recorded_error(failure):  # it failed before it could, and printed its error itself
        return f"rank {rank} ended with exit code {failure.exitcode}"
    message = recorded_message(failure)
    if known := explanation(message):
        return f"rank {rank} {known}"
    return f"{recorded_traceback(failure)}rank {rank} failed: {message}"
