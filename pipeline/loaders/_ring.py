"""Memory for batches that worker processes fill: shared with them and reused in turn.

A DataLoader itself allocates shared memory for each batch, which costs a copy and the kernel's zeroing and mapping of
every page: 0.2 ms of CPU time for an image of 224 x 224, next to 1.1 ms for everything else.
"""

import itertools
import mmap
import weakref
from typing import Any

import numpy as np
import torch

from ..contract import Batch
from ..order.plan import Indices

PREFETCH = 2  # batches each worker prepares ahead: a DataLoader's default

_rings: "weakref.WeakValueDictionary[int, BatchRing]" = weakref.WeakValueDictionary()
_numbers = itertools.count()


class BatchRing:
    """Places for as many batches as a DataLoader's workers can have ready, and the newest, which is in use.

    Create it before the workers are forked. A batch is valid until its place is used again: the DataLoader requests a
    batch only when it hands out the one PREFETCH * workers before it, so not before the next one is asked for. Where
    the workers fill rows of the same batches, `workers` is 1.

    The memory is anonymous: unlike /dev/shm, which containers often limit to 64 MB, it has no size limit of its own.
    """

    def __init__(self, workers: int, batch_size: int, max_resolution: int) -> None:
        count, size = PREFETCH * workers + 1, batch_size * max_resolution * max_resolution * 3
        self._places = np.frombuffer(mmap.mmap(-1, count * size), np.uint8).reshape(count, size)
        self._number = next(_numbers)
        _rings[self._number] = self

    def batch(self, number: int, indices: Indices, resolution: int) -> Batch:
        """An unfilled batch in the place of the epoch's batch `number`. Pickling it sends its place, not its images."""
        if len(indices) * resolution * resolution * 3 > self._places.shape[1]:
            raise ValueError(f"{len(indices)} images of side {resolution}: the loader was created for smaller batches")
        place = number % len(self._places)
        labels = np.empty(len(indices), np.int64)
        batch = _PlacedBatch(self._images(place, len(indices), resolution), *map(torch.from_numpy, (labels, indices)))
        batch.place = self._number, place, resolution
        return batch

    def _images(self, place: int, count: int, resolution: int) -> torch.Tensor:
        """NHWC memory, seen as NCHW: channels_last strides."""
        shape = count, resolution, resolution, 3
        return torch.from_numpy(self._places[place, : np.prod(shape)].reshape(shape)).permute(0, 3, 1, 2)


class _PlacedBatch(Batch):
    """A batch in a ring."""

    place: tuple[int, int, int]  # number of the ring, number of the place in it, resolution

    def __reduce__(self) -> tuple[Any, ...]:
        return _received, (*self.place, self.labels.numpy(), self.indices.numpy())


def _received(ring: int, place: int, resolution: int, labels: Indices, indices: Indices) -> Batch:
    """The batch in the process that created the ring."""
    images = _rings[ring]._images(place, len(labels), resolution)
    return Batch(images, torch.from_numpy(labels), torch.from_numpy(indices))
