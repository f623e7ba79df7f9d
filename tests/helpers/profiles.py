"""The profiling command in this process."""

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.cli import run_command
from tools.profiling.profile import profile
from tools.profiling.settings import ProfileSettings

QUICK = ["--windows", "3", "--window-seconds", "0.1", "--device", "cpu", "--workers", "1", "--advice-seconds", "0"]
TINY = ["--model", "torchvision/squeezenet1_1", "--resolution", "32", "--batch-size", "4"]


def profiled(data: Path | str, out: Path, *flags: str, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    """Run the command. Returns the content of profile.json, with the result line under "result"."""
    capsys.readouterr()
    assert run_command(profile, ProfileSettings, ["--data", str(data), "--out", str(out), *QUICK, *flags]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])["result"]
    content: dict[str, Any] = json.loads((out / "profile.json").read_text())
    return content | {"result": result}
