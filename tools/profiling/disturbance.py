"""Measurements that other programs disturbed: found by the rate of the model, which does not depend on the loader."""

from collections.abc import Sequence

from tools.profiling.profiles import Profile

FACTOR = 2.0
"""A model that is this many times slower than elsewhere in the same profile was disturbed.

On a quiet machine the rates of one model differ by up to 15 % (27.0 and 23.9 images/s with two loaders), next to a
little other work by up to a third (123 and 160). One busy program that wants the same cores halves a rate. Beyond that
there is no upper end: the threads of a step wait for each other, and with eight busy programs on two cores the same
model was measured at 10.6 and at 2.2 images/s.
"""
ATTEMPTS = 2
"""How often a disturbed measurement is repeated."""


def undisturbed_rate(profile: Profile, profiles: Sequence[Profile]) -> float:
    """The highest rate of the model alone, in images per second, in measurements with the same batches, or that of this
    one's model and loader together. Other programs, and the loader, can only make it slower."""
    batches = _batches(profile)
    alone = [one.model_alone for one in (profile, *profiles) if _batches(one) == batches]
    return max(measured.rate.median for measured in (profile.together, *alone))


def is_disturbed(profile: Profile, profiles: Sequence[Profile]) -> bool:
    """Whether the model was much slower here than in other measurements with the same batches."""
    return profile.model_alone.rate.median * FACTOR < undisturbed_rate(profile, profiles)


def _batches(profile: Profile) -> tuple[int, ...]:
    """What the rate of the model depends on."""
    return profile.nproc, profile.batch_size, profile.resolution
