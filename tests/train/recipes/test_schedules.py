"""The learning rate of each step of a recipe next to the schedulers of its source."""

import math
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from timm.scheduler import create_scheduler_v2
from torch import nn
from torch.optim import SGD, Optimizer, lr_scheduler

from train.config import TrainConfig
from train.recipes import RECIPES
from train.schedule import build_scheduler

STEPS = 3
"""Of an epoch."""


def optimizer_at(rate: float) -> Optimizer:
    return SGD([nn.Parameter(torch.zeros(1))], lr=rate)


def rate_of(optimizer: Optimizer) -> float:
    return float(optimizer.param_groups[0]["lr"])


def peak(config: TrainConfig) -> float:
    """At the published global batch."""
    assert config.lr_base is not None
    return {"deit-s": 1e-3}.get(str(config.recipe), config.lr_base)


def ours(config: TrainConfig) -> list[float]:
    optimizer = optimizer_at(peak(config))
    scheduler = build_scheduler(config, optimizer, STEPS)
    used = []
    for _ in range(config.epochs * STEPS):
        used.append(rate_of(optimizer))
        optimizer.step()
        scheduler.step()
    return used


def torchvision_v1() -> Iterator[float]:
    optimizer = optimizer_at(0.1)
    scheduler = lr_scheduler.StepLR(optimizer, step_size=30, gamma=0.1)
    for _ in range(90):
        yield from STEPS * [rate_of(optimizer)]
        optimizer.step()
        scheduler.step()


def torchvision_v2() -> Iterator[float]:
    optimizer = optimizer_at(0.5)
    first = lr_scheduler.LinearLR(optimizer, start_factor=0.01, total_iters=5)
    main = lr_scheduler.CosineAnnealingLR(optimizer, T_max=600 - 5)
    scheduler = lr_scheduler.SequentialLR(optimizer, schedulers=[first, main], milestones=[5])
    for _ in range(600):
        yield from STEPS * [rate_of(optimizer)]
        optimizer.step()
        scheduler.step()


def timm_cosine(rate: float, epochs: int, warmup_lr: float, min_lr: float) -> Callable[[], Iterator[float]]:
    def rates() -> Iterator[float]:
        optimizer = optimizer_at(rate)
        scheduler, total = create_scheduler_v2(
            optimizer, sched="cosine", num_epochs=epochs, warmup_lr=warmup_lr, warmup_epochs=5, min_lr=min_lr
        )
        assert total == epochs
        for epoch in range(epochs):
            yield from STEPS * [rate_of(optimizer)]
            scheduler.step(epoch + 1)

    return rates


def ffcv(rate: float, epochs: int) -> Callable[[], Iterator[float]]:
    """get_cyclic_lr of an epoch and of the next one, and between them a straight line."""

    def rates() -> Iterator[float]:
        at_epochs = np.interp(range(epochs + 1), [0, 2, epochs], [1e-4 * rate, rate, 0])
        for epoch in range(epochs):
            yield from np.interp(range(STEPS), [0, STEPS], at_epochs[epoch : epoch + 2])

    return rates


SOURCES: dict[str, Callable[[], Iterator[float]]] = {
    "torchvision-v1": torchvision_v1,
    "torchvision-v2": torchvision_v2,
    "torchvision-v2-resnet152": torchvision_v2,
    "timm-a1": timm_cosine(5e-3, 600, 1e-4, 1e-6),
    "timm-a2": timm_cosine(5e-3, 300, 1e-4, 1e-6),
    "timm-a3": timm_cosine(8e-3, 100, 1e-4, 1e-6),
    "deit-s": timm_cosine(1e-3, 300, 1e-6, 1e-5),
    **{f"ffcv-rn50-{epochs}": ffcv(1.7, epochs) for epochs in (16, 24, 32, 40, 56, 88)},
    **{f"ffcv-rn18-{epochs}": ffcv(0.5, epochs) for epochs in (16, 24, 32, 40, 56, 88)},
}


@pytest.mark.parametrize("name", SOURCES)
def test_rates_are_those_of_the_source(name: str) -> None:
    used, expected = ours(RECIPES[name]()), list(SOURCES[name]())
    assert used == pytest.approx(expected, rel=1e-9, abs=1e-12)
    assert len(set(used)) >= 3


def test_rates_of_convnext_are_those_of_its_cosine_scheduler() -> None:
    """Its warm-up of N steps reaches the peak in the last of them, ours one step later."""
    config = RECIPES["convnext-t"]()
    used, warmup, total = ours(config), 20 * STEPS, 300 * STEPS
    theirs = [
        1e-6 + (4e-3 - 1e-6) * (1 + math.cos(math.pi * step / (total - warmup))) / 2 for step in range(total - warmup)
    ]
    assert used[warmup:] == pytest.approx(theirs, rel=1e-9)
    assert used[:warmup] == pytest.approx(list(np.linspace(0, 4e-3, warmup + 1))[:-1], rel=1e-9, abs=1e-12)


SIDES = {16: (11, 13), 24: (17, 20), 32: (23, 27), 40: (29, 34), 56: (41, 48), 88: (65, 76)}


@pytest.mark.parametrize("epochs", SIDES)
@pytest.mark.parametrize("depth", [18, 50])
def test_sides_of_ffcvs_images_are_those_of_its_get_resolution(depth: int, epochs: int) -> None:
    first, last = SIDES[epochs]
    sides, expected = RECIPES[f"ffcv-rn{depth}-{epochs}"]().training_sides, []
    for epoch in range(epochs):
        line = np.interp([epoch], [first, last], [160, 192])
        expected.append(160 if epoch <= first else 192 if epoch >= last else int(np.round(line[0] / 32)) * 32)
    assert [sides[max(start for start in sides if start <= epoch)] for epoch in range(epochs)] == expected


def test_sides_between_two_epochs_are_multiples_of_32() -> None:
    sides = TrainConfig(progressive_resize=("0:128", "10-20:224", "30:256")).training_sides
    assert (sides[0], sides[11], sides[15], sides[19], sides[20], sides[30]) == (128, 128, 192, 224, 224, 256)
    assert all(side % 32 == 0 for side in sides.values())
