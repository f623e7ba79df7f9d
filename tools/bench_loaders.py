"""Measure Sluice's loaders beside their peers: the same images, the same output, in turn, in one run.

    python tools/bench_loaders.py --data data/imagenet

`--data` is an ImageNet folder or a converted dataset. Its training images are converted as each variant needs them,
into a temporary folder. All give batches of uint8 at 224 x 224 on the CPU: RandomResizedCrop and flip, or a centre crop
in evaluation. An epoch of each in turn, `--rounds` times; the first epoch of each is not counted. The table shows
medians of images/s and their spread; what was measured and a bar chart go to `--out`.
"""

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])

import importlib.util
import logging
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import simplejpeg
import torch
import torchvision
from PIL import Image
from torch.utils.data import DataLoader
from torchvision.transforms import v2
from tqdm import tqdm

from pipeline import loaders
from pipeline.cli import run_command
from pipeline.contract import CropPolicy, LoaderSpec
from pipeline.conversion.sources import Request, open_source
from pipeline.dataset import open_split
from pipeline.decode import cropped
from tools import report
from tools.convert_imagenet import ConvertSettings, convert

RESOLUTION = 224
Epoch = Callable[[int], int]
"""Runs the epoch of this number, returns how many images it gave."""

STOCK, STOCK_Q90, STOCK_EVAL = "FFCV, original bytes", "FFCV, its own q90", "FFCV CenterCrop, original bytes"
TORCHVISION, PIL, DALI, DALI_ROI = "torchvision + DataLoader", "PIL + DataLoader", "DALI", "DALI, ROI decode"
CEILING = "ceiling: TurboJPEG on the cut bytes"
COMPARED = {
    "ffcv": (STOCK, CEILING),
    "ffcv, q90 tiles": (STOCK_Q90,),
    "ffcv, untiled": (STOCK,),
    "torch": (TORCHVISION, CEILING),
    "webdataset": (TORCHVISION, CEILING),
    "dali": (DALI_ROI, CEILING),
    "ffcv, evaluation": (STOCK_EVAL,),
}


@dataclass(frozen=True, kw_only=True)
class BenchSettings:
    """Measure Sluice's loaders beside their peers."""

    data: Path = Path("data/imagenet")
    """ImageNet's folder (or archives' folder) or a converted dataset."""
    out: Path = Path("runs/bench-loaders")
    """Where loaders.json and the bar chart loaders.png go."""
    images: int = 1200
    """Images of an epoch; fewer are repeated."""
    rounds: int = 5
    """Epochs of each variant that are counted."""
    batch_size: int = 64
    """Images in a batch."""
    workers: int = len(os.sched_getaffinity(0))
    """Threads or processes of each."""


def lay_out(data: Path, folder: Path, images: int) -> None:
    """Fill folder/train/<class>/ with `images` files of the data's training images, repeated if there are fewer."""
    source = open_source(Request((data,), ("train",), None, None, 0))
    listing = source.splits["train"]
    for number in range(images):
        index = number % len(listing)
        path = folder / "train" / source.classes[listing.labels[index]] / f"{number:07d}.JPEG"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(listing.read(index))


# --- peers


def pil_loader(path: str) -> Image.Image:
    """As torchvision's ImageFolder does it."""
    with open(path, "rb") as file:
        return Image.open(file).convert("RGB")


def torchvision_loader(path: str) -> torch.Tensor:
    """Bytes to uint8 [3, H, W]."""
    return torchvision.io.decode_jpeg(torchvision.io.read_file(path), mode=torchvision.io.ImageReadMode.RGB)


def image_folder(folder: Path, settings: BenchSettings, loader: Callable[[str], Any], transform: Any) -> Epoch:
    """torchvision's ImageFolder in a DataLoader."""
    dataset = torchvision.datasets.ImageFolder(str(folder / "train"), transform=transform, loader=loader)
    batches = DataLoader(
        dataset,
        settings.batch_size,
        shuffle=True,
        drop_last=True,
        num_workers=settings.workers,
        persistent_workers=True,
    )
    return lambda epoch: counted(images for images, _ in batches)


def pil(folder: Path, settings: BenchSettings) -> Epoch:
    """The transforms of PyTorch's ImageNet example, without normalisation."""
    crop = [torchvision.transforms.RandomResizedCrop(RESOLUTION), torchvision.transforms.RandomHorizontalFlip()]
    return image_folder(
        folder, settings, pil_loader, torchvision.transforms.Compose([*crop, torchvision.transforms.PILToTensor()])
    )


def torchvision_v2(folder: Path, settings: BenchSettings) -> Epoch:
    """torchvision's own decoder and its tensor transforms."""
    transform = v2.Compose([v2.RandomResizedCrop(RESOLUTION, antialias=True), v2.RandomHorizontalFlip()])
    return image_folder(folder, settings, torchvision_loader, transform)


def dali(folder: Path, settings: BenchSettings, roi: bool) -> Epoch:
    """DALI on CPU, as in its ImageNet examples: whole decode, or decode of the crop alone."""
    from nvidia.dali import fn, pipeline_def, types

    @pipeline_def
    def pipeline() -> Any:
        jpegs, _ = fn.readers.file(file_root=str(folder / "train"), random_shuffle=True, name="reader")
        if roi:
            images = fn.decoders.image_random_crop(
                jpegs, output_type=types.RGB, random_area=[0.08, 1.0], random_aspect_ratio=[3 / 4, 4 / 3]
            )
            images = fn.resize(images, size=[RESOLUTION, RESOLUTION], interp_type=types.INTERP_LINEAR, antialias=True)
        else:
            images = fn.decoders.image(jpegs, output_type=types.RGB)
            images = fn.random_resized_crop(images, size=[RESOLUTION, RESOLUTION], antialias=True)
        return fn.flip(images, horizontal=fn.random.coin_flip())

    made = pipeline(batch_size=settings.batch_size, num_threads=settings.workers, device_id=None)
    made.build()
    batches = settings.images // settings.batch_size
    return lambda epoch: counted(made.run()[0].as_array() for _ in range(batches))


def stock_ffcv(beton: Path, settings: BenchSettings, training: bool) -> Epoch:
    """FFCV's Loader with its own decoders."""
    from ffcv.fields.decoders import CenterCropRGBImageDecoder, IntDecoder, RandomResizedCropRGBImageDecoder
    from ffcv.loader import Loader, OrderOption
    from ffcv.transforms import RandomHorizontalFlip, ToTensor

    size = (RESOLUTION, RESOLUTION)
    decoder = RandomResizedCropRGBImageDecoder(size) if training else CenterCropRGBImageDecoder(size, ratio=224 / 256)
    flip = [RandomHorizontalFlip()] if training else []
    loader = Loader(
        str(beton),
        batch_size=settings.batch_size,
        num_workers=settings.workers,
        order=OrderOption.QUASI_RANDOM if training else OrderOption.SEQUENTIAL,
        os_cache=True,
        drop_last=training,
        pipelines={"image": [decoder, *flip, ToTensor()], "label": [IntDecoder(), ToTensor()]},
    )
    return lambda epoch: counted(images for images, _ in loader)


def ffcv_q90(folder: Path, beton: Path, workers: int) -> None:
    """FFCV's own writer, as in its ImageNet example: JPEG at quality 90, which it subsamples 4:2:0."""
    from ffcv.fields import IntField, RGBImageField
    from ffcv.writer import DatasetWriter

    pictures = torchvision.datasets.ImageFolder(str(folder / "train"), loader=pil_loader)
    fields = {"image": RGBImageField(write_mode="jpg", jpeg_quality=90), "label": IntField()}
    DatasetWriter(str(beton), fields, num_workers=workers).from_indexed_dataset(pictures)


def counted(batches: Iterable[Any]) -> int:
    """The images in all batches."""
    return sum(len(images) for images in batches)


# --- ours


def ours(dataset: Path, settings: BenchSettings, name: str, training: bool = True) -> Epoch:
    """A loader of Sluice."""
    spec = LoaderSpec(
        split=open_split(dataset, "train"),
        batch_size=settings.batch_size,
        crop=CropPolicy(training=training),
        workers=settings.workers,
        max_resolution=RESOLUTION,
    )
    loader = loaders.create(name, spec)
    return lambda epoch: counted(batch.images for batch in loader.epoch(epoch, RESOLUTION))


def ceiling(dataset: Path, settings: BenchSettings) -> Epoch:
    """TurboJPEG alone, on all cores, on bytes that are cut out beforehand."""
    split = open_split(dataset, "train")
    policy = CropPolicy(training=True)
    parts = [cropped(split.samples[index].jpeg, policy, 0, 0, index)[0].tobytes() for index in range(split.num_samples)]
    pool = ThreadPoolExecutor(settings.workers)
    decode = partial(simplejpeg.decode_jpeg, colorspace="RGB", fastdct=False, fastupsample=False, strict=False)

    def share(number: int) -> int:
        mine = parts[number :: settings.workers]
        return len([decode(part).shape for part in mine])

    return lambda epoch: sum(pool.map(share, range(settings.workers)))


def variants(work: Path, settings: BenchSettings) -> dict[str, Callable[[], Epoch]]:
    """Everything that can be measured here, in the order of the table."""
    images, kept, tiled, q90 = work / "images", work / "kept", work / "tiled", work / "q90"
    made: dict[str, Callable[[], Epoch]] = {
        PIL: partial(pil, images, settings),
        TORCHVISION: partial(torchvision_v2, images, settings),
    }
    if importlib.util.find_spec("nvidia") and importlib.util.find_spec("nvidia.dali"):
        made[DALI] = partial(dali, images, settings, False)
        made[DALI_ROI] = partial(dali, images, settings, True)
        made["dali"] = partial(ours, tiled, settings, "dali")
    if importlib.util.find_spec("ffcv"):
        ffcv_q90(images, work / "ffcv.beton", settings.workers)
        made[STOCK] = partial(stock_ffcv, kept / "ffcv/train.beton", settings, True)
        made[STOCK_Q90] = partial(stock_ffcv, work / "ffcv.beton", settings, True)
        made[STOCK_EVAL] = partial(stock_ffcv, kept / "ffcv/train.beton", settings, False)
        made["ffcv"] = partial(ours, tiled, settings, "ffcv")
        made["ffcv, q90 tiles"] = partial(ours, q90, settings, "ffcv")
        made["ffcv, untiled"] = partial(ours, kept, settings, "ffcv")
        made["ffcv, evaluation"] = partial(ours, tiled, settings, "ffcv", False)
    made["torch"] = partial(ours, tiled, settings, "torch")
    made["webdataset"] = partial(ours, tiled, settings, "webdataset")
    made[CEILING] = partial(ceiling, tiled, settings)
    return made


def bench(settings: BenchSettings) -> dict[str, Any]:
    """The command."""
    logging.getLogger("pipeline").setLevel(logging.WARNING)
    with tempfile.TemporaryDirectory(prefix="bench-loaders-") as name:
        work = Path(name)
        lay_out(settings.data, work / "images", settings.images)
        for target, flags in (("kept", {"jpeg": "keep"}), ("tiled", {}), ("q90", {"quality": 90})):
            convert(ConvertSettings(src=(work / "images",), dst=work / target, splits=("train",), **flags))
        epochs = {variant: make() for variant, make in variants(work, settings).items()}
        rates: dict[str, list[float]] = {variant: [] for variant in epochs}
        for number in tqdm(range(settings.rounds + 1), desc="rounds", disable=None):
            for variant, run in epochs.items():
                started = time.perf_counter()
                count = run(number)
                if number:
                    rates[variant].append(count / (time.perf_counter() - started))
    found = report.machine()
    print(report.ratio_table("images/s", rates, COMPARED), report.machine_line(found), sep="\n\n")
    colours = dict.fromkeys(COMPARED, report.OURS) | {CEILING: report.CEILING}
    report.draw_bars(settings.out / "loaders.png", "images/s", rates, colours)
    report.write_json(
        settings.out / "loaders.json", {"machine": found, "images": settings.images, "images_per_s": rates}
    )
    medians = {variant: round(statistics.median(values)) for variant, values in rates.items()}
    return {"images": settings.images, "images_per_s": medians}


if __name__ == "__main__":
    sys.exit(run_command(bench, BenchSettings))
