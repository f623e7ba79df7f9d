"""Operations on colours, with a parameter for each image. They give the pixels of torchvision's kernels in
`torchvision.transforms.v2.functional`, which take one parameter for all.

All arithmetic is elementwise or exact, so that an image's pixels do not depend on the others in its batch.
"""

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional


def _each(parameters: Tensor) -> Tensor:
    return parameters[:, None, None, None]


def _truncated(pixels: Tensor) -> Tensor:
    return pixels.clamp_(0, 255).to(torch.uint8)


def _blended(pixels: Tensor, other: Tensor, factors: Tensor) -> Tensor:
    # Not `add(alpha=...)`: whether it rounds once or twice may depend on where in memory a pixel is.
    return _truncated(pixels.mul_(_each(factors)).add_(other * _each(1.0 - factors)))


def _grey(pixels: Tensor) -> Tensor:
    """float32 [N, 3, H, W] to whole numbers, float32 [N, 1, H, W]."""
    red, green, blue = pixels.unbind(1)
    return (red * 0.2989).add_(green * 0.587).add_(blue * 0.114).floor_()[:, None]


def brightness(images: Tensor, factors: Tensor) -> Tensor:
    """`adjust_brightness`. Images are uint8 [N, 3, H, W] here and below, parameters float32 [N]."""
    return _truncated(images.float().mul_(_each(factors)))


def color(images: Tensor, factors: Tensor) -> Tensor:
    """`adjust_saturation`; factor 0 is `rgb_to_grayscale`."""
    pixels = images.float()
    return _blended(pixels, _grey(pixels), factors)


def contrast(images: Tensor, factors: Tensor) -> Tensor:
    """`adjust_contrast`: away from the mean of the grey image."""
    pixels = images.float()
    # Of whole numbers, so the sum is exact in any order.
    mean = _grey(pixels).mean((1, 2, 3), dtype=torch.float64, keepdim=True)
    return _blended(pixels, mean.float(), factors)


def hue(images: Tensor, shifts: Tensor) -> Tensor:
    """`adjust_hue`, with shifts in [-0.5, 0.5] of the colour circle."""
    pixels = images.float()
    red, green, blue = pixels.unbind(1)
    least, most = torch.aminmax(pixels, dim=1)
    spread = most - least
    divisor = spread.clamp(min=1)  # of whole numbers: grey pixels only
    sixths = torch.where(
        most == red,
        (green - blue) / divisor,
        torch.where(most == green, (blue - red) / divisor + 2, (red - green) / divisor + 4),
    )
    sixths = (sixths / 6 + shifts[:, None, None]).remainder(1.0) * 6
    # Wikipedia, "HSL and HSV", HSV to RGB alternative: a channel is V - V S max(0, min(k, 4 - k, 1)).
    offsets = torch.tensor([5.0, 3.0, 1.0], device=images.device).view(1, 3, 1, 1)
    k = (offsets + sixths[:, None]).remainder(6.0)
    weight = torch.minimum(k, 4 - k).clamp_(0, 1)
    return _truncated((most[:, None] - spread[:, None] * weight).round_())


def posterize(images: Tensor, bits: Tensor) -> Tensor:
    """`posterize`: keeps the highest bits of each value."""
    mask = 256 - torch.exp2(8 - bits)
    return images & _each(mask.to(torch.uint8))


def solarize(images: Tensor, thresholds: Tensor) -> Tensor:
    """`solarize`: inverts values from the threshold on; 256 changes nothing."""
    # In bytes: a comparison with floats would convert all pixels.
    least = thresholds.ceil()
    inverted = (images > _each((least - 1).clamp_(min=0).to(torch.uint8))) | _each(least <= 0)
    return images ^ inverted.to(torch.uint8).mul_(255)


def solarize_add(images: Tensor, added: Tensor) -> Tensor:
    """timm's `solarize_add`: adds up to 128 to the values below 128."""
    return torch.where(images < 128, images + _each(added.to(torch.uint8)), images)


def invert(images: Tensor, _: Tensor) -> Tensor:
    """`invert`."""
    return 255 - images


def autocontrast(images: Tensor, _: Tensor) -> Tensor:
    """`autocontrast`, which is by image and channel."""
    result: Tensor = functional.autocontrast(images)
    return result


def equalize(images: Tensor, _: Tensor) -> Tensor:
    """`equalize`, which is by image and channel."""
    result: Tensor = functional.equalize(images)
    return result
