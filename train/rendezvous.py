"""Where the processes of a run find each other: the store they share, who can reach it, and whose values count.

PyTorch's store asks nobody who he is: whoever reaches its port reads, lists and overwrites every value. So it listens
on one address only, on the loopback where the run has one machine; each value is parsed as text or JSON and never
unpickled; and values are signed with a secret of the run.
"""

import functools
import hashlib
import hmac
import ipaddress
import logging
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TypeVar

import torch
from torch.distributed import PrefixStore, Store, TCPStore
from torch.distributed.elastic.rendezvous import RendezvousHandler, RendezvousInfo, RendezvousStoreInfo
from torch.torch_version import TorchVersion

from pipeline.errors import InputError

log = logging.getLogger(__name__)

LOOPBACK = "127.0.0.1"
"""Not `localhost`, which some machines cannot resolve."""
_LIBUV_TAKES_SOCKETS = TorchVersion(torch.__version__) >= "2.14"
"""Whether the store's faster server takes a listening socket: that of PyTorch 2.14 does, that of 2.7 does not. Those
between have not been tried; the older server takes one in all of them."""

_GRACE_S = 5.0
"""A machine that has not met the others in time says so itself, if the store answers."""

Value = TypeVar("Value")

TOKEN_VARIABLE, TOKEN_FILE_VARIABLE = "SLUICE_RDZV_TOKEN", "SLUICE_RDZV_TOKEN_FILE"


# The secret of a run


def run_token() -> bytes:
    """The secret that the processes of this run share, from the environment or the file that it names; empty where
    there is none. Raises InputError where the file cannot be used."""
    if token := os.environ.get(TOKEN_VARIABLE, "").strip():
        return token.encode()
    path = os.environ.get(TOKEN_FILE_VARIABLE)
    if not path:
        return b""
    try:
        token = Path(path).read_text().strip()
    except (OSError, ValueError) as error:
        raise InputError(f"{TOKEN_FILE_VARIABLE} {path}: cannot be read ({error})") from None
    if not token:
        raise InputError(f"{TOKEN_FILE_VARIABLE} {path}: is empty; write a secret into it")
    if Path(path).stat().st_mode & 0o077:
        raise InputError(f"{TOKEN_FILE_VARIABLE} {path}: others may read it; chmod 600 it")
    return token.encode()


def generate_token() -> None:
    """Give the processes that this one starts a secret, unless they have one."""
    if not run_token():
        os.environ[TOKEN_VARIABLE] = secrets.token_hex(16)


# The store


def host_store(where: str, address: str, port: int, timeout_s: int) -> TCPStore:
    """A store that listens at this address, and at no other of this machine; port 0 is any free one. `where` names the
    flag or variable for error messages. Raises InputError where this process cannot listen there."""
    try:
        family = socket.getaddrinfo(address, port, type=socket.SOCK_STREAM)[0][0]
        listening = socket.create_server((address, port), family=family)
    except OSError as error:
        reason = error.strerror or error
        raise InputError(f"{where}: rank 0 must listen there, but cannot ({reason})") from None
    port = listening.getsockname()[1]
    return TCPStore(
        address,
        port,
        is_master=True,
        timeout=timedelta(seconds=timeout_s),
        wait_for_workers=False,
        multi_tenant=False,
        master_listen_fd=listening.detach(),
        use_libuv=_LIBUV_TAKES_SOCKETS,
    )


def refuse_own_name_for_loopback(where: str, address: str) -> None:
    """Raises InputError where this machine's name for the others is one of its own loopback, as /etc/hosts of Debian
    has it: there they would not reach it."""
    try:
        ipaddress.ip_address(address)
    except ValueError:
        pass
    else:
        return  # somebody who writes 127.0.0.1 means it
    if address == "localhost":
        return
    try:
        found = {str(entry[4][0]) for entry in socket.getaddrinfo(address, 0, type=socket.SOCK_STREAM)}
    except OSError:
        return  # whoever listens or connects there says so
    if all(ipaddress.ip_address(own.partition("%")[0]).is_loopback for own in found):
        raise InputError(
            f"{where}: {address} is {' '.join(sorted(found))} on this machine, where other machines cannot reach it; "
            "give the address of a network interface"
        )


def connect_store(where: str, address: str, port: int, timeout_s: int) -> TCPStore:
    """The store that another process has at this address. Raises InputError where it is not reached, or does not
    answer, within `timeout_s` seconds: PyTorch waits too, but prints stack traces and no reason, and waits without end
    where something listens and says nothing."""
    end = time.monotonic() + timeout_s
    for remaining_s in _attempts(timeout_s):
        try:
            socket.create_connection((address, port), timeout=max(0.1, remaining_s)).close()
            break
        except OSError as error:
            if remaining_s <= 0:
                reason = error.strerror or error
                raise InputError(f"{where}: not reached within --rdzv-timeout {timeout_s} s ({reason})") from None
    connect = functools.partial(TCPStore, address, port, is_master=False, timeout=timedelta(seconds=timeout_s))
    try:
        return _in_time(connect, end)
    except TimeoutError:
        raise InputError(
            f"{where}: not reached within --rdzv-timeout {timeout_s} s (something listens there and says nothing: "
            "another program, or a machine that hangs)"
        ) from None


def _in_time(call: Callable[[], Value], end: float) -> Value:
    """What `call` returns or raises. Raises TimeoutError where it has not returned at `end` of the monotonic clock, or
    a second from now: it goes on, in a thread that nobody waits for."""
    outcome = Future[Value]()

    def run() -> None:
        try:
            outcome.set_result(call())
        except BaseException as error:  # for the caller
            outcome.set_exception(error)

    threading.Thread(target=run, daemon=True).start()  # a pool would be waited for when the process ends
    if not wait([outcome], max(1.0, end - time.monotonic())).done:
        raise TimeoutError
    return outcome.result()


def _attempts(timeout_s: float) -> Iterator[float]:
    """Attempts with pauses; the seconds that remain, and a last one with none."""
    end = time.monotonic() + timeout_s
    while True:
        remaining_s = end - time.monotonic()
        yield remaining_s
        time.sleep(0.2)


@dataclass(frozen=True)
class SignedStore:
    """Text in a store, signed by the processes of a run: each value begins with the HMAC-SHA256 of its key and text.

    Without a secret, the signature only tells a run's values from garbage; with one, nobody else can make any. Whoever
    reaches the store can still delete values or put old ones back: that stops or misleads a run, and executes nothing.
    """

    store: Store
    token: bytes
    prefix: str = ""

    def within(self, prefix: str) -> "SignedStore":
        """The part of it where keys begin with `prefix` and a slash."""
        return SignedStore(self.store, self.token, f"{self.prefix}{prefix}/")

    @property
    def raw(self) -> PrefixStore:
        """This part for PyTorch's process groups, which know no signatures."""
        return PrefixStore(self.prefix.removesuffix("/"), self.store)

    def set(self, key: str, text: str) -> None:
        """Put a text there. Raises DistError where the store is gone."""
        self.store.set(self.prefix + key, f"{self._signature(key, text)} {text}")

    def has(self, key: str) -> bool:
        """Whether anything is there. Raises DistError where the store is gone."""
        return self.store.check([self.prefix + key])

    def get(self, key: str) -> str:
        """The text of a key that is there. Raises InputError where no process of this run wrote it, and DistError where
        the store is gone."""
        value = self.store.get(self.prefix + key).decode(errors="replace")
        signature, _, text = value.partition(" ")
        if not hmac.compare_digest(signature.encode(), self._signature(key, text).encode()):
            raise InputError(
                f"the value of {self.prefix + key!r} where the run's processes meet was not written by one of them: "
                f"give all of them the same {TOKEN_VARIABLE}, and keep other programs from that port"
            )
        return text

    def _signature(self, key: str, text: str) -> str:
        content = f"{self.prefix}{key}\0{text}".encode(errors="replace")
        return hmac.new(self.token, content, hashlib.sha256).hexdigest()


# The machines


class Machines(RendezvousHandler):
    """How the launchers of a run meet: machine 0 has the store, and each knows its number from --node-rank.

    PyTorch's own ways either number machines by chance and keep their state as a pickle, or listen on every interface.
    """

    def __init__(self, where: str, address: str, port: int, rank: int, count: int, timeout_s: int) -> None:
        self._where, self._address, self._port = where, address, port
        self._rank, self._count, self._timeout_s = rank, count, timeout_s
        self._store: TCPStore | None = None

    def next_rendezvous(self) -> RendezvousInfo:
        """Meet the other machines, once; where processes are restarted, the machines have met already. Raises
        InputError where they do not meet."""
        if self._store is None:
            if self._rank == 0:
                self._store = host_store(self._where, self._address, self._port, self._timeout_s)
                self._port = self._store.port
            else:
                self._store = connect_store(self._where, self._address, self._port, self._timeout_s)
            end = time.monotonic() + self._timeout_s + _GRACE_S
            try:
                _in_time(functools.partial(self._wait_for_all, self._store), end)
            except TimeoutError:  # the store waits for each answer without end
                raise InputError(
                    f"{self._where}: {self._count} machines did not meet there within --rdzv-timeout "
                    f"{self._timeout_s} s (it does not answer any more)"
                ) from None
        bootstrap = RendezvousStoreInfo(self._address, self._port)
        return RendezvousInfo(PrefixStore("launchers", self._store), self._rank, self._count, bootstrap)

    def _wait_for_all(self, store: TCPStore) -> None:
        """Wait until machine 0 has found all: if each looked for all the others, that would grow with the square of the
        machines."""
        present = SignedStore(store, run_token(), "machines/")
        present.set(str(self._rank), "present")
        end = time.monotonic() + self._timeout_s
        if self._rank == 0:
            for rank in range(1, self._count):
                present.set("awaited", str(rank))
                self._wait(present, str(rank), end)
            present.set("all", "present")
        self._wait(present, "all", end)

    def _wait(self, present: SignedStore, key: str, end: float) -> None:
        """Wait until a machine has put a key there. Raises InputError at `end` of the monotonic clock."""
        for remaining_s in _attempts(end - time.monotonic()):
            if present.has(key):
                present.get(key)
                return
            if remaining_s <= 0:
                awaited = present.get("awaited") if present.has("awaited") else "0"
                raise InputError(
                    f"{self._where}: {self._count} machines did not meet there within --rdzv-timeout "
                    f"{self._timeout_s} s (Timed out waiting for machine {awaited})"
                )

    def get_backend(self) -> str:
        """A name for PyTorch's logs."""
        return "sluice"

    @property
    def use_agent_store(self) -> bool:
        """Whether the processes use the launcher's store, which outlives them."""
        return True

    def get_run_id(self) -> str:
        """A name for PyTorch's logs."""
        return "sluice"

    def is_closed(self) -> bool:
        """Whether no machine can join any more."""
        return False

    def set_closed(self) -> None:
        """The number of machines is fixed."""

    def num_nodes_waiting(self) -> int:
        """How many machines want to join a run that has begun."""
        return 0

    def shutdown(self) -> bool:
        """The store ends with the launcher."""
        return True
