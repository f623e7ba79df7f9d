"""What benchmarks print and write: tables, the machine they ran on, a JSON file, a bar chart."""

import json
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from statistics import quantiles
from typing import Any

import matplotlib
import torch

from pipeline.cli import number
from pipeline.storage.files import complete_or_absent
from train.device import device_name

matplotlib.use("Agg")
from matplotlib import pyplot

PACKAGES = ("torch", "torchvision", "numba", "ffcv", "nvidia-dali-cuda130", "webdataset")
"""Packages whose versions affect a measurement."""

Rates = Mapping[str, Sequence[float]]
"""The rates of each variant, one per round; more is better."""


@dataclass(frozen=True, kw_only=True)
class Rate:
    """The median and the quartiles of several measurements of a rate."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Rate":
        """The quartiles of the measurements."""
        low, middle, high = quantiles(values, n=4, method="inclusive") if len(values) > 1 else (*values,) * 3
        return cls(median=middle, low=low, high=high)

    @property
    def spread(self) -> float:
        """Half the distance between the quartiles, as a share of the median."""
        return (self.high - self.low) / 2 / self.median

    def overlaps(self, other: "Rate") -> bool:
        """Whether the ranges between the quartiles overlap."""
        return self.low <= other.high and other.low <= self.high

    def __str__(self) -> str:
        return f"{number(self.median)} ±{self.spread:.0%}"


OURS, PEER, CEILING = "#c44e52", "#4c72b0", "#999999"


def machine(device: torch.device | None = None) -> dict[str, str]:
    """The machine that measures: processor, cores, device, versions."""
    facts = {"cpu": _processor(), "cores": str(len(os.sched_getaffinity(0)))}
    if device is not None and device.type != "cpu":
        facts["device"] = device_name(device)
    facts["python"] = platform.python_version()
    for package in PACKAGES:
        try:
            facts[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return facts


def _processor() -> str:
    """The processor's name. Linux on ARM does not report it."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def machine_line(facts: Mapping[str, str]) -> str:
    """The facts of `machine()` in one line."""
    versions = [f"{name} {version}" for name, version in facts.items() if name not in ("cpu", "cores", "device")]
    device = [facts["device"]] if "device" in facts else []
    return ", ".join([f"{facts['cores']} cores of {facts['cpu']}", *device, *versions])


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Rows of text in columns: the first and unnamed ones are left-aligned, the others right-aligned."""
    widths = [max(map(len, column)) for column in zip(columns, *rows, strict=True)]
    left = [not name or number == 0 for number, name in enumerate(columns)]
    lines = []
    for row in (columns, *rows):
        cells = zip(row, widths, left, strict=True)
        lines.append("  ".join(cell.ljust(width) if to_left else cell.rjust(width) for cell, width, to_left in cells))
    return "\n".join(line.rstrip() for line in lines)


def ratio_table(unit: str, rates: Rates, compared: Mapping[str, Sequence[str]]) -> str:
    """A row for each variant: median and quartiles, and the ratios of its median to those of the variants in
    `compared`."""
    quartiles_of = {name: Rate.of(values) for name, values in rates.items()}
    rows = []
    for name, rate in quartiles_of.items():
        peers = [peer for peer in compared.get(name, ()) if peer in quartiles_of and peer != name]
        ratios = [f"{rate.median / quartiles_of[peer].median:.2f} x {peer.partition(':')[0]}" for peer in peers]
        rows.append((name, number(rate.median), f"{number(rate.low)}–{number(rate.high)}", ", ".join(ratios)))
    return table(("", unit, "quartiles", ""), rows)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a file that is complete or absent."""
    with complete_or_absent(path) as file:
        json.dump(content, file, indent=1)
        file.write("\n")


def draw_bars(path: Path, unit: str, rates: Rates, colours: Mapping[str, str]) -> None:
    """A bar for each variant with its quartiles; `colours` by variant, PEER by default."""
    figure, axes = pyplot.subplots(figsize=(8, 0.36 * len(rates) + 1), layout="constrained")
    names = list(rates)[::-1]
    quartiles_of = [Rate.of(rates[name]) for name in names]
    medians, errors = [rate.median for rate in quartiles_of], [rate.median * rate.spread for rate in quartiles_of]
    bars = axes.barh(names, medians, xerr=errors, color=[colours.get(name, PEER) for name in names], ecolor="#555555")
    axes.bar_label(bars, fmt="%.4g", padding=6)
    axes.set_xlabel(unit)
    axes.spines[["top", "right"]].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)
