"""What is done to each sample: operations and parameters, drawn for a whole batch at once."""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.order.plan import Indices
from pipeline.order.random import COLOUR_DRAW, POLICY_DRAW, random_uniforms
from train.augmentation.blur import LARGEST_DEVIATION
from train.augmentation.policies import AugmentationSettings, Policy, Step

Floats = NDArray[np.float64]

KINDS = (
    "Identity", "ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate", "Brightness", "Color", "Contrast",
    "Sharpness", "Posterize", "Solarize", "SolarizeAdd", "AutoContrast", "Equalize", "Invert", "GaussianBlur", "Hue",
)  # fmt: skip
"""Operations by number."""
_NUMBER = {kind: number for number, kind in enumerate(KINDS)}
_JITTERED = np.array([_NUMBER[kind] for kind in ("Brightness", "Contrast", "Color", "Hue")])
_LEAST_DEVIATION = 0.1
_SOLARIZE_FROM = 128.0


class Stage(NamedTuple):
    """An operation for each sample: its number in KINDS, int64 [B], and its parameter, float64 [B]."""

    kinds: Indices
    parameters: Floats


class PolicyDraws:
    """Draws a policy's operations."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        padded = [(*choice, *[Step("Identity")] * (policy.steps - len(choice))) for choice in policy.choices]

        def column(values: list[list[float]]) -> Floats:
            return np.array(values, np.float64)

        def of_steps(name: str) -> Floats:
            return column([[getattr(step, name) for step in choice] for choice in padded])

        def of_ranges(name: str) -> Floats:
            return column([[getattr(step.range, name) for step in choice] for choice in padded])

        self._kinds = column([[_NUMBER[step.kind] for step in choice] for choice in padded]).astype(np.int64)
        self._probability, self._magnitude = of_steps("probability"), of_steps("magnitude")
        self._start, self._end = of_ranges("start"), of_ranges("end")
        self._least, self._most = of_ranges("least"), of_ranges("most")
        self._signed, self._of_side = of_ranges("signed") > 0, of_ranges("of_side") > 0
        self._down = column([[step.range.whole == "down" for step in choice] for choice in padded]) > 0
        self._nearest = column([[step.range.whole == "nearest" for step in choice] for choice in padded]) > 0
        self._spread_from = of_ranges("spread_from")  # NaN where a range has none

    def stages(self, seed: int, epoch: int, keys: Indices, side: int) -> list[Stage]:
        """The operations of samples with these keys, int64 [B], on images of `side` x `side`, in turn."""
        policy = self._policy
        uniforms = random_uniforms(seed, epoch, keys, POLICY_DRAW, 2 * policy.rounds * policy.steps)
        stages = []
        for number, chosen in enumerate(self._chosen(uniforms[:, :: 2 * policy.steps, 0])):
            for step in range(policy.steps):
                first = 2 * (number * policy.steps + step)
                stages.append(self._stage(chosen, step, uniforms[:, first], uniforms[:, first + 1], side))
        return stages

    def _chosen(self, uniforms: Floats) -> list[Indices]:
        """The choice of each round, from float64 [B, rounds]."""
        count = len(self._policy.choices)
        if not self._policy.weights:
            return list((uniforms.T * count).astype(np.int64))
        weights = np.tile(self._policy.weights, (len(uniforms), 1))
        chosen = []
        for number in range(self._policy.rounds):
            sums = weights.cumsum(1)
            below = sums <= uniforms[:, number, None] * sums[:, -1:]
            chosen.append(np.minimum(below.sum(1), count - 1))
            weights[np.arange(len(weights)), chosen[-1]] = 0
        return chosen

    def _stage(self, chosen: Indices, step: int, words: Floats, others: Floats, side: int) -> Stage:
        """`words` and `others` are the step's two draws, float64 [B, 4] each."""
        at = chosen, np.full(len(chosen), step)
        applied = words[:, 1] < self._probability[at]
        magnitude = self._magnitudes(self._magnitude[at], others)
        start, end = self._start[at], self._end[at]
        difference = (end - start) * magnitude / self._policy.top
        difference = np.where(self._of_side[at], difference * side, difference)
        difference = np.where(self._signed[at] & (words[:, 2] < 0.5), -difference, difference)
        difference = np.where(self._down[at], np.trunc(difference), difference)
        value = np.clip(start + difference, self._least[at], self._most[at])
        value = np.where(self._nearest[at], np.rint(value), value)
        spread = self._spread_from[at]
        value = np.where(np.isnan(spread), value, spread + (value - spread) * words[:, 3])
        return Stage(np.where(applied, self._kinds[at], 0), value)

    def _magnitudes(self, magnitude: Floats, uniforms: Floats) -> Floats:
        policy = self._policy
        if policy.bins:
            return np.floor(uniforms[:, 0] * (policy.top + 1))
        if policy.deviation == math.inf:
            magnitude = magnitude * uniforms[:, 0]
        elif policy.deviation > 0:
            normal = np.sqrt(-2 * np.log1p(-uniforms[:, 0])) * np.cos(2 * math.pi * uniforms[:, 1])  # Box and Muller
            magnitude = magnitude + policy.deviation * normal
        return np.clip(magnitude, 0, policy.most)


class Draws:
    """Draws everything of `AugmentationSettings` but the flip and the erasing."""

    def __init__(self, settings: AugmentationSettings) -> None:
        self._settings = settings
        self._policy = settings.policy and PolicyDraws(settings.policy)

    def flipped(self, seed: int, epoch: int, keys: Indices) -> Indices:
        """The rows, int64, of the images that are turned upside down."""
        return np.flatnonzero(random_uniforms(seed, epoch, keys, COLOUR_DRAW, 1)[:, 0, 0] < self._settings.vflip)

    def stages(self, seed: int, epoch: int, keys: Indices, side: int) -> list[Stage]:
        """The operations of samples with these keys, int64 [B], on images of `side` x `side`, in turn."""
        settings = self._settings
        stages = self._policy.stages(seed, epoch, keys, side) if self._policy else []
        uniforms = random_uniforms(seed, epoch, keys, COLOUR_DRAW, 4)
        if settings.jitters:
            stages += _jitter(settings, uniforms[:, 0, 1], uniforms[:, 1], uniforms[:, 2])
        grey, blurred, deviation, solarized = uniforms[:, 3].T
        deviation = _LEAST_DEVIATION + (LARGEST_DEVIATION - _LEAST_DEVIATION) * deviation
        zeros = np.zeros(len(keys))
        stages += _sometimes("Color", grey < settings.grayscale_probability, zeros)
        stages += _sometimes("GaussianBlur", blurred < settings.blur_probability, deviation)
        stages += _sometimes("Solarize", solarized < settings.solarize_probability, zeros + _SOLARIZE_FROM)
        return stages


def _sometimes(kind: str, applied: NDArray[np.bool_], parameters: Floats) -> list[Stage]:
    return [Stage(np.where(applied, _NUMBER[kind], 0), parameters)] if applied.any() else []


def _jitter(settings: AugmentationSettings, chance: Floats, words: Floats, order: Floats) -> list[Stage]:
    """torchvision's ColorJitter: its four operations in an order of each sample's own."""
    *spreads, hue = settings.jitter
    low, high = np.maximum(0, 1 - np.array([*spreads, 0])), 1 + np.array([*spreads, 0])
    low[3], high[3] = -hue, hue
    parameters = low + (high - low) * words
    applied = (chance < settings.jitter_probability)[:, None] & (np.array(settings.jitter) > 0)
    kinds = np.where(applied, _JITTERED, 0)
    orders = np.argsort(order, axis=1)
    kinds, parameters = np.take_along_axis(kinds, orders, 1), np.take_along_axis(parameters, orders, 1)
    return [Stage(kinds[:, number], parameters[:, number]) for number in range(4)]
