"""What the registry knows of a model: how it is built and what it expects of an image."""

import contextlib
import difflib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from models.normalize import IMAGENET_MEAN, IMAGENET_STD

Options = dict[str, Any]

_MOST_PARAMETERS = 1 << 15  # tensors; the largest of timm's models have a few thousand


class UnknownModelError(ValueError):
    """No model of that name; the message lists the known ones."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """What an error adds after an unknown word: the most similar known ones, or nothing where none is similar."""
    similar = difflib.get_close_matches(word, dict.fromkeys(known), n=3)
    return f"; did you mean {' or '.join(similar)}?" if similar else ""


class ModelOptionError(ValueError):
    """A model does not take this option, or not with this value."""


@dataclass(frozen=True, kw_only=True)
class ModelCard:
    """A model and the settings it was published with."""

    build: Callable[..., nn.Module]
    """Number of classes, and options by name, to a network that takes normalised images."""
    resolution: int = 224
    eval_resize: int = 256
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    lr_per_256: float = 0.1
    """SGD's learning rate for a global batch of 256 images, scaled linearly to the actual one; in the registry,
    those of the model zoos whose runs train/recipes/zoos.py repeats."""
    background_class: bool = False
    """Whether published weights have one class more, the background, before ImageNet's 1000."""
    paper: str = ""
    top1: str = ""
    """ImageNet accuracy in percent, one crop, and who published it."""

    def build_without_memory(self, num_classes: int, **options: Any) -> nn.Module:
        """The network on the meta device: shapes, but no values. Raises ModelOptionError where it would be built
        without end: a stranger's checkpoint names options."""
        with _parameters_below(_MOST_PARAMETERS):
            try:
                with torch.device("meta"):
                    return self.build(num_classes, **options)
            except RuntimeError:  # torchvision's RegNets compute their widths in tensors, and so may others
                return self.build(num_classes, **options).to("meta")


@contextlib.contextmanager
def _parameters_below(most: int) -> Iterator[None]:
    """Raises ModelOptionError in the block where modules get more parameter tensors than that."""
    count = 0

    def counted(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        nonlocal count
        count += 1
        if count > most:
            raise ModelOptionError(f"more than {most} parameter tensors")

    hook = register_module_parameter_registration_hook(counted)
    try:
        yield
    finally:
        hook.remove()
