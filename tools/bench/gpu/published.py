"""Training rates that others have published, with their card. Only those that were looked up in their source."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Published:
    """A rate of training, of one card."""

    images_per_s: float
    card: str
    who: str
    how: str


# NVIDIA/DeepLearningExamples, PyTorch/Classification/ConvNets/resnet50v1.5/README.md, "Training performance results"
# (NGC container pytorch-21.03): a whole training, loaded by DALI.
_NVIDIA = ("NVIDIA", "mixed precision, DALI")
# huggingface/pytorch-image-models, results/benchmark-train-amp-nhwc-pt112-cu113-rtx3090.csv: the model alone, on
# synthetic images. Its se_resnet50 is timm's seresnet50, whose shapes are those of ours.
_TIMM = ("NVIDIA GeForce RTX 3090", "timm", "AMP, channels-last, synthetic images, PyTorch 1.12")

WHOLE: dict[str, tuple[Published, ...]] = {
    "torchvision/resnet50": (
        Published(2470, "NVIDIA A100 80GB", *_NVIDIA),
        Published(938, "NVIDIA A100 80GB", "NVIDIA", "TF32, DALI"),
        Published(1200, "NVIDIA V100 16GB", *_NVIDIA),
    ),
}
"""Of whole trainings, by model."""

MODEL_ALONE: dict[str, tuple[Published, ...]] = {
    "torchvision/resnet50": (Published(1218, *_TIMM),),
    "resnet152": (Published(501, *_TIMM),),
    "se_resnet50": (Published(972, *_TIMM),),
    "pnasnet5large": (Published(83.2, *_TIMM),),
}
"""Of models alone."""
