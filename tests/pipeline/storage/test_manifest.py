"""dataset.json, written and read back, and refused when it is wrong in any way."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import InputError
from pipeline.storage.beton import BetonInfo, Extent
from pipeline.storage.manifest import MANIFEST, Manifest, SplitInfo
from pipeline.storage.shards import ShardInfo
from pipeline.storage.split import open_split
from tests.helpers.manifests import change_manifest
from tests.helpers.memory import memory_below

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


@pytest.mark.parametrize(
    "text",
    ["", "{", "null", "[]", "5", '"format"', "{}", '{"format": 2}', "\x00", "[" * 100_000, '{"format": 2' + "0" * 9999],
    ids=lambda text: text[:20] + (text[20:] and "..."),
)
def test_text_that_is_not_a_manifest_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / MANIFEST).write_text(text)
    with pytest.raises(InputError, match=rf"{tmp_path}/dataset\.json: .*convert again"):
        open_split(tmp_path, "train")


def test_bytes_that_are_not_text_are_named(tmp_path: Path) -> None:
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
    change_manifest(tmp_path, lambda fields: fields.update(format=version))
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
def test_file_name_that_no_conversion_writes_is_refused(tmp_path: Path, storage: str, name: Any) -> None:
    def alter(fields: dict[str, Any]) -> None:
        train = fields["splits"]["train"]
        (train["beton"] if storage == "beton" else train["shards"][0])["name"] = name

    MANIFEST_OF_BOTH.write(tmp_path)
    change_manifest(tmp_path, alter)
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
    "an extra field": lambda fields: fields["splits"]["train"].update(more=1),
    "a missing field": lambda fields: fields["splits"]["train"].pop("samples"),
    "a text for the samples": lambda fields: fields["splits"]["train"].update(samples="7"),
    "no samples": lambda fields: fields["splits"]["train"].update(samples=0, shards=[]),
    "negative samples": lambda fields: fields["splits"]["train"].update(samples=-7, shards=[]),
    "a fraction of a sample": lambda fields: fields["splits"]["train"].update(samples=7.5, shards=[]),
    "not a number of samples": lambda fields: fields["splits"]["train"].update(samples=float("nan"), shards=[]),
    "samples that do not add up": lambda fields: fields["splits"]["train"].update(samples=8),
    "a number for the shards": lambda fields: fields["splits"]["train"].update(shards=1),
    "a text for the shards": lambda fields: fields["splits"]["train"].update(shards="train-000000.tar"),
    "texts for shards": lambda fields: fields["splits"]["train"].update(shards=["train-000000.tar"]),
    "an extra field of a shard": lambda fields: fields["splits"]["train"]["shards"][0].update(more=1),
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
    "a digest that is a path": lambda fields: fields["splits"]["train"]["shards"][0].update(
        sha256="../" * 20 + "x" * 4
    ),
    "a digest with a line break": lambda fields: fields["splits"]["train"]["shards"][0].update(sha256="a" * 64 + "\n"),
    "a split that commands a terminal": lambda fields: fields["splits"].update(
        {"\x1b[2J": fields["splits"].pop("val")}
    ),
    "an extra field of an extent": lambda fields: fields["splits"]["train"]["beton"]["extents"][1].update(more=1),
}


@pytest.mark.parametrize("alter", WRONG_FIELDS.values(), ids=WRONG_FIELDS.keys())
def test_wrong_field_in_the_manifest_is_refused(tmp_path: Path, alter: Callable[[dict[str, Any]], Any]) -> None:
    MANIFEST_OF_BOTH.write(tmp_path)
    change_manifest(tmp_path, alter)
    with pytest.raises(InputError, match=r"dataset\.json: cannot be read .*convert again"):
        open_split(tmp_path, "train")


json_values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=8), inner, max_size=3)),
    max_leaves=6,
)


def entries(value: Any) -> list[tuple[Any, Any]]:
    """Every (container, key) in a JSON document."""
    items = (
        list(value.items() if isinstance(value, dict) else enumerate(value)) if isinstance(value, dict | list) else []
    )
    return [(value, key) for key, _ in items] + [entry for _, inner in items for entry in entries(inner)]


@given(data=st.data(), value=json_values)
def test_fuzzed_manifest_gives_an_input_error(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, value: Any
) -> None:
    def alter(fields: dict[str, Any]) -> None:
        container, key = data.draw(st.sampled_from(entries(fields)))
        container[key] = value

    path = tmp_path_factory.getbasetemp() / "fuzzed"
    path.mkdir(exist_ok=True)
    MANIFEST_OF_BOTH.write(path)
    change_manifest(path, alter)
    with pytest.raises(InputError) as refused:  # here at the latest, as its files are missing
        _ = open_split(path, "train").samples
    assert "\n" not in str(refused.value)


def test_a_pipe_for_a_manifest_is_named(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / MANIFEST)
    with pytest.raises(InputError, match=r"dataset\.json: cannot be read .*no regular file"):
        open_split(tmp_path, "train")


def test_a_manifest_of_gigabytes_is_not_read(tmp_path: Path) -> None:
    (tmp_path / MANIFEST).touch()
    os.truncate(tmp_path / MANIFEST, 1 << 40)
    with memory_below(1 << 20), pytest.raises(InputError, match=r"dataset\.json: cannot be read .*more than"):
        open_split(tmp_path, "train")
