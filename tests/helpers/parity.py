"""Compares two networks of the same weights: outputs and input gradients for the same images, in both modes."""

import torch
from torch import Tensor, nn


def without_dropout(network: nn.Module) -> nn.Module:
    """Switch dropout off, also for training."""
    for module in network.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return network


def outputs_and_gradient(network: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    """The logits, and the gradient of the sum of their squares with respect to `images`."""
    images = images.clone().requires_grad_()
    logits = network(images)
    logits.square().sum().backward()
    assert images.grad is not None
    return logits.detach(), images.grad


def difference(result: Tensor, expected: Tensor) -> float:
    """The norm of the difference, relative to that of `expected`."""
    relative: float = ((result - expected).norm() / expected.norm()).item()
    return relative


def assert_same(
    network: nn.Module, reference: nn.Module, images: Tensor, tolerance: float = 1e-5, training: bool | None = None
) -> None:
    """In training and evaluation, or in the mode that `training` names alone; running statistics are compared too."""
    without_dropout(network), without_dropout(reference)
    for mode in (True, False) if training is None else (training,):
        result = outputs_and_gradient(network.train(mode), images)
        expected = outputs_and_gradient(reference.train(mode), images)
        for ours, theirs in zip(result, expected, strict=True):
            assert (relative := difference(ours, theirs)) <= tolerance, f"{relative:.2g}, training {mode}"
    own, published = dict(network.named_buffers()), dict(reference.named_buffers())
    for name in own.keys() & published.keys():
        torch.testing.assert_close(own[name], published[name], rtol=1e-4, atol=1e-5)
