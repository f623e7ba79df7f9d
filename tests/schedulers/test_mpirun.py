"""Runs under a real mpirun of Open MPI."""

import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import psutil
import pytest

from tests.helpers.processes import free_port
from tests.helpers.runs import assert_same_end, newest_step
from tests.helpers.scripts import finish, held, result_of, start, wait_until

pytestmark = [
    pytest.mark.schedulers,
    pytest.mark.timeout(3600),
    pytest.mark.skipif(shutil.which("mpirun") is None, reason="mpirun: not installed; make test-schedulers does it"),
]

SECONDS = 600


def start_mpirun(processes: int, flags: Sequence[object], run_dir: Path) -> subprocess.Popen[str]:
    """So many processes of train/run.py, which resume what is in the run directory."""
    mpirun = ["mpirun", "--allow-run-as-root", "--oversubscribe", "-np", str(processes)]
    environment = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "OMP_NUM_THREADS": "1"}
    words = [*flags, "--run-dir", run_dir, "--resume", "auto"]
    return start(*words, launcher=[*mpirun, sys.executable], environment=environment)


def last_rank(mpirun: subprocess.Popen[str]) -> psutil.Process:
    ranks = {
        process.environ().get("OMPI_COMM_WORLD_RANK", ""): process for process in psutil.Process(mpirun.pid).children()
    }
    return ranks[max(ranks)]


@pytest.mark.parametrize("processes", [2, 3])
def test_stopped_killed_and_done(
    flags: Callable[[int], list[object]], undisturbed: Callable[[int], Path], tmp_path: Path, processes: int
) -> None:
    """The first time, mpirun passes a signal on; the second time, a rank is killed; the third time, the run ends."""
    run_dir = tmp_path / "run"
    run = start_mpirun(processes, flags(processes), run_dir)
    wait_until(lambda: newest_step(run_dir) > 0, run, SECONDS)
    with held(last_rank(run)):
        run.send_signal(signal.SIGUSR1)
    stopped = finish(run, SECONDS)
    assert stopped.returncode == 128 + signal.SIGUSR1, stopped.stderr
    assert "SIGUSR1: stopped after step" in stopped.stderr
    step = newest_step(run_dir)
    run = start_mpirun(processes, flags(processes), run_dir)
    wait_until(lambda: newest_step(run_dir) > step, run, SECONDS)
    last_rank(run).kill()
    killed = finish(run, SECONDS)
    assert killed.returncode == 128 + signal.SIGKILL, killed.stderr
    assert "Traceback" not in killed.stderr
    done = finish(start_mpirun(processes, flags(processes), run_dir), SECONDS)
    assert result_of(done)["evaluated"] == 19
    assert_same_end(undisturbed(processes), run_dir)
