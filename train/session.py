"""What a training process holds: its loaders, its model, the training step, the position, and a checkpoint of them."""

import itertools
import logging
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch

from pipeline.contract import Batch
from pipeline.errors import InputError
from pipeline.order.plan import positions
from train import checkpoint, optim
from train.checkpoint import Checkpoint
from train.early_stopping import EarlyStopping
from train.evaluation import Watch, evaluate_model
from train.network import TrainedModel, describe
from train.preparation import joined
from train.process import Process, SplitLoader
from train.step import Position, TrainingStep

log = logging.getLogger(__name__)

_MOST_VALUES = 1 << 22  # in the training state: a model has thousands of parameters, each a few values and tensors


class Session:
    """One process in training. Constructing it is a collective call; the loaders are opened before, by
    `Process.open_loader`, and the model is built before, by `build_model`."""

    def __init__(
        self, process: Process, model: TrainedModel, training: SplitLoader, validation: SplitLoader | None = None
    ) -> None:
        self.process, self.model, self.training, self.validation = process, model, training, validation
        self.config, self.world, self.device = process.config, process.world, process.device
        self.resolution = process.resolution
        self.position = Position()
        whole_epoch = training.loader.batches_per_epoch // self.config.accumulate
        self.steps_per_epoch = min(whole_epoch, self.config.steps_per_epoch or whole_epoch)
        self._plan = process.loader_spec(training.split, training=True).plan
        self.early_stopping = EarlyStopping(self.config)
        self.train_step = TrainingStep(process, model, self._plan, self.steps_per_epoch, self.position)

    @property
    def num_samples(self) -> int:
        """Training images of the dataset."""
        return self.training.split.num_samples

    def training_batches(self) -> Iterator[Batch]:
        """The rest of the current epoch: whole global batches, joined where several go through the model at once."""
        epoch, done, accumulate = self.position.epoch, self.position.batch, self.config.accumulate
        batches = self.training.loader.epoch(epoch, self.process.training_resolution(epoch), done * accumulate)
        batches = itertools.islice(batches, (self.steps_per_epoch - done) * accumulate)
        count = self.process.batches_at_once(epoch)
        return joined(batches, count) if count > 1 else batches

    def batch_indices(self, epoch: int, batch: int) -> list[int]:
        """The dataset positions of this rank's batch number `batch` in an epoch, and of those that are joined to
        it."""
        batches = itertools.islice(self._plan.batches(epoch, batch), self.process.batches_at_once(epoch))
        indices: list[int] = positions(np.concatenate(list(batches))).tolist()
        return indices

    def evaluate(self, watch: Watch = iter) -> dict[str, float]:
        """`evaluate_model` of the model in training. A collective call."""
        assert self.validation is not None
        return evaluate_model(self.process, self.model, self.validation, watch)

    def weights_are_finite(self) -> bool:
        """Whether all weights and BatchNorm statistics are finite numbers. Waits for the device."""
        tensors = [*self.model.classifier.parameters(), *self.model.classifier.buffers()]
        finite = [tensor.detach().isfinite().all() for tensor in tensors if tensor.is_floating_point()]
        return bool(torch.stack(finite).all())

    def state(self) -> Checkpoint:
        """Everything a checkpoint holds; rank 0's is that of the run."""
        step, ema = self.train_step, self.model.ema
        position = asdict(self.position) | {
            "global_batch": self.process.global_batch,
            "samples": self.num_samples,
            "order_version": self.order_version,
        }
        return {
            "model": self.model.classifier.network.state_dict(),
            "optimizer": step.optimizer.state_dict(),
            "scheduler": step.scheduler.state_dict(),
            "scaler": step.scaler.state_dict(),
            "early_stopping": self.early_stopping.state_dict(),
            "ema": ema.model.network.state_dict() if ema else None,
            "rng": {"seed": self.config.seed},  # with the position, all that randomness.seed_step needs
            "position": position,
            "config": self.config.as_dict(),
            "description": asdict(describe(self.process, self.training.split.classes)),
        }

    def load_state(self, state: Checkpoint, path: Path) -> None:
        """Continue from what `state` returned. Raises InputError where the position would mean other samples, where
        the classes are others, or where a part is missing or does not fit."""
        self._check_classes(state, path)
        checkpoint.load_weights(self.model.classifier.network, state["model"], self.config.model, path)
        try:
            self._load_position(state, path)
            self._load_optimization(state)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            if isinstance(error, InputError):
                raise
            raise checkpoint.without_training_state(path, error) from None

    def _check_classes(self, state: Checkpoint, path: Path) -> None:
        before, now = checkpoint.class_names(state), self.training.split.classes
        if before is None or before == list(now):
            return
        if len(before) != len(now):
            raise InputError(f"--resume {path}: its dataset has {len(before)} classes, not {len(now)}")
        number = next(number for number, name in enumerate(now) if name != before[number])
        raise InputError(f"--resume {path}: class {number} of its dataset is {before[number]}, not {now[number]}")

    def _load_position(self, state: Checkpoint, path: Path) -> None:
        position = {name: int(value) for name, value in state["position"].items()}
        if (samples := position.pop("samples")) != self.num_samples:
            raise InputError(f"--resume {path}: its dataset has {samples} training images, not {self.num_samples}")
        if position["batch"] >= self.steps_per_epoch:
            raise InputError(
                f"--steps-per-epoch {self.config.steps_per_epoch}: --resume {path} is at step {position['batch']} of "
                f"its epoch; give more than that"
            )
        assert position.pop("global_batch") == self.process.global_batch
        order_version = position.pop("order_version", 1)  # checkpoints older than this field have the first
        self.position.move_to(**position)
        if order_version != self.order_version and self.world.is_main:
            self._warn_of_other_order(path, order_version)

    def _warn_of_other_order(self, path: Path, stored_version: int) -> None:
        rest = ": the rest of this epoch repeats some images and leaves out others" if self.position.batch else ""
        log.warning(
            f"{path} was trained with version {stored_version} of the order of samples, the run resumes with version "
            f"{self.order_version}{rest}"
        )

    @property
    def order_version(self) -> int:
        """The version of the order in which the training loader visits the samples."""
        return self._plan.VERSION

    def _load_optimization(self, state: Checkpoint) -> None:
        step, ema = self.train_step, self.model.ema
        parts = [state.get(name) for name in ("optimizer", "scheduler", "scaler", "early_stopping", "ema")]
        checkpoint.check_size(parts, _MOST_VALUES)
        optim.load_states(step.optimizer, step.scheduler, state["optimizer"], state["scheduler"])
        if step.scaler.is_enabled() and state["scaler"] and self.config.fixed_loss_scale is None:
            step.scaler.load_state_dict(state["scaler"])
        if "early_stopping" in state:  # older checkpoints have none
            self.early_stopping.load_state_dict(state["early_stopping"])
        if ema is not None:
            ema.model.network.load_state_dict(state["ema"] or state["model"])
