"""The directory of a run: who may write to it, its files, its log."""

import contextlib
import fcntl
import json
import logging
import logging.handlers
import os
import platform
import shlex
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import torch

import models
from pipeline.cli import PlainFormatter
from pipeline.errors import InputError
from pipeline.storage.files import complete_or_absent, link_of_others, own_lock, regular
from train import checkpoint
from train.config import PROCESSES, TrainConfig
from train.curves import plot_curves
from train.device import device_name, require
from train.json_lines import are_numbers, sound_lines
from train.meeting import Meeting
from train.metrics import RunWriter
from train.resume import RUNS, Resumed, restarted_in
from train.step import Position
from train.trace import StepTrace
from train.tracking import BOARD
from train.world import from_main

log = logging.getLogger(__name__)

LOCK = ".lock"


class RunDirectory:
    """One process's view of the run directory. Use as a context manager: entering creates, locks and opens it."""

    path: Path
    trace: StepTrace
    """Of --profile-steps."""
    writer: RunWriter | None = None
    """metrics.jsonl and what --log names, on the main rank."""

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
            self.path = Path(from_main(self._claimed, self._world))
            with self._writing():
                self._open_files()
            undo.pop_all()
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, Exception):
            exc_info = (type(error), error, error.__traceback__)
            self._log_file.handle(log.makeRecord(log.name, logging.ERROR, "", 0, "failed", (), exc_info))
        failure = error
        try:
            self._open.close()
        except OSError as late:  # closing writes what is still in memory
            failure = failure or late
        if isinstance(failure, OSError) and failure.errno in checkpoint.DISK_ERRORS:
            raise checkpoint.disk_failed(self.path, failure) from None
        if failure is not None and failure is not error:
            raise failure

    # Claiming it

    def _claimed(self) -> str:
        with self._writing():
            return str(self._claim())

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """Raises InputError where the directory cannot be written."""
        try:
            yield
        except OSError as error:
            path = error.filename or self._config.run_dir
            raise InputError(f"--run-dir {path}: cannot be written ({error.strerror})") from None

    def _claim(self) -> Path:
        """Create the directory, or take over that of the resumed run, and keep other processes from writing to it."""
        # A --performance run is not continued after a restart.
        path = before = restarted_in(self._config, self._meeting) if self._config.performance is None else None
        if path is None:
            path = self._config.run_dir
        if path is None and self._resumed is not None:
            path = checkpoint.run_dir_of(self._resumed.path)
        if path is None:
            path = _create_new("-".join(map(models.short_name, (self._config.model, self._loader_name))))
        path.mkdir(parents=True, exist_ok=True)
        for folder in (path, path / checkpoint.FOLDER, path / BOARD):
            if link := link_of_others(folder):
                raise InputError(f"--run-dir {link}: a link that another user has made; remove it")
        self._lock(path)
        if before is None and self._config.resume != "auto":
            self._refuse_other_run(path)
        self._meeting.keep_run_dir(path)
        self._clean(path)
        return path

    def _lock(self, path: Path) -> None:
        """A record lock: it ends with this process, not with a loader's worker that outlives it by seconds."""
        lock = self._open.enter_context(open(path / LOCK, "a", opener=own_lock))  # noqa: SIM115
        try:
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):  # EAGAIN or EACCES, says fcntl(2)
            raise InputError(f"--run-dir {path}: another process is writing to it; give another") from None
        except OSError as error:  # NFS without its lock manager, some cluster file systems
            log.warning("--run-dir %s: cannot be locked (%s); see that no other run writes to it", path, error.strerror)

    def _refuse_other_run(self, path: Path) -> None:
        if not ((path / "config.json").exists() or checkpoint.existing(path)):
            return
        if self._resumed is None:
            raise InputError(f"--run-dir {path}: holds a run; add --resume auto or choose another")
        resumed = self._resumed.path
        if (run_dir := checkpoint.run_dir_of(resumed)) is None or run_dir.resolve() != path.resolve():
            raise InputError(f"--run-dir {path}: holds a run, not that of --resume {resumed}; choose another")
        newest = checkpoint.existing(path)[-1:]
        if newest and newest[0] > checkpoint.path_for(path, self._position.step):
            raise InputError(f"--resume {resumed}: {newest[0]} is newer; use --resume auto or another --run-dir")

    def _clean(self, path: Path) -> None:
        """Drop what is beyond the position: a half-written checkpoint, damaged ones, rows that will be written
        again."""
        checkpoint.set_aside_after(path, self._position.step)
        for file in path.glob("indices-rank*.jsonl"):
            _keep_rows_before(file, self._position)

    # Its files

    def _open_files(self) -> None:
        self.path.mkdir(parents=True, exist_ok=True)  # on every machine
        rank = self._world.rank
        self._open_log("train.log" if rank == 0 else f"train-rank{rank}.log")
        self.trace = StepTrace(
            self._config.profile_steps, self.path / f"trace-rank{rank}.json", require(self._config.device, 1)
        )
        self._open.callback(self.trace.close)
        if self._config.log_indices:
            self._indices = self._open.enter_context(_appending(self.path / f"indices-rank{rank}.jsonl"))
        if self._world.is_main:
            settings = self._config.as_dict() | {"resume": None, PROCESSES: self._world.size}
            self.write_json("config.json", settings)
            self.writer = RunWriter(self.path, self._position.step, self._config.log, settings)
            self._open.callback(self.writer.close)
            log.info("%s", _environment())

    def _open_log(self, name: str) -> None:
        """Log to a file as well, beginning with what was logged before it was opened. The file of a rank other than 0
        is created with its first line."""
        self._log_file = _LogFile(self.path / name, delay=True)
        self._log_file.setFormatter(PlainFormatter("%(asctime)s %(message)s"))
        root = logging.getLogger()
        for handler in root.handlers:
            if isinstance(handler, EarlyLines):
                handler.setTarget(self._log_file)
                try:
                    handler.flush()
                finally:
                    handler.setTarget(None)  # where the file cannot be opened, the end would try again
        root.addHandler(self._log_file)
        self._open.callback(self._log_file.close)
        self._open.callback(root.removeHandler, self._log_file)

    def write_indices(self, epoch: int, batch: int, indices: torch.Tensor) -> None:
        """Write a row of indices-rank<R>.jsonl, with --log-indices."""
        if self._indices is not None:
            row = {"epoch": epoch, "batch": batch, "indices": indices.tolist()}
            self._indices.write(json.dumps(row) + "\n")

    def write_json(self, name: str, content: dict[str, Any]) -> None:
        """Write a small file, complete or not at all."""
        with complete_or_absent(self.path / name) as file:
            json.dump(content, file, indent=1)
            file.write("\n")

    def draw_curves(self) -> None:
        """Draw curves.png."""
        plot_curves([self.path], self.path / "curves.png")


class _LogFile(logging.FileHandler):
    """A log file whose loss costs a line on stderr, not a traceback for each line that is logged."""

    _is_lost = False

    def _open(self) -> Any:
        return open(self.baseFilename, self.mode, encoding=self.encoding, errors=self.errors, opener=regular)

    def handleError(self, record: logging.LogRecord) -> None:
        """Called by `emit`, inside its `except` block."""
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            super().handleError(record)
        elif not self._is_lost:
            self._is_lost = True
            print(f"{self.baseFilename}: cannot be written any more ({error.strerror})", file=sys.stderr)


class EarlyLines(logging.handlers.MemoryHandler):
    """Keeps what is logged before a run has its directory. Use as a context manager."""

    def __init__(self) -> None:
        super().__init__(capacity=10_000, flushLevel=logging.CRITICAL + 1)

    def __enter__(self) -> "EarlyLines":
        logging.getLogger().addHandler(self)
        return self

    def __exit__(self, *exception: object) -> None:
        logging.getLogger().removeHandler(self)
        self.close()


def _appending(path: Path) -> IO[str]:
    """A text file to write to line by line, after what is in it."""
    return open(path, "a", buffering=1, opener=regular)


def _create_new(name: str) -> Path:
    """Create runs/<name>-<time>, with a number appended where another run began in the same second."""
    stem = f"{name}-{time.strftime('%Y%m%d-%H%M%S')}"
    number = 1
    while True:
        path = RUNS / (stem if number == 1 else f"{stem}-{number}")
        try:
            path.mkdir(parents=True)
            return path
        except FileExistsError:
            number += 1


def _keep_rows_before(file: Path, position: Position) -> None:
    reached = position.epoch, position.batch
    with complete_or_absent(file, "wb") as rewritten:
        for line, row in sound_lines(file, lambda row: are_numbers(row.get("epoch"), row.get("batch"))):
            if (row["epoch"], row["batch"]) < reached:
                rewritten.write(line)


def _environment() -> str:
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    device = device_name(accelerator) if accelerator else platform.machine()
    return (
        f"started as `{shlex.join(sys.argv)}` on {platform.node()}: Python {platform.python_version()}, "
        f"torch {torch.__version__}, {os.cpu_count()} cores, {device}"
    )
