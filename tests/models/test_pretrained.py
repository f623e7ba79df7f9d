"""Loading published weights: the forms they are saved in, and what does not match."""

import re
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torchvision.transforms import v2 as transforms

import models
from models import pretrained
from models.normalize import IMAGENET_MEAN, IMAGENET_STD
from models.pretrained import PretrainedError


class Network(nn.Module):
    """A small network with what matters to loading: a BatchNorm and a last layer."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)
        self.bn = nn.BatchNorm2d(4)
        self.last_linear = nn.Linear(4, classes)


def published(classes: int) -> dict[str, Tensor]:
    """Weights as torchvision publishes them."""
    torch.manual_seed(1)
    return OrderedDict((name, torch.rand(value.shape)) for name, value in Network(classes).state_dict().items())


def assert_loaded(network: nn.Module, weights: dict[str, Tensor]) -> None:
    for name, value in network.state_dict().items():
        assert torch.equal(value, weights[name].to(value.dtype)), name


FORMS: dict[str, Callable[[dict[str, Tensor]], Any]] = {
    "torchvision": lambda weights: weights,
    "zoo": lambda weights: {
        "epoch": 90,
        "arch": "resnet152",
        "state_dict": OrderedDict((f"module.{name}", value) for name, value in weights.items()),
        "best_acc1": torch.tensor(78.0),
        "optimizer": {"state": {0: {"momentum_buffer": torch.zeros(3)}}, "param_groups": [{"lr": 0.1, "params": [0]}]},
    },
    "ours": lambda weights: {"model": weights, "config": {"model": "alexnet"}, "ema": None},
    "ours, averaged": lambda weights: {
        "model": {name: torch.zeros_like(value) for name, value in weights.items()},
        "config": {"model": "alexnet"},
        "ema": weights,
    },
    "parallel, then compiled": lambda weights: {f"_orig_mod.module.{name}": value for name, value in weights.items()},
    "compiled, then parallel": lambda weights: {f"module._orig_mod.{name}": value for name, value in weights.items()},
    "a layer compiled": lambda weights: {
        f"module.{name.replace('conv.', 'conv._orig_mod.')}": value for name, value in weights.items()
    },
    "torchvision's references, averaged": lambda weights: {
        "model": {name: torch.zeros_like(value) for name, value in weights.items()},
        "model_ema": {"n_averaged": torch.tensor(3)} | {f"module.{name}": value for name, value in weights.items()},
    },
    "timm, averaged": lambda weights: {
        "arch": "resnet50",
        "state_dict": {name: torch.zeros_like(value) for name, value in weights.items()},
        "state_dict_ema": weights,
        "metric": 78.0,
    },
    "Lightning": lambda weights: {
        "pytorch-lightning_version": "2.5.0",
        "state_dict": {f"model._orig_mod.{name}": value for name, value in weights.items()},
        "hyper_parameters": {"lr": 0.1},
    },
    "before PyTorch 0.4.1": lambda weights: {name: v for name, v in weights.items() if "batches_tracked" not in name},
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_published_weights(form: str) -> None:
    weights = published(10)
    weights["bn.num_batches_tracked"] = torch.tensor(0)
    network = Network(10)
    assert pretrained.load(network, pretrained.find_weights(FORMS[form](weights)), 10) == []
    assert_loaded(network, weights)


@pytest.mark.parametrize("content", [[torch.ones(2)], {"epoch": 3}, {"state_dict": {"a": 3}}, {}], ids=str)
def test_content_without_weights(content: Any) -> None:
    with pytest.raises(PretrainedError, match="holds no weights: neither a state_dict nor one under 'state_dict'"):
        pretrained.find_weights(content)


def test_a_last_layer_of_another_size_is_new_only_on_request() -> None:
    network = Network(10)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    message = r"has 1000 classes \(last_linear.weight, last_linear.bias\), not 10; --num-classes 10 starts with a new"
    with pytest.raises(PretrainedError, match=message):
        pretrained.load(network, published(1000), 10)
    assert_loaded(network, before)
    heads = ["last_linear.weight", "last_linear.bias"]
    assert pretrained.load(network, published(1000), 10, new_head=True) == heads
    assert_loaded(network, published(1000) | {name: before[name] for name in heads})


def test_a_last_layer_that_fits_is_loaded_even_where_a_new_one_is_allowed() -> None:
    network = Network(10)
    assert pretrained.load(network, published(10), 10, new_head=True) == []
    assert_loaded(network, published(10))


def test_the_background_class_is_dropped_as_in_cadenes_code() -> None:
    weights = published(1001)
    network = Network(1000)
    with pytest.raises(PretrainedError, match="has 1001 classes"):
        pretrained.load(network, weights, 1000)
    heads = ["last_linear.weight", "last_linear.bias"]
    pretrained.load(network, pretrained.without_background(weights, heads, 1000), 1000)
    assert torch.equal(network.last_linear.weight, weights["last_linear.weight"][1:])
    assert torch.equal(network.last_linear.bias, weights["last_linear.bias"][1:])
    whole = Network(1001)
    pretrained.load(whole, pretrained.without_background(weights, heads, 1001), 1001)
    assert_loaded(whole, weights)


@pytest.mark.parametrize("new_head", [False, True])
def test_every_mismatch_is_named(new_head: bool) -> None:
    weights = published(10)
    weights["extra.weight"] = weights.pop("conv.bias")
    weights["bn.weight"] = torch.ones(5)
    network = Network(10)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    message = "^does not fit the model: missing: conv.bias; unknown: extra.weight; of another shape: bn.weight$"
    with pytest.raises(PretrainedError, match=message):
        pretrained.load(network, weights, 10, new_head=new_head)
    assert_loaded(network, before)


def test_a_long_list_is_cut() -> None:
    weights = published(10) | {f"layer{number}.weight": torch.ones(1) for number in range(50)}
    with pytest.raises(PretrainedError, match=r"unknown: layer0.weight.* and 30 more$") as caught:
        pretrained.load(Network(10), weights, 10)
    assert "\n" not in str(caught.value)


def test_names_that_only_some_weights_have_are_not_removed() -> None:
    weights = {f"model.{name}": value for name, value in published(10).items()} | {"loss.weight": torch.ones(10)}
    with pytest.raises(PretrainedError, match=r"unknown: model.conv.weight.*, loss.weight$"):
        pretrained.load(Network(10), pretrained.find_weights({"state_dict": weights}), 10)


def test_torchvisions_old_densenet_file() -> None:
    network, classifier = torchvision.models.densenet121(), models.create("densenet121", 1000)
    expected = network.state_dict()
    old = {
        re.sub(r"(denselayer\d+\.(?:norm|conv))([12])", r"\1.\2", name): value
        for name, value in expected.items()
        if "num_batches_tracked" not in name
    }
    assert "features.denseblock1.denselayer1.norm.1.weight" in old
    assert pretrained.load(classifier.network, pretrained.find_weights(old), 1000) == []
    assert_loaded(classifier.network, expected)


@pytest.mark.parametrize("name", ["inception_v3", "googlenet"])
def test_torchvisions_files_with_auxiliary_heads_give_its_logits(name: str) -> None:
    """Both expect other means than ImageNet's, which torchvision takes care of where it loads them itself."""
    build = torchvision.models.get_model_builder(name)
    published_network = build(weights=None, aux_logits=True, transform_input=True, init_weights=False).eval()
    classifier = models.create(name, 1000).eval()
    assert pretrained.load(classifier.network, pretrained.find_weights(published_network.state_dict()), 1000) == []
    images = torch.randint(256, (1, 3, 80, 80), dtype=torch.uint8)
    normalized = transforms.functional.normalize(images / 255, IMAGENET_MEAN, IMAGENET_STD)
    torch.testing.assert_close(classifier(images), published_network(normalized), rtol=1e-3, atol=1e-3)
    with_heads = models.create(name, 1000, {"aux_logits": True})
    assert pretrained.load(with_heads.network, published_network.state_dict(), 1000) == []


def test_weights_of_a_model_that_cannot_be_built_without_values() -> None:
    """torchvision's RegNets compute their widths in tensors, of which the meta device has no values."""
    with pytest.raises(NotImplementedError), torch.device("meta"):
        torchvision.models.regnet_y_400mf()
    reference = torchvision.models.regnet_y_400mf(num_classes=3).state_dict()
    own, heads = models.outline("torchvision/regnet_y_400mf")
    assert heads == ["fc.weight", "fc.bias"]
    assert all(value.is_meta for value in own.values())
    assert {name: value.shape for name, value in own.items() if name not in heads} == {
        name: value.shape for name, value in reference.items() if name not in heads
    }
    assert pretrained.named_as_in(own, {f"model.{name}": value for name, value in reference.items()}) == reference
