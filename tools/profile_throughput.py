"""What limits training, and what to change: `python tools/profile_throughput.py --data data/shards --model resnet152`.

Measures the loader alone, the model alone on synthetic images and both together, through the code that training uses;
where the loader's time and the step's time go; and, asked for, the same with other settings. Says in words what that
means, and writes profile.json and a page with pictures.
"""

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])

import dataclasses
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from tqdm import tqdm

from pipeline import loaders
from pipeline.cli import run_command
from pipeline.errors import InputError
from tools import profile_page, report
from tools.estimate import conversion_factors
from tools.profile_tables import other_notes, part_table, rate_table, step_table, sweep_table
from tools.throughput import AXES, Options, Profile, Windows, profile
from tools.verdict import WORTH, Advice, Verdict, faster_loader, judge, pixels_limit
from train import recipes
from train.config import DEFAULT_DATA, TrainConfig
from train.device import select
from train.loop import check
from train.session import open_data

log = logging.getLogger(__name__)

SETTINGS = ("data", "model", "model_kwargs", "workers", "batch_size", "resolution", "nproc", "device", "amp", "compile")
"""What has a flag here as in train/run.py."""
MEASURED: dict[str, Any] = {
    "resume": None, "evaluate": None, "performance": None, "run_dir": None, "max_restarts": 0, "profile_steps": None,
    "pretrained": None, "finetune": None, "nnodes": 1, "node_rank": 0,
}  # fmt: skip
"""Settings of a training run that mean nothing to a measurement."""


@dataclass(frozen=True, kw_only=True)
class ProfileSettings:
    """Measure what limits training, and say what to change."""

    recipe: str | None = None
    """As in train/run.py."""
    config: Path | None = None
    """Measure the training run that has this config.json. Flags given beside it win."""
    data: str = DEFAULT_DATA
    """As in train/run.py."""
    model: str = "torchvision/resnet50"
    """As in train/run.py."""
    model_kwargs: tuple[str, ...] = ()
    """As in train/run.py."""
    loader: str = "auto"
    """Loaders to measure, separated by commas; all: every one that is installed and reads the data."""
    workers: int | None = None
    """Loading threads or processes of each training process; default: the machine's cores over --nproc."""
    batch_size: int = 64
    """Images of each process in a step."""
    resolution: int | None = None
    nproc: int = 1
    """Training processes on this machine, one a device."""
    device: Literal["auto", "cpu", "cuda", "npu", "sdaa"] = "auto"
    amp: Literal["off", "bf16", "fp16"] = "off"
    compile: bool = False
    """torch.compile the model."""
    sweep: tuple[str, ...] = ()
    """Measure with other settings too, one at a time: workers=1,2,4 batch-size=32,64 resolution=160,224 nproc=1,2."""
    cold: bool = False
    """Drop the data from the page cache before each measurement, as if it did not fit into memory."""
    trace: bool = False
    """Write a trace of a few steps with each loader, for chrome://tracing or ui.perfetto.dev."""
    windows: int = 5
    """Measurements of each rate; the median counts."""
    window_seconds: float = 1.0
    """How long a measurement takes at least (one step, if that is longer)."""
    out: Path = Path("runs/profile")
    """Where profile.json, profile.html and the traces go."""

    def __post_init__(self) -> None:
        if self.windows < 1 or not 0 < self.window_seconds < math.inf:
            raise ValueError("--windows must be at least 1, and --window-seconds a number above 0")
        if not self.loader_names:
            raise ValueError("--loader: name at least one")
        if self.cold and self.data.startswith(("http://", "https://")):
            raise ValueError(f"--cold: {self.data} is not in this machine's page cache")
        for name in self.loader_names:
            for changes in ({}, *self.sweep_points):
                self.training_config(name if name != "all" else "auto", changes)

    @property
    def loader_names(self) -> list[str]:
        """--loader as a list."""
        return [name.strip() for name in self.loader.split(",") if name.strip()]

    @property
    def sweep_points(self) -> list[dict[str, int]]:
        """--sweep as changes to the settings."""
        points = []
        for axis in self.sweep:
            name, _, values = axis.partition("=")
            name = name.replace("-", "_")
            if name not in AXES or not all(value.isdigit() for value in values.split(",")):
                raise ValueError(f"--sweep {axis}: is not like workers=1,2,4; it can change {', '.join(AXES)}")
            points += [{name: int(value)} for value in values.split(",")]
        return points

    def training_config(self, loader: str, changes: dict[str, int]) -> TrainConfig:
        """The settings of the training run that is measured: those of --recipe or --config where no flag says them."""
        settings = {name: getattr(self, name) for name in SETTINGS} | MEASURED
        return dataclasses.replace(self._base, loader=loader, **(settings | changes))

    @cached_property
    def _base(self) -> TrainConfig:
        """The training run to begin with."""
        return recipes.settings_of(self.recipe, self.config) or TrainConfig()


def starting_point(argv: Sequence[str]) -> ProfileSettings | None:
    """The settings that --recipe or --config in a command line names."""
    found = recipes.starting_point(argv)
    return ProfileSettings(**{name: getattr(found, name) for name in SETTINGS}) if found else None


def chosen_loaders(settings: ProfileSettings) -> list[str]:
    """--loader, with `auto` and `all` decided. Raises InputError for one that cannot read the data."""
    names: list[str] = []
    split = open_data(settings.training_config("auto", {}), "train")
    for name in settings.loader_names:
        if name == "auto":
            chosen, why = loaders.choose(split)
            log.info("loader auto: %s (%s)", chosen, why)
            names.append(chosen)
        elif name == "all":
            passed_over: list[str] = []
            found = [name for name, _ in loaders.usable(split, passed_over)]
            log.info("loader all: %s", "; ".join([", ".join(found), *passed_over]))
            names += found
        else:
            loaders.load(name)  # a missing package is told before anything is measured
            names.append(name)
    return list(dict.fromkeys(names))


def changes_anything(base: Profile, changes: dict[str, int]) -> bool:
    """Whether a point of the sweep is another than what was measured already."""
    return any(getattr(base, name) != value for name, value in changes.items())


def measure(settings: ProfileSettings, loader: str, changes: dict[str, int], *, base: bool) -> Profile:
    """One loader with one setting; with the loader's parts where it is the base of the others."""
    windows = Windows(count=settings.windows, seconds=settings.window_seconds)
    return profile(settings.training_config(loader, changes), Options(windows=windows, cold=settings.cold, parts=base))


def trace(settings: ProfileSettings, loader: str) -> None:
    """Write a loader's trace; after all measurements, as what was traced once may stay slower."""
    path = settings.out / f"trace-{loader}.json"
    options = Options(windows=Windows(count=1, seconds=settings.window_seconds / 10), parts=False, trace=path)
    profile(settings.training_config(loader, {}), options)
    log.info("trace: %s", path)


def profile_all(settings: ProfileSettings) -> dict[str, Any]:
    """The command."""
    try:
        settings.out.mkdir(parents=True, exist_ok=True)  # found now, not when everything has been measured
    except OSError as error:
        raise InputError(f"--out {settings.out}: cannot be written ({error.strerror})") from None
    for changes in ({}, *settings.sweep_points):
        check(settings.training_config("auto", changes))  # before minutes are spent on the others
    names = chosen_loaders(settings)
    bases = [measure(settings, name, {}, base=True) for name in tqdm(names, desc="loaders", disable=None)]
    points = [(base, changes) for base in bases for changes in settings.sweep_points if changes_anything(base, changes)]
    swept = [
        measure(settings, base.loader, changes, base=False)
        for base, changes in tqdm(points, desc="sweep", disable=None if points else True)
    ]
    everything = sorted([*bases, *swept], key=lambda one: names.index(one.loader))
    converted = estimate_conversions(settings, bases)
    verdicts = [judge(base, everything, conversion_advice(base, converted)) for base in bases]
    tell(bases, everything, verdicts)
    for name in names if settings.trace else ():
        trace(settings, name)
    return leave(settings, bases, everything, verdicts)


def estimate_conversions(settings: ProfileSettings, bases: list[Profile]) -> dict[str, float]:
    """What other data would give, where a loader is what limits."""
    if not any(map(pixels_limit, bases)):
        return {}
    split = open_data(settings.training_config("auto", {}), "train")
    return conversion_factors(split, bases[0].resolution)


def conversion_advice(base: Profile, factors: dict[str, float]) -> tuple[Advice, ...]:
    """The conversions that would make the run faster."""
    gains = {change: faster_loader(base, factor) for change, factor in factors.items()}
    return tuple(
        Advice(change=change, factor=gain, how="estimated", why=f"{factors[change]:.1f}x less CPU time to load")
        for change, gain in gains.items()
        if gain > WORTH
    )


def tell(bases: list[Profile], everything: list[Profile], verdicts: list[Verdict]) -> None:
    """Words first, then tables."""
    for base, verdict in zip(bases, verdicts, strict=True):
        log.info("\n%s: %s", base.loader, verdict)
    tables = [rate_table(bases, verdicts), part_table(bases), step_table(bases)]
    if len(everything) > len(bases):
        tables.append(sweep_table(everything))
    for header, *rows in tables:
        log.info("\n%s", report.table(header, rows))
    for note in other_notes(bases):
        log.info("%s", note)


def leave(
    settings: ProfileSettings, bases: list[Profile], everything: list[Profile], verdicts: list[Verdict]
) -> dict[str, Any]:
    """Write profile.json and profile.html; returns the result line."""
    found = report.machine(select(settings.device, 0, 1))
    content = {
        "machine": found,
        "command": " ".join(sys.argv),
        "verdicts": [
            {"loader": base.loader} | dataclasses.asdict(verdict) | {"text": str(verdict)}
            for base, verdict in zip(bases, verdicts, strict=True)
        ],
        "profiles": [dataclasses.asdict(one) for one in everything],
    }
    report.write_json(settings.out / "profile.json", content)
    profile_page.write(settings.out / "profile.html", report.machine_line(found), bases, everything, verdicts)
    log.info("%s\nwritten: %s and profile.html", report.machine_line(found), settings.out / "profile.json")
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


if __name__ == "__main__":
    sys.exit(run_command(profile_all, ProfileSettings, default=starting_point))
