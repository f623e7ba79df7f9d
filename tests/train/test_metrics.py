"""What a run measures and what it writes."""

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch.nn import functional

from train.metrics import WARMUP_STEPS, RunWriter, Throughput, Totals, read_metrics, result_line


def test_totals_over_batches_are_those_of_all_images() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(23, 9, generator=generator)
    labels = torch.randint(9, (23,), generator=generator)
    totals = Totals(torch.device("cpu"))
    for part in torch.arange(23).split([10, 10, 3]):
        totals.add(logits[part], labels[part], functional.cross_entropy(logits[part], labels[part]))
    result = totals.result()
    ranks = (logits > logits.gather(1, labels[:, None])).sum(1)
    assert result["images"] == 23
    assert result["top1"] == pytest.approx(100 * (ranks < 1).float().mean().item())
    assert result["top5"] == pytest.approx(100 * (ranks < 5).float().mean().item())
    assert result["loss"] == pytest.approx(functional.cross_entropy(logits, labels).item(), rel=1e-5)


def test_top5_of_fewer_than_five_classes_is_everything() -> None:
    totals = Totals(torch.device("cpu"))
    totals.add(torch.randn(6, 3), torch.tensor([0, 1, 2, 0, 1, 2]), torch.tensor(1.0))
    assert totals.result()["top5"] == 100


def test_images_per_s_leaves_the_warm_up_out() -> None:
    throughput = Throughput()
    throughput.resume()
    for step in range(WARMUP_STEPS + 3):
        if throughput.count(10):
            assert step == WARMUP_STEPS - 1
            throughput.restart()
    throughput.pause()
    assert throughput.images == 30


def test_a_run_of_warm_up_alone_still_has_a_rate() -> None:
    throughput = Throughput()
    throughput.resume()
    for _ in range(WARMUP_STEPS):
        if throughput.count(10):
            throughput.restart()
    throughput.pause()
    assert throughput.images_per_s > 0


def test_a_resumed_run_drops_the_rows_it_makes_again(tmp_path: Path) -> None:
    writer = RunWriter(tmp_path, 0)
    for step in (5, 10, 15):
        writer.write("train", step, loss=1.0, epoch=step / 5)
    writer.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "train", "st')  # killed while writing
    RunWriter(tmp_path, 10).close()
    assert [row["step"] for row in read_metrics(tmp_path)] == [5, 10]
    assert json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[0])["loss"] == 1.0


def test_an_interval_has_a_wait_of_its_own() -> None:
    throughput = Throughput()

    def slow() -> Iterator[int]:
        time.sleep(0.1)
        yield 0

    throughput.resume()
    list(throughput.waiting(slow()))
    assert throughput.interval_wait() > 0.9
    time.sleep(0.1)
    assert throughput.interval_wait() == 0
    assert 0 < throughput.data_wait < 0.9


def test_what_is_no_number_is_null(tmp_path: Path) -> None:
    writer = RunWriter(tmp_path, 0)
    writer.write("train", 1, loss=float("nan"), lr=float("inf"), epoch=0.5)
    writer.close()
    (row,) = read_metrics(tmp_path)
    assert row == {"kind": "train", "step": 1, "loss": None, "lr": None, "epoch": 0.5}
    assert result_line({"loss": float("nan")}, 1.0, 1.0, "torch", tmp_path)["loss"] is None
