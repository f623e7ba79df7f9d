"""Files of logs for other programs, and how long a run has taken."""

import os
import time
from pathlib import Path
from typing import IO

import psutil

from pipeline.errors import InputError
from pipeline.storage.files import regular
from train.world import LAUNCHER_VARIABLE


def opened(path: Path, *, append: bool) -> IO[str]:
    """A text file to write line by line, and its folder. Raises InputError."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return open(path, "a" if append else "w", buffering=1, opener=regular)
    except OSError as error:
        raise InputError(f"--log-format: {path} cannot be written ({error.strerror})") from None


def seconds_since_start() -> float:
    """Since the command was started: of the launcher, where it started this process, or of this process."""
    process = psutil.Process(int(os.environ.get(LAUNCHER_VARIABLE, os.getpid())))
    return time.time() - float(process.create_time())
