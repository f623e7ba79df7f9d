"""The shapes in which people have ImageNet, recognised by looking; images are read where they are.

- class folders: `train/<wnid>/*.JPEG`, and `val/` in class folders or flat;
- archives: ILSVRC2012_img_train.tar (an archive of an archive per class; or that one unpacked once),
  ILSVRC2012_img_val.tar, and archives of class folders;
- Kaggle's `ILSVRC/Data/CLS-LOC/{train,val}`;
- WebDataset shards with `.jpg`, `.jpeg` or `.JPEG` and `.cls`, `.txt` or `.json`, such as a converted dataset's.
"""

import contextlib
import json
import logging
import os
import re
import sys
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.augment import MIX_DRAW, random_keys
from pipeline.dataset import MANIFEST, Manifest
from pipeline.errors import InputError
from pipeline.formats.archives import Member, list_members
from pipeline.formats.folder import is_image_name, list_classes, list_images
from pipeline.labels import KNOWN_FILES, image_stem, is_wnid, label_images, read_class_list, read_validation_labels

log = logging.getLogger(__name__)

SPLITS = ("train", "val")
_LABEL_FILES = (".cls", ".json", ".txt")
_JSON_LABELS = ("wnid", "synset", "label", "cls", "class", "class_id")
_LARGEST_LABEL_FILE = 1 << 16
_LARGEST_CLASS_INDEX = 999_999
_SPLIT_NAMES = re.compile(r"(?P<train>train)|(?P<val>val)", re.IGNORECASE)
_KAGGLE_FOLDERS = ("ILSVRC", "Data", "CLS-LOC")  # one in the other; labels are beside the first
_OFFICIAL = "ILSVRC2012_img_{split}.tar"
ARCHIVES, SAMPLES, IMAGES = "archives", "WebDataset samples", "images"
_ENOUGH = 32  # members of an archive, to see what it is
# Key and extension as the webdataset library takes them from a name; others it passes over.
_SAMPLE_FILE = re.compile(r"(?!__[^/]*__(?:/|$))((?:.*/)?[^./]+)(\.[^/]*)", re.DOTALL)
_OWN_KEY = re.compile(r"^\d{6}_\d{6}_(?=.)")  # what our shards put before the original name
_VALIDATION_IMAGE = re.compile(r"ILSVRC2012_val_\d{8}")

Label = str | int | None
"""A wnid, a class index, or nothing."""

Row = tuple[Path, Member, Label]
"""An image: its folder or archive, its place in it (offset -1 for a file in a folder), its class."""


@dataclass(frozen=True)
class Images:
    """The images of a split: where their bytes are, and which class they show.

    Columns instead of an object per image: 1.3 million of them take 0.2 GB.
    """

    names: list[str]  # within the container
    containers: list[Path]  # folders and archives
    container: NDArray[np.int32]  # [N], the container of each image
    offsets: NDArray[np.int64]  # [N], in the archive; -1 for a file in a folder
    sizes: NDArray[np.int64]  # [N], bytes
    changed: NDArray[np.int64]  # [N], ns: when its file or archive was
    labels: NDArray[np.int32]  # [N], -1 until the classes are known

    def __len__(self) -> int:
        return len(self.names)

    def where(self, index: int) -> str:
        """An image's place, for messages."""
        return str(self.containers[self.container[index]] / self.names[index])

    def stem(self, index: int) -> str:
        """An image's original file name, without folders and extension."""
        return image_stem(file_name(self.names[index]))

    def read(self, index: int) -> bytes:
        """The bytes of an image. Raises InputError where they are not what they were when it was listed."""
        size, offset = int(self.sizes[index]), int(self.offsets[index])
        container = self.containers[self.container[index]]
        try:
            # 8 us an image less than with a Path and a file object, of 33.
            descriptor = os.open(container if offset >= 0 else f"{container}/{self.names[index]}", os.O_RDONLY)
            try:
                # One byte more of a file: it may have grown.
                data = os.pread(descriptor, size, offset) if offset >= 0 else os.pread(descriptor, size + 1, 0)
            finally:
                os.close(descriptor)
        except OSError as error:
            raise InputError(f"{self.where(index)}: cannot be read ({error.strerror})") from None
        if len(data) != size:
            raise InputError(f"{self.where(index)}: has changed while it was being converted; start again")
        return data

    def select(self, chosen: NDArray[np.int64]) -> "Images":
        """The images at these positions, in this order."""
        return replace(
            self,
            names=[self.names[index] for index in chosen],
            container=self.container[chosen],
            offsets=self.offsets[chosen],
            sizes=self.sizes[chosen],
            changed=self.changed[chosen],
            labels=self.labels[chosen],
        )


@dataclass(frozen=True)
class Found:
    """A split as it was found: what it is, its images, and what is known of their classes."""

    description: str
    images: Images
    labels: list[Label]
    class_names: list[str] | None = None  # what class indices mean, where the source says so
    folder: Path | None = None  # with the class folders, or flat


@dataclass(frozen=True)
class Source:
    """What will be converted."""

    classes: tuple[str, ...]  # sorted wnids: the class index is the position
    splits: dict[str, Images]
    folders: tuple[Path, ...] = ()  # where class folders or flat images are


@dataclass(frozen=True)
class Request:
    """What the user said of the source."""

    paths: tuple[Path, ...]
    splits: tuple[str, ...]
    val_labels: Path | None
    classes: Path | None
    seed: int


@contextlib.contextmanager
def unreadable_named() -> Iterator[None]:
    """A folder without permission, say, is the user's to mend."""
    try:
        yield
    except OSError as error:
        raise InputError(f"{error.filename}: cannot be read ({error.strerror})") from None


@unreadable_named()
def open_source(request: Request) -> Source:
    """Find the splits, their labels and classes. Training images are mixed by the seed, validation images stand
    in file-name order. Raises InputError before an image has been read."""
    wanted = read_class_list(request.classes) if request.classes else None
    splits_found = {}
    for split in request.splits:
        if (one := find_split(request, split)) is not None:
            splits_found[split] = one
            log.info("%s: %d images, %s", split, len(one.images), one.description)
    check_found(request, splits_found)
    if "val" in splits_found:
        splits_found["val"] = labelled(request, splits_found["val"])
    elif request.val_labels:
        reason = "there are none in it" if "val" in request.splits else "--splits leaves them out"
        raise InputError(f"--val-labels {request.val_labels}: no validation images of {said(request)}, {reason}")
    classes, splits = classify(splits_found, wanted, request)
    if "train" in splits:
        keys = random_keys(len(splits["train"]), request.seed, 0, MIX_DRAW)
        splits["train"] = splits["train"].select(np.argsort(keys, kind="stable"))
    return Source(tuple(classes), splits, tuple(one.folder for one in splits_found.values() if one.folder))


def said(request: Request) -> str:
    """The --src flag as it was given."""
    return f"--src {' '.join(map(str, request.paths))}"


def check_found(request: Request, splits_found: dict[str, Found]) -> None:
    """Raises InputError where what was asked for is not there."""
    if not splits_found or ("train" in request.splits and "train" not in splits_found):
        missing = "train" if "train" in request.splits else "val"
        raise InputError(
            f"{said(request)}: no {missing} images in it; it must hold ImageNet's {missing}/ folder, its archives "
            f"(ILSVRC2012_img_{missing}.tar) or WebDataset shards (`python tools/make_demo_data.py` makes demo data)"
        )
    if "val" in request.splits and "val" not in splits_found:
        log.info("%s: no validation images, converting train only", said(request))


# --- where a split is


def find_split(request: Request, split: str) -> Found | None:
    """The images of one split: of the archives that were named, else of the one path that has some."""
    check_paths(request)
    if tars := [path for path in request.paths if path.is_file() and split_of(path) == split]:
        return in_archives(sorted({tar.resolve(): tar for tar in sorted(tars, reverse=True)}.values()), split)
    places = {path: place for path in request.paths if path.is_dir() and (place := place_in(path, split))}
    if len(places) > 1:
        raise InputError(f"--src: {' and '.join(map(str, places))} all have {split} images; name one of them")
    place = next(iter(places.values()), None)
    if place is None:
        return None
    return in_archives(place, split) if isinstance(place, list) else in_folder(place, split)


def check_paths(request: Request) -> None:
    """Raises InputError for a path that does not exist or is nothing that can be converted."""
    for path in request.paths:
        if not path.exists():
            raise InputError(
                f"--src {path}: no such file or folder; it must hold ImageNet's train/ and val/, its archives or "
                f"WebDataset shards (`python tools/make_demo_data.py` makes demo data)"
            )
        if not path.is_dir() and split_of(path) is None and path.name not in KNOWN_FILES:
            raise InputError(
                f"--src {path}: not an uncompressed archive with train or val in its name (*train*.tar); rename or "
                f"unpack it, and give labels with --val-labels"
            )


def place_in(path: Path, split: str) -> Path | list[Path] | None:
    """The folder or the archives of a split: in `path`, or where Kaggle's download has them."""
    empty = None
    for root in (path, *kaggle_roots(path)):
        for folder in (root / split, root):
            if folder.is_symlink() and not folder.exists():
                raise InputError(f"{folder}: a link to nothing; mend or remove it")
            if folder.name == split and folder.is_dir():
                tars = official_first(archives_in(folder), split)
                if holds_images(folder, split):
                    check_unpacked(folder, tars)
                    return folder
                if tars:
                    return tars
                if list_classes(folder):
                    return folder
                empty = folder
        for folder in (root, root / "webdataset"):
            if tars := official_first([tar for tar in archives_in(folder) if split_of(tar) == split], split):
                return tars
    return empty


def check_unpacked(folder: Path, tars: list[Path]) -> None:
    """Raises InputError where class archives stand beside class folders and have none: unpacking was interrupted."""
    left = [tar for tar in tars if is_wnid(tar.stem) and not (folder / tar.stem).is_dir()]
    if left:
        raise InputError(
            f"{folder}: unpacked in part, {len(left)} class archives ({left[0].name}) have no folder; unpack them too, "
            f"or name the archive they came from with --src"
        )


def official_first(tars: list[Path], split: str) -> list[Path]:
    """The official archive alone where it is among them, or images would be there twice: beside it may be
    ILSVRC2012_img_train_t3.tar, which has some of them, or what was unpacked of it."""
    return [tar for tar in tars if tar.name == _OFFICIAL.format(split=split)] or tars


def kaggle_roots(path: Path) -> list[Path]:
    """Where Kaggle's download has train/ and val/."""
    roots = [path.joinpath(*_KAGGLE_FOLDERS[number:]) for number in range(len(_KAGGLE_FOLDERS))]
    return [root for root in roots if root.is_dir()]


def archives_in(folder: Path) -> list[Path]:
    """The archives directly in a folder, without hidden ones."""
    return sorted(path for path in folder.glob("*.tar") if not path.name.startswith(".") and not path.is_dir())


def holds_images(folder: Path, split: str) -> bool:
    """Whether images have been unpacked here, beside the archives they came in."""
    return any(map(is_wnid, list_classes(folder))) or (split == "val" and bool(list_images(folder)))


def split_of(archive: Path) -> str | None:
    """The split that an archive's name speaks of."""
    match = _SPLIT_NAMES.search(archive.name)
    return match.lastgroup if match and archive.suffix == ".tar" else None


def in_folder(folder: Path, split: str) -> Found:
    """`train/` in class folders, `val/` in class folders or flat."""
    classes = list_classes(folder)
    flat = list_images(folder) if split == "val" else []
    if flat and any(map(is_wnid, classes)):
        raise InputError(
            f"{folder}: sorted in part, {len(flat)} images ({flat[0].name}) stand beside the class folders; move them "
            f"into theirs"
        )
    if flat:  # a stray folder beside them (what a NAS leaves, say) is passed over like any other stray file
        return replace(found(f"flat folder {folder}", file_rows(folder, None)), folder=folder)
    if not classes:
        raise InputError(f"{folder}: no {'images and no ' if split == 'val' else ''}class folders")
    rows = (row for name in classes for row in class_rows(folder / name))
    return replace(found(f"class folders in {folder}", rows), folder=folder)


def in_archives(tars: list[Path], split: str) -> Found:
    """Archives of what there may be: archives, WebDataset samples, class folders, or flat images."""
    kinds = {kind_of(tar): tar for tar in reversed(tars)}
    if len(kinds) > 1:
        (kind, tar), (other_kind, other) = sorted(kinds.items(), key=lambda pair: pair[1])[:2]
        raise InputError(f"{tar}: holds {kind}, and {other} {other_kind}; convert them one by one")
    if ARCHIVES in kinds:
        archives = [(tar, member) for tar in tars for member in list_members(tar) if is_archive(member)]
        rows = (row for pair in archives for row in archive_rows(*pair))
        return each_once(found(f"class archives in {named(tars)}", rows))
    if SAMPLES in kinds:
        rows = (row for tar in tars for row in shard_rows(tar))
        return replace(found(f"WebDataset shards {named(tars)}", rows), class_names=manifest_classes(tars, split))
    if all(is_wnid(tar.stem) for tar in tars):
        rows = (row for tar in tars for row in archive_rows(tar, None))
        return each_once(found(f"class archives {named(tars)}", rows))
    members = ((tar, member) for tar in tars for member in image_members(list_members(tar)))
    one = found(f"archive {named(tars)}", ((tar, member, folder_of(member.name)) for tar, member in members))
    if not one.labels or (split == "train" and not any(one.labels)):
        raise InputError(
            f"{tars[0]}: neither archives of classes (nXXXXXXXX.tar) nor class folders (nXXXXXXXX/) nor WebDataset "
            f"samples in it"
        )
    if split == "train" and None in one.labels:
        raise InputError(f"{one.images.where(one.labels.index(None))}: in no class folder (nXXXXXXXX/)")
    return each_once(one)


def kind_of(tar: Path) -> str:
    """What an archive holds, by its first members."""
    first = list(islice(list_members(tar), _ENOUGH))
    if not first:
        raise InputError(f"{tar}: no files in this archive")
    if any(is_archive(member) for member in first):
        return ARCHIVES
    return SAMPLES if has_samples(first) else IMAGES


def each_once(one: Found) -> Found:
    """The same. Raises InputError for an image that is there twice, as where an archive of some classes was named
    beside that of all."""
    pairs = zip(map(file_name, one.images.names), one.labels, strict=True)
    hashes = np.fromiter(map(hash, pairs), np.int64, len(one.labels))  # a set of 1.3 million texts would take 0.2 GB
    order = np.argsort(hashes, kind="stable")
    again = np.flatnonzero(np.diff(hashes[order]) == 0)
    if len(again):
        first, second = (one.images.where(int(order[at])) for at in (again[0], again[0] + 1))
        raise InputError(f"{second}: also in {first}; name one of them")
    return one


def is_archive(member: Member) -> bool:
    """Whether an archive's member is an archive of its own."""
    return member.name.endswith(".tar") and not PurePosixPath(member.name).name.startswith(".")


def has_samples(members: list[Member]) -> bool:
    """Whether there are WebDataset samples among them: an image and a label of the same key."""
    files = [match.groups() for member in members if (match := _SAMPLE_FILE.fullmatch(member.name))]
    images = {key for key, suffix in files if is_image_name(f"x{suffix}")}
    return any(key in images and suffix.lower() in _LABEL_FILES for key, suffix in files)


def file_rows(folder: Path, label: Label) -> Iterator[Row]:
    """The images in a folder."""
    for path in list_images(folder):
        status = path.stat()
        yield folder, Member(path.name, -1, status.st_size, status.st_mtime_ns), label


def class_rows(folder: Path) -> Iterator[Row]:
    """The images of a class folder. Raises InputError where there is none."""
    empty = True
    for row in file_rows(folder, folder.name):
        empty = False
        yield row
    if empty:
        raise InputError(f"{folder}: no images in this class folder; remove it or fill it")


def archive_rows(tar: Path, inside: Member | None) -> Iterator[Row]:
    """The images of a class archive: a file, or an archive's member. It is named after the class."""
    wnid = PurePosixPath(inside.name).stem if inside else tar.stem
    if inside and not is_wnid(wnid):
        raise InputError(f"{tar}: {inside.name} in it is not named after a class (nXXXXXXXX.tar)")
    empty = True
    for member in image_members(list_members(tar, inside)):
        empty = False
        yield tar, member._replace(name=f"{wnid}/{member.name}" if inside else member.name), wnid
    if empty:
        raise InputError(f"{tar}: no images in {inside.name if inside else 'it'}")


def shard_rows(tar: Path) -> Iterator[Row]:
    """The images of WebDataset samples, the files that share their name up to the first dot."""
    for key, files in grouped(tar):
        images = [member for suffix, member in files.items() if is_image_name(f"x{suffix}")]
        if len(images) != 1:
            raise InputError(f"{tar}: sample {key} has {len(images)} images, not one")
        yield tar, images[0], shard_label(tar, key, files)


def grouped(tar: Path) -> Iterator[tuple[str, dict[str, Member]]]:
    """Key and files by extension of each sample, as the webdataset library groups them."""
    key, files = "", dict[str, Member]()
    for member in list_members(tar):
        match = _SAMPLE_FILE.fullmatch(member.name)
        if match is None:
            continue
        if match[1] != key and files:
            yield key, files
            files = {}
        key, suffix = match[1], match[2].lower()
        if suffix in files:
            raise InputError(f"{tar}: sample {key} has two files {suffix}; its key must be its own")
        files[suffix] = member
    if files:
        yield key, files


def shard_label(tar: Path, key: str, files: dict[str, Member]) -> Label:
    """The class of a sample: an index or a wnid in its `.cls`, `.json` or `.txt`. Raises InputError."""
    for suffix in _LABEL_FILES:
        if (member := files.get(suffix)) is None:
            continue
        if member.size > _LARGEST_LABEL_FILE:
            raise InputError(f"{tar}: {member.name} is too large for a label")
        with open(tar, "rb", buffering=0) as file:
            text = os.pread(file.fileno(), member.size, member.offset).decode("utf-8", "replace").strip()
        label = json_label(text) if suffix == ".json" else text
        if isinstance(label, str) and label.isdecimal():
            label = int(label) if len(label.lstrip("0")) <= len(str(_LARGEST_CLASS_INDEX)) else -1
        if isinstance(label, str) and re.fullmatch(r"[\w-]+", label):
            return label
        if isinstance(label, int) and 0 <= label <= _LARGEST_CLASS_INDEX:
            return label
    raise InputError(f"{tar}: sample {key} has no label in {', '.join(_LABEL_FILES)}")


def json_label(text: str) -> Any:
    """The class in a JSON file: a number or a wnid (which the webdataset library writes as it is), or the field
    that holds it."""
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        return text if is_wnid(text) else None
    if isinstance(content, dict):
        content = next((content[name] for name in _JSON_LABELS if name in content), None)
    return None if isinstance(content, bool) else content


def manifest_classes(tars: list[Path], split: str) -> list[str] | None:
    """The class list of a dataset that was converted before. Raises InputError where a shard of it is missing."""
    datasets = {tar.absolute().parent.parent for tar in tars if tar.absolute().parent.name == "webdataset"}
    manifests = {dataset: Manifest.read(dataset) for dataset in sorted(datasets) if (dataset / MANIFEST).is_file()}
    for dataset, manifest in manifests.items():
        for shard in manifest.splits[split].shards if split in manifest.splits else ():
            if not (dataset / shard.name).exists():
                raise InputError(f"{dataset / shard.name}: missing, and {MANIFEST} lists it; convert again")
    lists = {manifest.classes for manifest in manifests.values()}
    if len(lists) > 1:
        raise InputError(f"{named(tars)}: from datasets with different classes; convert them one by one")
    return next((list(classes) for classes in lists), None)


def named(tars: list[Path]) -> str:
    return str(tars[0]) if len(tars) == 1 else f"{tars[0]} to {tars[-1].name}"


def folder_of(name: str) -> str | None:
    """The class folder of an archive's member, None for a flat one."""
    folder = PurePosixPath(name).parent.name
    return folder if is_wnid(folder) else None


def image_members(members: Iterable[Member]) -> Iterator[Member]:
    """The images among them."""
    return (member for member in members if is_image_name(PurePosixPath(member.name).name))


def found(description: str, rows: Iterable[Row]) -> Found:
    """A split of these rows."""
    names, labels, containers = list[str](), list[Label](), dict[Path, int]()
    numbers, offsets, sizes, changed = array("i"), array("q"), array("q"), array("q")
    for container, member, label in rows:
        names.append(member.name)
        labels.append(sys.intern(label) if isinstance(label, str) else label)  # 1.3 million texts, 1000 different
        numbers.append(containers.setdefault(container, len(containers)))
        offsets.append(member.offset)
        sizes.append(member.size)
        changed.append(member.changed)
    images = Images(
        names=names,
        containers=list(containers),
        container=np.array(numbers, np.int32),
        offsets=np.array(offsets, np.int64),
        sizes=np.array(sizes, np.int64),
        changed=np.array(changed, np.int64),
        labels=np.full(len(names), -1, np.int32),
    )
    return Found(description, images, labels)


# --- which class an image shows


def labelled(request: Request, one: Found) -> Found:
    """Validation images with their classes: as they were found, or joined with a labels file."""
    if None not in one.labels:
        if request.val_labels:
            raise InputError(f"--val-labels: not needed, there are classes in {one.description}; leave it out")
        check_single(one.images)
        return one
    labels_file = request.val_labels or find_labels(request)
    if labels_file is None:
        raise InputError(
            f"{one.description}: {len(one.images)} images without class folders; give --val-labels FILE "
            f"(valprep.sh, the development kit, Kaggle's csv or a list of wnids)"
        )
    log.info("val: labels from %s", labels_file)
    names = [one.images.where(index) for index in range(len(one.images))]
    return replace(one, labels=list(label_images(names, read_validation_labels(labels_file), labels_file)))


def check_single(images: Images) -> None:
    """Raises InputError where a validation image is there twice: it would be of two classes."""
    seen = dict[str, int]()
    for index in range(len(images)):
        stem = images.stem(index)
        if _VALIDATION_IMAGE.fullmatch(stem) and seen.setdefault(stem, index) != index:
            raise InputError(f"{images.where(index)}: also in {images.where(seen[stem])}; remove the wrong one")


def find_labels(request: Request) -> Path | None:
    """A labels file of a known name next to the source."""
    given = [where for path in request.paths for where in (path.absolute(), path.resolve())]
    places = {place: None for path in given for place in label_places(path)}
    named_so = [path for path in request.paths if path.name in KNOWN_FILES]
    found = [place / name for name in KNOWN_FILES for place in places if (place / name).exists()]
    return next(iter([*named_so, *found]), None)


def label_places(path: Path) -> list[Path]:
    """Where labels may be: in a source, in its val/ (where valprep.sh is to be started), beside it, and where
    Kaggle's download has them."""
    if not path.is_dir():
        return [path.parent]
    top = path.parent if path.name in SPLITS else path
    while top.name in _KAGGLE_FOLDERS:
        top = top.parent
    return [path, path / "val", path.parent, top]


def classify(
    splits_found: dict[str, Found], wanted: list[str] | None, request: Request
) -> tuple[list[str], dict[str, Images]]:
    """The class list and each split's images with class indices, of the wanted classes."""
    meanings = {split: index_meaning(one, wanted) for split, one in splits_found.items()}
    names = {split: class_names(one, meanings[split]) for split, one in splits_found.items()}
    first = next(iter(splits_found))
    # A class index stays what it is in the source, also where no image has it.
    classes = sorted(wanted or meanings[first] or {*names[first]})
    for name in classes:
        if not name.isprintable():  # not UTF-8, say
            raise InputError(f"{splits_found[first].description}: the class name {name!a}; rename it to plain letters")
    if wanted and (lacking := sorted({*wanted} - {*names[first]})):
        told = ", ".join(lacking[:5]) + (", ..." if len(lacking) > 5 else "")
        log.warning("--classes %s: %d have no %s images: %s", request.classes, len(lacking), first, told)
    index = {wnid: number for number, wnid in enumerate(classes)}
    splits = {}
    for split, one in splits_found.items():
        labels = np.array([index.get(name, -1) for name in names[split]], np.int32)
        if not wanted and (labels < 0).any():
            at = int(np.argmin(labels))
            raise InputError(
                f"{one.images.where(at)}: its class {names[split][at]} is not among the {len(classes)} of {first}; "
                f"remove it, or name the classes with --classes FILE"
            )
        kept = np.flatnonzero(labels >= 0)
        if not len(kept):
            raise InputError(f"--classes {request.classes}: no {split} image is of these classes")
        if len(kept) < len(labels):
            log.info("%s: %d images are of the %d classes of %s", split, len(kept), len(classes), request.classes)
        splits[split] = in_name_order(replace(one.images, labels=labels).select(kept))
    return classes, splits


def in_name_order(images: Images) -> Images:
    """By file name, then class: the same whether they came from folders, archives or class by class."""
    order = np.argsort(images.labels, kind="stable").tolist()
    order.sort(key=lambda index: file_name(images.names[index]))  # a stable sort, too
    return images.select(np.array(order, np.int64))


def file_name(name: str) -> str:
    """An image's original file name: without folders, and without what our shards put before it."""
    return _OWN_KEY.sub("", name.rpartition("/")[2], count=1)


def index_meaning(one: Found, wanted: list[str] | None) -> list[str] | None:
    """What the class indices of a source mean, by its class list or --classes; None where images have names."""
    indices = [label for label in one.labels if isinstance(label, int)]
    if not indices:
        return None
    if len(indices) < len(one.labels):
        raise InputError(f"{one.description}: some labels are class indices and some are names; use one of them")
    meaning = one.class_names or wanted
    if meaning is None:
        log.warning("%s: has class indices without names; --classes FILE names them, in their order", one.description)
        meaning = [f"{number:06d}" for number in range(max(indices) + 1)]
    if max(indices) >= len(meaning):
        raise InputError(
            f"{one.description}: has class index {max(indices)}, and only {len(meaning)} classes have names; --classes "
            f"FILE must name all, in their order"
        )
    return meaning


def class_names(one: Found, meaning: list[str] | None) -> list[str]:
    """The wnid of each image."""
    return [meaning[label] if meaning and isinstance(label, int) else str(label) for label in one.labels]
