"""Loads and stores that numba has no words for, as LLVM instructions that every processor has.

They are not bounded by numba; what calls them is. With NUMBA_BOUNDSCHECK=1 each of them ends the process where it
would leave its array (and a NUMBA_CACHE_DIR of its own keeps such kernels apart from others).
"""

from typing import Any

import numba
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

I8, I16, I32, I64 = (ir.IntType(bits) for bits in (8, 16, 32, 64))


def pointer(context: Any, builder: Any, array_type: Any, array: Any, at: Any, count: int) -> Any:
    """Where element `at` of a contiguous array stands; `count` elements from there on are going to be used."""
    structure = context.make_array(array_type)(context, builder, array)
    if numba.config.BOUNDSCHECK:
        room = builder.sub(structure.nitems, at)
        outside = builder.or_(
            builder.icmp_unsigned(">", at, structure.nitems),
            builder.icmp_unsigned("<", room, ir.Constant(I64, count)),
        )
        with builder.if_then(outside, likely=False):
            builder.call(builder.module.declare_intrinsic("llvm.trap", (), ir.FunctionType(ir.VoidType(), [])), [])
    return builder.gep(structure.data, [at])


def load(builder: Any, at: Any, kind: Any, align: int = 1) -> Any:
    """A value of any LLVM type from anywhere."""
    value = builder.load(builder.bitcast(at, kind.as_pointer()))
    value.align = align
    return value


def store(builder: Any, value: Any, at: Any, align: int = 1) -> None:
    builder.store(value, builder.bitcast(at, value.type.as_pointer())).align = align


@intrinsic
def load_little(typing_context, data, at):
    """The eight bytes data[at:], the first of them lowest."""

    def generate(context, builder, signature, arguments):
        return load(builder, pointer(context, builder, signature.args[0], arguments[0], arguments[1], 8), I64)

    return types.uint64(data, types.uint64), generate


@intrinsic
def load_big(typing_context, data, at):
    """The eight bytes data[at:], the first of them highest."""

    def generate(context, builder, signature, arguments):
        at = pointer(context, builder, signature.args[0], arguments[0], arguments[1], 8)
        return builder.bswap(load(builder, at, I64))

    return types.uint64(data, types.uint64), generate


@intrinsic
def trailing_zeros(typing_context, value):
    """The zeros below the lowest one of a number that is not zero."""

    def generate(context, builder, signature, arguments):
        return builder.cttz(arguments[0], ir.Constant(ir.IntType(1), 1))

    return types.uint64(types.uint64), generate


@intrinsic
def copy_16(typing_context, source, at, target, to):
    """Copy 16 bytes. Returns which of them are FF: a bit each, that of the first lowest."""

    def generate(context, builder, signature, arguments):
        vector = ir.VectorType(I8, 16)
        value = load(builder, pointer(context, builder, signature.args[0], arguments[0], arguments[1], 16), vector)
        store(builder, value, pointer(context, builder, signature.args[2], arguments[2], arguments[3], 16))
        is_ff = builder.icmp_unsigned("==", value, ir.Constant(vector, [0xFF] * 16))
        return builder.zext(builder.bitcast(is_ff, I16), I64)

    return types.uint64(source, types.uint64, target, types.uint64), generate


@intrinsic
def borrowed(typing_context, array):
    """The array without its reference count: numba would count up and down at every call that it inlines. What it is a
    view of has to stay."""

    def generate(context, builder, signature, arguments):
        structure = context.make_array(signature.args[0])(context, builder, arguments[0])
        structure.meminfo = ir.Constant(structure.meminfo.type, None)
        structure.parent = ir.Constant(structure.parent.type, None)
        return structure._getvalue()

    return array(array), generate
