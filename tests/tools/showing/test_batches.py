"""tools/show_batches.py: the sheet shows the batches of the run, as its step prepares them."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from pipeline.cli import run_command
from pipeline.contract import CPU
from pipeline.storage.split import open_split
from tools.showing.batches import ShowSettings, captions_of, epochs_by_side, show
from train.config import TrainConfig
from train.network import build_model
from train.process import Process
from train.session import Session
from train.world import World

FLAGS = [
    "--model", "torchvision/resnet18", "--loader", "torch", "--workers", "0", "--batch-size", "6", "--epochs", "2",
    "--progressive-resize", "0:32", "1:48", "--auto-augment", "rand-m9-n3-mstd0.5", "--random-erase", "0.5",
    "--random-erase-mode", "pixel", "--mixup-alpha", "0.2", "--cutmix-alpha", "1", "--aug-repeats", "2",
]  # fmt: skip


def drawn(*words: object) -> int:
    return run_command(show, ShowSettings, [*map(str, words)], ShowSettings.starting_point)


def test_the_sheet_shows_what_the_model_sees(dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture = tmp_path / "new" / "sheet.png"
    assert drawn("--data", dataset, *FLAGS, "--images", 4, "--picture", picture) == 0
    result = json.loads(capsys.readouterr().out)["result"]
    assert result == {"picture": str(picture), "images": 8, "sides": [32, 48]}
    sheet = np.asarray(Image.open(picture))
    for seen in first_inputs(dataset, epochs=(0, 1)):
        for image in seen[:4].round().clamp(0, 255).to(torch.uint8):
            assert contains(sheet, image.permute(1, 2, 0).numpy())


def first_inputs(dataset: Path, epochs: tuple[int, ...]) -> list[Tensor]:
    """What a real training step hands the model in the first batch of these epochs."""
    config = TrainConfig(
        data=str(dataset), model="torchvision/resnet18", loader="torch", workers=0, batch_size=6, epochs=2,
        progressive_resize=("0:32", "1:48"), auto_augment="rand-m9-n3-mstd0.5", random_erase=0.5,
        random_erase_mode="pixel", mixup_alpha=0.2, cutmix_alpha=1.0, aug_repeats=2,
    )  # fmt: skip
    process, split = Process(config, World(), CPU), open_split(dataset, "train")
    seen: list[Tensor] = []
    with process.open_loader("torch", split, training=True) as training:
        session = Session(process, build_model(process, split.classes), training)
        session.model.classifier.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].clone()))
        for epoch in epochs:
            session.position.move_to(epoch=epoch, batch=0, step=epoch)
            session.train_step(next(iter(session.training_batches())))
    return seen


def contains(sheet: np.ndarray, image: np.ndarray) -> bool:
    """Whether the picture has these pixels somewhere."""
    height, width = image.shape[:2]
    corners = np.argwhere((sheet[: 1 - height, : 1 - width] == image[0, 0]).all(axis=2))
    return any((sheet[y : y + height, x : x + width] == image).all() for y, x in corners.tolist())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--images", 0), "error: --images 0: must be at least 1 (see --help)"),
        (("--epoch", 2), "error: --epoch 2: must be an epoch of the run, from 0 to --epochs - 1 (see --help)"),
        (("--auto-augment", "rand-m99"), "error: --auto-augment rand-m99: m must be in [0, 10] (see --help)"),
        (("--aug-repeats", 4), "error: 4 repeats of each image do not divide the batch of 6 (1 x 6); choose another"),
    ],
)
def test_bad_input_is_one_line(
    dataset: Path, tmp_path: Path, words: tuple[object, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert drawn("--data", dataset, *FLAGS, "--picture", tmp_path / "a.png", *words) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith(message)
    assert not (tmp_path / "a.png").exists()


def test_a_recipe_is_drawn_with_its_settings() -> None:
    start = ShowSettings.starting_point(["--recipe", "timm-a1"])
    assert start is not None
    assert (start.recipe, start.auto_augment) == ("timm-a1", "rand-m7-mstd0.5-inc1")


def test_many_sides_are_spread_over_the_run() -> None:
    sides = tuple(f"{epoch}:{64 + 8 * epoch}" for epoch in range(20))
    config = TrainConfig(model="torchvision/resnet18", progressive_resize=sides, epochs=20)
    epochs = epochs_by_side(Process(config, World(), CPU), 0)
    assert (len(epochs), epochs[0], epochs[-1]) == (8, 0, 19)


def test_captions_name_the_shares_of_mixed_images() -> None:
    classes = ("ant", "bee", "cat")
    assert captions_of(torch.tensor([2, 0]), [7, 1200], classes) == [("cat", "position 7"), ("ant", "position 1,200")]
    mixed = torch.tensor([[0.25, 0.0, 0.75], [0.0, 1.0, 0.0]])
    assert captions_of(mixed, [1, 2], classes) == [("0.75 cat", "0.25 ant"), ("1.00 bee", "")]
