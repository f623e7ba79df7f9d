"""The page that profiling leaves: one HTML file with its pictures in it, which opens without a network."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from pipeline.cli import number
from pipeline.formats.files import complete_or_absent
from pipeline.profiling import PARTS
from tools.profile_tables import (
    BESIDE,
    OTHER,
    other_notes,
    part_seconds,
    part_table,
    rate_table,
    step_table,
    sweep_table,
)
from tools.step_clock import PHASES
from tools.throughput import AXES, Profile
from tools.verdict import Verdict

TEMPLATE = Path(__file__).with_name("profile_page.html")


@dataclass(frozen=True)
class Piece:
    """A part of a stacked bar."""

    name: str
    value: float
    percent: float  # of the longest bar
    colour: int


@dataclass(frozen=True)
class Stack:
    """A stacked bar."""

    name: str
    pieces: tuple[Piece, ...]
    total: float


@dataclass(frozen=True)
class Stacks:
    """Stacked bars on one scale, and perhaps a line across them."""

    bars: tuple[Stack, ...]
    legend: tuple[tuple[str, int], ...]
    unit: str
    ceiling: float | None = None
    ceiling_percent: float = 0.0


@dataclass(frozen=True)
class Line:
    """A curve of a chart, in the chart's own coordinates."""

    name: str
    points: tuple[tuple[float, float, str], ...]  # x, y, what it says
    colour: int
    dashed: bool = False

    @property
    def path(self) -> str:
        """As SVG's polyline takes it."""
        return " ".join(f"{x:.1f},{y:.1f}" for x, y, _ in self.points)


@dataclass(frozen=True)
class Chart:
    """Curves over one swept setting."""

    title: str
    lines: tuple[Line, ...]
    x_ticks: tuple[tuple[float, str], ...]
    y_ticks: tuple[tuple[float, str], ...]


WIDTH, HEIGHT, LEFT, BOTTOM, TOP = 400, 240, 52, 28, 10
"""Of a chart: small units, so that text on a phone is not."""
LOGARITHMIC = 8
"""An axis is, where the largest value is so many times the smallest."""


def stacks(
    rows: Sequence[tuple[str, dict[str, float]]], names: Sequence[str], unit: str, ceiling: float | None = None
) -> Stacks:
    """Bars of the named values; what is not positive is not drawn."""
    shown = [name for name in names if any(values.get(name, 0.0) > 0 for _, values in rows)]
    totals = [sum(max(0.0, values.get(name, 0.0)) for name in shown) for _, values in rows]
    # A ceiling far beyond the bars would make them too short to read: it is told in words then.
    drawn = ceiling if ceiling and ceiling < 3 * max(totals) else None
    longest = max([*totals, drawn or 0.0]) or 1.0
    bars = []
    for (name, values), total in zip(rows, totals, strict=True):
        pieces = tuple(
            Piece(part, values[part], 100 * values[part] / longest, colour)
            for colour, part in enumerate(shown)
            if values.get(part, 0.0) > 0
        )
        bars.append(Stack(name, pieces, total))
    legend = tuple((name, colour) for colour, name in enumerate(shown))
    return Stacks(tuple(bars), legend, unit, ceiling, 100 * drawn / longest if drawn else 0.0)


def loader_stacks(profiles: list[Profile]) -> Stacks:
    """CPU time an image by loader. The ceiling is what the machine's cores leave for an image at the model's rate."""
    rows = [
        (one.loader, {part: seconds * 1e6 for part, seconds in part_seconds(one).items()})
        for one in profiles
        if one.parts is not None
    ]
    budget = 1e6 * profiles[0].cores / profiles[0].model_alone.rate.median
    return stacks(rows, (*PARTS, OTHER, BESIDE), "µs", budget)


def step_stacks(profiles: list[Profile]) -> Stacks:
    """The time of a training step by loader."""
    rows = [(one.loader, {phase: seconds * 1e3 for phase, seconds in one.step_s.items()}) for one in profiles]
    return stacks(rows, PHASES, "ms")


def charts(bases: list[Profile], everything: list[Profile]) -> list[Chart]:
    """A chart for each swept setting: what each loader gives alone and with the model, and what the model takes."""
    made = []
    for axis in AXES:
        swept = {base.loader: _along(axis, base, everything) for base in bases}
        if any(len(profiles) > 1 for profiles in swept.values()):
            made.append(_chart(axis, swept))
    return made


def _along(axis: str, base: Profile, everything: list[Profile]) -> list[Profile]:
    """The profiles that differ from `base` in the swept setting alone, one for each of its values."""
    fixed = {"loader", *AXES} - {axis}
    if axis == "nproc":
        fixed.discard("workers")  # their default follows from it
    found = {
        getattr(one, axis): one
        for one in everything
        if all(getattr(one, name) == getattr(base, name) for name in fixed)
    }
    return [found[value] for value in sorted(found)]


def _chart(axis: str, swept: dict[str, list[Profile]]) -> Chart:
    measured = ("loader_alone", "model_alone", "together")
    every = [one for profiles in swept.values() for one in profiles]
    values = sorted({getattr(one, axis) for one in every})
    scale = Scale.over([getattr(one, what).rate.median for one in every for what in measured])

    def line(name: str, profiles: list[Profile], what: str, colour: int, dashed: bool) -> Line:
        rates = [(getattr(one, axis), getattr(one, what).rate.median) for one in profiles]
        points = tuple(
            (x(value), scale.y(rate), f"{name}: {number(rate)} images/s at {value}") for value, rate in rates
        )
        return Line(name, points, colour, dashed)

    def x(value: int) -> float:
        return LEFT + (WIDTH - LEFT - 14) * (values.index(value) / max(1, len(values) - 1))

    lines = []
    for colour, (loader, profiles) in enumerate(swept.items()):
        lines.append(line(f"{loader} alone", profiles, "loader_alone", colour, True))
        lines.append(line(f"{loader} with the model", profiles, "together", colour, False))
    longest = max(swept.values(), key=len)
    lines.append(line("model alone (the ceiling)", longest, "model_alone", 7, True))
    ticks = tuple((scale.y(tick), number(tick)) for tick in scale.ticks)
    title = axis.replace("_", " ") + (", logarithmic" if scale.logarithmic else "")
    return Chart(title, tuple(lines), tuple((x(value), str(value)) for value in values), ticks)


@dataclass(frozen=True)
class Scale:
    """The vertical axis of a chart: from zero, or logarithmic where rates differ too much for that."""

    low: float
    high: float
    ticks: tuple[float, ...]
    logarithmic: bool

    @classmethod
    def over(cls, rates: Sequence[float]) -> "Scale":
        """An axis on which all of them can be read."""
        logarithmic = max(rates) > LOGARITHMIC * min(rates)
        factors = (1,) if max(rates) > 1000 * min(rates) else (1, 2, 5)
        exponents = range(math.floor(math.log10(min(rates))), math.ceil(math.log10(max(rates))) + 1)
        steps = [factor * 10.0**exponent for exponent in exponents for factor in factors]
        if logarithmic:
            low = max(step for step in steps if step <= min(rates))
            high = min(step for step in steps if step >= max(rates))
            return cls(low, high, tuple(step for step in steps if low <= step <= high), True)
        steps += [step / 100 for step in steps]
        step = min(step for step in steps if max(rates) / step <= 6)
        count = math.ceil(max(rates) / step)
        return cls(0.0, step * count, tuple(step * times for times in range(count + 1)), False)

    def y(self, rate: float) -> float:
        """Where a rate is in the chart."""
        place = math.log(rate / self.low) / math.log(self.high / self.low) if self.logarithmic else rate / self.high
        return HEIGHT - BOTTOM - (HEIGHT - BOTTOM - TOP) * place


def write(path: Path, machine: str, bases: list[Profile], everything: list[Profile], verdicts: list[Verdict]) -> None:
    """Write the page."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATE.parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.filters["number"] = number
    tables = [("Rates", rate_table(bases, verdicts)), ("The loaders", part_table(bases))]
    tables.append(("The step", step_table(bases)))
    if len(everything) > len(bases):
        tables.append(("All settings", sweep_table(everything)))
    text = environment.get_template(TEMPLATE.name).render(
        base=bases[0],
        machine=machine,
        verdicts=[(base.loader, verdict) for base, verdict in zip(bases, verdicts, strict=True)],
        tables=tables,
        notes=other_notes(bases),
        loader_stacks=loader_stacks(bases),
        step_stacks=step_stacks(bases),
        charts=charts(bases, everything),
        width=WIDTH,
        height=HEIGHT,
        left=LEFT,
        bottom=BOTTOM,
    )
    with complete_or_absent(path) as file:
        file.write(text)
