"""The page that profiling writes: one HTML file with its charts inside, which opens without a network."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from pipeline.cli import number
from pipeline.storage.files import complete_or_absent
from tools.bench.report import Rate
from tools.profiling.loader_parts import PARTS
from tools.profiling.profiles import AXES, Profile
from tools.profiling.tables import (
    CONCURRENCY,
    OTHER,
    other_notes,
    part_seconds,
    part_table,
    rate_table,
    step_table,
    sweep_table,
)
from tools.profiling.verdict import Verdict
from train.step_clock import ALL_REDUCE, BACKWARD, DATA, FORWARD, OPTIMIZER, PHASES

TEMPLATE = Path(__file__).with_name("page.html")

LOADER, MODEL, BOTH = "loader alone", "model alone", "together"

COLOURS: dict[str, str] = {
    LOADER: "loader",
    MODEL: "model",
    BOTH: "both",
    "read": "read",
    "crop": "crop",
    "decode": "decode",
    "entropy": "entropy",
    "transform": "transform",
    "colour": "colour",
    "resize": "resize",
    "collate": "collate",
    CONCURRENCY: "workers",
    DATA: "loader",
    FORWARD: "forward",
    BACKWARD: "backward",
    ALL_REDUCE: "all-reduce",
    OPTIMIZER: "optimiser",
    OTHER: "other",
}
"""The colour of each thing that is drawn, as the page names it: cold ones belong to the loader, warm ones to the model.
A colour means the same in all charts; what is waited for is the loader."""


@dataclass(frozen=True)
class Segment:
    """A part of a stacked bar."""

    name: str
    value: float
    percent: float  # of the longest bar
    colour: str


@dataclass(frozen=True)
class Bar:
    """A stacked bar."""

    name: str
    segments: tuple[Segment, ...]
    total: float


@dataclass(frozen=True)
class BarChart:
    """Stacked bars on one scale, with an optional line across them."""

    bars: tuple[Bar, ...]
    legend: tuple[tuple[str, str], ...]
    unit: str
    ceiling: float | None = None
    ceiling_percent: float = 0.0


@dataclass(frozen=True)
class RateBar:
    """A measured rate, in percent of the largest one."""

    name: str
    text: str
    percent: float
    low: float  # quartiles
    high: float
    colour: str


@dataclass(frozen=True)
class RateGroup:
    """The rates of a loader."""

    loader: str
    limited_by: str
    bars: tuple[RateBar, ...]


@dataclass(frozen=True)
class Line:
    """A curve of a line chart, in the chart's own coordinates."""

    name: str
    points: tuple[tuple[float, float, str], ...]  # x, y, tooltip
    colour: str
    dashed: bool = False

    @property
    def path(self) -> str:
        """The points of SVG's polyline."""
        return " ".join(f"{x:.1f},{y:.1f}" for x, y, _ in self.points)


@dataclass(frozen=True)
class LineChart:
    """Curves over one swept setting."""

    title: str
    lines: tuple[Line, ...]
    x_ticks: tuple[tuple[float, str], ...]
    y_ticks: tuple[tuple[float, str], ...]


WIDTH, HEIGHT, LEFT, BOTTOM, TOP = 400, 240, 52, 28, 10
"""Of a line chart, in SVG units; these are few, so that text stays readable on a phone."""
LOGARITHMIC = 8
"""An axis is logarithmic from this ratio of the largest to the smallest value on."""


def bar_chart(
    rows: Sequence[tuple[str, dict[str, float]]], names: Sequence[str], unit: str, ceiling: float | None = None
) -> BarChart:
    """A bar for each row, of its named values that are positive."""
    shown = [name for name in names if any(values.get(name, 0.0) > 0 for _, values in rows)]
    totals = [sum(max(0.0, values.get(name, 0.0)) for name in shown) for _, values in rows]
    # A ceiling far beyond the bars would make them too short to read, so it is only put in words.
    drawn = ceiling if ceiling and ceiling < 3 * max(totals, default=0.0) else None
    longest = max([*totals, drawn or 0.0]) or 1.0
    bars = []
    for (name, values), total in zip(rows, totals, strict=True):
        segments = tuple(
            Segment(part, values[part], 100 * values[part] / longest, COLOURS[part])
            for part in shown
            if values.get(part, 0.0) > 0
        )
        bars.append(Bar(name, segments, total))
    legend = tuple((name, COLOURS[name]) for name in shown)
    return BarChart(tuple(bars), legend, unit, ceiling, 100 * drawn / longest if drawn else 0.0)


def rate_groups(profiles: list[Profile], verdicts: Sequence[Verdict]) -> list[RateGroup]:
    """The chart that comes first: for each loader its rate next to the model's and to that of both together."""
    rates = [{LOADER: one.loader_alone.rate, MODEL: one.model_alone.rate, BOTH: one.together.rate} for one in profiles]
    longest = max(rate.high for of_one in rates for rate in of_one.values())

    def bar(name: str, rate: Rate) -> RateBar:
        median, low, high = (100 * value / longest for value in (rate.median, rate.low, rate.high))
        return RateBar(name, f"{rate}", median, low, high, COLOURS[name])

    return [
        RateGroup(one.loader, verdict.limited_by, tuple(bar(*item) for item in of_one.items()))
        for one, of_one, verdict in zip(profiles, rates, verdicts, strict=True)
    ]


def loader_chart(profiles: list[Profile]) -> BarChart:
    """CPU time per image by loader. The ceiling is the CPU time that the machine has for an image at the model's
    rate."""
    rows = [
        (one.loader, {part: seconds * 1e6 for part, seconds in part_seconds(one).items()})
        for one in profiles
        if one.parts is not None
    ]
    budget = 1e6 * profiles[0].cores / profiles[0].model_alone.rate.median
    return bar_chart(rows, (*PARTS, OTHER, CONCURRENCY), "µs", budget)


def step_chart(profiles: list[Profile]) -> BarChart:
    """The time of a training step by loader."""
    rows = [(one.loader, {phase: seconds * 1e3 for phase, seconds in one.step_s.items()}) for one in profiles]
    return bar_chart(rows, PHASES, "ms")


def sweep_charts(bases: list[Profile], profiles: list[Profile]) -> list[LineChart]:
    """A chart for each swept setting and loader: its rate alone and with the model, and that of the model alone. Those
    of one setting have the same axes."""
    charts = []
    for axis in AXES:
        swept = {base.loader: _along(axis, base, profiles) for base in bases}
        if any(len(points) > 1 for points in swept.values()):
            charts += _sweep_charts(axis, swept)
    return charts


def _along(axis: str, base: Profile, profiles: list[Profile]) -> list[Profile]:
    """The profiles that differ from `base` only in the swept setting, one for each of its values."""
    fixed = {"loader", *AXES} - {axis}
    if axis == "nproc":
        fixed.discard("workers")  # the default depends on nproc
    by_value = {
        getattr(one, axis): one for one in profiles if all(getattr(one, name) == getattr(base, name) for name in fixed)
    }
    return [by_value[value] for value in sorted(by_value)]


def _sweep_charts(axis: str, swept: dict[str, list[Profile]]) -> list[LineChart]:
    measurements = {LOADER: "loader_alone", MODEL: "model_alone", BOTH: "together"}
    every = [one for profiles in swept.values() for one in profiles]
    values = sorted({getattr(one, axis) for one in every})
    scale = Scale.over(
        [getattr(one, measurement).rate.median for one in every for measurement in measurements.values()]
    )

    def x(value: int) -> float:
        return LEFT + (WIDTH - LEFT - 14) * (values.index(value) / max(1, len(values) - 1))

    def line(name: str, profiles: list[Profile]) -> Line:
        rates = [(getattr(one, axis), getattr(one, measurements[name]).rate.median) for one in profiles]
        points = tuple(
            (x(value), scale.y(rate), f"{name}: {number(rate)} images/s at {value}") for value, rate in rates
        )
        return Line(name, points, COLOURS[name], dashed=name == MODEL)

    x_ticks = tuple((x(value), str(value)) for value in values)
    y_ticks = tuple((scale.y(tick), number(tick)) for tick in scale.ticks)
    title = axis.replace("_", " ") + (", logarithmic" if scale.logarithmic else "")
    return [
        LineChart(
            f"{loader}, images/s over {title}", tuple(line(name, profiles) for name in measurements), x_ticks, y_ticks
        )
        for loader, profiles in swept.items()
        if profiles
    ]


@dataclass(frozen=True)
class Scale:
    """The vertical axis of a line chart: from zero, or logarithmic where the rates differ too much for that."""

    low: float
    high: float
    ticks: tuple[float, ...]
    logarithmic: bool

    @classmethod
    def over(cls, rates: Sequence[float]) -> "Scale":
        """An axis on which all rates can be read."""
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
        """The vertical coordinate of a rate."""
        place = math.log(rate / self.low) / math.log(self.high / self.low) if self.logarithmic else rate / self.high
        return HEIGHT - BOTTOM - (HEIGHT - BOTTOM - TOP) * place


def write(
    path: Path,
    about: Mapping[str, str],
    bases: list[Profile],
    profiles: list[Profile],
    verdicts: list[Verdict],
    incomplete: str = "",
) -> None:
    """Write the page. `about` says how the figures came about: the command, the data, the date, the machine;
    `incomplete`, why not all was measured."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATE.parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.filters["number"] = number
    tables = [("Rates", rate_table(bases, verdicts)), ("The loaders", part_table(bases))]
    tables.append(("The step", step_table(bases)))
    tables = [(title, rows) for title, rows in tables if len(rows) > 1]
    if len(profiles) > len(bases):
        tables.append(("All settings", sweep_table(profiles)))
    text = environment.get_template(TEMPLATE.name).render(
        base=bases[0],
        about=about,
        rate_groups=rate_groups(bases, verdicts),
        incomplete=incomplete,
        verdicts=[(base.loader, verdict) for base, verdict in zip(bases, verdicts, strict=True)],
        tables=tables,
        notes=other_notes(bases),
        loader_chart=loader_chart(bases),
        step_chart=step_chart(bases),
        charts=sweep_charts(bases, profiles),
        width=WIDTH,
        height=HEIGHT,
        left=LEFT,
        bottom=BOTTOM,
    )
    with complete_or_absent(path) as file:
        file.write(text)
