"""The images of folders, archives and WebDataset samples, and their bytes."""

import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import webdataset

from pipeline.conversion.listing import flat_images, make_listing
from pipeline.errors import InputError
from tests.helpers.imagenet_forms import FORMS, write_tar
from tests.helpers.sources import IMAGE, assert_one_line, assert_refused, contents, opened, shard_with, write_samples

LABEL_FORMS: dict[str, tuple[list[dict[str, Any]], list[str]]] = {
    "jpg and cls": ([{"jpg": IMAGE, "cls": 1}, {"jpg": IMAGE, "cls": 0}], ["000001", "000000"]),
    "jpeg and txt": ([{"jpeg": IMAGE, "txt": "n02"}, {"jpeg": IMAGE, "txt": "n01\n"}], ["n02", "n01"]),
    "jpg and cls with a wnid": ([{"jpg": IMAGE, "cls": "n02"}], ["n02"]),
    "JPEG and a number as json": ([{"JPEG": IMAGE, "json": 1}, {"JPEG": IMAGE, "json": 0}], ["000001", "000000"]),
    "jpg and a wnid as json": ([{"jpg": IMAGE, "json": "n01440764"}], ["n01440764"]),
    "jpg and a quoted wnid as json": ([{"jpg": IMAGE, "json": b'"n01440764"'}], ["n01440764"]),
    "label in json": (
        [{"jpg": IMAGE, "json": {"label": 1, "width": 5}}, {"jpg": IMAGE, "json": {"label": 0}}],
        ["000001", "000000"],
    ),
    "number as text in json": ([{"jpg": IMAGE, "json": {"label": "1"}}], ["000001"]),
    "wnid in json takes precedence over a number": ([{"jpg": IMAGE, "json": {"label": 7, "wnid": "n02"}}], ["n02"]),
    "png": ([{"png": IMAGE, "cls": "n02"}], ["n02"]),
    "cls takes precedence over a caption": ([{"jpg": IMAGE, "cls": "n02", "txt": "a photograph of a dog"}], ["n02"]),
    "more files than needed": ([{"jpg": IMAGE, "cls": "n02", "seg.npy": b"", "depth": b"1"}], ["n02"]),
}


@pytest.mark.parametrize(("samples", "wnids"), LABEL_FORMS.values(), ids=LABEL_FORMS.keys())
@pytest.mark.parametrize("folder", ["", "a/", "a.b/c/"])
def test_labels_of_shards_are_read(
    tmp_path: Path, samples: list[dict[str, Any]], wnids: list[str], folder: str
) -> None:
    keyed = [{"__key__": f"{folder}{number:03d}", **sample} for number, sample in enumerate(samples)]
    source = opened(write_samples(tmp_path / "train.tar", keyed), splits=["train"])
    assert contents(source, "train") == [(f"{number:03d}", wnid, IMAGE) for number, wnid in enumerate(wnids)]


def test_equal_keys_in_different_shards_and_folders_are_different_images(tmp_path: Path) -> None:
    for shard in range(2):
        samples = [{"__key__": f"{folder}/0", "jpg": IMAGE, "cls": f"n{shard}{folder}"} for folder in range(2)]
        write_samples(tmp_path / "train" / f"{shard}.tar", samples)
    assert [wnid for _, wnid, _ in contents(opened(tmp_path, splits=["train"]), "train")] == [
        "n00",
        "n01",
        "n10",
        "n11",
    ]


def test_names_with_dots_end_at_the_first_one(tmp_path: Path) -> None:
    """As in the webdataset library."""
    path = write_tar(
        tmp_path / "train.tar", [("a.v2.jpg", IMAGE), ("a.cls", b"n01"), ("b.JPG", IMAGE), ("b.CLS", b"n02")]
    )
    samples = webdataset.WebDataset(str(path), shardshuffle=False)
    assert [[name for name in sample if name[0] != "_"] for sample in samples] == [["v2.jpg", "cls"], ["jpg", "cls"]]
    assert [wnid for _, wnid, _ in contents(opened(path, splits=["train"]), "train")] == ["n01", "n02"]


def test_label_with_leading_zeros_is_read_whole(tmp_path: Path) -> None:
    numbers = (b"00000007", b"0000000012", b"3")
    files = [file for at, text in enumerate(numbers) for file in ((f"{at}.jpg", IMAGE), (f"{at}.cls", text))]
    source = opened(write_tar(tmp_path / "train.tar", files))
    assert sorted(source.splits["train"].labels.tolist()) == [3, 7, 12]


BAD_SAMPLES: dict[str, tuple[Callable[[Path], object], str]] = {
    "sample without a label": (shard_with("train.tar", ("1.jpg", IMAGE)), "{root}/train.tar: sample 1 has no label"),
    "sample without an image": (
        shard_with("train.tar", ("1.cls", b"1")),
        "{root}/train.tar: sample 1 has 0 images, not one",
    ),
    "sample of two images": (
        shard_with("train.tar", ("1.jpg", IMAGE), ("1.png", IMAGE), ("1.cls", b"1")),
        "{root}/train.tar: sample 1 has 2 images, not one",
    ),
    "key twice": (
        shard_with("train.tar", ("0.jpg", IMAGE), ("0.cls", b"1")),
        "{root}/train.tar: sample 0 has two files .jpg; its key must be its own",
    ),
    "negative label": (shard_with("train.tar", ("1.jpg", IMAGE), ("1.json", b"-1")), "sample 1 has no label in .cls"),
    "label not an index": (
        shard_with("train.tar", ("1.jpg", IMAGE), ("1.json", b"1e9")),
        "sample 1 has no label",
    ),
    "huge label": (shard_with("train.tar", ("1.jpg", IMAGE), ("1.json", b"9" * 12)), "sample 1 has no label"),
    "boolean for a label": (shard_with("train.tar", ("1.jpg", IMAGE), ("1.json", b"true")), "sample 1 has no label"),
    "broken json": (shard_with("train.tar", ("1.jpg", IMAGE), ("1.json", b"{" * 9000)), "sample 1 has no label"),
    "deep json": (shard_with("train.tar", ("1.jpg", IMAGE), ("1.json", b"[" * 60000)), "sample 1 has no label"),
    "json with a list": (
        shard_with("train.tar", ("1.jpg", IMAGE), ("1.json", b'{"label": [1]}')),
        "sample 1 has no label",
    ),
    "caption for a label": (shard_with("train.tar", ("1.jpg", IMAGE), ("1.txt", b"a dog")), "sample 1 has no label"),
    "empty label": (shard_with("train.tar", ("1.jpg", IMAGE), ("1.cls", b"")), "sample 1 has no label"),
    "label of 8 digits": (shard_with("train.tar", ("1.jpg", IMAGE), ("1.cls", b"10000000")), "sample 1 has no label"),
    "label of 5000 digits": (
        shard_with("train.tar", ("1.jpg", IMAGE), ("1.cls", b"1" * 5000)),
        "sample 1 has no label",
    ),
    "large label file": (
        shard_with("train.tar", ("1.jpg", IMAGE), ("1.cls", b"1" * 70_000)),
        "{root}/train.tar: 1.cls is too large for a label",
    ),
    "indices and names": (
        shard_with("train.tar", ("1.jpg", IMAGE), ("1.cls", b"n00000001")),
        "WebDataset shards {root}/train.tar: some labels are class indices and some are names",
    ),
}


@pytest.mark.parametrize(("make", "message"), BAD_SAMPLES.values(), ids=BAD_SAMPLES.keys())
def test_bad_sample_is_refused_with_one_line(tmp_path: Path, make: Callable[[Path], object], message: str) -> None:
    assert_refused(tmp_path / "source", make, message)


def test_listed_files_are_read(imagenet_folder: Path) -> None:
    folder = imagenet_folder / "train" / "n00000001"
    listing = make_listing("", flat_images([folder], Counter()))
    paths = sorted(folder.iterdir())
    assert [listing.images.where(index) for index in range(len(listing.images))] == list(map(str, paths))
    assert [listing.images.read(index) for index in range(len(listing.images))] == [path.read_bytes() for path in paths]
    assert listing.labels == ["n00000001"] * len(paths), "their names begin with it"


def grow(path: Path) -> None:
    with open(path, "ab") as file:
        file.write(b"more")


CHANGES: dict[str, tuple[str, Callable[[Path], object]]] = {
    "file removed": ("class folders", Path.unlink),
    "file truncated": ("class folders", lambda path: os.truncate(path, 100)),
    "file grown": ("class folders", grow),
    "archive removed": ("official archives in a folder", Path.unlink),
    "archive truncated": ("official archives in a folder", lambda path: os.truncate(path, 100)),
}


@pytest.mark.parametrize(("form", "change"), CHANGES.values(), ids=CHANGES.keys())
def test_image_that_has_changed_is_named(
    imagenet_folder: Path, tmp_path: Path, form: str, change: Callable[[Path], object]
) -> None:
    (root,) = FORMS[form](imagenet_folder, tmp_path / "source")
    images = opened(root, splits=["train"]).splits["train"]
    container = images.containers[images.container[0]]
    change(container if container.is_file() else container / images.names[0])
    with pytest.raises(InputError) as raised:
        images.read(0)
    assert_one_line(raised.value, images.where(0))
