"""Real servers on loopback: one that serves a folder, or another server, and does wrong what a test asks for; moto's S3
server; Azurite."""

import base64
import contextlib
import hashlib
import hmac
import http.client
import http.server
import os
import re
import secrets
import shutil
import socket
import struct
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from email.utils import formatdate
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

import pytest

from pipeline.storage.remote import helper
from pipeline.storage.remote.settings import Access
from tests.helpers.files import files_in

CHUNK = 1 << 14


class Answer(NamedTuple):
    """An HTTP response."""

    status: int
    headers: dict[str, str]
    body: bytes


@dataclass
class Faults:
    """What goes wrong: for the paths that a pattern matches, one after the other, each for one request.

    `refuse` closes the connection unanswered; `reset N` and `stall N` break or stop after N bytes of the body; `alter`
    changes a byte of it; `short N` ends an orderly answer after N bytes; `truncate N` first takes N bytes from it;
    `redirect` sends to the same path with `?again`; a number is a status.
    """

    waiting: list[tuple[str, str]] = field(default_factory=list)
    met: Counter[str] = field(default_factory=Counter)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, pattern: str, *faults: str) -> None:
        """The next requests for a path that matches meet these."""
        self.waiting += [(pattern, fault) for fault in faults]

    def take(self, path: str) -> list[str]:
        """What this request meets, as words."""
        with self.lock:
            for entry in self.waiting:
                if re.search(entry[0], path):
                    self.waiting.remove(entry)
                    self.met[entry[1]] += 1
                    return entry[1].split()
        return ["nothing"]


class FaultyServer(http.server.ThreadingHTTPServer):
    """Serves a folder with ranges, or passes requests on to another server. `bandwidth` in bytes/s is shared by all
    connections; each answer begins after `latency` seconds."""

    daemon_threads = True

    def __init__(self, source: Path | str, bandwidth: float | None = None, latency: float = 0.0) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.source, self.faults, self.bandwidth, self.latency = source, Faults(), bandwidth, latency
        self.requests: list[tuple[str, str, str]] = []  # method, path, range
        self.sent = 0
        self._lock, self._free_at = threading.Lock(), 0.0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def pay(self, size: int) -> None:
        """Wait until the line has carried `size` more bytes."""
        with self._lock:
            self.sent += size
            if self.bandwidth is None:
                return
            now = time.monotonic()
            self._free_at = max(now, self._free_at) + size / self.bandwidth
            wait = self._free_at - now
        time.sleep(wait)

    def handle_error(self, *_: object) -> None:
        """Clients go away."""


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FaultyServer

    def log_message(self, *_: object) -> None:
        """No log on stderr."""

    def handle_any(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.server.requests.append((self.command, self.path, self.headers.get("Range", "")))
        fault, *numbers = self.server.faults.take(self.path)
        time.sleep(self.server.latency)
        if fault == "refuse":
            self._break_connection()
        elif fault.isdigit():
            self._send(Answer(int(fault), {"Content-Type": "text/plain"}, b"not now"))
        elif fault == "redirect":
            self._send(Answer(307, {"Location": f"{self.path}?again"}, b""))
        else:
            if fault == "truncate":
                assert isinstance(self.server.source, Path)
                path = self.server.source / self.path.lstrip("/")
                os.truncate(path, path.stat().st_size - int(numbers[0]))
            self._send_with(fault, [int(number) for number in numbers], self._answer(body))

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = handle_any

    def _answer(self, body: bytes) -> Answer:
        source = self.server.source
        return self._of_folder(source) if isinstance(source, Path) else self._of_server(source, body)

    def _of_folder(self, folder: Path) -> Answer:
        path = folder / unquote(urlsplit(self.path).path).lstrip("/")
        if not path.is_file():
            return Answer(404, {}, b"")
        content, common = path.read_bytes(), {"Last-Modified": self.date_time_string(path.stat().st_mtime)}
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if not wanted:
            return Answer(200, common, content)
        start, stop = int(wanted[1]), min(int(wanted[2] or len(content)) + 1, len(content))
        return Answer(206, common | {"Content-Range": f"bytes {start}-{stop - 1}/{len(content)}"}, content[start:stop])

    def _of_server(self, url: str, body: bytes) -> Answer:
        with contextlib.closing(http.client.HTTPConnection(urlsplit(url).netloc)) as upstream:
            upstream.request(self.command, self.path, body or None, dict(self.headers))
            response = upstream.getresponse()
            hop = ("connection", "transfer-encoding", "content-length", "date", "server")
            headers = {name: value for name, value in response.getheaders() if name.lower() not in hop}
            if self.command == "HEAD":
                headers["Content-Length"] = response.getheader("Content-Length", "0")
            return Answer(response.status, headers, response.read())

    def _send_with(self, fault: str, numbers: list[int], answer: Answer) -> None:
        if fault == "alter":
            answer = answer._replace(body=answer.body[:-1] + bytes([answer.body[-1] ^ 1]))
        elif fault == "short":
            answer = answer._replace(body=answer.body[: numbers[0]])
        stop = numbers[0] if fault in ("reset", "stall") else len(answer.body)
        self._send(answer, stop)
        if fault == "stall":
            self.connection.settimeout(60)
            with contextlib.suppress(OSError):
                self.connection.recv(1)  # until the client has given up
        if fault in ("reset", "stall"):
            self._break_connection()

    def _send(self, answer: Answer, stop: int | None = None) -> None:
        self.send_response(answer.status)
        for name, value in answer.headers.items():
            self.send_header(name, value)
        if "Content-Length" not in answer.headers:
            self.send_header("Content-Length", str(len(answer.body)))
        self.end_headers()
        if self.command == "HEAD":
            return
        body = memoryview(answer.body)[:stop]
        for at in range(0, len(body), CHUNK):
            piece = body[at : at + CHUNK]
            self.server.pay(len(piece))
            self.wfile.write(piece)

    def _break_connection(self) -> None:
        """End it with a TCP reset."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True
        self.connection.close()


@contextlib.contextmanager
def serving(source: Path | str, bandwidth: float | None = None, latency: float = 0.0) -> Iterator[FaultyServer]:
    """A FaultyServer for the block."""
    with FaultyServer(source, bandwidth, latency) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        yield server
        server.shutdown()


def free_port() -> int:
    """A port that nothing listens on now."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def wait_for_port(port: int, process: subprocess.Popen[bytes]) -> None:
    """Until a server answers, which must not have ended."""
    while True:
        assert process.poll() is None, "the server ended"
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.05)


@contextlib.contextmanager
def _started(command: list[str], port: int) -> Iterator[str]:
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_for_port(port, process)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


@contextlib.contextmanager
def s3_server() -> Iterator[str]:
    """The address of moto's S3 server."""
    port = free_port()
    with _started([sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)], port) as url:
        yield url


@contextlib.contextmanager
def azure_server(folder: Path) -> Iterator[str]:
    """The address of Azurite's blob service, with its data in `folder`. Skips the test where Azurite is missing."""
    own = Path(sys.prefix, "azurite/node_modules/.bin/azurite-blob")
    command = str(own) if own.exists() else shutil.which("azurite-blob")
    if not command:
        pytest.skip("Azurite is not installed (npm install --prefix .venv/azurite azurite)")
    port = free_port()
    flags = ["--blobPort", str(port), "--location", str(folder), "--skipApiVersionCheck", "--silent"]
    with _started([command, *flags], port) as url:
        yield f"{url}/{AZURE_ACCOUNT}"


AZURE_ACCOUNT = "devstoreaccount1"
# Azurite's account has this key everywhere: it is in its documentation.
AZURE_KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "testing",
    "AWS_SECRET_ACCESS_KEY": "testing",
    "AWS_REGION": "us-east-1",
    "AZURE_STORAGE_ACCOUNT_NAME": AZURE_ACCOUNT,
    "AZURE_STORAGE_ACCOUNT_KEY": AZURE_KEY,
}


def new_bucket(endpoint: str) -> str:
    """Make a bucket on moto's server. Returns `s3://NAME|ENDPOINT`."""
    name = f"bucket-{secrets.token_hex(4)}"
    with contextlib.closing(http.client.HTTPConnection(urlsplit(endpoint).netloc)) as connection:
        connection.request("PUT", f"/{name}")
        assert connection.getresponse().status == 200
    return f"s3://{name}|{endpoint}"


def new_container(endpoint: str) -> str:
    """Make a container on Azurite, with a request signed as "Authorize with Shared Key" in the reference of Azure's
    REST API says. Returns `az://NAME|ENDPOINT`."""
    name = f"container-{secrets.token_hex(4)}"
    path = f"/{AZURE_ACCOUNT}/{name}"
    headers = {"x-ms-date": formatdate(usegmt=True), "x-ms-version": "2021-08-06"}
    signed_headers = "".join(f"{key}:{value}\n" for key, value in headers.items())
    text = "PUT" + "\n" * 12 + f"{signed_headers}/{AZURE_ACCOUNT}{path}\nrestype:container"
    signature = hmac.new(base64.b64decode(AZURE_KEY), text.encode(), hashlib.sha256).digest()
    headers["Authorization"] = f"SharedKey {AZURE_ACCOUNT}:{base64.b64encode(signature).decode()}"
    with contextlib.closing(http.client.HTTPConnection(urlsplit(endpoint).netloc)) as connection:
        connection.request("PUT", f"{path}?restype=container", headers=headers)
        response = connection.getresponse()
        assert response.status == 201, response.read()
    return f"az://{name}|{endpoint}"


def put_folder(folder: Path, address: str, access: Access) -> None:
    """Put the files of a folder into a bucket."""
    for name, content in files_in(folder).items():
        helper.call("upload", f"{address}/{name}", access, str(folder / name), hashlib.sha256(content).hexdigest())


@contextlib.contextmanager
def credentials() -> Iterator[None]:
    """The environment that the tests' servers accept; the helper process is started again in it."""
    before = {name: os.environ.get(name) for name in CREDENTIALS}
    os.environ.update(CREDENTIALS)
    helper.close()
    try:
        yield
    finally:
        helper.close()
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})
