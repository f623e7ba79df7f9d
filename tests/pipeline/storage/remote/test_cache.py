"""The cache of shards: shared, bounded, whole after any kill, and it evicts what is needed last."""

import contextlib
import fcntl
import hashlib
import math
import multiprocessing
import os
import signal
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from pipeline.errors import InputError, StorageError
from pipeline.storage.remote.cache import ShardCache, Wanted
from pipeline.storage.remote.reader_record import MAGIC, Record
from pipeline.storage.remote.settings import Access, CacheSettings
from pipeline.storage.remote.traffic import Traffic
from pipeline.storage.shards import ShardInfo
from tests.helpers.servers import FaultyServer, serving
from tests.helpers.waiting import wait_until

SIZE = 50_000
RECORDS = 4_000  # room for what readers write
ACCESS = Access(io_timeout=20)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[FaultyServer]:
    """A server with 8 objects of SIZE bytes."""
    (tmp_path / "objects").mkdir()
    for number in range(8):
        (tmp_path / f"objects/{number}.tar").write_bytes(content(number))
    with serving(tmp_path / "objects") as started:
        yield started


def content(number: int) -> bytes:
    return bytes([number]) * SIZE


def wanted(server: FaultyServer, *numbers: int, first: int = 0) -> list[Wanted]:
    """Shards that are needed one after the other, from time `first` on."""
    digests = {number: hashlib.sha256(content(number)).hexdigest() for number in numbers}
    infos = [ShardInfo(name=f"{number}.tar", samples=1, bytes=SIZE, sha256=digests[number]) for number in numbers]
    return [Wanted(float(when), f"{server.url}/{info.name}", info) for when, info in enumerate(infos, first)]


def cache_of(folder: Path, shards: int, access: Access = ACCESS) -> ShardCache:
    return ShardCache(CacheSettings(folder, shards * SIZE + RECORDS), access, Traffic(1))


def held(folder: Path) -> set[int]:
    """The shards in a cache, which must be whole; all files together stay below the limit of 3."""
    with open(folder / "lock", "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        paths = list((folder / "shards").glob("*.tar"))
        assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) <= 3 * SIZE + RECORDS
        contents = [path.read_bytes() for path in paths]
    assert all(hashlib.sha256(one).hexdigest() == path.stem for one, path in zip(contents, paths, strict=True))
    return {one[0] for one in contents}


def _holds(folder: Path, numbers: set[int]) -> bool:
    return held(folder) >= numbers


def read(cache: ShardCache, one: Wanted) -> None:
    with cache.open(one) as file:
        assert file.read() == content(int(one.shard.name[0]))


def test_shards_are_fetched_ahead_within_the_limit(server: FaultyServer, tmp_path: Path) -> None:
    cache, order = cache_of(tmp_path / "cache", 3), wanted(server, 0, 1, 2, 3, 4, 5)
    cache.plan(order, [])
    wait_until(lambda: held(tmp_path / "cache") == {0, 1, 2})
    for number, one in enumerate(order):
        read(cache, one)
        ahead = {*range(number + 1, min(number + 3, 6))}
        wait_until(partial(_holds, tmp_path / "cache", ahead))
    assert len([path for _, path, _ in server.requests]) == 6
    cache.close()


def test_what_is_needed_last_is_evicted(server: FaultyServer, tmp_path: Path) -> None:
    """Belady: of 0, 1 and 2, shard 1 is needed last, though it was used last; least recently used would evict 0."""
    cache, order = cache_of(tmp_path / "cache", 3), wanted(server, 0, 2, 1)
    later = wanted(server, 3, 0, 2, 1, first=3)
    cache.plan(order, later)
    for one in order:
        read(cache, one)
    assert held(tmp_path / "cache") == {0, 1, 2}
    cache.plan(later, [])
    # A reader that is faster than the threads that fetch ahead streams shard 3 past the cache: it is not needed again.
    wait_until(lambda: held(tmp_path / "cache") == {0, 2, 3})
    with cache.open(later[0]):
        assert held(tmp_path / "cache") == {0, 2, 3}
    cache.close()


def test_nothing_is_evicted_for_what_is_needed_later(server: FaultyServer, tmp_path: Path) -> None:
    first, second = (cache_of(tmp_path / "cache", 3) for _ in range(2))
    near = wanted(server, 0, 1, 2)
    first.plan(near, [])
    wait_until(lambda: held(tmp_path / "cache") == {0, 1, 2})
    second.plan([*wanted(server, 0), *wanted(server, 5, first=5)], [])
    for one in near[:2]:
        assert held(tmp_path / "cache") == {0, 1, 2}
        read(first, one)
    wait_until(lambda: held(tmp_path / "cache") == {0, 2, 5})
    read(first, near[2])
    assert server.requests.count(("GET", "/2.tar", "")) == 1
    first.close()
    second.close()


def test_a_shard_without_room_is_streamed_past_the_cache(server: FaultyServer, tmp_path: Path) -> None:
    """Those in use are not evicted, and no reader waits for another."""
    cache, other = (cache_of(tmp_path / "cache", 3) for _ in range(2))
    order = wanted(server, 0, 1, 2)
    with contextlib.ExitStack() as opened:
        cache.plan(order, [])
        for one in order:
            opened.enter_context(cache.open(one))
        read(other, wanted(server, 3)[0])
        assert held(tmp_path / "cache") == {0, 1, 2}
    read(other, wanted(server, 4)[0])
    assert held(tmp_path / "cache") == {0, 1, 2}  # nobody needs shard 4 again
    cache.close()
    other.close()


def test_what_is_held_leaves_no_room_to_hold_more(server: FaultyServer, tmp_path: Path) -> None:
    first, second = (cache_of(tmp_path / "cache", 3, Access(io_timeout=0.5)) for _ in range(2))
    first.hold(wanted(server, 0, 1))
    with pytest.raises(StorageError, match="no room: all of its 154 KB are in use by other runs"):
        second.hold(wanted(server, 2, 3))
    first.close()
    second.hold(wanted(server, 2, 3))
    assert held(tmp_path / "cache") >= {2, 3}
    second.close()


def _read_everything(url: str, folder: Path, numbers: list[int]) -> None:
    server = type("Server", (), {"url": url})()
    cache = cache_of(folder, 3)
    order = wanted(server, *numbers)
    cache.plan(order, [])
    for one in order:
        read(cache, one)
        held(folder)
    cache.close()


def test_processes_share_it(server: FaultyServer, tmp_path: Path) -> None:
    """Each reads all shards in an order of its own, in a cache of three; each shard is read whole."""
    fork = multiprocessing.get_context("fork")
    orders = [[0, 1, 2, 3, 4, 5, 6, 7], [7, 6, 5, 4, 3, 2, 1, 0], [0, 2, 4, 6, 1, 3, 5, 7]]
    readers = [
        fork.Process(target=_read_everything, args=(server.url, tmp_path / "cache", numbers)) for numbers in orders
    ]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join()
    assert [reader.exitcode for reader in readers] == [0, 0, 0]
    assert not list((tmp_path / "cache/readers").iterdir())


def test_two_readers_fetch_a_shard_once(server: FaultyServer, tmp_path: Path) -> None:
    first, second = (cache_of(tmp_path / "cache", 3) for _ in range(2))
    for cache in (first, second):
        cache.plan(wanted(server, 0, 1, 2), [])
    for one in wanted(server, 0, 1, 2):
        read(first, one)
        read(second, one)
    assert len(server.requests) == 3
    first.close()
    second.close()


def test_a_killed_reader_leaves_no_half_shard(server: FaultyServer, tmp_path: Path) -> None:
    server.faults.add("0.tar", f"stall {SIZE // 2}")
    reader = multiprocessing.get_context("fork").Process(
        target=_read_everything, args=(server.url, tmp_path / "cache", [0, 1])
    )
    reader.start()
    partial = tmp_path / f"cache/shards/{hashlib.sha256(content(0)).hexdigest()}.partial"
    wait_until(lambda: partial.exists() and held(tmp_path / "cache") == {1})
    assert reader.pid
    reader.kill()
    reader.join()
    assert reader.exitcode == -signal.SIGKILL
    cache = cache_of(tmp_path / "cache", 3)
    cache.plan(wanted(server, 0, 1), [])
    read(cache, wanted(server, 0)[0])
    assert held(tmp_path / "cache") == {0, 1}
    assert not list((tmp_path / "cache").rglob("*.partial"))
    assert len(list((tmp_path / "cache/readers").iterdir())) == 1
    cache.close()


def test_an_altered_shard_is_named_and_not_kept(server: FaultyServer, tmp_path: Path) -> None:
    server.faults.add("0.tar", *["alter"] * 9)
    cache, order = cache_of(tmp_path / "cache", 3), wanted(server, 0)
    cache.plan([], [])
    with pytest.raises(StorageError, match=r"0.tar: altered: its SHA-256 is not the recorded one, fetched twice"):
        read(cache, order[0])
    assert held(tmp_path / "cache") == set()
    assert not list((tmp_path / "cache").rglob("*.partial"))
    cache.close()


def test_a_truncated_shard_is_fetched_again(server: FaultyServer, tmp_path: Path) -> None:
    order = wanted(server, 0, 1)
    for _ in range(2):
        cache = cache_of(tmp_path / "cache", 3)
        cache.plan(order, [])
        for one in order:
            read(cache, one)
        os.truncate(cache.path(order[0].shard), 1000)
        cache.close()
    assert [path for _, path, _ in server.requests].count("/0.tar") == 2
    assert [path for _, path, _ in server.requests].count("/1.tar") == 1


@pytest.mark.parametrize("suffix", ["tar", "partial"])
def test_a_folder_in_the_place_of_a_shard_is_named(server: FaultyServer, tmp_path: Path, suffix: str) -> None:
    (one,) = wanted(server, 0)
    cache = cache_of(tmp_path / "cache", 3)
    in_place = tmp_path / f"cache/shards/{one.shard.sha256}.{suffix}"
    in_place.mkdir()
    with pytest.raises(StorageError, match=rf"--cache .*{one.shard.sha256}"):
        read(cache, one)
    cache.close()


# --- strangers


@pytest.mark.skipif(os.geteuid() != 0, reason="gives files to another user")
@pytest.mark.parametrize("place", ["", "lock", "shards", "readers", "shards/0.tar"])
def test_links_of_other_users_are_refused(tmp_path: Path, place: str) -> None:
    secret = tmp_path / "secret"
    if place in ("", "shards", "readers"):
        secret.mkdir()
    else:
        secret.write_text("kept")
    link = tmp_path / "cache" / place
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(secret)
    os.lchown(link, 65534, 65534)
    with pytest.raises(InputError, match=rf"--cache {link}: a link that another user has made; remove it"):
        cache_of(tmp_path / "cache", 3)
    assert secret.is_dir() or secret.read_text() == "kept"


@pytest.mark.skipif(os.geteuid() != 0, reason="gives folders to another group")
def test_a_group_of_others_may_not_write_to_it(tmp_path: Path) -> None:
    for number, group in enumerate((os.getegid(), 65534)):
        folder = tmp_path / str(number)
        folder.mkdir()
        os.chown(folder, -1, group)
        folder.chmod(0o775)
        if group == os.getegid():
            cache_of(folder, 3).close()
            assert {path.stat().st_mode & 0o777 for path in (folder / "shards", folder / "readers")} == {0o700}
        else:
            with pytest.raises(InputError, match=rf"--cache {folder}: other users may write to it; choose"):
                cache_of(folder, 3)


HOLDER = """
import fcntl, os, sys
os.setgroups([])
os.setgid(65534)
os.setuid(65534)
try:
    fcntl.flock(open(sys.argv[1]), fcntl.LOCK_SH)
except PermissionError:
    sys.exit(7)
sys.stdin.read()
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user")
def test_no_other_user_can_hold_a_lock_of_it() -> None:
    """In a folder that others reach, which those of pytest are not."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        (folder / "another").touch(0o644)
        (folder / "lock").touch(0o644)  # of an earlier version
        cache = cache_of(folder, 3)
        codes = {
            path: subprocess.run([sys.executable, "-c", HOLDER, path], input="", text=True).returncode
            for path in (folder / "another", folder / "lock", *(folder / "readers").iterdir())
        }
        assert [*codes.values()] == [0, 7, 7], codes
        cache.close()


@pytest.mark.skipif(os.geteuid() != 0, reason="gives folders to another user")
def test_folders_that_other_users_may_write_to_are_refused(tmp_path: Path) -> None:
    for number, (mode, owner) in enumerate(((0o777, 0), (0o1777, 0), (0o755, 65534))):
        folder = tmp_path / str(number)
        (folder / "shards").mkdir(parents=True)
        os.chown(folder / "shards", owner, 0)
        (folder / "shards").chmod(mode)
        with pytest.raises(InputError, match=rf"--cache {folder}/shards: other users may write to it; choose"):
            cache_of(folder, 3)


def test_what_is_no_file_is_not_followed_and_not_waited_for(server: FaultyServer, tmp_path: Path) -> None:
    """Links to a file that must stay, pipes, and folders, in the place of everything that the cache writes or reads."""
    secret, cache = tmp_path / "secret", tmp_path / "cache"
    secret.write_text("kept")
    for folder in ("shards", "readers"):
        (cache / folder).mkdir(parents=True)
        (cache / folder / "x").mkdir()
    (first, second) = (hashlib.sha256(content(number)).hexdigest() for number in (0, 1))
    for name in (f"shards/{first}.tar", f"shards/{second}.partial", "readers/a.plan"):
        (cache / name).symlink_to(secret)
    for name in (f"shards/{second}.tar", f"shards/{first}.partial", "readers/b.plan"):
        os.mkfifo(cache / name)
    reader = cache_of(cache, 3)
    reader.plan(wanted(server, 0, 1), [])
    for one in wanted(server, 0, 1):
        read(reader, one)
    reader.close()
    assert secret.read_text() == "kept"
    (cache / "lock").unlink()
    os.mkfifo(cache / "lock")
    with pytest.raises(StorageError, match=r"--cache .*/lock: "):
        cache_of(cache, 3)


ENTRY_BYTES = struct.pack("<QdB", 1, 0.0, 0)
NONSENSE = {
    "empty": b"", "zero": b"\0", "json": b'{"now": 0, "in_use": [], "next": {}}', "cut": MAGIC + bytes(7),
    "uneven": MAGIC + bytes(8) + ENTRY_BYTES[:-1], "state": MAGIC + bytes(8) + struct.pack("<QdB", 1, 0.0, 3),
    "now": MAGIC + struct.pack("<d", math.nan) + ENTRY_BYTES,
    "when": MAGIC + bytes(8) + struct.pack("<QdB", 1, math.inf, 1),
}  # fmt: skip


def test_records_that_mean_nothing_count_as_none(server: FaultyServer, tmp_path: Path) -> None:
    (tmp_path / "cache/readers").mkdir(parents=True)
    with contextlib.ExitStack() as opened:
        for name, content in NONSENSE.items():
            path = tmp_path / f"cache/readers/{name}.plan"
            path.write_bytes(content)
            assert Record.read(path) is None
            fcntl.flock(opened.enter_context(path.open()), fcntl.LOCK_EX)  # as that of a reader that lives
        reader = cache_of(tmp_path / "cache", 2)
        reader.plan(wanted(server, 0, 1, 2), [])
        for one in wanted(server, 0, 1, 2):
            read(reader, one)
        reader.close()


def test_a_shard_that_is_no_digest_is_evicted(server: FaultyServer, tmp_path: Path) -> None:
    (tmp_path / "cache/shards").mkdir(parents=True)
    (tmp_path / "cache/shards/stray.tar").write_bytes(bytes(2 * SIZE))
    cache = cache_of(tmp_path / "cache", 2)
    cache.plan(wanted(server, 0, 1), [])
    for one in wanted(server, 0, 1):
        read(cache, one)
    assert held(tmp_path / "cache") == {0, 1}
    cache.close()


def test_what_is_open_stays_in_use_when_a_plan_is_replaced(server: FaultyServer, tmp_path: Path) -> None:
    """As where an epoch is given up: its reader may hold a shard for a while."""
    cache, other = (cache_of(tmp_path / "cache", 2) for _ in range(2))
    first, second = wanted(server, 0, 1)
    cache.plan([first], [])
    with cache.open(first):
        cache.plan([second], [])
        read(cache, second)
        other.plan(wanted(server, 2, 3), [])
        for one in wanted(server, 2, 3):
            read(other, one)
        assert 0 in held(tmp_path / "cache")
    read(other, wanted(server, 4)[0])
    cache.close()
    other.close()
