"""--log-format tecorigin: what trainers of Tecorigin's model zoo leave, for parsers that were written for it.

In the current directory:

- dlloger_example.json: a line `TCAPPDLL {...}` for each record of their logger, `data` as the text of a dictionary of
  texts, with `train.loss`, `train.ips`, `train.lr`, `train.data_time`, `train.compute_time`, `train.fp_time`,
  `train.bp_time`, `train.grad_time`, `val.loss`, `val.ips` and `val.acc`; METADATA records say how each is counted;
- train_sdaa_3rd.log: PyramidNet's lines `Epoch: [0/300][3/5004]`, and the logger's `TCAPPDLL ... train.loss : 6.9`;
- train_sdaa_3rd.png: the curve of the loss.

Sources: PyTorch/contrib/Classification/PyramidNet of Tecorigin's modelzoo, and its package tcap_dllogger. There each
rank prints its own line; here one line is about all ranks.
"""

import datetime
import json
import logging
import time
from pathlib import Path
from typing import Any

from pipeline.storage.files import complete_or_absent
from train.config import TrainConfig
from train.device import cards
from train.logs.ascend import EpochMeans
from train.logs.contract import EvaluationReport, StepReport
from train.logs.files import opened
from train.metrics import THROUGHPUT_DEFINITION, thinned
from train.step_clock import ALL_REDUCE, BACKWARD, FORWARD, OPTIMIZER
from train.world import World

log = logging.getLogger(__name__)

RECORDS, LINES, PICTURE = "dlloger_example.json", "train_sdaa_3rd.log", "train_sdaa_3rd.png"

_A_STEP = "seconds a step, of rank 0, mean since the last record"
_METADATA: dict[str, dict[str, str]] = {
    "train.loss": {"unit": "", "GOAL": "MINIMIZE", "STAGE": "TRAIN"},
    "val.loss": {"unit": "", "GOAL": "MINIMIZE", "STAGE": "VALID"},
    "train.ips": {"unit": "imgs/s", "format": ":.3f", "GOAL": "MAXIMIZE", "STAGE": "TRAIN"}
    | {"definition": f"{THROUGHPUT_DEFINITION}; of the run so far"},
    "val.ips": {"unit": "imgs/s", "format": ":.3f", "GOAL": "MAXIMIZE", "STAGE": "VALID"}
    | {"definition": "validation images over wall-clock seconds, all processes; waiting for data included"},
    "train.data_time": {"unit": "s", "GOAL": "MINIMIZE", "STAGE": "TRAIN"}
    | {"definition": f"waiting for a batch: {_A_STEP}"},
    "train.compute_time": {"unit": "s", "GOAL": "MINIMIZE", "STAGE": "TRAIN"}
    | {"definition": f"forward, backward and optimiser: {_A_STEP}"},
    "train.fp_time": {"unit": "s", "GOAL": "MINIMIZE", "STAGE": "TRAIN"} | {"definition": f"forward: {_A_STEP}"},
    "train.bp_time": {"unit": "s", "GOAL": "MINIMIZE", "STAGE": "TRAIN"}
    | {"definition": f"loss, backward and all-reduce: {_A_STEP}"},
    "train.grad_time": {"unit": "s", "GOAL": "MINIMIZE", "STAGE": "TRAIN"} | {"definition": f"optimiser: {_A_STEP}"},
}


class TecoriginLog:
    """--log-format tecorigin."""

    times_phases = True

    def __init__(self, config: TrainConfig, world: World, device_type: str, folder: Path, *, resumed: bool) -> None:
        self._epochs, self._folder, self._started = config.epochs, folder, time.monotonic()
        self._cards = cards(device_type, world.size)
        self._records = opened(folder / RECORDS, append=resumed)
        self._lines = opened(folder / LINES, append=resumed)
        self._means = EpochMeans()
        self._steps: list[float] = []
        self._losses: list[float] = []
        self._place = 0, 0
        self._best: tuple[float, float] | None = None
        for metric, metadata in _METADATA.items():
            self._record("METADATA", metric=metric, metadata=metadata)

    def _record(self, kind: str, **fields: Any) -> datetime.datetime:
        now = datetime.datetime.now()
        elapsed = time.monotonic() - self._started
        record = {"timestamp": str(now.timestamp()), "datetime": str(now), "elapsedtime": str(elapsed), "type": kind}
        self._records.write(f"TCAPPDLL {json.dumps(record | fields)}\n")
        return now

    def _log_data(self, epoch: int, iteration: int, data: dict[str, Any]) -> None:
        """A record, and the line that their logger prints."""
        now = self._record("LOG", step=[epoch, iteration], data=str({name: str(value) for name, value in data.items()}))
        units = {name: _METADATA.get(name, {}).get("unit", "") for name in data}
        shown = " ".join(f"{name} : {value} {units[name]}" for name, value in data.items())
        self._write(f"TCAPPDLL {now} - Epoch: {epoch} Iteration: {iteration}  {shown}")

    def _write(self, line: str) -> None:
        log.info("%s", line)
        self._lines.write(f"{line}\n")

    def step(self, report: StepReport) -> None:
        """PyramidNet's line, and a record."""
        self._means.add(report)
        self._steps.append(report.step)
        self._losses.append(report.loss)
        self._place = report.epoch, report.step
        time_, data, loss, top1, top5 = (self._means.meters[name] for name in EpochMeans.NAMES)
        self._write(
            f"Epoch: [{report.epoch}/{self._epochs}][{report.batch}/{report.steps_per_epoch}]\tLR: {report.lr:.6f}\t"
            f"{time_.shown('Time', '.3f')}\t{data.shown('Data', '.3f')}\t{loss.shown('Loss', '.4f')}\t"
            f"Top 1-err {100 - top1.value:.4f} ({100 - top1.mean:.4f})\t"
            f"Top 5-err {100 - top5.value:.4f} ({100 - top5.mean:.4f})"
        )
        assert report.phases is not None
        forward, backward, optimizer = (
            sum(report.phases[name] for name in names) / report.steps
            for names in ((FORWARD,), (BACKWARD, ALL_REDUCE), (OPTIMIZER,))
        )
        times = {"train.data_time": report.waited / report.steps, "train.compute_time": forward + backward + optimizer}
        times |= {"train.fp_time": forward, "train.bp_time": backward, "train.grad_time": optimizer}
        self._log_data(
            report.epoch,
            report.step,
            {"rank": 0, "train.loss": report.loss, "train.ips": report.images_per_s, "train.lr": report.lr} | times,
        )

    def epoch_ended(self, images_per_s: float) -> None:
        """No line."""

    def evaluated(self, report: EvaluationReport) -> None:
        """PyramidNet's line about an epoch, and a record."""
        result = report.result
        errors = 100 - result["top1"], 100 - result["top5"]
        self._best = min(errors, self._best or errors)
        self._write(
            f"* Epoch: [{self._place[0]}/{self._epochs}]\t Top 1-err {errors[0]:.3f}  Top 5-err {errors[1]:.3f}"
            f"\t Test Loss {result['loss']:.3f}"
        )
        data = {"rank": 0, "val.loss": result["loss"], "val.ips": result["images"] / report.seconds}
        self._log_data(*self._place, data | {"val.acc": result["top1"]})

    def finished(self, images_per_s: float | None) -> None:
        """The best accuracy, FPS, and the picture."""
        if self._best is not None:
            self._write(f"Best accuracy (top-1 and 5 error): {self._best[0]} {self._best[1]}")
        if images_per_s is not None:
            card = "" if self._cards is None else f", {images_per_s / self._cards:.3f} a card"
            self._write(f"train.ips {images_per_s:.3f} imgs/s{card}: {THROUGHPUT_DEFINITION}")
            self._draw()

    def _draw(self) -> None:
        """The training loss by step."""
        from matplotlib.figure import Figure  # here: it would delay the start of every process by 0.5 s

        figure = Figure(figsize=(10, 6), layout="constrained")
        axes = figure.subplots()
        axes.plot(*thinned(self._steps, self._losses), marker="o", markersize=1)
        axes.set(title="Training Loss Curve", xlabel="Training Steps", ylabel="Loss")
        axes.grid(True)
        with complete_or_absent(self._folder / PICTURE, "wb") as file:
            figure.savefig(file, dpi=100, format="png")

    def close(self) -> None:
        """Close the files."""
        self._records.close()
        self._lines.close()
