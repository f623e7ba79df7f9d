"""CRC-32C, with the processor's instruction for it where there is one.

The polynomial is Castagnoli's, as in iSCSI (RFC 3720, 12.1). Any three bits that differ are noticed, up to 655 bytes
any five, and any burst within 32 bits (Koopman, "32-bit cyclic redundancy codes for internet applications", 2002).
"""

from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

from ..compilation import digest, part
from . import memory, processor
from .memory import I8, I32, I64, load_little
from .processor import IS_ARM, IS_X86, has

_POLYNOMIAL = 0x82F63B78  # reflected
HAS_INSTRUCTION = (IS_X86 and has("sse4.2")) or (IS_ARM and has("crc"))

_u8, _u255, _ones = np.uint64(8), np.uint64(255), np.uint64(0xFFFFFFFF)


def _call(builder: Any, name: str, result: Any, *arguments: Any) -> Any:
    declared = ir.FunctionType(result, [argument.type for argument in arguments])
    return builder.call(builder.module.declare_intrinsic(name, (), declared), arguments)


@intrinsic
def _instruction_word(typing_context, crc, word):
    """The remainder after eight more bytes."""

    def generate(context, builder, signature, arguments):
        if IS_X86:
            return _call(builder, "llvm.x86.sse42.crc32.64.64", I64, *arguments)
        crc = builder.trunc(arguments[0], I32)
        return builder.zext(_call(builder, "llvm.aarch64.crc32cx", I32, crc, arguments[1]), I64)

    return types.uint64(types.uint64, types.uint64), generate


@intrinsic
def _instruction_byte(typing_context, crc, byte):
    """The remainder after one more byte."""

    def generate(context, builder, signature, arguments):
        crc = builder.trunc(arguments[0], I32)
        if IS_X86:
            result = _call(builder, "llvm.x86.sse42.crc32.32.8", I32, crc, builder.trunc(arguments[1], I8))
        else:
            result = _call(builder, "llvm.aarch64.crc32cb", I32, crc, builder.trunc(arguments[1], I32))
        return builder.zext(result, I64)

    return types.uint64(types.uint64, types.uint64), generate


def _tables() -> np.ndarray:
    """uint64 [8, 256]: the remainder of a byte with 0 to 7 zero bytes behind it."""
    tables = np.empty((8, 256), np.uint64)
    for byte in range(256):
        crc = byte
        for zeros in range(8):
            for _ in range(8):
                crc = crc >> 1 ^ (_POLYNOMIAL if crc & 1 else 0)
            tables[zeros, byte] = crc
    return tables


_TABLES = _tables()


@part
def _table_word(crc, word):
    """_instruction_word in software."""
    word ^= crc
    crc = np.uint64(0)
    for place in range(8):
        crc ^= _TABLES[7 - place, word >> np.uint64(8 * place) & _u255]
    return crc


@part
def _table_byte(crc, byte):
    """_instruction_byte in software."""
    return _TABLES[0, (crc ^ byte) & _u255] ^ crc >> _u8


def _compile(word, byte):
    @part
    def extend(crc, data, start, end):
        """The CRC-32C of what `crc` is that of (0 of nothing), and data[start:end] behind it."""
        at, end = np.uint64(start), np.uint64(end)
        crc = np.uint64(crc) ^ _ones
        while at + _u8 <= end:
            crc = word(crc, load_little(data, at))
            at += _u8
        while at < end:
            crc = byte(crc, np.uint64(data[at]))
            at += np.uint64(1)
        return np.int64(crc ^ _ones)

    return extend


in_software = _compile(_table_word, _table_byte)
crc32c = _compile(_instruction_word, _instruction_byte) if HAS_INSTRUCTION else in_software


def _compile_tile_checksums(sources: int) -> Any:
    @njit(cache=True, nogil=True)
    def tile_checksums(data, sizes):
        """The CRC-32C of each tile, int64 [tiles], from the entropy-coded data, uint8 [N], and the tiles' bytes, behind
        each of which stands a marker."""
        assert sources
        checksums = np.empty(sizes.size, np.int64)
        at = np.int64(0)
        for tile in range(sizes.size):
            checksums[tile] = crc32c(np.int64(0), data, at, at + sizes[tile])
            at += sizes[tile] + 2
        return checksums

    return tile_checksums


tile_checksums = _compile_tile_checksums(digest(memory, processor))


def checksum_of(data: bytes) -> int:
    """The CRC-32C of some bytes."""
    return int(tile_checksums(np.frombuffer(bytearray(data), np.uint8), np.array([len(data)]))[0])
