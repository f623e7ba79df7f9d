"""What holds for every model of the registry: layout, compilation, mixed precision, the published names."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn

import models
from models.table import gmacs
from tests.helpers.parity import assert_same

SMALL: dict[str, tuple[dict[str, Any], int]] = {  # options, side of the images
    "alexnet": ({}, 64),
    "resnet152": ({}, 32),
    "se_resnet50": ({}, 32),
    "se_resnet50_caffe": ({}, 32),
    "pnasnet5large": ({"aux": True, "drop_path": 0.4}, 64),
    "pyramidnet": ({"depth": 26, "alpha": 50.0}, 64),
}


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    torch.manual_seed(0)
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def images(batch: int, side: int) -> Tensor:
    pixels = torch.randint(256, (batch, 3, side, side), dtype=torch.uint8)
    return pixels.to(memory_format=torch.channels_last)


def heads(outputs: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return outputs if isinstance(outputs, tuple) else (outputs,)


@pytest.mark.parametrize("name", ["alexnet", "resnet152"])
def test_alexnet_and_resnet_are_torchvisions(name: str) -> None:
    ours, reference = models.card(name).build(10), torchvision.models.get_model(name, num_classes=10)
    reference.load_state_dict(ours.state_dict())
    assert_same(ours, reference, torch.randn(2, 3, 64, 64))


@pytest.mark.parametrize("name", SMALL)
def test_a_training_step_compiles_whole_and_once(name: str) -> None:
    """No graph breaks, and no second compilation for the next batch."""
    options, side = SMALL[name]
    model = models.create(name, 10, options).to(memory_format=torch.channels_last)
    graphs: list[torch.fx.GraphModule] = []

    def count(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., Any]:
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(model, backend=count, fullgraph=True)
    for _ in range(2):
        logits = heads(compiled(images(2, side)))
        torch.stack([output.sum() for output in logits]).sum().backward()
    assert len(graphs) == 1


def test_evaluation_compiles_whole() -> None:
    """PyramidNet takes another path where there are gradients."""
    model = models.create("pyramidnet", 10, {"depth": 14, "alpha": 20.0}).eval()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    with torch.inference_mode():
        batch = images(4, 32)
        torch.testing.assert_close(compiled(batch), model(batch), rtol=1e-4, atol=1e-5)


def test_the_compiler_keeps_the_gradients() -> None:
    model = models.create("pyramidnet", 10, {"depth": 14, "alpha": 20.0})
    batch = images(4, 32)
    model(batch).square().sum().backward()
    expected = {name: parameter.grad for name, parameter in model.named_parameters()}
    model.zero_grad()
    torch.compile(model, backend="aot_eager", fullgraph=True)(batch).square().sum().backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", SMALL)
def test_feature_maps_stay_channels_last_and_bf16(name: str) -> None:
    """In every feature map that a layer takes or returns, the channels of a pixel are adjacent in memory."""
    options, side = SMALL[name]
    model = models.create(name, 10, options).to(memory_format=torch.channels_last)
    wrong: list[tuple[str, tuple[int, ...]]] = []

    def check_strides(module: nn.Module, inputs: Any, output: Any) -> None:
        maps = [tensor for tensor in (output, *inputs) if isinstance(tensor, Tensor) and tensor.dim() == 4]
        wrong.extend((type(module).__name__, tensor.stride()) for tensor in maps if tensor.stride(1) != 1)

    for module in model.network.modules():
        if not list(module.children()):
            module.register_forward_hook(check_strides)
    with torch.autocast("cpu", torch.bfloat16):
        outputs = heads(model(images(2, side)))
    assert all(logits.dtype == torch.bfloat16 and logits.isfinite().all() for logits in outputs)
    torch.stack([logits.float().square().sum() for logits in outputs]).sum().backward()
    assert not wrong
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in model.parameters())


@pytest.mark.parametrize(
    ("name", "published"),
    [
        ("alexnet", 0.71), ("resnet152", 11.51), ("se_resnet50", 4.1), ("se_resnet50_caffe", 3.88),
        ("pnasnet5large", 25.04), ("pyramidnet164_a48", 5.28), ("pyramidnet101_a360", 8.70),
    ],
)  # fmt: skip
def test_costs_are_the_published_ones(name: str, published: float) -> None:
    """Within 1 %: the published counts include more than convolutions and matrix products."""
    with torch.device("meta"):
        network = models.card(name).build(1000)
    assert gmacs(network, models.card(name).resolution) == pytest.approx(published, rel=0.01)


def test_the_image_settings_are_those_of_the_published_weights() -> None:
    pnasnet = models.card("pnasnet5large")
    assert (pnasnet.resolution, pnasnet.eval_resize, pnasnet.mean, pnasnet.std) == (331, 378, (0.5,) * 3, (0.5,) * 3)
    others = [card for name, card in models.REGISTRY.items() if name != "pnasnet5large"]
    assert {(card.resolution, card.eval_resize, card.mean[0]) for card in others} == {(224, 256, 0.485)}


def test_timm_models_have_timms_settings() -> None:
    card = models.card("timm/pnasnet5large")
    assert (card.resolution, card.mean, card.eval_resize) == (331, (0.5, 0.5, 0.5), 363)
    assert models.create("timm/resnet18", 7)(images(2, 64)).shape == (2, 7)
    with pytest.raises(models.UnknownModelError, match="unknown to timm"):
        models.card("timm/bogus")


@pytest.mark.parametrize(
    ("name", "words", "message"),
    [
        ("pnasnet5large", ["aux=true"], "aux must be of type bool, as in aux=False"),
        ("pnasnet5large", ["drop_path=1.5"], "drop_path=1.5 must be in"),
        ("pyramidnet", ["depth=101", "block=foo"], "block=foo: must be one of basic, bottleneck"),
        ("pyramidnet", ["alpha=-1"], "alpha=-1: must be at least 0"),
        ("pyramidnet", ["width=3"], "pyramidnet takes depth, alpha, block, drop_rate"),
        ("alexnet", ["depth=3"], "alexnet takes no options"),
        ("torchvision/resnet18", ["bogus=1"], "unexpected keyword argument 'bogus'"),
        ("timm/resnet18", ["bogus=1"], "unexpected keyword argument 'bogus'"),
        ("alexnet", ["depth"], "--model-kwargs depth: must be NAME=VALUE"),
    ],
)
def test_wrong_options(name: str, words: list[str], message: str) -> None:
    with pytest.raises(models.ModelOptionError, match=message) as caught:
        models.check_options(name, models.parse_options(words))
    assert "\n" not in str(caught.value)


def test_options_are_in_pythons_notation() -> None:
    words = ["depth=50", "alpha=20.5", "block=bottleneck"]
    options = models.parse_options(words)
    assert options == {"depth": 50, "alpha": 20.5, "block": "bottleneck"}
    models.check_options("pyramidnet", options)
    models.check_options("torchvision/resnet18", models.parse_options(["zero_init_residual=True"]))


@pytest.mark.parametrize(
    ("name", "words", "zero"),
    [
        ("torchvision/resnet18", ["zero_init_residual=True"], True),
        ("torchvision/resnet18", [], False),
        ("timm/resnet18", [], True),
        ("timm/resnet18", ["zero_init_last=False"], False),
    ],
)
def test_the_last_normalisation_of_a_block_can_start_from_zero(name: str, words: list[str], zero: bool) -> None:
    network = models.create(name, 5, models.parse_options(words)).network
    weights = [parameter for path, parameter in network.named_parameters() if path.endswith("bn2.weight")]
    assert len(weights) == 8
    assert all(bool((weight == 0).all()) == zero for weight in weights)
