"""Attacks on a run from another machine: network namespaces with an address each."""

import itertools
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from tests.helpers.hosts import ADDRESSES, Hosts, connected_hosts
from tests.helpers.scripts import ROOT, SMALL, abort, finish, finish_all, start, wait_until
from train.rendezvous import TOKEN_VARIABLE

OUTSIDE = "10.213.78.1"
"""Another address of the first host."""
ports = itertools.count(29600)

REACH = """
import socket, sys
for address in sys.argv[1].split():
    for port in map(int, sys.argv[2].split()):
        try:
            socket.create_connection((address, port), timeout=5).close()
            print("reached", address, port)
        except ConnectionRefusedError:
            print("refused")
"""

ATTACK = '''
import contextlib, os, pickle, socket, subprocess, sys, threading, time
from datetime import timedelta
from torch.distributed import TCPStore

address, canary, *ports = sys.argv[1:]
found, signed = [], []

class Command:
    def __reduce__(self):
        return subprocess.call, (["touch", canary],)

def keys_of(store):
    """PyTorch 2.14 lists what is in a store, 2.7 does not; these keys can be guessed."""
    if hasattr(store, "list_keys"):
        return store.list_keys()
    round_id = store.get("meetings/round").split()[-1].decode()
    guesses = ["machines/0", "machines/1", "machines/all", "meetings/round", f"meetings/{round_id}/rank 1 is present"]
    return [key for key in guesses if store.check([key])]

def attack(port):
    for content in (b"GET / HTTP/1.1\\r\\n\\r\\n", os.urandom(3000), bytes(100), b"", b"\\xff" * 3000):
        with contextlib.suppress(OSError), socket.create_connection((address, port), timeout=5) as stranger:
            stranger.sendall(content)
    store = TCPStore(address, port, is_master=False, timeout=timedelta(seconds=5))
    values = {key: store.get(key) for key in keys_of(store)}
    signed.extend(value for key, value in values.items() if "meetings" in key)
    for number, key in enumerate(values):
        # what runs a command when it is unpickled, or what others wrote
        store.set(key, signed[number % len(signed)] if signed and number % 2 == 0 else pickle.dumps(Command()))
    found.extend(values)

threads = [threading.Thread(target=attack, args=(int(port),), daemon=True) for port in ports]
for thread in threads:
    thread.start()
end = time.monotonic() + 10  # where nothing that listens is a store, PyTorch may wait for ever
for thread in threads:
    thread.join(max(0, end - time.monotonic()))
print(len(found), len(signed), flush=True)
os._exit(0)
'''
"""Sends garbage to ports, and overwrites what the stores among them hold. Prints how many values they held, and how
many of these were signed."""


def attack(host: list[str], address: str, ports: Iterable[int], canary: Path) -> tuple[int, int]:
    """Attack from a host what listens at an address. Returns the numbers that ATTACK prints."""
    command = [*host, sys.executable, "-c", ATTACK, address, str(canary), *map(str, ports)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, cwd=ROOT)
    overwritten, signed = map(int, done.stdout.split())
    return overwritten, signed


@pytest.fixture(scope="module")
def hosts() -> Iterator[Hosts]:
    with connected_hosts() as hosts:
        yield hosts


def listening(pid: int) -> set[tuple[str, int]]:
    """Where processes listen in the network namespace of a process: /proc/PID/net/tcp and tcp6, proc(5)."""
    found = set()
    for name in ("tcp", "tcp6"):
        for line in Path(f"/proc/{pid}/net/{name}").read_text().splitlines()[1:]:
            words = line.split()
            address, port = words[1].split(":")
            if words[3] == "0A":  # TCP_LISTEN
                last = bytes.fromhex(address[-8:])[::-1]
                found.add(
                    (".".join(map(str, last)) if name == "tcp" or address[:24] == MAPPED else address, int(port, 16))
                )
    return found


MAPPED = "0000000000000000FFFF0000"
"""How an IPv6 address begins that stands for one of IPv4."""


def steps(run_dir: Path) -> int:
    """Log lines of training steps."""
    log = run_dir / "train.log"
    return len(re.findall(r" step \d+ ", log.read_text())) if log.exists() else 0


def test_a_run_on_one_machine_offers_strangers_nothing(hosts: Hosts, dataset: Path, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    flags = ["--data", dataset, *SMALL, "--nproc", 2, "--epochs", 500, "--print-freq", 1, "--run-dir", tmp_path]
    run = start(*flags, launcher=[*hosts.first, sys.executable])
    try:
        wait_until(lambda: steps(tmp_path) > 0, run, timeout=400)
        found = listening(run.pid)
        assert {address for address, _ in found} == {"127.0.0.1"}
        used = " ".join(str(port) for _, port in found)
        for host, addresses in ((hosts.second, ADDRESSES[0]), (hosts.stranger, f"{OUTSIDE} {ADDRESSES[0]}")):
            command = [*host, sys.executable, "-c", REACH, addresses, used]
            done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=200)
            assert done.stdout.split("\n") == ["refused"] * len(found) * len(addresses.split()) + [""]
        # Other users of the machine are in its network.
        before = steps(tmp_path)
        overwritten, _ = attack(hosts.first, "127.0.0.1", [port for _, port in found], canary)
        assert overwritten > 0
        wait_until(lambda: steps(tmp_path) > before + 1, run, timeout=400)
        run.terminate()
        done = finish(run, timeout=400)
        assert done.returncode == 143, done.stderr
        assert "Traceback" not in done.stderr
        assert not canary.exists()
    finally:
        abort(run.pid)


def start_two(hosts: Hosts, secrets: tuple[str, str], port: int, *flags: object) -> list["subprocess.Popen[str]"]:
    """train/run.py on two machines."""
    common = [*flags, "--nnodes", 2, "--rdzv-endpoint", f"{ADDRESSES[0]}:{port}", "--rdzv-timeout", 300]
    return [
        start(*common, "--node-rank", rank, launcher=[*host, sys.executable], environment={TOKEN_VARIABLE: secret})
        for rank, (host, secret) in enumerate(zip(hosts[:2], secrets, strict=True))
    ]


def test_two_machines_with_a_secret_survive_a_stranger(hosts: Hosts, dataset: Path, tmp_path: Path) -> None:
    port, run_dir, canary = next(ports), tmp_path / "run", tmp_path / "canary"
    flags = ["--data", dataset, *SMALL, "--batch-size", 2, "--epochs", 500, "--print-freq", 1, "--run-dir", run_dir]
    both = start_two(hosts, ("secret", "secret"), port, *flags)
    try:
        wait_until(lambda: steps(run_dir) > 0, both[0], timeout=400)
        for process, own in zip(both, ADDRESSES, strict=True):
            assert {address for address, _ in listening(process.pid)} <= {own, "127.0.0.1"}
        before = steps(run_dir)
        overwritten, signed = attack(hosts.stranger, ADDRESSES[0], [port], canary)
        assert overwritten > signed > 0
        wait_until(lambda: steps(run_dir) > before + 2, both[0], timeout=400)
        both[0].terminate()
        both[1].terminate()
        for done in finish_all(*both, timeout=400):
            assert done.returncode == 143, done.stderr
            assert "Traceback" not in done.stderr
        assert not canary.exists()
    finally:
        abort(*(process.pid for process in both))


def test_two_machines_with_different_secrets_do_not_meet(hosts: Hosts, dataset: Path, tmp_path: Path) -> None:
    flags = ["--data", dataset, *SMALL, "--batch-size", 2, "--run-dir", tmp_path / "run"]
    for done in finish_all(*start_two(hosts, ("one", "another"), next(ports), *flags), timeout=400):
        assert done.returncode in (1, 2)
        (line,) = [line for line in done.stderr.splitlines() if "error" in line]
        assert TOKEN_VARIABLE in line or "its own error message says why" in line
        assert "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()
