"""Evaluation counts every image once and gives the same accuracy, however many processes share it."""

import shutil
from pathlib import Path

import pytest
from test_run import SMALL, result_of, start, train


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
    common = [*SMALL, "--loader", "torch"]
    trained = train("--data", dataset, *common, "--epochs", 1, "--run-dir", tmp_path / "run", capsys=capsys)
    evaluation = [*common, "--evaluate", tmp_path / "run" / "checkpoints" / "best.pt"]
    for nproc, batch_size in ((2, 5), (3, 4)):
        spread = result_of(start("--data", dataset, *evaluation, "--nproc", nproc, "--batch-size", batch_size))
        assert [spread[key] for key in ("top1", "top5", "evaluated")] == [trained["top1"], trained["top5"], 19]
        assert spread["loss"] == pytest.approx(trained["loss"], rel=1e-4)
    # More ranks than images.
    alone = train("--data", two_images, *evaluation, capsys=capsys)
    spread = result_of(start("--data", two_images, *evaluation, "--nproc", 3))
    assert alone["evaluated"] == spread["evaluated"] == 2
    assert alone["top1"] == spread["top1"]
