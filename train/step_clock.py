"""Where the time of training steps goes: forward, backward, all-reduce, optimiser, waiting for data.

A mark starts a phase. On an accelerator a mark is an event on the device's stream, so that the device's own time is
measured and nothing waits for it; on a CPU it is a clock reading.
"""

import time
from collections.abc import Callable, Iterator
from itertools import pairwise

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from pipeline.contract import Batch
from train.device import synchronize
from train.session import Session

DATA, FORWARD, BACKWARD, ALL_REDUCE, OPTIMIZER, OTHER = PHASES = (
    "waiting for data",
    "forward",
    "backward",
    "all-reduce",
    "optimiser",
    "other",
)
"""Backward includes the loss. All-reduce is the time it still takes after the last gradient is ready."""

Moment = float | torch.Event
Mark = tuple[str, Moment]


class StepClock:
    """Marks the phases of a session's training steps through hooks on the model and the optimiser."""

    def __init__(self, session: Session, *, all_reduce: bool = True) -> None:
        """With `all_reduce`, the gradients' mean over ranks is computed by a hook that marks when it begins; without,
        it is part of the backward pass."""
        self._device = session.device
        self._marks: list[Mark] = []
        session.model.parallel.register_forward_pre_hook(self._hook(FORWARD))
        session.model.parallel.register_forward_hook(self._hook(BACKWARD))
        session.train_step.optimizer.register_step_pre_hook(self._hook(OPTIMIZER))
        session.train_step.optimizer.register_step_post_hook(self._hook(OTHER))
        if all_reduce and isinstance(session.model.parallel, DistributedDataParallel):
            session.model.parallel.register_comm_hook(session.world.size, self._all_reduce)

    def mark(self, phase: str) -> None:
        """Time from here on belongs to `phase`."""
        self._marks.append((phase, self._now()))

    def timed(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """Pass batches on; the time until each arrives counts as waiting for data."""
        while True:
            self.mark(DATA)
            batch = next(batches, None)
            if batch is None:
                return
            self.mark(OTHER)
            yield batch

    def seconds(self) -> dict[str, float]:
        """Seconds by phase since the first mark after the previous call. Waits for the device."""
        self.mark(OTHER)
        synchronize(self._device)
        spent = dict.fromkeys(PHASES, 0.0)
        for (phase, start), (_, end) in pairwise(self._marks):
            spent[phase] += _seconds(start, end)
        self._marks.clear()
        return spent

    def _now(self) -> Moment:
        if self._device.type == "cpu":
            return time.perf_counter()
        event = torch.Event(self._device, enable_timing=True)
        event.record()
        return event

    def _hook(self, phase: str) -> Callable[..., None]:
        def hook(*_: object) -> None:
            self.mark(phase)

        untraced: Callable[..., None] = torch.compiler.disable(hook)
        return untraced

    def _all_reduce(self, world_size: int, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
        """The mean over ranks, as DistributedDataParallel computes it; marks when the last gradients are ready."""
        if bucket.is_last():
            self.mark(ALL_REDUCE)
        gradients = bucket.buffer().div_(world_size)
        return dist.all_reduce(gradients, async_op=True).get_future().then(lambda future: future.value()[0])


def _seconds(start: Moment, end: Moment) -> float:
    if isinstance(start, torch.Event) and isinstance(end, torch.Event):
        return start.elapsed_time(end) / 1000
    assert isinstance(start, float)
    assert isinstance(end, float)
    return end - start
