"""What the terminal and the page show of profiles: tables as a header row and rows of text."""

from pipeline.cli import number
from pipeline.profiling import PARTS, UNSEEN, LoaderParts
from tools.step_clock import PHASES
from tools.throughput import AXES, Profile
from tools.verdict import Verdict

OTHER, BESIDE = "other", "side by side"
"""CPU time in none of the parts, and what a loader with all its workers takes more than in one thread."""
COPY = "copy to the device"
"""Beside the loader's work, so no share of it."""

Table = list[list[str]]


def rate_table(profiles: list[Profile], verdicts: list[Verdict]) -> Table:
    """A row for each loader: the rates and what they mean."""
    rows = [["images/s", "loader alone", "model alone", "together", "predicted", "limited by"]]
    for one, verdict in zip(profiles, verdicts, strict=True):
        rates = [str(measured.rate) for measured in (one.loader_alone, one.model_alone, one.together)]
        rows.append([one.loader, *rates, number(verdict.predicted), verdict.limited_by])
    return rows


def part_seconds(profile: Profile) -> dict[str, float]:
    """CPU seconds an image by part, with what is in none of them and what working side by side adds."""
    assert profile.parts is not None
    beside = profile.loader_alone.cpu_s - profile.parts.whole_s
    return profile.parts.parts_s | {OTHER: profile.parts.other_s, BESIDE: beside}


def part_table(profiles: list[Profile]) -> Table:
    """A row for each loader: microseconds of CPU time an image by part, and waiting for reads."""
    rows = [["CPU µs an image", *PARTS, OTHER, "in one thread", BESIDE, "waits for reads", COPY]]
    for one in profiles:
        for name, parts in ((one.loader, one.parts), (f"{one.loader}, cold files", one.cold_parts)):
            if parts is not None:
                beside = _microseconds(one.loader_alone.cpu_s - parts.whole_s) if parts is one.parts else ""
                copy = _microseconds(1 / one.transfer.median) if one.transfer else ""
                rows.append([name, *_part_cells(parts), beside, _microseconds(parts.read_wait_s), copy])
    return rows if any(row[-1] for row in rows[1:]) else [row[:-1] for row in rows]


def _part_cells(parts: LoaderParts) -> list[str]:
    seconds = [*(parts.parts_s.get(part, 0.0) for part in PARTS), parts.other_s]
    return [*(f"{_microseconds(one)} {one / parts.whole_s:4.0%}" for one in seconds), _microseconds(parts.whole_s)]


def _microseconds(seconds: float) -> str:
    return f"{seconds * 1e6:,.0f}"


def other_notes(profiles: list[Profile]) -> list[str]:
    """What "other" is, where a loader keeps its insides to itself."""
    return [f"{OTHER} of {one.loader}: {UNSEEN[one.loader]}" for one in profiles if one.loader in UNSEEN]


def step_table(profiles: list[Profile]) -> Table:
    """A row for each loader: milliseconds of a training step by phase."""
    shown = [phase for phase in PHASES if any(one.step_s[phase] for one in profiles)]
    rows = [["ms a step", *shown, "whole"]]
    for one in profiles:
        whole = sum(one.step_s.values())
        cells = [f"{one.step_s[phase] * 1e3:,.1f} {one.step_s[phase] / whole:4.0%}" for phase in shown]
        rows.append([one.loader, *cells, f"{whole * 1e3:,.1f}"])
    return rows


def sweep_table(profiles: list[Profile]) -> Table:
    """A row for each measured setting."""
    rows = [["images/s", *(axis.replace("_", " ") for axis in AXES), "loader alone", "model alone", "together"]]
    for one in profiles:
        rates = [str(measured.rate) for measured in (one.loader_alone, one.model_alone, one.together)]
        rows.append([one.loader, *(str(getattr(one, axis)) for axis in AXES), *rates])
    return rows
