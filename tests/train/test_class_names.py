"""Weights and data of other classes: names say which output is which, or the weights are refused."""

import importlib.metadata
import json
import random
from collections.abc import Sequence
from pathlib import Path

import pytest
import timm.data
import torch
from torch.nn import functional

import models
from models import imagenet
from models.normalize import IMAGENET_MEAN, IMAGENET_STD
from pipeline.errors import InputError
from pipeline.storage.split import open_split
from tests.helpers.runs import TINY, newest_checkpoint, refused_later, run_here
from train import checkpoint
from train.class_names import choose_outputs
from train.config import TrainConfig
from train.network import build_classifier
from train.process import Process
from train.world import World

SETTINGS = {"model": "pyramidnet", "model_kwargs": ("depth=14", "alpha=8"), "resolution": 32, "batch_size": 4}
WNIDS = imagenet.wnids()
SUBSET = sorted(random.Random(3).sample(WNIDS, 3))


def small_network(classes: int) -> torch.nn.Module:
    torch.manual_seed(5)
    return models.create("pyramidnet", classes, {"depth": 14, "alpha": 8}).network


def folder_of(imagenet_folder: Path, root: Path, names: Sequence[str]) -> Path:
    """An ImageNet folder whose classes have these names: images of one class each, the same ones in train/ and val/."""
    for name, source in zip(names, sorted((imagenet_folder / "train").iterdir()), strict=False):
        for split in ("train", "val"):
            (root / split / name).mkdir(parents=True)
            for image in sorted(source.iterdir())[:4]:
                (root / split / name / image.name).symlink_to(image)
    return root


def expected_loss(data: Path, network: torch.nn.Module, outputs: list[int]) -> float:
    """The mean cross-entropy of some outputs of a network over the validation images, one by one."""
    config = TrainConfig(data=str(data), loader="torch", workers=0, **SETTINGS)  # type: ignore[arg-type]
    process, split = Process(config, World(), torch.device("cpu")), open_split(data, "val")
    classifier = models.Classifier(network, process.card).eval()
    losses = []
    with process.open_loader("torch", split, training=False) as validation, torch.inference_mode():
        for batch in validation.loader.epoch(0, 32):
            losses.append(
                functional.cross_entropy(classifier(batch.images)[:, outputs], batch.labels, reduction="none")
            )
    return float(torch.cat(losses).mean())


def test_the_list_of_imagenets_classes_is_timms() -> None:
    assert [*WNIDS] == timm.data.ImageNetInfo("imagenet-1k").label_names()
    assert [*WNIDS] == sorted(WNIDS)


def test_published_weights_on_a_subset_are_evaluated_on_the_outputs_of_its_classes(
    imagenet_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    data, weights = folder_of(imagenet_folder, tmp_path / "data", SUBSET), tmp_path / "published.pth"
    network = small_network(1000)
    torch.save(network.state_dict(), weights)
    assert run_here("--data", data, *TINY, "--evaluate", weights) == 0
    result = json.loads(capsys.readouterr().out)["result"]
    outputs = [WNIDS.index(name) for name in SUBSET]
    assert result["loss"] == pytest.approx(expected_loss(data, network, outputs), rel=1e-4)
    assert f"classes: 3, sorted by name: {', '.join(SUBSET)}" in caplog.messages
    assert (
        f"--evaluate {weights}: it names no classes, its 1000 outputs are taken for ImageNet's sorted wnids: "
        "the 3 of the data are taken, by name"
    ) in caplog.messages
    (data / "val" / SUBSET[0]).rename(data / "val" / "cat")
    (data / "train" / SUBSET[0]).rename(data / "train" / "cat")
    reason = "has 1000 classes and does not name them, the data has 3: which is which is unknown"
    refusal = refused_later("--data", data, *TINY, "--evaluate", weights, capsys=capsys)
    assert refusal == f"error: --evaluate {weights}: {reason}"


@pytest.fixture(scope="module")
def trained(imagenet_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """An ImageNet folder of three classes, and the run directory of an epoch on it."""
    root = tmp_path_factory.mktemp("trained")
    data = folder_of(imagenet_folder, root / "data", ["ant", "bee", "cat"])
    assert run_here("--data", data, *TINY, "--epochs", 1, "--run-dir", root / "run") == 0
    return data, root / "run"


def test_a_checkpoint_says_what_its_weights_are_for(trained: tuple[Path, Path]) -> None:
    state = checkpoint.load(newest_checkpoint(trained[1]))
    assert state["description"] == {
        "classes": ["ant", "bee", "cat"], "mean": list(IMAGENET_MEAN), "std": list(IMAGENET_STD),
        "resolution": 32, "val_resize": 37, "val_crop": 32, "interpolation": "bilinear",
        "version": importlib.metadata.version("sluice"),
    }  # fmt: skip


def test_a_checkpoint_on_a_subset_and_on_other_classes(
    trained: tuple[Path, Path], imagenet_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    caplog.set_level("INFO")
    path = newest_checkpoint(trained[1])
    data = folder_of(imagenet_folder, tmp_path / "subset", ["bee", "cat"])
    assert run_here("--data", data, *TINY, "--evaluate", path) == 0
    result = json.loads(capsys.readouterr().out)["result"]
    network = small_network(3)
    network.load_state_dict(checkpoint.load(path)["model"])
    assert result["loss"] == pytest.approx(expected_loss(data, network, [1, 2]), rel=1e-4)
    assert f"--evaluate {path}: of its 3 classes, the 2 of the data are taken, by name" in caplog.messages
    # As many classes, with other names: as wrong as another number.
    others = folder_of(imagenet_folder, tmp_path / "others", ["ant", "bee", "dog"])
    reason = f"{path}: class dog of the data is not among the 3 of the weights"
    assert refused_later("--data", others, *TINY, "--evaluate", path, capsys=capsys) == f"error: --evaluate {reason}"
    resumed = refused_later("--data", others, *TINY, "--epochs", 2, "--resume", path, capsys=capsys)
    assert resumed == f"error: --resume {path}: class 2 of its dataset is cat, not dog"


def test_training_starts_from_the_outputs_of_a_subset(
    trained: tuple[Path, Path], imagenet_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = newest_checkpoint(trained[1])
    rows = checkpoint.load(path)["model"]["fc.weight"]

    def head(classes: Sequence[str], **settings: object) -> torch.Tensor:
        config = TrainConfig(**SETTINGS, **settings)  # type: ignore[arg-type]
        with caplog.at_level("INFO"):
            classifier = build_classifier(Process(config, World(), torch.device("cpu")), classes)
        return classifier.network.get_parameter("fc.weight").detach()

    assert torch.equal(head(["cat", "ant"], pretrained=path), rows[[2, 0]])
    assert torch.equal(head(["cat", "ant", "bee"], finetune=path), rows[[2, 0, 1]])
    assert "its 3 classes are put into the data's order, by name" in caplog.text
    assert torch.equal(head(["ant", "bee", "dog"], pretrained=path), rows)
    assert "class dog of the data is not among the 3 of the weights; the last layer starts from theirs" in caplog.text
    assert not torch.equal(head(["cat", "ant"], finetune=path), rows[[2, 0]])
    with pytest.raises(InputError, match=r"has 3 classes \(fc.weight, fc.bias\), not 2; --num-classes 2 starts with"):
        head(["cat", "dog"], pretrained=path)


@pytest.mark.parametrize(
    ("names", "outputs", "classes", "stated", "rows", "remark"),
    [
        (["a", "b"], 2, ["a", "b"], None, None, ""),
        (["a", "b"], 9, ["a", "b"], 9, None, ""),  # seven outputs of no class
        (["a", "b"], 2, ["b", "a"], None, [1, 0], "its 2 classes are put into the data's order, by name"),
        (["a", "b"], 2, ["0", "1"], None, None, "its classes have other names than the data's: numbers"),
        (["0", "1"], 2, ["a", "b"], None, None, "its classes have other names than the data's: numbers"),
        (None, 2, ["a", "b"], None, None, "it names no classes: its outputs are taken in the data's order"),
        (None, 9, ["a", "b"], 9, None, "it names no classes: its outputs are taken in the data's order"),
        (None, 1000, WNIDS, None, None, ""),
        (None, 1000, WNIDS[::-1], None, None, "it names no classes: its outputs are taken in the data's order"),
        (None, 1000, WNIDS[5:3:-1], None, [5, 4], "it names no classes, its 1000 outputs are taken for ImageNet's"),
        (None, 1000, WNIDS[5:7], 1000, [5, 6], "it names no classes, its 1000 outputs are taken for ImageNet's"),
    ],
)
def test_which_outputs_are_taken(
    names: Sequence[str] | None, outputs: int, classes: Sequence[str], stated: int | None, rows: list[int] | None,
    remark: str,
) -> None:  # fmt: skip
    choice = choose_outputs(names, outputs, classes, stated)
    assert choice.rows == rows
    assert choice.remark.startswith(remark)
    assert bool(choice.remark) == bool(remark)


@pytest.mark.parametrize(
    ("names", "outputs", "classes", "stated"),
    [
        (["a", "b"], 2, ["a", "c"], None),
        (["a", "b"], 2, ["1", "2"], None),  # not positions
        (["0", "1", "2"], 3, ["a", "b"], None),
        (None, 1000, [WNIDS[0], "n00000001"], None),
        (None, 9, ["a", "b"], 8),
    ],
)
def test_weights_of_unknown_classes_are_refused(
    names: Sequence[str] | None, outputs: int, classes: Sequence[str], stated: int | None
) -> None:
    with pytest.raises(InputError):
        choose_outputs(names, outputs, classes, stated)
