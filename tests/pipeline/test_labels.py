"""Validation labels in the forms they come in, joined to images."""

import contextlib
from pathlib import Path

import pytest

from pipeline.errors import InputError
from pipeline.labels import label_images, read_validation_labels

CLASSES = ["n01440764", "n01443537", "n01484850"]
IMAGES = ["ILSVRC2012_val_00000001.JPEG", "ILSVRC2012_val_00000002.JPEG", "ILSVRC2012_val_00000003.JPEG"]
WNIDS = ["n01484850", "n01440764", "n01484850"]
LABELS = [2, 0, 2]

VALPREP = "\n".join(
    [
        "#!/bin/bash",
        "",
        "# from the internet",
        *(f"mkdir -p {wnid}" for wnid in CLASSES),
        "",
        *(f"mv {image} {wnid}/" for image, wnid in zip(IMAGES, WNIDS, strict=True)),
        "",
    ]
)
SYNSETS = "\n".join(WNIDS) + "\n"


@pytest.fixture
def labels_file(tmp_path: Path) -> Path:
    return tmp_path / "labels.txt"


def joined(labels_file: Path, text: str, images: list[str]) -> list[int]:
    """The class indices of images, by the whole way from the file's text."""
    labels_file.write_bytes(text.encode())
    paths = [labels_file.parent / "val" / name for name in images]
    listing = label_images(paths, read_validation_labels(labels_file), CLASSES, labels_file)
    assert [path for path, _ in listing] == paths
    return [label for _, label in listing]


VALPREP_FORMS = {
    "as it is": VALPREP,
    "CRLF": VALPREP.replace("\n", "\r\n"),
    "tabs at the end": VALPREP.replace("/\n", "/\t \t\n"),
    "tabs between": VALPREP.replace("mv ", "\tmv\t").replace(".JPEG ", ".JPEG \t "),
    "no slash": VALPREP.replace("/\n", "\n"),
    "images with a folder": VALPREP.replace("mv ILSVRC", "mv ./val/ILSVRC"),
    "no newline at the end": VALPREP.rstrip(),
    "moves in another order": "\n".join(reversed(VALPREP.splitlines())),
}


@pytest.mark.parametrize("text", VALPREP_FORMS.values(), ids=VALPREP_FORMS.keys())
def test_valprep_script_gives_the_labels(labels_file: Path, text: str) -> None:
    assert joined(labels_file, text, IMAGES) == LABELS


SYNSET_FORMS = {
    "as it is": SYNSETS,
    "CRLF": SYNSETS.replace("\n", "\r\n"),
    "blanks and tabs at the end": SYNSETS.replace("\n", " \t\n"),
    "no newline at the end": SYNSETS.rstrip(),
    "empty lines at the end": SYNSETS + "\n \n",
}


@pytest.mark.parametrize("text", SYNSET_FORMS.values(), ids=SYNSET_FORMS.keys())
def test_synset_list_gives_the_labels(labels_file: Path, text: str) -> None:
    assert joined(labels_file, text, IMAGES) == LABELS


@pytest.mark.parametrize("text", [VALPREP, SYNSETS], ids=["valprep", "synsets"])
def test_labels_follow_the_name_and_not_the_place_in_the_listing(labels_file: Path, text: str) -> None:
    assert joined(labels_file, text, [IMAGES[2], IMAGES[1], IMAGES[0]]) == [2, 0, 2]
    assert joined(labels_file, text, [IMAGES[1], IMAGES[0], IMAGES[2]]) == [0, 2, 2]


@pytest.mark.parametrize("text", [VALPREP, SYNSETS], ids=["valprep", "synsets"])
@pytest.mark.parametrize("stray", ["0_thumbnail.JPEG", "ILSVRC2012_val_00000004.JPEG", "cat.JPEG"])
def test_stray_image_is_named_and_shifts_nothing(labels_file: Path, text: str, stray: str) -> None:
    with pytest.raises(InputError, match=f"{stray}: no label for it in {labels_file}"):
        joined(labels_file, text, sorted([stray, *IMAGES]))


@pytest.mark.parametrize("text", [VALPREP, SYNSETS], ids=["valprep", "synsets"])
def test_more_labels_than_images_are_refused(labels_file: Path, text: str) -> None:
    with pytest.raises(InputError, match="3 labels for 2 images"):
        joined(labels_file, text, IMAGES[:2])


@pytest.mark.parametrize("text", [VALPREP, SYNSETS], ids=["valprep", "synsets"])
def test_class_that_training_lacks_is_named(labels_file: Path, text: str) -> None:
    with pytest.raises(InputError, match=r"val_00000002\.JPEG is of class n00000009, which training lacks"):
        joined(labels_file, text.replace("n01440764", "n00000009"), IMAGES)


def test_image_moved_to_two_classes_is_named(labels_file: Path) -> None:
    with pytest.raises(InputError, match=f"{IMAGES[0]} is moved to n01484850 and to n01440764"):
        joined(labels_file, VALPREP + f"mv {IMAGES[0]} n01440764/\n", IMAGES)


def test_image_moved_twice_to_the_same_class_is_that_class(labels_file: Path) -> None:
    assert joined(labels_file, VALPREP + f"mv {IMAGES[0]} n01484850/\n", IMAGES) == LABELS


def test_two_images_of_one_number_are_refused(labels_file: Path) -> None:
    """As many labels as images, but number 2 is missing: one of the two would get the other's label."""
    with pytest.raises(InputError):
        joined(labels_file, SYNSETS, ["ILSVRC2012_val_00000001.JPEG", "copy_of_val_00000001.JPEG", IMAGES[2]])


@pytest.mark.parametrize("text", ["", "\n\n \n"])
def test_empty_file_is_refused(labels_file: Path, text: str) -> None:
    with pytest.raises(InputError, match=f"{labels_file}: empty"):
        joined(labels_file, text, IMAGES)


def test_binary_file_is_refused(labels_file: Path) -> None:
    labels_file.write_bytes(b"\xff\xd8\xff\xe0\x00\x10JFIF\x00\x01" * 20)
    with pytest.raises(InputError, match=f"--val-labels {labels_file}: cannot be read as text"):
        read_validation_labels(labels_file)


@pytest.mark.parametrize("path", ["missing.txt", "."])
def test_missing_file_and_directory_are_refused(tmp_path: Path, path: str) -> None:
    with pytest.raises(InputError, match=f"--val-labels {tmp_path}.*: cannot be read"):
        read_validation_labels(tmp_path / path)


def test_line_that_is_neither_form_is_named(labels_file: Path) -> None:
    with pytest.raises(InputError, match=r"labels\.txt line 2: neither .* 'n01443537 goldfish'"):
        joined(labels_file, "n01440764\nn01443537 goldfish\n", IMAGES)


@pytest.mark.parametrize("line", ["mv $(touch {0}) n01440764/", "mv $(touch${{IFS}}{0}) n01440764/", "touch {0}"])
def test_nothing_in_a_script_is_executed(labels_file: Path, tmp_path: Path, line: str) -> None:
    target = tmp_path / "executed"
    labels_file.write_text(VALPREP + line.format(target) + "\n")
    with contextlib.suppress(InputError):  # the line without blanks is a move of a file of that strange name
        label_images([tmp_path / name for name in IMAGES], read_validation_labels(labels_file), CLASSES, labels_file)
    assert [path.name for path in tmp_path.iterdir()] == [labels_file.name]
