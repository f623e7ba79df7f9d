"""MATLAB's MAT-files, as far as the development kit's `meta.mat` needs them: the fields of a struct array.

"MAT-File Format", level 5 (The MathWorks): a header of 128 bytes, then elements, each a tag with type and size,
data, and padding to 8 bytes; a matrix is an element of elements. scipy.io.loadmat reads all of it, but a damaged file
crashes the process there (segmentation fault in scipy 1.17), and a wrong size makes it take all memory.
"""

import math
import struct
import zlib
from collections.abc import Iterator, Sequence
from typing import TypeAlias

import numpy as np

HEADER_BYTES = 128
LARGEST = 1 << 23  # bytes of a variable, uncompressed; `synsets` has about 2 MB
_MOST_DIMENSIONS = 32  # of a matrix: the product of a million takes hours

# Types of elements (table 1-1) and classes of matrices (table 1-3).
_MATRIX, _COMPRESSED = 14, 15
_NUMBERS = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
_TEXTS = {1: "latin-1", 2: "latin-1", 4: "utf-16", 16: "utf-8", 17: "utf-16", 18: "utf-32"}
_STRUCT, _CHAR = 2, 4

Value: TypeAlias = str | list[float] | None
"""A text, the numbers of an array, or None for any other content."""

_Element = tuple[int, memoryview]
_NOTHING: _Element = (1, memoryview(b""))


def read_structs(data: bytes, variable: str, fields: Sequence[str]) -> list[tuple[Value, ...]]:
    """The values of `fields` in each element of the struct array `variable`.

    Raises ValueError if the file is damaged or has no such struct array.
    """
    try:
        order = {b"IM": "<", b"MI": ">"}[data[HEADER_BYTES - 2 : HEADER_BYTES]]
        for kind, content in _elements(memoryview(data)[HEADER_BYTES:], order):
            if kind == _COMPRESSED:
                kind, content = next(_elements(memoryview(_inflated(content)), order), _NOTHING)
            if kind == _MATRIX and (rows := _structs(content, order, variable, fields)) is not None:
                return rows
    except (KeyError, IndexError, OverflowError, zlib.error) as error:
        raise ValueError(f"not a MAT-file of level 5, or damaged: {error!r}") from None
    raise ValueError(f"no struct array {variable} in it")


def _elements(data: memoryview, order: str) -> Iterator[_Element]:
    """Type and data of each element."""
    at = 0
    while at + 8 <= len(data):
        kind, size = struct.unpack_from(f"{order}II", data, at)
        start, end = at + 8, at + 8 + size
        if kind >> 16:  # up to 4 bytes are in the tag itself
            kind, size = kind & 0xFFFF, kind >> 16
            start, end = at + 4, at + 8
        if size > end - start or start + size > len(data):
            raise ValueError("an element is longer than its container")
        yield kind, data[start : start + size]
        at = end if kind == _COMPRESSED else end + -end % 8


def _inflated(content: memoryview) -> bytes:
    inflate = zlib.decompressobj()
    inflated = inflate.decompress(content, LARGEST)
    if not inflate.eof:
        raise ValueError(f"compressed data that is truncated or has more than {LARGEST} bytes")
    return inflated


def _structs(matrix: memoryview, order: str, variable: str, fields: Sequence[str]) -> list[tuple[Value, ...]] | None:
    """The rows of a struct array, None if the matrix is another variable."""
    parts = _elements(matrix, order)
    matrix_class, count, name = _matrix_head(parts, order)
    if name != variable or matrix_class != _STRUCT:
        return None
    length = int(_numbers(next(parts, _NOTHING), order)[0])
    packed = bytes(next(parts, _NOTHING)[1])
    names = [packed[at : at + length].split(b"\0")[0].decode() for at in range(0, len(packed), length)]
    if missing := [field for field in fields if field not in names]:
        raise ValueError(f"no field {missing[0]} in {variable}")
    wanted = [names.index(field) for field in fields]
    contents = [content for kind, content in parts if kind == _MATRIX]
    if len(contents) != count * len(names):
        raise ValueError(f"{len(contents)} values for {count} times {len(names)} fields")
    return [
        tuple(_value(contents[first + at], order) for at in wanted) for first in range(0, len(contents), len(names))
    ]


def _matrix_head(parts: Iterator[_Element], order: str) -> tuple[int, int, str]:
    """Class, number of elements and name of a matrix."""
    flags, dimensions, name = (next(parts, _NOTHING) for _ in range(3))
    sizes = _numbers(dimensions, order)
    if len(sizes) > _MOST_DIMENSIONS:
        raise ValueError(f"a matrix of {len(sizes)} dimensions")
    return int(_numbers(flags, order)[0]) & 0xFF, math.prod(map(int, sizes)), _text(name, order)


def _value(matrix: memoryview, order: str) -> Value:
    if not matrix:  # MATLAB's empty array
        return []
    parts = _elements(matrix, order)
    matrix_class, _, _ = _matrix_head(parts, order)
    if matrix_class <= _CHAR:
        return _text(next(parts, _NOTHING), order) if matrix_class == _CHAR else None
    return _numbers(next(parts, _NOTHING), order)


def _numbers(element: _Element, order: str) -> list[float]:
    kind, content = element
    values: list[float] = np.frombuffer(content, f"{order}{_NUMBERS[kind]}").tolist()
    return values


def _text(element: _Element, order: str) -> str:
    kind, content = element
    encoding = _TEXTS[kind]
    wide = encoding in ("utf-16", "utf-32")
    return bytes(content).decode(f"{encoding}-{'le' if order == '<' else 'be'}" if wide else encoding)
