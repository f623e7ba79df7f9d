"""Drawing loss and accuracy of runs: `python tools/plot_run.py --runs runs/a runs/b --picture ab.png`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import InputError
from train.curves import plot_curves
from train.metrics import read_metrics
from train.pictures import check_picture


@dataclass(frozen=True, kw_only=True)
class PlotSettings:
    """Draw loss and top-1 accuracy of one or more runs."""

    runs: tuple[Path, ...]
    """Run directories."""
    picture: Path = Path("curves.png")
    """PNG to write."""


def plot(settings: PlotSettings) -> dict[str, Any]:
    """The command. Raises InputError for a directory without metrics, or a picture that cannot be written."""
    check_picture(settings.picture, "--picture")
    for run_dir in settings.runs:
        if next(read_metrics(run_dir), None) is None:
            raise InputError(f"--runs {run_dir}: has no metrics.jsonl of a run")
    try:
        plot_curves(settings.runs, settings.picture)
    except OSError as error:
        raise InputError(f"--picture {settings.picture}: cannot be written ({error.strerror})") from None
    return {"picture": str(settings.picture)}
