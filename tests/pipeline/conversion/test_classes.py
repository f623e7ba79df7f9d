"""Which class each image shows: class lists, class indices, labels that do not match."""

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.conversion.convert import convert
from pipeline.conversion.settings import ConvertSettings
from pipeline.errors import InputError
from pipeline.storage.manifest import MANIFEST, Manifest
from tests.helpers.imagenet import CLASSES, val_wnids
from tests.helpers.imagenet_forms import (
    DEVKIT,
    LABEL_FILES,
    class_folders,
    copied,
    flat_val,
    write_labels,
)
from tests.helpers.label_files import kaggle_csv, synset_list, val_name, valprep, write_devkit
from tests.helpers.sources import IMAGE, assert_one_line, class_file, contents, opened, write_samples


def test_class_index_without_an_image_keeps_the_others_in_place(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As in some of the shards, where class 1 is in another."""
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
    """As in ImageNet-21k: sorted as text, 10000 would come before 9999."""
    labels = [999, 1000, 9999, 10000, 21840]
    write_samples(tmp_path / "train.tar", [{"__key__": f"{at:05d}", "jpg": IMAGE, "cls": at} for at in labels])
    assert sorted(opened(tmp_path, splits=["train"]).splits["train"].labels.tolist()) == labels


def test_class_list_restricts_both_splits(
    imagenet_folder: Path, tmp_path: Path, expected_images: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    """As the lists of ImageNet-100 do, which are not sorted."""
    (root,) = flat_val(imagenet_folder, tmp_path / "source")
    wanted = class_file(tmp_path / "two.txt", "n00000004 fish", "n00000002 bird")
    with caplog.at_level(logging.INFO):
        source = opened(root, classes=wanted)
    assert source.classes == ("n00000004", "n00000002"), "the order of the file"
    for split, images in expected_images.items():
        kept = [image for image in images if image[1] in source.classes]
        assert contents(source, split) == kept
        assert f"{split}: {len(kept)} images are of the 2 classes of {wanted}" in caplog.messages


def test_class_list_fixes_classes_that_have_no_images(
    imagenet_folder: Path, tmp_path: Path, expected_images: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    (root,) = class_folders(imagenet_folder, tmp_path / "source")
    wanted = class_file(tmp_path / "more.txt", *reversed(CLASSES), "n00000000", "n99999999")
    source = opened(root, classes=wanted)
    assert source.classes == (*reversed(CLASSES), "n00000000", "n99999999")
    assert {split: contents(source, split) for split in source.splits} == expected_images
    assert f"--classes {wanted}: 2 have no train images: n00000000, n99999999" in caplog.messages


def test_class_list_names_the_class_indices_of_shards_in_its_own_order(tmp_path: Path) -> None:
    write_samples(tmp_path / "train.tar", [{"__key__": str(label), "jpg": IMAGE, "cls": label} for label in range(3)])
    wanted = class_file(tmp_path / "classes.txt", "n00000009", "n00000007", "n00000008")
    source = opened(tmp_path, splits=["train"], classes=wanted)
    assert source.classes == ("n00000009", "n00000007", "n00000008")
    assert sorted(source.splits["train"].labels.tolist()) == [0, 1, 2]
    assert [wnid for _, wnid, _ in contents(source, "train")] == ["n00000009", "n00000007", "n00000008"]


@pytest.mark.parametrize("content", ["n00000005\nn00000006\n", "cat\ndog\n"])
def test_class_list_without_any_class_of_the_source_is_refused(
    imagenet_folder: Path, tmp_path: Path, content: str
) -> None:
    (tmp_path / "classes.txt").write_text(content)
    with pytest.raises(InputError, match=f"--classes {tmp_path}/classes.txt: no train image is of these classes"):
        opened(imagenet_folder, splits=["train"], classes=tmp_path / "classes.txt")


def test_class_list_shorter_than_the_indices_of_shards_is_refused(tmp_path: Path) -> None:
    write_samples(tmp_path / "train.tar", [{"__key__": str(label), "jpg": IMAGE, "cls": label} for label in range(3)])
    with pytest.raises(InputError) as raised:
        opened(tmp_path, splits=["train"], classes=class_file(tmp_path / "c.txt", *CLASSES[:2]))
    message = "has class index 2, and only 2 classes have names; --classes FILE"
    assert_one_line(raised.value, f"WebDataset shards {tmp_path}/train.tar: {message}")


def test_classes_are_those_of_training(imagenet_folder: Path, tmp_path: Path) -> None:
    """Some may be missing from validation."""
    root = copied(imagenet_folder, tmp_path, "train")
    shutil.copytree(root / "train" / "n00000003", root / "val" / "n00000003")
    source = opened(root)
    assert source.classes == tuple(CLASSES)
    assert set(source.splits["val"].labels.tolist()) == {2}


def test_converted_dataset_keeps_its_class_list(imagenet_folder: Path, tmp_path: Path) -> None:
    """Including the classes without images."""
    wanted = class_file(tmp_path / "more.txt", "n00000000", *CLASSES, "n99999999")
    dst = tmp_path / "first"
    convert(ConvertSettings(src=(imagenet_folder,), dst=dst, splits=("train",), format=("webdataset",), classes=wanted))
    source = opened(dst, splits=["train"])
    assert source.classes == Manifest.read(dst).classes == ("n00000000", *CLASSES, "n99999999")


def test_converted_dataset_is_restricted_by_wnid(
    dataset: Path, tmp_path: Path, expected_images: dict[str, Any]
) -> None:
    source = opened(dataset, classes=class_file(tmp_path / "two.txt", "n00000003", "n00000001"))
    for split, images in expected_images.items():
        assert contents(source, split) == [image for image in images if image[1] in ("n00000001", "n00000003")]


def test_shards_of_datasets_with_other_classes_are_not_mixed(dataset: Path, tmp_path: Path) -> None:
    other = shutil.copytree(dataset, tmp_path / "other")
    manifest = json.loads((other / MANIFEST).read_text())
    (other / MANIFEST).write_text(json.dumps({**manifest, "classes": [*CLASSES, "n00000005"]}))
    paths = sorted(dataset.glob("webdataset/train-*.tar")) + sorted(other.glob("webdataset/train-*.tar"))
    with pytest.raises(InputError, match="from datasets with different classes; convert them one by one"):
        opened(*paths, splits=["train"])


def foreign_wnids(imagenet: Path) -> list[str]:
    """As many labels as images, of classes that are not in training."""
    return [wnid.replace("n0000000", "n0001000") for wnid in val_wnids(imagenet)]


def write_kit(wnids: Callable[[Path], list[str]]) -> Callable[[Path, Path], object]:
    """Write a development kit with other labels than the right ones."""
    return lambda imagenet, root: write_devkit(root / DEVKIT, wnids(imagenet), sorted({*wnids(imagenet)}))


def write_text(name: str, text: Callable[[list[str]], str]) -> Callable[[Path, Path], object]:
    """Write a labels file with a text made from the right wnids."""
    return lambda imagenet, root: (root / name).write_text(text(val_wnids(imagenet)))


def write_stray(imagenet: Path, root: Path) -> None:
    write_labels(imagenet, root / "valprep.sh")
    (root / "val" / "cover.jpg").write_bytes(IMAGE)


WRONG_LABELS: dict[str, tuple[Callable[[Path, Path], object], str]] = {
    "none": (lambda imagenet, root: None, "19 images without class folders; give --val-labels FILE"),
    "script without a line": (
        write_text("valprep.sh", lambda wnids: valprep(wnids[:-1], CLASSES)),
        f"{val_name(19)}.JPEG: no label for it in",
    ),
    "script with an extra line": (
        write_text("valprep.sh", lambda wnids: valprep([*wnids, CLASSES[0]], CLASSES)),
        "valprep.sh: 20 labels for 19 images, among which ILSVRC2012_val_00000020 is missing",
    ),
    "list without a line": (
        write_text(LABEL_FILES[2], lambda wnids: synset_list(wnids[1:])),
        f"{val_name(19)}.JPEG: no label for it in",
    ),
    "list with an extra line": (
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
    "kit without a line": (write_kit(lambda imagenet: val_wnids(imagenet)[:-1]), f"{val_name(19)}.JPEG: no label"),
    "kit with an extra line": (
        write_kit(lambda imagenet: [*val_wnids(imagenet), CLASSES[0]]),
        f"{DEVKIT}: 20 labels for 19 images, among which 20 is missing",
    ),
    "kit of other classes": (write_kit(foreign_wnids), "is not among the 4 of train"),
    "script of other classes": (
        lambda imagenet, root: (root / "valprep.sh").write_text(valprep(foreign_wnids(imagenet), CLASSES)),
        "is not among the 4 of train",
    ),
    "list of other classes": (
        lambda imagenet, root: (root / LABEL_FILES[2]).write_text(synset_list(foreign_wnids(imagenet))),
        "is not among the 4 of train",
    ),
    "binary": (
        lambda imagenet, root: (root / "valprep.sh").write_bytes(bytes(range(256)) * 9),
        "valprep.sh: cannot be read as text",
    ),
    "empty": (write_text("LOC_val_solution.csv", lambda wnids: ""), "LOC_val_solution.csv: empty"),
    "kit that is not an archive": (
        lambda imagenet, root: (root / f"{DEVKIT}.tar.gz").write_bytes(b"<html>"),
        f"{DEVKIT}.tar.gz: not the development kit's archive, or damaged",
    ),
    "a stray image": (write_stray, "val/cover.jpg: no label for it in"),
}


@pytest.mark.parametrize(("spoil", "message"), WRONG_LABELS.values(), ids=WRONG_LABELS.keys())
def test_wrong_labels_are_refused_before_anything_is_written(
    imagenet_folder: Path, tmp_path: Path, spoil: Callable[[Path, Path], object], message: str
) -> None:
    root = copied(imagenet_folder, tmp_path / "source")
    spoil(imagenet_folder, root)
    with pytest.raises(InputError) as raised:
        convert(ConvertSettings(src=(root,), dst=tmp_path / "dst"))
    assert_one_line(raised.value, message, root)
    assert not (tmp_path / "dst").exists()
