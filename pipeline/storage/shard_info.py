"""`_info.json`: which shards are which split, as timm's reader of WebDataset shards wants it and its data sets have it.

    {"splits": {"train": {"name": "train", "filenames": ["train-000000.tar", ...], "shard_lengths": [2310, ...],
                          "num_samples": 1281167}, "validation": {...}}}

(timm/data/readers/reader_wds.py, 1.0.31.)
"""

import json
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from ..errors import InputError, one_line
from .files import complete_or_absent
from .folder import split_called
from .manifest import LARGEST, parse_json
from .reading import read_bounded
from .shards import ShardInfo

SHARD_INFO = "_info.json"
_NAMES = {"train": ("train",), "val": ("validation", "val")}  # timm's scripts ask for "validation"


def write_shard_info(folder: Path, splits: Mapping[str, tuple[ShardInfo, ...]]) -> None:
    """Write the file for the shards in a folder, each split under the names that are used for it."""
    described = {
        name: {
            "name": name,
            "filenames": [Path(shard.name).name for shard in shards],
            "shard_lengths": [shard.samples for shard in shards],
            "num_samples": sum(shard.samples for shard in shards),
            "num_bytes": sum(shard.bytes for shard in shards),
        }
        for split, shards in splits.items()
        for name in _NAMES[split]
    }
    with complete_or_absent(folder / SHARD_INFO) as file:
        json.dump({"splits": described}, file, indent=1)


def shards_in_info(folder: Path, split: str) -> list[Path]:
    """The shards of a split as the file in this folder lists them; none without such a file.

    Raises InputError if it cannot be read, if a shard is missing, or if one is outside this folder.
    """
    path = folder / SHARD_INFO
    if not path.is_file():
        return []
    try:
        splits: dict[str, Any] = parse_json(read_bounded(path, LARGEST).decode("utf-8"))["splits"]
        names: list[str] = next((info["filenames"] for name, info in splits.items() if split_called(name) == split), [])
        shards = [folder / _inside(name) for name in names]
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        reason = one_line(f"{type(error).__name__}: {error}"[:200])
        raise InputError(f"{path}: cannot be read ({reason}); remove it") from None
    for shard in shards:
        if not shard.is_file():
            raise InputError(f"{shard}: missing, and {SHARD_INFO} lists it; download it, or remove {path}")
    return sorted(shards)


def _inside(name: str) -> str:
    """A name that a stranger may have written. Raises ValueError unless it stays in its folder and can be printed."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or not name.isprintable():
        raise ValueError(f"the name {name!r:.60}")
    return name
