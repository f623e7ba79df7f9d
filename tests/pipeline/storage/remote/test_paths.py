"""Remote paths are to their users what paths of the same files on this machine are; what servers say is not trusted."""

import contextlib
import http.client
import http.server
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote, urlsplit

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import InputError, StorageError
from pipeline.storage.reading import open_to_read, read_at, read_bounded, status_of
from pipeline.storage.remote import paths
from pipeline.storage.remote.paths import RemotePath, listed_below, read_range
from pipeline.storage.remote.settings import Access
from tests.helpers.memory import memory_below
from tests.helpers.servers import put_folder, serving

CONTENT = os.urandom(1 << 20) * 2


def put_object(bucket: str, key: str, content: bytes = b"") -> None:
    """Put an object of any key into a bucket of moto's."""
    name, endpoint = bucket.removeprefix("s3://").split("|")
    with contextlib.closing(http.client.HTTPConnection(urlsplit(endpoint).netloc)) as connection:
        connection.request("PUT", f"/{name}/{quote(key)}", body=content)
        assert connection.getresponse().status == 200


def listed(bucket: str, inside: str = "") -> RemotePath:
    name, endpoint = bucket.split("|")
    return listed_below(f"{name}{inside}", Access(endpoint, 1))


# --- folders


def test_a_tree_looks_as_it_does_on_a_disk(s3_bucket: str, tmp_path: Path) -> None:
    names = ["train/n01.tar", "train/a b/c%41?#.tar", "val.zip", "val.d/x", "ü/é.txt", "valprep.sh"]
    for number, name in enumerate(names):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x" * number)
    bucket = s3_bucket.partition("|")[0]
    for name in names:
        put_object(s3_bucket, f"in/{name}", (tmp_path / name).read_bytes())
    root = listed(s3_bucket, "/in/")
    assert str(root) == f"{bucket}/in"
    for local in (tmp_path, *tmp_path.rglob("*"), tmp_path / "none", tmp_path / "none/none"):
        path = root / local.relative_to(tmp_path)
        assert str(path).removeprefix(str(root)) == str(local).removeprefix(str(tmp_path))
        for question in ("is_file", "is_dir", "exists", "is_symlink"):
            assert getattr(path, question)() == getattr(local, question)(), (path, question)
        assert path.absolute() == path.resolve() == path
        if local.is_dir():
            assert sorted(one.name for one in path.iterdir()) == sorted(os.listdir(local))
        elif local.is_file():
            assert path.stat().st_size == local.stat().st_size
            assert read_bounded(path, 100) == local.read_bytes()
        else:
            with pytest.raises(FileNotFoundError):
                path.stat()
            with pytest.raises(FileNotFoundError):
                open_to_read(path)
        with pytest.raises(FileNotFoundError):  # the system knows none of them
            os.stat(path)


def test_versions_are_those_of_contents(s3_bucket: str, tmp_path: Path) -> None:
    bucket, endpoint = s3_bucket.split("|")
    for name in "ab":
        (tmp_path / name).write_bytes(b"1")
    put_folder(tmp_path, bucket, Access(endpoint, 5))
    first = listed(s3_bucket)
    times = [(first / name).stat().st_mtime_ns for name in "ab"]
    (tmp_path / "b").write_bytes(b"2")
    put_folder(tmp_path, bucket, Access(endpoint, 5))
    with pytest.raises(InputError, match="/b: has changed since it was listed; start again"):
        read_range(first / "b", 1, 0)
    again = listed(s3_bucket)
    assert (again / "a").stat().st_mtime_ns == times[0]
    assert (again / "b").stat().st_mtime_ns != times[1]
    with open_to_read(again / "b") as file:
        assert status_of(file).st_size == 1
        assert read_at(file, 10, 0) == b"2"


def test_what_consoles_make_for_folders_is_none_of_the_files(s3_bucket: str) -> None:
    for key in ("in/", "in/train/", "in/train/a.tar", "in/train/b/"):
        put_object(s3_bucket, key)
    root = listed(s3_bucket, "/in")
    assert [(path.name, path.is_dir()) for path in root.iterdir()] == [("train", True)]


# --- names


@pytest.mark.parametrize("key", ["in/../a.tar", "in/./a.tar", "in//a.tar", "in/a\x01.tar", "in/.."])
def test_a_name_that_is_no_path_is_refused(key: str, s3_bucket: str) -> None:
    put_object(s3_bucket, key, b"x")
    began = time.monotonic()
    with pytest.raises(InputError, match=r"^s3://[\w-]+/?: .*name") as raised:
        listed(s3_bucket)
    assert not isinstance(raised.value, StorageError)
    assert str(raised.value).isprintable()
    assert time.monotonic() - began < 0.9  # not tried again


def test_an_object_with_others_below_it_is_refused(s3_bucket: str) -> None:
    put_object(s3_bucket, "train", b"x")
    put_object(s3_bucket, "train/a.tar", b"x")
    with pytest.raises(InputError, match="/train: an object, and there are others below it"):
        listed(s3_bucket)


def test_too_many_objects_are_refused(s3_bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paths, "MOST_OBJECTS", 2)
    for key in "abc":
        put_object(s3_bucket, key, b"x")
    with pytest.raises(InputError, match="more than 2 objects"):
        listed(s3_bucket)


@pytest.mark.parametrize("address", ["s3://b/a/../c", "s3://b/a%0Ab.tar", "https://h/../a.tar", "s3://", "s3://b/a//b"])
def test_an_address_that_is_no_path_is_refused(address: str) -> None:
    with pytest.raises(InputError, match=r"no path|not an address") as raised:
        listed_below(address, Access(io_timeout=1))
    assert str(raised.value).isprintable()


# --- reading


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RemotePath]:
    """An object of CONTENT."""
    folder = tmp_path_factory.mktemp("served")
    (folder / "a.tar").write_bytes(CONTENT)
    with serving(folder) as server:
        yield listed_below(f"{server.url}/a.tar", Access(io_timeout=5))


_REGION = st.tuples(st.integers(0, len(CONTENT) + 10), st.integers(0, 300_000))


@settings(max_examples=15)
@given(st.lists(_REGION, min_size=1, max_size=4))
def test_any_reads_give_the_bytes_that_are_there(served: RemotePath, regions: list[tuple[int, int]]) -> None:
    with open_to_read(served) as file:
        for offset, size in regions:
            assert read_at(file, size, offset) == CONTENT[offset : offset + size]
            file.seek(offset)
            assert file.read(size) == CONTENT[offset : offset + size]
            assert file.tell() == offset + len(CONTENT[offset : offset + size])
        assert file.seek(0, 2) == len(CONTENT)


def test_reading_on_takes_few_requests_and_bounded_memory(tmp_path: Path) -> None:
    """So does one that passes over most of it, as the listing of an archive does. Other reads fetch no more than they
    are asked for."""
    with open(tmp_path / "a.tar", "wb") as file:
        file.truncate(24 << 20)
    with serving(tmp_path) as server:
        path = listed_below(f"{server.url}/a.tar", Access(io_timeout=5))
        for step, size in ((1 << 16, 1 << 16), (100_000, 512)):
            server.requests.clear()
            with memory_below(150 << 20), open_to_read(path) as remote:  # the server is in this process
                for offset in range(0, 24 << 20, step):
                    assert len(read_at(remote, size, offset)) == min(size, (24 << 20) - offset)
                    assert not offset or read_at(remote, 100, offset - 100) == bytes(100)
            ranges = [tuple(map(int, sent.removeprefix("bytes=").split("-"))) for _, _, sent in server.requests if sent]
            assert len([1 for start, stop in ranges if stop - start > 100]) < 20
            assert max(stop - start for start, stop in ranges) < 8 << 20
        server.requests.clear()
        with open_to_read(path) as remote:
            for offset in (20 << 20, 2 << 20, 11 << 20):
                read_at(remote, 1000, offset)
        assert [sent for _, _, sent in server.requests] == [
            f"bytes={offset}-{offset + 999}" for offset in (20 << 20, 2 << 20, 11 << 20)
        ]


# --- servers that lie


class _Liar(http.server.BaseHTTPRequestHandler):
    said: int  # in answer to HEAD
    status: int
    content_range: str
    length: int
    body: bytes

    def log_message(self, *_: object) -> None:
        """No log on stderr."""

    def do_HEAD(self) -> None:
        self._answer(200, {"Content-Length": self.said}, b"")

    def do_GET(self) -> None:
        self._answer(self.status, {"Content-Length": self.length, "Content-Range": self.content_range}, self.body)

    def _answer(self, status: int, headers: dict[str, int | str], body: bytes) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, str(value))
        self.end_headers()
        self.wfile.write(body)


@pytest.mark.parametrize(
    ("said", "status", "content_range", "length", "body", "message"),
    [
        (100, 206, "bytes 0-9/200", 10, b"x" * 10, "200 bytes, not 100 as recorded"),
        (100, 206, "bytes 5-14/100", 10, b"x" * 10, "given up after"),
        (100, 206, "bytes 0-9/100", 10, b"x" * 5, "given up after"),
        (100, 206, "bytes 0-9/100", 50, b"x" * 50, "goes on behind byte 10"),
        (100, 206, "bytes 0-9/-5", 10, b"x" * 10, "given up after"),
        (100, 206, "nonsense\x00", 10, b"x" * 10, "given up after"),
        (100, 200, "", 100, b"x" * 100, "its server does not serve ranges"),
        (1 << 62, 206, f"bytes 0-9/{1 << 62}", 10, b"x" * 5, "given up after"),
    ],
)
def test_lengths_that_lie(
    said: int, status: int, content_range: str, length: int, body: bytes, message: str
) -> None:  # fmt: skip
    kind = type("Liar", (_Liar,), {"said": said, "status": status, "content_range": content_range, "length": length,
                                   "body": body})  # fmt: skip
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), kind) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_address[1]}/a.tar"
        path = listed_below(address, Access(io_timeout=0.3))
        with memory_below(1 << 24), pytest.raises(InputError, match=message) as raised:
            read_range(path, 10, 0)
        server.shutdown()
    assert str(raised.value).startswith(f"{address}: ")
    assert str(raised.value).isprintable()


def test_a_listing_with_a_line_break() -> None:
    """moto takes no such name, S3 does."""
    listing = (
        b'<?xml version="1.0"?><ListBucketResult><Name>b</Name><IsTruncated>false</IsTruncated><Contents>'
        b"<Key>train&#10;error.tar</Key><LastModified>2026-01-01T00:00:00.000Z</LastModified><Size>5</Size>"
        b'<ETag>"a"</ETag></Contents></ListBucketResult>'
    )
    kind = type("Lister", (_Liar,), {"said": 0, "status": 200, "content_range": "", "length": len(listing),
                                     "body": listing})  # fmt: skip
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), kind) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        with pytest.raises(InputError, match=r"^s3://b: .*name") as raised:
            listed_below("s3://b", Access(f"http://127.0.0.1:{server.server_address[1]}", 0.5))
        server.shutdown()
    assert str(raised.value).isprintable()


def test_folders_and_the_remote_files_are_put_by_the_helper(s3_bucket: str, tmp_path: Path) -> None:
    """A single object is known without its folder."""
    (tmp_path / "a.tar").write_bytes(b"12345")
    bucket, endpoint = s3_bucket.split("|")
    put_folder(tmp_path, f"{bucket}/x", Access(endpoint, 5))
    path = listed(s3_bucket, "/x/a.tar")
    assert path.is_file()
    assert read_range(path, 3, 1) == b"234"
    assert not (path.parent / "b.tar").exists()
