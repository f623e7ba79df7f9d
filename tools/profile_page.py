"""The page that profiling leaves: one HTML file with its pictures in it, which opens without a network."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

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
from tools.throughput import Profile
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
            Piece(part, values[part], 100 * values[part] / longest, number)
            for number, part in enumerate(shown)
            if values.get(part, 0.0) > 0
        )
        bars.append(Stack(name, pieces, total))
    legend = tuple((name, number) for number, name in enumerate(shown))
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
    for axis in ("workers", "batch_size", "resolution", "nproc"):
        swept = {base.loader: _along(axis, base, everything) for base in bases}
        if any(len(profiles) > 1 for profiles in swept.values()):
            made.append(_chart(axis, swept))
    return made


def _along(axis: str, base: Profile, everything: list[Profile]) -> list[Profile]:
    """The profiles that differ from `base` in the swept setting alone, one for each of its values."""
    fixed = {"loader", "workers", "batch_size", "resolution", "nproc"} - {axis}
    if axis == "nproc":
        fixed.discard("workers")  # their default follows from it
    found = {
        getattr(one, axis): one
        for one in everything
        if all(getattr(one, name) == getattr(base, name) for name in fixed)
    }
    return [found[value] for value in sorted(found)]


def _chart(axis: str, swept: dict[str, list[Profile]]) -> Chart:
    values = sorted({getattr(one, axis) for profiles in swept.values() for one in profiles})
    every = [one for profiles in swept.values() for one in profiles]
    top = max(max(one.together.rate.high, one.loader_alone.rate.high, one.model_alone.rate.high) for one in every)
    step = _round_step(top)
    high = step * (top // step + 1)

    def x(value: int) -> float:
        return LEFT + (WIDTH - LEFT - 14) * (values.index(value) / max(1, len(values) - 1))

    def y(rate: float) -> float:
        return HEIGHT - BOTTOM - (HEIGHT - BOTTOM - TOP) * rate / high

    def line(name: str, profiles: list[Profile], what: str, colour: int, dashed: bool) -> Line:
        rates = [(getattr(one, axis), getattr(one, what).rate.median) for one in profiles]
        points = tuple((x(value), y(rate), f"{name}: {rate:,.4g} images/s at {value}") for value, rate in rates)
        return Line(name, points, colour, dashed)

    lines = []
    for number, (loader, profiles) in enumerate(swept.items()):
        lines.append(line(f"{loader} alone", profiles, "loader_alone", number, True))
        lines.append(line(f"{loader} with the model", profiles, "together", number, False))
    longest = max(swept.values(), key=len)
    lines.append(line("model alone (the ceiling)", longest, "model_alone", 7, True))
    ticks = tuple((y(step * number), f"{step * number:,.4g}") for number in range(int(high / step + 0.5) + 1))
    return Chart(axis.replace("_", " "), tuple(lines), tuple((x(value), str(value)) for value in values), ticks)


def _round_step(top: float) -> float:
    """A distance of 1, 2 or 5 times a power of ten, for three to seven ticks."""
    power = 10.0 ** (len(str(int(top))) - 1) if top >= 1 else 0.1
    return next(power * factor for factor in (0.2, 0.5, 1.0, 2.0) if top / (power * factor) < 7)


def write(path: Path, machine: str, bases: list[Profile], everything: list[Profile], verdicts: list[Verdict]) -> None:
    """Write the page."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATE.parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
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
