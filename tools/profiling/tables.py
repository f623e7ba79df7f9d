"""Profiles as tables for the terminal and the page: a header row and rows of text."""

from collections.abc import Sequence

from pipeline import loaders
from pipeline.cli import number
from tools.profiling.loader_parts import PARTS, LoaderParts
from tools.profiling.profiles import AXES, Profile
from tools.profiling.verdict import Verdict
from train.step_clock import PHASES

OTHER, CONCURRENCY = "other", "added by workers"
"""CPU time outside the measured parts, and what a loader takes with all its workers beyond that of one thread."""
COPY = "copy to the device"
"""Runs next to the loader's work, so it is no share of it."""

Table = list[list[str]]


def rate_table(profiles: list[Profile], verdicts: list[Verdict]) -> Table:
    """A row for each loader: its rates and what limits the run."""
    rows = [["images/s", "loader alone", "model alone", "together", "predicted", "limited by"]]
    for one, verdict in zip(profiles, verdicts, strict=True):
        rates = [str(measured.rate) for measured in (one.loader_alone, one.model_alone, one.together)]
        rows.append([one.loader, *rates, number(verdict.predicted), verdict.limited_by])
    return rows


def part_seconds(profile: Profile) -> dict[str, float]:
    """CPU seconds per image by part, with those outside the parts and those that using all workers adds."""
    assert profile.parts is not None
    concurrency_s = profile.loader_alone.cpu_s - profile.parts.whole_s
    return profile.parts.parts_s | {OTHER: profile.parts.other_s, CONCURRENCY: concurrency_s}


def part_table(profiles: list[Profile]) -> Table:
    """A row for each loader: microseconds of CPU time per image by part, and waiting for reads."""
    used = [part for part in PARTS if any(part in one.parts.parts_s for one in profiles if one.parts)]
    rows = [["CPU µs per image", *used, OTHER, "in one thread", CONCURRENCY, "waits for reads", COPY]]
    for one in profiles:
        for name, parts in ((one.loader, one.parts), (f"{one.loader}, cold files", one.cold_parts)):
            if parts is not None:
                extra = _microseconds(one.loader_alone.cpu_s - parts.whole_s) if parts is one.parts else ""
                copy = _microseconds(1 / one.transfer.median) if one.transfer else ""
                rows.append([name, *_part_cells(parts, used), extra, _microseconds(parts.read_wait_s), copy])
    return rows if any(row[-1] for row in rows[1:]) else [row[:-1] for row in rows]


def _part_cells(parts: LoaderParts, shown: Sequence[str]) -> list[str]:
    seconds = [*(parts.parts_s.get(part, 0.0) for part in shown), parts.other_s]
    return [*(f"{_microseconds(one)} {one / parts.whole_s:4.0%}" for one in seconds), _microseconds(parts.whole_s)]


def _microseconds(seconds: float) -> str:
    return f"{seconds * 1e6:,.0f}"


def other_notes(profiles: list[Profile]) -> list[str]:
    """What "other" is, where a loader keeps its insides to itself."""
    untimed = {one.loader: loaders.facts(one.loader).untimed for one in profiles}
    return [f"{OTHER} of {loader}: {what}" for loader, what in untimed.items() if what]


from tools.profiling.profiles import Profile


def step_table(profiles: list[Profile]) -> Table:
    """A row for each loader: milliseconds per training step by phase."""
    shown = [phase for phase in PHASES if any(one.step_s[phase] for one in profiles)]
    rows = [["ms per step", *shown, "whole"]]
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
