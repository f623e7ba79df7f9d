"""--log-format ascend: what the trainers of Huawei's Ascend model zoo leave, for parsers that were written for it.

Below the current directory, in test/output/<device>/ (in output/<device>/ where the current directory is test/):

- train_<device>.log: `Epoch: [0][  19/5004]`, Time, Data, Loss, Acc@1 and Acc@5 as value and mean of the epoch;
  `* FPS@all` after each epoch; `Test: ` and `* Acc@1` after each evaluation, and then the row that PNASNet's scripts
  read: learning rate, training loss, validation loss, training and validation accuracy, FPS;
- train_<Case>_loss.txt: the losses of the Epoch lines;
- <Case>.log: `ActualFPS = ...` and the other results, at the end.

On stdout, the block `Final result`. Source: test/train_*.sh and main.py of SE-ResNet-50, ResNet152,
AlexNet_ID2663_for_PyTorch and PnasNet5Large in PyTorch/contrib/cv/classification of Ascend/ModelZoo-PyTorch.

FPS is counted as everywhere in Sluice (THROUGHPUT_DEFINITION), not as there.
"""

import logging
import os
import platform
from pathlib import Path

from pipeline.errors import InputError
from pipeline.storage.files import complete_or_absent
from train.case_name import Case, parse_optional
from train.config import TrainConfig
from train.logs.contract import EvaluationReport, StepReport
from train.logs.files import opened, seconds_since_start
from train.metrics import THROUGHPUT_DEFINITION
from train.world import World

log = logging.getLogger(__name__)

DEVICE_VARIABLE = "ASCEND_DEVICE_ID"
"""The number of the device of a run on one: the zoo's scripts export it."""


def _device_number() -> int:
    text = os.environ.get(DEVICE_VARIABLE, "0")
    if not text.isdecimal():
        raise InputError(f"{DEVICE_VARIABLE} {text}: must be the number of a device")
    return int(text)


class Mean:
    """The last value, and the mean of an epoch."""

    def __init__(self) -> None:
        self.value, self._sum, self._weight = 0.0, 0.0, 0.0

    def add(self, value: float, weight: float) -> None:
        """Count a value."""
        self.value, self._sum, self._weight = value, self._sum + value * weight, self._weight + weight

    @property
    def mean(self) -> float:
        """Weighted; 0 of nothing."""
        return self._sum / self._weight if self._weight else 0.0

    def shown(self, name: str, form: str) -> str:
        """`Loss 6.9078e+00 (6.9100e+00)`."""
        return f"{name} {self.value:{form}} ({self.mean:{form}})"


class EpochMeans:
    """Of the lines of an epoch so far; begins again with the next epoch."""

    NAMES = ("Time", "Data", "Loss", "Acc@1", "Acc@5")

    def __init__(self) -> None:
        self._epoch = -1
        self.meters = {name: Mean() for name in self.NAMES}

    def add(self, report: StepReport) -> None:
        """Count what a log line reports: times by step, losses and accuracies by image."""
        if report.epoch != self._epoch:
            self._epoch, self.meters = report.epoch, {name: Mean() for name in self.NAMES}
        for name, seconds in (("Time", report.seconds), ("Data", report.waited)):
            self.meters[name].add(seconds / report.steps, report.steps)
        for name, value in (("Loss", report.loss), ("Acc@1", report.top1), ("Acc@5", report.top5)):
            self.meters[name].add(value, report.images)


class AscendLog:
    """--log-format ascend."""

    times_phases = False

    def __init__(self, config: TrainConfig, world: World, folder: Path, *, resumed: bool) -> None:
        global_batch = config.batch_size * config.accumulate * world.size
        kind = "eval" if config.evaluate else "acc" if config.performance is None else "perf"
        default = Case(config.model.replace("/", "-"), global_batch, world.size, kind)
        self._case = parse_optional(config.log_case) or default
        self._global_batch, self._world = global_batch, world
        self._device = _device_number() if world.size == 1 else 0
        self._folder = (folder if folder.name == "test" else folder / "test") / "output" / str(self._device)
        self._log = opened(self._folder / f"train_{self._device}.log", append=resumed)
        self._losses = opened(self._folder / f"train_{self._case}_loss.txt", append=resumed)
        self._means, self._lr = EpochMeans(), 0.0
        self._fps: float | None = None
        self._accuracy: float | None = None
        self._loss: float | None = None
        if not resumed:
            # "FPS" is not in it: parsers look for that word.
            self._write(f"# images per second, in the lines of epochs: {THROUGHPUT_DEFINITION}; of the run so far")

    def _write(self, line: str) -> None:
        log.info("%s", line)
        self._log.write(f"{line}\n")

    def step(self, report: StepReport) -> None:
        """`Epoch: [0][  19/5004] Time ... Data ... Loss ... Acc@1 ... Acc@5 ...`, separated by tabs."""
        self._means.add(report)
        self._lr, self._loss = report.lr, report.loss
        meters, total = self._means.meters, str(report.steps_per_epoch)
        forms = {"Time": "6.3f", "Data": "6.3f", "Loss": ".4e", "Acc@1": "6.2f", "Acc@5": "6.2f"}
        place = f"Epoch: [{report.epoch}][{report.batch:{len(total)}d}/{total}]"
        self._write("\t".join([place, *(meters[name].shown(name, form) for name, form in forms.items())]))
        self._losses.write(f"{report.loss:.4e}\n")

    def epoch_ended(self, images_per_s: float) -> None:
        """`[npu id: 0 ] batch_size: 2048 Time: 0.459 * FPS@all 4464.000`."""
        self._fps = images_per_s
        seconds = self._global_batch / images_per_s if images_per_s else 0.0
        place = f"[npu id: {self._device} ] batch_size: {self._global_batch}"
        self._write(f"{place} Time: {seconds:.3f} * FPS@all {images_per_s:.3f}")

    def evaluated(self, report: EvaluationReport) -> None:
        """`Test: [196/196] ...`, `[gpu id: 0 ] [AVG-ACC] * Acc@1 78.259 Acc@5 94.012`, and PNASNet's row."""
        result, batches = report.result, report.batches
        loss, top1, top5 = (result[name] for name in ("loss", "top1", "top5"))
        self._accuracy = top1
        seconds = report.seconds / max(1, batches)
        shown = f"Loss {loss:.4e} ({loss:.4e})\tAcc@1 {top1:6.2f} ({top1:6.2f})\tAcc@5 {top5:6.2f} ({top5:6.2f})"
        self._write(f"Test: [{batches}/{batches}]\tTime {seconds:6.3f} ({seconds:6.3f})\t{shown}")
        self._write(f"[gpu id: {self._device} ] [AVG-ACC] * Acc@1 {top1:.3f} Acc@5 {top5:.3f}")
        if self._fps is None:
            self._loss = loss
            self._write(f"{loss:.6f}\t{top1:.6f}")
            return
        means = self._means.meters
        row = self._lr, means["Loss"].mean, loss, means["Acc@1"].mean, top1, self._fps
        self._write("\t".join(f"{value:.6f}" for value in row))

    def finished(self, images_per_s: float | None) -> None:
        """<Case>.log, and the block on stdout."""
        seconds, accuracy = round(seconds_since_start()), "" if self._accuracy is None else f"{self._accuracy:.3f}"
        performance = {} if images_per_s is None else {"Final Performance images/sec": f"{images_per_s:.3f}"}
        block = performance | {"Final Train Accuracy": accuracy, "E2E Training Duration sec": str(seconds)}
        results = {
            "Network": self._case.network,
            "RankSize": str(self._case.ranks),
            "BatchSize": str(self._case.batch_size),
            "DeviceType": platform.machine(),
            "CaseName": str(self._case),
        }
        if images_per_s is not None:
            results["ActualFPS"] = f"{images_per_s:.3f}"
            results["TrainingTime"] = f"{self._global_batch * 1000 / images_per_s:.2f}" if images_per_s else ""
        results["TrainAccuracy"] = accuracy
        results["ActualLoss"] = "" if self._loss is None else f"{self._loss:.4e}"
        results["E2ETrainingTime"] = str(seconds)
        if images_per_s is not None:
            results["FPSDefinition"] = THROUGHPUT_DEFINITION
        with complete_or_absent(self._folder / f"{self._case}.log") as file:
            file.writelines(f"{name} = {value}\n" for name, value in results.items())
        print("------------------ Final result ------------------")
        print(*(f"{name} : {value}" for name, value in block.items()), sep="\n", flush=True)

    def close(self) -> None:
        """Close the files."""
        self._log.close()
        self._losses.close()
