"""Sluice in any training loop: `sluice.open` returns a loader that is iterated like a DataLoader.

loader = sluice.open("data/shards", "train", batch_size=256)
for epoch in range(90):
    for images, labels in loader:
        ...
"""

import os
import re
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, NamedTuple, get_args

import torch
import torch.distributed as dist
from torch import Tensor
from torchvision.models import ResNet50_Weights
from torchvision.transforms.v2 import functional

from . import loaders
from .contract import Batch, Decoder, Loader, LoaderSpec
from .errors import InputError, UsageError
from .order.crops import CropPolicy, Interpolation
from .storage.split import open_split

Normalization = Literal[True] | tuple[Sequence[float], Sequence[float]]
"""Mean and standard deviation of each channel, of pixels in 0..1; True means those of ImageNet."""

Ranks = tuple[int, int]
"""This process's rank, and the number of processes."""


class Pair(NamedTuple):
    """What a loader gives unless it is asked for indices too; see `Batch` for shapes and types."""

    images: Tensor
    labels: Tensor


class ImageLoader:
    """The batches of one split for one process, epoch after epoch. Made by `open`, which says what it gives.

    `for images, labels in loader` loads one epoch. The next loop loads the next epoch, unless `set_epoch` names
    another; a loop that was left with `break` counts as an epoch. `len(loader)` is the number of batches of this
    process in an epoch. `state_dict` counts the batches that were handed out: after `load_state_dict`, the next loop
    continues with the batch that would have come next, and gives the rest of that epoch.

    Close it, or use it as a context manager: `with sluice.open(...) as loader`. Until then it may hold processes,
    threads and open files.

    Raises UsageError for use that cannot work, and InputError naming the file and the sample for an image that cannot
    be read.
    """

    def __init__(self, name: str, spec: LoaderSpec, shown: "_Shown", ranks_are_given: bool) -> None:
        self._spec, self._shown, self._ranks_are_given = spec, shown, ranks_are_given
        self.classes = spec.split.classes
        """Class names; a label is an index into them."""
        self.name = name
        """The loader in use: `ffcv`, `torch`, ..."""
        self._loader = loaders.create(name, spec)
        self._process = os.getpid()
        self._finalizer = weakref.finalize(self, _close, self._loader, self._process)  # also where it is just dropped
        self._epoch, self._batch = 0, 0  # of the batch that comes next
        self._is_resumed = False  # since the newest loop
        self._finished: int | None = None  # the epoch at whose end the state was that the next loop continues
        self._loop = 0  # number of the newest one

    def __len__(self) -> int:
        return self._loader.batches_per_epoch

    @property
    def epoch(self) -> int:
        """The epoch that a loop is in. Between loops, the one that was last finished, left or named; after
        `load_state_dict`, the one that the next loop continues: `for epoch in range(loader.epoch, epochs)` resumes."""
        return self._epoch

    @property
    def batch(self) -> int:
        """Batches of that epoch that were handed out: in a loop, the number of the newest one, counted from 1."""
        return self._batch

    def set_epoch(self, epoch: int) -> None:
        """The next loop loads this epoch, counted from 0: its rest, where `load_state_dict` has just entered it.

        Raises UsageError where that would leave out the rest of an epoch that was to be continued.
        """
        if epoch == self._finished:
            self._epoch, self._batch, self._is_resumed = epoch, len(self), True  # nothing is left of it
        if self._is_resumed and epoch == self._epoch:
            return
        if self._is_resumed:
            raise UsageError(
                f"set_epoch({epoch}): the state that was loaded continues epoch {self._epoch} after {self._batch} of "
                f"{len(self)} batches; begin with `range(loader.epoch, epochs)`"
            )
        self._epoch, self._batch, self._finished = epoch, 0, None
        self._loop += 1  # ends the running one

    def __iter__(self) -> Iterator[Any]:
        self._check()
        self._loop += 1
        return self._batches(self._loop)

    def _batches(self, loop: int) -> Iterator[Any]:
        self._check(loop)
        self._check_ranks()
        if self._batch and not self._is_resumed:
            self._epoch, self._batch = self._epoch + 1, 0
        self._is_resumed, self._finished = False, None
        for batch in self._loader.epoch(self._epoch, self._spec.max_resolution, self._batch):
            self._batch += 1
            yield self._shown(batch)
            self._check(loop)

    def state_dict(self) -> dict[str, int]:
        """Where the loader is, and what its order depends on: plain numbers, the same on each rank."""
        return {"epoch": self._epoch, "batch": self._batch, **self._order}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Continue where `state_dict` was called, also with another number of processes of the same global batch, on
        other hardware, or with another loader. A state from the end of an epoch continues with the next one.

        Raises InputError where the same numbers would mean other images: another dataset, seed or global batch.
        """
        for name, value in self._order.items():
            if state[name] != value:
                what = name.replace("_", " ")
                raise InputError(f"load_state_dict: the state is of {what} {state[name]}, the loader of {value}")
        self._epoch, self._batch, self._finished = state["epoch"], state["batch"], None
        if self._batch >= len(self):
            self._epoch, self._batch, self._finished = self._epoch + 1, 0, self._epoch
        self._is_resumed = self._batch > 0
        self._loop += 1

    @property
    def _order(self) -> dict[str, int]:
        spec, plan = self._spec, self._spec.plan
        return {
            "seed": spec.seed,
            "samples": spec.split.num_samples,
            "global_batch": spec.batch_size * spec.world_size,
            "order_version": plan.VERSION,
        }

    def close(self) -> None:
        """End the loader's processes and threads, also in the middle of an epoch. May be called again."""
        self._finalizer()

    def __enter__(self) -> "ImageLoader":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _check(self, loop: int | None = None) -> None:
        if not self._finalizer.alive:
            raise UsageError("the loader is closed; open another")
        if self._process != os.getpid():
            raise UsageError("the loader was opened by another process; open one in each process, after it has started")
        if loop not in (None, self._loop):
            raise UsageError(
                "this loop over the loader has ended, because another one was begun or the loader was set to another "
                "place; open a second loader to iterate twice at once"
            )

    def _check_ranks(self) -> None:
        opened_for, now = (self._spec.rank, self._spec.world_size), _ranks_of_group()
        if now not in (None, opened_for) and not self._ranks_are_given:
            rank, world_size = now or opened_for
            raise UsageError(
                f"the loader was opened for rank {opened_for[0]} of {opened_for[1]}, but this is rank {rank} of "
                f"{world_size}; open it after the process group, or give it rank= and world_size="
            )


def _close(loader: Loader, process: int) -> None:
    if process == os.getpid():
        loader.close()


class _Shown:
    """Batches as the user wants them."""

    def __init__(
        self,
        *,
        normalize: Normalization | None,
        dtype: torch.dtype,
        keeps: bool,
        indices: bool,
        transform: Callable[[Any], Any] | None,
    ) -> None:
        self._dtype, self._keeps, self._indices, self._transform = dtype, keeps, indices, transform
        self._normalize = _imagenet_normalization() if normalize is True else normalize

    def __call__(self, batch: Batch) -> Any:
        images, labels, indices = batch
        if self._dtype.is_floating_point:
            images = self._floats(images)
        elif self._keeps:
            images = images.clone()
        if self._keeps:
            labels, indices = labels.clone(), indices.clone()
        shown = Batch(images, labels, indices) if self._indices else Pair(images, labels)
        return shown if self._transform is None else self._transform(shown)

    def _floats(self, images: Tensor) -> Tensor:
        images = functional.to_dtype(images, torch.float32, scale=True)
        if self._normalize is not None:
            images = functional.normalize(images, *map(list, self._normalize), inplace=True)
        return images.to(self._dtype)


def open(
    path: str | Path,
    split: str = "train",
    *,
    batch_size: int,
    resolution: int = 224,
    training: bool | None = None,
    seed: int = 0,
    device: torch.device | str | int = "cpu",
    normalize: Normalization | None = None,
    dtype: torch.dtype | None = None,
    indices: bool = False,
    transform: Callable[[Any], Any] | None = None,
    borrow: bool = False,
    rank: int | None = None,
    world_size: int | None = None,
    workers: int | None = None,
    loader: str = "auto",
    area: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
    flip: float = 0.5,
    resize: int | None = None,
    interpolation: Interpolation = "bilinear",
    channels_last: bool = True,
    decoder: Decoder = "auto",
) -> ImageLoader:
    """Open a split of a dataset that `sluice-convert` wrote, of one on a web server, or of a folder with class folders
    in `train/` and `val/`.

    The loader gives `(images, labels)`: uint8 [B, 3, R, R] RGB with channels_last strides, and int64 [B], both on
    `device`. What a batch contains depends on the dataset, `seed`, the epoch and its number, and on nothing else.

    training: by default, whether the split is called "train". A training epoch is a permutation of the split, each
        image with a RandomResizedCrop (`area`, `ratio`) and a flip of probability `flip`; the last ones, which fill no
        global batch, are left out. Otherwise each image comes exactly once over all processes, in order, after
        Resize(`resize`) and CenterCrop(`resolution`); the last batch may be short, and some processes may not have it.
    resolution, resize: pixels; `resize` is 8/7 of `resolution` by default, 256 for 224.
    interpolation: of the resize, `bilinear` or `bicubic`, with antialias.
    batch_size: of this process; the global batch is `batch_size * world_size`.
    device: where batches arrive, copied one ahead of the step; a number means that accelerator.
    normalize: `(mean, std)` of pixels in 0..1, or True for ImageNet's; for models that do not do it themselves.
    dtype: of the images: torch.uint8, or, scaled to 0..1 or normalised, a floating-point type. By default uint8, and
        float32 with `normalize`.
    indices: give `Batch(images, labels, indices)`, the last being dataset positions, int64 [B].
    transform: called with each batch, on the device; the loader gives what it returns. For Mixup, dicts and the like.
    borrow: batches may be overwritten as soon as the next one is asked for. Saves a copy of uint8 batches on the CPU.
    rank, world_size: by default those of torch.distributed if it is initialised, else of RANK and WORLD_SIZE in the
        environment, as torchrun sets them, else 0 and 1. For each process to have all images, give 0 and 1.
    workers: processes or threads that load; by default the cores of this machine divided by LOCAL_WORLD_SIZE.
    loader: `auto` is the fastest that is installed and can read the data; the batches are the same.
    decoder: `turbojpeg` for libjpeg-turbo alone; the pixels are the same.

    Raises InputError (a ValueError) for data or arguments that cannot be used, among them a batch larger than the data,
    and UsageError for a loader that would fork this process after it joined a process group: `auto` takes one that does
    not.
    """
    try:
        opened = open_split(path, split)
        ranks = _ranks(rank, world_size)
        cores = len(os.sched_getaffinity(0)) // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        spec = LoaderSpec(
            split=opened,
            batch_size=batch_size,
            crop=CropPolicy(
                training=split == "train" if training is None else training,
                area=area,
                ratio=ratio,
                flip_probability=flip,
                val_resize=_checked_resize(resize, resolution),
                val_crop=resolution,
                interpolation=_checked_interpolation(interpolation),
            ),
            seed=seed,
            rank=ranks[0],
            world_size=ranks[1],
            workers=max(1, cores) if workers is None else workers,
            max_resolution=resolution,
            device=torch.device(device),
            channels_last=channels_last,
            decoder=decoder,
        )
        _check_size(spec)
        is_borrowed = borrow or spec.device.type != "cpu"  # of a copy on a device, nothing is used again
        shown = _Shown(
            normalize=normalize,
            dtype=_checked_dtype(dtype, normalize),
            keeps=not is_borrowed,
            indices=indices,
            transform=transform,
        )
        return ImageLoader(_loader_name(loader, spec), spec, shown, ranks_are_given=rank is not None)
    except InputError as error:
        raise type(error)(_in_keywords(str(error))) from None


def _ranks(rank: int | None, world_size: int | None) -> Ranks:
    if (rank is None) != (world_size is None):
        raise InputError("give both rank and world_size, or neither")
    if rank is not None and world_size is not None:
        return rank, world_size
    return _ranks_of_group() or _ranks_of_environment()


def _ranks_of_group() -> Ranks | None:
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return None


def _ranks_of_environment() -> Ranks:
    rank, world_size = os.environ.get("RANK"), os.environ.get("WORLD_SIZE", "1")
    if rank is None and world_size != "1":
        raise InputError(
            f"WORLD_SIZE {world_size} is exported, but not RANK: open the loader after the process group, or give it "
            "rank and world_size"
        )
    return int(rank or 0), int(world_size)


def _checked_resize(resize: int | None, resolution: int) -> int:
    """The side before the crop of `resolution`. Raises InputError for one that is smaller."""
    resize = round(resolution * 256 / 224) if resize is None else resize
    if resize < resolution:
        raise InputError(f"resize {resize}: must be at least the resolution of {resolution}")
    return resize


def _checked_interpolation(interpolation: Interpolation) -> Interpolation:
    """Raises InputError for an unknown one."""
    if interpolation not in get_args(Interpolation):
        raise InputError(f"interpolation {interpolation}: there is {' and '.join(get_args(Interpolation))}")
    return interpolation


def _check_size(spec: LoaderSpec) -> None:
    """Raises InputError for a training split that fills no global batch."""
    global_batch, samples = spec.batch_size * spec.world_size, spec.split.num_samples
    if spec.crop.training and global_batch > samples:
        processes = f" x {spec.world_size} processes" if spec.world_size > 1 else ""
        raise InputError(
            f"batch_size {spec.batch_size}{processes}: larger than the {samples} images of {spec.split.name} in "
            f"{spec.split.url or spec.split.path}"
        )


def _checked_dtype(dtype: torch.dtype | None, normalize: Normalization | None) -> torch.dtype:
    chosen = dtype or (torch.uint8 if normalize is None else torch.float32)
    if not chosen.is_floating_point and (normalize is not None or chosen != torch.uint8):
        raise InputError(f"dtype {chosen}: must be a floating-point type, or torch.uint8 without normalize")
    return chosen


def _imagenet_normalization() -> tuple[Sequence[float], Sequence[float]]:
    """As torchvision's weights were trained with."""
    preset = ResNet50_Weights.IMAGENET1K_V2.transforms()
    return preset.mean, preset.std


def _loader_name(name: str, spec: LoaderSpec) -> str:
    """The loader, `auto` decided. Raises UsageError for one that would fork after a process group."""
    may_fork = _ranks_of_group() is None or spec.workers == 0
    names = [found for found, _ in loaders.usable(spec.split, [])] if name == "auto" else [name]
    chosen = next((found for found in names if may_fork or not loaders.facts(found).forks), None)
    if chosen is None:
        raise UsageError(
            f"loader {names[0]} would fork this process after it joined a process group, whose threads may hold locks "
            "that a fork never releases; open the loader before, with workers=0, or loader='threads' for data on a disk"
        )
    return chosen


def _in_keywords(message: str) -> str:
    """A message about flags of the commands, in the keywords of `open`."""
    return re.sub(r"--(loader|workers|decoder)\b", r"\1", message.removeprefix("--data "))
