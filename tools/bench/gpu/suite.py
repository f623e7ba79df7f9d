"""The tests that need a CUDA device, each with its outcome."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Generator
from pathlib import Path

from tools.bench.gpu.record import Record

ROOT = Path(__file__).resolve().parents[3]
PYTEST = ("-m", "pytest", "tests/gpu", "-m", "gpu", "-v", "-p", "no:cacheprovider", "--color=no", "-rfEs")

PASSED, NOTHING_LEFT = "passed", 5
"""An outcome; and pytest's exit code where no test is left to run."""

_OUTCOME = re.compile(r"^(tests/\S+?::.+?) (PASSED|FAILED|ERROR|SKIPPED|XFAIL|XPASS)\b")


def measure(record: Record) -> None:
    """The part. Tests that have passed are not run again, all others are."""
    record.figures = {name: figure for name, figure in record.figures.items() if figure["outcome"] == PASSED}
    passed = list(record.figures)
    log_path = record.path.with_suffix(".log")
    output = lines_within(record.seconds_left, command(passed))
    with log_path.open("w") as log_file, contextlib.closing(output):
        while True:
            try:
                line = next(output)
            except StopIteration as end:
                code = end.value
                break
            log_file.write(line)
            if outcome := _OUTCOME.match(line):
                record.add(outcome[1], {"outcome": outcome[2].lower()})
    if code == -signal.SIGKILL:
        record.leave_out("the rest", f"not done within --seconds {record.settings.seconds:.0f}; call again")
    elif code not in (0, 1) and not (passed and code == NOTHING_LEFT):
        record.leave_out("the rest", f"pytest ended with exit code {code}, see {log_path}")


def command(passed: list[str]) -> list[str]:
    """What runs the tests that are not among those that have passed."""
    return [sys.executable, *PYTEST, *(f"--deselect={name}" for name in passed)]


def lines_within(seconds: float, command: list[str]) -> Generator[str, None, int]:
    """The lines that a command prints, in the repository's root; returns its exit code. After so many seconds, and at
    the end, it is killed with all that it started."""
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    assert process.stdout is not None
    timer = threading.Timer(max(0.0, seconds), _kill, (process,))
    timer.start()
    try:
        with process.stdout as lines:
            yield from lines
        return process.wait()
    finally:
        timer.cancel()
        _kill(process)
        process.wait()


def _kill(process: subprocess.Popen[str]) -> None:
    if process.poll() is None:
        with contextlib.suppress(ProcessLookupError):  # it has just ended
            os.killpg(process.pid, signal.SIGKILL)
