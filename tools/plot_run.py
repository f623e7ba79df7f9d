"""Draw loss and accuracy of one or more runs: `python tools/plot_run.py --runs runs/a runs/b --picture ab.png`."""

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])

from dataclasses import dataclass
from typing import Any

from pipeline.cli import run_command
from pipeline.errors import InputError
from train.metrics import plot_curves, read_metrics


@dataclass(frozen=True, kw_only=True)
class PlotSettings:
    """Draw loss and top-1 accuracy of one or more runs."""

    runs: tuple[Path, ...]
    """Run directories."""
    picture: Path = Path("curves.png")
    """PNG to write."""


def plot(settings: PlotSettings) -> dict[str, Any]:
    """The command."""
    for run_dir in settings.runs:
        if not read_metrics(run_dir):
            raise InputError(f"--runs {run_dir}: no metrics.jsonl of a run in it")
    plot_curves(settings.runs, settings.picture)
    return {"picture": str(settings.picture)}


if __name__ == "__main__":
    sys.exit(run_command(plot, PlotSettings))
