"""One line instead of a silent death where a mapped file can no longer be read.

Reading a mapped page that its file no longer has (it was truncated), or that its disk or server does not deliver, is no
error that a function could return: the kernel sends SIGBUS, which ends the process without a word. The handler here
looks up which mapped file the address belongs to, writes that file's message to stderr and ends the process with code
1, as for all storage that fails. Any other bus error ends the process as it would have.

Sources: sigaction(2), and struct sigaction and siginfo_t in glibc's headers for 64-bit Linux, which all processors
share.
"""

import ctypes
import signal
from typing import Any

import numpy as np
from llvmlite import ir
from numba import carray, cfunc, types
from numba.extending import intrinsic

from ..errors import one_line

_MOST_FILES = 64  # the newest ones have a message
_SA_SIGINFO = 4
_SI_ADDR = 2  # of siginfo_t, in words of 8 bytes

_files = np.zeros((_MOST_FILES, 4), np.int64)
"""Of each mapped file: its first address, the address behind it, and where its message is and how long."""
_messages = [b""] * _MOST_FILES
_state: dict[str, Any] = {"next": 0}

_write = types.ExternalFunction("write", types.int64(types.int32, types.int64, types.int64))
_exit = types.ExternalFunction("_exit", types.void(types.int32))
_set_handler = types.ExternalFunction("signal", types.int64(types.int32, types.int64))


class _SigAction(ctypes.Structure):
    _fields_ = (
        ("handler", ctypes.c_void_p),
        ("mask", ctypes.c_ubyte * 128),
        ("flags", ctypes.c_int),
        ("restorer", ctypes.c_void_p),
    )


def explain_bus_errors(mapped: np.ndarray, path: str) -> None:
    """From now on, a bus error in `mapped`, uint8 [bytes of the file], ends the process with a line that names it."""
    if "handler" not in _state:
        _install()
    message = one_line(
        f"error: {path}: can no longer be read: it was truncated, or its disk or file system failed; restore it, or "
        "convert again"
    )
    row, start = _state["next"] % _MOST_FILES, mapped.ctypes.data
    _messages[row] = f"{message}\n".encode()
    text = ctypes.cast(ctypes.c_char_p(_messages[row]), ctypes.c_void_p).value or 0
    _files[row] = start, start + mapped.nbytes, text, len(_messages[row])
    _state["next"] += 1


def _install() -> None:
    _state["handler"] = _compile_handler(_files.ctypes.data)
    action = _SigAction(handler=_state["handler"].address, flags=_SA_SIGINFO)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.sigaction(signal.SIGBUS, ctypes.byref(action), None):
        raise OSError(ctypes.get_errno(), "sigaction")


def _compile_handler(files: int) -> Any:
    """The handler. Not cached on disk, because the table's address is a constant in it; it compiles in 0.2 s."""
    bus_error = int(signal.SIGBUS)

    @cfunc(types.void(types.int32, types.CPointer(types.int64), types.voidptr))
    def handle(number, info, context):
        address = carray(info, _SI_ADDR + 1)[_SI_ADDR]
        table = carray(_int64_pointer(files), (_MOST_FILES, 4))
        for row in range(_MOST_FILES):
            if table[row, 0] <= address < table[row, 1]:
                _write(2, table[row, 2], table[row, 3])
                _exit(1)
        _set_handler(bus_error, 0)  # the instruction is tried again

    return handle


@intrinsic
def _int64_pointer(typing_context, address):
    def generate(context, builder, signature, arguments):
        return builder.inttoptr(arguments[0], ir.IntType(64).as_pointer())

    return types.CPointer(types.int64)(types.int64), generate
