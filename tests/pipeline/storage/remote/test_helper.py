"""The process that talks to object stores: everybody on the machine sees its socket; only its parent is answered."""

import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from multiprocessing import AuthenticationError
from multiprocessing.connection import Client
from pathlib import Path

import pytest

from pipeline.errors import InputError, StorageError
from pipeline.storage.remote import helper
from pipeline.storage.remote.settings import Access
from pipeline.threads import in_order
from tests.helpers.servers import FaultyServer, serving
from tests.helpers.waiting import wait_until

ACCESS = Access(io_timeout=20)

# As another user: connections that stay silent, that say nonsense, and that answer the challenge wrongly.
STRANGER = """
import os, socket, sys, time
if os.geteuid() == 0:
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
address, hung_up = "\\0" + sys.argv[1], 0
silent = [socket.socket(socket.AF_UNIX) for _ in range(600)]
for one in silent:
    one.connect(address)
for content in (b"", bytes(4) * 100, b"\\xff" * 1000, b"\\0\\0\\0\\x14#WELCOME#" + bytes(11)):
    with socket.socket(socket.AF_UNIX) as loud:
        loud.connect(address)
        try:
            loud.sendall(content)
        except OSError:
            pass
for one in silent:
    one.settimeout(10)
    try:
        hung_up += not one.recv(100)
    except ConnectionError:
        hung_up += 1
print(hung_up, flush=True)
sys.stdin.read()
"""


@pytest.fixture
def address(tmp_path: Path) -> Iterator[str]:
    """That of an object, which the helper has read once."""
    (tmp_path / "objects").mkdir()
    (tmp_path / "objects/a").write_bytes(b"content")
    with serving(tmp_path / "objects") as server:
        assert isinstance(server, FaultyServer)
        assert helper.call("read", f"{server.url}/a", ACCESS, 100) == b"content"
        yield f"{server.url}/a"


def socket_names() -> list[str]:
    """As everybody sees them."""
    return re.findall(r"@(sluice-[0-9a-f]+)$", Path("/proc/net/unix").read_text(), re.MULTILINE)


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user")
def test_other_users_are_hung_up_on(address: str) -> None:
    strangers = [
        subprocess.Popen(
            [sys.executable, "-c", STRANGER, name], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for name in {*socket_names()}
    ]
    try:
        assert strangers
        for stranger in strangers:
            assert stranger.stdout
            assert stranger.stdout.readline() == "600\n"
        for _ in range(20):
            assert helper.call("read", address, ACCESS, 100) == b"content"
    finally:
        for stranger in strangers:
            stranger.communicate("")


def test_whoever_lacks_the_key_is_not_answered_and_keeps_nobody_waiting(address: str) -> None:
    """Also as the same user, who could do worse."""
    with socket.socket(socket.AF_UNIX) as silent:
        for name in {*socket_names()}:
            with pytest.raises(AuthenticationError):
                Client(f"\0{name}", "AF_UNIX", authkey=b"guess")
            with socket.socket(socket.AF_UNIX) as loud:
                loud.connect(f"\0{name}")
                loud.sendall(b"\xff" * 1000)
        silent.connect(f"\0{socket_names()[-1]}")
        assert helper.call("read", address, ACCESS, 100) == b"content"


IMPOSTOR = """
import os, socket, sys
os.setgroups([])
os.setgid(65534)
os.setuid(65534)
with socket.socket(socket.AF_UNIX) as listening:
    listening.bind("\\0" + sys.argv[1])
    listening.listen()
    print("ready", flush=True)
    connection, _ = listening.accept()
    print(connection.recv(100), flush=True)
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user")
def test_nobody_takes_the_place_of_a_helper_that_has_ended(address: str) -> None:
    """Who relays the challenges of two callers to each other passes for one that knows the key, and sends a pickle."""
    started = helper._get()
    started._process.kill()
    started._process.wait()
    words = [sys.executable, "-c", IMPOSTOR, started._address[1:]]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as impostor:
        assert impostor.stdout
        assert impostor.stdout.readline() == "ready\n"
        with pytest.raises(StorageError, match=r"has ended .another user answers in its place"):
            helper.call("read", address, ACCESS, 100)
        assert impostor.stdout.readline() == "b''\n", "not a byte is said to it"
    helper._helper = None
    assert helper.call("read", address, ACCESS, 100) == b"content"


def test_what_nobody_waits_for_ends(tmp_path: Path) -> None:
    """After an error elsewhere, a thread does not wait until a server that stalls is given up."""
    (tmp_path / "slow").write_bytes(bytes(1000))
    with serving(tmp_path) as server:
        server.faults.add("slow", *["stall 500"] * 1000)
        patient = Access(io_timeout=3600)

        def read(name: str) -> bytes:
            if name == "missing":
                wait_until(lambda: server.faults.met["stall 500"] > 0, timeout=60)
            return bytes(helper.call("read", f"{server.url}/{name}", patient, 1000))

        with pytest.raises(InputError, match="missing: cannot be opened"):
            list(in_order(read, ["missing", "slow"], 2))
