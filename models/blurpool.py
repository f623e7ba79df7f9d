"""BlurPool as in FFCV's ImageNet example: the input of convolutions with a stride is blurred (Zhang, "Making
convolutional networks shift-invariant again", arXiv:1904.11486)."""

import torch
from torch import Tensor, nn
from torch.nn import functional

LEAST_CHANNELS = 16
"""Convolutions of fewer input channels, such as the first, which sees the image, stay as they are."""


class BlurPoolConv2d(nn.Module):
    """A convolution after a blur of 3 x 3: `blur_filter` and `conv`, the names of FFCV's checkpoints."""

    blur_filter: Tensor
    """float32 [C, 1, 3, 3], for each channel the same binomial filter."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        row = torch.tensor([1.0, 2.0, 1.0], device=conv.weight.device) / 4
        self.register_buffer("blur_filter", torch.outer(row, row).repeat(conv.in_channels, 1, 1, 1))
        self.conv = conv

    def forward(self, x: Tensor) -> Tensor:
        blurred = functional.conv2d(x, self.blur_filter, padding=1, groups=self.conv.in_channels)
        result: Tensor = self.conv(blurred)
        return result


def apply_blurpool(network: nn.Module) -> int:
    """Wrap every convolution with a stride above 1 and at least LEAST_CHANNELS input channels. Returns how many."""
    count = 0
    for name, child in network.named_children():
        if isinstance(child, nn.Conv2d) and max(child.stride) > 1 and child.in_channels >= LEAST_CHANNELS:
            setattr(network, name, BlurPoolConv2d(child))
            count += 1
        else:
            count += apply_blurpool(child)
    return count
