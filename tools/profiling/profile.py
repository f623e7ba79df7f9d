"""Measure what limits training: `python tools/profile_throughput.py --data data/shards --model resnet152`.

Measures the loader alone, the model alone on synthetic images and both together, through the code that training uses;
how the loader's time and the step's time divide up; and with --sweep the same with other settings. Explains the result
in words, and writes profile.json and a page with charts.
"""

import contextlib
import dataclasses
import logging
import shlex
import signal
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import FrameType
from typing import Any, NoReturn

import models
from pipeline import loaders
from pipeline.cli import number
from pipeline.errors import InputError
from pipeline.progress import announced
from tools.bench import report
from tools.profiling import page, throughput
from tools.profiling.advice import conversion_advice
from tools.profiling.disturbance import ATTEMPTS, is_disturbed, undisturbed_rate
from tools.profiling.estimate import conversion_factors
from tools.profiling.limit import limit, pixels_limit
from tools.profiling.profiles import AXES, Profile
from tools.profiling.settings import ProfileSettings
from tools.profiling.stream_report import predict_stream
from tools.profiling.tables import other_notes, part_table, rate_table, step_table, sweep_table
from tools.profiling.throughput import InterruptedProfile, Options
from tools.profiling.trials import Trials, try_all
from tools.profiling.verdict import Verdict, judge
from tools.profiling.windows import Windows
from train.device import select
from train.inputs import check, open_data

log = logging.getLogger(__name__)


@dataclass
class Measurements:
    """What has been measured so far; more is added while the command runs."""

    bases: list[Profile] = field(default_factory=list)
    """A profile of each loader with the settings of the command line."""
    swept: list[Profile] = field(default_factory=list)
    factors: dict[str, float] = field(default_factory=dict)
    """How many times less CPU time other conversions of the data would take."""
    trials: dict[str, Trials] = field(default_factory=dict)
    """By loader."""

    @property
    def profiles(self) -> list[Profile]:
        """All of them, those of a loader together."""
        order = [base.loader for base in self.bases]
        return sorted([*self.bases, *self.swept], key=lambda one: order.index(one.loader))

    def verdicts(self) -> list[Verdict]:
        """The verdict on each of `bases`."""
        return [
            judge(base, self.profiles, conversion_advice(base, self.factors), self.trials.get(base.loader))
            for base in self.bases
        ]


def profile(settings: ProfileSettings) -> dict[str, Any]:
    """The command. Whatever stops it, what was measured before is written."""
    if settings.simulate:
        return predict_stream(settings)
    try:
        settings.out.mkdir(parents=True, exist_ok=True)  # fails now, not after all measurements
    except OSError as error:
        raise InputError(f"--out {settings.out}: cannot be written ({error.strerror})") from None
    for changes in ({}, *settings.sweep_points):
        check(settings.training_config("auto", changes))  # before minutes are spent on the first one
    names = chosen_loaders(settings)
    measured = Measurements()
    with sigterm_raises():
        try:
            measure_all(settings, names, measured)
        except BaseException as stop:
            incomplete = f"incomplete ({cause(stop)}), measured so far: {extent(settings, names, measured)}"
            if measured.bases:
                write_results(settings, measured, incomplete)
            else:
                log.info("%s", incomplete)
            raise
        return write_results(settings, measured)


@contextlib.contextmanager
def sigterm_raises() -> Iterator[None]:
    """SIGTERM raises SystemExit with the exit code that a shell reports of it, as Ctrl-C raises KeyboardInterrupt."""

    def stop(number: int, frame: FrameType | None) -> NoReturn:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def cause(stop: BaseException) -> str:
    """What stopped the command, in words."""
    if isinstance(stop, KeyboardInterrupt):
        return "interrupted"
    if isinstance(stop, SystemExit) and isinstance(stop.code, int):
        return signal.Signals(stop.code - 128).name if stop.code > 128 else f"exit code {stop.code}"
    return "an error"


def extent(settings: ProfileSettings, names: list[str], measured: Measurements) -> str:
    """How much has been measured, in words."""
    windows = {base.loader: base.windows for base in measured.bases}
    texts = [f"{name} ({windows.get(name, 0)} of {settings.windows} windows)" for name in names]
    if settings.sweep:
        texts.append(f"{len(measured.swept)} settings of --sweep")
    return ", ".join(texts)


def measure_all(settings: ProfileSettings, names: list[str], measured: Measurements) -> None:
    """Measure everything that the command line names, into `measured`."""
    for name in announced(names, "loader"):
        measure(settings, name, {}, measured.bases, parts=True)
    sweep(settings, measured)
    repeat_disturbed(settings, measured)
    measured.factors = estimate_conversions(settings, measured.bases)
    try_settings(settings, measured)
    for name in announced(names, "trace") if settings.trace else ():
        write_trace(settings, name)


def chosen_loaders(settings: ProfileSettings) -> list[str]:
    """--loader, with `auto` and `all` resolved. Raises InputError for one that cannot read the data."""
    names: list[str] = []
    split = open_data(settings.training_config("auto", {}), "train")
    for name in settings.loader_names:
        if name == "auto":
            chosen, why = loaders.choose(split)
            log.info("loader auto: %s (%s)", chosen, why)
            names.append(chosen)
        elif name == "all":
            passed_over: list[str] = []
            usable = [name for name, _ in loaders.usable(split, passed_over)]
            log.info("loader all: %s", "; ".join([", ".join(usable), *passed_over]))
            names += usable
        else:
            loaders.load(name)  # a missing package is reported before anything is measured
            names.append(name)
    return list(dict.fromkeys(names))


def measure(
    settings: ProfileSettings, loader: str, changes: Mapping[str, int], profiles: list[Profile], *, parts: bool
) -> None:
    """Append to `profiles` that of a loader with changed settings; with `parts` also where the loader spends its
    time."""
    options = Options(windows=windows_of(settings), cold=settings.cold, parts=parts)
    try:
        profiles.append(throughput.profile(settings.training_config(loader, changes), options))
    except InterruptedProfile as interrupted:
        profiles.append(interrupted.profile)
        raise interrupted.cause from None


def windows_of(settings: ProfileSettings) -> Windows:
    """How often and how long each rate is measured."""
    return Windows(count=settings.windows, seconds=settings.window_seconds)


def sweep(settings: ProfileSettings, measured: Measurements) -> None:
    """The measurements of --sweep, without settings that have been measured already."""
    points = [
        (base, changes)
        for base in measured.bases
        for changes in settings.sweep_points
        if any(getattr(base, name) != value for name, value in changes.items())
    ]
    for base, changes in announced(points, "sweep", lambda point: f"{point[0].loader} with {in_words(point[1])}"):
        measure(settings, base.loader, changes, measured.swept, parts=False)


def in_words(changes: Mapping[str, int]) -> str:
    """Changed settings as flags."""
    return " ".join(f"--{name.replace('_', '-')} {value}" for name, value in changes.items())


def repeat_disturbed(settings: ProfileSettings, measured: Measurements) -> None:
    """Measure again, a few times, what other programs disturbed, and keep the measurement that was disturbed least."""
    for attempt in range(ATTEMPTS):
        for group, parts in ((measured.bases, True), (measured.swept, False)):
            for index, one in enumerate(group):
                if not is_disturbed(one, measured.profiles):
                    continue
                log.info(
                    "%s: disturbed, the model alone reached %s images/s and %s elsewhere; measuring again (%d of %d)",
                    one.loader, number(one.model_alone.rate.median),
                    number(undisturbed_rate(one, measured.profiles)), attempt + 1, ATTEMPTS,
                )  # fmt: skip
                repeated = [one]
                measure(settings, one.loader, {axis: getattr(one, axis) for axis in AXES}, repeated, parts=parts)
                group[index] = max(repeated, key=lambda each: each.model_alone.rate.median)


def try_settings(settings: ProfileSettings, measured: Measurements) -> None:
    """Where a model is the limit, try settings that can make it faster, with the loader that is fastest with it."""
    limited = [
        base for base in measured.bases if limit(base) == "compute" and not is_disturbed(base, measured.profiles)
    ]
    if not limited or not settings.advice_seconds:
        return
    base = max(limited, key=lambda one: one.together.rate.median)

    def started(flag: str) -> None:
        log.info("trying %s with %s", flag, base.loader)

    config = settings.training_config(base.loader, {})
    measured.trials[base.loader] = try_all(config, base.device, windows_of(settings), settings.advice_seconds, started)


def estimate_conversions(settings: ProfileSettings, bases: list[Profile]) -> dict[str, float]:
    """How many times less CPU time other conversions of the data would take, if a loader is the limit."""
    if not any(map(pixels_limit, bases)):
        return {}
    log.info("estimating what other conversions of the data would gain")
    split = open_data(settings.training_config("auto", {}), "train")
    return conversion_factors(split, bases[0].resolution)


def write_trace(settings: ProfileSettings, loader: str) -> None:
    """Write a loader's trace. After all measurements: a process that was traced once may stay slower."""
    path = settings.out / f"trace-{models.short_name(loader)}.json"
    options = Options(windows=Windows(count=1, seconds=settings.window_seconds / 10), parts=False, trace=path)
    throughput.profile(settings.training_config(loader, {}), options)
    log.info("trace: %s", path)


def log_results(measured: Measurements, verdicts: list[Verdict]) -> None:
    """Log the verdicts, then the tables."""
    bases, profiles = measured.bases, measured.profiles
    for base, verdict in zip(bases, verdicts, strict=True):
        log.info("\n%s: %s", base.loader, verdict)
    tables = [rate_table(bases, verdicts), part_table(bases), step_table(bases)]
    if len(profiles) > len(bases):
        tables.append(sweep_table(profiles))
    for header, *rows in tables:
        if rows:
            log.info("\n%s", report.table(header, rows))
    for note in other_notes(bases):
        log.info("%s", note)


def write_results(settings: ProfileSettings, measured: Measurements, incomplete: str = "") -> dict[str, Any]:
    """Log the results; write profile.json and profile.html; return the result line. `incomplete` says why not all
    was measured."""
    bases, profiles, verdicts = measured.bases, measured.profiles, measured.verdicts()
    log_results(measured, verdicts)
    machine = report.machine(select(settings.device, 0, 1))
    date = time.strftime("%Y-%m-%d %H:%M %Z")
    content: dict[str, Any] = {
        "machine": machine,
        "command": shlex.join(sys.argv),
        "data": settings.data,
        "date": date,
        "incomplete": incomplete or None,
        "verdicts": [
            {"loader": base.loader} | dataclasses.asdict(verdict) | {"text": str(verdict)}
            for base, verdict in zip(bases, verdicts, strict=True)
        ],
        "trials": {loader: dataclasses.asdict(trials)["trials"] for loader, trials in measured.trials.items()},
        "profiles": [dataclasses.asdict(one) for one in profiles],
    }
    report.write_json(settings.out / "profile.json", content)
    machine_line = report.machine_line(machine)
    about = {"Command": content["command"], "Data": settings.data, "Date": date, "Machine": machine_line}
    page.write(settings.out / "profile.html", about, bases, profiles, verdicts, incomplete)
    log.info("%s\nwritten: %s and profile.html", machine_line, settings.out / "profile.json")
    if incomplete:
        log.info("%s", incomplete)
    return {"loaders": [result(*pair) for pair in zip(bases, verdicts, strict=True)], "out": str(settings.out)}


def result(base: Profile, verdict: Verdict) -> dict[str, Any]:
    """A loader's entry in the result line; rates to four digits."""
    rates = {
        "loader": base.loader_alone.rate.median,
        "model": base.model_alone.rate.median,
        "train": base.together.rate.median,
        "predicted": verdict.predicted,
    }
    rounded = {f"{name}_images_per_s": float(f"{rate:.4g}") for name, rate in rates.items()}
    return {"loader": base.loader, **rounded, "limited_by": verdict.limited_by}
