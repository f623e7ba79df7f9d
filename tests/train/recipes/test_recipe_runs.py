"""Each recipe runs for some steps, with its own model and small images."""

from pathlib import Path

import pytest

from tests.helpers.runs import train

SMALL_IMAGES = ["--resolution", 32, "--val-crop", 32, "--val-resize", 36, "--workers", 1]
RUNS: dict[str, list[object]] = {
    "torchvision-v1": [],
    "torchvision-v2": ["--batch-size", 8],
    "torchvision-v2-resnet152": ["--batch-size", 2],
    "timm-a1": [],
    "timm-a2": [],
    "timm-a3": [],
    "ffcv-rn50-16": ["--progressive-resize", "0:32", "1-2:64"],
    "ffcv-rn18-16": ["--progressive-resize", "0:32", "1-2:64"],
    "deit-s": ["--model-kwargs", "img_size=32", "drop_path_rate=0.1", "--lr", 0.001],
    "convnext-t": ["--accumulate", 1],
}
"""The others differ from these in numbers of epochs alone."""


@pytest.mark.parametrize("name", RUNS)
@pytest.mark.usefixtures("one_thread")
def test_a_recipe_starts_with_one_flag(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    flags = ["--data", dataset, "--recipe", name, "--loader", "torch", *SMALL_IMAGES, "--batch-size", 6, *RUNS[name]]
    result = train(*flags, "--performance", 2, "--run-dir", tmp_path / "run", capsys=capsys)
    assert result["images_per_s"] > 0
