"""What every loader takes, returns and states about itself: LoaderSpec, Loader, Batch, LoaderFacts."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from .order.crops import CropPolicy
from .order.plan import Plan
from .order.stream import StreamPlan
from .storage.split import Split

MEAN_DIFFERENCE = 0.3
MAX_DIFFERENCE = 2
"""How far a loader's pixels may be from the reference, in steps of 1/255: on average over a batch, and at any
pixel (a loader's facts may state a larger one). The reference is torchvision: its decode_image and, with antialias, in
training resized_crop with the plan's box, in evaluation Resize and CenterCrop of the whole image."""


CPU = torch.device("cpu")

Part = Literal["read", "crop", "decode", "entropy", "transform", "colour", "resize", "collate"]
"""What a loader's time is spent on: reading stored bytes, choosing the crop and finding its tiles, decoding, resizing,
and putting images together to a batch. Of Sluice's own decoder the steps are known, and take the place of "decode":
entropy decoding, the inverse DCT, and upsampling with colour conversion."""

Decoder = Literal["auto", "turbojpeg"]
"""What decodes JPEGs: `auto` is Sluice's own decoder for tiles, where it is the faster one, and libjpeg-turbo for the
rest; `turbojpeg` is libjpeg-turbo for all. The pixels are the same."""

Storage = Literal["ffcv", "ffcv-raw", "webdataset", "folder", "remote"]
"""How a split is stored: see `Split.formats`."""


class Batch(NamedTuple):
    """One batch on the device. It may be borrowed: valid until the next one is asked for."""

    images: Tensor
    """uint8 [B, 3, R, R], RGB, with channels_last strides unless the device wants contiguous ones."""
    labels: Tensor
    """int64 [B], class indices."""
    indices: Tensor
    """int64 [B], dataset positions."""


class Clock(Protocol):
    """Adds up where a loader's time goes. May be called from several threads."""

    def part(self, name: Part) -> AbstractContextManager[None]:
        """Count the time inside the `with` block to a part; a part inside another is counted once, to the inner one."""
        ...

    def parts(self, names: Sequence[Part], shares: np.ndarray) -> AbstractContextManager[None]:
        """Count the time inside the block to several parts, in proportion to `shares`, which the block fills."""
        ...


class NoClock:
    """Counts nothing: what loaders run with unless somebody measures. A part costs 0.13 us, an image has three or four
    of them and takes 400 us at least."""

    _untimed = nullcontext()

    def part(self, name: Part) -> AbstractContextManager[None]:
        """The block runs as it is."""
        return self._untimed

    def parts(self, names: Sequence[Part], shares: np.ndarray) -> AbstractContextManager[None]:
        """The block runs as it is."""
        return self._untimed


NO_CLOCK = NoClock()


@dataclass(frozen=True, kw_only=True)
class LoaderSpec:
    """Everything a loader needs to know; nothing is read from the environment."""

    split: Split
    batch_size: int  # per process
    crop: CropPolicy
    seed: int = 0
    rank: int = 0
    world_size: int = 1
    repeats: int = 1  # of each sample of a training batch
    workers: int = 2
    max_resolution: int = 224  # the largest side that epochs will be asked for
    device: torch.device = CPU
    channels_last: bool = True
    decoder: Decoder = "auto"
    clock: Clock = field(default=NO_CLOCK, repr=False, compare=False)
    """Times the parts of the loader's work. Worker processes have copies of it: measure with `workers=0`."""

    @property
    def plan(self) -> Plan | StreamPlan:
        """The order of samples for this rank. Raises InputError for a stream that the ranks cannot share."""
        if self.split.is_streamed:
            return self.stream_plan
        return Plan(num_samples=self.split.num_samples, **self._share)

    @property
    def stream_plan(self) -> StreamPlan:
        """The order for a split that is streamed from its shards."""
        return StreamPlan(shard_samples=self.split.remote.shard_samples, **self._share)

    @property
    def _share(self) -> dict[str, Any]:
        return {
            "batch_size": self.batch_size,
            "seed": self.seed,
            "rank": self.rank,
            "world_size": self.world_size,
            "training": self.crop.training,
            "repeats": self.repeats,
        }


class Loader(Protocol):
    """Loads this rank's batches of an epoch; a file in `pipeline/loaders/` that defines one is found by name.

    The processes of a loader, if it has any, are forked when it is created and live until it is closed: create loaders
    before a process group, and before other threads that run Python or hold tensors. A forked process inherits the
    locks that other threads hold at that moment, and nothing ever releases them there. One is CPython's own: the
    threads of gloo and NCCL take it whenever they release a tensor, after each collective, and a worker that
    Python 3.11 forks then hangs before its first line.
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
        """End every process and thread of the loader, also in the middle of an epoch."""
        ...


@dataclass(frozen=True, kw_only=True)
class LoaderFacts:
    """What a loader's file states about it, as `FACTS = LoaderFacts(...)` at its top level.

    Only literals: they are read from the source, without importing the package that the loader needs.
    """

    reads: tuple[Storage, ...]
    """The storages it can read, best first; none if it reads no data."""
    priority: int | None = None
    """`auto` takes the usable loader of the highest priority; None keeps a loader out of `auto`."""
    package: str = ""
    """The package it needs beyond Sluice's own requirements, by the name it is imported under."""
    install: str = ""
    """The command that installs `package`."""
    needs: str = "nothing more"
    """What it needs, for the table of loaders in the documentation."""
    timed: tuple[Part, ...] = ()
    """The parts it marks on `LoaderSpec.clock`."""
    untimed: str = ""
    """What the rest of its time goes to, if that is more than Python between the parts."""
    compiled: bool = False
    """Whether its pixels are made in one compiled kernel, which a clock cannot look into. Such a file also defines
    `create_stepped(spec)`: a loader of the same batches that calls the kernel's steps one by one, for profilers."""
    forks: bool = False
    """Whether its workers are forked processes: see `Loader`."""
    max_difference: int = MAX_DIFFERENCE
    """How far a pixel may be from the reference, in steps of 1/255."""
    notices_altered_data: bool = True
    """Whether it reports image data that was altered but can still be decoded."""


class LoaderModule(Protocol):
    """A file in `pipeline/loaders/`."""

    FACTS: LoaderFacts

    def create(self, spec: LoaderSpec) -> Loader:
        """Create the loader. Raises InputError for what the user can fix."""
        ...
