"""--profile-steps."""

import json
from pathlib import Path

import pytest
import torch

from train.trace import StepTrace, parse_steps


def test_exactly_the_named_steps_are_traced(tmp_path: Path) -> None:
    weight = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.SGD([weight], lr=0.1)
    trace = StepTrace("2:4", tmp_path / "trace.json")
    for step in range(6):
        trace.before(step)
        weight.sum().backward()
        optimizer.step()
        assert (tmp_path / "trace.json").exists() == (step >= 4)
    trace.close()
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    assert sum(event.get("name") == "Optimizer.step#SGD.step" for event in events) == 2


def test_a_run_that_ends_during_the_named_steps_writes_its_trace(tmp_path: Path) -> None:
    trace = StepTrace("0:10", tmp_path / "trace.json")
    trace.before(0)
    torch.ones(3).sum()
    trace.close()
    assert "aten::sum" in (tmp_path / "trace.json").read_text()


def test_without_steps_nothing_is_written(tmp_path: Path) -> None:
    trace = StepTrace(None, tmp_path / "trace.json")
    trace.before(0)
    trace.close()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("text", ["20", "20:", ":30", "30:20", "5:5", "a:b", "-1:3"])
def test_text_that_names_no_steps_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="must be FIRST:END"):
        parse_steps(text)
