"""The schedule and the learning rate."""

import pytest
import torch

from train.config import TrainConfig
from train.optim import build_optimizer, build_scheduler, learning_rate


def rates(config: TrainConfig, steps_per_epoch: int) -> list[float]:
    optimizer = build_optimizer(config, torch.nn.Linear(2, 2), config.batch_size)
    scheduler = build_scheduler(config, optimizer, steps_per_epoch)
    seen = []
    for _ in range(config.epochs * steps_per_epoch):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return seen


def test_warm_up_rises_and_cosine_falls_to_zero() -> None:
    seen = rates(TrainConfig(epochs=10, warmup_epochs=2, lr=1.0), steps_per_epoch=10)
    assert seen[:20] == sorted(seen[:20])
    assert seen[20] == max(seen) == 1.0
    assert seen[20:] == sorted(seen[20:], reverse=True)
    assert seen[60] == pytest.approx(0.5)
    assert seen[-1] < 0.001


def test_warm_up_is_at_most_half_of_a_short_run() -> None:
    seen = rates(TrainConfig(epochs=1, warmup_epochs=5, lr=1.0), steps_per_epoch=8)
    assert seen.index(max(seen)) == 4


def test_the_rate_scales_with_the_global_batch() -> None:
    assert learning_rate(TrainConfig(model="alexnet"), 1024) == pytest.approx(0.04)
    assert learning_rate(TrainConfig(model="torchvision/resnet18"), 256) == pytest.approx(0.1)
    assert learning_rate(TrainConfig(lr=0.3), 999) == 0.3
