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
from scripts import SMALL, finish, finish_all, result_of, start, wait_until, weights

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


@pytest.fixture
def common(dataset: Path, monkeypatch: pytest.MonkeyPatch) -> list[object]:
    # By default the processes of a machine share its cores; with another number of threads, sums are rounded otherwise.
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return ["--data", dataset, *SMALL, "--batch-size", 2, "--epochs", 4, "--checkpoint-every", 2]


def test_two_machines_train_as_one_with_as_many_processes(hosts: Hosts, common: list[object], tmp_path: Path) -> None:
    log = tmp_path / "log"
    assert run_ranks(2, [*common, "--run-dir", tmp_path / "one", "--log-indices"], log) == [0, 0], log.read_text()
    first, second = finish_all(*start_both(hosts, *common, "--run-dir", tmp_path / "two", "--log-indices"))
    assert result_of(first)["evaluated"] == 19
    assert (second.returncode, second.stdout) == (0, "")
    for rank in range(2):
        name = f"indices-rank{rank}.jsonl"
        assert (tmp_path / "two" / name).read_text() == (tmp_path / "one" / name).read_text()
    expected = weights(tmp_path / "one")
    assert all(torch.equal(expected[name], value) for name, value in weights(tmp_path / "two").items())

    # A process of one machine dies: those of both are restarted.
    both = start_both(hosts, *common, "--run-dir", tmp_path / "restarted", "--max-restarts", 1)
    wait_until(lambda: any(tmp_path.glob("restarted/checkpoints/*.pt")), both[0])
    psutil.Process(both[1].pid).children()[0].kill()
    first, second = finish_all(*both)
    result_of(first)
    assert "rank 1 was killed by SIGKILL" in second.stderr
    assert "rank 0 lost the connection to another rank: " in first.stderr
    assert "resumed from" in first.stderr
    assert all(torch.equal(expected[name], value) for name, value in weights(tmp_path / "restarted").items())


def test_a_process_that_dies_before_they_meet(hosts: Hosts, common: list[object], tmp_path: Path) -> None:
    flags = ["--epochs", 1, "--run-dir", tmp_path / "run", "--max-restarts", 1]
    both = start_both(hosts, *common, *flags)
    wait_until(lambda: bool(psutil.Process(both[1].pid).children()), both[1])
    psutil.Process(both[1].pid).children()[0].kill()
    first, second = finish_all(*both, timeout=55)  # --rdzv-timeout is 60
    assert result_of(first)["evaluated"] == 19
    assert "rank 1 was killed by SIGKILL" in second.stderr
    assert "rank 1 could not begin" in first.stderr


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
