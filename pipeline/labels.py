"""Which class an image belongs to: the class index, and every form of validation labels.

The class index is the position of the wnid in sorted order, everywhere. Labels are joined to images by file
name or by the number in it, never by the position in a listing, so a stray file cannot shift them.
"""

import csv
import re
import tarfile
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath

from pipeline.errors import InputError
from pipeline.formats.matlab import read_structs

Labels = Mapping[str | int, str]
"""The wnid of each validation image, by file name without extension or by the number in the file name."""

KNOWN_FILES = (
    "valprep.sh",
    "LOC_val_solution.csv",
    "ILSVRC2012_devkit_t12",
    "ILSVRC2012_devkit_t12.tar.gz",
    "imagenet_2012_validation_synset_labels.txt",
)
"""The names under which labels are found next to a source, in order of preference."""

_MOVE = re.compile(r"^\s*mv\s+(\S+)\s+(\S+?)/?\s*$")
_NUMBERED = re.compile(r"_(\d{1,18})$")
_WNID = re.compile(r"n\d{8}", re.ASCII)
_GROUND_TRUTH = "ILSVRC2012_validation_ground_truth.txt"
_SYNSETS = "meta.mat"
_LARGEST = 1 << 24  # bytes of a labels file; the real ones are below 4 MB


def is_wnid(name: str) -> bool:
    """Whether a name is a WordNet ID, as ImageNet's classes are called."""
    return _WNID.fullmatch(name) is not None


def read_validation_labels(labels_file: Path) -> Labels:
    """The wnid of each validation image, of one at least. Raises InputError. Reads

    - `valprep.sh`: its `mv IMAGE WNID/` lines; nothing is executed;
    - the development kit `ILSVRC2012_devkit_t12`, as a folder or `.tar.gz`: the IDs of its ground truth, line n
      for the image numbered n, become wnids through its `meta.mat`;
    - Kaggle's `LOC_val_solution.csv`: image name and, as the first word of the prediction, the wnid;
    - a list with one wnid a line in file-name order, as TensorFlow's
      imagenet_2012_validation_synset_labels.txt: line n belongs to the image numbered n.
    """
    flag = f"--val-labels {labels_file}"
    if labels_file.is_dir() or labels_file.name.endswith((".tar.gz", ".tgz", ".tar")):
        return _devkit(labels_file)
    lines = _lines(flag, _read(flag, labels_file))
    if lines[0].replace(" ", "") == "ImageId,PredictionString":
        return _kaggle(flag, lines)
    moves = [(number, match[1], match[2]) for number, match in enumerate(map(_MOVE.match, lines), 1) if match]
    return _by_name(flag, moves) if moves else _synset_list(flag, lines)


def _read(flag: str, path: Path) -> bytes:
    try:
        with open(path, "rb") as file:
            data = file.read(_LARGEST + 1)
    except OSError as error:
        raise InputError(f"{flag}: cannot be read ({error.strerror})") from None
    if len(data) > _LARGEST:
        raise InputError(f"{flag}: has more than {_LARGEST >> 20} MB, as no such file has; is it the right one?")
    return data


def _lines(flag: str, data: bytes) -> list[str]:
    """The lines of a text, without empty ones at the end."""
    try:
        lines = data.decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise InputError(f"{flag}: cannot be read as text ({error})") from None
    while lines and not lines[-1].strip():
        lines.pop()
    if not lines:
        raise InputError(f"{flag}: empty")
    return lines


def _synset_list(flag: str, lines: list[str]) -> Labels:
    for number, line in enumerate(lines, 1):
        if line.strip().isdecimal():
            raise InputError(f"{flag} line {number}: a number; give the development kit's folder, with {_SYNSETS}")
        if not is_wnid(line.strip()):
            raise InputError(f"{flag} line {number}: neither `mv IMAGE WNID/` nor one wnid: {line[:60]!r}")
    return {number: line.strip() for number, line in enumerate(lines, 1)}


def _kaggle(flag: str, lines: list[str]) -> Labels:
    rows = list[tuple[int, str, str]]()
    try:
        for number, row in enumerate(csv.reader(lines[1:]), 2):
            words = row[1].split() if len(row) == 2 else []
            if not words:
                raise InputError(f"{flag} line {number}: not `IMAGE,WNID x y x y ...`: {str(row)[:60]}")
            rows.append((number, row[0], words[0]))
    except csv.Error as error:
        raise InputError(f"{flag}: cannot be read as csv ({error})") from None
    return _by_name(flag, rows)


def _by_name(flag: str, rows: Iterable[tuple[int, str, str]]) -> Labels:
    """From line number, image and wnid."""
    labels: dict[str | int, str] = {}
    for number, image, wnid in rows:
        name = image_stem(image)
        if not is_wnid(wnid):
            raise InputError(f"{flag} line {number}: {wnid[:40]!r} is no wnid (n and 8 digits)")
        if labels.setdefault(name, wnid) != wnid:
            raise InputError(f"{flag} line {number}: {name[:60]} is given to {labels[name]} and to {wnid}")
    if not labels:
        raise InputError(f"{flag}: empty")
    return labels


def _devkit(devkit: Path) -> Labels:
    """The ground truth and the synsets of the development kit (its readme.txt describes both files)."""
    flag = f"--val-labels {devkit}"
    files = _devkit_files(flag, devkit)
    for name in (_GROUND_TRUTH, _SYNSETS):
        if name not in files:
            raise InputError(f"{flag}: no {name} in it; is it ILSVRC2012's development kit?")
    wnids = _synset_wnids(flag, files[_SYNSETS])
    labels: dict[str | int, str] = {}
    for number, line in enumerate(_lines(f"{flag}: {_GROUND_TRUTH}", files[_GROUND_TRUTH]), 1):
        synset = int(line) if re.fullmatch(r"\s*\d{1,6}\s*", line) else 0
        if synset not in wnids:
            raise InputError(f"{flag}: {_GROUND_TRUTH} line {number}: {line[:20]!r} is no synset's ID")
        labels[number] = wnids[synset]
    return labels


def _devkit_files(flag: str, devkit: Path) -> dict[str, bytes]:
    """The two files that matter, from the folder (or its data/) or the archive."""
    if devkit.is_dir():
        found = [folder / name for folder in (devkit, devkit / "data") for name in (_GROUND_TRUTH, _SYNSETS)]
        return {path.name: _read(flag, path) for path in found if path.is_file()}
    files = {}
    try:
        with tarfile.open(devkit, "r|*") as archive:
            for member in archive:
                name = PurePosixPath(member.name).name
                if member.isreg() and name in (_GROUND_TRUTH, _SYNSETS) and member.size <= _LARGEST:
                    stream = archive.extractfile(member)
                    assert stream is not None
                    files[name] = stream.read()
                if len(files) == 2 or member.offset > _LARGEST:  # or another archive would be read to its end
                    break
    except OSError as error:
        raise InputError(f"{flag}: cannot be read ({error.strerror or error})") from None
    except (EOFError, tarfile.TarError, ValueError, TypeError) as error:  # TypeError: for a header that is cut off
        raise InputError(f"{flag}: not the development kit's archive, or damaged ({error})") from None
    return files


def _synset_wnids(flag: str, meta: bytes) -> dict[float, str]:
    """The wnid of each ILSVRC2012_ID in `meta.mat`, without the inner nodes of the hierarchy."""
    try:
        synsets = read_structs(meta, "synsets", ("ILSVRC2012_ID", "WNID", "num_children"))
    except ValueError as error:
        raise InputError(f"{flag}: {_SYNSETS} cannot be read ({str(error)[:80]})") from None
    leaves = [(number, wnid) for number, wnid, children in synsets if children == [0]]
    wnids = {
        number[0]: wnid
        for number, wnid in leaves
        if isinstance(number, list) and len(number) == 1 and isinstance(wnid, str) and is_wnid(wnid)
    }
    if not leaves or not len(leaves) == len(wnids) == len({*wnids.values()}):
        raise InputError(f"{flag}: {_SYNSETS} does not give each class an ILSVRC2012_ID and a WNID of its own")
    return wnids


def image_stem(name: str) -> str:
    """A file name without folders and extension."""
    return PurePosixPath(name).stem


def label_images(names: Sequence[str], labels: Labels, labels_file: Path) -> list[str]:
    """The wnid of each image, given their names. Raises InputError where images and labels do not match."""
    by_number = isinstance(next(iter(labels)), int)
    wnids, seen = [], dict[str | int, str]()
    for name in names:
        key = _image_number(name) if by_number else image_stem(name)
        if key is None or key not in labels:
            raise InputError(f"{name}: no label for it in {labels_file}; remove the image or give other --val-labels")
        if seen.setdefault(key, name) is not name:
            raise InputError(f"{name}: has the name or number of {seen[key]}; remove the one that is not ImageNet's")
        wnids.append(labels[key])
    if len(names) != len(labels):
        lacking = next(key for key in labels if key not in seen)
        raise InputError(
            f"{labels_file}: {len(labels)} labels for {len(names)} images, among which {lacking} is missing; is it the "
            f"right file, and are all images there?"
        )
    return wnids


def _image_number(name: str) -> int | None:
    """The number in `ILSVRC2012_val_00000017.JPEG`."""
    match = _NUMBERED.search(image_stem(name))
    return int(match.group(1)) if match else None


def read_class_list(classes_file: Path) -> list[str]:
    """The first word of each line, in their order: a list of wnids, or Kaggle's LOC_synset_mapping.txt.

    Raises InputError.
    """
    flag = f"--classes {classes_file}"
    lines = _lines(flag, _read(flag, classes_file))
    classes = [re.split(r"[\s,]", line.strip())[0] for line in lines if line.strip()]
    name, times = Counter(classes).most_common(1)[0]
    if times > 1:
        raise InputError(f"{flag}: {name[:60]!r} is in it {times} times")
    own = re.compile(r"[\w-]+")  # a class of the user's own; beside a wnid it is a heading or a slip of the pen
    fit = _WNID if any(map(is_wnid, classes)) else own
    if unfit := [name for name in classes if not fit.fullmatch(name)]:
        raise InputError(f"{flag}: {unfit[0][:60]!r} is no wnid (n and 8 digits)")
    return classes
