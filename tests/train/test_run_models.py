"""Models in train/run.py: options, published weights, the number of classes, the auxiliary loss."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import models
from pipeline.storage.split import open_split
from tests.helpers.runs import run_here
from train import checkpoint
from train.config import TrainConfig
from train.network import TrainedModel, build_classifier, build_model
from train.process import Process
from train.session import Session
from train.world import World

TINY = ["--model", "pyramidnet", "--model-kwargs", "depth=14", "alpha=8", "--loader", "torch"]
TINY += ["--resolution", "32", "--batch-size", "8", "--workers", "1", "--epochs", "1"]


def run(dataset: Path, *flags: object) -> int:
    return run_here("--data", dataset, *TINY, *flags)


def small_network(classes: int) -> nn.Module:
    torch.manual_seed(5)
    return models.create("pyramidnet", classes, {"depth": 14, "alpha": 8}).network


@pytest.fixture
def weights_file(tmp_path: Path) -> Path:
    """Weights of 1000 classes, as a model zoo saves them."""
    path = tmp_path / "zoo.pth.tar"
    state = {f"module.{name}": value for name, value in small_network(1000).state_dict().items()}
    torch.save({"epoch": 1, "arch": "pyramidnet", "state_dict": state}, path)
    return path


def test_an_evaluation_knows_the_models_options_and_classes(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(dataset, "--run-dir", tmp_path / "a", "--num-classes", 9) == 0
    trained = json.loads(capsys.readouterr().out)["result"]
    saved = next((tmp_path / "a" / "checkpoints").iterdir())
    flags = ["--data", dataset, "--model", "pyramidnet", "--loader", "torch", "--evaluate", saved]
    assert run_here(*flags, "--batch-size", 8) == 0
    evaluated = json.loads(capsys.readouterr().out)["result"]
    assert [evaluated[key] for key in ("top1", "evaluated", "loss")] == [
        trained[key] for key in ("top1", "evaluated", "loss")
    ]


def test_a_run_is_resumed_only_with_the_same_model(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(dataset, "--run-dir", tmp_path / "a") == 0
    flags = ["--epochs", 2, "--run-dir", tmp_path / "a", "--resume", "auto"]
    capsys.readouterr()
    assert run(dataset, *flags, "--model-kwargs", "depth=14", "alpha=8", "drop_rate=0.5") == 2
    assert "was trained with --model-kwargs depth=14 alpha=8" in capsys.readouterr().err
    assert run(dataset, *flags) == 0


def test_training_starts_from_published_weights(
    dataset: Path, weights_file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = TrainConfig(
        data=str(dataset), model="pyramidnet", model_kwargs=("depth=14", "alpha=8"), loader="torch", batch_size=8,
        pretrained=weights_file, num_classes=4,
    )  # fmt: skip
    with caplog.at_level("INFO"):
        classifier = build_classifier(
            Process(config, World(), torch.device("cpu")), open_split(dataset, "train").classes
        )
    assert "another number of classes; fc.weight, fc.bias start from initial values" in caplog.text
    expected = small_network(1000).state_dict()
    for name, value in classifier.network.state_dict().items():
        if not name.startswith("fc."):
            assert torch.equal(value, expected[name]), name
    assert len(classifier.network.get_parameter("fc.weight")) == 4


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "zoo.pth.tar: has 1000 classes (fc.weight, fc.bias), not 4; --num-classes 4 starts with a new last layer"),
        (["--model-kwargs", "depth=26", "alpha=8"], "does not fit the model: missing: layer1.1.bn1.weight"),
        (["--model-kwargs", "depth=4"], "--model-kwargs depth=4: depth=4 is too small"),
        (["--model-kwargs", "aux=True"], "--model-kwargs aux=True: pyramidnet takes depth, alpha, block, drop_rate"),
        (["--num-classes", 3], "--num-classes 3: "),
        (["--num-classes", 0], "--num-classes 0: must be at least 1"),
        (["--evaluate", "a.pt"], "--evaluate a.pt: must be without --pretrained"),
        (["--pretrained", "none.pth"], "--pretrained none.pth: no such file"),
    ],
)
def test_weights_or_options_that_do_not_fit_are_one_line_and_leave_no_directory(
    dataset: Path, weights_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str], flags: list[object], message: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert run(dataset, "--pretrained", weights_file, *flags) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert message in lines[0]
    assert not (tmp_path / "runs").exists()


class TwoHeads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.main, self.side = nn.Linear(3, 4), nn.Linear(3, 4)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        x = images.mean((2, 3))
        return self.main(x), self.side(x)


def test_the_auxiliary_loss_counts_two_fifths(dataset: Path) -> None:
    config = TrainConfig(
        data=str(dataset), loader="torch", batch_size=8, weight_decay=0, momentum=0, lr=1, warmup_epochs=0
    )
    process, network = Process(config, World(), torch.device("cpu")), TwoHeads()
    network.side.load_state_dict(network.main.state_dict())
    before = network.main.weight.detach().clone()
    model = TrainedModel(process, models.Classifier(network, process.card), num_classes=4)
    with process.open_loader("torch", open_split(dataset, "train"), training=True) as training:
        result = Session(process, model, training).train_step(next(training.loader.epoch(0, 32)))
    assert result.logits.shape == (8, 4)
    main_step, side_step = network.main.weight - before, network.side.weight - before
    assert main_step.abs().max() > 1e-4
    torch.testing.assert_close(side_step, 0.4 * main_step, rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize(
    ("model", "options", "side"),
    [
        ("alexnet", (), 64),
        ("resnet152", (), 64),
        ("se_resnet50", (), 64),
        ("pnasnet5large", (), 96),
        ("pyramidnet", ("depth=14", "alpha=8"), 32),
    ],
)
def test_a_saved_and_loaded_model_gives_the_same_logits(
    dataset: Path, tmp_path: Path, model: str, options: tuple[str, ...], side: int
) -> None:
    config = TrainConfig(
        data=str(dataset), model=model, model_kwargs=options, loader="torch", batch_size=2, workers=0, resolution=side
    )
    process, split = Process(config, World(), torch.device("cpu")), open_split(dataset, "train")
    with process.open_loader("torch", split, training=True) as training:
        session = Session(process, build_model(process, split.classes), training)
        batch = next(session.training_batches())
        session.train_step(batch)
    path = checkpoint.save(tmp_path, 1, session.state(), keep=1)
    loaded = build_classifier(process, split.classes)
    checkpoint.load_weights(loaded.network, checkpoint.load(path)["model"], model, path)
    with torch.inference_mode():
        before, after = (classifier.eval()(batch.images) for classifier in (session.model.classifier, loaded))
    assert before.isfinite().all()
    assert torch.equal(before, after)
