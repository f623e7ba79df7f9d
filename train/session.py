"""What a training process holds: its loaders, the model and what optimises it, and where in the run it is."""

import contextlib
import logging
import os
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import models
from models import pretrained
from pipeline import loaders
from pipeline.contract import Batch, CropPolicy, Loader, LoaderSpec
from pipeline.dataset import Split, SplitInfo, open_split, split_names
from pipeline.errors import InputError
from pipeline.formats.remote import is_remote
from train import optim
from train.config import TrainConfig
from train.device import AMP_DTYPES, DEVICE_TYPES
from train.launch import World
from train.metrics import Totals

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
    """Where a run is: `batch` batches of epoch `epoch` are done, `step` optimiser steps in all."""

    epoch: int = 0
    batch: int = 0
    step: int = 0


class Session:
    """One process of a run. Use as a context manager: leaving it closes the loaders."""

    model: nn.Module
    """uint8 images to logits, as the training step calls it (wrapped for several processes)."""
    plain_model: models.Classifier
    """The same without the wrapper, for evaluation."""
    training: Loader
    validation: Loader | None = None
    validation_samples: int

    def __init__(self, config: TrainConfig, world: World, device: torch.device) -> None:
        self.config, self.world, self.device = config, world, device
        self.card = models.card(config.model)
        self.resolution = config.resolution or self.card.resolution
        self.channels_last = config.channels_last and DEVICE_TYPES[device.type].channels_last
        self.global_batch = config.batch_size * world.size
        self.position = Position()
        self._open = contextlib.ExitStack()

    def __enter__(self) -> "Session":
        return self

    def __exit__(self, *exception: object) -> None:
        self._open.close()

    # Building

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
            device=self.device,
            channels_last=self.channels_last,
        )

    def open_loader(self, loader_name: str, split: Split, training: bool) -> Loader:
        """A loader of this rank over a split; it is closed with the session."""
        loader = loaders.create(loader_name, self.loader_spec(split, training))
        self._open.callback(loader.close)
        return loader

    def build_model(self, data_classes: int) -> None:
        """Fresh or --pretrained weights, the same on every rank, on the device."""
        config = self.config
        num_classes = config.num_classes or data_classes
        if num_classes < data_classes:
            raise InputError(f"--num-classes {num_classes}: {config.data} has {data_classes} classes")
        torch.manual_seed(config.seed)
        self.plain_model = models.create(config.model, num_classes, config.model_options)
        if config.pretrained:
            self._load_pretrained(config.pretrained, num_classes)
        self.plain_model.to(self.device)
        if self.channels_last:
            self.plain_model.to(memory_format=torch.channels_last)
        self.model = self._wrapped() if self.world.size > 1 and not config.evaluate else self.plain_model
        if config.compile:  # the inner model, which evaluation calls without the wrapper
            self.plain_model.compile()
        torch.manual_seed(config.seed + self.world.rank)  # dropout differs between ranks

    def _load_pretrained(self, path: Path, num_classes: int) -> None:
        new_head, background_class = self.config.num_classes is not None, self.card.background_class
        network = self.plain_model.network
        try:
            left = pretrained.load(network, path, num_classes, new_head=new_head, background_class=background_class)
        except pretrained.PretrainedError as error:
            raise InputError(f"--pretrained {error}") from None
        if left and self.world.is_main:
            log.info("--pretrained %s: another number of classes; %s start anew", path, ", ".join(left))

    def _wrapped(self) -> nn.Module:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # torch 2.15 renames the argument
            # BatchNorm statistics are sent from rank 0 when they are used, not at every step.
            return DistributedDataParallel(self.plain_model, broadcast_buffers=False)

    def build_training(self, loader_name: str, split: Split) -> None:
        """The training loader, the model and what optimises it."""
        config = self.config
        self.training = self.open_loader(loader_name, split, training=True)
        self.num_samples = split.num_samples
        if self.training.batches_per_epoch == 0:
            raise batch_too_large(config, self.global_batch, split)
        self.build_model(len(split.classes))
        self.optimizer = optim.build_optimizer(config, self.plain_model, self.global_batch)
        self.scheduler = optim.build_scheduler(config, self.optimizer, self.training.batches_per_epoch)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=config.amp == "fp16")
        self.criterion = nn.CrossEntropyLoss(label_smoothing=config.label_smoothing)

    # Working

    def train_step(self, batch: Batch) -> Tensor:
        """Forward, backward, update. Returns the logits [B, classes]; nothing waits for the device."""
        with self._autocast():
            outputs = self.model(batch.images)
            logits, *auxiliary = outputs if isinstance(outputs, tuple) else (outputs,)
            loss = self.criterion(logits, batch.labels)
            for other in auxiliary:
                loss = loss + models.AUXILIARY_LOSS_WEIGHT * self.criterion(other, batch.labels)
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        self.scheduler.step()
        return logits

    def evaluate(self) -> dict[str, float]:
        """Every validation image exactly once over all ranks. Returns `Totals.result()`."""
        assert self.validation is not None
        self._broadcast_buffers()
        self.plain_model.eval()
        totals = Totals(self.device)
        with torch.inference_mode(), self._autocast():
            for batch in self.validation.epoch(0, self.resolution):
                totals.add(self.plain_model(batch.images), batch.labels)
        self.plain_model.train()
        result = totals.result()
        assert result["images"] == self.validation_samples, "an evaluation counts every image exactly once"
        return result

    def _autocast(self) -> torch.autocast:
        dtype = AMP_DTYPES[self.config.amp]
        return torch.autocast(self.device.type, dtype, enabled=dtype is not None)

    def _broadcast_buffers(self) -> None:
        """Rank 0's BatchNorm statistics to all, so that there is one model."""
        if self.world.size > 1:
            for buffer in self.plain_model.network.buffers():
                dist.broadcast(buffer, 0)

    # State

    def state(self) -> dict[str, Any]:
        """Everything a checkpoint holds. A collective call: the random state of every rank goes in."""
        self._broadcast_buffers()
        random_states: list[Any] = [self._random_state()]
        if self.world.size > 1:
            random_states = [None] * self.world.size
            dist.all_gather_object(random_states, self._random_state())
        return {
            "model": self.plain_model.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "scaler": self.scaler.state_dict(),
            "ema": None,
            "rng": random_states,
            "position": asdict(self.position) | {"global_batch": self.global_batch, "samples": self.num_samples},
            "config": self.config.as_dict(),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from what `state` returned; the weights are loaded already.

        Raises InputError where the position would mean other samples, KeyError or ValueError where a part is
        missing or does not fit.
        """
        position = dict(state["position"])
        if (stored := position.pop("global_batch")) != self.global_batch:
            per_process = stored / self.world.size
            raise InputError(
                f"its global batch is {stored}, not {self.global_batch}; give --batch-size {per_process:g}"
            )
        if (samples := position.pop("samples")) != self.num_samples:
            raise InputError(f"its dataset has {samples} training images, not {self.num_samples}")
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        self.scaler.load_state_dict(state["scaler"])
        self.position = Position(**position)
        optim.apply_settings(self.config, self.optimizer, self.scheduler, self.global_batch)
        if len(state["rng"]) == self.world.size:
            self._set_random_state(state["rng"][self.world.rank])

    def _random_state(self) -> dict[str, Tensor]:
        state = {"cpu": torch.get_rng_state()}
        if self.device.type != "cpu":
            state["device"] = torch.get_device_module(self.device).get_rng_state(self.device)
        return state

    def _set_random_state(self, state: dict[str, Tensor]) -> None:
        torch.set_rng_state(state["cpu"])
        if self.device.type != "cpu" and "device" in state:
            torch.get_device_module(self.device).set_rng_state(state["device"], self.device)
