"""The picture of runs: which are equal, and the final and best values."""

import json
from pathlib import Path

from PIL import Image

from train.curves import Drawn, grouped, in_words, label_of, plot_curves, sentences, title_of


def run(run_dir: Path, losses: list[float | None], top1: list[float], images_per_s: float = 1.0) -> Path:
    """A run that logged twice an epoch."""
    run_dir.mkdir(parents=True)
    rows: list[dict[str, object]] = []
    for epoch, (loss, accuracy) in enumerate(zip(losses, top1, strict=True), 1):
        train: dict[str, object] = {
            "kind": "train",
            "step": 10 * epoch,
            "epoch": epoch,
            "loss": loss,
            "top1": accuracy / 2,
        }
        rows += [train | {"images_per_s": images_per_s}, {"kind": "eval", "loss": loss, "top1": accuracy}]
        rows[-1] |= {"step": 10 * epoch, "epoch": epoch}
    (run_dir / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return run_dir


def test_equal_runs_are_one_curve_and_a_sentence_says_so(tmp_path: Path) -> None:
    runs = [
        run(tmp_path / "dali", [2.0, 1.001], [50.0, 60.2]),
        run(tmp_path / "ffcv", [2.0, 1.0], [50.0, 60.0], images_per_s=3.0),
        run(tmp_path / "torch", [2.0, 1.0], [50.0, 60.0]),
    ]
    groups = grouped(map(Drawn.read, runs))
    assert [group.names for group in groups] == [["dali"], ["ffcv", "torch"]]
    assert sentences(groups) == [
        "ffcv and torch are equal: the same losses and accuracies, to the last digit, in all rows.",
        "Between the curves, evaluations differ by at most 0.001 in loss and 0.2 in top-1.",
    ]
    plot_curves(runs, tmp_path / "abc.png")
    with Image.open(tmp_path / "abc.png") as picture:
        assert picture.width > picture.height > 500


def test_runs_that_differ_or_were_not_evaluated_alike_are_not_called_equal(tmp_path: Path) -> None:
    runs = [
        run(tmp_path / "a", [2.0, 1.0], [50.0, 60.0]),
        run(tmp_path / "b", [2.0, 1.0, 0.9], [50.0, 60.0, 61.0]),
        run(tmp_path / "c", [2.0, 1.5], [50.0, 55.0]),
    ]
    groups = grouped(map(Drawn.read, runs))
    assert len(groups) == 3
    assert sentences(groups) == []
    assert sentences(groups[:1]) == sentences([groups[0], groups[2]]) == []


def test_the_legend_has_final_and_best_values(tmp_path: Path) -> None:
    best_before = Drawn.read(run(tmp_path / "a", [2.0, 1.0, 1.25], [50.0, 60.0, 59.0]))
    assert label_of(best_before) == "a: top-1 59.00 (best 60.00 after epoch 2), loss 1.250 (best 1.000 after epoch 2)"
    assert label_of(Drawn.read(run(tmp_path / "b", [2.0, 1.0], [1.0, 2.0]))) == "b: top-1 2.00, loss 1.000"
    assert label_of(Drawn.read(run(tmp_path / "c", [None], [3.0]))) == "c: top-1 3.00, loss not finite"
    assert label_of(Drawn.read(run(tmp_path / "d", [], []))) == "d: not evaluated"
    assert in_words(list("abcdefgh")) == "a, b, c, d, e and 3 more"


def test_the_title_names_the_run_and_its_model(tmp_path: Path) -> None:
    one, two = (run(tmp_path / name, [1.0], [1.0]) for name in "ab")
    assert title_of([one]) == "a"
    for run_dir in (one, two):
        (run_dir / "config.json").write_text('{"model": "alexnet"}')
    assert title_of([one]) == "a: alexnet"
    assert title_of([one, two]) == "2 runs: alexnet"
    (two / "config.json").write_bytes(b"\xff garbage")
    assert title_of([two]) == "b"
