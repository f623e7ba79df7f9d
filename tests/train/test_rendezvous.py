"""What is read where a run's processes meet: values of strangers, and the secret that tells them apart."""

import os
import pickle
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from torch.distributed import Store

from pipeline.errors import InputError
from train.rendezvous import (
    TOKEN_FILE_VARIABLE,
    TOKEN_VARIABLE,
    Machines,
    SignedStore,
    connect_store,
    host_store,
    run_token,
)


class _Command:
    """Pickled, it runs a shell command where it is unpickled."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (self.command,)


@pytest.fixture
def store() -> Iterator[Store]:
    store = host_store("here", "127.0.0.1", 0, 5)
    yield store
    del store


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


@pytest.fixture
def threads_end() -> Iterator[None]:
    """Waits for the threads of the test. PyTorch prints stacks of C++ when what one of them waits for is closed."""
    before = {*threading.enumerate()}
    yield
    for thread in {*threading.enumerate()} - before:
        thread.join(20)
        assert not thread.is_alive()


@pytest.mark.usefixtures("threads_end")
def test_what_listens_and_says_nothing_is_not_waited_for_without_end() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as silent,
        pytest.raises(InputError, match=r"^here: not reached within --rdzv-timeout 1 s \(something listens there"),
    ):
        connect_store("here", "127.0.0.1", silent.getsockname()[1], 1)


@pytest.mark.usefixtures("threads_end")
def test_a_store_that_answers_once_is_not_waited_for_without_end() -> None:
    """An impostor answers the greeting, by which PyTorch knows a store, and says nothing more."""

    def greet(listening: socket.socket) -> None:
        for _ in range(2):  # the first only sees whether anybody listens
            connection, _ = listening.accept()
            kept.append(connection)
            if len(kept) == 2:
                connection.sendall(received(connection)[-4:])  # its number

    kept = list[socket.socket]()
    with socket.create_server(("127.0.0.1", 0)) as impostor:
        threading.Thread(target=greet, args=(impostor,), daemon=True).start()
        machines = Machines("here", "127.0.0.1", impostor.getsockname()[1], 1, 2, 1)
        with pytest.raises(InputError, match=r"^here: 2 machines did not meet .* \(it does not answer any more\)"):
            machines.next_rendezvous()
    for connection in kept:
        connection.close()


def received(connection: socket.socket) -> bytes:
    """The ten bytes with which a store's client begins."""
    greeting = b""
    while len(greeting) < 10:
        greeting += connection.recv(10 - len(greeting))
    return greeting
