"""Compare the converter with FFCV's own DatasetWriter and a plain loop over webdataset's TarWriter.

    python tools/bench_convert.py --src data/imagenet

All of them read the same images (the class folders in `--src`, each image `--repeat` times), in turn, `--rounds`
times. The table shows medians and their spread; all measurements and a bar chart go to `--out`. Images per CPU second
is the speed of one core when nothing else limits it.
"""

import importlib.util
import logging
import os
import resource
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import webdataset
from PIL import Image

from pipeline.conversion.convert import convert
from pipeline.conversion.settings import ConvertSettings
from pipeline.errors import InputError
from pipeline.progress import announced
from pipeline.storage.folder import list_class_folders, list_classes
from tools.bench import report

Convert = Callable[[Path, Path], object]
"""Converts a source folder to a target."""

FFCV_WRITER, TAR_WRITER = "FFCV DatasetWriter", "webdataset TarWriter"


@dataclass(frozen=True, kw_only=True)
class BenchSettings:
    """Compare the converter with FFCV's writer and webdataset's."""

    src: Path = Path("data/imagenet")
    """ImageNet's folder; the class folders in train/ are read."""
    out: Path = Path("runs/bench-convert")
    """Where convert.json and the bar chart convert.png go."""
    repeat: int = 4
    """How often each image occurs in the measured set."""
    rounds: int = 3
    """How often each converter is measured."""
    workers: int = len(os.sched_getaffinity(0))
    """Threads or processes of each, except the TarWriter loop, which has one."""


class Pictures:
    """Decoded images and labels, in the form that FFCV's writer accepts."""

    def __init__(self, folder: Path) -> None:
        self._listing = list_class_folders([folder], list_classes(folder))

    def __len__(self) -> int:
        return len(self._listing)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return Image.open(self._listing.path(index)).convert("RGB"), int(self._listing.labels[index])


def write_ffcv(src: Path, dst: Path, workers: int) -> None:
    """FFCV's DatasetWriter, JPEG at quality 90, as in its ImageNet example."""
    from ffcv.fields import IntField, RGBImageField
    from ffcv.writer import DatasetWriter

    fields = {"image": RGBImageField(write_mode="jpg", jpeg_quality=90), "label": IntField()}
    DatasetWriter(str(dst / "train.beton"), fields, num_workers=workers).from_indexed_dataset(Pictures(src / "train"))


def write_tar(src: Path, dst: Path) -> None:
    """The loop in webdataset's documentation, with unchanged bytes."""
    train = src / "train"
    with webdataset.TarWriter(str(dst / "train.tar")) as writer:
        listing = list_class_folders([train], list_classes(train))
        for index, label in enumerate(listing.labels.tolist()):
            writer.write({"__key__": f"{index:08d}", "jpg": Path(listing.path(index)).read_bytes(), "cls": label})


def sluice(workers: int, **flags: Any) -> Convert:
    """The converter with these flags."""
    return lambda src, dst: convert(ConvertSettings(src=(src,), dst=dst / "out", workers=workers, **flags))


def variants(workers: int) -> dict[str, Convert]:
    """The converters to be measured, by name."""
    converters: dict[str, Convert] = {}
    if importlib.util.find_spec("ffcv"):
        converters[FFCV_WRITER] = lambda src, dst: write_ffcv(src, dst, workers)
    converters[TAR_WRITER] = write_tar
    for jpeg in ("keep", "reencode"):
        converters[f"{jpeg}, .beton"] = sluice(workers, jpeg=jpeg, format=("ffcv",))
        converters[f"{jpeg}, .beton, not verified"] = sluice(workers, jpeg=jpeg, format=("ffcv",), verify=False)
    converters["keep, shards"] = sluice(workers, jpeg="keep", format=("webdataset",))
    converters["keep, shards, not verified"] = sluice(workers, jpeg="keep", format=("webdataset",), verify=False)
    converters["keep, both"] = sluice(workers, jpeg="keep")
    converters["tile, both"] = sluice(workers, jpeg="tile")
    return converters


def cpu_seconds() -> float:
    """CPU time of this process and of the children it has waited for."""
    usage = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in usage)


def measure(run: Convert, src: Path, dst: Path) -> tuple[float, float]:
    """Wall and CPU seconds of one conversion."""
    dst.mkdir()
    started, cpu = time.perf_counter(), cpu_seconds()
    run(src, dst)
    took = time.perf_counter() - started, cpu_seconds() - cpu
    shutil.rmtree(dst)
    return took


def link_images(src: Path, folder: Path, repeat: int) -> int:
    """Fill folder/train with links to the images of src/train, `repeat` of each. Returns the number of links."""
    listing = list_class_folders([src / "train"], list_classes(src / "train"))
    for path in map(Path, map(listing.path, range(len(listing)))):
        (folder / "train" / path.parent.name).mkdir(parents=True, exist_ok=True)
        for number in range(repeat):
            (folder / "train" / path.parent.name / f"{number}_{path.name}").symlink_to(path.resolve())
    return repeat * len(listing)


def bench(settings: BenchSettings) -> dict[str, Any]:
    """Measure every converter in turn. Returns the medians."""
    if not (settings.src / "train").is_dir():
        raise InputError(f"--src {settings.src}: no folder train/ in it")
    logging.getLogger("pipeline").setLevel(logging.WARNING)
    with tempfile.TemporaryDirectory(prefix="bench-convert-") as name:
        src = Path(name) / "source"
        count = link_images(settings.src, src, settings.repeat)
        runs = variants(settings.workers)
        took: dict[str, list[tuple[float, float]]] = {variant: [] for variant in runs}
        turns = [variant for _ in range(settings.rounds) for variant in runs]
        for variant in announced(turns, "conversion"):
            took[variant].append(measure(runs[variant], src, Path(name) / "target"))
    wall, cpu = (
        {variant: [count / one[which] for one in seconds] for variant, seconds in took.items()} for which in (0, 1)
    )
    return summarise(settings, wall, cpu, count)


def summarise(settings: BenchSettings, wall: report.Rates, cpu: report.Rates, count: int) -> dict[str, Any]:
    """Print the tables and write the measurements; `wall` and `cpu` are images per second of each converter."""
    compared = dict.fromkeys(wall, (FFCV_WRITER, TAR_WRITER))
    print("all cores", report.ratio_table("images/s", wall, compared), sep="\n")
    print("\none core", report.ratio_table("images/CPU s", cpu, compared), sep="\n")
    machine = report.machine()
    print(f"\n{report.machine_line(machine)}")
    colours = {name: report.OURS for name in wall if name not in (FFCV_WRITER, TAR_WRITER)}
    report.draw_bars(settings.out / "convert.png", "images/s", wall, colours)
    content = {"machine": machine, "images": count, "images_per_s": wall, "images_per_cpu_s": cpu}
    report.write_json(settings.out / "convert.json", content)
    medians = {
        variant: {
            "images_per_s": round(statistics.median(wall[variant])),
            "per_cpu_s": round(statistics.median(cpu[variant])),
        }
        for variant in wall
    }
    return {"images": count, "variants": medians}
