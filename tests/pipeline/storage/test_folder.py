"""The listing of images, class folders and splits that training from a folder and the conversion share."""

import contextlib
import gc
import os
from collections import Counter
from pathlib import Path

import psutil
import pytest

from pipeline import loaders
from pipeline.contract import LoaderSpec
from pipeline.conversion.listing import images_in_class_folders, make_listing
from pipeline.errors import InputError, StorageError
from pipeline.order.crops import CropPolicy
from pipeline.storage.folder import (
    FolderSamples,
    PassedOver,
    class_folders,
    find_images,
    has_class_folders,
    in_words,
    list_class_folders,
    list_classes,
    split_called,
    split_folders,
    stand_in_for_val,
    unwrapped,
)
from pipeline.storage.split import open_split, split_names
from tests.helpers.sources import IMAGE


def write_files(root: Path, *names: str) -> None:
    """Write empty files."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


# --- images


def test_images_are_sorted_and_other_files_are_counted_by_kind(tmp_path: Path) -> None:
    write_files(tmp_path, "b.JPEG", "a.jpg", "c.png", "._d.jpg", ".DS_Store", "Thumbs.db", "e.txt", "f.txt", ".x")
    write_files(tmp_path, "d.webp", "e.gif", "f.bmp", "g.TIFF", "h.pgm", "README", "@eaDir/a.jpg/thumbnail.jpg")
    write_files(tmp_path, ".ipynb_checkpoints/a.jpg")
    passed_over: PassedOver = Counter()
    names = find_images(tmp_path, passed_over)
    assert names == ["a.jpg", "b.JPEG", "c.png", "d.webp", "e.gif", "f.bmp", "g.TIFF", "h.pgm"]
    assert in_words(passed_over) == (
        "9 files passed over: 1 .DS_Store, 1 ._*, 2 .txt, 1 Thumbs.db, 1 folder @eaDir, 1 hidden, 1 hidden folder, "
        "1 without suffix"
    )


def test_images_in_nested_folders_are_sorted_by_path(tmp_path: Path) -> None:
    write_files(tmp_path, "b.jpg", "a/z.jpg", "a/b/c.jpg", "a.jpg", "d/e.txt")
    assert find_images(tmp_path) == ["a.jpg", "a/b/c.jpg", "a/z.jpg", "b.jpg"]


def test_image_without_its_suffix_is_recognised_by_its_content(tmp_path: Path) -> None:
    for name in ("0017", "0019.image", "a.b.JPEG_", "a.jpg~", "b.jpg.part", "c.dng", ".d"):
        (tmp_path / name).write_bytes(IMAGE)
    (tmp_path / "0018").write_bytes(b"not an image")
    (tmp_path / "brands.csv").write_bytes(b"BMW,1,2,3,4,5,6")
    passed_over: PassedOver = Counter()
    assert find_images(tmp_path, passed_over) == ["0017", "0019.image", "a.b.JPEG_"]
    assert passed_over == {".csv": 1, ".jpg~": 1, ".part": 1, ".dng": 1, "hidden": 1, "without suffix": 1}


def test_folder_linked_into_itself_is_refused(tmp_path: Path) -> None:
    write_files(tmp_path, "a/b/c.jpg")
    (tmp_path / "a" / "b" / "up").symlink_to(tmp_path / "a")
    with pytest.raises(InputError, match=f"^{tmp_path}/a/b/up: a link to a folder it is in; remove it$"):
        find_images(tmp_path)


def test_linked_folder_is_read(tmp_path: Path) -> None:
    write_files(tmp_path, "else/where/c.jpg", "images/a.jpg")
    (tmp_path / "images" / "more").symlink_to(tmp_path / "else")
    assert find_images(tmp_path / "images") == ["a.jpg", "more/where/c.jpg"]


def test_broken_links_and_pipes_are_refused(tmp_path: Path) -> None:
    (tmp_path / "n1").symlink_to("nowhere")
    with pytest.raises(InputError, match=f"^{tmp_path}/n1: a broken link; fix or remove it$"):
        list_classes(tmp_path)
    (tmp_path / "n1").unlink()
    os.mkfifo(tmp_path / "a.jpg")
    with pytest.raises(InputError, match=rf"^{tmp_path}/a\.jpg: not a file; fix or remove it$"):
        find_images(tmp_path)


def test_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=rf"^{tmp_path}/none: cannot be read \(No such file or directory\)$"):
        find_images(tmp_path / "none")


# --- class folders


def test_classes_are_the_visible_folders_in_index_order(tmp_path: Path) -> None:
    write_files(tmp_path, "n2/a.jpg", "n1/b.txt", ".hidden/c.jpg", "@eaDir/d.jpg", "n3.jpg")
    assert list_classes(tmp_path) == ["n1", "n2"]
    write_files(tmp_path / "numbers", *(f"{number}/a.jpg" for number in (10, 9, 0, 100)))
    assert list_classes(tmp_path / "numbers") == ["0", "9", "10", "100"]


def test_images_are_listed_by_class_and_path_with_class_indices(tmp_path: Path) -> None:
    write_files(tmp_path, "n2/b.jpg", "n2/a.jpg", "n1/c/d.jpg", "n1/notes.txt", "cover.jpg")
    passed_over: PassedOver = Counter()
    folders = [(folder.name, folder.images) for folder in class_folders([tmp_path], passed_over)]
    assert folders == [("n1", ["c/d.jpg"]), ("n2", ["a.jpg", "b.jpg"])]
    assert passed_over == {".txt": 1, "images outside class folders": 1}
    listing = list_class_folders([tmp_path], ["n0", "n1", "n2"])
    assert [listing.path(index) for index in range(3)] == [
        f"{tmp_path}/{name}" for name in ("n1/c/d.jpg", "n2/a.jpg", "n2/b.jpg")
    ]
    assert listing.labels.tolist() == [1, 2, 2]
    assert listing.passed_over == passed_over


def test_training_and_conversion_list_the_same_images(imagenet_folder: Path) -> None:
    train = imagenet_folder / "train"
    classes = list_classes(train)
    in_training = list_class_folders([train], classes)
    converted = make_listing("", images_in_class_folders([train], Counter()))
    assert len(in_training) == len(converted.images) == 47
    for index in range(47):
        assert in_training.path(index) == converted.images.where(index)
        assert classes[in_training.labels[index]] == converted.labels[index]


def test_a_class_name_that_cannot_be_printed_is_refused(tmp_path: Path) -> None:
    write_files(tmp_path, "train/n1/a.jpg", "val/n1/a.jpg")
    os.mkdir(os.fsencode(tmp_path / "train") + b"/cl\xe9")
    with pytest.raises(InputError, match=r"train: the class name 'cl\\udce9'; rename it to plain letters$"):
        open_split(tmp_path, "train")


def test_an_image_that_cannot_be_decoded_is_to_be_replaced(tmp_path: Path) -> None:
    """A conversion would not help."""
    (tmp_path / "train" / "n1").mkdir(parents=True)
    (tmp_path / "train" / "n1" / "a.jpg").write_bytes(IMAGE[: len(IMAGE) // 2])
    spec = LoaderSpec(
        split=open_split(tmp_path, "train"), batch_size=1, crop=CropPolicy(training=False), workers=0, max_resolution=32
    )
    loader = loaders.create("torch", spec)
    with contextlib.closing(loader), pytest.raises(InputError, match=r"n1/a\.jpg: .*; remove or replace it$"):
        next(loader.epoch(0, 32))


def test_class_that_training_does_not_have_is_refused(tmp_path: Path) -> None:
    write_files(tmp_path, "n1/a.jpg", "n2/b.jpg")
    with pytest.raises(InputError, match=f"^{tmp_path}/n2: this class is not among the 1 of training; remove it$"):
        list_class_folders([tmp_path], ["n1"])


def test_class_folder_without_images_is_refused(tmp_path: Path) -> None:
    write_files(tmp_path, "n1/a.jpg", "n2/b.txt")
    with pytest.raises(InputError, match=f"^{tmp_path}/n2: no images in this class folder; remove it or fill it$"):
        list_class_folders([tmp_path], ["n1", "n2"])


def test_stray_image_does_not_make_named_class_folders_flat(tmp_path: Path) -> None:
    write_files(tmp_path, "cat/a.jpg", "dog/b.jpg", "cover.jpg")
    assert has_class_folders(tmp_path, "val", ["cat", "dog"])
    assert has_class_folders(tmp_path, "val")
    assert has_class_folders(tmp_path, "train")


def test_folder_of_another_name_does_not_make_flat_images_classes(tmp_path: Path) -> None:
    write_files(tmp_path, "1.jpg", "notes/a.txt", "@eaDir/b.jpg")
    assert not has_class_folders(tmp_path, "val")
    assert not has_class_folders(tmp_path, "val", ["cat", "dog"])


# --- splits


@pytest.mark.parametrize(
    ("names", "split", "folders"),
    [
        (["train", "val"], "val", ["val"]),
        (["train", "validation"], "val", ["validation"]),
        (["Train", "Valid"], "val", ["Valid"]),
        (["Train", "Valid"], "train", ["Train"]),
        (["train.X10", "train.X1", "train.X2", "val.X"], "train", ["train.X1", "train.X2", "train.X10"]),
        (["train.X1", "val.X"], "val", ["val.X"]),
        (["train_part1", "train_part2"], "train", ["train_part1", "train_part2"]),
        (["train", "train2"], "train", ["train"]),
        (["val", "validation"], "val", ["val"]),
        (["train", "trained"], "val", []),
    ],
)
def test_folders_of_a_split_are_found(tmp_path: Path, names: list[str], split: str, folders: list[str]) -> None:
    for name in names:
        write_files(tmp_path, f"{name}/n1/a.jpg")
    made = split_folders(tmp_path, split)
    assert [folder.name for folder in made.folders] == folders if made else folders == []


def test_folders_that_are_not_used_are_named(tmp_path: Path) -> None:
    write_files(tmp_path, "train/n1/a.jpg", "train.X1/n1/a.jpg", "Training/n1/a.jpg")
    made = split_folders(tmp_path, "train")
    assert made is not None
    assert made.remark == f"{tmp_path}: train/ is used for train, and Training, train.X1 is not"


def test_test_folder_validates_if_it_has_classes(tmp_path: Path) -> None:
    write_files(tmp_path, "test/images/a.jpg")
    assert stand_in_for_val(tmp_path) is None
    write_files(tmp_path, "test/images/n1/a.jpg")
    made = stand_in_for_val(tmp_path)
    assert made is not None
    assert made.remark == f"{tmp_path}/test: used for validation, as there is no val/"


def test_names_of_splits() -> None:
    names = ("train", "TRAIN", "train.X1", "val", "valid", "validation", "test", "n01440764", "trainer", "evaluation")
    assert [split_called(name) for name in names] == [*3 * ["train"], *3 * ["val"], "test", None, None, None]


def test_only_folder_called_images_is_looked_into(tmp_path: Path) -> None:
    write_files(tmp_path, "val/images/a.jpg", "val/annotations.txt", "train/images/a.jpg", "train/n1/a.jpg")
    assert unwrapped(tmp_path / "val") == tmp_path / "val" / "images"
    assert unwrapped(tmp_path / "train") == tmp_path / "train"


def test_several_folders_are_opened_as_one_split(tmp_path: Path) -> None:
    """As in ImageNet-100 from Kaggle."""
    for name in ("train.X1/n2/a.jpg", "train.X1/n1/b.jpg", "train.X2/n1/c.jpg", "val.X/n2/d.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(IMAGE)
    assert split_names(tmp_path) == ["train", "val"]
    split, val = open_split(tmp_path, "train"), open_split(tmp_path, "val")
    assert split.classes == val.classes == ("n1", "n2")
    samples = {
        split.samples.name(index).removeprefix(f"{tmp_path}/"): split.samples[index]
        for index in range(split.num_samples)
    }
    assert samples == {
        "train.X1/n1/b.jpg": (IMAGE, 0),
        "train.X2/n1/c.jpg": (IMAGE, 0),
        "train.X1/n2/a.jpg": (IMAGE, 1),
    }
    assert val.samples[0] == (IMAGE, 1)


# --- memory


def test_listing_takes_less_than_50_bytes_an_image_and_reading_it_no_more(tmp_path: Path) -> None:
    """A worker is forked from the process that has the listing; what it changes in memory is no longer shared."""
    for number in range(20):
        folder = tmp_path / f"n{number:08d}"
        folder.mkdir()
        for image in range(500):
            os.link(tmp_path / "n00000000" / "0000.JPEG", folder / f"{folder.name}_{image}.JPEG") if image else None
            if number == image == 0:
                (folder / "0000.JPEG").write_bytes(IMAGE)
    listing = list_class_folders([tmp_path], list_classes(tmp_path))
    size = sum(column.nbytes for column in (listing.labels, listing.folder, listing.names._ends))
    assert size + len(listing.names._block) < 50 * len(listing)
    samples = FolderSamples(listing)
    reader, writer = os.pipe()
    if os.fork() == 0:
        gc.disable()  # it would write to every object of the test session's memory
        samples[0]
        before = psutil.Process().memory_full_info().uss
        for index in range(len(samples)):
            samples[index]
        os.write(writer, str(psutil.Process().memory_full_info().uss - before).encode())
        os._exit(0)
    os.close(writer)
    assert int(os.read(reader, 100)) < 2 << 20
    os.wait()


def test_an_image_that_becomes_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "train" / "n00000001" / "a.JPEG"
    path.parent.mkdir(parents=True)
    path.write_bytes(IMAGE)
    samples = open_split(tmp_path, "train").samples
    assert samples[0].label == 0
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(StorageError, match=r"a\.JPEG: is no regular file"):
        samples[0]
