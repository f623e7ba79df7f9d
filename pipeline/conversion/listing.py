"""The images of a split, wherever they are: in folders, in archives, in archives of archives, in WebDataset samples.

Nothing is unpacked: an image is a file, a range of bytes in an archive, or what a container takes out of itself.
"""

import contextlib
import io
import json
import os
import re
import sys
from array import array
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import takewhile
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..order.random import MIX_DRAW, random_keys
from ..pixels.formats import LARGEST_FILE, SIGNATURE_BYTES, BadImage, is_image_data, is_image_name, may_be_image
from ..storage.classes import is_wnid
from ..storage.files import regular
from ..storage.folder import (
    OUTSIDE_CLASSES,
    SYSTEM_FOLDERS,
    WRAPPER,
    PassedOver,
    class_folders,
    find_images,
    is_hidden,
    kind_of,
    split_called,
)
from ..storage.foreign import ZIP, kind_of_file
from ..storage.names import Names
from ..storage.positions import mixed_order
from ..storage.reading import REQUESTS, any_remote, open_to_read, read_at
from ..storage.remote.paths import RemotePath
from ..storage.shards import original_name
from ..threads import in_order
from .archives import Member, RemoteArchive, list_members, members_in
from .containers import Container
from .labels import image_stem, wnid_in_name
from .zips import ZipArchive, list_zip_members

LISTED_AT_ONCE = 8
"""Files in a bucket: of each, up to 8 MB are in memory."""
MIXED_BYTES = 1 << 29
"""Of images whose container is read as a whole, so many are shuffled among each other."""

_LABEL_FILES = (".cls", ".json", ".txt")
_JSON_LABELS = ("wnid", "synset", "label", "cls", "class", "class_id")
_LARGEST_LABEL_FILE = 1 << 16
_LARGEST_CLASS_INDEX = 999_999  # more would fill memory with names of classes
# Key and extension, as the webdataset library splits a name; it ignores all other names.
_SAMPLE_FILE = re.compile(r"(?!__[^/]*__(?:/|$))((?:.*/)?[^./]+)(\.[^/]*)", re.DOTALL)
_WORD = re.compile(r"[\w-]+")
_LABEL_TEXTS = {".cls": re.compile(r"[^\0-\x1f]{1,100}")}  # any class name; a text in another file may be a caption

Item = TypeVar("Item")
Result = TypeVar("Result")

Label = str | int | None
"""A wnid, a class index, or None if the source does not say."""


class ListedImage(NamedTuple):
    """Where an image is, and the class that its place gives it."""

    container: Path | Container  # its folder or archive
    file: Member  # its place in the container; offset -1 for a file in a folder
    label: Label


@dataclass(frozen=True)
class Images:
    """The images of a split: where their bytes are, and their classes.

    Columns instead of an object per image: 1.3 million of them take 0.1 GB.
    """

    names: Names  # within the container
    containers: list[Path | Container]  # folders and archives
    container: NDArray[np.int32]  # [N], the container of each image
    offsets: NDArray[np.int64]  # [N], in the archive, or what the container knows it by; -1 for a file in a folder
    sizes: NDArray[np.int64]  # [N], bytes; on average, where the container reads all of its images together
    modified: NDArray[np.int64]  # [N], ns: modification time of the file or of its archive
    labels: NDArray[np.int32]  # [N], class index; -1 until the classes are known

    def __len__(self) -> int:
        return len(self.names)

    def where(self, index: int) -> str:
        """The path of an image, for messages; in an archive, the path continues inside it."""
        container = self.containers[self.container[index]]
        return str((container if isinstance(container, Path) else container.path) / self.names[index])

    def stem(self, index: int) -> str:
        """The original file name of an image, without folders and extension."""
        return image_stem(original_name(self.names[index]))

    def read(self, index: int) -> bytes:
        """The bytes of an image. Raises InputError if it cannot be read or its size is not the listed one, and BadImage
        if a container finds it damaged."""
        size, offset = int(self.sizes[index]), int(self.offsets[index])
        if size > LARGEST_FILE:
            raise InputError(f"{self.where(index)}: {size} bytes, which no image has; remove it")
        container = self.containers[self.container[index]]
        if not isinstance(container, Path):
            image: bytes = container.read(self.names[index], offset, size)
            return image
        try:
            # 8 of 33 us an image less than with a Path and a file object.
            path = str(container) if offset >= 0 else f"{container}/{self.names[index]}"
            descriptor = regular(path, os.O_RDONLY | os.O_CLOEXEC)  # it may have become a pipe since it was listed
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

    @property
    def is_remote(self) -> bool:
        """Whether an image is read from a bucket."""
        return any_remote(one if isinstance(one, Path) else one.path for one in self.containers)

    @property
    def largest(self) -> int:
        """The bytes of the largest image, as far as is known."""
        bounds = [container.largest for container in self.containers if not isinstance(container, Path)]
        return max(int(self.sizes.max()), *bounds, 0)

    @property
    def read_whole(self) -> bool:
        """Whether a container reads all of its images when one is read."""
        return any(not isinstance(container, Path) and container.read_whole for container in self.containers)

    def select(self, positions: NDArray[np.int64]) -> "Images":
        """The images at these positions, in this order."""
        return replace(
            self,
            names=self.names.select(positions),
            container=self.container[positions],
            offsets=self.offsets[positions],
            sizes=self.sizes[positions],
            modified=self.modified[positions],
            labels=self.labels[positions],
        )


def each_image(
    function: Callable[[int, bytes | BadImage], Result], images: Images, positions: Iterable[int], workers: int
) -> Generator[Result, None, None]:
    """Apply `function` to index and bytes of images in threads; results come in order. An image that its container
    finds damaged comes as a BadImage. Raises InputError as `Images.read`."""

    def read(index: int) -> tuple[int, bytes | BadImage]:
        try:
            return index, images.read(index)
        except BadImage as bad:
            return index, bad

    if not images.is_remote:
        yield from in_order(lambda index: function(*read(index)), positions, workers)
        return
    # More threads than have something to compute wait for a bucket's answers.
    with contextlib.closing(in_order(read, positions, REQUESTS, ahead=2 * REQUESTS)) as contents:
        yield from in_order(lambda content: function(*content), contents, workers)


@dataclass(frozen=True)
class Listing:
    """A split as it was found: its images, and what the source says of their classes."""

    description: str
    images: Images
    labels: list[Label]
    class_names: list[str] | None = None  # the meaning of class indices, if the source says it
    class_words: list[str] | None = None  # names of the class indices, unless the images' names have wnids
    folders: tuple[Path, ...] = ()  # with the class folders or the flat images
    passed_over: PassedOver = field(default_factory=Counter)  # files that are no images
    classes_from_names: bool = False  # the file names say the classes, which a labels file may contradict


def make_listing(description: str, listed: Iterable[ListedImage], **details: Any) -> Listing:
    """Collect images into columns; `details` are further fields of the Listing."""
    labels, containers = list[Label](), dict[Path | Container, int]()
    numbers, offsets, sizes, modified = array("i"), array("q"), array("q"), array("q")

    def names() -> Iterator[str]:
        for container, file, label in listed:
            _check_index(container, file, label)
            labels.append(sys.intern(label) if isinstance(label, str) else label)  # 1000 different among 1.3 million
            numbers.append(containers.setdefault(container, len(containers)))
            offsets.append(file.offset)
            sizes.append(file.size)
            modified.append(file.modified)
            yield file.name

    images = Images(
        names=Names(names()),
        containers=list(containers),
        container=np.array(numbers, np.int32),
        offsets=np.array(offsets, np.int64),
        sizes=np.array(sizes, np.int64),
        modified=np.array(modified, np.int64),
        labels=np.full(len(labels), -1, np.int32),
    )
    return Listing(description, images, labels, **details)


def listed_in(
    function: Callable[[Item, PassedOver], Iterable[ListedImage]],
    items: Sequence[Item],
    passed_over: PassedOver,
    remote: bool,
) -> Iterator[ListedImage]:
    """The images that `function` lists of each item, in order: of a file, or of something in one. Of remote ones,
    several are listed at a time: a single connection does not fill a line."""

    def listed(item: Item) -> tuple[list[ListedImage], PassedOver]:
        counted: PassedOver = Counter()
        return [*function(item, counted)], counted

    if not remote:
        for item in items:
            yield from function(item, passed_over)
        return
    for images, counted in in_order(listed, items, LISTED_AT_ONCE, ahead=LISTED_AT_ONCE):
        passed_over.update(counted)
        yield from images


def _check_index(container: Path | Container, file: Member, label: Label) -> None:
    if isinstance(label, int) and not 0 <= label <= _LARGEST_CLASS_INDEX:
        path = container if isinstance(container, Path) else container.path
        raise InputError(f"{path}: {file.name} has the label {label}, which is no class")


def mixed_images(images: Images, seed: int) -> Images:
    """The images in a random order. Those of containers that are read as a whole are mixed within windows of
    MIXED_BYTES: containers in random order, and in each window all their images."""
    if not images.read_whole:
        return images.select(mixed_order(len(images), seed))
    keys = random_keys(len(images), seed, 0, MIX_DRAW)
    container_keys = random_keys(len(images.containers), seed, 1, MIX_DRAW)
    ranks = np.argsort(np.argsort(container_keys, kind="stable"), kind="stable")  # of each container
    sizes = np.bincount(ranks[images.container], images.sizes, len(ranks)).astype(np.int64)
    windows = (np.cumsum(sizes) - sizes) // MIXED_BYTES  # of each rank
    return images.select(np.lexsort((keys, windows[ranks[images.container]])))


def check_no_duplicates(listing: Listing) -> None:
    """Raises InputError if two images have the same path below their class folder, and the same class, as when an
    archive of some classes was given next to the archive of all classes."""
    pairs = zip(map(_below_class, listing.images.names, listing.labels), listing.labels, strict=True)
    # A set of 1.3 million texts would take 0.2 GB.
    hashes = np.fromiter(map(hash, pairs), np.int64, len(listing.labels))
    order = np.argsort(hashes, kind="stable")
    repeated = np.flatnonzero(np.diff(hashes[order]) == 0)
    if len(repeated):
        first, second = (listing.images.where(int(order[at])) for at in (repeated[0], repeated[0] + 1))
        raise InputError(f"{second}: also in {first}; name one of them")


def _below_class(name: str, label: Label) -> str:
    """An image's path below its class folder; its file name if there is none."""
    folders, _, file = name.rpartition("/")
    parts = folders.split("/")
    return "/".join([*(parts[parts.index(label) + 1 :] if label in parts else ()), original_name(file)])


# --- files in folders


def flat_images(folders: Iterable[Path], passed_over: PassedOver) -> Iterator[ListedImage]:
    """The images in and below folders that say nothing of their classes, except perhaps in the file names."""
    for folder in folders:
        for name in find_images(folder, passed_over):
            yield ListedImage(folder, _file(folder, name), wnid_in_name(name))


def images_in_class_folders(folders: Sequence[Path], passed_over: PassedOver) -> Iterator[ListedImage]:
    """The images of all class folders in `folders`. Raises InputError for a class folder without images."""
    for name, folder, images in class_folders(folders, passed_over):
        for image in images:
            yield ListedImage(folder, _file(folder, image), name)


def _file(folder: Path, name: str) -> Member:
    status = os.stat(f"{folder}/{name}")
    return Member(name, -1, status.st_size, status.st_mtime_ns)


# --- members of archives


def is_zip(path: Path) -> bool:
    """Whether a file is a zip archive."""
    return kind_of_file(path) == ZIP


def members_of(path: Path) -> Iterator[Member]:
    """The regular files of a tar or zip archive. Raises InputError."""
    return list_zip_members(path) if is_zip(path) else list_members(path)


def archive_of(path: Path) -> Path | Container:
    """What an archive's images are read from."""
    if is_zip(path):
        return ZipArchive(path)
    return RemoteArchive(path) if isinstance(path, RemotePath) else path


def range_of(files: Sequence[Path]) -> str:
    """Sorted files, for messages."""
    return str(files[0]) if len(files) == 1 else f"{files[0]} to {files[-1].name}"


def image_members(archive: Path | Container, members: Iterable[Member], passed_over: PassedOver) -> Iterator[Member]:
    """The images among the members of an archive, as in folders: those with an image's suffix, and those with an
    unknown suffix, or none, whose content is one. What is in folders of a system, or in hidden ones, is passed over."""
    for member in members:
        name = PurePosixPath(member.name).name
        if hidden := _hidden_folder(member.name):
            passed_over[f"in {hidden}" if hidden in SYSTEM_FOLDERS else "in hidden folders"] += 1
        elif is_image_name(name) or (may_be_image(name) and is_image_data(_start_of(archive, member))):
            yield member
        else:
            passed_over[kind_of(name)] += 1


def _hidden_folder(name: str) -> str | None:
    """The first folder in a member's path that is hidden, below the one that is called after a split."""
    if not any(map(is_hidden, name.split("/")[:-1])):  # quickly: there are 1.3 million
        return None
    return next(filter(is_hidden, _folders(name)), None)


def _start_of(archive: Path | Container, member: Member) -> bytes:
    if isinstance(archive, RemoteArchive):
        archive = archive.path
    if not isinstance(archive, Path):
        try:
            return archive.read(member.name, member.offset, member.size)[:SIGNATURE_BYTES]
        except BadImage:
            return b""
    with open_to_read(archive) as file:
        return read_at(file, min(member.size, SIGNATURE_BYTES), member.offset)


def images_in_archives(tars: Iterable[Path], split: str | None, passed_over: PassedOver) -> Iterator[ListedImage]:
    """The images of archives, of one split if the archives hold several; `label_by_folders` says their classes."""
    for tar in tars:
        archive = archive_of(tar)
        members = (member for member in members_of(tar) if split in (None, split_in_path(member.name)))
        for member in image_members(archive, members, passed_over):
            yield ListedImage(archive, member, None)


def split_in_path(name: str) -> str | None:
    """The split that a folder in a member's path is called after."""
    return next((split for part in name.split("/")[:-1] if (split := split_called(part))), None)


def label_by_folders(listing: Listing, split: str) -> Listing:
    """The images of archives with the classes that folders in the archives are called after: wnids, or whatever is
    below the folder that is called after a split, or below the folders that all images have in common. Without folders,
    a wnid in the file name is the class."""
    names = listing.images.names
    wnids: list[Label] = [next(filter(is_wnid, name.split("/")[:-1]), None) for name in names]
    common = [] if all(map(split_in_path, names)) else _common(map(_folders, names))
    if any(wnids) and split == "val":  # an image without one says that sorting was interrupted
        return replace(listing, labels=_interned(wnids))
    if any(wnids):
        return _in_class_folders(listing, wnids, common)
    named: list[Label] = [next(iter(_folders(name)[len(common) :]), None) for name in names]
    if any(named):
        return _in_class_folders(listing, named, common)
    if common and split == "train":  # one class
        return replace(listing, labels=[sys.intern(common[0])] * len(names))
    in_names: list[Label] = [wnid_in_name(name) for name in names]
    return replace(listing, labels=_interned(in_names), classes_from_names=True)


def _in_class_folders(listing: Listing, labels: list[Label], common: list[str]) -> Listing:
    """The images that are in folders, below those that all have in common; the others are passed over."""
    names = listing.images.names
    kept = [at for at, label in enumerate(labels) if label is not None or len(_folders(names[at])) > len(common)]
    if len(kept) < len(labels):
        passed_over = listing.passed_over + Counter({OUTSIDE_CLASSES: len(labels) - len(kept)})
        images = listing.images.select(np.array(kept, np.int64))
        listing = replace(listing, images=images, passed_over=passed_over)
    return replace(listing, labels=_interned([labels[at] for at in kept]))


def _folders(name: str) -> list[str]:
    """The folders of a member's path, below the one that is called after a split."""
    parts = [part for part in name.split("/")[:-1] if part not in ("", ".", "..")]
    parts = parts[next((at for at, part in enumerate(parts, 1) if split_called(part)), 0) :]
    return parts[1:] if parts[:1] == [WRAPPER] else parts


def _common(paths: Iterator[list[str]]) -> list[str]:
    """The folders with which all paths begin."""
    common = next(paths, [])
    for path in paths:
        if path[: len(common)] != common:
            common = [one for one, _ in takewhile(lambda pair: pair[0] == pair[1], zip(common, path, strict=False))]
    return common


def _interned(labels: list[Label]) -> list[Label]:
    return [sys.intern(label) if isinstance(label, str) else label for label in labels]


def images_in_class_archive(tar: Path, inner: Member | None, passed_over: PassedOver) -> Iterator[ListedImage]:
    """The images of an archive of one class, named after it: the file `tar`, or its member `inner`.

    Raises InputError if there are none, or if the inner archive is not named after a class.
    """
    wnid = PurePosixPath(inner.name).stem if inner else tar.stem
    if inner and not is_wnid(wnid):
        raise InputError(
            f"{tar}: {inner.name} in it is not named after a class (nXXXXXXXX.tar); unpack it into class folders"
        )
    empty, archive = True, archive_of(tar)
    for member in image_members(archive, list_members(tar, inner), passed_over):
        empty = False
        yield ListedImage(archive, member._replace(name=f"{wnid}/{member.name}") if inner else member, wnid)
    if empty:
        raise InputError(f"{tar}: no images in {inner.name if inner else 'it'}")


# --- WebDataset samples


def has_samples(members: Iterable[Member]) -> bool:
    """Whether there is a WebDataset sample among the members: an image and a label with the same key."""
    files = [match.groups() for member in members if (match := _SAMPLE_FILE.fullmatch(member.name))]
    images = {key for key, suffix in files if is_image_name(f"x{suffix}")}
    return any(key in images and suffix.lower() in _LABEL_FILES for key, suffix in files)


def images_in_shard(tar: Path, passed_over: PassedOver) -> Iterator[ListedImage]:
    """The image and the label of each WebDataset sample. Raises InputError for a sample that lacks one of them."""
    archive = archive_of(tar)
    try:
        with open_to_read(tar) as file:
            for key, files in _samples(file, tar, passed_over):
                images = [member for suffix, member in files.items() if is_image_name(f"x{suffix}")]
                if len(images) != 1:
                    raise InputError(f"{tar}: sample {key} has {len(images)} images, not one")
                yield ListedImage(archive, images[0], _sample_label(file, tar, key, files))
    except OSError as error:
        raise InputError(f"{tar}: cannot be read ({error.strerror or error})") from None


def _samples(file: io.RawIOBase, tar: Path, passed_over: PassedOver) -> Iterator[tuple[str, dict[str, Member]]]:
    """Key and files by extension of each sample, grouped as the webdataset library does: consecutive files whose names
    agree up to the first dot."""
    key, files = "", dict[str, Member]()
    for member in members_in(file, tar):
        match = _SAMPLE_FILE.fullmatch(member.name)
        if match is None:
            passed_over[kind_of(PurePosixPath(member.name).name)] += 1
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


def _sample_label(file: io.RawIOBase, tar: Path, key: str, files: dict[str, Member]) -> Label:
    """The class of a sample: an index or a wnid in its `.cls`, `.json` or `.txt`. Raises InputError without one."""
    for suffix in _LABEL_FILES:
        if (member := files.get(suffix)) is None:
            continue
        if member.size > _LARGEST_LABEL_FILE:
            raise InputError(f"{tar}: {member.name} is too large for a label")
        text = read_at(file, member.size, member.offset).decode("utf-8", "replace").strip()
        label = _json_label(text) if suffix == ".json" else text
        if isinstance(label, str) and label.isdecimal():
            label = int(label) if len(label.lstrip("0")) <= len(str(_LARGEST_CLASS_INDEX)) else -1
        if isinstance(label, str) and _LABEL_TEXTS.get(suffix, _WORD).fullmatch(label):
            return label
        if isinstance(label, int) and 0 <= label <= _LARGEST_CLASS_INDEX:
            return label
    raise InputError(f"{tar}: sample {key} has no label in {', '.join(_LABEL_FILES)}")


def _json_label(text: str) -> Any:
    """The class in a JSON file: a number, a wnid (which the webdataset library writes without quotes), or the field
    that holds one of them."""
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        return text if is_wnid(text) else None
    if isinstance(content, dict):
        content = next((content[name] for name in _JSON_LABELS if name in content), None)
    return None if isinstance(content, bool) else content
