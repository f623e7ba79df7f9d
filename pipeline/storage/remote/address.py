"""Addresses of datasets: which there are, and their parts."""

import re
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote

from ...errors import InputError

BUCKETS = ("s3", "gs", "az")
SCHEMES = (*BUCKETS, "http", "https")
IN_WORDS = "s3://, gs://, az://, http:// and https://"


class Place(NamedTuple):
    """Where an object is: the root of its store, such as `s3://bucket` or `https://host:port`, and its path there."""

    root: str
    path: str


def is_remote(location: str) -> bool:
    """Whether a dataset's location is an address. Raises InputError for a kind of address that is not read."""
    scheme = re.match(r"[A-Za-z][\w+.-]*(?=://)", location)
    if scheme and scheme[0].lower() not in SCHEMES:
        raise InputError(f"{location}: {scheme[0]}:// is not read, only {IN_WORDS} and local folders")
    slip = re.match(r"([A-Za-z]\w*):/?(?!/)", location)
    if slip and slip[1].lower() in SCHEMES and not Path(location).exists():
        raise InputError(f"{location}: an address has two slashes: {slip[1]}://{location[slip.end() :]}")
    return scheme is not None


def is_bucket(location: str) -> bool:
    """Whether it is in an object store, which can be written to."""
    return location.partition("://")[0].lower() in BUCKETS and "://" in location


def address_of(path: Path) -> str | None:
    """The address that was given where a path could be: `Path` takes one of its two slashes. None for a path."""
    match = re.match(r"([A-Za-z][\w+.-]+):/(?=[^/])", str(path))
    return f"{match[1]}://{str(path)[match.end() :]}" if match else None


def below(base: str, name: str) -> str:
    """The address of `name` in the folder `base`."""
    return f"{base.rstrip('/')}/{name}"


def place_of(address: str) -> Place:
    """The parts of an address. Raises InputError where it names no bucket or host."""
    match = re.fullmatch(r"([A-Za-z0-9]+)://([^/?#]+)/?([^?#]*)", address)
    if not match:
        raise InputError(f"{address}: not an address of the form SCHEME://BUCKET/FOLDER")
    return Place(f"{match[1].lower()}://{match[2]}", unquote(match[3]))
