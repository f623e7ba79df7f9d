"""From what was measured to words: what limits a training run, how fast it should be, what would help.

    bound           images per second
    loader          the loader alone
    transfer        copying to the device alone
    model           the model alone on a batch that is there
    cores           on a CPU, where loader and model take the cores from each other: the cores that the two were seen
                    to use, over the CPU seconds of an image in both

The lowest bound is the prediction. What was measured of both together decides whether it explains the run.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import groupby
from typing import Literal

from pipeline.cli import number
from pipeline.profiling import LoaderParts
from tools.report import Rate
from tools.throughput import AXES, Profile

Limit = Literal["data", "compute", "storage", "transfer", "shared cores", "undecided", "unexplained"]

TOLERANCE = 0.10
"""How far what was measured of both together may be from the prediction."""
MINOR = 0.10
"""On a CPU: a loader or a model with less than this share of the CPU time is not what limits."""
CLEAR = 3
"""What alone is so many times faster than the other is not what limits, however much the measurements scatter."""
WORTH = 1.05
"""Advice has to promise more than this factor."""
LOADING = ("loader", "workers")
"""Settings that change nothing about the model."""
IDLE = 0.5
"""A loader whose workers compute less than this share of the time waits for something."""


@dataclass(frozen=True, kw_only=True)
class Advice:
    """What to change, and what that gives."""

    change: str
    factor: float
    how: Literal["measured", "estimated"]
    why: str = ""

    def __str__(self) -> str:
        reason = f": {self.why}" if self.why else ""
        return f"{self.change} ({self.how} {self.factor:.1f}x{reason})"


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What limits a run, in a word and in words."""

    limited_by: Limit
    predicted: float
    """Images per second of both together, from what was measured of each alone."""
    sentences: tuple[str, ...]
    advice: tuple[Advice, ...] = field(default=())

    def __str__(self) -> str:
        text = " ".join(self.sentences)
        if self.advice:
            text += " Try: " + ", or ".join(map(str, self.advice)) + "."
        return text


# The prediction


def bounds(profile: Profile) -> dict[str, float]:
    """Images per second that the run cannot exceed, by what bounds it."""
    found = {"loader": profile.loader_alone.rate.median, "model": profile.model_alone.rate.median}
    if profile.transfer:
        found["transfer"] = profile.transfer.median
    if profile.device == "cpu":
        cores = max(profile.loader_alone.cores_used, profile.model_alone.cores_used)
        found["cores"] = cores / (profile.loader_alone.cpu_s + profile.model_alone.cpu_s)
    return found


def loader_share(profile: Profile) -> float:
    """The loader's share of the CPU time of a training run on a CPU."""
    return profile.loader_alone.cpu_s / (profile.loader_alone.cpu_s + profile.model_alone.cpu_s)


def busy(profile: Profile) -> float:
    """The share of the time in which the loader, alone, computes on the cores that its workers can have."""
    free = profile.cores - profile.loader_alone.others_cores
    return profile.loader_alone.cores_used / min(max(free, 1.0), max(1, profile.workers) * profile.nproc)


def others_cores(profile: Profile) -> float:
    """The cores that other programs took, at most."""
    return max(one.others_cores for one in (profile.loader_alone, profile.model_alone, profile.together))


def waits_for_storage(profile: Profile) -> bool:
    """Whether the loader's workers wait, and reading is what one of them waits for most of its time."""
    parts = profile.cold_parts or profile.parts
    return parts is not None and parts.read_wait_s > parts.whole_s and busy(profile) < 1 - MINOR


# The verdict


def limit(profile: Profile) -> Limit:
    """What limits the run."""
    decided, measured = _limit_of_bounds(profile), profile.together.rate
    least = (1 - TOLERANCE) * min(bounds(profile).values())
    if measured.median >= least:
        return decided
    scatter = min(rate.low / rate.median for rate in (profile.loader_alone.rate, profile.model_alone.rate))
    if measured.high < least * scatter and others_cores(profile) < MINOR * profile.cores:
        return "unexplained"
    return decided if _clear(profile) else "undecided"


def pixels_limit(profile: Profile) -> bool:
    """Whether the run would be faster if an image took the loader less CPU time."""
    return limit(profile) in ("data", "shared cores") and busy(profile) >= IDLE


def _clear(profile: Profile) -> bool:
    """Whether the loader and the model are so far apart that no noise hides which is slower."""
    rates = profile.loader_alone.rate.median, profile.model_alone.rate.median
    return max(rates) > CLEAR * min(rates)


def _limit_of_bounds(profile: Profile) -> Limit:
    loader, model = profile.loader_alone.rate, profile.model_alone.rate
    if profile.device == "cpu" and busy(profile) >= IDLE:
        share = loader_share(profile)
        if share < MINOR:
            return "compute"
        too_few_workers = loader.median < bounds(profile)["cores"]  # the model leaves it cores that it does not use
        return "data" if share > 1 - MINOR or too_few_workers else "shared cores"
    if loader.overlaps(model):
        return "undecided"
    if loader.median > model.median:
        return "compute"
    if waits_for_storage(profile):
        return "storage"
    if profile.transfer and profile.transfer.median < (1 + TOLERANCE) * loader.median:
        return "transfer"
    return "data"


def judge(profile: Profile, others: list[Profile], converted: tuple[Advice, ...] = ()) -> Verdict:
    """The verdict on a run; `others` are the same run with another setting, `converted` what other data would give."""
    limited_by = limit(profile)
    predicted = min(bounds(profile).values())
    sentences = [f"{limited_by if limited_by in _WORDS_ALONE else limited_by + '-bound'}: {_rates(profile)}"]
    sentences += _WORDS[limited_by](profile) + _cache_words(profile) + _other_programs(profile)
    advice = [*measured_advice(profile, others)]
    if pixels_limit(profile):
        advice += converted
    if limited_by == "storage":
        advice += _memory_advice(profile)
    advice.sort(key=lambda one: -one.factor)
    return Verdict(limited_by=limited_by, predicted=predicted, sentences=tuple(sentences), advice=tuple(advice))


_WORDS_ALONE = ("shared cores", "undecided", "unexplained")


def _rates(profile: Profile) -> str:
    measured = (profile.loader_alone, profile.model_alone, profile.together)
    loader, model, together = (number(one.rate.median) for one in measured)
    predicted = number(min(bounds(profile).values()))
    return f"the loader gives {loader} img/s, the model takes {model}; together {together} (predicted {predicted})."


def _with_quartiles(rate: Rate) -> str:
    return f"{number(rate.median)} ({number(rate.low)} to {number(rate.high)})"


def _data_words(profile: Profile) -> list[str]:
    words = [largest_part(profile.parts)] if profile.parts else []
    if busy(profile) < IDLE:
        words.append(
            f"Its workers compute {busy(profile):.0%} of the time and wait in the rest, and not for reading: for "
            f"something that is not among the parts."
        )
    elif profile.device != "cpu":
        needed = profile.model_alone.rate.median * profile.loader_alone.cpu_s / profile.nproc
        words.append(f"You need {math.ceil(needed)} cores per device here, you have {profile.cores // profile.nproc}.")
    return words


def _compute_words(profile: Profile) -> list[str]:
    headroom = profile.loader_alone.rate.median / profile.model_alone.rate.median
    if profile.device == "cpu":
        return [f"The loader takes {loader_share(profile):.1%} of the CPU time."]
    feeds = math.floor(headroom) - 1
    more = f"; it would feed {feeds} more device{'s' if feeds > 1 else ''} like this" if feeds else ""
    return [f"The loader has {headroom:.1f}x headroom{more}."]


def _storage_words(profile: Profile) -> list[str]:
    parts = profile.cold_parts or profile.parts
    assert parts is not None
    share = parts.read_wait_s / (parts.read_wait_s + parts.whole_s)
    return [f"One worker waits {parts.read_wait_s * 1e3:.2g} ms for an image to be read, {share:.0%} of its time."]


def _transfer_words(profile: Profile) -> list[str]:
    assert profile.transfer is not None
    return [f"Copying to the device alone gives {number(profile.transfer.median)} img/s."]


def _shared_words(profile: Profile) -> list[str]:
    words = (
        f"The loader takes {loader_share(profile):.0%} of the CPU time, the model the rest: on a CPU they have the "
        f"same {profile.cores} cores."
    )
    return [words, *([largest_part(profile.parts)] if profile.parts else [])]


def _undecided_words(profile: Profile) -> list[str]:
    loader, model, together = profile.loader_alone.rate, profile.model_alone.rate, profile.together.rate
    return [
        f"The measurements scatter more than they differ: quartiles of the loader {_with_quartiles(loader)}, of the "
        f"model {_with_quartiles(model)}, of both {_with_quartiles(together)}. More --windows may tell."
    ]


def _unexplained_words(profile: Profile) -> list[str]:
    return ["Neither the loader, the model, the copies nor the cores explain it; --trace shows what the steps do."]


def _other_programs(profile: Profile) -> list[str]:
    """What was not ours on the machine."""
    others = others_cores(profile)
    if others < MINOR * profile.cores:
        return []
    return [f"Other programs took up to {others:.1f} of the {profile.cores} cores meanwhile."]


def _cache_words(profile: Profile) -> list[str]:
    """What the page cache makes of the figures."""
    if profile.left_in_cache:
        return [
            f"{profile.left_in_cache:.0%} of the files stayed in the page cache when they were dropped: colder files "
            f"are slower."
        ]
    data, memory = profile.data_bytes or 0, profile.memory_bytes
    if profile.left_in_cache is None and data > memory:
        return [
            f"The data ({data / 1e9:,.0f} GB) is larger than the memory ({memory / 1e9:,.0f} GB): measure with --cold."
        ]
    return []


_WORDS = {
    "data": _data_words,
    "compute": _compute_words,
    "storage": _storage_words,
    "transfer": _transfer_words,
    "shared cores": _shared_words,
    "undecided": _undecided_words,
    "unexplained": _unexplained_words,
}


def largest_part(parts: LoaderParts) -> str:
    """A sentence on the part that takes most of the loader's time."""
    if not parts.parts_s:
        return "Of the loader's time no part is to be seen."
    name, seconds = max(parts.parts_s.items(), key=lambda item: item[1])
    whole = f"{parts.whole_s * 1e3:.2g} ms of CPU time an image"
    return f"{name.capitalize()} is {seconds / parts.whole_s:.0%} of the loader's {whole}."


# Advice


def measured_advice(profile: Profile, others: list[Profile]) -> list[Advice]:
    """What was measured to be faster, beyond the noise; of each setting the best."""
    found = []
    for what, group in groupby(sorted(others, key=_setting_of(profile)), _setting_of(profile)):
        if not what or (what in LOADING and limit(profile) == "compute"):
            continue
        best = max(group, key=lambda other: _gain(profile, other, what))
        gain, noise = _gain(profile, best, what), profile.together.rate.spread + best.together.rate.spread
        if gain > max(WORTH, 1 + noise):
            flag = what.replace("_", "-")
            found.append(Advice(change=f"--{flag} {getattr(best, what)}", factor=gain, how="measured"))
    return found


def _gain(profile: Profile, other: Profile, what: str) -> float:
    """How many times faster the other is. The model alone was measured in turn with each; where it is the same model
    with the same images, a difference is the machine's."""
    gain = other.together.rate.median / profile.together.rate.median
    if what in LOADING:
        gain *= profile.model_alone.rate.median / other.model_alone.rate.median
    return gain


def _setting_of(profile: Profile) -> Callable[[Profile], str]:
    """Names the one setting in which another profile of the same images differs, or gives nothing."""

    def setting(other: Profile) -> str:
        differ = [name for name in ("loader", *AXES) if getattr(other, name) != getattr(profile, name)]
        return differ[0] if len(differ) == 1 and differ != ["resolution"] else ""

    return setting


def faster_loader(profile: Profile, loader_factor: float) -> float:
    """How many times faster the run would be with a loader that takes 1 / loader_factor of its time."""
    slow = bounds(profile)
    fast = slow | {"loader": slow["loader"] * loader_factor}
    if "cores" in slow:
        cpu_s = profile.loader_alone.cpu_s + profile.model_alone.cpu_s
        fast["cores"] = slow["cores"] * cpu_s / (profile.loader_alone.cpu_s / loader_factor + profile.model_alone.cpu_s)
    return min(fast.values()) / min(slow.values())


def _memory_advice(profile: Profile) -> list[Advice]:
    parts = profile.cold_parts or profile.parts
    assert parts is not None
    factor = faster_loader(profile, 1 + parts.read_wait_s / parts.whole_s)
    if factor < WORTH:
        return []
    return [Advice(change="files in memory or on faster storage", factor=factor, how="estimated", why="no waiting")]
