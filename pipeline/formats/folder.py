"""ImageNet as folders: one folder a class, or a flat folder of images."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from pipeline.errors import InputError
from pipeline.formats.samples import Sample

IMAGE_SUFFIXES = (".jpeg", ".jpg", ".png")


def list_images(folder: Path) -> list[Path]:
    """The image files directly in `folder`, in file-name order; hidden files are passed over.

    Raises InputError for a link to nothing.
    """
    with _entries(folder) as entries:
        images = [entry for entry in entries if is_image_name(entry.name) and not entry.is_dir()]
    for entry in images:
        if not entry.is_file():
            raise _no_file(entry)
    return [folder / name for name in sorted(entry.name for entry in images)]


@contextlib.contextmanager
def _entries(folder: Path) -> Iterator[Iterator["os.DirEntry[str]"]]:
    try:
        with os.scandir(folder) as entries:
            yield entries
    except OSError as error:
        raise InputError(f"{folder}: cannot be read ({error.strerror})") from None


def _no_file(entry: "os.DirEntry[str]") -> InputError:
    return InputError(f"{entry.path}: {'a link to nothing' if entry.is_symlink() else 'no file'}; mend or remove it")


def is_image_name(name: str) -> bool:
    """Whether a file of this name (without folders) is taken for an image."""
    return name.lower().endswith(IMAGE_SUFFIXES) and not name.startswith(".")


def list_classes(folder: Path) -> list[str]:
    """The names of the class folders in `folder`, sorted: the class index is the position in this list.

    Raises InputError for a link to nothing.
    """
    with _entries(folder) as entries:
        shown = [entry for entry in entries if not entry.name.startswith(".")]
        for entry in shown:
            if entry.is_symlink() and not entry.is_dir() and not entry.is_file():
                raise _no_file(entry)
        return sorted(entry.name for entry in shown if entry.is_dir())


def list_class_folders(folder: Path, classes: list[str]) -> list[tuple[Path, int]]:
    """Every image in the class folders of `folder` with its class index.

    Raises InputError for a class folder that is not in `classes` or has no images.
    """
    index = {wnid: number for number, wnid in enumerate(classes)}
    listing = []
    for wnid in list_classes(folder):
        if wnid not in index:
            raise InputError(f"{folder / wnid}: this class is not among the {len(classes)} of training")
        images = list_images(folder / wnid)
        if not images:
            raise InputError(f"{folder / wnid}: no images in this class folder; remove it or fill it")
        listing += [(path, index[wnid]) for path in images]
    return listing


class FolderSamples:
    """A split read from a listing of image files. The dataset position is the position in the listing."""

    def __init__(self, listing: list[tuple[Path, int]]) -> None:
        self._listing = listing

    def __len__(self) -> int:
        return len(self._listing)

    def __getitem__(self, index: int) -> Sample:
        path, label = self._listing[index]
        try:
            return Sample(path.read_bytes(), label)
        except OSError as error:
            raise InputError(f"{path}: {error.strerror}") from None

    def name(self, index: int) -> str:
        return str(self._listing[index][0])
