"""Several processes: signals from a scheduler, through our launcher and torchrun, and the death of a rank."""

import contextlib
import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import psutil
from processes import Accident, run_process, run_ranks
from scripts import ROOT, ranks_of
from test_kill import EVERYTHING, KILLED, assert_same_end

LAUNCHER = (sys.executable,)
TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
SECONDS = 120


@contextlib.contextmanager
def started(flags: Sequence[object], launcher: Sequence[str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """The command as a process, of which nothing is left behind."""
    words = [*launcher, str(ROOT / "train" / "run.py"), *map(str, flags)]
    with log.open("wb") as file:
        process = subprocess.Popen(words, stderr=file, stdout=file, cwd=ROOT)
        try:
            yield process
        finally:
            signal_all(process, signal.SIGKILL)
            process.wait()


def wait_for_a_step(log: Path, process: subprocess.Popen[bytes]) -> int:
    """Until the log tells of a step. Returns its number."""
    deadline = time.monotonic() + SECONDS
    while not (told := re.search(r"step (\d+) loss", log.read_text())):
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.01)
    return int(told[1])


def to_rank(rank: int, number: signal.Signals) -> Callable[[subprocess.Popen[bytes]], None]:
    return lambda process: ranks_of(process)[rank].send_signal(number)


def to_all(number: signal.Signals) -> Callable[[subprocess.Popen[bytes]], None]:
    return lambda process: signal_all(process, number)


def signal_all(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    """As schedulers do: the launcher, the ranks, their loaders' workers."""
    with contextlib.suppress(psutil.NoSuchProcess):
        found = psutil.Process(process.pid)
        for one in [*found.children(recursive=True), found]:
            with contextlib.suppress(psutil.NoSuchProcess):
                one.send_signal(number)


def test_two_ranks_stop_after_the_same_step_and_go_on(dataset: Path, tmp_path: Path) -> None:
    """A signal to one rank, the death of one, and what schedulers do, one after the other in one run: its end is that
    of a run left alone."""
    log, whole, parts = tmp_path / "log", tmp_path / "whole", tmp_path / "parts"
    flags = ["--data", dataset, "--loader", "torch", *EVERYTHING, "--batch-size", 2]
    flags += ["--epochs", 10, "--amp", "bf16", "--print-freq", 1]
    assert run_ranks(2, [*flags, "--run-dir", whole], log) == [0, 0], log.read_text()
    resumed = [*flags, "--run-dir", parts, "--resume", "auto"]
    accidents = [
        (LAUNCHER, to_rank(1, signal.SIGUSR1), 128 + signal.SIGUSR1),
        (TORCHRUN, to_all(signal.SIGTERM), 1),  # torchrun's own code
    ]
    for launcher, end, code in accidents:
        with started(resumed if launcher is TORCHRUN else [*resumed, "--nproc", 2], launcher, log) as process:
            step = wait_for_a_step(log, process)
            end(process)
            assert process.wait(SECONDS) == code, log.read_text()
        assert "stopped after step" in log.read_text()
        assert int(max(parts.glob("checkpoints/step-*.pt")).stem.partition("-")[2]) >= step
    other, killed = run_ranks(2, resumed, log, Accident("step", 3))
    assert (bool(other), killed) == (True, KILLED), log.read_text()
    assert run_ranks(2, resumed, log) == [0, 0], log.read_text()
    assert_same_end(whole, parts)


def test_three_ranks_add_up_in_the_same_order(dataset: Path, tmp_path: Path) -> None:
    """Of three values' sum the last bit depends on the order; a network of 45 MB has its gradients in many places."""
    log, whole, parts = tmp_path / "log", tmp_path / "whole", tmp_path / "parts"
    flags = ["--data", dataset, "--loader", "torch", "--model", "torchvision/resnet18", "--resolution", 32]
    flags += ["--batch-size", 4, "--workers", 1, "--epochs", 3, "--lr", 0.1, "--log-indices"]
    assert run_ranks(3, [*flags, "--run-dir", whole], log) == [0, 0, 0], log.read_text()
    resumed = [*flags, "--run-dir", parts, "--resume", "auto"]
    assert run_ranks(3, resumed, log, Accident("SIGTERM", 4)) == 3 * [128 + signal.SIGTERM], log.read_text()
    assert run_ranks(3, resumed, log) == [0, 0, 0], log.read_text()
    assert_same_end(whole, parts)


def test_another_number_of_ranks_goes_on_with_the_same_samples(dataset: Path, tmp_path: Path) -> None:
    log, run_dir = tmp_path / "log", tmp_path / "run"
    flags = ["--data", dataset, "--loader", "torch", *EVERYTHING, "--print-freq", 1, "--run-dir", run_dir]
    flags += ["--resume", "auto", "--batch-size", 4, "--accumulate", 1]
    assert run_ranks(2, flags, log, Accident("SIGTERM", 3)) == 2 * [128 + signal.SIGTERM], log.read_text()
    assert run_process(flags, log) == 0, log.read_text()
    assert "world size 2 -> 1: 1 x 4 images x 2 accumulated keep the global batch of 2 x 4 x 1" in log.read_text()
    seen: dict[int, list[int]] = {}
    for file in sorted(run_dir.glob("indices-rank*.jsonl")):
        for row in map(json.loads, file.read_text().splitlines()):
            seen.setdefault(row["epoch"], []).extend(row["indices"])
    assert sorted(seen) == [0, 1, 2]
    for indices in seen.values():
        assert len(indices) == len(set(indices)) == 40
