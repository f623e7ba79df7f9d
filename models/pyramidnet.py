"""PyramidNet for ImageNet's shapes: Han, Kim, Kim, "Deep pyramidal residual networks", arXiv:1610.02915.

The width grows by the same amount in every block (equation 3 of the paper), blocks are BN-conv-BN-ReLU-conv(...)-BN
(figure 6d), and a shortcut with fewer channels than its block is padded with zeros (section 3.3). Names in the
state_dict are those of the authors' PyTorch code.
"""

from collections.abc import Iterator
from functools import partial
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional

from models.card import ModelCard

Block = Literal["basic", "bottleneck"]

STEM_WIDTH = 64
LAYERS: dict[tuple[str, int], tuple[int, ...]] = {
    ("basic", 18): (2, 2, 2, 2),
    ("basic", 34): (3, 4, 6, 3),
    ("bottleneck", 50): (3, 4, 6, 3),
    ("bottleneck", 101): (3, 4, 23, 3),
    ("bottleneck", 152): (3, 8, 36, 3),
    ("bottleneck", 200): (3, 24, 36, 3),
}
"""Blocks of the four stages. Other depths are spread evenly, rounded down, as in the authors' code."""


def stage_blocks(depth: int, block: Block) -> tuple[int, ...]:
    """Blocks of each of the four stages. Raises ValueError where `depth` gives less than one block a stage."""
    per_stage = (depth - 2) // (12 if block == "bottleneck" else 8)
    if per_stage < 1:
        raise ValueError(f"depth={depth} is too small for four stages of {block} blocks")
    return LAYERS.get((block, depth), (per_stage,) * 4)


def widths(alpha: float, blocks: int) -> Iterator[int]:
    """Width of each of `blocks` blocks: `STEM_WIDTH + k * alpha / blocks`, summed up and rounded as the authors do.

    The running sum stays unrounded, so the last width is STEM_WIDTH + alpha.
    """
    width = float(STEM_WIDTH)
    for _ in range(blocks):
        width += alpha / blocks
        yield round(width)


class _AddPadded(torch.autograd.Function):
    """`add_padded` in place, with a gradient that consists of views: for an addition to a slice, autograd would copy
    the whole gradient twice."""

    @staticmethod
    def forward(ctx: Any, out: Tensor, shortcut: Tensor) -> Tensor:
        ctx.channels = shortcut.shape[1]
        ctx.mark_dirty(out)
        out[:, : ctx.channels].add_(shortcut)
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        (gradient,) = gradients
        return gradient, gradient[:, : ctx.channels]


def add_padded(out: Tensor, shortcut: Tensor) -> Tensor:
    """`out` plus `shortcut`, whose missing channels count as zero: [B, C, H, W] and [B, c <= C, H, W].

    No padded copy is made: `out` is overwritten, or a compiler fuses the padding into the sum.
    """
    missing = out.shape[1] - shortcut.shape[1]
    if missing == 0:
        return out.add_(shortcut)
    if torch.compiler.is_compiling() or torch.jit.is_tracing():
        return out + functional.pad(shortcut, (0, 0, 0, 0, 0, missing))
    total: Tensor = _AddPadded.apply(out, shortcut)
    return total


def normalized_convolution(norm: nn.BatchNorm2d, convolution: nn.Conv2d, x: Tensor) -> Tensor:
    """`convolution(norm(x))`, whose gradient normalises `x` again instead of keeping the result.

    `x` is kept for the gradient of `norm` anyway, and there is no ReLU in between. This saves 23 % of the memory of a
    training step of PyramidNet-164 and takes less time than `add_padded` saves. A compiler makes this choice itself.
    """
    training = norm.training and torch.is_grad_enabled() and not torch.compiler.is_compiling()
    if not training or type(norm) is not nn.BatchNorm2d:
        out: Tensor = convolution(norm(x))
        return out
    assert norm.num_batches_tracked is not None
    assert norm.momentum is not None
    norm.num_batches_tracked.add_(1)
    normalized, mean, inverse_deviation = torch.native_batch_norm(
        x, norm.weight, norm.bias, norm.running_mean, norm.running_var, True, norm.momentum, norm.eps
    )
    address = normalized.data_ptr()

    def pack(saved: Tensor) -> Tensor | None:
        return None if saved.data_ptr() == address else saved

    def unpack(saved: Tensor | None) -> Tensor:
        if saved is not None:
            return saved
        variance = inverse_deviation**-2 - norm.eps
        return functional.batch_norm(x, mean, variance, norm.weight, norm.bias, eps=norm.eps)

    with saved_tensors_hooks(pack, unpack):
        convolved: Tensor = convolution(normalized)
        return convolved


class PyramidBlock(nn.Module):
    """A residual block: [B, C, H, W] to [B, C', H / stride, W / stride], sizes rounded up, C' >= C."""

    def __init__(self, in_channels: int, width: int, stride: int, block: Block) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        if block == "bottleneck":
            self.conv1 = nn.Conv2d(in_channels, width, kernel_size=1, bias=False)
            self.bn2 = nn.BatchNorm2d(width)
            self.conv2 = nn.Conv2d(width, width, kernel_size=3, stride=stride, padding=1, bias=False)
            self.bn3 = nn.BatchNorm2d(width)
            self.conv3: nn.Module | None = nn.Conv2d(width, width * 4, kernel_size=1, bias=False)
            self.bn4 = nn.BatchNorm2d(width * 4)
        else:
            self.conv1 = nn.Conv2d(in_channels, width, kernel_size=3, stride=stride, padding=1, bias=False)
            self.bn2 = nn.BatchNorm2d(width)
            self.conv2 = nn.Conv2d(width, width, kernel_size=3, padding=1, bias=False)
            self.bn3 = nn.BatchNorm2d(width)
            self.conv3 = None
        self.channels = width * 4 if block == "bottleneck" else width
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        out = functional.relu_(self.bn2(normalized_convolution(self.bn1, self.conv1, x)))
        out = self.bn3(self.conv2(out))
        if self.conv3 is not None:
            out = self.bn4(self.conv3(functional.relu_(out)))
        shortcut = x if self.stride == 1 else functional.avg_pool2d(x, 2, ceil_mode=True)
        return add_padded(out, shortcut)


class PyramidNet(nn.Module):
    """Images [B, 3, H, W] to logits [B, num_classes]."""

    layer1: nn.Sequential
    layer2: nn.Sequential
    layer3: nn.Sequential
    layer4: nn.Sequential

    def __init__(self, num_classes: int, blocks: tuple[int, ...], alpha: float, block: Block, drop_rate: float) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, STEM_WIDTH, kernel_size=7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(STEM_WIDTH)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        every_width = widths(alpha, sum(blocks))
        channels = STEM_WIDTH
        for number, count in enumerate(blocks, start=1):
            stage = nn.Sequential()
            for index in range(count):
                stride = 2 if number > 1 and index == 0 else 1
                unit = PyramidBlock(channels, next(every_width), stride, block)
                stage.append(unit)
                channels = unit.channels
            self.add_module(f"layer{number}", stage)
        self.bn_final = nn.BatchNorm2d(channels)
        self.dropout = nn.Dropout(drop_rate)
        self.fc = nn.Linear(channels, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        x = self.maxpool(functional.relu_(self.bn1(self.conv1(images))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        x = functional.relu_(self.bn_final(x))
        logits: Tensor = self.fc(self.dropout(x.mean((2, 3))))
        return logits


def build(
    num_classes: int, *, depth: int = 101, alpha: float = 360.0, block: Block = "bottleneck", drop_rate: float = 0.0
) -> nn.Module:
    """The network with the authors' initialisation: He's for convolutions (fan out), PyTorch's own elsewhere.

    `alpha` is how much wider the last block is than the stem. `drop_rate` is dropout before the last layer: 0.5 in the
    paper's PyramidNet-200 with alpha 450, none in the authors' code. Raises ValueError for an unknown block, a negative
    alpha, or a depth of less than one block a stage.
    """
    if block not in get_args(Block):
        raise ValueError(f"block={block}: must be one of {', '.join(get_args(Block))}")
    if alpha < 0:
        raise ValueError(f"alpha={alpha}: must be at least 0")
    network = PyramidNet(num_classes, stage_blocks(depth, block), alpha, block, drop_rate)
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return network


def card(*, depth: int, alpha: float, top1: str = "") -> ModelCard:
    """The card of the network of this depth and width; `depth`, `alpha` and `block` can still be given as options."""
    return ModelCard(
        build=partial(build, depth=depth, alpha=alpha), lr_per_256=0.5, paper="arXiv:1610.02915", top1=top1
    )
