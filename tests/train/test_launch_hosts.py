"""Two machines: network namespaces with an address each, connected by a virtual cable."""

import itertools
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import torch

from tests.helpers.hosts import ADDRESSES, Hosts, connected_hosts
from tests.helpers.processes import run_ranks
from tests.helpers.scripts import SMALL, finish, finish_all, ranks_of, result_of, start, wait_until, weights

ports = itertools.count(29500)


@pytest.fixture(scope="module")
def hosts() -> Iterator[Hosts]:
    with connected_hosts() as hosts:
        yield hosts


def start_both(hosts: Hosts, *arguments: object) -> list[subprocess.Popen[str]]:
    """train/run.py on both, the second one first: --node-rank numbers them, not the order in which they start."""
    endpoint = f"{ADDRESSES[0]}:{next(ports)}"
    flags = [*arguments, "--nnodes", 2, "--rdzv-endpoint", endpoint, "--rdzv-timeout", 150]
    second, first = (start(*flags, "--node-rank", rank, launcher=[*hosts[rank], sys.executable]) for rank in (1, 0))
    return [first, second]


def start_torchrun(hosts: Hosts, *arguments: object) -> list[subprocess.Popen[str]]:
    """train/run.py on both, started by torchrun as its documentation shows. It numbers the machines itself; the flags
    for each replace what it derives from a machine's name, which is the same here."""
    flags = ["--nnodes", "2", "--max-restarts", "1", "--rdzv-backend", "c10d"]
    flags += ["--rdzv-endpoint", f"{ADDRESSES[0]}:{next(ports)}"]
    torchrun = [sys.executable, "-m", "torch.distributed.run", *flags]
    return [
        start(*arguments, launcher=[*host, *torchrun, "--local-addr", address, "--rdzv-conf", f"is_host={is_host}"])
        for host, address, is_host in zip(hosts[:2], ADDRESSES, (1, 0), strict=True)
    ]


@pytest.fixture(scope="module")
def common(dataset: Path) -> Iterator[list[object]]:
    with pytest.MonkeyPatch.context() as patch:
        # By default the processes of a machine share its cores; with another number of threads, sums round differently.
        patch.setenv("OMP_NUM_THREADS", "1")
        yield ["--data", dataset, *SMALL, "--batch-size", 2, "--epochs", 4, "--checkpoint-every", 2, "--log-indices"]


@pytest.fixture(scope="module")
def on_one(common: list[object], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of the run with two processes on one machine."""
    folder = tmp_path_factory.mktemp("one")
    assert run_ranks(2, [*common, "--run-dir", folder / "run"], folder / "log") == [0, 0]
    return folder / "run"


def assert_same(one: Path, two: Path) -> None:
    for rank in range(2):
        name = f"indices-rank{rank}.jsonl"
        assert (two / name).read_text() == (one / name).read_text()
    expected, result = weights(one), weights(two)
    assert all(torch.equal(expected[name], value) for name, value in result.items())


@pytest.mark.parametrize("launcher", ["ours", "torchrun"])
def test_when_a_process_dies_those_of_both_machines_are_restarted(
    hosts: Hosts, common: list[object], on_one: Path, tmp_path: Path, launcher: str
) -> None:
    flags = [*common, "--run-dir", tmp_path / "run"]
    # Each torchrun counts the failures on its own machine, so the counts differ after this one.
    both = start_torchrun(hosts, *flags) if launcher == "torchrun" else start_both(hosts, *flags, "--max-restarts", 1)
    wait_until(lambda: any(tmp_path.glob("run/checkpoints/*.pt")), both[0])
    ranks_of(both[1])[0].kill()
    first, second = finish_all(*both)
    assert result_of(first)["evaluated"] == 19
    assert (second.returncode, second.stdout) == (0, "")
    assert "resumed from" in first.stderr
    if launcher == "ours":
        assert "rank 1 was killed by SIGKILL" in second.stderr
        assert "rank 0 lost the connection to another rank: " in first.stderr
    assert_same(on_one, tmp_path / "run")


def test_a_process_that_dies_before_they_meet(hosts: Hosts, common: list[object], tmp_path: Path) -> None:
    flags = ["--epochs", 1, "--run-dir", tmp_path / "run", "--max-restarts", 1]
    both = start_both(hosts, *common, *flags)
    wait_until(lambda: bool(ranks_of(both[1])), both[1])
    ranks_of(both[1])[0].kill()
    first, second = finish_all(*both, timeout=145)  # --rdzv-timeout is 150
    assert result_of(first)["evaluated"] == 19
    assert "rank 1 was killed by SIGKILL" in second.stderr
    assert "error" not in first.stderr  # it waits for the process that replaces the killed one


def test_a_machine_that_is_lost(hosts: Hosts, common: list[object], tmp_path: Path) -> None:
    both = start_both(hosts, *common, "--epochs", 500, "--run-dir", tmp_path / "run")
    wait_until(lambda: any(tmp_path.glob("run/checkpoints/*.pt")), both[0])
    processes = psutil.Process(both[1].pid).children(recursive=True)
    assert len(processes) > 1  # including those that load data
    both[1].kill()
    done = finish(both[0], timeout=100)
    finish(both[1])
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "rank 0 lost the connection to another rank: " in done.stderr.splitlines()[-1]
    assert not psutil.wait_procs(processes, timeout=60)[1]
