"""Machines with a network of their own: network namespaces, connected by virtual cables."""

import contextlib
import os
import subprocess
from collections.abc import Iterator
from typing import NamedTuple

import pytest

ADDRESSES = ("10.213.77.1", "10.213.77.2")
"""Of the first and the second host."""


class Hosts(NamedTuple):
    """The words before a command that run it on each of them."""

    first: list[str]
    second: list[str]
    stranger: list[str]
    """Connected with the first by another cable, and reaches all its addresses."""


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


def _connect(cable: str, ends: dict[str, str]) -> None:
    """Connect two namespaces, given their addresses."""
    one, other = ends
    _ip("link", "add", cable, "netns", one, "type", "veth", "peer", "name", cable, "netns", other)
    for name, address in ends.items():
        _ip("-netns", name, "address", "add", f"{address}/24", "dev", cable)
        _ip("-netns", name, "link", "set", cable, "up")


@contextlib.contextmanager
def connected_hosts() -> Iterator[Hosts]:
    """Three of them. Skips the test where this machine may not make any."""
    names = [f"sluice-{os.getpid()}-{number}" for number in range(3)]
    try:
        _ip("netns", "add", names[0])
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no network namespaces here: {getattr(error, 'stderr', None) or error}")
    try:
        for name in names[1:]:
            _ip("netns", "add", name)
        for name in names:
            _ip("-netns", name, "link", "set", "lo", "up")
        _connect("cable", dict(zip(names[:2], ADDRESSES, strict=True)))
        _connect("outside", {names[0]: "10.213.78.1", names[2]: "10.213.78.2"})
        _ip("-netns", names[2], "route", "add", f"{ADDRESSES[0]}/32", "via", "10.213.78.1")
        yield Hosts(*(["ip", "netns", "exec", name] for name in names))
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "delete", name], capture_output=True)
