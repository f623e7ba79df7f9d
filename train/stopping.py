"""SIGTERM and SIGUSR1, by which schedulers announce the end, and Ctrl-C: save, then stop, on all ranks after the same
step."""

import contextlib
import logging
import shlex
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

import psutil
import torch
import torch.distributed as dist

from train.failures import lost_connection
from train.world import World, is_ours, launched_by

log = logging.getLogger(__name__)

Item = TypeVar("Item")

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
"""What schedulers send before they kill, and what Ctrl-C sends; the launcher passes it on and waits for its processes
to end."""

PATIENCE_S = 5
"""How long a rank that was asked to stop waits for data, counted from the beginning of the wait: Slurm kills 30 s after
SIGTERM, as Kubernetes does."""


class Stopped(SystemExit):
    """The run was asked to stop and has saved its state, unless it was waiting for data.

    The exit code is 128 + the signal's number, as if the signal had ended the process: schedulers that restart failed
    jobs will resume this one. 0 would mean that the training is done.
    """

    def __init__(self, number: int, *, together: bool = True) -> None:
        super().__init__(128 + number)
        self.signal_name = signal.Signals(number).name
        self.together = together
        """Whether all ranks stop after the same step; otherwise some may be in the middle of a collective call."""


class DataWaitError(Exception):
    """The run was asked to stop while this rank waited for data, which still has not arrived."""


class StopRequests:
    """Notes the signals from `listen` on, where the process would have died. A context manager, which restores the
    handlers, and ends as `Stopped` where another rank stopped while it waited for data."""

    def __init__(self, world: World) -> None:
        self._world, self._received = world, 0
        self._group: Any = None
        self._pending: tuple[Any, torch.Tensor] | None = None
        self._handlers: dict[signal.Signals, Any] = {}
        self._waits_since: float | None = None

    def __enter__(self) -> "StopRequests":
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        if self._received and error and lost_connection(f"{type(error).__name__}: {error}"):
            if self._world.is_main:
                log.info("another rank has stopped, waiting for data: this step is not saved")
            raise Stopped(self._received, together=False) from None

    def listen(self) -> None:
        """Begin to note signals: from here on there is something to save. A collective call."""
        handlers = {number: self._note for number in STOP_SIGNALS if signal.getsignal(number) is not signal.SIG_IGN}
        handlers[signal.SIGALRM] = self._after_patience
        self._handlers = {number: signal.signal(number, handler) for number, handler in handlers.items()}
        if self._world.size > 1:
            # Not the group of the gradients: these few bytes are sent by the host, not in the device's stream.
            self._group = dist.new_group(backend="gloo")

    def _note(self, number: int, frame: FrameType | None) -> None:
        if not self._received:
            waited = time.monotonic() - self._waits_since if self._waits_since is not None else 0
            signal.setitimer(signal.ITIMER_REAL, max(0.001, PATIENCE_S - waited), 1)
        self._received = number
        if number == signal.SIGINT:
            signal.signal(number, signal.SIG_DFL)  # a second Ctrl-C ends the process, whatever it does

    def _after_patience(self, number: int, frame: FrameType | None) -> None:
        if self._waits_since is not None:
            raise DataWaitError

    def give_up_data(self) -> None:
        """Kill the processes that load data: they may never come back from what they read, and are waited for when
        this process ends."""
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # a DataLoader's handler would report them as lost
        for child in psutil.Process().children():
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()

    def watching(self, batches: Iterator[Item]) -> Iterator[Item]:
        """Pass batches on. Raises DataWaitError where one still has not arrived PATIENCE_S seconds after a signal, or
        at the signal where it has been waited for that long."""
        while True:
            self._waits_since = time.monotonic()
            try:
                batch = next(batches)
            except StopIteration:
                return
            finally:
                self._waits_since = None
            yield batch

    @property
    def received(self) -> int:
        """The signal that this rank was asked to stop with, or 0."""
        return self._received

    def check(self) -> int:
        """The signal to stop on here, or 0: the same on every rank.

        A collective call after each step. It returns the maximum over the ranks of what they had received at the call
        before: that has had a whole step to arrive, and nothing waits for it.
        """
        if self._group is None:
            return self._received
        maximum = self._finish_pending()
        received = torch.tensor(self._received)
        self._pending = dist.all_reduce(received, dist.ReduceOp.MAX, self._group, async_op=True), received
        return maximum

    def _finish_pending(self) -> int:
        if self._pending is None:
            return 0
        work, maximum = self._pending
        work.wait()
        return int(maximum)

    def wait_for_all(self) -> None:
        """Wait until every rank has called this. A collective call."""
        if self._group is not None:
            self._finish_pending()
            self._pending = None
            dist.barrier(self._group)


def resuming_command(run_dir: Path) -> str:
    """The command line that resumes this run, for a shell."""
    script, *arguments = sys.argv
    name = Path(sys.executable).name
    python = name if shutil.which(name) == sys.executable else sys.executable
    words = [python, script, *_without(arguments, "run-dir", "resume")]
    launcher = None if is_ours() else launched_by()
    under = f", under {launcher} as before" if launcher else ""
    return shlex.join([*words, "--run-dir", str(run_dir), "--resume", "auto"]) + under


def _without(arguments: list[str], *flags: str) -> list[str]:
    """Command-line arguments without some flags and their values."""
    kept, previous = list[str](), ""
    for word in arguments:
        names = [other.lstrip("-").partition("=")[0].replace("_", "-") for other in (word, previous)]
        is_value = names[1] in flags and previous.startswith("--") and "=" not in previous
        if not is_value and not (word.startswith("--") and names[0] in flags):
            kept.append(word)
        previous = "" if is_value else word
    return kept


@contextlib.contextmanager
def stop_signals_blocked() -> Iterator[None]:
    """Processes forked in this block, a loader's workers, never receive the signals, nor Ctrl-C; this process receives
    them at the end of the block. For the main thread.

    Schedulers signal every process of a job, and PyTorch's launcher the whole session of a rank; a worker killed by
    the signal would make the step fail. Workers end with their parent. In this process, what a handler raises while
    Python forks is lost, because it is called in a hook of `logging`, and a loader with half of its workers never ends.
    """
    received: list[int] = []
    blocked = {number for number in (signal.SIGINT, *STOP_SIGNALS) if signal.getsignal(number) is not signal.SIG_IGN}
    # Blocking is for the children: here another thread would receive them.
    signal.pthread_sigmask(signal.SIG_BLOCK, blocked)
    handlers = {number: signal.signal(number, lambda number, _: received.append(number)) for number in blocked}
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, blocked)  # one that is pending is received here
        for number, handler in handlers.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        for missed in dict.fromkeys(received):
            signal.raise_signal(missed)
