"""What the log of a run is told, and what it is asked."""

from dataclasses import dataclass
from typing import Any, Protocol


@dataclass(frozen=True, kw_only=True)
class StepReport:
    """What was measured since the last log line, over all ranks."""

    epoch: int
    """From 0, as `batch`: of the step that ended."""
    batch: int
    steps_per_epoch: int
    step: int
    """Optimiser steps of the run."""
    steps: int
    """Since the last line."""
    loss: float
    """Mean cross-entropy of the main head."""
    top1: float
    """In percent, as `top5`."""
    top5: float
    images: int
    objective: float
    """What is minimised."""
    lr: float
    images_per_s: float
    """Of all processes, as THROUGHPUT_DEFINITION says."""
    data_wait: float
    """Share of the time spent waiting for data, 0 to 1, of the rank that waited longest."""
    seconds: float
    """Since the last line, of this rank, as `waited`: the seconds of these spent waiting for data."""
    waited: float
    mixed: bool
    """Whether loss and accuracy are of images that were mixed."""
    phases: dict[str, float] | None = None
    """Seconds since the last line by phase, as `StepClock.seconds`, where the log `times_phases`."""


@dataclass(frozen=True, kw_only=True)
class EvaluationReport:
    """An evaluation."""

    epoch: int | None = None
    """Epochs that are done; None where a file is evaluated."""
    result: dict[str, Any]
    """As `evaluate_model` returns it."""
    batches: int
    """Of this rank."""
    seconds: float
    data_wait: float | None = None
    """As that of a step; None where it was not measured."""


class RunLog(Protocol):
    """The log of a run, on the main rank."""

    times_phases: bool
    """Whether reports of steps need `phases`, for which the device is waited for at each line."""

    def step(self, report: StepReport) -> None:
        """A log line is due."""

    def epoch_ended(self, images_per_s: float) -> None:
        """All steps of an epoch, or of the run, are done; images/s so far, of all processes."""

    def evaluated(self, report: EvaluationReport) -> None:
        """An evaluation has ended."""

    def finished(self, images_per_s: float | None) -> None:
        """The run has ended; without images/s where it only evaluated. Not called where it fails or is stopped."""

    def close(self) -> None:
        """Close the files."""
