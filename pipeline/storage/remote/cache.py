"""A cache of whole shards on a local disk, shared by the processes and runs of a machine.

    DIR/lock                   held while anything in the folder changes
    DIR/shards/<SHA-256>.tar   a complete, verified shard, whatever dataset it belongs to
    DIR/shards/<SHA-256>.partial   one that is being fetched; its lock is held by the process that does
    DIR/readers/<id>.plan      a process's `reader_record`, what it reads and will read; locked as long as it lives

All files together never exceed the limit: a shard that is being fetched counts in full from its beginning. What has no
living process behind it, such as half a shard that a killed one left, is removed when its room or its name is needed.

The order of an epoch is known, so that the shard evicted is the one that all readers need last, and never for one that
is needed even later (Belady's algorithm, IBM Systems Journal 5, 1966). A shard in use is not evicted. One for which
there is no room, so that keeping it would cost more than it saves, is streamed past the cache: no reader waits for
another.

The folder is one that no stranger may write to. What is in it all the same and is no file is removed, not followed; a
record that cannot be read counts as none.
"""

import contextlib
import fcntl
import math
import os
import secrets
import stat
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import BinaryIO, NamedTuple, TypeVar

from ...errors import InputError, StorageError
from ...sizes import size_in_words
from ..files import link_of_others, own_lock, regular
from ..shards import ShardInfo, ShardSamples
from . import helper
from .address import below
from .reader_record import DONE, IN_USE, OwnRecord, Record, bytes_of, distances, key_of, keys_in_use
from .settings import Access, CacheSettings
from .shards import RemoteShards, open_direct
from .traffic import Traffic

FETCHERS = 2
"""Threads of a reader that fetch ahead."""
_POLL_S = 0.2
_RECORD = ".plan"


class Wanted(NamedTuple):
    """A shard, where it is, and when it is needed: epochs from the beginning of the run."""

    when: float
    address: str
    shard: ShardInfo


class _Folder:
    """What is in the cache's folder, seen under its lock. `own` is the record of the reader that looks."""

    def __init__(self, folder: Path, own: Path) -> None:
        self._folder, self._own = folder, own

    @cached_property
    def sizes(self) -> dict[Path, int]:
        """The bytes of each file, from a listing: 2 ms for 1,000 shards. What is no file is removed."""
        sizes = dict[Path, int]()
        for entry in [entry for name in ("shards", "readers") for entry in os.scandir(self._folder / name)]:
            status = entry.stat(follow_symlinks=False)
            if stat.S_ISREG(status.st_mode):
                sizes[Path(entry.path)] = status.st_size
            elif not stat.S_ISDIR(status.st_mode):
                os.unlink(entry.path)
        return sizes

    def sweep(self) -> None:
        """Remove what killed processes left."""
        for path in [path for path in self.sizes if path.suffix != ".tar" and path != self._own and _is_orphan(path)]:
            self.remove(path)

    def remove(self, path: Path) -> None:
        path.unlink()
        del self.sizes[path]

    @cached_property
    def others(self) -> list[Record]:
        """The records of the other readers."""
        paths = [path for path in self.sizes if path.suffix == _RECORD and path != self._own]
        return [record for path in paths if (record := Record.read(path)) is not None]


def _when(wanted: Wanted) -> float:
    return wanted.when


_Shard = TypeVar("_Shard")


def choose_victims(
    distances: Mapping[_Shard, float], sizes: Mapping[_Shard, int], excess: int, distance: float
) -> list[_Shard] | None:
    """What to evict to be rid of `excess` bytes: of the shards that may go, by the epochs until they are needed, those
    that are needed last, if that is later than in `distance` epochs; None where they are not enough."""
    victims = list[_Shard]()
    for shard in sorted(distances, key=lambda shard: -distances[shard]):
        if excess <= 0 or distances[shard] <= distance:
            break
        victims.append(shard)
        excess -= sizes[shard]
    return victims if excess <= 0 else None


class ShardCache:
    """One reader of the cache. Its threads may use it at the same time. Raises InputError for a folder that cannot be
    used."""

    def __init__(self, settings: CacheSettings, access: Access, traffic: Traffic) -> None:
        self._settings, self._access, self._traffic = settings, access, traffic
        self._shards, self._readers = settings.folder / "shards", settings.folder / "readers"
        try:
            settings.folder.mkdir(parents=True, exist_ok=True)
            for folder in (self._shards, self._readers):
                folder.mkdir(mode=0o700, exist_ok=True)
            _check_private(settings.folder)
        except OSError as error:
            raise InputError(f"--cache {settings.folder}: {error.strerror}") from None
        self._times = dict[int, list[float]]()
        self._changed, self._generation = threading.Condition(), 0
        self._fetchers: list[threading.Thread] = []
        self._path = self._readers / f"{secrets.token_hex(8)}{_RECORD}"
        with self._locked():
            self._file = open(self._path, "xb")  # noqa: SIM115 (its lock is held until close)
            fcntl.flock(self._file, fcntl.LOCK_EX)
        self._record = OwnRecord(self._file.fileno())

    def plan(self, upcoming: list[Wanted], later: list[Wanted]) -> None:
        """Say what will be read: from now on, `upcoming`, and then `later`, which is not fetched ahead. Raises
        StorageError where others use the whole cache."""
        self._times = {}
        for wanted in sorted([*upcoming, *later], key=_when):
            self._times.setdefault(key_of(wanted.shard.sha256), []).append(wanted.when)
        given_up = time.monotonic() + self._access.io_timeout
        while not self._register():
            self._wait_for_room(given_up)
        self._generation += 1
        arguments = (sorted(upcoming, key=_when), self._generation)
        self._fetchers = [
            threading.Thread(target=self._fetch_ahead, args=arguments, daemon=True) for _ in range(FETCHERS)
        ]
        for thread in self._fetchers:
            thread.start()

    def _register(self) -> bool:
        """Write the record, in a size that it keeps while this plan holds. Whether it has room."""
        now = min((times[0] for times in self._times.values()), default=0.0)
        with self._locked() as folder:
            folder.sweep()
            entries = self._record.planned((key, when) for key, times in self._times.items() for when in times)
            if not self._make_room(folder, bytes_of(entries) - folder.sizes.get(self._path, 0), -math.inf):
                return False
            self._record.replace(entries, now)
        return True

    @contextlib.contextmanager
    def open(self, wanted: Wanted) -> Iterator[BinaryIO]:
        """A shard: from the cache, where it is not evicted in the block, or fetched now, or streamed past the cache.
        Raises StorageError."""
        started = time.monotonic()
        state = self._present(wanted, self._after(wanted) - self._record.now)
        self._traffic.add(hits=state == "hit", misses=state != "hit", waiting=time.monotonic() - started)
        try:
            if state == "full":
                with open_direct(wanted.address, wanted.shard.bytes, self._access, self._traffic) as stream:
                    yield stream
            else:
                with open(self.path(wanted.shard), "rb", opener=regular) as file:
                    yield file
        finally:
            self._release(wanted)

    def _after(self, wanted: Wanted) -> float:
        """When a shard is needed again after this time."""
        return min((when for when in self._times.get(key_of(wanted.shard.sha256), ()) if when > wanted.when),
                   default=math.inf)  # fmt: skip

    def _present(self, wanted: Wanted, distance: float) -> str:
        """Have a shard in the cache, marked as in use: "hit" where it is there already, "fetched", or "full" where it
        is not worth its room. Raises StorageError."""
        result = "hit"
        while (state := self._acquire(wanted, distance, use=True)) is not None:
            if state == "full":
                return "full"
            result = "fetched"
            if isinstance(state, str):
                time.sleep(_POLL_S / 4)  # another thread or process fetches it
            else:
                self._fetch(wanted, state)
        return result

    def hold(self, wanted: list[Wanted]) -> None:
        """Fetch shards and keep them until `close`. Raises StorageError."""
        self.plan(wanted, [])
        given_up = time.monotonic() + self._access.io_timeout
        for one in wanted:
            while self._present(one, -math.inf) == "full":
                self._wait_for_room(given_up)

    def path(self, shard: ShardInfo) -> Path:
        """Where a shard is, if it is in the cache."""
        return self._shards / f"{shard.sha256}.tar"

    def close(self) -> None:
        """Fetch no more, and give up what is in use."""
        self._generation += 1
        with self._changed:
            self._changed.notify_all()
        for thread in self._fetchers:
            thread.join()
        with self._locked():
            self._path.unlink(missing_ok=True)
            self._file.close()

    def _partial(self, shard: ShardInfo) -> Path:
        return self._shards / f"{shard.sha256}.partial"

    def _acquire(self, wanted: Wanted, distance: float, *, use: bool) -> BinaryIO | str | None:
        """None where the shard is cached, and then it is marked as in use with `use`; the file to fetch it into, whose
        lock is held; or why it cannot be fetched now: "busy" or "full"."""
        shard, path = wanted.shard, self.path(wanted.shard)
        if not use and _is_file(path, shard.bytes):
            return None
        with self._locked() as folder:
            if _is_file(path, shard.bytes):  # without a listing, which grows with the cache
                if use:
                    self._record.mark(key_of(shard.sha256), wanted.when, IN_USE)
                return None
            if path in folder.sizes:  # truncated
                folder.remove(path)
            if (partial := self._partial(shard)) in folder.sizes:
                if not _is_orphan(partial):
                    return "busy"
                folder.remove(partial)
            if not self._make_room(folder, shard.bytes, distance):
                return "full"
            file = open(partial, "xb")  # noqa: SIM115 (_fetch closes it)
            file.truncate(shard.bytes)
            fcntl.flock(file, fcntl.LOCK_EX)
            return file

    def _make_room(self, folder: _Folder, size: int, distance: float) -> bool:
        """Evict what is needed last, if it is needed later than in `distance` epochs, until `size` more bytes fit."""
        limit = self._settings.limit
        if sum(folder.sizes.values()) + size <= limit:
            return True
        folder.sweep()
        records: list[Record | OwnRecord] = [*folder.others, self._record]
        kept = keys_in_use(records)
        keys = {path: key_of(path.stem) for path in folder.sizes if path.suffix == ".tar"}
        cached = {path: key for path, key in keys.items() if key not in kept}
        far = dict(zip(cached, distances([*cached.values()], records).tolist(), strict=True))
        victims = choose_victims(far, folder.sizes, sum(folder.sizes.values()) + size - limit, distance)
        if victims is None:
            return False
        for path in victims:
            folder.remove(path)
        return True

    def _fetch(self, wanted: Wanted, file: BinaryIO) -> None:
        """Fetch a shard into the file that `_acquire` returned, and give it its name. Raises StorageError."""
        started, shard, partial = time.monotonic(), wanted.shard, self._partial(wanted.shard)
        with file:
            try:
                helper.call("fetch", wanted.address, self._access, str(partial), shard.bytes, shard.sha256)
            except InputError as error:
                with self._locked():
                    partial.unlink(missing_ok=True)
                raise StorageError(str(error)) from None  # the dataset has been opened before: storage has failed
            with self._locked():
                partial.rename(self.path(shard))
        self._traffic.add(bytes=shard.bytes, fetching=time.monotonic() - started)

    def _fetch_ahead(self, pending: list[Wanted], generation: int) -> None:
        """Fetch what is upcoming, nearest first, while it is. A fault ends this: who needs the shard meets it again."""
        for wanted in pending:
            while generation == self._generation:
                state = self._acquire(wanted, wanted.when - self._record.now, use=False)
                if state != "full" or wanted.when <= self._record.now:
                    break
                with self._changed:
                    self._changed.wait(_POLL_S)
            else:
                return
            if state is not None and not isinstance(state, str):
                try:
                    self._fetch(wanted, state)
                except StorageError:
                    return

    def _wait_for_room(self, given_up: float) -> None:
        if time.monotonic() > given_up:
            raise StorageError(
                f"--cache {self._settings.folder}: no room: all of its {size_in_words(self._settings.limit)} are in "
                f"use by other runs; enlarge --cache-size, or give each run a folder of its own"
            )
        time.sleep(_POLL_S)

    def _release(self, wanted: Wanted) -> None:
        with self._locked():
            if not self._file.closed:
                self._record.mark(key_of(wanted.shard.sha256), wanted.when, DONE)
        with self._changed:
            self._changed.notify_all()

    @contextlib.contextmanager
    def _locked(self) -> Iterator[_Folder]:
        """Hold the folder's lock, and see what is in it."""
        try:
            with open(self._settings.folder / "lock", "a", opener=own_lock) as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                yield _Folder(self._settings.folder, self._path)
        except OSError as error:
            raise StorageError(f"--cache {error.filename or self._settings.folder}: {error.strerror}") from None


def _check_private(folder: Path) -> None:
    """Raises InputError for a folder in which another user has, or could, put something: shards of his, or links. The
    group may write where it is the user's own, as where umask is 002."""
    for inside in (folder, folder / "shards", folder / "readers"):
        if link := link_of_others(inside):
            raise InputError(f"--cache {link}: a link that another user has made; remove it")
        status = inside.stat()
        others = stat.S_IWOTH | (stat.S_IWGRP if status.st_gid != os.getegid() else 0)
        if status.st_uid not in (0, os.geteuid()) or status.st_mode & others:
            raise InputError(f"--cache {inside}: other users may write to it; choose a folder that is yours alone")


def _is_file(path: Path, size: int) -> bool:
    """Whether there is one of this size under this name, no link to one."""
    try:
        status = path.lstat()
    except FileNotFoundError:
        return False
    return stat.S_ISREG(status.st_mode) and status.st_size == size


def _is_orphan(path: Path) -> bool:
    """Whether no process holds the lock of a file."""
    with open(path, "rb", opener=regular) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True


class CachedSource:
    """The shards of a split, through a cache: `ShardSource` for the shards of one plan."""

    def __init__(self, cache: ShardCache, upcoming: list[Wanted], shards: RemoteShards) -> None:
        self._cache, self._shards = cache, shards
        numbers = {shard.name: number for number, shard in enumerate(shards.infos)}
        self._wanted: dict[int, Wanted] = {}
        for wanted in sorted(upcoming, key=_when, reverse=True):
            self._wanted[numbers[wanted.shard.name]] = wanted

    def open(self, number: int) -> AbstractContextManager[BinaryIO]:
        """A shard from its beginning. Raises StorageError."""
        return self._cache.open(self._wanted[number])


_held: list[ShardCache] = []  # as long as this process lives


def cached_samples(shards: RemoteShards, settings: CacheSettings, access: Access, num_classes: int) -> ShardSamples:
    """Random access to a split of which all shards are in the cache: they are fetched, and kept there as long as this
    process lives. Raises InputError and StorageError."""
    cache = ShardCache(settings, access, Traffic(1))
    numbers = range(len(shards.infos))
    cache.hold([Wanted(number / len(numbers), shards.address(number), shards.infos[number]) for number in numbers])
    _held.append(cache)
    originals = {shard.sha256: shard for shard in shards.infos}

    def read_index(shard: ShardInfo, most: int) -> bytes:
        address = f"{below(shards.base, originals[shard.sha256].name.removesuffix('.tar'))}.idx"
        content: bytes = helper.call("read", address, access, most)
        return content

    infos = tuple(replace(shard, name=cache.path(shard).name) for shard in shards.infos)
    return ShardSamples(cache.path(infos[0]).parent, infos, num_classes, read_index)
