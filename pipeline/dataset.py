"""A dataset directory: dataset.json, and opening a split of it (or of a plain ImageNet folder)."""

import dataclasses
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from pipeline.errors import InputError
from pipeline.formats.beton import BetonInfo, BetonSamples, Extent, head_matches
from pipeline.formats.files import complete_or_absent
from pipeline.formats.folder import FolderSamples, list_class_folders, list_classes
from pipeline.formats.remote import RemoteShards, is_remote, read_text
from pipeline.formats.samples import Samples
from pipeline.formats.shards import ShardInfo, ShardSamples

FORMAT_VERSION = 2
MANIFEST = "dataset.json"
RAW_MODES = ("raw", "proportion")
"""Image modes with raw pixels, or some: they are in .beton files only."""

Info = TypeVar("Info")


@dataclass(frozen=True, kw_only=True)
class SplitInfo:
    """What dataset.json says of a split."""

    samples: int
    bytes: int  # of the stored JPEGs
    image_mode: str  # how images are stored: the converter's --jpeg
    shards: tuple[ShardInfo, ...] = ()
    beton: BetonInfo | None = None


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What dataset.json says."""

    classes: tuple[str, ...]  # wnids in index order
    splits: dict[str, SplitInfo]
    format: int = FORMAT_VERSION

    def write(self, dataset: Path) -> None:
        """Written last: a directory with a dataset.json is complete."""
        with complete_or_absent(dataset / MANIFEST) as file:
            json.dump(dataclasses.asdict(self), file, indent=1)
            file.write("\n")

    @classmethod
    def read(cls, dataset: Path) -> "Manifest":
        """Raises InputError where the file is missing or not ours."""
        return cls.parse(lambda: (dataset / MANIFEST).read_text("utf-8"), str(dataset / MANIFEST))

    @classmethod
    def parse(cls, read: Callable[[], str], path: str) -> "Manifest":
        """From what `read` returns; `path` names it in an error. Raises InputError."""
        try:
            fields = json.loads(read())
            if fields.pop("format") != FORMAT_VERSION:
                raise InputError(f"{path}: another format version than {FORMAT_VERSION}; convert again")
            splits = {name: _split_info(split) for name, split in fields["splits"].items()}
            return cls(classes=_classes(fields["classes"]), splits=splits)
        except InputError:
            raise
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise InputError(f"{path}: cannot be read ({error!r}); convert again") from None


def _classes(names: Any) -> tuple[str, ...]:
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError("classes that are no list of names")
    if not names or len(set(names)) != len(names):
        raise ValueError("no classes, or one twice")
    return tuple(names)


def _checked(made: Info) -> Info:
    """A dataclass as it came from JSON: its texts are texts, its numbers whole and not negative."""
    for field in dataclasses.fields(made):  # type: ignore[arg-type]
        value = getattr(made, field.name)
        if field.type in (int, str) and type(value) is not field.type:
            raise ValueError(f"{field.name} is {value!r}")
        if field.type is int and value < 0:
            raise ValueError(f"{field.name} is {value}")
    return made


def _beton_info(fields: dict[str, Any]) -> BetonInfo:
    extents = tuple(_checked(Extent(**extent)) for extent in fields["extents"])
    info = _checked(BetonInfo(**{**fields, "extents": extents}))
    if len(extents) < 2 or sum(extent.bytes for extent in extents) != info.bytes:
        raise ValueError("extents that do not add up")
    return info


def _split_info(fields: dict[str, Any]) -> SplitInfo:
    shards = tuple(_checked(ShardInfo(**shard)) for shard in fields["shards"])
    beton = _beton_info(fields["beton"]) if fields["beton"] else None
    info = _checked(SplitInfo(**{**fields, "shards": shards, "beton": beton}))
    names = [shard.name for shard in shards] + ([beton.name] if beton else [])
    if len(set(names)) != len(names) or not all(
        re.fullmatch(r"(webdataset|ffcv)/[\w-]+\.(tar|beton)", name) for name in names
    ):
        raise ValueError("a file name that no conversion makes")
    counts = {info.samples, *([sum(shard.samples for shard in shards)] if shards else [])}
    counts |= {beton.samples} if beton else set()
    if info.samples < 1 or len(counts) != 1:
        raise ValueError("sample counts that do not add up")
    return info


@dataclass(frozen=True)
class Split:
    """One split, opened. Its files are looked at when a loader first needs them."""

    name: str
    path: Path
    classes: tuple[str, ...]
    info: SplitInfo | None = None  # None for a plain folder
    url: str | None = None  # of a dataset on a web server; `path` is only its name then

    @property
    def num_samples(self) -> int:
        """Samples in the split over all ranks."""
        return self.info.samples if self.info else len(self.samples)

    @cached_property
    def samples(self) -> Samples:
        """Random access to the stored JPEGs: from shards if there are any, else the beton or the folder."""
        if self.info is None:
            return FolderSamples(list_class_folders(self.path / self.name, list(self.classes)))
        if self.url:
            raise InputError(f"--data {self.url}: a remote dataset is streamed; use --loader webdataset")
        return self.shards if self.info.shards else self.beton

    @cached_property
    def shards(self) -> ShardSamples:
        """Raises InputError naming the missing, truncated or foreign file."""
        if self.info is None or not self.info.shards:
            raise InputError(self._lacks("WebDataset shards", "webdataset"))
        for shard in self.info.shards:
            _check_size(self.path / shard.name, shard.bytes)
        return ShardSamples(self.path, self.info.shards, len(self.classes))

    @cached_property
    def beton(self) -> BetonSamples:
        """Raises InputError naming the missing, truncated or foreign file."""
        if self.info is None or self.info.beton is None:
            raise InputError(self._lacks("a .beton file", "ffcv"))
        samples = BetonSamples(self.beton_path, list(self.classes))
        if len(samples) != self.info.samples:
            raise InputError(f"{self.beton_path}: {len(samples)} samples, not {self.info.samples}; convert again")
        _check_size(self.beton_path, self.info.beton.bytes)
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
    def formats(self) -> tuple[str, ...]:
        """How the split is stored: of "folder", "webdataset", "ffcv" ("ffcv-raw" with raw pixels), or "remote"."""
        if self.url:
            return ("remote",)
        if self.info is None:
            return ("folder",)
        beton = "ffcv-raw" if self.info.image_mode in RAW_MODES else "ffcv"
        return (("webdataset",) if self.info.shards else ()) + ((beton,) if self.info.beton else ())

    def _lacks(self, what: str, format_name: str) -> str:
        return (
            f"{self.url or self.path} has no {what} of {self.name}; convert with "
            f"`python tools/convert_imagenet.py --format {format_name} ...` or choose another --loader"
        )


def _check_size(path: Path, size: int) -> None:
    try:
        actual = path.stat().st_size
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}; convert again") from None
    if actual != size:
        raise InputError(f"{path}: {actual} bytes, not {size} as {MANIFEST} says; convert again")


def split_names(location: Path | str) -> list[str]:
    """The splits of what `open_split` opens, without opening them. Raises InputError."""
    if is_remote(str(location)):
        return list(_remote_manifest(str(location)).splits)
    path = Path(location)
    if (path / MANIFEST).exists():
        return list(Manifest.read(path).splits)
    return [name for name in ("train", "val") if (path / name).is_dir()]


def open_split(location: Path | str, name: str) -> Split:
    """Open a split of a converted dataset, here or on a web server, or of a folder with class folders in
    `train/` and `val/`.

    Raises InputError where there is none of these.
    """
    if is_remote(str(location)):
        return _open_remote(str(location), name)
    path = Path(location)
    if not path.is_dir():
        raise InputError(
            f"--data {path}: no such directory; make it with `python tools/convert_imagenet.py --src IMAGENET "
            f"--dst {path}`, or demo data with `make demo`"
        )
    if not (path / MANIFEST).exists():
        return _open_folder(path, name)
    manifest = Manifest.read(path)
    return Split(name, path, manifest.classes, _split_of(manifest, name, str(path)))


def _split_of(manifest: Manifest, name: str, location: str) -> SplitInfo:
    if name not in manifest.splits:
        raise InputError(f"{location}: has no split {name!r}, only {', '.join(manifest.splits)}")
    return manifest.splits[name]


def _open_remote(url: str, name: str) -> Split:
    manifest = _remote_manifest(url)
    return Split(name, Path(url), manifest.classes, _split_of(manifest, name, url), url)


def _remote_manifest(url: str) -> Manifest:
    address = f"{url.rstrip('/')}/{MANIFEST}"
    return Manifest.parse(lambda: read_text(address), address)


def _open_folder(path: Path, name: str) -> Split:
    if not (path / name).is_dir():
        raise InputError(
            f"--data {path}: neither a converted dataset ({MANIFEST}) nor a folder with {name}/; "
            f"an interrupted conversion is finished by starting it again"
        )
    classes = list_classes(path / ("train" if (path / "train").is_dir() else name))
    if not list_classes(path / name):
        raise InputError(f"{path / name}: no class folders; convert the dataset with --val-labels")
    return Split(name, path, tuple(classes))
