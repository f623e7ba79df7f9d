"""The order of a split that is streamed from its shards, which no global permutation allows."""

from dataclasses import dataclass

import numpy as np

from ..errors import InputError
from ..jit import njit
from .plan import REPEAT_SHIFT, Indices, RankPlan
from .random import BUFFER_DRAW, SHARD_DRAW, random_keys, random_words, uniform

_LANE_SHIFT = 40  # a lane's number stands above the number of a sample in it

LANES = (1, 2, 4, 8, 16, 24, 48, 96, 192, 384)
"""How many lanes a stream can have: numbers with many divisors, so that many world sizes can share them."""


@dataclass(frozen=True, kw_only=True)
class StreamPlan(RankPlan):
    """The order of a split that is streamed from its shards.

    A stream cannot have a global permutation. Its shards are permuted each epoch and cut into lanes of equal length;
    each lane passes through a bounded shuffle, and the lanes take turns. That is a pure function of (dataset, seed,
    epoch). Rank r of W works on lanes r, r + W, ..., so it reads no other shards, a global batch holds the same
    samples for every world size that divides the lanes, and all ranks have equally many batches.

    Raises InputError where the ranks cannot share the lanes evenly. Repeats of a sample are in the same rank's batch.
    """

    VERSION = 2
    """1 drew a sample's random word by what came into the buffer, and the ends of lanes were hardly shuffled."""

    shard_samples: tuple[int, ...]
    shuffle_buffer: int = 1024
    """Samples a lane holds back, at most."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_lanes % self.world_size:
            raise InputError(
                f"{len(self.shard_samples)} shards are streamed in {self.num_lanes} lanes, which {self.world_size} "
                f"processes cannot share evenly; choose another --nproc"
            )
        if self.batch_size % self.repeats:
            raise InputError(
                f"{self.repeats} repeats of each image do not divide a process's batch of {self.batch_size}, which "
                "has all of them where the data is streamed; choose another --aug-repeats or --batch-size"
            )

    @property
    def num_lanes(self) -> int:
        """In training a property of the dataset alone; an evaluation may be cut in any way."""
        if not self.training:
            return self.world_size
        return max(lanes for lanes in LANES if lanes <= max(1, len(self.shard_samples)))

    @property
    def my_lanes(self) -> range:
        """The lanes of this rank."""
        return range(self.rank, self.num_lanes, self.world_size)

    @property
    def batches_per_epoch(self) -> int:
        samples = sum(stop - start for start, stop in self._edges())
        if self.training:
            return samples // self.batch_size
        return -(-samples // self.batch_size)

    def shard_order(self, epoch: int) -> Indices:
        """The shards in the order of this epoch, int64."""
        count = len(self.shard_samples)
        if not self.training:
            return np.arange(count)
        return np.argsort(random_keys(count, self.seed, epoch, SHARD_DRAW), kind="stable").astype(np.int64)

    def _edges(self) -> list[tuple[int, int]]:
        """Where this rank's lanes begin and end in the samples of all shards, in the order of the shards; in training
        all lanes are equally long."""
        count, lanes = sum(self.shard_samples), self.num_lanes
        if self.training:
            count -= count % lanes
        return [(count * lane // lanes, count * (lane + 1) // lanes) for lane in self.my_lanes]

    def lanes(self, epoch: int) -> list[Indices]:
        """The positions that each lane of this rank reads, int64, in the order of the shards."""
        samples, shards = np.array(self.shard_samples, np.int64), self.shard_order(epoch)
        bounds = np.concatenate([[0], np.cumsum(samples[shards])])  # of the shards, in the order of this epoch
        shifts = (np.cumsum(samples) - samples)[shards] - bounds[:-1]  # to the positions in each of them
        return [
            np.arange(start, stop) + np.repeat(shifts, np.diff(np.clip(bounds, start, stop)))
            for start, stop in self._edges()
        ]

    def order(self, epoch: int) -> Indices:
        """The samples of this rank: its lanes, shuffled, in turn."""
        lanes = self.lanes(epoch)
        if self.training:
            lanes = [
                bounded_shuffle(lane, self.shuffle_buffer, self.seed, epoch, number)
                for number, lane in zip(self.my_lanes, lanes, strict=True)
            ]
        turns = np.full((max(map(len, lanes)), len(lanes)), -1, np.int64)
        for number, lane in enumerate(lanes):
            turns[: len(lane), number] = lane
        return turns[turns >= 0]

    def batch(self, order: Indices, number: int) -> Indices:
        """All of a batch's samples once, then again."""
        distinct = self.batch_size // self.repeats
        positions = order[number * distinct : (number + 1) * distinct]
        return np.concatenate([positions | repeat << REPEAT_SHIFT for repeat in range(self.repeats)])


@njit(cache=True, nogil=True)
def bounded_shuffle(sequence, capacity, seed, epoch, lane):
    """Shuffle int64 [N] as a reader with a buffer of `capacity` can: it fills the buffer, then hands out a random one
    of the buffered samples for each that comes in, and at the end those that are left. A sample moves forward by at
    most `capacity` places. Up to `capacity` samples are permuted uniformly.

    The random word is that of the lane and of the number of samples handed out before, so that no two choices share
    one.
    """
    shuffled = np.empty_like(sequence)
    buffer = np.empty(max(1, capacity), np.int64)
    held = min(buffer.size, len(sequence))
    buffer[:held] = sequence[:held]
    for place in range(len(sequence)):
        word = random_words(seed, epoch, lane << _LANE_SHIFT | place, BUFFER_DRAW)[0]
        chosen = np.int64(uniform(word) * held)
        shuffled[place] = buffer[chosen]
        if place + buffer.size < len(sequence):
            buffer[chosen] = sequence[place + buffer.size]
        else:
            held -= 1
            buffer[chosen] = buffer[held]
    return shuffled
