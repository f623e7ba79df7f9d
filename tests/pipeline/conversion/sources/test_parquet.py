"""Parquet files: images, labels and classes; order; memory; what is refused."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.conversion import listing
from pipeline.conversion.convert import convert
from pipeline.conversion.settings import ConvertSettings
from pipeline.conversion.sources import parquet
from pipeline.errors import InputError
from pipeline.storage.manifest import Manifest
from tests.helpers.conversions import BAD, killed_at, refused, report_of
from tests.helpers.files import files_in
from tests.helpers.foreign_forms import WORDS, hugging_face, rows_of, with_wnids, write_parquet
from tests.helpers.imagenet import CLASSES
from tests.helpers.sources import IMAGE, assert_one_line, contents, opened

FLAGS: dict[str, Any] = {"shard_size": "100KB", "workers": 2}


@pytest.fixture(scope="module")
def source(imagenet_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ImageNet as Hugging Face has it: row groups of 5 images, compressed by Snappy."""
    return hugging_face(imagenet_folder, tmp_path_factory.mktemp("parquet"))[0]


@pytest.fixture(scope="module")
def converted(source: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of a conversion of it with one thread."""
    dst = tmp_path_factory.mktemp("converted")
    convert(ConvertSettings(src=(source,), dst=dst, **(FLAGS | {"workers": 1})))
    return files_in(dst)


@pytest.mark.parametrize("compression", ["none", "snappy", "zstd"])
@pytest.mark.parametrize("dictionary", [False, True], ids=["plain", "dictionary"])
def test_images_classes_and_labels_are_those_of_the_folder(
    imagenet_folder: Path, tmp_path: Path, compression: str, dictionary: bool
) -> None:
    for split, name in (("train", "train-00000-of-00001"), ("val", "validation-00000-of-00001")):
        write_parquet(
            tmp_path / f"{name}.parquet",
            with_wnids(rows_of(imagenet_folder, split)),
            compression=compression,
            use_dictionary=dictionary,
        )
    source = opened(tmp_path)
    assert source.classes == tuple(CLASSES)
    for split in ("train", "val"):
        expected = [
            (f"{Path(name).stem}_{CLASSES[label]}", CLASSES[label], data)
            for name, label, data in rows_of(imagenet_folder, split)
        ]
        assert contents(source, split) == sorted(expected)


def test_a_test_split_is_named(imagenet_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Hugging Face's has no labels (-1)."""
    source = hugging_face(imagenet_folder, tmp_path)[0]
    files = [next(source.rglob("val*.parquet")).with_name(f"test-0000{number}-of-00002.parquet") for number in (0, 1)]
    for path in files:
        write_parquet(path, [("", -1, IMAGE)])
    opened(source)
    named = [message for message in caplog.messages if "neither train nor val" in message]
    assert named == [f"{files[0]} to {files[1].name}: not converted, it is neither train nor val"]


def test_names_of_classes_are_those_of_the_metadata_without_wnids(imagenet_folder: Path, tmp_path: Path) -> None:
    rows = [("", label, data) for _, label, data in rows_of(imagenet_folder, "train")]
    write_parquet(tmp_path / "train" / "0000.parquet", rows)
    source = opened(tmp_path, splits=["train"])
    assert source.classes == tuple(WORDS)
    assert sorted((label, data) for _, label, data in contents(source, "train")) == sorted(
        (WORDS[label], data) for _, label, data in rows
    )


def test_class_without_images_keeps_its_index(tmp_path: Path) -> None:
    write_parquet(tmp_path / "train.parquet", [("n00000001_1.JPEG", 0, IMAGE), ("n00000004_1.JPEG", 3, IMAGE)])
    assert opened(tmp_path, splits=["train"]).classes == ("n00000001", WORDS[1], WORDS[2], "n00000004")


def test_wnids_that_contradict_the_labels_are_not_used(tmp_path: Path) -> None:
    write_parquet(tmp_path / "train.parquet", [("n00000001_1.JPEG", 0, IMAGE), ("n00000001_2.JPEG", 1, IMAGE)])
    assert opened(tmp_path, splits=["train"]).classes == tuple(WORDS)


def test_other_columns_are_recognised(tmp_path: Path) -> None:
    """Bytes without a structure, names for labels, and no metadata."""
    table = pa.table({"id": [1, 2], "jpg": pa.array([IMAGE, IMAGE + b"x"]), "synset": ["n00000001", "n00000002"]})
    pq.write_table(table, tmp_path / "train.parquet")
    assert [row[1:] for row in contents(opened(tmp_path, splits=["train"]), "train")] == [
        ("n00000001", IMAGE),
        ("n00000002", IMAGE + b"x"),
    ]


# --- order and bytes


def test_bytes_do_not_depend_on_threads_or_on_what_is_held(
    source: Path, converted: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parquet, "_HELD_BYTES", 1)  # every row group is read again and again
    convert(ConvertSettings(src=(source,), dst=tmp_path, **FLAGS))
    assert files_in(tmp_path) == converted


def test_killed_conversion_ends_with_the_same_bytes(source: Path, converted: dict[str, bytes], tmp_path: Path) -> None:
    step = 0
    settings = ConvertSettings(src=(source,), dst=tmp_path, **FLAGS)
    while killed_at(step := step + 9, settings):
        pass
    assert step > 18
    assert files_in(tmp_path) == converted


def test_parts_end_with_the_same_bytes(source: Path, converted: dict[str, bytes], tmp_path: Path) -> None:
    for part in ("2/2", "1/2"):
        convert(ConvertSettings(src=(source,), dst=tmp_path, part=part, **FLAGS))
    convert(ConvertSettings(src=(source,), dst=tmp_path, merge=True, **FLAGS))
    assert files_in(tmp_path) == converted


def test_training_images_are_mixed_within_windows_and_validation_images_in_the_order_of_rows(
    imagenet_folder: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = opened(source).splits["train"]
    monkeypatch.setattr(listing, "MIXED_BYTES", 120_000)
    images = opened(source).splits["train"]
    order = images.container.tolist()
    groups = len({*order})
    assert groups == 10
    spans = [len(order) - order[::-1].index(group) - order.index(group) for group in {*order}]
    assert 5 < max(spans) < 35, "a window has several row groups, and not all"
    assert sorted(images.names) == sorted(whole.names)
    assert list(images.names) != list(whole.names)
    assert order != sorted(order)
    assert list(opened(source).splits["val"].names) == [
        name for name, _, _ in with_wnids(rows_of(imagenet_folder, "val"))
    ]


def test_row_groups_are_read_once(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = list[tuple[Path, int]]()
    load = parquet.RowGroup.load

    def counting(group: parquet.RowGroup) -> Any:
        loaded.append((group.path, group.number))
        return load(group)

    monkeypatch.setattr(parquet.RowGroup, "load", counting)
    convert(ConvertSettings(src=(source,), dst=tmp_path, **FLAGS))
    assert len(loaded) == 14
    assert len({*loaded}) == 14


def test_memory_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """64 row groups of 512 KB, of which 2 MB are held."""
    noise = os.urandom(1 << 17)
    rows = [(f"{number}.JPEG", number % 4, number.to_bytes(4, "big") + noise) for number in range(256)]
    write_parquet(tmp_path / "train.parquet", rows, rows_per_group=4, compression="none")
    monkeypatch.setattr(listing, "MIXED_BYTES", 1 << 21)
    monkeypatch.setattr(parquet, "_HELD_BYTES", 1 << 21)
    del rows
    images = opened(tmp_path, splits=["train"]).splits["train"]
    before = pa.total_allocated_bytes()
    most = 0
    for index in range(len(images)):
        assert images.read(index)[:4] == int(images.names[index].split(".")[0]).to_bytes(4, "big")
        most = max(most, pa.total_allocated_bytes() - before)
    assert 1 << 20 < most < 3 << 21


# --- what is odd or refused


def test_odd_and_bad_rows_are_listed_as_those_of_folders(tmp_path: Path) -> None:
    rows = [(f"{number}.JPEG", 0, IMAGE) for number in range(4)]
    rows += [("bad.JPEG", 0, BAD), ("empty.JPEG", 0, b"")]
    path = write_parquet(tmp_path / "train.parquet", rows)
    settings = ConvertSettings(src=(tmp_path,), dst=tmp_path / "dst", splits=("train",), workers=1)
    assert "2 of 6 images cannot be used" in refused(settings)
    convert(ConvertSettings(src=(tmp_path,), dst=tmp_path / "skip", splits=("train",), on_bad="skip"))
    bad = {entry["file"]: entry["bad"] for entry in report_of(tmp_path / "skip")["images"]}
    assert bad == {f"{path}/bad.JPEG": "not an image", f"{path}/empty.JPEG": "no bytes in this row"}
    assert Manifest.read(tmp_path / "skip").splits["train"].samples == 4


def test_replaced_file_is_noticed(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "train.parquet", [("1.JPEG", 0, IMAGE), ("2.JPEG", 1, IMAGE)])
    images = opened(tmp_path, splits=["train"]).splits["train"]
    os.utime(path, ns=(1, 1))
    with pytest.raises(InputError) as raised:
        images.read(0)
    assert_one_line(raised.value, f"{path}: has changed while it was being converted")


def _with_columns(**columns: Any) -> Callable[[Path], object]:
    return lambda path: pq.write_table(pa.table(columns), path)


def _truncated(path: Path) -> None:
    write_parquet(path, [("1.JPEG", 0, IMAGE)])
    os.truncate(path, 1000)


def _two_kinds_of_names(path: Path) -> None:
    write_parquet(path, [("1.JPEG", 0, IMAGE)])
    write_parquet(path.with_name("train-2.parquet"), [("1.JPEG", 0, IMAGE)], words=["a", "b"])


REFUSED: dict[str, tuple[Callable[[Path], object], str]] = {
    "no image": (_with_columns(text=["a"], label=[1]), "no column with images in text, label"),
    "no label": (_with_columns(image=[IMAGE], number=[1]), "no column with labels in image, number"),
    "two images": (_with_columns(a=[IMAGE], b=[IMAGE], label=[1]), "several columns with images in a, b, label"),
    "no class": (_with_columns(image=[IMAGE], label=[-1]), "group-0-row-0 has the label -1, which is no class"),
    "null": (_with_columns(image=[IMAGE], label=pa.array([None], pa.int64())), "has the label None, which is no class"),
    "no UTF-8": (
        _with_columns(image=[IMAGE], label=pa.array([b"\xf0("]).view(pa.string())),
        "cannot be read as Parquet ('utf-8' codec can't decode",
    ),
    "truncated": (_truncated, "cannot be read as Parquet"),
    "other names": (_two_kinds_of_names, "has other class names than"),
}


@pytest.mark.parametrize(("write", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_what_cannot_be_converted_is_refused(tmp_path: Path, write: Callable[[Path], object], message: str) -> None:
    write(tmp_path / "train.parquet")
    with pytest.raises(InputError) as raised:
        opened(tmp_path, splits=["train"])
    assert_one_line(raised.value, str(tmp_path), message)


def test_row_group_that_is_too_large_is_refused_with_a_way_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its size in the file, and what a dictionary makes smaller there."""
    rows = [(f"{number}.JPEG", 0, IMAGE) for number in range(500)]
    path = write_parquet(tmp_path / "train.parquet", rows, rows_per_group=500, compression="none", use_dictionary=True)
    monkeypatch.setattr(parquet, "_LARGEST_GROUP", 100 * len(IMAGE))
    with pytest.raises(InputError) as raised:
        opened(tmp_path, splits=["train"]).splits["train"].read(0)
    assert_one_line(raised.value, f"{path}: row group 0 has", "iter_batches(100)")
    monkeypatch.setattr(parquet, "_LARGEST_GROUP", len(IMAGE))
    with pytest.raises(InputError) as raised:
        opened(tmp_path, splits=["train"])
    assert_one_line(raised.value, f"{path}: row group 0 has", "iter_batches(100)")


def test_metadata_that_is_not_understood_is_ignored(tmp_path: Path) -> None:
    for text in ("{", "[]", json.dumps({"info": {"features": ["image"]}})):
        table = pa.table({"image": pa.array([IMAGE]), "label": ["a"]}, metadata={"huggingface": text})
        pq.write_table(table, tmp_path / "train.parquet")
        assert opened(tmp_path, splits=["train"]).classes == ("a",)
