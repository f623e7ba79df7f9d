"""Verification finds images that cannot be used."""

import shutil
from pathlib import Path

import pytest
from PIL import Image

from pipeline.conversion.convert import convert
from pipeline.conversion.settings import ConvertSettings
from tests.helpers.damage import record_wrong_size, truncate, write_dataset
from tests.helpers.images import jpeg_bytes, photograph
from tests.helpers.verification import Verify


@pytest.fixture
def with_bad_image(imagenet_folder: Path, tmp_path: Path) -> Path:
    """A dataset with a truncated validation image, which `--jpeg keep --no-verify` accepts."""
    src = shutil.copytree(imagenet_folder, tmp_path / "imagenet")
    bad = src / "val" / "ILSVRC2012_val_00000008.JPEG"
    truncate(bad, bad.stat().st_size // 2)
    labels = src / "val_labels.txt"
    convert(ConvertSettings(src=(src,), dst=tmp_path / "bad", val_labels=labels, jpeg="keep", verify=False))
    return tmp_path / "bad"


def test_full_finds_a_truncated_image(with_bad_image: Path, verified: Verify) -> None:
    assert verified(with_bad_image, "--sample", 0).code == 0
    done = verified(with_bad_image, "--full")
    assert done.code == 2
    (line,) = done.bad
    assert "val-000000.tar: 000000_000007_ILSVRC2012_val_00000008: cannot be used (" in line


def enlarged(jpeg: bytes) -> bytes:
    """A JPEG whose header claims 60000x60000 pixels."""
    at = jpeg.index(b"\xff\xc0") + 5
    return jpeg[:at] + (60_000).to_bytes(2, "big") * 2 + jpeg[at + 4 :]


def test_images_that_no_conversion_accepts_are_found(tmp_path: Path, verified: Verify) -> None:
    image = photograph(40, 50, 1)
    good = jpeg_bytes(image)
    write_dataset(tmp_path, [good, jpeg_bytes(image, "CMYK"), enlarged(good), b"", good[:-200], b"GIF89a"])
    done = verified(tmp_path, "--images", 6, "--contact-sheet", tmp_path / "sheet.png")
    messages = [line.partition(": 000000_")[2] for line in done.bad]
    assert messages[:3] == [
        "000001_x: cannot be used (a kind of JPEG that not every decoder reads)",
        "000002_x: cannot be used (60000x60000 pixels; at most 134217728 are allowed)",
        "000003_x: cannot be used (not a JPEG (it does not begin with FF D8))",
    ]
    assert [line[:25] for line in messages[3:]] == ["000004_x: cannot be used ", "000005_x: cannot be used "]
    assert f": 5 problems, listed above ({tmp_path / 'sheet.png'} shows" in done.error


def test_a_wrong_recorded_size_is_found(dataset_copy: Path, verified: Verify) -> None:
    record_wrong_size(dataset_copy)
    (line,) = verified(dataset_copy, "--full").bad
    assert line.startswith(f"bad: {dataset_copy / 'ffcv/val.beton'}: sample 3: cannot be used (")
    assert "pixels, recorded as" in line


def test_the_sheet_is_drawn_despite_problems(with_bad_image: Path, tmp_path: Path, verified: Verify) -> None:
    sheet = tmp_path / "sheet.png"
    done = verified(with_bad_image, "--sample", 0, "--images", 66, "--contact-sheet", sheet)
    assert (done.code, len(done.bad)) == (2, 1)
    assert f"({sheet} shows the images that can be read)" in done.error
    with Image.open(sheet) as image:
        assert image.width > 1000
