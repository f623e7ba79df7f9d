"""Sources of a conversion, and what is found in them."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import webdataset

from pipeline.conversion.finding import Source, SourceFlags, open_source
from pipeline.errors import InputError
from tests.helpers.imagenet_forms import write_tar
from tests.helpers.images import jpeg_bytes, photograph

IMAGE = jpeg_bytes(photograph(40, 50, seed=1))


def opened(*paths: Path, splits: Sequence[str] = ("train", "val"), **options: Any) -> Source:
    """Open a source at these paths, with every flag that is not given at its default."""
    defaults: dict[str, Any] = {"val_labels": None, "classes": None, "seed": 0}
    return open_source(SourceFlags(paths, tuple(splits), **(defaults | options)))


def contents(source: Source, split: str) -> list[tuple[str, str, bytes]]:
    """Name, wnid and bytes of each image of a split, sorted."""
    images = source.splits[split]
    return sorted(
        (images.stem(index), source.classes[images.labels[index]], images.read(index)) for index in range(len(images))
    )


def write_samples(path: Path, samples: list[dict[str, Any]], encode: bool = True) -> Path:
    """Write samples with the webdataset library's TarWriter. Returns `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with webdataset.TarWriter(str(path), encoder=encode) as writer:
        for sample in samples:
            writer.write(sample)
    return path


def class_file(path: Path, *names: str) -> Path:
    """Write a class list. Returns `path`."""
    path.write_text("".join(f"{name}\n" for name in names))
    return path


def shard_with(name: str, *files: tuple[str, bytes]) -> Callable[[Path], object]:
    """Write a shard that has these files after a good sample."""
    return lambda root: write_tar(root / name, [("0.jpg", IMAGE), ("0.cls", b"1"), *files])


def write_images(*paths: str) -> Callable[[Path], object]:
    """Write good images to these paths."""

    def write(root: Path) -> None:
        for path in paths:
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).write_bytes(IMAGE)

    return write


def assert_one_line(error: BaseException, *parts: object) -> None:
    """The message is one line of readable length that contains these parts."""
    assert len(str(error).splitlines()) == 1
    assert len(str(error)) < 500
    for part in parts:
        assert str(part) in str(error)


def assert_refused(root: Path, make: Callable[[Path], object], message: str) -> None:
    """A source that `make` puts into the new folder `root` is refused in one line, which has `message`."""
    root.mkdir()
    make(root)
    with pytest.raises(InputError) as raised:
        opened(root)
    assert_one_line(raised.value, message.format(root=root))
