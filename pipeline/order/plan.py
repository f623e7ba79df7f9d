"""Which samples, in which order, on which rank: what every loader shares.

What a batch contains depends on (dataset, seed, epoch, global batch number) and nothing else.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, TypeVar

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from .random import ORDER_DRAW, keys_of, scatter_by_key

Indices = NDArray[np.int64]
Integer = TypeVar("Integer", bound=np.signedinteger)

_BUCKET = 1 << 16
"""Samples that are sorted at a time."""

REPEAT_SHIFT = 34
"""A sample's *key* is its dataset position, with the number of its repeat in the bits from this one on. Without
repeats, keys are positions. Crops and augmentations are drawn by key."""
POSITION = (1 << REPEAT_SHIFT) - 1
"""The bits of a key that are the dataset position."""
MAX_REPEATS = 64
"""How often a sample can be in a batch: keys are below 2^40."""


def positions(keys: Indices) -> Indices:
    """The dataset positions that keys stand for, int64 of their shape."""
    return keys & POSITION


def epoch_order(num_samples: int, seed: int, epoch: int) -> NDArray[np.signedinteger]:
    """The global training permutation of one epoch, int32 [num_samples] if they fit, else int64.

    Sorting counter-based random keys gives the same permutation with every numpy version (Generator's own
    streams may change between releases). They are sorted in buckets that fit into a core's cache, and their keys are
    computed again: that takes no memory but the result's, a tenth of what sorting all at once takes.
    """
    order = np.empty(num_samples, np.int32 if num_samples <= np.iinfo(np.int32).max else np.int64)
    ends = np.empty(num_samples // _BUCKET + 1, np.int64)
    scatter_by_key(order, ends, seed, epoch, ORDER_DRAW)
    for start, end in zip((0, *ends[:-1]), ends, strict=True):
        bucket = order[start:end]
        bucket[:] = bucket[np.argsort(keys_of(bucket, seed, epoch, ORDER_DRAW), kind="stable")]
    return order


def rank_share(batch: NDArray[Integer], rank: int, world_size: int) -> NDArray[Integer]:
    """The contiguous part of a global batch that `rank` works on.

    Parts differ by at most one sample: the short last batch of an evaluation is spread over the ranks, and a rank's
    part may be empty there. A full batch gives every rank equally many.
    """
    start, stop = (len(batch) * edge // world_size for edge in (rank, rank + 1))
    return batch[start:stop]


@dataclass(frozen=True, kw_only=True)
class RankPlan(ABC):
    """The order of one split for one rank. Raises ValueError for a batch size or rank that cannot be."""

    VERSION: ClassVar[int]
    """Changes with the training order that the same settings give, so that a checkpoint can name the order it was
    trained in."""

    batch_size: int  # per process
    seed: int = 0
    rank: int = 0
    world_size: int = 1
    training: bool = True
    repeats: int = 1
    """Each sample of a training batch is in it so many times, under different keys (repeated augmentation: Hoffer et
    al., arXiv:1901.09335; Berman et al., arXiv:1902.05509). An epoch has as many batches as without, and visits only
    the first samples of its order, as with timm's RepeatAugSampler and DeiT's RASampler, but for their rounding to a
    multiple of 256."""

    def __post_init__(self) -> None:
        assert self.training or self.repeats == 1
        if not 1 <= self.repeats <= MAX_REPEATS:
            raise ValueError(f"repeats must be between 1 and {MAX_REPEATS}, not {self.repeats}")
        if self.batch_size < 1:
            raise ValueError(f"batch size must be at least 1, not {self.batch_size}")
        if not 0 <= self.rank < self.world_size:
            raise ValueError(f"rank {self.rank} is not in a world of {self.world_size}")

    @property
    @abstractmethod
    def batches_per_epoch(self) -> int:
        """Non-empty batches of this rank in an epoch; in evaluation ranks may differ by one."""

    @abstractmethod
    def order(self, epoch: int) -> Indices:
        """What this rank works on in this epoch, in order, int64; `batch` takes a batch from it."""

    @abstractmethod
    def batch(self, order: Indices, number: int) -> Indices:
        """The keys of this rank's part of global batch `number`, int64 [B], from an epoch's `order`."""

    def batches(self, epoch: int, start_batch: int = 0) -> Iterator[Indices]:
        """The keys of this rank's batches, from global batch `start_batch` on."""
        assert start_batch >= 0
        order = self.order(epoch)
        for number in range(start_batch, self.batches_per_epoch):
            yield self.batch(order, number)


@dataclass(frozen=True, kw_only=True)
class Plan(RankPlan):
    """The order of a split with random access.

    Training takes whole global batches from a new permutation each epoch;
    evaluation visits the samples in order, each exactly once over all ranks.
    """

    VERSION = 1

    num_samples: int

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.global_batch_size % self.repeats:
            raise InputError(
                f"{self.repeats} repeats of each image do not divide the batch of {self.global_batch_size} "
                f"({self.world_size} x {self.batch_size}); choose another --aug-repeats or --batch-size"
            )

    @property
    def global_batch_size(self) -> int:
        """Samples in one step over all ranks."""
        return self.batch_size * self.world_size

    @property
    def batches_per_epoch(self) -> int:
        whole, rest = divmod(self.num_samples, self.global_batch_size)
        last = rank_share(np.arange(0 if self.training else rest), self.rank, self.world_size)
        return whole + (len(last) > 0)

    def order(self, epoch: int) -> Indices:
        if self.training:
            return self._share(epoch_order(self.num_samples, self.seed, epoch))
        return self._share(np.arange(self.num_samples))

    def _share(self, order: NDArray[np.signedinteger]) -> Indices:
        """The keys of this rank's part of each global batch of an order; a copy, so that the whole need not be kept.

        A batch has all of its samples once, then again. So where there are as many ranks as repeats, no rank sees a
        sample twice, which matters to BatchNorm.
        """
        whole, distinct = self.num_samples // self.global_batch_size, self.global_batch_size // self.repeats
        places = np.arange(self.rank * self.batch_size, (self.rank + 1) * self.batch_size)
        own = np.empty((whole, self.batch_size), np.int64)
        by_batch = order[: whole * distinct].reshape(whole, distinct)
        for column, place in enumerate((places % distinct).tolist()):  # one at a time, which takes no more memory
            own[:, column] = by_batch[:, place]
        own |= places // distinct << REPEAT_SHIFT
        if self.training:
            return own.ravel()
        last = rank_share(order[whole * distinct :], self.rank, self.world_size)
        return np.concatenate([own.ravel(), last], dtype=np.int64)

    def batch(self, order: Indices, number: int) -> Indices:
        return order[number * self.batch_size : (number + 1) * self.batch_size]
