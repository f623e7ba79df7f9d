"""PNASNet-5-Large against Cadene's and timm's, and what the Ascend model zoo changes in it."""

from collections.abc import Iterator
from types import MethodType
from typing import Any

import pretrainedmodels
import pytest
import timm
import torch
from torch import Tensor, nn

from models import pnasnet
from tests.helpers.parity import assert_same, difference

CLASSES = 10


@pytest.fixture(scope="module")
def network() -> nn.Module:
    torch.manual_seed(0)
    return pnasnet.build(CLASSES)


@pytest.fixture
def cadene(network: nn.Module) -> Iterator[nn.Module]:
    """Cadene's network with the same weights, at any resolution."""
    with torch.device("meta"):
        reference = pretrainedmodels.pnasnet5large(CLASSES, pretrained=None)
    reference.load_state_dict(network.state_dict(), assign=True)
    for parameter in reference.parameters():  # shared; running statistics are not
        parameter.requires_grad_()
    for module in reference.modules():
        for name, buffer in list(module.named_buffers(recurse=False)):
            setattr(module, name, buffer.clone())
    reference.avg_pool = nn.AdaptiveAvgPool2d(1)
    yield reference
    network.zero_grad()
    reference.zero_grad()


def without_zero_pad(reference: nn.Module) -> None:
    """Remove what the Ascend model zoo removes from Cadene's code."""

    def forward(self: Any, x: Tensor) -> Tensor:
        x = self.relu(x)
        second = self.path_2.conv(self.path_2.avgpool(x))
        out: Tensor = self.final_path_bn(torch.cat([self.path_1(x), second], 1))
        return out

    for module in reference.modules():
        if getattr(module, "zero_pad", None):
            del module.zero_pad
            module.register_module("zero_pad", None)
        if type(module).__name__ == "FactorizedReduction":
            module.forward = MethodType(forward, module)


def test_it_computes_what_cadenes_does(network: nn.Module, cadene: nn.Module) -> None:
    assert network.state_dict().keys() == cadene.state_dict().keys()
    assert_same(network, cadene, torch.randn(2, 3, 95, 95))


def test_at_331_pixels_it_computes_what_cadenes_unchanged_code_and_timms_do(
    network: nn.Module, cadene: nn.Module
) -> None:
    """timm's at 331 pixels only: it uses TensorFlow's padding everywhere, Cadene's only where it differs at 331."""
    cadene.avg_pool = nn.AvgPool2d(11, stride=1)
    with torch.device("meta"):
        timms = timm.create_model("pnasnet5large", num_classes=CLASSES)
    timms.load_state_dict(network.state_dict(), assign=True)
    images = torch.randn(1, 3, 331, 331)
    with torch.no_grad():
        result = network.eval()(images)
        for reference in (cadene, timms):
            assert difference(result, reference.eval()(images)) < 1e-5


def test_without_zero_pad_it_is_the_ascend_model_zoos(network: nn.Module, cadene: nn.Module) -> None:
    with torch.device("meta"):
        ascend = pnasnet.build(CLASSES, zero_pad=False)
    ascend.load_state_dict(network.state_dict(), assign=True)
    without_zero_pad(cadene)
    images = torch.randn(1, 3, 95, 95)
    assert_same(ascend, cadene, images, training=False)
    with torch.no_grad():
        assert difference(network.eval()(images), ascend(images)) > 1e-4


@pytest.mark.parametrize("side", [32, 66, 131])
def test_it_accepts_sides_that_cadenes_does_not(network: nn.Module, side: int) -> None:
    with torch.no_grad():
        assert network.eval()(torch.zeros(1, 3, side, side + 9)).shape == (1, CLASSES)


def test_the_auxiliary_head_is_the_ascend_model_zoos() -> None:
    """Names and shapes as in its checkpoints; at 331 pixels cell 8 yields 11x11."""
    torch.manual_seed(1)
    head = pnasnet.AuxiliaryHead(4320, 1000)
    assert sum(parameter.numel() for parameter in head.parameters()) == 2_208_488
    theirs = nn.Module()
    theirs.features = nn.Sequential(
        nn.ReLU(),
        nn.AvgPool2d(7, stride=2),
        nn.Conv2d(4320, 128, 1, bias=False),
        nn.BatchNorm2d(128),
        nn.ReLU(),
        nn.Conv2d(128, 768, 3, bias=False),
        nn.BatchNorm2d(768),
        nn.ReLU(),
    )
    theirs.classifier = nn.Linear(768, 1000)
    theirs.load_state_dict(head.state_dict())
    cell = torch.randn(2, 4320, 11, 11)
    expected = theirs.classifier(theirs.features(cell).flatten(1))
    assert difference(head(cell.relu()), expected) < 1e-6
    assert head(torch.zeros(2, 4320, 2, 2)).shape == head(torch.zeros(2, 4320, 13, 14)).shape == (2, 1000)


def test_auxiliary_logits_are_computed_only_in_training() -> None:
    with torch.device("meta"):
        network = pnasnet.build(CLASSES, aux=True)
        images = torch.zeros(2, 3, 331, 331)
        logits, auxiliary = network.train()(images)
        assert logits.shape == auxiliary.shape == network.eval()(images).shape == (2, CLASSES)


def test_drop_path_drops_whole_samples_and_keeps_the_mean() -> None:
    torch.manual_seed(0)
    dropped = pnasnet.drop_path(torch.ones(20_000, 2, 1, 3), 0.4)
    assert ((dropped == 0) | ((dropped - 1 / 0.6).abs() < 1e-6)).all()
    assert torch.equal(dropped, dropped[:, :1, :, :1].expand_as(dropped))
    assert abs(dropped.mean() - 1) < 0.02


def test_paths_are_dropped_only_in_training(network: nn.Module) -> None:
    with torch.device("meta"):
        dropping = pnasnet.build(CLASSES, drop_path=0.4)
    dropping.load_state_dict(network.state_dict(), assign=True)
    images = torch.randn(1, 3, 64, 64)
    branch = dropping.get_submodule("cell_0.comb_iter_0_left")
    cell_input = torch.randn(64, 216, 4, 4).relu()
    with torch.no_grad():
        assert torch.equal(dropping.eval()(images), network.eval()(images))
        zeroed = (branch.train()(cell_input).flatten(1) == 0).all(1).sum()
    assert 10 < zeroed < 42  # of 64; five standard deviations around 25.6
