"""ResNet-152, torchvision's (stride on the 3x3 convolution): 60,192,808 parameters at 1000 classes.

He et al., "Deep residual learning for image recognition", arXiv:1512.03385.
"""

import torchvision
from torch import nn

from models.card import ModelCard


def build_resnet152(num_classes: int) -> nn.Module:
    """The network with torchvision's initialisation (Kaiming, fan out)."""
    network: nn.Module = torchvision.models.resnet152(num_classes=num_classes)
    return network


CARD = ModelCard(build=build_resnet152, paper="arXiv:1512.03385", top1="78.312 torchvision V1 (82.284 V2)")
