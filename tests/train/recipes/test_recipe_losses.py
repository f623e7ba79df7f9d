"""The loss of a recipe next to the loss code of its source, for the same batch."""

from collections.abc import Callable

import pytest
import torch
from timm.data.mixup import mixup_target
from timm.loss import BinaryCrossEntropy, SoftTargetCrossEntropy
from torch import Tensor, nn
from torch.nn import functional

from train.config import TrainConfig
from train.losses import build_criterion, distillation_loss
from train.recipes import RECIPES

CLASSES, SHARE = 10, 0.7
LABELS = torch.tensor([3, 1, 4, 1, 5, 9, 2, 6])


def logits(seed: int = 0) -> Tensor:
    return torch.randn(len(LABELS), CLASSES, generator=torch.Generator().manual_seed(seed)) * 3


def mixed(label_smoothing: float = 0.0) -> Tensor:
    """As timm's Mixup makes targets: of each image and the one at the other end of the batch."""
    targets: Tensor = mixup_target(LABELS, CLASSES, lam=SHARE, smoothing=label_smoothing)
    return targets


def torchvision_loss(values: Tensor) -> Tensor:
    loss: Tensor = nn.CrossEntropyLoss(label_smoothing=0.1)(values, mixed())
    return loss


def timm_loss(smoothing: float) -> Callable[[Tensor], Tensor]:
    """Of timm's train.py with --bce-loss: the smoothing is done where targets are mixed."""
    criterion = BinaryCrossEntropy(smoothing=smoothing, target_threshold=0.2)
    return lambda values: criterion(values, mixed(smoothing))


SOURCES: dict[str, Callable[[Tensor], Tensor]] = {
    "torchvision-v2": torchvision_loss,
    "timm-a1": timm_loss(0.1),
    "timm-a2": timm_loss(0.0),
    "timm-a3": timm_loss(0.0),
    "deit-s": lambda values: SoftTargetCrossEntropy()(values, mixed(0.1)),
    "convnext-t": lambda values: SoftTargetCrossEntropy()(values, mixed(0.1)),
}


@pytest.mark.parametrize("name", SOURCES)
def test_losses_of_mixed_images_are_those_of_the_source(name: str) -> None:
    loss = build_criterion(RECIPES[name](), torch.device("cpu"))(logits(), mixed())
    torch.testing.assert_close(loss, SOURCES[name](logits()), rtol=1e-6, atol=1e-7)


def test_losses_of_labels_are_those_of_the_source() -> None:
    for name, smoothing in (("torchvision-v1", 0.0), ("ffcv-rn50-16", 0.1)):
        loss = build_criterion(RECIPES[name](), torch.device("cpu"))(logits(), LABELS)
        assert torch.equal(loss, nn.CrossEntropyLoss(label_smoothing=smoothing)(logits(), LABELS))


@pytest.mark.parametrize(
    "options",
    [{}, {"target_threshold": 0.3}, {"sum_classes": True}, {"pos_weight": 2.0}, {"target_threshold": 0.0}],
    ids=str,
)
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_binary_cross_entropy_is_timms(options: dict[str, float], smoothing: float) -> None:
    config = TrainConfig(
        bce_loss=True,
        label_smoothing=smoothing,
        bce_target_thresh=options.get("target_threshold"),
        bce_sum=bool(options.get("sum_classes")),
        bce_pos_weight=options.get("pos_weight"),
    )
    ours, theirs = build_criterion(config, torch.device("cpu")), BinaryCrossEntropy(smoothing=smoothing, **options)
    assert torch.equal(ours(logits(), LABELS), theirs(logits(), LABELS))
    torch.testing.assert_close(ours(logits(), mixed()), theirs(logits(), mixed(smoothing)), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("tau", [1.0, 3.0])
def test_soft_distillation_is_the_divergence_of_deit(tau: float) -> None:
    """Written out: the sum of p (log p - log q) over images and classes, over their number, times tau squared."""
    config = TrainConfig(distillation="soft", distillation_tau=tau)
    p, q = (functional.softmax(logits(seed) / tau, dim=1) for seed in (1, 0))
    expected = (p * (p.log() - q.log())).sum() / p.numel() * tau * tau
    torch.testing.assert_close(distillation_loss(config, logits(0), logits(1)), expected)


def test_hard_distillation_learns_the_teachers_class() -> None:
    classes = torch.tensor([row.tolist().index(max(row.tolist())) for row in logits(1)])
    expected = functional.cross_entropy(logits(0), classes)
    assert torch.equal(distillation_loss(TrainConfig(), logits(0), logits(1)), expected)
