"""Policies next to timm's and torchvision's own tables and functions."""

import math
import random
from typing import Any

import numpy as np
import pytest
from timm.data import auto_augment as timm_ops
from torchvision.transforms import v2

from tests.helpers.reference_tables import augmentation_space, auto_augment_policies, timm_tables
from train.augmentation import policies
from train.augmentation.draws import KINDS, Draws, PolicyDraws
from train.augmentation.policies import AugmentationSettings, Kind, Policy, Range, Step
from train.augmentation.strings import parse

SIDE = 200
KEYS = np.arange(400)


def parameters(step: Step, **settings: Any) -> np.ndarray:
    """What 400 samples get of an operation that is always applied."""
    (stage,) = PolicyDraws(Policy(choices=((step,),), **settings)).stages(0, 0, KEYS, SIDE)
    assert set(stage.kinds.tolist()) == {KINDS.index(step.kind)}
    return stage.parameters


def timm_argument(name: str, magnitude: float) -> float:
    """One of timm's arguments, as the parameter of our operation."""
    function = timm_ops.LEVEL_TO_ARG[name]
    if function is None:
        return 0.0
    (argument,) = function(magnitude, {})
    if name == "Desaturate":
        return 1.0 - float(argument)
    return float(argument * SIDE if name.startswith("Translate") else argument)


@pytest.mark.parametrize("name", policies.TIMM)
def test_magnitudes_mean_what_they_mean_in_timm(name: str) -> None:
    random.seed(0)
    kind, span = policies.TIMM[name]
    for magnitude in (0, 0.5, 3, 5, 7.3, 9, 10, 25):
        ours = parameters(Step(kind, span, 1.0, magnitude), most=30.0)
        if name == "GaussianBlurRand":
            top = 2.0 * timm_argument(name, magnitude)
            low, high = min(0.1, top), max(0.1, top)
            assert low - 1e-9 <= ours.min() <= low + 0.05
            assert high - 0.05 <= ours.max() <= high + 1e-9
            continue
        theirs = {round(timm_argument(name, magnitude), 9) for _ in range(100)}
        found = {round(value, 9) + 0.0 for value in ours.tolist()}
        if kind == "Posterize":  # 8 bits and more change nothing, 0 and fewer are black
            theirs = {min(8.0, max(0.0, value)) for value in theirs}
        assert found == theirs, magnitude


def test_the_lists_are_timms() -> None:
    tables = timm_tables()
    assert list(policies.RAND) == tables["rand"]
    assert list(policies.RAND_INCREASING) == tables["increasing"]
    assert list(policies.RAND_3A) == tables["3a"]
    assert {name: tables[name] for name in ("3aw", "weights")} == policies.RAND_WEIGHTED
    for name, pairs in policies.TIMM_AUTO_AUGMENT.items():
        theirs = timm_ops.auto_augment_policy("original" if name == "autoaug" else name)
        assert [[(op.name, op.prob, op.magnitude) for op in pair] for pair in theirs] == [list(pair) for pair in pairs]


def torchvision_parameter(kind: str, magnitude: float) -> float:
    """What torchvision's policies hand their kernels, as the parameter of our operation."""
    if kind in ("Brightness", "Color", "Contrast", "Sharpness"):
        return 1.0 + magnitude
    if kind in ("TranslateX", "TranslateY"):
        return float(int(magnitude + math.copysign(1e-4, magnitude)))  # its linspace falls short of 16 by 1e-6
    return magnitude * 255 if kind == "Solarize" else magnitude


@pytest.mark.parametrize(
    ("theirs", "ours", "bins"),
    [
        (v2.TrivialAugmentWide, policies.TORCHVISION_WIDE, 31),
        (v2.RandAugment, policies.TORCHVISION, 31),
        (v2.AutoAugment, policies.TORCHVISION | {"Invert": Range()}, 10),
    ],
)
def test_magnitudes_mean_what_they_mean_in_torchvision(theirs: Any, ours: dict[Kind, Range], bins: int) -> None:
    space = augmentation_space(theirs)
    assert space.keys() | {"Identity"} == ours.keys() | {"Identity"}
    for kind, (function, signed) in space.items():
        magnitudes = function(bins, SIDE, SIDE)
        for number in range(bins):
            found = parameters(Step(kind, ours[kind], 1.0, number), top=bins - 1.0, most=bins - 1.0)
            if magnitudes is not None:
                value = float(magnitudes[number])
                expected = {torchvision_parameter(kind, sign * value) for sign in ((1, -1) if signed else (1,))}
                assert found.min() == pytest.approx(min(expected), abs=1e-3)
                assert found.max() == pytest.approx(max(expected), abs=1e-3)
                assert len(set(found.tolist())) == len(expected)


def test_the_imagenet_policy_is_torchvisions() -> None:
    theirs = auto_augment_policies()
    ours = parse("imagenet").choices
    for pair, steps in zip(theirs, ours, strict=True):
        for (kind, probability, magnitude), step in zip(pair, steps, strict=True):
            assert (step.kind, step.probability) == (kind, probability)
            assert magnitude is None or step.magnitude == magnitude


def chosen_kinds(text: str, count: int = 6000) -> np.ndarray:
    """The operations of many samples, [count, stages]."""
    stages = Draws(AugmentationSettings(policy=parse(text))).stages(3, 1, np.arange(count), SIDE)
    return np.stack([stage.kinds for stage in stages], axis=1)


def test_operations_are_equally_likely_and_independent() -> None:
    kinds = chosen_kinds("ta_wide")
    counts = np.bincount(kinds[:, 0], minlength=len(KINDS))[: len(KINDS)]
    assert (counts > 0).sum() == 14
    assert np.abs(counts[counts > 0] / len(kinds) - 1 / 14).max() < 0.015
    twice = chosen_kinds("rand-m9-n2")
    assert np.mean(twice == 0) == pytest.approx(0.5, abs=0.02)  # each is applied with probability 0.5
    both = np.mean((twice[:, 0] == 0) & (twice[:, 1] == 0))
    assert both == pytest.approx(0.25, abs=0.02)
    assert np.mean((twice[:, 0] == twice[:, 1]) & (twice[:, 0] > 0)) == pytest.approx(0.25 / 15, abs=0.006)


def test_weighted_operations_are_drawn_by_weight_and_only_once() -> None:
    kinds = chosen_kinds("rand-m9-n3-p1-tweights")
    assert all(len(set(row)) == 3 for row in kinds.tolist())
    weights = policies.RAND_WEIGHTED["weights"]
    share = np.mean(kinds[:, 0] == KINDS.index("Rotate"))
    assert share == pytest.approx(weights["Rotate"] / sum(weights.values()), abs=0.02)


@pytest.mark.parametrize(
    ("text", "mean", "deviation"),
    [("rand-m5-n1-p1-mstd0.5", 5, 0.5), ("rand-m5-n1-p1-mstd101", 2.5, 5 / math.sqrt(12)), ("rand-m5-n1-p1", 5, 0)],
)
def test_magnitudes_vary_as_in_timm(text: str, mean: float, deviation: float) -> None:
    (stage,) = Draws(AugmentationSettings(policy=parse(text))).stages(0, 0, np.arange(20_000), SIDE)
    sharpness = stage.parameters[stage.kinds == KINDS.index("Sharpness")]
    magnitudes = (sharpness - 0.1) / 0.18
    assert magnitudes.mean() == pytest.approx(mean, abs=0.12)
    assert magnitudes.std() == pytest.approx(deviation, abs=0.08)


def test_jitter_is_that_of_torchvision() -> None:
    settings = AugmentationSettings(jitter=(0.4, 1.5, 0.2, 0.1))
    stages = Draws(settings).stages(0, 0, np.arange(4000), SIDE)
    theirs = v2.ColorJitter(0.4, 1.5, 0.2, 0.1)
    ranges = zip(
        ("Brightness", "Contrast", "Color", "Hue"),
        (theirs.brightness, theirs.contrast, theirs.saturation, theirs.hue),
        strict=True,
    )
    for kind, (low, high) in ranges:
        values = np.concatenate([stage.parameters[stage.kinds == KINDS.index(kind)] for stage in stages])
        assert len(values) == 4000
        assert low <= values.min() < low + 0.01 * (high - low) < high - 0.01 * (high - low) < values.max() <= high
    firsts = np.bincount(stages[0].kinds, minlength=len(KINDS))
    assert np.abs(firsts[firsts > 0] / 4000 - 0.25).max() < 0.03  # each is as often the first


def test_draws_are_those_of_each_sample_alone() -> None:
    settings = AugmentationSettings(policy=parse("rand-m9-n3-mstd0.5"), jitter=(0.4, 0.4, 0.4, 0), blur_probability=0.5)
    draws, keys = Draws(settings), np.array([5, 5 | 1 << 34, 9, 70_000])
    together = draws.stages(1, 2, keys, SIDE)
    for row, key in enumerate(keys):
        alone = draws.stages(1, 2, keys[row : row + 1], SIDE)
        described = [(int(stage.kinds[0]), float(stage.parameters[0])) for stage in alone if stage.kinds[0]]
        assert described == [
            (int(stage.kinds[row]), float(stage.parameters[row])) for stage in together if stage.kinds[row]
        ], key
    first, repeat = ([float(stage.parameters[row]) for stage in together] for row in (0, 1))
    assert first != repeat
