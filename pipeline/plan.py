"""Which samples, in which order, on which rank: the part of a run that every loader shares.

What a batch contains depends on (dataset, seed, epoch, global batch number) and nothing else.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.augment import ORDER_DRAW, SHARD_DRAW, bounded_shuffle, random_keys
from pipeline.errors import InputError

Indices = NDArray[np.int64]


def epoch_order(num_samples: int, seed: int, epoch: int) -> Indices:
    """The global training permutation of one epoch, int64 [num_samples].

    Sorting counter-based random keys gives the same permutation with every numpy version (Generator's own
    streams may change between releases). 1.28 million samples take 0.15 s.
    """
    return np.argsort(random_keys(num_samples, seed, epoch, ORDER_DRAW), kind="stable").astype(np.int64)


def rank_share(batch: Indices, rank: int, world_size: int) -> Indices:
    """The contiguous part of a global batch that `rank` works on.

    Parts differ by at most one sample, so the short last batch of an evaluation is spread over the ranks, and
    a rank's part may be empty there. A full batch gives every rank the same number.
    """
    start, stop = (len(batch) * edge // world_size for edge in (rank, rank + 1))
    return batch[start:stop]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The order of one split for one rank.

    Training draws whole global batches from a new permutation each epoch;
    evaluation visits the samples in order, each exactly once over all ranks.
    """

    num_samples: int
    batch_size: int  # per process
    seed: int = 0
    rank: int = 0
    world_size: int = 1
    training: bool = True

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError(f"batch size must be at least 1, not {self.batch_size}")
        if not 0 <= self.rank < self.world_size:
            raise ValueError(f"rank {self.rank} is not in a world of {self.world_size}")

    @property
    def global_batch_size(self) -> int:
        """Samples in one step over all ranks."""
        return self.batch_size * self.world_size

    @property
    def batches_per_epoch(self) -> int:
        """Non-empty batches of this rank in an epoch; in evaluation ranks may differ by one."""
        whole, rest = divmod(self.num_samples, self.global_batch_size)
        last = rank_share(np.arange(0 if self.training else rest), self.rank, self.world_size)
        return whole + (len(last) > 0)

    def order(self, epoch: int) -> Indices:
        """Every sample of the split in the order of this epoch, over all ranks."""
        if self.training:
            return epoch_order(self.num_samples, self.seed, epoch)
        return np.arange(self.num_samples, dtype=np.int64)

    def batches(self, epoch: int, start_batch: int = 0) -> Iterator[Indices]:
        """This rank's batches of dataset positions, from global batch `start_batch` on."""
        assert start_batch >= 0
        order = self.order(epoch)
        for number in range(start_batch, self.batches_per_epoch):
            first = number * self.global_batch_size
            yield rank_share(order[first : first + self.global_batch_size], self.rank, self.world_size)


LANES = (1, 2, 4, 8, 16, 24, 48, 96, 192, 384)
"""How many lanes a stream can have: numbers that many world sizes divide."""


@dataclass(frozen=True, kw_only=True)
class StreamPlan:
    """The order of one split that is streamed from its shards, for one rank.

    A stream cannot have a global permutation. Its order is that of the shards, permuted each epoch, cut into
    lanes of equal length; each lane passes through a bounded shuffle, and the lanes take turns. It is a pure
    function of (dataset, seed, epoch): rank r of W works on lanes r, r + W, ..., so it reads no other shards, a
    global batch holds the same samples for every world size that divides the lanes, and all ranks have equally
    many batches.
    """

    shard_samples: tuple[int, ...]
    batch_size: int  # per process
    seed: int = 0
    rank: int = 0
    world_size: int = 1
    training: bool = True
    shuffle_buffer: int = 1024
    """Samples a lane holds back, at most."""

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError(f"batch size must be at least 1, not {self.batch_size}")
        if not 0 <= self.rank < self.world_size:
            raise ValueError(f"rank {self.rank} is not in a world of {self.world_size}")
        if self.num_lanes % self.world_size:
            raise InputError(
                f"{len(self.shard_samples)} shards are streamed in {self.num_lanes} lanes, which {self.world_size} "
                f"processes cannot share evenly; choose another --nproc"
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
        """Non-empty batches of this rank in an epoch; in evaluation ranks may differ by one."""
        samples = sum(map(len, self._segments(np.arange(sum(self.shard_samples)))))
        if self.training:
            return samples // self.batch_size
        return -(-samples // self.batch_size)

    def shard_order(self, epoch: int) -> Indices:
        """The shards in the order of this epoch."""
        count = len(self.shard_samples)
        if not self.training:
            return np.arange(count)
        return np.argsort(random_keys(count, self.seed, epoch, SHARD_DRAW), kind="stable").astype(np.int64)

    def _segments(self, sequence: Indices) -> list[Indices]:
        """This rank's lanes of a sequence of all samples; in training all lanes are equally long."""
        count, lanes = len(sequence), self.num_lanes
        if self.training:
            count -= count % lanes
        return [sequence[count * lane // lanes : count * (lane + 1) // lanes] for lane in self.my_lanes]

    def lanes(self, epoch: int) -> list[Indices]:
        """What each lane of this rank reads, in the order of the shards."""
        first = np.cumsum((0, *self.shard_samples))
        pieces = [np.arange(first[shard], first[shard + 1]) for shard in self.shard_order(epoch)]
        return self._segments(np.concatenate([np.empty(0, np.int64), *pieces]))

    def batches(self, epoch: int, start_batch: int = 0) -> Iterator[Indices]:
        """This rank's batches of dataset positions, from global batch `start_batch` on."""
        assert start_batch >= 0
        order = self._interleaved(self.lanes(epoch), epoch)
        for number in range(start_batch, self.batches_per_epoch):
            yield order[number * self.batch_size : (number + 1) * self.batch_size]

    def _interleaved(self, lanes: list[Indices], epoch: int) -> Indices:
        if self.training:
            lanes = [bounded_shuffle(lane, self.shuffle_buffer, self.seed, epoch) for lane in lanes]
        turns = np.full((max(map(len, lanes)), len(lanes)), -1, np.int64)
        for number, lane in enumerate(lanes):
            turns[: len(lane), number] = lane
        return turns[turns >= 0]
