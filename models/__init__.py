"""The registry: which models there are, how they are built and what they expect of an image."""

import ast
import inspect
from collections.abc import Callable, Sequence

from torch import Tensor, nn

from models import alexnet, libraries, own, pnasnet, pyramidnet, resnet, se_resnet
from models.blurpool import apply_blurpool
from models.card import ModelCard, ModelOptionError, Options, UnknownModelError, did_you_mean
from models.normalize import Normalize
from models.own import OwnCodeError, is_own, short_name
from models.pretrained import Weights

__all__ = [
    "AUXILIARY_LOSS_WEIGHT",
    "REGISTRY",
    "Classifier",
    "ModelCard",
    "ModelOptionError",
    "Options",
    "OwnCodeError",
    "UnknownModelError",
    "card",
    "check_options",
    "create",
    "full_name",
    "is_own",
    "names",
    "outline",
    "parse_options",
    "short_name",
]

REGISTRY: dict[str, ModelCard] = {
    "alexnet": alexnet.CARD,
    "resnet152": resnet.CARD,
    "se_resnet50": se_resnet.CARD,
    "se_resnet50_caffe": se_resnet.CAFFE_CARD,
    "pnasnet5large": pnasnet.CARD,
    "pyramidnet": pyramidnet.card(depth=101, alpha=360.0, top1="78.02 authors"),
    "pyramidnet164_a48": pyramidnet.card(depth=164, alpha=48.0),
    "pyramidnet101_a360": pyramidnet.card(depth=101, alpha=360.0, top1="78.02 authors"),
    "pyramidnet200_a300": pyramidnet.card(depth=200, alpha=300.0, top1="79.53 authors"),
    "pyramidnet200_a450": pyramidnet.card(depth=200, alpha=450.0, top1="79.89 authors"),
}
"""Each model's facts are in its own file; help, error messages and the table of models follow from here."""

AUXILIARY_LOSS_WEIGHT = 0.4
"""Of each auxiliary head: Szegedy et al., arXiv:1512.00567, and Zoph et al., arXiv:1707.07012."""


class Classifier(nn.Module):
    """Normalisation and a network: uint8 images [B, 3, R, R] to logits [B, classes].

    In training, a network with auxiliary heads returns a tuple: the logits and those of each head. Checkpoints hold
    the state_dict of `network` alone, with the names of the published weights.
    """

    def __init__(self, network: nn.Module, card: ModelCard) -> None:
        super().__init__()
        self.normalize = Normalize(card.mean, card.std)
        self.network = network

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, ...]:
        logits: Tensor | tuple[Tensor, ...] = self.network(self.normalize(images))
        return logits


def names() -> list[str]:
    """Every model, ours first, then `torchvision/<name>`. timm's are not listed: importing timm takes seconds."""
    return [*REGISTRY, *libraries.torchvision_names()]


def full_name(name: str) -> str:
    """A model's name with its library: `resnet50` is torchvision's, because there is none of that name among ours.
    Unknown names are returned as they are."""
    qualified = f"{libraries.TORCHVISION}{name}"
    return qualified if name not in REGISTRY and qualified in libraries.torchvision_names() else name


def card(name: str, flag: str = "--model") -> ModelCard:
    """The card of a model. Raises UnknownModelError and OwnCodeError, which name the flag."""
    name = full_name(name)
    if is_own(name):
        return _own_card(name, flag)
    if name in REGISTRY:
        return REGISTRY[name]
    if name.startswith(libraries.TIMM):
        return libraries.timm_card(name)
    if name in libraries.torchvision_names():
        return libraries.torchvision_card(name)
    plain_names = [known.removeprefix(libraries.TORCHVISION) for known in libraries.torchvision_names()]
    hint = did_you_mean(name.removeprefix(libraries.TORCHVISION), dict.fromkeys([*REGISTRY, *plain_names]))
    raise UnknownModelError(
        f"{flag} {name}: unknown{hint}; there are {', '.join(REGISTRY)}, timm/<name> and torchvision/<name> such as "
        f"torchvision/resnet18 (`python -c 'import torchvision; print(torchvision.models.list_models())'`)"
    )


def _own_card(name: str, flag: str) -> ModelCard:
    """Of a model of the user's own: a card, or a function that builds a network of so many classes."""
    found = own.find(name, flag)
    if isinstance(found, ModelCard):
        return found
    if not callable(found):
        raise OwnCodeError(f"{flag} {name}: must be a function of the number of classes, or a models.ModelCard")
    return ModelCard(build=found)


def create(
    name: str,
    num_classes: int,
    options: Options | None = None,
    *,
    blurpool: bool = False,
    grad_checkpointing: bool = False,
) -> Classifier:
    """Build a model, its weights initialised from torch's random generator. Raises UnknownModelError, and
    ModelOptionError where it has no place for BlurPool (`models/blurpool.py`) or no gradient checkpointing."""
    model_card = card(name)
    network = model_card.build(num_classes, **(options or {}))
    _adapt(name, network, blurpool, grad_checkpointing)
    return Classifier(network, model_card)


def _adapt(name: str, network: nn.Module, blurpool: bool, grad_checkpointing: bool) -> None:
    if blurpool and not apply_blurpool(network):
        raise ModelOptionError(f"--blurpool: {name} has no convolution with a stride that could be blurred")
    if grad_checkpointing:
        enable: Callable[[bool], None] | None = getattr(network, "set_grad_checkpointing", None)
        if enable is None:
            raise ModelOptionError(f"--grad-checkpointing: {name} does not have it; models of timm do (timm/<name>)")
        enable(True)


def outline(name: str, options: Options | None = None, *, blurpool: bool = False) -> tuple[Weights, list[str]]:
    """A model's state_dict, without memory for its values, and the names in it of the last layers, whose first
    dimension is the number of classes. Raises UnknownModelError."""
    build = card(name).build_without_memory
    networks = [build(classes, **(options or {})) for classes in (10, 11)]
    for network in networks:
        _adapt(name, network, blurpool, grad_checkpointing=False)
    own, other = (network.state_dict() for network in networks)
    return own, [key for key, value in own.items() if value.shape != other[key].shape]


def parse_options(words: Sequence[str], flag: str = "--model-kwargs") -> Options:
    """`NAME=VALUE` words as options: values in Python's notation, anything else as text. Raises ModelOptionError, which
    names the flag."""
    options: Options = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not (name.isidentifier() and equals):
            raise ModelOptionError(f"{flag} {word}: must be NAME=VALUE")
        try:
            options[name] = ast.literal_eval(value)
        except (ValueError, SyntaxError, MemoryError, RecursionError):  # the latter: nested a thousand times
            options[name] = value
    return options


def check_options(name: str, options: Options, *, blurpool: bool = False, grad_checkpointing: bool = False) -> None:
    """Raises ModelOptionError where a model does not take these options, UnknownModelError for an unknown model,
    OwnCodeError for one of the user's own that cannot be built.

    The model is built to find out, but without memory for its weights.
    """
    model_card = card(name)
    if not (options or blurpool or grad_checkpointing or is_own(name)):
        return
    flag = f"--model-kwargs {' '.join(f'{key}={value}' for key, value in options.items())}"
    if full_name(name) in REGISTRY:
        _check_types(name, model_card.build, options, flag)
    try:
        network = model_card.build_without_memory(10, **options)
    except Exception as error:  # torchvision, timm and own code raise whatever the value leads to
        if is_own(name):
            raise OwnCodeError(f"--model {name}: {own.reason(error)}") from error
        raise ModelOptionError(f"{flag}: {' '.join(str(error).split())}") from error
    if not isinstance(network, nn.Module):
        raise OwnCodeError(f"--model {name}: must return a torch.nn.Module, not {type(network).__name__}")
    try:
        _adapt(name, network, blurpool, grad_checkpointing)
    except AssertionError as error:  # some of timm's models have the method, and refuse
        raise ModelOptionError(f"--grad-checkpointing: {name}: {' '.join(str(error).split())}") from error


def _check_types(name: str, build: Callable[..., nn.Module], options: Options, flag: str) -> None:
    """Options must have the type of their default; an int is accepted for a float."""
    parameters = inspect.signature(build).parameters.values()
    defaults = {item.name: item.default for item in parameters if item.kind is item.KEYWORD_ONLY}
    for key, value in options.items():
        if key not in defaults:
            raise ModelOptionError(f"{flag}: {name} takes {', '.join(defaults) or 'no options'}")
        expected = type(defaults[key])
        if type(value) is not expected and not (expected is float and type(value) is int):
            raise ModelOptionError(f"{flag}: {key} must be of type {expected.__name__}, as in {key}={defaults[key]}")
