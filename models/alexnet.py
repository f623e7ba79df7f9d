"""AlexNet, torchvision's single tower: 61,100,840 parameters at 1000 classes."""

import torchvision
from torch import nn


def build(num_classes: int) -> nn.Module:
    """The network with torchvision's initialisation, which is PyTorch's own for every layer."""
    return torchvision.models.alexnet(num_classes=num_classes)
