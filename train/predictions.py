"""What a model says of each image: collected on the device during an evaluation, and written as CSV or JSON lines."""

import csv
import json
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional

from models import imagenet
from pipeline.errors import InputError
from pipeline.storage.files import complete_or_absent
from train.metrics import finite

log = logging.getLogger(__name__)

TOP = 5
FORMATS = (".csv", ".jsonl")


@dataclass(frozen=True)
class Predictions:
    """Of N images, by dataset position, on the CPU."""

    labels: Tensor
    """int64 [N], class indices."""
    classes: Tensor
    """int64 [N, K], the most likely outputs, best first."""
    logits: Tensor
    """float32 [N, K], theirs."""
    log_sums: Tensor
    """float32 [N], the logarithm of the sum of the exponentials of all logits."""
    losses: Tensor
    """float32 [N], the cross-entropy of each image."""

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def probabilities(self) -> Tensor:
        """float32 [N, K], of `classes`."""
        return (self.logits - self.log_sums[:, None]).exp()

    @property
    def label_probabilities(self) -> Tensor:
        """float32 [N]."""
        return (-self.losses).exp()

    @property
    def right(self) -> Tensor:
        """bool [N], whether the best output is the label's."""
        return self.classes[:, 0] == self.labels


class Collector:
    """Gathers the predictions of an evaluation. They stay on the device until `result` is called."""

    def __init__(self, images: int, device: torch.device, top: int = TOP) -> None:
        self._images, self._device, self._top = images, device, top
        self._integers, self._floats = torch.empty(0), torch.empty(0)

    def add(self, logits: Tensor, labels: Tensor, indices: Tensor) -> None:
        """The logits [B, outputs] of images at these dataset positions. Nothing waits for the device."""
        logits = logits.float()
        if not len(self._integers):
            self._start(logits.shape[1])
        best = logits.topk(self._integers.shape[1] - 2, dim=1)
        positions = indices.to(self._device)
        seen = torch.ones_like(labels)
        self._integers[positions] = torch.column_stack([seen, labels, best.indices]).int()
        # Not the difference of the two logits, which are rounded: of a sure prediction it has few digits left.
        losses = functional.cross_entropy(logits, labels, reduction="none")
        self._floats[positions] = torch.column_stack([logits.logsumexp(1), losses, best.values])

    def _start(self, outputs: int) -> None:
        columns = 2 + min(self._top, outputs)
        self._integers = torch.zeros(self._images, columns, dtype=torch.int32, device=self._device)
        self._floats = torch.zeros(self._images, columns, dtype=torch.float32, device=self._device)

    def result(self, outputs: int) -> Predictions:
        """Those of all processes, of a model with so many outputs. A collective call: every process adds its rows to
        the zeros of the others."""
        if not len(self._integers):  # a rank without images
            self._start(outputs)
        if dist.is_initialized():
            dist.all_reduce(self._integers)
            dist.all_reduce(self._floats)
        integers, floats = self._integers.long().cpu(), self._floats.cpu()
        assert bool((integers[:, 0] == 1).all()), "every image is predicted exactly once"
        return Predictions(integers[:, 1], integers[:, 2:], floats[:, 2:], floats[:, 0], floats[:, 1])


def check_path(flag: str, path: Path) -> None:
    """Raises InputError where predictions cannot be written to this file."""
    if path.suffix not in FORMATS:
        raise InputError(f"{flag} {path}: must end with {' or '.join(FORMATS)}")
    folder = next(folder for folder in path.absolute().parents if folder.exists())
    if path.is_dir() or not folder.is_dir() or not os.access(folder, os.W_OK):
        raise InputError(f"{flag} {path}: cannot be written")


def class_name(classes: Sequence[str], output: int) -> str:
    """The class of an output; outputs after the classes belong to none."""
    return classes[output] if output < len(classes) else f"output {output}"


def rows(
    predictions: Predictions, classes: Sequence[str], name: Callable[[int], str], *, labelled: bool
) -> Iterator[dict[str, Any]]:
    """A row for each image. Where images are labelled it has their class, whether that was predicted, its probability
    and the loss; then "top", the most likely classes with name, probability and logit."""
    columns = predictions.classes.tolist(), predictions.probabilities.tolist(), predictions.logits.tolist()
    for index, (outputs, probabilities, logits) in enumerate(zip(*columns, strict=True)):
        row: dict[str, Any] = {"image": name(index)}
        if labelled:
            row |= _label_of(predictions, classes, index)
        row["top"] = [
            {
                "class": class_name(classes, output),
                "name": imagenet.title(class_name(classes, output)),
                "probability": _number(probability),
                "logit": _number(logit),
            }
            for output, probability, logit in zip(outputs, probabilities, logits, strict=True)
        ]
        yield row


def _label_of(predictions: Predictions, classes: Sequence[str], index: int) -> dict[str, Any]:
    label = class_name(classes, int(predictions.labels[index]))
    return {
        "class": label,
        "name": imagenet.title(label),
        "right": bool(predictions.right[index]),
        "probability": _number(float(predictions.label_probabilities[index])),
        "loss": _number(float(predictions.losses[index])),
    }


def _number(value: float) -> Any:
    return finite(round(value, 6))


def write_json_lines(file: IO[str], rows: Iterator[dict[str, Any]]) -> None:
    """A JSON object for each image."""
    for row in rows:
        file.write(json.dumps(row) + "\n")


def write_csv(file: IO[str], rows: Iterator[dict[str, Any]]) -> None:
    """A line for each image; the most likely classes are in columns class1, name1, probability1, logit1, class2 ..."""
    write_table(file, map(_flat, rows))


def _flat(row: dict[str, Any]) -> dict[str, Any]:
    flat = {key: value for key, value in row.items() if key != "top"}
    for number, one in enumerate(row["top"], 1):
        flat |= {f"{key}{number}": value for key, value in one.items()}
    return flat


def write_table(file: IO[str], rows: Iterable[dict[str, Any]]) -> None:
    """Rows with the same keys as CSV, after a line with the keys. Without rows, the file stays empty."""
    writer: csv.DictWriter[str] | None = None
    for row in rows:
        if writer is None:
            writer = csv.DictWriter(file, list(row), lineterminator="\n")
            writer.writeheader()
        writer.writerow(row)


def save(rows: Iterator[dict[str, Any]], path: Path, flag: str) -> None:
    """Write rows to a file as its name says, complete or not at all. Raises InputError, which names the flag."""
    try:
        with complete_or_absent(path) as file:
            (write_csv if path.suffix == ".csv" else write_json_lines)(file, rows)
    except OSError as error:
        raise InputError(f"{flag} {path}: cannot be written ({error.strerror})") from None
    log.info("%s", path)
