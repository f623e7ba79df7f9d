"""The forms in which people have ImageNet and data sets like it, recognised by looking; images are read where they are.

- class folders: `train/<class>/`, and `val/` in class folders or flat; the images may be in folders below these, and a
  split may have other names (`validation`) or be in several folders (`train.X1` to `train.X4`);
- archives: ILSVRC2012_img_train.tar (an archive of one archive per class; or those class archives),
  ILSVRC2012_img_val.tar, archives of class folders, and flat archives with wnids in the file names;
- Kaggle's `ILSVRC/Data/CLS-LOC/{train,val}`, as a folder or in its zip archive, and Tiny-ImageNet;
- WebDataset shards with an image and `.cls`, `.txt` or `.json`; a converted dataset has such shards;
- Parquet files, FFCV's `.beton` and TFRecords: `sources/`.

All but loose images may be in a bucket or on a web server: `storage/remote/paths.py`.
"""

import contextlib
import logging
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path, PurePosixPath

from ..errors import InputError
from ..storage.classes import is_wnid
from ..storage.folder import (
    PassedOver,
    SplitFolders,
    count_outside,
    has_class_folders,
    images_directly_in,
    in_words,
    list_classes,
    other_folders,
    split_called,
    split_folders,
    stand_in_for_val,
    unwrapped,
)
from ..storage.foreign import COMPRESSED, ZIP, foreign_files, how_to_unpack, kind_of_file
from ..storage.manifest import MANIFEST, Manifest
from ..storage.reading import any_remote, each
from ..storage.remote.paths import RemotePath
from ..storage.shard_info import shards_in_info
from .archives import Member, list_members
from .classes import check_one_class_each, classify, join_labels
from .labels import KNOWN_FILES, PACKED_FILES, find_labels_by_content, read_class_list
from .listing import (
    Images,
    ListedImage,
    Listing,
    check_no_duplicates,
    flat_images,
    has_samples,
    images_in_archives,
    images_in_class_archive,
    images_in_class_folders,
    images_in_shard,
    is_zip,
    label_by_folders,
    listed_in,
    make_listing,
    members_of,
    mixed_images,
    range_of,
    split_in_path,
)
from .sources import SOURCES

log = logging.getLogger(__name__)

SPLITS = ("train", "val")
_SPLIT_NAMES = re.compile(r"(?P<train>train)|(?P<val>val)", re.IGNORECASE)
_KAGGLE_FOLDERS = ("ILSVRC", "Data", "CLS-LOC")  # one inside the other; labels are next to the first
_OFFICIAL = "ILSVRC2012_img_{split}.tar"
ARCHIVES, SAMPLES, IMAGES = "archives", "WebDataset samples", "images"
_FIRST_MEMBERS = 32  # of an archive, enough to see what it holds


@dataclass(frozen=True)
class SourceFlags:
    """The flags that describe the source."""

    paths: tuple[Path, ...]
    splits: tuple[str, ...]
    val_labels: Path | None
    classes: Path | None
    seed: int

    @property
    def src(self) -> str:
        """--src as it was typed."""
        return f"--src {' '.join(map(str, self.paths))}"


@dataclass(frozen=True)
class Source:
    """What will be converted."""

    classes: tuple[str, ...]  # the class index is the position
    splits: dict[str, Images]
    folders: tuple[Path, ...] = ()  # with class folders or flat images
    passed_over: dict[str, PassedOver] = field(default_factory=dict)  # by split: files that are no images


@contextlib.contextmanager
def _input_errors() -> Iterator[None]:
    """Report what the system refuses, for example a folder without read permission, as bad input."""
    try:
        yield
    except OSError as error:
        raise InputError(f"{error.filename}: cannot be read ({error.strerror})") from None


@_input_errors()
def open_source(flags: SourceFlags) -> Source:
    """Find the splits, their labels and classes. Training images are shuffled by the seed, validation images are in
    file-name order. Raises InputError before any image has been read."""
    wanted = read_class_list(flags.classes) if flags.classes else None
    listings: dict[str, Listing] = {}
    for split in flags.splits:
        known = {str(label) for listing in listings.values() for label in listing.labels}
        if (listing := find_split(flags.paths, split, known)) is not None:
            listings[split] = listing
            log.info("%s: %d images, %s", split, len(listing.images), listing.description)
            if listing.passed_over:
                log.info("%s: %s", split, in_words(listing.passed_over))
    for name in _unused(flags.paths, listings.values()):
        log.warning("%s: not converted, it is neither train nor val", name)
    _check_splits(flags, listings)
    if "val" in listings:
        listings["val"] = _labelled(flags, listings["val"])
    elif flags.val_labels:
        reason = "there are none in it" if "val" in flags.splits else "--splits leaves them out"
        raise InputError(f"--val-labels {flags.val_labels}: no validation images of {flags.src}, {reason}")
    classes, splits = classify(listings, wanted, flags.classes)
    if "train" in splits:
        splits["train"] = mixed_images(splits["train"], flags.seed)
    folders = tuple(folder for listing in listings.values() for folder in listing.folders)
    return Source(tuple(classes), splits, folders, {split: listings[split].passed_over for split in splits})


def _check_splits(flags: SourceFlags, listings: dict[str, Listing]) -> None:
    """Raises InputError if a split that was asked for is missing."""
    if not listings or ("train" in flags.splits and "train" not in listings):
        missing = "train" if "train" in flags.splits else "val"
        files = [file for path in flags.paths if path.is_dir() for file in foreign_files(path).items()]
        if packed := next((file for file, kind in files if kind == COMPRESSED), None):
            raise _compressed(flags.src, packed)
        raise InputError(
            f"{flags.src}: no {missing} images in it; it must hold ImageNet's {missing}/ folder, its archives "
            f"(ILSVRC2012_img_{missing}.tar), WebDataset shards or Parquet files (`python tools/make_demo_data.py` "
            f"makes demo data)"
        )
    if "val" in flags.splits and "val" not in listings:
        log.info("%s: no validation images, converting train only", flags.src)


def _compressed(flag: str, path: Path) -> InputError:
    return InputError(
        f"{flag}: {path.name} is compressed, which cannot be read in place; unpack it first: `{how_to_unpack(path)}`"
    )


# --- where a split is


def find_split(paths: tuple[Path, ...], split: str, known: Iterable[str] = ()) -> Listing | None:
    """The images of one split: from the archives that --src names, otherwise from the one folder that has some.

    `known` are the classes of training, if they have been listed.
    """
    _check_paths(paths)
    if tars := [path for path in paths if path.is_file() and split_of(path) == split]:
        return _in_files(sorted({tar.resolve(): tar for tar in sorted(tars, reverse=True)}.values()), split, known)
    if tars := [path for path in paths if path.is_file() and holds_splits(path)]:
        listing = _in_folders_of_archives(tars, split, split)
        check_no_duplicates(listing)
        return listing if listing.labels else None
    places = {path: place for path in paths if path.is_dir() and (place := _place_in(path, split))}
    if not places and (zips := [file for path in paths if path.is_dir() for file in _zips_in(path)]):
        return find_split(tuple(zips), split, known)
    if not places and split == "val":
        places = {path: place for path in paths if path.is_dir() and (place := _test_in(path))}
    if len(places) > 1 and (parts := _parts_named(places)):
        return _in_folders(parts, split, known)
    if len(places) > 1:
        named = " and ".join(map(str, places))
        raise InputError(f"--src: {named} all have {split} images; name one of them")
    place = next(iter(places.values()), None)
    if place is None:
        return None
    return _in_files(place, split, known) if isinstance(place, list) else _in_folders(place, split, known)


def _check_paths(paths: tuple[Path, ...]) -> None:
    """Raises InputError for a path that does not exist or cannot be converted."""
    for path in paths:
        if not path.exists():
            raise InputError(
                f"--src {path}: no such file or folder; it must hold ImageNet's train/ and val/, its archives or "
                f"WebDataset shards (`python tools/make_demo_data.py` makes demo data)"
            )
        if path.is_dir() or split_of(path) or path.name in KNOWN_FILES or holds_splits(path):
            continue
        if kind_of_file(path) == COMPRESSED:
            raise _compressed(f"--src {path}", path)
        raise InputError(
            f"--src {path}: not an uncompressed archive with train or val in its name (*train*.tar), or with folders "
            f"of these names in it; rename or unpack it, and give labels with --val-labels"
        )


def split_of(path: Path) -> str | None:
    """The split that the name of an archive, or of another file with images, mentions."""
    match = _SPLIT_NAMES.search(path.name)
    if match is None:
        return None
    is_one = path.suffix == ".tar" or (path.is_file() and kind_of_file(path) in (ZIP, *SOURCES))
    return match.lastgroup if is_one else None


def holds_splits(path: Path) -> bool:
    """Whether an archive whose own name mentions no split has folders that are called after splits."""
    if split_of(path) or not (path.suffix == ".tar" or is_zip(path)):
        return False
    first = members_of(path) if is_zip(path) else islice(list_members(path), _FIRST_MEMBERS)
    return any(split_in_path(member.name) for member in first)


def _place_in(path: Path, split: str) -> SplitFolders | list[Path] | None:
    """The folders or the files of a split: in `path`, which may be the split's folder, or where Kaggle's download
    has them."""
    empty = None
    for root in (path, *_kaggle_roots(path)):
        itself = SplitFolders((root,)) if split_called(root.absolute().name) == split else None
        for made in (split_folders(root, split), itself):
            if made is None:
                continue
            tars = _official_or_all([tar for folder in made.folders for tar in _archives_in(folder)], split)
            if any(_holds_images(folder, split) for folder in made.folders):
                _check_unpacked(made.folders[0], tars)
                return made
            if tars:
                return tars
            if any(map(list_classes, made.folders)):
                return made
            empty = made
        for folder in (root, root / "webdataset"):
            if not (folder.parent / MANIFEST).is_file() and (shards := shards_in_info(folder, split)):
                return shards
            if tars := _official_or_all([tar for tar in _archives_in(folder) if split_of(tar) == split], split):
                return tars
    return _foreign_in(path, split) or empty


def _foreign_in(path: Path, split: str) -> list[Path]:
    """The files of other formats that have a split: it is in their names, or in that of the folder they are in."""
    files = [file for file, kind in foreign_files(path).items() if kind in SOURCES]
    return [file for file in files if (split_of(file) or split_called(file.absolute().parent.name)) == split]


def _zips_in(path: Path) -> list[Path]:
    """The zip archives in a folder that have folders called after splits."""
    return [file for file, kind in foreign_files(path).items() if kind == ZIP and holds_splits(file)]


def _test_in(path: Path) -> SplitFolders | None:
    """The folder called `test` that stands for validation: in `path`, or `path` itself."""
    if split_called(path.absolute().name) == "test":
        return SplitFolders((path,), f"{path}: used for validation")
    return next((made for root in (path, *_kaggle_roots(path)) if (made := stand_in_for_val(root))), None)


def _parts_named(places: dict[Path, SplitFolders | list[Path]]) -> SplitFolders | None:
    """One split of the folders that --src names, if these are parts of it (`train.X1 train.X2`)."""
    folders = [folder for place in places.values() if isinstance(place, SplitFolders) for folder in place.folders]
    is_part = [split_called(folder.name) and folder.name.lower() != split_called(folder.name) for folder in folders]
    return SplitFolders(tuple(folders)) if len(folders) == len(places) and all(is_part) else None


def _unused(paths: tuple[Path, ...], listings: Iterable[Listing]) -> list[str]:
    """Folders with images next to those of the splits, and archives and other files that are called `test`, which no
    listing has read."""
    read = {folder for listing in listings for folder in (*listing.folders, *(f.parent for f in listing.folders))}
    unused = list[str]()
    for root in [root for path in paths if path.is_dir() for root in (path, *_kaggle_roots(path))]:
        unused += [str(folder) for folder in other_folders(root) if folder not in read]
        unused += [str(tar) for tar in _archives_in(root) if _is_test(tar)]
        foreign = [file for file, kind in foreign_files(root).items() if kind in SOURCES] if not read else []
        tests_among = [file for file in foreign if _is_test(file)]
        unused += [range_of(tests_among)] if tests_among else []
    return unused


def _is_test(path: Path) -> bool:
    """Whether the name of an archive, or of another file with images, says that it is a test split."""
    return split_of(path) is None and "test" in path.name.lower()


def _kaggle_roots(path: Path) -> list[Path]:
    """Where Kaggle's download has train/ and val/."""
    roots = [path.joinpath(*_KAGGLE_FOLDERS[number:]) for number in range(len(_KAGGLE_FOLDERS))]
    return [root for root in roots if root.is_dir()]


def _archives_in(folder: Path) -> list[Path]:
    """The archives directly in a folder, without hidden ones."""
    archives = [path for path in folder.iterdir() if path.suffix in (".tar", ".zip")] if folder.is_dir() else []
    return sorted(path for path in archives if not path.name.startswith(".") and not path.is_dir())


def _official_or_all(tars: list[Path], split: str) -> list[Path]:
    """The official archive alone if it is among `tars`. Next to it may be ILSVRC2012_img_train_t3.tar, which holds some
    of its images, or what was unpacked from it: images would occur twice."""
    return [tar for tar in tars if tar.name == _OFFICIAL.format(split=split)] or tars


def _holds_images(folder: Path, split: str) -> bool:
    """Whether images have been unpacked here, next to the archives they came in."""
    return any(map(is_wnid, list_classes(folder))) or (split == "val" and bool(images_directly_in(folder)))


def _check_unpacked(folder: Path, tars: list[Path]) -> None:
    """Raises InputError if some class archives next to class folders have no folder: unpacking was interrupted."""
    packed = [tar for tar in tars if is_wnid(tar.stem) and not (folder / tar.stem).is_dir()]
    if packed:
        raise InputError(
            f"{folder}: unpacked in part, {len(packed)} class archives ({packed[0].name}) have no folder; unpack them "
            f"too, or name the archive they came from with --src"
        )


# --- what a folder or an archive holds


def _in_folders(made: SplitFolders, split: str, known: Iterable[str]) -> Listing:
    """The folders of a split: `train/` in class folders, `val/` in class folders or flat."""
    if isinstance(made.folders[0], RemotePath):
        raise InputError(
            f"{made}: loose images in a bucket are not converted, only archives, WebDataset shards, Parquet files, "
            f"TFRecords and FFCV's files; pack each folder into a tar, or copy the images to this machine"
        )
    if made.remark:
        log.warning("%s", made.remark)
    passed_over: PassedOver = Counter()
    folders = tuple(map(unwrapped, made.folders))
    for folder in {*made.folders} - {*folders}:
        count_outside(folder, passed_over)
    details = {"folders": folders, "passed_over": passed_over}
    if any(has_class_folders(folder, split, known) for folder in folders):
        listed = images_in_class_folders(folders, passed_over)
        return make_listing(f"class folders in {made}", listed, **details)
    name = str(made) if folders == made.folders else str(folders[0])
    listing = make_listing(f"flat folder {name}", flat_images(folders, passed_over), classes_from_names=True, **details)
    if not listing.labels or (split == "train" and not any(listing.labels)):
        raise InputError(f"{name}: no {'images and no ' if split == 'val' else ''}class folders")
    _check_all_have_classes(listing, split, "class folder, and has no wnid in its name")
    return listing


def _in_files(files: list[Path], split: str, known: Iterable[str]) -> Listing:
    """Archives, or files of another format. Raises InputError if they differ in kind."""
    found = zip(each(kind_of_file, files), files, strict=True)
    kinds = {kind if kind in SOURCES else ARCHIVES: file for kind, file in reversed([*found])}
    if len(kinds) > 1:
        first, other = sorted(kinds.values())[:2]
        raise InputError(f"{first}: of another kind than {other}; convert them one by one")
    list_split = SOURCES.get(next(iter(kinds)))
    return list_split(files, split, {*known}) if list_split else _in_archives(files, split)


def _in_archives(tars: list[Path], split: str) -> Listing:
    """Archives of whatever kind: of class archives, WebDataset samples, class folders, or flat images."""
    kind = _common_kind(tars)
    if kind == SAMPLES:
        passed_over: PassedOver = Counter()
        listed = listed_in(images_in_shard, tars, passed_over, any_remote(tars))
        listing = make_listing(f"WebDataset shards {range_of(tars)}", listed, passed_over=passed_over)
        return replace(listing, class_names=_manifest_classes(tars, split))
    if kind == ARCHIVES or all(is_wnid(tar.stem) for tar in tars):
        listing = _in_class_archives(tars, kind == ARCHIVES)
    else:
        listing = _in_folders_of_archives(tars, split, None)
    check_no_duplicates(listing)
    return listing


def _in_class_archives(tars: list[Path], are_inside: bool) -> Listing:
    """The images of an archive per class, each an archive in `tars` or one of `tars` itself."""
    passed_over: PassedOver = Counter()
    classes: list[tuple[Path, Member | None]] = [(tar, None) for tar in tars]
    if are_inside:
        classes = [(tar, member) for tar in tars for member in list_members(tar) if _is_archive(member)]

    def images_in(place: tuple[Path, Member | None], counted: PassedOver) -> Iterator[ListedImage]:
        return images_in_class_archive(*place, counted)

    listed = listed_in(images_in, classes, passed_over, any_remote(tars))
    description = f"class archives {'in ' if are_inside else ''}{range_of(tars)}"
    return make_listing(description, listed, passed_over=passed_over)


def _in_folders_of_archives(tars: list[Path], split: str, only: str | None) -> Listing:
    """The images of archives, in class folders or flat; `only` those in a folder that is called after this split."""
    passed_over: PassedOver = Counter()
    listed = images_in_archives(tars, only, passed_over)
    listing = make_listing(f"archive {range_of(tars)}", listed, passed_over=passed_over)
    listing = label_by_folders(listing, split)
    if only is None or listing.labels:
        _check_class_folders(listing, tars, split)
    return listing


def _common_kind(tars: list[Path]) -> str:
    """What archives hold. Raises InputError if they differ in kind."""
    kinds = dict(reversed([*zip(each(_kind_of, tars), tars, strict=True)]))
    if len(kinds) > 1:
        (kind, tar), (other_kind, other) = sorted(kinds.items(), key=lambda pair: pair[1])[:2]
        raise InputError(f"{tar}: holds {kind}, and {other} {other_kind}; convert them one by one")
    return next(iter(kinds))


def _kind_of(tar: Path) -> str:
    """What an archive holds, judged by its first members."""
    first = list(islice(members_of(tar), _FIRST_MEMBERS))
    if not first:
        raise InputError(f"{tar}: no files in this archive")
    if is_zip(tar):
        if any(map(_is_archive, first)):
            raise InputError(f"{tar}: a zip of archives; unpack it, the archives in it are read in place")
        return IMAGES
    if any(map(_is_archive, first)):
        return ARCHIVES
    return SAMPLES if has_samples(first) else IMAGES


def _is_archive(member: Member) -> bool:
    """Whether an archive's member is itself an archive."""
    return member.name.endswith(".tar") and not PurePosixPath(member.name).name.startswith(".")


def _check_class_folders(listing: Listing, tars: list[Path], split: str) -> None:
    """Raises InputError if archives have no images, or some images outside class folders."""
    if not listing.labels or (split == "train" and not any(listing.labels)):
        raise InputError(
            f"{tars[0]}: neither archives of classes (nXXXXXXXX.tar) nor class folders nor WebDataset samples in it, "
            f"and no wnids in file names"
        )
    _check_all_have_classes(listing, split, "class folder (nXXXXXXXX/)")


def _check_all_have_classes(listing: Listing, split: str, what: str) -> None:
    """Raises InputError naming a training image without a class, or a validation image if others are in class folders.
    A labels file can give flat validation images their classes."""
    if None in listing.labels and (split == "train" or (any(listing.labels) and not listing.classes_from_names)):
        raise InputError(f"{listing.images.where(listing.labels.index(None))}: in no {what}")


def _manifest_classes(tars: list[Path], split: str) -> list[str] | None:
    """The class list of an earlier conversion, if the shards are from one. Raises InputError if one of its shards is
    missing."""
    datasets = {tar.absolute().parent.parent for tar in tars if tar.absolute().parent.name == "webdataset"}
    manifests = {dataset: Manifest.read(dataset) for dataset in sorted(datasets) if (dataset / MANIFEST).is_file()}
    for dataset, manifest in manifests.items():
        for shard in manifest.splits[split].shards if split in manifest.splits else ():
            if not (dataset / shard.name).exists():
                raise InputError(f"{dataset / shard.name}: missing, and {MANIFEST} lists it; convert again")
    lists = {manifest.classes for manifest in manifests.values()}
    if len(lists) > 1:
        raise InputError(f"{range_of(tars)}: from datasets with different classes; convert them one by one")
    return next((list(classes) for classes in lists), None)


# --- labels of validation images


def _labelled(flags: SourceFlags, listing: Listing) -> Listing:
    """Validation images with their classes: those of the source, or those of a labels file."""
    if None not in listing.labels and not (flags.val_labels and listing.classes_from_names):
        if flags.val_labels:
            raise InputError(f"--val-labels: not needed, there are classes in {listing.description}; leave it out")
        check_one_class_each(listing.images)
        return listing
    labels_file = flags.val_labels or _find_labels(flags.paths, listing)
    if labels_file is None:
        raise InputError(
            f"{listing.description}: {len(listing.images)} images without class folders; give --val-labels FILE "
            f"(valprep.sh, the development kit, Kaggle's csv or a list of wnids)"
        )
    log.info("val: labels from %s", labels_file)
    return join_labels(listing, labels_file)


def _find_labels(paths: tuple[Path, ...], listing: Listing) -> Path | None:
    """A labels file: given with --src, or next to a source, with a usual name or else with fitting content."""
    absolute = [form for path in (*paths, *listing.folders) for form in (path.absolute(), path.resolve())]
    folders = {folder: None for path in absolute for folder in _label_folders(path)}
    given = [path for path in paths if path.name in KNOWN_FILES]
    nearby = [folder / name for name in KNOWN_FILES for folder in folders if (folder / name).exists()]
    packed = [path / member.name for path in _archives_of(paths) for member in members_of(path) if _has_labels(member)]
    if labels_file := next(iter([*given, *nearby, *packed]), None):
        return labels_file
    names = [listing.images.where(index) for index in range(len(listing.images))]
    return find_labels_by_content((folder for folder in folders if folder.is_dir()), names)


def _archives_of(paths: tuple[Path, ...]) -> list[Path]:
    """The archives with several splits that --src names, or the zip archives that are in a folder that it names."""
    return [file for path in paths for file in (_zips_in(path) if path.is_dir() else [path] if _has_more(path) else [])]


def _has_more(path: Path) -> bool:
    return is_zip(path) or holds_splits(path)


def _has_labels(member: Member) -> bool:
    return PurePosixPath(member.name).name in PACKED_FILES


def _label_folders(path: Path) -> list[Path]:
    """Where labels may be: in a source, in its val/ (where valprep.sh is meant to run), next to it, where Kaggle's
    download has them, and in MMPretrain's meta/."""
    if not path.is_dir():
        return [path.parent]
    top = path.parent if split_called(path.name) else path
    while top.name in _KAGGLE_FOLDERS:
        top = top.parent
    return [path, path / "val", path.parent, top, path / "meta", top / "meta"]
