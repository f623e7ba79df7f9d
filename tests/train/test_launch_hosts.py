"""Two machines: network namespaces with an address each, between them nothing but a cable."""

import itertools
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import torch
from processes import run_ranks
from scripts import SMALL, finish, finish_all, ranks_of, result_of, start, wait_until, weights

Hosts = tuple[list[str], list[str]]
"""What a command starts with to run on each of them."""

ADDRESSES = ("10.213.77.1", "10.213.77.2")
ports = itertools.count(29500)


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


@pytest.fixture(scope="module")
def hosts() -> Iterator[Hosts]:
    names = [f"sluice-{os.getpid()}-{number}" for number in range(2)]
    try:
        ip("netns", "add", names[0])
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"network namespaces are not to be had here: {getattr(error, 'stderr', None) or error}")
    try:
        ip("netns", "add", names[1])
        ip("link", "add", "cable", "netns", names[0], "type", "veth", "peer", "name", "cable", "netns", names[1])
        for name, address in zip(names, ADDRESSES, strict=True):
            ip("-netns", name, "address", "add", f"{address}/24", "dev", "cable")
            ip("-netns", name, "link", "set", "cable", "up")
            ip("-netns", name, "link", "set", "lo", "up")
        yield tuple(["ip", "netns", "exec", name] for name in names)  # type: ignore[misc]
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "delete", name], capture_output=True)


def start_both(hosts: Hosts, *arguments: object) -> list[subprocess.Popen[str]]:
    """train/run.py on both, the second first: --node-rank numbers them, not who comes first."""
    endpoint = f"{ADDRESSES[0]}:{next(ports)}"
    flags = [*arguments, "--nnodes", 2, "--rdzv-endpoint", endpoint, "--rdzv-timeout", 60]
    second, first = (start(*flags, "--node-rank", rank, launcher=[*hosts[rank], sys.executable]) for rank in (1, 0))
    return [first, second]


def start_torchrun(hosts: Hosts, *arguments: object) -> list[subprocess.Popen[str]]:
    """The same by torchrun, as its pages show it: it numbers the machines itself. Its flags for each say what it takes
    from the name of a machine, which is the same here."""
    flags = ["--nnodes", "2", "--max-restarts", "1", "--rdzv-backend", "c10d"]
    flags += ["--rdzv-endpoint", f"{ADDRESSES[0]}:{next(ports)}"]
    torchrun = [sys.executable, "-m", "torch.distributed.run", *flags]
    return [
        start(*arguments, launcher=[*host, *torchrun, "--local-addr", address, "--rdzv-conf", f"is_host={is_host}"])
        for host, address, is_host in zip(hosts, ADDRESSES, (1, 0), strict=True)
    ]


@pytest.fixture(scope="module")
def common(dataset: Path) -> Iterator[list[object]]:
    with pytest.MonkeyPatch.context() as patch:
        # By default the processes of a machine share its cores; with another number of threads, sums are rounded
        # otherwise.
        patch.setenv("OMP_NUM_THREADS", "1")
        yield ["--data", dataset, *SMALL, "--batch-size", 2, "--epochs", 4, "--checkpoint-every", 2, "--log-indices"]


@pytest.fixture(scope="module")
def on_one(common: list[object], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of the same run of two processes on one machine."""
    folder = tmp_path_factory.mktemp("one")
    assert run_ranks(2, [*common, "--run-dir", folder / "run"], folder / "log") == [0, 0]
    return folder / "run"


def assert_same(one: Path, two: Path) -> None:
    for rank in range(2):
        name = f"indices-rank{rank}.jsonl"
        assert (two / name).read_text() == (one / name).read_text()
    expected, found = weights(one), weights(two)
    assert all(torch.equal(expected[name], value) for name, value in found.items())


def test_two_machines_train_as_one_with_as_many_processes(
    hosts: Hosts, common: list[object], on_one: Path, tmp_path: Path
) -> None:
    first, second = finish_all(*start_both(hosts, *common, "--run-dir", tmp_path / "run"))
    assert result_of(first)["evaluated"] == 19
    assert (second.returncode, second.stdout) == (0, "")
    assert_same(on_one, tmp_path / "run")


@pytest.mark.parametrize("launcher", ["ours", "torchrun"])
def test_a_process_that_dies_is_restarted_and_so_are_those_of_the_other_machine(
    hosts: Hosts, common: list[object], on_one: Path, tmp_path: Path, launcher: str
) -> None:
    flags = [*common, "--run-dir", tmp_path / "run"]
    # Each torchrun counts the failures on its own machine, so that after this one they are not of one mind.
    both = start_torchrun(hosts, *flags) if launcher == "torchrun" else start_both(hosts, *flags, "--max-restarts", 1)
    wait_until(lambda: any(tmp_path.glob("run/checkpoints/*.pt")), both[0])
    ranks_of(both[1])[0].kill()
    first, second = finish_all(*both)
    result_of(first)
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
    first, second = finish_all(*both, timeout=55)  # --rdzv-timeout is 60
    assert result_of(first)["evaluated"] == 19
    assert "rank 1 was killed by SIGKILL" in second.stderr
    assert "error" not in first.stderr  # it waits for the process in its place


def test_a_machine_that_is_lost(hosts: Hosts, common: list[object], tmp_path: Path) -> None:
    both = start_both(hosts, *common, "--epochs", 500, "--run-dir", tmp_path / "run")
    wait_until(lambda: any(tmp_path.glob("run/checkpoints/*.pt")), both[0])
    processes = psutil.Process(both[1].pid).children(recursive=True)
    both[1].kill()
    done = finish(both[0], timeout=30)
    finish(both[1])
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "rank 0 lost the connection to another rank: " in done.stderr.splitlines()[-1]
    assert not psutil.wait_procs(processes, timeout=10)[1]
