"""Validation labels in the forms they come in, joined to images; class lists."""

import contextlib
import gzip
import random
import tarfile
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.conversion.labels import label_images, read_class_list, read_validation_labels
from pipeline.errors import InputError
from tests.helpers.label_files import (
    GROUND_TRUTH,
    ground_truth,
    ilsvrc_ids,
    kaggle_csv,
    meta_mat,
    packed,
    synset_list,
    val_name,
    valprep,
    write_devkit,
)
from tests.helpers.memory import memory_below

CLASSES = ["n01440764", "n01443537", "n01484850"]
WNIDS = ["n01484850", "n01440764", "n01484850"]
IMAGES = [f"{val_name(number)}.JPEG" for number in (1, 2, 3)]

VALPREP, SYNSETS, KAGGLE = valprep(WNIDS, CLASSES), synset_list(WNIDS), kaggle_csv(WNIDS)
TEXTS = {"valprep": VALPREP, "synsets": SYNSETS, "kaggle": KAGGLE}


@pytest.fixture
def labels_file(tmp_path: Path) -> Path:
    return tmp_path / "labels.txt"


@pytest.fixture
def devkit(tmp_path: Path) -> Path:
    """The development kit as it is unpacked."""
    return write_devkit(tmp_path / "ILSVRC2012_devkit_t12", WNIDS, CLASSES)


def joined(labels_file: Path, images: list[str]) -> list[str | int]:
    """The wnids of images, from the labels file."""
    return label_images([f"/data/val/{name}" for name in images], read_validation_labels(labels_file), labels_file)


def joined_text(labels_file: Path, text: str, images: list[str]) -> list[str | int]:
    labels_file.write_bytes(text.encode())
    return joined(labels_file, images)


def assert_names(error: BaseException, *parts: object) -> None:
    """The message is one line that contains these parts and fits on a terminal."""
    text = str(error)
    assert len(text.splitlines()) == 1
    assert len(text) < 400
    for part in parts:
        assert str(part) in text


# --- every form


SCRIPT = f"#!/bin/bash\n\n# from the internet\n{VALPREP}\n"
VALPREP_FORMS = {
    "as it is": VALPREP,
    "as a script": SCRIPT,
    "CRLF": VALPREP.replace("\n", "\r\n"),
    "no tabs at the end": VALPREP.replace("\t\n", "\n"),
    "tabs between": VALPREP.replace("mv ", "\tmv\t").replace(".JPEG ", ".JPEG \t "),
    "no slash": VALPREP.replace("/\t\n", "\n"),
    "images with a folder": VALPREP.replace("mv ILSVRC", "mv ./val/ILSVRC"),
    "no newline at the end": VALPREP.rstrip(),
    "moves in another order": "\n".join(reversed(VALPREP.splitlines())),
    "with a byte order mark": f"\ufeff{VALPREP}",
    "an image moved twice to the same class": f"{VALPREP}mv {IMAGES[0]} {WNIDS[0]}/\n",
}


@pytest.mark.parametrize("text", VALPREP_FORMS.values(), ids=VALPREP_FORMS.keys())
def test_valprep_script_gives_the_labels(labels_file: Path, text: str) -> None:
    assert joined_text(labels_file, text, IMAGES) == WNIDS


SYNSET_FORMS = {
    "as it is": SYNSETS,
    "CRLF": SYNSETS.replace("\n", "\r\n"),
    "blanks and tabs at the end": SYNSETS.replace("\n", " \t\n"),
    "no newline at the end": SYNSETS.rstrip(),
    "empty lines at the end": SYNSETS + "\n \n",
    "with a byte order mark": f"\ufeff{SYNSETS}",
}


@pytest.mark.parametrize("text", SYNSET_FORMS.values(), ids=SYNSET_FORMS.keys())
def test_synset_list_gives_the_labels(labels_file: Path, text: str) -> None:
    assert joined_text(labels_file, text, IMAGES) == WNIDS


KAGGLE_FORMS = {
    "as it is": KAGGLE,
    "CRLF": KAGGLE.replace("\n", "\r\n"),
    "quoted": KAGGLE.replace(",n", ',"n').replace(" \n", ' "\n').replace("272 n01484850\n", '272 n01484850"\n'),
    "names with extension": KAGGLE.replace(",n", ".JPEG,n"),
    "a row twice": KAGGLE + KAGGLE.splitlines()[1] + "\n",
}


@pytest.mark.parametrize("text", KAGGLE_FORMS.values(), ids=KAGGLE_FORMS.keys())
def test_kaggle_csv_gives_the_labels(labels_file: Path, text: str) -> None:
    assert joined_text(labels_file, text, IMAGES) == WNIDS


def flattened(devkit: Path) -> Path:
    """The folder data/ itself."""
    return devkit / "data"


def without_data_folder(devkit: Path) -> Path:
    """Both files in the kit's own folder."""
    for path in (devkit / "data").iterdir():
        path.rename(devkit / path.name)
    return devkit


DEVKIT_FORMS: dict[str, Callable[[Path], Path]] = {
    "folder": lambda devkit: devkit,
    "its data folder": flattened,
    "folder without data": without_data_folder,
    "tar.gz": lambda devkit: packed(devkit, devkit.with_name("kit.tar.gz")),
    "tgz": lambda devkit: packed(devkit, devkit.with_name("kit.tgz")),
    "unzipped tar": lambda devkit: packed(devkit, devkit.with_name("kit.tar"), "w"),
    "tar.gz without data": lambda devkit: packed(without_data_folder(devkit), devkit.with_name("kit.tar.gz")),
}


@pytest.mark.parametrize("form", DEVKIT_FORMS.values(), ids=DEVKIT_FORMS.keys())
def test_development_kit_gives_the_labels(devkit: Path, form: Callable[[Path], Path]) -> None:
    assert joined(form(devkit), IMAGES) == WNIDS


def test_ids_are_not_positions_in_sorted_order() -> None:
    """Otherwise the test of the development kit would prove nothing."""
    assert all(CLASSES.index(wnid) + 1 != number for wnid, number in ilsvrc_ids(CLASSES).items())


def test_every_form_of_the_real_size_gives_the_same_labels(tmp_path: Path) -> None:
    """1000 classes, 860 inner nodes, 50,000 images."""
    classes = [f"n{number:08d}" for number in range(1_440_764, 15_000_000, 13_000)][:1000]
    wnids = random.Random(0).choices(classes, k=50_000)
    images = [f"{val_name(number)}.JPEG" for number in range(1, 50_001)]
    for text in (valprep(wnids, classes), synset_list(wnids), kaggle_csv(wnids)):
        assert joined_text(tmp_path / "labels", text, images) == wnids
    ids = ilsvrc_ids(classes)
    (tmp_path / "meta.mat").write_bytes(meta_mat(ids, inner_nodes=860))
    (tmp_path / GROUND_TRUTH).write_text(ground_truth(wnids, ids))
    assert joined(tmp_path, images) == wnids


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS.keys())
def test_labels_follow_the_name_and_not_the_position_in_the_listing(labels_file: Path, text: str) -> None:
    assert joined_text(labels_file, text, [IMAGES[2], IMAGES[1], IMAGES[0]]) == [WNIDS[2], WNIDS[1], WNIDS[0]]
    assert joined_text(labels_file, text, [IMAGES[1], IMAGES[0], IMAGES[2]]) == [WNIDS[1], WNIDS[0], WNIDS[2]]


@pytest.mark.parametrize("line", ["mv $(touch {0}) n01440764/", "mv $(touch${{IFS}}{0}) n01440764/", "touch {0}"])
def test_nothing_in_a_script_is_executed(labels_file: Path, tmp_path: Path, line: str) -> None:
    target = tmp_path / "executed"
    with contextlib.suppress(InputError):  # the line without blanks moves a file with that strange name
        joined_text(labels_file, VALPREP + line.format(target) + "\n", IMAGES)
    assert [path.name for path in tmp_path.iterdir()] == [labels_file.name]


# --- labels that do not match the images


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS.keys())
@pytest.mark.parametrize(
    "stray", ["0_thumbnail.JPEG", "ILSVRC2012_val_00000004.JPEG", "cat.JPEG", f"v_{'9' * 5000}.JPEG"]
)
def test_stray_image_is_named_and_shifts_nothing(labels_file: Path, text: str, stray: str) -> None:
    with pytest.raises(InputError, match=f"{stray}: no label for it in {labels_file}"):
        joined_text(labels_file, text, sorted([stray, *IMAGES]))


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS.keys())
def test_image_that_is_missing_is_named(labels_file: Path, text: str) -> None:
    with pytest.raises(
        InputError, match=r"labels\.txt: 3 labels for 2 images, among which (\w+_0000000)?2 is"
    ) as raised:
        joined_text(labels_file, text, [IMAGES[0], IMAGES[2]])
    assert_names(raised.value)


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS.keys())
def test_two_images_of_one_number_are_refused(labels_file: Path, text: str) -> None:
    """There are as many labels as images, but number 2 is missing: one of the two would get the other's label."""
    with pytest.raises(InputError, match=r"val_00000001.*(no label for it|has the name or number of)"):
        joined_text(labels_file, text, [IMAGES[0], f"more/{IMAGES[0]}", IMAGES[2]])


# What is wrong with the file, and the message.
WRONG_TEXTS = {
    "empty": ("", "empty"),
    "blank": ("\n\n \n", "empty"),
    "a byte order mark alone": ("\ufeff", "empty"),
    "an image moved to two classes": (
        f"{VALPREP}mv {IMAGES[0]} n01440764/\n",
        "line 7: ILSVRC2012_val_00000001 is given to n01484850 and to n01440764",
    ),
    "a class name cut off": (VALPREP[:-5], "line 6: 'n014848' is not a wnid"),
    "a loop": ("for f in *.JPEG; do\n mv $f $wnid/\ndone\n", "line 2: '$wnid' is not a wnid"),
    "a web page": ("<!DOCTYPE html>\n<html></html>\n", "line 1: neither `mv IMAGE WNID/` nor one wnid: '<!DOCTYPE"),
    "the class list": ("n01440764 tench, Tinca tinca\n", "line 1: neither `mv IMAGE WNID/` nor one wnid: 'n0144"),
    "an empty line": (SYNSETS.replace("\n", "\n\n", 1), "line 2: neither `mv IMAGE WNID/` nor one wnid: ''"),
    "a wnid cut off": (SYNSETS[:-4], "line 3: neither `mv IMAGE WNID/` nor one wnid: 'n01484'"),
    "the ground truth without its kit": ("490\n361\n171\n", "line 1: a number; give the development kit's folder"),
    "a csv without rows": ("ImageId,PredictionString\n", "empty"),
    "a csv without its heading": (KAGGLE.partition("\n")[2], "line 1: neither"),
    "a csv cut off in a wnid": (KAGGLE[: KAGGLE.rindex(",n") + 5], "is not a wnid"),
    "a csv cut off in a name": (KAGGLE[: KAGGLE.rindex("_0")], "line 4: not `IMAGE,WNID x y x y ...`"),
    "a csv of the sample submission": (
        "ImageId,PredictionString\nILSVRC2012_test_00000001,0 0 0 0 0 0\n",
        "line 2: '0' is not a wnid",
    ),
    "a csv with two classes for an image": (
        f"{KAGGLE}{val_name(1)},n01440764 1 2 3 4\n",
        "line 5: ILSVRC2012_val_00000001 is given to n01484850 and to n01440764",
    ),
    "a csv with an open quote": (KAGGLE.replace(",n", ',"n', 1) + "x" * 200_000, "cannot be read as csv"),
}


@pytest.mark.parametrize(("text", "message"), WRONG_TEXTS.values(), ids=WRONG_TEXTS.keys())
def test_wrong_text_is_refused(labels_file: Path, text: str, message: str) -> None:
    with pytest.raises(InputError) as raised:
        joined_text(labels_file, text, IMAGES)
    assert_names(raised.value, f"--val-labels {labels_file}", message)


def test_csv_of_the_training_images_is_refused(labels_file: Path) -> None:
    text = "ImageId,PredictionString\nn02017213_7894,n02017213 115 49 448 294 \n"
    with pytest.raises(InputError, match=f"{IMAGES[0]}: no label for it in {labels_file}"):
        joined_text(labels_file, text, IMAGES)


def test_binary_file_is_refused(labels_file: Path) -> None:
    labels_file.write_bytes(b"\xff\xd8\xff\xe0\x00\x10JFIF\x00\x01" * 20)
    with pytest.raises(InputError) as raised:
        read_validation_labels(labels_file)
    assert_names(raised.value, f"--val-labels {labels_file}: cannot be read as text")


def test_missing_file_is_refused(tmp_path: Path) -> None:
    for name in ("missing.txt", "missing.tar.gz"):
        with pytest.raises(InputError) as raised:
            read_validation_labels(tmp_path / name)
        assert_names(raised.value, f"--val-labels {tmp_path / name}: cannot be read (No such file or directory)")


@pytest.mark.parametrize("size", [17 << 20, 1 << 40])
@pytest.mark.parametrize("read", [read_validation_labels, read_class_list])
def test_huge_file_is_refused_without_being_read(labels_file: Path, size: int, read: Callable[[Path], object]) -> None:
    with open(labels_file, "wb") as file:
        file.truncate(size)
    tracemalloc.start()
    with pytest.raises(InputError, match="more than 16 MB"):
        read(labels_file)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 64 << 20


# --- wrong development kits


def rewritten(name: str, content: str | bytes) -> Callable[[Path], object]:
    data = content if isinstance(content, bytes) else content.encode()
    return lambda kit: (kit / "data" / name).write_bytes(data)


IDS = ilsvrc_ids(CLASSES)
META, TRUTH = meta_mat(IDS), ground_truth(WNIDS, IDS)
WRONG_KITS: dict[str, tuple[Callable[[Path], object], str]] = {
    "no ground truth": (lambda kit: (kit / "data" / GROUND_TRUTH).unlink(), f"no {GROUND_TRUTH} in it"),
    "no synsets": (lambda kit: (kit / "data" / "meta.mat").unlink(), "no meta.mat in it"),
    "ground truth of another year": (
        lambda kit: (kit / "data" / GROUND_TRUTH).rename(kit / "data" / GROUND_TRUTH.replace("2012", "2010")),
        f"no {GROUND_TRUTH} in it",
    ),
    "empty ground truth": (rewritten(GROUND_TRUTH, "\n"), f"{GROUND_TRUTH}: empty"),
    "an ID that no class has": (rewritten(GROUND_TRUTH, "1\n1001\n2\n"), f"{GROUND_TRUTH} line 2: '1001' is no"),
    "an inner node's ID": (
        rewritten(GROUND_TRUTH, f"{TRUTH}4\n"),
        f"{GROUND_TRUTH} line 4: '4' is not a synset's ID",
    ),
    "an ID of 0": (rewritten(GROUND_TRUTH, "0\n"), f"{GROUND_TRUTH} line 1: '0' is not a synset's ID"),
    "an empty line": (rewritten(GROUND_TRUTH, "1\n\n2\n3\n"), f"{GROUND_TRUTH} line 2: '' is not a synset's ID"),
    "two IDs in a line": (
        rewritten(GROUND_TRUTH, "1 2\n3\n"),
        f"{GROUND_TRUTH} line 1: '1 2' is not a synset's ID",
    ),
    "an ID of 5000 digits": (rewritten(GROUND_TRUTH, "1" * 5000), f"{GROUND_TRUTH} line 1: '11111"),
    "wnids for IDs": (
        rewritten(GROUND_TRUTH, SYNSETS),
        f"{GROUND_TRUTH} line 1: 'n01484850' is not a synset's ID",
    ),
    "binary ground truth": (rewritten(GROUND_TRUTH, b"\xff\xfe"), f"{GROUND_TRUTH}: cannot be read as text"),
    "empty synsets": (rewritten("meta.mat", b""), "meta.mat cannot be read"),
    "text for synsets": (rewritten("meta.mat", "1 n01440764\n" * 100), "meta.mat cannot be read"),
    "synsets cut off": (rewritten("meta.mat", META[: len(META) // 2]), "meta.mat cannot be read"),
    "classes that share an ID": (
        rewritten("meta.mat", meta_mat(dict.fromkeys(CLASSES, 1))),
        "meta.mat does not give each class an ILSVRC2012_ID and a WNID of its own",
    ),
    "synsets without wnids": (
        rewritten("meta.mat", meta_mat({"fish": 1, "bird": 2})),
        "meta.mat does not give each class an ILSVRC2012_ID and a WNID of its own",
    ),
    "synsets without classes": (
        rewritten("meta.mat", meta_mat({})),
        "meta.mat does not give each class an ILSVRC2012_ID and a WNID of its own",
    ),
}


@pytest.mark.parametrize("archive", [False, True], ids=["folder", "tar.gz"])
@pytest.mark.parametrize(("spoil", "message"), WRONG_KITS.values(), ids=WRONG_KITS.keys())
def test_wrong_development_kit_is_refused(
    devkit: Path, archive: bool, spoil: Callable[[Path], object], message: str
) -> None:
    spoil(devkit)
    path = packed(devkit, devkit.with_name("kit.tar.gz")) if archive else devkit
    with pytest.raises(InputError) as raised:
        read_validation_labels(path)
    assert_names(raised.value, f"--val-labels {path}: {message}")


def test_folder_of_anything_else_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError) as raised:
        read_validation_labels(tmp_path)
    assert_names(raised.value, f"--val-labels {tmp_path}: no {GROUND_TRUTH} in it; is it ILSVRC2012's development kit?")


def test_another_archive_is_not_read_to_its_end(tmp_path: Path) -> None:
    """The archive is truncated in a file that only a reader of all of it would reach."""
    path = tmp_path / "images.tar"
    with open(path, "wb") as file:
        for number in range(3):
            header = tarfile.TarInfo(f"{number}.JPEG")
            header.size = 12 << 20
            file.write(header.tobuf())
            file.seek(header.size, 1)
        file.truncate(30 << 20)
    with pytest.raises(InputError, match=f"no {GROUND_TRUTH} in it"):
        read_validation_labels(path)


# --- class lists


def test_class_list_keeps_its_order_and_takes_the_first_word(labels_file: Path) -> None:
    labels_file.write_text("\ufeffn01484850 great white shark\r\nn01440764,tench\n\n  n01443537\tgoldfish\n\n")
    assert read_class_list(labels_file) == ["n01484850", "n01440764", "n01443537"]


def test_class_list_may_have_names_of_its_own(labels_file: Path) -> None:
    labels_file.write_text("cat\ndog\nair-plane\n")
    assert read_class_list(labels_file) == ["cat", "dog", "air-plane"]


WRONG_LISTS = {
    "empty": (b"", "empty"),
    "blank": (b" \n\n", "empty"),
    "a class twice": (b"n01440764\nn01443537\nn01440764 tench\n", "'n01440764' occurs 2 times"),
    "a typing error": (b"n01440764\nn0144353\n", "'n0144353' is not a wnid"),
    "a heading": (b"wnid,name\nn01440764,tench\n", "'wnid' is not a wnid"),
    "JSON": (b'{"0": ["n01440764", "tench"]}\n', "is not a wnid"),
    "a path": (b"../../etc\n", "'../../etc' is not a wnid"),
    "binary": (bytes(range(256)), "cannot be read as text"),
}


@pytest.mark.parametrize(("content", "message"), WRONG_LISTS.values(), ids=WRONG_LISTS.keys())
def test_wrong_class_list_is_refused(labels_file: Path, content: bytes, message: str) -> None:
    labels_file.write_bytes(content)
    with pytest.raises(InputError) as raised:
        read_class_list(labels_file)
    assert_names(raised.value, f"--classes {labels_file}: ", message)


def test_class_list_that_is_a_folder_or_missing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"--classes {tmp_path}: cannot be read"):
        read_class_list(tmp_path)
    with pytest.raises(InputError, match=f"--classes {tmp_path}/none: cannot be read"):
        read_class_list(tmp_path / "none")


def test_long_class_list_with_every_class_twice_is_refused_at_once(labels_file: Path) -> None:
    labels_file.write_text("".join(f"n{number:08d}\n" for number in range(200_000)) * 2)
    with pytest.raises(InputError, match="'n00000000' occurs 2 times"):
        read_class_list(labels_file)


# --- any content gives labels or one InputError


def read_anything(path: Path, images: list[str]) -> None:
    """The result is labels, or an InputError of one line that names the file or an image."""
    try:
        labels = read_validation_labels(path)
        assert labels
        assert len(label_images(images, labels, path)) == len(images)
    except InputError as error:
        assert_names(error, path)


@st.composite
def altered(draw: st.DrawFn, original: bytes) -> bytes:
    """Bytes replaced, removed or inserted, or the end cut off."""
    data = bytearray(original)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(data)))
        data[at : at + draw(st.sampled_from([0, 1, 1, 1, 8]))] = draw(st.binary(max_size=8))
    return bytes(data[: draw(st.sampled_from([len(data), draw(st.integers(0, len(data)))]))])


TEXT_BYTES = st.one_of(
    st.binary(),
    st.text().map(str.encode),
    st.lists(st.text(st.sampled_from("mv n0123,\"' /\t\r\n\0\u2028_.")), max_size=8).map("\n".join).map(str.encode),
    *(altered(text.encode()) for text in TEXTS.values()),
    st.text().map(lambda text: f"ImageId,PredictionString\n{text}".encode()),
)


@given(TEXT_BYTES)
def test_any_text_gives_labels_or_an_input_error(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "any-labels.txt"
    path.write_bytes(data)
    read_anything(path, IMAGES)


@given(TEXT_BYTES)
def test_any_class_list_gives_names_or_an_input_error(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "any-classes.txt"
    path.write_bytes(data)
    try:
        classes = read_class_list(path)
        assert len(set(classes)) == len(classes) > 0
    except InputError as error:
        assert_names(error, path)


@given(st.one_of(altered(TRUTH.encode()), st.text().map(str.encode), st.binary()))
def test_any_ground_truth_gives_labels_or_an_input_error(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    folder = tmp_path_factory.getbasetemp() / "any-truth"
    folder.mkdir(exist_ok=True)
    (folder / "meta.mat").write_bytes(META)
    (folder / GROUND_TRUTH).write_bytes(data)
    read_anything(folder, IMAGES)


@pytest.fixture(scope="session")
def packed_kit(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The development kit as an archive, by extension."""
    folder = tmp_path_factory.mktemp("kit")
    kit = write_devkit(folder / "kit", WNIDS, CLASSES)
    return {
        "tar.gz": packed(kit, folder / "kit.tar.gz").read_bytes(),
        "tar": packed(kit, folder / "kit.tar", "w").read_bytes(),
    }


@pytest.mark.parametrize("extension", ["tar.gz", "tar"])
@given(st.data())
def test_any_archive_gives_labels_or_an_input_error(
    packed_kit: dict[str, bytes], tmp_path_factory: pytest.TempPathFactory, extension: str, data: st.DataObject
) -> None:
    path = tmp_path_factory.getbasetemp() / f"any.{extension}"
    content = st.one_of(altered(packed_kit[extension]), altered(packed_kit[extension][:600]), st.binary(max_size=40))
    path.write_bytes(data.draw(content))
    read_anything(path, IMAGES)


def header_of(size_field: bytes, kind: bytes = tarfile.REGTYPE) -> bytes:
    """A header block in which the size is this field."""
    member = tarfile.TarInfo("some")
    member.type = kind
    block = bytearray(member.tobuf(tarfile.USTAR_FORMAT))
    block[124:136], block[148:156] = size_field, b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


HEADER = header_of(b"%011o\0" % 0)
LEADS_BACK = HEADER + header_of((-512).to_bytes(12, "big", signed=True))
DIGITS = header_of(b"%011o\0" % (1 << 16), tarfile.XHDTYPE) + b"1" * (1 << 16) + HEADER


@pytest.mark.parametrize("content", [LEADS_BACK, DIGITS], ids=["a member that leads back", "digits"])
def test_an_archive_that_tarfile_reads_for_hours_is_refused(tmp_path: Path, content: bytes) -> None:
    """Of less than a kilobyte, as it is packed."""
    archive = tmp_path / "ILSVRC2012_devkit_t12.tar.gz"
    archive.write_bytes(gzip.compress(content + bytes(1024)))
    with pytest.raises(InputError) as raised:
        read_validation_labels(archive)
    assert_names(raised.value, archive, "not the development kit's archive, or damaged")


def endless_archive(path: Path, start: bytes) -> Path:
    """A packed archive that begins so, and goes on with 200 MB of zeros."""
    with gzip.open(path, "wb", compresslevel=1) as file:
        file.write(start)
        for _ in range(200):
            file.write(bytes(1 << 20))
    return path


@pytest.mark.parametrize(
    "kind", [tarfile.REGTYPE, tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME], ids=["file", "pax", "name"]
)
def test_a_packed_archive_of_200_mb_is_not_unpacked(tmp_path: Path, kind: bytes) -> None:
    member = tarfile.TarInfo("some")
    member.size, member.type = 190 << 20, kind
    path = endless_archive(tmp_path / "some.tar.gz", member.tobuf(tarfile.GNU_FORMAT))
    with memory_below(100 << 20), pytest.raises(InputError) as raised:
        read_validation_labels(path)
    assert str(raised.value).isprintable()
