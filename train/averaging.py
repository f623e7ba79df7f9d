"""Averaged weights."""

import copy
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

import models
from train.config import TrainConfig


def ema_decay(config: TrainConfig, step: int, steps_per_epoch: int, global_batch: int) -> float:
    """The share of itself that the average keeps after optimiser step `step` of the run, counted from 1. The first
    update copies.

    --model-ema-warmup "timm": 1 - step ** (-2/3), at most --model-ema-decay, as timm.utils.ModelEmaV3 with use_warmup
    and the step that timm's train.py passes. "torch": always --model-ema-decay, as
    torch.optim.swa_utils.AveragedModel with get_ema_multi_avg_fn. "torchvision": as references/classification/train.py,
    which scales the decay so that it does not depend on the batch size, the steps between updates and the epochs, and
    copies the weights until the first update after the warm-up.
    """
    if step == 1:
        return 0.0
    if config.model_ema_warmup == "timm":
        return min(config.model_ema_decay, float(1 - step ** (-2 / 3)))
    if config.model_ema_warmup == "torch":
        return config.model_ema_decay
    if step - 1 <= config.warmup_epochs * steps_per_epoch:
        return 0.0
    adjusted = (1 - config.model_ema_decay) * global_batch * config.model_ema_steps / config.epochs
    return 1 - min(1.0, adjusted)


class Ema:
    """An exponential moving average of a classifier's weights and BatchNorm statistics.

    PyTorch's arithmetic without its AveragedModel, whose every update copies a counter to the device and waits for it.
    """

    def __init__(self, model: models.Classifier) -> None:
        self.model = copy.deepcopy(model).requires_grad_(False).eval()
        pairs = list(zip(_tensors(self.model), _tensors(model), strict=True))
        self._averaged = [pair for pair in pairs if pair[0].is_floating_point()]
        self._copied = [pair for pair in pairs if not pair[0].is_floating_point()]  # counts of batches

    @torch.no_grad()
    def update(self, decay: float) -> None:
        """Move towards the model's weights, keeping the share `decay`. Nothing waits for the device."""
        average_into = get_ema_multi_avg_fn(decay)
        averages, values = zip(*self._averaged, strict=True)
        average_into(averages, values, 0)
        for average, value in self._copied:
            average.copy_(value)


def _tensors(model: nn.Module) -> Iterable[Tensor]:
    return [*(parameter.detach() for parameter in model.parameters()), *model.buffers()]
