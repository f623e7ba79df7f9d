"""A model of training from a bucket: its epochs in simulated time, before a byte has been paid for.

What is read when is not estimated: it follows from the same StreamPlan as in training. What is modelled:

    network     one line of `bandwidth` for the machine, shared equally by the connections that are in use, each of at
                most `connection_bandwidth`; `latency` seconds before the first byte of every request
    cores       shared equally by the workers, each of which computes `cpu_s` seconds for an image
    a worker    as in pipeline/loaders/webdataset.py: one thread that reads its lanes in the order of the batches and
                decodes, as many batches ahead as a DataLoader's. Without a cache each lane has a connection, which
                receives READ_AHEAD bytes more than the worker has asked for.
    the cache   stream_cache.py

The clock is simpy's.
"""

import heapq
import itertools
from collections.abc import Generator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import simpy
from numpy.typing import NDArray

from pipeline.order.stream import StreamPlan, bounded_shuffle

READ_AHEAD = 4 << 20
"""Bytes: the piece of a megabyte that the helper process holds, and what the kernels' buffers take of a connection that
is not read. They grow to a few megabytes (`sysctl net.ipv4.tcp_rmem`)."""

Process = Generator[simpy.Event, Any, Any]


@dataclass(frozen=True, kw_only=True)
class StreamSettings:
    """What the prediction rests on."""

    shard_samples: tuple[int, ...]
    shard_bytes: tuple[int, ...]
    batch_size: int
    """Of each process."""
    repeats: int = 1
    nproc: int
    """Training processes, all on this machine."""
    workers: int
    """Of each process."""
    cores: int
    cpu_s: float
    """CPU seconds for an image."""
    bandwidth: float
    """Bytes/s of the machine."""
    connection_bandwidth: float
    """Bytes/s of a connection that is alone."""
    latency: float
    """Seconds before the first byte of an answer."""
    cache_bytes: int = 0
    """0: without a cache."""
    seed: int = 0

    def plan(self, rank: int) -> StreamPlan:
        """The order of a rank. Raises InputError where the ranks cannot share the shards."""
        return StreamPlan(
            batch_size=self.batch_size,
            seed=self.seed,
            rank=rank,
            world_size=self.nproc,
            repeats=self.repeats,
            shard_samples=self.shard_samples,
        )

    @cached_property
    def total_bytes(self) -> int:
        """Of all shards."""
        return sum(self.shard_bytes)

    @property
    def image_bytes(self) -> float:
        """Of an image in a shard, on average."""
        return self.total_bytes / sum(self.shard_samples)

    @property
    def piece_bytes(self) -> float:
        """A shard that is not cached is received in pieces of this size, as far as a lane needs it."""
        return min(READ_AHEAD / 4, self.total_bytes / len(self.shard_bytes) / 8)

    @property
    def buffer_bytes(self) -> float:
        """Memory that the images in the shuffle buffers of all processes take at most."""
        plan = self.plan(0)
        lane_samples = sum(self.shard_samples) // plan.num_lanes
        return plan.num_lanes * min(plan.shuffle_buffer, lane_samples) * self.image_bytes

    def with_shards_of(self, size: float) -> "StreamSettings":
        """The same images in shards of about `size` bytes."""
        images, count = sum(self.shard_samples), max(1, round(self.total_bytes / size))
        edges = [images * number // count for number in range(count + 1)]
        samples = [stop - start for start, stop in itertools.pairwise(edges)]
        sizes = [round(self.image_bytes * count) for count in samples]
        return replace(self, shard_samples=tuple(samples), shard_bytes=tuple(sizes))


@dataclass(frozen=True, kw_only=True)
class SimulatedEpoch:
    """What an epoch of all processes comes to."""

    images: int
    seconds: float
    first_batch_s: float
    """Until every process has its first batch."""
    fetched_bytes: float

    @property
    def images_per_s(self) -> float:
        """Over the whole epoch, which begins with filling the shuffle buffers."""
        return self.images / self.seconds


class Shared:
    """Something that its users share equally, such as a line or cores: `total` a second, at most `each` for a user.

    With equal shares, all users advance alike: the amount that one would have received since the beginning is a clock,
    and a use ends when this has advanced by its amount.
    """

    def __init__(self, env: simpy.Environment, total: float, each: float) -> None:
        self._env, self._total, self._each = env, total, each
        self._received, self._updated = 0.0, 0.0
        self._ends: list[tuple[float, int, simpy.Event]] = []
        self._numbers = itertools.count()
        self._scheduled = 0

    def use(self, amount: float) -> simpy.Event:
        """An event that comes when a user has received this much."""
        self._advance()
        event = self._env.event()
        heapq.heappush(self._ends, (self._received + amount, next(self._numbers), event))
        self._schedule()
        return event

    def _rate(self) -> float:
        return min(self._each, self._total / max(1, len(self._ends)))

    def _advance(self) -> None:
        self._received += (self._env.now - self._updated) * self._rate()
        self._updated = self._env.now

    def _schedule(self) -> None:
        self._scheduled += 1
        number = self._scheduled
        if self._ends:
            timeout = self._env.timeout(max(0.0, (self._ends[0][0] - self._received) / self._rate()))
            timeout.callbacks.append(lambda _: self._end_first() if number == self._scheduled else None)

    def _end_first(self) -> None:
        self._advance()
        end, _, event = heapq.heappop(self._ends)
        self._received = max(self._received, end)  # but for rounding they are the same
        event.succeed()
        self._schedule()


class Part(NamedTuple):
    """A shard as a lane reads it."""

    shard: int
    when: float
    """In epochs from the beginning of the run, when the first sample is needed."""


class LanePlan:
    """What a lane reads in an epoch, and how far it must have read for each of its samples."""

    def __init__(self, settings: StreamSettings, plan: StreamPlan, epoch: int, number: int, lane: NDArray[np.int64]):
        first = np.cumsum((0, *settings.shard_samples))
        shards = np.searchsorted(first, lane, side="right") - 1
        starts = np.flatnonzero(np.diff(shards, prepend=-1))
        self.parts = [Part(int(shards[at]), epoch + at / len(lane)) for at in starts]
        self.sizes = [settings.shard_bytes[part.shard] for part in self.parts]
        place = np.empty(first[-1], np.int64)
        place[lane] = np.arange(len(lane))
        furthest = np.maximum.accumulate(
            place[bounded_shuffle(lane, plan.shuffle_buffer, plan.seed, epoch, plan.my_lanes[number])]
        )
        part = np.searchsorted(starts, np.arange(len(lane)), side="right") - 1
        before = np.concatenate([[0], np.cumsum(self.sizes)])[part]
        share = (lane - first[shards] + 1) / np.asarray(settings.shard_samples)[shards]
        read = before + share * np.asarray(settings.shard_bytes)[shards]
        self._bytes_for, self._part_for = read[furthest], part[furthest]

    def bytes_for(self, count: int) -> float:
        """Bytes that must have arrived for the first `count` samples."""
        return float(self._bytes_for[count - 1]) if count else 0.0

    def part_for(self, count: int) -> int:
        """Which of the parts must have been opened for them; -1 for none."""
        return int(self._part_for[count - 1]) if count else -1


class Machine:
    """The simulated machine: what its processes share."""

    def __init__(self, settings: StreamSettings) -> None:
        self.settings, self.env = settings, simpy.Environment()
        self.network = Shared(self.env, settings.bandwidth, settings.connection_bandwidth)
        self.cores = Shared(self.env, settings.cores, 1.0)
        self.fetched = 0.0

    def download(self, size: float) -> Process:
        """Receive bytes of an answer that has begun."""
        yield self.network.use(size)
        self.fetched += size


class DirectLane:
    """A lane of which the shards are streamed past each other, without a cache."""

    def __init__(self, machine: Machine, plan: LanePlan) -> None:
        self._machine, self._plan = machine, plan
        self._arrived = self._wanted = 0.0
        self._change = machine.env.event()
        self._closed = False
        self._started = False

    def read(self, count: int) -> Process:
        """Wait until the first `count` samples have arrived."""
        wanted = self._plan.bytes_for(count)
        if wanted <= self._wanted:
            return
        self._wanted = wanted
        if not self._started:
            self._started = True
            self._machine.env.process(self._connection())
        self._notify()
        while self._arrived < wanted - 1e-6:
            yield self._change

    def close(self) -> None:
        """Receive no more."""
        self._closed = True
        self._notify()

    def _notify(self) -> None:
        change, self._change = self._change, self._machine.env.event()
        change.succeed()

    def _connection(self) -> Process:
        machine, piece = self._machine, self._machine.settings.piece_bytes
        begin = 0.0
        for size in self._plan.sizes:
            while self._wanted <= begin and not self._closed:
                yield self._change
            yield machine.env.timeout(machine.settings.latency)
            left = float(size)
            while left > 0:
                while self._arrived - self._wanted >= READ_AHEAD and not self._closed:
                    yield self._change
                if self._closed:
                    return
                now = min(piece, left)
                yield from machine.download(now)
                left -= now
                self._arrived += now
                self._notify()
            begin += size


class Worker:
    """A loading process."""

    def __init__(self, machine: Machine, rank: int, number: int) -> None:
        self.machine, self.rank, self.number = machine, rank, number
        self.tasks, self.ready = simpy.Store(machine.env), simpy.Store(machine.env)

    def epoch(self, lanes: dict[int, Any], batches: int, width: int) -> Process:
        """Make this worker's parts of an epoch's batches of `width` different samples; `lanes` of it by number, of a
        rank that has `count` in turn."""
        settings = self.machine.settings
        count = len(settings.plan(self.rank).my_lanes)
        for batch in range(batches):
            yield self.tasks.get()
            mine = 0
            for number, lane in lanes.items():
                before, now = (max(0, -(-(edge * width - number) // count)) for edge in (batch, batch + 1))
                if now > before:
                    yield from lane.read(now)
                    mine += now - before
            if mine:
                yield self.machine.cores.use(mine * settings.repeats * settings.cpu_s)
            yield self.ready.put(batch)
        for lane in lanes.values():
            lane.close()
