"""What limits a training run, from what was measured of its parts.

    bound           images per second
    loader          the loader alone
    transfer        copying to the device alone
    model           the model alone on a batch that is ready
    cores           on a CPU, where loader and model share the cores: the cores that the two were seen to use, over the
                    CPU seconds of an image in both

The lowest bound is the prediction. The measured rate of both together decides whether it explains the run.
"""

from typing import Literal

from tools.profiling.profiles import Profile

Limit = Literal["data", "compute", "storage", "transfer", "shared cores", "undecided", "unexplained", "disturbed"]
"""`disturbed` follows from a comparison with other measurements (tools/profiling/disturbance.py), the rest from one."""

TOLERANCE = 0.10
"""How far the measured rate of both together may be from the prediction."""
MINOR = 0.10
"""On a CPU: a loader or a model with less than this share of the CPU time is not the limit."""
IDLE = 0.5
"""A loader whose workers compute less than this share of the time waits for something."""


def bounds(profile: Profile) -> dict[str, float]:
    """Images per second that the run cannot exceed, by what bounds it."""
    rates = {"loader": profile.loader_alone.rate.median, "model": profile.model_alone.rate.median}
    if profile.transfer:
        rates["transfer"] = profile.transfer.median
    if profile.device == "cpu":
        cores = max(profile.loader_alone.cores_used, profile.model_alone.cores_used)
        rates["cores"] = cores / (profile.loader_alone.cpu_s + profile.model_alone.cpu_s)
    return rates


def predicted_rate(profile: Profile) -> float:
    """Images per second of loader and model together, as predicted from each alone."""
    return min(bounds(profile).values())


def predicted_gain(profile: Profile, loader_factor: float) -> float:
    """How many times faster the run would be with a loader that takes 1 / `loader_factor` of its time."""
    now = bounds(profile)
    changed = now | {"loader": now["loader"] * loader_factor}
    if "cores" in now:
        loader_s, model_s = profile.loader_alone.cpu_s, profile.model_alone.cpu_s
        changed["cores"] = now["cores"] * (loader_s + model_s) / (loader_s / loader_factor + model_s)
    return min(changed.values()) / min(now.values())


def loader_share(profile: Profile) -> float:
    """The loader's share of the CPU time of a training run on a CPU."""
    return profile.loader_alone.cpu_s / (profile.loader_alone.cpu_s + profile.model_alone.cpu_s)


def busy(profile: Profile) -> float:
    """The share of the time in which the loader alone computes, on the cores that its workers can have."""
    free = profile.cores - profile.loader_alone.others_cores
    return profile.loader_alone.cores_used / min(max(free, 1.0), max(1, profile.workers) * profile.nproc)


def others_cores(profile: Profile) -> float:
    """The most cores that other programs took during a measurement."""
    return max(rate.others_cores for rate in (profile.loader_alone, profile.model_alone, profile.together))


def waits_for_storage(profile: Profile) -> bool:
    """Whether the loader's workers wait, and one of them waits for reads most of its time."""
    parts = profile.cold_parts or profile.parts
    return parts is not None and parts.read_wait_s > parts.whole_s and busy(profile) < 1 - MINOR


def is_slower_than_predicted(profile: Profile) -> bool:
    """Whether both together are slower than predicted, by more than the prediction may be wrong."""
    return profile.together.rate.median < (1 - TOLERANCE) * predicted_rate(profile)


def limit(profile: Profile) -> Limit:
    """What limits the run; "undecided" only where the measured ranges of loader and model overlap."""
    limit_of_bounds, measured = _limit_of_bounds(profile), profile.together.rate
    least = (1 - TOLERANCE) * predicted_rate(profile)
    scatter = min(rate.low / rate.median for rate in (profile.loader_alone.rate, profile.model_alone.rate))
    if measured.high < least * scatter and others_cores(profile) < MINOR * profile.cores:
        return "unexplained"
    return limit_of_bounds


def pixels_limit(profile: Profile) -> bool:
    """Whether the run would be faster if the loader took less CPU time for an image."""
    return limit(profile) in ("data", "shared cores") and busy(profile) >= IDLE


def _limit_of_bounds(profile: Profile) -> Limit:
    loader, model = profile.loader_alone.rate, profile.model_alone.rate
    if profile.device == "cpu" and busy(profile) >= IDLE:
        share = loader_share(profile)
        if share < MINOR:
            return "compute"
        too_few_workers = loader.median < bounds(profile)["cores"]  # the model leaves cores that the loader cannot use
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
