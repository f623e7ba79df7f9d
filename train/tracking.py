"""--log: where scalars go besides metrics.jsonl: TensorBoard, Weights & Biases, Trackio."""

import contextlib
import hashlib
import importlib.util
import logging
import os
import secrets
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Protocol

from pipeline.errors import InputError

log = logging.getLogger(__name__)

TrackerName = Literal["tensorboard", "wandb", "trackio"]
"""What --log takes."""

BOARD = "tensorboard"
"""The folder of TensorBoard's files in a run directory."""

PROJECT = "sluice"
"""Of Weights & Biases and Trackio, unless their own variables WANDB_PROJECT and TRACKIO_PROJECT name another."""

METRICS = ("eval/top1", "eval/loss", "train/images_per_s")
"""What TensorBoard shows next to the hyper-parameters of a run."""


class Tracker(Protocol):
    """Writes the scalars of a run."""

    def write(self, values: Mapping[str, float], step: int) -> None:
        """Scalars by name, after `step` optimiser steps."""
        ...

    def close(self) -> None:
        """Write what is still in memory."""
        ...


def check(names: tuple[str, ...]) -> None:
    """Raises InputError where the package of one is missing."""
    for name in names:
        if not _is_installed(name):
            raise InputError(f"--log {name}: needs {name}, which is not installed: pip install {name}")


def _is_installed(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ValueError:  # it has been imported, and is hidden now
        return False


def open_tracker(name: TrackerName, run_dir: Path, settings: Mapping[str, Any], step: int) -> Tracker:
    """A tracker of the run in `run_dir`, which begins or continues after `step`. Raises OSError where TensorBoard's
    files cannot be written, and InputError where another one cannot be opened."""
    if name == "tensorboard":
        return _TensorBoard(run_dir, settings, step)
    try:
        return (_Wandb if name == "wandb" else _Trackio)(run_dir, settings)
    except Exception as error:  # both raise errors of their own, of their servers' clients and of their files
        raise InputError(f"--log {name}: {' '.join(str(error).split())}") from error


class _TensorBoard:
    def __init__(self, run_dir: Path, settings: Mapping[str, Any], step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter  # here: the import takes a second
        from torch.utils.tensorboard.summary import hparams

        # A name of time, host and process ID can be guessed, and TensorBoard would write through a link of that name.
        suffix = f".{secrets.token_hex(8)}"
        self._writer = SummaryWriter(str(run_dir / BOARD), purge_step=step + 1, filename_suffix=suffix)
        file_writer = self._writer.file_writer
        assert file_writer is not None
        # As SummaryWriter.add_hparams, but at the start, so that a run that is killed has them too, and without the
        # final metrics, which would come from a folder of their own.
        for summary in hparams(_plain(settings), dict.fromkeys(METRICS, 0.0)):
            file_writer.add_summary(summary)

    def write(self, values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


class _Wandb:
    """The run's number follows from its directory, so a resumed run continues it. Rows have their step as a value:
    W&B's own only rises, and a resumed run writes some of its rows again."""

    def __init__(self, run_dir: Path, settings: Mapping[str, Any]) -> None:
        import wandb  # here: the import takes seconds

        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=run_dir.name,
            id=_number(run_dir),
            resume="allow",
            dir=run_dir,
            config=dict(settings),
            settings=wandb.Settings(silent=True, console="off"),
        )
        self._run.define_metric("*", step_metric="step")
        log.info("wandb: %s", self._run.url or f"offline; to upload: wandb sync {Path(self._run.dir).parent}")

    def write(self, values: Mapping[str, float], step: int) -> None:
        self._run.log({**values, "step": step})

    def close(self) -> None:
        self._run.finish()


class _Trackio:
    """Keeps runs in TRACKIO_DIR, on this machine; `trackio show` shows them."""

    def __init__(self, run_dir: Path, settings: Mapping[str, Any]) -> None:
        with contextlib.redirect_stdout(sys.stderr):  # stdout is for the result
            import trackio

            self._finish = trackio.finish
            self._run = trackio.init(
                project=os.environ.get("TRACKIO_PROJECT", PROJECT),
                name=f"{run_dir.name}-{_number(run_dir)}",
                config=_plain(settings),
                resume="allow",
                embed=False,
                auto_log_cpu=False,
            )

    def write(self, values: Mapping[str, float], step: int) -> None:
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        with contextlib.redirect_stdout(sys.stderr):
            self._finish()  # not the run's own method, after which trackio finishes it once more, and says so, at exit


def _number(run_dir: Path) -> str:
    """What tells runs apart whose directories have the same name."""
    return hashlib.sha256(str(run_dir.resolve()).encode()).hexdigest()[:10]


def _plain(settings: Mapping[str, Any]) -> dict[str, bool | int | float | str]:
    """Numbers and texts: a list as its words, None as nothing."""
    return {name: _plain_value(value) for name, value in settings.items()}


def _plain_value(value: Any) -> bool | int | float | str:
    if isinstance(value, bool | int | float | str):
        return value
    return " ".join(map(str, value)) if isinstance(value, list | tuple) else "" if value is None else str(value)
