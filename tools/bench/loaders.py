"""Compare Sluice's loaders with their peers: same images, same output, in turn, in one run.

    python tools/bench_loaders.py --data data/imagenet

`--data` is an ImageNet folder or a converted dataset. Its training images are converted as each variant needs them,
into a temporary folder. All yield batches of uint8 at 224 x 224 on the CPU: RandomResizedCrop and flip, or a centre
crop in evaluation. Each runs an epoch in turn, `--rounds` times after a first epoch that is not counted. The table
shows medians of images/s and their quartiles; all measurements and a bar chart go to `--out`.
"""

import contextlib
import ctypes
import importlib.util
import logging
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg
import torch
import torchvision
from PIL import Image
from torch.utils.data import DataLoader
from torchvision.transforms import v2

from pipeline import loaders
from pipeline.contract import CPU, Decoder, Loader, LoaderSpec
from pipeline.conversion.convert import convert
from pipeline.conversion.finding import SourceFlags, open_source
from pipeline.conversion.settings import ConvertSettings
from pipeline.errors import InputError
from pipeline.order.crops import Crop, CropPolicy
from pipeline.pixels.jpeg.crop import crop
from pipeline.pixels.jpeg.headers import read_header
from pipeline.progress import counted
from pipeline.storage.remote.settings import CacheSettings, Order, RemoteSettings
from pipeline.storage.split import open_split
from tools.bench import report

log = logging.getLogger(__name__)

RESOLUTION = 224
TRAINING = CropPolicy(training=True)
Epoch = Callable[[int], int]
"""Runs the epoch of this number; returns the number of its images."""
Batches = Callable[[int], Iterable[Any]]
"""The images of each batch of the epoch of this number."""

STOCK, STOCK_Q90, STOCK_EVAL = "FFCV, original bytes", "FFCV, its own q90", "FFCV CenterCrop, original bytes"
TORCHVISION, PIL, DALI, DALI_ROI = "torchvision + DataLoader", "PIL + DataLoader", "DALI", "DALI, ROI decode"
SPDL, REGION = "SPDL", "FFCV with region decode, emulated"
CEILING = "TurboJPEG alone on the cut bytes"
CACHED, CACHED_GLOBAL = "webdataset, a stream from a warm cache", "webdataset, --order global from a warm cache"
COMPARED = {
    "ffcv": (STOCK, REGION, CEILING),
    "ffcv, --decoder turbojpeg": (STOCK,),
    "ffcv, q90 tiles": (STOCK_Q90,),
    "ffcv, untiled": (STOCK,),
    "torch": (TORCHVISION, CEILING),
    "webdataset": (TORCHVISION, CEILING),
    CACHED: ("webdataset",),
    CACHED_GLOBAL: ("webdataset",),
    "dali": (DALI_ROI, CEILING),
    "ffcv, evaluation": (STOCK_EVAL,),
}


TILED: dict[str, Any] = {"shard_size": "4MB"}  # so many shards that a stream has enough lanes for its workers
STREAMED: dict[str, Order] = {CACHED: "stream", CACHED_GLOBAL: "global"}


@dataclass(frozen=True, kw_only=True)
class BenchSettings:
    """Compare Sluice's loaders with their peers."""

    data: Path = Path("data/imagenet")
    """Folder of ImageNet's images or archives, or a converted dataset."""
    out: Path = Path("runs/bench-loaders")
    """Where loaders.json and the bar chart loaders.png go."""
    images: int = 1200
    """Images per epoch; if there are fewer, they are repeated."""
    rounds: int = 7
    """Measured epochs of each variant."""
    batch_size: int = 64
    """Images per batch."""
    workers: int = len(os.sched_getaffinity(0))
    """Threads or processes of each variant."""
    only: str | None = None
    """Measure only the variants whose names begin with this, such as webdataset."""


def write_images(data: Path, folder: Path, images: int) -> None:
    """Fill folder/train/<class>/ with `images` training images, repeated if there are fewer."""
    source = open_source(SourceFlags((data,), ("train",), None, None, 0))
    listing = source.splits["train"]
    for number in range(images):
        index = number % len(listing)
        path = folder / "train" / source.classes[listing.labels[index]] / f"{number:07d}.JPEG"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(listing.read(index))


# --- peers


def pil_loader(path: str) -> Image.Image:
    """Decode as torchvision's ImageFolder does."""
    with open(path, "rb") as file:
        return Image.open(file).convert("RGB")


def torchvision_loader(path: str) -> torch.Tensor:
    """Decode to uint8 [3, H, W]."""
    data = torchvision.io.read_file(path)
    image: torch.Tensor = torchvision.io.decode_jpeg(data, mode=torchvision.io.ImageReadMode.RGB)
    return image


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
    return lambda epoch: count_images(images for images, _ in batches)


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
    """DALI on the CPU."""
    return whole_epochs(dali_batches(folder, settings, roi))


def dali_batches(
    folder: Path, settings: BenchSettings, roi: bool, device: torch.device = CPU, hardware_share: float = 0.65
) -> Batches:
    """DALI as in its ImageNet examples: decodes whole images, or with `roi` only the crop. On a GPU, its JPEG engine
    decodes `hardware_share` of the whole images, where it has one, and all else is done there too."""
    from nvidia.dali import fn, pipeline_def, types

    on_gpu = device.type == "cuda"
    decoder = "mixed" if on_gpu else "cpu"

    @pipeline_def
    def pipeline() -> Any:
        jpegs, _ = fn.readers.file(file_root=str(folder / "train"), random_shuffle=True, name="reader")
        if roi:
            images = fn.decoders.image_random_crop(
                jpegs, device=decoder, output_type=types.RGB, random_area=[0.08, 1.0],
                random_aspect_ratio=[3 / 4, 4 / 3],
            )  # fmt: skip
            images = fn.resize(images, size=[RESOLUTION, RESOLUTION], interp_type=types.INTERP_LINEAR, antialias=True)
        else:
            images = fn.decoders.image(jpegs, device=decoder, output_type=types.RGB, hw_decoder_load=hardware_share)
            images = fn.random_resized_crop(images, size=[RESOLUTION, RESOLUTION], antialias=True)
        return fn.flip(images, horizontal=fn.random.coin_flip())

    device_id = device.index or 0 if on_gpu else None
    built = pipeline(batch_size=settings.batch_size, num_threads=settings.workers, device_id=device_id)
    built.build()
    batches = settings.images // settings.batch_size
    if on_gpu:
        return lambda epoch: _run_dali(built, batches)  # as they are, on the device
    return lambda epoch: (images.as_array() for images in _run_dali(built, batches))


def _run_dali(pipeline: Any, batches: int) -> Iterator[Any]:
    """The results of so many batches of a pipeline. `run()` would also start the next ones: they would be made in the
    time of whatever is measured next, and be ready in this pipeline's next epoch."""
    ahead = min(2, batches)  # DALI's default
    for _ in range(ahead):
        pipeline.schedule_run()
    for number in range(batches):
        yield pipeline.share_outputs()[0]
        pipeline.release_outputs()
        if number + ahead < batches:
            pipeline.schedule_run()


def spdl(folder: Path, settings: BenchSettings) -> Epoch:
    """SPDL's pipeline of threads; FFmpeg decodes, crops and resizes. The crops are those of Sluice's loaders."""
    import spdl.io
    from spdl.pipeline import PipelineBuilder

    numbers = {str(path): number for number, path in enumerate(sorted((folder / "train").glob("*/*.JPEG")))}

    def load(path: str, epoch: int) -> Any:
        packets = spdl.io.demux_image(path)
        crop = TRAINING.crop(0, epoch, numbers[path], packets.height, packets.width, RESOLUTION)
        steps = [f"crop={crop.width}:{crop.height}:{crop.left}:{crop.top}:exact=1"]
        steps += [f"scale={RESOLUTION}:{RESOLUTION}:flags=bilinear", *(["hflip"] if crop.flip else []), "format=rgb24"]
        return spdl.io.decode_packets(packets, filter_desc=",".join(steps))

    def run(epoch: int) -> int:
        order = torch.randperm(len(numbers), generator=torch.Generator().manual_seed(epoch)).tolist()
        builder = PipelineBuilder().add_source([list(numbers)[number] for number in order])
        builder.pipe(partial(load, epoch=epoch), concurrency=settings.workers, output_order="completion")
        builder.aggregate(settings.batch_size).pipe(lambda frames: spdl.io.to_numpy(spdl.io.convert_frames(frames)))
        pipeline = builder.add_sink(2).build(num_threads=settings.workers)
        with pipeline.auto_stop():
            return count_images(pipeline.get_iterator())

    return run


def has_spdl() -> bool:
    """Whether SPDL is installed (`pip install spdl`), and the FFmpeg that it loads (Debian's libavdevice59)."""
    if importlib.util.find_spec("spdl") is None:
        return False
    from spdl.io.utils import set_ffmpeg_log_level

    try:
        set_ffmpeg_log_level(16)  # errors only
    except (ImportError, OSError, RuntimeError) as error:
        log.warning("without SPDL: %s", str(error).partition("\n")[0])
        return False
    return True


def has_jpeg_headers() -> bool:
    """Whether C can be compiled against libjpeg-turbo, which building FFCV takes as well."""
    return shutil.which("cc") is not None and Path("/usr/include/jpeglib.h").exists()


def region_decode(dataset: Path, work: Path, settings: BenchSettings) -> Epoch:
    """The decoding that FFCV's pull request 391 proposes, and OpenCV's INTER_AREA, with which FFCV resizes, in threads:
    all that FFCV does for an image beyond handing it over. Compiles region_decode.c with the system's libjpeg-turbo."""
    import cv2

    library = work / "region_decode.so"
    source = Path(__file__).with_name("region_decode.c")
    subprocess.run(["cc", "-O2", "-shared", "-fPIC", source, "-o", library, "-ljpeg"], check=True, capture_output=True)
    decode = ctypes.CDLL(str(library)).decode_region
    samples = open_split(dataset, "train").samples
    jpegs = [samples[index].jpeg for index in range(len(samples))]
    images = np.empty((len(jpegs), RESOLUTION, RESOLUTION, 3), np.uint8)
    pool = ThreadPoolExecutor(settings.workers)
    cv2.setNumThreads(1)

    def load(index: int, epoch: int) -> None:
        jpeg, first = jpegs[index], ctypes.c_int()
        top, left, height, width, _, flip, _ = training_crop(jpeg, epoch, index)
        pixels = np.empty(height * (width + 64) * 3, np.uint8)
        columns = decode(
            jpeg, ctypes.c_ulong(len(jpeg)), top, left, height, width, ctypes.c_void_p(pixels.ctypes.data),
            ctypes.byref(first),
        )  # fmt: skip
        region = pixels[: height * columns * 3].reshape(height, columns, 3)
        region = region[:, left - first.value : left - first.value + width]
        resized = cv2.resize(region, (RESOLUTION, RESOLUTION), interpolation=cv2.INTER_AREA)
        images[index] = resized[:, ::-1] if flip else resized

    return lambda epoch: len(list(pool.map(partial(load, epoch=epoch), range(len(jpegs)))))


def stock_ffcv(beton: Path, settings: BenchSettings, training: bool) -> Epoch:
    """FFCV on the CPU."""
    return whole_epochs(ffcv_batches(beton, settings, training))


def ffcv_batches(beton: Path, settings: BenchSettings, training: bool, device: torch.device = CPU) -> Batches:
    """FFCV's Loader with its own decoders, and its own copy to a GPU."""
    _restrain_ffcv()
    from ffcv.fields.decoders import CenterCropRGBImageDecoder, IntDecoder, RandomResizedCropRGBImageDecoder
    from ffcv.loader import Loader, OrderOption
    from ffcv.transforms import RandomHorizontalFlip, ToDevice, ToTensor

    size = (RESOLUTION, RESOLUTION)
    decoder = RandomResizedCropRGBImageDecoder(size) if training else CenterCropRGBImageDecoder(size, ratio=224 / 256)
    flip = [RandomHorizontalFlip()] if training else []
    to_device = [ToDevice(device, non_blocking=True)] if device.type == "cuda" else []
    loader = Loader(
        str(beton),
        batch_size=settings.batch_size,
        num_workers=settings.workers,
        order=OrderOption.QUASI_RANDOM if training else OrderOption.SEQUENTIAL,
        os_cache=True,
        drop_last=training,
        pipelines={
            "image": [decoder, *flip, ToTensor(), *to_device],
            "label": [IntDecoder(), ToTensor(), *to_device],
        },
    )
    return lambda epoch: (images for images, _ in loader)


def _restrain_ffcv() -> None:
    """Import FFCV as the loader does: then it does not change numba's types, nor start numba's threads at once."""
    loaders.load("ffcv")


def write_ffcv_q90(folder: Path, beton: Path, workers: int) -> None:
    """Write with FFCV's own writer, as in its ImageNet example: JPEG at quality 90, subsampled 4:2:0."""
    _restrain_ffcv()
    from ffcv.fields import IntField, RGBImageField
    from ffcv.writer import DatasetWriter

    images = torchvision.datasets.ImageFolder(str(folder / "train"), loader=pil_loader)
    fields = {"image": RGBImageField(write_mode="jpg", jpeg_quality=90), "label": IntField()}
    DatasetWriter(str(beton), fields, num_workers=workers).from_indexed_dataset(images)


def count_images(batches: Iterable[Any]) -> int:
    """Consume batches and count their images."""
    return sum(len(images) for images in batches)


def whole_epochs(batches: Batches) -> Epoch:
    """Epochs whose batches are consumed."""
    return lambda epoch: count_images(batches(epoch))


# --- Sluice's loaders


def sluice(
    dataset: Path | str,
    settings: BenchSettings,
    name: str,
    training: bool = True,
    decoder: Decoder = "auto",
    remote: RemoteSettings = RemoteSettings(),  # noqa: B008 (it is immutable)
) -> Epoch:
    """A loader of Sluice."""
    return whole_epochs(sluice_batches(loaders.create(name, sluice_spec(dataset, settings, training, decoder, remote))))


def sluice_spec(
    dataset: Path | str,
    settings: BenchSettings,
    training: bool = True,
    decoder: Decoder = "auto",
    remote: RemoteSettings = RemoteSettings(),  # noqa: B008 (it is immutable)
    device: torch.device = CPU,
) -> LoaderSpec:
    """What a loader of Sluice is to do."""
    return LoaderSpec(
        split=open_split(dataset, "train", remote),
        batch_size=settings.batch_size,
        crop=CropPolicy(training=training),
        workers=settings.workers,
        max_resolution=RESOLUTION,
        decoder=decoder,
        device=device,
    )


def sluice_batches(loader: Loader) -> Batches:
    """The batches of a loader of Sluice."""
    return lambda epoch: (batch.images for batch in loader.epoch(epoch, RESOLUTION))


@contextlib.contextmanager
def served(folder: Path) -> Iterator[str]:
    """The address of a web server for a folder: Python's own, in a process of its own."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "http.server", "--bind", "127.0.0.1", "--directory", str(folder), str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.kill()
        server.wait()


def cached(folder: Path, order: Order) -> RemoteSettings:
    """A cache with room for everything; the first epoch, which is not counted, fills it."""
    return RemoteSettings(cache=CacheSettings(folder, 1 << 40), order=order)


def training_crop(jpeg: bytes, epoch: int, index: int) -> Crop:
    """The crop that Sluice's loaders take of a sample."""
    header = read_header(jpeg)
    return TRAINING.crop(0, epoch, index, header.height, header.width, RESOLUTION)


def ceiling(dataset: Path, settings: BenchSettings) -> Epoch:
    """TurboJPEG alone, on all cores, on tiles that were cut out beforehand."""
    split = open_split(dataset, "train")
    parts = [
        crop(jpeg, training_crop(jpeg, 0, index).box)[0].tobytes()
        for index, (jpeg, _) in enumerate(split.samples[index] for index in range(split.num_samples))
    ]
    pool = ThreadPoolExecutor(settings.workers)
    decode = partial(simplejpeg.decode_jpeg, colorspace="RGB", fastdct=False, fastupsample=False, strict=False)

    def decode_share(worker: int) -> int:
        share = parts[worker :: settings.workers]
        return len([decode(part).shape for part in share])

    return lambda epoch: sum(pool.map(decode_share, range(settings.workers)))


def variants(work: Path, address: str, settings: BenchSettings) -> dict[str, Callable[[], Epoch]]:
    """Everything that can be measured here, in the order of the table."""
    images, kept, tiled, q90 = work / "images", work / "kept", work / "tiled", work / "q90"
    makers: dict[str, Callable[[], Epoch]] = {
        PIL: partial(pil, images, settings),
        TORCHVISION: partial(torchvision_v2, images, settings),
    }
    if has_spdl():
        makers[SPDL] = partial(spdl, images, settings)
    if importlib.util.find_spec("nvidia") and importlib.util.find_spec("nvidia.dali"):
        makers[DALI] = partial(dali, images, settings, False)
        makers[DALI_ROI] = partial(dali, images, settings, True)
        makers["dali"] = partial(sluice, tiled, settings, "dali")
    if importlib.util.find_spec("ffcv"):
        write_ffcv_q90(images, work / "ffcv.beton", settings.workers)
        makers[STOCK] = partial(stock_ffcv, kept / "ffcv/train.beton", settings, True)
        makers[STOCK_Q90] = partial(stock_ffcv, work / "ffcv.beton", settings, True)
        makers[STOCK_EVAL] = partial(stock_ffcv, kept / "ffcv/train.beton", settings, False)
        if has_jpeg_headers():
            makers[REGION] = partial(region_decode, kept, work, settings)
        makers["ffcv"] = partial(sluice, tiled, settings, "ffcv")
        makers["ffcv, --decoder turbojpeg"] = partial(sluice, tiled, settings, "ffcv", decoder="turbojpeg")
        makers["ffcv, q90 tiles"] = partial(sluice, q90, settings, "ffcv")
        makers["ffcv, untiled"] = partial(sluice, kept, settings, "ffcv")
        makers["ffcv, evaluation"] = partial(sluice, tiled, settings, "ffcv", False)
    makers["torch"] = partial(sluice, tiled, settings, "torch")
    makers["webdataset"] = partial(sluice, tiled, settings, "webdataset")
    for name, order in STREAMED.items():
        remote = cached(work / f"cache-{order}", order)
        makers[name] = partial(sluice, address, settings, "webdataset", remote=remote)
    makers[CEILING] = partial(ceiling, tiled, settings)
    return makers


def bench(settings: BenchSettings) -> dict[str, Any]:
    """The command."""
    for chatty in ("pipeline", "spdl"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    with contextlib.ExitStack() as opened:
        work = Path(opened.enter_context(tempfile.TemporaryDirectory(prefix="bench-loaders-")))
        log.info("preparing %d images for each variant", settings.images)
        write_images(settings.data, work / "images", settings.images)
        for target, flags in (("kept", {"jpeg": "keep"}), ("tiled", TILED), ("q90", {"quality": 90})):
            convert(ConvertSettings(src=(work / "images",), dst=work / target, splits=("train",), **flags))
        address = opened.enter_context(served(work / "tiled"))
        makers = variants(work, address, settings)
        epochs = {variant: make() for variant, make in makers.items() if variant.startswith(settings.only or "")}
        if not epochs:
            raise InputError(f"--only {settings.only}: there are {', '.join(makers)}")
        rates: dict[str, list[float]] = {variant: [] for variant in epochs}
        turns = [(number, variant) for number in range(settings.rounds + 1) for variant in epochs]
        for number, variant in counted(turns, "epochs of all loaders", len(turns), "epochs"):
            started = time.perf_counter()
            count = epochs[variant](number)
            if number:
                rates[variant].append(count / (time.perf_counter() - started))
    machine = report.machine()
    print(report.ratio_table("images/s", rates, COMPARED), report.machine_line(machine), sep="\n\n")
    colours = dict.fromkeys(COMPARED, report.OURS) | {CEILING: report.CEILING}
    report.draw_bars(settings.out / "loaders.png", "images/s", rates, colours)
    report.write_json(
        settings.out / "loaders.json", {"machine": machine, "images": settings.images, "images_per_s": rates}
    )
    medians = {variant: round(statistics.median(values)) for variant, values in rates.items()}
    return {"images": settings.images, "images_per_s": medians}
