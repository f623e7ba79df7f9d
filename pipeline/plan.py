"""Which samples, in which order, on which rank: the part of a run that every loader shares.

What a batch contains depends on (dataset, seed, epoch, global batch number) and nothing else.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.augment import ORDER_DRAW, random_keys

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

    Training (`shuffle` and `drop_last`) draws whole global batches from a new permutation each epoch;
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
