"""Objects through obstore, with faults overcome. Runs in a process of its own, see helper.py.

Every function takes the address of an object and `Access`. What a network and a server do wrong is tried again, with a
growing pause of random length: a refused or broken connection, one that stalls, the answers 408, 429 and 5xx, an object
that is too short or of another length than it should be. What has arrived stays: reading resumes at the byte where it
broke. After `io_timeout` seconds without a byte, StorageError. What trying again cannot help (no such object, no
permission, no credentials) is an InputError at once.
"""

import asyncio
import functools
import hashlib
import math
import os
import random
import re
import time
from collections.abc import Iterator
from typing import Any

import obstore
from obstore.exceptions import (
    BaseError,
    InvalidPathError,
    NotSupportedError,
    PermissionDeniedError,
    UnauthenticatedError,
    UnknownConfigurationKeyError,
)
from obstore.store import from_url

from ...errors import InputError, StorageError, one_line
from ..files import flush, regular
from .address import ObjectInfo, place_of
from .settings import Access

CHUNK = 1 << 20
"""Bytes that are passed on at a time, at least, except at the end and before a fault."""
_RECEIVED_AT_ONCE = 1 << 16
"""What obstore has of an answer when a fault ends it is lost, up to as much."""
_LARGEST_PAUSE_S = 5.0
_SLOWEST = 10
"""How often `io_timeout` may pass before a server has sent a small object, or has listed a folder."""
_WHOLE_S = 30 * 86400.0
"""A whole shard may take as long: a slow reader takes an epoch for it."""
_MOST_NAMES = 1 << 20
_REFUSED = (FileNotFoundError, PermissionError, PermissionDeniedError, UnauthenticatedError)
_UNUSABLE = (NotSupportedError, UnknownConfigurationKeyError)
_CREDENTIALS = {
    "s3": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_SKIP_SIGNATURE=true for a public bucket",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS to a service account's file, or GOOGLE_SKIP_SIGNATURE=true for a public "
    "bucket",
    "az": "AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY, or instead of the key AZURE_SKIP_SIGNATURE=true "
    "for a public container",
}
"""The variables to set, by scheme."""
_INCOMPLETE = re.compile(r"Missing \w+Key|Account must be specified")
_METADATA = re.compile(r"ing \w+ \S+/(?:latest/(?:api/token|meta-data/)|computeMetadata/|metadata/identity/)(.*)")
"""A request to the metadata service of a cloud's machine, for the credentials of its role, and how it ended."""
_STATUS_REFUSED = re.compile(r"status code: 40[134]")
_METADATA_UNREACHED = "error sending request"
_METADATA_S = 3.0
"""After so long without a connection there is no such service, as outside of clouds."""


class WrongContentError(Exception):
    """An object is not what it should be."""


def _info(name: str, meta: Any) -> ObjectInfo:
    tag = (meta["e_tag"] or "").removeprefix("W/").strip('"')  # Azure's listings have it without quotes
    return ObjectInfo(name, int(meta["size"]), tag or str(meta["last_modified"]))


class Patience:
    """The pauses between attempts, until there has been no progress for `io_timeout` seconds."""

    def __init__(self, address: str, access: Access) -> None:
        self._address, self._seconds = address, access.io_timeout
        self.progress()

    def progress(self) -> None:
        """Something has arrived: begin to count again."""
        self._since, self._pause = time.monotonic(), 0.1

    def wait(self, error: Exception) -> None:
        """Pause after a fault. Raises InputError where trying again is useless, StorageError where it has been tried
        for long enough."""
        if isinstance(error, _REFUSED):
            raise InputError(f"{self._address}: cannot be opened ({reason_of(error)})") from None
        if isinstance(error, _UNUSABLE):
            raise StorageError(f"{self._address}: {reason_of(error)}") from None
        if has_no_credentials(error, time.monotonic() - self._since):
            raise without_credentials(self._address) from None
        left = self._since + self._seconds - time.monotonic()
        if left <= 0:
            raise StorageError(
                f"{self._address}: given up after {self._seconds:g} s without progress ({reason_of(error)})"
            ) from None
        time.sleep(min(left, random.uniform(self._pause / 2, self._pause)))
        self._pause = min(2 * self._pause, _LARGEST_PAUSE_S)


def has_no_credentials(error: Exception, seconds: float) -> bool:
    """Whether an error says that there are no credentials: those in the environment are incomplete, or there are none
    and the machine has no role. Its metadata service says so, or has not been there for so many `seconds`."""
    line = str(error).partition("\n")[0]
    if not (asked := _METADATA.search(line)):
        return _INCOMPLETE.search(line) is not None
    refused = _STATUS_REFUSED.search(asked[1]) is not None
    return refused or (_METADATA_UNREACHED in asked[1] and seconds >= _METADATA_S)


def without_credentials(address: str) -> InputError:
    """The error where `has_no_credentials`."""
    return InputError(f"{address}: no credentials found; set {_CREDENTIALS[address.partition('://')[0].lower()]}")


def reason_of(error: Exception) -> str:
    """What obstore says, in a few words: its texts have a page with every layer of the error."""
    text = str(error)
    line = text.partition("\n")[0].rpartition(" - ")[2]
    deepest = re.findall(r"(?:message: |kind: )?\"?((?:[Cc]onnection|operation|unexpected end)[\w ]+)", text)
    return one_line(f"{line}: {deepest[-1]}" if deepest and deepest[-1] not in line else line)[:300]


@functools.lru_cache
def _store(root: str, access: Access, whole_s: float = _WHOLE_S) -> Any:
    """The client of a bucket or host. Credentials and region come from the environment, as each cloud's own tools read
    them. obstore's own retries are off: they cannot resume where a body broke, nor count one time limit over all."""
    quiet_s = min(20.0, max(0.2, access.io_timeout / 3))
    config: Any = {}
    if access.endpoint_url and not root.startswith("http"):
        config["base_url" if root.startswith("gs:") else "endpoint"] = access.endpoint_url
    try:
        return from_url(
            root,
            config=config or None,
            client_options={
                "allow_http": True,
                "connect_timeout": f"{int(1000 * quiet_s)}ms",
                "read_timeout": f"{int(1000 * quiet_s)}ms",
                "timeout": f"{int(1000 * whole_s)}ms",
            },
            retry_config={"max_retries": 0},
        )
    except (BaseError, ValueError, TypeError) as error:
        if has_no_credentials(error, 0):
            raise without_credentials(root) from None
        raise InputError(f"{root}: cannot be opened ({reason_of(error)})") from None


def stream(
    address: str,
    access: Access,
    start: int = 0,
    size: int | None = None,
    stop: int | None = None,
    version: str | None = None,
    *,
    most: float = math.inf,
    whole_s: float = _WHOLE_S,
) -> Iterator[bytes]:
    """The bytes of an object from `start` on, up to `stop` if that is given. In all it must have `size` bytes and be
    this `version`, if they are known, and have no more than `most` bytes; an answer may take `whole_s` seconds. Whoever
    takes the pieces may be as slow as it likes. Raises InputError, also for another version, and StorageError."""
    place, patience, at = place_of(address), Patience(address, access), start
    tag, held = None, bytearray()
    while True:
        try:
            options: Any = {"range": {"offset": at}} if at else None
            if stop is not None:
                options = {"range": (at, stop)}
            result = obstore.get(_store(place.root, access, whole_s), place.path, options=options)
            total, found = result.meta["size"], result.meta["e_tag"]
            if version is not None and _info("", result.meta).version != version:
                raise InputError(f"{address}: has changed since it was listed; start again")
            if size is not None and total != size:
                raise WrongContentError(f"{total} bytes, not {size} as recorded")
            if tag is not None and tag != (total, found):
                raise StorageError(f"{address}: altered while it was read")
            tag = (total, found)
            if total > most:
                raise InputError(f"{address}: {total} bytes; at most {most} are read")
            end = total if stop is None else stop
            for chunk in result.stream(min_chunk_size=_RECEIVED_AT_ONCE):
                patience.progress()
                at += len(chunk)
                if at > end:
                    raise StorageError(f"{address}: goes on behind byte {end}, where its server said that it ends")
                held += bytes(chunk)
                if len(held) >= CHUNK:
                    yield bytes(held)
                    held.clear()
                    patience.progress()  # the time until the next piece is asked for is nobody's fault
            if at < end:
                raise WrongContentError(f"ends at byte {at} of {end}")
            yield bytes(held)
            return
        except (OSError, BaseError, WrongContentError) as error:
            if isinstance(error, NotSupportedError) and stop is not None:
                raise InputError(f"{address}: its server does not serve ranges; download the file") from None
            patience.wait(error)


def read(address: str, access: Access, largest: int) -> bytes:
    """A small object. Raises InputError, also for one of more than `largest` bytes, and StorageError, also where a
    server sends it byte by byte."""
    content = bytearray()
    for chunk in stream(address, access, most=largest, whole_s=_SLOWEST * access.io_timeout):
        content += chunk
    return bytes(content)


def size_of(address: str, access: Access) -> int | None:
    """The size of an object in bytes; None where there is none. Raises InputError and StorageError."""
    info = info_of(address, access)
    return info.size if info else None


def info_of(address: str, access: Access) -> ObjectInfo | None:
    """An object; None where there is none. Raises InputError and StorageError."""
    place, patience = place_of(address), Patience(address, access)
    while True:
        try:
            return _info("", obstore.head(_store(place.root, access), place.path))
        except FileNotFoundError:
            return None
        except (OSError, BaseError) as error:
            patience.wait(error)


def names_below(address: str, access: Access) -> list[str]:
    """The names of the objects in a folder of a bucket and below it, relative to it, sorted. Raises InputError and
    StorageError."""
    return [info.name for info in objects_below(address, access, _MOST_NAMES)]


def objects_below(address: str, access: Access, most: int) -> list[ObjectInfo]:
    """The objects in a folder of a bucket and below it, sorted by name. Raises InputError, also for more than `most`
    and for a name that is no path, and StorageError, also where a listing does not end."""
    patience, longest_s = Patience(address, access), _SLOWEST * access.io_timeout
    given_up = time.monotonic() + longest_s
    while True:
        try:
            listed = _listed(address, access, most)
            return sorted(asyncio.run(asyncio.wait_for(listed, given_up - time.monotonic())))
        except asyncio.TimeoutError:
            raise StorageError(f"{address}: given up after {longest_s:g} s: its server lists without an end") from None
        except InvalidPathError as error:
            raise InputError(f"{address}: an object in it has no usable name ({reason_of(error)})") from None
        except (OSError, BaseError) as error:
            if _STATUS_REFUSED.search(str(error).partition("\n")[0]):  # obstore has no types for these in listings
                raise InputError(f"{address}: cannot be listed ({reason_of(error)})") from None
            patience.wait(error)


async def _listed(address: str, access: Access, most: int) -> list[ObjectInfo]:
    """As `objects_below`, once; it can be cancelled. obstore asks a server that sends empty pages for the next one
    without end, and returns nothing meanwhile."""
    place, found = place_of(address), list[ObjectInfo]()
    prefix = place.path.rstrip("/")
    async for page in obstore.list(_store(place.root, access), prefix or None):
        found += [_info(entry["path"][len(prefix) :].lstrip("/"), entry) for entry in page]
        if len(found) > most:
            raise InputError(f"{address}: more than {most} objects; no dataset has as many")
    return found


def download(address: str, access: Access, path: str, size: int) -> None:
    """Write an object of `size` bytes into the file `path`. Raises InputError and StorageError."""
    with open(path, "wb") as file:
        for chunk in stream(address, access, size=size):
            file.write(chunk)


def fetch(address: str, access: Access, path: str, size: int, sha256: str) -> None:
    """Write an object into the file `path`, which exists, and flush it. Where its digest is another one it is fetched
    once more. Raises StorageError, and InputError as `stream`."""
    with open(path, "r+b", opener=regular) as file:
        for _ in range(2):
            digest = hashlib.sha256()
            file.seek(0)
            for chunk in stream(address, access, size=size):
                file.write(chunk)
                digest.update(chunk)
            flush(file)
            if digest.hexdigest() == sha256:
                return
    raise StorageError(f"{address}: altered: its SHA-256 is not the recorded one, fetched twice")


def upload(address: str, access: Access, path: str, sha256: str) -> None:
    """Write the file `path` to a bucket, and read it back: the object must have its size and digest. Raises InputError
    and StorageError."""
    place, patience = place_of(address), Patience(address, access)
    while True:
        try:
            with open(path, "rb") as file:
                size = os.fstat(file.fileno()).st_size
                obstore.put(_store(place.root, access), place.path, file)
            if not has_content(address, access, size, sha256):
                raise WrongContentError("what was written is not what can be read")
            return
        except (OSError, BaseError, WrongContentError) as error:
            if isinstance(error, OSError) and error.filename == path:
                raise
            patience.wait(error)


def has_content(address: str, access: Access, size: int, sha256: str) -> bool:
    """Whether an object exists and has this size and digest; reads it only where the size is right. Raises InputError
    and StorageError."""
    if size_of(address, access) != size:
        return False
    digest = hashlib.sha256()
    for chunk in stream(address, access, size=size):
        digest.update(chunk)
    return digest.hexdigest() == sha256


def delete(address: str, access: Access) -> None:
    """Remove an object, if there is one. Raises InputError and StorageError."""
    place, patience = place_of(address), Patience(address, access)
    while True:
        try:
            obstore.delete(_store(place.root, access), place.path)
            return
        except FileNotFoundError:
            return
        except (OSError, BaseError) as error:
            patience.wait(error)
