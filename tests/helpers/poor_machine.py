"""`python -m tests.helpers.poor_machine FLAGS...`: train/run.py on a file system without locks.

The kernel refuses them, as it does on NFS without its lock manager: a seccomp filter answers fcntl's F_SETLK with
ENOLCK. Sources: seccomp(2), and the constants in <linux/filter.h>, <linux/seccomp.h> and <linux/audit.h>.
"""

import ctypes
import errno
import fcntl
import platform
import struct
import sys

from pipeline.cli import run_command
from train import recipes
from train.config import TrainConfig
from train.run import main

FCNTL = {"x86_64": 72, "aarch64": 25}[platform.machine()]
"""The number of the system call."""
_LOAD, _JUMP_IF_EQUAL, _RETURN = 0x20, 0x15, 0x06
_ALLOW, _FAIL = 0x7FFF0000, 0x00050000
_NUMBER_AT, _SECOND_ARGUMENT_AT = 0, 24
"""Of the system call, in struct seccomp_data."""


def refuse_locks() -> None:
    """From now on, and in all processes that this one starts, F_SETLK fails with ENOLCK."""
    program = b"".join(
        struct.pack("HBBI", *instruction)
        for instruction in [
            (_LOAD, 0, 0, _NUMBER_AT),
            (_JUMP_IF_EQUAL, 0, 3, FCNTL),
            (_LOAD, 0, 0, _SECOND_ARGUMENT_AT),
            (_JUMP_IF_EQUAL, 0, 1, fcntl.F_SETLK),
            (_RETURN, 0, 0, _FAIL | errno.ENOLCK),
            (_RETURN, 0, 0, _ALLOW),
        ]
    )
    buffer = ctypes.create_string_buffer(program)
    filter_program = struct.pack("HxxxxxxP", len(program) // 8, ctypes.addressof(buffer))
    libc = ctypes.CDLL(None, use_errno=True)
    no_new_privileges, set_seccomp, filter_mode = 38, 22, 2
    if libc.prctl(no_new_privileges, 1, 0, 0, 0) or libc.prctl(set_seccomp, filter_mode, filter_program, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl")


if __name__ == "__main__":
    refuse_locks()
    sys.exit(run_command(main, TrainConfig, sys.argv[1:], recipes.starting_point))
