"""ImageNet's classes, in the order of the logits of published weights, and what they are called."""

from functools import cache
from pathlib import Path

import torchvision


@cache
def wnids() -> tuple[str, ...]:
    """The 1000 WordNet IDs of ILSVRC 2012, sorted: files of torchvision, timm and the model zoos hold no names, and all
    have their logits in this order. Source of the list: timm's data/_info/imagenet_synsets.txt (Apache-2.0)."""
    return tuple(Path(__file__).with_name("imagenet_wnids.txt").read_text().split())


@cache
def _titles() -> dict[str, str]:
    return dict(zip(wnids(), torchvision.models.ResNet50_Weights.DEFAULT.meta["categories"], strict=True))


def title(name: str) -> str:
    """What a class is called: "tench" for n01440764, as in torchvision. The name itself where it is none of these
    wnids."""
    return str(_titles().get(name, name))
