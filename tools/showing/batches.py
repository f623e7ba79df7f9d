"""A sheet of training images as the model sees them: cropped, augmented and mixed, with their labels, at each side of
the run."""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from pipeline.contract import CPU
from pipeline.verification.contact_sheet import INK
from train import recipes, sheet
from train.config import TrainConfig
from train.inputs import check, choose_loader, open_data
from train.preparation import Preparation
from train.process import Process
from train.sheet import Line, Section, Tile
from train.world import World

MOST_SIDES = 8


@dataclass(frozen=True, kw_only=True)
class ShowSettings(TrainConfig):
    """Draw training images as the model sees them. Takes the flags of train/run.py."""

    HELP_GROUPS: ClassVar[dict[str, str]] = TrainConfig.HELP_GROUPS | {"picture": "picture"}

    picture: Path = Path("batches.png")
    """PNG to write."""
    images: int = 16
    """Images of each side: the first of a batch."""
    epoch: int = 0
    """The first epoch to draw; later ones are drawn where --progressive-resize changes the side."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require("images", self.images >= 1, "at least 1")
        self._require("epoch", 0 <= self.epoch < self.epochs, "an epoch of the run, from 0 to --epochs - 1")

    @classmethod
    def starting_point(cls, argv: Any) -> "ShowSettings | None":
        """The settings that --recipe or --config in a command line names. Raises InputError."""
        config = recipes.starting_point(argv)
        return cls(**{field.name: getattr(config, field.name) for field in fields(config)}) if config else None


def show(settings: ShowSettings) -> dict[str, Any]:
    """The command. Raises InputError."""
    check(settings)
    process = Process(settings, World(), CPU)
    split = open_data(settings, "train")
    with process.open_loader(choose_loader(settings, World(), split), split, training=True) as opened:
        plan = process.loader_spec(split, training=True).plan
        num_classes = max(settings.num_classes or 0, len(split.classes))
        prepare = Preparation(process, plan, num_classes)
        sections = []
        for epoch in epochs_by_side(process, settings.epoch):
            batches = opened.loader.epoch(epoch, process.training_resolution(epoch))
            batch = next(iter(batches))
            prepare.seed(epoch, 0)
            images, targets = prepare.mixed(prepare.augmented(batch, epoch, 0))
            shown = images[: settings.images].float().round().clamp(0, 255).to(torch.uint8)
            captions = captions_of(targets, batch.indices.tolist(), split.classes)
            sections.append(section_of(epoch, shown, captions[: settings.images]))
    sheet.save(sheet.draw(in_words(settings), sections), settings.picture, "--picture")
    return {
        "picture": str(settings.picture),
        "images": sum(len(section.tiles) for section in sections),
        "sides": [len(section.tiles[0].image) for section in sections],
    }


def section_of(epoch: int, images: Tensor, captions: list[tuple[str, str]]) -> Section:
    """The images of an epoch, uint8 [N, 3, R, R], with two lines below each."""
    tiles = [
        Tile(image.permute(1, 2, 0).contiguous().numpy().copy(), (Line(first, INK), Line(second)))
        for image, (first, second) in zip(images, captions, strict=True)
    ]
    return Section(f"epoch {epoch} · {images.shape[-1]} x {images.shape[-1]}", tiles)


def epochs_by_side(process: Process, first: int) -> list[int]:
    """The first epoch of each side of the training images, from `first` on; of many, some that are spread evenly."""
    sides: dict[int, int] = {}
    for epoch in range(first, process.config.epochs):
        sides.setdefault(process.training_resolution(epoch), epoch)
    epochs = list(sides.values())
    if len(epochs) <= MOST_SIDES:
        return epochs
    return [epochs[number * (len(epochs) - 1) // (MOST_SIDES - 1)] for number in range(MOST_SIDES)]


def captions_of(targets: Tensor, positions: list[int], classes: tuple[str, ...]) -> list[tuple[str, str]]:
    """Two lines for each image: class and position, or the classes that were mixed, with their shares."""
    if targets.dim() == 1:
        return [
            (classes[label], f"position {position:,}")
            for label, position in zip(targets.tolist(), positions, strict=True)
        ]
    captions = []
    for shares in targets:
        mixed = sorted(((float(shares[label]), int(label)) for label in shares.nonzero().flatten()), reverse=True)
        first, second = ([f"{share:.2f} {classes[label]}" for share, label in mixed] + [""])[:2]
        captions.append((first, second))
    return captions


def in_words(settings: TrainConfig) -> str:
    """The flags that decide what images look like, where they are not at their defaults."""
    names = [
        "recipe", "scale", "ratio", "hflip", "vflip", "auto_augment", "augment", "color_jitter",
        "color_jitter_prob", "grayscale_prob", "gaussian_blur_prob", "solarize_prob", "random_erase",
        "random_erase_mode", "random_erase_count", "mixup_alpha", "cutmix_alpha", "aug_repeats", "seed",
    ]  # fmt: skip
    defaults = {field.name: field.default for field in fields(TrainConfig)}
    words = []
    for name in names:
        value = getattr(settings, name)
        if value != defaults[name]:
            text = " ".join(map(str, value)) if isinstance(value, tuple) else value
            words.append(f"--{name.replace('_', '-')} {text}")
    return "  ".join(words) or "crop and horizontal flip alone"
