"""ImageNet in every shape that people have, as real folders, archives and shards."""

import io
import json
import logging
import os
import shutil
import tarfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest
import webdataset
from conftest import TRAIN_COUNTS
from images import files_in, jpeg_bytes, photograph
from label_files import kaggle_csv, packed, synset_list, val_name, valprep, write_devkit

from pipeline.conversion.sources import Found, Request, Source, file_rows, found, open_source
from pipeline.dataset import MANIFEST, Manifest
from pipeline.errors import InputError
from tools.convert_imagenet import ConvertSettings, convert

CLASSES = list(TRAIN_COUNTS)
FLAGS: dict[str, Any] = {"jpeg": "keep", "shard_size": "100KB", "workers": 2}  # those of the fixture `dataset`
LABEL_FILES = ("valprep.sh", "LOC_val_solution.csv", "imagenet_2012_validation_synset_labels.txt")
DEVKIT = "ILSVRC2012_devkit_t12"
OFFICIAL = {split: f"ILSVRC2012_img_{split}.tar" for split in ("train", "val")}


def opened(*paths: Path, splits: Sequence[str] = ("train", "val"), **options: Any) -> Source:
    """What is found in these paths."""
    return open_source(Request(paths, tuple(splits), **{"val_labels": None, "classes": None, "seed": 0, **options}))


def contents(source: Source, split: str) -> list[tuple[str, str, bytes]]:
    """Name, wnid and bytes of each image of a split, sorted."""
    images = source.splits[split]
    return sorted(
        (images.stem(index), source.classes[images.labels[index]], images.read(index)) for index in range(len(images))
    )


@pytest.fixture(scope="session")
def val_wnids(imagenet_folder: Path) -> list[str]:
    """The wnid of each validation image."""
    return (imagenet_folder / "val_labels.txt").read_text().split()


@pytest.fixture(scope="session")
def expected(imagenet_folder: Path, val_wnids: list[str]) -> dict[str, list[tuple[str, str, bytes]]]:
    """What must be found: name, wnid and bytes of each image."""
    train = [(path.stem, path.parent.name, path.read_bytes()) for path in imagenet_folder.glob("train/*/*.JPEG")]
    val = sorted((imagenet_folder / "val").iterdir())
    return {
        "train": sorted(train),
        "val": [(path.stem, wnid, path.read_bytes()) for path, wnid in zip(val, val_wnids, strict=True)],
    }


# --- shapes, made of an ImageNet folder


def write_tar(path: Path, files: Iterable[tuple[str, bytes]]) -> Path:
    """An archive of these files."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(tar_bytes(files))
    return path


def tar_bytes(files: Iterable[tuple[str, bytes]]) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        for name, data in files:
            header = tarfile.TarInfo(name)
            header.size = len(data)
            tar.addfile(header, io.BytesIO(data))
    return stream.getvalue()


def class_tar(imagenet: Path, wnid: str) -> bytes:
    """nXXXXXXXX.tar: the images of a class, in the order in which the disk has them."""
    return tar_bytes((path.name, path.read_bytes()) for path in (imagenet / "train" / wnid).iterdir())


def train_archive(imagenet: Path, path: Path) -> Path:
    """ILSVRC2012_img_train.tar: an archive of an archive for each class."""
    return write_tar(path, ((f"{wnid}.tar", class_tar(imagenet, wnid)) for wnid in reversed(CLASSES)))


def val_archive(imagenet: Path, path: Path) -> Path:
    """ILSVRC2012_img_val.tar: flat."""
    return write_tar(path, ((image.name, image.read_bytes()) for image in (imagenet / "val").iterdir()))


def labels_of(imagenet: Path) -> list[str]:
    return (imagenet / "val_labels.txt").read_text().split()


def write_labels(imagenet: Path, path: Path) -> Path:
    """Validation labels in the form that the name of the file tells."""
    wnids, kit = labels_of(imagenet), path.name.removesuffix(".tar.gz")
    path.parent.mkdir(parents=True, exist_ok=True)
    if kit == DEVKIT:
        folder = write_devkit(path.with_name(kit), wnids, CLASSES)
        if folder != path:
            packed(folder, path)
            shutil.rmtree(folder)
        return path
    texts = (valprep(wnids, CLASSES), kaggle_csv(wnids), synset_list(wnids))
    path.write_text(texts[LABEL_FILES.index(path.name)])
    return path


def sorted_val(imagenet: Path, folder: Path) -> Path:
    """val/ as valprep.sh leaves it."""
    for image, wnid in zip(sorted((imagenet / "val").iterdir()), labels_of(imagenet), strict=True):
        (folder / wnid).mkdir(parents=True, exist_ok=True)
        shutil.copy(image, folder / wnid)
    return folder


def copied(imagenet: Path, root: Path, *names: str) -> Path:
    for name in names or ("train", "val"):
        shutil.copytree(imagenet / name, root / name)
    return root


def class_folders(imagenet: Path, root: Path) -> list[Path]:
    sorted_val(imagenet, copied(imagenet, root, "train") / "val")
    return [root]


def flat_val(imagenet: Path, root: Path) -> list[Path]:
    write_labels(imagenet, copied(imagenet, root) / "valprep.sh")
    return [root]


def official(imagenet: Path, root: Path) -> list[Path]:
    train_archive(imagenet, root / OFFICIAL["train"])
    val_archive(imagenet, root / OFFICIAL["val"])
    write_labels(imagenet, root / f"{DEVKIT}.tar.gz")
    # Other downloads from the same page.
    train_archive(imagenet, root / "ILSVRC2012_img_train_t3.tar")
    write_tar(root / "ILSVRC2012_img_test_v10102019.tar", [("test/ILSVRC2012_test_00000001.JPEG", b"")])
    return [root]


def official_apart(imagenet: Path, root: Path) -> list[Path]:
    return [
        train_archive(imagenet, root / "a" / OFFICIAL["train"]),
        val_archive(imagenet, root / "b" / OFFICIAL["val"]),
        write_labels(imagenet, root / "c" / f"{DEVKIT}.tar.gz"),
    ]


def unpacked_once(imagenet: Path, root: Path) -> list[Path]:
    for wnid in CLASSES:
        write_tar(
            root / "train" / f"{wnid}.tar", ((p.name, p.read_bytes()) for p in (imagenet / "train" / wnid).iterdir())
        )
    copied(imagenet, root, "val")
    write_labels(imagenet, root / DEVKIT)
    return [root]


def archives_of_class_folders(imagenet: Path, root: Path) -> list[Path]:
    sorted_val(imagenet, root / "val")
    packed(imagenet / "train", root / "imagenet-train.tar", "w")
    packed(root / "val", root / "imagenet-val.tar", "w")
    shutil.rmtree(root / "val")
    return [root]


def archive_of_the_current_folder(imagenet: Path, root: Path) -> list[Path]:
    """`tar -cf train.tar .`: every name begins with ./"""
    root.mkdir(parents=True)
    with tarfile.open(root / "train.tar", "w") as tar:
        tar.add(imagenet / "train", ".")
    shutil.copytree(imagenet / "val", root / "val")
    write_labels(imagenet, root / "val" / "valprep.sh")
    return [root]


def kaggle(imagenet: Path, root: Path) -> list[Path]:
    inner = copied(imagenet, root / "ILSVRC" / "Data" / "CLS-LOC")
    (inner / "test").mkdir()
    (inner / "test" / "ILSVRC2012_test_00000001.JPEG").write_bytes(b"")
    (root / "ILSVRC" / "Annotations" / "CLS-LOC" / "val").mkdir(parents=True)
    write_labels(imagenet, root / "LOC_val_solution.csv")
    (root / "LOC_train_solution.csv").write_text("ImageId,PredictionString\nn00000001_5,n00000001 1 2 3 4\n")
    (root / "LOC_synset_mapping.txt").write_text("".join(f"{wnid} word\n" for wnid in CLASSES))
    return [root]


def shards(imagenet: Path, root: Path) -> list[Path]:
    """What the webdataset library's ShardWriter makes of the images."""
    root.mkdir(parents=True)
    samples = {
        "train": [(path, path.parent.name) for path in sorted((imagenet / "train").glob("*/*"))],
        "val": list(zip(sorted((imagenet / "val").iterdir()), labels_of(imagenet), strict=True)),
    }
    for split, images in samples.items():
        with webdataset.ShardWriter(str(root / f"imagenet-{split}-%06d.tar"), maxcount=9, verbose=0) as writer:
            for path, wnid in images:
                writer.write({"__key__": path.stem, "jpg": path.read_bytes(), "cls": wnid})
    return [root]


def apart(imagenet: Path, root: Path) -> list[Path]:
    """Every piece on a disk of its own, in a shape of its own."""
    return [
        copied(imagenet, root / "fast", "train") / "train",
        val_archive(imagenet, root / "slow" / "validation.tar"),
        write_labels(imagenet, root / "etc" / "imagenet_2012_validation_synset_labels.txt"),
    ]


SHAPES: dict[str, Callable[[Path, Path], list[Path]]] = {
    "class folders": class_folders,
    "flat val": flat_val,
    "official archives in a folder": official,
    "official archives named": official_apart,
    "training archive unpacked once": unpacked_once,
    "archives of class folders": archives_of_class_folders,
    "archive of the current folder": archive_of_the_current_folder,
    "kaggle": kaggle,
    "WebDataset shards": shards,
    "train and val apart": apart,
}


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_every_shape_gives_the_same_bytes(
    imagenet_folder: Path, dataset: Path, tmp_path: Path, shape: Callable[[Path, Path], list[Path]]
) -> None:
    dst = tmp_path / "converted"
    convert(ConvertSettings(src=tuple(shape(imagenet_folder, tmp_path / "source")), dst=dst, **FLAGS))
    assert_same_dataset(dst, dataset)


def assert_same_dataset(made: Path, dataset: Path) -> None:
    """Byte for byte; in the report, only the places of the images differ."""
    left, right = files_in(made), files_in(dataset)
    ours, theirs = (json.loads(files.pop("report.json")) for files in (left, right))
    assert left.keys() == right.keys()
    assert [name for name in left if left[name] != right[name]] == []
    assert ours["stored"] == theirs["stored"]
    assert ours["counts"] == theirs["counts"]
    assert [{**entry, "file": ""} for entry in ours["images"]] == [{**entry, "file": ""} for entry in theirs["images"]]


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
}


@pytest.mark.parametrize("shape", DESCRIPTIONS)
def test_what_was_found_is_named(
    imagenet_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, shape: str
) -> None:
    with caplog.at_level(logging.INFO):
        opened(*SHAPES[shape](imagenet_folder, tmp_path / "source"))
    train, val = (description.format(tmp_path / "source") for description in DESCRIPTIONS[shape])
    assert f"train: 47 images, {train}" in caplog.messages
    assert f"val: 19 images, {val}" in caplog.messages


# --- where things are


@pytest.mark.parametrize("place", ["", "ILSVRC", "ILSVRC/Data", "ILSVRC/Data/CLS-LOC"])
def test_kaggle_download_is_read_from_each_of_its_folders(
    imagenet_folder: Path,
    tmp_path: Path,
    expected: dict[str, Any],
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
        assert {split: contents(source, split) for split in source.splits} == expected


@pytest.mark.parametrize("how", ["link", "folders"])
def test_kaggle_labels_are_found_from_outside(imagenet_folder: Path, tmp_path: Path, how: str) -> None:
    root = tmp_path / "download" / "ILSVRC" / "Data" / "CLS-LOC"
    shutil.copytree(imagenet_folder / "train", root / "train")
    shutil.copytree(imagenet_folder / "val", root / "val")
    write_labels(imagenet_folder, tmp_path / "download" / "LOC_val_solution.csv")
    (tmp_path / "imagenet").symlink_to(root)
    paths = (tmp_path / "imagenet",) if how == "link" else (root / "train", root / "val")
    assert len(opened(*paths).splits["val"]) == len(labels_of(imagenet_folder))


@pytest.mark.parametrize("name", [*LABEL_FILES, DEVKIT, f"{DEVKIT}.tar.gz"])
@pytest.mark.parametrize("place", ["source", "source/val", "."])
def test_labels_of_a_usual_name_are_found(
    imagenet_folder: Path, tmp_path: Path, val_wnids: list[str], caplog: pytest.LogCaptureFixture, place: str, name: str
) -> None:
    copied(imagenet_folder, tmp_path / "source", "val")
    labels = write_labels(imagenet_folder, tmp_path / place / name)
    with caplog.at_level(logging.INFO):
        source = opened(tmp_path / "source", splits=["val"])
    assert [wnid for _, wnid, _ in contents(source, "val")] == val_wnids
    assert f"val: labels from {labels}" in caplog.messages


@pytest.mark.parametrize("name", [*LABEL_FILES, DEVKIT, f"{DEVKIT}.tar.gz"])
@pytest.mark.parametrize("flag", ["--src", "--val-labels"])
def test_labels_that_are_named_are_taken_and_not_those_beside_the_source(
    imagenet_folder: Path, tmp_path: Path, val_wnids: list[str], flag: str, name: str
) -> None:
    src = copied(imagenet_folder, tmp_path / "source", "val")
    (src / "valprep.sh").write_text(valprep(CLASSES, CLASSES))
    labels = write_labels(imagenet_folder, tmp_path / "elsewhere" / name)
    paths, given = ([src, labels], None) if flag == "--src" else ([src], labels)
    source = opened(*paths, splits=["val"], val_labels=given)
    assert [wnid for _, wnid, _ in contents(source, "val")] == val_wnids


def test_images_that_were_unpacked_beside_their_archives_are_taken_once(
    imagenet_folder: Path, tmp_path: Path, expected: dict[str, Any]
) -> None:
    root = copied(imagenet_folder, tmp_path)
    for split, write in (("train", train_archive), ("val", val_archive)):
        write(imagenet_folder, root / split / OFFICIAL[split])
        write(imagenet_folder, root / OFFICIAL[split])
    write_labels(imagenet_folder, root / "valprep.sh")
    source = opened(root)
    assert {split: contents(source, split) for split in source.splits} == expected


def test_half_unpacked_training_archive_is_read_whole(
    imagenet_folder: Path, tmp_path: Path, expected: dict[str, Any]
) -> None:
    """Its class archives stand beside it."""
    train_archive(imagenet_folder, tmp_path / "train" / OFFICIAL["train"])
    (tmp_path / "train" / "n00000001.tar").write_bytes(class_tar(imagenet_folder, "n00000001"))
    (tmp_path / "train" / "n00000002.tar").write_bytes(class_tar(imagenet_folder, "n00000002")[:-5000])
    assert contents(opened(tmp_path, splits=["train"]), "train") == expected["train"]


def test_named_archive_goes_before_a_folder_and_is_read_once(
    imagenet_folder: Path, tmp_path: Path, expected: dict[str, Any]
) -> None:
    root = tmp_path / "data"
    shutil.copytree(imagenet_folder / "val", root / "train" / "n00000001")
    archive = train_archive(imagenet_folder, root / OFFICIAL["train"])
    assert contents(opened(root, archive, archive, splits=["train"]), "train") == expected["train"]


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
def test_name_tells_the_split(tmp_path: Path, name: str, split: str) -> None:
    write_tar(tmp_path / name, [("a.jpg", b"x"), ("a.cls", b"0")])
    write_tar(tmp_path / "test-000000.tar", [("a.jpg", b"x"), ("a.cls", b"0")])
    assert list(opened(tmp_path, splits=["train", "val"] if split == "train" else ["val"]).splits) == [split]
    if "/" not in name:
        assert list(opened(tmp_path / name, splits=[split]).splits) == [split]


def test_what_systems_leave_is_passed_over(imagenet_folder: Path, tmp_path: Path, expected: dict[str, Any]) -> None:
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
    assert {split: contents(source, split) for split in source.splits} == expected


def test_what_systems_leave_in_archives_is_passed_over(imagenet_folder: Path, tmp_path: Path) -> None:
    image = (imagenet_folder / "val" / f"{val_name(1)}.JPEG").read_bytes()
    inner = tar_bytes([("._a.JPEG", b"stray"), ("a.JPEG", image), ("readme.txt", b"stray")])
    write_tar(tmp_path / "train.tar", [("._n00000001.tar", b"stray"), ("n00000001.tar", inner), ("list.txt", b"stray")])
    write_tar(tmp_path / "val.tar", [("._x.jpg", b"stray"), ("__meta__/x.jpg", b""), ("x.jpg", image), ("x.cls", b"0")])
    assert contents(opened(tmp_path, splits=["train"]), "train") == [("a", "n00000001", image)]
    assert contents(opened(tmp_path, splits=["val"]), "val") == [("x", "000000", image)]


def test_links_are_followed(imagenet_folder: Path, tmp_path: Path, expected: dict[str, Any]) -> None:
    """A folder of links, as people make to choose classes without copying."""
    (tmp_path / "train").mkdir()
    for wnid in CLASSES[:3]:
        (tmp_path / "train" / wnid).symlink_to(imagenet_folder / "train" / wnid)
    (tmp_path / "train" / CLASSES[3]).mkdir()
    for path in (imagenet_folder / "train" / CLASSES[3]).iterdir():
        (tmp_path / "train" / CLASSES[3] / path.name).symlink_to(path)
    assert contents(opened(tmp_path, splits=["train"]), "train") == expected["train"]


# --- WebDataset shards


IMAGE = jpeg_bytes(photograph(40, 50, seed=1))


def write_samples(path: Path, samples: list[dict[str, Any]], encode: bool = True) -> Path:
    """What the webdataset library's TarWriter makes of them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with webdataset.TarWriter(str(path), encoder=encode) as writer:
        for sample in samples:
            writer.write(sample)
    return path


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
    "wnid in json goes before a number": ([{"jpg": IMAGE, "json": {"label": 7, "wnid": "n02"}}], ["n02"]),
    "png": ([{"png": IMAGE, "cls": "n02"}], ["n02"]),
    "cls goes before a caption": ([{"jpg": IMAGE, "cls": "n02", "txt": "a photograph of a dog"}], ["n02"]),
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


def test_same_key_in_several_shards_and_folders_is_several_images(tmp_path: Path) -> None:
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
    """As the webdataset library has it."""
    path = write_tar(
        tmp_path / "train.tar", [("a.v2.jpg", IMAGE), ("a.cls", b"n01"), ("b.JPG", IMAGE), ("b.CLS", b"n02")]
    )
    samples = webdataset.WebDataset(str(path), shardshuffle=False)
    assert [[name for name in sample if name[0] != "_"] for sample in samples] == [["v2.jpg", "cls"], ["jpg", "cls"]]
    assert [wnid for _, wnid, _ in contents(opened(path, splits=["train"]), "train")] == ["n01", "n02"]


def test_class_index_without_an_image_keeps_the_others_in_place(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Some of the shards, say: class 1 is in another."""
    for split in ("train", "val"):
        samples = [
            {"__key__": str(label), "jpg": IMAGE, "cls": label} for label in ((0, 2, 3) if split == "train" else (2,))
        ]
        write_samples(tmp_path / f"{split}.tar", samples)
    source = opened(tmp_path)
    assert source.classes == ("000000", "000001", "000002", "000003")
    assert sorted(source.splits["train"].labels.tolist()) == [0, 2, 3]
    assert source.splits["val"].labels.tolist() == [2]
    assert "has class indices without names; --classes FILE names them, in their order" in caplog.text


def test_many_class_indices_without_names_keep_their_order(tmp_path: Path) -> None:
    """ImageNet-21k: sorted as text, 10000 would come before 9999."""
    labels = [999, 1000, 9999, 10000, 21840]
    write_samples(tmp_path / "train.tar", [{"__key__": f"{at:05d}", "jpg": IMAGE, "cls": at} for at in labels])
    assert sorted(opened(tmp_path, splits=["train"]).splits["train"].labels.tolist()) == labels


# --- which classes


def class_file(path: Path, *names: str) -> Path:
    path.write_text("".join(f"{name}\n" for name in names))
    return path


def test_class_list_restricts_both_splits(
    imagenet_folder: Path, tmp_path: Path, expected: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    """As the lists of ImageNet-100 do, which are in no order."""
    (root,) = flat_val(imagenet_folder, tmp_path / "source")
    wanted = class_file(tmp_path / "two.txt", "n00000004 fish", "n00000002 bird")
    with caplog.at_level(logging.INFO):
        source = opened(root, classes=wanted)
    assert source.classes == ("n00000002", "n00000004")
    for split, images in expected.items():
        kept = [image for image in images if image[1] in source.classes]
        assert contents(source, split) == kept
        assert f"{split}: {len(kept)} images are of the 2 classes of {wanted}" in caplog.messages


def test_class_list_fixes_classes_that_have_no_images(
    imagenet_folder: Path, tmp_path: Path, expected: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    (root,) = class_folders(imagenet_folder, tmp_path / "source")
    wanted = class_file(tmp_path / "more.txt", *reversed(CLASSES), "n00000000", "n99999999")
    source = opened(root, classes=wanted)
    assert source.classes == ("n00000000", *CLASSES, "n99999999")
    assert {split: contents(source, split) for split in source.splits} == expected
    assert f"--classes {wanted}: 2 have no train images: n00000000, n99999999" in caplog.messages


def test_class_list_names_the_class_indices_of_shards_in_its_own_order(tmp_path: Path) -> None:
    write_samples(tmp_path / "train.tar", [{"__key__": str(label), "jpg": IMAGE, "cls": label} for label in range(3)])
    wanted = class_file(tmp_path / "classes.txt", "n00000009", "n00000007", "n00000008")
    source = opened(tmp_path, splits=["train"], classes=wanted)
    assert source.classes == ("n00000007", "n00000008", "n00000009")
    assert [wnid for _, wnid, _ in contents(source, "train")] == ["n00000009", "n00000007", "n00000008"]


def test_label_with_zeros_before_it_is_read_whole(tmp_path: Path) -> None:
    numbers = (b"00000007", b"0000000012", b"3")
    files = [(f"{at}.{suffix}", data) for at, text in enumerate(numbers) for suffix, data in
             (("jpg", IMAGE), ("cls", text))]  # fmt: skip
    source = opened(write_tar(tmp_path / "train.tar", files))
    assert sorted(source.splits["train"].labels.tolist()) == [3, 7, 12]


def test_converted_dataset_without_one_of_its_shards_is_refused(dataset_copy: Path) -> None:
    lost = sorted((dataset_copy / "webdataset").glob("train-*.tar"))[1]
    lost.unlink()
    with pytest.raises(InputError) as raised:
        opened(dataset_copy)
    assert_one_line(raised.value, f"{lost}: missing, and dataset.json lists it")


def test_archive_named_twice_is_read_once(tmp_path: Path, imagenet_folder: Path) -> None:
    archive = train_archive(imagenet_folder, tmp_path / "a" / "train.tar")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    again = tmp_path / "b" / ".." / "a" / "train.tar"
    assert len(opened(archive, again, tmp_path / "b" / "train.tar").splits["train"]) == sum(TRAIN_COUNTS.values())


def test_empty_folder_beside_the_archives_is_passed_over(tmp_path: Path, imagenet_folder: Path) -> None:
    train_archive(imagenet_folder, tmp_path / OFFICIAL["train"])
    (tmp_path / "train").mkdir()
    assert len(opened(tmp_path).splits["train"]) == sum(TRAIN_COUNTS.values())


def test_converted_dataset_keeps_its_class_list(imagenet_folder: Path, tmp_path: Path) -> None:
    """Also the classes without images."""
    wanted = class_file(tmp_path / "more.txt", "n00000000", *CLASSES, "n99999999")
    settings = {"src": (imagenet_folder,), "splits": ("train",), "format": ("webdataset",), "classes": wanted}
    convert(ConvertSettings(dst=tmp_path / "first", **settings))
    source = opened(tmp_path / "first", splits=["train"])
    assert source.classes == Manifest.read(tmp_path / "first").classes == ("n00000000", *CLASSES, "n99999999")


def test_converted_dataset_is_restricted_by_wnid(dataset: Path, tmp_path: Path, expected: dict[str, Any]) -> None:
    source = opened(dataset, classes=class_file(tmp_path / "two.txt", "n00000003", "n00000001"))
    for split, images in expected.items():
        assert contents(source, split) == [image for image in images if image[1] in ("n00000001", "n00000003")]


@pytest.mark.parametrize("content", ["n00000005\nn00000006\n", "cat\ndog\n"])
def test_class_list_without_any_class_of_the_source_is_refused(
    imagenet_folder: Path, tmp_path: Path, content: str
) -> None:
    (tmp_path / "classes.txt").write_text(content)
    with pytest.raises(InputError, match=f"--classes {tmp_path}/classes.txt: no train image is of these classes"):
        opened(imagenet_folder, splits=["train"], classes=tmp_path / "classes.txt")


def test_classes_are_those_of_training(imagenet_folder: Path, tmp_path: Path) -> None:
    """Validation may lack some."""
    root = copied(imagenet_folder, tmp_path, "train")
    shutil.copytree(root / "train" / "n00000003", root / "val" / "n00000003")
    source = opened(root)
    assert source.classes == tuple(CLASSES)
    assert set(source.splits["val"].labels.tolist()) == {2}


def test_one_split_is_found_alone(imagenet_folder: Path, tmp_path: Path, expected: dict[str, Any]) -> None:
    (root,) = official(imagenet_folder, tmp_path / "source")
    for split in ("train", "val"):
        source = opened(root, splits=[split])
        assert list(source.splits) == [split]
        assert contents(source, split) == expected[split]


def test_source_without_validation_says_so(
    imagenet_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = copied(imagenet_folder, tmp_path, "train")
    with caplog.at_level(logging.INFO):
        assert list(opened(root).splits) == ["train"]
    assert f"--src {root}: no validation images, converting train only" in caplog.messages


# --- refused before anything is written


def swapped(imagenet: Path) -> list[str]:
    """Labels of the right number, of classes that training lacks."""
    return [wnid.replace("n0000000", "n0001000") for wnid in labels_of(imagenet)]


def write_kit(wnids: Callable[[Path], list[str]]) -> Callable[[Path, Path], object]:
    return lambda imagenet, root: write_devkit(root / DEVKIT, wnids(imagenet), sorted({*wnids(imagenet)}))


def write_text(name: str, text: Callable[[list[str]], str]) -> Callable[[Path, Path], object]:
    """A labels file made of the right wnids, altered."""
    return lambda imagenet, root: (root / name).write_text(text(labels_of(imagenet)))


def write_stray(imagenet: Path, root: Path) -> None:
    write_labels(imagenet, root / "valprep.sh")
    (root / "val" / "cover.jpg").write_bytes(IMAGE)


WRONG_LABELS: dict[str, tuple[Callable[[Path, Path], object], str]] = {
    "none": (lambda imagenet, root: None, "19 images without class folders; give --val-labels FILE"),
    "script without a line": (
        write_text("valprep.sh", lambda wnids: valprep(wnids[:-1], CLASSES)),
        f"{val_name(19)}.JPEG: no label for it in",
    ),
    "script with a line more": (
        write_text("valprep.sh", lambda wnids: valprep([*wnids, CLASSES[0]], CLASSES)),
        "valprep.sh: 20 labels for 19 images, among which ILSVRC2012_val_00000020 is missing",
    ),
    "list without a line": (
        write_text(LABEL_FILES[2], lambda wnids: synset_list(wnids[1:])),
        f"{val_name(19)}.JPEG: no label for it in",
    ),
    "list with a line more": (
        write_text(LABEL_FILES[2], lambda wnids: synset_list([*wnids, CLASSES[0]])),
        f"{LABEL_FILES[2]}: 20 labels for 19 images, among which 20 is missing",
    ),
    "csv without a line": (
        write_text("LOC_val_solution.csv", lambda wnids: kaggle_csv(wnids[:-1])),
        f"{val_name(19)}.JPEG: no label for it in",
    ),
    "csv of training": (
        write_text("LOC_val_solution.csv", lambda wnids: kaggle_csv(wnids).replace("ILSVRC2012_val", "n00000001")),
        f"{val_name(1)}.JPEG: no label for it in",
    ),
    "kit without a line": (write_kit(lambda imagenet: labels_of(imagenet)[:-1]), f"{val_name(19)}.JPEG: no label"),
    "kit with a line more": (
        write_kit(lambda imagenet: [*labels_of(imagenet), CLASSES[0]]),
        f"{DEVKIT}: 20 labels for 19 images, among which 20 is missing",
    ),
    "kit of other classes": (write_kit(swapped), "is not among the 4 of train"),
    "script of other classes": (
        lambda imagenet, root: (root / "valprep.sh").write_text(valprep(swapped(imagenet), CLASSES)),
        "is not among the 4 of train",
    ),
    "list of other classes": (
        lambda imagenet, root: (root / LABEL_FILES[2]).write_text(synset_list(swapped(imagenet))),
        "is not among the 4 of train",
    ),
    "binary": (
        lambda imagenet, root: (root / "valprep.sh").write_bytes(bytes(range(256)) * 9),
        "valprep.sh: cannot be read as text",
    ),
    "empty": (write_text("LOC_val_solution.csv", lambda wnids: ""), "LOC_val_solution.csv: empty"),
    "kit that is no archive": (
        lambda imagenet, root: (root / f"{DEVKIT}.tar.gz").write_bytes(b"<html>"),
        f"{DEVKIT}.tar.gz: not the development kit's archive, or damaged",
    ),
    "a stray image": (write_stray, "val/cover.jpg: no label for it in"),
}


@pytest.mark.parametrize(("spoil", "told"), WRONG_LABELS.values(), ids=WRONG_LABELS.keys())
def test_wrong_labels_are_refused_before_anything_is_written(
    imagenet_folder: Path, tmp_path: Path, spoil: Callable[[Path, Path], object], told: str
) -> None:
    root = copied(imagenet_folder, tmp_path / "source")
    spoil(imagenet_folder, root)
    with pytest.raises(InputError) as raised:
        convert(ConvertSettings(src=(root,), dst=tmp_path / "dst"))
    assert_one_line(raised.value, told, root)
    assert not (tmp_path / "dst").exists()


def assert_one_line(error: BaseException, *parts: object) -> None:
    """One line of readable length that has these parts."""
    assert len(str(error).splitlines()) == 1
    assert len(str(error)) < 500
    for part in parts:
        assert str(part) in str(error)


def shard(name: str, *files: tuple[str, bytes]) -> Callable[[Path], object]:
    """A shard of these files behind a good sample."""
    return lambda root: write_tar(root / name, [("0.jpg", IMAGE), ("0.cls", b"1"), *files])


def folders(*paths: str) -> Callable[[Path], object]:
    """Images at these paths."""

    def write(root: Path) -> None:
        for path in paths:
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).write_bytes(IMAGE)

    return write


def linked(path: str) -> Callable[[Path], object]:
    """A link to nothing, beside a good image."""

    def write(root: Path) -> None:
        folders("train/n00000001/a.JPEG", "val/n00000001/b.JPEG")(root)
        (root / path).symlink_to("/nowhere")

    return write


def linked_split(root: Path) -> None:
    folders("train/n00000001/a.JPEG")(root)
    (root / "val").symlink_to("/nowhere")


def a_pipe(root: Path) -> None:
    folders("train/n00000001/a.JPEG")(root)
    os.mkfifo(root / "train" / "n00000001" / "b.JPEG")


def truncated_inside(root: Path) -> None:
    inner = tar_bytes([("a.JPEG", IMAGE), ("b.JPEG", IMAGE)])
    write_tar(root / "train.tar", [("n00000001.tar", inner[:3000])])


IN_CLASS = [("n00000001/a.JPEG", IMAGE)]
BAD_SOURCES: dict[str, tuple[Callable[[Path], object], str]] = {
    "nothing in it": (lambda root: None, "--src {root}: no train images in it; it must hold ImageNet's train/ folder"),
    "other files in it": (folders("images/n00000001/a.JPEG"), "--src {root}: no train images in it"),
    "train without classes": (folders("train/a.JPEG"), "{root}/train: no class folders"),
    "empty val": (
        lambda root: [folders("train/n00000001/a.JPEG")(root), (root / "val").mkdir()],
        "{root}/val: no images and no class folders",
    ),
    "class folder without images": (
        lambda root: [folders("train/n00000001/a.JPEG")(root), (root / "train" / "n00000002").mkdir()],
        "{root}/train/n00000002: no images in this class folder; remove it or fill it",
    ),
    "images one folder too deep": (
        folders("train/n00000001/images/a.JPEG"),
        "{root}/train/n00000001: no images in this class folder",
    ),
    "link to no image": (linked("train/n00000001/c.JPEG"), "{root}/train/n00000001/c.JPEG: a link to nothing; mend"),
    "link to no class folder": (linked("train/n00000002"), "{root}/train/n00000002: a link to nothing; mend"),
    "link to no validation folder": (linked_split, "{root}/val: a link to nothing; mend or remove it"),
    "link to no archive": (
        lambda root: (root / "train.tar").symlink_to("/nowhere"),
        "{root}/train.tar: cannot be read (No such file or directory)",
    ),
    "pipe as an image": (a_pipe, "{root}/train/n00000001/b.JPEG: no file; mend or remove it"),
    "val sorted in part": (
        folders("train/n00000001/a.JPEG", "val/n00000001/b.JPEG", "val/c.JPEG"),
        "{root}/val: sorted in part, 1 images (c.JPEG) stand beside the class folders",
    ),
    "val image in two classes": (
        folders(
            *(f"{split}/n0000000{number}/{val_name(1)}.JPEG" for split in ("train", "val") for number in (1, 2)),
        ),
        f"{{root}}/val/n00000002/{val_name(1)}.JPEG: also in {{root}}/val/n00000001/{val_name(1)}.JPEG; remove",
    ),
    "val class that training lacks": (
        folders("train/n00000001/a.JPEG", "val/n00000002/b.JPEG"),
        "{root}/val/n00000002/b.JPEG: its class n00000002 is not among the 1 of train",
    ),
    "train unpacked in part": (
        lambda root: [
            folders("train/n00000001/a.JPEG")(root),
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
        lambda root: [shard("train-0.tar")(root), write_tar(root / "train-1.tar", [])],
        "{root}/train-1.tar: no files in this archive",
    ),
    "class name that is no text": (
        folders(os.fsdecode(b"train/cl\xff/a.JPEG")),
        "class folders in {root}/train: the class name 'cl\\udcff'; rename it to plain letters",
    ),
    "empty archive": (lambda root: write_tar(root / "train.tar", []), "{root}/train.tar: no files in this archive"),
    "no archive": (folders("train.tar"), "{root}/train.tar: not a tar archive, or damaged"),
    "truncated archive": (
        lambda root: os.truncate(write_tar(root / "train.tar", IN_CLASS), 1000),
        "{root}/train.tar: truncated in n00000001/a.JPEG",
    ),
    "truncated archive in an archive": (truncated_inside, "{root}/train.tar: n00000001.tar: truncated"),
    "no archive in an archive": (
        lambda root: write_tar(root / "train.tar", [("n00000001.tar", IMAGE)]),
        "{root}/train.tar: n00000001.tar: not a tar archive, or damaged",
    ),
    "archive in an archive that is no class": (
        lambda root: write_tar(root / "train.tar", [("train-0000.tar", tar_bytes(IN_CLASS))]),
        "{root}/train.tar: train-0000.tar in it is not named after a class",
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
    "image beside the class folders of an archive": (
        lambda root: write_tar(root / "train.tar", [*IN_CLASS, ("cover.JPEG", IMAGE)]),
        "{root}/train.tar/cover.JPEG: in no class folder",
    ),
    "sample without a label": (shard("train.tar", ("1.jpg", IMAGE)), "{root}/train.tar: sample 1 has no label"),
    "sample without an image": (
        shard("train.tar", ("1.cls", b"1")),
        "{root}/train.tar: sample 1 has 0 images, not one",
    ),
    "sample of two images": (
        shard("train.tar", ("1.jpg", IMAGE), ("1.png", IMAGE), ("1.cls", b"1")),
        "{root}/train.tar: sample 1 has 2 images, not one",
    ),
    "key twice": (
        shard("train.tar", ("0.jpg", IMAGE), ("0.cls", b"1")),
        "{root}/train.tar: sample 0 has two files .jpg; its key must be its own",
    ),
    "negative label": (shard("train.tar", ("1.jpg", IMAGE), ("1.json", b"-1")), "sample 1 has no label in .cls"),
    "label that is no index": (shard("train.tar", ("1.jpg", IMAGE), ("1.json", b"1e9")), "sample 1 has no label"),
    "huge label": (shard("train.tar", ("1.jpg", IMAGE), ("1.json", b"9" * 12)), "sample 1 has no label"),
    "truth for a label": (shard("train.tar", ("1.jpg", IMAGE), ("1.json", b"true")), "sample 1 has no label"),
    "broken json": (shard("train.tar", ("1.jpg", IMAGE), ("1.json", b"{" * 9000)), "sample 1 has no label"),
    "deep json": (shard("train.tar", ("1.jpg", IMAGE), ("1.json", b"[" * 60000)), "sample 1 has no label"),
    "json with a list": (shard("train.tar", ("1.jpg", IMAGE), ("1.json", b'{"label": [1]}')), "sample 1 has no label"),
    "caption for a label": (shard("train.tar", ("1.jpg", IMAGE), ("1.txt", b"a dog")), "sample 1 has no label"),
    "empty label": (shard("train.tar", ("1.jpg", IMAGE), ("1.cls", b"")), "sample 1 has no label"),
    "label of 8 digits": (shard("train.tar", ("1.jpg", IMAGE), ("1.cls", b"10000000")), "sample 1 has no label"),
    "label of 5000 digits": (shard("train.tar", ("1.jpg", IMAGE), ("1.cls", b"1" * 5000)), "sample 1 has no label"),
    "large label file": (
        shard("train.tar", ("1.jpg", IMAGE), ("1.cls", b"1" * 70_000)),
        "{root}/train.tar: 1.cls is too large for a label",
    ),
    "indices and names": (
        shard("train.tar", ("1.jpg", IMAGE), ("1.cls", b"n00000001")),
        "WebDataset shards {root}/train.tar: some labels are class indices and some are names",
    ),
}


@pytest.mark.parametrize(("make", "told"), BAD_SOURCES.values(), ids=BAD_SOURCES.keys())
def test_bad_source_is_refused_with_one_line(tmp_path: Path, make: Callable[[Path], object], told: str) -> None:
    root = tmp_path / "source"
    root.mkdir()
    make(root)
    with pytest.raises(InputError) as raised:
        opened(root)
    assert_one_line(raised.value, told.format(root=root))


def test_path_that_does_not_exist_is_named(imagenet_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError) as raised:
        opened(imagenet_folder, tmp_path / "none")
    assert_one_line(raised.value, f"--src {tmp_path}/none: no such file or folder; it must hold")


def test_path_that_the_system_refuses_is_named(imagenet_folder: Path, tmp_path: Path) -> None:
    """With ENAMETOOLONG, as it does with EACCES: root, too, can make that happen."""
    path = tmp_path / ("x" * 300)
    for paths, options in (
        ([path], {}),
        ([imagenet_folder], {"val_labels": path}),
        ([imagenet_folder], {"classes": path}),
    ):
        with pytest.raises(InputError) as raised:
            opened(*paths, **options)
        assert_one_line(raised.value, f"{path}: cannot be read (File name too long)")


@pytest.mark.parametrize("name", ["images.tar", "train.tar.gz", "imagenet.zip", "labels.txt"])
def test_path_that_is_nothing_to_convert_is_named(imagenet_folder: Path, tmp_path: Path, name: str) -> None:
    """Instead of being passed over, images and all."""
    write_tar(tmp_path / name, IN_CLASS)
    with pytest.raises(InputError) as raised:
        opened(imagenet_folder, tmp_path / name)
    assert_one_line(raised.value, f"--src {tmp_path / name}: not an uncompressed archive with train or val in its name")


def test_two_paths_with_the_same_split_are_refused(imagenet_folder: Path, tmp_path: Path) -> None:
    copied(imagenet_folder, tmp_path, "train")
    with pytest.raises(InputError) as raised:
        opened(imagenet_folder, tmp_path)
    assert_one_line(raised.value, f"--src: {imagenet_folder} and {tmp_path} all have train images; name one of them")


def test_labels_for_what_has_classes_are_refused(imagenet_folder: Path, tmp_path: Path) -> None:
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


@pytest.mark.parametrize(("count", "told"), [(2, "has class index 2, and only 2 classes have names; --classes FILE")])
def test_class_list_shorter_than_the_indices_of_shards_is_refused(tmp_path: Path, count: int, told: str) -> None:
    write_samples(tmp_path / "train.tar", [{"__key__": str(label), "jpg": IMAGE, "cls": label} for label in range(3)])
    with pytest.raises(InputError) as raised:
        opened(tmp_path, splits=["train"], classes=class_file(tmp_path / "c.txt", *CLASSES[:count]))
    assert_one_line(raised.value, f"WebDataset shards {tmp_path}/train.tar: {told}")


def test_shards_of_datasets_with_other_classes_are_not_mixed(dataset: Path, tmp_path: Path) -> None:
    other = shutil.copytree(dataset, tmp_path / "other")
    manifest = json.loads((other / MANIFEST).read_text())
    (other / MANIFEST).write_text(json.dumps({**manifest, "classes": [*CLASSES, "n00000005"]}))
    paths = sorted(dataset.glob("webdataset/train-*.tar")) + sorted(other.glob("webdataset/train-*.tar"))
    with pytest.raises(InputError, match="from datasets with different classes; convert them one by one"):
        opened(*paths, splits=["train"])


def test_manifest_of_something_else_above_the_shards_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / MANIFEST).write_text('{"shards": []}')
    write_samples(tmp_path / "train" / "0.tar", [{"__key__": "0", "jpg": IMAGE, "cls": "n00000001"}])
    assert opened(tmp_path, splits=["train"]).classes == ("n00000001",)


# --- images by their place


def test_rows_of_every_kind_are_read(imagenet_folder: Path, tmp_path: Path) -> None:
    folder = imagenet_folder / "train" / "n00000001"
    one: Found = found("", file_rows(folder, "n00000001"))
    paths = sorted(folder.iterdir())
    assert [one.images.where(index) for index in range(len(one.images))] == list(map(str, paths))
    assert [one.images.read(index) for index in range(len(one.images))] == [path.read_bytes() for path in paths]
    assert one.labels == ["n00000001"] * len(paths)


def grow(path: Path) -> None:
    with open(path, "ab") as file:
        file.write(b"more")


CHANGES: dict[str, tuple[str, Callable[[Path], object]]] = {
    "file removed": ("class folders", Path.unlink),
    "file cut off": ("class folders", lambda path: os.truncate(path, 100)),
    "file grown": ("class folders", grow),
    "archive removed": ("official archives in a folder", Path.unlink),
    "archive cut off": ("official archives in a folder", lambda path: os.truncate(path, 100)),
}


@pytest.mark.parametrize(("shape", "change"), CHANGES.values(), ids=CHANGES.keys())
def test_image_that_has_changed_is_named(
    imagenet_folder: Path, tmp_path: Path, shape: str, change: Callable[[Path], object]
) -> None:
    (root,) = SHAPES[shape](imagenet_folder, tmp_path / "source")
    images = opened(root, splits=["train"]).splits["train"]
    container = images.containers[images.container[0]]
    change(container if container.is_file() else container / images.names[0])
    with pytest.raises(InputError) as raised:
        images.read(0)
    assert_one_line(raised.value, images.where(0))
