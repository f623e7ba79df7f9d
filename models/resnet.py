"""ResNet-152, torchvision's (stride on the 3x3 convolution): 60,192,808 parameters at 1000 classes."""

import torchvision
from torch import nn


def build_resnet152(num_classes: int) -> nn.Module:
    """The network with torchvision's initialisation (Kaiming, fan out)."""
    return torchvision.models.resnet152(num_classes=num_classes)
