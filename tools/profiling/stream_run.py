"""Runs the model of a stream: its epochs, what limits them, and what other settings would give."""

import contextlib
from dataclasses import dataclass, replace
from typing import Any

import simpy

from pipeline.errors import InputError
from pipeline.loaders._ring import PREFETCH
from pipeline.sizes import size_in_words
from tools.profiling.stream_cache import CachedLane, CacheModel, CacheReader
from tools.profiling.stream_model import DirectLane, LanePlan, Machine, Process, SimulatedEpoch, StreamSettings, Worker

CACHED_EPOCHS = 3
"""With a cache, the first is cold, the second meets what the first left, and so do all later ones."""
LIMITS = 1.05
"""A setting limits the stream if twice of it makes an epoch that much faster."""


def simulate(settings: StreamSettings) -> list[SimulatedEpoch]:
    """The first epochs: one without a cache, as all are alike, otherwise CACHED_EPOCHS. Raises InputError where the
    ranks cannot share the shards."""
    machine = Machine(settings)
    run = _Run(machine)
    for epoch in range(CACHED_EPOCHS if settings.cache_bytes else 1):
        machine.env.run(machine.env.process(run.epoch(epoch)))
    return run.epochs


class _Run:
    """All ranks and their workers."""

    def __init__(self, machine: Machine) -> None:
        self._machine, settings = machine, machine.settings
        self._plans = [settings.plan(rank) for rank in range(settings.nproc)]
        self._count = max(1, min(settings.workers, len(self._plans[0].my_lanes)))
        self._workers = [
            [Worker(machine, rank, number) for number in range(self._count)] for rank in range(settings.nproc)
        ]
        self._cache = CacheModel(machine, settings.nproc * self._count) if settings.cache_bytes else None
        self._readers: dict[int, CacheReader] = {}
        self._known: dict[tuple[int, int], list[LanePlan]] = {}
        self.epochs: list[SimulatedEpoch] = []

    def epoch(self, epoch: int) -> Process:
        """All processes, until they have all batches."""
        machine, env = self._machine, self._machine.env
        started, fetched = env.now, machine.fetched
        batches, width = self._plans[0].batches_per_epoch, machine.settings.batch_size // machine.settings.repeats
        self._first_batch = started
        consumers = []
        for rank, workers in enumerate(self._workers):
            for worker in workers:
                lanes = self._lanes(worker, epoch)
                env.process(worker.epoch(lanes, batches, width))
                for _ in range(min(PREFETCH, batches)):
                    worker.tasks.put(None)
            consumers.append(env.process(self._consume(rank, batches)))
        yield simpy.AllOf(env, consumers)
        self.epochs.append(
            SimulatedEpoch(
                images=batches * machine.settings.batch_size * machine.settings.nproc,
                seconds=env.now - started,
                first_batch_s=self._first_batch - started,
                fetched_bytes=machine.fetched - fetched,
            )
        )

    def _consume(self, rank: int, batches: int) -> Process:
        """Take the batches of a rank, as fast as they come."""
        for batch in range(batches):
            for worker in self._workers[rank]:
                yield worker.ready.get()
                if batch + PREFETCH < batches:
                    worker.tasks.put(None)
            if batch == 0:
                self._first_batch = max(self._first_batch, self._machine.env.now)

    def _lanes(self, worker: Worker, epoch: int) -> dict[int, Any]:
        """The lanes that a worker reads, by their number among those of its rank."""
        mine = self._lane_plans(worker.rank, epoch)[worker.number :: self._count]
        numbers = range(worker.number, worker.number + self._count * len(mine), self._count)
        if self._cache is None:
            return {number: DirectLane(self._machine, plan) for number, plan in zip(numbers, mine, strict=True)}
        key = worker.rank * self._count + worker.number
        reader = self._readers.setdefault(key, CacheReader(self._cache, key))
        later = self._lane_plans(worker.rank, epoch + 1)[worker.number :: self._count]
        reader.plan(*([part for plan in plans for part in plan.parts] for plans in (mine, later)))
        return {number: CachedLane(reader, plan) for number, plan in zip(numbers, mine, strict=True)}

    def _lane_plans(self, rank: int, epoch: int) -> list[LanePlan]:
        """Of all lanes of a rank."""
        self._known = {key: plans for key, plans in self._known.items() if key[1] >= epoch - 1}
        if (rank, epoch) not in self._known:
            plan = self._plans[rank]
            lanes = enumerate(plan.lanes(epoch))
            self._known[rank, epoch] = [
                LanePlan(self._machine.settings, plan, epoch, number, lane) for number, lane in lanes
            ]
        return self._known[rank, epoch]


@dataclass(frozen=True, kw_only=True)
class Alternative:
    """Another setting, and how many times as fast an epoch is with it."""

    setting: str
    change: str
    factor: float


def alternatives(settings: StreamSettings, now: SimulatedEpoch) -> list[Alternative]:
    """What twice of each setting would give to a later epoch, and shards of half and twice the size, and a cache for
    all shards; the best first."""
    size = settings.total_bytes / len(settings.shard_bytes)
    changes: dict[str, tuple[str, StreamSettings]] = {
        "bandwidth": ("twice the bandwidth of the machine", replace(settings, bandwidth=2 * settings.bandwidth)),
        "connection": (
            "twice the bandwidth of a connection",
            replace(settings, connection_bandwidth=2 * settings.connection_bandwidth),
        ),
        "latency": ("half the latency", replace(settings, latency=settings.latency / 2)),
        "workers": (f"--workers {2 * settings.workers}", replace(settings, workers=2 * settings.workers)),
        "cores": ("twice the cores", replace(settings, cores=2 * settings.cores)),
        "large shards": (f"shards of {size_in_words(size / 2)}", settings.with_shards_of(size / 2)),
        "small shards": (f"shards of {size_in_words(2 * size)}", settings.with_shards_of(2 * size)),
    }
    if settings.cache_bytes < settings.total_bytes:
        changes["cache"] = (
            f"--cache-size {size_in_words(1.05 * settings.total_bytes).replace(' ', '')}, which holds all shards",
            replace(settings, cache_bytes=2 * settings.total_bytes),
        )
    found = []
    for name, (words, changed) in changes.items():
        with contextlib.suppress(InputError):  # so many shards the ranks cannot share
            factor = simulate(changed)[-1].images_per_s / now.images_per_s
            found.append(Alternative(setting=name, change=words, factor=factor))
    return sorted(found, key=lambda one: -one.factor)


def limit_of(found: list[Alternative]) -> str:
    """The setting that limits a stream: the one of which more helps most; "nothing" where none does. A cache for all
    shards always helps, and is no limit."""
    others = [one for one in found if one.setting != "cache"]
    return others[0].setting if others[0].factor >= LIMITS else "nothing"
