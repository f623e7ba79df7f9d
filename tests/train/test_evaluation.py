"""Evaluation counts every image once and yields the same accuracy, however many processes share it."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional

from pipeline.errors import InputError
from pipeline.pixels.decode import decode
from pipeline.storage.split import open_split
from tests.helpers.processes import run_ranks
from tests.helpers.reference import evaluation_image
from tests.helpers.runs import SMALL, train
from train.config import TrainConfig
from train.evaluation import evaluate
from train.finished import as_trained
from train.inputs import check_resolutions
from train.network import build_classifier
from train.process import Process
from train.world import World


@pytest.fixture
def two_images(imagenet_folder: Path, tmp_path: Path) -> Path:
    """An ImageNet folder with one validation image in each of two classes."""
    root = tmp_path / "folder"
    root.mkdir()
    (root / "train").symlink_to(imagenet_folder / "train")
    for number, wnid in enumerate(("n00000001", "n00000003"), 1):
        (root / "val" / wnid).mkdir(parents=True)
        shutil.copy(imagenet_folder / "val" / f"ILSVRC2012_val_{number:08d}.JPEG", root / "val" / wnid)
    return root


def test_one_two_and_three_ranks_agree(
    dataset: Path, two_images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common, log = [*SMALL, "--loader", "torch"], tmp_path / "log"
    trained = train("--data", dataset, *common, "--epochs", 1, "--run-dir", tmp_path / "run", capsys=capsys)
    evaluation = [*common, "--evaluate", tmp_path / "run" / "checkpoints" / "best.pt"]

    def evaluated_by(size: int, *flags: object) -> dict[str, Any]:
        log.unlink(missing_ok=True)
        assert run_ranks(size, [*evaluation, *flags], log) == size * [0], log.read_text()
        result: dict[str, Any] = json.loads(log.read_text().splitlines()[-1])["result"]
        return result

    for size, batch_size in ((2, 5), (3, 4)):
        shared = evaluated_by(size, "--data", dataset, "--batch-size", batch_size)
        assert [shared[key] for key in ("top1", "top5", "evaluated")] == [trained["top1"], trained["top5"], 19]
        assert shared["loss"] == pytest.approx(trained["loss"], rel=1e-4)
    # There may be more ranks than images.
    by_one = train("--data", two_images, *evaluation, capsys=capsys)
    shared = evaluated_by(3, "--data", two_images)
    assert by_one["evaluated"] == shared["evaluated"] == 2
    assert by_one["top1"] == shared["top1"]


@pytest.mark.parametrize(
    ("sizes", "resize", "crop"),
    [
        ({"resolution": 56}, 64, 56),
        ({"resolution": 56, "val_crop": 98}, 112, 98),  # larger than in training
        ({"resolution": 56, "val_resize": 58}, 58, 56),
        ({"resolution": 56, "val_crop": 48, "val_resize": 48}, 48, 48),
    ],
    ids=str,
)
def test_validation_images_are_those_of_torchvision(
    dataset: Path, sizes: dict[str, int], resize: int, crop: int
) -> None:
    config = TrainConfig(data=str(dataset), model="torchvision/resnet18", batch_size=8, workers=1, **sizes)  # type: ignore[arg-type]
    process, split = Process(config, World(), torch.device("cpu")), open_split(dataset, "val")
    check_resolutions(config)
    seen = 0
    with process.open_loader("torch", split, training=False) as validation:
        for batch in validation.loader.epoch(0, process.validation_resolution):
            for image, index in zip(batch.images, batch.indices.tolist(), strict=True):
                reference = evaluation_image(decode(split.samples, index, split.samples[index].jpeg), resize, crop)
                assert (image.int() - reference.int()).abs().max() <= 1
                seen += 1
    assert seen == 19
    assert process.loader_spec(open_split(dataset, "train"), training=True).max_resolution == 56


def test_a_crop_larger_than_the_image_is_refused() -> None:
    with pytest.raises(InputError, match=r"^--val-resize 200: must be at least the crop's side of 224 \(--val-crop\)$"):
        check_resolutions(TrainConfig(val_resize=200))
    with pytest.raises(InputError, match=r"^--val-crop 16: alexnet does not take such images"):
        check_resolutions(TrainConfig(model="alexnet", val_crop=16))


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, (160, 224, 232)),
        ({"val_resize": 256}, (160, 224, 256)),
        ({"val_crop": 288}, (160, 288, None)),
        ({"resolution": 192}, (192, None, None)),
    ],
    ids=str,
)
def test_an_evaluation_has_the_sizes_of_its_training(
    given: dict[str, int], expected: tuple[int | None, int | None, int | None]
) -> None:
    stored = TrainConfig(resolution=160, val_crop=224, val_resize=232).as_dict()
    config = as_trained(TrainConfig(**given), stored, Path("best.pt"))  # type: ignore[arg-type]
    assert (config.resolution, config.val_crop, config.val_resize) == expected


def test_a_checkpoint_older_than_the_sizes_is_evaluated_as_before() -> None:
    stored = TrainConfig(resolution=160).as_dict()
    del stored["val_crop"], stored["val_resize"]
    config = as_trained(TrainConfig(), stored, Path("best.pt"))
    assert (config.resolution, config.val_crop, config.val_resize) == (160, None, None)


@pytest.mark.usefixtures("one_thread")
def test_the_logits_of_mirror_images_are_averaged(dataset: Path) -> None:
    config = TrainConfig(data=str(dataset), model="torchvision/resnet18", resolution=32, batch_size=8, workers=0)
    split, losses = open_split(dataset, "val"), dict[bool, float]()
    for flip in (False, True):
        process = Process(dataclasses.replace(config, val_flip=flip), World(), torch.device("cpu"))
        classifier = build_classifier(process, split.classes).eval()
        with process.open_loader("torch", split, training=False) as validation:
            losses[flip] = evaluate(process, classifier, validation)["loss"]
            total = 0.0
            for batch in validation.loader.epoch(0, 32):
                mirrored = torch.from_numpy(batch.images.numpy()[:, :, :, ::-1].copy())
                views = [batch.images, mirrored] if flip else [batch.images]
                with torch.no_grad():
                    logits = torch.stack([classifier(view) for view in views]).mean(0)
                total += functional.cross_entropy(logits, batch.labels, reduction="sum").item()
            assert losses[flip] == pytest.approx(total / 19, rel=1e-4)
    assert losses[False] != losses[True]


@pytest.mark.parametrize("value", [64.5, "64", True, [64], float("nan"), 20_000, 10**30], ids=repr)
@pytest.mark.parametrize("name", ["resolution", "val_crop", "val_resize", "num_classes"])
def test_settings_of_a_checkpoint_that_are_no_numbers_or_fill_memory(name: str, value: object) -> None:
    if name == "num_classes" and type(value) is int:
        return  # is compared with the weights
    with pytest.raises(InputError, match=r"best\.pt: its settings describe no model \(--"):
        as_trained(TrainConfig(), {"model": "alexnet", name: value}, Path("best.pt"))
