"""The run directory: who may write to it, which run it belongs to, what its files hold."""

import itertools
import json
import logging
import math
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tensorboard.backend.event_processing import event_accumulator

import models
from tests.helpers.disks import fill, small_disk
from tests.helpers.runs import (
    TINY,
    assert_same_end,
    indices,
    metrics,
    newest_checkpoint,
    refused,
    refused_later,
    run_here,
    train,
)
from tests.helpers.scripts import ROOT, launched
from train import checkpoint
from train.config import TrainConfig
from train.meeting import meet
from train.metrics import read_metrics
from train.run_directory import RunDirectory
from train.step import Position
from train.world import World

LOCKER = """
import fcntl, sys
lock = open(sys.argv[1], "w")
fcntl.lockf(lock, fcntl.LOCK_EX)
print("locked", flush=True)
sys.stdin.read()
"""


def torch_run(dataset: Path, *flags: object) -> list[object]:
    """The flags of a short run."""
    return ["--data", dataset, *TINY, "--epochs", 1, *flags]


def weights_of(classes: int) -> dict[str, torch.Tensor]:
    return models.create("pyramidnet", classes, {"depth": 14, "alpha": 8}).network.state_dict()


def test_a_run_is_repeated_from_its_config(dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    flags = ["--seed", 3, "--label-smoothing", 0.1, "--mixup-alpha", 0.2, "--log-indices", "--checkpoint-every", "6"]
    train(*torch_run(dataset, *flags), "--run-dir", first, capsys=capsys)
    config = first / "config.json"
    assert "holds a run; add --resume auto or choose another" in refused_later("--config", config, capsys=capsys)
    train("--config", config, "--run-dir", second, capsys=capsys)
    assert indices(first) == indices(second)
    for name in ("step-00000006.pt", "step-00000011.pt"):
        weights = [torch.load(run / "checkpoints" / name, weights_only=True)["model"] for run in (first, second)]
        assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])
    configs = [json.loads((run / "config.json").read_text()) for run in (first, second)]
    assert {key for key in configs[0] if configs[0][key] != configs[1][key]} == {"config", "run_dir"}


def test_a_directory_has_one_writer(dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    words = [sys.executable, "-c", LOCKER, str(run_dir / ".lock")]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"locked\n"
        message = refused_later(*torch_run(dataset, "--run-dir", run_dir, "--resume", "auto"), capsys=capsys)
        other.kill()  # which releases its lock
    assert message == f"error: --run-dir {run_dir}: another process is writing to it; give another"
    train(*torch_run(dataset, "--run-dir", run_dir, "--resume", "auto"), capsys=capsys)


def test_runs_of_the_same_second_have_separate_directories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("time.strftime", lambda text: "20300101-000000")

    def open_directory(_: int) -> Path:
        with RunDirectory(TrainConfig(), meet(World(), 1), "torch", None, Position()) as directory:
            return directory.path

    with ThreadPoolExecutor(4) as pool:
        paths = set(pool.map(open_directory, range(4)))
    stem = "runs/resnet50-torch-20300101-000000"
    assert {str(path) for path in paths} == {stem, f"{stem}-2", f"{stem}-3", f"{stem}-4"}


def test_a_run_continues_in_the_directory_of_its_checkpoint(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run_dir, other = tmp_path / "run", tmp_path / "other"
    train(*torch_run(dataset, "--run-dir", run_dir, "--log-indices"), capsys=capsys)
    newest = run_dir / "checkpoints" / "step-00000011.pt"
    resumed = torch_run(dataset, "--resume", newest, "--epochs", 2, "--log-indices")
    result = train(*resumed, capsys=capsys)
    assert result["run_dir"] == str(run_dir)
    assert len(indices(run_dir)) == 22
    assert [row["step"] for row in metrics(run_dir, "eval")] == [11, 22]
    # It can also go to a directory of its own, but not to that of another run.
    best = run_dir / "checkpoints" / "best.pt"
    flags = ("--epochs", 3, "--run-dir", other, "--keep-checkpoints", 5)
    first = int(torch.load(best, weights_only=True)["position"]["step"])
    assert train(*torch_run(dataset, "--resume", best, *flags), capsys=capsys)["top1"] >= 0
    assert (other / "checkpoints" / f"step-{first:08d}.pt").exists(), "it can be resumed from its first moment"
    message = refused_later(*torch_run(dataset, "--resume", best, "--run-dir", other), capsys=capsys)
    assert f"--run-dir {other}: holds a run, not that of --resume {best}" in message
    # A copy elsewhere belongs to no run directory; its folder is not taken for one.
    copy = tmp_path / "models" / "a.pt"
    copy.parent.mkdir()
    shutil.copy(newest, copy)
    monkeypatch.chdir(tmp_path)
    result = train(*torch_run(dataset, "--resume", copy, "--epochs", 2), capsys=capsys)
    assert Path(result["run_dir"]).parent == Path("runs")
    assert [*copy.parent.iterdir()] == [copy]


@pytest.mark.filterwarnings("ignore:Unable to enable fault handler")  # stderr is captured
def test_a_restarted_run_continues_in_its_directory(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever --resume and --run-dir say: that was for its start."""
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
    # What else the launcher's script does is not that run.
    before = sorted(run_dir.rglob("*"))
    measured = train(*torch_run(dataset, "--performance", 12), capsys=capsys)
    monkeypatch.setattr(sys, "argv", ["train/run.py", "--another"])
    another = train(*flags, capsys=capsys)
    assert len({str(run_dir), measured["run_dir"], another["run_dir"]}) == 3
    assert sorted(run_dir.rglob("*")) == before
    del first
    # A launch that was refused does not own the run that it found there.
    second = launched(monkeypatch)
    for _ in range(2):
        message = refused_later(*flags, "--run-dir", run_dir, capsys=capsys)
        assert message.endswith("holds a run; add --resume auto or choose another")
    del second


@pytest.mark.parametrize("keep", [0, 2000, None])
def test_a_damaged_checkpoint_is_skipped_and_reported(
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
    message = refused_later(*flags, "--resume", newest, capsys=capsys)
    assert message == f"error: {newest}: not a checkpoint, or a damaged one"
    with caplog.at_level(logging.INFO):
        train(*flags, "--resume", "auto", capsys=capsys)
    assert f"{newest} is damaged: resuming from the one before" in caplog.messages
    assert any("resumed from" in line and "step-00000007.pt" in line for line in caplog.messages)
    resumed = torch.load(newest, weights_only=True)["model"]
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


NO_ROW = [
    b"garbage",
    bytes(300),
    b"caf\xe9 \xff",
    b"[" * 200_000,
    b"[1, 2]",
    b'{"kind": "eval", "step": "x", "epoch": null}',
]
"""What a failing disk or another program may leave in a file of rows."""


def test_damage_in_a_run_directory_costs_a_line_in_the_log(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """In all files but the checkpoints, whose damage costs the steps since the one before."""
    whole, damaged = tmp_path / "whole", tmp_path / "damaged"
    train(*torch_run(dataset, "--run-dir", whole, "--log-indices", "--epochs", 2), capsys=capsys)
    flags = torch_run(dataset, "--run-dir", damaged, "--log-indices", "--epochs", 2, "--keep-checkpoints", 2)
    train(*flags, capsys=capsys)
    newest_checkpoint(damaged).unlink()
    for name in ("metrics.jsonl", "indices-rank0.jsonl"):
        rows = (damaged / name).read_bytes().splitlines()
        (damaged / name).write_bytes(b"\n".join([*NO_ROW, *rows, *NO_ROW, b'{"kind": "tr']))
    for name in ("config.json", "result.json", "train.log", "curves.png", ".lock"):
        (damaged / name).write_bytes(b"\xff\x00 garbage")
    shutil.rmtree(damaged / "tensorboard")
    (damaged / "tensorboard").write_bytes(bytes(100))
    with caplog.at_level(logging.WARNING):
        train(*flags, "--resume", "auto", capsys=capsys)
    assert_same_end(whole, damaged)
    assert [re.sub(r"(of) \d+", r"\1 N", line) for line in caplog.messages] == [
        f"{damaged}/indices-rank0.jsonl: 12 damaged of N lines are left out",
        f"{damaged}/metrics.jsonl: 12 damaged of N lines are left out",
        f"{damaged}/tensorboard: nothing more is written there (File exists)",
    ]
    assert json.loads((damaged / "config.json").read_text())["epochs"] == 2


def test_a_full_disk_ends_a_run_with_a_line_and_leaves_it_to_be_resumed(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = tmp_path / "whole"
    train(*torch_run(dataset, "--run-dir", whole, "--epochs", 2), capsys=capsys)
    with small_disk(tmp_path / "disk", "8m") as disk:
        run_dir = disk / "run"
        flags = torch_run(dataset, "--run-dir", run_dir, "--epochs", 2, "--keep-checkpoints", 2)
        train(*flags, capsys=capsys)
        newest_checkpoint(run_dir).unlink()
        checkpoint.set_aside_after(run_dir, 11)  # or last.pt would hold its bytes
        before = sorted((run_dir / "checkpoints").iterdir())
        filler = fill(disk, left=50_000)
        assert run_here(*flags, "--resume", "auto") == 1
        output = capsys.readouterr()
        assert "Traceback" not in output.err
        assert output.err.splitlines()[-1] == (
            f"error: {run_dir}/checkpoints: cannot be written any more (No space left on device, 0 MB free on {disk}); "
            "the checkpoints before stay: make room and start again with --resume auto"
        )
        assert sorted((run_dir / "checkpoints").iterdir()) == before
        filler.unlink()
        train(*flags, "--resume", "auto", capsys=capsys)
        assert_same_end(whole, run_dir)


def test_a_disk_that_is_full_from_the_first_log_line_on(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with small_disk(tmp_path / "disk", "8m") as disk:
        flags = torch_run(dataset, "--run-dir", disk / "run", "--print-freq", 1, "--log-indices")
        train(*flags, capsys=capsys)
        fill(disk, left=0)
        assert run_here(*flags, "--epochs", 2, "--resume", "auto") in (1, 2)
        output = capsys.readouterr()
        assert "Traceback" not in output.err
        assert "No space left on device" in output.err.splitlines()[-1]


def test_checkpoints_by_time(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a clock that advances ten seconds each time it is read."""
    seconds = itertools.count(0, 10)
    clock = SimpleNamespace(monotonic=lambda: float(next(seconds)), perf_counter=time.perf_counter)
    monkeypatch.setattr("train.loop.time", clock)
    flags = ("--checkpoint-every", "30s", "--keep-checkpoints", 99, "--run-dir", tmp_path / "run")
    train(*torch_run(dataset, *flags), capsys=capsys)
    steps = sorted(int(path.stem[-8:]) for path in (tmp_path / "run" / "checkpoints").glob("step-*.pt"))
    assert steps == [3, 6, 9, 11]


def test_the_log_holds_everything_that_was_printed(dataset: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    words = [sys.executable, "train/run.py", *torch_run(dataset, "--run-dir", run_dir, "--loader", "auto")]
    done = subprocess.run([*map(str, words)], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    logged = [line.partition(" ")[2].partition(" ")[2] for line in (run_dir / "train.log").read_text().splitlines()]
    assert logged == done.stderr.splitlines()
    assert logged[0].startswith("loader auto: ")  # logged before there was a directory
    assert any(line.startswith("lr ") and "linear scaling" in line for line in logged)
    waits = [re.search(r" wait (\d+)%$", line) for line in logged if " loss " in line]
    assert waits
    assert all(waits)


def test_a_loss_that_is_not_finite_ends_the_run_and_names_the_images(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir = tmp_path / "run"
    flags = ["--lr", 1e30, "--warmup-epochs", 0, "--log-indices", "--run-dir", run_dir, "--checkpoint-every", 1]
    with pytest.raises(SystemExit) as caught:
        run_here(*torch_run(dataset, *flags))
    message = str(caught.value)
    batch = next(number for number in range(11) if f"in epoch 0, batch {number} of rank 0: " in message)
    assert message.endswith("dataset positions " + " ".join(map(str, indices(run_dir)[batch])))
    for path in (run_dir / "checkpoints").glob("step-*.pt"):
        weights = torch.load(path, weights_only=True)["model"].values()
        assert all(tensor.isfinite().all() for tensor in weights), "what was saved is from before that"
    assert "not finite" in (run_dir / "train.log").read_text()


def test_a_performance_run_only_measures(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    run_dir = tmp_path / "run"
    with caplog.at_level(logging.INFO):
        result = train(*torch_run(dataset, "--performance", 15, "--run-dir", run_dir), capsys=capsys)
    assert result["images_per_s"] > 0
    assert (result["top1"], result["evaluated"]) == (None, 0)
    assert any(line.startswith("FPS ") and "waiting for data included" in line for line in caplog.messages)
    assert not (run_dir / "checkpoints").exists()
    assert metrics(run_dir, "train")[-1]["step"] == 15


def test_the_log_names_what_it_measured(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """The rate of the step; the loss without smoothing next to the objective; what was counted on mixed images."""
    flags = ["--label-smoothing", 0.2, "--print-freq", 1, "--lr", 0.1, "--warmup-epochs", 0, "--model-ema"]
    plain, mixed = tmp_path / "plain", tmp_path / "mixed"
    with caplog.at_level(logging.INFO):
        result = train(*torch_run(dataset, *flags), "--run-dir", plain, capsys=capsys)
    rows = metrics(plain, "train")
    rates = [0.05 * (1 + math.cos(math.pi * step / 11)) for step in range(11)]
    assert [row["lr"] for row in rows] == pytest.approx(rates)
    assert all(row["objective"] != row["loss"] for row in rows)
    objective, loss = rows[0]["objective"], rows[0]["loss"]
    assert any(re.search(rf" step 1 objective {objective:.3f} loss {loss:.3f} ", line) for line in caplog.messages)
    assert result["weights"] == "ema"
    caplog.clear()
    with caplog.at_level(logging.INFO):
        result = train(*torch_run(dataset, "--mixup-alpha", 0.4, "--print-freq", 1), "--run-dir", mixed, capsys=capsys)
    assert result["weights"] == "model"
    board = event_accumulator.EventAccumulator(str(mixed / "tensorboard"))
    board.Reload()
    measured = {"mixed_loss", "mixed_top1", "mixed_top5", "objective", "images", "epoch", "lr"}
    for names in (set(metrics(mixed, "train")[0]), {tag.removeprefix("train/") for tag in board.Tags()["scalars"]}):
        assert measured <= names
        assert not {"loss", "top1"} & names
    # Without smoothing, the objective on mixed images is their cross-entropy.
    for row in metrics(mixed, "train"):
        assert row["mixed_loss"] == pytest.approx(row["objective"], rel=1e-5)
    assert any(" mixed loss " in line for line in caplog.messages)
    assert len([*read_metrics(mixed)]) == 12, "none is taken for damaged"


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
    """best.pt of a short run with averaged weights."""
    run_dir = tmp_path_factory.mktemp("trained") / "run"
    flags = torch_run(dataset, "--run-dir", run_dir, "--model-ema", "--model-ema-decay", 0.5)
    assert run_here(*flags) == 0
    return run_dir / "checkpoints" / "best.pt"


def test_the_averaged_weights_of_a_run_are_evaluated(
    dataset: Path, trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    row = metrics(trained.parents[1], "eval")[-1]
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
    message = f"--finetune {other}: another number of classes; fc.weight, fc.bias start from initial values"
    assert message in caplog.messages
    assert "--evaluate" in refused(*common, "--evaluate", other, capsys=capsys)


def test_only_reproducible_kernels_are_used(dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs: Sequence[Path] = (tmp_path / "a", tmp_path / "b")
    for run_dir in runs:
        train(*torch_run(dataset, "--deterministic", "--run-dir", run_dir), capsys=capsys)
        assert torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(False)
    one, two = (torch.load(run / "checkpoints" / "best.pt", weights_only=True)["model"] for run in runs)
    assert all(torch.equal(one[name], two[name]) for name in one)


PLANTED = [".lock", "train.log", "metrics.jsonl", ".metrics.jsonl.partial", "indices-rank0.jsonl", "curves.png"]
PLANTED += ["config.json", ".config.json.partial", "result.json", "checkpoints/.step-00000011.pt.partial"]


@pytest.mark.skipif(os.geteuid() != 0, reason="gives links to another user")
def test_links_that_another_user_has_planted_are_refused(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "secrets").mkdir()
    for name in ("checkpoints", "tensorboard"):
        link = tmp_path / "run" / name
        link.parent.mkdir(exist_ok=True)
        link.symlink_to(tmp_path / "secrets")
        os.lchown(link, 65534, 65534)
        line = refused_later(*torch_run(dataset, "--run-dir", tmp_path / "run"), capsys=capsys)
        assert line == f"error: --run-dir {link}: a link that another user has made; remove it"
        link.unlink()
    assert not list((tmp_path / "secrets").iterdir())


def test_nothing_is_written_through_links(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """Those of the lock and the log end the run with a line; the others are replaced."""
    run_dir, secret = tmp_path / "run", tmp_path / "secret"
    (run_dir / "checkpoints").mkdir(parents=True)
    secret.write_text("kept")
    for name in PLANTED:
        (run_dir / name).symlink_to(secret)
    flags = torch_run(dataset, "--run-dir", run_dir, "--log-indices", "--resume", "auto")
    reason = "is a link, which is not followed; remove it"
    with caplog.at_level(logging.INFO):  # or nothing would be logged
        for name in (".lock", "train.log"):
            line = f"error: --run-dir {run_dir / name}: cannot be written ({reason})"
            assert refused_later(*flags, capsys=capsys) == line
            (run_dir / name).unlink()
        train(*flags, capsys=capsys)
    assert secret.read_text() == "kept"
    assert not [path for path in run_dir.rglob("*") if path.is_symlink()]


def test_pipes_in_a_run_directory_are_not_waited_for(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """Those of the lock and the log end the run with a line; the others are replaced, or passed over."""
    run_dir = tmp_path / "run"
    (run_dir / "checkpoints").mkdir(parents=True)
    for name in (*PLANTED, "result.json"):
        if not (run_dir / name).exists():
            os.mkfifo(run_dir / name)
    flags = torch_run(dataset, "--run-dir", run_dir, "--log-indices", "--resume", "auto")
    with caplog.at_level(logging.INFO):  # or nothing would be logged
        for name in (".lock", "train.log"):
            assert refused_later(*flags, capsys=capsys).startswith(f"error: --run-dir {run_dir / name}: cannot be ")
            (run_dir / name).unlink()
        train(*flags, capsys=capsys)
    assert not [path for path in run_dir.rglob("*") if path.is_fifo()]
