"""Runs of torchvision's references (github.com/pytorch/vision, references/classification)."""

from train.config import TrainConfig
from train.recipes.registry import recipe


@recipe("torchvision-v1", processes=8, top1="76.130")
def torchvision_v1() -> TrainConfig:
    """ResNet-50 as its weights IMAGENET1K_V1.

    Command: python train/run.py --recipe torchvision-v1 --data DST --nproc 8
    Source: references/classification/README.md, `torchrun --nproc_per_node=8 train.py --model resnet50`.
    Published for 8 V100, global batch 256: top-1 76.130 %, top-5 92.862 %; no time.
    """
    return TrainConfig(
        model="resnet50",
        epochs=90,
        batch_size=32,
        lr_base=0.1,
        lr_scheduler="step",
        lr_step_size=30,
        lr_gamma=0.1,
        lr_updates="epoch",
        warmup_epochs=0,
    )


@recipe("torchvision-v2", processes=8, top1="80.858")
def torchvision_v2() -> TrainConfig:
    """ResNet-50 as its weights IMAGENET1K_V2: smaller images in training (FixRes), each four times in a batch.

    Command: python train/run.py --recipe torchvision-v2 --data DST --nproc 8
    Source: the weights' own recipe, github.com/pytorch/vision/issues/3995#issuecomment-1013906621; its command stands
    in pytorch/vision#6433.
    Published for 8 GPUs, global batch 1024: top-1 80.858 %, top-5 95.434 %; that of #6433 took 42 hours.
    """
    return _version_2("resnet50", resolution=176, aug_repeats=4)


@recipe("torchvision-v2-resnet152", processes=8, top1="82.284")
def torchvision_v2_resnet152() -> TrainConfig:
    """ResNet-152 as its weights IMAGENET1K_V2: that recipe without FixRes and without repeats.

    Command: python train/run.py --recipe torchvision-v2-resnet152 --data DST --nproc 8
    Source: the weights' own recipe, github.com/pytorch/vision/issues/3995#new-recipe.
    Published, global batch 1024: top-1 82.284 %, top-5 96.002 %; neither hardware nor time.
    """
    return _version_2("resnet152", resolution=224, aug_repeats=1)


def _version_2(model: str, *, resolution: int, aug_repeats: int) -> TrainConfig:
    return TrainConfig(
        model=model,
        epochs=600,
        batch_size=128,
        resolution=resolution,
        val_crop=224,
        val_resize=232,
        lr_base=0.5,
        lr_base_size=1024,
        lr_updates="epoch",
        warmup_epochs=5,
        lr_warmup_decay=0.01,
        weight_decay=2e-5,
        norm_weight_decay=0.0,
        label_smoothing=0.1,
        mixup_alpha=0.2,
        cutmix_alpha=1.0,
        auto_augment="ta_wide",
        random_erase=0.1,
        aug_repeats=aug_repeats,
        model_ema=True,
        model_ema_decay=0.99998,
        model_ema_steps=32,
        model_ema_warmup="torchvision",
    )
