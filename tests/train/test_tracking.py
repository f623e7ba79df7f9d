"""--log: TensorBoard, Weights & Biases and Trackio, each with its own package, offline."""

import itertools
import json
import os
import socket
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tensorboard.backend.event_processing import event_accumulator
from tensorboard.plugins.hparams import plugin_data_pb2

from tests.helpers.runs import TINY, metrics, refused, train
from tests.helpers.scripts import ROOT
from train.config import TrainConfig
from train.tracking import open_tracker


@pytest.fixture(autouse=True)
def _offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    variables = {"WANDB_MODE": "offline", "TRACKIO_DIR": str(tmp_path / "trackio")}
    for folder in ("WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR"):
        variables[folder] = str(tmp_path / folder)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)


def test_tensorboard_has_the_hyper_parameters_from_the_start(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Next to the metrics that it shows in the same table."""
    train("--data", dataset, *TINY, "--epochs", 1, "--lr", 0.03, "--run-dir", tmp_path / "run", capsys=capsys)
    board = event_accumulator.EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    board.Reload()
    (row,) = metrics(tmp_path / "run", "eval")
    assert board.Scalars("eval/top1")[-1].value == pytest.approx(row["top1"])
    contents = board.PluginTagToContent("hparams")
    started = plugin_data_pb2.HParamsPluginData.FromString(contents["_hparams_/session_start_info"])
    values = started.session_start_info.hparams
    assert values["lr"].number_value == pytest.approx(0.03)
    assert values["model_kwargs"].string_value == "depth=14 alpha=8"
    experiment = plugin_data_pb2.HParamsPluginData.FromString(contents["_hparams_/experiment"]).experiment
    assert {"eval/top1", "eval/loss"} <= {info.name.tag for info in experiment.metric_infos}
    assert set(board.Tags()["scalars"]) >= {"eval/top1", "train/loss", "train/lr"}


def test_tensorboard_writes_through_no_link_that_was_planted_in_time(tmp_path: Path) -> None:
    """All names of the next minute, which are those of time, host, process ID and a count."""
    secret, board = tmp_path / "secret", tmp_path / "run" / "tensorboard"
    secret.write_text("kept")
    board.mkdir(parents=True)
    now, host = int(time.time()), socket.gethostname()
    for second, count in itertools.product(range(now, now + 60), range(20)):
        (board / f"events.out.tfevents.{second:010d}.{host}.{os.getpid()}.{count}").symlink_to(secret)
    tracker = open_tracker("tensorboard", tmp_path / "run", {"lr": 0.1}, step=0)
    tracker.write({"train/loss": 1.0}, 1)
    tracker.close()
    assert secret.read_text() == "kept"
    (written,) = (path for path in board.iterdir() if not path.is_symlink())
    found = event_accumulator.EventAccumulator(str(written))
    found.Reload()
    assert found.Tags()["scalars"] == ["train/loss"]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_trackio_keeps_the_run_on_this_machine(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """And a resumed run continues it; stdout has the result alone."""
    pytest.importorskip("trackio")
    flags = ["--data", dataset, *TINY, "--log", "trackio", "--run-dir", tmp_path / "run"]
    train(*flags, "--epochs", 1, capsys=capsys)
    words = [sys.executable, "train/run.py", *map(str, flags), "--epochs", "2", "--resume", "auto"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert [*json.loads(done.stdout)] == ["result"]
    (database,) = (tmp_path / "trackio").glob("*.db")
    with sqlite3.connect(database) as connection:
        rows = connection.execute("select run_name, step, metrics from metrics order by step").fetchall()
    assert len({name for name, _, _ in rows}) == 1
    logged = [json.loads(values)["eval/top1"] for _, _, values in rows if "eval/top1" in json.loads(values)]
    assert logged == [row["top1"] for row in metrics(tmp_path / "run", "eval")]
    assert not (tmp_path / "run" / "tensorboard").exists()


def test_wandb_keeps_the_run_in_its_directory_until_it_is_uploaded(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("wandb")
    run_dir = tmp_path / "run"
    flags = ["--data", dataset, *TINY, "--log", "wandb", "tensorboard", "--run-dir", run_dir, "--epochs", 1]
    words = [sys.executable, "train/run.py", *map(str, flags)]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert [*json.loads(done.stdout)] == ["result"]
    (folder,) = run_dir.glob("wandb/offline-run-*")
    assert f"wandb: offline; to upload: wandb sync {folder}" in done.stderr.splitlines()
    (stored,) = folder.glob("*.wandb")
    content = stored.read_bytes()
    assert all(name.encode() in content for name in ("eval/top1", "train/lr", "weight_decay"))
    assert (run_dir / "tensorboard").is_dir()


def test_a_tracker_that_cannot_be_opened_is_one_line(dataset: Path, tmp_path: Path) -> None:
    pytest.importorskip("wandb")
    words = [sys.executable, "train/run.py", "--data", str(dataset), *TINY, "--log", "wandb"]
    environment = {**os.environ, "WANDB_MODE": "online", "HOME": str(tmp_path), "WANDB_BASE_URL": "http://127.0.0.1:9"}
    environment.pop("WANDB_API_KEY", None)
    words += ["--run-dir", str(tmp_path / "run")]
    done = subprocess.run(
        words, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 2, done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: --log wandb: ")


def test_a_missing_package_is_one_line_with_the_command(
    dataset: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    message = refused("--data", dataset, *TINY, "--log", "wandb", capsys=capsys)
    assert message == "error: --log wandb: needs wandb, which is not installed: pip install wandb"
    message = refused("--data", dataset, *TINY, "--log", "mlflow", capsys=capsys)
    assert "mlflow" in message
    with pytest.raises(ValueError, match="--log mlflow: must be of tensorboard, wandb, trackio"):
        TrainConfig(log=("mlflow",))  # type: ignore[arg-type]


def test_no_tracker_at_all(dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train("--data", dataset, *TINY, "--epochs", 1, "--run-dir", tmp_path / "run", "--log", capsys=capsys)
    assert not (tmp_path / "run" / "tensorboard").exists()
    assert metrics(tmp_path / "run", "eval")
