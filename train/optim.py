"""Optimiser and schedule."""

import math

from torch import nn
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import LambdaLR

import models
from train.config import TrainConfig


def learning_rate(config: TrainConfig, global_batch: int) -> float:
    """--lr, or the model's own rate for 256 images scaled linearly to the global batch (Goyal et al.,
    "Accurate, large minibatch SGD", arXiv:1706.02677)."""
    if config.lr is not None:
        return config.lr
    return models.card(config.model).lr_per_256 * global_batch / 256


def build_optimizer(config: TrainConfig, model: nn.Module, global_batch: int) -> Optimizer:
    """SGD with momentum and weight decay on all parameters."""
    return SGD(
        model.parameters(),
        lr=learning_rate(config, global_batch),
        momentum=config.momentum,
        nesterov=config.nesterov,
        weight_decay=config.weight_decay,
    )


def apply_settings(config: TrainConfig, optimizer: Optimizer, scheduler: LambdaLR, global_batch: int) -> None:
    """Make this run's settings hold again after states of another run were loaded, from the next step on."""
    rate = learning_rate(config, global_batch)
    scheduler.base_lrs = [rate] * len(optimizer.param_groups)
    for group, factor in zip(optimizer.param_groups, scheduler.lr_lambdas, strict=True):
        group.update(
            initial_lr=rate,
            lr=rate * factor(scheduler.last_epoch),
            momentum=config.momentum,
            nesterov=config.nesterov,
            weight_decay=config.weight_decay,
        )


def build_scheduler(config: TrainConfig, optimizer: Optimizer, steps_per_epoch: int) -> LambdaLR:
    """Linear warm-up, then cosine to zero; it steps with the optimiser.

    The rate is a function of the step alone, so a run that is resumed with more --epochs follows the longer
    cosine from there on.
    """
    total = config.epochs * steps_per_epoch
    warmup = min(round(config.warmup_epochs * steps_per_epoch), total // 2)

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / (warmup + 1)
        return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warmup) / max(1, total - warmup))))

    return LambdaLR(optimizer, factor)
