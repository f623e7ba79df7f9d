"""Operations that weigh an image's neighbouring pixels, with a parameter for each image."""

import math

import torch
from torch import Tensor
from torch.nn.functional import pad

LARGEST_DEVIATION = 2.0
_RADIUS = math.ceil(4 * LARGEST_DEVIATION)  # a Gaussian has 0.00006 of its weight beyond four standard deviations


def sharpness(images: Tensor, factors: Tensor) -> Tensor:
    """torchvision's `adjust_sharpness`: uint8 [N, 3, H, W] away from its smoothed version, whose border it keeps."""
    if min(images.shape[-2:]) <= 2:
        return images
    pixels = images.float()
    inner = pixels[..., 1:-1, 1:-1]
    rows = pixels[..., :-2, :] + pixels[..., 1:-1, :] + pixels[..., 2:, :]
    smooth = rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:]
    smooth = smooth.add_(inner * 4).div_(13).round_()  # 1 for each neighbour, 5 for the pixel itself
    inner.add_(smooth.sub_(inner).mul_((1.0 - factors)[:, None, None, None]))
    return pixels.clamp_(0, 255).to(torch.uint8)


def gaussian_blur(images: Tensor, deviations: Tensor) -> Tensor:
    """torchvision's `gaussian_blur` with a large kernel, the image mirrored at its edges: uint8 [N, 3, R, R], standard
    deviations up to LARGEST_DEVIATION pixels."""
    radius = min(_RADIUS, images.shape[-1] - 1)
    distances = torch.arange(radius + 1, device=images.device, dtype=torch.float32)
    weights = torch.exp(-0.5 * (distances / deviations[:, None]) ** 2)
    weights = weights / (2 * weights.sum(1, keepdim=True) - weights[:, :1])
    padded = pad(images.float(), [radius] * 4, mode="reflect")
    blurred = _weighted(_weighted(padded, weights, -1), weights, -2)
    return blurred.round_().clamp_(0, 255).to(torch.uint8)


def _weighted(pixels: Tensor, weights: Tensor, axis: int) -> Tensor:
    """The sum over neighbours along an axis, whose weights are float32 [N, radius + 1] by distance; shorter by twice
    the radius."""
    radius = weights.shape[1] - 1
    size = pixels.shape[axis] - 2 * radius
    result = pixels.narrow(axis, radius, size) * weights[:, 0, None, None, None]
    for distance in range(1, radius + 1):
        both = pixels.narrow(axis, radius - distance, size) + pixels.narrow(axis, radius + distance, size)
        result += both.mul_(weights[:, distance, None, None, None])
    return result
