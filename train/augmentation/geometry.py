"""One bilinear warp for all geometric operations: shears, translations and rotations as affine maps."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import grid_sample

from train.augmentation.policies import Kind

GEOMETRIC: tuple[Kind, ...] = ("ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate")

Floats = NDArray[np.float64]


def matrices(kind: Kind, parameters: Floats, side: int) -> Floats:
    """The inverse affine maps of an operation, float64 [N, 6]: pixel (x, y) of the result, from the centre on, is taken
    from (a x + b y + c, d x + e y + f).

    Those of torchvision's `functional.affine` and `rotate`. As in its policies, a shear keeps the row or column at the
    image's first corner where it is.
    """
    result = np.tile(np.array([1.0, 0, 0, 0, 1, 0]), (len(parameters), 1))
    if kind == "ShearX":
        result[:, 1], result[:, 2] = parameters, parameters * side / 2
    elif kind == "ShearY":
        result[:, 3], result[:, 5] = parameters, parameters * side / 2
    elif kind == "TranslateX":
        result[:, 2] = -parameters
    elif kind == "TranslateY":
        result[:, 5] = -parameters
    else:
        cosines, sines = np.cos(np.radians(parameters)), np.sin(np.radians(parameters))
        result[:, 0], result[:, 1], result[:, 3], result[:, 4] = cosines, -sines, sines, cosines
    return result


def warp(images: Tensor, maps: Tensor, fill: Tensor | None) -> Tensor:
    """Images uint8 [N, 3, R, R] under maps, float32 [N, 6]. What comes from beyond an image has the colour `fill`,
    float32 [3, 1, 1], or is black.

    As torchvision's bilinear `functional.affine` with its padding of zeros. With a colour, pixels on the edge differ:
    there torchvision weighs the image's part twice.
    """
    side = images.shape[-1]
    x = torch.linspace((1.0 - side) / 2, (side - 1.0) / 2, side, device=images.device)
    y = x[:, None]
    a, b, c, d, e, f = ((maps / (side / 2))[:, number, None, None] for number in range(6))
    grid = torch.empty(len(images), side, side, 2, device=images.device)
    # Plain sums and products, whose rounding does not depend on the number of images.
    torch.add(a * x + c, b * y, out=grid[..., 0])
    torch.add(d * x + f, e * y, out=grid[..., 1])
    pixels = images.float()
    if fill is not None:
        pixels -= fill
    pixels = grid_sample(pixels, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    if fill is not None:
        pixels += fill
    return pixels.round_().to(torch.uint8)
