"""Our own log lines."""

import logging

from pipeline.cli import number
from train.config import TrainConfig
from train.device import cards
from train.logs.contract import EvaluationReport, StepReport
from train.metrics import THROUGHPUT_DEFINITION
from train.progress import Piece, fitted
from train.world import World

log = logging.getLogger(__name__)


class OwnLog:
    """--log-format sluice."""

    times_phases = False

    def __init__(self, config: TrainConfig, world: World, device_type: str) -> None:
        self._is_performance = config.performance is not None
        self._cards = cards(device_type, world.size)
        self._has_objective = False  # of its own; once it differs from the loss, every line has both

    def step(self, report: StepReport) -> None:
        """`epoch 0.43 step 20 objective 6.912 loss ...`"""
        loss, objective = f"{report.loss:.3f}", f"{report.objective:.3f}"
        self._has_objective |= report.mixed or objective != loss
        pieces = [
            Piece(f"epoch {report.step / report.steps_per_epoch:.2f}"),
            Piece(f"step {report.step}"),
            Piece(f"objective {objective}" if self._has_objective else ""),
            Piece(f"{'mixed ' if report.mixed else ''}loss {loss}", 2 if report.mixed else 5),
            Piece(f"top1 {report.top1:.1f}", 1 if report.mixed else 4),
            Piece(f"lr {report.lr:.3g}"),
            Piece(f"{number(report.images_per_s)} img/s"),
            Piece("" if self._cards is None else f"({number(report.images_per_s / self._cards)} a card)", 3),
            Piece(f"wait {report.data_wait:.0%}"),
        ]
        log.info("%s", fitted(pieces))

    def epoch_ended(self, images_per_s: float) -> None:
        """No line."""

    def evaluated(self, report: EvaluationReport) -> None:
        """`epoch 1 evaluated 50000 images: ...`"""
        result = report.result
        pieces = [
            Piece("evaluated" if report.epoch is None else f"epoch {report.epoch} evaluated"),
            Piece(f"{result['images']} images:"),
            Piece(f"loss {result['loss']:.3f}", 5),
            Piece(f"top1 {result['top1']:.2f}"),
            Piece(f"(raw top1 {result['raw_top1']:.2f})" if "raw_top1" in result else "", 4),
            Piece(f"top5 {result['top5']:.2f}", 3),
            Piece(f"{report.seconds:.1f} s", 2),
            Piece("" if report.data_wait is None else f"wait {report.data_wait:.0%}", 1),
        ]
        log.info("%s", fitted(pieces))

    def finished(self, images_per_s: float | None) -> None:
        """The images/s and how they are counted."""
        if images_per_s is not None:
            name = "FPS" if self._is_performance else "images/s"
            each = f" ({number(images_per_s / self._cards)} a card)" if self._cards is not None else ""
            log.info("%s %s%s: %s", name, number(images_per_s), each, THROUGHPUT_DEFINITION)

    def close(self) -> None:
        """There are no files."""
