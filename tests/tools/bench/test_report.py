"""What benchmarks print and write."""

import json
from pathlib import Path

import torch
from PIL import Image

from tools.bench import report

RATES = {"ours": [200.0, 220.0, 210.0], "peer: stock": [100.0, 100.0, 100.0], "alone": [5.0]}


def test_the_table_has_medians_quartiles_and_ratios() -> None:
    text = report.ratio_table("images/s", RATES, {"ours": ("peer: stock", "not measured")})
    lines = [line.split() for line in text.splitlines()]
    assert lines[0] == ["images/s", "quartiles"]
    assert lines[1] == ["ours", "210", "205–215", "2.10", "x", "peer"]
    assert lines[3] == ["alone", "5", "5–5"]


def test_columns_are_aligned() -> None:
    assert report.table(("a", "bbb"), [("cccc", "1"), ("d", "22")]).splitlines() == [
        "a     bbb",
        "cccc    1",
        "d      22",
    ]


def test_the_machine_is_reported_with_its_versions() -> None:
    facts = report.machine(torch.device("cpu"))
    assert facts["torch"] == torch.__version__.partition("+")[0]
    assert "device" not in facts
    line = report.machine_line(facts)
    assert line.startswith(f"{facts['cores']} cores of {facts['cpu']}")
    assert f"torch {facts['torch']}" in line


def test_a_bar_chart_and_json_are_written(tmp_path: Path) -> None:
    report.draw_bars(tmp_path / "new" / "bars.png", "images/s", RATES, {"ours": report.OURS})
    with Image.open(tmp_path / "new" / "bars.png") as picture:
        assert min(picture.size) > 100
    report.write_json(tmp_path / "rates.json", {"rates": RATES})
    assert json.loads((tmp_path / "rates.json").read_text())["rates"] == RATES
