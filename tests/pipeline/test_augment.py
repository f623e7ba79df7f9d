"""Crops and flips: the generator against its published numbers, the crops against torchvision's."""

import json
import os
import subprocess
import sys
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchvision.transforms import RandomResizedCrop

from pipeline import augment
from pipeline.augment import center_crop, philox4x32, random_flip, random_resized_crop, random_words

ROOT = Path(augment.__file__).parents[1]

AREA, RATIO = (0.08, 1.0), (3 / 4, 4 / 3)

sides = st.integers(1, 6000)
seeds = st.integers(0, (1 << 63) - 1)
epochs = st.integers(0, (1 << 32) - 1)
samples = st.integers(0, (1 << 40) - 1)


def crop_of(seed: int, epoch: int, sample: int, height: int, width: int) -> tuple[int, int, int, int]:
    return random_resized_crop(seed, epoch, sample, height, width, *AREA, *RATIO)


# Random123's kat_vectors: counter, key, result.
KNOWN_ANSWERS = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]


@pytest.mark.parametrize(("counter", "key", "result"), KNOWN_ANSWERS)
def test_philox_gives_the_known_answers(counter: str, key: str, result: str) -> None:
    words = [np.uint64(int(word, 16)) for word in f"{counter} {key}".split()]
    assert [f"{word:08x}" for word in philox4x32(*words)] == result.split()


def test_words_of_a_draw_are_philox_of_sample_epoch_draw_and_seed() -> None:
    seed, epoch, sample, draw = 0x299F31D0A4093822, 0x13198A2E, 0x05A308D3243F6A88, 3
    counter = (0x243F6A88, 0x05A308D3, 0x13198A2E, 3)
    expected = philox4x32(*map(np.uint64, (*counter, 0xA4093822, 0x299F31D0)))
    assert random_words(seed, epoch, sample, draw) == expected


def test_crops_and_flips_are_the_same_without_the_compiler() -> None:
    """NUMBA_DISABLE_JIT makes the same source run as plain Python."""
    cases = list(product((0, 2**62 + 1), (0, 7, 2**32 - 1), (0, 123_456_789_012), (1, 97, 500), (1, 333, 4000)))
    code = (
        "import json, sys; from pipeline.augment import *; cases = json.load(sys.stdin);"
        f"crop = lambda case: [int(x) for x in random_resized_crop(*case, *{AREA + RATIO})];"
        "print(json.dumps([[crop(case), bool(random_flip(*case[:3], 0.5))] for case in cases]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        input=json.dumps(cases),
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "NUMBA_DISABLE_JIT": "1"},
        check=True,
    )
    compiled = [[list(crop_of(*case)), random_flip(*case[:3], 0.5)] for case in cases]
    assert json.loads(done.stdout) == compiled


@given(seed=seeds, epoch=epochs, sample=samples, height=sides, width=sides)
def test_crop_lies_inside_the_image(seed: int, epoch: int, sample: int, height: int, width: int) -> None:
    top, left, crop_height, crop_width = crop_of(seed, epoch, sample, height, width)
    assert crop_height >= 1
    assert crop_width >= 1
    assert 0 <= top <= height - crop_height
    assert 0 <= left <= width - crop_width


@given(seed=seeds, sample=samples, height=st.integers(150, 6000), width=st.integers(150, 6000))
def test_area_and_ratio_are_in_their_ranges(seed: int, sample: int, height: int, width: int) -> None:
    """Up to the rounding of both sides to whole pixels, and but for the fallback, which takes a full side."""
    _, _, crop_height, crop_width = crop_of(seed, 0, sample, height, width)
    if crop_height == height or crop_width == width:
        return
    rounding = (1 + 0.5 / (crop_height - 0.5)) * (1 + 0.5 / (crop_width - 0.5))
    assert AREA[0] / rounding <= crop_height * crop_width / (height * width) <= AREA[1] * rounding
    assert RATIO[0] / rounding <= crop_width / crop_height <= RATIO[1] * rounding


@given(short=st.integers(6, 400), times=st.integers(20, 60), extra=st.integers(0, 19), upright=st.booleans())
def test_fallback_is_torchvisions(short: int, times: int, extra: int, upright: bool) -> None:
    """In an image 20 times as wide as high the smallest crop is too high, so every try fails."""
    height, width = (short * times + extra, short) if upright else (short, short * times + extra)
    expected = RandomResizedCrop.get_params(torch.empty(3, height, width), list(AREA), list(RATIO))
    assert crop_of(0, 0, 0, height, width) == tuple(expected)


@pytest.mark.parametrize(("height", "width"), [(375, 500), (500, 375), (333, 333), (120, 400)])
def test_crops_are_distributed_as_torchvisions(height: int, width: int) -> None:
    count = 4000
    torch.manual_seed(0)
    image = torch.empty(3, height, width)
    theirs = np.array([RandomResizedCrop.get_params(image, list(AREA), list(RATIO)) for _ in range(count)])
    ours = np.array([crop_of(0, 0, sample, height, width) for sample in range(count)])

    def described(crops: np.ndarray) -> dict[str, np.ndarray]:
        top, left, crop_height, crop_width = crops.T
        return {
            "area": crop_height * crop_width / (height * width),
            "log ratio": np.log(crop_width / crop_height),
            "vertical centre": (top + crop_height / 2) / height,
            "horizontal centre": (left + crop_width / 2) / width,
        }

    # The 10, 50 and 90 % quantiles of 4000 draws differ by up to 0.03 between two seeds of torchvision's.
    for name, values in described(ours).items():
        expected = described(theirs)[name]
        assert values.mean() == pytest.approx(expected.mean(), abs=0.02), name
        levels = [0.1, 0.5, 0.9]
        assert np.quantile(values, levels) == pytest.approx(np.quantile(expected, levels), abs=0.04), name


def test_crops_reach_every_edge_of_the_image() -> None:
    crops = np.array([crop_of(0, 0, sample, 40, 40) for sample in range(2000)])
    for first, length in (crops[:, [0, 2]].T, crops[:, [1, 3]].T):
        smaller = length < 40
        assert first[smaller].min() == 0
        assert (first + length)[smaller].max() == 40


def test_every_seed_epoch_and_sample_has_a_crop_of_its_own() -> None:
    keys = list(product((0, 1, 1 << 32), (0, 1, 2), (0, 1, 2, 1 << 32)))
    crops = {crop_of(*key, 4001, 5003) for key in keys}
    assert len(crops) == len(keys)


def test_a_crop_is_the_same_every_time() -> None:
    assert crop_of(5, 6, 7, 480, 640) == crop_of(5, 6, 7, 480, 640)


@pytest.mark.parametrize("probability", [0.0, 0.25, 0.5, 1.0])
def test_flips_are_as_frequent_as_asked_for(probability: float) -> None:
    flips = [random_flip(0, epoch, sample, probability) for epoch in range(10) for sample in range(1000)]
    assert np.mean(flips) == pytest.approx(probability, abs=0.02)


def test_flips_do_not_go_with_the_crop() -> None:
    """Images that are flipped are cropped as the others are."""
    flips = np.array([random_flip(0, 0, sample, 0.5) for sample in range(4000)])
    lefts = np.array([crop_of(0, 0, sample, 300, 300)[1] for sample in range(4000)])
    assert lefts[flips].mean() == pytest.approx(lefts[~flips].mean(), abs=5)


@given(height=sides, width=sides, share=st.floats(0.01, 1.0))
def test_center_crop_is_a_centred_square_of_the_shorter_side(height: int, width: int, share: float) -> None:
    top, left, crop_height, crop_width = center_crop(height, width, share)
    assert crop_height == crop_width
    assert crop_width == pytest.approx(max(1, min(height, width) * share), abs=0.5)
    assert 0 <= height - crop_height - 2 * top <= 1
    assert 0 <= width - crop_width - 2 * left <= 1


def test_center_crop_of_imagenets_usual_size() -> None:
    assert center_crop(375, 500, 224 / 256) == (23, 86, 328, 328)
