"""SE-ResNet-50 in its two published forms, which differ in more than names.

- `build_se_resnet50`: torchvision's ResNet-50 (stride on the 3x3 convolution) whose blocks end in a squeeze and
  excitation of two linear layers without bias: 28,071,976 parameters.
- `build_se_resnet50_caffe`: the authors' Caffe network as Cadene translated it (stride on the 1x1 convolution, a
  max-pool that rounds up, excitation by 1x1 convolutions with bias): 28,088,024 parameters.

Both are of Hu, Shen, Sun, "Squeeze-and-excitation networks", arXiv:1709.01507.
"""

from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models.resnet import Bottleneck, ResNet

from models.card import ModelCard

REDUCTION = 16
LAYERS = (3, 4, 6, 3)


class Excitation(nn.Module):
    """Channel weights in (0, 1) from a feature map: [B, C, H, W] to [B, C, 1, 1]."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fc = nn.Sequential(
            nn.Linear(channels, channels // REDUCTION, bias=False),
            nn.ReLU(inplace=True),
            nn.Linear(channels // REDUCTION, channels, bias=False),
            nn.Sigmoid(),
        )

    def forward(self, features: Tensor) -> Tensor:
        weights: Tensor = self.fc(features.mean((2, 3)))
        return weights[:, :, None, None]


class ConvolutionalExcitation(nn.Module):
    """Channel weights as in Excitation, by 1x1 convolutions with bias."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(channels, channels // REDUCTION, kernel_size=1)
        self.fc2 = nn.Conv2d(channels // REDUCTION, channels, kernel_size=1)

    def forward(self, features: Tensor) -> Tensor:
        hidden = functional.relu(self.fc1(features.mean((2, 3), keepdim=True)), inplace=True)
        return torch.sigmoid(self.fc2(hidden))


class SEBottleneck(Bottleneck):  # type: ignore[misc]  # torchvision has no types
    """torchvision's bottleneck with an excitation before the shortcut is added."""

    def __init__(self, inplanes: int, planes: int, *args: object, **kwargs: object) -> None:
        super().__init__(inplanes, planes, *args, **kwargs)
        self.se = Excitation(planes * self.expansion)

    def forward(self, x: Tensor) -> Tensor:
        return _bottleneck(self, self.se, x)


class SEBottleneckCaffe(nn.Module):
    """The bottleneck of the Caffe networks: the stride is on its first convolution."""

    def __init__(self, inplanes: int, planes: int, stride: int, downsample: nn.Module | None) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inplanes, planes, kernel_size=1, stride=stride, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, kernel_size=3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.conv3 = nn.Conv2d(planes, planes * 4, kernel_size=1, bias=False)
        self.bn3 = nn.BatchNorm2d(planes * 4)
        self.relu = nn.ReLU(inplace=True)
        self.se_module = ConvolutionalExcitation(planes * 4)
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        return _bottleneck(self, self.se_module, x)


def _bottleneck(block: Any, excitation: nn.Module, x: Tensor) -> Tensor:
    out = block.relu(block.bn1(block.conv1(x)))
    out = block.relu(block.bn2(block.conv2(out)))
    out = block.bn3(block.conv3(out))
    shortcut = x if block.downsample is None else block.downsample(x)
    # addcmul would save a pass over memory, but rounds differently: a ReLU near zero flips, and with it gradients.
    rectified: Tensor = block.relu((out * excitation(out)).add_(shortcut))
    return rectified


class SEResNetCaffe(nn.Module):
    """Cadene's `SENet`, configured as SE-ResNet-50: images [B, 3, H, W] to logits [B, num_classes]."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.layer0 = nn.Sequential(
            OrderedDict(
                conv1=nn.Conv2d(3, 64, kernel_size=7, stride=2, padding=3, bias=False),
                bn1=nn.BatchNorm2d(64),
                relu1=nn.ReLU(inplace=True),
                pool=nn.MaxPool2d(3, stride=2, ceil_mode=True),
            )
        )
        self.layer1 = self._stage(64, 64, LAYERS[0], stride=1)
        self.layer2 = self._stage(256, 128, LAYERS[1], stride=2)
        self.layer3 = self._stage(512, 256, LAYERS[2], stride=2)
        self.layer4 = self._stage(1024, 512, LAYERS[3], stride=2)
        self.last_linear = nn.Linear(2048, num_classes)

    @staticmethod
    def _stage(inplanes: int, planes: int, blocks: int, stride: int) -> nn.Sequential:
        downsample = nn.Sequential(
            nn.Conv2d(inplanes, planes * 4, kernel_size=1, stride=stride, bias=False), nn.BatchNorm2d(planes * 4)
        )
        first = SEBottleneckCaffe(inplanes, planes, stride, downsample)
        return nn.Sequential(first, *(SEBottleneckCaffe(planes * 4, planes, 1, None) for _ in range(blocks - 1)))

    def forward(self, images: Tensor) -> Tensor:
        features = self.layer4(self.layer3(self.layer2(self.layer1(self.layer0(images)))))
        logits: Tensor = self.last_linear(features.mean((2, 3)))
        return logits


def build_se_resnet50(num_classes: int) -> nn.Module:
    """The network with torchvision's initialisation (Kaiming, fan out; linear layers as in PyTorch)."""
    network: nn.Module = ResNet(SEBottleneck, list(LAYERS), num_classes=num_classes)
    return network


def build_se_resnet50_caffe(num_classes: int) -> nn.Module:
    """The network with Cadene's initialisation, which is PyTorch's own for every layer."""
    return SEResNetCaffe(num_classes)


CARD = ModelCard(build=build_se_resnet50, lr_per_256=0.15, paper="arXiv:1709.01507", top1="77.5 Ascend model zoo")
CAFFE_CARD = ModelCard(build=build_se_resnet50_caffe, lr_per_256=0.15, paper="arXiv:1709.01507", top1="77.63 authors")
