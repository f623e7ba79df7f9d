"""Opening a split of a dataset directory or of a plain folder."""

import os
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.conversion.convert import convert
from pipeline.conversion.settings import ConvertSettings
from pipeline.errors import InputError
from pipeline.storage.beton import MODE_RAW
from pipeline.storage.manifest import MANIFEST
from pipeline.storage.split import open_split
from tests.helpers.foreign_forms import hugging_face, tfrecords
from tests.helpers.imagenet_forms import shards
from tests.helpers.manifests import change_manifest

COUNTS = {"train": 47, "val": 19}


def test_both_storages_hold_the_same_samples(dataset: Path) -> None:
    for name, count in COUNTS.items():
        split = open_split(dataset, name)
        assert split.formats == ("webdataset", "ffcv")
        assert split.num_samples == len(split.shards) == len(split.beton) == count
        assert [split.shards[index] for index in range(count)] == [split.beton[index] for index in range(count)]


def test_samples_come_from_the_beton_if_there_are_no_shards(dataset_copy: Path) -> None:
    with_shards = open_split(dataset_copy, "val")
    change_manifest(dataset_copy, lambda fields: fields["splits"]["val"].update(shards=[]))
    split = open_split(dataset_copy, "val")
    assert split.formats == ("ffcv",)
    assert split.samples is split.beton
    assert split.samples[3] == with_shards.shards[3]


@pytest.mark.parametrize(
    ("jpeg", "storage"),
    [("tile", "ffcv"), ("keep", "ffcv"), ("reencode", "ffcv"), ("raw", "ffcv-raw"), ("proportion", "ffcv-raw")],
)
def test_formats_show_whether_there_are_pixels(imagenet_folder: Path, tmp_path: Path, jpeg: str, storage: str) -> None:
    settings = {"src": (imagenet_folder,), "dst": tmp_path / "dst", "splits": ("train",), "format": ("ffcv",)}
    max_side = None if jpeg == "keep" else 64
    convert(ConvertSettings(**settings, jpeg=jpeg, max_side=max_side))  # type: ignore[arg-type]
    split = open_split(tmp_path / "dst", "train")
    assert split.formats == (storage,)
    assert split.info is not None
    assert split.info.image_mode == jpeg
    assert (MODE_RAW in split.beton.metadata["f0"]["mode"]) == (storage == "ffcv-raw")


def test_class_folders_are_opened_without_conversion(imagenet_folder: Path) -> None:
    split = open_split(imagenet_folder, "train")
    assert split.formats == ("folder",)
    assert split.classes == ("n00000001", "n00000002", "n00000003", "n00000004")
    assert split.num_samples == COUNTS["train"]
    for index in range(COUNTS["train"]):
        jpeg, label = split.samples[index]
        path = Path(split.samples.name(index))
        assert path.read_bytes() == jpeg
        assert split.classes[label] == path.parent.name


def test_classes_of_a_validation_folder_are_those_of_training(imagenet_folder: Path, tmp_path: Path) -> None:
    """A class may be missing from validation; the others keep their indices."""
    shutil.copytree(imagenet_folder / "train", tmp_path / "train")
    shutil.copytree(imagenet_folder / "train" / "n00000003", tmp_path / "val" / "n00000003")
    split = open_split(tmp_path, "val")
    assert len(split.classes) == 4
    assert {split.samples[index].label for index in range(split.num_samples)} == {2}


def test_other_files_in_a_plain_folder_are_ignored(imagenet_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(imagenet_folder / "train", tmp_path / "train")
    for stray in (".hidden.JPEG", "README.txt", "n00000001.tar"):
        (tmp_path / "train" / "n00000001" / stray).write_text("stray")
    (tmp_path / "train" / "files.txt").write_text("stray")
    assert open_split(tmp_path, "train").num_samples == COUNTS["train"]


def test_missing_directory_says_how_to_get_data(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=rf"--data {tmp_path}/none: no such directory; make it with .* `make demo`"):
        open_split(tmp_path / "none", "train")


def test_directory_without_dataset_json_and_folders_is_refused(dataset_copy: Path) -> None:
    (dataset_copy / MANIFEST).unlink()
    with pytest.raises(InputError, match=r"neither a converted dataset \(dataset\.json\) nor a folder with train/"):
        open_split(dataset_copy, "train")


def test_flat_validation_folder_is_refused(imagenet_folder: Path) -> None:
    with pytest.raises(InputError, match=r"val: no class folders; the images get their labels when they are converted"):
        open_split(imagenet_folder, "val")


def test_empty_class_folder_is_named(imagenet_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(imagenet_folder / "train", tmp_path / "train")
    (tmp_path / "train" / "n00000009").mkdir()
    with pytest.raises(InputError, match=r"train/n00000009: no images in this class folder"):
        _ = open_split(tmp_path, "train").num_samples


def test_split_that_was_not_converted_is_refused(dataset: Path) -> None:
    with pytest.raises(InputError, match="has no split 'test', only train, val"):
        open_split(dataset, "test")


@pytest.mark.parametrize(
    ("storage", "field", "flag"), [("shards", [], "--format webdataset"), ("beton", None, "--format ffcv")]
)
def test_storage_that_was_not_converted_is_named(dataset_copy: Path, storage: str, field: Any, flag: str) -> None:
    change_manifest(dataset_copy, lambda fields: fields["splits"]["train"].update({storage: field}))
    with pytest.raises(InputError, match=f"has no .* of train; convert with .*{flag}"):
        getattr(open_split(dataset_copy, "train"), storage)


@pytest.mark.parametrize("storage", ["shards", "beton"])
def test_plain_folder_has_no_converted_storage(imagenet_folder: Path, storage: str) -> None:
    with pytest.raises(InputError, match="has no"):
        getattr(open_split(imagenet_folder, "train"), storage)


FILES = {"shards": "webdataset/train-000001.tar", "beton": "ffcv/train.beton"}


@pytest.mark.parametrize("storage", FILES)
def test_missing_file_is_named(dataset_copy: Path, storage: str) -> None:
    (dataset_copy / FILES[storage]).unlink()
    with pytest.raises(InputError, match=f"{dataset_copy / FILES[storage]}: .*No such file"):
        getattr(open_split(dataset_copy, "train"), storage)


@pytest.mark.parametrize("storage", FILES)
@pytest.mark.parametrize("change_of_size", [-1, -1000, 1])
def test_file_of_another_size_is_named(dataset_copy: Path, storage: str, change_of_size: int) -> None:
    path = dataset_copy / FILES[storage]
    os.truncate(path, path.stat().st_size + change_of_size)
    with pytest.raises(InputError, match=f"{path}: .*convert again"):
        getattr(open_split(dataset_copy, "train"), storage)


def test_missing_index_is_named(dataset_copy: Path) -> None:
    (dataset_copy / "webdataset" / "train-000001.idx").unlink()
    with pytest.raises(InputError, match=r"train-000001\.idx: cannot be read"):
        _ = open_split(dataset_copy, "train").shards


def test_beton_of_the_other_split_is_refused(dataset_copy: Path) -> None:
    shutil.copy(dataset_copy / "ffcv/val.beton", dataset_copy / "ffcv/train.beton")
    with pytest.raises(InputError, match=r"ffcv/train\.beton: 19 samples, not 47"):
        _ = open_split(dataset_copy, "train").beton


@pytest.mark.parametrize("at", [4, 2106 + 24 * 20 + 1, -1])
def test_a_head_altered_since_the_conversion_is_refused(dataset_copy: Path, at: int) -> None:
    """In the page size, the width of image 20, and the padding: only the digest shows it."""
    split = open_split(dataset_copy, "train")
    assert split.info is not None
    assert split.info.beton is not None
    data = bytearray(split.beton_path.read_bytes())
    data[at % split.info.beton.extents[0].bytes] ^= 1
    split.beton_path.write_bytes(data)
    with pytest.raises(InputError, match=r"ffcv/train\.beton: altered since it was converted; convert again"):
        _ = open_split(dataset_copy, "train").beton


def test_beton_of_other_classes_is_refused(dataset_copy: Path) -> None:
    change_manifest(dataset_copy, lambda fields: fields.update(classes=["n1", "n2", "n3", "n4"]))
    with pytest.raises(InputError, match=r"ffcv/train\.beton: belongs to another class list"):
        _ = open_split(dataset_copy, "train").beton


def _zip_of_folders(imagenet: Path, root: Path) -> list[Path]:
    return [Path(shutil.make_archive(str(root / "imagenet"), "zip", imagenet, "train"))]


UNCONVERTED = {
    "Parquet files": hugging_face,
    "TFRecords": tfrecords,
    "tar archives": shards,
    "zip archives": _zip_of_folders,
}


@pytest.mark.parametrize(("kind", "form"), UNCONVERTED.items(), ids=UNCONVERTED.keys())
def test_what_must_be_converted_first_is_named_with_the_command(
    imagenet_folder: Path, tmp_path: Path, kind: str, form: Callable[[Path, Path], list[Path]]
) -> None:
    (src,) = form(imagenet_folder, tmp_path / "source")
    for path in (src, next(file for file in sorted((tmp_path / "source").rglob("*")) if file.is_file())):
        with pytest.raises(InputError) as raised:
            open_split(path, "train")
        assert str(raised.value) == (
            f"--data {path}: {kind}, which are converted once: `python tools/convert_imagenet.py --src {path} "
            f"--dst data/shards`, then --data data/shards"
        )
    command = ConvertSettings(src=(src,), dst=tmp_path / "dst", splits=("train",))
    assert convert(command)["train"] == open_split(tmp_path / "dst", "train").num_samples == COUNTS["train"]


def test_the_command_of_a_message_is_one_that_a_shell_takes(tmp_path: Path) -> None:
    folder = tmp_path / "$(touch INTRUDED)"
    (folder / "val").mkdir(parents=True)
    (folder / "val" / "a.JPEG").write_bytes(b"")
    with pytest.raises(InputError) as raised:
        open_split(folder, "val")
    command = str(raised.value).partition("converted: `")[2].rpartition("`")[0]
    assert str(folder) in shlex.split(command)
    assert "$" not in command.replace(f"'{folder}'", "")
