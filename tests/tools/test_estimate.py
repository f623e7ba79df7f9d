"""What a loader would gain from other data."""

from pathlib import Path

import numpy as np
import pytest
from images import jpeg_bytes, photograph

from pipeline.dataset import open_split
from tools.convert_imagenet import ConvertSettings, convert
from tools.estimate import conversion_factors

TILES, SMALLER = "convert to tiles (tools/convert_imagenet.py)", "convert with --max-side 400"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight photographs of 1600 x 2000."""
    root = tmp_path_factory.mktemp("photographs")
    data = jpeg_bytes(np.tile(photograph(400, 500, seed=1), (4, 4, 1)))
    for number in range(8):
        path = root / "train" / f"n0000000{number % 2}" / f"{number}.JPEG"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return root


def test_large_photographs_gain_from_tiles_and_more_from_being_smaller(folder: Path) -> None:
    factors = conversion_factors(open_split(folder, "train"), 224)
    assert factors[TILES] > 1.2
    assert factors[SMALLER] > 4


def test_tiled_images_gain_nothing_from_tiles(folder: Path, tmp_path: Path) -> None:
    convert(ConvertSettings(src=(folder,), dst=tmp_path / "tiled", splits=("train",), workers=2))
    factors = conversion_factors(open_split(tmp_path / "tiled", "train"), 224)
    assert TILES not in factors
    assert factors[SMALLER] > 2


def test_raw_pixels_have_nothing_to_convert(folder: Path, tmp_path: Path) -> None:
    convert(ConvertSettings(src=(folder,), dst=tmp_path / "raw", splits=("train",), jpeg="raw", format=("ffcv",)))
    assert conversion_factors(open_split(tmp_path / "raw", "train"), 224) == {}
