"""Several processes on one machine: failures, restarts, signals, other launchers. Real processes, killed for real."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
import torch
from processes import Accident, free_port, run_ranks
from scripts import ROOT, SMALL, finish, ranks_of, result_of, start, wait_until, weights

from pipeline.errors import InputError
from train.config import TrainConfig
from train.world import World, find_world

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
    """Kills the given process at the end of the test, and with it those that it started."""
    started: list[subprocess.Popen[str]] = []

    def remember(process: subprocess.Popen[str]) -> subprocess.Popen[str]:
        started.append(process)
        return process

    yield remember
    for process in started:
        process.kill()
        process.communicate()


TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


@pytest.mark.parametrize("launcher", ["ours", "torchrun"])
def test_a_killed_rank_is_restarted_from_the_last_checkpoint(dataset: Path, tmp_path: Path, launcher: str) -> None:
    common = ["--data", dataset, *SMALL, "--batch-size", 2, "--epochs", 4, "--checkpoint-every", 2]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert run_ranks(2, [*common, "--run-dir", whole], tmp_path / "log") == [0, 0]
    common += ["--run-dir", parts]
    if launcher == "ours":
        run = start(*common, "--nproc", 2, "--max-restarts", 1)
    else:
        run = start(*common, launcher=[*TORCHRUN, "--max-restarts", "1"])
    wait_until(lambda: any(parts.glob("checkpoints/*.pt")), run)
    ranks_of(run)[1].kill()
    done = finish(run)
    result_of(done)
    assert "resumed from" in done.stderr
    if launcher == "ours":
        assert "rank 1 was killed by SIGKILL\nrestarting from the last checkpoint; 0 restarts left" in done.stderr
        assert "Traceback" not in done.stderr
    for name, expected in weights(whole).items():
        assert torch.equal(weights(parts)[name], expected), name


def test_nothing_is_forked_beside_a_process_group(dataset: Path, tmp_path: Path) -> None:
    """Its threads hold locks now and then, that of CPython's threads too; a process that is forked then hangs."""
    log, run_dir = tmp_path / "log", tmp_path / "run"
    flags = ["--data", dataset, *SMALL, "--batch-size", 2]
    training = [*flags, "--epochs", 2, "--progressive-resize", "0:24", "1:40", "--run-dir", run_dir]
    fork = Accident("fork", 1)
    assert run_ranks(2, training, log, fork) == [0, 0], log.read_text()
    assert run_ranks(2, [*training, "--epochs", 3, "--resume", "auto"], log, fork) == [0, 0], log.read_text()
    evaluation = [*flags, "--evaluate", run_dir / "checkpoints" / "best.pt"]
    assert run_ranks(2, evaluation, log, fork) == [0, 0], log.read_text()


def test_nobody_waits_for_a_rank_that_cannot_begin(dataset: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    flags = ["--data", dataset, *SMALL, "--batch-size", 2, "--run-dir", tmp_path / "run"]
    assert run_ranks(2, flags, log, Accident("opening", 2)) == [1, 2], log.read_text()
    assert sorted(log.read_text().splitlines()) == [
        "error: --data: not here", "error: rank 1 could not begin; what it said tells why"
    ]  # fmt: skip
    # Rank 0 alone looks for checkpoints, and finds half of one.
    damaged = tmp_path / "run" / "checkpoints" / "step-00000002.pt"
    damaged.parent.mkdir(parents=True)
    damaged.write_bytes(b"PK")
    log.write_text("")
    assert run_ranks(2, [*flags, "--resume", "auto"], log) == [2, 1], log.read_text()
    assert "error: rank 0 could not begin; what it said tells why" in log.read_text().splitlines()
    assert "Traceback" not in log.read_text()


@pytest.mark.parametrize("function", ["optim.SGD.step", "utils.data.DataLoader.__init__"])
def test_the_first_failing_rank_is_shown_once(dataset: Path, tmp_path: Path, function: str) -> None:
    """Beside the others in a process group, and before there is one."""
    (tmp_path / "sitecustomize.py").write_text(FAULTY_RANK_1.format(function=function))
    flags = ["--data", dataset, *SMALL, "--batch-size", 2, "--nproc", 2, "--run-dir", tmp_path / "run"]
    done = finish(start(*flags, environment={"PYTHONPATH": str(tmp_path)}))
    assert done.returncode == 1
    assert done.stderr.count("Traceback") == 1
    assert done.stderr.endswith("rank 1 failed: RuntimeError: a fault on purpose\n")
    assert "sitecustomize.py" in done.stderr  # the traceback leads to the fault


def test_no_process_outlives_a_killed_launcher(
    dataset: Path, tmp_path: Path, clean: Callable[[subprocess.Popen[str]], subprocess.Popen[str]]
) -> None:
    flags = ["--data", dataset, *SMALL, "--batch-size", 2, "--epochs", 500, "--checkpoint-every", 2, "--nproc", 2]
    run = clean(start(*flags, "--run-dir", tmp_path / "run"))
    wait_until(lambda: any(tmp_path.glob("run/checkpoints/*.pt")), run)
    processes = psutil.Process(run.pid).children(recursive=True)
    assert len(processes) > 2  # those that load data too
    run.kill()
    _, alive = psutil.wait_procs(processes, timeout=20)
    assert not alive


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
    time.sleep(1)  # as for a checkpoint
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
    done = finish(run, timeout=20)
    assert (done.returncode, done.stderr) == (exit_code, "")
    for rank in range(2):
        assert (tmp_path / f"stopped-{rank}").read_text() == f"{int(number)} True"


class TestMachinesThatDoNotMeet:
    """One line, within --rdzv-timeout, with exit code 2."""

    @pytest.fixture
    def told(self, dataset: Path, tmp_path: Path) -> Callable[..., str]:
        def told(node_rank: int, endpoint: str) -> str:
            flags = ["--nnodes", 2, "--node-rank", node_rank, "--rdzv-endpoint", endpoint, "--rdzv-timeout", 3]
            done = finish(start("--data", dataset, *SMALL, *flags, "--run-dir", tmp_path / "run"), timeout=60)
            assert done.returncode == 2, done.stderr
            first, error = done.stderr.splitlines()
            assert first == f"machine {node_rank} of 2: meeting the others at {endpoint}"
            assert error.startswith(f"error: --rdzv-endpoint {endpoint}: ")
            assert not (tmp_path / "run").exists()
            return error

        return told

    def test_a_machine_that_never_comes(self, told: Callable[..., str]) -> None:
        error = told(0, f"127.0.0.1:{free_port()}")
        assert "2 machines did not meet there within --rdzv-timeout 3 s (Timed out" in error

    def test_an_endpoint_where_nobody_listens(self, told: Callable[..., str]) -> None:
        error = told(1, f"127.0.0.1:{free_port()}")
        assert error.endswith("not reached within --rdzv-timeout 3 s (Connection refused)")

    def test_an_endpoint_that_nobody_knows(self, told: Callable[..., str]) -> None:
        error = told(1, "no-such-host.invalid:29500")
        assert error.endswith("not reached within --rdzv-timeout 3 s (Name or service not known)")

    def test_an_endpoint_that_is_another_machine(self, told: Callable[..., str]) -> None:
        assert "rank 0 is to listen there, and cannot (Cannot assign" in told(0, "192.0.2.254:29500")

    def test_a_port_in_use(self, told: Callable[..., str]) -> None:
        with socket.create_server(("", 0)) as other:
            error = told(0, f"127.0.0.1:{other.getsockname()[1]}")
        assert "rank 0 is to listen there, and cannot (Address already in use" in error


def test_a_process_that_never_comes(dataset: Path, tmp_path: Path) -> None:
    environment = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": str(free_port())}
    flags = ["--data", dataset, *SMALL, "--batch-size", 2, "--rdzv-timeout", 3, "--run-dir", tmp_path / "run"]
    done = finish(start(*flags, environment=environment), timeout=60)
    assert done.returncode == 2
    assert "2 processes did not meet there within --rdzv-timeout 3 s (" in done.stderr
    assert len(done.stderr.splitlines()) == 1


class TestEnvironments:
    """What srun and mpirun say of a process is adopted."""

    SRUN = {"SLURM_PROCID": "3", "SLURM_NTASKS": "4", "SLURM_LOCALID": "1", "SLURM_STEP_TASKS_PER_NODE": "2(x2)"}  # noqa: RUF012
    MASTER = {"MASTER_ADDR": "node0", "MASTER_PORT": "29500"}  # noqa: RUF012

    @pytest.fixture(autouse=True)
    def _no_launcher(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in os.environ:
            if name.startswith(("SLURM_", "OMPI_", "TORCHELASTIC_")) or name in ("RANK", "WORLD_SIZE", "MASTER_ADDR"):
                monkeypatch.delenv(name)

    @pytest.fixture
    def world(self, monkeypatch: pytest.MonkeyPatch) -> Callable[..., World | None]:
        def world(environment: dict[str, str], **flags: int) -> World | None:
            for name, value in environment.items():
                monkeypatch.setenv(name, value)
            return find_world(TrainConfig(**flags))  # type: ignore[arg-type]

        return world

    def test_srun(self, world: Callable[..., World | None]) -> None:
        expected = World(rank=3, size=4, local_rank=1, local_size=2)
        assert world({**self.SRUN, **self.MASTER, "SLURM_NODEID": "1"}) == expected

    @pytest.mark.parametrize(("tasks", "node", "count"), [("2(x3),1", 2, 2), ("2(x3),1", 3, 1), ("4", 0, 4)])
    def test_srun_with_unequal_nodes(
        self, world: Callable[..., World | None], tasks: str, node: int, count: int
    ) -> None:
        unequal = {"SLURM_STEP_TASKS_PER_NODE": tasks, "SLURM_NODEID": str(node), "SLURM_LOCALID": "0"}
        found = world({**self.SRUN, **self.MASTER, **unequal})
        assert found is not None
        assert found.local_size == count

    def test_mpirun(self, world: Callable[..., World | None]) -> None:
        names = ("RANK", "SIZE", "LOCAL_RANK", "LOCAL_SIZE")
        said = {f"OMPI_COMM_WORLD_{name}": value for name, value in zip(names, "5812", strict=True)}
        assert world(said | self.MASTER) == World(rank=5, size=8, local_rank=1, local_size=2)

    def test_one_task_a_machine_is_for_our_own_launcher(self, world: Callable[..., World | None]) -> None:
        assert world(self.SRUN, nproc=8) is None

    def test_no_launcher(self, world: Callable[..., World | None]) -> None:
        assert world({}) is None

    def test_without_a_meeting_point(self, world: Callable[..., World | None]) -> None:
        with pytest.raises(InputError, match=r"srun started 4 processes: export MASTER_ADDR .* MASTER_PORT"):
            world(self.SRUN)

    def test_nonsense(self, world: Callable[..., World | None]) -> None:
        with pytest.raises(InputError, match=r"torchrun's environment .* RANK=x WORLD_SIZE=2"):
            world({"RANK": "x", "WORLD_SIZE": "2"})

    @pytest.mark.parametrize(
        "environment",
        [{"RANK": "5", "WORLD_SIZE": "2"}, {"RANK": "0", "WORLD_SIZE": "0"}, {"RANK": "-1", "WORLD_SIZE": "2"}],
        ids=str,
    )
    def test_numbers_that_cannot_be(self, world: Callable[..., World | None], environment: dict[str, str]) -> None:
        with pytest.raises(InputError, match="torchrun's environment has no numbers where they belong"):
            world({**environment, **self.MASTER})

    @pytest.mark.parametrize("name", ["RANK", "WORLD_SIZE"])
    def test_half_of_it(self, world: Callable[..., World | None], name: str) -> None:
        with pytest.raises(InputError, match=f"{name} 1 is exported, and RANK and WORLD_SIZE are not both"):
            world({name: "1"})

    def test_a_port_that_is_none(self, world: Callable[..., World | None]) -> None:
        with pytest.raises(InputError, match="export MASTER_ADDR"):
            world({"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "node0", "MASTER_PORT": "99999"})
