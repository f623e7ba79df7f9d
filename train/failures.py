"""What failures mean that are not the fault of this process's code: a line instead of a traceback."""

import re
import signal
from pathlib import Path

import psutil

_CONNECTION = re.compile(r"^Dist[A-Za-z]*Error|^RuntimeError: .*([Cc]onnection (closed|reset)|[Bb]roken pipe)")
_WORKER = re.compile(r"DataLoader worker \(pid[^)]*\)?[\d, ]*\) (?:is killed by signal: ([^.]+)\.|exited unexpectedly)")
"""What a torch DataLoader says, at any moment, when one of its processes has ended. The name is strsignal(3)'s."""

_PLAIN = re.compile(r"(?:StorageError|FailedOnMainError|NonFiniteLossError): (.*)", re.DOTALL)
"""Errors whose text says everything."""


def lost_connection(message: str) -> bool:
    """Whether an exception, as `TypeName: message`, says that another rank has ended. Gloo and PyTorch's store have no
    type for that alone."""
    return _CONNECTION.search(message) is not None


def explanation(message: str) -> str | None:
    """What happened to a rank that failed with this exception, as `TypeName: message`: the end of a sentence that
    begins with the rank. None where only the traceback tells."""
    if lost_connection(message):
        return f"lost the connection to another rank: {first_line(message)}"
    if plain := _PLAIN.match(message):
        return f"failed: {plain[1]}"
    if worker := _WORKER.search(message):
        return f"lost a process that loads data: {_end_of_worker(worker[1])}"
    return None


def _end_of_worker(signal_text: str | None) -> str:
    if signal_text is None:
        return f"it ended unexpectedly, perhaps killed; {memory_in_use()}"
    numbers = {signal.strsignal(number): number for number in signal.valid_signals()}
    number = numbers.get(signal_text)
    if number is None:
        return f"killed by a signal ({signal_text})"
    killed = f"killed by signal {int(number)}"
    return f"{killed}, {probably_out_of_memory()}" if number == signal.SIGKILL else killed


def probably_out_of_memory() -> str:
    """What death by SIGKILL usually means."""
    return f"probably by the out-of-memory killer ({memory_in_use()}; fewer --workers need less)"


def memory_in_use() -> str:
    """How much memory is in use, of how much that there is: the machine's, or the container's where that is less."""
    memory = psutil.virtual_memory()
    used, total = memory.total - memory.available, memory.total
    for limited_used, limit in _cgroup_memory():
        if limit < total:
            used, total = limited_used, limit
    return f"{used / 2**30:.1f} of {total / 2**30:.1f} GiB of memory are in use now"


def _cgroup_memory() -> list[tuple[int, int]]:
    """Bytes in use and the limit of this process's control groups that have one, in versions 2 and 1. Source: the
    kernel's Documentation/admin-guide/cgroup-v2.rst and cgroup-v1/memory.rst."""
    pairs = []
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, group = line.split(":", 2)
        if controllers in ("", "memory"):
            folder = Path("/sys/fs/cgroup", controllers, group.lstrip("/"))
            names = (
                ("memory.usage_in_bytes", "memory.limit_in_bytes") if controllers else ("memory.current", "memory.max")
            )
            pairs.append([folder / name for name in names])
    return [
        (int(used.read_text()), int(limit.read_text()))
        for used, limit in pairs
        if limit.exists() and limit.read_text().strip().isdecimal()
    ]


def first_line(error: object) -> str:
    """The first line of an error's message; PyTorch's are pages long."""
    return str(error).strip().partition("\n")[0]
