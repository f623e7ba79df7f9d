"""Augmentation of a batch: draws on the host, pixels on the device."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from pipeline.order.plan import Indices
from train.augmentation import blur, colour
from train.augmentation.draws import KINDS, Draws, Stage
from train.augmentation.erasing import Eraser, erase
from train.augmentation.geometry import GEOMETRIC, matrices, warp
from train.augmentation.policies import AugmentationSettings

Augment = Callable[[Tensor, Indices, int], Tensor]
"""Images uint8 [B, 3, R, R] of samples with these keys, int64 [B] on the host, in an epoch, to such images in memory of
their own."""

OPERATIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "Brightness": colour.brightness,
    "Color": colour.color,
    "Contrast": colour.contrast,
    "Hue": colour.hue,
    "Posterize": colour.posterize,
    "Solarize": colour.solarize,
    "SolarizeAdd": colour.solarize_add,
    "AutoContrast": colour.autocontrast,
    "Equalize": colour.equalize,
    "Invert": colour.invert,
    "Sharpness": blur.sharpness,
    "GaussianBlur": blur.gaussian_blur,
}
"""By kind, those that are not geometric: images uint8 [N, 3, R, R] and parameters float32 [N] to such images."""

_GEOMETRY = "geometry"  # the name of a group that is warped
_PIXELS_AT_ONCE = 1 << 19  # values of images on a CPU: they stay in its caches


class _Group(NamedTuple):
    """Images with the same operation at a stage."""

    operation: str
    rows: Indices
    parameters: np.ndarray  # float32 [N], or [N, 6] of a geometric one


class Augmentation:
    """Augments batches of training images. What happens to a sample follows from the seed, the epoch and its key."""

    def __init__(
        self, settings: AugmentationSettings, seed: int, mean: tuple[float, ...], std: tuple[float, ...]
    ) -> None:
        """`mean` and `std` are those of the model's normalisation, for what is filled."""
        self._settings, self._seed, self._draws = settings, seed, Draws(settings)
        erases = settings.erase_probability > 0
        self._eraser = (
            Eraser(settings.erase_probability, settings.erase_mode, settings.erase_count, mean, std) if erases else None
        )
        mean_fill = settings.policy is not None and settings.policy.mean_fill
        self._fill = torch.tensor(mean).mul(255).round().view(3, 1, 1) if mean_fill else None

    def __call__(self, images: Tensor, keys: Indices, epoch: int) -> Tensor:
        """Images uint8 [B, 3, R, R] of samples with these keys, int64 [B] on the host, in an epoch; with their strides,
        in memory of their own. Nothing waits for the device."""
        seed, side = self._seed, images.shape[-1]
        groups = [
            group
            for stage in self._draws.stages(seed, epoch, keys, side)
            for group in _groups(stage, images.device, side)
        ]
        layout = (
            torch.channels_last if images.is_contiguous(memory_format=torch.channels_last) else torch.contiguous_format
        )
        result = images.clone(memory_format=torch.contiguous_format)
        if self._settings.vflip:
            flipped = _on(images.device, self._draws.flipped(seed, epoch, keys))
            result[flipped] = result[flipped].flip(2)
        self._apply(result, groups)
        if self._eraser:
            erase(result, self._eraser.blocks(seed, epoch, keys, side))
        return result.contiguous(memory_format=layout)

    def _apply(self, images: Tensor, groups: list[_Group]) -> None:
        if not groups:
            return
        if self._fill is not None:
            self._fill = self._fill.to(images.device)
        rows = _on(images.device, np.concatenate([group.rows for group in groups]))
        parameters = _on(images.device, np.concatenate([group.parameters.reshape(-1) for group in groups]))
        row, number = 0, 0
        for group in groups:
            chosen = rows[row : row + len(group.rows)]
            values = parameters[number : number + group.parameters.size].view(group.parameters.shape)
            row, number = row + len(group.rows), number + group.parameters.size
            _store(images, group.rows, chosen, self._operate(group.operation, images.index_select(0, chosen), values))

    def _operate(self, operation: str, images: Tensor, parameters: Tensor) -> Tensor:
        if operation == _GEOMETRY:
            return warp(images, parameters, self._fill)
        return OPERATIONS[operation](images, parameters)


def _groups(stage: Stage, device: torch.device, side: int) -> list[_Group]:
    """The images of a stage by operation; on a CPU, so many at once that they stay in its caches."""
    most = max(1, _PIXELS_AT_ONCE // (3 * side * side)) if device.type == "cpu" else len(stage.kinds)
    rows_of, maps = {}, np.zeros((len(stage.kinds), 6))
    for number in np.unique(stage.kinds).tolist():
        rows, kind = np.flatnonzero(stage.kinds == number), KINDS[number]
        if kind in GEOMETRIC:
            maps[rows] = matrices(kind, stage.parameters[rows], side)
        elif kind != "Identity":
            rows_of[kind] = rows
    if maps.any():
        rows_of[_GEOMETRY] = np.flatnonzero(maps.any(1))
    return [
        _Group(operation, part, (maps if operation == _GEOMETRY else stage.parameters)[part].astype(np.float32))
        for operation, rows in rows_of.items()
        for part in (rows[first : first + most] for first in range(0, len(rows), most))
    ]


def _store(images: Tensor, rows: Indices, rows_on_device: Tensor, results: Tensor) -> None:
    if images.device.type == "cpu":  # of bytes, index_copy_ takes 0.3 ms an image there, this 0.014
        for row, result in zip(rows.tolist(), results, strict=True):
            images[row].copy_(result)
    else:
        images.index_copy_(0, rows_on_device, results)


def _on(device: torch.device, values: np.ndarray) -> Tensor:
    """A host array on the device, without waiting for it."""
    tensor = torch.from_numpy(values)
    return tensor if device.type == "cpu" else tensor.pin_memory().to(device, non_blocking=True)


def build(
    settings: AugmentationSettings, seed: int, mean: tuple[float, ...], std: tuple[float, ...]
) -> Augmentation | None:
    """The augmentation of a run; None where nothing is to be done."""
    return Augmentation(settings, seed, mean, std) if settings.changes_pixels else None
