"""Random numbers of a training step: for dropout, drop-path, mixup and CutMix."""

from collections.abc import Callable

import torch
from torch import Tensor
from torchvision.transforms import v2

from pipeline.order.random import STEP_DRAW, random_words

Mixing = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""Images uint8 [B, 3, R, R] and labels int64 [B] to mixed images and label probabilities float32 [B, classes]."""

_RANK_BITS = 24


def seed_step(seed: int, epoch: int, batch: int, rank: int, device: torch.device) -> None:
    """Make PyTorch's random numbers, on the CPU and the device, a function of these arguments alone.

    So no random state has to be saved, and a run can be resumed in a world of another size. torch.manual_seed would
    seed every type of device, which costs 0.9 ms a step for one that is not in use.
    """
    high, low, _, _ = random_words(seed, epoch, (batch << _RANK_BITS) | rank, STEP_DRAW)
    step_seed = int(high) << 32 | int(low)
    torch.default_generator.manual_seed(step_seed)
    if device.type != "cpu":
        torch.get_device_module(device).manual_seed(step_seed)


def build_mixing(mixup_alpha: float, cutmix_alpha: float, num_classes: int) -> Mixing | None:
    """torchvision's MixUp and CutMix; for each batch one of those whose alpha is above 0. None where neither is.

    They draw from PyTorch's CPU generator.
    """
    transforms = [(v2.MixUp, mixup_alpha), (v2.CutMix, cutmix_alpha)]
    enabled = [transform(alpha=alpha, num_classes=num_classes) for transform, alpha in transforms if alpha > 0]
    if not enabled:
        return None
    mix = v2.RandomChoice(enabled)

    def mixed(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        layout = torch.channels_last if images.is_contiguous(memory_format=torch.channels_last) else None
        images, labels = mix(images.float(), labels)
        return images.contiguous(memory_format=layout or torch.contiguous_format), labels

    return mixed
