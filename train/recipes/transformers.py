"""Runs of DeiT and ConvNeXt, whose recipes resemble each other: AdamW, RandAugment, Mixup, CutMix, random erasing."""

import dataclasses

from train.config import TrainConfig
from train.recipes.registry import recipe


@recipe("deit-s", processes=4, top1="79.9")
def deit_s() -> TrainConfig:
    """DeiT-S without distillation.

    Command: python train/run.py --recipe deit-s --data DST --nproc 4
    Source: github.com/facebookresearch/deit, main.py and README_deit.md (Touvron et al., arXiv:2012.12877).
    Published for 4 GPUs, global batch 1024: top-1 79.9 %, top-5 95.0 %; less than three days.
    """
    return dataclasses.replace(
        _common(),
        model="timm/deit_small_patch16_224",
        batch_size=256,
        lr_base=5e-4,
        lr_base_size=512,
        lr_decay_from="start",
        lr_updates="epoch",
        warmup_epochs=5,
        lr_warmup_decay=1e-3,
        min_lr=1e-5,
        aug_repeats=3,
        amp="fp16",
    )


@recipe("convnext-t", processes=8, top1="82.1")
def convnext_t() -> TrainConfig:
    """ConvNeXt-T.

    Command: python train/run.py --recipe convnext-t --data DST --nproc 8
    Source: github.com/facebookresearch/ConvNeXt, TRAINING.md and main.py (Liu et al., arXiv:2201.03545).
    Published for 8 GPUs, or 32 without accumulation, global batch 4096: top-1 82.1 %; no time.
    """
    return dataclasses.replace(
        _common(),
        model="timm/convnext_tiny",
        batch_size=128,
        accumulate=4,
        lr_base=4e-3,
        lr_base_size=4096,
        warmup_epochs=20,
        lr_warmup_decay=0.0,
        min_lr=1e-6,
        model_ema=True,
        model_ema_warmup="torch",
    )


def _common() -> TrainConfig:
    return TrainConfig(
        model="timm/deit_small_patch16_224",
        model_kwargs=("drop_path_rate=0.1",),
        epochs=300,
        resolution=224,
        val_resize=256,
        interpolation="bicubic",
        opt="adamw",
        lr_base=5e-4,
        weight_decay=0.05,
        decay_groups="timm",
        label_smoothing=0.1,
        mixup_alpha=0.8,
        cutmix_alpha=1.0,
        auto_augment="rand-m9-mstd0.5-inc1",
        random_erase=0.25,
        random_erase_mode="pixel",
    )
