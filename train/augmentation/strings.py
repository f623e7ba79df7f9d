"""Policies in timm's and torchvision's notation: `rand-m9-n3-mstd0.5`, `original`, `ta_wide`."""

import math
import re

from pipeline.errors import did_you_mean
from train.augmentation import policies
from train.augmentation.policies import Policy

NAMES = ("rand", *policies.TIMM_AUTO_AUGMENT, "ta_wide", "ra", "imagenet")
"""What a policy's text begins with: timm's, then torchvision's."""

_NUMBER = r"(\d+(?:\.\d+)?|inf)"
_LARGEST_MAGNITUDE, _MOST_ROUNDS = 100.0, 16
_UNIFORM_FROM = 100.0  # timm: larger deviations mean uniform magnitudes
_UNSUPPORTED = {"augmix": "AugMix mixes several chains of operations, which is not supported"}


def parse_optional(text: str | None) -> Policy | None:
    """`parse`, and None of None."""
    return None if text is None else parse(text)


def parse(text: str) -> Policy:
    """The policy that a text names: a name of NAMES, and options after dashes. Raises ValueError.

    rand: m (magnitude, 10), n (operations, 2), p (probability of each, 0.5), mstd (standard deviation of the magnitude;
    above 100, or inf: uniform from 0 to m), mmax (largest magnitude, 10), inc (1: all operations grow with the
    magnitude), t (set of operations: 3a, 3aw or weights). timm's AutoAugment policies: mstd. ra: m (9 of 30), n (2).
    """
    name, *words = text.split("-")
    if name in policies.TIMM_AUTO_AUGMENT:
        options = _options(words, "mstd")
        return policies.timm_auto_augment(name, _deviation(options))
    if name == "rand":
        return _rand(words)
    if name == "ra":
        return _torchvision_rand(words)
    if name in ("ta_wide", "imagenet"):
        _options(words)
        return policies.trivial_augment_wide() if name == "ta_wide" else policies.torchvision_auto_augment()
    reason = _UNSUPPORTED.get(name, f"unknown{did_you_mean(name, NAMES)}")
    raise ValueError(f"{reason}; there are {', '.join(NAMES)}")


def _rand(words: list[str]) -> Policy:
    sets = [word[1:] for word in words if word.startswith("t")]
    known = ("3a", *policies.RAND_WEIGHTED)
    if len(sets) > 1 or not set(sets) <= set(known):
        raise ValueError(f"t must be one of {', '.join(known)}")
    options = _options([word for word in words if not word.startswith("t")], "m", "n", "p", "mstd", "mmax", "inc")
    most = _in_range(options, "mmax", 10.0, least=1.0)
    rounds, weighted = _whole(options, "n", 2, 1, _MOST_ROUNDS), policies.RAND_WEIGHTED.get(sets[0] if sets else "")
    if weighted and rounds > len(weighted):
        raise ValueError(f"n must be at most {len(weighted)}, the operations of t{sets[0]}: none is drawn twice")
    return policies.timm_rand_augment(
        magnitude=_in_range(options, "m", 10.0, most=most),
        rounds=rounds,
        probability=_in_range(options, "p", 0.5, most=1.0),
        deviation=_deviation(options),
        most=most,
        names=sets[0] if sets else None,
        rising=bool(_whole(options, "inc", 0, 0, 1)),
    )


def _torchvision_rand(words: list[str]) -> Policy:
    options = _options(words, "m", "n")
    magnitude = _whole(options, "m", 9, 0, int(policies.TORCHVISION_TOP))
    return policies.torchvision_rand_augment(magnitude, _whole(options, "n", 2, 1, _MOST_ROUNDS))


def _options(words: list[str], *known: str) -> dict[str, float]:
    options: dict[str, float] = {}
    for word in words:
        match = re.fullmatch(rf"([a-z]+){_NUMBER}", word, re.ASCII)
        if match is None or match[1] not in known:
            options_are = f"there are {', '.join(known)}, each with a number" if known else "there are none"
            raise ValueError(f"-{word} is no option of this policy; {options_are}")
        if match[1] in options:
            raise ValueError(f"{match[1]} is given twice")
        options[match[1]] = float(match[2])
    return options


def _in_range(
    options: dict[str, float], name: str, default: float, least: float = 0.0, most: float = _LARGEST_MAGNITUDE
) -> float:
    value = options.get(name, min(default, most))
    if not least <= value <= most:
        raise ValueError(f"{name} must be in [{least:g}, {most:g}]")
    return value


def _whole(options: dict[str, float], name: str, default: int, least: int, most: int) -> int:
    value = _in_range(options, name, default, least, most)
    if value != int(value):
        raise ValueError(f"{name} must be a whole number")
    return int(value)


def _deviation(options: dict[str, float]) -> float:
    deviation = options.get("mstd", 0.0)
    return math.inf if deviation > _UNIFORM_FROM else deviation


def jitter(numbers: tuple[float, ...]) -> tuple[float, float, float, float]:
    """--color-jitter as brightness, contrast, saturation and hue. Raises ValueError."""
    if len(numbers) not in (0, 1, 3, 4):
        raise ValueError("must be one number, or three or four: brightness, contrast, saturation, hue")
    if not all(0 <= number < math.inf for number in numbers):
        raise ValueError("must be numbers of at least 0")
    if len(numbers) == 4 and numbers[3] > 0.5:
        raise ValueError("hue must be at most 0.5")
    brightness, contrast, saturation = (numbers * 3)[:3] if numbers else (0.0, 0.0, 0.0)
    return brightness, contrast, saturation, numbers[3] if len(numbers) == 4 else 0.0
