"""dataset.json: the classes of a dataset, its splits, and their files with digests."""

import dataclasses
import functools
import json
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from ..errors import InputError, one_line
from .beton import BetonInfo, Extent
from .files import complete_or_absent
from .reading import read_bounded
from .samples import MOST_SAMPLES
from .shards import ShardInfo

FORMAT_VERSION = 2
MANIFEST = "dataset.json"
LARGEST = 1 << 26
"""Bytes: 100,000 shards take 20 MB."""

_MOST_OBJECTS = 1 << 20  # lists and dictionaries; a shard is one
_SHOWN = 200  # characters of what is wrong

Info = TypeVar("Info")


@dataclass(frozen=True, kw_only=True)
class SplitInfo:
    """A split in dataset.json."""

    samples: int
    bytes: int  # of the stored JPEGs
    image_mode: str  # how images are stored: the converter's --jpeg
    shards: tuple[ShardInfo, ...] = ()
    beton: BetonInfo | None = None


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """The content of dataset.json."""

    classes: tuple[str, ...]  # wnids in index order
    splits: dict[str, SplitInfo]
    format: int = FORMAT_VERSION

    def write(self, dataset: Path) -> None:
        """Write it, last of all files: a directory with a dataset.json is complete."""
        with complete_or_absent(dataset / MANIFEST) as file:
            json.dump(dataclasses.asdict(self), file, indent=1)
            file.write("\n")

    @classmethod
    def read(cls, dataset: Path) -> "Manifest":
        """Read it. Raises InputError if the file is missing or not a manifest."""
        path = dataset / MANIFEST
        status = path.stat() if path.exists() else None
        return _read(path, status and (status.st_ino, status.st_size, status.st_mtime_ns))

    @classmethod
    def parse(cls, read: Callable[[], str], path: str) -> "Manifest":
        """Parse the text that `read` returns; `path` names it in errors. Raises InputError."""
        try:
            fields = parse_json(read(), _made)
            if fields.pop("format") != FORMAT_VERSION:
                raise InputError(f"{path}: another format version than {FORMAT_VERSION}; convert again")
            splits = {name: _split_info(split) for name, split in fields["splits"].items()}
            if odd := [name for name in splits if not re.fullmatch(r"[a-zA-Z0-9_-]{1,64}", name)]:
                raise ValueError(f"{odd[0]!r:.60} as the name of a split")
            return cls(classes=_classes(fields["classes"]), splits=splits)
        except InputError:
            raise
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            reason = one_line(repr(error)[:_SHOWN])
            raise InputError(f"{path}: cannot be read ({reason}); convert again") from None


def check_size(path: Path | str, size: int) -> None:
    """Raises InputError where a file of a dataset is missing or has another size than its dataset.json says."""
    try:
        actual = os.stat(path).st_size
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}; convert again") from None
    if actual != size:
        raise InputError(f"{path}: {actual} bytes, not {size} as {MANIFEST} says; convert again")


def parse_json(text: str, object_hook: Callable[[dict[str, Any]], Any] | None = None) -> Any:
    """The JSON value of a text that a stranger may have written to fill memory: of empty lists, it takes 30 times the
    text's. `object_hook` is json's. Raises ValueError and RecursionError."""
    if text.count("[") + text.count("{") > _MOST_OBJECTS:
        raise ValueError(f"more than {_MOST_OBJECTS} objects")
    return json.loads(text, object_hook=object_hook)


@functools.lru_cache(maxsize=1)
def _read(path: Path, identity: tuple[int, ...] | None) -> Manifest:
    """The manifest in a file; a run opens both splits, more than once, and that of 100,000 shards takes a second."""
    return Manifest.parse(lambda: read_bounded(path, LARGEST).decode("utf-8"), str(path))


def _classes(names: Any) -> tuple[str, ...]:
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError("classes that are not a list of names")
    if odd := [name for name in names if not name.isprintable()]:  # they are printed; an escape sequence is obeyed
        raise ValueError(f"{odd[0]!r:.60} as the name of a class")
    if not names or len(set(names)) != len(names):
        raise ValueError("no classes, or one twice")
    return tuple(names)


def _checked(info: Info) -> Info:
    """Check a dataclass made from JSON: texts are texts, numbers are integers and not negative."""
    kind_of_info: Any = type(info)
    for name, kind in _plain_fields(kind_of_info):
        value: Any = getattr(info, name)
        if type(value) is not kind:
            raise ValueError(f"{name} is {value!r}")
        if isinstance(value, int) and value < 0:
            raise ValueError(f"{name} is {value}")
    return info


@functools.cache
def _plain_fields(kind: Any) -> list[tuple[str, type]]:
    """The names of a dataclass's fields that are texts or integers, and their types."""
    return [(field.name, field.type) for field in dataclasses.fields(kind) if field.type in (int, str)]


_PIECES = {frozenset(field.name for field in dataclasses.fields(kind)): kind for kind in (ShardInfo, Extent)}


def _made(fields: dict[str, Any]) -> Any:
    """A shard or an extent, made and checked while the text is read: of 100,000 shards, the dictionaries would leave
    25 MB of holes in this process's memory."""
    kind: Any = _PIECES.get(frozenset(fields))
    if kind is None:
        return fields
    piece = _checked(kind(**fields))
    if not re.fullmatch("[0-9a-f]{64}", piece.sha256):  # the cache has a file of this name
        raise ValueError(f"sha256 is {piece.sha256!r:.80}")
    return piece


def _all_of(kind: type[Info], values: Any) -> tuple[Info, ...]:
    """Raises ValueError for a value of another kind."""
    if not isinstance(values, list) or not all(type(value) is kind for value in values):
        raise ValueError(f"not a list of {kind.__name__}")
    return tuple(values)


def _beton_info(fields: dict[str, Any]) -> BetonInfo:
    extents = _all_of(Extent, fields["extents"])
    info = _checked(BetonInfo(**{**fields, "extents": extents}))
    if len(extents) < 2 or sum(extent.bytes for extent in extents) != info.bytes:
        raise ValueError("extents that do not add up")
    return info


def _split_info(fields: dict[str, Any]) -> SplitInfo:
    shards = _all_of(ShardInfo, fields["shards"])
    beton = _beton_info(fields["beton"]) if fields["beton"] else None
    info = _checked(SplitInfo(**{**fields, "shards": shards, "beton": beton}))
    if info.samples > MOST_SAMPLES:
        raise ValueError(f"more than {MOST_SAMPLES} samples")
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
