"""Runs of FFCV's ImageNet example (github.com/libffcv/ffcv-imagenet): published as rn50_configs/ and rn18_configs/.

All are alike but for their length: images grow from 160 to 192 pixels between two epochs, the rate rises to its peak
for two epochs and falls to zero on a straight line, the input of convolutions with a stride is blurred, and images of
256 pixels are evaluated together with their mirror images.
"""

from train.config import TrainConfig
from train.recipes.registry import recipe


def _run(model: str, epochs: int, ramp: str) -> TrainConfig:
    """What all runs have in common; `ramp` is the first and last epoch between which images grow."""
    is_18 = model == "resnet18"
    return TrainConfig(
        model=model,
        epochs=epochs,
        batch_size=1024 if is_18 else 512,
        resolution=192,
        progressive_resize=("0:160", f"{ramp}:192"),
        val_crop=256,
        val_flip=True,
        blurpool=True,
        lr_base=0.5 if is_18 else 1.7,
        lr_base_size=1024 if is_18 else 4096,
        lr_scheduler="poly",
        warmup_epochs=2,
        lr_warmup_decay=1e-4,
        weight_decay=5e-5 if is_18 else 1e-4,
        decay_groups="ffcv",
        label_smoothing=0.1,
        amp="fp16",
    )


@recipe("ffcv-rn50-16", processes=8, top1="73.8")
def ffcv_rn50_16() -> TrainConfig:
    """ResNet-50 in 16 epochs.

    Command: python train/run.py --recipe ffcv-rn50-16 --data DST --nproc 8
    Source: rn50_configs/rn50_16_epochs.yaml. Published for 8 A100, global batch 4096: top-1 73.8 %, top-5 90.8 %,
    14.9 minutes.
    """
    return _run("resnet50", 16, ramp="11-13")


@recipe("ffcv-rn50-24", processes=8, top1="75.6")
def ffcv_rn50_24() -> TrainConfig:
    """ResNet-50 in 24 epochs.

    Command: python train/run.py --recipe ffcv-rn50-24 --data DST --nproc 8
    Source: rn50_configs/rn50_24_epochs.yaml. Published for 8 A100, global batch 4096: top-1 75.6 %, top-5 92.1 %,
    21.7 minutes.
    """
    return _run("resnet50", 24, ramp="17-20")


@recipe("ffcv-rn50-32", processes=8, top1="76.6")
def ffcv_rn50_32() -> TrainConfig:
    """ResNet-50 in 32 epochs.

    Command: python train/run.py --recipe ffcv-rn50-32 --data DST --nproc 8
    Source: rn50_configs/rn50_32_epochs.yaml. Published for 8 A100, global batch 4096: top-1 76.6 %, top-5 92.7 %,
    28.7 minutes.
    """
    return _run("resnet50", 32, ramp="23-27")


@recipe("ffcv-rn50-40", processes=8, top1="77.2")
def ffcv_rn50_40() -> TrainConfig:
    """ResNet-50 in 40 epochs.

    Command: python train/run.py --recipe ffcv-rn50-40 --data DST --nproc 8
    Source: rn50_configs/rn50_40_epochs.yaml. Published for 8 A100, global batch 4096: top-1 77.2 %, top-5 93.2 %,
    35.6 minutes.
    """
    return _run("resnet50", 40, ramp="29-34")


@recipe("ffcv-rn50-56", processes=8, top1="78.0")
def ffcv_rn50_56() -> TrainConfig:
    """ResNet-50 in 56 epochs.

    Command: python train/run.py --recipe ffcv-rn50-56 --data DST --nproc 8
    Source: rn50_configs/rn50_56_epochs.yaml. Published for 8 A100, global batch 4096: top-1 78.0 %, top-5 93.7 %,
    49.4 minutes.
    """
    return _run("resnet50", 56, ramp="41-48")


@recipe("ffcv-rn50-88", processes=8, top1="78.4")
def ffcv_rn50_88() -> TrainConfig:
    """ResNet-50 in 88 epochs.

    Command: python train/run.py --recipe ffcv-rn50-88 --data DST --nproc 8
    Source: rn50_configs/rn50_88_epochs.yaml. Published for 8 A100, global batch 4096: top-1 78.4 %, top-5 94.1 %,
    77.2 minutes.
    """
    return _run("resnet50", 88, ramp="65-76")


@recipe("ffcv-rn18-16", processes=1, top1="66.9")
def ffcv_rn18_16() -> TrainConfig:
    """ResNet-18 in 16 epochs.

    Command: python train/run.py --recipe ffcv-rn18-16 --data DST
    Source: rn18_configs/rn18_16_epochs.yaml. Published for one A100, batch 1024: top-1 66.9 %, top-5 86.8 %,
    35.0 minutes.
    """
    return _run("resnet18", 16, ramp="11-13")


@recipe("ffcv-rn18-24", processes=1, top1="68.8")
def ffcv_rn18_24() -> TrainConfig:
    """ResNet-18 in 24 epochs.

    Command: python train/run.py --recipe ffcv-rn18-24 --data DST
    Source: rn18_configs/rn18_24_epochs.yaml. Published for one A100, batch 1024: top-1 68.8 %, top-5 88.1 %,
    51.6 minutes.
    """
    return _run("resnet18", 24, ramp="17-20")


@recipe("ffcv-rn18-32", processes=1, top1="70.0")
def ffcv_rn18_32() -> TrainConfig:
    """ResNet-18 in 32 epochs.

    Command: python train/run.py --recipe ffcv-rn18-32 --data DST
    Source: rn18_configs/rn18_32_epochs.yaml. Published for one A100, batch 1024: top-1 70.0 %, top-5 88.9 %,
    68.9 minutes.
    """
    return _run("resnet18", 32, ramp="23-27")


@recipe("ffcv-rn18-40", processes=1, top1="70.6")
def ffcv_rn18_40() -> TrainConfig:
    """ResNet-18 in 40 epochs.

    Command: python train/run.py --recipe ffcv-rn18-40 --data DST
    Source: rn18_configs/rn18_40_epochs.yaml. Published for one A100, batch 1024: top-1 70.6 %, top-5 89.4 %,
    85.5 minutes.
    """
    return _run("resnet18", 40, ramp="29-34")


@recipe("ffcv-rn18-56", processes=1, top1="71.3")
def ffcv_rn18_56() -> TrainConfig:
    """ResNet-18 in 56 epochs.

    Command: python train/run.py --recipe ffcv-rn18-56 --data DST
    Source: rn18_configs/rn18_56_epochs.yaml. Published for one A100, batch 1024: top-1 71.3 %, top-5 89.9 %,
    119.4 minutes.
    """
    return _run("resnet18", 56, ramp="41-48")


@recipe("ffcv-rn18-88", processes=1, top1="72.4")
def ffcv_rn18_88() -> TrainConfig:
    """ResNet-18 in 88 epochs.

    Command: python train/run.py --recipe ffcv-rn18-88 --data DST
    Source: rn18_configs/rn18_88_epochs.yaml. Published for one A100, batch 1024: top-1 72.4 %, top-5 90.3 %,
    187.3 minutes.
    """
    return _run("resnet18", 88, ramp="65-76")
