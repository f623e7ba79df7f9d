"""Who can reach where a run's processes meet, and what a stranger who does can do."""

import contextlib
import os
import pickle
import socket
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from torch.distributed import Store

from pipeline.errors import InputError
from tests.helpers.scripts import SMALL, abort, finish, start, wait_until
from train.rendezvous import TOKEN_FILE_VARIABLE, TOKEN_VARIABLE, SignedStore, host_store, run_token


class _Command:
    """Pickled, it runs a shell command where it is unpickled."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (self.command,)


def listening(pid: int) -> list[tuple[str, int]]:
    """Where a process and those that it started listen, as /proc/net/tcp and /proc/net/tcp6 have it."""
    addresses = []
    with contextlib.suppress(psutil.NoSuchProcess):
        for process in [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]:
            with contextlib.suppress(psutil.NoSuchProcess):
                found = process.net_connections("tcp")
                addresses += [(one.laddr.ip, one.laddr.port) for one in found if one.status == psutil.CONN_LISTEN]
    return sorted(set(addresses))


def throw_garbage(port: int) -> None:
    """What port scanners and lost browsers send."""
    for content in (b"GET / HTTP/1.1\r\n\r\n", os.urandom(3000), b"\0" * 100, b""):
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=2) as stranger:
            stranger.sendall(content)


STRANGER = """
import os, pickle, subprocess, sys, threading, time
from datetime import timedelta
from torch.distributed import TCPStore

class Command:
    def __reduce__(self):
        return subprocess.call, (["touch", sys.argv[1]],)

def attack(port):
    store = TCPStore("127.0.0.1", port, is_master=False, timeout=timedelta(seconds=5))
    keys = store.list_keys()
    for key in keys:
        store.set(key, pickle.dumps(Command()))
    found.extend(keys)

found = []
threads = [threading.Thread(target=attack, args=(int(port),), daemon=True) for port in sys.argv[2:]]
for thread in threads:
    thread.start()
end = time.monotonic() + 10  # where nothing that listens is a store, PyTorch may wait for ever
for thread in threads:
    thread.join(max(0, end - time.monotonic()))
print(len(found), flush=True)
os._exit(0)
"""


def overwrite_everything(ports: Iterable[int], canary: Path) -> int:
    """Put a pickle that creates `canary` into all that the stores at these ports hold. Returns how many values they
    held."""
    command = [sys.executable, "-c", STRANGER, str(canary), *map(str, ports)]
    return int(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, timeout=100).stdout)


@pytest.fixture
def store() -> Iterator[Store]:
    store = host_store("here", "127.0.0.1", 0, 5)
    yield store
    del store


def test_a_run_on_one_machine_can_be_reached_from_nowhere_else_and_executes_nothing(
    dataset: Path, tmp_path: Path
) -> None:
    canary = tmp_path / "canary"
    process = start(
        "--data", dataset, *SMALL, "--nproc", 2, "--epochs", 500, "--run-dir", tmp_path / "run", "--print-freq", 1
    )
    log = tmp_path / "run" / "train.log"
    try:
        wait_until(lambda: log.exists() and " step 5 " in log.read_text(), process, timeout=120)
        addresses = listening(process.pid)
        assert {address for address, _ in addresses} <= {"127.0.0.1", "::1", "::ffff:127.0.0.1"}
        ports = [port for _, port in addresses]
        for port in ports:
            throw_garbage(port)
        before = log.read_text().count(" step ")
        wait_until(lambda: log.read_text().count(" step ") > before + 1, process)  # garbage does not end a run
        assert overwrite_everything(ports, canary)
        process.terminate()
        done = finish(process)
    finally:
        abort(process.pid)
    assert not canary.exists()
    assert "Traceback" not in done.stderr


def test_values_of_strangers_are_refused(store: Store) -> None:
    ours, theirs = SignedStore(store, b"secret", "a/"), SignedStore(store, b"guess", "a/")
    ours.set("key", "text")
    assert SignedStore(store, b"secret").within("a").get("key") == "text"
    with pytest.raises(InputError, match=f"'a/key' .* was not written by one of them.*{TOKEN_VARIABLE}"):
        theirs.get("key")
    values: dict[str, Any] = {"other": store.get("a/key"), "pickle": pickle.dumps(_Command("false"))}
    for key, value in values.items():
        store.set(f"a/{key}", value)
    for key in ("other", "pickle"):
        with pytest.raises(InputError, match="was not written by one of them"):
            ours.get(key)


def test_the_secret_comes_from_the_environment_or_a_file_that_others_cannot_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "token"
    file.write_text("from a file\n")
    monkeypatch.delenv(TOKEN_VARIABLE, raising=False)
    monkeypatch.setenv(TOKEN_FILE_VARIABLE, str(file))
    with pytest.raises(InputError, match="others may read it; chmod 600 it"):
        run_token()
    file.chmod(0o600)
    assert run_token() == b"from a file"
    file.write_text(" ")
    with pytest.raises(InputError, match="is empty"):
        run_token()
    monkeypatch.setenv(TOKEN_VARIABLE, "from the environment")
    assert run_token() == b"from the environment"
    file.unlink()
    monkeypatch.delenv(TOKEN_VARIABLE)
    with pytest.raises(InputError, match="cannot be read"):
        run_token()
