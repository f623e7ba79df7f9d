"""Accuracy, images/s, waiting for data, metrics.jsonl."""

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch.nn import functional

from train.metrics import (
    MOST_POINTS,
    MOST_ROWS,
    WARMUP_STEPS,
    RunWriter,
    Throughput,
    Totals,
    read_metrics,
    result_line,
    rows_to_draw,
    thinned,
    training_names,
)


def test_totals_over_batches_are_those_of_all_images() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(23, 9, generator=generator)
    labels = torch.randint(9, (23,), generator=generator)
    totals = Totals(torch.device("cpu"))
    for part in torch.arange(23).split([10, 10, 3]):
        totals.add(logits[part], labels[part])
    result = totals.result()
    ranks = (logits > logits.gather(1, labels[:, None])).sum(1)
    assert result["images"] == 23
    assert result["top1"] == pytest.approx(100 * (ranks < 1).float().mean().item())
    assert result["top5"] == pytest.approx(100 * (ranks < 5).float().mean().item())
    assert result["loss"] == pytest.approx(functional.cross_entropy(logits, labels).item(), rel=1e-5)


def test_a_mixed_image_counts_for_the_label_with_the_largest_share() -> None:
    logits = torch.tensor([[4.0, 1, 0, 0, 0, 0], [0, 1, 2, 3, 4, 5]])
    shares = torch.tensor([[0.7, 0.3, 0, 0, 0, 0], [0.6, 0.4, 0, 0, 0, 0]])
    totals = Totals(torch.device("cpu"))
    totals.add(logits, shares)
    result = totals.result()
    assert (result["top1"], result["top5"]) == (50, 50)
    assert result["loss"] == pytest.approx(functional.cross_entropy(logits, shares).item())
    assert training_names(result, mixed=True).keys() == {"images", "mixed_loss", "mixed_top1", "mixed_top5"}
    assert training_names(result, mixed=False) == result


def test_top5_of_fewer_than_five_classes_is_everything() -> None:
    totals = Totals(torch.device("cpu"))
    totals.add(torch.randn(6, 3), torch.tensor([0, 1, 2, 0, 1, 2]))
    assert totals.result()["top5"] == 100


def test_images_per_s_does_not_count_the_warm_up() -> None:
    throughput = Throughput()
    throughput.resume()
    for step in range(WARMUP_STEPS + 3):
        if throughput.count(10):
            assert step == WARMUP_STEPS - 1
            throughput.restart()
    throughput.pause()
    assert throughput.images == 30


def test_a_run_that_consists_of_warm_up_still_has_a_rate() -> None:
    throughput = Throughput()
    throughput.resume()
    for _ in range(WARMUP_STEPS):
        if throughput.count(10):
            throughput.restart()
    throughput.pause()
    assert throughput.images_per_s > 0


def test_a_resumed_run_drops_the_rows_it_will_write_again(tmp_path: Path) -> None:
    writer = RunWriter(tmp_path, 0)
    for step in (5, 10, 15):
        writer.write("train", step, loss=1.0, top1=0.0, epoch=step / 5)
    writer.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "train", "st')  # killed while writing
    RunWriter(tmp_path, 10).close()
    assert [row["step"] for row in read_metrics(tmp_path)] == [5, 10]
    assert json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[0])["loss"] == 1.0


def test_the_wait_of_an_interval_is_its_own() -> None:
    throughput = Throughput()

    def slow() -> Iterator[int]:
        time.sleep(0.1)
        yield 0

    throughput.resume()
    list(throughput.timed(slow()))
    waited, elapsed = throughput.interval()
    assert waited > 0.9 * elapsed > 0
    throughput.restart()
    time.sleep(0.1)
    waited, elapsed = throughput.interval()
    assert (waited, elapsed > 0.09) == (0, True)
    assert throughput.data_wait == 0


def test_numbers_that_are_not_finite_become_null(tmp_path: Path) -> None:
    writer = RunWriter(tmp_path, 0)
    writer.write("train", 1, loss=float("nan"), lr=float("inf"), top1=3.0, epoch=0.5)
    writer.close()
    (row,) = read_metrics(tmp_path)
    assert row == {"kind": "train", "step": 1, "loss": None, "lr": None, "top1": 3.0, "epoch": 0.5}
    assert result_line({"loss": float("nan")}, 1.0, 1.0, "torch", tmp_path, "model")["loss"] is None


def test_a_picture_of_a_long_run_is_made_of_few_rows(tmp_path: Path) -> None:
    """All evaluations among them; and a curve keeps its shape when it is thinned."""
    row = '{"kind": "train", "step": %d, "epoch": %d, "loss": %d, "top1": 50.0}\n'
    evaluation = '{"kind": "eval", "step": %d, "epoch": %d, "loss": 1.0, "top1": 60.0}\n'
    count = 5 * MOST_ROWS
    with (tmp_path / "metrics.jsonl").open("w") as file:
        for step in range(count):
            file.write(row % (step, step, step))
            if step % 9_999 == 0:
                file.write(evaluation % (step, step))
    rows = rows_to_draw(tmp_path)
    assert [row["step"] for row in rows if row["kind"] == "eval"] == list(range(0, count, 9_999))
    training = [row for row in rows if row["kind"] == "train"]
    assert MOST_ROWS / 2 < len(training) < 2 * MOST_ROWS
    epochs, losses = thinned([row["epoch"] for row in training], [row["loss"] for row in training])
    assert MOST_POINTS / 2 < len(epochs) <= MOST_POINTS
    assert epochs == losses
    assert epochs == sorted(epochs)
    assert abs(epochs[-1] - count) < count / 100
