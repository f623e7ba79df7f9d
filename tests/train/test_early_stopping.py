"""--patience, --val-interval, last.pt and the warm-up's line: when a run evaluates and when it ends."""

import logging
from pathlib import Path

import pytest
import torch

from tests.helpers.runs import TINY, assert_same_end, indices, metrics, newest_step, refused, train
from train.config import TrainConfig
from train.early_stopping import EarlyStopping


def ended_after(accuracies: list[float], **settings: float) -> int:
    """Evaluations until the run ends, all if it does not."""
    stopping = EarlyStopping(TrainConfig(**settings))  # type: ignore[arg-type]
    for number, top1 in enumerate(accuracies, 1):
        stopping.evaluated(top1)
        if stopping.is_due:
            return number
    return len(accuracies) + 1


def test_evaluations_without_progress_are_counted_as_in_keras_and_lightning() -> None:
    rising, falling = [1.0, 2, 3, 4, 5], [5.0, 4, 3, 2, 1]
    assert ended_after(rising, patience=1) == 6
    assert ended_after(falling, patience=2) == 3
    assert ended_after([3.0, 3, 3, 3], patience=3) == 4, "equal is not better"
    assert ended_after([1.0, 1, 2, 2, 3, 3], patience=2) == 7, "progress begins the count again"
    assert ended_after([10.0, 10.5, 11.0, 11.5], patience=2, min_delta=1.5) == 3
    assert ended_after([10.0, 10.5, 11.6, 11.7, 13.2], patience=2, min_delta=1.5) == 6
    assert ended_after(falling) == 6, "without the flag, never"


def stubborn(dataset: Path, *flags: object) -> list[object]:
    """A run whose accuracy stays what it is: its weights hardly move."""
    words = ["--data", dataset, *TINY, "--lr", 1e-9, "--warmup-epochs", 0, "--epochs", 9, "--patience", 2]
    return [*words, "--log-indices", "--checkpoint-every", 5, "--keep-checkpoints", 99, *flags]


def test_a_run_that_gets_no_better_ends_where_it_would_have_ended_after_a_kill(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """Wherever it was killed: after the epoch of the best evaluation, in the middle of the next, before the last."""
    whole = tmp_path / "whole"
    with caplog.at_level(logging.INFO):
        train(*stubborn(dataset, "--run-dir", whole), capsys=capsys)
    evaluations = metrics(whole, "eval")
    best = max(evaluations, key=lambda row: row["top1"])
    assert evaluations[-1]["epoch"] == best["epoch"] + 2 < 9
    line = f"stopped early: no better top1 in 2 evaluations, best {best['top1']:.2f} after epoch {best['epoch']}"
    assert line in caplog.messages
    for step in (11, 15, newest_step(whole)):
        parts = tmp_path / f"parts{step}"
        (parts / "checkpoints").mkdir(parents=True)
        checkpoint = f"checkpoints/step-{step:08d}.pt"
        (parts / checkpoint).write_bytes((whole / checkpoint).read_bytes())
        (parts / "indices-rank0.jsonl").write_text(
            "".join((whole / "indices-rank0.jsonl").read_text().splitlines(keepends=True)[:step])
        )
        (parts / "metrics.jsonl").write_bytes((whole / "metrics.jsonl").read_bytes())  # cut by the resumed run
        train(*stubborn(dataset, "--run-dir", parts, "--resume", "auto"), capsys=capsys)
        assert_same_end(whole, parts)
    # With more patience, the run that had ended goes on.
    train(*stubborn(dataset, "--run-dir", whole, "--resume", "auto", "--patience", 3), capsys=capsys)
    assert metrics(whole, "eval")[-1]["epoch"] == best["epoch"] + 3


def test_evaluations_have_an_interval_and_the_last_epoch_has_one(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    every, some = tmp_path / "every", tmp_path / "some"
    flags = ["--data", dataset, *TINY, "--epochs", 3, "--log-indices"]
    train(*flags, "--run-dir", every, capsys=capsys)
    result = train(*flags, "--val-interval", 2, "--run-dir", some, capsys=capsys)
    assert [row["epoch"] for row in metrics(some, "eval")] == [2, 3]
    assert metrics(some, "eval") == metrics(every, "eval")[1:]
    assert result["top1"] == metrics(some, "eval")[-1]["top1"]
    assert indices(some) == indices(every)
    last, newest = (torch.load(some / "checkpoints" / name, weights_only=True) for name in ("last.pt", "best.pt"))
    assert last["position"]["epoch"] == 3
    assert newest["position"]["epoch"] in (2, 3)


def test_patience_needs_evaluations(imagenet_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "train").symlink_to(imagenet_folder / "train")
    message = refused("--data", tmp_path, *TINY, "--patience", 3, capsys=capsys)
    assert message == f"error: --patience 3: needs evaluations, and {tmp_path} has no validation split"


@pytest.mark.parametrize(("epochs", "said"), [(20, False), (40, False), (8, True)])
def test_a_warm_up_of_much_of_the_run_is_mentioned(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture, epochs: int,
    said: bool,
) -> None:  # fmt: skip
    flags = ["--data", dataset, *TINY, "--epochs", epochs, "--warmup-epochs", 4, "--run-dir", tmp_path / "run"]
    flags += ["--val-interval", epochs, "--batch-size", 40, "--loader", "synthetic"]
    with caplog.at_level(logging.INFO):
        train(*flags, capsys=capsys)
    lines = [line for line in caplog.messages if line.startswith("warm-up: ")]
    assert lines == (["warm-up: 50% of the run's 8 epochs (--warmup-epochs)"] if said else [])
    assert all(len(line) <= 80 for line in caplog.messages if " img/s " in line or " evaluated " in line)
