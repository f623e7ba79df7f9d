"""Signals: a scheduler's, through our launcher and torchrun, a terminal's, and those that end a process that loads."""

import contextlib
import functools
import http.server
import json
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import psutil
import pytest

from tests.helpers.processes import EVERYTHING, Accident, run_process, run_ranks
from tests.helpers.runs import TINY, assert_same_end, newest_checkpoint, newest_step
from tests.helpers.scripts import ROOT, ranks_of, suspend, wait_until

OUR_LAUNCHER = (sys.executable,)
TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
SECONDS = 300


@contextlib.contextmanager
def started(flags: Sequence[object], launcher: Sequence[str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """The command as a process; at the end of the block, it and its children are killed."""
    words = [*launcher, str(ROOT / "train" / "run.py"), *map(str, flags)]
    with log.open("wb") as file:
        process = subprocess.Popen(words, stderr=file, stdout=file, cwd=ROOT)
        try:
            yield process
        finally:
            signal_all(process, signal.SIGKILL)
            process.wait()


def wait_for_a_step(log: Path, process: subprocess.Popen[bytes], after: int = 0) -> int:
    """Wait until the log has the line of a step after this one. Returns the step's number."""

    def steps() -> list[int]:
        numbers = map(int, re.findall(r"^epoch .* step (\d+) ", log.read_text(), re.MULTILINE))
        return [number for number in numbers if number > after]

    wait_until(lambda: bool(steps()), process, SECONDS)
    return steps()[0]


def to_rank(rank: int, number: signal.Signals) -> Callable[[subprocess.Popen[bytes]], None]:
    return lambda process: ranks_of(process)[rank].send_signal(number)


def to_all(number: signal.Signals) -> Callable[[subprocess.Popen[bytes]], None]:
    return lambda process: signal_all(process, number)


def signal_all(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    """Signal the launcher, the ranks and their loaders' workers, as schedulers do."""
    with contextlib.suppress(psutil.NoSuchProcess):
        launcher = psutil.Process(process.pid)
        for member in [*launcher.children(recursive=True), launcher]:
            with contextlib.suppress(psutil.NoSuchProcess):
                member.send_signal(number)


def test_two_ranks_stop_after_the_same_step_and_resume(dataset: Path, tmp_path: Path) -> None:
    """A signal to one rank and a scheduler's to all, one after the other in one run: it ends as an uninterrupted one.
    (The death of a rank is in test_launch.py.)"""
    log, whole, parts = tmp_path / "log", tmp_path / "whole", tmp_path / "parts"
    flags = ["--data", dataset, "--loader", "torch", *EVERYTHING, "--batch-size", 2]
    flags += ["--epochs", 10, "--amp", "bf16", "--print-freq", 1]
    assert run_ranks(2, [*flags, "--run-dir", whole], log) == [0, 0], log.read_text()
    resumed = [*flags, "--run-dir", parts, "--resume", "auto"]
    accidents = [
        (OUR_LAUNCHER, to_rank(1, signal.SIGUSR1), 128 + signal.SIGUSR1),
        (TORCHRUN, to_all(signal.SIGTERM), 1),  # torchrun's own code
    ]
    for launcher, send_signal, code in accidents:
        with started(resumed if launcher is TORCHRUN else [*resumed, "--nproc", 2], launcher, log) as process:
            step = wait_for_a_step(log, process)
            send_signal(process)
            assert process.wait(SECONDS) == code, log.read_text()
        assert "stopped after step" in log.read_text()
        assert newest_step(parts) >= step
    assert run_ranks(2, resumed, log) == [0, 0], log.read_text()
    assert_same_end(whole, parts)


def test_the_command_that_ctrl_c_prints_resumes_the_run(dataset: Path, tmp_path: Path) -> None:
    """Pasted into a shell that has not activated the environment; the run's directory has a space in its name."""
    log, run_dir = tmp_path / "log", tmp_path / "my run"
    flags = ["--data", dataset, *TINY, "--device", "cpu", "--epochs", 100_000, "--print-freq", 1, "--run-dir", run_dir]
    with started(flags, OUR_LAUNCHER, log) as process:
        wait_for_a_step(log, process)
        process.send_signal(signal.SIGINT)
        assert process.wait(SECONDS) == 128 + signal.SIGINT, log.read_text()
    step = newest_step(run_dir)
    stopped, command = log.read_text().splitlines()[-1].split("; to resume: ")
    assert stopped == f"SIGINT: stopped after step {step}"
    pasted = ["env", "PATH=/usr/bin:/bin", "sh", "-c", f"exec {command}"]
    with log.open("wb") as file, subprocess.Popen(pasted, stderr=file, stdout=file, cwd=ROOT) as again:
        try:
            assert wait_for_a_step(log, again) == step + 1, log.read_text()
        finally:
            signal_all(again, signal.SIGKILL)


@pytest.fixture
def bare_host(tmp_path: Path) -> list[str]:
    """The words before a command that run it where no name can be resolved, not even localhost."""
    hosts, switch = tmp_path / "hosts", tmp_path / "nsswitch.conf"
    hosts.write_text("192.0.2.1 elsewhere\n")
    switch.write_text("hosts: files\n")
    mounts = f"mount --bind {hosts} /etc/hosts && mount --bind {switch} /etc/nsswitch.conf"
    words = ["unshare", "--mount", "sh", "-c", f'{mounts} && exec "$@"', "sh"]
    if subprocess.run([*words, "true"], capture_output=True, check=False).returncode:
        pytest.skip("needs the right to make a mount namespace")
    assert subprocess.run([*words, "getent", "hosts", "localhost"], capture_output=True, check=False).returncode
    return words


def test_two_ranks_survive_a_hangup_under_nohup_and_end_at_once_at_the_second_ctrl_c(
    dataset: Path, tmp_path: Path, bare_host: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a host without localhost, and with a TMPDIR longer than the path of a Unix socket may be (108 bytes)."""
    log, long = tmp_path / "log", tmp_path / ("long" * 30)
    long.mkdir()
    monkeypatch.setenv("TMPDIR", str(long))
    flags = ["--data", dataset, *TINY, "--device", "cpu", "--epochs", 100_000, "--print-freq", 1, "--nproc", 2]
    launcher = [*bare_host, "nohup", sys.executable]
    with started([*flags, "--run-dir", tmp_path / "run"], launcher, log) as process:
        step = wait_for_a_step(log, process)
        signal_all(process, signal.SIGHUP)
        wait_for_a_step(log, process, after=step + 10)
        ranks = ranks_of(process)
        suspend(ranks[1])  # so that the run cannot stop as the first Ctrl-C asks
        process.send_signal(signal.SIGINT)
        wait_until(lambda: signal.SIGINT in pending(ranks[1]), process, SECONDS)
        process.send_signal(signal.SIGINT)
        assert process.wait(SECONDS) == 128 + signal.SIGINT, log.read_text()
        assert not psutil.wait_procs(ranks, timeout=60)[1]
    assert log.read_text().endswith("interrupted\n")
    assert "Traceback" not in log.read_text()
    assert "frame #" not in log.read_text()


def pending(process: psutil.Process) -> set[int]:
    """The signals that a process has been sent and has not received, from its "ShdPnd" in /proc (proc(5))."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    (bits,) = re.findall(r"^ShdPnd:\t([0-9a-f]+)$", status, re.MULTILINE)
    return {number for number in range(1, 65) if int(bits, 16) >> (number - 1) & 1}


class Stalled(http.server.SimpleHTTPRequestHandler):
    """A web server that answers for everything but shards, for which it keeps everybody waiting."""

    released: threading.Event

    def do_GET(self) -> None:
        if self.path.endswith(".tar"):
            self.released.wait()
        super().do_GET()

    def log_message(self, *_: object) -> None:
        """No log on stderr."""


def test_sigterm_ends_a_process_that_waits_for_data(dataset: Path, tmp_path: Path) -> None:
    log, run_dir = tmp_path / "log", tmp_path / "run"
    Stalled.released = threading.Event()
    handler = functools.partial(Stalled, directory=str(dataset))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        flags = ["--data", f"http://127.0.0.1:{server.server_port}", *TINY, "--loader", "webdataset", "--workers", 2]
        code = run_process([*flags, "--run-dir", run_dir], log, Accident("SIGTERM, then no data", 1))
        Stalled.released.set()
        server.shutdown()
    assert code == 128 + signal.SIGTERM, log.read_text()
    last = log.read_text().splitlines()[-1]
    assert last.startswith("SIGTERM: rank 0 stopped waiting for data after step 0; to resume: ")
    assert newest_checkpoint(run_dir).name == "step-00000000.pt"


def test_a_killed_process_that_loads_data_is_one_line(dataset: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    flags = ["--data", dataset, *TINY, "--epochs", 1000, "--amp", "fp16", "--run-dir", tmp_path / "run"]
    assert run_process(flags, log, Accident("worker", 1)) == 1
    assert "Traceback" not in log.read_text()
    assert re.fullmatch(
        r"error: lost a process that loads data: killed by signal 9, probably by the out-of-memory killer "
        r"\([\d.]+ of [\d.]+ GiB of memory are in use now; fewer --workers need less\)",
        log.read_text().splitlines()[-1],
    ), log.read_text()


def test_three_ranks_add_gradients_in_the_same_order_after_resuming(dataset: Path, tmp_path: Path) -> None:
    """The last bit of a sum of three values depends on the order; a network of 45 MB has several gradient buckets."""
    log, whole, parts = tmp_path / "log", tmp_path / "whole", tmp_path / "parts"
    flags = ["--data", dataset, "--loader", "torch", "--model", "torchvision/resnet18", "--resolution", 32]
    flags += ["--batch-size", 4, "--workers", 1, "--epochs", 2, "--lr", 0.1, "--log-indices"]
    assert run_ranks(3, [*flags, "--run-dir", whole], log) == [0, 0, 0], log.read_text()
    resumed = [*flags, "--run-dir", parts, "--resume", "auto"]
    assert run_ranks(3, resumed, log, Accident("SIGTERM", 4)) == 3 * [128 + signal.SIGTERM], log.read_text()
    assert run_ranks(3, resumed, log) == [0, 0, 0], log.read_text()
    assert_same_end(whole, parts)


def test_another_number_of_ranks_continues_with_the_same_samples(dataset: Path, tmp_path: Path) -> None:
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
