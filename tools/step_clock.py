"""Where the time of training steps goes: forward, backward, all-reduce, optimiser, waiting for data.

A mark says which phase the time from here on belongs to. On an accelerator a mark is an event on the device's stream,
so the time is that of the device and nothing waits for it; on a CPU it is the clock.
"""

import time
from collections.abc import Iterator
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
"""Backward includes the loss. All-reduce is what is left to wait for when the last gradient is there."""

Moment = float | torch.Event
Mark = tuple[str, Moment]


class StepClock:
    """Marks between the phases of a session's training steps, from hooks that the session does not see."""

    def __init__(self, session: Session) -> None:
        self._device = session.device
        self._marks: list[Mark] = []
        session.model.register_forward_pre_hook(self._hook(FORWARD))
        session.model.register_forward_hook(self._hook(BACKWARD))
        session.optimizer.register_step_pre_hook(self._hook(OPTIMIZER))
        session.optimizer.register_step_post_hook(self._hook(OTHER))
        if isinstance(session.model, DistributedDataParallel):
            session.model.register_comm_hook(session.world.size, self._all_reduce)

    def mark(self, phase: str) -> None:
        """Time from here on belongs to `phase`."""
        self._marks.append((phase, self._now()))

    def timed(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """Pass batches on; the time of asking for one is that of waiting for data."""
        while True:
            self.mark(DATA)
            batch = next(batches, None)
            if batch is None:
                return
            self.mark(OTHER)
            yield batch

    def seconds(self) -> dict[str, float]:
        """Seconds by phase since the first mark after the last call. Waits for the device."""
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

    def _hook(self, phase: str):  # type: ignore[no-untyped-def]
        @torch.compiler.disable  # torch.compile does not look into it
        def hook(*_: object) -> None:
            self.mark(phase)

        return hook

    def _all_reduce(self, world_size: int, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
        """DistributedDataParallel's own mean over ranks; marks when the last gradients are ready to be sent."""
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
