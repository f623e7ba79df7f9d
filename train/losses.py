"""What is minimised: cross-entropy or binary cross-entropy, and the distillation of a teacher."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from train.config import TrainConfig

Criterion = Callable[[Tensor, Tensor], Tensor]
"""Logits float32 [B, classes] and targets, labels int64 [B] or probabilities float32 [B, classes], to a scalar."""


def build_criterion(config: TrainConfig, device: torch.device) -> Criterion:
    """Cross-entropy with --label-smoothing, or with --bce-loss timm's binary cross-entropy.

    PyTorch's cross-entropy smooths probabilities after they are mixed, timm's Mixup labels before: that is the same,
    because mixing is linear.
    """
    if not config.bce_loss:
        return nn.CrossEntropyLoss(label_smoothing=config.label_smoothing)
    from timm.loss import BinaryCrossEntropy  # here: the import takes 2 s, which other losses do not need

    smoothing = config.label_smoothing
    criterion = BinaryCrossEntropy(
        smoothing=smoothing,
        target_threshold=config.bce_target_thresh,
        sum_classes=config.bce_sum,
        pos_weight=config.bce_pos_weight,
    ).to(device)

    def binary(logits: Tensor, targets: Tensor) -> Tensor:
        if targets.is_floating_point():  # timm's loss expects that its Mixup has smoothed them
            targets = targets * (1 - smoothing) + smoothing / logits.shape[1]
        loss: Tensor = criterion(logits, targets)
        return loss

    return binary


def distillation_loss(config: TrainConfig, logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """How far logits are from a teacher's, float32 [B, classes] both, as in DeiT's losses.py (Touvron et al.,
    "Training data-efficient image transformers & distillation through attention", arXiv:2012.12877).

    --distillation hard: cross-entropy with the teacher's class. soft: the divergence of the probabilities at
    --distillation-tau, on average over images and classes, times the square of that temperature.
    """
    if config.distillation == "hard":
        return functional.cross_entropy(logits, teacher_logits.argmax(1))
    tau = config.distillation_tau
    students, teachers = (functional.log_softmax(values / tau, dim=1) for values in (logits, teacher_logits))
    # reduction="mean" will mean something else in PyTorch's next major release.
    return functional.kl_div(students, teachers, reduction="sum", log_target=True) / logits.numel() * tau**2
