"""The directory of a run: who may write it, its files, its log."""

import contextlib
import fcntl
import json
import logging
import logging.handlers
import os
import platform
import sys
import time
from pathlib import Path
from typing import IO, Any

import torch

from pipeline.errors import InputError
from pipeline.formats.files import complete_or_absent
from train import checkpoint
from train.config import PROCESSES, TrainConfig
from train.device import device_name
from train.meeting import Meeting
from train.metrics import RunWriter, plot_curves
from train.resume import Resumed
from train.session import Position
from train.trace import StepTrace
from train.world import same_on_all

log = logging.getLogger(__name__)

LOCK = ".lock"


class RunDirectory:
    """One process's view of the run directory. Use as a context manager: entering makes, locks and opens it."""

    path: Path
    trace: StepTrace
    """Of --profile-steps."""
    writer: RunWriter | None = None
    """metrics.jsonl and TensorBoard, on the main rank."""

    def __init__(
        self, config: TrainConfig, meeting: Meeting, loader_name: str, resumed: Resumed | None, position: Position
    ) -> None:
        self._config, self._meeting, self._world, self._loader_name = config, meeting, meeting.world, loader_name
        self._resumed, self._position = resumed, position
        self._indices: IO[str] | None = None
        self._open = contextlib.ExitStack()

    def __enter__(self) -> "RunDirectory":
        with contextlib.ExitStack() as undo:
            undo.callback(self._open.close)
            try:
                self.path = same_on_all(self._take() if self._world.is_main else Path(), self._world)
                self._open_files()
            except OSError as error:
                raise InputError(f"--run-dir {error.filename}: cannot be written ({error.strerror})") from None
            undo.pop_all()
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, Exception):
            what = (type(error), error, error.__traceback__)
            self._log_file.handle(log.makeRecord(log.name, logging.ERROR, "", 0, "failed", (), what))
        self._open.close()

    # Taking it

    def _take(self) -> Path:
        """Make the directory, or take over that of the run to go on with, against any other process."""
        # What --performance measures has to be done at once.
        path = own = self._meeting.run_dir if self._config.performance is None else None
        if path is None:
            path = self._config.run_dir
        if path is None and self._resumed is not None:
            path = checkpoint.run_dir_of(self._resumed.path)
        if path is None:
            path = _make_new(f"{self._config.model.rpartition('/')[2]}-{self._loader_name}")
        path.mkdir(parents=True, exist_ok=True)
        self._lock(path)
        if own is None and self._config.resume != "auto":
            self._refuse_other_run(path)
        self._meeting.keep_run_dir(path)
        self._clean(path)
        return path

    def _lock(self, path: Path) -> None:
        """A record lock: it ends with this process, not with a loader's worker that outlives it for seconds."""
        lock = self._open.enter_context((path / LOCK).open("w"))
        try:
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"--run-dir {path}: another process is writing it") from None

    def _refuse_other_run(self, path: Path) -> None:
        if not ((path / "config.json").exists() or checkpoint.existing(path)):
            return
        if self._resumed is None:
            raise InputError(f"--run-dir {path}: holds a run; add --resume auto or choose another")
        chosen = self._resumed.path
        if (own := checkpoint.run_dir_of(chosen)) is None or own.resolve() != path.resolve():
            raise InputError(f"--run-dir {path}: holds a run, not that of --resume {chosen}; choose another")
        newest = checkpoint.existing(path)[-1:]
        if newest and newest[0] > checkpoint.path_for(path, self._position.step):
            raise InputError(f"--resume {chosen}: {newest[0]} is newer; use --resume auto or another --run-dir")

    def _clean(self, path: Path) -> None:
        """Drop what lies behind the position: half a checkpoint, damaged ones, batches that come again."""
        checkpoint.set_aside_after(path, self._position.step)
        for file in path.glob("indices-rank*.jsonl"):
            _keep_rows_before(file, self._position)

    # Its files

    def _open_files(self) -> None:
        self.path.mkdir(parents=True, exist_ok=True)  # on every machine
        rank = self._world.rank
        self._open_log("train.log" if rank == 0 else f"train-rank{rank}.log")
        self.trace = StepTrace(self._config.profile_steps, self.path / f"trace-rank{rank}.json")
        self._open.callback(self.trace.close)
        if self._config.log_indices:
            file = (self.path / f"indices-rank{rank}.jsonl").open("a", buffering=1)
            self._indices = self._open.enter_context(file)
        if self._world.is_main:
            settings = self._config.as_dict() | {"resume": None, PROCESSES: self._world.size}
            self.write_json("config.json", settings)
            self.writer = RunWriter(self.path, self._position.step)
            self._open.callback(self.writer.close)
            log.info("%s", _environment())

    def _open_log(self, name: str) -> None:
        """Log into a file too, beginning with what was logged before there was one. Other ranks' appear with their
        first line."""
        self._log_file = logging.FileHandler(self.path / name, delay=True)
        self._log_file.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
        root = logging.getLogger()
        for handler in root.handlers:
            if isinstance(handler, EarlyLines):
                handler.setTarget(self._log_file)
                handler.flush()
                handler.setTarget(None)
        root.addHandler(self._log_file)
        self._open.callback(self._log_file.close)
        self._open.callback(root.removeHandler, self._log_file)

    def write_indices(self, epoch: int, batch: int, indices: torch.Tensor) -> None:
        """A row of indices-rank<R>.jsonl, with --log-indices."""
        if self._indices is not None:
            row = {"epoch": epoch, "batch": batch, "indices": indices.tolist()}
            self._indices.write(json.dumps(row) + "\n")

    def write_json(self, name: str, content: dict[str, Any]) -> None:
        """A small file, complete or not at all."""
        with complete_or_absent(self.path / name) as file:
            json.dump(content, file, indent=1)
            file.write("\n")

    def draw_curves(self) -> None:
        """curves.png."""
        plot_curves([self.path], self.path / "curves.png")


class EarlyLines(logging.handlers.MemoryHandler):
    """Keeps what is logged until a run has its directory. Use as a context manager."""

    def __init__(self) -> None:
        super().__init__(capacity=10_000, flushLevel=logging.CRITICAL + 1)

    def __enter__(self) -> "EarlyLines":
        logging.getLogger().addHandler(self)
        return self

    def __exit__(self, *exception: object) -> None:
        logging.getLogger().removeHandler(self)
        self.close()


def _make_new(name: str) -> Path:
    """runs/<name>-<time>, or with a number behind it where another run began in the same second."""
    stem = f"{name}-{time.strftime('%Y%m%d-%H%M%S')}"
    number = 1
    while True:
        path = Path("runs") / (stem if number == 1 else f"{stem}-{number}")
        try:
            path.mkdir(parents=True)
            return path
        except FileExistsError:
            number += 1


def _keep_rows_before(file: Path, position: Position) -> None:
    lines = [line for line in file.read_text().splitlines(keepends=True) if line.endswith("\n")]
    rows = [json.loads(line) for line in lines]
    reached = position.epoch, position.batch
    kept = [line for line, row in zip(lines, rows, strict=True) if (row["epoch"], row["batch"]) < reached]
    with complete_or_absent(file) as rewritten:
        rewritten.writelines(kept)


def _environment() -> str:
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    device = device_name(accelerator) if accelerator else platform.machine()
    return (
        f"started as `{' '.join(sys.argv)}` on {platform.node()}: Python {platform.python_version()}, "
        f"torch {torch.__version__}, {os.cpu_count()} cores, {device}"
    )
