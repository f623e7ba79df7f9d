"""Published weights: read from the forms they come in, and loaded whole or not at all."""

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

Weights = dict[str, Tensor]

LISTED_KEYS = 20
"""How many keys of a kind an error names."""


class PretrainedError(ValueError):
    """A file holds no weights, or not those of the model; one line that says which keys."""


def read(path: Path) -> Weights:
    """The weights in a file: a state_dict (torchvision, Cadene), or what a trainer saved around it under
    "state_dict" (PyTorch's ImageNet example and the zoos made of it) or "model" (torchvision's and our checkpoints; the
    averaged weights under "ema" go before it).

    Names lose the "module." of DataParallel. Nothing in the file is executed (weights_only). Raises PretrainedError.
    """
    try:
        content = load_file(path)
    except OSError as error:
        raise PretrainedError(f"{path}: {error.strerror}") from None
    except Exception as error:  # torch raises whatever the bytes lead to
        raise PretrainedError(f"{path}: {_refusal(error)}") from None
    weights = _state_dict(content)
    if weights is None:
        raise PretrainedError(f"{path}: holds no weights: neither a state_dict nor one under 'state_dict' or 'model'")
    if all(key.startswith("module.") for key in weights):
        return {key.removeprefix("module."): value for key, value in weights.items()}
    return weights


def load_file(path: Path) -> Any:
    """What torch.save wrote, on the CPU; nothing in it is executed. Raises whatever damaged bytes lead to.

    Such a file is a zip archive with a CRC-32 of each tensor's bytes, which torch.load does not look at: a flipped bit
    would go unnoticed. Files from before PyTorch 1.6 are no archives and have none.
    """
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if damaged := archive.testzip():
                raise zipfile.BadZipFile(f"the CRC-32 of {damaged} does not hold")
    return torch.load(path, map_location="cpu", weights_only=True)


def _refusal(error: Exception) -> str:
    _, unsafe, rest = str(error).partition("Unsupported global: GLOBAL ")
    if unsafe:
        return f"holds {rest.split()[0]}, which is code and no weights; nothing of it was loaded"
    return "not a file of weights, or a damaged one"


def _state_dict(content: Any) -> Weights | None:
    if not isinstance(content, Mapping):
        return None
    for key in ("ema", "state_dict", "model"):
        if isinstance(content.get(key), Mapping):
            content = content[key]
            break
    holds_weights = content and all(isinstance(value, Tensor) for value in content.values())
    return dict(content) if holds_weights else None


def load(
    network: nn.Module, path: Path, num_classes: int, *, new_head: bool = False, background_class: bool = False
) -> list[str]:
    """Load a file's weights into a network of `num_classes`. Returns the keys of a head that was left as it was.

    All keys must match, in name and shape. Two exceptions: with `new_head` a last layer of another number of
    classes stays as it was initialised; with `background_class` the first of 1001 classes is dropped where 1000 are
    wanted, as Cadene's loader does. Raises PretrainedError, and then nothing was loaded.
    """
    weights, own = read(path), network.state_dict()
    if background_class and num_classes == 1000:
        weights = {key: _without_background(value, own.get(key)) for key, value in weights.items()}
    different = [key for key in own if key in weights and weights[key].shape != own[key].shape]
    heads = [key for key in different if _is_head(weights[key], own[key], num_classes)]
    if heads and heads == different and not new_head:
        raise PretrainedError(
            f"{path}: has {len(weights[heads[0]])} classes ({', '.join(heads)}), not {num_classes}; "
            f"--num-classes {num_classes} starts with a new last layer"
        )
    # Files older than PyTorch 0.4.1 have no count of BatchNorm's batches, which nothing here uses.
    missing = [key for key in own if key not in weights and not key.endswith("num_batches_tracked")]
    complaints = [
        _listed("missing", missing),
        _listed("unknown", [key for key in weights if key not in own]),
        _listed("of another shape", [key for key in different if key not in heads]),
    ]
    if any(complaints):
        raise PretrainedError(f"{path}: does not fit the model: {'; '.join(filter(None, complaints))}")
    network.load_state_dict(own | {key: value for key, value in weights.items() if key not in heads})
    return heads


def _without_background(value: Tensor, own: Tensor | None) -> Tensor:
    if own is not None and value.dim() and len(value) == 1001 and own.shape == (1000, *value.shape[1:]):
        return value[1:]
    return value


def _is_head(value: Tensor, own: Tensor, num_classes: int) -> bool:
    return value.dim() == own.dim() > 0 and value.shape[1:] == own.shape[1:] and len(own) == num_classes


def _listed(what: str, keys: list[str]) -> str:
    more = f" and {len(keys) - LISTED_KEYS} more" if len(keys) > LISTED_KEYS else ""
    return f"{what}: {', '.join(keys[:LISTED_KEYS])}{more}" if keys else ""
