"""Labels files: every form in which people have the classes of validation images, and class lists.

Labels are joined to images by file name or by the number in it, never by the position in a listing, so a stray file
cannot shift them.
"""

import contextlib
import csv
import gzip
import io
import re
import zlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath

from ..errors import InputError, StorageError
from ..storage.classes import is_wnid
from ..storage.foreign import ZIP, kind_of_file
from ..storage.reading import open_to_read, read_at
from .archives import list_members, list_unpacked
from .matlab import read_structs
from .zips import read_zipped

Labels = Mapping[str | int, str | int]
"""The wnid or the class index of each validation image, by file name without extension or by the number in the file
name."""

KNOWN_FILES = (
    "valprep.sh",
    "LOC_val_solution.csv",
    "ILSVRC2012_devkit_t12",
    "ILSVRC2012_devkit_t12.tar.gz",
    "imagenet_2012_validation_synset_labels.txt",
)
"""The names of labels files that are looked for next to a source, in order of preference."""

PACKED_FILES = (*(name for name in KNOWN_FILES if "devkit" not in name), "val_annotations.txt")
"""The names of labels files that are looked for in an archive."""

_MOVE = re.compile(r"^\s*mv\s+(\S+)\s+(\S+?)/?\s*$")
_NUMBERED = re.compile(r"_(\d{1,18})$")
_ROW = re.compile(r"(\S+\.\w+)[\s,]+(n\d{8})(?:[\s,].*)?", re.ASCII)  # an image's name and its wnid
_INDEX_ROW = re.compile(r"(\S+\.\w+)[\s,]+(\d{1,6})", re.ASCII)  # an image's name and its class index
_IN_NAME = re.compile(r"(?:.*_)?(n\d{8})|(n\d{8})_.*", re.ASCII | re.DOTALL)
_LABEL_SUFFIXES = (".txt", ".csv", ".tsv", ".sh", ".lst", "")
_WNIDS_BEGIN = 1 << 16  # bytes within which a labels file has its first wnid
_GROUND_TRUTH = "ILSVRC2012_validation_ground_truth.txt"
_SYNSETS = "meta.mat"
_LARGEST = 1 << 24  # bytes of a labels file; real ones have less than 4 MB


def wnid_in_name(name: str) -> str | None:
    """The wnid in an image's file name: `n01440764_10026.JPEG`, or `ILSVRC2012_val_00000001_n01751748.JPEG`."""
    match = _IN_NAME.fullmatch(image_stem(name))
    return (match[1] or match[2]) if match else None


def read_validation_labels(labels_file: Path) -> Labels:
    """The wnid or the class index of each validation image, at least one. Raises InputError. Reads

    - `valprep.sh`: its `mv IMAGE WNID/` lines; nothing is executed;
    - the development kit `ILSVRC2012_devkit_t12`, as a folder or `.tar.gz`: the IDs of its ground truth, line n
      for the image numbered n, become wnids through its `meta.mat`;
    - Kaggle's `LOC_val_solution.csv`: image name and, as the first word of the prediction, the wnid;
    - lines that begin with an image's name and its wnid, as in Tiny-ImageNet's `val_annotations.txt`;
    - lines of an image's name and its class index, which counts the sorted wnids from 0, as in the `val.txt` of Caffe
      and of MMPretrain;
    - a list with one wnid per line in file-name order, like TensorFlow's
      imagenet_2012_validation_synset_labels.txt: line n belongs to the image numbered n.
    """
    flag = f"--val-labels {labels_file}"
    if labels_file.is_dir() or labels_file.name.endswith((".tar.gz", ".tgz", ".tar")):
        return _devkit(labels_file)
    lines = _lines(flag, _read(flag, labels_file))
    if lines[0].replace(" ", "") == "ImageId,PredictionString":
        return _kaggle(flag, lines)
    moves = [(number, match[1], match[2]) for number, match in enumerate(map(_MOVE.match, lines), 1) if match]
    if moves:
        return _by_name(flag, moves)
    for row in (_ROW, _INDEX_ROW):
        if any(map(row.fullmatch, lines[:2])):
            return _rows(flag, lines, row)
    return _synset_list(flag, lines)


def _read(flag: str, path: Path) -> bytes:
    try:
        if archive := next((above for above in path.parents if above.is_file()), None):
            data = _packed(archive, str(path.relative_to(archive)))
        else:
            with open_to_read(path) as file:
                data = read_at(file, _LARGEST + 1, 0)
    except OSError as error:
        raise InputError(f"{flag}: cannot be read ({error.strerror})") from None
    if len(data) > _LARGEST:
        raise InputError(f"{flag}: has more than {_LARGEST >> 20} MB, as no such file has; is it the right one?")
    return data


def _packed(archive: Path, name: str) -> bytes:
    """A file in a zip or tar archive. Raises InputError, OSError."""
    if kind_of_file(archive) == ZIP:
        return read_zipped(archive, name, _LARGEST + 1)
    for member in list_members(archive):
        if str(PurePosixPath(member.name)) == name:
            with open_to_read(archive) as file:
                return read_at(file, min(member.size, _LARGEST + 1), member.offset)
    raise InputError(f"{archive}: has no file {name}")


def _lines(flag: str, data: bytes) -> list[str]:
    """The lines of a text, without empty lines at the end."""
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


def _rows(flag: str, lines: list[str], row: re.Pattern[str]) -> Labels:
    """The first line may be a heading."""
    rows = list[tuple[int, str, str | int]]()
    for number, line in enumerate(lines, 1):
        if match := row.fullmatch(line.strip()):
            rows.append((number, match[1], match[2] if row is _ROW else int(match[2])))
        elif number > 1:
            what = "its wnid" if row is _ROW else "its class index"
            raise InputError(f"{flag} line {number}: does not begin with an image and {what}: {line[:60]!r}")
    return _by_name(flag, rows)


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


def _by_name(flag: str, rows: Iterable[tuple[int, str, str | int]]) -> Labels:
    """Labels from line number, image and wnid or class index of each row."""
    labels: dict[str | int, str | int] = {}
    for number, image, wnid in rows:
        name = image_stem(image)
        if isinstance(wnid, str) and not is_wnid(wnid):
            raise InputError(f"{flag} line {number}: {wnid[:40]!r} is not a wnid (n and 8 digits)")
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
            raise InputError(f"{flag}: {_GROUND_TRUTH} line {number}: {line[:20]!r} is not a synset's ID")
        labels[number] = wnids[synset]
    return labels


def _devkit_files(flag: str, devkit: Path) -> dict[str, bytes]:
    """The two files that matter, from the folder (or its data/) or the archive."""
    if devkit.is_dir():
        paths = [folder / name for folder in (devkit, devkit / "data") for name in (_GROUND_TRUTH, _SYNSETS)]
        return {path.name: _read(flag, path) for path in paths if path.is_file()}
    data, files = _unpacked(flag, devkit), dict[str, bytes]()
    try:
        for member in list_unpacked(data, devkit.name):
            name = PurePosixPath(member.name).name
            if name in (_GROUND_TRUTH, _SYNSETS):
                files[name] = data[member.offset : member.offset + member.size]
            if len(files) == 2:
                break
    except InputError as error:
        if len(data) < _LARGEST:  # otherwise it is the archive of something else
            raise InputError(f"{flag}: not the development kit's archive, or damaged ({error})") from None
    return files


def _unpacked(flag: str, devkit: Path) -> bytes:
    """The first bytes of an archive, unpacked: a stranger's may go on for ever. Raises InputError."""
    try:
        with open_to_read(devkit) as file:
            packed = read_at(file, _LARGEST, 0)
        is_packed = packed.startswith(b"\x1f\x8b")
        return gzip.GzipFile(fileobj=io.BytesIO(packed)).read(_LARGEST) if is_packed else packed
    except OSError as error:
        raise InputError(f"{flag}: cannot be read ({error.strerror or error})") from None
    except (EOFError, zlib.error) as error:
        raise InputError(f"{flag}: not the development kit's archive, or damaged ({error})") from None


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


def label_images(names: Sequence[str], labels: Labels, labels_file: Path) -> list[str | int]:
    """The wnid or the class index of each image, given their names. Raises InputError where they do not match."""
    by_number = isinstance(next(iter(labels)), int)
    wnids, seen = list[str | int](), dict[str | int, str]()
    for name in names:
        key = _image_number(name) if by_number else image_stem(name)
        if key is None or key not in labels:
            raise InputError(f"{name}: no label for it in {labels_file}; remove the image or give other --val-labels")
        if seen.setdefault(key, name) is not name:
            raise InputError(f"{name}: has the name or number of {seen[key]}; remove the one that is not ImageNet's")
        wnids.append(labels[key])
    if len(names) != len(labels):
        missing = next(key for key in labels if key not in seen)
        raise InputError(
            f"{labels_file}: {len(labels)} labels for {len(names)} images, among which {missing} is missing; is it the "
            f"right file, and are all images there?"
        )
    return wnids


def _image_number(name: str) -> int | None:
    """The number in `ILSVRC2012_val_00000017.JPEG`."""
    match = _NUMBERED.search(image_stem(name))
    return int(match.group(1)) if match else None


def find_labels_by_content(folders: Iterable[Path], names: Sequence[str]) -> Path | None:
    """The file in the first of `folders` with one whose content labels exactly the images called `names`.

    A sorted list of different wnids is a list of classes, and wnids are preferred to indices. Raises InputError if
    files of one folder disagree.
    """
    for folder in folders:
        found = {path: labels for path in _label_candidates(folder) if (labels := _matching_labels(path, names))}
        matching = {path: labels for path, labels in found.items() if isinstance(labels[0], str)} or found
        first = next(iter(matching), None)
        for path, wnids in matching.items():
            if first and wnids != matching[first]:
                raise InputError(f"{path}: gives images other classes than {first}; name one of them with --val-labels")
        if first:
            return first
    return None


def _label_candidates(folder: Path) -> list[Path]:
    """The readable files in a folder that may have labels, judged by their beginning."""
    with contextlib.suppress(PermissionError):  # what lies next to a source may not be ours
        named = [path for path in folder.iterdir() if path.suffix.lower() in _LABEL_SUFFIXES]
        files = [path for path in named if path.is_file() and not path.name.startswith(".")]
        return [path for path in sorted(files) if _may_label(path)]
    return []


def _may_label(path: Path) -> bool:
    """Whether a file mentions a wnid at its beginning, or begins with an image and its class index."""
    try:
        with open_to_read(path) as file:
            start = read_at(file, _WNIDS_BEGIN, 0)
    except PermissionError:
        return False
    first_line = start.partition(b"\n")[0].decode("utf-8-sig", "replace").strip()
    return re.search(rb"n\d{8}", start) is not None or _INDEX_ROW.fullmatch(first_line) is not None


def _matching_labels(path: Path, names: Sequence[str]) -> list[str | int] | None:
    """The wnid or the class index of each image, None if the file does not give them."""
    try:
        labels = read_validation_labels(path)
        wnids = list(map(str, labels.values()))
        if isinstance(next(iter(labels)), int) and len(wnids) > 1 and wnids == sorted({*wnids}):
            return None
        return label_images(names, labels, path)
    except StorageError:
        raise
    except InputError:
        return None


def read_class_list(classes_file: Path) -> list[str]:
    """The classes of --classes, in its order: the first word of each line if these are wnids (Kaggle's
    LOC_synset_mapping.txt), otherwise each line as a class folder's name.

    Raises InputError.
    """
    flag = f"--classes {classes_file}"
    lines = [line.strip() for line in _lines(flag, _read(flag, classes_file)) if line.strip()]
    words = [re.split(r"[\s,]", line)[0] for line in lines]
    classes = words if any(map(is_wnid, words)) else lines
    name, times = Counter(classes).most_common(1)[0]
    if times > 1:
        raise InputError(f"{flag}: {name[:60]!r} occurs {times} times")
    if any(map(is_wnid, classes)):  # next to a wnid, another name is a heading or a typing error
        for name in classes:
            if not is_wnid(name):
                raise InputError(f"{flag}: {name[:60]!r} is not a wnid (n and 8 digits)")
    for name in classes:
        if "/" in name or not name.isprintable() or name[0] in "[{":
            raise InputError(f"{flag}: {name[:60]!r} is not a wnid (n and 8 digits) or a class folder's name")
    return classes


def read_class_titles(flag: str, file: Path) -> dict[str, str]:
    """What classes are called, by the class folder's name: a line each, the name and then, behind a tab or a space, the
    words (Kaggle's LOC_synset_mapping.txt). Raises InputError."""
    titles: dict[str, str] = {}
    for line in _lines(flag, _read(flag, file)):
        name, _, words = line.strip().partition("\t" if "\t" in line.strip() else " ")
        if words.strip():
            titles[name] = words.strip()
    if not titles:
        raise InputError(f"{flag}: no line has a class folder's name and then words")
    return titles
