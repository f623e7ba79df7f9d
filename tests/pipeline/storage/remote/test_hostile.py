"""What a web server may answer instead of a dataset: one line each, in bounded memory."""

import contextlib
import json
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import InputError, StorageError
from pipeline.storage.remote import helper
from pipeline.storage.remote.settings import Access, RemoteSettings
from pipeline.storage.split import open_split
from tests.helpers.memory import memory_below

IMPATIENT = RemoteSettings(access=Access(io_timeout=0.2))
OK = b"HTTP/1.1 200 OK\r\n"
MOVED = b"HTTP/1.1 302 moved\r\nLocation: "


@contextlib.contextmanager
def answering(*pieces: bytes, forever: bytes = b"") -> Iterator[str]:
    """The address of a server that answers each request so."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = server.accept()
                    with connection, contextlib.suppress(OSError):
                        connection.recv(1 << 16)
                        for piece in pieces:
                            connection.sendall(piece)
                        while forever:
                            connection.sendall(forever)
                            time.sleep(0.02)

        threading.Thread(target=serve, daemon=True).start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}"
        server.shutdown(socket.SHUT_RDWR)


def sized(body: bytes) -> bytes:
    """The head of an answer with this body."""
    return OK + b"Content-Length: %d\r\n\r\n" % len(body)


def refused(*pieces: bytes) -> str:
    """The message where a server answers so."""
    with answering(*pieces) as url, memory_below(1 << 28), pytest.raises(InputError) as raised:
        open_split(url, "train", IMPATIENT)
    message = str(raised.value)
    assert message.startswith(f"{url}/dataset.json: ")
    assert message.isprintable()
    assert len(message) < 500
    return message


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"garbage\r\n\r\n",
        b"HTTP/1.1 200 " + b"a" * 70_000 + b"\r\n\r\n",
        OK + b"a: b\r\n" * 200 + b"\r\n",
        OK + b"Transfer-Encoding: chunked\r\n\r\nzz\r\nabc",
        b"HTTP/1.1 404 \x1b[2J\x9b31m\r\n\r\n",
        MOVED + b"/again\r\n\r\n",
        MOVED + b"http://[/\r\n\r\n",
        MOVED + b"file:///etc/passwd\r\n\r\n",
    ],
    ids=lambda answer: repr(answer[:40]),
)
def test_broken_http(answer: bytes) -> None:
    refused(answer)


def test_ftp_is_not_opened() -> None:
    """Python's own opener would connect to any host that a server names."""
    with socket.create_server(("127.0.0.1", 0)) as ftp:
        ftp.settimeout(0)
        refused(MOVED + b"ftp://127.0.0.1:%d/x\r\n\r\n" % ftp.getsockname()[1])
        with pytest.raises(BlockingIOError):
            ftp.accept()


@pytest.mark.parametrize(
    "body",
    [
        b"\0\0\0",
        b"[" * 200_000,
        b'{"a":' * 200_000,
        b"[" + b"[]," * (5 << 20) + b"[]]",
        b" " * (65 << 20),
        b'{"' + b"a" * (20 << 20) + b'": 1}',
    ],
    ids=lambda body: repr(body[:10]),
)
def test_a_text_that_fills_memory(body: bytes) -> None:
    refused(sized(body), body)


def test_a_server_that_never_ends() -> None:
    """It sends byte by byte, so that it is never silent."""
    endless = answering(OK + b"Content-Length: 1000000\r\n\r\n", forever=b" ")
    with endless as url, pytest.raises(StorageError, match=r"given up after 0.2 s without progress"):
        open_split(url, "train", IMPATIENT)


S3 = b'<?xml version="1.0"?><ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><Name>b</Name>'
ENTRY = (
    b"<Contents><Key>d/a</Key><LastModified>2024-01-01T00:00:00.000Z</LastModified><ETag>a</ETag><Size>1</Size>"
    b"<StorageClass>STANDARD</StorageClass></Contents>"
)
MORE = b"<IsTruncated>true</IsTruncated><NextContinuationToken>t</NextContinuationToken></ListBucketResult>"


@pytest.mark.parametrize("entry", [b"", ENTRY], ids=["empty pages", "the same page"])
def test_a_listing_that_never_ends(entry: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SKIP_SIGNATURE", "true")
    helper.close()  # it reads the environment when it starts
    page = S3 + entry + MORE
    with answering(sized(page).replace(b"OK\r\n", b"OK\r\nConnection: close\r\n"), page) as url:
        access = Access(io_timeout=0.3, endpoint_url=url)
        with pytest.raises(StorageError, match="given up after 3 s: its server lists without an end"):
            helper.call("objects_below", "s3://b/d", access, 1 << 17)
    helper.close()


@pytest.mark.parametrize("status", [b"200 OK", b"404 no"], ids=["a page of a listing", "the text of an error"])
def test_an_answer_that_fills_memory(status: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """obstore holds all of it: the process that reads ends, and not the machine. Its limit is lower, so that it is
    quick."""
    code = "from {package} import helper; helper._MOST_MEMORY = 1 << 28; helper.serve()"
    monkeypatch.setattr(helper, "_CODE", code)
    monkeypatch.setenv("AWS_SKIP_SIGNATURE", "true")
    helper.close()
    head = b"HTTP/1.1 " + status + b"\r\nContent-Length: 99999999999\r\n\r\n"
    with answering(head + S3, forever=b" " * (1 << 23)) as url:
        access = Access(io_timeout=60, endpoint_url=url)
        with pytest.raises(StorageError, match="the process that reads object stores has ended"):
            helper.call("objects_below", "s3://b/d", access, 1 << 17)
    helper.close()


def manifest(**changes: Any) -> bytes:
    shard = {"name": "webdataset/train-000000.tar", "samples": 1, "bytes": 4096, "sha256": "0" * 64}
    split = {"samples": 1, "bytes": 1, "image_mode": "keep", "shards": [shard], "beton": None}
    return json.dumps({"format": 2, "classes": ["a"], "splits": {"train": split}, **changes}).encode()


NUMBERS = ["-1", "1.5", "1e400", "1e3", "true", "null", "NaN", "Infinity", '"1"', "[1]", "{}"]
NUMBERS += ["9" * digits for digits in (10, 18, 20, 4000, 10_000)]


@pytest.mark.parametrize("number", NUMBERS, ids=lambda number: number[:20])
def test_numbers_that_are_no_counts(number: str) -> None:
    text = manifest().replace(b'"samples": 1', b'"samples": ' + number.encode())
    refused(sized(text), text)


@pytest.mark.parametrize("name", ["\x1b[2J", "a\nerror: b", "\0", "\x9b31m", "\u202e"], ids=repr)
def test_names_of_classes_that_command_a_terminal(name: str) -> None:
    refused(sized(manifest(classes=["a", name])), manifest(classes=["a", name]))
    with answering(sized(manifest()), manifest()) as url:
        assert open_split(url, "train").classes == ("a",)


def test_a_shard_that_never_ends_is_not_kept(tmp_path: Path) -> None:
    """Its server sends more than it has announced, without an end."""
    path, head = tmp_path / "shard", OK + b"Content-Length: 1000\r\nTransfer-Encoding: chunked\r\n\r\n"
    path.touch()
    with answering(head, forever=b"ffff\r\n" + bytes(0xFFFF) + b"\r\n") as url, pytest.raises(InputError):
        helper.call("fetch", f"{url}/a.tar", Access(io_timeout=1), str(path), 1000, "x")
    assert path.stat().st_size < 1 << 22
    with answering(head, forever=b"ffff\r\n" + bytes(0xFFFF) + b"\r\n") as url, pytest.raises(InputError):
        helper.call("read", f"{url}/a.json", Access(io_timeout=1), 1000)
