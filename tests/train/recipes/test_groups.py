"""The weight decay and the share of the rate of each parameter next to the code of a recipe's source."""

from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from timm.optim import create_optimizer_v2
from torch import nn

import models
from tests.helpers.reference_tables import split_normalization_params
from train.config import TrainConfig
from train.optim import parameter_groups
from train.recipes import RECIPES

Groups = Iterable[dict[str, Any]]


def torchvision_v1(network: nn.Module) -> Groups:
    return [{"params": list(network.parameters()), "weight_decay": 1e-4}]


def torchvision_v2(network: nn.Module) -> Groups:
    norms, others = split_normalization_params(network)
    return [{"params": norms, "weight_decay": 0.0}, {"params": others, "weight_decay": 2e-5}]


def timm(opt: str, decay: float, layer_decay: float | None = None) -> Callable[[nn.Module], Groups]:
    return lambda network: (
        create_optimizer_v2(network, opt=opt, lr=1.0, weight_decay=decay, layer_decay=layer_decay).param_groups
    )


def ffcv(decay: float) -> Callable[[nn.Module], Groups]:
    return lambda network: [
        {"params": [item], "weight_decay": 0.0 if "bn" in name else decay} for name, item in network.named_parameters()
    ]


SOURCES: dict[str, Callable[[nn.Module], Groups]] = {
    "torchvision-v1": torchvision_v1,
    "torchvision-v2": torchvision_v2,
    "torchvision-v2-resnet152": torchvision_v2,
    "timm-a1": timm("lamb", 0.01),
    "timm-a2": timm("lamb", 0.02),
    "timm-a3": timm("lamb", 0.02),
    "deit-s": timm("adamw", 0.05),
    "convnext-t": timm("adamw", 0.05),
    "ffcv-rn50-16": ffcv(1e-4),
    "ffcv-rn18-16": ffcv(5e-5),
}


def settings_by_parameter(network: nn.Module, groups: Groups) -> dict[str, tuple[float, float]]:
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    return {
        names[id(parameter)]: (group["weight_decay"], group.get("lr_scale", 1.0))
        for group in groups
        for parameter in group["params"]
    }


def assert_same_groups(config: TrainConfig, source: Callable[[nn.Module], Groups]) -> set[tuple[float, float]]:
    with torch.device("meta"):
        classifier = models.create(config.model, 10, config.model_options, blurpool=config.blurpool)
    network = classifier.network
    settings = settings_by_parameter(network, parameter_groups(config, classifier))
    assert settings == settings_by_parameter(network, source(network))
    assert settings.keys() == dict(network.named_parameters()).keys()
    return set(settings.values())


@pytest.mark.parametrize("name", SOURCES)
def test_groups_are_those_of_the_source(name: str) -> None:
    kinds = assert_same_groups(RECIPES[name](), SOURCES[name])
    assert len(kinds) == (1 if name == "torchvision-v1" else 2)


def test_layer_decay_is_timms() -> None:
    config = TrainConfig(
        model="timm/vit_tiny_patch16_224", model_kwargs=("depth=3",), opt="adamw", lr=1.0, weight_decay=0.05,
        decay_groups="timm", layer_decay=0.7,
    )  # fmt: skip
    kinds = assert_same_groups(config, timm("adamw", 0.05, 0.7))
    assert len(kinds) == 10  # five layers: patches, three blocks, head
