"""Published runs as settings: `--recipe NAME`, and any flag beside it wins.

Accuracy and images per second in the docstrings are those that the model zoos published for their own trainers and
hardware, not measurements of ours; times are epochs x 1,281,167 images over those images per second. The learning
rate is that of the published global batch, scaled linearly to the actual one (Goyal et al., arXiv:1706.02677); the log
says both. Runs differ from the zoos' in evaluating every image, where theirs leave out up to 592 of 50,000.
"""

import argparse
import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

from pipeline.errors import InputError
from train.config import TrainConfig
from train.world import launched_by


def alexnet_full() -> TrainConfig:
    """AlexNet to accuracy.

    Command: python train/run.py --recipe alexnet-full --data DST --nproc 8
    Published by Huawei's Ascend model zoo for 8 Ascend NPUs, global batch 1024: top-1 57.885 %, 4766 images/s,
    so 6.7 hours. (Its 9408 images/s on one device multiply by 8 processes that are not there: about 1176.)
    """
    return TrainConfig(
        recipe="alexnet-full",
        model="alexnet",
        epochs=90,
        batch_size=128,
        warmup_epochs=0,
        label_smoothing=0.1,
        amp="fp16",
    )


def resnet152_full() -> TrainConfig:
    """ResNet-152 to accuracy.

    Command: python train/run.py --recipe resnet152-full --data DST --nproc 8
    Published by Huawei's Ascend model zoo for 8 Ascend NPUs, global batch 2048: top-1 78.259 % (78.038 % after 137
    epochs), 4464 images/s, so 11 hours; one device 624 images/s.
    """
    return TrainConfig(
        recipe="resnet152-full",
        model="resnet152",
        epochs=140,
        batch_size=256,
        warmup_epochs=5,
        amp="fp16",
        loss_scale="1024",
    )


def se_resnet50_full() -> TrainConfig:
    """SE-ResNet-50 to accuracy.

    Command: python train/run.py --recipe se_resnet50-full --data DST --nproc 8
    Published by Huawei's Ascend model zoo for 8 Ascend NPUs, global batch 1024: top-1 77.521 %, 5307 images/s,
    so 6.7 hours; one device 747 images/s.
    """
    return TrainConfig(
        recipe="se_resnet50-full",
        model="se_resnet50",
        epochs=100,
        batch_size=128,
        warmup_epochs=5,
        amp="fp16",
        loss_scale="1024",
    )


def pnasnet5large_full() -> TrainConfig:
    """PNASNet-5-Large to accuracy, in the zoo's variant: auxiliary head, drop-path, no shifts by one pixel.

    Command: python train/run.py --recipe pnasnet5large-full --data DST --nproc 8
    Published by Huawei's Ascend model zoo for 8 Ascend NPUs, global batch 256: top-1 79.625 %, 353 images/s,
    so 91 hours; one device 69 images/s.
    """
    return TrainConfig(
        recipe="pnasnet5large-full",
        model="pnasnet5large",
        model_kwargs=("aux=True", "drop_path=0.4", "zero_pad=False"),
        epochs=90,
        batch_size=32,
        weight_decay=4e-5,
        warmup_epochs=0,
        amp="fp16",
    )


def pyramidnet_full() -> TrainConfig:
    """PyramidNet "164" with alpha 48 to accuracy.

    Command: python train/run.py --recipe pyramidnet-full --data DST --nproc 4
    Published by Tecorigin's model zoo for 4 SDAA processes, global batch 256: no accuracy (the loss falls from 6.99
    to 5.62 in 1800 steps); 47 to 66 images/s a card, derived from its log, so 17 to 24 days.
    """
    return TrainConfig(
        recipe="pyramidnet-full",
        model="pyramidnet164_a48",
        epochs=300,
        batch_size=64,
        nesterov=True,
        lr_scheduler="step",
        lr_step_size=30,
        lr_gamma=0.1,
        warmup_epochs=0,
        amp="fp16",
    )


RECIPES: dict[str, Callable[[], TrainConfig]] = {
    "alexnet-full": alexnet_full,
    "resnet152-full": resnet152_full,
    "se_resnet50-full": se_resnet50_full,
    "pnasnet5large-full": pnasnet5large_full,
    "pyramidnet-full": pyramidnet_full,
}


def starting_point(argv: Sequence[str]) -> TrainConfig | None:
    """The settings that --recipe or --config in a command line names. Raises InputError."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--recipe")
    parser.add_argument("--config", type=Path)
    parser.add_argument("--evaluate")
    try:
        named, _ = parser.parse_known_args(argv)
    except argparse.ArgumentError as error:
        raise InputError(f"{error} (see --help)") from None
    config = settings_of(named.recipe, named.config)
    if config and named.evaluate:  # how that training began is nothing to an evaluation
        return dataclasses.replace(config, pretrained=None, finetune=None, performance=None)
    return config


def settings_of(recipe: str | None, config: Path | None) -> TrainConfig | None:
    """The settings that --recipe or --config means, None where neither is given. Raises InputError."""
    if recipe is None:
        return TrainConfig.read(config, launched_by() is not None) if config else None
    if config is not None:
        raise InputError("--recipe and --config: give one of them")
    if recipe not in RECIPES:
        raise InputError(f"--recipe {recipe}: unknown; there are {', '.join(RECIPES)}")
    return RECIPES[recipe]()
