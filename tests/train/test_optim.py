"""The schedule and the learning rate."""

import math

import pytest
import torch
from torch import nn

from train.config import TrainConfig
from train.optim import (
    Ema,
    build_optimizer,
    build_scheduler,
    learning_rate,
    load_states,
    parameter_groups,
    rate_in_words,
)


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


def test_the_rate_falls_in_steps() -> None:
    seen = rates(TrainConfig(epochs=9, warmup_epochs=0, lr=1.0, lr_scheduler="step", lr_step_size=3), steps_per_epoch=4)
    assert seen == pytest.approx([1.0] * 12 + [0.1] * 12 + [0.01] * 12)


def test_the_published_rate_is_scaled_in_words() -> None:
    told = rate_in_words(TrainConfig(model="se_resnet50"), 1024)
    assert told == "lr 0.6: 0.15 of se_resnet50 for 256 images x 1024/256 (linear scaling)"
    assert rate_in_words(TrainConfig(lr=0.3), 64) == "lr 0.3 as given for the global batch of 64"


def test_norms_and_biases_have_a_decay_of_their_own() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 2), nn.GroupNorm(1, 2))
    config = TrainConfig(weight_decay=0.1, norm_weight_decay=0.0, bias_weight_decay=0.01)
    decays = {
        id(parameter): group["weight_decay"]
        for group in parameter_groups(config, network)
        for parameter in group["params"]
    }
    conv, norm, linear, group_norm = network
    expected = [(conv.weight, 0.1), (conv.bias, 0.01), (norm.weight, 0.0), (norm.bias, 0.0), (linear.weight, 0.1)]
    expected += [(linear.bias, 0.01), (group_norm.weight, 0.0), (group_norm.bias, 0.0)]
    assert decays == {id(parameter): decay for parameter, decay in expected}
    plain = parameter_groups(TrainConfig(weight_decay=0.1), network)
    assert {group["weight_decay"] for group in plain} == {0.1}


def test_the_average_follows_weights_and_statistics() -> None:
    network = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    ema = Ema(network, decay=0.75)
    expected = {name: value.clone() for name, value in network.state_dict().items()}
    for step in range(3):
        with torch.no_grad():
            for value in [*network.parameters(), *network.buffers()]:
                value.add_(step + 1)
        ema.update()
        for name, value in network.state_dict().items():
            expected[name] = 0.75 * expected[name] + 0.25 * value if value.is_floating_point() else value.clone()
    for name, value in ema.model.state_dict().items():
        torch.testing.assert_close(value, expected[name])


def test_loaded_states_keep_the_settings_of_this_run() -> None:
    network = nn.Linear(2, 2)
    first = TrainConfig(epochs=10, lr=1.0, warmup_epochs=0, weight_decay=0.1)
    optimizer = build_optimizer(first, network, 1)
    scheduler = build_scheduler(first, optimizer, 10)
    for _ in range(50):
        network(torch.ones(1, 2)).sum().backward()
        optimizer.step()
        scheduler.step()
    second = TrainConfig(epochs=20, lr=2.0, warmup_epochs=0, weight_decay=0.3, momentum=0.5)
    other = build_optimizer(second, network, 1)
    other_scheduler = build_scheduler(second, other, 10)
    load_states(other, other_scheduler, optimizer.state_dict(), scheduler.state_dict())
    expected = 2.0 * 0.5 * (1 + math.cos(math.pi * 50 / 200))
    for group in other.param_groups:
        assert (group["weight_decay"], group["momentum"]) == (0.3, 0.5)
        assert group["lr"] == pytest.approx(expected)
    for parameter in network.parameters():
        assert torch.equal(other.state[parameter]["momentum_buffer"], optimizer.state[parameter]["momentum_buffer"])
    other_scheduler.step()
    assert other.param_groups[0]["lr"] == pytest.approx(1 + math.cos(math.pi * 51 / 200))
