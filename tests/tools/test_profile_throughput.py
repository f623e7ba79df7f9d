"""The profiling tool on a real dataset, and what it says of rates."""

import json
from pathlib import Path

import pytest

from pipeline.cli import run_command
from tools.profile_throughput import ProfileSettings, limit, profile


def test_each_loader_gets_three_rates_and_a_verdict(dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--data", str(dataset), "--model", "torchvision/resnet18", "--loader", "torch,auto", "--batch-size", "8"]
    flags += ["--resolution", "32", "--windows", "2", "--window-steps", "2", "--workers", "1"]
    assert run_command(profile, ProfileSettings, flags) == 0
    output = capsys.readouterr()
    rows = json.loads(output.out.splitlines()[-1])["result"]["loaders"]
    assert rows[0]["loader"] == "torch"
    for row in rows:
        assert min(row[f"{what}_images_per_s"] for what in ("loader", "model", "train")) > 0
        assert row["limited_by"] in ("data", "compute", "shared cores", "undecided")


@pytest.mark.parametrize(
    ("rates", "device", "verdict"),
    [
        ((1000, 4000, 1000), "cuda", "data"),
        ((9000, 4000, 3900), "cuda", "compute"),
        ((4000, 4100, 3900), "cuda", "undecided"),
        ((1000, 1000, 500), "cpu", "shared cores"),
        ((9000, 100, 97), "cpu", "compute"),
    ],
)
def test_the_verdict_follows_the_rates(rates: tuple[float, float, float], device: str, verdict: str) -> None:
    assert limit(*rates, device) == verdict


def test_an_unknown_loader_is_refused(dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(profile, ProfileSettings, ["--data", str(dataset), "--loader", "bogus"]) == 2
    assert "--loader bogus: unknown" in capsys.readouterr().err
