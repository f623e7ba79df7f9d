"""A training step: augmentation, mixing, forward, backward, accumulation, update."""

import contextlib
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import models
from pipeline.contract import Batch
from pipeline.order.plan import RankPlan
from train import averaging, losses, optim, schedule
from train.network import TrainedModel
from train.preparation import Preparation
from train.process import Process


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

    def move_to(self, epoch: int, batch: int, step: int) -> None:
        """Continue elsewhere: where a checkpoint was saved."""
        self.epoch, self.batch, self.step = epoch, batch, step


class StepResult(NamedTuple):
    """What a forward and backward pass over a batch gave; on the device, without gradients."""

    logits: Tensor
    """[B, classes] of the main head, in the precision of --amp."""
    targets: Tensor
    """The labels, int64 [B]; of images that were mixed, their probabilities, float32 [B, classes]."""
    objective: Tensor
    """What is minimised, a float32 scalar: with label smoothing and auxiliary heads."""


class TrainingStep:
    """Trains a model on one batch after another, and advances `position` with each update.

    Constructing it is a collective call.
    """

    def __init__(
        self, process: Process, model: TrainedModel, plan: RankPlan, steps_per_epoch: int, position: Position
    ) -> None:
        config = process.config
        self.process, self.model = process, model
        self.steps_per_epoch, self.position = steps_per_epoch, position
        self.optimizer = optim.build_optimizer(config, model.classifier, process.global_batch)
        self.scheduler = schedule.build_scheduler(config, self.optimizer, steps_per_epoch)
        self.scaler = optim.build_scaler(config, process.device)
        self._criterion = losses.build_criterion(config, process.device)
        self._prepare = Preparation(process, plan, model.num_classes)
        self._accumulated = 0
        self.learning_rate = self._group_rate()
        """What the last optimiser step used; before the first, what it will use."""
        if isinstance(model.parallel, DistributedDataParallel):
            self._settle_buckets()

    @property
    def mixes(self) -> bool:
        """Whether images are mixed, by Mixup or CutMix."""
        return self._prepare.mixes

    @property
    def is_between_steps(self) -> bool:
        """Whether no batch of an accumulated step has been seen yet, so that the model is that of `position`."""
        return self._accumulated == 0

    def __call__(self, batch: Batch) -> StepResult:
        """Forward and backward; after --accumulate batches, of which `batch` may be several, update. Nothing waits for
        the device."""
        accumulate, count = self.process.config.accumulate, self.process.batches_in(batch)
        passes = accumulate // count
        place = self.position.epoch, self._batch_number
        self._prepare.seed(*place)
        batch = self._prepare.augmented(batch, *place)
        self._accumulated += count
        is_last = self._accumulated == accumulate
        with contextlib.nullcontext() if is_last else self._no_sync():
            result = self._forward(batch)
            loss = result.objective
            self.scaler.scale(loss / passes if passes > 1 else loss).backward()
        if is_last:
            self._update()
            self._accumulated = 0
        return StepResult(*(tensor.detach() for tensor in result))

    def _group_rate(self) -> float:
        return float(max(group["lr"] for group in self.optimizer.param_groups))  # --layer-decay lowers those of others

    @property
    def _batch_number(self) -> int:
        """Of the batch at hand, in the epoch."""
        return self.position.batch * self.process.config.accumulate + self._accumulated

    def _no_sync(self) -> contextlib.AbstractContextManager[None]:
        """Gradients stay in this process, to be added to those of the next batch."""
        parallel = self.model.parallel
        return parallel.no_sync() if isinstance(parallel, DistributedDataParallel) else contextlib.nullcontext()

    def _forward(self, batch: Batch) -> StepResult:
        images, targets = self._prepare.mixed(batch)
        with self.process.autocast():
            outputs = self.model.parallel(images)
        logits, *others = outputs if isinstance(outputs, tuple) else (outputs,)
        # In float32, whatever the device's autocast does.
        loss = self._criterion(logits.float(), targets)
        if self.model.teacher is not None:
            return StepResult(logits, targets, self._distilled(loss, images, others[0] if others else logits))
        for head in others:
            loss = loss + models.AUXILIARY_LOSS_WEIGHT * self._criterion(head.float(), targets)
        return StepResult(logits, targets, loss)

    def _distilled(self, loss: Tensor, images: Tensor, logits: Tensor) -> Tensor:
        """The loss with that of the distillation: `logits` are of the head that learns from the teacher."""
        config, teacher = self.process.config, self.model.teacher
        assert teacher is not None
        with torch.no_grad(), self.process.autocast():
            teacher_logits = teacher(images)
        distillation = losses.distillation_loss(config, logits.float(), teacher_logits.float())
        return loss * (1 - config.distillation_alpha) + distillation * config.distillation_alpha

    def _update(self) -> None:
        """The optimiser step, in the order of torchvision's and timm's loops: DistributedDataParallel has averaged the
        gradients in the backward pass; then unscale, clip, step, update the loss scale, average the weights."""
        config = self.process.config
        if config.clip_grad_norm is not None:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.model.classifier.parameters(), config.clip_grad_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update(config.fixed_loss_scale)
        optim.clear_gradients(self.optimizer)
        self.learning_rate = self._group_rate()
        self.scheduler.step()
        if self.model.ema is not None and self.position.batch % config.model_ema_steps == 0:
            step, global_batch = self.position.step + 1, self.process.global_batch
            self.model.ema.update(averaging.ema_decay(config, step, self.steps_per_epoch, global_batch))
        self.position.advance(self.steps_per_epoch)

    def _settle_buckets(self) -> None:
        """A backward pass whose gradients are thrown away.

        After its first backward pass, DDP assigns gradients to buckets again, in the order in which they arrived. A
        gradient's place in a bucket decides in which order the values of three or more ranks are added, and so how
        they are rounded: a resumed run would differ from an uninterrupted one.
        """
        process, classifier = self.process, self.model.classifier
        buffers = [buffer.clone() for buffer in classifier.buffers()]
        size, side = process.config.batch_size, process.training_resolution(self.position.epoch)
        images = torch.zeros(size, side, side, 3, dtype=torch.uint8, device=process.device).permute(0, 3, 1, 2)
        labels = torch.zeros(size, dtype=torch.int64, device=process.device)
        layout = torch.channels_last if process.channels_last else torch.contiguous_format
        self._forward(Batch(images.contiguous(memory_format=layout), labels, labels)).objective.backward()
        optim.clear_gradients(self.optimizer)
        for buffer, value in zip(classifier.buffers(), buffers, strict=True):
            buffer.copy_(value)
