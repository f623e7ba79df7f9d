"""Learning rate, weight decay, states from a checkpoint."""

import math

import pytest
import torch
from torch import nn

from pipeline.errors import InputError
from train.config import TrainConfig
from train.optim import (
    build_optimizer,
    learning_rate,
    load_states,
    parameter_groups,
    rate_in_words,
)
from train.schedule import build_scheduler


def test_the_rate_scales_with_the_global_batch() -> None:
    assert learning_rate(TrainConfig(model="alexnet"), 1024) == pytest.approx(0.04)
    assert learning_rate(TrainConfig(model="torchvision/resnet18"), 256) == pytest.approx(0.1)
    assert learning_rate(TrainConfig(lr=0.3), 999) == 0.3


def test_the_log_says_how_the_published_rate_is_scaled() -> None:
    text = rate_in_words(TrainConfig(model="se_resnet50"), 1024)
    assert text == "lr 0.6: 0.15 of se_resnet50 for 256 images x 1024/256 (linear scaling)"
    assert rate_in_words(TrainConfig(lr=0.3), 64) == "lr 0.3 as given for the global batch of 64"


def test_a_batch_so_small_that_the_rate_is_below_min_lr_is_refused() -> None:
    config = TrainConfig(lr_base=4e-3, lr_base_size=4096, min_lr=1e-6)
    optimizer = build_optimizer(config, nn.Linear(2, 2), 1)
    message = (
        r"^--min-lr 1e-06: must be below the learning rate, which is 9\.76\d*e-07; choose another --min-lr or --lr, "
    )
    with pytest.raises(InputError, match=message):
        build_scheduler(config, optimizer, 10)


def test_norms_and_biases_have_their_own_decay() -> None:
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
