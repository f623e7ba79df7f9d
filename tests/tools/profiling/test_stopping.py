"""A profile that is stopped keeps what it measured: real processes, real signals, stderr in a file."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from pipeline.cli import run_command
from tests.helpers.profiles import QUICK, TINY
from tests.helpers.scripts import ROOT
from tools.profiling.profile import profile
from tools.profiling.settings import ProfileSettings


@contextlib.contextmanager
def profiling(data: Path, out: Path, log: Path, *flags: str) -> Iterator[subprocess.Popen[str]]:
    """The command in a process group of its own; killed at the end of the block."""
    words = [sys.executable, "tools/profile_throughput.py", "--data", str(data), "--out", str(out), *QUICK, *TINY]
    with log.open("w") as file:
        process = subprocess.Popen(
            [*words, *flags], cwd=ROOT, stdout=subprocess.PIPE, stderr=file, text=True, start_new_session=True
        )
        try:
            yield process
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.communicate()


def wait_for_line(text: str, log: Path, process: subprocess.Popen[str]) -> None:
    end = time.monotonic() + 300
    while text not in log.read_text():
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < end, log.read_text()
        time.sleep(0.02)


def content_of(out: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((out / "profile.json").read_text())
    return content


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_profile_keeps_what_it_measured(number: signal.Signals, dataset: Path, tmp_path: Path) -> None:
    out, log = tmp_path / "out", tmp_path / "log"
    with profiling(dataset, out, log, "--loader", "torch,webdataset", "--windows", "500") as process:
        wait_for_line("torch: 1 of 500 windows measured", log, process)
        family = psutil.Process(process.pid).children(recursive=True)
        if number == signal.SIGINT:
            os.killpg(process.pid, number)  # as Ctrl-C at a terminal does
        else:
            process.send_signal(number)
        output, _ = process.communicate(timeout=200)
        assert process.returncode == 128 + number
        psutil.wait_procs(family, timeout=60)
        assert not [one for one in family if one.is_running() and one.status() != psutil.STATUS_ZOMBIE]
    text = log.read_text()
    assert output == "", "the result line is for complete profiles"
    assert "Traceback" not in text
    (base,) = content_of(out)["profiles"]
    assert base["loader"] == "torch"
    assert 1 <= base["windows"] < 500
    assert base["together"]["rate"]["median"] > 0
    incomplete = content_of(out)["incomplete"]
    assert incomplete.startswith(f"incomplete ({'interrupted' if number == signal.SIGINT else 'SIGTERM'})")
    assert f"torch ({base['windows']} of 500 windows), webdataset (0 of 500 windows)" in incomplete
    assert incomplete in (out / "profile.html").read_text()
    table = text.index("images/s  loader alone")
    assert table < text.index(incomplete)


def test_all_processes_end_and_the_first_loader_is_kept(dataset: Path, tmp_path: Path) -> None:
    out, log = tmp_path / "out", tmp_path / "log"
    flags = ("--loader", "synthetic,torch", "--nproc", "2", "--windows", "30")
    with profiling(dataset, out, log, *flags) as process:
        wait_for_line("loader 2 of 2: torch", log, process)
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=200)
    assert process.returncode == 128 + signal.SIGTERM, log.read_text()
    assert [base["loader"] for base in content_of(out)["profiles"]] == ["synthetic"]
    assert "Traceback" not in log.read_text()


def test_before_anything_is_measured_nothing_is_written(dataset: Path, tmp_path: Path) -> None:
    out, log = tmp_path / "out", tmp_path / "log"
    with profiling(dataset, out, log, "--loader", "torch", "--model", "torchvision/resnet152") as process:
        wait_for_line("loader 1 of 1: torch", log, process)
        os.killpg(process.pid, signal.SIGINT)
        process.communicate(timeout=200)
    assert process.returncode == 128 + signal.SIGINT
    assert "incomplete (interrupted), measured so far: torch (0 of 3 windows)" in log.read_text()
    assert list(out.iterdir()) == []


def test_what_came_before_an_error_is_kept(
    imagenet_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The second loader cannot read folders."""
    flags = ["--data", str(imagenet_folder), "--out", str(tmp_path), "--loader", "torch,ffcv", *QUICK, *TINY]
    assert run_command(profile, ProfileSettings, flags) == 2
    assert [base["loader"] for base in content_of(tmp_path)["profiles"]] == ["torch"]
    assert content_of(tmp_path)["incomplete"].startswith("incomplete (an error)")
    assert capsys.readouterr().out == ""
