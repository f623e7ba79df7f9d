"""What a run leaves in its directory, and who may write there."""

import itertools
import json
import logging
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from scripts import launched
from test_run import ROOT, SMALL, indices, refused, train

import models
from pipeline.cli import run_command
from train.config import TrainConfig
from train.meeting import meet
from train.recipes import starting_point
from train.run import main
from train.run_directory import RunDirectory
from train.session import Position
from train.world import World

LOCKER = """
import fcntl, sys
lock = open(sys.argv[1], "w")
fcntl.lockf(lock, fcntl.LOCK_EX)
print("locked", flush=True)
sys.stdin.read()
"""


TINY = [*SMALL, "--model", "pyramidnet", "--model-kwargs", "depth=14", "alpha=8", "--loader", "torch"]


def torch_run(dataset: Path, *flags: object) -> list[object]:
    return ["--data", dataset, *TINY, "--epochs", 1, *flags]


def weights_of(classes: int) -> dict[str, torch.Tensor]:
    return models.create("pyramidnet", classes, {"depth": 14, "alpha": 8}).network.state_dict()


def test_a_run_is_repeated_from_its_config(dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    flags = ["--seed", 3, "--label-smoothing", 0.1, "--mixup-alpha", 0.2, "--log-indices", "--checkpoint-every", "6"]
    train(*torch_run(dataset, *flags), "--run-dir", first, capsys=capsys)
    config = first / "config.json"
    assert "holds a run; add --resume auto or choose another" in refused_by("--config", config, capsys=capsys)
    train("--config", config, "--run-dir", second, capsys=capsys)
    assert indices(first) == indices(second)
    for name in ("step-00000006.pt", "step-00000011.pt"):
        weights = [torch.load(run / "checkpoints" / name, weights_only=True)["model"] for run in (first, second)]
        assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])
    configs = [json.loads((run / "config.json").read_text()) for run in (first, second)]
    assert {key for key in configs[0] if configs[0][key] != configs[1][key]} == {"config", "run_dir"}


def refused_by(*arguments: object, capsys: pytest.CaptureFixture[str]) -> str:
    """As `refused`, where other lines come first."""
    assert run_command(main, TrainConfig, [*map(str, arguments)], starting_point) == 2
    return capsys.readouterr().err.splitlines()[-1]


def test_a_directory_has_one_writer(dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    words = [sys.executable, "-c", LOCKER, str(run_dir / ".lock")]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"locked\n"
        told = refused_by(*torch_run(dataset, "--run-dir", run_dir, "--resume", "auto"), capsys=capsys)
        other.kill()  # its lock goes with it
    assert told == f"error: --run-dir {run_dir}: another process is writing it"
    train(*torch_run(dataset, "--run-dir", run_dir, "--resume", "auto"), capsys=capsys)


def test_runs_of_the_same_second_have_directories_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("time.strftime", lambda text: "20300101-000000")

    def opened(_: int) -> Path:
        with RunDirectory(TrainConfig(), meet(World(), 1), "torch", None, Position()) as directory:
            return directory.path

    with ThreadPoolExecutor(4) as pool:
        paths = set(pool.map(opened, range(4)))
    stem = "runs/resnet50-torch-20300101-000000"
    assert {str(path) for path in paths} == {stem, f"{stem}-2", f"{stem}-3", f"{stem}-4"}


def test_a_checkpoint_names_the_run_to_go_on_with(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run_dir, other = tmp_path / "run", tmp_path / "other"
    train(*torch_run(dataset, "--run-dir", run_dir, "--log-indices"), capsys=capsys)
    newest = run_dir / "checkpoints" / "step-00000011.pt"
    resumed = torch_run(dataset, "--resume", newest, "--epochs", 2, "--log-indices")
    result = train(*resumed, capsys=capsys)
    assert result["run_dir"] == str(run_dir)
    assert len(indices(run_dir)) == 22
    rows = [json.loads(row) for row in (run_dir / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if row["kind"] == "eval"] == [11, 22]
    # Into a directory of its own, too; but not into that of another run.
    best = run_dir / "checkpoints" / "best.pt"
    flags = ("--epochs", 3, "--run-dir", other, "--keep-checkpoints", 5)
    first = int(torch.load(best, weights_only=True)["position"]["step"])
    assert train(*torch_run(dataset, "--resume", best, *flags), capsys=capsys)["top1"] >= 0
    assert (other / "checkpoints" / f"step-{first:08d}.pt").exists(), "it can be gone on with from its first moment"
    told = refused_by(*torch_run(dataset, "--resume", best, "--run-dir", other), capsys=capsys)
    assert f"--run-dir {other}: holds a run, not that of --resume {best}" in told
    # A copy elsewhere is of no run directory; its folder is not taken for one.
    copy = tmp_path / "models" / "a.pt"
    copy.parent.mkdir()
    shutil.copy(newest, copy)
    monkeypatch.chdir(tmp_path)
    result = train(*torch_run(dataset, "--resume", copy, "--epochs", 2), capsys=capsys)
    assert Path(result["run_dir"]).parent == Path("runs")
    assert [*copy.parent.iterdir()] == [copy]


@pytest.mark.filterwarnings("ignore:Unable to enable fault handler")  # stderr is captured
def test_a_restarted_run_goes_on_where_it_was(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever --resume and --run-dir say: that was its beginning."""
    monkeypatch.chdir(tmp_path)
    flags, start = torch_run(dataset, "--log-indices"), tmp_path / "start.pt"
    first = launched(monkeypatch)
    run_dir = Path(train(*flags, capsys=capsys)["run_dir"])
    (run_dir / "checkpoints" / "step-00000011.pt").rename(start)
    shutil.rmtree(run_dir / "checkpoints")  # it died before its first checkpoint
    train(*flags, capsys=capsys)
    assert len(indices(run_dir)) == 11
    shutil.rmtree(run_dir / "checkpoints")
    train(*flags, "--resume", start, "--epochs", 2, capsys=capsys)
    assert len(indices(run_dir)) == 22
    start.unlink()
    train(*flags, "--resume", start, "--epochs", 3, capsys=capsys)
    assert len(indices(run_dir)) == 33
    # What the launcher's script does besides is not that run.
    before = sorted(run_dir.rglob("*"))
    measured = train(*torch_run(dataset, "--performance", 12), capsys=capsys)
    monkeypatch.setattr(sys, "argv", ["train/run.py", "--another"])
    another = train(*flags, capsys=capsys)
    assert len({str(run_dir), measured["run_dir"], another["run_dir"]}) == 3
    assert sorted(run_dir.rglob("*")) == before
    del first
    # That a launch was refused does not make the run that was there its own.
    second = launched(monkeypatch)
    for _ in range(2):
        told = refused_by(*flags, "--run-dir", run_dir, capsys=capsys)
        assert told.endswith("holds a run; add --resume auto or choose another")
    del second


@pytest.mark.parametrize("keep", [0, 2000, None])
def test_a_damaged_checkpoint_is_passed_over_and_said_so(
    dataset: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    keep: int | None,
) -> None:
    run_dir = tmp_path / "run"
    flags = torch_run(dataset, "--run-dir", run_dir, "--checkpoint-every", 7, "--keep-checkpoints", 1)
    train(*flags, "--keep-checkpoints", 5, capsys=capsys)
    whole = torch.load(run_dir / "checkpoints" / "step-00000011.pt", weights_only=True)["model"]
    newest = run_dir / "checkpoints" / "step-00000011.pt"
    data = bytearray(newest.read_bytes())
    data[len(data) // 2] ^= 1
    newest.write_bytes(data[:keep] if keep is not None else data)
    told = refused_by(*flags, "--resume", newest, capsys=capsys)
    assert told == f"error: {newest}: not a checkpoint, or a damaged one"
    with caplog.at_level(logging.INFO):
        train(*flags, "--resume", "auto", capsys=capsys)
    assert f"{newest} is damaged: going on from the one before" in caplog.messages
    assert any("resumed from" in line and "step-00000007.pt" in line for line in caplog.messages)
    resumed = torch.load(newest, weights_only=True)["model"]
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_checkpoints_by_time(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a clock that goes on ten seconds each time somebody looks at it."""
    seconds = itertools.count(0, 10)
    clock = SimpleNamespace(monotonic=lambda: float(next(seconds)), perf_counter=time.perf_counter)
    monkeypatch.setattr("train.trainer.time", clock)
    flags = ("--checkpoint-every", "30s", "--keep-checkpoints", 99, "--run-dir", tmp_path / "run")
    train(*torch_run(dataset, *flags), capsys=capsys)
    steps = sorted(int(path.stem[-8:]) for path in (tmp_path / "run" / "checkpoints").glob("step-*.pt"))
    assert steps == [3, 6, 9, 11]


def test_the_log_holds_everything_that_was_said(dataset: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    words = [sys.executable, "train/run.py", *torch_run(dataset, "--run-dir", run_dir, "--loader", "auto")]
    done = subprocess.run([*map(str, words)], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    logged = [line.partition(" ")[2].partition(" ")[2] for line in (run_dir / "train.log").read_text().splitlines()]
    assert logged == done.stderr.splitlines()
    assert logged[0].startswith("loader auto: ")  # before there was a directory
    assert any(line.startswith("lr ") and "linear scaling" in line for line in logged)
    waits = [re.search(r"data wait (\d+)%$", line) for line in logged if " loss " in line]
    assert waits
    assert all(waits)


def test_a_loss_that_is_not_finite_ends_the_run_and_names_the_images(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir = tmp_path / "run"
    flags = ["--lr", 1e30, "--warmup-epochs", 0, "--log-indices", "--run-dir", run_dir, "--checkpoint-every", 1]
    with pytest.raises(SystemExit) as caught:
        run_command(main, TrainConfig, [*map(str, torch_run(dataset, *flags))])
    told = str(caught.value)
    batch = next(number for number in range(11) if f"in epoch 0, batch {number} of rank 0: " in told)
    assert told.endswith("dataset positions " + " ".join(map(str, indices(run_dir)[batch])))
    for path in (run_dir / "checkpoints").glob("step-*.pt"):
        weights = torch.load(path, weights_only=True)["model"].values()
        assert all(tensor.isfinite().all() for tensor in weights), "what was saved is from before"
    assert "not finite" in (run_dir / "train.log").read_text()


def test_a_performance_run_measures_and_nothing_else(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    run_dir = tmp_path / "run"
    with caplog.at_level(logging.INFO):
        result = train(*torch_run(dataset, "--performance", 15, "--run-dir", run_dir), capsys=capsys)
    assert result["images_per_s"] > 0
    assert (result["top1"], result["evaluated"]) == (None, 0)
    assert any(line.startswith("FPS ") and "waiting for data included" in line for line in caplog.messages)
    assert not (run_dir / "checkpoints").exists()
    rows = [json.loads(row) for row in (run_dir / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["step"] == 15


@pytest.mark.parametrize("batch_size", [1, 3, 19, 64])
def test_an_evaluation_counts_every_image_once(
    dataset: Path, trained: Path, capsys: pytest.CaptureFixture[str], batch_size: int
) -> None:
    results = [
        train("--data", dataset, *TINY, "--batch-size", size, "--evaluate", trained, capsys=capsys)
        for size in (4, batch_size)
    ]
    assert [result["evaluated"] for result in results] == [19, 19]
    assert results[0]["top1"] == results[1]["top1"]


@pytest.fixture(scope="module")
def trained(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The best checkpoint of a short run with averaged weights."""
    run_dir = tmp_path_factory.mktemp("trained") / "run"
    flags = torch_run(dataset, "--run-dir", run_dir, "--model-ema", "--model-ema-decay", 0.5)
    assert run_command(main, TrainConfig, [*map(str, flags)]) == 0
    return run_dir / "checkpoints" / "best.pt"


def test_averaged_weights_are_those_of_the_run(
    dataset: Path, trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [json.loads(row) for row in (trained.parents[1] / "metrics.jsonl").read_text().splitlines()]
    row: dict[str, Any] = rows[-1]
    evaluated = train("--data", dataset, *TINY, "--evaluate", trained, capsys=capsys)
    assert (evaluated["top1"], evaluated["loss"]) == (row["top1"], row["loss"])
    assert row["raw_loss"] != row["loss"]


def test_published_weights_can_be_evaluated_and_finetuned(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    path, other = tmp_path / "weights.pth", tmp_path / "other.pth"
    torch.save(weights_of(4), path)
    torch.save(weights_of(7), other)
    common = ["--data", dataset, *TINY]
    assert train(*common, "--evaluate", path, capsys=capsys)["evaluated"] == 19
    with caplog.at_level(logging.INFO):
        train(*common, "--finetune", other, "--epochs", 1, "--run-dir", tmp_path / "run", capsys=capsys)
    told = f"--finetune {other}: another number of classes; fc.weight, fc.bias start anew"
    assert told in caplog.messages
    assert "--evaluate" in refused(*common, "--evaluate", other, capsys=capsys)


def test_only_reproducible_kernels_are_used(dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs: Sequence[Path] = (tmp_path / "a", tmp_path / "b")
    for run_dir in runs:
        train(*torch_run(dataset, "--deterministic", "--run-dir", run_dir), capsys=capsys)
        assert torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(False)
    one, two = (torch.load(run / "checkpoints" / "best.pt", weights_only=True)["model"] for run in runs)
    assert all(torch.equal(one[name], two[name]) for name in one)
