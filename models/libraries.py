"""Cards of the models of other libraries: `torchvision/<name>` and `timm/<name>`."""

import re
from collections.abc import Iterable
from functools import partial
from typing import Any

import torchvision
from torch import nn

from models.card import ModelCard, ModelOptionError, UnknownModelError, did_you_mean
from models.normalize import IMAGENET_MEAN, IMAGENET_STD

TORCHVISION, TIMM = "torchvision/", "timm/"

_FETCHING = re.compile("pretrained(?!_window_size).*|weights.*|checkpoint_path|cache_dir", re.IGNORECASE)
"""Options by which the libraries fetch files from any address, and write them into any folder. A stranger's checkpoint
names options, too."""


def torchvision_names() -> list[str]:
    """torchvision's classifiers, as `torchvision/<name>`."""
    return [f"{TORCHVISION}{name}" for name in torchvision.models.list_models(module=torchvision.models)]


def torchvision_card(name: str) -> ModelCard:
    """The card of a name that `torchvision_names` lists."""
    plain_name = name.removeprefix(TORCHVISION)
    weights = torchvision.models.get_model_weights(plain_name)
    # Version 1 was trained and evaluated at the resolution the architecture was designed for.
    preset = getattr(weights, "IMAGENET1K_V1", weights.DEFAULT).transforms.keywords
    without_batch_norm = plain_name in ("alexnet", "vgg11", "vgg13", "vgg16", "vgg19")
    without_batch_norm |= plain_name.startswith("squeezenet")
    return ModelCard(
        build=partial(_build_torchvision, plain_name),
        resolution=preset["crop_size"],
        eval_resize=preset.get("resize_size", 256),
        mean=tuple(preset.get("mean", IMAGENET_MEAN)),
        std=tuple(preset.get("std", IMAGENET_STD)),
        lr_per_256=0.01 if without_batch_norm else 0.1,
    )


def _build_torchvision(name: str, num_classes: int, **options: Any) -> nn.Module:
    if name in ("googlenet", "inception_v3"):
        # Google trained both with other means: the published files need their inputs transformed.
        options = {"aux_logits": False, "init_weights": True, "transform_input": True} | options
    _refuse_fetching(options)
    network: nn.Module = torchvision.models.get_model(name, num_classes=num_classes, weights=None, **options)
    return network


def timm_card(name: str) -> ModelCard:
    """The card of `timm/<name>`. Raises UnknownModelError where timm does not know the name."""
    import timm  # here: the import takes 2 s, which other models do not need

    plain_name = name.removeprefix(TIMM)
    if not timm.is_model(plain_name):
        command = "python -c 'import timm; print(timm.list_models())'"
        hint = did_you_mean(name, [f"{TIMM}{known}" for known in timm.list_models()])
        raise UnknownModelError(f"--model {name}: unknown to timm{hint} (`{command}`)")
    try:
        config = timm.models.get_pretrained_cfg(plain_name)
    except RuntimeError:
        architecture, _, tag = plain_name.partition(".")
        known = [full.partition(".")[2] for full in timm.list_pretrained(f"{architecture}.*")]
        raise UnknownModelError(
            f"--model {name}: timm's {architecture} has no tag {tag}, only {', '.join(known) or 'none'}"
        ) from None
    side = config.input_size[-1]
    return ModelCard(
        build=partial(_build_timm, plain_name),
        resolution=side,
        eval_resize=int(side / config.crop_pct),
        mean=config.mean,
        std=config.std,
    )


def _build_timm(name: str, num_classes: int, **options: Any) -> nn.Module:
    import timm

    _refuse_fetching(options)
    network: nn.Module = timm.create_model(name, num_classes=num_classes, **options)
    return network


def _refuse_fetching(options: Iterable[str]) -> None:
    """Raises ModelOptionError: weights come from a file that a flag names."""
    for name in options:
        if _FETCHING.fullmatch(name):
            raise ModelOptionError(f"{name}: the library fetches nothing here; --pretrained FILE takes its weights")
