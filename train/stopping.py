"""SIGTERM and SIGUSR1, by which schedulers announce the end: save, then leave, on all ranks after the same step."""

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist

from train.world import World

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
"""What schedulers send before they kill: the launcher passes it on and waits for its processes to end."""


class Stopped(SystemExit):
    """The run was asked to stop and has saved what there was to save.

    The exit code is 128 + the signal's number, as if it had ended the process: schedulers that start failed jobs again
    go on with this one. 0 would tell them that the training is done.
    """

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)
        self.signal_name = signal.Signals(number).name


class StopRequests:
    """Notes the signals from `listen` on, instead of dying. A context manager, which restores what was before."""

    def __init__(self, world: World) -> None:
        self._world, self._received = world, 0
        self._group: Any = None
        self._told: tuple[Any, torch.Tensor] | None = None
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "StopRequests":
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def listen(self) -> None:
        """When there is something to save. A collective call."""
        self._before = {number: signal.signal(number, self._note) for number in STOP_SIGNALS}
        if self._world.size > 1:
            # Not the group of the gradients: these few bytes travel beside the device's work, not in its stream.
            self._group = dist.new_group(backend="gloo")

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._received = number

    def check(self) -> int:
        """The signal that asks to stop here, or 0: the same on every rank.

        A collective call after each step. Ranks hear from each other what they told at the call before: the answer
        has had a whole step to arrive, and nothing waits for it.
        """
        if self._group is None:
            return self._received
        heard = self._hear()
        told = torch.tensor(self._received)
        self._told = dist.all_reduce(told, dist.ReduceOp.MAX, self._group, async_op=True), told
        return heard

    def _hear(self) -> int:
        if self._told is None:
            return 0
        work, told = self._told
        work.wait()
        return int(told)

    def wait_for_all(self) -> None:
        """Until every rank is here. A collective call."""
        if self._group is not None:
            self._hear()
            self._told = None
            dist.barrier(self._group)


@contextlib.contextmanager
def shielded() -> Iterator[None]:
    """Processes that are forked in this block, a loader's workers, never see the signals.

    Schedulers signal every process of a job, and PyTorch's launcher the whole session of a rank; a worker that died of
    it would take the step with it. Workers end with their parent.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
