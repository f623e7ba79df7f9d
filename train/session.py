"""What a training process holds: its loaders, the model and what optimises it, and where in the run it is."""

import contextlib
import itertools
import logging
import os
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

import models
from models import pretrained
from pipeline import loaders
from pipeline.contract import Batch, CropPolicy, Loader, LoaderSpec
from pipeline.dataset import Split, SplitInfo, open_split, split_names
from pipeline.errors import InputError
from pipeline.formats.remote import is_remote
from train import checkpoint, optim, randomness
from train.config import TrainConfig
from train.device import AMP_DTYPES, DEVICE_TYPES
from train.metrics import Totals
from train.stopping import shielded
from train.world import World

log = logging.getLogger(__name__)

IMAGENET_SAMPLES = {"train": 1_281_167, "val": 50_000}
IMAGENET_CLASSES = 1000


def open_data(config: TrainConfig, name: str) -> Split:
    """A split of --data. The synthetic loader reads nothing, so without --data it stands for ImageNet."""
    if _stands_for_imagenet(config):
        info = SplitInfo(samples=IMAGENET_SAMPLES[name], bytes=0, image_mode="synthetic")
        return Split(name, Path(config.data), tuple(map(str, range(IMAGENET_CLASSES))), info)
    return open_split(config.data, name)


def has_validation(config: TrainConfig) -> bool:
    """Whether --data has a validation split, sound or not."""
    return _stands_for_imagenet(config) or "val" in split_names(config.data)


def _stands_for_imagenet(config: TrainConfig) -> bool:
    return config.loader == "synthetic" and not is_remote(config.data) and not Path(config.data).exists()


def batch_too_large(config: TrainConfig, global_batch: int, split: Split) -> InputError:
    """What is wrong where an epoch has not one whole global batch."""
    return InputError(
        f"--batch-size {config.batch_size}: the global batch of {global_batch} is larger than the "
        f"{split.num_samples} training images of {config.data}"
    )


@dataclass
class Position:
    """Where a run is: `batch` global batches of epoch `epoch` are done, `step` optimiser steps in all."""

    epoch: int = 0
    batch: int = 0
    step: int = 0

    def advance(self, steps_per_epoch: int) -> None:
        """Count a step."""
        self.step += 1
        self.batch += 1
        if self.batch == steps_per_epoch:
            self.epoch, self.batch = self.epoch + 1, 0


class Session:
    """One process of a run. Use as a context manager: leaving it closes the loaders."""

    model: nn.Module
    """uint8 images to logits, as the training step calls it (wrapped for several processes)."""
    plain_model: models.Classifier
    """The same without the wrapper, for evaluation."""
    training: Loader
    validation: Loader | None = None
    validation_samples: int
    steps_per_epoch: int
    ema: optim.Ema | None = None

    def __init__(self, config: TrainConfig, world: World, device: torch.device) -> None:
        self.config, self.world, self.device = config, world, device
        self.card = models.card(config.model)
        self.resolution = config.resolution or self.card.resolution
        self.channels_last = config.channels_last and DEVICE_TYPES[device.type].channels_last
        self.global_batch = config.batch_size * world.size * config.accumulate
        self.position = Position()
        self._batches = 0  # since the last step
        self._open = contextlib.ExitStack()

    def __enter__(self) -> "Session":
        return self

    def __exit__(self, *exception: object) -> None:
        self._open.close()

    # Building

    def open_loader(self, loader_name: str, split: Split, training: bool) -> Loader:
        """A loader of this rank over a split; it is closed with the session."""
        with shielded():
            loader = loaders.create(loader_name, self.loader_spec(split, training))
        self._open.callback(loader.close)
        return loader

    def loader_spec(self, split: Split, training: bool) -> LoaderSpec:
        """What a loader of this rank over a split is told."""
        config, world = self.config, self.world
        cores = len(os.sched_getaffinity(0))
        return LoaderSpec(
            split=split,
            batch_size=config.batch_size,
            crop=CropPolicy(training=training, center_share=self.card.resolution / self.card.eval_resize),
            seed=config.seed,
            rank=world.rank,
            world_size=world.size,
            workers=max(1, cores // world.local_size) if config.workers is None else config.workers,
            max_resolution=max([self.resolution, *config.training_sides.values()]),
            device=self.device,
            channels_last=self.channels_last,
        )

    def build_model(self, data_classes: int) -> None:
        """Fresh or --pretrained weights, the same on every rank, on the device."""
        config = self.config
        self.num_classes = config.num_classes or data_classes
        if self.num_classes < data_classes:
            raise InputError(f"--num-classes {self.num_classes}: {config.data} has {data_classes} classes")
        torch.manual_seed(config.seed)
        self.plain_model = models.create(config.model, self.num_classes, config.model_options)
        if config.pretrained:
            self._load_pretrained("--pretrained", config.pretrained, new_head=config.num_classes is not None)
        if config.finetune:
            self._load_pretrained("--finetune", config.finetune, new_head=True)
        if config.sync_bn:
            self.plain_model = nn.SyncBatchNorm.convert_sync_batchnorm(self.plain_model)
        self.plain_model.to(self.device)
        if self.channels_last:
            self.plain_model.to(memory_format=torch.channels_last)
        if config.model_ema and not config.evaluate:
            self.ema = optim.Ema(self.plain_model, config.model_ema_decay)
        self.model = self._wrapped() if self.world.size > 1 and not config.evaluate else self.plain_model
        if config.compile:  # the inner model, which evaluation calls without the wrapper
            self.plain_model.compile()
            if self.ema is not None:
                self.ema.model.compile()

    def _load_pretrained(self, flag: str, path: Path, new_head: bool = False) -> None:
        network, background_class = self.plain_model.network, self.card.background_class
        try:
            left = pretrained.load(
                network, path, self.num_classes, new_head=new_head, background_class=background_class
            )
        except pretrained.PretrainedError as error:
            raise InputError(f"{flag} {error}") from None
        if left and self.world.is_main:
            log.info("%s %s: another number of classes; %s start anew", flag, path, ", ".join(left))

    def _wrapped(self) -> nn.Module:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # torch 2.15 renames the argument
            # BatchNorm statistics are sent from rank 0 when they are used, not at every step.
            return DistributedDataParallel(self.plain_model, broadcast_buffers=False)

    def open_training(self, loader_name: str, split: Split) -> None:
        """The training loader. Before the process group, as every loader."""
        self.training_split, self.training = split, self.open_loader(loader_name, split, training=True)
        self.steps_per_epoch = self.training.batches_per_epoch // self.config.accumulate
        if self.steps_per_epoch == 0:
            raise batch_too_large(self.config, self.global_batch, split)

    def open_validation(self, loader_name: str, split: Split) -> None:
        """The validation loader. Likewise."""
        self.validation = self.open_loader(loader_name, split, training=False)
        self.validation_samples = split.num_samples

    def build_training(self) -> None:
        """The model for what `open_training` opened, and what optimises it. A collective call."""
        config = self.config
        self.build_model(len(self.training_split.classes))
        self.optimizer = optim.build_optimizer(config, self.plain_model, self.global_batch)
        self.scheduler = optim.build_scheduler(config, self.optimizer, self.steps_per_epoch)
        self.scaler = optim.build_scaler(config, self.device)
        self.criterion = nn.CrossEntropyLoss(label_smoothing=config.label_smoothing)
        self.mix = randomness.build_mixing(config.mixup_alpha, config.cutmix_alpha, self.num_classes)
        if isinstance(self.model, DistributedDataParallel):
            self._settle_buckets()

    def _settle_buckets(self) -> None:
        """A backward pass whose gradients are thrown away.

        After its first, DDP sorts gradients into buckets anew, in the order in which they came. A gradient's place in
        a bucket decides in which order the values of three or more ranks are added up, and so how they are rounded:
        a run that is gone on with would differ from one that never stopped.
        """
        buffers = [buffer.clone() for buffer in self.plain_model.buffers()]
        size, side = self.config.batch_size, self.training_resolution
        images = torch.zeros(size, side, side, 3, dtype=torch.uint8, device=self.device).permute(0, 3, 1, 2)
        labels = torch.zeros(size, dtype=torch.int64, device=self.device)
        layout = torch.channels_last if self.channels_last else torch.contiguous_format
        _, loss = self._forward(Batch(images.contiguous(memory_format=layout), labels, labels))
        loss.backward()
        self.optimizer.zero_grad(set_to_none=True)
        for buffer, value in zip(self.plain_model.buffers(), buffers, strict=True):
            buffer.copy_(value)

    # Training

    @property
    def training_resolution(self) -> int:
        """Side of the training images in the present epoch."""
        sides = [side for epoch, side in self.config.training_sides.items() if epoch <= self.position.epoch]
        return sides[-1] if sides else self.resolution

    def training_batches(self) -> Iterator[Batch]:
        """The rest of the present epoch: whole global batches."""
        done, accumulate = self.position.batch, self.config.accumulate
        batches = self.training.epoch(self.position.epoch, self.training_resolution, done * accumulate)
        return itertools.islice(batches, (self.steps_per_epoch - done) * accumulate)

    def train_step(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Forward and backward; after --accumulate batches, update. Returns the logits [B, classes] and the loss.

        Nothing waits for the device.
        """
        accumulate = self.config.accumulate
        self._seed()
        self._batches += 1
        update = self._batches == accumulate
        with contextlib.nullcontext() if update else self._no_sync():
            logits, loss = self._forward(batch)
            self.scaler.scale(loss / accumulate if accumulate > 1 else loss).backward()
        if update:
            self._update()
            self._batches = 0
        return logits.detach(), loss.detach()

    def _seed(self) -> None:
        batch = self.position.batch * self.config.accumulate + self._batches
        randomness.seed_step(self.config.seed, self.position.epoch, batch, self.world.rank, self.device)

    def _no_sync(self) -> contextlib.AbstractContextManager[None]:
        """Gradients stay with their process, to be summed up with those of the next batch."""
        return self.model.no_sync() if isinstance(self.model, DistributedDataParallel) else contextlib.nullcontext()

    def _forward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        images, labels = self.mix(batch.images, batch.labels) if self.mix else (batch.images, batch.labels)
        with self._autocast():
            outputs = self.model(images)
        logits, *auxiliary = outputs if isinstance(outputs, tuple) else (outputs,)
        # In float32, by every device's autocast or none.
        loss = self.criterion(logits.float(), labels)
        for other in auxiliary:
            loss = loss + models.AUXILIARY_LOSS_WEIGHT * self.criterion(other.float(), labels)
        return logits, loss

    def _update(self) -> None:
        if self.config.clip_grad_norm is not None:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.plain_model.parameters(), self.config.clip_grad_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update(self.config.fixed_loss_scale)
        self.optimizer.zero_grad(set_to_none=True)
        self.scheduler.step()
        if self.ema is not None:
            self.ema.update()
        self.position.advance(self.steps_per_epoch)

    def batch_indices(self, epoch: int, batch: int) -> list[int]:
        """The dataset positions of this rank's batch number `batch` in an epoch."""
        plan = self.loader_spec(self.training_split, training=True).plan
        return next(plan.batches(epoch, batch)).tolist()

    def _autocast(self) -> torch.autocast:
        dtype = AMP_DTYPES[self.config.amp]
        return torch.autocast(self.device.type, dtype, enabled=dtype is not None)

    # Evaluation

    def evaluate(self, watch: Callable[[Iterator[Batch]], Iterator[Batch]] = iter) -> dict[str, float]:
        """Every validation image exactly once over all ranks; `watch` passes the batches on. Returns
        `Totals.result()`, that of the averaged weights where there are such; of the others then as `raw_...`."""
        result = self._evaluate(self.plain_model, watch)
        if self.ema is None:
            return result
        averaged = self._evaluate(self.ema.model, watch)
        return averaged | {f"raw_{name}": result[name] for name in ("loss", "top1", "top5")}

    def _evaluate(self, model: nn.Module, watch: Callable[[Iterator[Batch]], Iterator[Batch]]) -> dict[str, float]:
        assert self.validation is not None
        self._broadcast_buffers(model)
        was_training = model.training
        model.eval()
        totals = Totals(self.device)
        batches = self.validation.epoch(0, self.resolution)
        with torch.inference_mode(), self._autocast():
            for batch in watch(batches):
                logits = model(batch.images).float()
                totals.add(logits, batch.labels, functional.cross_entropy(logits, batch.labels))
        model.train(was_training)
        result = totals.result()
        assert result["images"] == self.validation_samples, "an evaluation counts every image exactly once"
        return result

    def _broadcast_buffers(self, model: nn.Module) -> None:
        """Rank 0's BatchNorm statistics to all, so that there is one model."""
        if self.world.size > 1:
            for buffer in model.buffers():
                dist.broadcast(buffer, 0)

    # State

    def state(self) -> dict[str, Any]:
        """Everything a checkpoint holds; rank 0's is that of the run."""
        return {
            "model": self.plain_model.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "scaler": self.scaler.state_dict(),
            "ema": self.ema.model.network.state_dict() if self.ema else None,
            "rng": {"seed": self.config.seed},  # with the position, all that randomness.seed_step needs
            "position": asdict(self.position) | {"global_batch": self.global_batch, "samples": self.num_samples},
            "config": self.config.as_dict(),
        }

    def weights_are_finite(self) -> bool:
        """Whether all weights and BatchNorm statistics are numbers. Waits for the device."""
        tensors = [*self.plain_model.parameters(), *self.plain_model.buffers()]
        finite = [tensor.detach().isfinite().all() for tensor in tensors if tensor.is_floating_point()]
        return bool(torch.stack(finite).all())

    def load_for_evaluation(self, state: dict[str, Any], path: Path) -> None:
        """The weights of a checkpoint, averaged where it has such, or of a published file. Raises InputError."""
        if "config" in state:
            weights = state.get("ema") or state["model"]
            checkpoint.load_weights(self.plain_model.network, weights, self.config.model, path)
        else:
            self._load_pretrained("--evaluate", path)

    def load_state(self, state: dict[str, Any], path: Path) -> None:
        """Go on from what `state` returned. Raises InputError where the position would mean other samples, or a part
        is missing or does not fit."""
        checkpoint.load_weights(self.plain_model.network, state["model"], self.config.model, path)
        try:
            position = {name: int(value) for name, value in state["position"].items()}
            if (samples := position.pop("samples")) != self.num_samples:
                raise InputError(f"--resume {path}: its dataset has {samples} training images, not {self.num_samples}")
            assert position.pop("global_batch") == self.global_batch
            self.position = Position(**position)
            optim.load_states(self.optimizer, self.scheduler, state["optimizer"], state["scheduler"])
            if self.scaler.is_enabled() and state["scaler"] and self.config.fixed_loss_scale is None:
                self.scaler.load_state_dict(state["scaler"])
            if self.ema is not None:
                self.ema.model.network.load_state_dict(state["ema"] or state["model"])
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(f"--resume {path}: holds no training state to go on from ({error!r})") from None

    @property
    def num_samples(self) -> int:
        """Training images of the dataset."""
        return self.training_split.num_samples
