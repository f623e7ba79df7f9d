"""Where a model is wrong: accuracy by class, which classes it confuses, its worst mistakes, in tables and pictures."""

import csv
import logging
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from models import imagenet
from pipeline.errors import one_line
from pipeline.pixels.loading import load_image
from pipeline.storage.files import complete_or_absent
from pipeline.storage.split import Split
from train import sheet
from train.predictions import Predictions, class_name, write_table
from train.process import Process
from train.sheet import RIGHT, WRONG, Line, Section, Tile

log = logging.getLogger(__name__)

CLASSES, CONFUSION, PAIRS = "classes.csv", "confusion.csv", "confused_pairs.csv"
CONFUSED_PICTURE, MISTAKES_PICTURE = "confused_pairs.png", "mistakes.png"
FILES = (CLASSES, CONFUSION, PAIRS, CONFUSED_PICTURE, MISTAKES_PICTURE)

LARGEST_MATRIX = 2000
"""Classes of a confusion matrix that is written: a file of 8 MB. Of more, the pairs alone are written."""
SHOWN_PAIRS, SHOWN_MISTAKES, SIDE = 8, 32, 176


class Pair(NamedTuple):
    """Two classes that are confused."""

    label: int
    predicted: int
    images: int


@dataclass(frozen=True)
class Analysis:
    """An evaluation's predictions, and the data that they are of."""

    predictions: Predictions
    process: Process
    split: Split

    def write(self, folder: Path) -> None:
        """Write the tables and pictures to a folder, each complete or not at all; those of an earlier evaluation are
        removed. Raises OSError."""
        folder.mkdir(parents=True, exist_ok=True)
        for name in FILES:
            (folder / name).unlink(missing_ok=True)
        pairs = confused_pairs(self.predictions)
        with complete_or_absent(folder / CLASSES) as file:
            write_table(file, class_rows(self.predictions, self.split.classes, pairs))
        if len(self.split.classes) <= LARGEST_MATRIX:
            with complete_or_absent(folder / CONFUSION) as file:
                _write_matrix(file, self.predictions, self.split.classes)
        with complete_or_absent(folder / PAIRS) as file:
            write_table(file, pair_rows(self.predictions, self.split.classes, pairs))
        self._draw(folder, pairs)

    def _draw(self, folder: Path, pairs: list[Pair]) -> None:
        if not can_be_read(self.split):
            log.info("no pictures of mistakes: the images of this data cannot be read one by one, as JPEGs")
        elif not pairs:
            log.info("no pictures of mistakes: there are none")
        else:
            sheet.write_png(self.confused(pairs), folder / CONFUSED_PICTURE)
            sheet.write_png(self.mistakes(), folder / MISTAKES_PICTURE)

    def confused(self, pairs: list[Pair]) -> Image.Image:
        """The pairs that are confused most often, each with images; the surest mistakes first."""
        totals = Counter(self.predictions.labels.tolist())
        sections = []
        for pair in pairs[:SHOWN_PAIRS]:
            images = self._images_of(pair)
            heading = (
                f"{self._class(pair.label)} taken for {self._class(pair.predicted)}: {pair.images} of "
                f"{totals[pair.label]} images"
            )
            sections.append(Section(heading, [self._tile(index) for index in images[: sheet.COLUMNS]]))
        return sheet.draw(f"The classes that are confused most often, of {self._what()}", sections)

    def _images_of(self, pair: Pair) -> list[int]:
        predictions = self.predictions
        confused = (predictions.labels == pair.label) & (predictions.classes[:, 0] == pair.predicted)
        images: list[int] = confused.nonzero().flatten().tolist()
        return sorted(images, key=lambda index: -float(predictions.losses[index]))

    def mistakes(self) -> Image.Image:
        """The wrong images of the highest loss."""
        wrong: list[int] = (~self.predictions.right).nonzero().flatten().tolist()
        worst = sorted(wrong, key=lambda index: -float(self.predictions.losses[index]))[:SHOWN_MISTAKES]
        heading = f"{len(worst)} of {len(wrong):,} mistakes, those of the highest loss first"
        return sheet.draw(f"The worst mistakes, of {self._what()}", [Section(heading, [*map(self._tile, worst)])])

    def _what(self) -> str:
        share = 100 * float(self.predictions.right.double().mean())
        config = self.process.config
        return f"{config.evaluate} ({config.model}) on {config.data}: {share:.2f} % of {len(self.predictions):,} right"

    def _tile(self, index: int) -> Tile:
        predictions = self.predictions
        label, predicted = int(predictions.labels[index]), int(predictions.classes[index, 0])
        own, best = float(predictions.label_probabilities[index]), float(predictions.probabilities[index, 0])
        lines = (
            Line(f"{best:.0%} {self._class(predicted)}", WRONG if label != predicted else RIGHT, best),
            Line(f"{own:.0%} {self._class(label)} (label)", RIGHT, own),
            Line(f"position {index:,} · loss {float(predictions.losses[index]):.2f}"),
        )
        image = image_at(self.process, self.split, index)
        return Tile(sheet.fitted(image, SIDE), lines)

    def _class(self, output: int) -> str:
        return one_line(imagenet.title(class_name(self.split.classes, output)))


def can_be_read(split: Split) -> bool:
    """Whether JPEGs can be read by position: not from a stream, not where there are raw pixels or no data at all."""
    return any(storage in ("folder", "webdataset", "ffcv") for storage in split.formats)


def image_at(process: Process, split: Split, index: int) -> np.ndarray:
    """The image at a dataset position as evaluation sees it, uint8 [R, R, 3]. Raises InputError."""
    side = process.validation_resolution
    image = np.empty((side, side, 3), np.uint8)
    spec = process.loader_spec(split, training=False)
    load_image(spec, split.samples, index, split.samples[index].jpeg, 0, image)
    return image


def confused_pairs(predictions: Predictions) -> list[Pair]:
    """All pairs of a class and another that was predicted for it, the most frequent first."""
    wrong = ~predictions.right
    counts = Counter(zip(predictions.labels[wrong].tolist(), predictions.classes[wrong, 0].tolist(), strict=True))
    pairs = [Pair(label, predicted, images) for (label, predicted), images in counts.items()]
    return sorted(pairs, key=lambda pair: (-pair.images, pair.label, pair.predicted))


def confusion_matrix(predictions: Predictions, classes: int) -> NDArray[np.int64]:
    """[classes, outputs], how many images of a class were taken for each output: at least one for each class, more
    where outputs were predicted that belong to none."""
    labels, predicted = predictions.labels.numpy(), predictions.classes[:, 0].numpy()
    outputs = max(classes, int(predicted.max(initial=0)) + 1)
    matrix = np.zeros((classes, outputs), np.int64)
    np.add.at(matrix, (labels, predicted), 1)
    return matrix


def class_rows(predictions: Predictions, classes: Sequence[str], pairs: list[Pair]) -> Iterable[dict[str, Any]]:
    """A row for each class: its images, top-1 and top-5 in percent, and what it is most often taken for. A class
    without images has no accuracy."""
    labels, size = predictions.labels.numpy(), len(classes)
    images = np.bincount(labels, minlength=size)
    top1 = np.bincount(labels[predictions.right.numpy()], minlength=size)
    among = (predictions.classes == predictions.labels[:, None]).any(1).numpy()
    top5 = np.bincount(labels[among], minlength=size)
    most: dict[int, Pair] = {}
    for confused in pairs:
        most.setdefault(confused.label, confused)
    for number, name in enumerate(classes):
        count, pair = int(images[number]), most.get(number)
        taken_for = class_name(classes, pair.predicted) if pair else ""
        yield {
            "class": name,
            "name": imagenet.title(name),
            "images": count,
            "top1": round(100 * int(top1[number]) / count, 3) if count else "",
            "top5": round(100 * int(top5[number]) / count, 3) if count else "",
            "taken_for": taken_for,
            "taken_for_name": imagenet.title(taken_for),
            "taken_for_images": pair.images if pair else 0,
        }


def pair_rows(predictions: Predictions, classes: Sequence[str], pairs: list[Pair]) -> Iterable[dict[str, Any]]:
    """A row for each pair that was confused: classes, names, how many images, and their share of the class's."""
    totals = Counter(predictions.labels.tolist())
    for label, predicted, images in pairs:
        name, other = class_name(classes, label), class_name(classes, predicted)
        yield {
            "class": name,
            "name": imagenet.title(name),
            "predicted": other,
            "predicted_name": imagenet.title(other),
            "images": images,
            "share": round(images / totals[label], 6),
        }


def _write_matrix(file: IO[str], predictions: Predictions, classes: Sequence[str]) -> None:
    """A row for each class, a column for each prediction, beginning with their names."""
    matrix = confusion_matrix(predictions, len(classes))
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["class", *(class_name(classes, output) for output in range(matrix.shape[1]))])
    for name, counts in zip(classes, matrix.tolist(), strict=True):
        writer.writerow([name, *counts])
