"""Several processes on one machine: failures, restarts, signals. Real processes, killed for real."""

import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

from tests.helpers.processes import KILLED, Accident, free_port, run_process, run_ranks
from tests.helpers.scripts import ROOT, SMALL, finish, ranks_of, result_of, start, wait_until, weights
from train.launch import first_failure

FAULTY_RANK_1 = """
import os
if os.environ.get("RANK") == "1":
    import torch.utils.data
    def fault(self, *arguments, **options):
        raise RuntimeError("a fault on purpose")
    torch.{function} = fault
"""


@pytest.fixture
def clean() -> Iterator[Callable[[subprocess.Popen[str]], subprocess.Popen[str]]]:
    """Kills the given process, and with it those that it started, at the end of the test."""
    started: list[subprocess.Popen[str]] = []

    def remember(process: subprocess.Popen[str]) -> subprocess.Popen[str]:
        started.append(process)
        return process

    yield remember
    for process in started:
        process.kill()
        process.communicate()


def test_a_killed_rank_is_restarted_from_the_last_checkpoint(dataset: Path, tmp_path: Path) -> None:
    common = ["--data", dataset, *SMALL, "--batch-size", 2, "--epochs", 4, "--checkpoint-every", 2]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert run_ranks(2, [*common, "--run-dir", whole], tmp_path / "log") == [0, 0]
    run = start(*common, "--run-dir", parts, "--nproc", 2, "--max-restarts", 1)
    wait_until(lambda: any(parts.glob("checkpoints/*.pt")), run)
    ranks_of(run)[1].kill()
    done = finish(run)
    result_of(done)
    assert "resumed from" in done.stderr
    assert re.search(
        r"^rank 1 was killed by SIGKILL, probably by the out-of-memory killer \([\d.]+ of [\d.]+ GiB of memory are "
        r"in use now.*\nrestarting from the last checkpoint; 0 restarts left$", done.stderr, re.MULTILINE
    )  # fmt: skip
    assert "Traceback" not in done.stderr
    for name, expected in weights(whole).items():
        assert torch.equal(weights(parts)[name], expected), name


def test_nothing_is_forked_once_there_is_a_process_group(dataset: Path, tmp_path: Path) -> None:
    """Its threads sometimes hold locks, CPython's own among them; a process forked at that moment hangs."""
    log, run_dir = tmp_path / "log", tmp_path / "run"
    flags = ["--data", dataset, *SMALL, "--batch-size", 2]
    training = [*flags, "--epochs", 2, "--progressive-resize", "0:24", "1:40", "--run-dir", run_dir]
    fork = Accident("fork", 1)
    assert run_ranks(2, training, log, fork) == [0, 0], log.read_text()
    assert run_ranks(2, [*training, "--epochs", 3, "--resume", "auto"], log, fork) == [0, 0], log.read_text()
    evaluation = [*flags, "--evaluate", run_dir / "checkpoints" / "best.pt"]
    assert run_ranks(2, evaluation, log, fork) == [0, 0], log.read_text()


def test_nobody_waits_for_a_rank_that_cannot_start(dataset: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    flags = ["--data", dataset, *SMALL, "--batch-size", 2, "--run-dir", tmp_path / "run"]
    assert run_ranks(2, flags, log, Accident("opening", 2)) == [1, 2], log.read_text()
    lines = log.read_text().splitlines()
    assert sorted(line for line in lines if not line.startswith("decoder auto")) == [
        "error: --data: refused on purpose", "error: rank 1 could not start; its own error message says why"
    ]  # fmt: skip
    # Only rank 0 looks for checkpoints, and it finds half of one.
    damaged = tmp_path / "run" / "checkpoints" / "step-00000002.pt"
    damaged.parent.mkdir(parents=True)
    damaged.write_bytes(b"PK")
    log.write_text("")
    assert run_ranks(2, [*flags, "--resume", "auto"], log) == [2, 1], log.read_text()
    assert "error: rank 0 could not start; its own error message says why" in log.read_text().splitlines()
    assert "Traceback" not in log.read_text()


@pytest.mark.parametrize("function", ["optim.SGD.step", "utils.data.DataLoader.__init__"])
def test_the_first_failing_rank_is_shown_once(dataset: Path, tmp_path: Path, function: str) -> None:
    """In a process group with the others, and before there is one."""
    (tmp_path / "sitecustomize.py").write_text(FAULTY_RANK_1.format(function=function))
    flags = ["--data", dataset, *SMALL, "--batch-size", 2, "--nproc", 2, "--run-dir", tmp_path / "run"]
    done = finish(start(*flags, environment={"PYTHONPATH": str(tmp_path)}))
    assert done.returncode == 1
    assert done.stderr.count("Traceback") == 1
    assert done.stderr.endswith("rank 1 failed: RuntimeError: a fault on purpose\n")
    assert "sitecustomize.py" in done.stderr  # the traceback names the place of the fault


@pytest.mark.parametrize("exit_code", [-signal.SIGTERM, 128 + signal.SIGTERM])
def test_a_rank_that_the_launcher_ended_did_not_fail_first(exit_code: int, tmp_path: Path) -> None:
    """It leaves no error file, as a killed one; both may end within a second."""
    error_file = tmp_path / "error.json"
    error_file.write_text('{"message": {"message": "ValueError: on purpose", "extraInfo": {"timestamp": "1"}}}')
    ended = ProcessFailure(local_rank=0, pid=1, exitcode=exit_code, error_file=str(tmp_path / "none"))
    failed = ProcessFailure(local_rank=1, pid=2, exitcode=1, error_file=str(error_file))
    assert first_failure({0: ended, 1: failed}) == (1, failed)
    killed = ProcessFailure(local_rank=2, pid=3, exitcode=KILLED, error_file=str(tmp_path / "none"))
    assert first_failure({0: ended, 1: failed, 2: killed}) == (2, killed)


LAUNCHER = """
import sys
sys.path.insert(0, {root!r})
from train.config import TrainConfig
from train.launch import launch
launch(TrainConfig(nproc=2, max_restarts=1, run_dir="run"), {worker!r})
"""

WORKER = """
import os, pathlib, signal, subprocess, sys, time
def stop(number, frame):
    time.sleep(1)  # as if writing a checkpoint
    alive = helper.poll() is None
    helper.kill()
    pathlib.Path(f"stopped-{{os.environ['RANK']}}").write_text(f"{{number}} {{alive}}")
    sys.exit({exit_code})
signal.signal(signal.SIGTERM, stop)
signal.signal(signal.SIGUSR1, stop)
helper = subprocess.Popen(["sleep", "60"])  # in the worker's process group, as the processes that load data
pathlib.Path(f"ready-{{os.environ['RANK']}}").touch()
time.sleep(60)
"""


@pytest.mark.parametrize(("number", "exit_code"), [(signal.SIGTERM, 0), (signal.SIGUSR1, 0), (signal.SIGTERM, 143)])
def test_a_signal_to_stop_is_passed_on_and_waited_for(
    tmp_path: Path,
    clean: Callable[[subprocess.Popen[str]], subprocess.Popen[str]],
    number: signal.Signals,
    exit_code: int,
) -> None:
    (tmp_path / "worker.py").write_text(WORKER.format(exit_code=exit_code))
    (tmp_path / "launcher.py").write_text(LAUNCHER.format(root=str(ROOT), worker=str(tmp_path / "worker.py")))
    run = clean(
        subprocess.Popen(
            [sys.executable, "launcher.py"],
            cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
    )  # fmt: skip
    wait_until(lambda: (tmp_path / "ready-0").exists() and (tmp_path / "ready-1").exists(), run)
    run.send_signal(number)
    done = finish(run, timeout=100)
    assert (done.returncode, done.stderr) == (exit_code, "")
    for rank in range(2):
        assert (tmp_path / f"stopped-{rank}").read_text() == f"{int(number)} True"


class TestMachinesThatDoNotMeet:
    """One line after --rdzv-timeout seconds, and exit code 2."""

    @pytest.fixture
    def error_of(self, dataset: Path, tmp_path: Path) -> Callable[..., str]:
        def error_of(node_rank: int, endpoint: str) -> str:
            flags = ["--nnodes", 2, "--node-rank", node_rank, "--rdzv-endpoint", endpoint, "--rdzv-timeout", 3]
            log = tmp_path / "log"
            assert run_process(["--data", dataset, *SMALL, *flags, "--run-dir", tmp_path / "run"], log) == 2
            first, error = log.read_text().splitlines()
            assert first == f"machine {node_rank} of 2: meeting the others at {endpoint}"
            assert error.startswith(f"error: --rdzv-endpoint {endpoint}: ")
            assert not (tmp_path / "run").exists()
            return error

        return error_of

    def test_a_machine_that_never_arrives(self, error_of: Callable[..., str]) -> None:
        error = error_of(0, f"127.0.0.1:{free_port()}")
        assert "2 machines did not meet there within --rdzv-timeout 3 s (Timed out" in error

    def test_an_endpoint_where_nobody_listens(self, error_of: Callable[..., str]) -> None:
        error = error_of(1, f"127.0.0.1:{free_port()}")
        assert error.endswith("not reached within --rdzv-timeout 3 s (Connection refused)")

    def test_an_endpoint_that_does_not_resolve(self, error_of: Callable[..., str]) -> None:
        error = error_of(1, "no-such-host.invalid:29500")
        assert error.endswith("not reached within --rdzv-timeout 3 s (Name or service not known)")

    def test_an_endpoint_that_is_another_machine(self, error_of: Callable[..., str]) -> None:
        assert "rank 0 must listen there, but cannot (Cannot assign" in error_of(0, "192.0.2.254:29500")

    def test_a_port_in_use(self, error_of: Callable[..., str]) -> None:
        with socket.create_server(("", 0)) as other:
            error = error_of(0, f"127.0.0.1:{other.getsockname()[1]}")
        assert "rank 0 must listen there, but cannot (Address already in use" in error


def test_a_process_that_never_arrives(dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    environment = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": str(free_port())}
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    flags = ["--data", dataset, *SMALL, "--batch-size", 2, "--rdzv-timeout", 3, "--run-dir", tmp_path / "run"]
    log = tmp_path / "log"
    assert run_process(flags, log) == 2
    (line,) = log.read_text().splitlines()
    assert "2 processes did not meet there within --rdzv-timeout 3 s (" in line
