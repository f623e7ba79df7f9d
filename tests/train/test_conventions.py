"""Learning rates and averaged weights next to those of torchvision's references, timm, torch and the model zoos."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from timm.scheduler import PlateauLRScheduler, create_scheduler_v2
from timm.utils import ModelEmaV3
from torch import nn
from torch.optim import SGD, lr_scheduler
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import models
from train.averaging import Ema, ema_decay
from train.config import TrainConfig
from train.optim import build_optimizer
from train.schedule import build_scheduler

EPOCHS, WARMUP, STEPS, RATE = 90, 5, 3, 0.4
WEIGHT = nn.Parameter(torch.zeros(1))


def rates(steps_per_epoch: int = STEPS, **settings: Any) -> list[float]:
    """Ours, of each step."""
    config = TrainConfig(**{"epochs": EPOCHS, "warmup_epochs": WARMUP, "lr": RATE, **settings})
    optimizer = build_optimizer(config, nn.Linear(2, 2), config.batch_size)
    scheduler = build_scheduler(config, optimizer, steps_per_epoch)
    used = []
    for _ in range(config.epochs * steps_per_epoch):
        used.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return used


def torchvision_rates(name: str, *, warmup: int) -> list[float]:
    """Of each step, with the schedulers that references/classification/train.py builds, stepped after each epoch."""
    optimizer = SGD([WEIGHT], lr=RATE)
    main: lr_scheduler.LRScheduler = lr_scheduler.StepLR(optimizer, step_size=30, gamma=0.1)
    if name == "cosine":
        main = lr_scheduler.CosineAnnealingLR(optimizer, T_max=EPOCHS - warmup)
    if warmup:
        first = lr_scheduler.LinearLR(optimizer, start_factor=0.01, total_iters=warmup)
        main = lr_scheduler.SequentialLR(optimizer, schedulers=[first, main], milestones=[warmup])
    used = []
    for _ in range(EPOCHS):
        used += STEPS * [optimizer.param_groups[0]["lr"]]
        optimizer.step()
        main.step()
    return used


def timm_rates(name: str, *, warmup: int, on_updates: bool, **options: Any) -> list[float]:
    """Of each step, with timm's scheduler, called as its train.py does: after each update and after each epoch."""
    optimizer = SGD([WEIGHT], lr=RATE)
    settings = {"num_epochs": EPOCHS, "decay_epochs": 30, "decay_rate": 0.1, "warmup_lr": 1e-5, **options}
    scheduler, epochs = create_scheduler_v2(
        optimizer, sched=name, warmup_epochs=warmup, step_on_epochs=not on_updates, updates_per_epoch=STEPS, **settings
    )
    assert epochs == EPOCHS
    used = []
    for epoch in range(EPOCHS):
        for step in range(STEPS):
            used.append(optimizer.param_groups[0]["lr"])
            scheduler.step_update(num_updates=epoch * STEPS + step + 1)
        scheduler.step(epoch + 1)
    return used


@pytest.mark.parametrize("name", ["cosine", "step"])
@pytest.mark.parametrize("warmup", [0, WARMUP])
def test_rates_are_those_of_torchvisions_references(name: str, warmup: int) -> None:
    ours = rates(lr_scheduler=name, warmup_epochs=warmup, lr_updates="epoch", lr_warmup_decay=0.01)
    assert ours == pytest.approx(torchvision_rates(name, warmup=warmup), rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("name", ["cosine", "step"])
@pytest.mark.parametrize("warmup", [0, WARMUP])
@pytest.mark.parametrize("updates", ["epoch", "step"])
def test_rates_are_those_of_timm(name: str, warmup: int, updates: str) -> None:
    ours = rates(
        lr_scheduler=name, warmup_epochs=warmup, lr_decay_from="start", lr_updates=updates, lr_warmup_decay=1e-5 / RATE
    )
    assert ours == pytest.approx(timm_rates(name, warmup=warmup, on_updates=updates == "step"), rel=1e-9, abs=1e-12)


CURVES: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("cosine", {"min_lr": 0.01, "cooldown_epochs": 20}, {"min_lr": 0.01, "cooldown_epochs": 20, "num_epochs": 70}),
    ("poly", {"lr_power": 0.9, "min_lr": 0.01}, {"decay_rate": 0.9, "min_lr": 0.01}),
    ("poly", {"lr_power": 2.0, "cooldown_epochs": 10}, {"decay_rate": 2.0, "cooldown_epochs": 10, "num_epochs": 80}),
    ("multistep", {"lr_milestones": (20, 50)}, {"decay_milestones": [20, 50]}),
]


@pytest.mark.parametrize(("name", "ours", "theirs"), CURVES, ids=str)
@pytest.mark.parametrize("updates", ["epoch", "step"])
def test_curves_are_those_of_timm(name: str, ours: dict[str, Any], theirs: dict[str, Any], updates: str) -> None:
    settings: dict[str, Any] = {"lr_scheduler": name, "lr_decay_from": "start", "lr_warmup_decay": 1e-5 / RATE}
    used = rates(lr_updates=updates, **settings, **ours)
    expected = timm_rates(name, warmup=WARMUP, on_updates=updates == "step", **theirs)
    assert used == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_timms_warm_up_before_a_curve_is_counted_in_the_epochs() -> None:
    """--warmup-prefix of timm."""
    used = rates(lr_updates="epoch", lr_warmup_decay=1e-5 / RATE, min_lr=0.001)
    expected = timm_rates(
        "cosine", warmup=WARMUP, on_updates=False, warmup_prefix=True, num_epochs=EPOCHS - WARMUP, min_lr=0.001
    )
    assert used == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_milestones_after_a_warm_up_are_those_of_torch() -> None:
    optimizer = SGD([WEIGHT], lr=RATE)
    scheduler = lr_scheduler.MultiStepLR(optimizer, milestones=[20, 50], gamma=0.1)
    expected = []
    for _ in range(EPOCHS):
        expected += STEPS * [optimizer.param_groups[0]["lr"]]
        optimizer.step()
        scheduler.step()
    used = rates(lr_scheduler="multistep", lr_milestones=(20, 50), warmup_epochs=0)
    assert used == pytest.approx(expected, rel=1e-9)


def plateau_config(**settings: Any) -> TrainConfig:
    options: dict[str, Any] = {"lr_scheduler": "plateau", "lr_patience": 2, "min_lr": 0.003, "lr_warmup_decay": 0.01}
    return TrainConfig(epochs=40, lr=RATE, warmup_epochs=3, lr_updates="epoch", **options, **settings)


ACCURACIES = [50.0, 60, 70, 10, 20, 30, 71, 71, 71, 71, 71, 71, 71, 80, 79, 78, 77, 81, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1]


@pytest.mark.filterwarnings("ignore:PlateauLRScheduler is deprecated")
@pytest.mark.parametrize("interrupted_after", [None, 8, 14])
def test_a_plateau_is_timms_also_after_a_resumption(interrupted_after: int | None) -> None:
    """timm itself forgets how many evaluations were bad when a run is resumed."""
    optimizer, reference = SGD([WEIGHT], lr=RATE), SGD([WEIGHT], lr=RATE)
    scheduler = build_scheduler(plateau_config(), optimizer, STEPS)
    theirs = PlateauLRScheduler(
        reference, decay_rate=0.1, patience_t=2, warmup_t=3, warmup_lr_init=0.01 * RATE, lr_min=0.003, mode="max"
    )
    seen = set()
    for epoch, top1 in enumerate(ACCURACIES):
        for _ in range(STEPS):
            assert optimizer.param_groups[0]["lr"] == pytest.approx(reference.param_groups[0]["lr"], rel=1e-9), epoch
            seen.add(round(optimizer.param_groups[0]["lr"], 6))
            optimizer.step()
            scheduler.step()
        if epoch == interrupted_after:  # saved before the evaluation, as a run does
            state = scheduler.state_dict()
            optimizer = SGD([WEIGHT], lr=RATE)
            scheduler = build_scheduler(plateau_config(), optimizer, STEPS)
            scheduler.load_state_dict(state)
        scheduler.evaluated(epoch + 1, top1)
        theirs.step(epoch + 1, top1)
    assert len(seen) == 6  # three of the warm-up, the peak, a tenth of it, the least


def test_rates_are_those_of_the_zoos() -> None:
    """One rate an epoch: (epoch + 1)/(warm-up + 1), then half a cosine that reaches zero after the last epoch."""
    published = [(epoch + 1) / (WARMUP + 1) for epoch in range(WARMUP)]
    published += [(1 + math.cos(math.pi * epoch / (EPOCHS - WARMUP))) / 2 for epoch in range(EPOCHS - WARMUP)]
    expected = [RATE * factor for factor in published for _ in range(STEPS)]
    assert rates(lr_updates="epoch") == pytest.approx(expected, rel=1e-12)


def test_steps_fall_where_their_convention_says() -> None:
    def falls(**settings: Any) -> list[float]:
        seen = rates(lr_scheduler="step", **settings)
        return [step / STEPS for step in range(1, len(seen)) if seen[step] < seen[step - 1]]

    assert falls() == [35, 65]
    assert falls(lr_decay_from="start") == falls(warmup_epochs=0) == [30, 60]


def test_by_default_the_rate_changes_with_each_step() -> None:
    seen = rates(10, epochs=10, warmup_epochs=2, lr=1.0)
    assert seen[:21] == pytest.approx([(step + 1) / 21 for step in range(21)])
    assert seen[20:] == sorted(seen[20:], reverse=True)
    assert seen[60] == pytest.approx(0.5)
    assert 0 < seen[-1] < 0.001, "zero would come after the last step"


def test_warm_up_is_at_most_half_of_a_short_run() -> None:
    by_step, by_epoch = rates(8, epochs=1), rates(8, epochs=4, lr_updates="epoch")
    assert (by_step.index(max(by_step)), by_epoch.index(max(by_epoch))) == (4, 16)


# Averaged weights


def small_classifier() -> models.Classifier:
    torch.manual_seed(3)
    layers = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 2))
    return models.Classifier(layers, models.card("alexnet"))


Update = Callable[[nn.Module, int], None]


def timm_average(model: nn.Module, *, warmup: bool) -> tuple[nn.Module, Update]:
    """timm's average and its update, with the number of the update as timm's train.py passes it."""
    average = ModelEmaV3(model, decay=0.9, use_warmup=warmup)
    return average.module, lambda model, step: average.update(model, step=step)


def torch_average(model: nn.Module) -> tuple[nn.Module, Update]:
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True)
    return average.module, lambda model, step: average.update_parameters(model)


@pytest.mark.parametrize(
    ("warmup", "reference", "counts"),
    [
        ("timm", lambda model: timm_average(model, warmup=True), True),
        ("torch", lambda model: timm_average(model, warmup=False), True),
        ("torch", torch_average, False),  # torch averages counts of batches too, and rounds them
    ],
)
def test_averaged_weights_are_those_of_timm_and_torch(
    warmup: str, reference: Callable[[nn.Module], tuple[nn.Module, Update]], counts: bool
) -> None:
    """Bit for bit after each step. The decay of 0.9 is reached at step 32."""
    model = small_classifier()
    ours, (theirs, update) = Ema(model), reference(model)
    config = TrainConfig(model_ema_decay=0.9, model_ema_warmup=warmup)  # type: ignore[arg-type]
    for step in range(1, 41):
        with torch.no_grad():
            for value in model.parameters():
                value.add_(torch.randn_like(value))
        model(torch.randint(256, (2, 3, 4, 4), dtype=torch.uint8))  # moves BatchNorm's statistics
        ours.update(ema_decay(config, step, STEPS, global_batch=1))
        update(model, step)
        for (name, average), expected in zip(
            ours.model.state_dict().items(), theirs.state_dict().values(), strict=True
        ):
            if counts or average.is_floating_point():
                assert torch.equal(average, expected), (step, name)


def test_averages_every_few_steps_are_those_of_torchvisions_references() -> None:
    """With the decay that they derive from the batch size, the steps between updates and the epochs, and copies until
    the warm-up is over: references/classification/train.py and its ExponentialMovingAverage."""
    epochs, steps_per_epoch, every, batch, decay, warmup = 6, 7, 3, 64, 0.99, 2
    config = TrainConfig(
        epochs=epochs, warmup_epochs=warmup, model_ema=True, model_ema_decay=decay, model_ema_steps=every,
        model_ema_warmup="torchvision",
    )  # fmt: skip
    model = small_classifier()
    adjusted = 1 - min(1.0, (1 - decay) * batch * every / epochs)
    ours = Ema(model)
    theirs = AveragedModel(
        model, avg_fn=lambda average, value, _: adjusted * average + (1 - adjusted) * value, use_buffers=True
    )
    for epoch in range(epochs):
        for step in range(steps_per_epoch):
            with torch.no_grad():
                for value in model.parameters():
                    value.add_(torch.randn_like(value))
            model(torch.randint(256, (2, 3, 4, 4), dtype=torch.uint8))
            if step % every == 0:
                ours.update(ema_decay(config, epoch * steps_per_epoch + step + 1, steps_per_epoch, batch))
                theirs.update_parameters(model)
                if epoch < warmup:
                    theirs.n_averaged.fill_(0)
            for average, expected in zip(ours.model.parameters(), theirs.module.parameters(), strict=True):
                torch.testing.assert_close(average, expected, rtol=1e-5, atol=1e-6)
    assert 0.5 < adjusted < 0.9
