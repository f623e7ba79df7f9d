"""tools/predict.py: its logits are those of an evaluation, whatever form they are written in."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.cli import run_command
from tests.helpers.finished import write_checkpoint
from tests.helpers.imagenet import CLASSES
from tests.helpers.runs import train
from tools.prediction.predict import PredictSettings, predict


@pytest.fixture(scope="module")
def best(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("run") / "checkpoints" / "best.pt", dataset)


def predicted(*words: object) -> int:
    return run_command(predict, PredictSettings, [*map(str, words), "--workers", "2", "--device", "cpu"])


def json_rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def logits_of(row: dict[str, Any]) -> list[float]:
    return [one["logit"] for one in sorted(row["top"], key=lambda one: CLASSES.index(one["class"]))]


@pytest.mark.parametrize("flip", [(), ("--val-flip",)], ids=["plain", "flipped"])
def test_logits_are_those_of_an_evaluation(
    best: Path, dataset: Path, imagenet_folder: Path, tmp_path: Path, flip: tuple[str, ...],
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    flags = ["--data", dataset, "--loader", "torch", "--workers", 0, "--no-analyse", *flip]
    train(*flags, "--evaluate", best, "--predictions", tmp_path / "evaluated.jsonl", capsys=capsys)
    assert predicted(best, imagenet_folder / "val", "--out", tmp_path / "predicted.jsonl", *flip) == 0
    evaluated = {row["image"].partition("ILSVRC")[2]: row for row in json_rows(tmp_path / "evaluated.jsonl")}
    rows = json_rows(tmp_path / "predicted.jsonl")
    assert len(rows) == len(evaluated) == 19
    for row in rows:
        same = evaluated[Path(row["image"]).stem.partition("ILSVRC")[2]]
        assert logits_of(row) == pytest.approx(logits_of(same), abs=1e-5)
        assert sum(one["probability"] for one in row["top"]) == pytest.approx(1, abs=1e-5)
        assert [one["logit"] for one in row["top"]] == sorted(logits_of(row), reverse=True)


def test_a_table_csv_and_json_lines_say_the_same(
    best: Path, imagenet_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = sorted((imagenet_folder / "val").iterdir())[:2]
    shown = {}
    for form in ("table", "csv", "jsonl"):
        assert predicted(best, *images, "--top", 2, "--format", form) == 0
        shown[form] = capsys.readouterr().out
    rows = [json.loads(line) for line in shown["jsonl"].splitlines()]
    flat = list(csv.DictReader(shown["csv"].splitlines()))
    assert [row["image"] for row in rows] == [row["image"] for row in flat] == [*map(str, images)]
    for row, one in zip(rows, flat, strict=True):
        assert [one["class1"], one["class2"]] == [best["class"] for best in row["top"]]
        assert float(one["logit2"]) == row["top"][1]["logit"]
    lines = shown["table"].splitlines()
    assert lines[0] == str(images[0])
    assert lines[1].split() == [f"{100 * rows[0]['top'][0]['probability']:.2f}", "%", rows[0]["top"][0]["class"]]
    assert json.loads(lines[-1])["result"] == {"images": 2, "weights": "model"}


def test_the_sheet_shows_the_images_as_the_model_sees_them(
    best: Path, imagenet_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sheet = tmp_path / "sheet.png"
    assert predicted(best, imagenet_folder / "val", "--sheet", sheet, "--sheet-images", 3, "--val-crop", 176) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["result"]["sheet"] == str(sheet)
    picture = np.asarray(Image.open(sheet).convert("RGB"))
    assert picture.shape[1] == 2 * 24 + 3 * (176 + 12) - 12
    corners = [picture[80 : 80 + 176, left : left + 176] for left in (24, 24 + 188, 24 + 2 * 188)]
    assert all(corner.std() > 5 for corner in corners)
    assert not np.array_equal(corners[0], corners[1])


def test_weights_from_elsewhere_need_a_model_and_have_imagenets_names(
    imagenet_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights, image = tmp_path / "squeezenet.pth", next((imagenet_folder / "val").iterdir())
    import torchvision

    torch.manual_seed(1)
    torch.save(torchvision.models.squeezenet1_1(num_classes=1000).state_dict(), weights)
    assert predicted(weights, image) == 2
    reason = "a file of weights, which does not say of which model; give --model"
    assert capsys.readouterr().err.splitlines()[-1] == f"error: {weights}: {reason}"
    assert predicted(weights, image, "--model", "squeezenet1_1", "--format", "jsonl") == 0
    best = json.loads(capsys.readouterr().out)["top"][0]
    categories = torchvision.models.SqueezeNet1_1_Weights.DEFAULT.meta["categories"]
    assert best["name"] in categories
    assert best["class"].startswith("n")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("missing.jpg",), "error: missing.jpg: no such file or folder"),
        ((".", "--out", "a.txt"), "error: --out a.txt: must end with .csv or .jsonl"),
        ((".", "--out", "a.csv", "--format", "csv"), "error: --format csv: is for stdout; with --out, the file's name"),
        ((".", "--top", 0), "error: --top 0: must be at least 1"),
        ((".",), "error: .: no images in this folder"),
        (("broken.jpg",), "error: ./broken.jpg: "),
        (("image", "--model", "alexnet"), "a checkpoint of pyramidnet, not of --model alexnet"),
        (("image", "--model", "nonsense"), "error: --model nonsense: unknown"),
    ],
)
def test_bad_input_is_one_line(
    best: Path, imagenet_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[object, ...],
    message: str, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    image = next((imagenet_folder / "val").iterdir())
    if words[0] == "broken.jpg":
        Path("broken.jpg").write_bytes(image.read_bytes()[:40])
    assert predicted(best, *(image if word == "image" else word for word in words)) == 2
    assert message in capsys.readouterr().err.splitlines()[-1]
