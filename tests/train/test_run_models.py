"""Models in train/run.py: options, published weights, the number of classes, the auxiliary loss."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import models
from pipeline.cli import run_command
from pipeline.dataset import open_split
from train import checkpoint
from train.config import TrainConfig
from train.run import main
from train.session import Session
from train.world import World

SMALL = ["--model", "pyramidnet", "--model-kwargs", "depth=14", "alpha=8", "--loader", "torch"]
SMALL += ["--resolution", "32", "--batch-size", "8", "--workers", "1", "--epochs", "1"]


def run(dataset: Path, *flags: object) -> int:
    return run_command(main, TrainConfig, ["--data", str(dataset), *SMALL, *map(str, flags)])


def small_network(classes: int) -> nn.Module:
    torch.manual_seed(5)
    return models.create("pyramidnet", classes, {"depth": 14, "alpha": 8}).network


@pytest.fixture
def weights_file(tmp_path: Path) -> Path:
    """As a zoo saves them, of 1000 classes."""
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
    flags = ["--data", str(dataset), "--model", "pyramidnet", "--loader", "torch", "--evaluate", str(saved)]
    assert run_command(main, TrainConfig, [*flags, "--batch-size", "8"]) == 0
    evaluated = json.loads(capsys.readouterr().out)["result"]
    assert [evaluated[key] for key in ("top1", "evaluated", "loss")] == [
        trained[key] for key in ("top1", "evaluated", "loss")
    ]


def test_a_run_goes_on_with_the_same_model_alone(
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
    with caplog.at_level("INFO"), Session(config, World(), torch.device("cpu")) as session:
        session.build_model(4)
    assert "another number of classes; fc.weight, fc.bias start anew" in caplog.text
    expected = small_network(1000).state_dict()
    for name, value in session.plain_model.network.state_dict().items():
        if not name.startswith("fc."):
            assert torch.equal(value, expected[name]), name
    assert session.plain_model.network.fc.out_features == 4


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        ([], "zoo.pth.tar: has 1000 classes (fc.weight, fc.bias), not 4; --num-classes 4 starts with a new last layer"),
        (["--model-kwargs", "depth=26", "alpha=8"], "does not fit the model: missing: layer1.1.bn1.weight"),
        (["--model-kwargs", "depth=4"], "--model-kwargs depth=4: depth=4 is too little"),
        (["--model-kwargs", "aux=True"], "--model-kwargs aux=True: pyramidnet takes depth, alpha, block, drop_rate"),
        (["--num-classes", 3], "--num-classes 3: "),
        (["--num-classes", 0], "--num-classes 0: must be at least 1"),
        (["--evaluate", "a.pt"], "--evaluate a.pt: must be without --pretrained"),
        (["--pretrained", "none.pth"], "--pretrained none.pth: no such file"),
    ],
)
def test_what_does_not_fit_is_one_line_and_leaves_nothing(
    dataset: Path, weights_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str], flags: list[object], told: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert run(dataset, "--pretrained", weights_file, *flags) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert told in lines[0]
    assert not (tmp_path / "runs").exists()


class TwoHeads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.main, self.side = nn.Linear(3, 4), nn.Linear(3, 4)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        x = images.float().mean((2, 3)) / 255
        return self.main(x), self.side(x)


def test_the_auxiliary_loss_counts_two_fifths(dataset: Path) -> None:
    config = TrainConfig(data=str(dataset), model="pyramidnet", loader="torch", batch_size=8, weight_decay=0, lr=1)
    with Session(config, World(), torch.device("cpu")) as session:
        session.open_training("torch", open_split(dataset, "train"))
        session.build_training()
        network = TwoHeads()
        network.side.load_state_dict(network.main.state_dict())
        before = network.main.weight.detach().clone()
        session.model = network
        session.optimizer = torch.optim.SGD(network.parameters(), lr=1)
        batch = next(iter(session.training.epoch(0, 32)))
        logits, _ = session.train_step(batch)
    assert logits.shape == (8, 4)
    main_step, side_step = network.main.weight - before, network.side.weight - before
    assert main_step.abs().max() > 1e-4
    torch.testing.assert_close(side_step, 0.4 * main_step, rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize(
    ("model", "options", "side"),
    [
        ("alexnet", (), 64),
        ("resnet152", (), 64),
        ("se_resnet50", (), 32),
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
    split = open_split(dataset, "train")
    with Session(config, World(), torch.device("cpu")) as trained, Session(config, World(), trained.device) as loaded:
        trained.open_training("torch", split)
        trained.build_training()
        trained.model.train()
        batch = next(trained.training_batches())
        trained.train_step(batch)
        path = checkpoint.save(tmp_path, 1, trained.state(), keep=1)
        loaded.build_model(len(split.classes))
        loaded.load_for_evaluation(checkpoint.load(path), path)
        with torch.inference_mode():
            before, after = (session.plain_model.eval()(batch.images) for session in (trained, loaded))
    assert before.isfinite().all()
    assert torch.equal(before, after)
