"""The page's pictures."""

import pytest

from tools.profile_page import BOTTOM, HEIGHT, TOP, Scale, stacks


@pytest.mark.parametrize("rates", [[23.0, 24.0], [0.4, 0.55], [900.0, 1100.0, 3900.0], [99.0, 101.0, 100.0]])
def test_similar_rates_are_read_from_zero(rates: list[float]) -> None:
    scale = Scale.over(rates)
    assert not scale.logarithmic
    assert scale.ticks[0] == 0
    assert scale.ticks[-1] == scale.high >= max(rates)
    assert 3 <= len(scale.ticks) <= 8
    assert scale.y(0) == HEIGHT - BOTTOM
    assert scale.y(scale.high) == TOP


@pytest.mark.parametrize("rates", [[23.0, 1900.0], [0.4, 2000.0], [10.0, 10000.0]])
def test_very_different_rates_are_read_from_a_logarithmic_axis(rates: list[float]) -> None:
    scale = Scale.over(rates)
    assert scale.logarithmic
    assert scale.low <= min(rates) < max(rates) <= scale.high
    assert len(set(scale.ticks)) == len(scale.ticks) <= 12
    assert [scale.y(scale.low), scale.y(scale.high)] == pytest.approx([HEIGHT - BOTTOM, TOP])


def test_bars_are_on_one_scale_and_the_ceiling_too() -> None:
    made = stacks([("slow", {"a": 30.0, "b": 10.0}), ("fast", {"a": 10.0, "b": -1.0})], ("a", "b"), "µs", 20.0)
    assert [[piece.percent for piece in bar.pieces] for bar in made.bars] == [[75, 25], [25]]
    assert made.ceiling_percent == 50
    assert made.legend == (("a", 0), ("b", 1))


def test_a_ceiling_far_away_does_not_make_the_bars_unreadable() -> None:
    made = stacks([("one", {"a": 30.0})], ("a",), "µs", 9000.0)
    assert made.bars[0].pieces[0].percent == 100
    assert made.ceiling == 9000
    assert made.ceiling_percent == 0
