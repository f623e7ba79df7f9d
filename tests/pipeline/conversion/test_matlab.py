"""MATLAB's struct arrays, read from files written by scipy and from damaged ones."""

import contextlib
import io
import random
import struct
import tracemalloc
import zlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.io import loadmat, savemat

from pipeline.conversion.matlab import HEADER_BYTES, LARGEST, Value, read_structs
from tests.helpers.label_files import FIELDS, meta_mat

CLASSES = [f"n{number:08d}" for number in range(30)]
IDS = {wnid: number for number, wnid in enumerate([*CLASSES[1:], CLASSES[0]], 1)}
META = {compressed: meta_mat(IDS, compressed) for compressed in (True, False)}
NEEDED = ("ILSVRC2012_ID", "WNID", "num_children")


def by_scipy(data: bytes, fields: tuple[str, ...]) -> list[tuple[Value, ...]]:
    """What scipy reads, with numbers as lists."""
    synsets = np.atleast_1d(loadmat(io.BytesIO(data), squeeze_me=True, variable_names=["synsets"])["synsets"])
    return [tuple(plain(row[field]) for field in fields) for row in synsets]


def plain(value: Any) -> Value:
    return str(value) if isinstance(value, str) else np.atleast_1d(value).tolist()


def written(content: dict[str, Any], **options: Any) -> bytes:
    """The variables as a MAT-file."""
    file = io.BytesIO()
    savemat(file, content, **options)
    return file.getvalue()


def structs(**fields: list[Any]) -> np.ndarray:
    """A struct array of these fields."""
    rows = list(zip(*fields.values(), strict=True))
    array = np.empty((len(rows), 1), [(name, object) for name in fields])
    for at, row in enumerate(rows):
        array[at, 0] = row
    return array


@pytest.mark.parametrize("compressed", [True, False])
@pytest.mark.parametrize("fields", [NEEDED, FIELDS, ("WNID",)])
def test_fields_are_what_scipy_reads(compressed: bool, fields: tuple[str, ...]) -> None:
    read = read_structs(META[compressed], "synsets", fields)
    assert read == by_scipy(META[compressed], fields)
    assert len(read) == 33


@pytest.mark.parametrize("kind", ["i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "f4", "f8"])
def test_numbers_of_every_type_are_read(kind: str) -> None:
    data = written({"synsets": structs(a=[np.array([3, 100], kind), np.array([], kind)], b=["x", "y"])})
    assert read_structs(data, "synsets", ("a", "b")) == [([3, 100], "x"), ([], "y")]


@pytest.mark.parametrize("text", ["n01440764", "tench, Tinca tinca", "crème brûlée", "鱼", ""])
def test_texts_are_read(text: str) -> None:
    assert read_structs(written({"synsets": structs(a=[text])}), "synsets", ("a",)) == [(text,)]


def test_one_element_and_other_variables_around_it() -> None:
    synsets = structs(a=[1], b=["x"])
    data = written({"before": np.zeros(5), "text": "synsets", "synsets": synsets, "after": structs(a=[2], b=["y"])})
    assert read_structs(data, "synsets", ("b", "a")) == [("x", [1])]
    assert read_structs(data, "after", ("b", "a")) == [("y", [2])]


def test_other_contents_are_none() -> None:
    cell = np.empty(2, object)
    cell[:] = ["x", 1]
    assert read_structs(written({"synsets": structs(a=[cell, {"b": 1}])}), "synsets", ("a",)) == [(None,), (None,)]


def big_endian(number: int, text: str) -> bytes:
    """`synsets` with the fields `a` and `b`, in the form of MATLAB on SPARC: big-endian, 16-bit characters."""

    def element(kind: int, data: bytes) -> bytes:
        return struct.pack(">II", kind, len(data)) + data + bytes(-len(data) % 8)

    def matrix(kind: int, name: bytes, *parts: bytes, length: int = 1) -> bytes:
        head = element(6, struct.pack(">II", kind, 0)), element(5, struct.pack(">ii", 1, length)), element(1, name)
        return element(14, b"".join([*head, *parts]))

    names = struct.pack(">HHI", 4, 5, 2) + element(1, b"a\0b\0")  # the length of names is in its tag
    first = matrix(6, b"", element(4, struct.pack(">H", number)))
    second = matrix(4, b"", element(4, text.encode("utf-16-be")), length=len(text))
    return b"MATLAB 5.0 MAT-file".ljust(HEADER_BYTES - 4) + b"\x01\0MI" + matrix(2, b"synsets", names, first, second)


def test_big_endian_file_is_read() -> None:
    data = big_endian(300, "n01440764")
    assert read_structs(data, "synsets", ("a", "b")) == [([300], "n01440764")]
    assert by_scipy(data, ("a", "b")) == [([300], "n01440764")]


WRONG = {
    "empty": (b"", "not a MAT-file of level 5"),
    "header alone": (META[True][:HEADER_BYTES], "no struct array synsets"),
    "text": (b"n01440764 tench\n" * 20, "not a MAT-file of level 5"),
    "of level 7.3": (META[True][:124] + b"\x00\x02IM\x89HDF\r\n\x1a\n" + bytes(200), "an element is longer"),
    "another variable": (written({"synset": structs(a=[1])}), "no struct array synsets"),
    "an array of numbers": (written({"synsets": np.arange(10)}), "no struct array synsets"),
    "without a field": (written({"synsets": structs(ILSVRC2012_ID=[1])}), "no field WNID in synsets"),
    "an empty matrix": (META[False][:HEADER_BYTES] + struct.pack("<II", 14, 0), "not a MAT-file of level 5"),
}


@pytest.mark.parametrize(("data", "message"), WRONG.values(), ids=WRONG.keys())
def test_anything_else_is_refused(data: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        read_structs(data, "synsets", NEEDED)


def test_compressed_data_that_would_fill_the_memory_is_refused() -> None:
    squeezed = zlib.compress(struct.pack("<II", 14, 1 << 25) + bytes(1 << 25), 9)
    data = META[True][:HEADER_BYTES] + struct.pack("<II", 15, len(squeezed)) + squeezed
    del squeezed
    tracemalloc.start()
    with pytest.raises(ValueError, match="has more than"):
        read_structs(data, "synsets", NEEDED)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 4 * LARGEST


def element(kind: int, data: bytes) -> bytes:
    return struct.pack("<II", kind, len(data)) + data + bytes(-len(data) % 8)


def struct_array(dimensions: bytes, length_of_names: bytes) -> bytes:
    """A file with `synsets` of one field, given two of its elements."""
    flags, name, names = element(6, struct.pack("<II", 2, 0)), element(1, b"synsets"), element(1, b"WNID\0\0\0\0")
    return META[True][:HEADER_BYTES] + element(14, flags + dimensions + name + length_of_names + names)


ONE, EIGHT = element(5, struct.pack("<ii", 1, 1)), element(5, struct.pack("<i", 8))
INFINITE = element(9, struct.pack("<d", float("inf")))
ABSURD = {
    "endless dimensions": (struct_array(element(2, b"\xff" * 100_000), EIGHT), "a matrix of 100000 dimensions"),
    "an infinite dimension": (struct_array(INFINITE, EIGHT), "not a MAT-file of level 5"),
    "names of infinite length": (struct_array(ONE, INFINITE), "not a MAT-file of level 5"),
}


@pytest.mark.parametrize(("data", "message"), ABSURD.values(), ids=ABSURD.keys())
def test_absurd_numbers_are_refused(data: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        read_structs(data, "synsets", ["WNID"])


@pytest.mark.parametrize("compressed", [True, False])
def test_file_truncated_anywhere_is_refused(compressed: bool) -> None:
    data = META[compressed]
    for end in range(0, len(data) - 8, 1 if compressed else 7):
        with pytest.raises(ValueError, match=r"\w"):
            read_structs(data[:end], "synsets", NEEDED)


@pytest.mark.parametrize("compressed", [True, False])
@given(st.integers(0, 1 << 32))
def test_damaged_file_gives_rows_or_a_value_error(compressed: bool, seed: int) -> None:
    rng = random.Random(seed)
    data = bytearray(META[compressed])
    for _ in range(rng.choice([1, 1, 2, 8])):
        data[rng.randrange(HEADER_BYTES - 4, len(data))] = rng.choice([0, 1, 14, 127, 255, rng.randrange(256)])
    with contextlib.suppress(ValueError):
        assert all(len(row) == len(NEEDED) for row in read_structs(bytes(data), "synsets", NEEDED))
