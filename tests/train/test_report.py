"""What an evaluation writes is what its predictions say, on one process and on two."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.contract import CPU
from pipeline.storage.split import open_split
from tests.helpers.finished import write_checkpoint
from tests.helpers.imagenet import CLASSES
from tests.helpers.processes import run_ranks
from tests.helpers.runs import refused, train
from train.analysis import FILES, confused_pairs, confusion_matrix, image_at
from train.config import TrainConfig
from train.predictions import Collector
from train.process import Process
from train.sheet import fitted
from train.world import World


@pytest.fixture
def best(dataset: Path, tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "run" / "checkpoints" / "best.pt", dataset)


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_files_say_what_the_predictions_say(
    best: Path, dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, folder = tmp_path / "new" / "p.jsonl", tmp_path / "run" / "evaluation-best"
    flags = ["--data", dataset, "--loader", "torch", "--workers", 0, "--batch-size", 5]
    result = train(*flags, "--evaluate", best, "--predictions", path, capsys=capsys)
    assert (result["predictions"], result["analysis"]) == (str(path), str(folder))
    assert sorted(file.name for file in folder.iterdir()) == sorted(FILES)
    rows = rows_of(path)
    labels = [open_split(dataset, "val").samples[index].label for index in range(19)]
    assert [row["class"] for row in rows] == [CLASSES[label] for label in labels]
    predicted = [row["top"][0]["class"] for row in rows]
    assert result["top1"] == pytest.approx(100 * np.mean([row["right"] for row in rows]))
    assert result["loss"] == pytest.approx(np.mean([row["loss"] for row in rows]), abs=1e-5)
    classes = list(csv.DictReader((folder / "classes.csv").open()))
    for number, row in enumerate(classes):
        own = [one for one in rows if one["class"] == CLASSES[number]]
        assert (row["class"], int(row["images"])) == (CLASSES[number], len(own))
        if own:
            assert float(row["top1"]) == pytest.approx(100 * np.mean([one["right"] for one in own]), abs=1e-3)
            assert float(row["top5"]) == 100
    matrix = [[*map(int, row[1:])] for row in list(csv.reader((folder / "confusion.csv").open()))[1:]]
    expected = [
        [sum(p == b and row["class"] == a for p, row in zip(predicted, rows, strict=True)) for b in CLASSES]
        for a in CLASSES
    ]
    assert matrix == expected
    pairs = list(csv.DictReader((folder / "confused_pairs.csv").open()))
    assert sum(int(pair["images"]) for pair in pairs) == sum(not row["right"] for row in rows)
    worst = max((row["loss"], index) for index, row in enumerate(rows) if not row["right"])[1]
    process = Process(TrainConfig(model="torchvision/resnet18", resolution=32), World(), CPU)
    tile = fitted(image_at(process, open_split(dataset, "val"), worst), 176)
    assert np.array_equal(np.asarray(Image.open(folder / "mistakes.png"))[80 : 80 + 176, 24 : 24 + 176], tile)


def test_two_processes_write_the_same(
    best: Path, dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--data", dataset, "--loader", "torch", "--workers", 0, "--evaluate", best]
    one, two, log = tmp_path / "one.jsonl", tmp_path / "two.jsonl", tmp_path / "log"
    train(*flags, "--predictions", one, capsys=capsys)
    shared = [*flags, "--batch-size", 5, "--predictions", two, "--run-dir", tmp_path / "there"]
    assert run_ranks(2, shared, log) == [0, 0], log.read_text()
    for left, right in zip(rows_of(one), rows_of(two), strict=True):
        assert (left["image"], left["class"]) == (right["image"], right["class"])
        logits = [sorted((best["class"], best["logit"]) for best in row["top"]) for row in (left, right)]
        assert [logit for _, logit in logits[0]] == pytest.approx([logit for _, logit in logits[1]], abs=1e-4)
    folders = tmp_path / "run" / "evaluation-best", tmp_path / "there" / "evaluation-best"
    tables = [(folder / "confusion.csv").read_text() for folder in folders]
    assert tables[0] == tables[1]


def test_outputs_of_no_class_have_columns_of_their_own() -> None:
    collector = Collector(3, CPU)
    logits = torch.tensor([[0.0, 1, 5], [3, 2, 1], [0, 4, 1]])
    collector.add(logits[1:], torch.tensor([1, 1]), torch.tensor([1, 2]))
    collector.add(logits[:1], torch.tensor([0]), torch.tensor([0]))
    predictions = collector.result(3)
    assert predictions.classes[:, 0].tolist() == [2, 0, 1]
    assert predictions.losses.tolist() == pytest.approx(
        torch.nn.functional.cross_entropy(logits, torch.tensor([0, 1, 1]), reduction="none").tolist()
    )
    assert confusion_matrix(predictions, 2).tolist() == [[0, 0, 1], [1, 1, 0]]
    assert confused_pairs(predictions) == [(0, 2, 1), (1, 0, 1)]


def test_bad_input_is_one_line(best: Path, dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--data", dataset, "--loader", "torch"]
    wrong = refused(*flags, "--predictions", "a.csv", capsys=capsys)
    assert wrong == "error: --predictions a.csv: must be with --evaluate (see --help)"
    wrong = refused(*flags, "--evaluate", best, "--predictions", tmp_path / "a.txt", capsys=capsys)
    assert wrong == f"error: --predictions {tmp_path / 'a.txt'}: must end with .csv or .jsonl"
