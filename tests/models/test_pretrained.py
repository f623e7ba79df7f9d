"""Loading published weights: the forms they come in, and what does not match."""

from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from torch import Tensor, nn

from models import pretrained
from models.pretrained import PretrainedError


class Network(nn.Module):
    """Small, with what matters to loading: a BatchNorm and a last layer."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)
        self.bn = nn.BatchNorm2d(4)
        self.last_linear = nn.Linear(4, classes)


def published(classes: int) -> OrderedDict[str, Tensor]:
    torch.manual_seed(1)
    return OrderedDict((name, torch.rand(value.shape)) for name, value in Network(classes).state_dict().items())


def saved(content: Any, path: Path, **options: Any) -> Path:
    torch.save(content, path, **options)
    return path


def assert_loaded(network: nn.Module, weights: dict[str, Tensor]) -> None:
    for name, value in network.state_dict().items():
        assert torch.equal(value, weights[name].to(value.dtype)), name


FORMS = {
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
    "before PyTorch 0.4.1": lambda weights: {name: v for name, v in weights.items() if "batches_tracked" not in name},
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("zipped", [True, False])
def test_every_form_of_published_weights(tmp_path: Path, form: str, zipped: bool) -> None:
    weights = published(10)
    weights["bn.num_batches_tracked"] = torch.tensor(0)
    path = saved(FORMS[form](weights), tmp_path / "weights.pth", _use_new_zipfile_serialization=zipped)
    network = Network(10)
    assert pretrained.load(network, path, 10) == []
    assert_loaded(network, weights)


def test_a_head_of_another_size_is_new_only_when_asked_for(tmp_path: Path) -> None:
    path = saved(published(1000), tmp_path / "weights.pth")
    network = Network(10)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    told = r"has 1000 classes \(last_linear.weight, last_linear.bias\), not 10; --num-classes 10 starts with a new"
    with pytest.raises(PretrainedError, match=told):
        pretrained.load(network, path, 10)
    assert_loaded(network, before)
    heads = ["last_linear.weight", "last_linear.bias"]
    assert pretrained.load(network, path, 10, new_head=True) == heads
    assert_loaded(network, published(1000) | {name: before[name] for name in heads})


def test_a_head_that_fits_is_loaded_though_a_new_one_is_allowed(tmp_path: Path) -> None:
    network = Network(10)
    assert pretrained.load(network, saved(published(10), tmp_path / "weights.pth"), 10, new_head=True) == []
    assert_loaded(network, published(10))


def test_the_background_class_is_dropped_as_cadene_does(tmp_path: Path) -> None:
    weights = published(1001)
    path = saved(weights, tmp_path / "pnasnet5large.pth")
    network = Network(1000)
    with pytest.raises(PretrainedError, match="has 1001 classes"):
        pretrained.load(network, path, 1000)
    pretrained.load(network, path, 1000, background_class=True)
    assert torch.equal(network.last_linear.weight, weights["last_linear.weight"][1:])
    assert torch.equal(network.last_linear.bias, weights["last_linear.bias"][1:])
    whole = Network(1001)
    pretrained.load(whole, path, 1001, background_class=True)
    assert_loaded(whole, weights)


@pytest.mark.parametrize("new_head", [False, True])
def test_all_that_does_not_match_is_named(tmp_path: Path, new_head: bool) -> None:
    weights = published(10)
    weights["extra.weight"] = weights.pop("conv.bias")
    weights["bn.weight"] = torch.ones(5)
    network = Network(10)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    told = "does not fit the model: missing: conv.bias; unknown: extra.weight; of another shape: bn.weight$"
    with pytest.raises(PretrainedError, match=told):
        pretrained.load(network, saved(weights, tmp_path / "weights.pth"), 10, new_head=new_head)
    assert_loaded(network, before)


def test_a_long_list_is_cut(tmp_path: Path) -> None:
    weights = published(10) | {f"layer{number}.weight": torch.ones(1) for number in range(50)}
    with pytest.raises(PretrainedError, match=r"unknown: layer0.weight.* and 30 more$") as caught:
        pretrained.load(Network(10), saved(weights, tmp_path / "weights.pth"), 10)
    assert "\n" not in str(caught.value)


class Code:
    """What a file may name and must not run."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("ran"),))


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (Code(), "which is code and no weights"),
        ({"state_dict": {}, "best_acc1": numpy.float64(3)}, "which is code and no weights"),
        ([torch.ones(2)], "holds no weights"),
        ({"epoch": 3}, "holds no weights"),
        ({"state_dict": {"a": 3}}, "holds no weights"),
        ({}, "holds no weights"),
    ],
)
def test_a_file_without_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: Any, told: str) -> None:
    monkeypatch.chdir(tmp_path)
    path = saved(content, tmp_path / "weights.pth")
    with pytest.raises(PretrainedError, match=told) as caught:
        pretrained.read(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("content", [b"", b"text", b"PK\x03\x04" + bytes(100)])
def test_a_damaged_file(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "weights.pth"
    path.write_bytes(content)
    with pytest.raises(PretrainedError, match="not a file of weights, or a damaged one"):
        pretrained.read(path)
    with pytest.raises(PretrainedError, match="No such file"):
        pretrained.read(tmp_path / "none.pth")


def test_a_flipped_bit_is_noticed(tmp_path: Path) -> None:
    path = saved(published(10), tmp_path / "weights.pth")
    data = bytearray(path.read_bytes())
    data[data.index(published(10)["last_linear.weight"].numpy().tobytes()[:64]) + 20] ^= 1
    path.write_bytes(data)
    torch.load(path, weights_only=True)  # PyTorch does not
    with pytest.raises(PretrainedError, match="damaged"):
        pretrained.load(Network(10), path, 10)
