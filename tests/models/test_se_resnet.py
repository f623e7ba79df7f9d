"""SE-ResNet-50 against torchvision, Cadene and timm."""

import pretrainedmodels
import pytest
import timm
import torch
import torchvision
from torch import nn

from models import se_resnet
from tests.helpers.parity import assert_same


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def test_the_caffe_form_computes_what_cadenes_does() -> None:
    ours, reference = se_resnet.build_se_resnet50_caffe(1000), pretrainedmodels.se_resnet50(pretrained=None)
    reference.load_state_dict(ours.state_dict())
    reference.avg_pool = nn.AdaptiveAvgPool2d(1)  # his takes 224 pixels only
    assert_same(ours, reference, torch.randn(2, 3, 65, 97))


def test_at_224_pixels_the_caffe_form_computes_what_cadenes_unchanged_code_does() -> None:
    ours, reference = se_resnet.build_se_resnet50_caffe(10), pretrainedmodels.se_resnet50(10, pretrained=None)
    reference.load_state_dict(ours.state_dict())
    assert_same(ours, reference, torch.randn(1, 3, 224, 224), training=False)


def test_the_caffe_form_computes_what_timms_does() -> None:
    ours = se_resnet.build_se_resnet50_caffe(10)
    reference = timm.create_model("legacy_seresnet50", num_classes=10, drop_rate=0.0)
    reference.load_state_dict(ours.state_dict())
    assert_same(ours, reference, torch.randn(2, 3, 64, 64))


def test_the_other_form_computes_what_timms_does_without_biases() -> None:
    """timm's SE-ResNet-50, too, has the stride on the 3x3; its excitations have biases, set to zero here."""
    ours, reference = se_resnet.build_se_resnet50(10), timm.create_model("seresnet50", num_classes=10)
    weights = {}
    for name, value in ours.state_dict().items():
        if ".se.fc." in name:
            name = name.replace("se.fc.0", "se.fc1").replace("se.fc.2", "se.fc2")
            weights[name.replace("weight", "bias")] = torch.zeros(len(value))
            value = value[:, :, None, None]
        weights[name] = value
    reference.load_state_dict(weights)
    assert_same(ours.double(), reference.double(), torch.randn(2, 3, 64, 64).double(), 1e-10)


def test_the_other_form_has_torchvisions_names_and_initialisation() -> None:
    state = se_resnet.build_se_resnet50(1000).state_dict()
    theirs = torchvision.models.resnet50().state_dict()
    added = state.keys() - theirs.keys()
    assert theirs.keys() <= state.keys()
    assert {name.partition("se.")[1:] for name in added} == {("se.", "fc.0.weight"), ("se.", "fc.2.weight")}
    for name in ("conv1.weight", "layer3.2.conv2.weight"):
        torch.testing.assert_close(state[name].std(), theirs[name].std(), rtol=0.05, atol=0)
