"""Makes a small dataset in ImageNet's layout, so that every command can be tried without ImageNet.

The images are views of the photographs in the scikit-image wheel: nothing is downloaded. A photograph is a class; its
views differ in crop, perspective and light, and are stored in the mix of sizes, modes and chroma samplings that
ImageNet has. Training and validation views come from separate random streams, but from the same photographs: the
dataset shows that a training run works, not that a model generalises.

    python tools/make_demo_data.py --dst data/demo
"""

import functools
import importlib.util
import json
import logging
import math
import multiprocessing
import os
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image, ImageEnhance

from pipeline.errors import InputError
from pipeline.progress import counted

log = logging.getLogger(__name__)

# Class name -> its photographs in skimage/data, in class-index order. The motorcycle is a stereo pair.
# Drawings, binary images and pictures too small to fill a view are left out. So is grass.png, which resembles
# gravel.png: a ResNet-18 at 64 pixels got 22 of its 30 validation views wrong after four epochs.
PHOTOGRAPHS: dict[str, tuple[str, ...]] = {
    "astronaut": ("astronaut.png",),
    "brick wall": ("brick.png",),
    "cameraman": ("camera.png",),
    "cat": ("chelsea.png",),
    "coins": ("coins.png",),
    "cup of coffee": ("coffee.png",),
    "galaxies": ("hubble_deep_field.jpg",),
    "gravel": ("gravel.png",),
    "handwriting": ("text.png",),
    "moon": ("moon.png",),
    "motorcycle": ("motorcycle_left.png", "motorcycle_right.png"),
    "printed page": ("page.png",),
    "retina": ("retina.jpg",),
    "rocket": ("rocket.jpg",),
    "stained tissue": ("ihc.png",),
}
CLASSES: tuple[str, ...] = tuple(PHOTOGRAPHS)
# No WordNet noun has such an offset, so a demo class cannot be mistaken for one of ImageNet's.
WNIDS: tuple[str, ...] = tuple(f"n{90_000_001 + index}" for index in range(len(CLASSES)))

# Larger photographs are first reduced to this side: Image.transform samples without a low-pass filter, so strong
# reduction would alias.
LARGEST_SIDE = 768

Split = Literal["train", "val"]
Point = tuple[float, float]
Quad = tuple[Point, Point, Point, Point]

# First word of each random stream after the seed.
STREAMS: dict[str, int] = {"train": 0, "val": 1, "val order": 2}


@dataclass(frozen=True, kw_only=True)
class DemoSettings:
    """Make a small dataset in ImageNet's layout from the photographs in scikit-image."""

    dst: Path = Path("data/demo")
    """Directory to make; must not exist, unless it is a demo dataset with these arguments."""
    train_per_class: int = 120
    """Training images of each class."""
    val_per_class: int = 30
    """Validation images of each class."""
    seed: int = 0
    """Determines the views and all bytes, whatever the number of workers."""
    workers: int = os.cpu_count() or 1
    """Processes that render; default: one per CPU."""

    def __post_init__(self) -> None:
        for name, least in (("train_per_class", 1), ("val_per_class", 1), ("seed", 0), ("workers", 1)):
            if getattr(self, name) < least:
                flag = name.replace("_", "-")
                raise InputError(f"--{flag} is {getattr(self, name)}; it must be at least {least}")


@dataclass(frozen=True, kw_only=True)
class DemoImage:
    """One file of the dataset: its path, and the (split, class, number) that determine its view."""

    path: Path
    """Relative to the dataset."""
    split: Split
    class_index: int
    number: int
    """Counts from 1 within the split and class."""


@dataclass(frozen=True, kw_only=True)
class View:
    """Everything random about one image."""

    photograph: str
    size: tuple[int, int]
    """(width, height) of the image in pixels."""
    corners: Quad
    """The points of the photograph at the image's corners, in pixels, clockwise from top left."""
    brightness: float
    contrast: float
    saturation: float
    white_balance: tuple[float, float, float]
    """Gains of red, green and blue."""
    grey: bool
    """Stored with one component."""
    subsampling: str
    """Chroma sampling of a colour image, as Pillow names it."""
    quality: int


def plan(settings: DemoSettings) -> list[DemoImage]:
    """All images, training first by class and number, then validation in file-name order."""
    return _plan_train(settings.train_per_class) + _plan_val(settings.val_per_class, settings.seed)


def _plan_train(per_class: int) -> list[DemoImage]:
    return [
        DemoImage(path=Path("train", wnid, f"{wnid}_{number}.JPEG"), split="train", class_index=index, number=number)
        for index, wnid in enumerate(WNIDS)
        for number in range(1, per_class + 1)
    ]


def _plan_val(per_class: int, seed: int) -> list[DemoImage]:
    """ImageNet's validation names say nothing about the class, so the classes are shuffled over them."""
    views = [(index, number) for index in range(len(CLASSES)) for number in range(1, per_class + 1)]
    order = np.random.default_rng((seed, STREAMS["val order"])).permutation(len(views))
    return [
        DemoImage(
            path=Path("val", f"ILSVRC2012_val_{position:08d}.JPEG"),
            split="val",
            class_index=views[chosen][0],
            number=views[chosen][1],
        )
        for position, chosen in enumerate(order, start=1)
    ]


def photograph_directory() -> Path:
    """skimage/data of the installed wheel, located without importing skimage or using its downloader."""
    spec = importlib.util.find_spec("skimage")
    if spec is None or not spec.submodule_search_locations:
        raise InputError("the photographs come with scikit-image, which is missing: pip install scikit-image")
    directory = Path(spec.submodule_search_locations[0], "data")
    for name in (name for names in PHOTOGRAPHS.values() for name in names):
        if not (directory / name).is_file():
            raise InputError(f"{directory / name} is missing: pip install --force-reinstall scikit-image")
    return directory


@functools.cache
def load_photograph(name: str) -> Image.Image:
    """The photograph in RGB, at most LARGEST_SIDE a side, without the file's metadata."""
    with Image.open(photograph_directory() / name) as stored:
        photograph: Image.Image = stored.convert("RGB")
    photograph.thumbnail((LARGEST_SIDE, LARGEST_SIDE), Image.Resampling.LANCZOS)
    photograph.info.clear()  # JPEG comments would be copied into every view
    return photograph


def draw_view(seed: int, split: Split, class_index: int, number: int) -> View:
    """The view of image `number` of a class; a function of the arguments alone."""
    rng = np.random.default_rng((seed, STREAMS[split], class_index, number))
    photograph = str(rng.choice(PHOTOGRAPHS[CLASSES[class_index]]))
    size = _draw_size(rng)
    return View(
        photograph=photograph,
        size=size,
        corners=_draw_corners(rng, load_photograph(photograph).size, size),
        brightness=rng.uniform(0.75, 1.25),
        contrast=rng.uniform(0.8, 1.2),
        saturation=rng.uniform(0.7, 1.3),
        white_balance=(rng.uniform(0.92, 1.08), rng.uniform(0.96, 1.04), rng.uniform(0.92, 1.08)),
        grey=bool(rng.random() < 0.05),
        subsampling="4:4:4" if rng.random() < 0.3 else "4:2:0",
        quality=int(rng.integers(85, 96)),
    )


def _draw_size(rng: np.random.Generator) -> tuple[int, int]:
    """(width, height) around ImageNet's usual 500 x 375, a quarter of them portrait, odd as often as even."""
    long, short = int(rng.integers(430, 571)), int(rng.integers(320, 431))
    return (short, long) if rng.random() < 0.25 else (long, short)


def _draw_corners(rng: np.random.Generator, photograph: tuple[int, int], size: tuple[int, int]) -> Quad:
    """A quadrangle inside the photograph: a box of about the image's proportions with its corners moved.

    The box covers 40 to 90 % of the photograph's area, or less where the proportions leave no room. Each corner is
    moved by up to 7 % of the box's sides, which gives the perspective.
    """
    limit_x, limit_y = photograph
    proportion = size[0] / size[1] * rng.uniform(0.85, 1.18)
    area = rng.uniform(0.4, 0.9) * limit_x * limit_y
    width, height = math.sqrt(area * proportion), math.sqrt(area / proportion)
    shrink = min(1.0, limit_x / width, limit_y / height)
    width, height = width * shrink, height * shrink
    left, top = rng.random() * (limit_x - width), rng.random() * (limit_y - height)

    def moved(x: float, y: float) -> Point:
        x += width * rng.uniform(-0.07, 0.07)
        y += height * rng.uniform(-0.07, 0.07)
        return min(max(x, 0.0), limit_x), min(max(y, 0.0), limit_y)

    right, bottom = left + width, top + height
    return moved(left, top), moved(right, top), moved(right, bottom), moved(left, bottom)


def perspective(size: tuple[int, int], corners: Quad) -> tuple[float, ...]:
    """The eight coefficients for Image.transform that map the quadrangle `corners` to an image of `size`.

    The unit square's projective map in closed form (Heckbert, Fundamentals of Texture Mapping and Image Warping, 1989,
    section 2.2.3) rather than a linear solve: LAPACK's last bits differ between CPUs, and so would the dataset's
    bytes.
    """
    (x0, y0), (x1, y1), (x2, y2), (x3, y3) = corners
    dx1, dx2, sx = x1 - x2, x3 - x2, x0 - x1 + x2 - x3
    dy1, dy2, sy = y1 - y2, y3 - y2, y0 - y1 + y2 - y3
    determinant = dx1 * dy2 - dx2 * dy1
    assert determinant != 0, corners
    g, h = (sx * dy2 - dx2 * sy) / determinant, (dx1 * sy - sx * dy1) / determinant
    width, height = size
    return (
        (x1 - x0 + g * x1) / width,
        (x3 - x0 + h * x3) / height,
        x0,
        (y1 - y0 + g * y1) / width,
        (y3 - y0 + h * y3) / height,
        y0,
        g / width,
        h / height,
    )


def render(view: View) -> Image.Image:
    """The image of a view, mode RGB or L."""
    image = load_photograph(view.photograph).transform(
        view.size,
        Image.Transform.PERSPECTIVE,
        perspective(view.size, view.corners),
        Image.Resampling.BICUBIC,
    )
    image = ImageEnhance.Color(image).enhance(view.saturation)
    image = ImageEnhance.Contrast(image).enhance(view.contrast)
    gains = [view.brightness * channel for channel in view.white_balance]
    image = image.point([min(255, round(value * gain)) for gain in gains for value in range(256)])
    return image.convert("L") if view.grey else image


def write_image(root: Path, seed: int, image: DemoImage) -> None:
    """Draw, render and store one image as a baseline JPEG."""
    view = draw_view(seed, image.split, image.class_index, image.number)
    chroma = {} if view.grey else {"subsampling": view.subsampling}
    render(view).save(root / image.path, format="JPEG", quality=view.quality, **chroma)


def write_images(root: Path, settings: DemoSettings, images: list[DemoImage]) -> None:
    """Store all images with `settings.workers` processes."""
    for directory in sorted({image.path.parent for image in images}):
        (root / directory).mkdir(parents=True)
    write = functools.partial(write_image, root, settings.seed)
    with _mapper(min(settings.workers, len(images))) as mapped:
        for _ in counted(mapped(write, images), "images", len(images), "images"):
            pass


@contextmanager
def _mapper(workers: int) -> Iterator[Any]:
    """`map` over so many processes; with one worker in this process.

    They are spawned, not forked: the caller may have threads, and a fork copies their locks.
    """
    if workers == 1:
        yield map
        return
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield functools.partial(pool.map, chunksize=16)


def marker(settings: DemoSettings) -> str:
    """The text of demo.json: the arguments that the bytes depend on, without `dst` and `workers`."""
    arguments = {name: value for name, value in asdict(settings).items() if name not in ("dst", "workers")}
    return json.dumps(arguments, indent=2) + "\n"


def synset_mapping() -> str:
    """Lines of `<wnid> <class name>` in class-index order, as in Kaggle's LOC_synset_mapping.txt."""
    return "".join(f"{wnid} {name}\n" for wnid, name in zip(WNIDS, CLASSES, strict=True))


def write_tables(root: Path, settings: DemoSettings, images: list[DemoImage]) -> None:
    """Store the validation labels, the class names and the marker."""
    labels = "".join(f"{WNIDS[image.class_index]}\n" for image in images if image.split == "val")
    (root / "val_synset_labels.txt").write_text(labels)
    (root / "LOC_synset_mapping.txt").write_text(synset_mapping())
    (root / "demo.json").write_text(marker(settings))


def is_complete(root: Path, settings: DemoSettings, images: list[DemoImage]) -> bool:
    """Whether `root` is a demo dataset with these arguments and all its images."""
    stored = root / "demo.json"
    return (
        stored.is_file()
        and stored.read_bytes() == marker(settings).encode()
        and all((root / image.path).is_file() for image in images)
    )


@contextmanager
def complete_directory(dst: Path) -> Iterator[Path]:
    """A new directory next to `dst`, renamed to `dst` when the block succeeds and removed otherwise."""
    try:
        dst.parent.mkdir(parents=True, exist_ok=True)
        scratch = tempfile.TemporaryDirectory(prefix=f".{dst.name}-", dir=dst.parent)
    except OSError as error:
        raise InputError(f"{dst} cannot be created: {error.strerror}; choose another --dst") from None
    with scratch as parent:
        # One level below, because other users cannot enter the directory that tempfile makes.
        root = Path(parent, dst.name)
        root.mkdir()
        yield root
        root.rename(dst)


def make_demo_data(settings: DemoSettings) -> dict[str, Any]:
    """Make the dataset, unless it exists already.

    Returns the numbers of images and classes, the size of the images in bytes and the duration in seconds. Raises
    InputError if `settings.dst` is something else or scikit-image is missing.
    """
    start = time.perf_counter()
    images = plan(settings)
    if os.path.lexists(settings.dst):
        if not is_complete(settings.dst, settings, images):
            raise InputError(
                f"{settings.dst} exists and is not a complete demo dataset with these arguments; "
                "choose another --dst or remove it"
            )
        log.info("%s exists already, complete and with the same arguments; nothing to do", settings.dst)
    else:
        photograph_directory()  # raises before anything is written
        log.info("%s", synset_mapping().rstrip())
        with complete_directory(settings.dst) as root:
            write_images(root, settings, images)
            write_tables(root, settings, images)
    return {
        "train": sum(image.split == "train" for image in images),
        "val": sum(image.split == "val" for image in images),
        "classes": len(CLASSES),
        "bytes": sum((settings.dst / image.path).stat().st_size for image in images),
        "seconds": round(time.perf_counter() - start, 2),
    }
