"""What augmentation costs on a CPU: images per second and core of whole batches, ours and those of kornia, and of
torchvision's and timm's transforms, image by image, as a worker of a DataLoader applies them.

kornia's policies are not the same ones: its magnitudes are others, and all images of a batch get the same operation.
"""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torchvision.transforms import v2

from models.normalize import IMAGENET_MEAN, IMAGENET_STD
from pipeline.errors import InputError
from tools.bench import report
from tools.demonstration.data import PHOTOGRAPHS, load_photograph
from train.augmentation.apply import build
from train.augmentation.policies import AugmentationSettings
from train.augmentation.strings import parse

log = logging.getLogger(__name__)

POLICIES = ("ta_wide", "ra", "imagenet", "rand-m9-n3-mstd0.5", "original", "3a")


@dataclass(frozen=True, kw_only=True)
class BenchSettings:
    """Measure augmentation on one core of the CPU, next to torchvision's and timm's transforms."""

    policies: tuple[str, ...] = POLICIES
    """Policies, as --auto-augment of train/run.py takes them."""
    batch_size: int = 64
    side: int = 224
    rounds: int = 5
    """Of each variant, in turn; the first is dropped."""

    def __post_init__(self) -> None:
        for name, least in (("batch_size", 1), ("side", 8), ("rounds", 2)):
            if getattr(self, name) < least:
                raise InputError(f"--{name.replace('_', '-')} {getattr(self, name)}: must be at least {least}")
        for policy in self.policies:
            try:
                parse(policy)
            except ValueError as error:
                raise InputError(f"--policies {policy}: {error}") from None


def bench(settings: BenchSettings) -> dict[str, Any]:
    """The command."""
    torch.set_num_threads(1)
    images = photographs(settings.batch_size, settings.side)
    variants = {name: run for policy in settings.policies for name, run in variants_of(policy, images).items()}
    rates: dict[str, list[float]] = {name: [] for name in variants}
    for number in range(settings.rounds):
        for name, run in variants.items():
            start = time.process_time()
            run(number)
            rates[name].append(settings.batch_size / (time.process_time() - start))
    kept = {name: values[1:] for name, values in rates.items()}
    peers = {name: [peer for peer in variants if peer.split(", ")[0] == name.split(", ")[0]] for name in variants}
    ours = {name: peers[name] for name in variants if name.endswith("batch")}
    print(report.ratio_table("images/s of a core", kept, ours), report.machine_line(report.machine()), sep="\n\n")
    return {name: round(float(np.median(values)), 1) for name, values in kept.items()}


def photographs(count: int, side: int) -> torch.Tensor:
    """uint8 [N, 3, side, side] in channels_last strides."""
    names = [name for group in PHOTOGRAPHS.values() for name in group]
    pixels = [np.asarray(load_photograph(names[number % len(names)]).resize((side, side))) for number in range(count)]
    return torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2)


def variants_of(policy: str, images: torch.Tensor) -> dict[str, Callable[[int], object]]:
    """Ours and those of the package that the policy comes from, by "policy, variant"."""
    augment = build(AugmentationSettings(policy=parse(policy)), 0, IMAGENET_MEAN, IMAGENET_STD)
    assert augment is not None
    keys = np.arange(len(images))
    variants: dict[str, Callable[[int], object]] = {f"{policy}, batch": lambda epoch: augment(images, keys, epoch)}
    planes = images.contiguous()
    pictures = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in images]
    bilinear: dict[str, Any] = {"interpolation": v2.InterpolationMode.BILINEAR}
    theirs = {"ta_wide": v2.TrivialAugmentWide, "ra": v2.RandAugment, "imagenet": v2.AutoAugment}
    if policy in theirs:
        transform = theirs[policy](**bilinear)
        variants[f"{policy}, torchvision on tensors"] = lambda _: [transform(image) for image in planes]
        variants[f"{policy}, torchvision on PIL"] = lambda _: [transform(picture) for picture in pictures]
        variants |= of_kornia(policy, planes)
    else:
        from timm.data import auto_augment  # here: timm need not be installed for torchvision's policies

        make = auto_augment.rand_augment_transform if policy.startswith("rand") else auto_augment.auto_augment_transform
        of_timm = make(policy.replace("autoaug", "original"))
        variants[f"{policy}, timm on PIL"] = lambda _: [of_timm(picture) for picture in pictures]
    return variants


def of_kornia(policy: str, planes: torch.Tensor) -> dict[str, Callable[[int], object]]:
    """kornia's policy of the same name, on floats, as it takes them; nothing where kornia is not installed."""
    try:
        from kornia.augmentation import auto
    except ImportError:
        log.info("kornia is not installed: pip install kornia")
        return {}
    makers: dict[str, Callable[[], torch.nn.Module]] = {
        "ta_wide": auto.TrivialAugment,
        "ra": lambda: auto.RandAugment(n=2, m=9),
        "imagenet": lambda: auto.AutoAugment("imagenet"),
    }
    transform = makers[policy]()
    return {f"{policy}, kornia": lambda _: transform(planes.float() / 255)}
