"""The pixels that loaders are compared with: torchvision's transforms on the whole decoded image."""

import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional

from pipeline.order.crops import CropPolicy, Interpolation


def training_image(
    image: Tensor, box: tuple[int, int, int, int], flip: bool, size: tuple[int, int], how: Interpolation = "bilinear"
) -> Tensor:
    """RandomResizedCrop with this box (top, left, height, width), and the flip. uint8 [3, H, W] to uint8 [3, *size]."""
    cropped = _source(functional.crop(image, *box), how)
    resized = functional.resize(cropped, list(size), InterpolationMode(how), antialias=True)
    return _bytes(functional.horizontal_flip(resized) if flip else resized)


def evaluation_image(image: Tensor, resize: int, crop: int, how: Interpolation = "bilinear") -> Tensor:
    """Resize and CenterCrop. uint8 [3, H, W] to uint8 [3, crop, crop]."""
    resized = v2.Resize(resize, InterpolationMode(how), antialias=True)
    return _bytes(v2.Compose([resized, v2.CenterCrop(crop)])(_source(image, how)))


def policy_image(image: Tensor, policy: CropPolicy, seed: int, epoch: int, sample: int, resolution: int) -> Tensor:
    """What a loader is to make of a decoded image: with the plan's crop in training, without any crop of ours in
    evaluation."""
    how = policy.interpolation
    if not policy.training:
        return evaluation_image(image, round(resolution * policy.val_resize / policy.val_crop), resolution, how)
    height, width = image.shape[1:]
    crop = policy.crop(seed, epoch, sample, height, width, resolution)
    return training_image(image, crop.box, crop.flip, (resolution, resolution), how)


def _source(image: Tensor, how: Interpolation) -> Tensor:
    """Of a bicubic resize, floats: of bytes torchvision cuts those that overshoot after each axis, and so changes those
    next to them. Contiguous: PyTorch 2.14 resizes channels_last floats that
    are one pixel wide wrongly, and all to a width of one."""
    return image.float().contiguous() if how == "bicubic" else image


def _bytes(pixels: Tensor) -> Tensor:
    return pixels.round().clamp(0, 255).to(torch.uint8)
