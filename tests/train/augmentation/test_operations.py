"""Every operation next to torchvision's kernel, on decoded photographs, with another parameter for each image."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import auto_augment as timm_ops
from torch import Tensor
from torchvision.io import decode_jpeg
from torchvision.transforms.v2 import InterpolationMode, functional

from tests.helpers.images import jpeg_bytes, photograph
from train.augmentation.apply import OPERATIONS
from train.augmentation.geometry import GEOMETRIC, matrices, warp
from train.augmentation.policies import Kind

SIDE = 61
BILINEAR = InterpolationMode.BILINEAR

MOST, MEAN = 1, 0.02
"""How far pixels may be from torchvision's, in steps of 1/255: at any pixel, and on average. Values are cut to bytes
after sums that are rounded in another order."""


def photographs(count: int) -> Tensor:
    """Decoded JPEGs, uint8 [N, 3, SIDE, SIDE]: colourful, grey, dark and of little contrast."""
    images: list[np.ndarray] = [photograph(SIDE, SIDE, seed).astype(np.float32) for seed in range(count)]
    images[1] = images[1].mean(axis=2, keepdims=True).repeat(3, axis=2)
    images[2] = images[2] / 3
    images[3] = 100 + images[3] / 8
    files = [jpeg_bytes(image.astype(np.uint8), quality=92) for image in images]
    return torch.stack([decode_jpeg(torch.frombuffer(bytearray(file), dtype=torch.uint8)) for file in files])


IMAGES = photographs(6)

FACTORS = [0.0, 0.1, 0.55, 1.0, 1.3, 1.99]
OTHERS: dict[str, tuple[list[float], Callable[[Tensor, float], Any]]] = {
    "Brightness": (FACTORS, functional.adjust_brightness),
    "Color": (FACTORS, functional.adjust_saturation),
    "Contrast": (FACTORS, functional.adjust_contrast),
    "Sharpness": (FACTORS, functional.adjust_sharpness),
    "Hue": ([-0.5, -0.21, 0.0, 0.1, 0.34, 0.5], functional.adjust_hue),
    "Posterize": ([0, 1, 3, 5, 7, 8], lambda image, bits: functional.posterize(image, int(bits))),
    "Solarize": ([0, 1, 90.5, 128, 200, 255], functional.solarize),
    "AutoContrast": ([0] * 6, lambda image, _: functional.autocontrast(image)),
    "Equalize": ([0] * 6, lambda image, _: functional.equalize(image)),
    "Invert": ([0] * 6, lambda image, _: functional.invert(image)),
    "GaussianBlur": (
        [0.1, 0.3, 0.7, 1.2, 1.7, 2.0],
        lambda image, s: functional.gaussian_blur(image, [23, 23], [s]),
    ),
    "SolarizeAdd": ([0, 1, 40, 90, 110, 128], lambda image, added: timm_solarize_add(image, int(added))),
}


def timm_solarize_add(image: Tensor, added: int) -> Tensor:
    result = timm_ops.solarize_add(Image.fromarray(image.permute(1, 2, 0).numpy()), added)
    return torch.from_numpy(np.array(result)).permute(2, 0, 1)


def assert_close(ours: Tensor, theirs: Tensor) -> None:
    assert ours.dtype == theirs.dtype == torch.uint8
    difference = (ours.int() - theirs.int()).abs()
    assert difference.max() <= MOST
    assert difference.float().mean() <= MEAN


def test_every_operation_is_compared() -> None:
    assert OTHERS.keys() == OPERATIONS.keys()


@pytest.mark.parametrize("kind", OTHERS)
def test_an_operation_gives_torchvisions_pixels(kind: str) -> None:
    parameters, theirs = OTHERS[kind]
    before = IMAGES.clone()
    ours = OPERATIONS[kind](IMAGES, torch.tensor(parameters, dtype=torch.float32))
    assert_close(ours, torch.stack([theirs(image, value) for image, value in zip(IMAGES, parameters, strict=True)]))
    assert torch.equal(IMAGES, before)


def affine(image: Tensor, *, shear: list[float], translate: list[int], center: list[float] | None) -> Any:
    return functional.affine(
        image, angle=0.0, translate=translate, scale=1.0, shear=shear, center=center, interpolation=BILINEAR
    )  # fmt: skip


# As torchvision's policies call its kernels.
WARPED: dict[Kind, tuple[list[float], Callable[[Tensor, float], Any]]] = {
    "ShearX": (
        [-0.99, -0.3, 0.0, 0.11, 0.3, 0.99],
        lambda image, level: affine(
            image, shear=[math.degrees(math.atan(level)), 0.0], translate=[0, 0], center=[0, 0]
        ),
    ),
    "ShearY": (
        [-0.99, -0.3, 0.0, 0.11, 0.3, 0.99],
        lambda image, level: affine(
            image, shear=[0.0, math.degrees(math.atan(level))], translate=[0, 0], center=[0, 0]
        ),
    ),
    "TranslateX": (
        [-32, -7, 0, 1, 12, 31],
        lambda image, pixels: affine(image, shear=[0.0, 0.0], translate=[int(pixels), 0], center=None),
    ),
    "TranslateY": (
        [-32, -7, 0, 1, 12, 31],
        lambda image, pixels: affine(image, shear=[0.0, 0.0], translate=[0, int(pixels)], center=None),
    ),
    "Rotate": (
        [-135.0, -30.0, 0.0, 9.0, 90.0, 120.5],
        lambda image, angle: functional.rotate(image, angle, interpolation=BILINEAR),
    ),
}


def test_every_geometric_operation_is_compared() -> None:
    assert tuple(WARPED) == GEOMETRIC


def warped(kind: Kind, parameters: list[float], fill: Tensor | None) -> Tensor:
    maps = torch.from_numpy(matrices(kind, np.array(parameters, np.float64), SIDE)).float()
    return warp(IMAGES, maps, fill)


@pytest.mark.parametrize("kind", GEOMETRIC)
def test_a_warp_gives_torchvisions_pixels(kind: Kind) -> None:
    parameters, theirs = WARPED[kind]
    expected = torch.stack([theirs(image, value) for image, value in zip(IMAGES, parameters, strict=True)])
    assert_close(warped(kind, parameters, None), expected)


@pytest.mark.parametrize("kind", GEOMETRIC)
def test_pixels_from_beyond_the_image_have_the_fill_colour(kind: Kind) -> None:
    """Where torchvision's mask of the image is 0 or 1, its pixels too; on the edge ours are between the two colours."""
    parameters, theirs = WARPED[kind]
    colour = torch.tensor([124.0, 116.0, 104.0]).view(3, 1, 1)
    ours, black = warped(kind, parameters, colour), warped(kind, parameters, None)
    white = torch.full_like(IMAGES[0], 255)
    inside = torch.stack([theirs(white, value) for value in parameters])
    assert (ours.int() - black.int())[inside == 255].abs().max() <= 1
    blend = black + (1 - inside.float() / 255) * colour
    assert (ours - blend).abs().max() <= 2
    assert (inside == 0).any() or kind == "Rotate"
    assert torch.equal(ours[inside == 0], colour.to(torch.uint8).expand_as(ours)[inside == 0])


@pytest.mark.parametrize("kind", OTHERS)
def test_an_image_does_not_depend_on_the_others_in_its_batch(kind: str) -> None:
    parameters = torch.tensor(OTHERS[kind][0], dtype=torch.float32)
    together = OPERATIONS[kind](IMAGES, parameters)
    for row in range(len(IMAGES)):
        alone = OPERATIONS[kind](IMAGES[row : row + 1], parameters[row : row + 1])
        assert torch.equal(alone[0], together[row])


def test_autocontrast_and_equalize_are_pillows() -> None:
    for kind, theirs in (("AutoContrast", timm_ops.auto_contrast), ("Equalize", timm_ops.equalize)):
        ours = OPERATIONS[kind](IMAGES, torch.zeros(len(IMAGES)))
        for image, result in zip(IMAGES, ours, strict=True):
            expected = np.asarray(theirs(Image.fromarray(image.permute(1, 2, 0).numpy())))
            assert np.abs(result.permute(1, 2, 0).numpy().astype(int) - expected).max() <= 1
