"""A picture of runs: loss and top-1, with the final and the best values. Runs that are equal are one curve."""

import contextlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.storage.manifest import parse_json
from pipeline.storage.reading import read_bounded
from train.metrics import MIXED, rows_to_draw, thinned
from train.pictures import plain, save_figure

STYLES = {("train", ""): "--", ("train", MIXED): ":", ("eval", ""): "-"}
"""By kind of row and prefix."""

MEANING = "Solid: evaluation, with a dot at the best. Dashed: training, on mixed images dotted."

ALIKE = 1.0
"""Runs whose top-1 differs by less, in percent, at each evaluation: their curves lie on each other, which is said."""

_LARGEST_CONFIG = 1 << 20  # bytes

Point = tuple[float | None, float | None]
"""Loss and top-1."""


@dataclass(frozen=True)
class Drawn:
    """A run, or several that are equal."""

    names: list[str]
    rows: list[dict[str, Any]]
    points: Mapping[tuple[str, int], Point] = field(repr=False)
    """By kind and step."""

    @classmethod
    def read(cls, run_dir: Path) -> "Drawn":
        """A run's metrics.jsonl."""
        rows = rows_to_draw(run_dir)
        return cls([run_dir.name], rows, {(row["kind"], row["step"]): _point(row) for row in rows})

    def is_equal_to(self, other: "Drawn") -> bool:
        """Whether all evaluations are equal, and the training rows that both have: of long runs not all are read."""
        common = self.points.keys() & other.points.keys()
        only_one = self.points.keys() ^ other.points.keys()
        return (
            bool(common)
            and all(self.points[key] == other.points[key] for key in common)
            and not any(kind == "eval" for kind, _ in only_one)
        )

    def evaluated(self, name: str) -> list[tuple[int, float]]:
        """Epoch and value of "loss" or "top1" at each evaluation where it is a finite number."""
        return [(row["epoch"], row[name]) for row in self.rows if row["kind"] == "eval" and row.get(name) is not None]


def _point(row: Mapping[str, Any]) -> Point:
    prefix = MIXED if f"{MIXED}top1" in row else ""
    return row.get(f"{prefix}loss"), row.get(f"{prefix}top1")


def in_words(names: Sequence[str]) -> str:
    """`a, b and c`."""
    shown = [*names[:5], f"{len(names) - 5} more"] if len(names) > 6 else list(names)
    return " and ".join([", ".join(shown[:-1]), shown[-1]]) if len(shown) > 1 else shown[0]


def grouped(runs: Iterable[Drawn]) -> list[Drawn]:
    """Runs that are equal as one."""
    groups: list[Drawn] = []
    for run in runs:
        same = next((group for group in groups if group.is_equal_to(run)), None)
        if same is None:
            groups.append(run)
        else:
            same.names.extend(run.names)
    return groups


def sentences(groups: Sequence[Drawn]) -> list[str]:
    """What the picture alone does not say: which runs are equal, and how much those differ that are nearly so."""
    said = [
        f"{in_words(group.names)} are equal: the same losses and accuracies, to the last digit, in all rows."
        for group in groups
        if len(group.names) > 1
    ]
    if _are_alike(groups):
        loss, top1 = _largest_differences(groups) or (0.0, 0.0)
        said.append(f"Between the curves, evaluations differ by at most {loss:.2g} in loss and {top1:.2g} in top-1.")
    return said


def _are_alike(groups: Sequence[Drawn]) -> bool:
    differences = _largest_differences(groups)
    return differences is not None and differences[1] < ALIKE


def _largest_differences(groups: Sequence[Drawn]) -> tuple[float, float] | None:
    """Of loss and top-1 over all evaluations; None for one curve, and for runs that were evaluated at other epochs."""
    largest = []
    for name in ("loss", "top1"):
        curves = [group.evaluated(name) for group in groups]
        epochs = [[epoch for epoch, _ in curve] for curve in curves]
        if len(groups) < 2 or not epochs[0] or any(other != epochs[0] for other in epochs):
            return None
        values = [[value for _, value in curve] for curve in curves]
        largest.append(max(max(at_once) - min(at_once) for at_once in zip(*values, strict=True)))
    return largest[0], largest[1]


def label_of(group: Drawn) -> str:
    """The runs' names, with the final and the best values."""
    values = [f"{title} {_values_in_words(group, name)}" for name, title in (("top1", "top-1"), ("loss", "loss"))]
    return f"{in_words(group.names)}: " + (", ".join(values) if group.evaluated("top1") else "not evaluated")


def _values_in_words(group: Drawn, name: str) -> str:
    """The final value, and the best one where that is another."""
    curve, digits = group.evaluated(name), 2 if name == "top1" else 3
    if not curve:
        return "not finite"
    (last, final), (epoch, best) = curve[-1], _best(curve, name)
    text = f"{final:.{digits}f}"
    return text if epoch == last else f"{text} (best {best:.{digits}f} after epoch {epoch})"


def _best(curve: Sequence[tuple[int, float]], name: str) -> tuple[int, float]:
    sign = 1 if name == "top1" else -1
    return max(curve, key=lambda point: sign * point[1])


def title_of(run_dirs: Sequence[Path]) -> str:
    """The run, or how many there are, and what was trained, where their config.json says so."""
    what = f"{len(run_dirs)} runs" if len(run_dirs) > 1 else run_dirs[0].resolve().name
    trained = {_model_of(run_dir) for run_dir in run_dirs} - {""}
    return f"{what}: {trained.pop()}" if len(trained) == 1 else what


def _model_of(run_dir: Path) -> str:
    with contextlib.suppress(OSError, ValueError, RecursionError):
        settings = parse_json(read_bounded(run_dir / "config.json", _LARGEST_CONFIG).decode())
        if isinstance(settings, dict):
            return str(settings.get("model", ""))
    return ""


def plot_curves(run_dirs: Iterable[Path], picture: Path) -> None:
    """Draw loss and top-1 of one or more runs. How long that takes depends little on how long the runs were. Raises
    OSError."""
    from matplotlib.figure import Figure  # here: it would delay the start of every process by 0.5 s
    from matplotlib.lines import Line2D

    run_dirs = list(run_dirs)
    groups = grouped(map(Drawn.read, run_dirs))
    said = [*sentences(groups), MEANING]
    figure = Figure(figsize=(11, 4.7 + 0.2 * (len(groups) + len(said))), layout="constrained")
    figure.suptitle(plain(title_of(run_dirs)), x=0.012, ha="left", fontweight="bold")
    # Where curves lie on each other, wider ones below narrower ones, so that all can be seen.
    step = 1.5 if _are_alike(groups) else 0.0
    for axes, name, label in zip(figure.subplots(1, 2), ("loss", "top1"), ("cross-entropy", "top-1, %"), strict=True):
        axes.set(xlabel="epoch", ylabel=label)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        for number, group in enumerate(groups):
            _draw(axes, group, name, f"C{number % 10}", 1.5 + step * (len(groups) - 1 - number))
        axes.set_ylim(bottom=0, top=100 if name == "top1" and axes.get_ylim()[1] > 80 else None)
    handles = [
        Line2D([], [], color=f"C{number % 10}", linewidth=2, label=plain(label_of(group)))
        for number, group in enumerate(groups)
    ]
    figure.legend(
        handles=handles, loc="outside lower left", title="\n".join(map(plain, said)), alignment="left", frameon=False,
        fontsize=9, title_fontsize=9,
    )  # fmt: skip
    save_figure(figure, picture)


def _draw(axes: Any, group: Drawn, name: str, colour: str, width: float) -> None:
    """A group's curves of "loss" or "top1"."""
    for (kind, prefix), style in reversed(STYLES.items()):
        named = [row for row in group.rows if row["kind"] == kind and f"{prefix}{name}" in row]
        values = [math.nan if row[f"{prefix}{name}"] is None else row[f"{prefix}{name}"] for row in named]
        points = thinned([row["epoch"] for row in named], values)
        is_faint = kind == "train"
        axes.plot(
            *points, style, color=colour, linewidth=max(1.0, width / 2) if is_faint else width,
            alpha=0.7 if is_faint else 1,
        )  # fmt: skip
    if curve := group.evaluated(name):
        axes.plot(*_best(curve, name), "o", color=colour, markersize=4 + width)
