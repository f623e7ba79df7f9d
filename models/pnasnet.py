"""PNASNet-5-Large as Cadene published it: Liu et al., "Progressive neural architecture search", arXiv:1712.00559.

86,057,668 parameters at 1000 classes. Names in the state_dict and results are Cadene's, computed with less work:

- a cell's inputs are only used after a ReLU, so each cell ends with one, in place, and inside a cell each tensor goes
  through ReLU and max-pool once, where the original repeats both for every branch;
- the shifts by one pixel (a pad, then a crop, of full-size tensors) are folded into the convolution or the pool that
  follows. Nothing is padded or copied, so channels_last strides are kept.

For two images of 159 pixels, a training step takes at most 528 MiB instead of 621, the weights' gradients included,
and 7 to 12 % less time on a CPU; `make bench-models` measures it.
"""

from collections import OrderedDict
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.card import ModelCard

EPSILON = 0.001
AUXILIARY_CHANNELS = 4320
"""Channels of cell 8's output."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """Where a network may depart from Cadene's; Huawei's Ascend model zoo does so in `zero_pad`."""

    drop_path: float = 0.0
    """Probability that a separable branch is dropped for a sample, in training. The zoo's trainer stores 0.4 as an
    attribute that nothing reads, and calls drop_path() with its default training=False: its run had none."""
    zero_pad: bool = True
    """False leaves out the shifts by one pixel in cell 4 and where a cell halves its left input. Shapes and
    parameters stay, features do not."""

    def __post_init__(self) -> None:
        if not 0 <= self.drop_path < 1:
            raise ValueError(f"drop_path={self.drop_path} must be in [0, 1)")


def drop_path(branch: Tensor, probability: float) -> Tensor:
    """Zero samples of [B, C, H, W] with this probability and scale the others so that the mean is kept; in place."""
    keep = 1 - probability
    mask = torch.empty(len(branch), 1, 1, 1, dtype=branch.dtype, device=branch.device).bernoulli_(keep)
    return branch.mul_(mask.div_(keep))


class SeparableConv2d(nn.Module):
    """A depthwise and a pointwise convolution, without bias."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, stride: int, shifted: bool) -> None:
        super().__init__()
        self.depthwise_conv2d = nn.Conv2d(
            in_channels,
            in_channels,
            kernel_size,
            stride=stride,
            padding=kernel_size // 2,
            groups=in_channels,
            bias=False,
        )
        self.pointwise_conv2d = nn.Conv2d(in_channels, out_channels, kernel_size=1, bias=False)
        self.shifted = shifted

    def forward(self, x: Tensor) -> Tensor:
        depthwise = self.depthwise_conv2d
        x = _shifted_convolution(depthwise, x) if self.shifted else depthwise(x)
        out: Tensor = self.pointwise_conv2d(x)
        return out


def _shifted_convolution(convolution: nn.Conv2d, x: Tensor) -> Tensor:
    """A convolution of stride 2 whose grid lies one pixel further right and down where the side is even.

    That is TensorFlow's SAME padding. One extra row and column are computed and cut off; padding the input instead
    would copy four times as much.
    """
    (down, right), padding = _shift(x), convolution.kernel_size[0] // 2
    out = functional.conv2d(
        x, convolution.weight, stride=2, padding=(padding + down, padding + right), groups=convolution.groups
    )
    return out[:, :, down:, right:]


def _shift(x: Tensor) -> tuple[int, int]:
    """Shift down and right: 1 for an even side, 0 for an odd one, where SAME padding is symmetric."""
    return 1 - x.shape[2] % 2, 1 - x.shape[3] % 2


class BranchSeparables(nn.Module):
    """Two separable convolutions with batch norm and a ReLU between them. The input has been through a ReLU."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        options: Options,
        stride: int = 1,
        stem_cell: bool = False,
        shifted: bool = False,
    ) -> None:
        super().__init__()
        middle_channels = out_channels if stem_cell else in_channels
        self.separable_1 = SeparableConv2d(in_channels, middle_channels, kernel_size, stride, shifted)
        self.bn_sep_1 = nn.BatchNorm2d(middle_channels, eps=EPSILON)
        self.separable_2 = SeparableConv2d(middle_channels, out_channels, kernel_size, stride=1, shifted=False)
        self.bn_sep_2 = nn.BatchNorm2d(out_channels, eps=EPSILON)
        self.drop_path = 0.0 if stem_cell else options.drop_path

    def forward(self, rectified: Tensor) -> Tensor:
        out: Tensor = functional.relu_(self.bn_sep_1(self.separable_1(rectified)))
        out = self.bn_sep_2(self.separable_2(out))
        return drop_path(out, self.drop_path) if self.training and self.drop_path else out


class ConvBn(nn.Module):
    """A 1x1 convolution with batch norm. The input has been through a ReLU."""

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size=1, stride=stride, bias=False)
        self.bn = nn.BatchNorm2d(out_channels, eps=EPSILON)

    def forward(self, rectified: Tensor) -> Tensor:
        out: Tensor = self.bn(self.conv(rectified))
        return out


class FactorizedReduction(nn.Module):
    """Half the side, rounded up: a 1x1 convolution of every other pixel and one of the pixels between.

    The input has been through a ReLU. Without `zero_pad` both convolutions see the same pixels. Slices equal the
    original's average-pools of one pixel; convolutions of stride 2 would round differently.
    """

    def __init__(self, in_channels: int, out_channels: int, options: Options) -> None:
        super().__init__()
        self.path_1, self.path_2 = (
            nn.Sequential(OrderedDict(conv=nn.Conv2d(in_channels, out_channels // 2, kernel_size=1, bias=False)))
            for _ in range(2)
        )
        self.final_path_bn = nn.BatchNorm2d(out_channels, eps=EPSILON)
        self.zero_pad = options.zero_pad

    def forward(self, rectified: Tensor) -> Tensor:
        first = second = rectified[:, :, ::2, ::2]
        if self.zero_pad:  # beyond the edge of an odd side are zeros
            height, width = rectified.shape[2:]
            second = functional.pad(rectified[:, :, 1::2, 1::2], (0, width % 2, 0, height % 2))
        out: Tensor = self.final_path_bn(torch.cat([self.path_1(first), self.path_2(second)], 1))
        return out


class Branches(nn.Module):
    """What all cells share: five sums of two branches each (figure 1 of the paper), concatenated, then a ReLU."""

    def __init__(
        self, in_channels: int, channels: int, options: Options, stride: int, shifted: bool, stem_cell: bool
    ) -> None:
        super().__init__()
        self.stride, self.shifted = stride, shifted

        def separable(in_channels: int, kernel_size: int, stem_cell: bool = False) -> BranchSeparables:
            return BranchSeparables(in_channels, channels, kernel_size, options, stride, stem_cell, shifted)

        self.comb_iter_0_left = separable(in_channels, 5, stem_cell)
        self.comb_iter_1_left = separable(channels, 7)
        self.comb_iter_2_left = separable(channels, 5)
        self.comb_iter_2_right = separable(channels, 3)
        self.comb_iter_3_left = BranchSeparables(channels, channels, 3, options)
        self.comb_iter_4_left = separable(in_channels, 3, stem_cell)
        self.comb_iter_4_right = ConvBn(channels, channels, stride) if stride > 1 else None

    def pool(self, x: Tensor) -> Tensor:
        """Max-pool 3x3 with the cell's stride; shifted by one pixel, that is a pool that rounds the size up."""
        if not self.shifted:
            return functional.max_pool2d(x, 3, self.stride, padding=1)
        down, right = _shift(x)
        return functional.max_pool2d(x, 3, 2, padding=(1 - down, 1 - right), ceil_mode=True)

    def combine(self, rectified_left: Tensor, pooled_left: Tensor, right: Tensor) -> Tensor:
        """Three inputs [B, C, H, W] to [B, 5 * channels, H / stride, W / stride]."""
        rectified_right, pooled_right = functional.relu(right), self.pool(right)
        straight = right if self.comb_iter_4_right is None else self.comb_iter_4_right(rectified_right)
        third = self.comb_iter_2_left(rectified_right).add_(self.comb_iter_2_right(rectified_right)).relu_()
        sums = [
            self.comb_iter_0_left(rectified_left).add_(pooled_left),
            self.comb_iter_1_left(rectified_right).add_(pooled_right),
            third,
            self.comb_iter_3_left(third).add_(pooled_right),
            self.comb_iter_4_left(rectified_left).add_(straight),
        ]
        return torch.cat(sums, 1).relu_()


class CellStem0(Branches):
    """The first cell, whose two inputs are both the output of the first convolution."""

    def __init__(self, in_channels: int, channels: int, options: Options) -> None:
        super().__init__(in_channels, channels, options, stride=2, shifted=False, stem_cell=True)
        self.conv_1x1 = ConvBn(in_channels, channels)
        self.comb_iter_0_right = nn.Sequential(
            OrderedDict(
                conv=nn.Conv2d(in_channels, channels, kernel_size=1, bias=False),
                bn=nn.BatchNorm2d(channels, eps=EPSILON),
            )
        )

    def forward(self, x: Tensor, rectified: Tensor) -> Tensor:
        return self.combine(rectified, self.comb_iter_0_right(self.pool(x)), self.conv_1x1(rectified))


class Cell(Branches):
    """A cell of the outputs of the last cell but one (left) and of the last cell (right), both after a ReLU."""

    def __init__(
        self,
        in_channels_left: int,
        in_channels_right: int,
        channels: int,
        options: Options,
        stride: int = 1,
        shifted: bool = False,
        halve_left: bool = False,
    ) -> None:
        super().__init__(channels, channels, options, stride, shifted and options.zero_pad, stem_cell=False)
        self.conv_prev_1x1 = (
            FactorizedReduction(in_channels_left, channels, options)
            if halve_left
            else ConvBn(in_channels_left, channels)
        )
        self.conv_1x1 = ConvBn(in_channels_right, channels)

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        left = self.conv_prev_1x1(left)
        return self.combine(functional.relu(left), self.pool(left), self.conv_1x1(right))


class AuxiliaryHead(nn.Module):
    """Logits from cell 8's output, as in the Ascend model zoo: 2,208,488 parameters at 1000 classes.

    Its average-pool and 3x3 convolution reduce the 11x11 of 331 pixels to 1x1. Larger maps are averaged at the end;
    smaller ones are pooled to the 3x3 that the convolution needs.
    """

    def __init__(self, in_channels: int, num_classes: int) -> None:
        super().__init__()
        self.features = nn.Sequential(
            OrderedDict(
                {  # the zoo's names
                    "2": nn.Conv2d(in_channels, 128, kernel_size=1, bias=False),
                    "3": nn.BatchNorm2d(128),
                    "4": nn.ReLU(inplace=True),
                    "5": nn.Conv2d(128, 768, kernel_size=3, bias=False),
                    "6": nn.BatchNorm2d(768),
                    "7": nn.ReLU(inplace=True),
                }
            )
        )
        self.classifier = nn.Linear(768, num_classes)

    def forward(self, rectified: Tensor) -> Tensor:
        large = min(rectified.shape[2:]) >= 11
        pooled = functional.avg_pool2d(rectified, 7, 2) if large else functional.adaptive_avg_pool2d(rectified, 3)
        logits: Tensor = self.classifier(self.features(pooled).mean((2, 3)))
        return logits


class PNASNet5Large(nn.Module):
    """Images [B, 3, H, W] to logits [B, num_classes]; with `aux`, in training, to logits and auxiliary logits."""

    def __init__(self, num_classes: int, options: Options, aux: bool) -> None:
        super().__init__()
        self.conv_0 = nn.Sequential(
            OrderedDict(
                conv=nn.Conv2d(3, 96, kernel_size=3, stride=2, bias=False),
                bn=nn.BatchNorm2d(96, eps=EPSILON),
            )
        )
        self.cell_stem_0 = CellStem0(96, 54, options)
        self.cell_stem_1 = Cell(96, 270, 108, options, stride=2, halve_left=True)
        self.cell_0 = Cell(270, 540, 216, options, halve_left=True)
        self.cell_1 = Cell(540, 1080, 216, options)
        self.cell_2 = Cell(1080, 1080, 216, options)
        self.cell_3 = Cell(1080, 1080, 216, options)
        self.cell_4 = Cell(1080, 1080, 432, options, stride=2, shifted=True)
        self.cell_5 = Cell(1080, 2160, 432, options, halve_left=True)
        self.cell_6 = Cell(2160, 2160, 432, options)
        self.cell_7 = Cell(2160, 2160, 432, options)
        self.cell_8 = Cell(2160, 2160, 864, options, stride=2)
        self.aux = AuxiliaryHead(AUXILIARY_CHANNELS, num_classes) if aux else None
        self.cell_9 = Cell(2160, 4320, 864, options, halve_left=True)
        self.cell_10 = Cell(4320, 4320, 864, options)
        self.cell_11 = Cell(4320, 4320, 864, options)
        self.dropout = nn.Dropout(0.5)
        self.last_linear = nn.Linear(4320, num_classes)

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        stem = self.conv_0(images)
        left = functional.relu(stem)
        right = self.cell_stem_0(stem, left)
        left, right = right, self.cell_stem_1(left, right)
        for cell in (self.cell_0, self.cell_1, self.cell_2, self.cell_3, self.cell_4):
            left, right = right, cell(left, right)
        for cell in (self.cell_5, self.cell_6, self.cell_7, self.cell_8):
            left, right = right, cell(left, right)
        auxiliary = self.aux(right) if self.aux is not None and self.training else None
        for cell in (self.cell_9, self.cell_10, self.cell_11):
            left, right = right, cell(left, right)
        logits = self.last_linear(self.dropout(right.mean((2, 3))))
        return logits if auxiliary is None else (logits, auxiliary)


def build(num_classes: int, *, aux: bool = False, drop_path: float = 0.0, zero_pad: bool = True) -> nn.Module:
    """The network with Cadene's initialisation, which is PyTorch's own for every layer.

    `aux` adds the auxiliary head. Raises ValueError for a `drop_path` outside [0, 1).
    """
    return PNASNet5Large(num_classes, Options(drop_path=drop_path, zero_pad=zero_pad), aux)


CARD = ModelCard(
    build=build,
    resolution=331,
    eval_resize=378,
    mean=(0.5, 0.5, 0.5),
    std=(0.5, 0.5, 0.5),
    lr_per_256=0.4,
    background_class=True,
    paper="arXiv:1712.00559",
    top1="82.74 Cadene (82.9 authors)",
)
