"""Measure the converter beside FFCV's own DatasetWriter and a plain loop over webdataset's TarWriter.

    python tools/bench_convert.py --src data/imagenet

All of them read the same images (`--src`'s class folders, each image `--repeat` times), in turn, `--rounds` times;
the table shows medians and their spread; what was measured and a bar chart go to `--out`. Images per CPU second is what
one core does when nothing else limits it.
"""

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])

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
from typing import Any

import webdataset
from PIL import Image
from tqdm import tqdm

from pipeline.cli import run_command
from pipeline.errors import InputError
from pipeline.formats.folder import list_class_folders, list_classes
from tools import report
from tools.convert_imagenet import ConvertSettings, convert

Convert = Callable[[Path, Path], object]
"""Source folder and target to whatever."""

FFCV_WRITER, TAR_WRITER = "FFCV DatasetWriter", "webdataset TarWriter"


@dataclass(frozen=True, kw_only=True)
class BenchSettings:
    """Measure the converter beside FFCV's writer and webdataset's."""

    src: Path = Path("data/imagenet")
    """ImageNet's folder; the class folders in train/ are read."""
    out: Path = Path("runs/bench-convert")
    """Where convert.json and the bar chart convert.png go."""
    repeat: int = 4
    """How often each image is in the measured set."""
    rounds: int = 3
    """How often each is measured."""
    workers: int = len(os.sched_getaffinity(0))
    """Threads or processes of each, but for the TarWriter loop, which has one."""


class Pictures:
    """Decoded images and labels, as FFCV's writer takes them."""

    def __init__(self, folder: Path) -> None:
        self._listing = list_class_folders(folder, list_classes(folder))

    def __len__(self) -> int:
        return len(self._listing)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        path, label = self._listing[index]
        return Image.open(path).convert("RGB"), label


def write_ffcv(src: Path, dst: Path, workers: int) -> None:
    """FFCV's DatasetWriter, JPEG at quality 90, as in its ImageNet example."""
    from ffcv.fields import IntField, RGBImageField
    from ffcv.writer import DatasetWriter

    fields = {"image": RGBImageField(write_mode="jpg", jpeg_quality=90), "label": IntField()}
    DatasetWriter(str(dst / "train.beton"), fields, num_workers=workers).from_indexed_dataset(Pictures(src / "train"))


def write_tar(src: Path, dst: Path) -> None:
    """The loop in webdataset's documentation: bytes as they are."""
    train = src / "train"
    with webdataset.TarWriter(str(dst / "train.tar")) as writer:
        for index, (path, label) in enumerate(list_class_folders(train, list_classes(train))):
            writer.write({"__key__": f"{index:08d}", "jpg": path.read_bytes(), "cls": label})


def ours(workers: int, **flags: Any) -> Convert:
    """The converter with these flags."""
    return lambda src, dst: convert(ConvertSettings(src=(src,), dst=dst / "out", workers=workers, **flags))


def variants(workers: int) -> dict[str, Convert]:
    """What is measured."""
    made: dict[str, Convert] = {}
    if importlib.util.find_spec("ffcv"):
        made[FFCV_WRITER] = lambda src, dst: write_ffcv(src, dst, workers)
    made[TAR_WRITER] = write_tar
    for jpeg in ("keep", "reencode"):
        made[f"{jpeg}, .beton"] = ours(workers, jpeg=jpeg, format=("ffcv",))
        made[f"{jpeg}, .beton, not verified"] = ours(workers, jpeg=jpeg, format=("ffcv",), verify=False)
    made["keep, shards"] = ours(workers, jpeg="keep", format=("webdataset",))
    made["keep, shards, not verified"] = ours(workers, jpeg="keep", format=("webdataset",), verify=False)
    made["keep, both"] = ours(workers, jpeg="keep")
    made["tile, both"] = ours(workers, jpeg="tile")
    return made


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


def repeated(src: Path, folder: Path, repeat: int) -> int:
    """Fill folder/train with links to the images of src/train, each several times. Returns how many there are."""
    listing = list_class_folders(src / "train", list_classes(src / "train"))
    for path, _ in listing:
        (folder / "train" / path.parent.name).mkdir(parents=True, exist_ok=True)
        for number in range(repeat):
            (folder / "train" / path.parent.name / f"{number}_{path.name}").symlink_to(path.resolve())
    return repeat * len(listing)


def bench(settings: BenchSettings) -> dict[str, Any]:
    """The command."""
    if not (settings.src / "train").is_dir():
        raise InputError(f"--src {settings.src}: no folder train/ in it")
    logging.getLogger("pipeline").setLevel(logging.WARNING)
    with tempfile.TemporaryDirectory(prefix="bench-convert-") as name:
        src = Path(name) / "source"
        count = repeated(settings.src, src, settings.repeat)
        runs = variants(settings.workers)
        took: dict[str, list[tuple[float, float]]] = {variant: [] for variant in runs}
        for _ in tqdm(range(settings.rounds), desc="rounds", disable=None):
            for variant, run in runs.items():
                took[variant].append(measure(run, src, Path(name) / "target"))
    wall, cpu = (
        {variant: [count / one[which] for one in seconds] for variant, seconds in took.items()} for which in (0, 1)
    )
    return tell(settings, wall, cpu, count)


def tell(settings: BenchSettings, wall: report.Rates, cpu: report.Rates, count: int) -> dict[str, Any]:
    """Print the table and leave what was measured; `wall` and `cpu` are images per second of each."""
    compared = dict.fromkeys(wall, (FFCV_WRITER, TAR_WRITER))
    print("all cores", report.ratio_table("images/s", wall, compared), sep="\n")
    print("\none core", report.ratio_table("images/CPU s", cpu, compared), sep="\n")
    found = report.machine()
    print(f"\n{report.machine_line(found)}")
    colours = {name: report.OURS for name in wall if name not in (FFCV_WRITER, TAR_WRITER)}
    report.draw_bars(settings.out / "convert.png", "images/s", wall, colours)
    content = {"machine": found, "images": count, "images_per_s": wall, "images_per_cpu_s": cpu}
    report.write_json(settings.out / "convert.json", content)
    medians = {
        variant: {
            "images_per_s": round(statistics.median(wall[variant])),
            "per_cpu_s": round(statistics.median(cpu[variant])),
        }
        for variant in wall
    }
    return {"images": count, "variants": medians}


if __name__ == "__main__":
    sys.exit(run_command(bench, BenchSettings))
