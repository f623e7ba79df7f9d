"""Published weights: extracted from the forms they are saved in, and loaded completely or not at all."""

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

Weights = dict[str, Tensor]

_MOST_SHARED = 4  # times as many bytes as a file has

LISTED_KEYS = 20
"""How many keys of a kind an error names."""

BACKGROUND_AND_IMAGENET = 1001
"""Classes of weights that count the background as one."""

_OLD_DENSENET = re.compile(r"(denselayer\d+\.(?:norm|relu|conv))\.([12]\.)")
_AUXILIARY_HEAD = re.compile(r"(AuxLogits|aux[12])\.")


class PretrainedError(ValueError):
    """There are no weights, or not those of the model; one line that says which keys."""


def find_weights(content: Any) -> Weights:
    """The weights in what a file holds: a state_dict (torchvision, Cadene, safetensors), or what a trainer saved around
    one. Averaged weights take precedence where there are any: "ema" (ours), "state_dict_ema" (timm), "model_ema"
    (torchvision's references). The others are under "state_dict" (PyTorch's ImageNet example and the model zoos derived
    from it, timm, Lightning) or "model" (torchvision's references, ours).

    Names lose what DataParallel, DistributedDataParallel and torch.compile put before them, in any order. Raises
    PretrainedError.
    """
    weights = _state_dict(content)
    if weights is None:
        raise PretrainedError("holds no weights: neither a state_dict nor one under 'state_dict' or 'model'")
    _check_values(weights.values())
    weights.pop("n_averaged", None)  # of torch.optim.swa_utils.AveragedModel, which is no weight
    # torch.compile may wrap a part of a model, so its prefix can be anywhere in a name.
    weights = {re.sub(r"(^|\.)_orig_mod\.", r"\1", name): value for name, value in weights.items()}
    while weights and all(name.startswith("module.") for name in weights):
        weights = {name.removeprefix("module."): value for name, value in weights.items()}
    return weights


def _state_dict(content: Any) -> Weights | None:
    if not isinstance(content, Mapping):
        return None
    for key in ("ema", "state_dict_ema", "model_ema", "state_dict", "model"):
        if isinstance(content.get(key), Mapping):
            content = content[key]
            break
    holds_weights = content and all(isinstance(value, Tensor) for value in content.values())
    return dict(content) if holds_weights else None


def _check_values(tensors: Iterable[Tensor]) -> None:
    """Raises PretrainedError for tensors with more elements than the file has values for: one value may be repeated
    without end, or many tensors have the same ones. A few may, as where layers share their weights."""
    stored, size = dict[int, int](), 0
    for tensor in tensors:
        if tensor.layout is not torch.strided or tensor.device.type != "cpu":
            raise PretrainedError("holds tensors without values, or without most of them")
        stored[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        size += tensor.numel() * tensor.element_size()
    if size > _MOST_SHARED * sum(stored.values()):
        raise PretrainedError("holds tensors that repeat their values")


def load(network: nn.Module, weights: Weights, num_classes: int, *, new_head: bool = False) -> list[str]:
    """Load weights into a network of `num_classes`. Returns the keys of a last layer that was not loaded.

    All keys must match, in name and shape, once they are named as `network` names them (`named_as_in`); with
    `new_head`, a last layer of another number of classes keeps its initial values. Raises PretrainedError, and then
    nothing has been loaded.
    """
    own = network.state_dict()
    weights = named_as_in(own, weights)
    heads = differing_heads(own, weights, num_classes, new_head=new_head)
    network.load_state_dict(own | {key: value for key, value in weights.items() if key not in heads})
    return heads


def differing_heads(own: Weights, weights: Weights, num_classes: int, *, new_head: bool = False) -> list[str]:
    """The keys of a last layer of another number of classes, of weights that otherwise fit the network of `num_classes`
    whose state_dict is `own`; as `load` says. Raises PretrainedError."""
    different = [key for key in own if key in weights and weights[key].shape != own[key].shape]
    heads = [key for key in different if _is_head(weights[key], own[key], num_classes)]
    if heads and heads == different and not new_head:
        raise PretrainedError(
            f"has {len(weights[heads[0]])} classes ({', '.join(heads)}), not {num_classes}; "
            f"--num-classes {num_classes} starts with a new last layer"
        )
    # Files older than PyTorch 0.4.1 lack BatchNorm's count of batches, which nothing here uses.
    missing = [key for key in own if key not in weights and not key.endswith("num_batches_tracked")]
    mismatches = [
        _listed("missing", missing),
        _listed("unknown", [key for key in weights if key not in own]),
        _listed("of another shape", [key for key in different if key not in heads]),
    ]
    if any(mismatches):
        raise PretrainedError(f"does not fit the model: {'; '.join(filter(None, mismatches))}")
    return heads


def named_as_in(own: Weights, weights: Weights) -> Weights:
    """The weights under the names of the network whose state_dict is `own`.

    - A name that a trainer gave to the whole model, such as `model.` in a LightningModule, is removed.
    - torchvision's DenseNet files have the names of PyTorch 0.3, `denselayer1.norm.1.weight`: its own loader removes
      that dot too (torchvision/models/densenet.py, `_load_state_dict`).
    - Auxiliary heads, which torchvision's files of Inception and GoogLeNet have, are left out of a network without any:
      they serve training alone.
    """
    first = next(iter(own))
    prefix = next((name.removesuffix(first) for name in weights if name.endswith(f".{first}")), "")
    if first not in weights and all(name.startswith(prefix) for name in weights):
        weights = {name.removeprefix(prefix): value for name, value in weights.items()}
    if not any(_AUXILIARY_HEAD.match(name) for name in own):
        weights = {name: value for name, value in weights.items() if not _AUXILIARY_HEAD.match(name)}
    return {name if name in own else _OLD_DENSENET.sub(r"\1\2", name): value for name, value in weights.items()}


def count_outputs(weights: Weights, heads: Iterable[str]) -> int | None:
    """The classes of weights whose last layers are named in `heads`; None where they have none of these."""
    return next((len(weights[name]) for name in heads if name in weights), None)


def with_outputs(weights: Weights, heads: Collection[str], rows: Sequence[int]) -> Weights:
    """Weights whose last layers, those named in `heads`, have only these of their outputs, in this order."""
    return {name: value[list(rows)] if name in heads else value for name, value in weights.items()}


def without_background(weights: Weights, heads: Collection[str], wanted: int) -> Weights:
    """Weights of ImageNet's 1000 classes, where there is a background class before them and it is not wanted: Cadene's
    loader drops it too."""
    outputs = count_outputs(weights, heads)
    if outputs == BACKGROUND_AND_IMAGENET != wanted:
        return with_outputs(weights, heads, range(1, outputs))
    return weights


def _is_head(value: Tensor, own: Tensor, num_classes: int) -> bool:
    return value.dim() == own.dim() > 0 and value.shape[1:] == own.shape[1:] and len(own) == num_classes


def _listed(kind: str, keys: list[str]) -> str:
    more = f" and {len(keys) - LISTED_KEYS} more" if len(keys) > LISTED_KEYS else ""
    return f"{kind}: {', '.join(keys[:LISTED_KEYS])}{more}" if keys else ""
