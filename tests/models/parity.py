"""How two networks are compared: the same weights and images, outputs and input gradients, training and evaluation."""

import torch
from torch import Tensor, nn


def without_dropout(network: nn.Module) -> nn.Module:
    for module in network.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return network


def outputs_and_gradient(network: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    images = images.clone().requires_grad_()
    logits = network(images)
    logits.square().sum().backward()
    assert images.grad is not None
    return logits.detach(), images.grad


def difference(result: Tensor, expected: Tensor) -> float:
    """Relative, over all elements."""
    return ((result - expected).norm() / expected.norm()).item()


def assert_same(
    network: nn.Module, reference: nn.Module, images: Tensor, tolerance: float = 1e-5, training: bool | None = None
) -> None:
    """`training`: in this mode alone. Afterwards the running statistics, too, are the same."""
    without_dropout(network), without_dropout(reference)
    for mode in (True, False) if training is None else (training,):
        result = outputs_and_gradient(network.train(mode), images)
        expected = outputs_and_gradient(reference.train(mode), images)
        for ours, theirs in zip(result, expected, strict=True):
            assert (relative := difference(ours, theirs)) <= tolerance, f"{relative:.2g}, training {mode}"
    own, theirs_ = dict(network.named_buffers()), dict(reference.named_buffers())
    for name in own.keys() & theirs_.keys():
        torch.testing.assert_close(own[name], theirs_[name], rtol=1e-4, atol=1e-5)
