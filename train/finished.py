"""A model that has been trained, from a checkpoint or a file of weights, without the data that it was trained on."""

import dataclasses
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import models
from models import imagenet
from pipeline.errors import InputError
from train import checkpoint
from train.config import DEFAULT_MODEL, TrainConfig
from train.device import select
from train.inputs import check_resolutions
from train.network import build_evaluated, count_outputs
from train.process import Process
from train.world import World

log = logging.getLogger(__name__)

_SIZES = ("resolution", "val_crop", "val_resize")
"""The default of each follows from the ones before it."""
_LARGEST_SIDE = 1 << 12
"""Pixels; several times those of any published model."""


@dataclass(frozen=True)
class Finished:
    """A model in evaluation, on its device."""

    path: Path
    process: Process
    classifier: models.Classifier
    """uint8 images [B, 3, R, R] to logits."""
    classes: tuple[str, ...]
    """Of the outputs, in their order; outputs after these belong to no class."""
    weights: str
    """Which of a checkpoint's they are: "ema", the averaged ones, or "model"."""

    def logits(self, images: Tensor) -> Tensor:
        """float32 [B, outputs] of uint8 [B, 3, R, R], as in evaluation."""
        with torch.inference_mode(), self.process.autocast():
            return logits_of(self.process, self.classifier, images).float()


def logits_of(process: Process, classifier: torch.nn.Module, images: Tensor) -> Tensor:
    """[B, outputs]; with --val-flip the average of those of each image and its mirror image."""
    logits: Tensor = classifier(images)
    return (logits + classifier(images.flip(-1))) / 2 if process.config.val_flip else logits


def load(path: Path, model: str | None, **fields: Any) -> Finished:
    """The model in a file, by a command's flags: --model, and others of the names that TrainConfig has. Raises
    InputError, also for a file of weights without --model."""
    try:
        config = TrainConfig(model=model or DEFAULT_MODEL, evaluate=path, **fields)
    except ValueError as error:
        raise InputError(str(error)) from None
    content = checkpoint.read(path)
    if checkpoint.is_checkpoint(content):
        config = as_trained(config, content["config"], path)
    elif model is None:
        raise InputError(f"{path}: a file of weights, which does not say of which model; give --model")
    check_resolutions(config)
    process = Process(config, World(), select(config.device, 0, 1))
    classes = checkpoint.class_names(content) or _names_of_outputs(content, process, path)
    classifier = build_evaluated(process, classes, content, str(path)).eval()
    return Finished(path, process, classifier, tuple(classes), weights_in(content))


def weights_in(content: Any) -> str:
    """Which weights of a file are evaluated: "ema", the averaged ones of a checkpoint, or "model"."""
    return "ema" if checkpoint.is_checkpoint(content) and content.get("ema") else "model"


def _names_of_outputs(content: Any, process: Process, path: Path) -> list[str]:
    """The classes of weights that do not name them: ImageNet's for 1000 outputs, else numbers."""
    outputs = process.config.num_classes or count_outputs(content, process, str(path))
    if outputs == len(imagenet.wnids()):
        return [*imagenet.wnids()]
    log.info("%s: names no classes, its %d outputs are numbered", path, outputs)
    return [str(number) for number in range(outputs)]


def as_trained(config: TrainConfig, stored: dict[str, Any], path: Path) -> TrainConfig:
    """The settings of an evaluation: where no flag describes the model, those it was trained with. Raises InputError
    for a checkpoint of another model than --model."""
    model = str(stored.get("model"))
    if model != config.model != DEFAULT_MODEL:
        raise InputError(f"{path}: a checkpoint of {model}, not of --model {config.model}")
    resolution, val_crop, val_resize = _sizes(config, stored)
    try:
        _check_numbers(stored)
        return dataclasses.replace(
            config,
            model=model,
            resolution=resolution,
            val_crop=val_crop,
            val_resize=val_resize,
            interpolation=config.interpolation or stored.get("interpolation"),
            num_classes=config.num_classes or stored.get("num_classes"),
            blurpool=config.blurpool or bool(stored.get("blurpool")),
            model_kwargs=config.model_kwargs or tuple(stored.get("model_kwargs", ())),
        )
    except (ValueError, TypeError, AttributeError) as error:
        raise InputError(f"{path}: its settings describe no model ({error})") from None


def _check_numbers(stored: dict[str, Any]) -> None:
    """Raises ValueError where the numbers in a stranger's settings are none, or lead to images of gigabytes."""
    for name in (*_SIZES, "num_classes"):
        value, flag = stored.get(name), f"--{name.replace('_', '-')}"
        if type(value) not in (int, type(None)):
            raise ValueError(f"{flag} {value!r:.60}: must be a whole number")
        if name in _SIZES and value and value > _LARGEST_SIDE:
            raise ValueError(f"{flag} {value}: at most {_LARGEST_SIDE} in a checkpoint")


def _sizes(config: TrainConfig, stored: dict[str, Any]) -> list[int | None]:
    """--resolution, --val-crop and --val-resize of an evaluation: from the first that was given on, this command's;
    before it, those that the run was trained with."""
    given = [getattr(config, name) for name in _SIZES]
    first = next((number for number, value in enumerate(given) if value is not None), len(_SIZES))
    return [*map(stored.get, _SIZES[:first]), *given[first:]]
