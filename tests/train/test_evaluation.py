"""Evaluation counts every image once and gives the same accuracy, however many processes share it."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from processes import run_ranks
from test_run import SMALL, train


@pytest.fixture
def two_images(imagenet_folder: Path, tmp_path: Path) -> Path:
    """An ImageNet folder with a validation image in each of two classes."""
    root = tmp_path / "folder"
    root.mkdir()
    (root / "train").symlink_to(imagenet_folder / "train")
    for number, wnid in enumerate(("n00000001", "n00000003"), 1):
        (root / "val" / wnid).mkdir(parents=True)
        shutil.copy(imagenet_folder / "val" / f"ILSVRC2012_val_{number:08d}.JPEG", root / "val" / wnid)
    return root


def test_one_two_and_three_ranks_agree(
    dataset: Path, two_images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common, log = [*SMALL, "--loader", "torch"], tmp_path / "log"
    trained = train("--data", dataset, *common, "--epochs", 1, "--run-dir", tmp_path / "run", capsys=capsys)
    evaluation = [*common, "--evaluate", tmp_path / "run" / "checkpoints" / "best.pt"]

    def shared(size: int, *flags: object) -> dict[str, Any]:
        log.unlink(missing_ok=True)
        assert run_ranks(size, [*evaluation, *flags], log) == size * [0], log.read_text()
        return json.loads(log.read_text().splitlines()[-1])["result"]

    for size, batch_size in ((2, 5), (3, 4)):
        spread = shared(size, "--data", dataset, "--batch-size", batch_size)
        assert [spread[key] for key in ("top1", "top5", "evaluated")] == [trained["top1"], trained["top5"], 19]
        assert spread["loss"] == pytest.approx(trained["loss"], rel=1e-4)
    # More ranks than images.
    alone = train("--data", two_images, *evaluation, capsys=capsys)
    spread = shared(3, "--data", two_images)
    assert alone["evaluated"] == spread["evaluated"] == 2
    assert alone["top1"] == spread["top1"]
