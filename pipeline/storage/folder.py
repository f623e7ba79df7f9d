"""Images as folders: one folder per class, or a flat folder of images.

The one definition of which files are images, which folders are classes and splits, and in which order they are listed,
for training from a folder and for the conversion. What is passed over is counted by kind.
"""

import contextlib
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError, StorageError
from ..pixels.formats import (
    LARGEST_FILE,
    SIGNATURE_BYTES,
    BadImage,
    as_jpeg,
    is_image_data,
    is_image_name,
    may_be_image,
)
from .classes import is_wnid, sort_classes
from .files import regular
from .names import Names
from .remote.paths import RemoteEntry, RemotePath
from .samples import Sample

PassedOver = Counter[str]
"""How many files of each kind were not taken for images, for example `{".txt": 3, ".DS_Store": 1}`."""

OUTSIDE_CLASSES = "images outside class folders"
SYSTEM_FOLDERS = ("@eaDir", "#recycle", "__MACOSX", "lost+found", "$RECYCLE.BIN", "System Volume Information")
_SYSTEM_FILES = ("Thumbs.db", "desktop.ini")
WRAPPER = "images"  # Tiny-ImageNet has val/images/*.JPEG

_SPLIT_NAMES = {"train": ("train", "training"), "val": ("val", "validation", "valid"), "test": ("test", "testing")}
_PART = re.compile(r"(?P<split>.+?)(\.X\d*|[._-]?(part)?[._-]?\d+)", re.IGNORECASE)  # train.X1, val.X, train_2


# --- splits


@dataclass(frozen=True)
class SplitFolders:
    """The folders that make a split: one, or several such as `train.X1` to `train.X4`."""

    folders: tuple[Path, ...]
    remark: str = ""  # what the user should know about the choice

    def __str__(self) -> str:
        return str(self.folders[0]) + (f" to {self.folders[-1].name}" if len(self.folders) > 1 else "")


def split_called(name: str) -> str | None:
    """The split "train", "val" or "test" that a folder of this name is, or is one of several parts of."""
    match = _PART.fullmatch(name)
    bare = (match["split"] if match else name).lower()
    return next((split for split, names in _SPLIT_NAMES.items() if bare in names), None)


def split_folders(root: Path, split: str) -> SplitFolders | None:
    """The folders in `root` that make a split, None without any: the one with the split's own name, else one with
    another of its names (in any case), else parts.

    Raises InputError for a broken link.
    """
    called = [name for name in _folder_names(root) if split_called(name) == split]
    parts = sorted((name for name in called if _PART.fullmatch(name)), key=_numbers_in)
    whole = sorted((name for name in called if name not in parts), key=lambda name: (name != split, name))
    if not whole:
        return SplitFolders(tuple(root / name for name in parts)) if parts else None
    unused = [*whole[1:], *parts]
    remark = f"{root}: {whole[0]}/ is used for {split}, and {', '.join(unused)} is not" if unused else ""
    return SplitFolders((root / whole[0],), remark)


def stand_in_for_val(root: Path) -> SplitFolders | None:
    """The `test` folder in `root` if it has class folders: what validates where there is no `val`."""
    made = split_folders(root, "test")
    if made is None or not list_classes(unwrapped(made.folders[0])):
        return None
    return SplitFolders(made.folders, f"{made}: used for validation, as there is no val/")


def other_folders(root: Path) -> list[Path]:
    """Folders with images next to `train` or `val` that are called neither: `test`, `dev`, `holdout`."""
    names = _folder_names(root)
    called = {name: split_called(name) for name in names}
    if not {"train", "val"} & {*called.values()}:
        return []
    return [root / name for name in names if called[name] not in ("train", "val") and _holds_images(root / name)]


def _holds_images(folder: Path) -> bool:
    """Whether there are images in a folder, or in one directly below it."""
    return any(map(images_directly_in, (folder, *(folder / name for name in list_classes(folder)))))


def _folder_names(root: Path) -> list[str]:
    """The visible folders in `root`. Raises InputError for a broken link that is called like a split."""
    with _entries(root) as entries:
        visible = [entry for entry in entries if not is_hidden(entry.name)]
        for entry in visible:
            if entry.is_symlink() and split_called(entry.name) and not os.path.exists(entry.path):
                raise _not_a_file(entry)
        return sorted(entry.name for entry in visible if entry.is_dir())


def _numbers_in(name: str) -> list[int]:
    return [int(digits) for digits in re.findall(r"\d+", name)]


def unwrapped(folder: Path) -> Path:
    """`folder`, or its `images` folder if that is the only one in it."""
    return folder / WRAPPER if list_classes(folder) == [WRAPPER] else folder


# --- images and class folders


def is_hidden(name: str) -> bool:
    """Whether a file or folder of this name belongs to an operating system, a NAS or an editor."""
    return name.startswith(".") or name in SYSTEM_FOLDERS or name in _SYSTEM_FILES


def kind_of(name: str) -> str:
    """The kind under which a file that is not an image is counted."""
    if name.startswith("._"):
        return "._*"
    if name in (".DS_Store", *_SYSTEM_FILES):
        return name
    return "hidden" if name.startswith(".") else os.path.splitext(name)[1].lower() or "without suffix"


def in_words(passed_over: PassedOver) -> str:
    """What was passed over, in one line."""
    total = sum(passed_over.values())
    kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(passed_over.items()))
    return f"{total} files passed over: {kinds}"


def find_images(folder: Path, passed_over: PassedOver | None = None) -> list[str]:
    """The images in `folder` and the folders below it, as paths relative to it, sorted as texts.

    Images are files with an image's suffix, and files with an unknown suffix, or none, whose content is one. Links are
    followed. Other files are added to `passed_over`.

    Raises InputError for a broken link and for a link to a folder above it.
    """
    passed_over = Counter() if passed_over is None else passed_over
    images = list(_images_below(folder, "", (), passed_over))
    images.sort()
    return images


def _images_below(folder: Path, inside: str, above: tuple[str, ...], passed_over: PassedOver) -> Iterator[str]:
    """The images in the folder `inside` of `folder`; `above` are the real paths of the folders it is in."""
    path = os.path.join(folder, inside) if inside else str(folder)
    folders = []
    with _entries(path) as entries:
        for entry in entries:
            name = entry.name
            if entry.is_dir():
                folders.append(entry)
            elif is_image_name(name) or (may_be_image(name) and not is_hidden(name) and _is_image(entry)):
                if not entry.is_file():
                    raise _not_a_file(entry)
                yield inside + name
            else:
                passed_over[kind_of(name)] += 1
    for entry in folders:
        if is_hidden(entry.name):
            passed_over[f"folder {entry.name}" if entry.name in SYSTEM_FOLDERS else "hidden folder"] += 1
            continue
        chain = (*above, os.path.realpath(path))
        if entry.is_symlink() and os.path.realpath(entry.path) in chain:
            raise InputError(f"{entry.path}: a link to a folder it is in; remove it")
        yield from _images_below(folder, f"{inside}{entry.name}/", chain, passed_over)


def _is_image(entry: "os.DirEntry[str] | RemoteEntry") -> bool:
    """Whether a file's content is an image's."""
    if not entry.is_file():
        return False
    try:
        with open(entry.path, "rb", buffering=0) as file:
            return is_image_data(file.read(SIGNATURE_BYTES))
    except OSError as error:
        raise InputError(f"{entry.path}: cannot be read ({error.strerror})") from None


def images_directly_in(folder: Path) -> list[str]:
    """The names of the images in `folder`, without those in folders below it, sorted."""
    with _entries(folder) as entries:
        return sorted(entry.name for entry in entries if is_image_name(entry.name) and not entry.is_dir())


def list_classes(folder: Path) -> list[str]:
    """The names of the class folders in `folder`, in index order (`sort_classes`).

    Raises InputError for a broken link.
    """
    with _entries(folder) as entries:
        visible = [entry for entry in entries if not is_hidden(entry.name)]
        for entry in visible:
            if entry.is_symlink() and not entry.is_dir() and not entry.is_file():
                raise _not_a_file(entry)
        return sort_classes(entry.name for entry in visible if entry.is_dir())


def has_class_folders(folder: Path, split: str, known: Iterable[str] = ()) -> bool:
    """Whether the images of a split are in class folders, and not flat in `folder`.

    Next to validation images a folder is a class if it is named after one of the classes `known`; if none are known, if
    there are images in it. Raises InputError for wnids next to them: sorting the images was interrupted.
    """
    classes, known = list_classes(folder), {*known}
    direct = images_directly_in(folder) if split != "train" else []
    if not classes or not direct:
        return bool(classes)
    if any(map(is_wnid, classes)):
        raise InputError(
            f"{folder}: sorted in part, {len(direct)} images ({direct[0]}) are next to the class folders; move them "
            f"into theirs"
        )
    return any(name in known for name in classes) if known else any(find_images(folder / name) for name in classes)


class ClassFolder(NamedTuple):
    """The images of one class in one folder of a split."""

    name: str
    path: Path
    images: list[str]  # relative to `path`, sorted


def class_folders(folders: Sequence[Path], passed_over: PassedOver) -> Iterator[ClassFolder]:
    """The class folders in all folders of a split, in index order, and their images.

    Files outside class folders are added to `passed_over`. Raises InputError for a class folder without images.
    """
    for folder in folders:
        count_outside(folder, passed_over)
    classes = {folder: {*list_classes(folder)} for folder in folders}
    for name in sort_classes(name for of_folder in classes.values() for name in of_folder):
        for folder in folders:
            if name not in classes[folder]:
                continue
            images = find_images(folder / name, passed_over)
            if not images:
                raise InputError(f"{folder / name}: no images in this class folder; remove it or fill it")
            yield ClassFolder(name, folder / name, images)


def count_outside(folder: Path, passed_over: PassedOver) -> None:
    """Add the files directly in `folder`, which are in no class folder, to `passed_over`."""
    with _entries(folder) as entries:
        for entry in entries:
            if not entry.is_dir():
                passed_over[OUTSIDE_CLASSES if is_image_name(entry.name) else kind_of(entry.name)] += 1
            elif is_hidden(entry.name):
                passed_over[f"folder {entry.name}" if entry.name in SYSTEM_FOLDERS else "hidden folder"] += 1


@contextlib.contextmanager
def _entries(folder: Path | str) -> Iterator[Iterator["os.DirEntry[str] | RemoteEntry"]]:
    try:
        with folder.scanned() if isinstance(folder, RemotePath) else os.scandir(folder) as entries:
            yield entries
    except OSError as error:
        raise InputError(f"{folder}: cannot be read ({error.strerror})") from None


def _not_a_file(entry: "os.DirEntry[str] | RemoteEntry") -> InputError:
    return InputError(f"{entry.path}: {'a broken link' if entry.is_symlink() else 'not a file'}; fix or remove it")


# --- training from a folder


@dataclass(frozen=True)
class FolderListing:
    """The images of a split in class folders, in columns: 40 bytes an image, of which reading changes none."""

    folders: Names  # the class folders
    folder: NDArray[np.int32]  # [N], the class folder of each image
    names: Names  # [N], relative to the class folder
    labels: NDArray[np.int32]  # [N], class index
    passed_over: PassedOver = field(default_factory=Counter)

    def __len__(self) -> int:
        return len(self.labels)

    def select(self, positions: NDArray[np.int64]) -> "FolderListing":
        """The images at these positions, in this order."""
        return replace(
            self,
            folder=self.folder[positions],
            names=self.names.select(positions),
            labels=self.labels[positions],
        )

    def path(self, index: int) -> str:
        """Where an image is."""
        return f"{self.folders[int(self.folder[index])]}/{self.names[index]}"


def list_class_folders(folders: Sequence[Path], classes: Sequence[str]) -> FolderListing:
    """Every image in the class folders of a split.

    Raises InputError for a class folder that is not in `classes` or has no images.
    """
    index = {name: number for number, name in enumerate(classes)}
    for folder in folders:
        for name in list_classes(folder):
            if name not in index:
                raise InputError(f"{folder / name}: this class is not among the {len(classes)} of training; remove it")
    paths, counts, labels = list[str](), list[int](), list[int]()
    passed_over: PassedOver = Counter()

    def names() -> Iterator[str]:
        for class_folder in class_folders(folders, passed_over):
            paths.append(str(class_folder.path))
            counts.append(len(class_folder.images))
            labels.append(index[class_folder.name])
            yield from class_folder.images

    return FolderListing(
        names=Names(names()),  # first: it fills the lists
        folders=Names(paths),
        folder=np.repeat(np.arange(len(paths), dtype=np.int32), counts),
        labels=np.repeat(np.array(labels, np.int32), counts),
        passed_over=passed_over,
    )


def list_files(paths: Sequence[Path]) -> FolderListing:
    """Images of no class, all labelled 0: files, and the images in folders and those below, in the order of `paths`.

    Raises InputError for a path that does not exist, and for a folder without images.
    """
    passed_over: PassedOver = Counter()
    folders, counts, names = list[str](), list[int](), list[str]()
    for path in paths:
        found = find_images(path, passed_over) if path.is_dir() else [path.name]
        if not found:
            raise InputError(f"{path}: no images in this folder")
        if not (path.is_dir() or path.is_file()):
            raise InputError(f"{path}: {'not a file' if path.exists() else 'no such file or folder'}")
        folders.append(str(path if path.is_dir() else path.parent))
        counts.append(len(found))
        names += found
    return FolderListing(
        folders=Names(folders),
        folder=np.repeat(np.arange(len(folders), dtype=np.int32), counts),
        names=Names(names),
        labels=np.zeros(len(names), np.int32),
        passed_over=passed_over,
    )


class FolderSamples:
    """A split read from a listing of image files. The dataset position is the position in the listing.

    A file that is not a JPEG of the common kind is decoded and encoded whenever it is read, as a conversion does once.
    """

    remedy = "remove or replace it"

    def __init__(self, listing: FolderListing) -> None:
        self._listing = listing

    def __len__(self) -> int:
        return len(self._listing)

    def __getitem__(self, index: int) -> Sample:
        path = self.name(index)
        try:
            with open(path, "rb", buffering=0, opener=regular) as file:
                if os.fstat(file.fileno()).st_size > LARGEST_FILE:
                    raise BadImage(f"more than {LARGEST_FILE} bytes")
                return Sample(as_jpeg(file.read(LARGEST_FILE)), int(self._listing.labels[index]))
        except OSError as error:
            raise StorageError(f"{path}: {error.strerror}") from None
        except BadImage as error:
            raise InputError(f"{path}: {error}; {self.remedy}") from None

    def name(self, index: int) -> str:
        return self._listing.path(index)
