"""Policies as data: which operations, with which probabilities and magnitudes.

Names, numbers and magnitudes are those of timm's `timm.data.auto_augment` (T below) and of torchvision's
`torchvision.transforms.v2` (V); tests compare them with both packages.
"""

import math
from dataclasses import dataclass
from typing import Literal

Kind = Literal[
    "Identity", "ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate",
    "Brightness", "Color", "Contrast", "Sharpness", "Posterize", "Solarize", "SolarizeAdd",
    "AutoContrast", "Equalize", "Invert", "GaussianBlur",
]  # fmt: skip
"""An operation on an image. Shears are tangents, translations pixels, rotations degrees counter-clockwise; Brightness,
Color, Contrast and Sharpness are factors, 1 changes nothing; Posterize keeps so many bits; Solarize inverts values from
its parameter on; SolarizeAdd adds it to values below 128; GaussianBlur is a standard deviation in pixels."""

EraseMode = Literal["const", "rand", "pixel"]


@dataclass(frozen=True)
class Range:
    """The parameter of an operation from its magnitude: from `start` at 0 to `end` at a policy's `top`, linearly."""

    start: float = 0.0
    end: float = 0.0
    signed: bool = False
    """Half of the samples go the other way from `start`."""
    whole: Literal["", "down", "nearest"] = ""
    """Whether the difference from `start` is cut to a whole number, or the result rounded to one."""
    least: float = -math.inf
    most: float = math.inf
    of_side: bool = False
    """Shares of the image's side, not pixels."""
    spread_from: float | None = None
    """The parameter is uniform between this and what the magnitude gives."""


@dataclass(frozen=True)
class Step:
    """An operation of a policy."""

    kind: Kind
    range: Range = Range()
    probability: float = 1.0
    magnitude: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Policy:
    """`rounds` times, one of `choices` is drawn, and its steps are applied in turn."""

    choices: tuple[tuple[Step, ...], ...]
    weights: tuple[float, ...] = ()
    """How likely each choice is; then no choice is drawn twice for an image. Empty: equally, and again."""
    rounds: int = 1
    top: float = 10.0
    """The magnitude at which a range ends."""
    most: float = 10.0
    """Magnitudes are kept in [0, most]."""
    deviation: float = 0.0
    """Standard deviation of magnitudes; infinite: they are uniform between 0 and a step's."""
    bins: bool = False
    """Magnitudes are whole numbers, uniform from 0 to `top`."""
    mean_fill: bool = True
    """Whether geometric operations fill with the mean colour (T), or with black (V)."""

    @property
    def steps(self) -> int:
        """Operations of the longest choice."""
        return max(map(len, self.choices))


@dataclass(frozen=True, kw_only=True)
class AugmentationSettings:
    """Everything that is done to training images after crop and horizontal flip, in this order."""

    vflip: float = 0.0
    policy: Policy | None = None
    jitter: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)
    """Of brightness, contrast, saturation and hue."""
    jitter_probability: float = 1.0
    grayscale_probability: float = 0.0
    blur_probability: float = 0.0
    solarize_probability: float = 0.0
    erase_probability: float = 0.0
    erase_mode: EraseMode = "const"
    erase_count: int = 1

    @property
    def jitters(self) -> bool:
        """Whether there is a colour jitter."""
        return any(self.jitter) and self.jitter_probability > 0

    @property
    def changes_pixels(self) -> bool:
        """Whether anything is done at all."""
        others = (self.vflip, self.grayscale_probability, self.blur_probability, self.solarize_probability)
        return self.policy is not None or self.jitters or any(others) or self.erase_probability > 0


# T: LEVEL_TO_ARG
_ENHANCE = Range(0.1, 1.9)
_ENHANCE_INCREASING = Range(1.0, 1.9, signed=True, least=0.1)
_SHEAR = Range(0.0, 0.3, signed=True)
_TRANSLATE = Range(0.0, 0.45, signed=True, of_side=True)

TIMM: dict[str, tuple[Kind, Range]] = {
    "AutoContrast": ("AutoContrast", Range()),
    "Equalize": ("Equalize", Range()),
    "Invert": ("Invert", Range()),
    "Rotate": ("Rotate", Range(0.0, 30.0, signed=True)),
    "Posterize": ("Posterize", Range(0.0, 4.0, whole="down", most=8.0)),
    "PosterizeIncreasing": ("Posterize", Range(4.0, 0.0, whole="down", least=0.0)),
    "PosterizeOriginal": ("Posterize", Range(4.0, 8.0, whole="down", most=8.0)),
    "Solarize": ("Solarize", Range(0.0, 256.0, whole="down", most=256.0)),
    "SolarizeIncreasing": ("Solarize", Range(256.0, 0.0, whole="down", least=0.0)),
    "SolarizeAdd": ("SolarizeAdd", Range(0.0, 110.0, whole="down", most=128.0)),
    "Color": ("Color", _ENHANCE),
    "ColorIncreasing": ("Color", _ENHANCE_INCREASING),
    "Contrast": ("Contrast", _ENHANCE),
    "ContrastIncreasing": ("Contrast", _ENHANCE_INCREASING),
    "Brightness": ("Brightness", _ENHANCE),
    "BrightnessIncreasing": ("Brightness", _ENHANCE_INCREASING),
    "Sharpness": ("Sharpness", _ENHANCE),
    "SharpnessIncreasing": ("Sharpness", _ENHANCE_INCREASING),
    "ShearX": ("ShearX", _SHEAR),
    "ShearY": ("ShearY", _SHEAR),
    "TranslateXRel": ("TranslateX", _TRANSLATE),
    "TranslateYRel": ("TranslateY", _TRANSLATE),
    "Desaturate": ("Color", Range(0.5, 0.0, least=0.0)),
    "GaussianBlur": ("GaussianBlur", Range(0.1, 2.0, most=2.0)),
    "GaussianBlurRand": ("GaussianBlur", Range(0.0, 2.0, most=2.0, spread_from=0.1)),
}
"""timm's names: what they do, and with which parameter."""

# T: _RAND_TRANSFORMS and the sets that `-t` names
RAND = (
    "AutoContrast", "Equalize", "Invert", "Rotate", "Posterize", "Solarize", "SolarizeAdd", "Color", "Contrast",
    "Brightness", "Sharpness", "ShearX", "ShearY", "TranslateXRel", "TranslateYRel",
)  # fmt: skip
RAND_INCREASING = (
    "AutoContrast", "Equalize", "Invert", "Rotate", "PosterizeIncreasing", "SolarizeIncreasing", "SolarizeAdd",
    "ColorIncreasing", "ContrastIncreasing", "BrightnessIncreasing", "SharpnessIncreasing", "ShearX", "ShearY",
    "TranslateXRel", "TranslateYRel",
)  # fmt: skip
RAND_3A = ("SolarizeIncreasing", "Desaturate", "GaussianBlur")
RAND_WEIGHTED: dict[str, dict[str, float]] = {
    "3aw": {
        "SolarizeIncreasing": 6, "Desaturate": 6, "GaussianBlur": 6, "Rotate": 3, "ShearX": 2, "ShearY": 2,
        "PosterizeIncreasing": 1, "AutoContrast": 1, "ColorIncreasing": 1, "SharpnessIncreasing": 1,
        "ContrastIncreasing": 1, "BrightnessIncreasing": 1, "Equalize": 1, "Invert": 1,
    },
    "weights": {
        "Rotate": 3, "ShearX": 2, "ShearY": 2, "TranslateXRel": 1, "TranslateYRel": 1, "ColorIncreasing": 0.25,
        "SharpnessIncreasing": 0.25, "AutoContrast": 0.25, "SolarizeIncreasing": 0.05, "SolarizeAdd": 0.05,
        "ContrastIncreasing": 0.05, "BrightnessIncreasing": 0.05, "Equalize": 0.05, "PosterizeIncreasing": 0.05,
        "Invert": 0.05,
    },
}  # fmt: skip

Pair = tuple[tuple[str, float, int], ...]

# T: auto_augment_policy_original, the ImageNet policy of arXiv:1805.09501, table 9
ORIGINAL: tuple[Pair, ...] = (
    (("PosterizeOriginal", 0.4, 8), ("Rotate", 0.6, 9)),
    (("Solarize", 0.6, 5), ("AutoContrast", 0.6, 5)),
    (("Equalize", 0.8, 8), ("Equalize", 0.6, 3)),
    (("PosterizeOriginal", 0.6, 7), ("PosterizeOriginal", 0.6, 6)),
    (("Equalize", 0.4, 7), ("Solarize", 0.2, 4)),
    (("Equalize", 0.4, 4), ("Rotate", 0.8, 8)),
    (("Solarize", 0.6, 3), ("Equalize", 0.6, 7)),
    (("PosterizeOriginal", 0.8, 5), ("Equalize", 1.0, 2)),
    (("Rotate", 0.2, 3), ("Solarize", 0.6, 8)),
    (("Equalize", 0.6, 8), ("PosterizeOriginal", 0.4, 6)),
    (("Rotate", 0.8, 8), ("Color", 0.4, 0)),
    (("Rotate", 0.4, 9), ("Equalize", 0.6, 2)),
    (("Equalize", 0.0, 7), ("Equalize", 0.8, 8)),
    (("Invert", 0.6, 4), ("Equalize", 1.0, 8)),
    (("Color", 0.6, 4), ("Contrast", 1.0, 8)),
    (("Rotate", 0.8, 8), ("Color", 1.0, 2)),
    (("Color", 0.8, 8), ("Solarize", 0.8, 7)),
    (("Sharpness", 0.4, 7), ("Invert", 0.6, 8)),
    (("ShearX", 0.6, 5), ("Equalize", 1.0, 9)),
    (("Color", 0.4, 0), ("Equalize", 0.6, 3)),
    (("Equalize", 0.4, 7), ("Solarize", 0.2, 4)),
    (("Solarize", 0.6, 5), ("AutoContrast", 0.6, 5)),
    (("Invert", 0.6, 4), ("Equalize", 1.0, 8)),
    (("Color", 0.6, 4), ("Contrast", 1.0, 8)),
    (("Equalize", 0.8, 8), ("Equalize", 0.6, 3)),
)

# T: auto_augment_policy_v0, that of TensorFlow's EfficientNet
V0: tuple[Pair, ...] = (
    (("Equalize", 0.8, 1), ("ShearY", 0.8, 4)),
    (("Color", 0.4, 9), ("Equalize", 0.6, 3)),
    (("Color", 0.4, 1), ("Rotate", 0.6, 8)),
    (("Solarize", 0.8, 3), ("Equalize", 0.4, 7)),
    (("Solarize", 0.4, 2), ("Solarize", 0.6, 2)),
    (("Color", 0.2, 0), ("Equalize", 0.8, 8)),
    (("Equalize", 0.4, 8), ("SolarizeAdd", 0.8, 3)),
    (("ShearX", 0.2, 9), ("Rotate", 0.6, 8)),
    (("Color", 0.6, 1), ("Equalize", 1.0, 2)),
    (("Invert", 0.4, 9), ("Rotate", 0.6, 0)),
    (("Equalize", 1.0, 9), ("ShearY", 0.6, 3)),
    (("Color", 0.4, 7), ("Equalize", 0.6, 0)),
    (("Posterize", 0.4, 6), ("AutoContrast", 0.4, 7)),
    (("Solarize", 0.6, 8), ("Color", 0.6, 9)),
    (("Solarize", 0.2, 4), ("Rotate", 0.8, 9)),
    (("Rotate", 1.0, 7), ("TranslateYRel", 0.8, 9)),
    (("ShearX", 0.0, 0), ("Solarize", 0.8, 4)),
    (("ShearY", 0.8, 0), ("Color", 0.6, 4)),
    (("Color", 1.0, 0), ("Rotate", 0.6, 2)),
    (("Equalize", 0.8, 4), ("Equalize", 0.0, 8)),
    (("Equalize", 1.0, 4), ("AutoContrast", 0.6, 2)),
    (("ShearY", 0.4, 7), ("SolarizeAdd", 0.6, 7)),
    (("Posterize", 0.8, 2), ("Solarize", 0.6, 10)),
    (("Solarize", 0.6, 8), ("Equalize", 0.6, 1)),
    (("Color", 0.8, 6), ("Rotate", 0.4, 5)),
)

# T: auto_augment_policy_3a, DeiT III's 3-Augment (arXiv:2204.07118)
THREE_AUGMENT: tuple[Pair, ...] = (
    (("Solarize", 1.0, 5),),
    (("Desaturate", 1.0, 10),),
    (("GaussianBlurRand", 1.0, 10),),
)


def varied(pairs: tuple[Pair, ...], posterize: str) -> tuple[Pair, ...]:
    """timm's variants `v0r` and `originalr`: another posterize operation."""

    def renamed(name: str) -> str:
        return posterize if name.startswith("Posterize") else name

    return tuple(tuple((renamed(name), *numbers) for name, *numbers in pair) for pair in pairs)  # type: ignore[misc]


TIMM_AUTO_AUGMENT: dict[str, tuple[Pair, ...]] = {
    "original": ORIGINAL,
    "autoaug": ORIGINAL,
    "originalr": varied(ORIGINAL, "PosterizeIncreasing"),
    "v0": V0,
    "v0r": varied(V0, "PosterizeIncreasing"),
    "3a": THREE_AUGMENT,
}
"""timm's AutoAugment policies by name; `autoaug` is the paper's, as `original` is."""


def timm_steps(name: str, probability: float, magnitude: float) -> tuple[Step, ...]:
    """A choice of one of timm's operations."""
    kind, span = TIMM[name]
    return (Step(kind, span, probability, magnitude),)


def timm_auto_augment(name: str, deviation: float) -> Policy:
    """T: auto_augment_transform."""
    pairs = TIMM_AUTO_AUGMENT[name]
    choices = tuple(tuple(step for entry in pair for step in timm_steps(*entry)) for pair in pairs)
    return Policy(choices=choices, deviation=deviation)


def timm_rand_augment(
    *, magnitude: float, rounds: int, probability: float, deviation: float, most: float, names: str | None, rising: bool
) -> Policy:
    """T: rand_augment_transform; `names` is its `-t`."""
    weighted = RAND_WEIGHTED.get(names or "", {})
    chosen = tuple(weighted) or (RAND_3A if names == "3a" else RAND_INCREASING if rising else RAND)
    return Policy(
        choices=tuple(timm_steps(name, probability, magnitude) for name in chosen),
        weights=tuple(weighted.values()),
        rounds=rounds,
        deviation=deviation,
        most=most,
    )


# V: RandAugment._AUGMENTATION_SPACE and AutoAugment._AUGMENTATION_SPACE
_V_ENHANCE = Range(1.0, 1.9, signed=True)
_V_TRANSLATE = Range(0.0, 150 / 331, signed=True, of_side=True, whole="down")
TORCHVISION: dict[Kind, Range] = {
    "Identity": Range(),
    "ShearX": _SHEAR,
    "ShearY": _SHEAR,
    "TranslateX": _V_TRANSLATE,
    "TranslateY": _V_TRANSLATE,
    "Rotate": Range(0.0, 30.0, signed=True),
    "Brightness": _V_ENHANCE,
    "Color": _V_ENHANCE,
    "Contrast": _V_ENHANCE,
    "Sharpness": _V_ENHANCE,
    "Posterize": Range(8.0, 4.0, whole="nearest"),
    "Solarize": Range(255.0, 0.0),
    "AutoContrast": Range(),
    "Equalize": Range(),
}

# V: TrivialAugmentWide._AUGMENTATION_SPACE (arXiv:2103.10158)
_WIDE_ENHANCE = Range(1.0, 1.99, signed=True)
_WIDE_SHEAR = Range(0.0, 0.99, signed=True)
_WIDE_TRANSLATE = Range(0.0, 32.0, signed=True, whole="down")
TORCHVISION_WIDE: dict[Kind, Range] = {
    **TORCHVISION,
    "ShearX": _WIDE_SHEAR,
    "ShearY": _WIDE_SHEAR,
    "TranslateX": _WIDE_TRANSLATE,
    "TranslateY": _WIDE_TRANSLATE,
    "Rotate": Range(0.0, 135.0, signed=True),
    "Brightness": _WIDE_ENHANCE,
    "Color": _WIDE_ENHANCE,
    "Contrast": _WIDE_ENHANCE,
    "Sharpness": _WIDE_ENHANCE,
    "Posterize": Range(8.0, 2.0, whole="nearest"),
}

TORCHVISION_TOP = 30.0
"""Its RandAugment and TrivialAugmentWide have 31 magnitudes."""


def trivial_augment_wide() -> Policy:
    """V: TrivialAugmentWide."""
    choices = tuple((Step(kind, span),) for kind, span in TORCHVISION_WIDE.items())
    return Policy(choices=choices, top=TORCHVISION_TOP, most=TORCHVISION_TOP, bins=True, mean_fill=False)


def torchvision_rand_augment(magnitude: int, rounds: int) -> Policy:
    """V: RandAugment."""
    choices = tuple((Step(kind, span, magnitude=magnitude),) for kind, span in TORCHVISION.items())
    return Policy(choices=choices, rounds=rounds, top=TORCHVISION_TOP, most=TORCHVISION_TOP, mean_fill=False)


def torchvision_auto_augment() -> Policy:
    """V: AutoAugment with the ImageNet policy: the paper's operations and magnitudes, of which there are ten."""
    spans = TORCHVISION | {"Invert": Range()}

    def step(name: str, probability: float, magnitude: float) -> Step:
        kind = TIMM[name][0]
        return Step(kind, spans[kind], probability, magnitude)

    choices = tuple(tuple(step(*entry) for entry in pair) for pair in ORIGINAL)
    return Policy(choices=choices, top=9.0, most=9.0, mean_fill=False)
