"""Measurements that other programs disturbed."""

import logging
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.cli import parse
from tests.helpers.profiles import QUICK, TINY
from tools.bench.report import Rate
from tools.profiling.disturbance import ATTEMPTS, is_disturbed
from tools.profiling.profile import Measurements, measure, repeat_disturbed
from tools.profiling.profiles import Profile
from tools.profiling.settings import ProfileSettings


@pytest.fixture
def settings(dataset: Path, tmp_path: Path) -> ProfileSettings:
    return parse(ProfileSettings, ["--data", str(dataset), "--out", str(tmp_path), *QUICK, *TINY, "--windows", "1"])


def test_a_model_that_is_faster_with_a_loader_than_alone_was_disturbed(settings: ProfileSettings) -> None:
    measured = Measurements()
    measure(settings, "torch", {}, measured.bases, parts=True)
    together = measured.bases[0].together.rate.median / measured.bases[0].model_alone.rate.median
    assert not is_disturbed(with_model_rate(measured.bases[0], together), [])
    assert is_disturbed(with_model_rate(measured.bases[0], together / 3), [])


def with_model_rate(profile: Profile, factor: float) -> Profile:
    """As if the model alone had been so many times as fast."""
    rate = profile.model_alone.rate.median * factor
    model_alone = replace(profile.model_alone, rate=Rate(median=rate, low=rate, high=rate))
    return replace(profile, loader="synthetic", model_alone=model_alone)


def test_a_disturbed_measurement_is_repeated_and_replaced(
    settings: ProfileSettings, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    measured = Measurements()
    measure(settings, "torch", {}, measured.bases, parts=True)
    slow = with_model_rate(measured.bases[0], 1 / 1000)
    measured.bases.append(slow)
    repeat_disturbed(settings, measured)
    assert "synthetic: disturbed, the model alone reached" in caplog.text
    assert measured.bases[1].loader == "synthetic"
    assert measured.bases[1].model_alone.rate.median > slow.model_alone.rate.median


def test_what_stays_disturbed_is_repeated_only_so_often_and_said_to_be(
    settings: ProfileSettings, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    measured = Measurements()
    measure(settings, "torch", {}, measured.bases, parts=True)
    measured.bases.append(with_model_rate(measured.bases[0], 1000))
    repeat_disturbed(settings, measured)
    assert caplog.text.count("torch: disturbed") == ATTEMPTS
    verdict = measured.verdicts()[0]
    assert verdict.limited_by == "disturbed"
    assert "Its rates mean little" in str(verdict)
