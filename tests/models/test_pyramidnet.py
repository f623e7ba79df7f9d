"""PyramidNet against the paper's equations and the sizes of the authors' networks."""

import copy
from collections.abc import Mapping

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import models
from models import pyramidnet
from tests.helpers.parity import difference, outputs_and_gradient

BLOCKS = {101: [3, 4, 23, 3], 200: [3, 24, 36, 3], 164: [13] * 4}


def batch_norm(weights: Mapping[str, Tensor], name: str, x: Tensor, training: bool) -> Tensor:
    mean, variance = (weights[f"{name}.running_{what}"].clone() for what in ("mean", "var"))
    return functional.batch_norm(x, mean, variance, weights[f"{name}.weight"], weights[f"{name}.bias"], training)


def residual(weights: Mapping[str, Tensor], name: str, x: Tensor, stride: int, training: bool) -> Tensor:
    """Figure 6d: batch norm, then convolutions each followed by batch norm, ReLUs only between them."""
    out = batch_norm(weights, f"{name}.bn1", x, training)
    kernels = [weights[f"{name}.conv{n}.weight"] for n in (1, 2, 3) if f"{name}.conv{n}.weight" in weights]
    strided = 1 if len(kernels) == 3 else 0
    for index, kernel in enumerate(kernels):
        if index:
            out = functional.relu(out)
        step = stride if index == strided else 1
        out = functional.conv2d(out, kernel, stride=step, padding=kernel.shape[-1] // 2)
        out = batch_norm(weights, f"{name}.bn{index + 2}", out, training)
    return out


def forward(weights: Mapping[str, Tensor], images: Tensor, blocks: list[int], training: bool) -> Tensor:
    """The whole network by the paper's equations 1 to 5, as plain operations."""
    x = functional.conv2d(images, weights["conv1.weight"], stride=2, padding=3)
    x = functional.max_pool2d(functional.relu(batch_norm(weights, "bn1", x, training)), 3, 2, 1)
    for stage, count in enumerate(blocks, start=1):
        for index in range(count):
            stride = 2 if stage > 1 and index == 0 else 1
            out = residual(weights, f"layer{stage}.{index}", x, stride, training)
            shortcut = functional.avg_pool2d(x, 2, 2, ceil_mode=True) if stride == 2 else x
            # Equation 5: where the shortcut lacks a channel, the residual alone.
            both = shortcut.shape[1]
            x = torch.cat([out[:, :both] + shortcut, out[:, both:]], 1)
    x = functional.relu(batch_norm(weights, "bn_final", x, training))
    x = functional.adaptive_avg_pool2d(x, 1).flatten(1)
    return functional.linear(x, weights["fc.weight"], weights["fc.bias"])


@pytest.mark.parametrize("block", ["basic", "bottleneck"])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("size", [(64, 64), (71, 45)])
def test_it_computes_the_papers_equations(block: pyramidnet.Block, training: bool, size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    network = pyramidnet.build(7, depth=26, alpha=50, block=block).train(training)
    blocks = list(pyramidnet.stage_blocks(26, block))
    for buffer in (buffer for name, buffer in network.named_buffers() if "running" in name):
        buffer.uniform_(0.5, 1.5)
    images = torch.randn(3, 3, *size)
    weights = {name: value.clone() for name, value in network.state_dict().items()}

    class Equations(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return forward(weights, images, blocks, training)

    result, expected = outputs_and_gradient(network, images), outputs_and_gradient(Equations(), images)
    assert all(difference(ours, theirs) <= 1e-5 for ours, theirs in zip(result, expected, strict=True))


@pytest.mark.parametrize(
    ("name", "depth", "alpha", "parameters"),
    [
        ("pyramidnet", 101, 360, 42_455_070),
        ("pyramidnet164_a48", 164, 48, 7_607_744),
        ("pyramidnet101_a360", 101, 360, 42_455_070),
        ("pyramidnet200_a300", 200, 300, 62_368_168),
        ("pyramidnet200_a450", 200, 450, 116_775_213),
    ],
)
def test_sizes_are_the_authors(name: str, depth: int, alpha: int, parameters: int) -> None:
    blocks, shapes = BLOCKS[depth], []
    with torch.device("meta"):
        network = models.card(name).build(1000)
        stages = [network.get_submodule(f"layer{number}") for number in (1, 2, 3, 4)]
        for stage in stages:
            stage.register_forward_hook(lambda module, inputs, output: shapes.append(tuple(output.shape[1:])))
        network(torch.empty(1, 3, 224, 224))
    assert sum(parameter.numel() for parameter in network.parameters()) == parameters
    assert [len(list(stage.children())) for stage in stages] == blocks
    ends = [64 + alpha * sum(blocks[: n + 1]) / sum(blocks) for n in range(4)]
    assert shapes == [(4 * round(end), side, side) for end, side in zip(ends, (56, 28, 14, 7), strict=True)]
    if name == "pyramidnet164_a48":
        assert [shape[0] for shape in shapes] == [304, 352, 400, 448]


def test_basic_blocks() -> None:
    with torch.device("meta"):
        network = models.card("pyramidnet164_a48").build(1000, block="basic")
    assert sum(parameter.numel() for parameter in network.parameters()) == 11_630_544
    assert len(list(network.get_submodule("layer1").children())) == 20
    assert pyramidnet.stage_blocks(34, "basic") == (3, 4, 6, 3)


@pytest.mark.parametrize(("block", "depth"), [("basic", 9), ("bottleneck", 13)])
def test_a_stage_has_at_least_one_block(block: pyramidnet.Block, depth: int) -> None:
    with pytest.raises(ValueError, match=f"depth={depth} is too small"):
        pyramidnet.stage_blocks(depth, block)
    assert pyramidnet.stage_blocks(depth + 1, block) == (1, 1, 1, 1)


def test_convolutions_are_initialised_as_the_authors_do() -> None:
    torch.manual_seed(0)
    kernel = pyramidnet.build(10, depth=14, alpha=200).get_parameter("layer4.0.conv2.weight")
    torch.testing.assert_close(kernel.std().item(), (2 / (9 * kernel.shape[0])) ** 0.5, rtol=0.02, atol=0)


def test_the_padded_sum_and_its_gradients() -> None:
    out, shortcut = (torch.randn(2, channels, 3, 3, dtype=torch.double).requires_grad_() for channels in (5, 3))
    assert torch.autograd.gradcheck(lambda a, b: pyramidnet.add_padded(a * 1, b), (out, shortcut))
    expected = out + functional.pad(shortcut, (0, 0, 0, 0, 0, 2))
    torch.testing.assert_close(pyramidnet.add_padded(out * 1, shortcut), expected)


def test_normalising_again_gives_the_same_gradients() -> None:
    norm, convolution = nn.BatchNorm2d(5), nn.Conv2d(5, 3, 1, bias=False)
    nn.init.uniform_(norm.weight)
    nn.init.uniform_(norm.bias)
    x = torch.randn(4, 5, 6, 6)
    plain = copy.deepcopy(nn.Sequential(norm, convolution))
    result, expected = x.clone().requires_grad_(), x.clone().requires_grad_()
    pyramidnet.normalized_convolution(norm, convolution, result).square().sum().backward()
    plain(expected).square().sum().backward()
    torch.testing.assert_close(result.grad, expected.grad)
    for ours, theirs in zip((*norm.parameters(), *convolution.parameters()), plain.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad)
    for statistic, expected_statistic in zip(norm.buffers(), plain[0].buffers(), strict=True):
        torch.testing.assert_close(statistic, expected_statistic)
