"""BlurPool next to timm's blur, where FFCV's example puts it."""

import pytest
import torch
import torchvision
from timm.layers import BlurPool2d
from torch import nn

import models
from models.blurpool import BlurPoolConv2d, apply_blurpool


def test_a_blurred_convolution_is_a_blur_and_the_convolution() -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(16, 8, 3, stride=2, padding=1)
    images = torch.randn(2, 16, 9, 11)
    blur = BlurPool2d(16, filt_size=3, stride=1, pad_mode="constant")
    torch.testing.assert_close(BlurPoolConv2d(conv)(images), conv(blur(images)))


@pytest.mark.parametrize(("name", "count"), [("resnet18", 6), ("resnet50", 6)])
def test_the_convolutions_of_ffcvs_example_are_blurred(name: str, count: int) -> None:
    """Those with a stride and at least 16 input channels: in three stages the block's, and its shortcut's."""
    network = torchvision.models.get_model(name)
    before = dict(network.named_modules())
    strided = {
        key for key, layer in before.items()
        if isinstance(layer, nn.Conv2d) and max(layer.stride) > 1 and layer.in_channels >= 16
    }  # fmt: skip
    assert apply_blurpool(network) == len(strided) == count
    assert {key for key, layer in network.named_modules() if isinstance(layer, BlurPoolConv2d)} == strided
    assert "layer2.0.downsample.0.conv.weight" in network.state_dict()
    assert "layer2.0.downsample.0.blur_filter" in network.state_dict()


def test_the_outline_of_a_blurred_model_has_its_names() -> None:
    with torch.device("meta"):
        network = models.create("resnet18", 10, blurpool=True).network
    assert models.outline("resnet18", blurpool=True)[0].keys() == network.state_dict().keys()
