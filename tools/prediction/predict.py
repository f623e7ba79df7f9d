"""The classes that a trained model sees in images, as a table, as CSV or JSON lines, and as a sheet of pictures."""

import logging
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tyro
from PIL import Image

from pipeline.errors import one_line
from pipeline.storage.folder import in_words, list_files
from pipeline.storage.split import Split
from pipeline.verification.contact_sheet import INK
from train import finished, sheet
from train.device import DeviceName, configure_math
from train.finished import Finished
from train.predictions import TOP, Collector, Predictions, check_path, rows, save, write_csv, write_json_lines
from train.progress import evaluation_progress
from train.sheet import Line, Section, Tile

log = logging.getLogger(__name__)

LOADER = "threads"
SIDE = 176  # pixels of an image on the sheet


@dataclass(frozen=True, kw_only=True)
class PredictSettings:
    """Predict the classes of images with a trained model. They are cropped and decoded as in its evaluation."""

    checkpoint: tyro.conf.Positional[Path]
    """Checkpoint of a run, or with --model a file of weights."""
    images: tyro.conf.Positional[tuple[Path, ...]]
    """Files, and folders, whose images are taken with those in the folders below."""
    model: str | None = None
    """As --model of train/run.py; default: the checkpoint's."""
    top: int = TOP
    """Classes of each image, the most likely first."""
    format: Literal["table", "csv", "jsonl"] | None = None
    """On stdout; default: a table, or nothing with --out. After csv and jsonl there is no result line."""
    out: Path | None = None
    """File for the predictions, .csv or .jsonl."""
    sheet: Path | None = None
    """PNG to draw the images with their predictions to."""
    sheet_images: int = 64
    """Images on the sheet: the first ones."""
    val_crop: int | None = None
    """As --val-crop of train/run.py; default: as in the checkpoint's evaluation."""
    val_resize: int | None = None
    """As --val-resize of train/run.py; default: as in the checkpoint's evaluation."""
    val_flip: bool = False
    """Average the logits of each image and its mirror image."""
    amp: Literal["off", "bf16", "fp16"] = "off"
    """Mixed precision."""
    device: DeviceName = "auto"
    batch_size: int = 64
    workers: int = len(os.sched_getaffinity(0))
    """Loading threads."""

    def __post_init__(self) -> None:
        for name in ("top", "sheet_images", "batch_size", "workers"):
            if getattr(self, name) < 1:
                raise ValueError(f"--{name.replace('_', '-')} {getattr(self, name)}: must be at least 1")
        if self.format and self.out:
            raise ValueError(f"--format {self.format}: is for stdout; with --out, the file's name says it")
        if not self.images:
            raise ValueError("no images are named: give files or a folder after the checkpoint")


def predict(settings: PredictSettings) -> dict[str, Any] | None:
    """The command. Raises InputError."""
    if settings.out:
        check_path("--out", settings.out)
    configure_math(deterministic=False)
    split = images_of(settings.images)
    model = open_model(settings)
    predictions, kept = predict_images(model, split, settings)
    write(predictions, model, split, settings)
    if settings.sheet:
        sheet.save(draw(predictions, kept, model, split), settings.sheet, "--sheet")
    if settings.format in ("csv", "jsonl"):
        return None
    files = {name: str(path) for name in ("out", "sheet") if (path := getattr(settings, name))}
    return {"images": len(predictions), "weights": model.weights, **files}


def images_of(paths: tuple[Path, ...]) -> Split:
    """The images at these paths, without labels, as a split. Raises InputError."""
    listing = list_files(paths)
    if listing.passed_over:
        log.info("%s", in_words(listing.passed_over))
    return Split("images", Path(), (), listing=listing)


def open_model(settings: PredictSettings) -> Finished:
    """The model of a checkpoint, or of a file of weights whose --model is given. Raises InputError."""
    return finished.load(
        settings.checkpoint,
        settings.model,
        val_crop=settings.val_crop,
        val_resize=settings.val_resize,
        val_flip=settings.val_flip,
        amp=settings.amp,
        device=settings.device,
        batch_size=settings.batch_size,
        workers=settings.workers,
    )


def predict_images(model: Finished, split: Split, settings: PredictSettings) -> tuple[Predictions, list[np.ndarray]]:
    """What the model says of the images of a split, and the first of them as it sees them, uint8 [R, R, 3]: as many as
    the sheet has."""
    process, kept = model.process, list[np.ndarray]()
    wanted = settings.sheet_images if settings.sheet else 0
    collector = Collector(split.num_samples, process.device, settings.top)
    outputs = len(model.classes)
    with process.open_loader(LOADER, split, training=False) as opened:
        batches = opened.loader.epoch(0, process.validation_resolution)
        for batch in evaluation_progress(batches, opened.loader.batches_per_epoch, what="prediction"):
            logits = model.logits(batch.images)
            outputs = logits.shape[1]
            collector.add(logits, batch.labels, batch.indices)
            for image in batch.images[: wanted - len(kept)].cpu():
                kept.append(sheet.fitted(image.permute(1, 2, 0).numpy(), SIDE))
    return collector.result(outputs), kept


def write(predictions: Predictions, model: Finished, split: Split, settings: PredictSettings) -> None:
    """To --out, or to stdout as --format says. Raises InputError."""
    found = rows(predictions, model.classes, split.samples.name, labelled=False)
    if settings.out:
        save(found, settings.out, "--out")
    elif settings.format == "jsonl":
        write_json_lines(sys.stdout, found)
    elif settings.format == "csv":
        print_csv(found)
    else:
        print_table(found)


def print_csv(found: Iterator[dict[str, Any]]) -> None:
    """On stdout. A file's name may be any bytes, stdout takes UTF-8."""
    write_csv(sys.stdout, ({**row, "image": _printable(row["image"])} for row in found))


def print_table(found: Iterator[dict[str, Any]]) -> None:
    """On stdout: for each image, the probability of each class in percent, and its name."""
    for row in found:
        print(one_line(_printable(row["image"])))
        for one in row["top"]:
            class_name, title = one["class"], one["name"]
            shown = title if title == class_name else f"{title} ({class_name})"
            print(f"  {100 * one['probability']:6.2f} %  {one_line(shown)}")


def _printable(name: str) -> str:
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def draw(predictions: Predictions, kept: list[np.ndarray], model: Finished, split: Split) -> Image.Image:
    """The first images as the model sees them, with the classes that it sees and a bar for the probability of each."""
    found = rows(predictions, model.classes, split.samples.name, labelled=False)
    tiles = [Tile(image, tuple(_lines_of(row))) for image, row in zip(kept, found, strict=False)]
    of_how_many = f" of {len(predictions):,}" if len(kept) < len(predictions) else ""
    title = f"{model.path} ({model.process.config.model})"
    return sheet.draw(title, [Section(f"{len(kept):,}{of_how_many} images", tiles)])


def _lines_of(row: dict[str, Any]) -> Iterator[Line]:
    for one in row["top"]:
        yield Line(f"{one['probability']:.0%} {one_line(one['name'])}", INK, one["probability"])
    yield Line(one_line(_printable(Path(row["image"]).name)))
