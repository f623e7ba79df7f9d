"""The registry of recipes."""

import dataclasses
import functools
from collections.abc import Callable
from dataclasses import dataclass

from train.config import TrainConfig


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A published run."""

    settings: Callable[[], TrainConfig]
    processes: int
    """Of the published run, one for each device."""
    top1: str
    """Published, in percent; "none" where no accuracy was published."""

    def __call__(self) -> TrainConfig:
        """The settings of the run."""
        return self.settings()


RECIPES: dict[str, Recipe] = {}
"""By name. Help, error messages and the table of recipes follow from here."""


def recipe(
    name: str, *, processes: int, top1: str = "none"
) -> Callable[[Callable[[], TrainConfig]], Callable[[], TrainConfig]]:
    """Register a function that returns the settings of a published run."""

    def register(function: Callable[[], TrainConfig]) -> Callable[[], TrainConfig]:
        @functools.cache  # a model is built to check its options, without memory for its weights
        def settings() -> TrainConfig:
            return dataclasses.replace(function(), recipe=name)

        RECIPES[name] = Recipe(settings=settings, processes=processes, top1=top1)
        return function

    return register
