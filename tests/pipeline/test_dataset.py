"""dataset.json, and opening a split of a dataset directory or of a plain folder."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.dataset import MANIFEST, Manifest, SplitInfo, open_split
from pipeline.errors import InputError
from pipeline.formats.beton import MODE_RAW, BetonInfo, Extent
from pipeline.formats.shards import ShardInfo
from tools.convert_imagenet import ConvertSettings, convert

COUNTS = {"train": 47, "val": 19}

MANIFEST_OF_BOTH = Manifest(
    classes=("n00000001", "n00000002"),
    splits={
        "train": SplitInfo(
            samples=7,
            bytes=12345,
            image_mode="keep",
            shards=(
                ShardInfo(name="webdataset/train-000000.tar", samples=4, bytes=9000, sha256="ab" * 32),
                ShardInfo(name="webdataset/train-000001.tar", samples=3, bytes=7000, sha256="cd" * 32),
            ),
            beton=BetonInfo(
                name="ffcv/train.beton",
                samples=7,
                bytes=(3 << 21) + 168,
                extents=(
                    Extent(bytes=1 << 21, sha256="ef" * 32),
                    Extent(bytes=2 << 21, sha256="01" * 32),
                    Extent(bytes=168, sha256="45" * 32),
                ),
            ),
        ),
        "val": SplitInfo(
            samples=2,
            bytes=99,
            image_mode="keep",
            shards=(ShardInfo(name="webdataset/val-000000.tar", samples=2, bytes=5000, sha256="23" * 32),),
        ),
    },
)


def test_manifest_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    MANIFEST_OF_BOTH.write(tmp_path)
    assert Manifest.read(tmp_path) == MANIFEST_OF_BOTH
    assert [path.name for path in tmp_path.iterdir()] == [MANIFEST]


def test_both_storages_hold_the_same_samples(dataset: Path) -> None:
    for name, count in COUNTS.items():
        split = open_split(dataset, name)
        assert split.formats == ("webdataset", "ffcv")
        assert split.num_samples == len(split.shards) == len(split.beton) == count
        assert [split.shards[index] for index in range(count)] == [split.beton[index] for index in range(count)]


def test_samples_come_from_the_beton_where_there_are_no_shards(dataset_copy: Path) -> None:
    with_shards = open_split(dataset_copy, "val")
    change(dataset_copy, lambda fields: fields["splits"]["val"].update(shards=[]))
    split = open_split(dataset_copy, "val")
    assert split.formats == ("ffcv",)
    assert split.samples is split.beton
    assert split.samples[3] == with_shards.shards[3]


@pytest.mark.parametrize(
    ("jpeg", "storage"),
    [("tile", "ffcv"), ("keep", "ffcv"), ("reencode", "ffcv"), ("raw", "ffcv-raw"), ("proportion", "ffcv-raw")],
)
def test_the_manifest_tells_whether_there_are_pixels(
    imagenet_folder: Path, tmp_path: Path, jpeg: str, storage: str
) -> None:
    settings = {"src": (imagenet_folder,), "dst": tmp_path / "dst", "splits": ("train",), "format": ("ffcv",)}
    max_side = None if jpeg == "keep" else 64
    convert(ConvertSettings(**settings, jpeg=jpeg, max_side=max_side))  # type: ignore[arg-type]
    split = open_split(tmp_path / "dst", "train")
    assert split.formats == (storage,)
    assert split.info is not None
    assert split.info.image_mode == jpeg
    assert (MODE_RAW in split.beton.metadata["f0"]["mode"]) == (storage == "ffcv-raw")


def test_class_folders_are_opened_as_they_are(imagenet_folder: Path) -> None:
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
    """Validation may lack a class; the indices of the others stay."""
    shutil.copytree(imagenet_folder / "train", tmp_path / "train")
    shutil.copytree(imagenet_folder / "train" / "n00000003", tmp_path / "val" / "n00000003")
    split = open_split(tmp_path, "val")
    assert len(split.classes) == 4
    assert {split.samples[index].label for index in range(split.num_samples)} == {2}


def test_files_of_a_plain_folder_that_are_no_images_are_passed_over(imagenet_folder: Path, tmp_path: Path) -> None:
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
    with pytest.raises(InputError, match=r"val: no class folders; convert the dataset with --val-labels"):
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
    change(dataset_copy, lambda fields: fields["splits"]["train"].update({storage: field}))
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
    """The page size, the width of image 20, the padding: nothing that could be noticed without its digest."""
    split = open_split(dataset_copy, "train")
    assert split.info is not None
    assert split.info.beton is not None
    data = bytearray(split.beton_path.read_bytes())
    data[at % split.info.beton.extents[0].bytes] ^= 1
    split.beton_path.write_bytes(data)
    with pytest.raises(InputError, match=r"ffcv/train\.beton: altered since it was converted; convert again"):
        _ = open_split(dataset_copy, "train").beton


def test_beton_of_other_classes_is_refused(dataset_copy: Path) -> None:
    change(dataset_copy, lambda fields: fields.update(classes=["n1", "n2", "n3", "n4"]))
    with pytest.raises(InputError, match=r"ffcv/train\.beton: belongs to another class list"):
        _ = open_split(dataset_copy, "train").beton


def change(dataset: Path, alter: Callable[[dict[str, Any]], Any]) -> None:
    """Alter the fields of a dataset.json."""
    fields = json.loads((dataset / MANIFEST).read_text())
    alter(fields)
    (dataset / MANIFEST).write_text(json.dumps(fields))


@pytest.mark.parametrize(
    "text",
    ["", "{", "null", "[]", "5", '"format"', "{}", '{"format": 2}', "\x00", "[" * 100_000, '{"format": 2' + "0" * 9999],
    ids=lambda text: text[:20] + (text[20:] and "..."),
)
def test_text_that_is_no_manifest_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / MANIFEST).write_text(text)
    with pytest.raises(InputError, match=rf"{tmp_path}/dataset\.json: .*convert again"):
        open_split(tmp_path, "train")


def test_bytes_that_are_no_text_are_named(tmp_path: Path) -> None:
    (tmp_path / MANIFEST).write_bytes(b"\xff\xfe\x00\x01")
    with pytest.raises(InputError, match=r"dataset\.json: cannot be read"):
        open_split(tmp_path, "train")


def test_directory_for_a_manifest_is_named(tmp_path: Path) -> None:
    (tmp_path / MANIFEST).mkdir()
    with pytest.raises(InputError, match=r"dataset\.json: cannot be read"):
        open_split(tmp_path, "train")


@pytest.mark.parametrize("version", [1, 3, 0, -2, "2", None, [2]])
def test_another_format_version_is_refused(tmp_path: Path, version: Any) -> None:
    MANIFEST_OF_BOTH.write(tmp_path)
    change(tmp_path, lambda fields: fields.update(format=version))
    with pytest.raises(InputError, match=r"dataset\.json: another format version than 2; convert again"):
        open_split(tmp_path, "train")


@pytest.mark.parametrize(
    "name",
    [
        "/etc/passwd",
        "../../secret.tar",
        "webdataset/../../secret.tar",
        "webdataset/train/000000.tar",
        "ffcv/../x.beton",
        "webdataset/train-000000.tar\n",
        "webdataset/train-000000",
        "",
        None,
        7,
        ["webdataset/train-000000.tar"],
    ],
    ids=repr,
)
@pytest.mark.parametrize("storage", ["shard", "beton"])
def test_file_name_that_no_conversion_makes_is_refused(tmp_path: Path, storage: str, name: Any) -> None:
    def alter(fields: dict[str, Any]) -> None:
        train = fields["splits"]["train"]
        (train["beton"] if storage == "beton" else train["shards"][0])["name"] = name

    MANIFEST_OF_BOTH.write(tmp_path)
    change(tmp_path, alter)
    with pytest.raises(InputError, match=r"dataset\.json: cannot be read"):
        open_split(tmp_path, "train")


WRONG_FIELDS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "no classes": lambda fields: fields.pop("classes"),
    "a number for the classes": lambda fields: fields.update(classes=5),
    "a text for the classes": lambda fields: fields.update(classes="n01440764"),
    "numbers in the classes": lambda fields: fields.update(classes=[1, 2]),
    "a class twice": lambda fields: fields.update(classes=["n1", "n1"]),
    "an empty class list": lambda fields: fields.update(classes=[]),
    "no splits": lambda fields: fields.pop("splits"),
    "a list for the splits": lambda fields: fields.update(splits=[]),
    "a text for a split": lambda fields: fields["splits"].update(train="train"),
    "a field too many": lambda fields: fields["splits"]["train"].update(more=1),
    "a field too few": lambda fields: fields["splits"]["train"].pop("samples"),
    "a text for the samples": lambda fields: fields["splits"]["train"].update(samples="7"),
    "no samples": lambda fields: fields["splits"]["train"].update(samples=0, shards=[]),
    "negative samples": lambda fields: fields["splits"]["train"].update(samples=-7, shards=[]),
    "a fraction of a sample": lambda fields: fields["splits"]["train"].update(samples=7.5, shards=[]),
    "not a number of samples": lambda fields: fields["splits"]["train"].update(samples=float("nan"), shards=[]),
    "samples that do not add up": lambda fields: fields["splits"]["train"].update(samples=8),
    "a number for the shards": lambda fields: fields["splits"]["train"].update(shards=1),
    "a text for the shards": lambda fields: fields["splits"]["train"].update(shards="train-000000.tar"),
    "texts for shards": lambda fields: fields["splits"]["train"].update(shards=["train-000000.tar"]),
    "a shard field too many": lambda fields: fields["splits"]["train"]["shards"][0].update(more=1),
    "a shard of negative samples": lambda fields: [
        shard.update(samples=samples)
        for shard, samples in zip(fields["splits"]["train"]["shards"], (10, -3), strict=True)
    ],
    "a shard twice": lambda fields: fields["splits"]["train"]["shards"][1].update(name="webdataset/train-000000.tar"),
    "a number for the beton": lambda fields: fields["splits"]["train"].update(beton=1),
    "a list for the beton": lambda fields: fields["splits"]["train"].update(beton=[1]),
    "a beton of other samples": lambda fields: fields["splits"]["train"]["beton"].update(samples=8),
    "a number for the image mode": lambda fields: fields["splits"]["train"].update(image_mode=1),
    "no extents": lambda fields: fields["splits"]["train"]["beton"].pop("extents"),
    "a number for the extents": lambda fields: fields["splits"]["train"]["beton"].update(extents=3),
    "an empty list of extents": lambda fields: fields["splits"]["train"]["beton"].update(extents=[], bytes=0),
    "a head alone": lambda fields: fields["splits"]["train"]["beton"].update(
        extents=fields["splits"]["train"]["beton"]["extents"][:1], bytes=1 << 21
    ),
    "extents that do not add up": lambda fields: fields["splits"]["train"]["beton"]["extents"].pop(),
    "an extent of negative size": lambda fields: [
        extent.update(bytes=size)
        for extent, size in zip(
            fields["splits"]["train"]["beton"]["extents"], (1 << 21, (2 << 21) + 169, -1), strict=True
        )
    ],
    "an extent without a digest": lambda fields: fields["splits"]["train"]["beton"]["extents"][1].pop("sha256"),
    "a number for a digest": lambda fields: fields["splits"]["train"]["beton"]["extents"][1].update(sha256=5),
    "an extent field too many": lambda fields: fields["splits"]["train"]["beton"]["extents"][1].update(more=1),
}


@pytest.mark.parametrize("alter", WRONG_FIELDS.values(), ids=WRONG_FIELDS.keys())
def test_wrong_field_in_the_manifest_is_refused(tmp_path: Path, alter: Callable[[dict[str, Any]], Any]) -> None:
    MANIFEST_OF_BOTH.write(tmp_path)
    change(tmp_path, alter)
    with pytest.raises(InputError, match=r"dataset\.json: cannot be read .*convert again"):
        open_split(tmp_path, "train")


json_values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=8), inner, max_size=3)),
    max_leaves=6,
)


def places(value: Any) -> list[tuple[Any, Any]]:
    """Every (container, key) in a JSON document."""
    items = (
        list(value.items() if isinstance(value, dict) else enumerate(value)) if isinstance(value, dict | list) else []
    )
    return [(value, key) for key, _ in items] + [place for _, inner in items for place in places(inner)]


@given(data=st.data(), value=json_values)
def test_fuzzed_manifest_gives_an_input_error_and_no_other(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, value: Any
) -> None:
    def alter(fields: dict[str, Any]) -> None:
        container, key = data.draw(st.sampled_from(places(fields)))
        container[key] = value

    path = tmp_path_factory.getbasetemp() / "fuzzed"
    path.mkdir(exist_ok=True)
    MANIFEST_OF_BOTH.write(path)
    change(path, alter)
    with pytest.raises(InputError) as refused:  # at the latest here, as none of the files is there
        _ = open_split(path, "train").samples
    assert "\n" not in str(refused.value)
