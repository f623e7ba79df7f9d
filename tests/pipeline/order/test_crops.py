"""Crops and flips, next to torchvision's."""

import json
import os
import subprocess
import sys
from itertools import product
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torchvision.transforms import RandomResizedCrop
from torchvision.transforms.v2 import functional

from pipeline.order import random
from pipeline.order.crops import CropPolicy, Interpolation, center_crop, random_flip, random_resized_crop

ROOT = Path(random.__file__).parents[2]

AREA, RATIO = (0.08, 1.0), (3 / 4, 4 / 3)

sides = st.integers(1, 6000)
seeds = st.integers(0, (1 << 63) - 1)
epochs = st.integers(0, (1 << 32) - 1)
samples = st.integers(0, (1 << 40) - 1)


def crop_of(seed: int, epoch: int, sample: int, height: int, width: int) -> tuple[int, int, int, int]:
    top, left, crop_height, crop_width = random_resized_crop(seed, epoch, sample, height, width, *AREA, *RATIO)
    return top, left, crop_height, crop_width


def test_crops_and_flips_are_the_same_without_the_compiler() -> None:
    """NUMBA_DISABLE_JIT makes the same source run as plain Python."""
    cases = list(product((0, 2**62 + 1), (0, 7, 2**32 - 1), (0, 123_456_789_012), (1, 97, 500), (1, 333, 4000)))
    code = (
        "import json, sys; from pipeline.order.crops import *; cases = json.load(sys.stdin);"
        f"crop = lambda case: [int(x) for x in random_resized_crop(*case, *{AREA + RATIO})];"
        "centre = lambda case: [list(map(float, part)) for part in center_crop(*case[3:], 256, 224, False)];"
        "print(json.dumps([[crop(case), bool(random_flip(*case[:3], 0.5)), centre(case)] for case in cases]))"
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
    compiled = [
        [list(crop_of(*case)), random_flip(*case[:3], 0.5), [*map(list, center_crop(*case[3:], 256, 224, False))]]
        for case in cases
    ]
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
    """Up to the rounding of both sides to whole pixels; the fallback, which takes a full side, is left out."""
    _, _, crop_height, crop_width = crop_of(seed, 0, sample, height, width)
    if crop_height == height or crop_width == width:
        return
    rounding = (1 + 0.5 / (crop_height - 0.5)) * (1 + 0.5 / (crop_width - 0.5))
    assert AREA[0] / rounding <= crop_height * crop_width / (height * width) <= AREA[1] * rounding
    assert RATIO[0] / rounding <= crop_width / crop_height <= RATIO[1] * rounding


@given(short=st.integers(6, 400), times=st.integers(20, 60), extra=st.integers(0, 19), upright=st.booleans())
def test_the_fallback_is_that_of_torchvision(short: int, times: int, extra: int, upright: bool) -> None:
    """In an image 20 times as wide as high the smallest crop is too high, so every attempt fails."""
    height, width = (short * times + extra, short) if upright else (short, short * times + extra)
    expected = RandomResizedCrop.get_params(torch.empty(3, height, width), list(AREA), list(RATIO))
    assert crop_of(0, 0, 0, height, width) == tuple(expected)


@pytest.mark.parametrize(("height", "width"), [(375, 500), (500, 375), (333, 333), (120, 400)])
def test_crops_are_distributed_as_those_of_torchvision(height: int, width: int) -> None:
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


def test_flips_do_not_depend_on_the_crop() -> None:
    """Flipped images are cropped as the others are."""
    flips = np.array([random_flip(0, 0, sample, 0.5) for sample in range(4000)])
    lefts = np.array([crop_of(0, 0, sample, 300, 300)[1] for sample in range(4000)])
    assert lefts[flips].mean() == pytest.approx(lefts[~flips].mean(), abs=5)


# Resize's side and CenterCrop's, which is also the output's. A crop larger than the resized image is padded.
val_sides = st.tuples(st.integers(1, 400), st.integers(1, 400))


def axis_centres(side: int, axis: int, size: tuple[int, int], resize: int, crop: int) -> tuple[np.ndarray, np.ndarray]:
    """Where torchvision's output pixels have their centres along an axis of an image of this size, in its pixels,
    float [crop]; and which of them are not padding."""
    shape = functional.resize(torch.empty(3, *size, device="meta"), [resize], antialias=True).shape[1:]
    numbers = torch.arange(1, shape[axis] + 1)
    resized = (numbers[:, None] if axis == 0 else numbers[None]).expand(*shape)[None]
    cropped = functional.center_crop(resized, [crop, crop])[0].amax(1 - axis).numpy()
    return (cropped - 0.5) * side / shape[axis], cropped > 0


@given(
    height=st.integers(1, 900), width=st.integers(1, 900), sides=val_sides, how=st.sampled_from(get_args(Interpolation))
)
@example(height=1, width=1, sides=(256, 224), how="bilinear")
@example(height=2, width=500, sides=(256, 224), how="bicubic")
@example(height=375, width=500, sides=(256, 224), how="bilinear")
@example(height=331, width=331, sides=(331, 331), how="bicubic")
@example(height=40, width=333, sides=(50, 64), how="bilinear")
def test_the_evaluation_window_is_that_of_torchvision(
    height: int, width: int, sides: tuple[int, int], how: Interpolation
) -> None:
    """To a millionth of a pixel, padding included; the box is exactly the pixels that the filter reads."""
    resize, resolution = sides
    policy = CropPolicy(training=False, val_resize=resize, val_crop=resolution, interpolation=how)
    crop = policy.crop(0, 0, 0, height, width, resolution)
    assert crop.cubic == (how == "bicubic")
    for axis, side in enumerate((height, width)):
        start, length = crop.box[axis], crop.box[2 + axis]
        window_start, window_length = crop.window[axis], crop.window[2 + axis]
        scale = window_length / resolution
        ours = start + window_start + (np.arange(resolution) + 0.5) * scale
        centres, is_image = axis_centres(side, axis, (height, width), resize, resolution)
        np.testing.assert_allclose(ours[is_image], centres[is_image], atol=1e-6)
        assert ((ours[~is_image] < 0) | (ours[~is_image] > side)).all()
        reach = max(scale, 1) * (2 if crop.cubic else 1)
        read = [
            pixel for pixel in range(side) if centres[is_image][0] - reach < pixel + 0.5 < centres[is_image][-1] + reach
        ]
        assert 0 <= start <= read[0]
        assert read[-1] < start + length <= side
        assert length <= len(read) + 2  # pixels of weight zero, where a centre is a whole number away


def test_the_evaluation_window_of_imagenets_usual_size() -> None:
    """Resized to 256 x 341, cropped from (16, 58)."""
    crop = CropPolicy(training=False).crop(0, 0, 0, 375, 500, 224)
    assert crop.box == (23, 84, 329, 330)
    top, left, height, width = crop.window
    assert (crop.top + top, height) == pytest.approx((16 * 375 / 256, 224 * 375 / 256))
    assert (crop.left + left, width) == pytest.approx((58 * 500 / 341, 224 * 500 / 341))
    assert not crop.flip


@pytest.mark.parametrize(("resolution", "shorter"), [(224, 256), (160, 183), (176, 201), (98, 112), (1, 1)])
def test_at_another_resolution_the_resize_keeps_its_ratio(resolution: int, shorter: int) -> None:
    crop = CropPolicy(training=False).crop(0, 0, 0, 500, 500, resolution)
    assert crop.window[2] == crop.window[3] == pytest.approx(resolution * 500 / shorter)


@given(seed=seeds, epoch=epochs, sample=samples, height=sides, width=sides)
def test_in_training_the_window_is_the_box(seed: int, epoch: int, sample: int, height: int, width: int) -> None:
    crop = CropPolicy(training=True).crop(seed, epoch, sample, height, width, 224)
    assert crop.box == crop_of(seed, epoch, sample, height, width)
    assert crop.window == (0.0, 0.0, crop.height, crop.width)
