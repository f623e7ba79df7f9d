"""The data that is measured: training images as files, untiled, tiled, and at quality 90, and a whole dataset to train
on. Each is made once, and kept in `--out`."""

import importlib.util
import shutil
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from pipeline.conversion.convert import convert
from pipeline.conversion.settings import ConvertSettings
from pipeline.storage.manifest import MANIFEST
from tools.bench.gpu.record import Figure, Measurement, Record, measure_all
from tools.bench.gpu.settings import GpuSettings
from tools.bench.loaders import TILED, pil_loader, write_ffcv_q90, write_images
from tools.demonstration.data import DemoSettings, complete_directory, make_demo_data
from tools.profiling.throughput import cores

QUALITY = 90
WHOLE = "whole"
"""The step that may take as long as converting ImageNet."""


@dataclass(frozen=True)
class Data:
    """Where the data is."""

    folder: Path
    given: Path | None

    @property
    def source(self) -> Path:
        """ImageNet as it was given, or the demo's data."""
        return self.given or self.folder / "demo"

    @property
    def images(self) -> Path:
        """Training images as files, with their original bytes."""
        return self.folder / "images"

    @property
    def q90_images(self) -> Path:
        """Those encoded again."""
        return self.folder / "q90-images"

    @property
    def kept(self) -> Path:
        """A dataset of their original bytes."""
        return self.folder / "kept"

    @property
    def tiled(self) -> Path:
        """A dataset of them in tiles, without loss."""
        return self.folder / "tiled"

    @property
    def q90(self) -> Path:
        """A dataset of them encoded again, in tiles."""
        return self.folder / "q90"

    @property
    def ffcv_q90(self) -> Path:
        """What FFCV's own writer makes of them."""
        return self.folder / "ffcv-q90.beton"

    @property
    def whole(self) -> Path:
        """A dataset to train on and to evaluate: the given one, or what the converter makes of the source."""
        return self.source if self.is_converted else self.folder / "whole"

    @property
    def is_converted(self) -> bool:
        """Whether a converted dataset was given."""
        return self.given is not None and (self.given / MANIFEST).exists()


def data_of(settings: GpuSettings) -> Data:
    """Where the data of these settings is."""
    return Data(settings.out / "data", settings.data)


def prepare(record: Record, needed: Collection[str]) -> None:
    """Make what is needed and missing."""
    data = data_of(record.settings)
    made = {name: path for name, path in steps(data).items() if name in needed}
    for name, path in made.items():
        if not path.exists():
            record.figures.pop(name, None)
    # The small data in one process: each takes seconds to start.
    small, whole = [name for name in made if name != WHOLE], [name for name in made if name == WHOLE]
    measure_all(
        record,
        [
            Measurement(names=tuple(names), function=make, arguments=(record.settings, data))
            for names in (small, whole)
            if names
        ],
    )


def steps(data: Data) -> dict[str, Path]:
    """What is to be made, by name, in this order."""
    paths = {} if data.given else {"demo data": data.source}
    paths |= {"images": data.images, "q90 images": data.q90_images}
    paths |= {"untiled": data.kept, "tiles": data.tiled, "q90 tiles": data.q90}
    if has_ffcv():
        paths["FFCV's q90"] = data.ffcv_q90
    return paths if data.is_converted else paths | {WHOLE: data.whole}


def has_ffcv() -> bool:
    """Whether FFCV is installed."""
    return importlib.util.find_spec("ffcv") is not None


def make(settings: GpuSettings, data: Data, names: tuple[str, ...]) -> Iterator[Figure]:
    """Make what is named; yields what was made, in words and numbers."""
    makers: dict[str, Callable[[], Figure]] = {
        "demo data": partial(_make_demo, settings, data.source),
        "images": partial(_write_images, settings, data),
        "q90 images": partial(_write_q90_images, data),
        "untiled": partial(_convert, data.images, data.kept, jpeg="keep", splits=("train",)),
        "tiles": partial(_convert, data.images, data.tiled, splits=("train",), **TILED),
        "q90 tiles": partial(_convert, data.images, data.q90, quality=QUALITY, splits=("train",), **TILED),
        "FFCV's q90": partial(_write_ffcv, data),
        # The format of the fastest loader alone: ImageNet in both takes 300 GB.
        WHOLE: partial(_convert, data.source, data.whole, format=("ffcv" if has_ffcv() else "webdataset",)),
    }
    for name in names:
        yield makers[name]()


def _make_demo(settings: GpuSettings, folder: Path) -> Figure:
    few = {"train_per_class": 3, "val_per_class": 1, "workers": 1} if settings.quick else {}
    return make_demo_data(DemoSettings(dst=folder, **few))


def _write_images(settings: GpuSettings, data: Data) -> Figure:
    shutil.rmtree(data.images, ignore_errors=True)
    with complete_directory(data.images) as folder:
        write_images(data.source, folder, settings.sizes.images)
    return {"images": settings.sizes.images}


def _write_q90_images(data: Data) -> Figure:
    """As FFCV's writer encodes them, for DALI, which reads files."""
    shutil.rmtree(data.q90_images, ignore_errors=True)
    paths = sorted(data.images.glob("train/*/*.JPEG"))
    with complete_directory(data.q90_images) as folder, ThreadPoolExecutor(cores()) as pool:
        for wnid in sorted({path.parent.name for path in paths}):
            (folder / "train" / wnid).mkdir(parents=True)
        written = list(pool.map(lambda path: _encode_again(path, folder / "train" / path.parent.name), paths))
    return {"images": len(written)}


def _encode_again(path: Path, folder: Path) -> None:
    pil_loader(str(path)).save(folder / path.name, format="JPEG", quality=QUALITY)  # Pillow subsamples 4:2:0


def _convert(src: Path, dst: Path, **flags: Any) -> Figure:
    return convert(ConvertSettings(src=(src,), dst=dst, **flags))


def _write_ffcv(data: Data) -> Figure:
    partial_file = data.ffcv_q90.with_suffix(".partial")
    write_ffcv_q90(data.images, partial_file, cores())
    partial_file.rename(data.ffcv_q90)
    return {"bytes": data.ffcv_q90.stat().st_size}
