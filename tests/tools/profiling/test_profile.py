"""The profiling command: what it measures, writes and refuses."""

import json
import os
import signal
from html.parser import HTMLParser
from pathlib import Path

import pytest

from pipeline.cli import run_command
from tests.helpers.profiles import TINY, profiled
from tools.profiling.profile import profile
from tools.profiling.settings import ProfileSettings
from train.stopping import STOP_SIGNALS


def test_cold_files_are_out_of_the_cache_when_they_are_measured(
    dataset_copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = profiled(dataset_copy, tmp_path / "out", "--cold", "--loader", "torch", *TINY, capsys=capsys)
    (base,) = content["profiles"]
    assert base["left_in_cache"] is not None
    assert base["cold_parts"]["read_wait_s"] >= 0
    assert base["parts"]["parts_s"].keys() == base["cold_parts"]["parts_s"].keys()


def test_two_processes_wait_for_each_other_s_gradients(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    handlers, environment = [signal.getsignal(number) for number in STOP_SIGNALS], dict(os.environ)
    content = profiled(dataset, tmp_path, "--loader", "torch", *TINY, "--nproc", "2", capsys=capsys)
    (base,) = content["profiles"]
    assert base["nproc"] == 2
    assert handlers == [signal.getsignal(number) for number in STOP_SIGNALS], "the launcher's handlers are removed"
    assert dict(os.environ) == environment | {"PYTEST_CURRENT_TEST": os.environ["PYTEST_CURRENT_TEST"]}
    assert base["step_s"]["all-reduce"] > 0
    assert base["together"]["rate"]["median"] > 0


class Links(HTMLParser):
    """The resources that a page would load, its tags and its text."""

    def __init__(self) -> None:
        super().__init__()
        self.loaded: list[str] = []
        self.tags: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.loaded += [str(value) for name, value in attrs if name in ("src", "href", "srcset", "data")]

    def handle_data(self, data: str) -> None:
        self.text += data


def test_sweeps_page_and_trace(dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ("--loader", "torch,auto", "--sweep", "workers=1,2", "batch-size=4,8", "resolution=32,48", "--trace")
    content = profiled(dataset, tmp_path, *TINY, *flags, capsys=capsys)
    measured = [(one["loader"], one["workers"], one["batch_size"], one["resolution"]) for one in content["profiles"]]
    for loader in {"torch", content["profiles"][-1]["loader"]}:
        assert [row[1:] for row in measured if row[0] == loader] == [(1, 4, 32), (2, 4, 32), (1, 8, 32), (1, 4, 48)]
    for row in content["result"]["loaders"]:
        assert min(row[f"{what}_images_per_s"] for what in ("loader", "model", "train", "predicted")) > 0
    page = Links()
    page.feed((tmp_path / "profile.html").read_text())
    assert page.loaded == []
    assert page.tags.count("svg") == 3 * len(content["verdicts"])
    for text in (content["command"], content["date"], str(dataset), "loader alone", "model alone", "quartiles"):
        assert text in page.text
    assert " ".join(content["verdicts"][0]["sentences"]) in page.text
    trace = json.loads((tmp_path / "trace-torch.json").read_text())
    assert any("convolution" in event.get("name", "") for event in trace["traceEvents"])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--loader", "bogus"], "--loader bogus: unknown"),
        (["--loader", ","], "--loader: name at least one"),
        (["--sweep", "workers"], "--sweep workers: must be like workers=1,2,4"),
        (["--sweep", "epochs=1,2"], "it can change workers, batch-size"),
        (["--sweep", "batch-size=0"], "--batch-size 0: must be at least 1"),
        (["--windows", "0"], "--windows must be at least 1"),
        (["--window-seconds", "nan"], "--window-seconds a number above 0"),
        (["--out", "/dev/null/profile"], "--out /dev/null/profile: cannot be written"),
    ],
)
def test_wrong_flags_are_one_line(
    flags: list[str], message: str, dataset: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(profile, ProfileSettings, ["--data", str(dataset), *flags]) == 2
    assert message in capsys.readouterr().err
