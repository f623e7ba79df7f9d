"""One process of a run: its settings, its place in the world, its device, and what follows from them."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch

import models
from pipeline import loaders
from pipeline.contract import Batch, Loader, LoaderSpec
from pipeline.order.crops import CropPolicy, Interpolation, resized_side
from pipeline.storage.split import Split
from train.augmentation import apply as augmentation
from train.augmentation.apply import Augment
from train.augmentation.own import OwnAugmentation
from train.config import TrainConfig
from train.device import AMP_DTYPES, DEVICE_TYPES
from train.inputs import batch_too_large, loading_processes
from train.stopping import stop_signals_blocked
from train.world import World


@dataclass(frozen=True)
class SplitLoader:
    """A split of the data and the loader of this process over it."""

    split: Split
    loader: Loader


@dataclass(frozen=True)
class Process:
    """One process of a run."""

    config: TrainConfig
    world: World
    device: torch.device

    @cached_property
    def card(self) -> models.ModelCard:
        """The card of --model."""
        return models.card(self.config.model)

    @property
    def resolution(self) -> int:
        """Side of the images, where --progressive-resize or --val-crop says nothing else."""
        return self.config.resolution or self.card.resolution

    @property
    def validation_resolution(self) -> int:
        """Side of the images in evaluation."""
        return self.config.val_crop or self.resolution

    @property
    def validation_resize(self) -> int:
        """Length of an image's shorter side in evaluation, before the crop."""
        return int(resized_side(self.validation_resolution, self._crop_policy(training=False).numbers))

    def training_resolution(self, epoch: int) -> int:
        """Side of the training images in an epoch."""
        sides = [side for first_epoch, side in self.config.training_sides.items() if first_epoch <= epoch]
        return sides[-1] if sides else self.resolution

    def batches_at_once(self, epoch: int) -> int:
        """How many of the --accumulate batches of an epoch go through the model together, a divisor of their number:
        with --progressive-batch, as many as have no more pixels than a batch of the largest images."""
        if not self.config.progressive_batch:
            return 1
        accumulate = self.config.accumulate
        largest = max(self.training_resolution(0), *self.config.training_sides.values())
        most = largest**2 // self.training_resolution(epoch) ** 2
        return max(count for count in range(1, min(accumulate, most) + 1) if accumulate % count == 0)

    def batches_in(self, batch: Batch) -> int:
        """How many of the --accumulate batches were joined in this one."""
        return max(1, min(self.config.accumulate, len(batch.labels) // self.config.batch_size))

    @property
    def channels_last(self) -> bool:
        """Whether model and images have the channels_last memory format."""
        return self.config.channels_last and DEVICE_TYPES[self.device.type].channels_last

    @property
    def global_batch(self) -> int:
        """Images of an optimiser step, over all processes."""
        return self.config.batch_size * self.world.size * self.config.accumulate

    def augmentations(self) -> list[Augment]:
        """What is done to training images on the device, in this order."""
        config = self.config
        built_in = augmentation.build(config.augmentation, config.seed, self.card.mean, self.card.std)
        own = OwnAugmentation(config.augment, config.seed) if config.augment else None
        return [each for each in (built_in, own) if each is not None]

    def autocast(self) -> torch.autocast:
        """The context of --amp."""
        dtype = AMP_DTYPES[self.config.amp]
        return torch.autocast(self.device.type, dtype, enabled=dtype is not None)

    def loader_spec(self, split: Split, *, training: bool) -> LoaderSpec:
        """What a loader of this process over a split is to do."""
        config, world = self.config, self.world
        sides = [self.resolution, *config.training_sides.values()] if training else [self.validation_resolution]
        return LoaderSpec(
            split=split,
            batch_size=config.batch_size,
            crop=self._crop_policy(training),
            seed=config.seed,
            rank=world.rank,
            world_size=world.size,
            repeats=config.aug_repeats if training else 1,
            workers=loading_processes(config, world.local_size),
            max_resolution=max(sides),
            device=self.device,
            channels_last=self.channels_last,
            decoder=config.decoder,
        )

    def _crop_policy(self, training: bool) -> CropPolicy:
        val_resize, val_crop = self.card.eval_resize, self.card.resolution  # a proportion, scaled to other sides
        if self.config.val_resize is not None:
            val_resize, val_crop = self.config.val_resize, self.validation_resolution
        config = self.config
        return CropPolicy(
            training=training,
            area=config.scale,
            ratio=config.ratio,
            flip_probability=config.hflip,
            val_resize=val_resize,
            val_crop=val_crop,
            interpolation=self.interpolation,
        )

    @property
    def interpolation(self) -> Interpolation:
        """Of the resize, in training and in evaluation."""
        return self.config.interpolation or "bilinear"

    @contextlib.contextmanager
    def open_loader(self, loader_name: str, split: Split, *, training: bool) -> Iterator[SplitLoader]:
        """A loader over a split, closed at the end of the block. Open it before joining a process group: loaders
        fork, and the group has threads.

        Raises InputError where an epoch of training has less than one whole global batch.
        """
        with contextlib.ExitStack() as opened:
            with stop_signals_blocked():  # one that came meanwhile may raise at the end of this block
                loader = loaders.create(loader_name, self.loader_spec(split, training=training))
                opened.enter_context(contextlib.closing(loader))
            if training and loader.batches_per_epoch < self.config.accumulate:
                raise batch_too_large(self.config, self.global_batch, split)
            yield SplitLoader(split, loader)
