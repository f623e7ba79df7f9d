"""--augment: a function of the user's own."""

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from models import own
from pipeline.errors import InputError
from pipeline.order.plan import Indices
from pipeline.order.random import OWN_DRAW, keys_of


class OwnAugmentation:
    """Calls `function(images)`, or `function(images, seeds)` where that is how it names its second parameter.

    Images are uint8 [B, 3, R, R] on the device, and so is the result. `seeds`, int64 [B] on the host, has a random
    number below 2^63 for each image, which follows from the seed, the epoch and the sample alone. PyTorch's own random
    numbers follow from the seed, the epoch, the batch and the rank.
    """

    def __init__(self, name: str, seed: int) -> None:
        """Raises InputError where there is no such function."""
        try:
            self._function: Callable[..., Any] = own.find(name, "--augment")
        except own.OwnCodeError as error:
            raise InputError(str(error)) from error
        if not callable(self._function):
            raise InputError(f"--augment {name}: must be a function of images, uint8 [B, 3, R, R]")
        self._name, self._seed = name, seed
        self._takes_seeds = "seeds" in _parameters(self._function)

    def __call__(self, images: Tensor, keys: Indices, epoch: int) -> Tensor:
        """As `Augment` says. Raises InputError for a result that is no such images."""
        layout = torch.channels_last if images.is_contiguous(memory_format=torch.channels_last) else None
        seeds = [torch.from_numpy(self._seeds(keys, epoch))] if self._takes_seeds else []
        # A copy: the loader's memory is only borrowed, and a function may work in place.
        result = self._function(images.clone(), *seeds)
        self._check(result, images)
        augmented: Tensor = result.contiguous(memory_format=layout or torch.contiguous_format)
        return augmented

    def _seeds(self, keys: Indices, epoch: int) -> Indices:
        seeds: Indices = (keys_of(keys, self._seed, epoch, OWN_DRAW) >> np.uint64(1)).astype(np.int64)
        return seeds

    def _check(self, result: Any, images: Tensor) -> None:
        if not isinstance(result, Tensor):
            raise InputError(f"--augment {self._name}: must return images, not {type(result).__name__}")
        if (result.shape, result.dtype, result.device) != (images.shape, images.dtype, images.device):
            raise InputError(
                f"--augment {self._name}: must return what it is given, {_in_words(images)}, not {_in_words(result)}"
            )

    def check(self, side: int) -> None:
        """Raises InputError where the function does not do with two images of a side what it should."""
        images = torch.zeros(2, 3, side, side, dtype=torch.uint8)
        try:
            self(images, np.arange(2), 0)
        except InputError:
            raise
        except Exception as error:
            raise InputError(f"--augment {self._name}: {own.reason(error)}") from error


def _parameters(function: Callable[..., Any]) -> set[str]:
    try:
        return set(inspect.signature(function).parameters)
    except (TypeError, ValueError):  # some of those written in C have none
        return set()


def _in_words(images: Tensor) -> str:
    return f"{str(images.dtype).removeprefix('torch.')} {list(images.shape)} on {images.device.type}"
