"""Settings that can make a model faster, each tried: the run as it is and the run with one change take turns.

A trial is a process of its own, which is ended when its time is up: compiling may take minutes, a larger batch may not
fit into memory, and neither may end the profile.
"""

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from pipeline.storage.split import Split
from tools.bench.processes import NotMeasuredError, TooLongError, results_within
from tools.bench.report import Rate
from tools.profiling.advice import WORTH, Advice
from tools.profiling.throughput import in_processes
from tools.profiling.windows import BatchSource, RateMeter, Windows, measure_in_turn
from train.config import TrainConfig
from train.device import DEVICE_TYPES, configure_math, select
from train.inputs import open_data
from train.meeting import meet
from train.network import build_model
from train.process import Process
from train.session import Session
from train.world import World, finalize


class Change(NamedTuple):
    """A changed setting of a training run."""

    setting: str
    value: Any

    @property
    def flag(self) -> str:
        """As on the command line."""
        name = "--" + self.setting.replace("_", "-")
        return name if self.value is True else f"{name} {self.value}"


@dataclass(frozen=True, kw_only=True)
class Trial:
    """A flag and how many times faster the run is with it, or why that was not measured."""

    flag: str
    ratio: Rate | None = None
    """The median and quartiles over pairs of windows, one without and one with the change."""
    problem: str = ""


@dataclass(frozen=True, kw_only=True)
class Trials:
    """What was tried with one run."""

    trials: tuple[Trial, ...] = ()

    @property
    def advice(self) -> list[Advice]:
        """The changes that make the run faster beyond the noise."""
        return [
            Advice(change=trial.flag, factor=trial.ratio.median, how="measured", why=_caution(trial.flag))
            for trial in self.trials
            if trial.ratio and is_gain(trial.ratio)
        ]

    @property
    def without_advice(self) -> list[str]:
        """Sentences about the others."""
        useless = [
            f"{trial.flag} ({trial.ratio.median:.2f}x)"
            for trial in self.trials
            if trial.ratio and not is_gain(trial.ratio)
        ]
        unmeasured = [f"{trial.flag} ({trial.problem})" for trial in self.trials if trial.problem]
        texts = []
        if useless:
            texts.append(f"Measured without a gain beyond the noise: {', '.join(useless)}.")
        if unmeasured:
            texts.append(f"Not measured: {', '.join(unmeasured)}.")
        return texts


def is_gain(ratio: Rate) -> bool:
    """Whether a run is faster beyond the noise: in the median, and in at least three of four pairs of windows."""
    return ratio.median > WORTH and ratio.low > 1


def _caution(flag: str) -> str:
    return "trains differently: the learning rate follows the global batch" if flag.startswith("--batch-size") else ""


def candidates(config: TrainConfig, device: str, split: Split) -> Iterator[Change | Trial]:
    """The changes to try, those that take the least time first; for what there is no use in trying, the reason."""
    if config.amp == "off":
        yield Change("amp", "bf16")
        yield Change("amp", "fp16")
    else:
        yield Trial(flag="--amp", problem=f"{config.amp} is on already")
    if not DEVICE_TYPES[device].channels_last:
        yield Trial(flag="--channels-last", problem=f"PyTorch has no such memory format on {device}")
    elif config.channels_last:
        yield Trial(flag="--channels-last", problem="is on already")
    else:
        yield Change("channels_last", True)
    larger = 2 * config.batch_size
    if larger * config.nproc * config.accumulate > split.num_samples:
        yield Trial(flag=f"--batch-size {larger}", problem="more images than the data has")
    else:
        yield Change("batch_size", larger)
    if config.compile:
        yield Trial(flag="--compile", problem="is on already")
    else:
        yield Change("compile", True)


def try_all(
    config: TrainConfig, device: str, windows: Windows, seconds: float, started: Callable[[str], None]
) -> Trials:
    """Try every candidate with the run that `config` describes, within `seconds` in all. `started` is called with the
    flag of each that is measured."""
    end, trials = time.monotonic() + seconds, list[Trial]()
    for candidate in candidates(config, device, open_data(config, "train")):
        if isinstance(candidate, Trial):
            trials.append(candidate)
        else:
            started(candidate.flag)
            trials.append(try_change(config, candidate, windows, end - time.monotonic()))
    return Trials(trials=tuple(trials))


def try_change(config: TrainConfig, change: Change, windows: Windows, seconds: float) -> Trial:
    """Try one change, in a process of its own and for so many seconds at most."""
    changed = dataclasses.replace(config, **{change.setting: change.value})
    try:
        (ratios,) = results_within(seconds, _ratios, config, changed, windows)
    except TooLongError as error:
        return Trial(flag=change.flag, problem=f"{error}; more --advice-seconds")
    except NotMeasuredError as error:
        return Trial(flag=change.flag, problem=str(error))
    return Trial(flag=change.flag, ratio=Rate.of(ratios))


def _ratios(config: TrainConfig, changed: TrainConfig, windows: Windows) -> Iterator[list[float]]:
    """The trial's process."""
    ratios = in_processes(config, compare, changed, windows)
    assert ratios is not None, "rank 0 returns them"
    yield ratios


def compare(config: TrainConfig, changed: TrainConfig, windows: Windows, world: World) -> list[float] | None:
    """How many times faster a run is with changed settings, in pairs of windows, from rank 0 of `world`."""
    device = select(config.device, world.local_rank, world.local_size)
    configure_math(deterministic=False)
    meeting = meet(world, config.rdzv_timeout)
    processes = [Process(one, world, device) for one in (config, changed)]
    with contextlib.ExitStack() as opened:
        with meeting.joining(device):
            split = open_data(config, "train")
            loaders = [opened.enter_context(one.open_loader(config.loader, split, training=True)) for one in processes]
        meters = []
        for process, loader in zip(processes, loaders, strict=True):
            session = Session(process, build_model(process, split.classes), loader)
            ahead = 2 * process.loader_spec(split, training=True).workers + 3
            meters.append(RateMeter(BatchSource(loader.loader, session, ahead), session.train_step))
        measure_in_turn(meters, windows)
    finalize(world)
    before, after = (meter.rates for meter in meters)
    return [with_change / without for without, with_change in zip(before, after, strict=True)]
