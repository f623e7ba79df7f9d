"""How kernels of several files are compiled and cached."""

import logging
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from numba import njit
from numba.core import event

log = logging.getLogger(__name__)

part = njit(nogil=True, no_cpython_wrapper=True, no_cfunc_wrapper=True)
"""Decorates a function that is compiled into kernels and called by nothing else: without the wrappers that Python and C
would call, the decoder of tiles compiles in five sixths of the time."""

inlined_part = njit(nogil=True, no_cpython_wrapper=True, no_cfunc_wrapper=True, forceinline=True)


def digest(*modules: ModuleType) -> int:
    """A number that changes with the source of any of the modules.

    numba's cache notices a change of the kernel's own file alone, and of what the kernel closes over. A kernel that is
    compiled from several files closes over their digest.
    """
    return zlib.crc32(b"".join(Path(str(module.__file__)).read_bytes() for module in modules)) | 1 << 32


class _FirstCompilation(event.Listener):
    """Logs a line when numba begins to compile."""

    def __init__(self, line: str) -> None:
        self._line: str | None = line

    def on_start(self, event: Any) -> None:
        if self._line:
            log.info(self._line)
            self._line = None

    def on_end(self, event: Any) -> None:
        """Nothing is measured."""


@contextmanager
def announced(line: str) -> Iterator[None]:
    """Log a line as soon as something is compiled inside the block, instead of loaded from numba's cache on disk."""
    with event.install_listener("numba:compile", _FirstCompilation(line)):
        yield
