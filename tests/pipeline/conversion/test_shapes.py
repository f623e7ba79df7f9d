"""Data sets in other shapes than ImageNet's, as people download and sort them: splits, classes, labels."""

import logging
import shutil
from pathlib import Path

import pytest

from pipeline.conversion.convert import convert
from pipeline.conversion.finding import Source
from pipeline.conversion.settings import ConvertSettings
from pipeline.errors import InputError
from pipeline.storage.manifest import Manifest
from pipeline.storage.split import open_split
from tests.helpers.files import files_in
from tests.helpers.imagenet import CLASSES, val_wnids
from tests.helpers.imagenet_forms import copied, sorted_val, write_tar
from tests.helpers.images import jpeg_bytes, photograph
from tests.helpers.label_files import index_list, kaggle_csv, synset_list, val_name, valprep
from tests.helpers.sources import IMAGE, assert_one_line, class_file, contents, opened, write_images, write_samples


def by_class(source: Source, split: str) -> list[tuple[str, str]]:
    """Name and class of each image, sorted."""
    return [(name, label) for name, label, _ in contents(source, split)]


# --- classes


def test_numbered_classes_are_in_numerical_order_in_folders_and_conversions(tmp_path: Path) -> None:
    root = tmp_path / "source"
    write_images(*(f"{split}/{number}/{number}.jpg" for split in ("train", "val") for number in range(12)))(root)
    convert(ConvertSettings(src=(root,), dst=tmp_path / "dst"))
    numbers = tuple(map(str, range(12)))
    assert Manifest.read(tmp_path / "dst").classes == open_split(root, "train").classes == numbers
    assert by_class(opened(root), "val") == sorted(zip(numbers, numbers, strict=True))


def test_class_list_fixes_order_and_any_folder_name(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    names = ("Yorkshire terrier", "St. Bernard", "Affenpinscher (toy)", "Épagneul")
    root = tmp_path / "source"
    write_images(*(f"train/{name}/{number}.jpg" for number, name in enumerate(names)))(root)
    wanted = class_file(tmp_path / "dogs.txt", *names)
    with caplog.at_level(logging.INFO):
        convert(ConvertSettings(src=(root,), dst=tmp_path / "dst", classes=wanted))
    assert Manifest.read(tmp_path / "dst").classes == names
    assert f"classes: 4, in the order of {wanted}: {', '.join(names)}" in caplog.messages
    split = open_split(tmp_path / "dst", "train")
    assert sorted(split.samples[index].label for index in range(4)) == [0, 1, 2, 3]


def test_order_of_classes_survives_another_conversion(tmp_path: Path) -> None:
    write_images("train/a/1.jpg", "train/b/2.jpg", "train/c/3.jpg")(tmp_path / "source")
    wanted = class_file(tmp_path / "classes.txt", "c", "a", "b")
    convert(ConvertSettings(src=(tmp_path / "source",), dst=tmp_path / "first", classes=wanted))
    assert opened(tmp_path / "first", splits=["train"]).classes == ("c", "a", "b")
    assert by_class(opened(tmp_path / "first", splits=["train"]), "train")[0] == ("1", "a")


def test_class_names_with_spaces_are_read_from_shards(tmp_path: Path) -> None:
    samples = [{"__key__": str(number), "jpg": IMAGE, "cls": b"St. Bernard"} for number in range(2)]
    assert opened(write_samples(tmp_path / "train.tar", samples), splits=["train"]).classes == ("St. Bernard",)


def test_stray_image_next_to_named_class_folders_is_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_images("train/cat/1.jpg", "train/dog/2.jpg", "train/x.jpg")(tmp_path)
    write_images("val/cat/3.jpg", "val/dog/4.jpg", "val/cover.jpg")(tmp_path)
    with caplog.at_level(logging.INFO):
        source = opened(tmp_path)
    assert by_class(source, "val") == [("3", "cat"), ("4", "dog")]
    assert "val: 1 files passed over: 1 images outside class folders" in caplog.messages
    assert "train: 1 files passed over: 1 images outside class folders" in caplog.messages
    assert open_split(tmp_path, "val").num_samples == 2


# --- splits


@pytest.mark.parametrize("name", ["validation", "valid", "Validation", "test", "val.X"])
def test_other_names_of_validation_are_taken(tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture) -> None:
    write_images("train/cat/1.jpg", "train/dog/2.jpg", f"{name}/dog/3.jpg")(tmp_path)
    assert by_class(opened(tmp_path), "val") == [("3", "dog")]
    assert open_split(tmp_path, "val").samples[0].label == 1
    warning = f"{tmp_path}/test: used for validation, as there is no val/"
    assert (warning in caplog.messages) == (name == "test")
    assert (warning in open_split(tmp_path, "train").remarks) == (name == "test")


@pytest.mark.parametrize("inside", ["test/cat/4.jpg", "test/4.jpg", "holdout/cat/4.jpg", "dev/4.jpg"])
def test_other_images_next_to_the_splits_are_named(
    tmp_path: Path, inside: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Also where a run reads the folder."""
    write_images("train/cat/1.jpg", "val/cat/3.jpg", inside)(tmp_path)
    (tmp_path / "devkit").mkdir()
    source = opened(tmp_path)
    assert by_class(source, "val") == [("3", "cat")]
    other = tmp_path / inside.split("/")[0]
    named = [message for message in caplog.messages if "neither train nor val" in message]
    assert named == [f"{other}: not converted, it is neither train nor val"]
    assert f"{other}: not used, it is neither train nor val" in open_split(tmp_path, "train").remarks


def test_unlabelled_test_images_do_not_become_validation(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_images("train/cat/1.jpg", "test/4.jpg")(tmp_path)
    assert list(opened(tmp_path).splits) == ["train"]
    assert f"{tmp_path}/test: not converted, it is neither train nor val" in caplog.messages


@pytest.mark.parametrize("named", [False, True], ids=["their folder", "each"])
def test_folders_that_make_one_split_are_joined(tmp_path: Path, named: bool) -> None:
    """ImageNet-100 as Kaggle has it."""
    write_images("train.X1/n00000001/a.JPEG", "train.X2/n00000002/b.JPEG", "train.X2/n00000003/c.JPEG")(tmp_path)
    write_images("val.X/n00000003/d.JPEG")(tmp_path)
    source = opened(*(sorted(tmp_path.iterdir()) if named else [tmp_path]))
    assert by_class(source, "train") == [("a", "n00000001"), ("b", "n00000002"), ("c", "n00000003")]
    assert by_class(source, "val") == [("d", "n00000003")]
    assert open_split(tmp_path, "train").num_samples == 3


def test_tiny_imagenet(tmp_path: Path) -> None:
    root = tmp_path / "tiny-imagenet-200"
    wnids = ("n01443537", "n01629819", "n01641577")
    for wnid in reversed(wnids):
        write_images(*(f"train/{wnid}/images/{wnid}_{number}.JPEG" for number in range(3)))(root)
        (root / "train" / wnid / f"{wnid}_boxes.txt").write_text(f"{wnid}_0.JPEG\t0\t10\t63\t58\n")
    write_images(*(f"val/images/val_{number}.JPEG" for number in range(4)), "test/images/test_0.JPEG")(root)
    labels = [wnids[number % 3] for number in range(4)]
    lines = [f"val_{number}.JPEG\t{wnid}\t0\t32\t44\t62\n" for number, wnid in enumerate(labels)]
    (root / "val" / "val_annotations.txt").write_text("".join(reversed(lines)))
    (root / "wnids.txt").write_text("".join(f"{wnid}\n" for wnid in reversed(wnids)))
    (root / "words.txt").write_text("n00001740\tentity\nn00001930\tphysical entity\n")
    source = opened(root)
    assert source.classes == wnids
    assert by_class(source, "val") == [(f"val_{number}", wnid) for number, wnid in enumerate(labels)]
    assert len(source.splits["train"]) == 9
    assert source.passed_over == {"train": {".txt": 3}, "val": {".txt": 1}}
    assert open_split(root, "train").num_samples == 9
    tar = write_tar(tmp_path / "tiny.tar", [(f"x/{name}", data) for name, data in files_in(root).items()])
    assert by_class(opened(tar), "val") == by_class(source, "val")


# --- archives


NAMED = ("St. Bernard", "cat")
ARCHIVES = {
    "class folders": [f"{name}/{number}.jpg" for name in NAMED for number in range(2)],
    "in a folder of the split": [f"./train/{name}/{number}.jpg" for name in NAMED for number in range(2)],
    "in several folders": [f"data/dogs/{name}/{number}.jpg" for name in NAMED for number in range(2)],
    "nested": [f"train/{name}/{number}/{number}.jpg" for name in NAMED for number in range(2)],
}


@pytest.mark.parametrize("names", ARCHIVES.values(), ids=ARCHIVES.keys())
def test_class_folders_of_any_name_in_an_archive(tmp_path: Path, names: list[str]) -> None:
    write_tar(tmp_path / "train.tar", [(name, IMAGE) for name in names])
    source = opened(tmp_path)
    assert by_class(source, "train") == [(str(number), name) for number in range(2) for name in NAMED]


@pytest.mark.parametrize("folder", ["cat", "train/cat", "train/cat/more"])
def test_archive_of_one_class(tmp_path: Path, folder: str) -> None:
    write_tar(tmp_path / "train.tar", [(f"{folder}/{number}.jpg", IMAGE) for number in range(2)])
    assert opened(tmp_path).classes == ("cat",)


def test_archive_of_both_splits_under_any_name(tmp_path: Path) -> None:
    names = ("train/cat/1.jpg", "train/dog/2.jpg", "val/dog/3.jpg")
    tar = write_tar(tmp_path / "pets.tar", [(f"pets/{name}", IMAGE) for name in names])
    source = opened(tar)
    assert by_class(source, "train") == [("1", "cat"), ("2", "dog")]
    assert by_class(source, "val") == [("3", "dog")]


@pytest.mark.parametrize("packed", [True, False], ids=["archive", "folder"])
def test_flat_images_whose_names_carry_the_wnid(tmp_path: Path, packed: bool) -> None:
    """As on Hugging Face: the wnid also ends the name."""
    names = {
        "train": [f"{wnid}_{number}_{wnid}.JPEG" for wnid in CLASSES[:2] for number in (10026, 7)],
        "val": [f"ILSVRC2012_val_{number:08d}_{CLASSES[number % 2]}.JPEG" for number in range(1, 4)],
    }
    for split, files in names.items():
        if packed:
            write_tar(tmp_path / f"{split}.tar", [(name, IMAGE) for name in files])
        else:
            write_images(*(f"{split}/{name}" for name in files))(tmp_path)
    source = opened(tmp_path)
    for split, files in names.items():
        assert by_class(source, split) == sorted((name[:-5], name[-14:-5]) for name in files)


def test_training_image_without_a_class_among_flat_ones_is_named(tmp_path: Path) -> None:
    write_images("train/n00000001_1.JPEG", "train/cover.JPEG")(tmp_path)
    with pytest.raises(InputError) as raised:
        opened(tmp_path)
    assert_one_line(raised.value, f"{tmp_path}/train/cover.JPEG: in no class folder, and has no wnid in its name")


def test_files_in_archives_that_are_no_images_are_counted(tmp_path: Path) -> None:
    files = [("n00000001/a.JPEG", IMAGE), ("n00000001/._a.JPEG", b"x"), ("readme.txt", b"x"), ("n00000001/17", IMAGE)]
    source = opened(write_tar(tmp_path / "train.tar", files))
    assert by_class(source, "train") == [("17", "n00000001"), ("a", "n00000001")]
    assert source.passed_over == {"train": {"._*": 1, ".txt": 1}}


def test_folders_of_systems_and_hidden_ones_in_an_archive_are_neither_classes_nor_images(tmp_path: Path) -> None:
    """As in folders. macOS, Synology's NAS and Jupyter make these, and archives of folders hold them."""
    files = ["cat/1.jpg", "dog/2.jpg", "cat/@eaDir/1.jpg/SYNOPHOTO_THUMB_M.jpg", ".ipynb_checkpoints/1-checkpoint.jpg"]
    files += ["__MACOSX/cat/1.jpg", "cat/.thumbnails/1.jpg"]
    write_tar(tmp_path / "pets.tar", [(f"./.data/train/{name}", IMAGE) for name in files])
    write_images(*(f"folder/train/{name}" for name in files))(tmp_path)
    for path in (tmp_path / "pets.tar", tmp_path / "folder"):
        source = opened(path, splits=["train"])
        assert by_class(source, "train") == [("1", "cat"), ("2", "dog")]
        assert sum(source.passed_over["train"].values()) == 4
    assert opened(tmp_path / "pets.tar", splits=["train"]).passed_over == {
        "train": {"in @eaDir": 1, "in __MACOSX": 1, "in hidden folders": 2}
    }


@pytest.mark.parametrize("names", [("cat", "dog"), CLASSES[:2]], ids=["names", "wnids"])
@pytest.mark.parametrize("inside", ["", "train/", "pets/"])
def test_stray_image_next_to_the_class_folders_of_an_archive_is_counted(
    tmp_path: Path, names: tuple[str, str], inside: str
) -> None:
    """As next to class folders on a disk: an archive cannot be changed that easily."""
    images = [f"{inside}{name}/{number}.jpg" for number, name in enumerate(names)]
    write_tar(tmp_path / "train.tar", [(name, IMAGE) for name in (*images, f"{inside}cover.jpg")])
    source = opened(tmp_path)
    assert by_class(source, "train") == [("0", names[0]), ("1", names[1])]
    assert source.passed_over == {"train": {"images outside class folders": 1}}


def test_images_of_one_name_in_nested_folders_of_an_archive_are_different_images(tmp_path: Path) -> None:
    write_tar(tmp_path / "train.tar", [(f"train/cat/{folder}/1.jpg", IMAGE) for folder in ("a", "b")])
    assert by_class(opened(tmp_path), "train") == [("1", "cat"), ("1", "cat")]


# --- labels


TEXTS = {"script": lambda wnids: valprep(wnids, CLASSES), "csv": kaggle_csv, "list": synset_list}


@pytest.mark.parametrize("place", ["source", "source/val", "."])
@pytest.mark.parametrize("text", TEXTS)
def test_labels_are_recognised_by_their_content(
    imagenet_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, place: str, text: str
) -> None:
    copied(imagenet_folder, tmp_path / "source")
    labels = tmp_path / place / "val_synset_labels.txt"
    labels.write_text(TEXTS[text](val_wnids(imagenet_folder)))
    (tmp_path / place / "classes.txt").write_text(synset_list(CLASSES))
    (tmp_path / place / "notes.txt").write_text("n00000001 is a bird\n")
    with caplog.at_level(logging.INFO):
        source = opened(tmp_path / "source")
    assert [label for _, label in by_class(source, "val")] == val_wnids(imagenet_folder)
    assert f"val: labels from {labels}" in caplog.messages


def classes_of_val(root: Path, dst: Path) -> list[str]:
    """The classes of the validation images after a conversion, by the images' names."""
    convert(ConvertSettings(src=(root,), dst=dst))
    split = open_split(dst, "val")
    return [split.classes[split.samples[index].label] for index in range(split.num_samples)]


@pytest.mark.parametrize("place", ["val.txt", "meta/val.txt"])
def test_class_indices_count_the_sorted_classes(imagenet_folder: Path, tmp_path: Path, place: str) -> None:
    """Caffe's and MMPretrain's lists, next to others that are not of these images."""
    wnids, labels = val_wnids(imagenet_folder), copied(imagenet_folder, tmp_path / "source") / place
    labels.parent.mkdir(exist_ok=True)
    labels.write_text(index_list(wnids, CLASSES))
    labels.with_name("train.txt").write_text("n00000001/n00000001_1.JPEG 0\n")
    labels.with_name("test.txt").write_text("ILSVRC2012_test_00000001.JPEG 0\n")
    by_index = classes_of_val(tmp_path / "source", tmp_path / "by_index")
    labels.with_name("wnids.txt").write_text(synset_list(wnids))  # preferred
    labels.write_text(index_list(wnids[::-1], CLASSES))
    assert by_index == classes_of_val(tmp_path / "source", tmp_path / "by_wnid")


def test_class_indices_beyond_the_classes_are_refused(imagenet_folder: Path, tmp_path: Path) -> None:
    root, wnids = copied(imagenet_folder, tmp_path / "source"), val_wnids(imagenet_folder)
    rows = [line.split() for line in index_list(wnids, CLASSES).splitlines()]
    (root / "val.txt").write_text("".join(f"{name} {int(index) * 2}\n" for name, index in rows))
    with pytest.raises(InputError, match="has class index 4, and only 4 classes have names"):
        convert(ConvertSettings(src=(root,), dst=tmp_path / "dst"))


def test_class_indices_that_count_from_1_are_refused_even_without_the_last_class(tmp_path: Path) -> None:
    """Otherwise each image of the first three classes would be one of the next class, without a word."""
    write_images(*(f"train/{wnid}/a.JPEG" for wnid in CLASSES))(tmp_path)
    write_images(*(f"val/{val_name(number)}.JPEG" for number in range(1, 4)))(tmp_path)
    (tmp_path / "val.txt").write_text("".join(f"{val_name(number)}.JPEG {number}\n" for number in range(1, 4)))
    with pytest.raises(InputError) as raised:
        opened(tmp_path)
    assert_one_line(raised.value, f"{tmp_path}/val.txt: no image has class index 0, so it seems to count from 1")


def test_list_of_classes_is_not_taken_for_labels(tmp_path: Path) -> None:
    """Although there are as many images as classes."""
    write_images(*(f"train/{wnid}/a.JPEG" for wnid in CLASSES))(tmp_path)
    write_images(*(f"val/{val_name(number)}.JPEG" for number in range(1, 5)))(tmp_path)
    class_file(tmp_path / "synsets.txt", *CLASSES)
    with pytest.raises(InputError, match="4 images without class folders; give --val-labels FILE"):
        opened(tmp_path)


def test_labels_that_contradict_each_other_are_refused(imagenet_folder: Path, tmp_path: Path) -> None:
    root, wnids = copied(imagenet_folder, tmp_path / "source"), val_wnids(imagenet_folder)
    (root / "a.txt").write_text(synset_list(wnids))
    (root / "b.txt").write_text(synset_list(wnids))
    assert [label for _, label in by_class(opened(root), "val")] == wnids
    (root / "b.txt").write_text(synset_list(wnids[::-1]))
    with pytest.raises(InputError) as raised:
        opened(root)
    assert_one_line(raised.value, f"{root}/b.txt: gives images other classes than {root}/a.txt; name one")


def test_given_labels_take_precedence_over_wnids_in_names(tmp_path: Path) -> None:
    """Training images that someone validates with, labelled again."""
    write_images("train/n00000001/a.JPEG", "train/n00000002/b.JPEG", "val/n00000001_5.JPEG")(tmp_path)
    (tmp_path / "labels.csv").write_text("image,wnid\nn00000001_5.JPEG,n00000002\n")
    assert by_class(opened(tmp_path), "val") == [("n00000001_5", "n00000001")]
    source = opened(tmp_path, val_labels=tmp_path / "labels.csv")
    assert by_class(source, "val") == [("n00000001_5", "n00000002")]


def test_sorted_and_flat_validation_give_the_same_images(imagenet_folder: Path, tmp_path: Path) -> None:
    root = copied(imagenet_folder, tmp_path / "flat")
    shutil.copy(imagenet_folder / "val_labels.txt", root / "anything.txt")
    sorted_val(imagenet_folder, copied(imagenet_folder, tmp_path / "sorted", "train") / "validation")
    assert contents(opened(root), "val") == contents(opened(tmp_path / "sorted"), "val")


def test_photograph_with_stray_bytes_in_its_header_is_converted(tmp_path: Path) -> None:
    jpeg = jpeg_bytes(photograph(50, 61, seed=1))
    (tmp_path / "train" / "a").mkdir(parents=True)
    (tmp_path / "train" / "a" / "1.jpg").write_bytes(jpeg[:20] + b"\0\0" + jpeg[20:])
    result = convert(ConvertSettings(src=(tmp_path,), dst=tmp_path / "dst"))
    assert (result["bad"], result["reencoded"]) == (0, 1)
