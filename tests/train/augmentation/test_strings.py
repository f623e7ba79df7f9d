"""Texts that name policies, next to timm's own parser, and texts that name none."""

import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from timm.data import auto_augment as timm_ops

from train.augmentation import policies
from train.augmentation.policies import Policy
from train.augmentation.strings import NAMES, jitter, parse

OPTIONS = st.lists(
    st.sampled_from(
        ["m0", "m5", "m9", "m10", "n1", "n3", "n4", "p0.3", "p1", "mstd0.5", "mstd1", "mstd101", "mmax10", "mmax12",
         "inc0", "inc1", "t3a", "t3aw", "tweights"]
    ),
    max_size=6,
    unique_by=lambda word: re.sub(r"[\d.]+$", "", word) if not word.startswith("t") else "t",
)  # fmt: skip


@given(words=OPTIONS)
def test_rand_is_read_as_timm_reads_it(words: list[str]) -> None:
    text = "-".join(["rand", *words])
    ours, theirs = parse(text), timm_ops.rand_augment_transform(text)
    assert ours.rounds == theirs.num_layers
    assert len(ours.choices) == len(theirs.ops)
    for (step,), op in zip(ours.choices, theirs.ops, strict=True):
        assert (step.kind, step.range) == policies.TIMM[op.name]
        assert (step.probability, step.magnitude) == (op.prob, op.magnitude)
        assert (ours.deviation, ours.most) == (op.magnitude_std, op.magnitude_max or 10)
    if theirs.choice_weights is not None:
        total = sum(ours.weights)
        assert [weight / total for weight in ours.weights] == pytest.approx(theirs.choice_weights.tolist())
    else:
        assert ours.weights == ()


@pytest.mark.parametrize("name", ["original", "originalr", "v0", "v0r", "3a"])
def test_auto_augment_is_read_as_timm_reads_it(name: str) -> None:
    ours, theirs = parse(f"{name}-mstd0.5"), timm_ops.auto_augment_transform(f"{name}-mstd0.5")
    assert [len(choice) for choice in ours.choices] == [len(ops) for ops in theirs.policy]
    assert {ours.deviation} == {op.magnitude_std for ops in theirs.policy for op in ops}


@pytest.mark.parametrize(
    ("text", "rounds", "choices", "deviation"),
    [
        ("rand-m9-n3-mstd0.5", 3, 15, 0.5),
        ("rand-m7-mstdinf", 2, 15, math.inf),
        ("ta_wide", 1, 14, 0),
        ("ra", 2, 14, 0),
        ("ra-m11-n3", 3, 14, 0),
        ("imagenet", 1, 25, 0),
        ("autoaug", 1, 25, 0),
        ("3a", 1, 3, 0),
    ],
)
def test_the_policies_people_use(text: str, rounds: int, choices: int, deviation: float) -> None:
    policy = parse(text)
    assert (policy.rounds, len(policy.choices), policy.deviation) == (rounds, choices, deviation)
    assert policy.mean_fill == (text.partition("-")[0] not in ("ta_wide", "ra", "imagenet"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "unknown; there are rand, original"),
        ("rnd-m9", r"unknown; did you mean rand\?"),
        ("rand-m11", r"m must be in \[0, 10\]"),
        ("rand-m-1", "-m is no option of this policy"),
        ("rand-m9-x3", "-x3 is no option of this policy; there are m, n, p, mstd, mmax, inc, each with a number"),
        ("rand-m9-m8", "m is given twice"),
        ("rand-n0", r"n must be in \[1, 16\]"),
        ("rand-n2.5", "n must be a whole number"),
        ("rand-p1.5", r"p must be in \[0, 1\]"),
        ("rand-tbest", "t must be one of 3a, 3aw, weights"),
        ("rand-n15-t3aw", "n must be at most 14"),
        ("ta_wide-m9", "-m9 is no option of this policy; there are none"),
        ("ra-m31", r"m must be in \[0, 30\]"),
        ("augmix-m3", "AugMix mixes several chains of operations, which is not supported"),
        ("original-m9", "-m9 is no option of this policy; there are mstd, each with a number"),
    ],
)
def test_what_names_no_policy_is_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse(text)


@given(text=st.one_of(st.text(), st.from_regex(rf"({'|'.join(NAMES)})(-[a-z]{{0,4}}[0-9.]{{0,6}}){{0,4}}")))
def test_any_text_is_a_policy_or_one_line(text: str) -> None:
    result: Policy | str
    try:
        result = parse(text)
    except ValueError as error:
        result = str(error)
    if isinstance(result, str):
        assert result.strip()
        assert "\n" not in result
    else:
        assert result.deviation >= 0
        assert all(0 <= step.magnitude <= result.most for steps in result.choices for step in steps)


def test_jitter_has_one_three_or_four_numbers() -> None:
    assert jitter(()) == (0, 0, 0, 0)
    assert jitter((0.4,)) == (0.4, 0.4, 0.4, 0)
    assert jitter((0.3, 0.2, 0.1, 0.5)) == (0.3, 0.2, 0.1, 0.5)
    for numbers in ((0.1, 0.2), (-0.1,), (0, 0, 0, 0.6), (math.inf,), (0.1,) * 5):
        with pytest.raises(ValueError, match="must be"):
            jitter(numbers)
