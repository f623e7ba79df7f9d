"""What a loader would gain from converting the data."""

from pathlib import Path

import numpy as np
import pytest

from pipeline.conversion.convert import convert
from pipeline.conversion.settings import ConvertSettings
from pipeline.storage.split import open_split
from tests.helpers.images import jpeg_bytes, photograph, write_training_images
from tools.profiling.estimate import conversion_factors

TILES, SMALLER = "convert to tiles (tools/convert_imagenet.py)", "convert with --max-side 400"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight photographs of 1600 x 2000."""
    data = jpeg_bytes(np.tile(photograph(400, 500, seed=1), (4, 4, 1)))
    return write_training_images(tmp_path_factory.mktemp("photographs"), data, 8)


@pytest.mark.measure
def test_large_photographs_gain_from_tiles_and_more_from_being_smaller(folder: Path) -> None:
    factors = conversion_factors(open_split(folder, "train"), 224)
    assert factors[TILES] > 1.2
    assert factors[SMALLER] > 4


@pytest.fixture(scope="module")
def tiled(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    dst = tmp_path_factory.mktemp("tiled") / "shards"
    convert(ConvertSettings(src=(folder,), dst=dst, splits=("train",), workers=2))
    return dst


@pytest.mark.measure
def test_tiled_photographs_still_gain_from_being_smaller(tiled: Path) -> None:
    assert conversion_factors(open_split(tiled, "train"), 224)[SMALLER] > 2


def test_conversions_that_change_the_images_are_estimated(folder: Path, tiled: Path) -> None:
    assert conversion_factors(open_split(folder, "train"), 224).keys() == {TILES, SMALLER}
    assert conversion_factors(open_split(tiled, "train"), 224).keys() == {SMALLER}


def test_raw_pixels_are_not_converted(folder: Path, tmp_path: Path) -> None:
    convert(ConvertSettings(src=(folder,), dst=tmp_path / "raw", splits=("train",), jpeg="raw", format=("ffcv",)))
    assert conversion_factors(open_split(tmp_path / "raw", "train"), 224) == {}
