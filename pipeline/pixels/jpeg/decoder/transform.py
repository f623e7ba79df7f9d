"""From coefficients to samples: dequantization and inverse DCT, as libjpeg-turbo's SIMD for x86 does them.

The DCT is libjpeg's accurate one ("islow": Loeffler, Ligtenberg and Moschytz, "Practical fast 1-D DCT algorithms with
11 multiplications", 1989; jidctint.c), in 16 bits that wrap where libjpeg-turbo's wrap and saturate where its saturate
(jidctint-avx2.asm), so that coefficients which no photograph has give the same pixels too.

It is written as LLVM's vector instructions, for one block in 16-byte vectors or two in the halves of 32-byte ones.
What has no name in LLVM, multiplying pairs and narrowing with saturation, is the processor's instruction on x86-64, and
spelled out elsewhere, where LLVM finds the instructions by itself.
"""

from collections.abc import Sequence
from typing import Any

import llvmlite.binding
import numpy as np
from llvmlite import ir
from numba import carray, cfunc, types
from numba.extending import intrinsic

from ...compilation import digest, part
from .. import memory, processor
from ..memory import I8, I16, I32, I64, load, pointer, store
from ..processor import ANY, AVX2, SSE2, VECTORS

FIRST_ROW_ONLY, UPPER_HALF_ONLY, ALL_ROWS = range(3)
"""Which of a block's rows are not zero."""

_BLOCKS = {AVX2: 2, SSE2: 1, ANY: 1}  # in a vector
_Vector = Any
_Wide = tuple[Any, Any]  # of 32-bit numbers: those of the low and of the high halves of rows

_FIRST_PASS, _SECOND_PASS = 11, 18  # bits to shift right by: CONST_BITS - PASS1_BITS, CONST_BITS + PASS1_BITS + 3
_PASS1_BITS, _CONST_BITS = 2, 13


class _Operations:
    """Vector instructions on rows of eight 16-bit numbers, of one block or of two."""

    def __init__(self, builder: Any, vectors: str) -> None:
        self.builder, self._vectors = builder, vectors
        self.blocks = _BLOCKS[vectors]
        self.rows = ir.VectorType(I16, 8 * self.blocks)
        self.wide = ir.VectorType(I32, 4 * self.blocks)

    def constant(self, kind: Any, numbers: Sequence[int]) -> _Vector:
        return ir.Constant(kind, [ir.Constant(kind.element, number) for number in numbers])

    def all(self, kind: Any, number: int) -> _Vector:
        return self.constant(kind, [number] * kind.count)

    def shuffle(self, x: _Vector, y: _Vector, order: Sequence[int]) -> _Vector:
        return self.builder.shuffle_vector(x, y, self.constant(ir.VectorType(I32, len(order)), order))

    def interleave(self, x: _Vector, y: _Vector, high: bool, bits: int) -> _Vector:
        """Of each block's rows, the low or high halves in turn, numbers of `bits` bits at a time."""
        count = 128 // bits
        kind = ir.VectorType(ir.IntType(bits), count * self.blocks)
        x, y = self.builder.bitcast(x, kind), self.builder.bitcast(y, kind)
        starts = [block * count + (count // 2 if high else 0) for block in range(self.blocks)]
        order = [start + i + source for start in starts for i in range(count // 2) for source in (0, kind.count)]
        return self.builder.bitcast(self.shuffle(x, y, order), self.rows)

    def transpose(self, rows: Sequence[_Vector]) -> list[_Vector]:
        for bits, apart in ((16, 1), (32, 2), (64, 4)):
            rows = self._mixed(rows, bits, apart)
        return [rows[row] for row in (0, 4, 2, 6, 1, 5, 3, 7)]

    def _mixed(self, rows: Sequence[_Vector], bits: int, apart: int) -> list[_Vector]:
        """Interleave each row with that `apart` from it."""
        mixed: list[_Vector] = [None] * 8
        for row in range(8):
            first, high = row & ~apart, bool(row & apart)
            mixed[row] = self.interleave(rows[first], rows[first + apart], high, bits)
        return mixed

    def call(self, name: str, result: Any, *arguments: Any) -> _Vector:
        declared = ir.FunctionType(result, [argument.type for argument in arguments])
        return self.builder.call(self.builder.module.declare_intrinsic(name, (), declared), arguments)

    def _half(self, rows: _Vector, high: bool) -> _Vector:
        start = 4 if high else 0
        half = self.shuffle(rows, rows, range(start, start + 4))
        return self.builder.sext(half, self.wide)

    def weighted(self, x: _Vector, y: _Vector, x_weight: int, y_weight: int) -> _Wide:
        """x * x_weight + y * y_weight in 32 bits."""
        if self._vectors == ANY:
            x_weights, y_weights = self.all(self.wide, x_weight), self.all(self.wide, y_weight)
            products = [
                (self.builder.mul(self._half(x, high), x_weights), self.builder.mul(self._half(y, high), y_weights))
                for high in (False, True)
            ]
            low, high = (self.builder.add(*product) for product in products)
            return low, high
        name = {AVX2: "llvm.x86.avx2.pmadd.wd", SSE2: "llvm.x86.sse2.pmadd.wd"}[self._vectors]
        weights = self.constant(self.rows, [x_weight, y_weight] * (4 * self.blocks))
        low, high = (self.call(name, self.wide, self.interleave(x, y, high, 16), weights) for high in (False, True))
        return low, high

    def scaled(self, x: _Vector) -> _Wide:
        """x << _CONST_BITS in 32 bits."""
        zero = self.all(self.rows, 0)
        if self._vectors == ANY:
            shift = self.all(self.wide, _CONST_BITS)
            return self.builder.shl(self._half(x, False), shift), self.builder.shl(self._half(x, True), shift)
        shift = self.all(self.wide, 16 - _CONST_BITS)
        low, high = (
            self.builder.ashr(self.builder.bitcast(self.interleave(zero, x, high, 16), self.wide), shift)
            for high in (False, True)
        )
        return low, high

    def add(self, x: _Wide, y: _Wide) -> _Wide:
        return self.builder.add(x[0], y[0]), self.builder.add(x[1], y[1])

    def subtract(self, x: _Wide, y: _Wide) -> _Wide:
        return self.builder.sub(x[0], y[0]), self.builder.sub(x[1], y[1])

    def narrow(self, x: _Wide, shift: int) -> _Vector:
        """x >> shift in 16 bits, saturated."""
        count = self.all(self.wide, shift)
        low, high = (self.builder.ashr(half, count) for half in x)
        if self._vectors == ANY:
            return self._saturated(self.shuffle(low, high, range(8)), I16)
        name = {AVX2: "llvm.x86.avx2.packssdw", SSE2: "llvm.x86.sse2.packssdw.128"}[self._vectors]
        return self.call(name, self.rows, low, high)

    def narrow_to_bytes(self, x: _Vector, y: _Vector) -> _Vector:
        """Two rows as bytes, saturated to -128 ... 127, of each block in 16 bytes."""
        bytes_of = ir.VectorType(I8, 16 * self.blocks)
        if self._vectors == ANY:
            return self._saturated(self.shuffle(x, y, range(16)), I8)
        name = {AVX2: "llvm.x86.avx2.packsswb", SSE2: "llvm.x86.sse2.packsswb.128"}[self._vectors]
        return self.call(name, bytes_of, x, y)

    def _saturated(self, x: _Vector, element: Any) -> _Vector:
        """x in elements of fewer bits."""
        least, most = (self.all(x.type, limit) for limit in (-(1 << element.width - 1), (1 << element.width - 1) - 1))
        x = self.builder.select(self.builder.icmp_signed("<", x, least), least, x)
        x = self.builder.select(self.builder.icmp_signed(">", x, most), most, x)
        return self.builder.trunc(x, ir.VectorType(element, x.type.count))

    def dct(self, rows: Sequence[_Vector], shift: int) -> list[_Vector]:
        """One pass over the columns. Rows that are None are zero: of the lower four, all or none."""
        b = self.builder
        zero = self.all(self.rows, 0)
        half = rows[4] is None
        r0, r1, r2, r3, r4, r5, r6, r7 = (zero if row is None else row for row in rows)
        even3, even2 = self.weighted(r2, r6, 4433 + 6270, 4433), self.weighted(r2, r6, 4433, 4433 - 15137)
        rounding = (self.all(self.wide, 1 << shift - 1),) * 2
        even0 = self.add(self.scaled(r0 if half else b.add(r0, r4)), rounding)
        even1 = even0 if half else self.add(self.scaled(b.sub(r0, r4)), rounding)
        even = (
            self.add(even0, even3),
            self.add(even1, even2),
            self.subtract(even1, even2),
            self.subtract(even0, even3),
        )
        z3, z4 = (r3, r1) if half else (b.add(r3, r7), b.add(r1, r5))
        z3, z4 = self.weighted(z3, z4, 9633 - 16069, 9633), self.weighted(z3, z4, 9633, 9633 - 3196)
        odd = (
            self.add(self.weighted(r7, r1, -7373, 12299 - 7373), z4),
            self.add(self.weighted(r5, r3, -20995, 25172 - 20995), z3),
            self.add(self.weighted(r5, r3, 16819 - 20995, -20995), z4),
            self.add(self.weighted(r7, r1, 2446 - 7373, -7373), z3),
        )
        sums = [self.narrow(self.add(x, y), shift) for x, y in zip(even, odd, strict=True)]
        differences = [self.narrow(self.subtract(x, y), shift) for x, y in zip(even, odd, strict=True)]
        return [*sums, *reversed(differences)]

    def load_rows(self, starts: Sequence[Any], count: int) -> list[_Vector]:
        """The first rows of one block or of two, from where they begin."""
        row_of_one = ir.VectorType(I16, 8)
        rows = []
        for row in range(count):
            parts = [
                load(self.builder, self.builder.gep(start, [ir.Constant(I64, 8 * row)]), row_of_one, 2)
                for start in starts
            ]
            rows.append(self.shuffle(parts[0], parts[-1], range(8 * self.blocks)))
        return rows

    def is_block_zero(self, rows: Sequence[_Vector]) -> Any:
        """Of each block, whether all of some rows are zero, an integer of as many bits as there are blocks."""
        together = rows[0]
        for row in rows[1:]:
            together = self.builder.or_(together, row)
        of_blocks = ir.VectorType(ir.IntType(128), self.blocks)
        zero = self.builder.icmp_unsigned("==", self.builder.bitcast(together, of_blocks), self.all(of_blocks, 0))
        return self.builder.bitcast(zero, ir.IntType(self.blocks))

    def first_pass(self, rows: Sequence[_Vector], kind: int) -> list[_Vector]:
        """The pass over the columns. Where all rows but the first are zero, libjpeg-turbo only shifts it, which wraps
        where the whole pass saturates: of a pair of blocks, that may be one."""
        shifted = self.builder.shl(rows[0], self.all(self.rows, _PASS1_BITS))
        if kind == FIRST_ROW_ONLY:
            return [shifted] * 8
        columns = self.dct(list(rows) + [None] * (8 - len(rows)), _FIRST_PASS)
        if self.blocks == 1:
            return columns
        bits = self.is_block_zero(rows[1:])
        of_blocks = ir.VectorType(ir.IntType(128), self.blocks)
        mask = self.builder.sext(self.builder.bitcast(bits, ir.VectorType(ir.IntType(1), self.blocks)), of_blocks)
        mask = self.builder.bitcast(mask, self.rows)
        return [
            self.builder.xor(column, self.builder.and_(self.builder.xor(column, shifted), mask)) for column in columns
        ]


@intrinsic(prefer_literal=True)
def _blocks_in_vector(typing_context, vectors):
    """How many blocks are transformed at once."""

    def generate(context, builder, signature, arguments):
        return ir.Constant(I64, _BLOCKS[vectors.literal_value])

    return types.int64(vectors), generate


@intrinsic(prefer_literal=True)
def _rows_of(typing_context, vectors, coefficients, at, at_next):
    """Which rows of the block at coefficients[at] are not zero (FIRST_ROW_ONLY, ...); where two blocks are in a vector,
    of either of them."""

    def generate(context, builder, signature, arguments):
        operations = _Operations(builder, vectors.literal_value)
        starts = [pointer(context, builder, signature.args[1], arguments[1], at, 64) for at in arguments[2:]]
        rows = operations.load_rows(starts, 8)
        all_zero = ir.Constant(ir.IntType(operations.blocks), -1)
        upper = builder.icmp_unsigned("!=", operations.is_block_zero(rows[1:]), all_zero)
        lower = builder.icmp_unsigned("!=", operations.is_block_zero(rows[4:]), all_zero)
        return builder.add(builder.zext(upper, I64), builder.zext(lower, I64))

    return types.int64(vectors, coefficients, types.uint64, types.uint64), generate


@intrinsic(prefer_literal=True)
def _transform(
    typing_context, vectors, kind, coefficients, at, at_next, dc, dc_next, table, samples, to, to_next, pitch
):
    """The samples of one block, or of two, from their coefficients, but DC coefficients as given.

    `kind` says which rows are not zero. `table` is the quantization table, int16 [64]; the 8 x 8 samples go to rows
    `pitch` apart from `to` on.
    """

    def generate(context, builder, signature, arguments):
        operations = _Operations(builder, vectors.literal_value)
        _, _, data, *arguments = arguments
        data_type, table_type, samples_type = signature.args[2], signature.args[7], signature.args[8]
        ats, dcs, (table, samples), tos, pitch = (
            arguments[:2],
            arguments[2:4],
            arguments[4:6],
            arguments[6:8],
            arguments[8],
        )
        blocks, count = operations.blocks, {FIRST_ROW_ONLY: 1, UPPER_HALF_ONLY: 4, ALL_ROWS: 8}[kind.literal_value]
        rows = operations.load_rows([pointer(context, builder, data_type, data, at, 64) for at in ats[:blocks]], count)
        for block, dc in enumerate(dcs[:blocks]):
            rows[0] = builder.insert_element(rows[0], builder.trunc(dc, I16), ir.Constant(I32, 8 * block))
        table = pointer(context, builder, table_type, table, ir.Constant(I64, 0), 64)
        weights = operations.load_rows([table] * blocks, count)
        rows = [builder.mul(row, weight) for row, weight in zip(rows, weights, strict=True)]
        rows = operations.transpose(operations.first_pass(rows, kind.literal_value))
        rows = operations.transpose(operations.dct(rows, _SECOND_PASS))
        pairs = ir.VectorType(I64, 2 * blocks)
        for pair in range(4):
            both = operations.narrow_to_bytes(rows[2 * pair], rows[2 * pair + 1])
            both = builder.bitcast(builder.xor(both, operations.all(both.type, -128)), pairs)
            for block, row in ((block, row) for block in range(blocks) for row in range(2)):
                at = builder.add(tos[block], builder.mul(pitch, ir.Constant(I64, 2 * pair + row)))
                at = pointer(context, builder, samples_type, samples, at, 8)
                store(builder, builder.extract_element(both, ir.Constant(I32, 2 * block + row)), at)
        return context.get_dummy_value()

    position = types.uint64
    return (
        types.void(
            vectors, kind, coefficients, position, position, types.int64, types.int64, table, samples, position,
            position, position,
        ),
        generate,
    )  # fmt: skip


_coefficient_pointer, _number_pointer, _sample_pointer, _int = (
    types.CPointer(types.int16),
    types.CPointer(types.int64),
    types.CPointer(types.uint8),
    types.int64,
)
_arguments = (
    _coefficient_pointer, _int, _number_pointer, _int, _coefficient_pointer, _sample_pointer, _int, _int
)  # fmt: skip


def compile_transform(vectors: str, sources: int = digest(memory, processor)) -> Any:
    """transform_blocks on the first bytes of contiguous arrays, with some vectors, as a C function."""

    @cfunc(types.void(*_arguments), cache=True)
    def run(coefficients, coefficients_size, blocks, count, table, samples, samples_size, pitch):
        assert sources
        coefficients, blocks = carray(coefficients, coefficients_size), carray(blocks, (count, 3))
        table, samples, pitch = carray(table, 64), carray(samples, samples_size), np.uint64(pitch)
        step = _blocks_in_vector(vectors)
        for block in range(0, count, step):
            other = min(block + step, count) - 1
            at, at_other = np.uint64(blocks[block, 0]), np.uint64(blocks[other, 0])
            dc, dc_other = blocks[block, 1], blocks[other, 1]
            to, to_other = np.uint64(blocks[block, 2]), np.uint64(blocks[other, 2])
            rows = _rows_of(vectors, coefficients, at, at_other)
            if rows == ALL_ROWS:
                _transform(
                    vectors, ALL_ROWS, coefficients, at, at_other, dc, dc_other, table, samples, to, to_other, pitch
                )
            elif rows == UPPER_HALF_ONLY:
                _transform(
                    vectors, UPPER_HALF_ONLY, coefficients, at, at_other, dc, dc_other, table, samples, to, to_other,
                    pitch,
                )  # fmt: skip
            else:
                _transform(
                    vectors, FIRST_ROW_ONLY, coefficients, at, at_other, dc, dc_other, table, samples, to, to_other,
                    pitch,
                )  # fmt: skip

    return run


llvmlite.binding.add_symbol("sluice_transform", compile_transform(VECTORS).address)
_transform_by_name = types.ExternalFunction("sluice_transform", types.void(*_arguments))


@part
def transform_blocks(coefficients, blocks, count, table, samples, pitch):
    """Make the samples of `count` blocks of 8 x 8.

    `blocks`, int64 [N, 3], says of each where its coefficients begin in `coefficients`, flat int16, in rows; its DC
    coefficient, instead of what stands there; and where its samples go in `samples`, flat uint8, in rows that are
    `pitch` apart. `table`, int16 [64], is the quantization table, in rows.
    """
    _transform_by_name(
        coefficients.ctypes, coefficients.size, blocks.ctypes, count, table.ctypes, samples.ctypes, samples.size, pitch
    )
