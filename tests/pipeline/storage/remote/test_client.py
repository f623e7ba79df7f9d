"""What networks and servers do wrong is overcome, or ends in one line after --io-timeout."""

import hashlib
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.errors import InputError, StorageError
from pipeline.storage.remote import helper
from pipeline.storage.remote.settings import Access
from tests.helpers.servers import CREDENTIALS, FaultyServer, free_port, serving

PATIENT, IMPATIENT = Access(io_timeout=30), Access(io_timeout=0.5)
CONTENT = bytes(range(256)) * 12_000  # 3 MB: several pieces
DIGEST = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[FaultyServer]:
    """A server with one object of CONTENT."""
    (tmp_path / "objects").mkdir()
    (tmp_path / "objects/a.tar").write_bytes(CONTENT)
    with serving(tmp_path / "objects") as started:
        yield started


def streamed(address: str, access: Access = PATIENT, **arguments: int) -> bytes:
    return b"".join(helper.iterate("stream", address, access, *arguments.values()))


@pytest.mark.parametrize("fault", ["refuse", "reset 0", "reset 2000000", "429", "500", "503", "408", "redirect"])
def test_a_fault_is_overcome(server: FaultyServer, fault: str) -> None:
    server.faults.add("a.tar", fault)
    assert streamed(f"{server.url}/a.tar") == CONTENT
    assert server.faults.met[fault] == 1


def test_many_faults_in_a_row_are_overcome_if_bytes_arrive(server: FaultyServer) -> None:
    server.faults.add("a.tar", *["reset 400000"] * 4, "503", "stall 1200000")
    assert streamed(f"{server.url}/a.tar", Access(io_timeout=3)) == CONTENT
    assert server.faults.waiting == []


def test_reading_resumes_at_the_byte_where_it_broke(server: FaultyServer) -> None:
    server.faults.add("a.tar", "reset 1500000")
    assert streamed(f"{server.url}/a.tar") == CONTENT
    (_, _, first), (_, _, second) = server.requests
    assert first == ""
    assert 0 < int(second.removeprefix("bytes=").rstrip("-")) <= 1_500_000
    assert server.sent < 2 * len(CONTENT)


def test_a_stalled_answer_is_asked_for_again(server: FaultyServer) -> None:
    server.faults.add("a.tar", "stall 1000000")
    assert streamed(f"{server.url}/a.tar", Access(io_timeout=3)) == CONTENT


def test_an_object_of_another_length_is_asked_for_again(server: FaultyServer) -> None:
    server.faults.add("a.tar", "short 100000")
    assert streamed(f"{server.url}/a.tar", start=0, size=len(CONTENT)) == CONTENT


@pytest.mark.parametrize(
    ("faults", "reason"),
    [
        (["503"] * 99, "503 Service Unavailable"),
        (["refuse"] * 99, "given up after 0.5 s without progress"),
        (["stall 0"] * 9, "given up after 0.5 s without progress"),
        (["short 1000"] * 99, f"1000 bytes, not {len(CONTENT)} as recorded"),
    ],
)
def test_what_does_not_end_is_given_up_with_one_line(server: FaultyServer, faults: list[str], reason: str) -> None:
    server.faults.add("a.tar", *faults)
    with pytest.raises(StorageError, match=reason) as raised:
        streamed(f"{server.url}/a.tar", IMPATIENT, start=0, size=len(CONTENT))
    assert str(raised.value).startswith(f"{server.url}/a.tar: given up after 0.5 s")
    assert "\n" not in str(raised.value)


def test_a_server_that_is_not_there_is_given_up() -> None:
    with pytest.raises(StorageError, match="Connection refused"):
        streamed(f"http://127.0.0.1:{free_port()}/a.tar", IMPATIENT)


def test_a_server_that_does_not_answer_is_given_up() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent, pytest.raises(StorageError, match=r"given up after 0.5 s"):
        streamed(f"http://127.0.0.1:{silent.getsockname()[1]}/a.tar", IMPATIENT)


@pytest.mark.parametrize("status", ["401", "403", "404"])
def test_what_another_attempt_cannot_help_is_bad_input_at_once(server: FaultyServer, status: str) -> None:
    server.faults.add("a.tar", status)
    with pytest.raises(InputError, match=r"a.tar: cannot be opened") as raised:
        streamed(f"{server.url}/a.tar")
    assert not isinstance(raised.value, StorageError)
    assert len(server.requests) == 1


@pytest.fixture
def role(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyServer]:
    """The metadata service of a machine without a role, and no credentials in the environment."""
    for name in CREDENTIALS:
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "role").mkdir()
    with serving(tmp_path / "role") as service:
        monkeypatch.setenv("AWS_METADATA_ENDPOINT", service.url)
        for name in ("HOST", "IP", "ROOT"):  # obstore asks two of them
            monkeypatch.setenv(f"GCE_METADATA_{name}", service.url.removeprefix("http://"))
        helper.close()
        yield service
    helper.close()


@pytest.mark.parametrize(
    ("scheme", "fault"),
    [("s3", "401"), ("s3", "403"), ("s3", "404"), ("s3", "refuse"), ("gs", "403"), ("gs", "404")],
)
def test_a_machine_without_credentials_says_so_soon(role: FaultyServer, scheme: str, fault: str) -> None:
    role.faults.add("", *[fault] * 99)
    with pytest.raises(InputError, match=rf"^{scheme}://b/a.tar: no credentials found; set [A-Z_]+ .*=true") as raised:
        streamed(f"{scheme}://b/a.tar", Access(io_timeout=10_000))
    assert not isinstance(raised.value, StorageError)
    assert role.requests


def test_a_metadata_service_that_is_overloaded_is_asked_again(role: FaultyServer) -> None:
    role.faults.add("", *["503"] * 3)
    with pytest.raises(InputError, match="no credentials found"):
        streamed("s3://b/a.tar", Access(io_timeout=10_000))
    assert role.faults.waiting == []


@pytest.mark.parametrize(("scheme", "given"), [("s3", "AWS_ACCESS_KEY_ID"), ("az", "AZURE_STORAGE_ACCOUNT_KEY")])
def test_half_of_the_credentials_are_none(
    role: FaultyServer, scheme: str, given: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(given, "aGFsZg==")
    with pytest.raises(InputError, match=f"^{scheme}://b: no credentials found; set [A-Z_]+ and [A-Z_]+, or"):
        streamed(f"{scheme}://b/a.tar")


def test_an_object_that_changes_while_it_is_read_is_named(server: FaultyServer) -> None:
    server.faults.add("a.tar", "reset 1500000", "truncate 7")
    with pytest.raises(StorageError, match=r"a.tar: altered while it was read"):
        streamed(f"{server.url}/a.tar")


def test_an_altered_object_is_fetched_once_more(server: FaultyServer, tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.touch()
    fetch = ("fetch", f"{server.url}/a.tar", PATIENT, str(path), len(CONTENT), DIGEST)
    server.faults.add("a.tar", "alter")
    helper.call(*fetch)
    assert path.read_bytes() == CONTENT
    server.faults.add("a.tar", "alter", "alter")
    with pytest.raises(StorageError, match=r"a.tar: altered: its SHA-256 is not the recorded one, fetched twice"):
        helper.call(*fetch)


def test_a_helper_that_was_killed_is_a_fault_of_storage(server: FaultyServer) -> None:
    pieces = helper.iterate("stream", f"{server.url}/a.tar", PATIENT)
    next(pieces)
    helper.close()
    with pytest.raises(StorageError, match="the process that reads object stores has ended"):
        b"".join(pieces)
    assert streamed(f"{server.url}/a.tar") == CONTENT
