"""The verdict on a run: what limits it, how fast it should be, what would help."""

from collections.abc import Sequence
from dataclasses import dataclass

from tools.profiling.advice import Advice, measured_advice, memory_advice
from tools.profiling.disturbance import is_disturbed, undisturbed_rate
from tools.profiling.limit import Limit, limit, pixels_limit, predicted_rate
from tools.profiling.profiles import Profile
from tools.profiling.trials import Trials
from tools.profiling.wording import sentences


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What limits a run, in a word and in sentences."""

    limited_by: Limit
    predicted: float
    """Images per second of both together, from what was measured of each alone."""
    sentences: tuple[str, ...]
    advice: tuple[Advice, ...] = ()

    def __str__(self) -> str:
        text = " ".join(self.sentences)
        if self.advice:
            text += " Try: " + ", or ".join(map(str, self.advice)) + "."
        return text


def judge(
    profile: Profile, others: Sequence[Profile], converted: Sequence[Advice] = (), trials: Trials | None = None
) -> Verdict:
    """The verdict on a run.

    `others` are runs with another setting; `converted` is advice on converting the data, which counts only where the
    loader's work on pixels limits the run; `trials` are settings of the model that were tried with this run.
    """
    limited_by = "disturbed" if is_disturbed(profile, others) else limit(profile)
    reasons = sentences(profile, limited_by, undisturbed_rate(profile, others))
    advice: list[Advice] = []
    if limited_by != "disturbed":
        advice += measured_advice(profile, [other for other in others if not is_disturbed(other, others)])
        advice += converted if pixels_limit(profile) else ()
    if limited_by == "storage":
        advice += memory_advice(profile)
    if trials is not None:
        advice += trials.advice
        reasons += trials.without_advice
    return Verdict(
        limited_by=limited_by,
        predicted=predicted_rate(profile),
        sentences=tuple(reasons),
        advice=tuple(sorted(advice, key=lambda one: -one.factor)),
    )
