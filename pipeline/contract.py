"""What every loader takes and gives: LoaderSpec, Loader, Batch."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from pipeline.augment import center_crop, random_flip, random_resized_crop
from pipeline.dataset import Split
from pipeline.plan import Plan, StreamPlan

MEAN_DIFFERENCE = 1.0
MAX_DIFFERENCE = 2
"""How far a loader's pixels may be from the reference, in steps of 1/255: on average over a batch, and at any
pixel (a loader's file may state a larger MAX_DIFFERENCE and why). The reference is torchvision's decode, the
plan's crop and resize(antialias=True)."""


CPU = torch.device("cpu")


class Batch(NamedTuple):
    """One batch on the device. It may be borrowed: valid until the next one is asked for."""

    images: Tensor
    """uint8 [B, 3, R, R], RGB, with channels_last strides unless the device wants contiguous ones."""
    labels: Tensor
    """int64 [B], class indices."""
    indices: Tensor
    """int64 [B], dataset positions."""


class Crop(NamedTuple):
    """A box in pixels of the stored image, and whether the result is mirrored."""

    top: int
    left: int
    height: int
    width: int
    flip: bool


@dataclass(frozen=True, kw_only=True)
class CropPolicy:
    """How images become R x R: RandomResizedCrop and flip in training, a centre crop in evaluation."""

    training: bool
    area: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip_probability: float = 0.5
    center_share: float = 224 / 256

    def crop(self, seed: int, epoch: int, sample: int, height: int, width: int) -> Crop:
        """The crop of one sample in one epoch."""
        if not self.training:
            top, left, crop_height, crop_width = center_crop(height, width, self.center_share)
            return Crop(top, left, crop_height, crop_width, False)
        top, left, crop_height, crop_width = random_resized_crop(
            seed, epoch, sample, height, width, *self.area, *self.ratio
        )
        return Crop(top, left, crop_height, crop_width, random_flip(seed, epoch, sample, self.flip_probability))


@dataclass(frozen=True, kw_only=True)
class LoaderSpec:
    """Everything a loader needs to know; nothing is read from the environment."""

    split: Split
    batch_size: int  # per process
    crop: CropPolicy
    seed: int = 0
    rank: int = 0
    world_size: int = 1
    workers: int = 2
    max_resolution: int = 224  # the largest side that epochs will be asked for
    device: torch.device = CPU
    channels_last: bool = True

    @property
    def plan(self) -> Plan | StreamPlan:
        """The order of samples for this rank. Raises InputError for a stream that the ranks cannot share."""
        if self.split.url is not None:
            return self.stream_plan
        return Plan(
            num_samples=self.split.num_samples,
            batch_size=self.batch_size,
            seed=self.seed,
            rank=self.rank,
            world_size=self.world_size,
            training=self.crop.training,
        )

    @property
    def stream_plan(self) -> StreamPlan:
        """The same for a split that is streamed from its shards."""
        return StreamPlan(
            shard_samples=self.split.remote.shard_samples,
            batch_size=self.batch_size,
            seed=self.seed,
            rank=self.rank,
            world_size=self.world_size,
            training=self.crop.training,
        )


class Loader(Protocol):
    """Gives this rank's batches of an epoch; a file in `pipeline/loaders/` that defines one is found by name.

    The processes of a loader, if it has any, are forked when it is made and live until it is closed: make loaders
    before a process group, and before other threads that run Python or hold tensors. A forked process takes over the
    locks that other threads hold at that moment, and nobody ever releases them there. One is CPython's own: the threads
    of gloo and NCCL take it whenever they let go of a tensor, after each collective, and a worker that Python 3.11
    forks then stands still before its first line.
    """

    batches_per_epoch: int
    """Batches of this rank in a whole epoch."""

    def epoch(self, epoch: int, resolution: int, start_batch: int = 0) -> Iterator[Batch]:
        """Batches of one epoch as R x R images, R at most the spec's `max_resolution`, from batch `start_batch` on.

        Asking for a new epoch ends the one before. Raises InputError naming the file and sample where an image
        cannot be read.
        """
        ...

    def close(self) -> None:
        """Ends every process and thread of the loader, also in the middle of an epoch."""
        ...
