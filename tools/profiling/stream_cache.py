"""The cache of pipeline/storage/remote/cache.py in simulated time: the same rules for what is fetched, kept and
evicted, without files."""

from collections import Counter
from collections.abc import Sequence

import numpy as np
import simpy
from numpy.typing import NDArray

from pipeline.storage.remote.cache import FETCHERS, choose_victims
from tools.profiling.stream_model import LanePlan, Machine, Part, Process


class CacheModel:
    """What is in the cache, and what its readers will read."""

    def __init__(self, machine: Machine, readers: int) -> None:
        self.machine = machine
        self.sizes = dict(enumerate(machine.settings.shard_bytes))
        self._present, self._fetching = set[int](), dict[int, simpy.Event]()
        self._in_use = Counter[int]()
        self._next = np.full((readers, len(self.sizes)), np.inf)  # when a reader needs a shard next
        self.now = np.zeros(readers)
        self._distances: NDArray[np.float64] | None = None
        self.change = machine.env.event()

    def altered(self) -> None:
        """Wake those that wait for room."""
        self._distances = None
        change, self.change = self.change, self.machine.env.event()
        change.succeed()

    def set_next(self, reader: int, shard: int, when: float) -> None:
        """A reader needs a shard at this time next."""
        self._next[reader, shard] = when
        self._distances = None

    def move(self, reader: int, when: float) -> None:
        """A reader has come so far."""
        self.now[reader] = max(self.now[reader], when)
        self._distances = None

    def distances(self) -> NDArray[np.float64]:
        """In how many epochs each shard is needed by any reader."""
        if self._distances is None:
            self._distances = (self._next - self.now[:, None]).min(axis=0)
        return self._distances

    def acquire(self, shard: int, distance: float, *, use: bool) -> "simpy.Event | str | None":
        """None where it is there; the event of its arrival where another process fetches it; "fetch" or "full"."""
        if shard in self._present:
            self._in_use[shard] += use
            return None
        if shard in self._fetching:
            return self._fetching[shard]
        if not self._make_room(self.sizes[shard], distance):
            return "full"
        self._fetching[shard] = self.machine.env.event()
        return "fetch"

    def _make_room(self, size: int, distance: float) -> bool:
        held = [*self._present, *self._fetching]
        excess = sum(self.sizes[shard] for shard in held) + size - self.machine.settings.cache_bytes
        if excess <= 0:
            return True
        distances = self.distances()
        free = {shard: float(distances[shard]) for shard in self._present if not self._in_use[shard]}
        victims = choose_victims(free, self.sizes, excess, distance)
        if victims is None:
            return False
        self._present.difference_update(victims)
        return True

    def fetch(self, shard: int) -> Process:
        """Fetch what `acquire` has made room for."""
        yield self.machine.env.timeout(self.machine.settings.latency)
        yield from self.machine.download(self.sizes[shard])
        self._present.add(shard)
        self._fetching.pop(shard).succeed()

    def release(self, shard: int) -> None:
        """A reader of it has ended."""
        self._in_use[shard] -= 1


class CacheReader:
    """One loading process and its threads that fetch ahead."""

    def __init__(self, cache: CacheModel, number: int) -> None:
        self._cache, self._number, self._generation = cache, number, 0
        self._times: dict[int, list[float]] = {}

    def plan(self, upcoming: Sequence[Part], later: Sequence[Part]) -> None:
        """What will be read, in this epoch and the next."""
        for shard in self._times:
            self._cache.set_next(self._number, shard, np.inf)
        self._times = {}
        for part in sorted([*upcoming, *later], key=lambda part: part.when):
            self._times.setdefault(part.shard, []).append(part.when)
        for shard, times in self._times.items():
            self._cache.set_next(self._number, shard, times[0])
        self._cache.now[self._number] = min((times[0] for times in self._times.values()), default=0.0)
        self._cache.altered()
        self._generation += 1
        ordered = sorted(upcoming, key=lambda part: part.when)
        for _ in range(FETCHERS):
            self._cache.machine.env.process(self._fetch_ahead(ordered, self._generation))

    def _fetch_ahead(self, parts: list[Part], generation: int) -> Process:
        cache = self._cache
        for part in parts:
            while generation == self._generation:
                state = cache.acquire(part.shard, part.when - cache.now[self._number], use=False)
                if state != "full" or part.when <= cache.now[self._number]:
                    break
                yield cache.change
            else:
                return
            if state == "fetch":
                yield from cache.fetch(part.shard)

    def open(self, part: Part) -> Process:
        """Have a shard, and return whether it is in the cache and must be released. One that is not worth its room is
        received as a whole, as if it were: real readers take it piece by piece, at the same rate."""
        cache = self._cache
        after = min((when for when in self._times.get(part.shard, ()) if when > part.when), default=np.inf)
        distance = after - cache.now[self._number]
        while (state := cache.acquire(part.shard, distance, use=True)) is not None:
            if state == "full":
                yield cache.machine.env.timeout(cache.machine.settings.latency)
                yield from cache.machine.download(cache.sizes[part.shard])
                return False
            if state == "fetch":
                yield from cache.fetch(part.shard)
            else:
                assert isinstance(state, simpy.Event)
                yield state
        cache.move(self._number, part.when)
        return True

    def close(self, part: Part, *, in_use: bool) -> None:
        """A shard has been read."""
        cache = self._cache
        if in_use:
            cache.release(part.shard)
        times = self._times.get(part.shard, [])
        if part.when in times:
            times.remove(part.when)
            cache.set_next(self._number, part.shard, times[0] if times else np.inf)
        cache.move(self._number, part.when)
        cache.altered()


class CachedLane:
    """A lane that is read through the cache."""

    def __init__(self, reader: CacheReader, plan: LanePlan) -> None:
        self._reader, self._plan = reader, plan
        self._part, self._in_use = -1, False

    def read(self, count: int) -> Process:
        """Wait until the first `count` samples can be read."""
        while self._part < self._plan.part_for(count):
            self.close()
            self._part += 1
            self._in_use = yield from self._reader.open(self._plan.parts[self._part])

    def close(self) -> None:
        """Give up the shard that is being read."""
        if self._part >= 0:
            self._reader.close(self._plan.parts[self._part], in_use=self._in_use)
