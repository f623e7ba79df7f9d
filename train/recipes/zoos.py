"""Runs that Huawei's Ascend and Tecorigin's model zoos published.

Accuracy and images per second are those that the zoos published for their own trainers and hardware, not measurements
of ours; times are epochs x 1,281,167 images over those images per second. The learning rate is that of the published
global batch, scaled linearly to the actual one (Goyal et al., arXiv:1706.02677); the log says both. The rate changes
between epochs, with the zoos' own formula. Runs differ from the zoos' in that every image is evaluated; theirs leave
out up to 592 of 50,000.
"""

from train.config import TrainConfig
from train.recipes.registry import recipe


@recipe("alexnet-full", processes=8, top1="57.885")
def alexnet_full() -> TrainConfig:
    """AlexNet to accuracy.

    Command: python train/run.py --recipe alexnet-full --data DST --nproc 8
    Published by Huawei's Ascend model zoo for 8 Ascend NPUs, global batch 1024: top-1 57.885 %, 4766 images/s,
    so 6.7 hours. (Its 9408 images/s on one device count 8 processes where there is one: about 1176.)
    """
    return TrainConfig(
        model="alexnet",
        epochs=90,
        batch_size=128,
        lr_updates="epoch",
        warmup_epochs=0,
        label_smoothing=0.1,
        amp="fp16",
    )


@recipe("resnet152-full", processes=8, top1="78.259")
def resnet152_full() -> TrainConfig:
    """ResNet-152 to accuracy.

    Command: python train/run.py --recipe resnet152-full --data DST --nproc 8
    Published by Huawei's Ascend model zoo for 8 Ascend NPUs, global batch 2048: top-1 78.259 % (78.038 % after 137
    epochs), 4464 images/s, so 11 hours; one device 624 images/s.
    """
    return TrainConfig(
        model="resnet152",
        epochs=140,
        batch_size=256,
        lr_updates="epoch",
        warmup_epochs=5,
        amp="fp16",
        loss_scale="1024",
    )


@recipe("se_resnet50-full", processes=8, top1="77.521")
def se_resnet50_full() -> TrainConfig:
    """SE-ResNet-50 to accuracy.

    Command: python train/run.py --recipe se_resnet50-full --data DST --nproc 8
    Published by Huawei's Ascend model zoo for 8 Ascend NPUs, global batch 1024: top-1 77.521 %, 5307 images/s,
    so 6.7 hours; one device 747 images/s.
    """
    return TrainConfig(
        model="se_resnet50",
        epochs=100,
        batch_size=128,
        lr_updates="epoch",
        warmup_epochs=5,
        amp="fp16",
        loss_scale="1024",
    )


@recipe("pnasnet5large-full", processes=8, top1="79.625")
def pnasnet5large_full() -> TrainConfig:
    """PNASNet-5-Large to accuracy, in the zoo's variant: auxiliary head, no shifts by one pixel. Without drop-path: the
    zoo's code stores a probability of 0.4 that nothing reads, and its drop_path() is an identity as it is called.

    Command: python train/run.py --recipe pnasnet5large-full --data DST --nproc 8
    Published by Huawei's Ascend model zoo for 8 Ascend NPUs, global batch 256: top-1 79.625 %, 353 images/s,
    so 91 hours; one device 69 images/s.
    """
    return TrainConfig(
        model="pnasnet5large",
        model_kwargs=("aux=True", "drop_path=0", "zero_pad=False"),
        epochs=90,
        batch_size=32,
        weight_decay=4e-5,
        lr_updates="epoch",
        warmup_epochs=0,
        amp="fp16",
    )


@recipe("pyramidnet-full", processes=4)
def pyramidnet_full() -> TrainConfig:
    """PyramidNet "164" with alpha 48 to accuracy.

    Command: python train/run.py --recipe pyramidnet-full --data DST --nproc 4
    Published by Tecorigin's model zoo for 4 SDAA processes, global batch 256: no accuracy (the loss falls from 6.99
    to 5.62 in 1800 steps); 47 to 66 images/s a card, derived from its log, so 17 to 24 days.
    """
    return TrainConfig(
        model="pyramidnet164_a48",
        epochs=300,
        batch_size=64,
        nesterov=True,
        lr_scheduler="step",
        lr_step_size=30,
        lr_gamma=0.1,
        lr_decay_from="start",
        lr_updates="epoch",
        warmup_epochs=0,
        amp="fp16",
    )
