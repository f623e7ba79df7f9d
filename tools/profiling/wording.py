"""Sentences that explain what limits a run."""

import math
from collections.abc import Callable

from pipeline.cli import number
from tools.bench.report import Rate
from tools.profiling.disturbance import ATTEMPTS
from tools.profiling.limit import (
    IDLE,
    MINOR,
    Limit,
    busy,
    is_slower_than_predicted,
    loader_share,
    others_cores,
    predicted_rate,
)
from tools.profiling.loader_parts import LoaderParts
from tools.profiling.profiles import Profile

NOT_BOUND = ("shared cores", "undecided", "unexplained", "disturbed")
"""Verdicts that do not read as "data-bound"."""


def sentences(profile: Profile, limited_by: Limit, undisturbed_rate: float) -> list[str]:
    """What limits the run, with the rates, the reason and what else affects the measurement.

    `undisturbed_rate` is that of the model alone, in images per second, from all measurements with the same batches.
    """
    headline = f"{limited_by}{'' if limited_by in NOT_BOUND else '-bound'}: {_rates(profile)}"
    reasons = _disturbed(profile, undisturbed_rate) if limited_by == "disturbed" else _REASONS[limited_by](profile)
    others = [*_slower_than_predicted(profile, limited_by), *_page_cache(profile), *_other_programs(profile)]
    return [headline, *reasons, *others]


def _rates(profile: Profile) -> str:
    measured = (profile.loader_alone, profile.model_alone, profile.together)
    loader, model, together = (number(one.rate.median) for one in measured)
    return (
        f"the loader gives {loader} img/s, the model takes {model}; together {together} "
        f"(predicted {number(predicted_rate(profile))})."
    )


def _with_quartiles(rate: Rate) -> str:
    return f"{number(rate.median)} ({number(rate.low)} to {number(rate.high)})"


def _data(profile: Profile) -> list[str]:
    reasons = [largest_part(profile.parts)] if profile.parts else []
    if busy(profile) < IDLE:
        reasons.append(
            f"Its workers compute only {busy(profile):.0%} of the time; the rest they wait, not for reads but for "
            f"something outside the measured parts."
        )
    elif profile.device != "cpu":
        needed = profile.model_alone.rate.median * profile.loader_alone.cpu_s / profile.nproc
        reasons.append(f"You need {math.ceil(needed)} cores per device and have {profile.cores // profile.nproc}.")
    return reasons


def _compute(profile: Profile) -> list[str]:
    headroom = profile.loader_alone.rate.median / profile.model_alone.rate.median
    if profile.device == "cpu":
        return [f"The loader takes {loader_share(profile):.1%} of the CPU time."]
    devices = math.floor(headroom) - 1
    more = f"; it could feed {devices} more device{'s' if devices > 1 else ''} like this one" if devices else ""
    return [f"The loader has {headroom:.1f}x headroom{more}."]


def _storage(profile: Profile) -> list[str]:
    parts = profile.cold_parts or profile.parts
    assert parts is not None
    share = parts.read_wait_s / (parts.read_wait_s + parts.whole_s)
    return [f"A worker waits {parts.read_wait_s * 1e3:.2g} ms for each image to be read, {share:.0%} of its time."]


def _transfer(profile: Profile) -> list[str]:
    assert profile.transfer is not None
    return [f"Copying to the device alone reaches {number(profile.transfer.median)} img/s."]


def _shared_cores(profile: Profile) -> list[str]:
    reason = (
        f"The loader takes {loader_share(profile):.0%} of the CPU time and the model the rest: they share the same "
        f"{profile.cores} cores."
    )
    return [reason, *([largest_part(profile.parts)] if profile.parts else [])]


def _undecided(profile: Profile) -> list[str]:
    loader, model, together = profile.loader_alone.rate, profile.model_alone.rate, profile.together.rate
    return [
        f"The measured ranges of loader and model overlap; the quartiles are {_with_quartiles(loader)} for the loader, "
        f"{_with_quartiles(model)} for the model and {_with_quartiles(together)} for both. More --windows may decide."
    ]


def _unexplained(profile: Profile) -> list[str]:
    return ["Neither the loader, the model, the copies nor the cores explain it; --trace shows what the steps do."]


def _disturbed(profile: Profile, undisturbed_rate: float) -> list[str]:
    factor = undisturbed_rate / profile.model_alone.rate.median
    return [
        f"The same model reached {number(undisturbed_rate)} img/s in another measurement of this profile, "
        f"{factor:.1f}x as much: this one was disturbed, and so were its repetitions (at most {ATTEMPTS}). Its rates "
        f"mean little; profile again when the machine has nothing else to do."
    ]


def _slower_than_predicted(profile: Profile, limited_by: Limit) -> list[str]:
    """Where the verdict holds although the prediction does not."""
    if limited_by in ("unexplained", "disturbed") or not is_slower_than_predicted(profile):
        return []
    lost = 1 - profile.together.rate.median / predicted_rate(profile)
    reason = "the measurements scatter" if _is_undisturbed(profile) else "other programs ran"
    return [f"Together they are {lost:.0%} slower than predicted, because {reason}."]


def _is_undisturbed(profile: Profile) -> bool:
    """Whether other programs took few cores."""
    return others_cores(profile) < MINOR * profile.cores


def _other_programs(profile: Profile) -> list[str]:
    if _is_undisturbed(profile):
        return []
    others = others_cores(profile)
    return [f"Other programs took up to {others:.1f} of the {profile.cores} cores during the measurement."]


def _page_cache(profile: Profile) -> list[str]:
    """How the page cache affects the figures."""
    if profile.left_in_cache:
        return [
            f"{profile.left_in_cache:.0%} of the files stayed in the page cache when they were dropped: reading them "
            f"all from storage would be slower."
        ]
    data, memory = profile.data_bytes or 0, profile.memory_bytes
    if profile.left_in_cache is None and data > memory:
        return [
            f"The data ({data / 1e9:,.0f} GB) is larger than the memory ({memory / 1e9:,.0f} GB): measure with --cold."
        ]
    return []


_REASONS: dict[Limit, Callable[[Profile], list[str]]] = {
    "data": _data,
    "compute": _compute,
    "storage": _storage,
    "transfer": _transfer,
    "shared cores": _shared_cores,
    "undecided": _undecided,
    "unexplained": _unexplained,
}


def largest_part(parts: LoaderParts) -> str:
    """A sentence about the part that takes most of the loader's time."""
    if not parts.parts_s:
        return "No part of the loader's time could be measured."
    name, seconds = max(parts.parts_s.items(), key=lambda item: item[1])
    whole = f"{parts.whole_s * 1e3:.2g} ms of CPU time per image"
    return f"{name.capitalize()} is {seconds / parts.whole_s:.0%} of the loader's {whole}."
