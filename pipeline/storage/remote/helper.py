"""A process that talks to object stores for this one, and for those that it forks.

obstore's threads do not survive a fork: a process that has used it and forks leaves children that hang at their first
request. Loaders fork. So this process and its workers never use it themselves: a helper, started and not forked,
opens the clients; a thread of it answers each call. It ends when the process that started it has ended.

Everybody on the machine can connect to it. Who is not the same user is hung up on at once, before a byte is read; the
others prove that they know the key, in a thread of their own, so that nobody keeps anybody else waiting.
"""

import atexit
import os
import resource
import secrets
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Generator, Iterator
from multiprocessing import AuthenticationError
from multiprocessing.connection import Client, Connection, Listener, answer_challenge, deliver_challenge
from pathlib import Path
from typing import Any

from ...errors import InputError, StorageError
from ...threads import is_abandoned

_lock = threading.Lock()
_helper: "_Helper | None" = None
os.register_at_fork(after_in_child=lambda: globals().update(_lock=threading.Lock()))

_ITEM, _RESULT, _ERROR = range(3)
_CODE = "from {package}.helper import serve; serve()"
_MOST_MEMORY = 1 << 32
"""Bytes; 512 callers at a time take less."""
_STACK = 1 << 20
"""Bytes of each caller's thread, all of which count; the system's are 8 MB."""
_ASK_EVERY_S = 0.2
"""How often a thread that waits for an object store asks whether its result is still wanted."""


class _Helper:
    """The process, and how to reach it."""

    def __init__(self) -> None:
        package = str(__package__)
        root = Path(__file__).resolve().parents[package.count(".") + 1]
        code = f"import sys; sys.path.insert(0, {str(root)!r}); " + _CODE.format(package=package)
        # In a session of its own: Ctrl-C is for its parent, without which it has nothing to do.
        environment = os.environ | {"RUST_BACKTRACE": "0"}
        self._process = subprocess.Popen(
            [sys.executable, "-c", code],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            start_new_session=True,
        )
        assert self._process.stdin
        assert self._process.stdout
        self._key = secrets.token_bytes(32)
        self._address = f"\0sluice-{secrets.token_hex(16)}"  # no file, which a killed process would leave
        self._process.stdin.write(f"{self._address[1:]} {self._key.hex()}\n".encode())
        self._process.stdin.flush()
        if self._process.stdout.readline() != b"ready\n":
            raise StorageError(f"the process that reads object stores ended at its start ({self._process.wait()})")

    def connect(self) -> Connection:
        """A connection to the helper, and not to another user's process: once the helper has ended, anybody may answer
        under its address. That such a process does not know the key would not be enough: it could have another caller
        answer for it."""
        try:
            connection = Client(self._address, "AF_UNIX")
            try:
                if _user_of(connection) != os.geteuid():
                    raise OSError("another user answers in its place")
                answer_challenge(connection, self._key)
                deliver_challenge(connection, self._key)
            except BaseException:
                connection.close()
                raise
            return connection
        except (OSError, EOFError, AuthenticationError) as error:
            raise StorageError(f"the process that reads object stores has ended ({error})") from None

    def close(self) -> None:
        self._process.terminate()
        self._process.communicate()


def _get() -> _Helper:
    global _helper
    with _lock:
        if _helper is None:
            _helper = _Helper()
            atexit.register(close, os.getpid())
        return _helper


def close(pid: int | None = None) -> None:
    """End the helper. Another one is started when it is needed, which reads the environment again. With `pid`, only in
    that process, which started it."""
    global _helper
    if pid in (None, os.getpid()):
        with _lock:
            if _helper is not None:
                _helper.close()
                _helper = None


def call(name: str, *arguments: Any) -> Any:
    """What a function of client.py returns. Raises InputError and StorageError."""
    with _get().connect() as connection:
        _send(connection, (name, arguments))
        return _receive(connection)[1]


def iterate(name: str, *arguments: Any) -> Generator[Any]:
    """What a generator of client.py yields. Closing this one ends it. Raises InputError and StorageError."""
    with _get().connect() as connection:
        _send(connection, (name, arguments))
        while True:
            kind, item = _receive(connection)
            if kind == _RESULT:
                return
            yield item


def _send(connection: Connection, message: Any) -> None:
    try:
        connection.send(message)
    except OSError as error:
        raise StorageError(f"the process that reads object stores has ended ({error})") from None


def _receive(connection: Connection) -> tuple[int, Any]:
    try:
        while not connection.poll(_ASK_EVERY_S):
            if is_abandoned():
                raise StorageError("nobody waits for this any more")
        kind, item = connection.recv()
    except (OSError, EOFError) as error:
        raise StorageError(f"the process that reads object stores has ended ({error})") from None
    if kind == _ERROR:
        raise item
    return kind, item


def serve() -> None:
    """What the helper runs. It ends where a server fills its memory: obstore holds a listing's page, or the text of an
    error, however long they are."""
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    most = _MOST_MEMORY if hard == resource.RLIM_INFINITY else min(_MOST_MEMORY, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (most, most))
    threading.stack_size(_STACK)
    address, key = sys.stdin.readline().split()
    with Listener(f"\0{address}", "AF_UNIX", backlog=512) as listener:
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        threading.Thread(target=_accept, args=(listener, bytes.fromhex(key)), daemon=True).start()
        sys.stdin.read()  # until the parent has ended
        os._exit(0)


def _accept(listener: Listener, key: bytes) -> None:
    while True:
        try:
            connection = listener.accept()
        except OSError:  # a caller that was killed while it connected; or too many are connected
            time.sleep(0.01)
            continue
        if _user_of(connection) == os.geteuid():
            threading.Thread(target=_answer, args=(connection, key), daemon=True).start()
        else:
            connection.close()


def _user_of(connection: Connection) -> int:
    """The user at the other end, unix(7)."""
    with socket.socket(fileno=os.dup(connection.fileno())) as peer:
        credentials = peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    return int(struct.unpack("3i", credentials)[1])


def _answer(connection: Connection, key: bytes) -> None:
    """Run one call of somebody who knows the key, and send what it gives."""
    from . import client

    try:
        deliver_challenge(connection, key)
        answer_challenge(connection, key)
        name, arguments = connection.recv()
        try:
            result = getattr(client, name)(*arguments)
            if isinstance(result, Iterator):
                for item in result:
                    connection.send((_ITEM, item))
                result = None
            connection.send((_RESULT, result))
        except InputError as error:
            connection.send((_ERROR, error))
    except (OSError, EOFError, AuthenticationError):  # the caller wants no more, or is none
        pass
    finally:
        connection.close()
