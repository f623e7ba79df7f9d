"""The registry: which models there are, how they are built and what they expect of an image."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torchvision
from torch import Tensor, nn

from models import alexnet, resnet
from models.normalize import IMAGENET_MEAN, IMAGENET_STD, Normalize


class UnknownModelError(ValueError):
    """No model of that name; the message lists the known ones."""


@dataclass(frozen=True, kw_only=True)
class ModelCard:
    """A model and the image settings it was published with."""

    build: Callable[[int], nn.Module]  # number of classes -> network taking normalised images
    resolution: int = 224
    eval_resize: int = 256
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    lr_per_256: float = 0.1
    """SGD's learning rate for a global batch of 256 images; scaled linearly to the actual one."""


REGISTRY = {
    # Krizhevsky, "One weird trick for parallelizing convolutional neural networks", arXiv:1404.5997
    "alexnet": ModelCard(build=alexnet.build, lr_per_256=0.01),
    # He et al., "Deep residual learning for image recognition", arXiv:1512.03385
    "resnet152": ModelCard(build=resnet.build_resnet152),
}

_TORCHVISION = "torchvision/"


class Classifier(nn.Module):
    """Normalisation and a network: uint8 images [B, 3, R, R] to logits [B, classes].

    Checkpoints hold the state_dict of `network` alone, with the names of the published weights.
    """

    def __init__(self, network: nn.Module, card: ModelCard) -> None:
        super().__init__()
        self.normalize = Normalize(card.mean, card.std)
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        return self.network(self.normalize(images))


def names() -> list[str]:
    """Every model, ours first, then `torchvision/<name>`."""
    theirs = torchvision.models.list_models(module=torchvision.models)
    return [*REGISTRY, *(f"{_TORCHVISION}{name}" for name in theirs)]


def card(name: str) -> ModelCard:
    """The card of a model. Raises UnknownModelError."""
    if name in REGISTRY:
        return REGISTRY[name]
    if name in names():
        return _torchvision_card(name.removeprefix(_TORCHVISION))
    raise UnknownModelError(
        f"--model {name}: unknown; there are {', '.join(REGISTRY)} and torchvision/<name> such as "
        f"torchvision/resnet18 (`python -c 'import torchvision; print(torchvision.models.list_models())'`)"
    )


def create(name: str, num_classes: int) -> Classifier:
    """Build a model with fresh weights from torch's random generator. Raises UnknownModelError."""
    model_card = card(name)
    return Classifier(model_card.build(num_classes), model_card)


def _torchvision_card(name: str) -> ModelCard:
    weights = torchvision.models.get_model_weights(name)
    # Version 1 was trained and evaluated at the resolution the architecture is built for.
    preset = getattr(weights, "IMAGENET1K_V1", weights.DEFAULT).transforms.keywords
    without_batch_norm = name in ("alexnet", "vgg11", "vgg13", "vgg16", "vgg19") or name.startswith("squeezenet")
    return ModelCard(
        build=partial(_build_torchvision, name),
        resolution=preset["crop_size"],
        eval_resize=preset.get("resize_size", 256),
        mean=tuple(preset.get("mean", IMAGENET_MEAN)),
        std=tuple(preset.get("std", IMAGENET_STD)),
        lr_per_256=0.01 if without_batch_norm else 0.1,
    )


def _build_torchvision(name: str, num_classes: int) -> nn.Module:
    # The auxiliary heads of these two turn the output into a tuple in training.
    options = {"aux_logits": False, "init_weights": True} if name in ("googlenet", "inception_v3") else {}
    return torchvision.models.get_model(name, num_classes=num_classes, weights=None, **options)
