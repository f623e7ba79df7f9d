"""The private parts of PyTorch's launcher: where a release changes one, this fails first."""

import contextlib
import inspect
import signal
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch.distributed.elastic.agent.server.api import RunResult, WorkerSpec
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
from torch.distributed.elastic.rendezvous import RendezvousParameters
from torch.distributed.elastic.rendezvous.registry import get_rendezvous_handler

from train._elastic_internals import (
    SIGNALS_VARIABLE,
    ObservedAgent,
    has_recorded_error,
    recorded_message,
    recorded_traceback,
)

FAILING = """
from torch.distributed.elastic.multiprocessing.errors import record

@record
def main():
    raise ValueError("on purpose")

main()
"""


class Observer(ObservedAgent):
    """Records its calls, and forbids restarts."""

    def __init__(self, spec: WorkerSpec, logs: DefaultLogsSpecs) -> None:
        super().__init__(spec, logs)
        self.starts = 0
        self.failed: list[tuple[list[int], RunResult]] = []
        self.signalled: signal.Signals | None = None
        """Raised as soon as the processes have been started."""

    @contextlib.contextmanager
    def starting(self) -> Iterator[None]:
        yield
        self.starts += 1
        if self.signalled is not None:
            signal.raise_signal(self.signalled)

    def on_failed(self, result: RunResult) -> None:
        self.failed.append((self.process_ids, result))
        self.forbid_restarts()


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[Observer]:
    """An agent that may restart a failing script three times."""
    (tmp_path / "failing.py").write_text(FAILING)
    rendezvous = RendezvousParameters("c10d", "localhost:0", uuid.uuid4().hex, 1, 1, local_addr="localhost")
    spec = WorkerSpec(
        role="test",
        local_world_size=1,
        entrypoint=sys.executable,
        args=(str(tmp_path / "failing.py"),),
        rdzv_handler=get_rendezvous_handler(rendezvous),
        max_restarts=3,
        monitor_interval=0.1,
        local_addr="localhost",
    )
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
    handlers = {number: signal.getsignal(number) for number in numbers}
    yield Observer(spec, DefaultLogsSpecs(str(tmp_path / "logs")))
    for number, handler in handlers.items():
        signal.signal(number, handler)


def test_every_private_attribute_exists(agent: Observer) -> None:
    for name in ("_start_workers", "_monitor_workers"):
        parameters = list(inspect.signature(getattr(LocalElasticAgent, name)).parameters)
        assert parameters == ["self", "worker_group"], f"{name} of PyTorch {torch.__version__}"
    assert vars(agent).keys() >= {"_pcontext", "_remaining_restarts"}, f"PyTorch {torch.__version__}"


def test_a_failure_is_observed_with_its_recorded_error_and_restarts_can_be_forbidden(agent: Observer) -> None:
    assert agent.remaining_restarts == 3
    assert agent.run().is_failed()
    assert agent.starts == 1
    ((process_ids, result),) = agent.failed
    failure = result.failures[0]
    assert process_ids == [failure.pid]
    assert has_recorded_error(failure)
    assert recorded_message(failure) == "ValueError: on purpose"
    assert 'raise ValueError("on purpose")' in recorded_traceback(failure)
    assert recorded_traceback(failure).endswith("\n")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT])
def test_starting_processes_changes_no_handler(
    agent: Observer, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    """Not even in PyTorch 2.7, whose own raises an exception in the middle of it."""
    monkeypatch.setenv(SIGNALS_VARIABLE, "")
    received: list[int] = []
    signal.signal(number, lambda number, _: received.append(number))
    agent.signalled = number
    assert agent.run().is_failed()
    assert received == [number]
