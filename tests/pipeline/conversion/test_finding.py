"""ImageNet in every form that people have: where images and labels are found, and what is refused."""

import bz2
import gzip
import json
import logging
import lzma
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.conversion.convert import convert
from pipeline.conversion.settings import ConvertSettings
from pipeline.errors import InputError
from pipeline.storage.manifest import MANIFEST
from tests.helpers.files import files_in
from tests.helpers.foreign_forms import FOREIGN_FORMS
from tests.helpers.imagenet import CLASSES, TRAIN_COUNTS, val_wnids
from tests.helpers.imagenet_forms import (
    DEVKIT,
    FORMS,
    LABEL_FILES,
    OFFICIAL,
    class_folders,
    class_tar,
    copied,
    kaggle,
    official,
    tar_bytes,
    train_archive,
    val_archive,
    write_labels,
    write_tar,
)
from tests.helpers.label_files import val_name, valprep
from tests.helpers.sources import (
    IMAGE,
    assert_one_line,
    assert_refused,
    contents,
    opened,
    shard_with,
    write_images,
    write_samples,
)

FLAGS: dict[str, Any] = {"jpeg": "keep", "shard_size": "100KB", "workers": 2}  # those of the fixture `dataset`


ALL_FORMS = {**FORMS, **FOREIGN_FORMS}


@pytest.mark.parametrize("form", ALL_FORMS.values(), ids=ALL_FORMS.keys())
def test_every_form_gives_the_same_bytes(
    imagenet_folder: Path, dataset: Path, tmp_path: Path, form: Callable[[Path, Path], list[Path]]
) -> None:
    dst = tmp_path / "converted"
    convert(ConvertSettings(src=tuple(form(imagenet_folder, tmp_path / "source")), dst=dst, **FLAGS))
    assert_same_dataset(dst, dataset)


def assert_same_dataset(converted: Path, dataset: Path) -> None:
    """Equal byte for byte; in the report, only the paths of the source and files that are no images differ."""
    left, right = files_in(converted), files_in(dataset)
    left_report, right_report = (json.loads(files.pop("report.json")) for files in (left, right))
    assert left.keys() == right.keys()
    assert [name for name in left if left[name] != right[name]] == []
    for report in (left_report, right_report):
        report["images"] = [{**entry, "file": ""} for entry in report["images"]]
        report["flags"].update(src=[], val_labels=None)
        del report["passed_over"]
    assert left_report == right_report


@pytest.mark.parametrize("inside", [False, True], ids=["dataset", "its webdataset folder"])
def test_converted_dataset_converted_again_is_the_same_dataset(dataset: Path, tmp_path: Path, inside: bool) -> None:
    src = dataset / "webdataset" if inside else dataset
    convert(ConvertSettings(src=(src,), dst=tmp_path / "again", **FLAGS))
    assert_same_dataset(tmp_path / "again", dataset)


DESCRIPTIONS = {
    "class folders": ("class folders in {}/train", "class folders in {}/val"),
    "flat val": ("class folders in {}/train", "flat folder {}/val"),
    "official archives in a folder": (f"class archives in {{}}/{OFFICIAL['train']}", f"archive {{}}/{OFFICIAL['val']}"),
    "training archive unpacked once": (
        "class archives {}/train/n00000001.tar to n00000004.tar",
        "flat folder {}/val",
    ),
    "archives of class folders": ("archive {}/imagenet-train.tar", "archive {}/imagenet-val.tar"),
    "kaggle": ("class folders in {}/ILSVRC/Data/CLS-LOC/train", "flat folder {}/ILSVRC/Data/CLS-LOC/val"),
    "WebDataset shards": (
        "WebDataset shards {}/imagenet-train-000000.tar to imagenet-train-000005.tar",
        "WebDataset shards {}/imagenet-val-000000.tar to imagenet-val-000002.tar",
    ),
    "Kaggle's zip": ("archive {}/imagenet-object-localization-challenge.zip",) * 2,
    "TFRecords": (
        "TFRecords {}/train-00000-of-00002 to train-00001-of-00002",
        "TFRecords {}/validation-00000-of-00001",
    ),
}


@pytest.mark.parametrize("form", DESCRIPTIONS)
def test_splits_that_were_found_are_logged(
    imagenet_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, form: str
) -> None:
    with caplog.at_level(logging.INFO):
        opened(*ALL_FORMS[form](imagenet_folder, tmp_path / "source"))
    train, val = (description.format(tmp_path / "source") for description in DESCRIPTIONS[form])
    assert f"train: 47 images, {train}" in caplog.messages
    assert f"val: 19 images, {val}" in caplog.messages


@pytest.mark.parametrize("place", ["", "ILSVRC", "ILSVRC/Data", "ILSVRC/Data/CLS-LOC"])
def test_kaggle_download_is_read_from_each_of_its_folders(
    imagenet_folder: Path,
    tmp_path: Path,
    expected_images: dict[str, Any],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    place: str,
) -> None:
    (root,) = kaggle(imagenet_folder, tmp_path / "source")
    monkeypatch.chdir(root / place)
    for src in (root / place, Path()):
        caplog.clear()
        with caplog.at_level(logging.INFO):
            source = opened(src)
        assert f"val: labels from {root}/LOC_val_solution.csv" in caplog.messages
        assert {split: contents(source, split) for split in source.splits} == expected_images


@pytest.mark.parametrize("how", ["link", "folders"])
def test_kaggle_labels_are_found_from_outside(imagenet_folder: Path, tmp_path: Path, how: str) -> None:
    root = tmp_path / "download" / "ILSVRC" / "Data" / "CLS-LOC"
    shutil.copytree(imagenet_folder / "train", root / "train")
    shutil.copytree(imagenet_folder / "val", root / "val")
    write_labels(imagenet_folder, tmp_path / "download" / "LOC_val_solution.csv")
    (tmp_path / "imagenet").symlink_to(root)
    paths = (tmp_path / "imagenet",) if how == "link" else (root / "train", root / "val")
    assert len(opened(*paths).splits["val"]) == len(val_wnids(imagenet_folder))


@pytest.mark.parametrize("name", [*LABEL_FILES, DEVKIT, f"{DEVKIT}.tar.gz"])
@pytest.mark.parametrize("place", ["source", "source/val", "."])
def test_labels_with_a_usual_name_are_found(
    imagenet_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, place: str, name: str
) -> None:
    copied(imagenet_folder, tmp_path / "source", "val")
    labels = write_labels(imagenet_folder, tmp_path / place / name)
    with caplog.at_level(logging.INFO):
        source = opened(tmp_path / "source", splits=["val"])
    assert [wnid for _, wnid, _ in contents(source, "val")] == val_wnids(imagenet_folder)
    assert f"val: labels from {labels}" in caplog.messages


@pytest.mark.parametrize("name", [*LABEL_FILES, DEVKIT, f"{DEVKIT}.tar.gz"])
@pytest.mark.parametrize("flag", ["--src", "--val-labels"])
def test_labels_that_are_given_are_used_and_not_those_next_to_the_source(
    imagenet_folder: Path, tmp_path: Path, flag: str, name: str
) -> None:
    src = copied(imagenet_folder, tmp_path / "source", "val")
    (src / "valprep.sh").write_text(valprep(CLASSES, CLASSES))
    labels = write_labels(imagenet_folder, tmp_path / "elsewhere" / name)
    paths, given = ([src, labels], None) if flag == "--src" else ([src], labels)
    source = opened(*paths, splits=["val"], val_labels=given)
    assert [wnid for _, wnid, _ in contents(source, "val")] == val_wnids(imagenet_folder)


def test_images_unpacked_next_to_their_archives_are_listed_once(
    imagenet_folder: Path, tmp_path: Path, expected_images: dict[str, Any]
) -> None:
    root = copied(imagenet_folder, tmp_path)
    for split, write in (("train", train_archive), ("val", val_archive)):
        write(imagenet_folder, root / split / OFFICIAL[split])
        write(imagenet_folder, root / OFFICIAL[split])
    write_labels(imagenet_folder, root / "valprep.sh")
    source = opened(root)
    assert {split: contents(source, split) for split in source.splits} == expected_images


def test_half_unpacked_training_archive_is_read_whole(
    imagenet_folder: Path, tmp_path: Path, expected_images: dict[str, Any]
) -> None:
    """Some of its class archives are next to it."""
    train_archive(imagenet_folder, tmp_path / "train" / OFFICIAL["train"])
    (tmp_path / "train" / "n00000001.tar").write_bytes(class_tar(imagenet_folder, "n00000001"))
    (tmp_path / "train" / "n00000002.tar").write_bytes(class_tar(imagenet_folder, "n00000002")[:-5000])
    assert contents(opened(tmp_path, splits=["train"]), "train") == expected_images["train"]


def test_given_archive_takes_precedence_over_a_folder_and_is_read_once(
    imagenet_folder: Path, tmp_path: Path, expected_images: dict[str, Any]
) -> None:
    root = tmp_path / "data"
    shutil.copytree(imagenet_folder / "val", root / "train" / "n00000001")
    archive = train_archive(imagenet_folder, root / OFFICIAL["train"])
    assert contents(opened(root, archive, archive, splits=["train"]), "train") == expected_images["train"]


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("imagenet-train-000000.tar", "train"),
        ("imagenet1k-validation-00.tar", "val"),
        ("imagenet_val.tar", "val"),
        ("ImageNet-Train.tar", "train"),
        ("train/000000.tar", "train"),
        ("val/shard-0.tar", "val"),
        ("webdataset/val-000000.tar", "val"),
    ],
)
def test_split_follows_from_the_name(tmp_path: Path, name: str, split: str) -> None:
    write_tar(tmp_path / name, [("a.jpg", b"x"), ("a.cls", b"0")])
    write_tar(tmp_path / "test-000000.tar", [("a.jpg", b"x"), ("a.cls", b"0")])
    assert list(opened(tmp_path, splits=["train", "val"] if split == "train" else ["val"]).splits) == [split]
    if "/" not in name:
        assert list(opened(tmp_path / name, splits=[split]).splits) == [split]


def test_files_that_systems_leave_behind_are_ignored(
    imagenet_folder: Path, tmp_path: Path, expected_images: dict[str, Any]
) -> None:
    root = copied(imagenet_folder, tmp_path)
    write_labels(imagenet_folder, root / "valprep.sh")
    for path in (
        "train/n00000001/._n00000001_5.JPEG",
        "val/.DS_Store",
        "val/Thumbs.db",
        "train/list.txt",
        "._train.tar",
    ):
        (root / path).write_bytes(b"stray")
    (root / "val" / "@eaDir").mkdir()
    (root / "train" / ".ipynb_checkpoints").mkdir()
    source = opened(root)
    assert {split: contents(source, split) for split in source.splits} == expected_images


def test_files_that_systems_leave_behind_in_archives_are_ignored(imagenet_folder: Path, tmp_path: Path) -> None:
    image = (imagenet_folder / "val" / f"{val_name(1)}.JPEG").read_bytes()
    inner = tar_bytes([("._a.JPEG", b"stray"), ("a.JPEG", image), ("readme.txt", b"stray")])
    write_tar(tmp_path / "train.tar", [("._n00000001.tar", b"stray"), ("n00000001.tar", inner), ("list.txt", b"stray")])
    write_tar(tmp_path / "val.tar", [("._x.jpg", b"stray"), ("__meta__/x.jpg", b""), ("x.jpg", image), ("x.cls", b"0")])
    assert contents(opened(tmp_path, splits=["train"]), "train") == [("a", "n00000001", image)]
    assert contents(opened(tmp_path, splits=["val"]), "val") == [("x", "000000", image)]


def test_links_are_followed(imagenet_folder: Path, tmp_path: Path, expected_images: dict[str, Any]) -> None:
    """People choose classes by a folder of links, without copying."""
    (tmp_path / "train").mkdir()
    for wnid in CLASSES[:3]:
        (tmp_path / "train" / wnid).symlink_to(imagenet_folder / "train" / wnid)
    (tmp_path / "train" / CLASSES[3]).mkdir()
    for path in (imagenet_folder / "train" / CLASSES[3]).iterdir():
        (tmp_path / "train" / CLASSES[3] / path.name).symlink_to(path)
    assert contents(opened(tmp_path, splits=["train"]), "train") == expected_images["train"]


def test_converted_dataset_with_a_missing_shard_is_refused(dataset_copy: Path) -> None:
    lost = sorted((dataset_copy / "webdataset").glob("train-*.tar"))[1]
    lost.unlink()
    with pytest.raises(InputError) as raised:
        opened(dataset_copy)
    assert_one_line(raised.value, f"{lost}: missing, and dataset.json lists it")


def test_archive_given_twice_is_read_once(tmp_path: Path, imagenet_folder: Path) -> None:
    archive = train_archive(imagenet_folder, tmp_path / "a" / "train.tar")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    again = tmp_path / "b" / ".." / "a" / "train.tar"
    assert len(opened(archive, again, tmp_path / "b" / "train.tar").splits["train"]) == sum(TRAIN_COUNTS.values())


def test_empty_folder_next_to_the_archives_is_ignored(tmp_path: Path, imagenet_folder: Path) -> None:
    train_archive(imagenet_folder, tmp_path / OFFICIAL["train"])
    (tmp_path / "train").mkdir()
    assert len(opened(tmp_path).splits["train"]) == sum(TRAIN_COUNTS.values())


def test_one_split_is_found_alone(imagenet_folder: Path, tmp_path: Path, expected_images: dict[str, Any]) -> None:
    (root,) = official(imagenet_folder, tmp_path / "source")
    for split in ("train", "val"):
        source = opened(root, splits=[split])
        assert list(source.splits) == [split]
        assert contents(source, split) == expected_images[split]


def test_source_without_validation_says_so(
    imagenet_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = copied(imagenet_folder, tmp_path, "train")
    with caplog.at_level(logging.INFO):
        assert list(opened(root).splits) == ["train"]
    assert f"--src {root}: no validation images, converting train only" in caplog.messages


def broken_link(path: str) -> Callable[[Path], object]:
    """Write a broken link next to a good image."""

    def write(root: Path) -> None:
        write_images("train/n00000001/a.JPEG", "val/n00000001/b.JPEG")(root)
        (root / path).symlink_to("/nowhere")

    return write


def broken_split_link(root: Path) -> None:
    write_images("train/n00000001/a.JPEG")(root)
    (root / "val").symlink_to("/nowhere")


def write_pipe(root: Path) -> None:
    write_images("train/n00000001/a.JPEG")(root)
    os.mkfifo(root / "train" / "n00000001" / "b.JPEG")


def truncate_inner_archive(root: Path) -> None:
    inner = tar_bytes([("a.JPEG", IMAGE), ("b.JPEG", IMAGE)])
    write_tar(root / "train.tar", [("n00000001.tar", inner[:3000])])


def all_of(*steps: Callable[[Path], object]) -> Callable[[Path], object]:
    """One step after the other."""

    def run(root: Path) -> None:
        for step in steps:
            step(root)

    return run


IN_CLASS = [("n00000001/a.JPEG", IMAGE)]


BAD_SOURCES: dict[str, tuple[Callable[[Path], object], str]] = {
    "nothing in it": (lambda root: None, "--src {root}: no train images in it; it must hold ImageNet's train/ folder"),
    "other files in it": (write_images("images/n00000001/a.JPEG"), "--src {root}: no train images in it"),
    "train without classes": (write_images("train/a.JPEG"), "{root}/train: no class folders"),
    "empty val": (
        all_of(write_images("train/n00000001/a.JPEG"), lambda root: (root / "val").mkdir()),
        "{root}/val: no images and no class folders",
    ),
    "class folder without images": (
        all_of(write_images("train/n00000001/a.JPEG"), lambda root: (root / "train" / "n00000002").mkdir()),
        "{root}/train/n00000002: no images in this class folder; remove it or fill it",
    ),
    "broken link as an image": (
        broken_link("train/n00000001/c.JPEG"),
        "{root}/train/n00000001/c.JPEG: a broken link; fix",
    ),
    "broken link as a class folder": (broken_link("train/n00000002"), "{root}/train/n00000002: a broken link; fix"),
    "broken link as a validation folder": (broken_split_link, "{root}/val: a broken link; fix or remove it"),
    "broken link as an archive": (
        lambda root: (root / "train.tar").symlink_to("/nowhere"),
        "{root}/train.tar: cannot be read (No such file or directory)",
    ),
    "pipe as an image": (write_pipe, "{root}/train/n00000001/b.JPEG: not a file; fix or remove it"),
    "val sorted in part": (
        write_images("train/n00000001/a.JPEG", "val/n00000001/b.JPEG", "val/c.JPEG"),
        "{root}/val: sorted in part, 1 images (c.JPEG) are next to the class folders",
    ),
    "val image in two classes": (
        write_images(
            *(f"{split}/n0000000{number}/{val_name(1)}.JPEG" for split in ("train", "val") for number in (1, 2)),
        ),
        f"{{root}}/val/n00000002/{val_name(1)}.JPEG: also in {{root}}/val/n00000001/{val_name(1)}.JPEG; remove",
    ),
    "val class that training lacks": (
        write_images("train/n00000001/a.JPEG", "val/n00000002/b.JPEG"),
        "{root}/val/n00000002/b.JPEG: its class n00000002 is not among the 1 of train",
    ),
    "train unpacked in part": (
        lambda root: [
            write_images("train/n00000001/a.JPEG")(root),
            write_tar(root / "train" / "n00000002.tar", [("b.JPEG", IMAGE)]),
        ],
        "{root}/train: unpacked in part, 1 class archives (n00000002.tar) have no folder",
    ),
    "image in two archives": (
        lambda root: [write_tar(root / f"train-{number}.tar", IN_CLASS) for number in range(2)],
        "{root}/train-1.tar/n00000001/a.JPEG: also in {root}/train-0.tar/n00000001/a.JPEG; name one of them",
    ),
    "class twice in an archive": (
        lambda root: write_tar(root / "train.tar", 2 * [("n00000001.tar", tar_bytes([("a.JPEG", IMAGE)]))]),
        "{root}/train.tar/n00000001/a.JPEG: also in {root}/train.tar/n00000001/a.JPEG; name one of them",
    ),
    "archives of two kinds": (
        lambda root: [
            write_tar(root / "train-0.tar", IN_CLASS),
            write_tar(root / "train-1.tar", [("n00000002.tar", tar_bytes([("b.JPEG", IMAGE)]))]),
        ],
        "{root}/train-0.tar: holds images, and {root}/train-1.tar archives; convert them one by one",
    ),
    "empty archive among shards": (
        lambda root: [shard_with("train-0.tar")(root), write_tar(root / "train-1.tar", [])],
        "{root}/train-1.tar: no files in this archive",
    ),
    "class name that is not text": (
        write_images(os.fsdecode(b"train/cl\xff/a.JPEG")),
        "class folders in {root}/train: the class name 'cl\\udcff'; rename it to plain letters",
    ),
    "empty archive": (lambda root: write_tar(root / "train.tar", []), "{root}/train.tar: no files in this archive"),
    "not an archive": (write_images("train.tar"), "{root}/train.tar: not a tar archive, or damaged"),
    "truncated archive": (
        lambda root: os.truncate(write_tar(root / "train.tar", IN_CLASS), 1000),
        "{root}/train.tar: truncated in n00000001/a.JPEG",
    ),
    "truncated archive in an archive": (truncate_inner_archive, "{root}/train.tar: n00000001.tar: truncated"),
    "not an archive inside an archive": (
        lambda root: write_tar(root / "train.tar", [("n00000001.tar", IMAGE)]),
        "{root}/train.tar: n00000001.tar: not a tar archive, or damaged",
    ),
    "archive in an archive that is not named after a class": (
        lambda root: write_tar(root / "train.tar", [("train-0000.tar", tar_bytes(IN_CLASS))]),
        "{root}/train.tar: train-0000.tar in it is not named after a class (nXXXXXXXX.tar); unpack it into",
    ),
    "class archive without images": (
        lambda root: write_tar(root / "train.tar", [("n00000001.tar", tar_bytes([("a.txt", b"x")]))]),
        "{root}/train.tar: no images in n00000001.tar",
    ),
    "flat archive of training": (
        lambda root: write_tar(root / "train.tar", [("a.JPEG", IMAGE)]),
        "{root}/train.tar: neither archives of classes (nXXXXXXXX.tar) nor class folders",
    ),
    "archive of other files": (
        lambda root: write_tar(root / "train.tar", [("a.txt", b"x"), ("b.npy", b"x")]),
        "{root}/train.tar: neither archives of classes",
    ),
    "class folder next to wnids in an archive": (
        lambda root: write_tar(root / "train.tar", [*IN_CLASS, ("cat/cover.JPEG", IMAGE)]),
        "{root}/train.tar/cat/cover.JPEG: in no class folder",
    ),
    "validation archive sorted in part": (
        lambda root: [
            write_tar(root / "train.tar", IN_CLASS),
            write_tar(root / "val.tar", [*IN_CLASS, ("cover.JPEG", IMAGE)]),
        ],
        "{root}/val.tar/cover.JPEG: in no class folder",
    ),
}


@pytest.mark.parametrize(("make", "message"), BAD_SOURCES.values(), ids=BAD_SOURCES.keys())
def test_bad_source_is_refused_with_one_line(tmp_path: Path, make: Callable[[Path], object], message: str) -> None:
    assert_refused(tmp_path / "source", make, message)


def test_path_that_does_not_exist_is_named(imagenet_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError) as raised:
        opened(imagenet_folder, tmp_path / "none")
    assert_one_line(raised.value, f"--src {tmp_path}/none: no such file or folder; it must hold")


def test_path_that_the_system_refuses_is_named(imagenet_folder: Path, tmp_path: Path) -> None:
    """ENAMETOOLONG stands for EACCES here, which does not exist for root."""
    path = tmp_path / ("x" * 300)
    cases: list[tuple[Path, dict[str, Any]]] = [
        (path, {}),
        (imagenet_folder, {"val_labels": path}),
        (imagenet_folder, {"classes": path}),
    ]
    for src, options in cases:
        with pytest.raises(InputError) as raised:
            opened(src, **options)
        assert_one_line(raised.value, f"{path}: cannot be read (File name too long)")


@pytest.mark.parametrize(
    ("name", "pack", "command"),
    [
        ("train.tar.gz", gzip.compress, "gunzip -k"),
        ("ILSVRC2012_img_train.tgz", gzip.compress, "gunzip -k"),
        ("train.tar.bz2", bz2.compress, "bunzip2 -k"),
        ("train.tar.xz", lzma.compress, "unxz -k"),
    ],
)
@pytest.mark.parametrize("inside", [False, True], ids=["named", "in a folder"])
def test_compressed_archives_are_refused_with_what_to_do(
    tmp_path: Path, name: str, pack: Callable[[bytes], bytes], command: str, inside: bool
) -> None:
    path = tmp_path / "data" / name
    path.parent.mkdir()
    path.write_bytes(pack(tar_bytes([("n00000001_1.JPEG", IMAGE)])))
    src = tmp_path if inside else path
    with pytest.raises(InputError) as raised:
        opened(src, splits=["train"])
    message = f"--src {src}: {name} is compressed, which cannot be read in place; unpack it first: `{command} {path}`"
    assert_one_line(raised.value, message)
    if shutil.which(command.split()[0]):
        subprocess.run([*command.split(), str(path)], check=True)
        (unpacked,) = {*path.parent.iterdir()} - {path}
        assert contents(opened(unpacked, splits=["train"]), "train") == [("n00000001_1", "n00000001", IMAGE)]


@pytest.mark.parametrize("name", ["$(touch INTRUDED)", "`touch INTRUDED`", "a; touch INTRUDED #", "a' 'b", '"'])
def test_the_command_of_a_message_runs_nothing_that_a_file_is_called(tmp_path: Path, name: str) -> None:
    """People paste it; the names in a data set are a stranger's."""
    path = tmp_path / f"train {name}.tar.gz"
    path.write_bytes(gzip.compress(tar_bytes([("n00000001_1.JPEG", IMAGE)])))
    with pytest.raises(InputError) as raised:
        opened(tmp_path, splits=["train"])
    command = str(raised.value).partition("unpack it first: `")[2].removesuffix("`")
    subprocess.run(["bash", "-c", command], cwd=tmp_path, check=True)
    assert {*tmp_path.iterdir()} == {path, path.with_suffix("")}


@pytest.mark.parametrize("name", ["images.tar", "train.tar.gz", "imagenet.zip", "labels.txt"])
def test_path_that_cannot_be_converted_is_named(imagenet_folder: Path, tmp_path: Path, name: str) -> None:
    """It is not silently ignored."""
    write_tar(tmp_path / name, IN_CLASS)
    with pytest.raises(InputError) as raised:
        opened(imagenet_folder, tmp_path / name)
    assert_one_line(raised.value, f"--src {tmp_path / name}: not an uncompressed archive with train or val in its name")


def test_two_paths_with_the_same_split_are_refused(imagenet_folder: Path, tmp_path: Path) -> None:
    copied(imagenet_folder, tmp_path, "train")
    with pytest.raises(InputError) as raised:
        opened(imagenet_folder, tmp_path)
    assert_one_line(raised.value, f"--src: {imagenet_folder} and {tmp_path} all have train images; name one of them")


def test_labels_for_images_that_have_classes_are_refused(imagenet_folder: Path, tmp_path: Path) -> None:
    (root,) = class_folders(imagenet_folder, tmp_path / "source")
    with pytest.raises(InputError) as raised:
        opened(root, val_labels=imagenet_folder / "val_labels.txt")
    assert_one_line(raised.value, f"--val-labels: not needed, there are classes in class folders in {root}/val")


def test_labels_without_validation_images_are_refused(imagenet_folder: Path, tmp_path: Path) -> None:
    labels = imagenet_folder / "val_labels.txt"
    root = copied(imagenet_folder, tmp_path, "train")
    for splits, reason in ((["train", "val"], "there are none in it"), (["train"], "--splits leaves them out")):
        with pytest.raises(InputError) as raised:
            opened(root, splits=splits, val_labels=labels)
        assert_one_line(raised.value, f"--val-labels {labels}: no validation images of --src {root}, {reason}")


def test_manifest_of_something_else_above_the_shards_is_ignored(tmp_path: Path) -> None:
    (tmp_path / MANIFEST).write_text('{"shards": []}')
    write_samples(tmp_path / "train" / "0.tar", [{"__key__": "0", "jpg": IMAGE, "cls": "n00000001"}])
    assert opened(tmp_path, splits=["train"]).classes == ("n00000001",)
