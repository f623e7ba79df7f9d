"""The fence for private names that Sluice's augmentation and recipes are compared with, written for timm 1.0 and
torchvision 0.29. A release without one fails in tests/train/augmentation/test_policies.py or
tests/train/recipes/test_groups.py."""

from typing import Any

from timm.data import auto_augment
from torchvision.ops._utils import split_normalization_params
from torchvision.transforms import v2

__all__ = ["augmentation_space", "auto_augment_policies", "split_normalization_params", "timm_tables"]


def timm_tables() -> dict[str, Any]:
    """timm's operations of RandAugment, and their weights."""
    return {
        "rand": auto_augment._RAND_TRANSFORMS,
        "increasing": auto_augment._RAND_INCREASING_TRANSFORMS,
        "3a": auto_augment._RAND_3A,
        "3aw": auto_augment._RAND_WEIGHTED_3A,
        "weights": auto_augment._RAND_WEIGHTED_0,
    }


def augmentation_space(transform: v2.RandAugment | v2.TrivialAugmentWide) -> dict[Any, Any]:
    """The operations of one of torchvision's transforms, with the functions of their magnitudes."""
    return dict(transform._AUGMENTATION_SPACE)


def auto_augment_policies() -> list[Any]:
    """torchvision's AutoAugment policy for ImageNet."""
    return list(v2.AutoAugment()._policies)
