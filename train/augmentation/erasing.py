"""Random erasing: rectangles of an image are filled with the mean colour, a random one, or random pixels.

timm's RandomErasing (arXiv:1708.04896), before normalisation instead of after it: what timm draws in normalised values
is rounded to bytes here, and cut to 0..255.
"""

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.order.erasing import LEVELS, erased_boxes, fill_from_table
from pipeline.order.plan import Indices
from pipeline.order.random import PIXEL_DRAW
from train.augmentation.policies import EraseMode

_BLOCK_SHIFT = 20  # a block's pixels have so many draws, 8 values each

Bytes = NDArray[np.uint8]


class Block(NamedTuple):
    """A rectangle of one image, and its content: uint8 [3, 1, 1] or [3, height, width]."""

    row: int
    top: int
    left: int
    height: int
    width: int
    content: Bytes


class Eraser:
    """Draws the blocks of a batch."""

    def __init__(
        self, probability: float, mode: EraseMode, count: int, mean: tuple[float, ...], std: tuple[float, ...]
    ) -> None:
        self._probability, self._mode, self._count = probability, mode, count
        self._mean = np.round(255 * np.array(mean)).astype(np.uint8)[:, None, None]
        self._normal = _normal_bytes(mean, std)

    def blocks(self, seed: int, epoch: int, keys: Indices, side: int) -> list[Block]:
        """The blocks of samples with these keys, int64 [B], in images of `side` x `side`."""
        boxes = erased_boxes(seed, epoch, keys, self._probability, self._count, side)
        blocks = []
        for row, number in zip(*boxes[:, :, 2].nonzero(), strict=True):
            top, left, height, width = map(int, boxes[row, number])
            content = self._content(seed, epoch, int(keys[row]), int(number), height, width)
            blocks.append(Block(int(row), top, left, height, width, content))
        return blocks

    def _content(self, seed: int, epoch: int, key: int, number: int, height: int, width: int) -> Bytes:
        if self._mode == "const":
            return self._mean
        shape = (height, width) if self._mode == "pixel" else (1, 1)
        content = np.empty((3, *shape), np.uint8)
        fill_from_table(seed, epoch, key, PIXEL_DRAW + (number << _BLOCK_SHIFT), self._normal, content.reshape(3, -1))
        return content


def erase(images: Tensor, blocks: list[Block]) -> None:
    """Fill the blocks of uint8 [B, 3, R, R] in place."""
    if not blocks:
        return
    contents = torch.from_numpy(np.concatenate([block.content.reshape(-1) for block in blocks]))
    if images.device.type != "cpu":
        contents = contents.pin_memory().to(images.device, non_blocking=True)
    at = 0
    for block in blocks:
        content = contents[at : at + block.content.size].view(block.content.shape)
        at += block.content.size
        images[block.row, :, block.top : block.top + block.height, block.left : block.left + block.width] = content


def _normal_bytes(mean: tuple[float, ...], std: tuple[float, ...]) -> Bytes:
    """Pixel values of the normal distribution's quantiles, uint8 [3, LEVELS]: equally likely each."""
    quantiles = torch.special.ndtri((torch.arange(LEVELS, dtype=torch.float64) + 0.5) / LEVELS).numpy()
    values = 255 * (np.array(mean)[:, None] + np.array(std)[:, None] * quantiles)
    pixels: Bytes = np.clip(np.round(values), 0, 255).astype(np.uint8)
    return pixels
