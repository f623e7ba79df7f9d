"""AlexNet, torchvision's single tower: 61,100,840 parameters at 1000 classes.

Krizhevsky, "One weird trick for parallelizing convolutional neural networks", arXiv:1404.5997.
"""

import torchvision
from torch import nn

from models.card import ModelCard


def build(num_classes: int) -> nn.Module:
    """The network with torchvision's initialisation, which is PyTorch's own for every layer."""
    network: nn.Module = torchvision.models.alexnet(num_classes=num_classes)
    return network


CARD = ModelCard(build=build, lr_per_256=0.01, paper="arXiv:1404.5997", top1="56.522 torchvision")
