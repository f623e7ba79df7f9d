"""The page's charts."""

import re

import pytest

from tools.profiling.loader_parts import PARTS
from tools.profiling.page import BOTTOM, COLOURS, HEIGHT, TEMPLATE, TOP, Scale, bar_chart
from tools.profiling.tables import CONCURRENCY, OTHER
from train.step_clock import PHASES


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


def test_bars_and_ceiling_share_a_scale() -> None:
    chart = bar_chart(
        [("slow", {"read": 30.0, "crop": 10.0}), ("fast", {"read": 10.0, "crop": -1.0})], ("read", "crop"), "µs", 20.0
    )
    assert [[segment.percent for segment in bar.segments] for bar in chart.bars] == [[75, 25], [25]]
    assert chart.ceiling_percent == 50
    assert chart.legend == (("read", "read"), ("crop", "crop"))


def test_a_ceiling_far_beyond_the_bars_is_not_drawn() -> None:
    chart = bar_chart([("one", {"read": 30.0})], ("read",), "µs", 9000.0)
    assert chart.bars[0].segments[0].percent == 100
    assert chart.ceiling == 9000
    assert chart.ceiling_percent == 0


def test_a_colour_has_one_meaning() -> None:
    """In the light and in the dark."""
    assert {*PARTS, *PHASES, OTHER, CONCURRENCY} <= COLOURS.keys()
    for style in TEMPLATE.read_text().split("prefers-color-scheme: dark"):
        values = dict(re.findall(r"--([\w-]+): (#\w{6});", style))
        assert set(COLOURS.values()) <= values.keys()
        drawn = [values[name] for name in set(COLOURS.values())]
        assert len(set(drawn)) == len(drawn)
