"""Published runs as settings: `--recipe NAME`, and other flags override it.

A file for each publisher; each recipe is a function whose docstring has the command, the source, the hardware, and the
published time and accuracy. None of these is a measurement of ours. Where a run has another global batch than the
published one, its learning rate is scaled; the log says how. docs/recipes.md has their table, and says what was
compared with the sources, and where runs differ from theirs.
"""

import argparse
import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path

import models
from models import own
from pipeline.errors import InputError, did_you_mean
from train.config import TrainConfig
from train.optim import learning_rate
from train.recipes import ffcv, timm, torchvision, transformers, zoos  # noqa: F401 (their recipes register themselves)
from train.recipes.registry import RECIPES, Recipe
from train.world import launched_by

__all__ = ["HEADER", "NUMBERS", "RECIPES", "rows", "settings_of", "starting_point"]


def starting_point(argv: Sequence[str]) -> TrainConfig | None:
    """The settings that --recipe or --config in a command line names. Raises InputError."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--recipe")
    parser.add_argument("--config", type=Path)
    parser.add_argument("--evaluate")
    try:
        flags, _ = parser.parse_known_args(argv)
    except argparse.ArgumentError as error:
        raise InputError(f"{error} (see --help)") from None
    config = settings_of(flags.recipe, flags.config)
    if config and flags.evaluate:  # what that training began with does not matter to an evaluation
        return dataclasses.replace(
            config, pretrained=None, finetune=None, performance=None, teacher=None, teacher_weights=None
        )
    return config


def settings_of(recipe: str | None, config: Path | None) -> TrainConfig | None:
    """The settings that --recipe or --config names, None where neither is given. Raises InputError."""
    if recipe is None:
        return TrainConfig.read(config, launched_by() is not None) if config else None
    if config is not None:
        raise InputError("--recipe and --config: give one of them")
    if models.is_own(recipe) or recipe.endswith(".py"):
        return _own_settings(recipe)
    if recipe not in RECIPES:
        known = f"there are {', '.join(RECIPES)}, and files of your own, such as my/recipe.py"
        raise InputError(f"--recipe {recipe}: unknown{did_you_mean(recipe, RECIPES)}; {known}")
    return RECIPES[recipe]()


def _own_settings(name: str) -> TrainConfig:
    """Of a recipe of the user's own: a function that returns them; in a file without a function's name, `settings`."""
    try:
        function = own.find(name if models.is_own(name) else f"{name}:settings", "--recipe")
        settings = function()
    except own.OwnCodeError as error:
        raise InputError(str(error)) from error
    except Exception as error:
        raise InputError(f"--recipe {name}: {own.reason(error)}") from error
    if not isinstance(settings, TrainConfig):
        raise InputError(f"--recipe {name}: must return a TrainConfig, not {type(settings).__name__}")
    return dataclasses.replace(settings, recipe=name)


HEADER = ("`--recipe`", "model", "epochs", "published for", "published top-1")
NUMBERS = (2,)
"""Columns that hold numbers."""


def rows() -> list[tuple[str, ...]]:
    """The cells of the table of recipes, in the order of HEADER."""
    return [_row(name, published) for name, published in RECIPES.items()]


def _row(name: str, published: Recipe) -> tuple[str, ...]:
    config = published()
    factors = [published.processes, config.batch_size, *([config.accumulate] if config.accumulate > 1 else [])]
    rate = learning_rate(config, math.prod(factors))
    batches = f"{' x '.join(map(str, factors))} images, lr {rate:g}"
    model = " ".join((f"`{config.model}`", *config.model_kwargs))
    return (f"`{name}`", model, str(config.epochs), batches, published.top1)
