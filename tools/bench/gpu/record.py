"""The figures of a part, in a JSON file that is complete after each of them."""

import json
import logging
import shlex
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import InputError
from tools.bench import report
from tools.bench.gpu.settings import GpuSettings
from tools.bench.processes import NotMeasuredError, TooLongError, problem_of, results_within

log = logging.getLogger(__name__)

Figure = dict[str, Any]

SAME_MACHINE = ("device", "cpu", "cores", "torch")
"""Of the machine's facts, those that figures of one file have in common."""


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """Some figures that are measured in one process."""

    names: tuple[str, ...]
    function: Callable[..., Iterable[Figure]]
    """Called with `arguments` and the names that are wanted; yields a figure for each, in that order."""
    arguments: tuple[Any, ...] = ()
    least_seconds: float = 10.0
    """With less time left, it is not begun."""


class Record:
    """What a part has measured, and what it has left out and why; written whenever something is added."""

    def __init__(self, part: str, settings: GpuSettings, machine: dict[str, str]) -> None:
        self.part, self.settings, self._machine = part, settings, machine
        self.path = path_of(settings.out, part)
        self.figures: dict[str, Figure] = {}
        self.left_out: dict[str, str] = {}
        self._end = time.monotonic() + settings.seconds
        self._take_over()
        self.write()

    @property
    def seconds_left(self) -> float:
        """Of the part's time."""
        return self._end - time.monotonic()

    def add(self, name: str, figure: Figure) -> None:
        """Keep a figure."""
        self.figures[name] = figure | {"date": _now()}
        self.left_out.pop(name, None)
        self.write()
        log.info("%s: %s", name, brief(figure))

    def leave_out(self, name: str, why: str) -> None:
        """Say why a figure is missing."""
        self.left_out[name] = why
        self.write()
        log.info("%s: not measured: %s", name, why)

    def write(self) -> None:
        """Write the file."""
        content = {
            "part": self.part,
            "machine": self._machine,
            "command": shlex.join(sys.argv),
            "date": _now(),
            "kept_with": self.settings.kept_with,
            "figures": self.figures,
            "left_out": self.left_out,
        }
        report.write_json(self.path, content)

    def _take_over(self) -> None:
        """Keep the figures of an earlier call on this machine, with the same settings."""
        earlier = read(self.settings.out, self.part)
        if earlier is None or self.settings.again:
            return
        same_machine = all(earlier["machine"].get(name) == self._machine.get(name) for name in SAME_MACHINE)
        if not same_machine or earlier["kept_with"] != self.settings.kept_with:
            raise InputError(
                f"{self.path}: measured on another machine or with other settings; add --again to forget it, or choose "
                f"another --out"
            )
        self.figures = earlier["figures"]


def measure_all(record: Record, measurements: Sequence[Measurement]) -> None:
    """Measure what the record does not have yet, until its time is up."""
    for one in measurements:
        missing = tuple(name for name in one.names if name not in record.figures)
        if not missing:
            continue
        if record.seconds_left < one.least_seconds:
            for name in missing:
                record.leave_out(name, f"no time left of --seconds {record.settings.seconds:.0f}; call again")
            continue
        log.info("%s: %s", record.part, ", ".join(missing))
        _measure(record, one, missing)


def _measure(record: Record, one: Measurement, missing: tuple[str, ...]) -> None:
    waiting = list(missing)
    try:
        for figure in _figures(record, one, missing):
            record.add(waiting.pop(0), figure)
    except TooLongError:
        reason = f"not done within --seconds {record.settings.seconds:.0f}; call again"
    except NotMeasuredError as error:
        reason = str(error)
    else:
        assert not waiting, f"{record.part}: no figures for {waiting}"
    for name in waiting:
        record.leave_out(name, reason)


def _figures(record: Record, one: Measurement, missing: tuple[str, ...]) -> Iterator[Figure]:
    if record.settings.isolate:
        yield from results_within(record.seconds_left, one.function, *one.arguments, missing)
        return
    try:
        yield from one.function(*one.arguments, missing)
    except Exception as error:
        raise NotMeasuredError(problem_of(error)) from error


def path_of(out: Path, part: str) -> Path:
    """The file of a part."""
    return out / f"{part}.json"


def read(out: Path, part: str) -> dict[str, Any] | None:
    """What was measured of a part; None if nothing was. Raises InputError for a file of something else."""
    path = path_of(out, part)
    if not path.exists():
        return None
    try:
        content: dict[str, Any] = json.loads(path.read_text())
        if not {"machine", "command", "date", "kept_with", "figures", "left_out"} <= content.keys():
            raise ValueError("parts of it are missing")
    except (ValueError, AttributeError) as error:
        raise InputError(f"{path}: not written by this command ({error})") from None
    return content


def brief(figure: Figure) -> str:
    """The numbers and words of a figure, in a line."""
    return ", ".join(f"{name} {value}" for name, value in figure.items() if isinstance(value, int | float | str))


def _now() -> str:
    return time.strftime("%Y-%m-%d %H:%M %Z")
