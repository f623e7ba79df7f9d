"""The registry: which models there are, how they are built and what they expect of an image."""

import ast
import importlib.util
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torchvision
from torch import Tensor, nn

from models import alexnet, pnasnet, pyramidnet, resnet, se_resnet
from models.normalize import IMAGENET_MEAN, IMAGENET_STD, Normalize

Options = dict[str, Any]


class UnknownModelError(ValueError):
    """No model of that name; the message lists the known ones."""


class ModelOptionError(ValueError):
    """A model has no such option, or not with this value."""


@dataclass(frozen=True, kw_only=True)
class ModelCard:
    """A model and the settings it was published with."""

    build: Callable[..., nn.Module]  # number of classes, options by name -> network taking normalised images
    resolution: int = 224
    eval_resize: int = 256
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    lr_per_256: float = 0.1
    """SGD's learning rate for a global batch of 256 images; scaled linearly to the actual one."""
    background_class: bool = False
    """Whether published weights have one class more, the background, before the 1000 of ImageNet."""
    paper: str = ""
    top1: str = ""
    """ImageNet accuracy in percent, one crop, and who published it."""


def _pyramidnet(depth: int, alpha: float, top1: str) -> ModelCard:
    build = partial(pyramidnet.build, depth=depth, alpha=alpha)
    return ModelCard(build=build, lr_per_256=0.5, paper="arXiv:1610.02915", top1=top1)


# Learning rates are those of the model zoos that Sluice replaces.
REGISTRY = {
    # Krizhevsky, "One weird trick for parallelizing convolutional neural networks"
    "alexnet": ModelCard(build=alexnet.build, lr_per_256=0.01, paper="arXiv:1404.5997", top1="56.522 torchvision"),
    # He et al., "Deep residual learning for image recognition"
    "resnet152": ModelCard(
        build=resnet.build_resnet152, paper="arXiv:1512.03385", top1="78.312 torchvision V1 (82.284 V2)"
    ),
    # Hu et al., "Squeeze-and-excitation networks": torchvision's ResNet-50 with excitations, and the authors' own
    "se_resnet50": ModelCard(
        build=se_resnet.build_se_resnet50, lr_per_256=0.15, paper="arXiv:1709.01507", top1="77.5 Ascend model zoo"
    ),
    "se_resnet50_caffe": ModelCard(
        build=se_resnet.build_se_resnet50_caffe, lr_per_256=0.15, paper="arXiv:1709.01507", top1="77.63 authors"
    ),
    # Liu et al., "Progressive neural architecture search"
    "pnasnet5large": ModelCard(
        build=pnasnet.build,
        resolution=331,
        eval_resize=378,
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
        lr_per_256=0.4,
        background_class=True,
        paper="arXiv:1712.00559",
        top1="82.74 Cadene (82.9 authors)",
    ),
    # Han et al., "Deep pyramidal residual networks"; depth, alpha and block are options
    "pyramidnet": _pyramidnet(101, 360.0, "78.02 authors"),
    "pyramidnet164_a48": _pyramidnet(164, 48.0, ""),
    "pyramidnet101_a360": _pyramidnet(101, 360.0, "78.02 authors"),
    "pyramidnet200_a300": _pyramidnet(200, 300.0, "79.53 authors"),
    "pyramidnet200_a450": _pyramidnet(200, 450.0, "79.89 authors"),
}

AUXILIARY_LOSS_WEIGHT = 0.4
"""Of each auxiliary head: Szegedy et al., arXiv:1512.00567, and Zoph et al., arXiv:1707.07012."""

_TORCHVISION, _TIMM = "torchvision/", "timm/"


class Classifier(nn.Module):
    """Normalisation and a network: uint8 images [B, 3, R, R] to logits [B, classes].

    In training a network with auxiliary heads gives a tuple: the logits and those of each head. Checkpoints hold the
    state_dict of `network` alone, with the names of the published weights.
    """

    def __init__(self, network: nn.Module, card: ModelCard) -> None:
        super().__init__()
        self.normalize = Normalize(card.mean, card.std)
        self.network = network

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, ...]:
        return self.network(self.normalize(images))


def names() -> list[str]:
    """Every model, ours first, then `torchvision/<name>`. timm's are not listed: importing it takes seconds."""
    theirs = torchvision.models.list_models(module=torchvision.models)
    return [*REGISTRY, *(f"{_TORCHVISION}{name}" for name in theirs)]


def card(name: str) -> ModelCard:
    """The card of a model. Raises UnknownModelError."""
    if name in REGISTRY:
        return REGISTRY[name]
    if name.startswith(_TIMM):
        return _timm_card(name)
    if name in names():
        return _torchvision_card(name.removeprefix(_TORCHVISION))
    raise UnknownModelError(
        f"--model {name}: unknown; there are {', '.join(REGISTRY)}, timm/<name> and torchvision/<name> such as "
        f"torchvision/resnet18 (`python -c 'import torchvision; print(torchvision.models.list_models())'`)"
    )


def create(name: str, num_classes: int, options: Options | None = None) -> Classifier:
    """Build a model with fresh weights from torch's random generator. Raises UnknownModelError."""
    model_card = card(name)
    return Classifier(model_card.build(num_classes, **(options or {})), model_card)


def parse_options(words: Sequence[str]) -> Options:
    """`NAME=VALUE` words as options: values as Python writes them, any other text as it is. Raises ModelOptionError."""
    options: Options = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not (name.isidentifier() and equals):
            raise ModelOptionError(f"--model-kwargs {word}: must be NAME=VALUE")
        try:
            options[name] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            options[name] = value
    return options


def check_options(name: str, options: Options) -> None:
    """Raises ModelOptionError where a model does not take these options, UnknownModelError without such a model.

    The model is built to find out, but without memory for its weights.
    """
    build = card(name).build
    if not options:
        return
    text = f"--model-kwargs {' '.join(f'{key}={value}' for key, value in options.items())}"
    if name in REGISTRY:
        _check_types(name, build, options, text)
    try:
        with torch.device("meta"):
            build(10, **options)
    except Exception as error:  # torchvision and timm raise whatever the value leads to
        raise ModelOptionError(f"{text}: {' '.join(str(error).split())}") from error


def _check_types(name: str, build: Callable[..., nn.Module], options: Options, text: str) -> None:
    """Options must be of the type of their default; a whole number will do for a float."""
    parameters = inspect.signature(build).parameters.values()
    defaults = {item.name: item.default for item in parameters if item.kind is item.KEYWORD_ONLY}
    for key, value in options.items():
        if key not in defaults:
            raise ModelOptionError(f"{text}: {name} takes {', '.join(defaults) or 'no options'}")
        wanted = type(defaults[key])
        if type(value) is not wanted and not (wanted is float and type(value) is int):
            raise ModelOptionError(f"{text}: {key} must be of type {wanted.__name__}, as in {key}={defaults[key]}")


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


def _build_torchvision(name: str, num_classes: int, **options: Any) -> nn.Module:
    if name in ("googlenet", "inception_v3"):
        options = {"aux_logits": False, "init_weights": True} | options
    return torchvision.models.get_model(name, num_classes=num_classes, weights=None, **options)


def _timm_card(name: str) -> ModelCard:
    if importlib.util.find_spec("timm") is None:
        raise UnknownModelError(f"--model {name}: timm is not installed (pip install timm)")
    import timm  # takes 2 s, which other models need not wait for

    theirs = name.removeprefix(_TIMM)
    if not timm.is_model(theirs):
        listing = "python -c 'import timm; print(timm.list_models())'"
        raise UnknownModelError(f"--model {name}: unknown to timm (`{listing}`)")
    config = timm.models.get_pretrained_cfg(theirs)
    side = config.input_size[-1]
    return ModelCard(
        build=partial(_build_timm, theirs),
        resolution=side,
        eval_resize=int(side / config.crop_pct),
        mean=config.mean,
        std=config.std,
    )


def _build_timm(name: str, num_classes: int, **options: Any) -> nn.Module:
    import timm

    return timm.create_model(name, num_classes=num_classes, **options)
