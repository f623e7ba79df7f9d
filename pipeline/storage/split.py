"""Opening a split of a dataset directory, local or on a web server, or of a plain ImageNet folder."""

import shlex
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from ..errors import InputError
from ..pixels.formats import is_jpeg_name
from ..requirements import CONVERT
from .beton import BetonSamples, head_matches
from .classes import check_class_names, classes_in_words, sort_classes
from .folder import (
    FolderListing,
    FolderSamples,
    SplitFolders,
    has_class_folders,
    in_words,
    list_class_folders,
    list_classes,
    other_folders,
    split_folders,
    stand_in_for_val,
    unwrapped,
)
from .foreign import COMPRESSED, foreign_files, readable_kind
from .manifest import LARGEST, MANIFEST, Manifest, SplitInfo, check_size
from .positions import SEED, mixed_order, name_order
from .remote.address import below, is_remote
from .remote.cache import cached_samples
from .remote.settings import DEFAULT, Access, RemoteSettings
from .remote.shards import RemoteShards, read_text
from .samples import StoredSamples
from .shards import ShardSamples

RAW_MODES = ("raw", "proportion")
"""Image modes with raw pixels, for all or some images: only .beton files have them."""


@dataclass(frozen=True)
class Split:
    """An open split. Its files are checked when a loader first needs them."""

    name: str
    path: Path
    classes: tuple[str, ...]
    info: SplitInfo | None = None  # None for a plain folder
    url: str | None = None  # of a dataset in a bucket or on a web server; `path` is only its name then
    folders: SplitFolders | None = None  # of a plain folder: where its class folders are
    settings: RemoteSettings = DEFAULT  # how a dataset with a `url` is read
    listing: FolderListing | None = None  # of images that were named one by one

    @property
    def num_samples(self) -> int:
        """Samples in the split over all ranks."""
        return self.info.samples if self.info else len(self.samples)

    @cached_property
    def samples(self) -> StoredSamples:
        """Random access to the stored JPEGs: from shards if there are any, otherwise the beton or the folder."""
        if self.info is None:
            return FolderSamples(self._listing)
        if self.is_streamed:
            raise InputError(
                f"--data {self.url}: a remote dataset is streamed; use --loader webdataset, or --cache and --order "
                f"global"
            )
        return self.shards if self.info.shards else self.beton

    @cached_property
    def _listing(self) -> FolderListing:
        """The images of a plain folder, in the order in which a conversion stores them."""
        if self.listing is not None:
            return self.listing
        assert self.folders is not None
        listed = list_class_folders(self.folders.folders, self.classes)
        order = name_order(listed.names, listed.labels)
        return listed.select(order[mixed_order(len(order), SEED)] if self.name == "train" else order)

    @property
    def remarks(self) -> list[str]:
        """What a user should know about the data, in lines: the order of the classes; in a plain folder, also which
        files are not used, and which are slow to read. Lists the images of a plain folder."""
        lines = [classes_in_words(self.classes)]
        if self.folders is None:
            return lines
        lines += [self.folders.remark] if self.folders.remark else []
        if self.name == "train":
            validation = _folders_of(self.path, "val") or SplitFolders(())
            lines += [validation.remark] if validation.remark else []
            unused = {*other_folders(self.path)} - {*validation.folders}
            lines += [f"{folder}: not used, it is neither train nor val" for folder in sorted(unused)]
        if passed_over := self._listing.passed_over:
            lines.append(f"{self.name}: {in_words(passed_over)}")
        if count := sum(not is_jpeg_name(name) for name in self._listing.names):
            lines.append(
                f"{self.name}: {count} files are not JPEGs; each is encoded whenever it is read (convert once)"
            )
        return lines

    @cached_property
    def shards(self) -> ShardSamples:
        """Raises InputError naming the missing, truncated or foreign file."""
        if self.info is None or not self.info.shards:
            raise InputError(self._lacks("WebDataset shards", "webdataset"))
        if self.url:
            return self._cached_shards
        for shard in self.info.shards:
            check_size(f"{self.path}/{shard.name}", shard.bytes)
        return ShardSamples(self.path, self.info.shards, len(self.classes))

    @cached_property
    def _cached_shards(self) -> ShardSamples:
        """All shards of a remote split, fetched and kept in the cache as long as this process lives."""
        assert self.settings.cache
        return cached_samples(self.remote, self.settings.cache, self.settings.access, len(self.classes))

    @cached_property
    def beton(self) -> BetonSamples:
        """Raises InputError naming the missing, truncated or foreign file."""
        if self.info is None or self.info.beton is None:
            raise InputError(self._lacks("a .beton file", "ffcv"))
        samples = BetonSamples(self.beton_path, list(self.classes))
        if len(samples) != self.info.samples:
            raise InputError(f"{self.beton_path}: {len(samples)} samples, not {self.info.samples}; convert again")
        check_size(self.beton_path, self.info.beton.bytes)
        if not head_matches(self.beton_path, self.info.beton):
            raise InputError(f"{self.beton_path}: altered since it was converted; convert again")
        return samples

    @cached_property
    def remote(self) -> RemoteShards:
        """The shards of a dataset on a web server."""
        if self.url is None or self.info is None or not self.info.shards:
            raise InputError(self._lacks("WebDataset shards", "webdataset"))
        return RemoteShards(self.url, self.info.shards, len(self.classes))

    @property
    def beton_path(self) -> Path:
        """Where the split's `.beton` file is."""
        assert self.info is not None
        assert self.info.beton is not None
        return self.path / self.info.beton.name

    @property
    def is_streamed(self) -> bool:
        """Whether the samples come in the order of a StreamPlan, because there is no random access to them."""
        return self.url is not None and self.settings.order == "stream"

    @property
    def formats(self) -> tuple[str, ...]:
        """How the split is stored: of "folder", "webdataset", "ffcv" ("ffcv-raw" with raw pixels), or "remote"."""
        if self.is_streamed:
            return ("remote",)
        if self.url:
            return ("webdataset",)
        if self.info is None:
            return ("folder",)
        beton = "ffcv-raw" if self.info.image_mode in RAW_MODES else "ffcv"
        return (("webdataset",) if self.info.shards else ()) + ((beton,) if self.info.beton else ())

    def _lacks(self, what: str, format_name: str) -> str:
        return (
            f"{self.url or self.path} has no {what} of {self.name}; convert with "
            f"`{CONVERT} --format {format_name} ...` or choose another --loader"
        )


def split_names(location: Path | str, settings: RemoteSettings = DEFAULT) -> list[str]:
    """The names of the splits at a location that `open_split` accepts. Raises InputError."""
    if is_remote(str(location)):
        return list(remote_manifest(str(location), settings.access).splits)
    path = Path(location)
    if (path / MANIFEST).exists():
        return list(Manifest.read(path).splits)
    return [name for name in ("train", "val") if path.is_dir() and _folders_of(path, name)]


def _folders_of(path: Path, name: str) -> SplitFolders | None:
    """The folders that make a split of a plain folder."""
    return split_folders(path, name) or (stand_in_for_val(path) if name == "val" else None)


def open_split(location: Path | str, name: str, settings: RemoteSettings = DEFAULT) -> Split:
    """Open a split of a converted dataset, local, in a bucket or on a web server, or of a folder with class folders in
    `train/` and `val/`.

    Raises InputError if the location is none of these, StorageError where it cannot be reached.
    """
    if is_remote(str(location)):
        return _open_remote(str(location), name, settings)
    path = Path(location)
    if path.is_file() and (kind := readable_kind(path)):
        raise _unconverted(path, kind)
    if not path.is_dir():
        raise InputError(
            f"--data {path}: no such directory; make it with `{CONVERT} --src IMAGENET "
            f"--dst {shlex.quote(str(path))}`, or demo data with `make demo`"
        )
    if not (path / MANIFEST).exists():
        return _open_folder(path, name)
    manifest = Manifest.read(path)
    return Split(name, path, manifest.classes, _split_of(manifest, name, str(path)))


def _split_of(manifest: Manifest, name: str, location: str) -> SplitInfo:
    if name not in manifest.splits:
        raise InputError(f"{location}: has no split {name!r}, only {', '.join(manifest.splits)}")
    return manifest.splits[name]


def _open_remote(url: str, name: str, settings: RemoteSettings) -> Split:
    manifest = remote_manifest(url, settings.access)
    return Split(name, Path(url), manifest.classes, _split_of(manifest, name, url), url, settings=settings)


def remote_manifest(url: str, access: Access) -> Manifest:
    """The manifest of a dataset in a bucket or on a web server. Raises InputError, StorageError where it cannot be
    reached."""
    address = below(url, MANIFEST)
    return Manifest.parse(lambda: read_text(address, access, LARGEST), address)


def _open_folder(path: Path, name: str) -> Split:
    made, training = _folders_of(path, name), _folders_of(path, "train")
    _check_not_foreign(path, made)
    if made is None:
        raise InputError(
            f"--data {path}: neither a converted dataset ({MANIFEST}) nor a folder with {name}/; "
            f"an interrupted conversion is finished by starting it again"
        )
    classes = _classes_in(training or made)
    check_class_names(str(training or made), classes)
    folders = tuple(map(unwrapped, made.folders))
    if not any(has_class_folders(folder, name, classes if training else ()) for folder in folders):
        raise InputError(
            f"{made}: no class folders; the images get their labels when they are converted: `{CONVERT} "
            f"--src {shlex.quote(str(path))} --dst data/shards`, then --data data/shards"
        )
    return Split(name, path, classes, folders=SplitFolders(folders, made.remark))


def _check_not_foreign(path: Path, made: SplitFolders | None) -> None:
    """Raises InputError if there are files here, instead of class folders, that a conversion reads."""
    own = any((path / name).is_dir() for name in ("webdataset", "ffcv"))  # without its dataset.json
    if own or (made and any(map(list_classes, made.folders))):
        return
    kinds = foreign_files(path).values()
    if kind := next((kind for kind in kinds if kind != COMPRESSED), None):
        raise _unconverted(path, kind)


def _unconverted(path: Path, kind: str) -> InputError:
    return InputError(
        f"--data {path}: {kind}, which are converted once: `{CONVERT} --src {shlex.quote(str(path))} "
        f"--dst data/shards`, then --data data/shards"
    )


def _classes_in(made: SplitFolders) -> tuple[str, ...]:
    return tuple(sort_classes(name for folder in made.folders for name in list_classes(unwrapped(folder))))
