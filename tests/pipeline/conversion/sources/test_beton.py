"""Files of FFCV's own writer, in each of its modes."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.conversion.convert import convert
from pipeline.conversion.settings import ConvertSettings
from pipeline.errors import InputError
from pipeline.storage.beton import FIELD, HEADER
from pipeline.storage.manifest import Manifest
from pipeline.storage.split import open_split
from tests.helpers.conversions import report_of
from tests.helpers.foreign_forms import Pictures, rows_of, write_ffcv
from tests.helpers.images import decoded
from tests.helpers.sources import assert_one_line, class_file, opened

pytest.importorskip("ffcv")

MODES: dict[str, dict[str, Any]] = {
    "jpg": {"write_mode": "jpg"},
    "raw": {"write_mode": "raw"},
    "smart": {"write_mode": "smart", "smart_threshold": 60_000},
    "proportion": {"write_mode": "proportion", "compress_probability": 0.5},
}


@pytest.fixture(scope="module")
def files(imagenet_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for each mode, with a file of 16 training images."""
    root = tmp_path_factory.mktemp("ffcv")
    for name, options in MODES.items():
        write_ffcv(root / name / "train_400_0.5_90.ffcv", rows_of(imagenet_folder, "train")[:16], **options)
    return root


@pytest.mark.parametrize("mode", MODES)
def test_pixels_and_labels_are_those_that_were_written(imagenet_folder: Path, files: Path, mode: str) -> None:
    rows = rows_of(imagenet_folder, "train")[:16]
    images = opened(files / mode, splits=["train"]).splits["train"]
    raw = 0
    for index in range(16):
        number = int(images.names[index].removeprefix("sample-"))
        pixels, label = Pictures(rows)[number]
        data = images.read(index)
        assert images.labels[index] == label
        difference = np.abs(decoded(data).astype(int) - pixels)
        assert decoded(data).shape == pixels.shape
        raw += not data.startswith(b"\xff\xd8")
        assert (difference == 0).all() if data.startswith(b"P6") else difference.mean() < 6
    assert {"jpg": raw == 0, "raw": raw == 16}.get(mode, 0 < raw < 16)


def test_raw_pixels_are_converted_to_raw_pixels_and_to_jpegs(files: Path, tmp_path: Path) -> None:
    names = class_file(tmp_path / "classes.txt", "n00000001", "n00000002", "n00000003", "n00000004")
    flags: dict[str, Any] = {"src": (files / "raw",), "splits": ("train",), "classes": names}
    convert(ConvertSettings(dst=tmp_path / "raw", jpeg="raw", format=("ffcv",), **flags))
    convert(ConvertSettings(dst=tmp_path / "tiles", **flags))
    raw, tiles = (open_split(tmp_path / name, "train") for name in ("raw", "tiles"))
    assert raw.classes == ("n00000001", "n00000002", "n00000003", "n00000004")
    for index in range(16):
        height, width = (int(raw.beton.metadata["f0"][side][index]) for side in ("height", "width"))
        pixels = np.frombuffer(raw.beton.read(index), np.uint8).reshape(height, width, 3)
        assert np.abs(decoded(tiles.samples[index].jpeg).astype(int) - pixels).mean() < 3
    assert {entry["odd"] for entry in report_of(tmp_path / "tiles")["images"]} == {"a PPM file"}


def test_own_file_keeps_its_classes(imagenet_folder: Path, dataset: Path, tmp_path: Path) -> None:
    (tmp_path / "own" / "ffcv").mkdir(parents=True)
    for name in ("ffcv/train.beton", "ffcv/val.beton", "dataset.json"):
        os.link(dataset / name, tmp_path / "own" / name)
    source = opened(tmp_path / "own")
    assert source.classes == Manifest.read(dataset).classes
    stored = open_split(dataset, "train").samples
    images = source.splits["train"]
    for index in range(len(images)):
        number = int(images.names[index].removeprefix("sample-"))
        assert (images.read(index), images.labels[index]) == stored[number]


def test_fields_are_found_by_type_or_name(imagenet_folder: Path, tmp_path: Path) -> None:
    from ffcv.fields import FloatField, IntField, JSONField, NDArrayField, RGBImageField
    from ffcv.writer import DatasetWriter

    rows = rows_of(imagenet_folder, "train")[:4]

    class Wide(Pictures):
        def __getitem__(self, index: int) -> Any:
            pixels, label = super().__getitem__(index)
            return 0.5, {"a": int(index)}, int(index) + 100, np.arange(3), label, pixels

    fields = {
        "weight": FloatField(),
        "note": JSONField(),
        "index": IntField(),
        "array": NDArrayField(np.dtype(np.int64), (3,)),
        "label": IntField(),
        "picture": RGBImageField(write_mode="raw"),
    }
    DatasetWriter(str(tmp_path / "train.beton"), fields, num_workers=1).from_indexed_dataset(Wide(rows))
    images = opened(tmp_path, splits=["train"]).splits["train"]
    for index in range(4):
        pixels, label = Pictures(rows)[int(images.names[index].removeprefix("sample-"))]
        assert images.labels[index] == label
        assert (decoded(images.read(index)) == pixels).all()


# --- what is refused


def _field(number: int, name: str, value: Any) -> Callable[[bytearray], None]:
    def change(data: bytearray) -> None:
        fields = np.frombuffer(data, FIELD, 2, HEADER.itemsize)
        fields[number][name] = value

    return change


def _rows(data: bytearray, offset: int, value: bytes) -> None:
    at = HEADER.itemsize + 2 * FIELD.itemsize + offset
    data[at : at + len(value)] = value


CHANGES: dict[str, tuple[Callable[[bytearray], object], str]] = {
    "own field": (_field(0, "type_id", 255), "its field image is not one of FFCV's own"),
    "no label": (_field(1, "type_id", 0), "has no field that may be the label, in image, label"),
    "no image": (_field(0, "type_id", 5), "has no field that may be the image"),
    "mode": (lambda data: _rows(data, 0, b"\7"), "has images that are neither JPEGs nor pixels"),
    "size": (lambda data: _rows(data, 1, b"\1\0"), "has images that are neither JPEGs nor pixels"),
    "address": (lambda data: _rows(data, 5, b"\1"), "its table lacks some images: truncated or damaged"),
    "label": (lambda data: _rows(data, 16, b"\xff" * 8), "sample-0 has the label -1, which is no class"),
}


@pytest.mark.parametrize(("change", "message"), CHANGES.values(), ids=CHANGES.keys())
def test_what_cannot_be_read_is_named(
    files: Path, tmp_path: Path, change: Callable[[bytearray], object], message: str
) -> None:
    data = bytearray((files / "raw" / "train_400_0.5_90.ffcv").read_bytes())
    change(data)
    path = tmp_path / "train.beton"
    path.write_bytes(data)
    with pytest.raises(InputError) as raised:
        opened(path, splits=["train"])
    assert_one_line(raised.value, path, message)


def test_truncated_file_is_named(files: Path, tmp_path: Path) -> None:
    data = (files / "raw" / "train_400_0.5_90.ffcv").read_bytes()
    path = tmp_path / "train.beton"
    for missing in (1, 24, 24 * 8):
        path.write_bytes(data[:-missing])
        with pytest.raises(InputError) as raised:
            opened(path, splits=["train"])
        assert_one_line(raised.value, path)
