"""Every file of a source is converted or counted, and training from the folder sees the same images."""

import io
import logging
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline import loaders
from pipeline.contract import LoaderSpec
from pipeline.conversion.convert import convert
from pipeline.conversion.settings import ConvertSettings
from pipeline.errors import InputError
from pipeline.order.crops import CropPolicy
from pipeline.storage.split import open_split
from tests.helpers.conversions import report_of, stems_in
from tests.helpers.images import decoded, jpeg_bytes, photograph
from tests.helpers.odd_images import ODD_IMAGES, PHOTO, saved

SUFFIXES = {"GIF": "gif", "animated GIF": "GIF", "WebP": "webp", "animated WebP": "webp", "BMP": "bmp", "TIFF": "tif"}
CLASSES = ("birds", "cats", "dogs")


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """Three classes with a JPEG and every odd image, some in nested folders, and what systems leave behind."""
    root = tmp_path / "mixed"
    for number, name in enumerate(CLASSES):
        folder = root / "train" / name
        (folder / "session 1" / "raw").mkdir(parents=True)
        (folder / "photo.jpg").write_bytes(jpeg_bytes(photograph(40, 50, seed=number)))
        (folder / "session 1" / "photo.jpg").write_bytes(jpeg_bytes(photograph(41, 50, seed=number)))
        (folder / "session 1" / "raw" / "GIF named.jpg").write_bytes(ODD_IMAGES["GIF"])
        for kind, data in ODD_IMAGES.items():
            (folder / f"{kind}.{SUFFIXES.get(kind, 'png' if 'PNG' in kind else 'jpg')}").write_bytes(data)
        for stray in (".DS_Store", "Thumbs.db", "._photo.jpg", "labels.txt"):
            (folder / stray).write_bytes(b"stray")
    (root / "train" / "cover.png").write_bytes(ODD_IMAGES["PNG"])
    (root / "train" / "@eaDir").mkdir()
    return root


PASSED_OVER = {
    "images outside class folders": 1,
    "folder @eaDir": 1,
    ".DS_Store": 3,
    "Thumbs.db": 3,
    "._*": 3,
    ".txt": 3,
}


def test_every_file_is_converted_or_counted(mixed: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        result = convert(ConvertSettings(src=(mixed,), dst=tmp_path / "dst", splits=("train",)))
    images = len(CLASSES) * (3 + len(ODD_IMAGES))
    assert (result["train"], result["bad"], result["reencoded"]) == (images, 0, images - 2 * len(CLASSES))
    report = report_of(tmp_path / "dst")
    assert report["passed_over"] == {"train": PASSED_OVER}
    assert sum(PASSED_OVER.values()) + images == sum(path.is_file() for path in mixed.rglob("*")) + 1, "and a folder"
    (line,) = (message for message in caplog.messages if "passed over" in message)
    assert line.startswith("train: 14 files passed over: 3 .DS_Store, 3 ._*, 3 .txt, 3 Thumbs.db, 1 folder @eaDir")
    odd = {entry["odd"] for entry in report["images"]}
    assert {"a PNG file", "a GIF file", "a GIF file (first frame)", "a WEBP file", "a WEBP file (first frame)"} < odd
    assert {"a BMP file", "a TIFF file", "a PPM file", "stray bytes between header segments"} < odd


def test_training_from_the_folder_sees_the_images_and_pixels_of_the_conversion(mixed: Path, tmp_path: Path) -> None:
    convert(ConvertSettings(src=(mixed,), dst=tmp_path / "dst", splits=("train",), jpeg="keep"))
    folder, converted = open_split(mixed, "train"), open_split(tmp_path / "dst", "train")
    assert folder.classes == converted.classes == CLASSES
    assert folder.num_samples == converted.num_samples
    names = [Path(folder.samples.name(index)).stem.replace(" ", "_") for index in range(folder.num_samples)]
    in_folder = [(name, folder.samples[index]) for index, name in enumerate(names)]
    assert in_folder == [
        (name, converted.samples[index]) for index, name in enumerate(stems_in(tmp_path / "dst", "train"))
    ]
    order, passed_over, slow = folder.remarks
    assert order == "classes: 3, sorted by name: birds, cats, dogs"
    assert passed_over.startswith("train: 14 files passed over: ")
    assert slow.startswith("train: 30 files are not JPEGs; ")


@pytest.mark.parametrize("name", [name for name in loaders.names() if "folder" in loaders.facts(name).reads])
def test_every_loader_of_folders_reads_every_format(mixed: Path, name: str) -> None:
    try:
        loaders.load(name)
    except InputError as error:
        pytest.skip(str(error))
    split = open_split(mixed, "train")
    spec = LoaderSpec(split=split, batch_size=48, crop=CropPolicy(training=False), max_resolution=32, workers=1)
    loader = loaders.create(name, spec)
    try:
        (batch,) = loader.epoch(0, 32)
    finally:
        loader.close()
    assert batch.labels.tolist() == [CLASSES.index(class_of(split.samples.name(index), mixed)) for index in range(48)]
    assert batch.labels.bincount().tolist() == [16, 16, 16]
    odd = [index for index in range(48) if np.array_equal(decoded(split.samples[index].jpeg).shape, PHOTO.shape)]
    images = batch.images[odd].float()
    assert len(odd) == 3 * (len(ODD_IMAGES) + 1)
    assert (images - images[0]).abs().mean() < 6, "they all show one photograph"


def class_of(path: str, root: Path) -> str:
    """The class folder of a training image."""
    return Path(path).relative_to(root / "train").parts[0]


def test_png_folder_is_trained_on_with_the_loader_that_auto_picks(tmp_path: Path) -> None:
    for name in CLASSES:
        (tmp_path / "train" / name).mkdir(parents=True)
        (tmp_path / "train" / name / "a.png").write_bytes(ODD_IMAGES["16-bit PNG"])
    split = open_split(tmp_path, "train")
    name, _ = loaders.choose(split)
    spec = LoaderSpec(split=split, batch_size=3, crop=CropPolicy(training=False), max_resolution=32, workers=1)
    loader = loaders.create(name, spec)
    try:
        (batch,) = loader.epoch(0, 32)
    finally:
        loader.close()
    assert sorted(batch.labels.tolist()) == [0, 1, 2]


@pytest.mark.parametrize(
    ("name", "kind"), [("a.apng", "PNG"), ("a.J2K", "JPEG2000"), ("a.jpf", "JPEG2000"), ("a.mpo", "MPO")]
)
def test_other_suffixes_of_these_formats_are_images(tmp_path: Path, name: str, kind: str) -> None:
    path = tmp_path / "src" / "train" / "a" / name
    path.parent.mkdir(parents=True)
    path.write_bytes(saved(Image.fromarray(PHOTO), kind))
    convert(ConvertSettings(src=(tmp_path / "src",), dst=tmp_path / "dst", splits=("train",), jpeg="keep"))
    for location in (tmp_path / "src", tmp_path / "dst"):
        pixels = decoded(open_split(location, "train").samples[0].jpeg)
        assert np.abs(pixels.astype(float) - PHOTO).mean() < 12


def test_16_bit_grey_keeps_its_range_in_folders(tmp_path: Path) -> None:
    """torchvision's decoder would return other values."""
    ramp = np.linspace(0, 65535, 64 * 64).reshape(64, 64).astype(np.uint16)
    (tmp_path / "train" / "a").mkdir(parents=True)
    file = io.BytesIO()
    Image.fromarray(ramp).save(file, "PNG")
    (tmp_path / "train" / "a" / "ramp.png").write_bytes(file.getvalue())
    grey = decoded(open_split(tmp_path, "train").samples[0].jpeg)[:, :, 0]
    assert np.abs(grey.astype(float) - ramp / 257).mean() < 1


def test_file_that_cannot_be_decoded_is_named_in_training(tmp_path: Path) -> None:
    path = tmp_path / "train" / "a" / "b.png"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"404 not found")
    with pytest.raises(InputError, match=f"^{path}: not an image; remove or replace it$"):
        open_split(tmp_path, "train").samples[0]
