"""What to change to make a run faster, and by how much."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import groupby
from typing import Literal

from tools.profiling.limit import limit, predicted_gain
from tools.profiling.profiles import AXES, Profile

WORTH = 1.05
"""Advice has to promise more than this factor."""
LOADING = ("loader", "workers")
"""Settings that do not affect the model."""


@dataclass(frozen=True, kw_only=True)
class Advice:
    """A change and what it gains."""

    change: str
    factor: float
    how: Literal["measured", "estimated"]
    why: str = ""

    def __str__(self) -> str:
        reason = f": {self.why}" if self.why else ""
        return f"{self.change} ({self.how} {self.factor:.1f}x{reason})"


def measured_advice(profile: Profile, others: list[Profile]) -> list[Advice]:
    """Of each setting the value that was measured to be fastest, if it is faster beyond the noise."""
    advice = []
    limited_by = limit(profile)
    for setting, group in groupby(sorted(others, key=_setting_of(profile)), _setting_of(profile)):
        if not setting or (setting in LOADING and limited_by == "compute"):
            continue
        best = max(group, key=lambda other: _gain(profile, other, setting))
        gain, noise = _gain(profile, best, setting), profile.together.rate.spread + best.together.rate.spread
        if gain > max(WORTH, 1 + noise):
            flag = setting.replace("_", "-")
            advice.append(Advice(change=f"--{flag} {getattr(best, setting)}", factor=gain, how="measured"))
    return advice


def _gain(profile: Profile, other: Profile, setting: str) -> float:
    """How many times faster the other run is.

    The model alone was measured along with each: where model and images are the same, a difference in its rate is due
    to the machine, and is taken out.
    """
    gain = other.together.rate.median / profile.together.rate.median
    if setting in LOADING:
        gain *= profile.model_alone.rate.median / other.model_alone.rate.median
    return gain


def _setting_of(profile: Profile) -> Callable[[Profile], str]:
    """Names the only setting in which another profile of the same images differs; "" if there is no such setting."""

    def setting(other: Profile) -> str:
        different = [name for name in ("loader", *AXES) if getattr(other, name) != getattr(profile, name)]
        return different[0] if len(different) == 1 and different != ["resolution"] else ""

    return setting


def conversion_advice(profile: Profile, factors: dict[str, float]) -> list[Advice]:
    """The conversions that would make the run faster; `factors` says how many times less CPU time loading takes."""
    gains = {change: predicted_gain(profile, factor) for change, factor in factors.items()}
    return [
        Advice(change=change, factor=gain, how="estimated", why=f"{factors[change]:.1f}x less CPU time to load")
        for change, gain in gains.items()
        if gain > WORTH
    ]


def memory_advice(profile: Profile) -> list[Advice]:
    """What files in memory would gain."""
    parts = profile.cold_parts or profile.parts
    assert parts is not None
    gain = predicted_gain(profile, 1 + parts.read_wait_s / parts.whole_s)
    if gain < WORTH:
        return []
    return [Advice(change="files in memory or on faster storage", factor=gain, how="estimated", why="no waiting")]
