"""The fused resize against torchvision's."""

from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numba import TypingError
from torch.torch_version import TorchVersion
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional

from pipeline.order.crops import Box, CropPolicy, Interpolation, Window
from pipeline.pixels.resize import resize_crop
from tests.helpers.images import photograph
from tests.helpers.reference import evaluation_image, training_image

HOWS = get_args(Interpolation)


def expected(image: np.ndarray, box: Box, flip: bool, size: tuple[int, int], how: Interpolation) -> np.ndarray:
    pixels: np.ndarray = (
        training_image(torch.from_numpy(image).permute(2, 0, 1), box, flip, size, how).permute(1, 2, 0).numpy()
    )
    return pixels


def whole(box: Box) -> Window:
    """The window that is all of a box."""
    return 0.0, 0.0, float(box[2]), float(box[3])


def resized(
    image: np.ndarray, box: Box, flip: bool, size: tuple[int, int], how: Interpolation = "bilinear"
) -> np.ndarray:
    out = np.empty((*size, 3), np.uint8)
    resize_crop(image, box, whole(box), flip, how == "bicubic", out)
    return out


def difference(image: np.ndarray, box: Box, flip: bool, size: tuple[int, int], how: Interpolation = "bilinear") -> int:
    """The largest at any pixel, in steps of 1/255."""
    ours = resized(image, box, flip, size, how).astype(np.int64)
    return int(np.abs(ours - expected(image, box, flip, size, how)).max())


def noise(height: int, width: int, seed: int, extreme: bool) -> np.ndarray:
    """Independent pixels: the worst case for rounding. `extreme` ones are all 0 or 255."""
    values = np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8)
    return np.where(values < 128, 0, 255).astype(np.uint8) if extreme else values


@st.composite
def boxes(draw: st.DrawFn, largest: int = 400) -> tuple[int, int, Box]:
    """(image height, image width, a crop inside it)"""
    height, width = draw(st.integers(1, largest)), draw(st.integers(1, largest))
    crop_height, crop_width = draw(st.integers(1, height)), draw(st.integers(1, width))
    top, left = draw(st.integers(0, height - crop_height)), draw(st.integers(0, width - crop_width))
    return height, width, (top, left, crop_height, crop_width)


@settings(max_examples=150)
@given(
    boxes(),
    st.booleans(),
    st.tuples(st.integers(1, 256), st.integers(1, 256)),
    st.integers(0, 1 << 32),
    st.booleans(),
    st.sampled_from(HOWS),
)
def test_every_pixel_is_within_one_of_torchvisions(
    size_and_box: tuple[int, int, Box],
    flip: bool,
    size: tuple[int, int],
    seed: int,
    extreme: bool,
    how: Interpolation,
) -> None:
    height, width, box = size_and_box
    # torchvision's is wrong for a width of 1: see the reference; with PyTorch 2.7 also the bilinear one.
    assume(size[1] > 1 or (how == "bilinear" and TorchVersion(torch.__version__) >= "2.14"))
    assert difference(noise(height, width, seed, extreme), box, flip, size, how) <= 1


@pytest.mark.parametrize(
    ("box", "size"),
    [
        ((0, 0, 500, 400), (224, 224)),
        ((17, 33, 301, 222), (160, 160)),
        ((100, 50, 60, 80), (224, 224)),
        ((250, 200, 1, 1), (64, 64)),
        ((3, 5, 224, 224), (224, 224)),
        ((0, 0, 500, 400), (1, 1)),
        ((0, 399, 500, 1), (32, 48)),
    ],
    ids=str,
)
@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("how", HOWS)
def test_photographs_are_within_one_of_torchvisions(
    box: Box, size: tuple[int, int], flip: bool, how: Interpolation
) -> None:
    assert difference(photograph(500, 400, seed=1), box, flip, size, how) <= 1


def test_a_bicubic_resize_is_nearly_that_of_bytes() -> None:
    """torchvision's, which cuts between the axes what overshoots: on a photograph that changes little."""
    image, box = photograph(500, 400, seed=1), (17, 33, 301, 222)
    source = torch.from_numpy(image).permute(2, 0, 1)
    theirs = functional.resized_crop(source, *box, [160, 160], InterpolationMode.BICUBIC).permute(1, 2, 0).numpy()
    ours = resized(image, box, False, (160, 160), "bicubic")
    assert np.abs(ours.astype(int) - theirs).max() <= 2
    assert np.abs(ours.astype(int) - resized(image, box, False, (160, 160))).max() > 2


@pytest.mark.parametrize("taps", range(1, 20))
def test_any_number_of_taps_is_within_one_of_torchvisions(taps: int) -> None:
    """Twice the scale, or the whole crop if that is less."""
    side = taps * 17
    assert difference(noise(side, side + 5, taps, extreme=True), (0, 3, side, side), False, (34, 34)) <= 1
    assert difference(noise(taps, 90, taps, extreme=True), (0, 7, taps, 80), True, (1, 34)) <= 1


def test_a_large_image_is_within_one_of_torchvisions() -> None:
    assert difference(noise(2000, 3001, 0, extreme=True), (1, 2, 1998, 2995), True, (64, 64)) <= 1


def test_a_crop_at_its_own_size_is_copied() -> None:
    image = noise(90, 70, 0, extreme=False)
    assert (resized(image, (11, 7, 50, 40), False, (50, 40)) == image[11:61, 7:47]).all()


@pytest.mark.parametrize("size", [(1, 1), (15, 2), (16, 1), (17, 31), (64, 40)], ids=str)
@pytest.mark.parametrize("flip", [False, True])
def test_only_the_place_in_the_batch_is_written(size: tuple[int, int], flip: bool) -> None:
    image, box = noise(70, 90, 0, extreme=False), (5, 6, 60, 70)
    for filling in (0, 255):
        batch = np.full((5, *size, 3), filling, np.uint8)
        resize_crop(image, box, whole(box), flip, False, batch[::2][1])
        assert (batch[2] == resized(image, box, flip, size)).all()
        assert (np.delete(batch, 2, axis=0) == filling).all()


def test_arrays_that_are_not_contiguous_or_not_bytes_are_refused() -> None:
    image, out = np.zeros((30, 30, 3), np.uint8), np.zeros((20, 20, 3), np.uint8)
    wrong = [(image[:, 1:], out), (image, out[:, 1:]), (image.astype(np.float32), out), (image, out.astype(np.int64))]
    for source, target in wrong:
        with pytest.raises(TypingError):
            resize_crop(source, (0, 0, 10, 10), whole((0, 0, 10, 10)), False, False, target)


def test_flip_mirrors_the_columns() -> None:
    image, box, size = photograph(90, 71, seed=2), (4, 3, 80, 61), (33, 45)
    assert (resized(image, box, True, size) == resized(image, box, False, size)[:, ::-1]).all()


@pytest.mark.parametrize("value", [0, 1, 127, 128, 254, 255])
def test_one_colour_stays_that_colour(value: int) -> None:
    image = np.full((203, 307, 3), value, np.uint8)
    for size in [(64, 64), (224, 224), (7, 300), (301, 5)]:
        assert (resized(image, (3, 5, 197, 299), False, size) == value).all()


def test_pixels_outside_the_crop_have_no_influence() -> None:
    image = photograph(120, 130, seed=3)
    outside = np.full_like(image, 255)
    box = (20, 30, 70, 60)
    outside[20:90, 30:90] = image[20:90, 30:90]
    assert (resized(image, box, False, (32, 32)) == resized(outside, box, False, (32, 32))).all()


@settings(max_examples=150)
@given(
    st.tuples(st.integers(1, 400), st.integers(1, 400)),
    st.tuples(st.integers(1, 200), st.integers(1, 200)),
    st.integers(0, 1 << 32),
    st.booleans(),
    st.sampled_from(HOWS),
)
def test_every_pixel_of_an_evaluation_is_within_one_of_torchvisions(
    size: tuple[int, int], sides: tuple[int, int], seed: int, extreme: bool, how: Interpolation
) -> None:
    """Resize and CenterCrop of the whole image, its black padding included."""
    image = noise(*size, seed, extreme)
    assume(how == "bilinear" or sides[0] * size[1] // min(size) > 1)
    expected_image = evaluation_image(torch.from_numpy(image).permute(2, 0, 1), *sides, how).permute(1, 2, 0).numpy()
    assert np.abs(evaluated(image, *sides, how).astype(int) - expected_image).max() <= 1


def evaluated(image: np.ndarray, resize: int, resolution: int, how: Interpolation = "bilinear") -> np.ndarray:
    policy = CropPolicy(training=False, val_resize=resize, val_crop=resolution, interpolation=how)
    height, width = image.shape[:2]
    crop, out = policy.crop(0, 0, 0, height, width, resolution), np.empty((resolution, resolution, 3), np.uint8)
    resize_crop(image, crop.box, crop.window, crop.flip, crop.cubic, out)
    return out


@pytest.mark.parametrize("size", [(375, 500), (500, 333), (257, 511), (1001, 403), (61, 83), (224, 224)], ids=str)
def test_an_evaluation_has_no_geometric_offset(size: tuple[int, int]) -> None:
    """A ramp, whose values are positions: the line fitted to the output says where its pixels lie in the image."""
    rows, columns = np.mgrid[: size[0], : size[1]] + 0.5
    levels = np.stack([10 + 235 * rows / size[0], 10 + 235 * columns / size[1], 0 * rows], 2)
    rng = np.random.default_rng(0)  # noise, so that both roundings to whole levels average out
    noisy = [np.clip(np.round(levels + rng.normal(0, 0.7, levels.shape)), 0, 255).astype(np.uint8) for _ in range(10)]
    out = np.mean([evaluated(image, 256, 224) for image in noisy], axis=0)
    for axis in (0, 1):
        positions = (out[:, :, axis].mean(1 - axis) - 10) * size[axis] / 235
        slope, first = np.polyfit(np.arange(224), positions, 1)
        resized = 256 if size[axis] == min(size) else int(256 * size[axis] / min(size))
        scale, start = size[axis] / resized, round((resized - 224) / 2)
        assert abs(first + 111.5 * slope - (start + 112) * scale) / scale < 0.01
        assert slope == pytest.approx(scale, rel=1e-3)
