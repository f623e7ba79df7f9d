"""The private parts of PyTorch's elastic launcher that Sluice uses. No other file names one.

Written for PyTorch 2.14.1. tests/train/test_elastic_internals.py names each of them, so that a release that changes
one fails there first.

- `LocalElasticAgent._start_workers`: while it starts processes a signal must not interrupt it, which leaves some half
  started; after it they run. PyTorch's signal handlers kill them 30 s after a signal, too early for a checkpoint.
- TORCHELASTIC_SIGNALS_TO_HANDLE: the signals for which PyTorch installs these handlers, from PyTorch 2.8 on.
- `_terminate_process_handler`: the handler that PyTorch before 2.8 always installs before it starts processes.
- `LocalElasticAgent._monitor_workers`: its result is where a failure is first known, before processes are restarted.
- `LocalElasticAgent._pcontext`: the processes, to pass signals on to.
- `LocalElasticAgent._remaining_restarts`: bad input must not be retried, nor a run restarted that was asked to stop.
- The message of a `ProcessFailure`: a dictionary of this form, written by `record`, which nothing documents.
- TORCHELASTIC_USE_AGENT_STORE: tells a process that its launcher holds the store.
"""

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType
from typing import Any

import torch
from torch.distributed.elastic.agent.server.api import RunResult, WorkerGroup
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing import api
from torch.distributed.elastic.multiprocessing.errors import ProcessFailure
from torch.torch_version import TorchVersion

AGENT_STORE_VARIABLE = "TORCHELASTIC_USE_AGENT_STORE"
SIGNALS_VARIABLE = "TORCHELASTIC_SIGNALS_TO_HANDLE"


class ObservedAgent(LocalElasticAgent):
    """PyTorch's agent, which starts, watches and restarts the processes of this machine; a subclass may act while they
    are started and when they have failed."""

    @contextlib.contextmanager
    def starting(self) -> Iterator[None]:
        """Entered each time before the processes are started, and left when they have been."""
        yield

    def on_failed(self, result: RunResult) -> None:
        """Called when a process has failed, before the others are ended and all are restarted."""

    @property
    def process_ids(self) -> list[int]:
        """The processes of this machine, known at the end of `starting`."""
        return list(self._pcontext.pids().values()) if self._pcontext else []

    @property
    def remaining_restarts(self) -> int:
        """How often the processes may still be restarted."""
        return self._remaining_restarts

    def forbid_restarts(self) -> None:
        """Let the next failure end the run."""
        self._remaining_restarts = 0

    def _start_workers(self, worker_group: WorkerGroup) -> dict[int, Any]:
        with self.starting(), _handlers_kept():
            started: dict[int, Any] = super()._start_workers(worker_group)
        return started

    def _monitor_workers(self, worker_group: WorkerGroup) -> RunResult:
        result: RunResult = super()._monitor_workers(worker_group)
        if result.is_failed():
            self.on_failed(result)
        return result


@contextlib.contextmanager
def _handlers_kept() -> Iterator[None]:
    """Inside the block, signals are handled as they are now, also where PyTorch installs a handler of its own."""
    if TorchVersion(torch.__version__) >= "2.8":
        yield
        return
    installed = api._terminate_process_handler
    handlers = {int(number): signal.getsignal(number) for number in signal.valid_signals()}

    def handle(signum: int, frame: FrameType | None) -> None:
        handler = handlers[signum]
        if callable(handler):
            handler(signum, frame)

    api._terminate_process_handler = handle
    try:
        yield
    finally:
        api._terminate_process_handler = installed


def has_recorded_error(failure: ProcessFailure) -> bool:
    """Whether the process left its exception, by `record`."""
    return isinstance(failure.message, dict)


def recorded_message(failure: ProcessFailure) -> str:
    """The exception that the process left: `TypeName: message`; without one, what PyTorch says about the failure."""
    return failure.message["message"] if isinstance(failure.message, dict) else failure.message


def recorded_traceback(failure: ProcessFailure) -> str:
    """The traceback that the process left, ending in a newline; "" without one."""
    return failure.message["extraInfo"]["py_callstack"] if isinstance(failure.message, dict) else ""
